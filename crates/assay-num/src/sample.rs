//! Choosing a token from logits: integer weights, a total order, and a random number that depends on
//! (seed, position) only.
//!
//! Sums are u64 and u128, so no order of summation can change a result; ties are decided by the token id. What changes
//! the logits before that (bias, penalties) is in `adjust`.

use std::fmt;

use crate::adjust::Adjustments;
use crate::isa::Kernels;

/// One million: the unit of `temperature_micro` and `top_p_micro`.
pub const MICRO: u32 = 1_000_000;

/// How to choose. Fields as in the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleParams {
    /// Temperature in millionths; 0 takes the first token of the order.
    pub temperature_micro: u32,
    /// Share of the weight to keep, in millionths; 1,000,000 and above keeps all, 0 keeps one token.
    pub top_p_micro: u32,
    /// Most tokens to keep; 0 keeps all.
    pub top_k: u32,
    /// Least weight to keep, in millionths of the largest; 0 keeps all.
    pub min_p_micro: u32,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// A value that is not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NonFinite {
    /// Where it is.
    pub index: usize,
}

impl fmt::Display for NonFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "value {} is not finite", self.index)
    }
}

impl std::error::Error for NonFinite {}

/// Why no token can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PickError {
    /// A logit is NaN or infinite, before or after it was adjusted.
    NonFinite(NonFinite),
    /// The mask allows no token.
    NothingAllowed,
}

impl From<NonFinite> for PickError {
    fn from(error: NonFinite) -> Self {
        PickError::NonFinite(error)
    }
}

impl fmt::Display for PickError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PickError::NonFinite(error) => error.fmt(f),
            PickError::NothingAllowed => f.write_str("no token is allowed"),
        }
    }
}

impl std::error::Error for PickError {}

/// The first value that is NaN or infinite, as an error.
pub fn check_finite(values: &[f32]) -> Result<(), NonFinite> {
    // Without a branch per value, so that it runs at the speed of memory; the index is looked up only on failure.
    let bad = values.iter().fold(false, |bad, v| bad | !v.is_finite());
    if !bad {
        return Ok(());
    }
    let index = values.iter().position(|v| !v.is_finite()).unwrap_or(0);
    Err(NonFinite { index })
}

/// Buffers of [`pick`], reusable.
#[derive(Debug, Clone, Default)]
pub struct SampleScratch {
    scaled: Vec<f32>,
    weights: Vec<f32>,
    pub(crate) order: Vec<u64>,
    adjusted: Vec<f32>,
    allowed: Vec<u32>,
}

impl SampleScratch {
    /// Empty buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// What [`weigh`] left.
    pub(crate) fn weights(&self) -> &[f32] {
        &self.weights
    }
}

