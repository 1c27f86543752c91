//! One round of a redundant job, shared by the flights that take part: who has committed, and when all may show.

use assay_protocol::{Outcome, Round, RoundError};
use assay_types::{B256, ProviderId, RequestHash, ResponseHash};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// The round and whoever waits for it.
#[derive(Debug)]
pub(crate) struct Sealed {
    state: Mutex<State>,
    /// Rises with each change.
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    round: Round,
    is_shown: bool,
    /// Whose time is up.
    dropped: Vec<ProviderId>,
}

impl Sealed {
    pub(crate) fn new(needed: usize) -> Self {
        let state = State { round: Round::new(needed), is_shown: false, dropped: Vec::new() };
        Self { state: Mutex::new(state), changes: watch::Sender::new(0) }
    }

    /// Takes a provider into the round; `false` if it is too late for that.
    pub(crate) fn ask(&self, provider: ProviderId, request: RequestHash) -> bool {
        self.change(|state| state.round.ask(provider, request))
    }

    pub(crate) fn commit(&self, provider: ProviderId, commitment: B256) -> Result<(), RoundError> {
        self.change(|state| state.round.on_commit(provider, commitment).map(drop))
    }

    pub(crate) fn answer(&self, provider: ProviderId, salt: B256, response: ResponseHash) -> Result<(), RoundError> {
        self.change(|state| state.round.on_answer(provider, salt, response))
    }

    /// Returns whether it had committed and so owes an answer.
    pub(crate) fn lost(&self, provider: ProviderId) -> bool {
        self.change(|state| state.round.on_lost(provider))
    }

    /// Ends the time for commitments: everyone shows what it committed to, and who has not committed is sent away.
    pub(crate) fn show(&self) {
        self.change(|state| {
            let stay = state.round.show();
            state.dropped = state.round.asked().filter(|provider| !stay.contains(provider)).collect();
            state.is_shown = true;
        });
    }

    /// Sends those away that have not committed, while others may still be asked in their place; returns who they are.
    pub(crate) fn drop_late(&self) -> Vec<ProviderId> {
        self.change(|state| {
            let late = state.round.uncommitted();
            for &provider in &late {
                state.round.on_lost(provider);
            }
            state.dropped.extend(&late);
            late
        })
    }

    pub(crate) fn has_commitment(&self) -> bool {
        self.state().round.committed() > 0
    }

    pub(crate) fn all_committed(&self) -> bool {
        self.state().round.all_committed()
    }

    pub(crate) fn is_shown(&self) -> bool {
        self.state().is_shown
    }

    pub(crate) fn outcome(&self) -> Outcome {
        self.state().round.outcome()
    }

    /// Waits until answers are to be shown.
    pub(crate) async fn shown(&self) {
        self.until(|state| state.is_shown).await;
    }

    /// Waits until this provider's time is up.
    pub(crate) async fn dropped(&self, provider: ProviderId) {
        self.until(|state| state.dropped.contains(&provider)).await;
    }

    /// Waits for any change after `seen`; returns the new count.
    pub(crate) async fn changed(&self, seen: u64) -> u64 {
        let mut changes = self.changes.subscribe();
        // The sender lives as long as this value.
        changes.wait_for(|&now| now > seen).await.map_or(seen, |now| *now)
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        let mut changes = self.changes.subscribe();
        while !holds(&self.state()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    fn change<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        let result = with(&mut self.state());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The round checks each step; a panic leaves the one before it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
