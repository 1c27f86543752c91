//! Canonical arithmetic: the scalar definitions and the SIMD kernels equal to them.