/// Chooses the token of output position `position` (index of the output token, counted from the end of the prompt).
///
/// Definition.
/// 1. Every logit is finite, before and after `adjustments` change it ([`Adjustments::apply`]).
/// 2. With a mask (bit `id % 32` of word `id / 32`; what is behind its end is 0) only tokens whose bit is 1 exist for
///    what follows.
/// 3. Order of tokens: logit descending by IEEE totalOrder (+0 above -0), id ascending. Temperature 0: the first.
/// 4. `T = f32(temperature_micro / 10^6)` (f64 division, rounded once); `m` = largest logit;
///    weight `w_i = floor(exp((logit_i - m) / T) * 2^40)`, [`crate::scalar::exp`], each operation rounded.
/// 5. top-k: keep the first k in order. top-p: of these, keep the shortest prefix of the order whose sum
///    `S` satisfies `S * 10^6 >= top_p_micro * (sum of the kept weights)`, at least one token. min-p: of these, keep
///    those with `w_i * 10^6 >= min_p_micro * 2^40` (the first in order has weight 2^40 and stays); `S` is the sum of
///    what is kept.
/// 6. `target = floor(r * S / 2^64)` with the 64-bit random number `r` of (seed, position); the token is the first
///    kept one, ids ascending, at which the running sum of weights exceeds `target`.
///
/// # Errors
/// [`PickError`].
///
/// # Panics
/// If `logits` is empty or longer than 2^23 (sums of weights would exceed u64).
pub fn pick_with(
    logits: &[f32],
    params: &SampleParams,
    position: u64,
    adjustments: &Adjustments,
    mask: Option<&[u32]>,
    scratch: &mut SampleScratch,
) -> Result<u32, PickError> {
    if adjustments.is_none() && mask.is_none() {
        return Ok(pick(logits, params, position, scratch)?);
    }
    check_finite(logits)?;
    let (mut adjusted, mut allowed) = (std::mem::take(&mut scratch.adjusted), std::mem::take(&mut scratch.allowed));
    adjusted.clear();
    adjusted.extend_from_slice(logits);
    adjustments.apply(&mut adjusted);
    let result = match (check_finite(&adjusted), mask) {
        (Err(error), _) => Err(error.into()),
        (Ok(()), None) => pick(&adjusted, params, position, scratch).map_err(PickError::from),
        (Ok(()), Some(mask)) => {
            let is_allowed = |id: &u32| mask.get(*id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1);
            allowed.clear();
            allowed.extend((0..adjusted.len() as u32).filter(is_allowed));
            // Ids stay in ascending order, so places in the shorter list are ordered as the ids are.
            allowed.iter().enumerate().for_each(|(place, id)| adjusted[place] = adjusted[*id as usize]);
            adjusted.truncate(allowed.len());
            match allowed.is_empty() {
                true => Err(PickError::NothingAllowed),
                false => {
                    let place = pick(&adjusted, params, position, scratch);
                    place.map(|place| allowed[place as usize]).map_err(PickError::from)
                }
            }
        }
    };
    (scratch.adjusted, scratch.allowed) = (adjusted, allowed);
    result
}

/// [`pick_with`] without adjustments and mask.
///
/// # Errors
/// [`NonFinite`] if a logit is NaN or infinite.
///
/// # Panics
/// As [`pick_with`].
pub fn pick(
    logits: &[f32],
    params: &SampleParams,
    position: u64,
    scratch: &mut SampleScratch,
) -> Result<u32, NonFinite> {
    assert!(!logits.is_empty() && logits.len() <= 1 << 23, "a vocabulary of {} tokens", logits.len());
    check_finite(logits)?;
    let first = greedy(logits);
    if params.temperature_micro == 0 || params.top_k == 1 || params.top_p_micro == 0 {
        return Ok(first);
    }
    weigh(logits, logits[first as usize], params.temperature_micro, scratch);
    let total: u64 = scratch.weights.iter().map(|&w| fixed(w)).sum();
    let r = random(params.seed, position);
    let keep_all_k = params.top_k == 0 || params.top_k as usize >= logits.len();
    if keep_all_k && params.top_p_micro >= MICRO && params.min_p_micro == 0 {
        return Ok(draw((0..logits.len() as u32).map(|id| (id, fixed(scratch.weights[id as usize]))), total, r));
    }
    let (n_kept, mut kept_sum) = truncate(logits, params, total, scratch);
    let SampleScratch { weights, order, .. } = scratch;
    let weight = |key: u64| fixed(weights[key as u32 as usize]);
    order.truncate(n_kept);
    if params.min_p_micro > 0 {
        let least = u128::from(params.min_p_micro) << 40;
        order.retain(|&key| u128::from(weight(key)) * u128::from(MICRO) >= least);
        kept_sum = order.iter().map(|&key| weight(key)).sum();
    }
    order.sort_unstable_by_key(|&key| key as u32);
    Ok(draw(order.iter().map(|&key| (key as u32, weight(key))), kept_sum, r))
}

/// Greatest logit, lowest id among equals.
fn greedy(logits: &[f32]) -> u32 {
    let mut best = (order_bits(logits[0]), 0);
    for (id, &logit) in logits.iter().enumerate() {
        let bits = order_bits(logit);
        if bits > best.0 {
            best = (bits, id as u32);
        }
    }
    best.1
}

