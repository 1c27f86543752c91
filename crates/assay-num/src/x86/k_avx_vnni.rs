//! Products in the K formats with AVX-VNNI: as AVX2, the sums of four products in one instruction and in i32.

use std::arch::x86_64::*;
use std::ops::Range;

use super::k_avx2::{
    float_scale, float_zero, fma, fnma, four, high, lift, load, low, pairs, sub32, two, widened as scales, write, zero,
};
use super::{ask, fetch_part};
use crate::acts::ActSuperBlock;
use crate::k_kernels::{TOKENS, k_kernels, within_group};
use crate::k_matrix::{KBlock, KWeights};
use crate::matmul::Columns;

k_kernels!("avx2,avxvnni,fma,f16c", parts: 2, float: __m256, one: 2, more: 1, panels: false, early: false);

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn mac(sum: __m256i, weights: __m256i, x: __m256i) -> __m256i {
    _mm256_dpbusd_avx_epi32(sum, weights, x)
}

#[inline]
#[target_feature(enable = "avx2")]
fn scale(total: __m256i, sum: __m256i, scales: __m256i) -> __m256i {
    _mm256_add_epi32(total, _mm256_mullo_epi32(sum, scales))
}

#[inline]
#[target_feature(enable = "avx2,avxvnni")]
fn mac_pairs(sum: __m256i, a: __m256i, b: __m256i) -> __m256i {
    _mm256_dpwssd_avx_epi32(sum, a, b)
}
