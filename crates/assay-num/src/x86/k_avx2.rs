//! Products in the K formats with AVX2, their activation quantizer, and what the AVX-VNNI products share.
//!
//! `vpmaddubsw` gives sums of pairs in i16, and several are added there before a multiplication by the scale widens
//! them. Nothing saturates: the most in a lane is 8 * 2 * 15 * 127 = 30480 in `Q4_K`; in the others sums are taken off
//! twice as often, and it is 4 * 2 * 31 * 127 = 31496 in `Q5_K` and 2 * 2 * 63 * 127 = 32004 in `Q6_K`.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::{load8, load8_f16, store8};
use super::q8_avx2::lanes;
use super::{ask, fetch_part};
use crate::acts::ActSuperBlock;
use crate::k_kernels::{TOKENS, k_kernels, within_group};
use crate::k_matrix::{KBlock, KWeights};
use crate::matmul::Columns;
use crate::matrix::GROUP;
use crate::scalar::{SUPER_BLOCK, super_block_scale};

/// Rows of a part: one register of f32.
const ROWS: usize = GROUP / 2;

k_kernels!("avx2,fma,f16c", parts: 2, float: __m256, one: 2, more: 1, panels: false, early: true);

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn zero() -> __m256i {
    _mm256_setzero_si256()
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn float_zero() -> __m256 {
    _mm256_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load(line: &[u8; 64], part: usize) -> __m256i {
    let bytes: &[u8; 32] = &line.as_chunks().0[part % 2];
    // SAFETY: the reference covers the 32 bytes read; the load is unaligned.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn low(line: __m256i) -> __m256i {
    _mm256_and_si256(line, _mm256_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn high(line: __m256i) -> __m256i {
    low(_mm256_srli_epi16::<4>(line))
}

/// `value` with `WIDTH` bits of `bits` from position `from` on as its bits 4 and up.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn lift<const WIDTH: usize>(bits: __m256i, from: usize, value: __m256i) -> __m256i {
    let moved = match from {
        0 => _mm256_slli_epi16::<4>(bits),
        1 => _mm256_slli_epi16::<3>(bits),
        2 => _mm256_slli_epi16::<2>(bits),
        3 => _mm256_slli_epi16::<1>(bits),
        4 => bits,
        5 => _mm256_srli_epi16::<1>(bits),
        6 => _mm256_srli_epi16::<2>(bits),
        _ => _mm256_srli_epi16::<3>(bits),
    };
    let mask = _mm256_set1_epi8(if WIDTH == 1 { 0x10 } else { 0x30 });
    _mm256_or_si256(value, _mm256_and_si256(moved, mask))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn four(q: [i8; 4]) -> __m256i {
    _mm256_set1_epi32(i32::from_ne_bytes(q.map(|q| q as u8)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn mac(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    _mm256_add_epi16(sum, _mm256_maddubs_epi16(weights, x))
}

/// A part of a line of i8 as i32.
#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn widened(line: &[i8; GROUP], part: usize) -> __m256i {
    let bytes: &[i8; ROWS] = &line.as_chunks().0[part % 2];
    // SAFETY: the reference covers the 8 bytes read; the load is unaligned.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(bytes.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn scales(line: &[i8; GROUP], part: usize) -> __m256i {
    pairs(line, line, part)
}

#[inline]
#[target_feature(enable = "avx2")]
fn scale(total: __m256i, sum: __m256i, scales: __m256i) -> __m256i {
    mac_pairs(total, sum, scales)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn pairs(a: &[i8; GROUP], b: &[i8; GROUP], part: usize) -> __m256i {
    _mm256_blend_epi16::<0xaa>(widened(a, part), _mm256_slli_epi32::<16>(widened(b, part)))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn two(a: i16, b: i16) -> __m256i {
    _mm256_set1_epi32(i32::from(a) & 0xffff | i32::from(b) << 16)
}

#[inline]
#[target_feature(enable = "avx2")]
fn mac_pairs(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn sub32(a: __m256i, b: __m256i) -> __m256i {
    _mm256_sub_epi32(a, _mm256_slli_epi32::<5>(b))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) fn float_scale(d: &[u16; GROUP], part: usize, dx: f32) -> __m256 {
    _mm256_mul_ps(load8_f16(&d.as_chunks().0[part % 2]), _mm256_set1_ps(dx))
}

/// `fma(f32(a), b, acc)`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn fma(a: __m256i, b: __m256, acc: __m256) -> __m256 {
    _mm256_fmadd_ps(_mm256_cvtepi32_ps(a), b, acc)
}

/// `fma(-f32(a), b, acc)`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn fnma(a: __m256i, b: __m256, acc: __m256) -> __m256 {
    _mm256_fnmadd_ps(_mm256_cvtepi32_ps(a), b, acc)
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn write(acc: __m256, part: usize, t: usize, out: &mut Columns<'_>) {
    let mut rows = [0.0; ROWS];
    store8(acc, &mut rows);
    out.write(t, part * ROWS, &rows);
}

/// [`crate::scalar::quantize_super_block`] for each block.
#[target_feature(enable = "avx2,f16c")]
pub(crate) fn quantize_super(x: &[[f32; SUPER_BLOCK]], out: &mut [ActSuperBlock]) {
    let magnitude = _mm256_set1_epi32(0x7fff_ffff);
    let (most, least) = (_mm256_set1_ps(127.0), _mm256_set1_ps(-127.0));
    for (x, out) in x.iter().zip(out) {
        let mut amax = zero();
        for x in x.as_chunks::<8>().0 {
            amax = _mm256_max_epi32(amax, _mm256_and_si256(_mm256_castps_si256(load8(x)), magnitude));
        }
        let amax_bits = lanes(amax).iter().fold(0, |a, &b| a.max(b)) as u32;
        let (d, id) = super_block_scale(amax_bits);
        if d.is_nan() {
            *out = ActSuperBlock { d, ..ActSuperBlock::ZERO };
            continue;
        }
        let id = _mm256_set1_ps(id);
        let sixteens = out.q.as_chunks_mut::<4>().0.iter_mut().zip(&mut out.sums);
        for (x, (q, sum)) in x.as_chunks::<16>().0.iter().zip(sixteens) {
            let (x, _) = x.as_chunks::<8>();
            // Clamping first and rounding after is the same: the bounds are integers.
            let scaled = [_mm256_mul_ps(load8(&x[0]), id), _mm256_mul_ps(load8(&x[1]), id)];
            let first = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(scaled[0], most), least));
            let second = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(scaled[1], most), least));
            // The pack works within halves of the register; the permutation puts the fours back in order.
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(first, second));
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            store_bytes(bytes, q);
            *sum = lanes(_mm256_add_epi32(first, second)).iter().sum::<i32>() as i16;
        }
        out.d = d;
        out.add_sums();
    }
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector store")]
fn store_bytes(x: __m128i, out: &mut [[i8; 4]; 4]) {
    // SAFETY: the array has the 16 bytes written; the store is unaligned.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), x) }
}
