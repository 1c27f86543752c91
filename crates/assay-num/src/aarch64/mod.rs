//! The kernels for AArch64. Each function equals its definition in [`crate::scalar`] bit for bit.
//!
//! Built as those for x86-64: safe `#[target_feature]` functions that [`crate::Kernels`] calls after the CPU check, loads
//! and stores through references to arrays. The products of bytes are written in assembly, one instruction a function,
//! because Rust does not offer them yet.

mod k_dotprod;
mod k_neon;
mod load;
pub(crate) mod neon;
mod q8_dotprod;
mod q8_i8mm;
mod q8_kernels;
mod q8_neon;
mod quantize;

/// Asks memory for what comes after `line`: left to the CPU, since nothing was measured that says how far ahead.
#[inline(always)]
fn ask<T>(_line: &T) {}

/// Asks memory for a part of `value`: as [`ask`].
#[inline(always)]
fn fetch_part<T>(_value: &T, _part: usize, _parts: usize) {}

/// As NEON, with `sdot` for the quantized products.
pub(crate) mod dotprod {
    pub(crate) use super::k_dotprod::k_groups;
    pub(crate) use super::neon::{
        attend_many, dot_groups_bf16, dot_groups_f16, dot_groups_f32, exp, gelu_erf, gelu_mul, layer_norm, narrow,
        quantize, quantize_super, rms_norm, rope, silu_mul, softcap,
    };
    pub(crate) use super::q8_dotprod::q8_groups;
}

/// As dotprod, with `usdot` and `usmmla` for the `Q8_0` products. The values of the K formats are small enough to be
/// signed as they are, so that `sdot` is as good there.
pub(crate) mod i8mm {
    pub(crate) use super::dotprod::{
        attend_many, dot_groups_bf16, dot_groups_f16, dot_groups_f32, exp, gelu_erf, gelu_mul, k_groups, layer_norm,
        narrow, quantize, quantize_super, rms_norm, rope, silu_mul, softcap,
    };
    pub(crate) use super::q8_i8mm::q8_groups;
}
