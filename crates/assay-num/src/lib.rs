//! Canonical arithmetic, profile `canonical-1`: the scalar definitions and the SIMD kernels equal to them.
//!
//! Owns: number formats, weight matrices in kernel layout, the matrix product, attention, the
//! element-wise functions, sampling, and the team of threads they run on. [`scalar`] is the
//! specification; every other path returns the same bits for every instruction set, thread count
//! and batch composition.
//! Does not own: files, models, schedulers. It reads no environment and no clock.
//!
//! Invariants: f32, round to nearest even, no flush to zero, no denormals-are-zero. A value that is
//! not finite may have other bits by instruction set if it is NaN, and NaN never turns back into a
//! finite value unnoticed ([`check_finite`] after each layer or on the logits finds it). Infinity
//! can, as IEEE 754 has it and with the same bits everywhere: the norm of a row whose sum of squares
//! overflows is 0, and so is the weight of a score of minus infinity.
//!
//! `unsafe` appears in five kinds of places: calls into `#[target_feature]` functions after the
//! CPU check that made the [`Kernels`] value, vector loads and stores through references to arrays,
//! single instructions in assembly, the disjoint writes of a [`Team`], and the reading of packed
//! bytes, which a file may hold, as blocks of weights.

#![warn(missing_docs)]

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod acts;
mod adjust;
mod attend;
mod checksum;
mod elementwise;
pub mod f16;
mod float_env;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod float_kernels;
mod isa;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod k_kernels;
mod k_matrix;
mod k_pack;
mod logprob;
mod matmul;
mod matrix;
mod memory;
mod pack;
mod rope;
pub mod sample;
pub mod scalar;
mod storage;
mod team;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use acts::{ActKind, Acts};
pub use adjust::{Adjustments, Penalties};
pub use attend::{AttendScratch, KV_CHUNK, KvChunk, Scoring};
pub use checksum::checksum;
pub use isa::{Isa, Kernels, UnknownIsa};
pub use logprob::{Logprobs, logprobs};
pub use matrix::{Format, Matrix, MatrixError};
pub use memory::read_memory;
pub use pack::{InMemory, PackedStore, PackedStoreError, Packing, Section, SourceRows, layout_id};
pub use rope::{RopeStyle, RopeTable, RopeTableError};
pub use sample::{NonFinite, check_finite};
pub use storage::{ALIGN, AlignedBytes, Owner};
pub use team::Team;
