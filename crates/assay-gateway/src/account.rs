//! What one key may do: requests and tokens a minute, and money.
//!
//! Money is held before it can be spent: the hold of a request is what its next attempt may cost at most, beside what
//! was signed so far, and it is there before the job is sent. What was charged is booked when the answer is stored,
//! in the same transaction. So the sum of charges never exceeds the budget, however many requests run at once.
//!
//! Pure but for a mutex: the caller passes the time.

use crate::error::GatewayError;
use crate::keys::KeyId;
use assay_types::{Amount, Job};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// What is taken from a bucket for one unit: a minute in microseconds, so that a microsecond refills the rate.
const UNIT: u128 = 60_000_000;
/// A request that waits for others to be settled is asked to come back after this.
const HELD_RETRY: Duration = Duration::from_secs(1);

/// What a key may do. `None` is no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KeyLimits {
    /// Requests a minute, at least 1; as many may come at once.
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute, at least 1: prompt and the most that may be produced, what was not produced is given back.
    pub tokens_per_minute: Option<u32>,
    /// All that may ever be charged, in base units of the settlement token.
    pub budget: Option<Amount>,
    /// Seconds since the Unix epoch from which it does not work.
    pub expires_at: Option<u64>,
}

/// Which of a key's rates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rate {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
}

/// How much of a rate there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Level {
    pub(crate) limit: u32,
    pub(crate) remaining: u64,
    /// Until all of it is there again.
    pub(crate) reset: Duration,
}

/// One key's limits and books. Lives as long as the process, through every reading of the keys.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: KeyId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limits: KeyLimits,
    /// Charged by answers that are stored or about to be.
    spent: Amount,
    /// What came back for answers that were wrong.
    refunded: Amount,
    /// What running requests may still charge.
    held: Amount,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// Fills at a rate and is emptied by use.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    per_minute: u32,
    /// In [`UNIT`]s; at most `per_minute` of them.
    level: u128,
    at: Instant,
}

impl Account {
    pub(crate) fn new(id: KeyId, limits: KeyLimits, spent: Amount, now: Instant) -> Self {
        let state = State {
            limits,
            spent,
            refunded: Amount::ZERO,
            held: Amount::ZERO,
            requests: limits.requests_per_minute.map(|rate| Bucket::full(rate, now)),
            tokens: limits.tokens_per_minute.map(|rate| Bucket::full(rate, now)),
        };
        Self { id, state: Mutex::new(state) }
    }

    /// Takes over limits that were changed; what is spent and held stays.
    pub(crate) fn change(&self, limits: KeyLimits, now: Instant) {
        let mut state = self.state();
        if state.limits == limits {
            return;
        }
        let bucket = |old: Option<Bucket>, rate: Option<u32>| match (old, rate) {
            (Some(old), Some(rate)) if old.per_minute == rate => Some(old),
            (_, rate) => rate.map(|rate| Bucket::full(rate, now)),
        };
        state.requests = bucket(state.requests, limits.requests_per_minute);
        state.tokens = bucket(state.tokens, limits.tokens_per_minute);
        state.limits = limits;
    }

    /// What came back in all; it only rises.
    pub(crate) fn credit(&self, refunded: Amount) {
        let mut state = self.state();
        state.refunded = state.refunded.max(refunded);
    }

    /// Counts a request.
    ///
    /// # Errors
    /// There were too many in the last minute.
    pub(crate) fn request(&self, now: Instant) -> Result<(), GatewayError> {
        let mut state = self.state();
        let Some(bucket) = &mut state.requests else { return Ok(()) };
        let limit = bucket.per_minute;
        bucket.take(1, now).map_err(|wait| GatewayError::RateLimit { rate: Rate::Requests, limit, needed: 1, wait })
    }

    /// Counts the most tokens that a job may take. Its money follows with [`Hold::raise`].
    ///
    /// # Errors
    /// There were too many in the last minute.
    pub(crate) fn hold(self: &Arc<Self>, tokens: u64, now: Instant) -> Result<Hold, GatewayError> {
        let mut state = self.state();
        if let Some(bucket) = &mut state.tokens {
            let limit = bucket.per_minute;
            let error = |wait| GatewayError::RateLimit { rate: Rate::Tokens, limit, needed: tokens, wait };
            bucket.take(tokens, now).map_err(error)?;
        }
        drop(state);
        Ok(Hold { account: Arc::clone(self), tokens, money: Amount::ZERO })
    }

