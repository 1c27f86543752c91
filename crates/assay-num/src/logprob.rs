//! Log probabilities of tokens: what the model thinks of them, whatever the sampler makes of it.
//!
//! Sums are u64 and the logarithm is integer arithmetic, so the result is the same bits everywhere.

use crate::sample::{MICRO, NonFinite, SampleScratch, check_finite, fixed, order_key, weigh};

/// ln 2, to the nearest f64.
const LN_2: f64 = std::f64::consts::LN_2;

/// Log probabilities at one position of the output, in millionths (natural logarithm).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logprobs {
    /// Of the token that was asked for.
    pub token_micro: i32,
    /// The most likely tokens and theirs, most likely first, lower id first among equals.
    pub top: Vec<(u32, i32)>,
}

/// Log probability of `token`, and the `n_top` most likely tokens with theirs, for the model's logits as they are.
///
/// Definition. Weights `w_i` are those of [`crate::sample::pick_with`] for temperature 1, `S` their sum, `m` the
/// largest logit. `L = log2(S)` in fixed point, see [`log2_fixed`]; `z = (f64(L) / 2^32 - 40) * ln2`. The log
/// probability is `rne(((f64(logit_i) - f64(m)) - z) * 10^6)`, each operation rounded in f64, at least `i32::MIN`.
///
/// # Errors
/// A logit is NaN or infinite.
///
/// # Panics
/// If `token` is outside the vocabulary, or the vocabulary is empty or larger than 2^23.
pub fn logprobs(logits: &[f32], token: u32, n_top: usize, scratch: &mut SampleScratch) -> Result<Logprobs, NonFinite> {
    assert!(!logits.is_empty() && logits.len() <= 1 << 23, "a vocabulary of {} tokens", logits.len());
    check_finite(logits)?;
    let SampleScratch { order, .. } = scratch;
    order.clear();
    order.extend(logits.iter().enumerate().map(|(id, &logit)| order_key(logit, id as u32)));
    // At least the first, whose logit is the largest.
    let n = n_top.clamp(1, order.len());
    order.select_nth_unstable(n - 1);
    order[..n].sort_unstable();
    let top: Vec<u32> = order[..n].iter().map(|&key| key as u32).collect();
    let max = logits[top[0] as usize];
    weigh(logits, max, MICRO, scratch);
    let sum: u64 = scratch.weights().iter().map(|&w| fixed(w)).sum();
    let z = (log2_fixed(sum) as f64 / 4_294_967_296.0 - 40.0) * LN_2;
    let micro = |id: u32| {
        let nats = (f64::from(logits[id as usize]) - f64::from(max)) - z;
        // The cast clamps.
        (nats * f64::from(MICRO)).round_ties_even() as i32
    };
    let top = top.into_iter().take(n_top).map(|id| (id, micro(id))).collect();
    Ok(Logprobs { token_micro: micro(token), top })
}

/// log2 of `x` (at least 1) with 32 fractional bits, rounded down: the classic method of repeated squaring.
///
/// Definition. `e` is the highest set bit of x, `y = x * 2^(63 - e)`. 32 times, from the highest fractional bit down:
/// `y = floor(y^2 / 2^63)`; if `y >= 2^64` the bit is 1 and `y = floor(y / 2)`, else it is 0.
fn log2_fixed(x: u64) -> u64 {
    let e = 63 - x.leading_zeros();
    let mut y = u128::from(x) << (63 - e);
    let mut fraction = 0u64;
    for _ in 0..32 {
        y = (y * y) >> 63;
        let bit = (y >> 64) as u64;
        y >>= bit;
        fraction = fraction << 1 | bit;
    }
    u64::from(e) << 32 | fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_are_within_two_units_of_the_last_place() {
        for x in (0..64).flat_map(|e| [1u64 << e, (1u64 << e) | (1 << e >> 1), u64::MAX >> e]) {
            let exact = libm::log2(x as f64) * 4_294_967_296.0;
            assert!((log2_fixed(x) as f64 - exact).abs() <= 64.0, "log2 of {x}");
        }
        assert_eq!(log2_fixed(1), 0);
        assert_eq!(log2_fixed(1 << 40), 40 << 32);
        // log2 3 = 1.5849625007211562 * 2^32, rounded down
        assert_eq!(log2_fixed(3), 6_807_362_105);
    }
}
