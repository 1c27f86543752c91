//! Which provider gets a request: a weighted draw, then the better of two.
//!
//! A candidate's cost is price x expected time x load x unreliability / reputation, all integers, so that a decision can be
//! repeated from its inputs. Two candidates are drawn with weights inverse to their costs and the cheaper one is
//! taken: many gateways with the same, slightly old snapshot then do not all run to the same provider. One draw in
//! 32 keeps the first, so that a provider that was slow once is measured again.

use assay_types::{ModelId, Prices, ProviderId};

/// One provider that serves one model, as the gateway last saw it.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Who.
    pub provider: ProviderId,
    /// Which model; a provider that serves several appears once for each.
    pub model: ModelId,
    /// Longest prompt + output in tokens.
    pub context_length: u32,
    /// What it asks.
    pub prices: Prices,
    /// Jobs it runs at once.
    pub capacity: u32,
    /// Jobs it runs, by its last offer.
    pub running: u32,
    /// Jobs that wait there, by its last offer.
    pub queued: u32,
    /// Jobs this gateway has sent there and that offer does not count yet.
    pub in_flight: u32,
    /// It takes nothing new, or the gateway's circuit breaker is open.
    pub closed: bool,
    /// Smoothed time to the first token in microseconds; 0 is not measured yet.
    pub ewma_ttft_us: u64,
    /// Smoothed time per further token in microseconds; 0 is not measured yet.
    pub ewma_us_per_token: u64,
    /// Recent requests that it failed.
    pub failures: u32,
    /// Recent requests that it served.
    pub successes: u32,
    /// What its past is worth, in millionths; 0 gets nothing. See [`crate::Reputation`].
    pub reputation_ppm: u32,
}

/// All candidates; swapped as a whole, never changed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// In any order; the order decides which of two equal ones a draw means.
    pub providers: Vec<Candidate>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery<'a> {
    /// The model.
    pub model: ModelId,
    /// Prompt tokens, prefix included.
    pub input_tokens: u64,
    /// Output tokens that are still to come, at most.
    pub max_tokens: u64,
    /// Providers that were tried already.
    pub exclude: &'a [ProviderId],
    /// 64 uniformly random bits.
    pub draw: u64,
}

/// Assumed of a provider that was never measured: a little better than most, so that it is.
const TTFT_DEFAULT_US: u64 = 100_000;
const TOKEN_DEFAULT_US: u64 = 10_000;
/// Fixed point of the load and reliability factors.
const ONE: u128 = 1024;
/// 64 times a whole reputation.
const REPUTATION_WHOLE: u128 = 64 * crate::SCORE_MAX as u128;
/// Weight of the cheapest candidate.
const WEIGHT_BEST: u128 = 1 << 20;
/// Jobs that may wait at a provider for each one that it runs, beyond which it is not asked.
const QUEUE_PER_SLOT_MAX: u64 = 4;

/// The provider for this query, or `None` if none serves the model with room for the request. Linear in candidates.
#[must_use]
pub fn route(snapshot: &Snapshot, query: &RouteQuery<'_>) -> Option<ProviderId> {
    let scored: Vec<Scored> = snapshot
        .providers
        .iter()
        .filter(|c| is_eligible(c, query))
        .map(|c| Scored { provider: c.provider, cost: cost(c, query) })
        .collect();
    let best = scored.iter().map(|s| s.cost).min()?;
    // The fields of `draw` do not overlap: one for each weighted pick, one for exploration.
    let first = pick(&scored, best, query.draw & 0xff_ffff, None)?;
    let second = pick(&scored, best, (query.draw >> 24) & 0xff_ffff, Some(first.provider));
    let explores = (query.draw >> 48).is_multiple_of(32);
    match second {
        Some(second) if !explores && second.cost < first.cost => Some(second.provider),
        _ => Some(first.provider),
    }
}

#[derive(Clone, Copy, Debug)]
struct Scored {
    provider: ProviderId,
    cost: u128,
}

