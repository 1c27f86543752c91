//! `Q8_0` products with `sdot`: four products of signed bytes added to each of four sums.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::load::{load_acts, rows, step};
use super::q8_kernels::{q8_groups, q8_kernels};
use super::q8_neon::weights;
use crate::acts::ActBlock;
use crate::matmul::Columns;
use crate::matrix::{GROUP, Q8Weights};

type Sum = [int32x4_t; 4];

q8_kernels!("neon,dotprod");
q8_groups!("neon,dotprod", [(4, tile::<4>), (3, tile::<3>), (2, tile::<2>), (1, tile::<1>)]);

#[inline]
#[target_feature(enable = "neon")]
fn start(_: &ActBlock) -> Sum {
    [vdupq_n_s32(0); 4]
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn mac<const LANE: i32>(sum: &mut Sum, weights: [int8x16_t; 4], acts: int8x16_t) {
    for i in 0..4 {
        sum[i] = sdot::<LANE>(sum[i], weights[i], acts);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn total(sum: Sum) -> [int32x4_t; 4] {
    sum
}

/// Adds to sum i the products of bytes `4i..4i + 4` of `w` with the four in `LANE` of `x`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
#[expect(unsafe_code, reason = "an instruction that Rust does not offer")]
fn sdot<const LANE: i32>(mut sum: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers from registers; whoever calls has the instruction.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
