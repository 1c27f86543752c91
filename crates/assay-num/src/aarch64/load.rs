//! Vectors from references to arrays and back: the only `unsafe` of these kernels besides the assembly.

use std::arch::aarch64::*;

use crate::matrix::GROUP;

#[inline]
#[target_feature(enable = "neon")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load_f32(x: &[f32; 4]) -> float32x4_t {
    // SAFETY: the reference covers the 16 bytes read; the load is unaligned.
    unsafe { vld1q_f32(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load_u16(x: &[u16; 4]) -> uint16x4_t {
    // SAFETY: the reference covers the 8 bytes read; the load is unaligned.
    unsafe { vld1_u16(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load_u8(x: &[u8; 16]) -> uint8x16_t {
    // SAFETY: the reference covers the 16 bytes read; the load is unaligned.
    unsafe { vld1q_u8(x.as_ptr()) }
}

/// 16 activations.
#[inline]
#[target_feature(enable = "neon")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load_acts(x: &[[i8; 4]; 4]) -> int8x16_t {
    // SAFETY: the reference covers the 16 bytes read; the load is unaligned.
    unsafe { vld1q_s8(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "neon")]
#[expect(unsafe_code, reason = "vector store")]
pub(super) fn store_f32(x: float32x4_t, out: &mut [f32; 4]) {
    // SAFETY: the reference covers the 16 bytes written; the store is unaligned.
    unsafe { vst1q_f32(out.as_mut_ptr(), x) }
}

#[inline]
#[target_feature(enable = "neon")]
#[expect(unsafe_code, reason = "vector store")]
pub(super) fn store_u16(x: uint16x4_t, out: &mut [u16; 4]) {
    // SAFETY: the reference covers the 8 bytes written; the store is unaligned.
    unsafe { vst1_u16(out.as_mut_ptr(), x) }
}

#[inline]
#[target_feature(enable = "neon")]
#[expect(unsafe_code, reason = "vector store")]
pub(super) fn store_acts(x: int8x16_t, out: &mut [[i8; 4]; 4]) {
    // SAFETY: the reference covers the 16 bytes written; the store is unaligned.
    unsafe { vst1q_s8(out.as_mut_ptr().cast(), x) }
}

#[inline]
#[target_feature(enable = "neon")]
pub(super) fn widen_f16(bits: &[u16; 4]) -> float32x4_t {
    vcvt_f32_f16(vreinterpret_f16_u16(load_u16(bits)))
}

/// The four registers of 16 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn load_line(line: &[u8; 64]) -> [uint8x16_t; 4] {
    let (parts, _) = line.as_chunks();
    [load_u8(&parts[0]), load_u8(&parts[1]), load_u8(&parts[2]), load_u8(&parts[3])]
}

/// `fma(f32(isum), dw * dx, acc)` for 16 rows.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn step(isum: [int32x4_t; 4], dw: &[u16; GROUP], dx: f32, acc: &mut [float32x4_t; 4]) {
    let (dw, _) = dw.as_chunks();
    for i in 0..4 {
        let scale = vmulq_n_f32(widen_f16(&dw[i]), dx);
        acc[i] = vfmaq_f32(acc[i], vcvtq_f32_s32(isum[i]), scale);
    }
}

/// 16 outputs as an array.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn rows(acc: [float32x4_t; 4]) -> [f32; GROUP] {
    let mut rows = [0.0; GROUP];
    for (acc, rows) in acc.into_iter().zip(rows.as_chunks_mut().0) {
        store_f32(acc, rows);
    }
    rows
}
