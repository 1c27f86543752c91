//! What the gateway has seen of one provider: load, speed, faults.

use crate::channel::Channel;
use assay_types::ProviderId;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Failures in a row after which a provider is left alone for [`COOL_DOWN`].
const FAILURES_IN_ROW_MAX: u32 = 3;
const COOL_DOWN: Duration = Duration::from_secs(5);
/// A provider that lied is left alone for longer.
const COOL_DOWN_FAULT: Duration = Duration::from_secs(300);
/// After a deposit failed, this long passes before the next attempt.
const FUND_RETRY: Duration = Duration::from_secs(5);
/// Counts are halved above this sum, so that they tell of the recent past.
const COUNTS_MAX: u32 = 256;

/// One provider. Lives as long as it is registered.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: ProviderId,
    pub(crate) channel: Channel,
    live: Mutex<Live>,
    is_funding: AtomicBool,
    /// Set by a deposit that failed.
    fund_after: Mutex<Option<Instant>>,
}

/// A snapshot of what decides the routing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Vitals {
    pub(crate) in_flight: u32,
    pub(crate) ewma_ttft_us: u64,
    pub(crate) ewma_us_per_token: u64,
    pub(crate) failures: u32,
    pub(crate) successes: u32,
    pub(crate) is_cooling: bool,
}

#[derive(Debug, Default)]
struct Live {
    /// Rises with each offer that is asked for.
    round: u64,
    /// Jobs sent since the last offer was asked for, and not ended.
    sent: u32,
    /// Jobs sent before it was asked for, which it may or may not count until it is here.
    before: u32,
    ewma_ttft_us: u64,
    ewma_us_per_token: u64,
    failures: u32,
    successes: u32,
    in_row: u32,
    cools_until: Option<Instant>,
}

/// When a job was sent, in rounds of offers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SentAt(u64);

impl Peer {
    pub(crate) fn new(id: ProviderId, channel: Channel) -> Self {
        Self { id, channel, live: Mutex::default(), is_funding: AtomicBool::new(false), fund_after: Mutex::default() }
    }

    /// Whether a deposit may be made: none is on its way, and the last one did not fail just now.
    pub(crate) fn may_fund(&self) -> bool {
        let after = *self.fund_after.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_funding.load(Ordering::Relaxed) && after.is_none_or(|after| Instant::now() >= after)
    }

    pub(crate) fn on_funding(&self) {
        self.is_funding.store(true, Ordering::Relaxed);
    }

    pub(crate) fn on_funded(&self, has_failed: bool) {
        let after = has_failed.then(|| Instant::now() + FUND_RETRY);
        *self.fund_after.lock().unwrap_or_else(PoisonError::into_inner) = after;
        self.is_funding.store(false, Ordering::Relaxed);
    }

    pub(crate) fn vitals(&self) -> Vitals {
        let live = self.live();
        Vitals {
            in_flight: live.sent.saturating_add(live.before),
            ewma_ttft_us: live.ewma_ttft_us,
            ewma_us_per_token: live.ewma_us_per_token,
            failures: live.failures,
            successes: live.successes,
            is_cooling: live.cools_until.is_some_and(|until| Instant::now() < until),
        }
    }

    pub(crate) fn on_offer_asked(&self) {
        let mut live = self.live();
        live.round += 1;
        live.before = live.before.saturating_add(live.sent);
        live.sent = 0;
    }

    /// The offer is here and counts every job that was sent before it was asked for.
    pub(crate) fn on_offer(&self) {
        self.live().before = 0;
    }

    pub(crate) fn on_sent(&self) -> SentAt {
        let mut live = self.live();
        live.sent = live.sent.saturating_add(1);
        SentAt(live.round)
    }

    pub(crate) fn on_ended(&self, sent: SentAt) {
        let mut live = self.live();
        if sent.0 == live.round {
            live.sent = live.sent.saturating_sub(1);
        } else {
            live.before = live.before.saturating_sub(1);
        }
    }

    pub(crate) fn on_first_token(&self, after: Duration) {
        let mut live = self.live();
        live.ewma_ttft_us = smoothed(live.ewma_ttft_us, micros(after));
    }

    /// `tokens` further ones took `elapsed` together.
    pub(crate) fn on_success(&self, tokens: u32, elapsed: Duration) {
        let mut live = self.live();
        if let Some(us_per_token) = micros(elapsed).checked_div(u64::from(tokens)) {
            live.ewma_us_per_token = smoothed(live.ewma_us_per_token, us_per_token);
        }
        live.successes += 1;
        live.in_row = 0;
        live.forget();
    }

    /// It was not reachable, stalled, or broke off.
    pub(crate) fn on_failure(&self) {
        let mut live = self.live();
        live.failures += 1;
        live.in_row += 1;
        if live.in_row >= FAILURES_IN_ROW_MAX {
            live.in_row = 0;
            live.cool(COOL_DOWN);
        }
        live.forget();
    }

    /// It said what cannot be true.
    pub(crate) fn on_fault(&self) {
        let mut live = self.live();
        live.failures += 1;
        live.cool(COOL_DOWN_FAULT);
        live.forget();
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        // Counters: whatever a panic left behind is as good as any.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn cool(&mut self, time: Duration) {
        let until = Instant::now() + time;
        self.cools_until = Some(self.cools_until.map_or(until, |other| other.max(until)));
    }

    fn forget(&mut self) {
        if self.successes.saturating_add(self.failures) > COUNTS_MAX {
            self.successes /= 2;
            self.failures /= 2;
        }
    }
}

/// An eighth of the new value; the first one as it is. Never 0, which means "not measured".
fn smoothed(old: u64, new: u64) -> u64 {
    let new = new.max(1);
    if old == 0 { new } else { (old - old / 8 + new / 8).max(1) }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
