//! AVX2 with FMA and F16C: 16 lanes are two registers, lanes 0..8 and 8..16.

use std::arch::x86_64::*;

pub(crate) use super::k_avx2::{k_groups, quantize_super};
pub(crate) use super::q8_avx2::{q8_groups, quantize};
use crate::float_kernels::float_kernels;

type V = [__m256; 2];

#[inline]
#[target_feature(enable = "avx2")]
fn zero() -> V {
    [_mm256_setzero_ps(); 2]
}

#[inline]
#[target_feature(enable = "avx2")]
fn splat(x: f32) -> V {
    [_mm256_set1_ps(x); 2]
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load8(x: &[f32; 8]) -> __m256 {
    // SAFETY: the reference covers the 32 bytes read; the load is unaligned.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
#[expect(unsafe_code, reason = "vector load")]
pub(super) fn load8_f16(x: &[u16; 8]) -> __m256 {
    // SAFETY: the reference covers the 16 bytes read; the load is unaligned.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(x.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector store")]
pub(super) fn store8(x: __m256, out: &mut [f32; 8]) {
    // SAFETY: the reference covers the 32 bytes written; the store is unaligned.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
#[expect(unsafe_code, reason = "vector store")]
fn store8_f16(x: __m256, out: &mut [u16; 8]) {
    // SAFETY: the reference covers the 16 bytes written; the store is unaligned.
    unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)) }
}

/// The value itself, hidden from the compiler for a moment. Else it regroups sums of integers, token after token instead of
/// line after line, for which the weights must go to the stack and come back.
#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "an assembler comment")]
pub(super) fn keep(mut x: __m256i) -> __m256i {
    // SAFETY: there is no instruction in it.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) x, options(pure, nomem, nostack, preserves_flags)) };
    x
}

/// The two halves of 16 elements.
#[inline(always)]
fn halves<T>(x: &[T; 16]) -> (&[T; 8], &[T; 8]) {
    let (halves, _) = x.as_chunks();
    (&halves[0], &halves[1])
}

#[inline(always)]
fn halves_mut<T>(x: &mut [T; 16]) -> (&mut [T; 8], &mut [T; 8]) {
    let (low, high) = x.split_at_mut(8);
    (low.as_mut_array().expect("8 of 16"), high.as_mut_array().expect("8 of 16"))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f32; 16]) -> V {
    let (low, high) = halves(x);
    [load8(low), load8(high)]
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn load_f16(x: &[u16; 16]) -> V {
    let (low, high) = halves(x);
    [load8_f16(low), load8_f16(high)]
}

#[inline]
#[target_feature(enable = "avx2")]
#[expect(unsafe_code, reason = "vector load")]
fn load8_bf16(x: &[u16; 8]) -> __m256 {
    // SAFETY: the reference covers the 16 bytes read; the load is unaligned.
    let bits = unsafe { _mm_loadu_si128(x.as_ptr().cast()) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bf16(x: &[u16; 16]) -> V {
    let (low, high) = halves(x);
    [load8_bf16(low), load8_bf16(high)]
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(x: V, out: &mut [f32; 16]) {
    let (low, high) = halves_mut(out);
    store8(x[0], low);
    store8(x[1], high);
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn store_f16(x: V, out: &mut [u16; 16]) {
    let (low, high) = halves_mut(out);
    store8_f16(x[0], low);
    store8_f16(x[1], high);
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn fma(a: V, b: V, c: V) -> V {
    [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn add(a: V, b: V) -> V {
    [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn sub(a: V, b: V) -> V {
    [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn mul(a: V, b: V) -> V {
    [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn div(a: V, b: V) -> V {
    [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn maximum(a: V, b: V) -> V {
    [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])]
}

/// To the nearest integer, ties to even.
#[inline]
#[target_feature(enable = "avx2")]
fn round(x: V) -> V {
    const MODE: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    [_mm256_round_ps::<MODE>(x[0]), _mm256_round_ps::<MODE>(x[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn add_exponent8(p: __m256, n: __m256) -> __m256 {
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n))))
}

/// Adds the integer `n` to the exponent field of `p`.
#[inline]
#[target_feature(enable = "avx2")]
fn add_exponent(p: V, n: V) -> V {
    [add_exponent8(p[0], n[0]), add_exponent8(p[1], n[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn select_gt8(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
    _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_GT_OQ>(a, b))
}

/// `a > b ? yes : no`; false if unordered.
#[inline]
#[target_feature(enable = "avx2")]
fn select_gt(a: V, b: V, yes: V, no: V) -> V {
    [select_gt8(a[0], b[0], yes[0], no[0]), select_gt8(a[1], b[1], yes[1], no[1])]
}

/// [`crate::scalar::lane_sum`].
#[inline]
#[target_feature(enable = "avx2")]
fn lane_sum(x: V) -> f32 {
    let eight = _mm256_add_ps(x[0], x[1]);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

float_kernels!("avx2,fma,f16c", attend: [(4, 1), (2, 2), (1, 4)], dot: [(4, 2), (8, 1)]);
