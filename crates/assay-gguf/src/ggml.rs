//! The tensor formats of ggml: their numbers in a file, their names and the size of a block. Not how they decode.

use std::fmt;

/// Number of a tensor format as GGUF stores it. Any number is representable; one that has no known block size makes
/// the tensor unusable, not the file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GgmlType(pub u32);

impl GgmlType {
    /// 32-bit floats.
    pub const F32: Self = Self(0);
    /// 16-bit floats.
    pub const F16: Self = Self(1);
    /// 32 values of 4 bits with one f16 scale.
    pub const Q4_0: Self = Self(2);
    /// 32 values as `i8` with one f16 scale.
    pub const Q8_0: Self = Self(8);
    /// The upper halves of 32-bit floats.
    pub const BF16: Self = Self(30);
    /// Super-blocks of 256 values: 4 bits each, and a scale and a minimum of 6 bits for each 32.
    pub const Q4_K: Self = Self(12);
    /// As Q4_K with 5 bits.
    pub const Q5_K: Self = Self(13);
    /// Super-blocks of 256 values: 6 bits each, and a scale of 8 bits for each 16.
    pub const Q6_K: Self = Self(14);

    /// Name as ggml prints it, or `None` for a number this release does not know.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        self.layout().map(|l| l.name)
    }

    /// Values in a block, or `None` for an unknown format.
    #[must_use]
    pub fn block_len(self) -> Option<u64> {
        self.layout().map(|l| l.block_len)
    }

    /// Bytes of a block, or `None` for an unknown format.
    #[must_use]
    pub fn block_bytes(self) -> Option<u64> {
        self.layout().map(|l| l.block_bytes)
    }

    fn layout(self) -> Option<&'static Layout> {
        LAYOUTS.iter().find(|l| l.number == self.0)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "unknown type {}", self.0),
        }
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct Layout {
    number: u32,
    name: &'static str,
    block_len: u64,
    block_bytes: u64,
}

const fn layout(number: u32, name: &'static str, block_len: u64, block_bytes: u64) -> Layout {
    Layout { number, name, block_len, block_bytes }
}

/// Sizes from the block structures of ggml (`ggml-common.h`); numbers from `enum ggml_type`.
const LAYOUTS: &[Layout] = &[
    layout(0, "F32", 1, 4),
    layout(1, "F16", 1, 2),
    layout(2, "Q4_0", 32, 18),
    layout(3, "Q4_1", 32, 20),
    layout(6, "Q5_0", 32, 22),
    layout(7, "Q5_1", 32, 24),
    layout(8, "Q8_0", 32, 34),
    layout(9, "Q8_1", 32, 36),
    layout(10, "Q2_K", 256, 84),
    layout(11, "Q3_K", 256, 110),
    layout(12, "Q4_K", 256, 144),
    layout(13, "Q5_K", 256, 176),
    layout(14, "Q6_K", 256, 210),
    layout(15, "Q8_K", 256, 292),
    layout(16, "IQ2_XXS", 256, 66),
    layout(17, "IQ2_XS", 256, 74),
    layout(18, "IQ3_XXS", 256, 98),
    layout(19, "IQ1_S", 256, 50),
    layout(20, "IQ4_NL", 32, 18),
    layout(21, "IQ3_S", 256, 110),
    layout(22, "IQ2_S", 256, 82),
    layout(23, "IQ4_XS", 256, 136),
    layout(24, "I8", 1, 1),
    layout(25, "I16", 1, 2),
    layout(26, "I32", 1, 4),
    layout(27, "I64", 1, 8),
    layout(28, "F64", 1, 8),
    layout(29, "IQ1_M", 256, 56),
    layout(30, "BF16", 1, 2),
    layout(34, "TQ1_0", 256, 54),
    layout(35, "TQ2_0", 256, 66),
    layout(39, "MXFP4", 32, 17),
];