fn is_eligible(candidate: &Candidate, query: &RouteQuery<'_>) -> bool {
    let tokens = query.input_tokens.saturating_add(query.max_tokens);
    let room = u64::from(candidate.capacity).saturating_mul(QUEUE_PER_SLOT_MAX.saturating_add(1));
    candidate.model == query.model
        && !candidate.closed
        && candidate.reputation_ppm > 0
        && tokens <= u64::from(candidate.context_length)
        && load(candidate) < room
        && !query.exclude.contains(&candidate.provider)
}

fn load(candidate: &Candidate) -> u64 {
    u64::from(candidate.running)
        .saturating_add(u64::from(candidate.queued))
        .saturating_add(u64::from(candidate.in_flight))
}

/// At least 1. Each factor is cut to the bits given, which together are below 128.
fn cost(candidate: &Candidate, query: &RouteQuery<'_>) -> u128 {
    let cut = |value: u128, bits: u32| value.clamp(1, (1u128 << bits.min(127)).saturating_sub(1));
    let price = candidate.prices.charge_up(query.input_tokens, query.max_tokens).map_or(u128::MAX, |p| p.0);
    let or_default = |measured: u64, default: u64| if measured == 0 { default } else { measured };
    let ttft_us = or_default(candidate.ewma_ttft_us, TTFT_DEFAULT_US);
    let token_us = or_default(candidate.ewma_us_per_token, TOKEN_DEFAULT_US);
    let time_us = u128::from(ttft_us).saturating_add(u128::from(token_us).saturating_mul(u128::from(query.max_tokens)));
    // A free slot still shares the machine with what runs; a full provider makes the request wait in line.
    let slots = u128::from(candidate.capacity.max(1));
    let busy = u128::from(load(candidate)).saturating_mul(2).saturating_add(slots);
    let load = busy.saturating_mul(ONE).checked_div(slots).unwrap_or(u128::MAX);
    // Nine assumed successes: one failure of a new provider is not its end. Squared: a failure costs a retry, too.
    let served = u128::from(candidate.successes).saturating_add(9);
    let tried = served.saturating_add(u128::from(candidate.failures));
    let odds = tried.saturating_mul(ONE).checked_div(served).unwrap_or(u128::MAX);
    let unreliability = cut(odds, 15).saturating_mul(cut(odds, 15));
    // 64 for the best there is, 640 for a new identity.
    let doubt = REPUTATION_WHOLE.checked_div(u128::from(candidate.reputation_ppm)).unwrap_or(u128::MAX);

    cut(price, 38)
        .saturating_mul(cut(time_us, 34))
        .saturating_mul(cut(load, 16))
        .saturating_mul(cut(unreliability, 30))
        .saturating_mul(cut(doubt, 10))
}

/// The candidate that `draw` (24 bits) falls on when each has a share inverse to its cost.
fn pick(scored: &[Scored], best: u128, draw: u64, exclude: Option<ProviderId>) -> Option<Scored> {
    let weighted = || scored.iter().filter(|s| Some(s.provider) != exclude).map(|s| (s, weight(best, s.cost)));
    let total = weighted().fold(0u128, |sum, (_, weight)| sum.saturating_add(weight));
    let mut left = total.saturating_mul(u128::from(draw)) >> 24;
    for (scored, weight) in weighted() {
        match left.checked_sub(weight) {
            None => return Some(*scored),
            Some(rest) => left = rest,
        }
    }
    None
}

