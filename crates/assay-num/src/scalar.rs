//! The specification of profile `canonical-1`: every operation in its exact order, in plain scalar code.
//!
//! f32 unless said; each written operation rounds once, to nearest even; [`fma`] rounds once.
//! Nothing may be contracted, reassociated or flushed. The kernels for instruction sets are tested
//! for equality of bits with these functions.

use std::ops::Range;

use crate::attend::{KV_CHUNK, KvChunk, Scoring};
use crate::f16;
use crate::rope::{RopeStyle, RopeTable};

mod encoder;
mod k_quant;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use encoder::{TAIL_POLY, TAIL_SCALE};
pub use encoder::{gelu_erf, layer_norm, upper_tail};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use k_quant::super_block_scale;
pub use k_quant::{
    Q4_K_BYTES, Q5_K_BYTES, Q6_K_BYTES, SUB_BLOCK, SUB_BLOCKS, SUPER_BLOCK, SuperBlock, k_dot, quantize_super_block,
};

/// Values in one quantized block (GGUF `Q8_0`).
pub const Q8_BLOCK: usize = 32;

/// Partial sums of a dot product of floats.
pub const LANES: usize = 16;

/// `a * b + c` with a single rounding (IEEE fusedMultiplyAdd).
///
/// The only fused operation in the crate. Exact on every platform: the CPU's instruction where it
/// exists, otherwise a correctly rounded software routine.
#[inline(always)]
#[expect(clippy::disallowed_methods, reason = "this wrapper is the one place where the fused operation is written")]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    a.mul_add(b, c)
}

/// Sums 16 lanes in the fixed tree: `x[i] = lanes[i] + lanes[i+8]` for i in 0..8, then
/// `x[i] + x[i+4]`, then `x[i] + x[i+2]`, then `x[0] + x[1]`.
#[inline]
pub fn lane_sum(lanes: &[f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| lanes[i] + lanes[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// Dot product of floats, `a` and `b` of one length (any).
///
/// Order: 16 lanes start at +0; for i ascending `lane[i % 16] = fma(a[i], b[i], lane[i % 16])`; then [`lane_sum`].
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_by(a, b, f32::from)
}

/// As [`dot`], `a` given as f16 bits, each widened exactly.
#[inline]
pub fn dot_f16(a: &[u16], b: &[f32]) -> f32 {
    dot_by(a, b, f16::to_f32)
}

/// As [`dot`], `a` given as bfloat16 bits, each widened exactly.
#[inline]
pub fn dot_bf16(a: &[u16], b: &[f32]) -> f32 {
    dot_by(a, b, f16::bf16_to_f32)
}

#[inline(always)]
fn dot_by<T: Copy>(a: &[T], b: &[f32], widen: impl Fn(T) -> f32) -> f32 {
    assert_eq!(a.len(), b.len());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = fma(widen(a), b, *lane);
        }
    }
    lane_sum(&lanes)
}

/// Quantizes one block of activations to `(q, d)` with `x[i] ~ q[i] * d`.
///
/// Order: `amax` = largest magnitude; `d = f16_rne(amax / 127)` widened; `id = 1 / d`, or 0 if d is 0;
/// `q = clamp(rint(x * id), -127, 127)`, rint to nearest even.
/// If a value is not finite, `d` is NaN and every `q` is 0: all products with the block become NaN.
/// `d` is infinite when amax / 127 >= 65520; then `id` and `q` are 0 and the products are NaN as well.
pub fn quantize_block(x: &[f32; Q8_BLOCK]) -> ([i8; Q8_BLOCK], f32) {
    // Magnitudes as integers: the order of the bits is the order of the values, with NaN above all.
    let amax_bits = x.iter().fold(0, |most: u32, v| most.max(v.to_bits() & 0x7fff_ffff));
    if amax_bits >= f32::INFINITY.to_bits() {
        return ([0; Q8_BLOCK], f32::NAN);
    }
    let d = f16::to_f32(f16::from_f32_rne(f32::from_bits(amax_bits) / 127.0));
    let id = if d > 0.0 { 1.0 / d } else { 0.0 };
    let q = x.map(|v| (v * id).round_ties_even().clamp(-127.0, 127.0) as i8);
    (q, d)
}

/// Dot product of a `Q8_0` weight row and quantized activations, both as blocks `(q, d)`;
/// weight scales as f16 bits.
///
/// Order: for blocks b ascending `acc = fma(f32(isum_b), dw_b * dx_b, acc)` from +0, where
/// `isum_b = sum q_w * q_x` is exact in i32 (below 2^20, so its f32 is exact too) and the product of
/// the two f16 scales is exact in f32.
pub fn q8_dot(w: &[([i8; Q8_BLOCK], u16)], x: &[([i8; Q8_BLOCK], f32)]) -> f32 {
    assert_eq!(w.len(), x.len());
    w.iter().zip(x).fold(0.0, |acc, ((qw, dw), (qx, dx))| {
        let isum: i32 = qw.iter().zip(qx).map(|(&a, &b)| i32::from(a) * i32::from(b)).sum();
        fma(isum as f32, f16::to_f32(*dw) * dx, acc)
    })
}

