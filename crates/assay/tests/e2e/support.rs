//! A running network (`assay up` as a child process) and a small blocking HTTP client to talk to it.
//!
//! The client is ours so that a test can hold a stream half-read, cut it, or kill a provider between two chunks.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

/// Longest wait for anything; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn assay() -> Command {
    Command::new(env!("CARGO_BIN_EXE_assay"))
}

/// A file of the shipped model.
pub fn shipped(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/assay-tiny").join(file)
}

/// `assay up` and what it said when it was ready.
pub struct Network {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub ready: Value,
}

impl Network {
    /// Starts `assay up --json --port 0 --dir DIR` with further arguments and waits until it is ready.
    pub fn start(dir: &Path, args: &[&str]) -> Self {
        Self::start_as(assay(), dir, args)
    }

    /// The same with a command whose environment or standard error the test has set.
    pub fn start_as(mut command: Command, dir: &Path, args: &[&str]) -> Self {
        let mut child = command
            .args(["up", "--json", "--port", "0", "--dir"])
            .arg(dir)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("assay starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("assay up prints");
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("{e}: ready line {line:?}, status {:?}", child.try_wait()));
        assert_eq!(ready["ready"], true, "{ready}");
        Self { child, stdout, ready }
    }

    /// Host and port of the gateway.
    pub fn gateway(&self) -> String {
        let url = self.ready["gateway"].as_str().expect("the ready line has a gateway");
        url.trim_start_matches("http://").trim_end_matches("/v1").to_owned()
    }

    pub fn key(&self) -> String {
        self.ready["key"].as_str().expect("the ready line has a key").to_owned()
    }

    pub fn chain(&self) -> String {
        self.ready["chain"].as_str().expect("the ready line has a chain").to_owned()
    }

    /// Ids of the providers, in the order in which they were started.
    pub fn providers(&self) -> Vec<String> {
        let list = self.ready["providers"].as_array().expect("the ready line has providers");
        list.iter().map(|p| p["id"].as_str().expect("a provider has an id").to_owned()).collect()
    }

    /// Process id of a provider.
    pub fn pid(&self, provider: &str) -> u64 {
        let list = self.ready["providers"].as_array().expect("the ready line has providers");
        let found = list.iter().find(|p| p["id"] == provider).expect("a provider of this network");
        found["pid"].as_u64().expect("a provider has a process id")
    }

    /// A connection to the gateway.
    pub fn http(&self) -> Http {
        Http::connect(&self.gateway(), Some(&self.key()))
    }

    /// Kills the parent without notice; its providers end by themselves when they see that it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("the child can be killed");
        self.child.wait().expect("the child can be reaped");
    }

    /// TERM, then what it printed last (its closing line) once it has ended with status 0.
    pub fn stop(mut self) -> Value {
        signal("TERM", u64::from(self.child.id()));
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("assay up prints");
        let status = self.child.wait().expect("the child can be reaped");
        assert!(status.success(), "assay up ended with {status}");
        let line = rest.lines().last().unwrap_or_else(|| panic!("no closing line"));
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: closing line {line:?}"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // A test that failed: do not leave the network running. Ended children ignore this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kill -NAME PID` for a process that this test started.
pub fn signal(name: &str, pid: u64) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().expect("kill runs");
    assert!(status.success(), "kill -{name} {pid}");
}

/// One HTTP/1.1 connection.
pub struct Http {
    stream: BufReader<TcpStream>,
    host: String,
    key: Option<String>,
}

/// Status, headers and the body as it arrives.
pub struct Reply<'a> {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    stream: &'a mut BufReader<TcpStream>,
}

enum Body {
    Length(usize),
    Chunked { left: usize, done: bool },
}

impl Http {
    pub fn connect(host: &str, key: Option<&str>) -> Self {
        let stream = TcpStream::connect(host).expect("the gateway listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("nodelay can be set");
        Self { stream: BufReader::new(stream), host: host.to_owned(), key: key.map(str::to_owned) }
    }

    pub fn send(&mut self, method: &str, path: &str, body: &[u8]) -> Reply<'_> {
        let auth = self.key.as_ref().map_or_else(String::new, |k| format!("authorization: Bearer {k}\r\n"));
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\n{auth}content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        let socket = self.stream.get_mut();
        socket.write_all(head.as_bytes()).expect("the gateway takes the head");
        // A gateway may answer and close before it has read a body that is too large.
        let _ = socket.write_all(body);
        self.read_reply()
    }

    fn read_reply(&mut self) -> Reply<'_> {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a status line");
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("status {line:?}"));
        let mut headers = vec![];
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a header");
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        let body = match find("content-length") {
            Some(length) => Body::Length(length.parse().expect("a length")),
            None => Body::Chunked { left: 0, done: false },
        };
        Reply { status, headers, body, stream: &mut self.stream }
    }

    pub fn get(&mut self, path: &str) -> (u16, Value) {
        let mut reply = self.send("GET", path, b"");
        (reply.status, reply.json())
    }

    pub fn post(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let mut reply = self.send("POST", path, body.to_string().as_bytes());
        (reply.status, reply.json())
    }

    /// A chat request that must succeed: its text and its body.
    pub fn chat(&mut self, body: &Value) -> (String, Value) {
        let (status, reply) = self.post("/v1/chat/completions", body);
        assert_eq!(status, 200, "{reply}");
        let text = reply["choices"][0]["message"]["content"].as_str().expect("a text").to_owned();
        (text, reply)
    }
}

impl Reply<'_> {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn text(&mut self) -> String {
        let mut text = String::new();
        self.read_to_string(&mut text).expect("a body");
        text
    }

    pub fn json(&mut self) -> Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text:?}"))
    }

    /// The next server-sent event; `None` at the end of the stream.
    pub fn event(&mut self) -> Option<String> {
        let mut line = vec![];
        let mut byte = [0];
        loop {
            line.clear();
            loop {
                if self.read(&mut byte).expect("an event") == 0 {
                    return None;
                }
                if byte[0] == b'\n' {
                    break;
                }
                line.push(byte[0]);
            }
            if let Some(data) = line.strip_prefix(b"data: ") {
                return Some(String::from_utf8(data.to_vec()).expect("events are UTF-8"));
            }
        }
    }
}

impl Read for Reply<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let left = match &mut self.body {
            // An empty read would still wait for the next bytes of the connection.
            Body::Length(0) | Body::Chunked { done: true, .. } => return Ok(0),
            Body::Length(left) => left,
            Body::Chunked { left, done } => {
                if *left == 0 {
                    let mut line = String::new();
                    self.stream.read_line(&mut line)?;
                    *left = usize::from_str_radix(line.trim(), 16)
                        .map_err(|_| std::io::Error::other(format!("chunk head {line:?}")))?;
                    if *left == 0 {
                        *done = true;
                        self.stream.read_line(&mut String::new())?;
                        return Ok(0);
                    }
                }
                left
            }
        };
        let most = out.len().min(*left);
        let n = self.stream.read(&mut out[..most])?;
        *left -= n;
        if let Body::Chunked { left: 0, .. } = self.body {
            let mut end = [0; 2];
            self.stream.read_exact(&mut end)?;
        }
        Ok(n)
    }
}