/// `WEIGHT_BEST` for the best, less for the others in proportion, never 0.
fn weight(best: u128, cost: u128) -> u128 {
    // Costs have up to 128 bits: both lose the same low bits, so that the product does not overflow.
    let shift = 128u32.saturating_sub(cost.leading_zeros()).saturating_sub(100);
    let (best, cost) = (best.checked_shr(shift).unwrap_or(0), cost.checked_shr(shift).unwrap_or(0));
    best.saturating_mul(WEIGHT_BEST).checked_div(cost).unwrap_or(WEIGHT_BEST).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_types::{Address, Amount, B256};

    const MODEL: ModelId = ModelId(B256::repeat_byte(7));

    fn candidate(id: u8) -> Candidate {
        Candidate {
            provider: ProviderId(Address::repeat_byte(id)),
            model: MODEL,
            context_length: 2048,
            prices: Prices { input_per_million: Amount(50_000_000), output_per_million: Amount(100_000_000) },
            capacity: 16,
            running: 0,
            queued: 0,
            in_flight: 0,
            closed: false,
            ewma_ttft_us: 80_000,
            ewma_us_per_token: 8_000,
            failures: 0,
            successes: 100,
            reputation_ppm: 1_000_000,
        }
    }

    fn query(draw: u64) -> RouteQuery<'static> {
        RouteQuery { model: MODEL, input_tokens: 100, max_tokens: 200, exclude: &[], draw }
    }

    /// splitmix64.
    fn draws(seed: u64, count: usize) -> impl Iterator<Item = u64> {
        (0..count as u64).map(move |i| {
            let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        })
    }

    /// Share of 4,000 draws that go to the first candidate, in permille.
    fn share_of_first(change: impl Fn(&mut Candidate)) -> usize {
        let mut first = candidate(1);
        change(&mut first);
        let snapshot = Snapshot { providers: vec![first, candidate(2)] };
        let hits = draws(1, 4_000).filter(|&d| route(&snapshot, &query(d)) == Some(snapshot.providers[0].provider));
        hits.count() / 4
    }

    #[test]
    fn equal_candidates_share_the_requests() {
        let snapshot = Snapshot { providers: (1..=4).map(candidate).collect() };
        let mut hits = [0usize; 5];
        for draw in draws(2, 8_000) {
            let id = route(&snapshot, &query(draw)).unwrap();
            hits[usize::from(id.0[0])] += 1;
        }
        assert!(hits[1..].iter().all(|h| (1_800..2_200).contains(h)), "{hits:?}");
    }

    #[test]
    fn each_factor_moves_requests_away_and_leaves_some_to_measure() {
        let check = |name: &str, change: fn(&mut Candidate)| {
            let share = share_of_first(change);
            assert!((2..=100).contains(&share), "{name}: {share} of 1000");
        };
        check("price", |c| c.prices.output_per_million.0 *= 3);
        check("time to first token", |c| c.ewma_ttft_us *= 30);
        check("time per token", |c| c.ewma_us_per_token *= 3);
        check("load", |c| c.running = 16);
        check("sent and not counted yet", |c| c.in_flight = 16);
        check("reliability", |c| c.failures = 60);
        check("reputation", |c| c.reputation_ppm = 100_000);
    }

    #[test]
    fn an_unmeasured_provider_gets_requests() {
        let share = share_of_first(|c| (c.ewma_ttft_us, c.ewma_us_per_token, c.successes) = (0, 0, 0));
        assert!(share >= 2, "{share} of 1000");
    }

    #[test]
    fn who_can_not_serve_is_never_asked() {
        let check = |name: &str, change: fn(&mut Candidate)| assert_eq!(share_of_first(change), 0, "{name}");
        check("model", |c| c.model = ModelId(B256::ZERO));
        check("closed", |c| c.closed = true);
        check("context", |c| c.context_length = 299);
        check("full", |c| c.queued = 80);
        check("capacity", |c| c.capacity = 0);
        check("convicted", |c| c.reputation_ppm = 0);
        let one = Snapshot { providers: vec![candidate(1)] };
        let exclude = [one.providers[0].provider];
        assert_eq!(route(&one, &RouteQuery { exclude: &exclude, ..query(5) }), None);
        assert_eq!(route(&Snapshot::default(), &query(5)), None);
    }

    #[test]
    fn extremes_do_not_overflow_and_someone_is_found() {
        let mut extreme = candidate(1);
        extreme.prices = Prices { input_per_million: Amount(u128::MAX), output_per_million: Amount(u128::MAX) };
        (extreme.ewma_ttft_us, extreme.ewma_us_per_token) = (u64::MAX, u64::MAX);
        (extreme.capacity, extreme.running, extreme.failures) = (u32::MAX, u32::MAX, u32::MAX);
        let mut free = candidate(2);
        free.prices = Prices::default();
        let snapshot = Snapshot { providers: vec![extreme, free] };
        for draw in draws(3, 1_000).chain([0, u64::MAX]) {
            assert!(route(&snapshot, &query(draw)).is_some());
            let widest = RouteQuery { input_tokens: u64::MAX, max_tokens: u64::MAX, ..query(draw) };
            assert_eq!(route(&snapshot, &widest), None);
        }
    }
}
