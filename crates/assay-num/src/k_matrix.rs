//! Weights in the K formats, 16 rows interleaved, and their product in scalar code.
//!
//! One layout serves all of them: the four low bits of every column in 32 cache lines, then as many lines of high bits
//! as the format has, scales, minima. A super-block of a group is one piece of memory, so that a product reads one stream.
//!
//! ```text
//! columns 32j + 4c + e and 32j + 16 + 4c + e of row i, c and e below 4:
//! low[4j + c][4i + e]        first | second << 4 (their low four bits)
//! high[j][4i + e]            Q5_K: bit c of the first, bit 4 + c of the second
//! high[2j + c/2][4i + e]     Q6_K: bits 2(c%2).. of the first, bits 4 + 2(c%2).. of the second
//! ```

use std::ops::Range;

use crate::acts::ActSuperBlock;
use crate::f16;
use crate::matmul::Columns;
use crate::matrix::GROUP;
use crate::scalar::{SUB_BLOCK, SUB_BLOCKS, SUPER_BLOCK, SuperBlock, fma};
use crate::storage::{Plain, Storage};

/// A super-block of 16 rows: `HIGH` lines of high bits, `SCALES` scales and `MINS` minima a row.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct KBlock<const HIGH: usize, const SCALES: usize, const MINS: usize> {
    pub low: [[u8; 64]; 32],
    pub high: [[u8; 64]; HIGH],
    pub scales: [[i8; GROUP]; SCALES],
    pub mins: [[i8; GROUP]; MINS],
    /// f16 bits.
    pub d: [u16; GROUP],
    /// f16 bits.
    pub dmin: [u16; GROUP],
}

#[expect(unsafe_code, reason = "states a property of the type")]
// SAFETY: integers only; HIGH lines of 64, SCALES and MINS of 16 and two of 32 bytes come to a multiple of 64 in each of
// the three formats, which the assertions below check: no padding.
unsafe impl<const HIGH: usize, const SCALES: usize, const MINS: usize> Plain for KBlock<HIGH, SCALES, MINS> {}

const _: () = {
    assert!(size_of::<KBlock<0, 8, 8>>() == 64 * 32 + 16 * 16 + 64);
    assert!(size_of::<KBlock<8, 8, 8>>() == 64 * 40 + 16 * 16 + 64);
    assert!(size_of::<KBlock<16, 16, 0>>() == 64 * 48 + 16 * 16 + 64);
};

impl<const HIGH: usize, const SCALES: usize, const MINS: usize> Default for KBlock<HIGH, SCALES, MINS> {
    fn default() -> Self {
        KBlock {
            low: [[0; 64]; 32],
            high: [[0; 64]; HIGH],
            scales: [[0; GROUP]; SCALES],
            mins: [[0; GROUP]; MINS],
            d: [0; GROUP],
            dmin: [0; GROUP],
        }
    }
}

/// Rows of super-blocks; rows beyond the last are zero.
#[derive(Debug, Clone)]
pub(crate) struct KWeights<const HIGH: usize, const SCALES: usize, const MINS: usize> {
    pub n_blocks: usize,
    /// `[groups, n_blocks]`
    blocks: Storage<KBlock<HIGH, SCALES, MINS>>,
}

pub(crate) type Q4K = KWeights<0, 8, 8>;
pub(crate) type Q5K = KWeights<8, 8, 8>;
pub(crate) type Q6K = KWeights<16, 16, 0>;

/// What is stored is `q - OFFSET`, which is never negative.
const fn offset(mins: usize) -> i8 {
    if mins == 0 { -32 } else { 0 }
}

impl<const HIGH: usize, const SCALES: usize, const MINS: usize> KBlock<HIGH, SCALES, MINS> {
    /// Takes a row out again.
    pub fn row(&self, i: usize) -> SuperBlock {
        let step = SUB_BLOCKS / SCALES;
        SuperBlock {
            q: std::array::from_fn(|column| self.stored(i, column) as i8 + offset(MINS)),
            scales: std::array::from_fn(|n| self.scales[n / step][i]),
            mins: std::array::from_fn(|n| if MINS == 0 { 0 } else { self.mins[n / step][i] }),
            d: self.d[i],
            dmin: self.dmin[i],
        }
    }

