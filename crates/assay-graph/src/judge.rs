//! What one step gives for the bytes that it reads: the other implementation of `Judge.evaluate`.
//!
//! Numbers of the trace are big-endian, weights have the byte order of the file. The arithmetic is that of
//! `assay_num::scalar`; here is only which of it belongs to which operation.

use assay_num::{f16, scalar};

use crate::op::{Kind, LEAF_NUMBERS, Op, flags, unit_of};
use crate::operands::Site;

/// The number that a token that there is not is read as.
const NAN: u32 = 0x7fc0_0000;

/// What step `step` towards a number gives, from the result `before` of the step before (+0 for the first) and exactly its
/// operands; bits of an f32, an id, or the byte of a quantized value. `None` if `stated` is too short or no step gives this
/// operation's numbers.
pub fn evaluate(op: &Op, site: Site, step: u64, before: u32, stated: &[u8]) -> Option<u32> {
    let before = f32::from_bits(before);
    let data = Data(stated);
    let value = match op.kind {
        Kind::Token => return data.word(0),
        Kind::Choose => return None,
        Kind::Embed => return embed(op, site, data),
        Kind::Quantize | Kind::QuantizeSuper => return quantized(op, site.slot, data),
        Kind::Product => product(op.format, before, data)?,
        Kind::Lanes => {
            let length = unit_of(op.format)?.1 as usize;
            scalar::fma(cell(op.format, data.bytes(0, length)?, 0)?, data.float(length)?, before)
        }
        Kind::LaneSum => scalar::lane_sum(&data.floats(0)?),
        Kind::Squares => scalar::fma(data.float(0)?, data.float(0)?, before),
        Kind::Norm => {
            let mean = scalar::lane_sum(&data.floats(4)?) / op.cols as f32;
            let inverse = 1.0 / (mean + f32::from_bits(op.x)).sqrt();
            (data.float(0)? * inverse) * data.float_of_file(68)?
        }
        Kind::Bias => data.float(0)? + data.float_of_file(4)?,
        Kind::Rotate => rotated(op, site, data)?,
        Kind::Narrow => f16::to_f32(f16::from_f32_rne(data.float(0)?)),
        Kind::Cap => scalar::softcap(data.float(0)?, f32::from_bits(op.x)),
        Kind::Add => data.float(0)? + data.float(4)?,
        Kind::Gate => {
            let a = data.float(0)?;
            let gate = if op.has(flags::GELU) { scalar::gelu(a) } else { scalar::silu(a) };
            gate * data.float(4)?
        }
        _ => attention(op, step, before, data)?,
    };
    Some(value.to_bits())
}

fn attention(op: &Op, step: u64, before: f32, data: Data<'_>) -> Option<f32> {
    let a = data.float(0)?;
    Some(match op.kind {
        Kind::Score => {
            let score = scalar::fma(a, data.float(4)?, before);
            if step + 1 < u64::from(op.cols) {
                return Some(score);
            }
            let score = score * f32::from_bits(op.x);
            if op.y == 0 { score } else { scalar::softcap(score, f32::from_bits(op.y)) }
        }
        Kind::ChunkMax => {
            if step == 0 {
                a
            } else {
                larger(before, a)
            }
        }
        Kind::Weigh => scalar::exp(a - data.float(4)?),
        Kind::ChunkLanes => before + a,
        Kind::ChunkOut => scalar::fma(a, data.float(4)?, before),
        Kind::Attended => a / data.float(4)?,
        Kind::RunMax => {
            if data.0.len() == 4 {
                a
            } else {
                larger(data.float(4)?, a)
            }
        }
        Kind::RunOut => {
            if data.0.len() == 4 {
                a
            } else {
                joined(a, data, 4)?
            }
        }
        Kind::RunSum => {
            let sum = scalar::lane_sum(&data.floats(0)?);
            if data.0.len() == 64 { sum } else { joined(sum, data, 64)? }
        }
        _ => return None,
    })
}

/// The second of two numbers only if it is above the first.
pub(crate) fn larger(so_far: f32, next: f32) -> f32 {
    if next > so_far { next } else { so_far }
}

/// `this` joined with what was before: from `at` on the largest score of this chunk, the largest up to this chunk, the
/// largest up to the chunk before, and what was before.
fn joined(this: f32, data: Data<'_>, at: usize) -> Option<f32> {
    let largest = data.float(at + 4)?;
    let of_before = scalar::exp(data.float(at + 8)? - largest);
    let of_this = scalar::exp(data.float(at)? - largest);
    Some(scalar::fma(data.float(at + 12)?, of_before, this * of_this))
}

fn embed(op: &Op, site: Site, data: Data<'_>) -> Option<u32> {
    if data.word(0)? >= op.rows {
        return Some(NAN);
    }
    let (columns, length) = unit_of(op.format)?;
    let column = (LEAF_NUMBERS * u64::from(site.leaf) + u64::from(site.slot)) % columns;
    let value = cell(op.format, data.bytes(4, length as usize)?, column as usize)?;
    Some(if op.x == 0 { value } else { value * f32::from_bits(op.x) }.to_bits())
}

fn quantized(op: &Op, slot: u16, data: Data<'_>) -> Option<u32> {
    let (value, scale) = match op.kind {
        Kind::Quantize => {
            let (q, d) = scalar::quantize_block(&data.floats(0)?);
            (q.get(usize::from(slot)).copied(), d)
        }
        _ => {
            let (q, d) = scalar::quantize_super_block(&data.floats(0)?);
            (q.get(usize::from(slot)).copied(), d)
        }
    };
    Some(value.map_or(scale.to_bits(), |q| u32::from(q as u8)))
}

