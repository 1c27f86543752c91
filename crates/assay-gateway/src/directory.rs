//! Who serves what, right now: a snapshot that requests read without waiting.

use crate::peer::Peer;
use crate::standing::Standings;
use arc_swap::ArcSwap;
use assay_api::{Sort, Wishes};
use assay_net::Route;
use assay_protocol::{Candidate, RouteQuery, Snapshot, route};
use assay_types::{ModelId, Offer, Prices, ProviderId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// One provider with a fresh offer.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub(crate) peer: Arc<Peer>,
    pub(crate) route: Route,
    pub(crate) offer: Arc<Offer>,
    pub(crate) heard: Instant,
}

/// All providers; swapped as a whole.
#[derive(Debug)]
pub(crate) struct Directory {
    standings: Arc<Standings>,
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
    /// How one is chosen.
    pub(crate) wishes: &'a Wishes,
}

/// Who is asked, and why.
#[derive(Clone, Debug)]
pub(crate) struct Picked {
    pub(crate) listing: Listing,
    pub(crate) prices: Prices,
    /// How many there were to choose from.
    pub(crate) among: usize,
    /// `order`, `price`, `throughput`, `latency`, or `draw`.
    pub(crate) by: &'static str,
}

/// Why nobody takes a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Nobody {
    /// No provider offers the model.
    Offers,
    /// Some offer it, but the request names, ignores or pays others, or they were tried.
    IsWanted,
    /// Some offer it, but none takes anything new now.
    HasRoom,
    /// Some offer it with less context than the request needs.
    HasContext {
        /// The longest.
        longest: u32,
    },
}

impl Directory {
    pub(crate) fn new(age_max: Duration, standings: Arc<Standings>) -> Self {
        Self { standings, listings: ArcSwap::default(), age_max }
    }

    pub(crate) fn publish(&self, listings: Vec<Listing>) {
        self.listings.store(Arc::new(listings));
    }

    /// Providers that can be sent a request for any model.
    pub(crate) fn ready(&self) -> Vec<ProviderId> {
        let listings = self.listings.load();
        listings.iter().filter(|listing| self.is_open(listing)).map(|listing| listing.peer.id).collect()
    }

    /// Everyone with a fresh offer.
    pub(crate) fn listed(&self) -> Vec<ProviderId> {
        self.listings.load().iter().map(|listing| listing.peer.id).collect()
    }

    /// The latest offer of a provider that has a fresh one.
    pub(crate) fn offer(&self, id: ProviderId) -> Option<Arc<Offer>> {
        let listings = self.listings.load();
        listings.iter().find(|listing| listing.peer.id == id).map(|listing| Arc::clone(&listing.offer))
    }

    /// Whether somebody takes requests for this model.
    pub(crate) fn serves(&self, model: ModelId) -> bool {
        self.listings.load().iter().any(|listing| self.is_open(listing) && context(&listing.offer, model).is_some())
    }

    /// The longest context that is offered for the model.
    pub(crate) fn longest_context(&self, model: ModelId) -> Option<u32> {
        self.listings.load().iter().filter_map(|listing| context(&listing.offer, model)).max()
    }

    /// Picks a provider. `draw` is 64 random bits.
    pub(crate) fn pick(&self, wish: &Wish<'_>, draw: u64) -> Result<Picked, Nobody> {
        let listings = self.listings.load();
        let Wishes { order, allow_fallbacks, max_price, .. } = wish.wishes;
        let is_wanted = |id: &ProviderId| {
            let is_in_order = order.is_empty() || *allow_fallbacks || order.contains(id);
            (wish.only.is_empty() || wish.only.contains(id)) && is_in_order && !wish.exclude.contains(id)
        };
        let is_cheap = |candidate: &Candidate| {
            let Prices { input_per_million, output_per_million } = candidate.prices;
            max_price.prompt.is_none_or(|max| input_per_million <= max)
                && max_price.completion.is_none_or(|max| output_per_million <= max)
        };
        let wanted = listings.iter().filter(|listing| is_wanted(&listing.peer.id));
        let mut providers: Vec<Candidate> =
            wanted.filter_map(|listing| self.candidate(listing, wish.model)).filter(is_cheap).collect();
        assume_best(&mut providers);
        let query = RouteQuery {
            model: wish.model,
            input_tokens: wish.input_tokens,
            max_tokens: wish.max_tokens,
            exclude: wish.exclude,
            draw,
        };
        let snapshot = Snapshot { providers };
        let (among, chosen) = choose(&snapshot, &query, wish.wishes);
        let chosen = chosen.and_then(|(id, by)| {
            let prices = snapshot.providers.iter().find(|candidate| candidate.provider == id)?.prices;
            let listing = listings.iter().find(|listing| listing.peer.id == id)?.clone();
            Some(Picked { listing, prices, among, by })
        });
        chosen.ok_or_else(|| {
            let needed = wish.input_tokens.saturating_add(wish.max_tokens);
            // Who is shut out offers in vain.
            let is_trusted = |candidate: &Candidate| candidate.reputation_ppm > 0;
            match snapshot.providers.iter().map(|candidate| candidate.context_length).max() {
                Some(_) if !snapshot.providers.iter().any(is_trusted) => Nobody::Offers,
                None if listings.iter().any(|listing| context(&listing.offer, wish.model).is_some()) => {
                    Nobody::IsWanted
                }
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
            reputation_ppm: self.standings.score(listing.peer.id),
        })
    }

    fn is_open(&self, listing: &Listing) -> bool {
        !listing.offer.draining
            && listing.heard.elapsed() <= self.age_max
            && !listing.peer.vitals().is_cooling
            && listing.peer.channel.is_ready()
    }
}

/// How many could be asked, who is, and by what.
fn choose(snapshot: &Snapshot, query: &RouteQuery<'_>, wishes: &Wishes) -> (usize, Option<(ProviderId, &'static str)>) {
    // Who takes the request at all is for `route` to say: alone, a candidate is chosen if it does.
    let takes = |candidate: &&Candidate| {
        let alone = Snapshot { providers: vec![(*candidate).clone()] };
        route(&alone, query).is_some()
    };
    let open: Vec<&Candidate> = snapshot.providers.iter().filter(takes).collect();
    let is_open = |id: &&ProviderId| open.iter().any(|candidate| candidate.provider == **id);
    let chosen = match wishes.order.iter().find(is_open) {
        Some(first) => Some((*first, "order")),
        None => match wishes.sort {
            None => route(snapshot, query).map(|id| (id, "draw")),
            Some(sort) => open.iter().min_by_key(|c| rank(c, query, sort)).map(|c| (c.provider, name(sort))),
        },
    };
    (open.len(), chosen)
}

/// Less is better; of equals the one with less to do.
fn rank(candidate: &Candidate, query: &RouteQuery<'_>, sort: Sort) -> (u128, u64) {
    let by = match sort {
        Sort::Price => candidate.prices.charge_up(query.input_tokens, query.max_tokens).map_or(u128::MAX, |p| p.0),
        Sort::Throughput => candidate.ewma_us_per_token.into(),
        Sort::Latency => candidate.ewma_ttft_us.into(),
    };
    let load = u64::from(candidate.running) + u64::from(candidate.queued) + u64::from(candidate.in_flight);
    (by, load)
}

fn name(sort: Sort) -> &'static str {
    match sort {
        Sort::Price => "price",
        Sort::Throughput => "throughput",
        Sort::Latency => "latency",
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
