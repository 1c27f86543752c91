//! What encoders compute besides: normalisation by mean and variance, and gelu in its exact form.

use super::{LANES, dot, exp, fma, lane_sum};

/// Scale of the argument in [`upper_tail`].
pub(crate) const TAIL_SCALE: f32 = 0.35;
/// Coefficients of `upper_tail(a) * exp(a*a/2) / t` in `t = 1 / (1 + TAIL_SCALE * a)`, lowest degree first: a minimax fit
/// of the relative error over a = 0..13, 3.2e-8 before rounding.
pub(crate) const TAIL_POLY: [f32; 9] = [
    0.139_621_82,
    0.139_854_74,
    0.119_882_75,
    0.105_316_94,
    -0.022_670_86,
    0.158_552_41,
    -0.255_182_27,
    0.143_719_57,
    -0.029_095_102,
];

/// Layer normalisation of one row: `x`, `w`, `b` and `out` of one length n.
///
/// Order: 16 lanes start at +0; for i ascending `lane[i % 16] += x[i]`; `mean = lane_sum(lanes) / n`;
/// `c[i] = x[i] - mean`; `ss = dot(c, c)`; `inv = 1 / sqrt(ss / n + eps)`; `out[i] = fma(c[i] * inv, w[i], b[i])`.
pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == w.len() && x.len() == b.len() && x.len() == out.len());
    let mut lanes = [0.0; LANES];
    for x in x.chunks(LANES) {
        lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane += x);
    }
    let mean = lane_sum(&lanes) / x.len() as f32;
    out.iter_mut().zip(x).for_each(|(out, x)| *out = x - mean);
    let inv = super::inverse_rms(dot(out, out), x.len(), eps);
    for ((out, &w), &b) in out.iter_mut().zip(w).zip(b) {
        *out = fma(*out * inv, w, b);
    }
}

/// `(1 - erf(a / sqrt(2))) / 2` for a >= 0: the chance that a normal variable is above a. Relative error at most 8e-7 up
/// to a = 5, growing with `a * a` beyond (the rounding of the exponent), where the value is below 3e-7.
///
/// Order: `t = 1 / fma(a, TAIL_SCALE, 1)`; `p = c8`, then for i = 7..0 `p = fma(p, t, c_i)`; `e = exp((a * a) * -0.5)`;
/// `(p * t) * e`.
#[inline]
pub fn upper_tail(a: f32) -> f32 {
    let t = 1.0 / fma(a, TAIL_SCALE, 1.0);
    let p = TAIL_POLY.iter().rev().skip(1).fold(TAIL_POLY[8], |p, &c| fma(p, t, c));
    (p * t) * exp((a * a) * -0.5)
}

/// Gelu in its exact form, `x/2 (1 + erf(x / sqrt(2)))`; off by at most 1.5e-7 of `max(1, |x|)`.
///
/// Order: `a = -x` if 0 > x, else x; `h = upper_tail(a)`; `x * h` if 0 > x, else `fma(-x, h, x)`.
#[inline]
pub fn gelu_erf(x: f32) -> f32 {
    if 0.0 > x { x * upper_tail(-x) } else { fma(-x, upper_tail(x), x) }
}
