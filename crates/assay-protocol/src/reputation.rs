//! What a provider's past is worth: a score that follows from events, and the events that it follows from.
//!
//! A new identity has the floor and nobody has less, but who was convicted, and for a time who was found to run another
//! model than it says (class tolerant), who are not routed to at all: so there is
//! nothing to gain by coming back under another name, and everything above the floor to lose. What lifts a score is work
//! that audits have proven, weighed by the fees it was paid, up to a price: a provider that sells to itself dearly buys
//! no score, and it has to do the work all the same. Everything fades with time but convictions.
//! Pure: the caller keeps the events, and [`Reputation::replay`] makes the score of them again.

use assay_types::Amount;
use std::collections::VecDeque;

/// A whole, in millionths.
pub const SCORE_MAX: u32 = 1_000_000;
/// Events that are kept to be shown; older ones are still in the sums.
pub const EVENTS_MAX: usize = 64;

/// How a score comes about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReputationPolicy {
    /// Score of a new identity, in millionths.
    pub floor_ppm: u32,
    /// Fees of proven work, in base units, that lift the score half way from the floor.
    pub half_fees: Amount,
    /// Fees count up to this price per million tokens, input and output together.
    pub price_max: Amount,
    /// Offences that halve what is above the floor, in millionths: one is 1_000_000.
    pub half_offences: u64,
    /// Seconds after which work and offences count half.
    pub half_life_s: u64,
}

impl Default for ReputationPolicy {
    fn default() -> Self {
        Self {
            floor_ppm: 100_000,
            half_fees: Amount(2_000),
            price_max: Amount(1_000_000),
            half_offences: 2 * u64::from(SCORE_MAX),
            half_life_s: 14 * 86_400,
        }
    }
}

/// Something that a provider did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// An answer that was replayed and found exact.
    Proven {
        /// Input and output.
        tokens: u64,
        /// What it cost.
        fees: Amount,
    },
    /// Tokens of an engine that is not canonical, compared with the canonical one's and found alike. Half the weight of
    /// proven work: it is likely, not proven.
    Matched {
        /// Output tokens that were compared.
        tokens: u64,
        /// Of these, how many an honest engine would hardly have taken.
        odd: u64,
        /// What the answers cost.
        fees: Amount,
    },
    /// They are not those of the model. Nothing is sent there until half of that has faded.
    Deviated {
        /// Output tokens that were compared.
        tokens: u64,
        /// Of these, how many an honest engine would hardly have taken.
        odd: u64,
    },
    /// It answered a challenge: a request of the gateway's own, at a random time. Weighs nothing by itself.
    Answered {
        /// Output tokens.
        tokens: u64,
        /// To the first token, and from there to the last.
        first_millis: u64,
        /// For all further tokens.
        millis: u64,
    },
    /// It did not answer a challenge, though it said that it takes requests.
    Silent,
    /// It broke an answer off.
    Abandoned,
    /// It committed to an answer and did not show it, or showed another.
    Withheld,
    /// An auditor says that an answer is wrong, and nobody has confirmed it yet. Weighs nothing.
    Accused,
    /// A replay has shown that it signed a wrong answer. For ever.
    Convicted,
}

/// A deed and when it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// What.
    pub deed: Deed,
}

/// What a score is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Components {
    /// 0 to [`SCORE_MAX`]; at 0 nothing is sent there.
    pub score_ppm: u32,
    /// Where everybody starts.
    pub floor_ppm: u32,
    /// From proven work, on top of the floor.
    pub earned_ppm: u32,
    /// Taken off again for offences; never more than was earned.
    pub offences_ppm: u32,
    /// Fees of proven work, faded.
    pub proven_fees: Amount,
    /// Tokens of proven work, faded: what the rate of audits follows.
    pub proven_tokens: u64,
    /// Tokens that were found alike, faded: what the rate of comparisons follows.
    pub matched_tokens: u64,
    /// Times that tokens were found to be another model's, faded, in millionths; from half of one on nothing is sent.
    pub deviations_ppm: u32,
    /// Wrong answers that were proven.
    pub convictions: u32,
}

/// One provider's past.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reputation {
    policy: ReputationPolicy,
    /// When the sums below were brought up to date.
    at: u64,
    /// Fixed point: base units times 2^20, so that what fades does not vanish by rounding.
    proven_fees: u128,
    proven_tokens: u128,
    matched_tokens: u128,
    /// In millionths of one, as the offences.
    deviations: u128,
    /// In millionths of an offence.
    offences: u128,
    convictions: u32,
    recent: VecDeque<Event>,
}

/// From here on nothing is sent to whom deviates: half of one, in millionths.
const DEVIATIONS_MAX: u128 = SCORE_MAX as u128 / 2;

/// Binary places of the sums.
const POINT: u32 = 20;

impl Reputation {
    /// A new identity.
    #[must_use]
    pub fn new(policy: ReputationPolicy) -> Self {
        Self {
            policy,
            at: 0,
            proven_fees: 0,
            proven_tokens: 0,
            matched_tokens: 0,
            deviations: 0,
            offences: 0,
            convictions: 0,
            recent: VecDeque::new(),
        }
    }

    /// From the events that were kept, in any order of arrival.
    #[must_use]
    pub fn replay(policy: ReputationPolicy, events: impl IntoIterator<Item = Event>) -> Self {
        let mut events: Vec<Event> = events.into_iter().collect();
        events.sort_by_key(|event| event.at);
        let mut reputation = Self::new(policy);
        events.into_iter().for_each(|event| reputation.on(event));
        reputation
    }