/// Above this [`exp`] is +infinity: the next f32 would overflow.
pub const EXP_MAX: f32 = 88.722_83;
/// Below this [`exp`] is +0: the next f32 would be subnormal.
pub const EXP_MIN: f32 = -87.336_54;
pub(crate) const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts; the first has 12 trailing zero bits, so that n * `LN2_HIGH` is exact.
pub(crate) const LN2_HIGH: f32 = 0.693_145_75;
pub(crate) const LN2_LOW: f32 = 1.428_606_8e-6;
/// Coefficients of exp on [-ln2/2, ln2/2], lowest degree first.
pub(crate) const EXP_POLY: [f32; 8] = [1.0, 1.0, 0.5, 1.0 / 6.0, 1.0 / 24.0, 1.0 / 120.0, 1.0 / 720.0, 1.0 / 5040.0];

/// e^x, at most 1 ulp from the exact value over the whole range of normal results.
///
/// Order: x > [`EXP_MAX`] gives +inf, x < [`EXP_MIN`] gives +0, NaN gives NaN. Else
/// `n = rint(x * LOG2_E)`; `r = fma(n, -LN2_HIGH, x)`; `r = fma(n, -LN2_LOW, r)`; `p = c7`, then for
/// i = 6..0 `p = fma(p, r, c_i)`; the result is p with n added to its exponent field.
#[inline]
pub fn exp(x: f32) -> f32 {
    if x > EXP_MAX {
        return f32::INFINITY;
    }
    if x < EXP_MIN {
        return 0.0;
    }
    let n = (x * LOG2_E).round_ties_even();
    let r = fma(n, -LN2_HIGH, x);
    let r = fma(n, -LN2_LOW, r);
    let p = EXP_POLY.iter().rev().skip(1).fold(EXP_POLY[7], |p, &c| fma(p, r, c));
    f32::from_bits(p.to_bits().wrapping_add((n as i32 as u32) << 23))
}

/// `x / (1 + exp(-x))`, each operation rounded.
#[inline]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// 2 sqrt(2 / pi), and the cubic coefficient of the tanh form of gelu.
pub(crate) const GELU_SCALE: f32 = 1.595_769;
pub(crate) const GELU_CUBIC: f32 = 0.044_715;

/// Gelu in its tanh form, `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`, written with exp because
/// `(1 + tanh(z)) / 2 = 1 / (1 + exp(-2z))`.
///
/// Order: `p = fma(x * x, GELU_CUBIC, 1)`; `z = (x * p) * -GELU_SCALE`; `x / (1 + exp(z))`.
#[inline]
pub fn gelu(x: f32) -> f32 {
    let p = fma(x * x, GELU_CUBIC, 1.0);
    let z = (x * p) * -GELU_SCALE;
    x / (1.0 + exp(z))
}

/// `cap * tanh(x / cap)`, for a finite `cap` above 0; off by at most a few parts in 10^7 of `cap`. An `x` that is not
/// finite gives NaN: a cap must not hide that a computation has gone wrong.
///
/// Order: `e = exp(x * (2 / cap))`; `t = 1 - 2 / (1 + e)`; `fma(t, cap, x * 0)`.
#[inline]
pub fn softcap(x: f32, cap: f32) -> f32 {
    let e = exp(x * (2.0 / cap));
    let t = 1.0 - 2.0 / (1.0 + e);
    fma(t, cap, x * 0.0)
}

/// RMS normalisation of one row, `x`, `w` and `out` of one length n.
///
/// Order: `ss = dot(x, x)`; `inv = 1 / sqrt(ss / n + eps)`; `out[i] = (x[i] * inv) * w[i]`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == w.len() && x.len() == out.len());
    let inv = inverse_rms(dot(x, x), x.len(), eps);
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(w) {
        *out = (x * inv) * w;
    }
}

/// `1 / sqrt(sum_of_squares / n + eps)`: IEEE division and square root.
#[inline]
pub(crate) fn inverse_rms(sum_of_squares: f32, n: usize, eps: f32) -> f32 {
    1.0 / (sum_of_squares / n as f32 + eps).sqrt()
}

