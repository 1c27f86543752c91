//! Definitions for the K formats of GGUF (`Q4_K`, `Q5_K`, `Q6_K`): super-blocks of 256 columns with one f16 scale (and
//! one f16 scale of minima), in which each 16 or 32 columns have a small integer scale (and minimum) of their own.

use super::fma;
use crate::f16;

/// Columns of a super-block.
pub const SUPER_BLOCK: usize = 256;

/// Columns that share an entry of [`SuperBlock::scales`].
pub const SUB_BLOCK: usize = 16;

/// Sub-blocks of a super-block.
pub const SUB_BLOCKS: usize = SUPER_BLOCK / SUB_BLOCK;

/// Bytes of a `Q4_K` super-block in a GGUF file.
pub const Q4_K_BYTES: usize = 144;
/// Bytes of a `Q5_K` super-block in a GGUF file.
pub const Q5_K_BYTES: usize = 176;
/// Bytes of a `Q6_K` super-block in a GGUF file.
pub const Q6_K_BYTES: usize = 210;

/// One super-block of a row, unpacked: column i stands for `d * scales[i / 16] * q[i] - dmin * mins[i / 16]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuperBlock {
    /// `Q4_K`: 0..=15, `Q5_K`: 0..=31, `Q6_K`: -32..=31.
    pub q: [i8; SUPER_BLOCK],
    /// Any i8 in `Q6_K`; else 0..=63, each twice.
    pub scales: [i8; SUB_BLOCKS],
    /// 0..=63, each twice; 0 in `Q6_K`.
    pub mins: [i8; SUB_BLOCKS],
    /// f16 bits.
    pub d: u16,
    /// f16 bits; 0 in `Q6_K`.
    pub dmin: u16,
}

impl SuperBlock {
    /// Unpacks `Q4_K`: f16 d, f16 dmin, 12 bytes of [`scales_and_mins`], 128 bytes of which number 32i + l holds column
    /// 64i + l in its low and column 64i + 32 + l in its high four bits.
    pub fn from_q4_k(bytes: &[u8; Q4_K_BYTES]) -> SuperBlock {
        let (head, low) = bytes.split_at(16);
        with_mins(head, |column| nibble(low, column))
    }

    /// Unpacks `Q5_K`: as `Q4_K` with 32 bytes before the last 128; bit i of number l is the fifth bit of column 32i + l.
    pub fn from_q5_k(bytes: &[u8; Q5_K_BYTES]) -> SuperBlock {
        let (head, rest) = bytes.split_at(16);
        let (high, low) = rest.split_at(32);
        with_mins(head, |column| nibble(low, column) | (high[column % 32] >> (column / 32) & 1) << 4)
    }

    /// Unpacks `Q6_K`: per half of 128 columns, 64 bytes of low four bits (number l: columns l and l + 64) and 32 bytes
    /// of high two bits (number l, from the lowest: columns l, l + 32, l + 64, l + 96), first all low, then all high;
    /// then 16 i8 scales and an f16 d. The stored value is `q + 32`.
    pub fn from_q6_k(bytes: &[u8; Q6_K_BYTES]) -> SuperBlock {
        let (low, rest) = bytes.split_at(128);
        let (high, rest) = rest.split_at(64);
        let q = std::array::from_fn(|i| {
            let (half, column) = (i / 128, i % 128);
            let low = low[64 * half + column % 64] >> (4 * (column / 64)) & 15;
            let high = high[32 * half + column % 32] >> (2 * (column / 32)) & 3;
            (low | high << 4) as i8 - 32
        });
        let scales = std::array::from_fn(|i| rest[i] as i8);
        let d = u16::from_le_bytes([rest[16], rest[17]]);
        SuperBlock { q, scales, mins: [0; SUB_BLOCKS], d, dmin: 0 }
    }

    /// The columns as f32: `(d * scale) * q - dmin * min`. The products are exact (at most 24 significant bits), the
    /// difference rounds once; in `Q6_K` it is exact, too.
    pub fn to_f32(&self, out: &mut [f32; SUPER_BLOCK]) {
        let (d, dmin) = (f16::to_f32(self.d), f16::to_f32(self.dmin));
        for (i, (out, &q)) in out.iter_mut().zip(&self.q).enumerate() {
            let (scale, min) = (self.scales[i / SUB_BLOCK], self.mins[i / SUB_BLOCK]);
            *out = d * f32::from(scale) * f32::from(q) - dmin * f32::from(min);
        }
    }
}

fn nibble(low: &[u8], column: usize) -> u8 {
    low[column / 64 * 32 + column % 32] >> (4 * (column / 32 % 2)) & 15
}

