//! `Q8_0` products with `usdot` for one token and `usmmla`, a product of 2 x 8 and 8 x 2 bytes, for pairs of tokens.
//!
//! Both multiply unsigned by signed bytes: the stored weights are w + 128, and starting the integer sum at
//! -128 * sum(x) takes the offset off again. All of it is exact in i32: at most 32 * 255 * 127 + 128 * 32 * 127 < 2^21.

use std::arch::aarch64::*;
use std::arch::asm;
use std::ops::Range;

use super::load::{load_acts, load_line, load_line as weights, rows, step};
use super::q8_kernels::{q8_groups, q8_kernels};
use crate::acts::ActBlock;
use crate::matmul::Columns;
use crate::matrix::{GROUP, Q8Weights};

type Sum = [int32x4_t; 4];

q8_kernels!("neon,dotprod,i8mm");
q8_groups!("neon,dotprod,i8mm", [(4, pairs::<2>), (2, pairs::<1>), (1, tile::<1>)]);

#[inline]
#[target_feature(enable = "neon")]
fn start(x: &ActBlock) -> Sum {
    [vdupq_n_s32(x.offset); 4]
}

#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn mac<const LANE: i32>(sum: &mut Sum, weights: [uint8x16_t; 4], acts: int8x16_t) {
    for i in 0..4 {
        sum[i] = usdot::<LANE>(sum[i], weights[i], acts);
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn total(sum: Sum) -> [int32x4_t; 4] {
    sum
}

/// Group `g` times tokens `t..t + 2 * P`.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
fn pairs<const P: usize>(w: &Q8Weights, g: usize, x: &[ActBlock], t: usize, out: &mut Columns<'_>) {
    let n = w.n_blocks;
    let (q, d) = w.group(g);
    let (q, d) = (&q[..n], &d[..n]);
    let x: [[&[ActBlock]; 2]; P] =
        std::array::from_fn(|p| [0, 1].map(|i| &x[(t + 2 * p + i) * n..(t + 2 * p + i + 1) * n]));
    let mut acc = [[[vdupq_n_f32(0.0); 4]; 2]; P];
    for b in 0..n {
        // Sum r of a pair: rows 2r and 2r + 1, each with the first and the second token.
        let mut sums = [[vdupq_n_s32(0); 8]; P];
        for p in 0..P {
            let offsets = vset_lane_s32::<1>(x[p][1][b].offset, vdup_n_s32(x[p][0][b].offset));
            sums[p] = [vcombine_s32(offsets, offsets); 8];
        }
        let (line_pairs, _) = q[b].0.as_chunks::<2>();
        for (j, lines) in line_pairs.iter().enumerate() {
            let mut acts = [vdupq_n_s8(0); P];
            for p in 0..P {
                acts[p] = eight_of_two(&x[p][0][b], &x[p][1][b], j);
            }
            let (first, second) = (load_line(&lines[0]), load_line(&lines[1]));
            for i in 0..4 {
                let (first, second) = (vreinterpretq_u32_u8(first[i]), vreinterpretq_u32_u8(second[i]));
                let low = vreinterpretq_u8_u32(vzip1q_u32(first, second));
                let high = vreinterpretq_u8_u32(vzip2q_u32(first, second));
                for p in 0..P {
                    sums[p][2 * i] = usmmla(sums[p][2 * i], low, acts[p]);
                    sums[p][2 * i + 1] = usmmla(sums[p][2 * i + 1], high, acts[p]);
                }
            }
        }
        for p in 0..P {
            let mut totals = [[vdupq_n_s32(0); 4]; 2];
            for i in 0..4 {
                totals[0][i] = vuzp1q_s32(sums[p][2 * i], sums[p][2 * i + 1]);
                totals[1][i] = vuzp2q_s32(sums[p][2 * i], sums[p][2 * i + 1]);
            }
            for i in 0..2 {
                step(totals[i], &d[b], x[p][i][b].d, &mut acc[p][i]);
            }
        }
    }
    for (i, acc) in acc.into_iter().flatten().enumerate() {
        out.write(t + i, g * GROUP, &rows(acc));
    }
}

/// Activations `8j..8j + 8` of two tokens.
#[inline]
#[target_feature(enable = "neon")]
fn eight_of_two(a: &ActBlock, b: &ActBlock, j: usize) -> int8x16_t {
    load_acts(&[a.q[2 * j], a.q[2 * j + 1], b.q[2 * j], b.q[2 * j + 1]])
}

/// Adds to sum i the products of bytes `4i..4i + 4` of `w` with the four in `LANE` of `x`.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
#[expect(unsafe_code, reason = "an instruction that Rust does not offer")]
fn usdot<const LANE: i32>(mut sum: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers from registers; whoever calls has the instruction.
    unsafe {
        asm!(
            "usdot {sum:v}.4s, {w:v}.16b, {x:v}.4b[{lane}]",
            sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x, lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Adds to sum 2i + k the products of bytes `8i..8i + 8` of `w` with bytes `8k..8k + 8` of `x`.
#[inline]
#[target_feature(enable = "neon,dotprod,i8mm")]
#[expect(unsafe_code, reason = "an instruction that Rust does not offer")]
fn usmmla(mut sum: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers from registers; whoever calls has the instruction.
    unsafe {
        asm!(
            "usmmla {sum:v}.4s, {w:v}.16b, {x:v}.16b",
            sum = inout(vreg) sum, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
