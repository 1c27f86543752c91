//! The signed offer, with the load of the moment.

use crate::{ledger::unix_now, serve::Service};
use assay_types::{Offer, SignedOffer};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// An offer is signed again after this: a gateway asks several times a second, and a signature is work.
const OFFER_AGE_MAX: Duration = Duration::from_millis(50);

/// The offer that was signed last.
#[derive(Default)]
pub(crate) struct OfferBoard {
    last: Mutex<Option<(SignedOffer, Instant)>>,
}

impl OfferBoard {
    /// An offer at most 50 ms old.
    pub fn current(&self, service: &Service) -> SignedOffer {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let draining = service.draining.is_cancelled();
        if let Some((offer, at)) = last.as_ref()
            && at.elapsed() < OFFER_AGE_MAX
            && offer.offer.draining == draining
        {
            return offer.clone();
        }
        let offer = compose(service, draining);
        let signature = service.ledger.sign(&offer.digest(service.chain_id));
        let signed = SignedOffer { offer, signature };
        *last = Some((signed.clone(), Instant::now()));
        signed
    }
}

fn compose(service: &Service, draining: bool) -> Offer {
    let short = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let (mut capacity, mut running, mut queued) = (0u32, 0u32, 0u32);
    for served in service.models.values() {
        let (runs, waits) = served.backend.load();
        capacity = capacity.saturating_add(served.capacity);
        running = running.saturating_add(short(runs));
        queued = queued.saturating_add(short(waits));
    }
    let mut models: Vec<_> = service.models.values().map(|served| served.offer.clone()).collect();
    models.sort_by_key(|model| model.model_id);
    Offer { provider: service.ledger.provider, models, capacity, running, queued, draining, issued_at: unix_now() }
}
