//! AVX-512: 16 lanes are one register.

use std::arch::x86_64::*;

pub(crate) use super::k_avx512::quantize_super;
pub(crate) use super::q8_avx512::{q8_groups, quantize};
use super::{k_avx512, k_avx512_half};
use crate::acts::ActSuperBlock;
use crate::float_kernels::float_kernels;
use crate::k_matrix::KWeights;

type V = __m512;

/// Products in the K formats: groups `groups` times all tokens of `x: [m, n_blocks]`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,fma,f16c")]
pub(crate) fn k_groups<const HIGH: usize, const SCALES: usize, const MINS: usize>(
    w: &KWeights<HIGH, SCALES, MINS>,
    groups: Range<usize>,
    x: &[ActSuperBlock],
    out: &mut Columns<'_>,
) {
    if x.len() == w.n_blocks {
        k_avx512_half::k_groups(w, groups, x, out);
    } else {
        k_avx512::k_groups(w, groups, x, out);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn zero() -> V {
    _mm512_setzero_ps()
}

#[inline]
#[target_feature(enable = "avx512f")]
fn splat(x: f32) -> V {
    _mm512_set1_ps(x)
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load(x: &[f32; 16]) -> V {
    // SAFETY: the reference covers the 64 bytes read; the load is unaligned.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load_f16(x: &[u16; 16]) -> V {
    // SAFETY: the reference covers the 32 bytes read; the load is unaligned.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector load")]
fn load_bf16(x: &[u16; 16]) -> V {
    // SAFETY: the reference covers the 32 bytes read; the load is unaligned.
    let bits = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector store")]
pub(super) fn store(x: V, out: &mut [f32; 16]) {
    // SAFETY: the reference covers the 64 bytes written; the store is unaligned.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
}

#[inline]
#[target_feature(enable = "avx512f")]
#[expect(unsafe_code, reason = "vector store")]
fn store_f16(x: V, out: &mut [u16; 16]) {
    // SAFETY: the reference covers the 32 bytes written; the store is unaligned.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn fma(a: V, b: V, c: V) -> V {
    _mm512_fmadd_ps(a, b, c)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: V, b: V) -> V {
    _mm512_add_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn sub(a: V, b: V) -> V {
    _mm512_sub_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn mul(a: V, b: V) -> V {
    _mm512_mul_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn div(a: V, b: V) -> V {
    _mm512_div_ps(a, b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn maximum(a: V, b: V) -> V {
    _mm512_max_ps(a, b)
}

/// To the nearest integer, ties to even.
#[inline]
#[target_feature(enable = "avx512f")]
fn round(x: V) -> V {
    _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
}

/// Adds the integer `n` to the exponent field of `p`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_exponent(p: V, n: V) -> V {
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32::<23>(_mm512_cvtps_epi32(n))))
}

/// `a > b ? yes : no`; false if unordered.
#[inline]
#[target_feature(enable = "avx512f")]
fn select_gt(a: V, b: V, yes: V, no: V) -> V {
    _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), no, yes)
}

/// [`crate::scalar::lane_sum`].
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn lane_sum(x: V) -> f32 {
    let eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

float_kernels!("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c", attend: [(4, 4), (2, 8), (1, 16)], dot: [(8, 3), (8, 2), (8, 1)]);
