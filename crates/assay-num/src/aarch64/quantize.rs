//! The activation quantizers.

use std::arch::aarch64::*;

use super::load::{load_f32, store_acts};
use crate::acts::{ActBlock, ActSuperBlock};
use crate::f16;
use crate::scalar::{Q8_BLOCK, SUPER_BLOCK, super_block_scale};

/// The bits of the largest magnitude: their order is the order of the values, with NaN above all.
#[inline]
#[target_feature(enable = "neon")]
fn amax_bits(x: &[[f32; 4]]) -> u32 {
    let magnitude = vdupq_n_u32(0x7fff_ffff);
    let mut most = vdupq_n_u32(0);
    for x in x {
        most = vmaxq_u32(most, vandq_u32(vreinterpretq_u32_f32(load_f32(x)), magnitude));
    }
    vmaxvq_u32(most)
}

/// `clamp(rint(x * id), -127, 127)` of 16 values, and their sum.
#[inline]
#[target_feature(enable = "neon")]
fn quantized(x: &[f32; 16], id: f32, out: &mut [[i8; 4]; 4]) -> i32 {
    let (x, _) = x.as_chunks();
    let mut q = [vdupq_n_s32(0); 4];
    for i in 0..4 {
        let scaled = vmulq_n_f32(load_f32(&x[i]), id);
        // Clamping first and rounding after is the same: the bounds are integers.
        q[i] = vcvtnq_s32_f32(vmaxq_f32(vminq_f32(scaled, vdupq_n_f32(127.0)), vdupq_n_f32(-127.0)));
    }
    let words = [vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1])), vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]))];
    store_acts(vcombine_s8(vmovn_s16(words[0]), vmovn_s16(words[1])), out);
    vaddvq_s32(vaddq_s32(vaddq_s32(q[0], q[1]), vaddq_s32(q[2], q[3])))
}

/// [`crate::scalar::quantize_block`] for each block.
#[target_feature(enable = "neon")]
pub(crate) fn quantize(x: &[[f32; Q8_BLOCK]], out: &mut [ActBlock]) {
    for (x, out) in x.iter().zip(out) {
        let amax_bits = amax_bits(x.as_chunks().0);
        if amax_bits >= f32::INFINITY.to_bits() {
            *out = ActBlock { q: [[0; 4]; 8], d: f32::NAN, offset: 0 };
            continue;
        }
        let d = f16::to_f32(f16::from_f32_rne(f32::from_bits(amax_bits) / 127.0));
        let id = if d > 0.0 { 1.0 / d } else { 0.0 };
        let (halves, _) = x.as_chunks::<16>();
        let (q, _) = out.q.as_chunks_mut::<4>();
        let sum = quantized(&halves[0], id, &mut q[0]) + quantized(&halves[1], id, &mut q[1]);
        (out.d, out.offset) = (d, -128 * sum);
    }
}

/// [`crate::scalar::quantize_super_block`] for each block.
#[target_feature(enable = "neon")]
pub(crate) fn quantize_super(x: &[[f32; SUPER_BLOCK]], out: &mut [ActSuperBlock]) {
    for (x, out) in x.iter().zip(out) {
        let (d, id) = super_block_scale(amax_bits(x.as_chunks().0));
        if d.is_nan() {
            *out = ActSuperBlock { d, ..ActSuperBlock::ZERO };
            continue;
        }
        let sixteens = out.q.as_chunks_mut::<4>().0.iter_mut().zip(&mut out.sums);
        for (x, (q, sum)) in x.as_chunks::<16>().0.iter().zip(sixteens) {
            *sum = quantized(x, id, q) as i16;
        }
        out.d = d;
        out.add_sums();
    }
}