    /// The stored value of row i.
    #[inline]
    fn stored(&self, i: usize, column: usize) -> u8 {
        let (j, is_second, c, at) = (column / 32, column / 16 % 2, column / 4 % 4, 4 * i + column % 4);
        let low = self.low[4 * j + c][at] >> (4 * is_second) & 15;
        match HIGH {
            0 => low,
            8 => low | (self.high[j][at] >> (c + 4 * is_second) & 1) << 4,
            _ => low | (self.high[2 * j + c / 2][at] >> (2 * (c % 2) + 4 * is_second) & 3) << 4,
        }
    }
}

impl<const HIGH: usize, const SCALES: usize, const MINS: usize> KWeights<HIGH, SCALES, MINS> {
    /// `blocks`: `[groups, n_blocks]`.
    pub fn new(n_blocks: usize, blocks: Storage<KBlock<HIGH, SCALES, MINS>>) -> Self {
        KWeights { n_blocks, blocks }
    }

    /// The super-blocks of group `g`: `n_blocks`.
    #[inline]
    pub fn group(&self, g: usize) -> &[KBlock<HIGH, SCALES, MINS>] {
        &self.blocks[g * self.n_blocks..(g + 1) * self.n_blocks]
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&self.blocks[..])
    }

    /// Row `row` as f32, see [`SuperBlock::to_f32`]; `out`: `[256 * n_blocks]`.
    pub fn row_f32(&self, row: usize, out: &mut [f32]) {
        let (out, _) = out.as_chunks_mut::<SUPER_BLOCK>();
        for (block, out) in self.group(row / GROUP).iter().zip(out) {
            block.row(row % GROUP).to_f32(out);
        }
    }
}

/// [`crate::scalar::k_dot`] for each row of the groups and each token of `x: [m, n_blocks]`.
pub(crate) fn k_groups<const HIGH: usize, const SCALES: usize, const MINS: usize>(
    w: &KWeights<HIGH, SCALES, MINS>,
    groups: Range<usize>,
    x: &[ActSuperBlock],
    out: &mut Columns<'_>,
) {
    let mut acc = vec![[0.0; GROUP]; x.len() / w.n_blocks];
    for g in groups {
        acc.fill([0.0; GROUP]);
        for (b, block) in w.group(g).iter().enumerate() {
            let rows: [SuperBlock; GROUP] = std::array::from_fn(|i| block.row(i));
            for (acc, x) in acc.iter_mut().zip(x.chunks_exact(w.n_blocks)) {
                for (acc, row) in acc.iter_mut().zip(&rows) {
                    *acc = step(row, &x[b], *acc);
                }
            }
        }
        acc.iter().enumerate().for_each(|(t, acc)| out.write(t, g * GROUP, acc));
    }
}

fn step(w: &SuperBlock, x: &ActSuperBlock, acc: f32) -> f32 {
    let (mut isum, mut msum) = (0i32, 0i32);
    let x_blocks = x.q.as_flattened().as_chunks::<SUB_BLOCK>().0;
    let sub_blocks = w.q.as_chunks::<SUB_BLOCK>().0.iter().zip(x_blocks).zip(&x.sums);
    for (((q, x), &sum), (&scale, &min)) in sub_blocks.zip(w.scales.iter().zip(&w.mins)) {
        // Bounds are in `scalar::k_dot`; wrapping leaves the compiler free to use vectors.
        let products = q.iter().zip(x).map(|(&q, &x)| i32::from(q).wrapping_mul(i32::from(x)));
        let sub = products.fold(0, i32::wrapping_add);
        isum = isum.wrapping_add(sub.wrapping_mul(i32::from(scale)));
        msum = msum.wrapping_add(i32::from(sum).wrapping_mul(i32::from(min)));
    }
    let acc = fma(isum as f32, f16::to_f32(w.d) * x.d, acc);
    fma(-(msum as f32), f16::to_f32(w.dmin) * x.d, acc)
}
