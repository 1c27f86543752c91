//! What every provider's past is worth to this gateway: kept in the database as events, read by the routing as scores.

use crate::clock;
use crate::store::{DeedRow, Store, StoreError};
use arc_swap::ArcSwap;
use assay_protocol::{Components, Deed, Event, Reputation, ReputationPolicy};
use assay_types::{ProviderId, RequestHash};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A deed, who did it, and which answer shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Noted {
    pub(crate) provider: ProviderId,
    pub(crate) event: Event,
    pub(crate) receipt: Option<RequestHash>,
}

/// A provider's standing, to be shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Standing {
    pub(crate) components: Components,
    /// The oldest first.
    pub(crate) events: Vec<(Event, Option<RequestHash>)>,
}

/// All providers that ever did anything that counts.
#[derive(Debug)]
pub(crate) struct Standings {
    policy: ReputationPolicy,
    store: Store,
    known: Mutex<BTreeMap<ProviderId, Known>>,
    /// What the routing reads; who is not in it has the floor.
    scores: ArcSwap<BTreeMap<ProviderId, u32>>,
}

#[derive(Debug)]
struct Known {
    reputation: Reputation,
    /// Answers of the reputation's latest events, in the same order.
    receipts: Vec<Option<RequestHash>>,
}

impl Standings {
    /// Reads what was noted.
    pub(crate) async fn open(policy: ReputationPolicy, store: Store) -> Result<Self, StoreError> {
        let standings = Self { policy, known: Mutex::default(), scores: ArcSwap::default(), store: store.clone() };
        for row in store.deeds().await? {
            standings.take(&row.noted);
        }
        standings.refresh();
        Ok(standings)
    }

    /// Notes a deed: in the database first, so that no conviction is forgotten.
    pub(crate) async fn note(
        &self,
        provider: ProviderId,
        deed: Deed,
        receipt: Option<RequestHash>,
    ) -> Result<(), StoreError> {
        let noted = Noted { provider, event: Event { at: clock::unix_seconds(), deed }, receipt };
        self.store.put_deed(DeedRow { noted }).await?;
        self.take(&noted);
        self.refresh();
        Ok(())
    }

    /// In millionths.
    pub(crate) fn score(&self, provider: ProviderId) -> u32 {
        self.scores.load().get(&provider).copied().unwrap_or(self.policy.floor_ppm)
    }

    /// Tokens of the provider that audits have proven, faded.
    pub(crate) fn proven_tokens(&self, provider: ProviderId) -> u64 {
        self.components(provider).proven_tokens
    }

    pub(crate) fn components(&self, provider: ProviderId) -> Components {
        let now = clock::unix_seconds();
        let known = self.known();
        match known.get(&provider) {
            Some(known) => known.reputation.components(now),
            None => Reputation::new(self.policy).components(now),
        }
    }

    pub(crate) fn show(&self, provider: ProviderId) -> Standing {
        let components = self.components(provider);
        let known = self.known();
        let events = known.get(&provider).map_or_else(Vec::new, |known| {
            known.reputation.recent().copied().zip(known.receipts.iter().copied()).collect()
        });
        Standing { components, events }
    }

    /// Everyone that something was noted of.
    pub(crate) fn known_providers(&self) -> Vec<ProviderId> {
        self.known().keys().copied().collect()
    }

    /// Scores as they are now: they fade.
    pub(crate) fn refresh(&self) {
        let now = clock::unix_seconds();
        let scores = self.known().iter().map(|(id, known)| (*id, known.reputation.components(now).score_ppm)).collect();
        self.scores.store(Arc::new(scores));
    }

    fn take(&self, noted: &Noted) {
        let mut all = self.known();
        let fresh = || Known { reputation: Reputation::new(self.policy), receipts: Vec::new() };
        let known = all.entry(noted.provider).or_insert_with(fresh);
        known.reputation.on(noted.event);
        known.receipts.push(noted.receipt);
        let kept = known.reputation.recent().count();
        let gone = known.receipts.len().saturating_sub(kept);
        known.receipts.drain(..gone);
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<ProviderId, Known>> {
        // Sums and lists: an event that a panic cut short is one that is missing.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
