//! The kernels for x86-64. Each function equals its definition in [`crate::scalar`] bit for bit.
//!
//! All functions are safe `#[target_feature]` functions; [`crate::Kernels`] calls them after the CPU check.
//! Loads and stores go through references to arrays, so the only `unsafe` is inside the few functions that turn
//! such a reference into a vector.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

pub(crate) mod avx2;
pub(crate) mod avx512;
mod k_avx2;
mod k_avx512;
mod k_avx512_half;
mod k_avx_vnni;
mod q8_avx2;
mod q8_avx512;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Bytes between a line of weights and the one asked of memory at the same time. With one token the CPU's own prefetcher
/// is too late: Q4_K with AVX-512 read 25 GB/s without, 43 with this (Zen 5, 38 is what a plain read of memory gives).
const AHEAD: usize = 9472;

/// Asks memory for what lies [`AHEAD`] of `line`.
#[inline(always)]
fn ask<T>(line: &T) {
    fetch(std::ptr::from_ref(line).wrapping_byte_add(AHEAD));
}

/// Asks memory for one of `parts` parts of `value`.
#[inline(always)]
fn fetch_part<T>(value: &T, part: usize, parts: usize) {
    for line in (part..size_of::<T>() / LINE).step_by(parts) {
        fetch(std::ptr::from_ref(value).wrapping_byte_add(line * LINE));
    }
}

/// Asks memory for the line at `address`, which need not be there.
#[inline(always)]
#[expect(unsafe_code, reason = "prefetch")]
fn fetch<T>(address: *const T) {
    // SAFETY: a prefetch of any address never faults and changes no memory; every x86-64 CPU has it.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

/// As AVX2, with `vpdpbusd` for the quantized products.
pub(crate) mod avx_vnni {
    pub(crate) use super::avx2::{
        attend_many, dot_groups_bf16, dot_groups_f16, dot_groups_f32, exp, gelu_erf, gelu_mul, layer_norm, narrow,
        quantize, rms_norm, rope, silu_mul, softcap,
    };
    pub(crate) use super::k_avx_vnni::k_groups;
    pub(crate) use super::k_avx2::quantize_super;
    pub(crate) use super::q8_avx2::q8_groups_vnni as q8_groups;
}
