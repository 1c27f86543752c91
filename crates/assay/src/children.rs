//! Providers and auditors as processes of their own: started, watched, started again when they die, stopped.
//!
//! A child runs `assay provide --config FILE` or `assay audit ..`. It prints one JSON line when it is ready and one when it has stopped,
//! and stops when its standard input closes, so it never outlives its parent, not even a killed one.

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;
use std::ffi::OsString;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

/// Longest time a child may take to be ready: it may have to load a large model.
const READY_TIME_MAX: Duration = Duration::from_secs(600);
/// Longest time a child may take to stop: 5 s for its streams, then its claims.
const STOP_TIME_MAX: Duration = Duration::from_secs(20);
/// First pause before a dead child is started again; doubles up to [`PAUSE_MAX`] while it keeps dying.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A child that lived this long starts over with the shortest pause.
const STABLE_TIME: Duration = Duration::from_secs(30);

/// What a child says when it is ready.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Ready {
    /// Provider id.
    pub id: String,
    /// Where it listens.
    pub endpoint: String,
    /// Its process, filled in by the parent.
    #[serde(default)]
    pub pid: u32,
}

/// One process and the task that watches it.
pub struct Supervised {
    name: String,
    state: watch::Receiver<Option<Ready>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<Option<Value>>>,
}

impl Supervised {
    /// Starts a child and returns at once; [`Self::ready`] waits for it.
    pub fn start(name: String, command: Vec<OsString>) -> Self {
        let (state_in, state) = watch::channel(None);
        let (stop, stop_out) = oneshot::channel();
        let task = tokio::spawn(supervise(name.clone(), command, state_in, stop_out));
        Self { name, state, stop, task }
    }

    /// Waits until the child is ready for the first time.
    pub async fn ready(&mut self) -> anyhow::Result<Ready> {
        match self.state.wait_for(Option::is_some).await {
            Ok(ready) => Ok(ready.clone().context("a ready child has said so")?),
            Err(_) => match (&mut self.task).await? {
                Err(error) => Err(error),
                Ok(_) => bail!("{} ended before it was ready", self.name),
            },
        }
    }

    /// Closes the child's input and waits for its closing line; kills it if it takes too long.
    pub async fn stop(self) -> anyhow::Result<Option<Value>> {
        let _ = self.stop.send(());
        self.task.await?
    }
}

struct Running {
    child: Child,
    /// Held open: its end tells the child to stop.
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    ready: Ready,
}

async fn supervise(
    name: String,
    command: Vec<OsString>,
    state: watch::Sender<Option<Ready>>,
    mut stop: oneshot::Receiver<()>,
) -> anyhow::Result<Option<Value>> {
    let mut pause = PAUSE_MIN;
    let mut first = true;
    loop {
        let started = Instant::now();
        let outcome = tokio::select! {
            outcome = spawn(&name, &command) => outcome,
            _ = &mut stop => return Ok(None),
        };
        match outcome {
            Ok(mut running) => {
                first = false;
                state.send_replace(Some(running.ready.clone()));
                tokio::select! {
                    status = running.child.wait() => {
                        tracing::warn!(name, status = ?status.ok(), "a process ended and is started again");
                    }
                    _ = &mut stop => return finish(&name, running).await,
                }
            }
            // What is wrong at the first start stays wrong; later it may be a passing want of something.
            Err(error) if first => return Err(error),
            Err(error) => tracing::warn!(name, error = format!("{error:#}"), "a process cannot be started again yet"),
        }
        pause = if started.elapsed() > STABLE_TIME { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = &mut stop => return Ok(None),
        }
    }
}

async fn spawn(name: &str, command: &[OsString]) -> anyhow::Result<Running> {
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let mut child = Command::new(program)
        .args(command)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let stdin = child.stdin.take().context("a child's input is piped")?;
    let mut lines = BufReader::new(child.stdout.take().context("a child's output is piped")?).lines();
    let line = tokio::time::timeout(READY_TIME_MAX, lines.next_line())
        .await
        .with_context(|| format!("{name} was not ready in {} s", READY_TIME_MAX.as_secs()))??;
    let Some(line) = line else {
        let status = child.wait().await?;
        bail!("{name} ended before it was ready ({status}); what it said is above");
    };
    let mut ready: Ready =
        serde_json::from_str(&line).with_context(|| format!("{name} said {line:?} instead of being ready"))?;
    ready.pid = child.id().unwrap_or_default();
    Ok(Running { child, stdin, lines, ready })
}

async fn finish(name: &str, running: Running) -> anyhow::Result<Option<Value>> {
    let Running { mut child, stdin, mut lines, .. } = running;
    drop(stdin);
    let end = async {
        let mut last = None;
        while let Some(line) = lines.next_line().await? {
            last = Some(line);
        }
        let status = child.wait().await?;
        anyhow::ensure!(status.success(), "{name} ended with {status}");
        Ok(last)
    };
    match tokio::time::timeout(STOP_TIME_MAX, end).await {
        Ok(line) => line?.map(|l| serde_json::from_str(&l).with_context(|| format!("{name} said {l:?}"))).transpose(),
        Err(_) => {
            child.kill().await?;
            bail!(
                "{name} did not stop in {} s and was killed; it claims when it is started again",
                STOP_TIME_MAX.as_secs()
            )
        }
    }
}