fn rotated(op: &Op, site: Site, data: Data<'_>) -> Option<f32> {
    let a = data.float(0)?;
    if data.0.len() == 4 {
        return Some(a);
    }
    let (b, c, s) = (data.float(4)?, data.float_of_file(8)?, data.float_of_file(12)?);
    let e = LEAF_NUMBERS * u64::from(site.leaf) + u64::from(site.slot);
    let d = e % u64::from(op.cols);
    let second = if op.has(flags::NEIGHBOURS) { d % 2 == 1 } else { d >= u64::from(op.heads) / 2 };
    Some(if second { scalar::fma(a, s, b * c) } else { scalar::fma(a, c, -(b * s)) })
}

/// One block of weights, then one of activations.
fn product(format: u8, acc: f32, data: Data<'_>) -> Option<f32> {
    let length = unit_of(format)?.1 as usize;
    let (weights, acts) = data.0.split_at_checked(length)?;
    if let Some(block) = super_block(format, weights) {
        let (x, dx) = Data(acts).quantized::<256>()?;
        let (mut sum, mut minima) = (0_i32, 0_i32);
        for (i, (&q, &x)) in block.q.iter().zip(&x).enumerate() {
            let sub = i / scalar::SUB_BLOCK;
            sum += i32::from(block.scales[sub]) * i32::from(q) * i32::from(x);
            minima += i32::from(block.mins[sub]) * i32::from(x);
        }
        let acc = scalar::fma(sum as f32, f16::to_f32(block.d) * dx, acc);
        // Q6_K has no minima; a step with them would change nothing.
        let has_minima = format != 14;
        return Some(if has_minima { scalar::fma(-(minima as f32), f16::to_f32(block.dmin) * dx, acc) } else { acc });
    }
    let (x, dx) = Data(acts).quantized::<32>()?;
    let (w, dw) = block(format, weights)?;
    let sum: i32 = w.iter().zip(&x).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
    Some(scalar::fma(sum as f32, f16::to_f32(dw) * dx, acc))
}

/// Column `i` of a unit of weights.
fn cell(format: u8, unit: &[u8], i: usize) -> Option<f32> {
    let mut values = vec![];
    unpack(format, unit, &mut values);
    values.get(i).copied()
}

/// Appends the columns of a unit of weights; none if it is too short or no judge knows its format.
pub(crate) fn unpack(format: u8, unit: &[u8], out: &mut Vec<f32>) {
    let half = || unit.first_chunk().map(|bytes| u16::from_le_bytes(*bytes));
    match format {
        0 => out.extend(unit.first_chunk().map(|bytes| f32::from_le_bytes(*bytes))),
        1 => out.extend(half().map(f16::to_f32)),
        30 => out.extend(half().map(f16::bf16_to_f32)),
        2 | 8 => {
            if let Some((w, d)) = block(format, unit) {
                out.extend(w.map(|w| f32::from(w) * f16::to_f32(d)));
            }
        }
        _ => {
            if let Some(block) = super_block(format, unit) {
                let mut values = [0.0; scalar::SUPER_BLOCK];
                block.to_f32(&mut values);
                out.extend(values);
            }
        }
    }
}

/// A block of Q8_0 or Q4_0: values and scale.
fn block(format: u8, bytes: &[u8]) -> Option<([i8; 32], u16)> {
    let (scale, q) = bytes.split_first_chunk()?;
    let values = match format {
        8 => q.first_chunk::<32>()?.map(|q| q as i8),
        2 => {
            let q: &[u8; 16] = q.first_chunk()?;
            std::array::from_fn(|i| (q[i % 16] >> (4 * (i / 16)) & 15) as i8 - 8)
        }
        _ => return None,
    };
    Some((values, u16::from_le_bytes(*scale)))
}

fn super_block(format: u8, bytes: &[u8]) -> Option<scalar::SuperBlock> {
    match format {
        12 => Some(scalar::SuperBlock::from_q4_k(bytes.first_chunk()?)),
        13 => Some(scalar::SuperBlock::from_q5_k(bytes.first_chunk()?)),
        14 => Some(scalar::SuperBlock::from_q6_k(bytes.first_chunk()?)),
        _ => None,
    }
}

/// Bytes that a step reads.
#[derive(Clone, Copy)]
struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    fn bytes(self, at: usize, len: usize) -> Option<&'a [u8]> {
        self.0.get(at..at + len)
    }

    fn word(self, at: usize) -> Option<u32> {
        self.0.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
    }

    fn float(self, at: usize) -> Option<f32> {
        self.word(at).map(f32::from_bits)
    }

    fn float_of_file(self, at: usize) -> Option<f32> {
        self.0.get(at..)?.first_chunk().map(|bytes| f32::from_le_bytes(*bytes))
    }

    fn floats<const N: usize>(self, at: usize) -> Option<[f32; N]> {
        let (words, _) = self.0.get(at..)?.as_chunks::<4>();
        let words: &[[u8; 4]; N] = words.first_chunk()?;
        Some(words.map(|word| f32::from_bits(u32::from_be_bytes(word))))
    }

    /// Values and scale of a leaf of a quantizer.
    fn quantized<const N: usize>(self) -> Option<([i8; N], f32)> {
        let q = self.0.first_chunk::<N>()?.map(|q| q as i8);
        Some((q, self.float(N)?))
    }
}
