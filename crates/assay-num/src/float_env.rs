//! Checks that the calling thread computes with the default floating point environment.
//!
//! A library loaded by the process can leave flush-to-zero or another rounding mode behind (a C
//! library built with -ffast-math does so at load time, per thread). Results would then differ from
//! every other machine, so nothing is computed in such a thread.

use std::hint::black_box;

/// What is wrong with the thread's floating point environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FloatEnv {
    Default,
    Rounding,
    FlushToZero,
}

/// Looks at results instead of at a control register: the same code serves every architecture.
pub(crate) fn float_env() -> FloatEnv {
    // Half an ulp of 1 is 2^-24; 1 + 2^-24 is a tie (stays 1), 1 + 3 * 2^-24 a tie (goes to the even 1 + 2^-22).
    let tie = black_box(f32::from_bits(0x3380_0000));
    let one = black_box(1.0f32);
    let rne = one + tie == 1.0
        && one + tie * 3.0 == f32::from_bits(0x3f80_0002)
        && -one - tie * 3.0 == -f32::from_bits(0x3f80_0002);
    if !rne {
        return FloatEnv::Rounding;
    }
    let smallest = black_box(f32::from_bits(1));
    let makes_subnormals = black_box(f32::MIN_POSITIVE) * 0.5 == f32::from_bits(0x0040_0000);
    if !makes_subnormals || smallest * black_box(16_777_216.0) == 0.0 {
        return FloatEnv::FlushToZero;
    }
    FloatEnv::Default
}

/// # Panics
/// If the calling thread rounds differently or flushes subnormals: continuing would produce results
/// that no other machine reproduces.
pub(crate) fn assert_default() {
    match float_env() {
        FloatEnv::Default => {}
        FloatEnv::Rounding => panic!("this thread does not round to nearest even; canonical arithmetic is impossible"),
        FloatEnv::FlushToZero => {
            panic!("this thread flushes subnormal numbers to zero; canonical arithmetic is impossible")
        }
    }
}

#[cfg(all(test, any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests {
    use std::arch::asm;

    use super::*;

    /// What `float_env` says while the control register has `value`; the register is restored.
    #[cfg(target_arch = "x86_64")]
    #[expect(unsafe_code, reason = "sets the floating point control register")]
    fn float_env_with(value: u32) -> FloatEnv {
        let mut before = 0u32;
        // SAFETY: stores 4 bytes to `before`, loads 4 bytes from `value`; all exceptions stay masked.
        unsafe { asm!("stmxcsr [{}]", "ldmxcsr [{}]", in(reg) &raw mut before, in(reg) &raw const value) };
        let found = black_box(float_env());
        // SAFETY: restores what was stored above.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const before) };
        found
    }

    /// What `float_env` says while the control register has `value`; the register is restored.
    #[cfg(target_arch = "aarch64")]
    #[expect(unsafe_code, reason = "sets the floating point control register")]
    fn float_env_with(value: u64) -> FloatEnv {
        let before: u64;
        // SAFETY: reads a register and writes it; all exceptions stay masked.
        unsafe { asm!("mrs {}, fpcr", "msr fpcr, {}", out(reg) before, in(reg) value) };
        let found = black_box(float_env());
        // SAFETY: restores what was read above.
        unsafe { asm!("msr fpcr, {}", in(reg) before) };
        found
    }

    #[cfg(target_arch = "x86_64")]
    const DEFAULT: u32 = 0x1f80;
    /// Bits of the other rounding modes, and those that flush subnormals.
    #[cfg(target_arch = "x86_64")]
    const OTHERS: ([u32; 3], &[u32]) = ([0x2000, 0x4000, 0x6000], &[0x8000, 0x0040]);

    #[cfg(target_arch = "aarch64")]
    const DEFAULT: u64 = 0;
    #[cfg(target_arch = "aarch64")]
    const OTHERS: ([u64; 3], &[u64]) = ([1 << 22, 2 << 22, 3 << 22], &[1 << 24]);

    #[test]
    fn other_environments_are_noticed() {
        assert_eq!(float_env_with(DEFAULT), FloatEnv::Default);
        for bits in OTHERS.0 {
            assert_eq!(float_env_with(DEFAULT | bits), FloatEnv::Rounding, "{bits:#x}");
        }
        for bits in OTHERS.1 {
            assert_eq!(float_env_with(DEFAULT | bits), FloatEnv::FlushToZero, "{bits:#x}");
        }
        assert_eq!(float_env_with(DEFAULT), FloatEnv::Default);
    }
}
