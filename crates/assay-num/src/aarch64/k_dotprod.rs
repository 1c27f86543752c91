//! Products in the K formats with `sdot`: the sums of four products in one instruction and in i32.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::k_neon::{
    float_scale, float_zero, fma, fnma, four, high, lift, load, low, mac_pairs, pairs, scales, sub32, two, write, zero,
};
use super::{ask, fetch_part};
use crate::acts::ActSuperBlock;
use crate::k_kernels::{TOKENS, k_kernels, within_group};
use crate::k_matrix::{KBlock, KWeights};
use crate::matmul::Columns;

k_kernels!("neon,dotprod", parts: 4, float: float32x4_t, one: 4, more: 2, panels: false, early: false);

#[inline]
#[target_feature(enable = "neon,dotprod")]
#[expect(unsafe_code, reason = "an instruction that Rust does not offer")]
fn mac(mut sum: int32x4_t, weights: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers from registers; whoever calls has the instruction. Weights are at most 63.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum, w = in(vreg) weights, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

#[inline]
#[target_feature(enable = "neon")]
fn scale(total: int32x4_t, sum: int32x4_t, scales: int32x4_t) -> int32x4_t {
    vmlaq_s32(total, sum, scales)
}
