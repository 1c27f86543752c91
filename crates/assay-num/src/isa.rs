//! Which instruction sets exist and which this CPU has. A [`Kernels`] value is the proof of the check.

use std::fmt;
use std::str::FromStr;

/// Instruction set a kernel is written for, slowest first within an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// The specification itself; runs everywhere.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// As `Avx2`, with the 256-bit VEX form of `vpdpbusd`.
    AvxVnni,
    /// AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// AArch64 with NEON, which all have.
    Neon,
    /// As `Neon`, with products of four signed bytes.
    Dotprod,
    /// As `Dotprod`, with products of unsigned and signed bytes, also of small matrices.
    I8mm,
}

impl Isa {
    /// Every instruction set, slowest first within an architecture.
    pub const ALL: [Isa; 7] = [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Neon, Isa::Dotprod, Isa::I8mm];

    /// The instruction sets this CPU has, slowest first. `Scalar` is always the first.
    pub fn available() -> Vec<Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avx-vnni",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
            Isa::Dotprod => "dotprod",
            Isa::I8mm => "i8mm",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 =
            || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => avx2(),
            Isa::AvxVnni => avx2() && is_x86_feature_detected!("avxvnni"),
            Isa::Avx512 => {
                avx2()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Isa::Neon | Isa::Dotprod | Isa::I8mm => false,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn is_available(self) -> bool {
        use std::arch::is_aarch64_feature_detected;
        let neon = is_aarch64_feature_detected!("neon");
        let dotprod = neon && is_aarch64_feature_detected!("dotprod");
        match self {
            Isa::Scalar => true,
            Isa::Neon => neon,
            Isa::Dotprod => dotprod,
            Isa::I8mm => dotprod && is_aarch64_feature_detected!("i8mm"),
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => false,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_available(self) -> bool {
        self == Isa::Scalar
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of "scalar", "avx2", "avx-vnni", "avx512", "neon", "dotprod", "i8mm".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownIsa(pub String);

impl fmt::Display for UnknownIsa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown instruction set {:?}; known: {}", self.0, Isa::ALL.map(Isa::name).join(", "))
    }
}

impl std::error::Error for UnknownIsa {}

impl FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, UnknownIsa> {
        Self::ALL.into_iter().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa(name.to_owned()))
    }
}

/// The kernels of one instruction set. A value exists only if the CPU has it, which is what makes
/// calling the `#[target_feature]` functions sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    isa: Isa,
}

impl Kernels {
    /// The fastest kernels of this CPU. Cheap: the CPU is asked once per process.
    pub fn detect() -> Kernels {
        let isa = Isa::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Isa::Scalar);
        Kernels { isa }
    }

    /// The kernels of `isa`, or `None` if this CPU lacks it.
    pub fn with_isa(isa: Isa) -> Option<Kernels> {
        isa.is_available().then_some(Kernels { isa })
    }

    /// The instruction set in use.
    #[inline]
    pub fn isa(self) -> Isa {
        self.isa
    }
}

/// `dispatch!(kernels, name(args), definition)`: the function `name` of the instruction set's module, or the
/// expression `definition` where there is none.
macro_rules! dispatch {
    ($kernels:expr, $name:ident($($arg:expr),*), $definition:expr) => {{
        #[cfg(target_arch = "x86_64")]
        #[expect(unsafe_code, reason = "calls kernels whose instruction set was checked")]
        match $kernels.isa() {
            $crate::isa::Isa::Scalar => $definition,
            // SAFETY: a Kernels value exists only if the CPU has its instruction set.
            $crate::isa::Isa::Avx2 => unsafe { $crate::x86::avx2::$name($($arg),*) },
            // SAFETY: as above.
            $crate::isa::Isa::AvxVnni => unsafe { $crate::x86::avx_vnni::$name($($arg),*) },
            // SAFETY: as above.
            $crate::isa::Isa::Avx512 => unsafe { $crate::x86::avx512::$name($($arg),*) },
            _ => unreachable!("kernels of another architecture"),
        }
        #[cfg(target_arch = "aarch64")]
        #[expect(unsafe_code, reason = "calls kernels whose instruction set was checked")]
        match $kernels.isa() {
            $crate::isa::Isa::Scalar => $definition,
            // SAFETY: a Kernels value exists only if the CPU has its instruction set.
            $crate::isa::Isa::Neon => unsafe { $crate::aarch64::neon::$name($($arg),*) },
            // SAFETY: as above.
            $crate::isa::Isa::Dotprod => unsafe { $crate::aarch64::dotprod::$name($($arg),*) },
            // SAFETY: as above.
            $crate::isa::Isa::I8mm => unsafe { $crate::aarch64::i8mm::$name($($arg),*) },
            _ => unreachable!("kernels of another architecture"),
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        $definition
    }};
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_scalar_is_everywhere() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert_eq!("sse9".parse::<Isa>(), Err(UnknownIsa("sse9".into())));
        assert_eq!(Isa::available().first(), Some(&Isa::Scalar));
        assert_eq!(Some(Kernels::detect().isa()), Isa::available().last().copied());
    }
}
