//! Who serves what, right now: a snapshot that requests read without waiting.

use crate::peer::Peer;
use arc_swap::ArcSwap;
use assay_protocol::{Candidate, RouteQuery, Snapshot, route};
use assay_types::{ModelId, Offer, Prices, ProviderId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// One provider with a fresh offer.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) peer: Arc<Peer>,
    pub(crate) address: SocketAddr,
    pub(crate) offer: Arc<Offer>,
    pub(crate) heard: Instant,
}

/// All providers; swapped as a whole.
#[derive(Debug)]
pub(crate) struct Directory {
    listings: ArcSwap<Vec<Listing>>,
    age_max: Duration,
}

/// What a request wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) model: ModelId,
    pub(crate) input_tokens: u64,
    /// Output tokens that are still to come, at most.
    pub(crate) max_tokens: u64,
    /// Empty: everybody.
    pub(crate) only: &'a [ProviderId],
    pub(crate) exclude: &'a [ProviderId],
}

/// Why nobody takes a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nobody {
    /// No provider offers the model, or all that do were tried or filtered out.
    Offers,
    /// Some offer it, but none takes anything new now.
    HasRoom,
    /// Some offer it with less context than the request needs.
    HasContext {
        /// The longest.
        longest: u32,
    },
}

impl Directory {
    pub(crate) fn new(age_max: Duration) -> Self {
        Self { listings: ArcSwap::default(), age_max }
    }

    pub(crate) fn publish(&self, listings: Vec<Listing>) {
        self.listings.store(Arc::new(listings));
    }

    /// Providers that can be sent a request for any model.
    pub(crate) fn ready(&self) -> Vec<ProviderId> {
        let listings = self.listings.load();
        listings.iter().filter(|listing| self.is_open(listing)).map(|listing| listing.peer.id).collect()
    }

    /// Whether somebody takes requests for this model.
    pub(crate) fn serves(&self, model: ModelId) -> bool {
        self.listings.load().iter().any(|listing| self.is_open(listing) && context(&listing.offer, model).is_some())
    }

    /// The longest context that is offered for the model.
    pub(crate) fn longest_context(&self, model: ModelId) -> Option<u32> {
        self.listings.load().iter().filter_map(|listing| context(&listing.offer, model)).max()
    }

    /// Picks a provider and its prices. `draw` is 64 random bits.
    pub(crate) fn pick(&self, wish: &Wish<'_>, draw: u64) -> Result<(Listing, Prices), Nobody> {
        let listings = self.listings.load();
        let wanted = |listing: &&Listing| {
            let id = listing.peer.id;
            (wish.only.is_empty() || wish.only.contains(&id)) && !wish.exclude.contains(&id)
        };
        let mut providers: Vec<Candidate> =
            listings.iter().filter(wanted).filter_map(|listing| self.candidate(listing, wish.model)).collect();
        assume_best(&mut providers);
        let query = RouteQuery {
            model: wish.model,
            input_tokens: wish.input_tokens,
            max_tokens: wish.max_tokens,
            exclude: wish.exclude,
            draw,
        };
        let snapshot = Snapshot { providers };
        let chosen = route(&snapshot, &query).and_then(|id| {
            let prices = snapshot.providers.iter().find(|candidate| candidate.provider == id)?.prices;
            let listing = listings.iter().find(|listing| listing.peer.id == id)?;
            Some((listing.clone(), prices))
        });
        chosen.ok_or_else(|| {
            let needed = wish.input_tokens.saturating_add(wish.max_tokens);
            match snapshot.providers.iter().map(|candidate| candidate.context_length).max() {
                None => Nobody::Offers,
                Some(longest) if u64::from(longest) < needed => Nobody::HasContext { longest },
                Some(_) => Nobody::HasRoom,
            }
        })
    }

    fn candidate(&self, listing: &Listing, model: ModelId) -> Option<Candidate> {
        let offered = listing.offer.models.iter().find(|offered| offered.model_id == model)?;
        let vitals = listing.peer.vitals();
        Some(Candidate {
            provider: listing.peer.id,
            model,
            context_length: offered.context_length,
            prices: offered.prices,
            capacity: listing.offer.capacity,
            running: listing.offer.running,
            queued: listing.offer.queued,
            in_flight: vitals.in_flight,
            closed: !self.is_open(listing),
            ewma_ttft_us: vitals.ewma_ttft_us,
            ewma_us_per_token: vitals.ewma_us_per_token,
            failures: vitals.failures,
            successes: vitals.successes,
        })
    }

    fn is_open(&self, listing: &Listing) -> bool {
        !listing.offer.draining
            && listing.heard.elapsed() <= self.age_max
            && !listing.peer.vitals().is_cooling
            && listing.peer.channel.is_ready()
    }
}

/// Who was never measured counts as fast as the fastest that was: otherwise the first one that is measured on a fast
/// network would get everything.
fn assume_best(providers: &mut [Candidate]) {
    let best = |value: fn(&Candidate) -> u64| providers.iter().map(value).filter(|&v| v > 0).min().unwrap_or(0);
    let (ttft, per_token) = (best(|c| c.ewma_ttft_us), best(|c| c.ewma_us_per_token));
    for candidate in providers {
        if candidate.ewma_ttft_us == 0 {
            candidate.ewma_ttft_us = ttft;
        }
        if candidate.ewma_us_per_token == 0 {
            candidate.ewma_us_per_token = per_token;
        }
    }
}

fn context(offer: &Offer, model: ModelId) -> Option<u32> {
    offer.models.iter().find(|offered| offered.model_id == model).map(|offered| offered.context_length)
}