    /// Of the rates that are limited.
    pub(crate) fn levels(&self, now: Instant) -> [(Rate, Option<Level>); 2] {
        let mut state = self.state();
        let requests = state.requests.as_mut().map(|bucket| bucket.look(now));
        let tokens = state.tokens.as_mut().map(|bucket| bucket.look(now));
        [(Rate::Requests, requests), (Rate::Tokens, tokens)]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is a few assignments without a panic between them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tokens that count against a key's rate while `job` runs: its prompt and what it may write.
pub(crate) fn tokens_at_most(job: &Job) -> u64 {
    let output = if job.embed.is_some() { 0 } else { job.max_tokens.into() };
    (job.prompt.len() as u64).saturating_add(output)
}

/// What a running request may take of its key's limits. Dropped without [`Self::settle`] it cost nothing.
#[derive(Debug)]
pub(crate) struct Hold {
    account: Arc<Account>,
    tokens: u64,
    money: Amount,
}

impl Hold {
    pub(crate) fn key(&self) -> KeyId {
        self.account.id
    }

    /// Holds `to` in all, if it is more than is held.
    ///
    /// # Errors
    /// The budget does not cover it; what was held stays so.
    pub(crate) fn raise(&mut self, to: Amount) -> Result<(), GatewayError> {
        let more = to.saturating_sub(self.money);
        let mut state = self.account.state();
        if let Some(budget) = state.limits.budget {
            let left = budget.saturating_add(state.refunded).saturating_sub(state.spent);
            let mine = self.money;
            if to > left {
                return Err(GatewayError::Budget { needed: to, left });
            }
            if state.held.saturating_sub(mine).saturating_add(to.max(mine)) > left {
                return Err(GatewayError::BudgetHeld { needed: to, wait: HELD_RETRY });
            }
        }
        state.held = state.held.saturating_add(more);
        self.money = self.money.saturating_add(more);
        Ok(())
    }

    /// The request is over: books what it cost, and gives the rest back. Returns all that the key has spent, which
    /// only rises; it is to be stored with the answer.
    pub(crate) fn settle(&mut self, charged: Amount, tokens: u64, now: Instant) -> Amount {
        let mut state = self.account.state();
        state.held = state.held.saturating_sub(std::mem::take(&mut self.money));
        state.spent = state.spent.saturating_add(charged);
        let unused = std::mem::take(&mut self.tokens).saturating_sub(tokens);
        if let Some(bucket) = &mut state.tokens {
            bucket.give_back(unused, now);
        }
        state.spent
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Changes nothing after `settle`.
        self.settle(Amount::ZERO, 0, Instant::now());
    }
}

impl Bucket {
    fn full(per_minute: u32, now: Instant) -> Self {
        Self { per_minute, level: u128::from(per_minute) * UNIT, at: now }
    }

    fn capacity(&self) -> u128 {
        u128::from(self.per_minute) * UNIT
    }

    fn refill(&mut self, now: Instant) {
        let more = now.saturating_duration_since(self.at).as_micros().saturating_mul(u128::from(self.per_minute));
        self.level = self.level.saturating_add(more).min(self.capacity());
        self.at = self.at.max(now);
    }

    /// `Err`: how long until there is enough; for what is more than a minute's, the time to the full minute.
    fn take(&mut self, units: u64, now: Instant) -> Result<(), Duration> {
        self.refill(now);
        let wanted = u128::from(units) * UNIT;
        match self.level.checked_sub(wanted) {
            Some(left) => {
                self.level = left;
                Ok(())
            }
            None => Err(self.until(wanted.min(self.capacity()))),
        }
    }

    fn give_back(&mut self, units: u64, now: Instant) {
        self.refill(now);
        self.level = self.level.saturating_add(u128::from(units) * UNIT).min(self.capacity());
    }

    fn look(&mut self, now: Instant) -> Level {
        self.refill(now);
        let remaining = u64::try_from(self.level / UNIT).unwrap_or(u64::MAX);
        Level { limit: self.per_minute, remaining, reset: self.until(self.capacity()) }
    }

    fn until(&self, level: u128) -> Duration {
        let micros = level.saturating_sub(self.level).div_ceil(u128::from(self.per_minute.max(1)));
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(limits: KeyLimits, now: Instant) -> Arc<Account> {
        Arc::new(Account::new(KeyId(1), limits, Amount(10), now))
    }

    #[test]
    fn a_rate_refills_continuously_and_never_above_its_minute() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let account = account(KeyLimits { requests_per_minute: Some(2), ..KeyLimits::default() }, start);
        account.request(at(0)).unwrap();
        account.request(at(0)).unwrap();
        let wait = |ms| match account.request(at(ms)) {
            Err(GatewayError::RateLimit { rate: Rate::Requests, limit: 2, wait, .. }) => wait,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait(0), Duration::from_secs(30));
        assert_eq!(wait(10_000), Duration::from_secs(20));
        account.request(at(30_000)).unwrap();
        assert_eq!(wait(30_000), Duration::from_secs(30));
        let [(_, level), (_, tokens)] = account.levels(at(10_000_000));
        assert_eq!(level, Some(Level { limit: 2, remaining: 2, reset: Duration::ZERO }));
        assert_eq!(tokens, None);
        // A clock that stands still or goes back refills nothing.
        account.request(at(10_000_000)).unwrap();
        assert_eq!(account.levels(at(0))[0].1.unwrap().remaining, 1);
    }

    #[test]
    fn tokens_that_were_not_used_are_given_back() {
        let now = Instant::now();
        let account = account(KeyLimits { tokens_per_minute: Some(100), ..KeyLimits::default() }, now);
        let remaining = || account.levels(now)[1].1.unwrap().remaining;
        let mut first = account.hold(70, now).unwrap();
        assert!(account.hold(31, now).is_err());
        let second = account.hold(30, now).unwrap();
        assert_eq!(remaining(), 0);
        first.settle(Amount(5), 20, now);
        assert_eq!(remaining(), 50);
        drop(first);
        assert_eq!(remaining(), 50, "once settled, nothing is given back again");
        drop(second);
        assert_eq!(remaining(), 80);
        assert!(account.hold(101, now).is_err(), "more than a minute's is never there");
    }

    #[test]
    fn money_is_held_once_and_never_beyond_the_budget() {
        let now = Instant::now();
        let account = account(KeyLimits { budget: Some(Amount(110)), ..KeyLimits::default() }, now);
        let mut a = account.hold(0, now).unwrap();
        let mut b = account.hold(0, now).unwrap();
        a.raise(Amount(60)).unwrap();
        a.raise(Amount(60)).unwrap();
        assert!(matches!(b.raise(Amount(41)), Err(GatewayError::BudgetHeld { needed: Amount(41), .. })));
        assert!(matches!(b.raise(Amount(101)), Err(GatewayError::Budget { left: Amount(100), .. })));
        b.raise(Amount(40)).unwrap();
        assert!(a.raise(Amount(61)).is_err());
        assert_eq!(a.settle(Amount(30), 0, now), Amount(40));
        b.raise(Amount(70)).unwrap();
        assert!(b.raise(Amount(71)).is_err());
        // What came back for a wrong answer can be spent once more.
        account.credit(Amount(9));
        account.credit(Amount(4));
        b.raise(Amount(79)).unwrap();
        assert!(b.raise(Amount(80)).is_err());
        // A budget that is made smaller than what is spent refuses everything and forgets nothing.
        account.change(KeyLimits { budget: Some(Amount(1)), ..KeyLimits::default() }, now);
        let mut c = account.hold(0, now).unwrap();
        assert!(matches!(c.raise(Amount(1)), Err(GatewayError::Budget { left: Amount::ZERO, .. })));
        assert_eq!(b.settle(Amount(70), 0, now), Amount(110));
    }
}
