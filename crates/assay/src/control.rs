//! What commands say to a gateway that runs on the same folder, over its socket file.

use anyhow::{Context, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A gateway that does not begin to answer within this is stuck.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest head of a reply.
const HEAD_BYTES_MAX: u64 = 16 << 10;

/// The body of the gateway's reply as it comes; `None` if no gateway runs there.
pub fn ask(socket: &Path, method: &str, path: &str) -> anyhow::Result<Option<BufReader<UnixStream>>> {
    let mut stream = match UnixStream::connect(socket) {
        Ok(stream) => stream,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(e) => return Err(e).with_context(|| format!("cannot reach the gateway at {}", socket.display())),
    };
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    // HTTP/1.0: the body ends with the connection, and comes as it is.
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: assay\r\n\r\n")?;
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    let mut limited = (&mut reader).take(HEAD_BYTES_MAX);
    loop {
        let start = head.len();
        if limited.read_line(&mut head).context("the gateway does not answer")? == 0 {
            bail!("the gateway's answer broke off");
        }
        if head[start..].trim_end().is_empty() {
            break;
        }
    }
    let status = head.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        let mut body = String::new();
        reader.take(HEAD_BYTES_MAX).read_to_string(&mut body)?;
        bail!("the gateway refused {path}: {status} {}", body.trim());
    }
    reader.get_ref().set_read_timeout(None)?;
    Ok(Some(reader))
}

/// Tells a running gateway that keys were changed; whether one runs.
pub fn reload_keys(socket: &Path) -> anyhow::Result<bool> {
    let Some(mut reply) = ask(socket, "POST", "/keys/reload")? else { return Ok(false) };
    let mut body = String::new();
    reply.read_to_string(&mut body)?;
    ensure!(body.contains("\"reloaded\":true"), "the gateway answers {body:?}");
    Ok(true)
}
