//! Products in the K formats with AVX-512 VNNI, and their activation quantizer.
//!
//! The largest sums are those of `Q6_K`, whose stored values are 0..=63: 256 * 128 * 63 * 127 < 2^28.1, exact in i32.

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx512::{load as load_floats, load_f16, store};
use super::{ask, fetch_part};
use crate::acts::ActSuperBlock;
use crate::k_kernels::{TOKENS, k_kernels, within_group};
use crate::k_matrix::{KBlock, KWeights};
use crate::matmul::Columns;
use crate::matrix::GROUP;
use crate::scalar::{SUPER_BLOCK, super_block_scale};

k_kernels!("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c", parts: 1, float: __m512, one: 1, more: 2, panels: true, early: false);

#[inline]
#[target_feature(enable = "avx512f")]
fn zero() -> __m512i {
    _mm512_setzero_si512()
}

#[inline]
#[target_feature(enable = "avx512f")]
fn float_zero() -> __m512 {
    _mm512_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector load")]
fn load(line: &[u8; 64], _part: usize) -> __m512i {
    // SAFETY: the reference covers the 64 bytes read; the load is unaligned.
    unsafe { _mm512_loadu_si512(line.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn low(line: __m512i) -> __m512i {
    _mm512_and_si512(line, _mm512_set1_epi8(15))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn high(line: __m512i) -> __m512i {
    low(_mm512_srli_epi16::<4>(line))
}

/// `value` with `WIDTH` bits of `bits` from position `from` on as its bits 4 and up.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn lift<const WIDTH: usize>(bits: __m512i, from: usize, value: __m512i) -> __m512i {
    let moved = match from {
        0 => _mm512_slli_epi16::<4>(bits),
        1 => _mm512_slli_epi16::<3>(bits),
        2 => _mm512_slli_epi16::<2>(bits),
        3 => _mm512_slli_epi16::<1>(bits),
        4 => bits,
        5 => _mm512_srli_epi16::<1>(bits),
        6 => _mm512_srli_epi16::<2>(bits),
        _ => _mm512_srli_epi16::<3>(bits),
    };
    let mask = _mm512_set1_epi8(if WIDTH == 1 { 0x10 } else { 0x30 });
    _mm512_or_si512(value, _mm512_and_si512(moved, mask))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn four(q: [i8; 4]) -> __m512i {
    _mm512_set1_epi32(i32::from_ne_bytes(q.map(|q| q as u8)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn mac(sum: __m512i, weights: __m512i, x: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, weights, x)
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector load")]
fn scales(line: &[i8; GROUP], _part: usize) -> __m512i {
    // SAFETY: the reference covers the 16 bytes read; the load is unaligned.
    _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(line.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn scale(total: __m512i, sum: __m512i, scales: __m512i) -> __m512i {
    _mm512_add_epi32(total, _mm512_mullo_epi32(sum, scales))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn pairs(a: &[i8; GROUP], b: &[i8; GROUP], part: usize) -> __m512i {
    _mm512_mask_blend_epi16(0xaaaa_aaaa, scales(a, part), _mm512_slli_epi32::<16>(scales(b, part)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn two(a: i16, b: i16) -> __m512i {
    _mm512_set1_epi32(i32::from(a) & 0xffff | i32::from(b) << 16)
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn mac_pairs(sum: __m512i, a: __m512i, b: __m512i) -> __m512i {
    _mm512_dpwssd_epi32(sum, a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sub32(a: __m512i, b: __m512i) -> __m512i {
    _mm512_sub_epi32(a, _mm512_slli_epi32::<5>(b))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn float_scale(d: &[u16; GROUP], _part: usize, dx: f32) -> __m512 {
    _mm512_mul_ps(load_f16(d), _mm512_set1_ps(dx))
}

/// `fma(f32(a), b, acc)`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fma(a: __m512i, b: __m512, acc: __m512) -> __m512 {
    _mm512_fmadd_ps(_mm512_cvtepi32_ps(a), b, acc)
}

/// `fma(-f32(a), b, acc)`.
#[inline]
#[target_feature(enable = "avx512f")]
fn fnma(a: __m512i, b: __m512, acc: __m512) -> __m512 {
    _mm512_fnmadd_ps(_mm512_cvtepi32_ps(a), b, acc)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn write(acc: __m512, part: usize, t: usize, out: &mut Columns<'_>) {
    let mut rows = [0.0; GROUP];
    store(acc, &mut rows);
    out.write(t, part * GROUP, &rows);
}

/// [`crate::scalar::quantize_super_block`] for each block.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,f16c")]
pub(crate) fn quantize_super(x: &[[f32; SUPER_BLOCK]], out: &mut [ActSuperBlock]) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let (most, least) = (_mm512_set1_ps(127.0), _mm512_set1_ps(-127.0));
    for (x, out) in x.iter().zip(out) {
        let (x, _) = x.as_chunks::<16>();
        let mut amax = zero();
        for x in x {
            amax = _mm512_max_epi32(amax, _mm512_and_si512(_mm512_castps_si512(load_floats(x)), magnitude));
        }
        let (d, id) = super_block_scale(_mm512_reduce_max_epi32(amax) as u32);
        if d.is_nan() {
            *out = ActSuperBlock { d, ..ActSuperBlock::ZERO };
            continue;
        }
        let id = _mm512_set1_ps(id);
        let sixteens = out.q.as_chunks_mut::<4>().0.iter_mut().zip(&mut out.sums);
        for (x, (q, sum)) in x.iter().zip(sixteens) {
            // Clamping first and rounding after is the same: the bounds are integers.
            let scaled = _mm512_mul_ps(load_floats(x), id);
            let rounded = _mm512_cvtps_epi32(_mm512_max_ps(_mm512_min_ps(scaled, most), least));
            store_bytes(_mm512_cvtepi32_epi8(rounded), q);
            *sum = _mm512_reduce_add_epi32(rounded) as i16;
        }
        out.d = d;
        out.add_sums();
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector store")]
fn store_bytes(x: __m128i, out: &mut [[i8; 4]; 4]) {
    // SAFETY: the array has the 16 bytes written; the store is unaligned.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), x) }
}