/// Integer with the order of the floats (IEEE totalOrder for finite values).
#[inline]
fn order_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    if bits >> 31 == 0 { bits | 0x8000_0000 } else { !bits }
}

/// Ascending keys are the order of tokens; the low half is the id.
#[inline]
pub(crate) fn order_key(logit: f32, id: u32) -> u64 {
    (u64::from(!order_bits(logit)) << 32) | u64::from(id)
}

/// Fills `scratch.weights` with exp((logit - max) / T).
pub(crate) fn weigh(logits: &[f32], max: f32, temperature_micro: u32, scratch: &mut SampleScratch) {
    let temperature = (f64::from(temperature_micro) / f64::from(MICRO)) as f32;
    scratch.scaled.clear();
    scratch.scaled.extend(logits.iter().map(|&logit| (logit - max) / temperature));
    scratch.weights.resize(logits.len(), 0.0);
    Kernels::detect().exp(&scratch.scaled, &mut scratch.weights);
}

/// A weight in 0..=1 as fixed point with 40 fractional bits; the scaling is exact, the conversion truncates.
#[inline]
pub(crate) fn fixed(weight: f32) -> u64 {
    (weight * 1_099_511_627_776.0) as u64
}

/// Leaves the kept tokens in the first places of `scratch.order` and returns their number and sum.
fn truncate(logits: &[f32], params: &SampleParams, total: u64, scratch: &mut SampleScratch) -> (usize, u64) {
    let SampleScratch { weights, order, .. } = scratch;
    order.clear();
    order.extend(logits.iter().enumerate().map(|(id, &logit)| order_key(logit, id as u32)));
    let weight = |key: u64| fixed(weights[key as u32 as usize]);
    let mut candidates = order.len();
    let mut candidate_sum = total;
    if params.top_k > 0 && (params.top_k as usize) < candidates {
        candidates = params.top_k as usize;
        order.select_nth_unstable(candidates - 1);
        candidate_sum = order[..candidates].iter().map(|&key| weight(key)).sum();
    }
    if params.top_p_micro >= MICRO {
        return (candidates, candidate_sum);
    }
    let wanted = u128::from(candidate_sum) * u128::from(params.top_p_micro);
    // The prefix is usually short: order only as many tokens as are needed, in growing steps.
    let (mut sorted, mut step, mut sum) = (0, 64, 0u64);
    while sorted < candidates {
        let rest = &mut order[sorted..candidates];
        let n = step.min(rest.len());
        if n < rest.len() {
            rest.select_nth_unstable(n - 1);
        }
        rest[..n].sort_unstable();
        for (i, &key) in rest[..n].iter().enumerate() {
            sum += weight(key);
            if u128::from(sum) * u128::from(MICRO) >= wanted {
                return (sorted + i + 1, sum);
            }
        }
        sorted += n;
        step *= 8;
    }
    (candidates, sum)
}

/// First token whose running sum exceeds floor(r * sum / 2^64).
fn draw(tokens: impl Iterator<Item = (u32, u64)>, sum: u64, r: u64) -> u32 {
    let target = ((u128::from(r) * u128::from(sum)) >> 64) as u64;
    let mut running = 0;
    for (id, weight) in tokens {
        running += weight;
        if running > target {
            return id;
        }
    }
    // The first token in order has weight 2^40 and is always kept, so sum > target and the loop ends above.
    unreachable!("the weights do not add up to their sum")
}

/// The 64-bit random number of (seed, position): two rounds of the SplitMix64 finalizer
/// (Steele, Lea, Flood 2014), `mix(mix(seed + G) + (position + 1) * G)`, G = 0x9e3779b97f4a7c15, wrapping.
pub fn random(seed: u64, position: u64) -> u64 {
    const G: u64 = 0x9e37_79b9_7f4a_7c15;
    mix(mix(seed.wrapping_add(G)).wrapping_add(position.wrapping_add(1).wrapping_mul(G)))
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
