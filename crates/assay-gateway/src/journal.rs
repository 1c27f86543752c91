//! One line for each answer, for operators: kept in memory for a while, and given to whoever follows.
//!
//! A line says who asked, what it cost and how long it took. It holds no text of question or answer.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;

/// Lines that are kept. A follower that is further behind than this loses some, and is told.
const LINES_MAX: usize = 1024;

/// The lines.
#[derive(Debug)]
pub(crate) struct Journal {
    /// The lock also orders: what is kept is in the order in which it was sent.
    kept: Mutex<VecDeque<Arc<str>>>,
    live: broadcast::Sender<Arc<str>>,
}

/// Reads on from some line.
#[derive(Debug)]
pub(crate) struct Follower {
    kept: VecDeque<Arc<str>>,
    live: broadcast::Receiver<Arc<str>>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self { kept: Mutex::default(), live: broadcast::channel(LINES_MAX).0 }
    }

    pub(crate) fn note(&self, record: &impl serde::Serialize) {
        let Ok(mut line) = serde_json::to_string(record) else { return };
        line.push('\n');
        let line: Arc<str> = line.into();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= LINES_MAX {
            kept.pop_front();
        }
        kept.push_back(Arc::clone(&line));
        // Fails if nobody follows.
        let _ = self.live.send(line);
    }

    /// The last `lines` lines, and those to come.
    pub(crate) fn follow(&self, lines: usize) -> Follower {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = kept.len().saturating_sub(lines);
        Follower { kept: kept.iter().skip(skip).cloned().collect(), live: self.live.subscribe() }
    }
}

impl Follower {
    /// The next line that is there already.
    pub(crate) fn kept(&mut self) -> Option<Arc<str>> {
        self.kept.pop_front()
    }

    /// The next line; `None` when there will be none any more.
    pub(crate) async fn next(&mut self) -> Option<Arc<str>> {
        if let Some(line) = self.kept() {
            return Some(line);
        }
        match self.live.recv().await {
            Ok(line) => Some(line),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(format!("{{\"lost\":{lost}}}\n").into()),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_gets_the_last_lines_and_those_to_come() {
        let journal = Journal::new();
        for n in 0..LINES_MAX + 2 {
            journal.note(&n);
        }
        let mut follower = journal.follow(2);
        journal.note(&"new");
        let lines = [follower.next().await, follower.next().await, follower.next().await].map(Option::unwrap);
        assert_eq!(lines.map(|line| line.to_string()), ["1024\n", "1025\n", "\"new\"\n"]);
        assert!(follower.kept().is_none());
        assert_eq!(journal.follow(usize::MAX).kept.len(), LINES_MAX);
        // One that is too slow is told how much it lost.
        for n in 0..LINES_MAX + 5 {
            journal.note(&n);
        }
        assert_eq!(&*follower.next().await.unwrap(), "{\"lost\":5}\n");
        assert_eq!(&*follower.next().await.unwrap(), "5\n");
        drop(journal);
        while follower.kept().is_some() {}
        for _ in 0..LINES_MAX - 1 {
            follower.next().await.unwrap();
        }
        assert!(follower.next().await.is_none());
    }
}
