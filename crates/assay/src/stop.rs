//! When to stop: TERM, Ctrl-C, or the end of standard input for a process that was started by another.

use tokio::io::AsyncReadExt;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// TERM and Ctrl-C, from the moment this value exists.
pub struct StopSignals {
    term: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Takes the two signals over from their default, which is to end the process.
    pub fn install() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for either.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for TERM or the end of standard input. Ctrl-C is ignored: a terminal sends it to the whole group, and
    /// it is the parent who says when a child is done.
    pub async fn wait_as_child(&mut self) {
        let mut stdin = tokio::io::stdin();
        let mut byte = [0];
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.interrupt.recv() => {}
                read = stdin.read(&mut byte) => if !matches!(read, Ok(1..)) { return },
            }
        }
    }
}