    /// Notes an event. One from before the last one counts as of then: a clock that was set back adds no weight.
    pub fn on(&mut self, event: Event) {
        self.fade(event.at);
        match event.deed {
            Deed::Proven { tokens, fees } => {
                self.earn(self.weight_of(tokens, fees));
                self.proven_tokens = self.proven_tokens.saturating_add(u128::from(tokens) << POINT);
            }
            Deed::Matched { tokens, fees, .. } => {
                self.earn(self.weight_of(tokens, fees) >> 1);
                self.matched_tokens = self.matched_tokens.saturating_add(u128::from(tokens) << POINT);
            }
            Deed::Deviated { .. } => {
                self.deviations = self.deviations.saturating_add(u128::from(SCORE_MAX) << POINT);
                // Likeness that was found before is not likeness of what runs now.
                self.matched_tokens = 0;
            }
            Deed::Answered { .. } => {}
            Deed::Abandoned | Deed::Silent => self.offend(u128::from(SCORE_MAX) / 4),
            Deed::Withheld => self.offend(u128::from(SCORE_MAX)),
            Deed::Convicted => self.convictions = self.convictions.saturating_add(1),
            Deed::Accused => {}
        }
        if self.recent.len() >= EVENTS_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }

    /// What the score is at `now`, and of what.
    #[must_use]
    pub fn components(&self, now: u64) -> Components {
        let mut faded = Self {
            policy: self.policy,
            at: self.at,
            proven_fees: self.proven_fees,
            proven_tokens: self.proven_tokens,
            matched_tokens: self.matched_tokens,
            deviations: self.deviations,
            offences: self.offences,
            convictions: self.convictions,
            recent: VecDeque::new(),
        };
        faded.fade(now);
        let (fees, tokens) = (faded.proven_fees >> POINT, faded.proven_tokens >> POINT);
        let room = u128::from(SCORE_MAX.saturating_sub(self.policy.floor_ppm));
        let share = |part: u128, whole: u128| room.saturating_mul(part).checked_div(whole.max(1)).unwrap_or(0);
        // Both are below 2^108, so the product with a share of a million fits.
        let earned = share(fees, fees.saturating_add(self.policy.half_fees.0));
        let half = u128::from(self.policy.half_offences.max(1));
        let kept = earned.saturating_mul(half).checked_div(half.saturating_add(faded.offences >> POINT)).unwrap_or(0);
        let to_ppm = |value: u128| u32::try_from(value).unwrap_or(SCORE_MAX);
        let deviations = faded.deviations >> POINT;
        let score = self.policy.floor_ppm.saturating_add(to_ppm(kept)).min(SCORE_MAX);
        Components {
            score_ppm: if self.convictions > 0 || deviations >= DEVIATIONS_MAX { 0 } else { score },
            floor_ppm: self.policy.floor_ppm,
            earned_ppm: to_ppm(earned),
            offences_ppm: to_ppm(earned.saturating_sub(kept)),
            proven_fees: Amount(fees),
            proven_tokens: u64::try_from(tokens).unwrap_or(u64::MAX),
            matched_tokens: u64::try_from(faded.matched_tokens >> POINT).unwrap_or(u64::MAX),
            deviations_ppm: to_ppm(deviations),
            convictions: self.convictions,
        }
    }

    /// The latest events, the oldest first.
    pub fn recent(&self) -> impl Iterator<Item = &Event> {
        self.recent.iter()
    }

    /// What work counts for: its fees, up to a price.
    fn weight_of(&self, tokens: u64, fees: Amount) -> u128 {
        let most = self.policy.price_max.0.saturating_mul(u128::from(tokens)).checked_div(1_000_000);
        fees.0.min(most.unwrap_or(0)).min(1 << 100)
    }

    fn earn(&mut self, fees: u128) {
        self.proven_fees = self.proven_fees.saturating_add(fees << POINT);
    }

    fn offend(&mut self, weight: u128) {
        self.offences = self.offences.saturating_add(weight << POINT);
    }

    fn fade(&mut self, now: u64) {
        let elapsed = now.saturating_sub(self.at);
        // The first event begins the time; nothing is there to fade.
        self.at = self.at.max(now);
        let sums = [
            &mut self.proven_fees,
            &mut self.proven_tokens,
            &mut self.matched_tokens,
            &mut self.deviations,
            &mut self.offences,
        ];
        for sum in sums {
            *sum = halved(*sum, elapsed, self.policy.half_life_s.max(1));
        }
    }
}

/// `value * 2^-(elapsed / half_life)`, straight lines between the halvings; rounded down.
fn halved(value: u128, elapsed: u64, half_life: u64) -> u128 {
    let (halvings, rest) = (elapsed.checked_div(half_life), elapsed.checked_rem(half_life));
    let (Some(halvings), Some(rest)) = (halvings, rest) else { return value };
    let halvings = u32::try_from(halvings).unwrap_or(u32::MAX);
    let whole = value.checked_shr(halvings).unwrap_or(0);
    let parts = u128::from(half_life).saturating_mul(2);
    let left = parts.saturating_sub(u128::from(rest));
    // Split, so that the product does not overflow: whole = high * parts + low.
    let high = whole.checked_div(parts).unwrap_or(0).saturating_mul(left);
    let low = whole.checked_rem(parts).unwrap_or(0).saturating_mul(left).checked_div(parts).unwrap_or(0);
    high.saturating_add(low)
}

#[cfg(test)]
mod tests;