/// Rotates one head in place by the angles of `pos`; dimensions from `table.rope_dims()` on stay as they are.
///
/// A pair (a, b) with cosine c and sine s becomes `(fma(a, c, -(b * s)), fma(a, s, b * c))`.
/// Pair i is (2i, 2i+1) for `Interleaved`, (i, i + rope_dims/2) for `Halves`.
#[inline(always)] // Into the vector kernels, where `fma` is an instruction.
pub fn rope(head: &mut [f32], pos: usize, table: &RopeTable, style: RopeStyle) {
    let (cos, sin) = table.at(pos);
    let turns = cos.iter().zip(sin);
    let rotate = |a: &mut f32, b: &mut f32, c: f32, s: f32| {
        (*a, *b) = (fma(*a, c, -(*b * s)), fma(*a, s, *b * c));
    };
    let rotated = &mut head[..table.rope_dims()];
    match style {
        RopeStyle::Interleaved => {
            let (pairs, _) = rotated.as_chunks_mut::<2>();
            pairs.iter_mut().zip(turns).for_each(|([a, b], (&c, &s))| rotate(a, b, c, s));
        }
        RopeStyle::Halves => {
            let (first, second) = rotated.split_at_mut(cos.len());
            first.iter_mut().zip(second).zip(turns).for_each(|((a, b), (&c, &s))| rotate(a, b, c, s));
        }
    }
}

/// Attention of one query over the first `n_keys` keys, `n_keys >= 1`, or over the last `scoring.window` of these.
///
/// `q` and `out`: `[head_dim]`; `chunks[c]` holds positions 256c..256c+255. Let `first = n_keys - window`, 0 without a
/// window or if it is not shorter than `n_keys`.
/// Order, per chunk with valid positions p = a..n (a is above 0 only in the chunk of `first`):
/// `s_p = (fma chain over d ascending of q[d] * k[d][p], from +0) * scale`, then [`softcap`] of it if there is a cap;
/// `m = max s_p`; `e_p = exp(s_p - m)`; `l` = 16 lanes, `lane[p % 16] += e_p` ascending, then [`lane_sum`];
/// `o_d = fma chain over p ascending of e_p * v[p][d], from +0`.
/// Chunks from that of `first` on are combined left to right: `M = max(m1, m2)`, `a = exp(m1 - M)`, `b = exp(m2 - M)`,
/// `l = fma(l1, a, l2 * b)`, `o_d = fma(o1_d, a, o2_d * b)`. The result is `o_d / l`.
/// Positions before `first` and from `n_keys` on never enter. (Which zero `max` returns for +0 and -0 has no effect on
/// the result: both differ from every s_p by the same amount.)
pub fn attend(q: &[f32], chunks: &[KvChunk<'_>], n_keys: usize, scoring: impl Into<Scoring>, out: &mut [f32]) {
    let scoring = scoring.into();
    let head_dim = q.len();
    let first = scoring.first_key(n_keys);
    let mut total: Option<(f32, f32)> = None;
    let mut chunk_out = vec![0.0; head_dim];
    for (c, chunk) in chunks.iter().enumerate().take(n_keys.div_ceil(KV_CHUNK)).skip(first / KV_CHUNK) {
        let before = c * KV_CHUNK;
        let valid = first.saturating_sub(before)..(n_keys - before).min(KV_CHUNK);
        let (m, l) = attend_chunk(q, chunk, valid, scoring, &mut chunk_out);
        total = Some(match total {
            None => {
                out.copy_from_slice(&chunk_out);
                (m, l)
            }
            Some(before) => combine(before, (m, l), out, &chunk_out),
        });
    }
    let l = total.map_or(f32::NAN, |(_, l)| l);
    for o in out {
        *o /= l;
    }
}

/// One chunk of [`attend`]: returns (m, l) and writes o.
fn attend_chunk(q: &[f32], chunk: &KvChunk<'_>, valid: Range<usize>, scoring: Scoring, out: &mut [f32]) -> (f32, f32) {
    let head_dim = q.len();
    let score = |p: usize| {
        let s = q
            .iter()
            .enumerate()
            .fold(0.0, |s, (d, &q)| fma(q, f16::to_f32(chunk.k[KvChunk::key_index(head_dim, d, p)]), s));
        let s = s * scoring.scale;
        scoring.softcap.map_or(s, |cap| softcap(s, cap))
    };
    let scores: Vec<f32> = valid.clone().map(score).collect();
    let m = scores.iter().fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
    let weights: Vec<f32> = scores.iter().map(|&s| exp(s - m)).collect();
    let mut lanes = [0.0; LANES];
    for (p, e) in valid.clone().zip(&weights) {
        lanes[p % LANES] += e;
    }
    for (d, out) in out.iter_mut().enumerate() {
        let value = |p: usize| f16::to_f32(chunk.v[p * head_dim + d]);
        *out = valid.clone().zip(&weights).fold(0.0, |o, (p, &e)| fma(e, value(p), o));
    }
    (m, lane_sum(&lanes))
}

/// Joins the state of the chunks so far with the next chunk; `o1` is updated in place.
pub(crate) fn combine((m1, l1): (f32, f32), (m2, l2): (f32, f32), o1: &mut [f32], o2: &[f32]) -> (f32, f32) {
    let m = if m2 > m1 { m2 } else { m1 };
    let (a, b) = (exp(m1 - m), exp(m2 - m));
    for (o1, &o2) in o1.iter_mut().zip(o2) {
        *o1 = fma(*o1, a, o2 * b);
    }
    (m, fma(l1, a, l2 * b))
}
