//! `Q8_0` products with NEON alone: bytes are multiplied to i16, and pairs of these are added to i32.

use std::arch::aarch64::*;
use std::ops::Range;

use super::load::{load_acts, load_line, rows, step};
use super::q8_kernels::{q8_groups, q8_kernels};
use crate::acts::ActBlock;
use crate::matmul::Columns;
use crate::matrix::{GROUP, Q8Weights};

/// Of row i of four, register 2r of four rows has the sums over the first two of each four columns at 2i and over the
/// last two at 2i + 1 for the first two rows, register 2r + 1 for the others.
type Sum = [int32x4_t; 8];

q8_kernels!("neon");
q8_groups!("neon", [(2, tile::<2>), (1, tile::<1>)]);

#[inline]
#[target_feature(enable = "neon")]
fn start(_: &ActBlock) -> Sum {
    [vdupq_n_s32(0); 8]
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn weights(line: &[u8; 64]) -> [int8x16_t; 4] {
    load_line(line).map(|w| vreinterpretq_s8_u8(veorq_u8(w, vdupq_n_u8(0x80))))
}

#[inline]
#[target_feature(enable = "neon")]
fn mac<const LANE: i32>(sum: &mut Sum, weights: [int8x16_t; 4], acts: int8x16_t) {
    let four = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(acts)));
    for i in 0..4 {
        sum[2 * i] = vpadalq_s16(sum[2 * i], vmull_s8(vget_low_s8(weights[i]), vget_low_s8(four)));
        sum[2 * i + 1] = vpadalq_s16(sum[2 * i + 1], vmull_high_s8(weights[i], four));
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn total(sum: Sum) -> [int32x4_t; 4] {
    [vpaddq_s32(sum[0], sum[1]), vpaddq_s32(sum[2], sum[3]), vpaddq_s32(sum[4], sum[5]), vpaddq_s32(sum[6], sum[7])]
}
