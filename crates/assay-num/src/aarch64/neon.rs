//! NEON: 16 lanes are four registers.

use std::arch::aarch64::*;

pub(crate) use super::k_neon::k_groups;
use super::load::{load_f32, load_u16, store_f32, store_u16, widen_f16};
pub(crate) use super::q8_neon::q8_groups;
pub(crate) use super::quantize::{quantize, quantize_super};
use crate::float_kernels::float_kernels;

type V = [float32x4_t; 4];

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> V {
    splat(0.0)
}

#[inline]
#[target_feature(enable = "neon")]
fn splat(x: f32) -> V {
    [vdupq_n_f32(x); 4]
}

#[inline]
#[target_feature(enable = "neon")]
fn load(x: &[f32; 16]) -> V {
    let (x, _) = x.as_chunks();
    [load_f32(&x[0]), load_f32(&x[1]), load_f32(&x[2]), load_f32(&x[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn load_f16(x: &[u16; 16]) -> V {
    let (x, _) = x.as_chunks();
    [widen_f16(&x[0]), widen_f16(&x[1]), widen_f16(&x[2]), widen_f16(&x[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_bf16(bits: &[u16; 4]) -> float32x4_t {
    vreinterpretq_f32_u32(vshll_n_u16::<16>(load_u16(bits)))
}

#[inline]
#[target_feature(enable = "neon")]
fn load_bf16(x: &[u16; 16]) -> V {
    let (x, _) = x.as_chunks();
    [widen_bf16(&x[0]), widen_bf16(&x[1]), widen_bf16(&x[2]), widen_bf16(&x[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn store(x: V, out: &mut [f32; 16]) {
    let (out, _) = out.as_chunks_mut();
    for i in 0..4 {
        store_f32(x[i], &mut out[i]);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn store_f16(x: V, out: &mut [u16; 16]) {
    let (out, _) = out.as_chunks_mut();
    for i in 0..4 {
        store_u16(vreinterpret_u16_f16(vcvt_f16_f32(x[i])), &mut out[i]);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn fma(a: V, b: V, c: V) -> V {
    [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1]), vfmaq_f32(c[2], a[2], b[2]), vfmaq_f32(c[3], a[3], b[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn add(a: V, b: V) -> V {
    [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1]), vaddq_f32(a[2], b[2]), vaddq_f32(a[3], b[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn sub(a: V, b: V) -> V {
    [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1]), vsubq_f32(a[2], b[2]), vsubq_f32(a[3], b[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn mul(a: V, b: V) -> V {
    [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1]), vmulq_f32(a[2], b[2]), vmulq_f32(a[3], b[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn div(a: V, b: V) -> V {
    [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1]), vdivq_f32(a[2], b[2]), vdivq_f32(a[3], b[3])]
}

/// `a > b ? a : b`, as in the definition: NEON's own maximum treats a NaN in another way.
#[inline]
#[target_feature(enable = "neon")]
fn maximum(a: V, b: V) -> V {
    select_gt(a, b, a, b)
}

/// To the nearest integer, ties to even.
#[inline]
#[target_feature(enable = "neon")]
fn round(x: V) -> V {
    [vrndnq_f32(x[0]), vrndnq_f32(x[1]), vrndnq_f32(x[2]), vrndnq_f32(x[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn add_exponent4(p: float32x4_t, n: float32x4_t) -> float32x4_t {
    vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32::<23>(vcvtq_s32_f32(n))))
}

/// Adds the integer `n` to the exponent field of `p`.
#[inline]
#[target_feature(enable = "neon")]
fn add_exponent(p: V, n: V) -> V {
    [add_exponent4(p[0], n[0]), add_exponent4(p[1], n[1]), add_exponent4(p[2], n[2]), add_exponent4(p[3], n[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn select_gt4(a: float32x4_t, b: float32x4_t, yes: float32x4_t, no: float32x4_t) -> float32x4_t {
    vbslq_f32(vcgtq_f32(a, b), yes, no)
}

/// `a > b ? yes : no`; false if unordered.
#[inline]
#[target_feature(enable = "neon")]
fn select_gt(a: V, b: V, yes: V, no: V) -> V {
    [
        select_gt4(a[0], b[0], yes[0], no[0]),
        select_gt4(a[1], b[1], yes[1], no[1]),
        select_gt4(a[2], b[2], yes[2], no[2]),
        select_gt4(a[3], b[3], yes[3], no[3]),
    ]
}

/// [`crate::scalar::lane_sum`].
#[inline]
#[target_feature(enable = "neon")]
fn lane_sum(x: V) -> f32 {
    let four = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
    let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
}

// A tile keeps its sums in half of the 32 registers.
float_kernels!("neon", attend: [(1, 2)], dot: [(2, 2), (4, 1)]);
