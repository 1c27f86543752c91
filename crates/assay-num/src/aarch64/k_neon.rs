//! Products in the K formats with NEON alone: a register is four rows.
//!
//! Products of bytes are i16, and several are added there before a multiplication by the scale widens them. Nothing
//! overflows: the bounds are those of the AVX2 kernel, the most in a lane is 8 * 2 * 15 * 127 = 30480 in `Q4_K`; in the
//! others sums are taken off twice as often, and it is 4 * 2 * 31 * 127 = 31496 in `Q5_K` and 2 * 2 * 63 * 127 = 32004
//! in `Q6_K`.

use std::arch::aarch64::*;
use std::ops::Range;

use super::load::{load_u8, store_f32, widen_f16};
use super::{ask, fetch_part};
use crate::acts::ActSuperBlock;
use crate::k_kernels::{TOKENS, k_kernels, within_group};
use crate::k_matrix::{KBlock, KWeights};
use crate::matmul::Columns;
use crate::matrix::GROUP;

/// Rows of a part: one register of f32.
const ROWS: usize = GROUP / 4;

k_kernels!("neon", parts: 4, float: float32x4_t, one: 4, more: 1, panels: false, early: true);

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn zero() -> int32x4_t {
    vdupq_n_s32(0)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn float_zero() -> float32x4_t {
    vdupq_n_f32(0.0)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load(line: &[u8; 64], part: usize) -> uint8x16_t {
    load_u8(&line.as_chunks().0[part % 4])
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn low(line: uint8x16_t) -> uint8x16_t {
    vandq_u8(line, vdupq_n_u8(15))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn high(line: uint8x16_t) -> uint8x16_t {
    vshrq_n_u8::<4>(line)
}

/// `value` with `WIDTH` bits of `bits` from position `from` on as its bits 4 and up.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn lift<const WIDTH: usize>(bits: uint8x16_t, from: usize, value: uint8x16_t) -> uint8x16_t {
    let moved = vshlq_u8(bits, vdupq_n_s8(4 - from as i8));
    vorrq_u8(value, vandq_u8(moved, vdupq_n_u8(if WIDTH == 1 { 0x10 } else { 0x30 })))
}

/// Four activations for each row.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn four(q: [i8; 4]) -> int8x16_t {
    vreinterpretq_s8_s32(vdupq_n_s32(i32::from_ne_bytes(q.map(|q| q as u8))))
}

/// The sums are pairs of i16, two a row.
#[inline]
#[target_feature(enable = "neon")]
fn mac(sum: int32x4_t, weights: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // Weights are at most 63.
    let weights = vreinterpretq_s8_u8(weights);
    let pairs = vpaddq_s16(vmull_s8(vget_low_s8(weights), vget_low_s8(x)), vmull_high_s8(weights, x));
    vreinterpretq_s32_s16(vaddq_s16(vreinterpretq_s16_s32(sum), pairs))
}

/// A part of a line of i8 as i32.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn scales(line: &[i8; GROUP], part: usize) -> int32x4_t {
    let bytes: &[i8; ROWS] = &line.as_chunks().0[part % 4];
    let four = vreinterpret_s8_s32(vdup_n_s32(i32::from_ne_bytes(bytes.map(|b| b as u8))));
    vmovl_s16(vget_low_s16(vmovl_s8(four)))
}

#[inline]
#[target_feature(enable = "neon")]
fn scale(total: int32x4_t, sum: int32x4_t, scales: int32x4_t) -> int32x4_t {
    vmlaq_s32(total, vpaddlq_s16(vreinterpretq_s16_s32(sum)), scales)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn pairs(a: &[i8; GROUP], b: &[i8; GROUP], part: usize) -> [int32x4_t; 2] {
    [scales(a, part), scales(b, part)]
}

#[inline(always)]
pub(super) fn two(a: i16, b: i16) -> [i32; 2] {
    [a.into(), b.into()]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn mac_pairs(sum: int32x4_t, a: [int32x4_t; 2], b: [i32; 2]) -> int32x4_t {
    vmlaq_n_s32(vmlaq_n_s32(sum, a[0], b[0]), a[1], b[1])
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn sub32(a: int32x4_t, b: int32x4_t) -> int32x4_t {
    vsubq_s32(a, vshlq_n_s32::<5>(b))
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn float_scale(d: &[u16; GROUP], part: usize, dx: f32) -> float32x4_t {
    vmulq_n_f32(widen_f16(&d.as_chunks().0[part % 4]), dx)
}

/// `fma(f32(a), b, acc)`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fma(a: int32x4_t, b: float32x4_t, acc: float32x4_t) -> float32x4_t {
    vfmaq_f32(acc, vcvtq_f32_s32(a), b)
}

/// `fma(-f32(a), b, acc)`.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn fnma(a: int32x4_t, b: float32x4_t, acc: float32x4_t) -> float32x4_t {
    vfmsq_f32(acc, vcvtq_f32_s32(a), b)
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn write(acc: float32x4_t, part: usize, t: usize, out: &mut Columns<'_>) {
    let mut rows = [0.0; ROWS];
    store_f32(acc, &mut rows);
    out.write(t, part * ROWS, &rows);
}