fn with_mins(head: &[u8], q: impl Fn(usize) -> u8) -> SuperBlock {
    let small = scales_and_mins(&head[4..16]);
    SuperBlock {
        q: std::array::from_fn(|column| q(column) as i8),
        scales: std::array::from_fn(|i| small[i / 2].0),
        mins: std::array::from_fn(|i| small[i / 2].1),
        d: u16::from_le_bytes([head[0], head[1]]),
        dmin: u16::from_le_bytes([head[2], head[3]]),
    }
}

/// The 6-bit (scale, min) of 8 times 32 columns in 12 bytes: the low six bits of byte j are scale j, those of byte
/// j + 4 are min j, for j below 4; of byte j + 8, the low half is the low half of scale j + 4, the high half that of min
/// j + 4, and their upper two bits are the top bits of bytes j and j + 4.
fn scales_and_mins(bytes: &[u8]) -> [(i8, i8); 8] {
    std::array::from_fn(|j| {
        if j < 4 {
            return ((bytes[j] & 63) as i8, (bytes[j + 4] & 63) as i8);
        }
        let scale = bytes[j + 4] & 15 | bytes[j - 4] >> 6 << 4;
        let min = bytes[j + 4] >> 4 | bytes[j] >> 6 << 4;
        (scale as i8, min as i8)
    })
}

/// Quantizes 256 activations to `(q, d)` with `x[i] ~ q[i] * d`.
///
/// Order: `amax` = largest magnitude; `d = amax / 127`, or 0 if that is below the smallest normal f32; `id = 1 / d`, or 0
/// if d is 0; `q = clamp(rint(x * id), -127, 127)`, rint to nearest even. If a value is not finite, `d` is NaN and every
/// `q` is 0: all products with the block become NaN.
///
/// Unlike the scale of [`super::quantize_block`], d is not rounded to f16: one scale in 256 values costs nothing as f32, so
/// neither large nor small activations leave its range, and the product of the scales, which is exact there, rounds
/// once here ([`k_dot`]). Subnormal scales are dropped because their inverse may be infinite.
pub fn quantize_super_block(x: &[f32; SUPER_BLOCK]) -> ([i8; SUPER_BLOCK], f32) {
    let amax_bits = x.iter().fold(0, |most: u32, v| most.max(v.to_bits() & 0x7fff_ffff));
    let (d, id) = super_block_scale(amax_bits);
    if d.is_nan() {
        return ([0; SUPER_BLOCK], d);
    }
    let q = x.map(|v| (v * id).round_ties_even().clamp(-127.0, 127.0) as i8);
    (q, d)
}

/// (d, id) of [`quantize_super_block`] from the bits of the largest magnitude; d is NaN if that is not finite.
#[inline]
pub(crate) fn super_block_scale(amax_bits: u32) -> (f32, f32) {
    if amax_bits >= f32::INFINITY.to_bits() {
        return (f32::NAN, 0.0);
    }
    let d = f32::from_bits(amax_bits) / 127.0;
    if d < f32::MIN_POSITIVE { (0.0, 0.0) } else { (d, 1.0 / d) }
}

/// Dot product of a row in a K format and quantized activations.
///
/// Order: from acc = +0, for super-blocks ascending, with `dx` the scale of the activations,
/// `I = sum scales[i / 16] * q[i] * x[i]` and `M = sum mins[i / 16] * x[i]`, both exact in i32 (|I| <= 133.2e6,
/// |M| <= 2.1e6) and rounded once to f32:
/// `acc = fma(f32(I), d * dx, acc)`, then `acc = fma(-f32(M), dmin * dx, acc)`; both products of scales round once.
/// `Q6_K` has no minima and leaves out the second step, which would change nothing.
pub fn k_dot(w: &[SuperBlock], x: &[([i8; SUPER_BLOCK], f32)]) -> f32 {
    assert_eq!(w.len(), x.len());
    w.iter().zip(x).fold(0.0, |acc, (w, (x, dx))| {
        let (mut isum, mut msum) = (0i32, 0i32);
        for (i, (&q, &x)) in w.q.iter().zip(x).enumerate() {
            isum += i32::from(w.scales[i / SUB_BLOCK]) * i32::from(q) * i32::from(x);
            msum += i32::from(w.mins[i / SUB_BLOCK]) * i32::from(x);
        }
        let acc = fma(isum as f32, f16::to_f32(w.d) * dx, acc);
        fma(-(msum as f32), f16::to_f32(w.dmin) * dx, acc)
    })
}
