//! Inputs for the kernel tests: one seeded generator, and weights as GGUF bytes.

#![allow(dead_code, reason = "each test binary uses a part")]

use assay_num::{Isa, Kernels, f16};

/// xorshift64*.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| self.float() * scale).collect()
    }

    /// Finite values of every size, subnormals and both zeros included.
    pub fn wild_floats(&mut self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| match self.below(8) {
                0 => 0.0,
                1 => -0.0,
                2 => f32::from_bits(self.next() as u32 & 0x807f_ffff),
                3 => self.float() * 1e4,
                4 => self.float() * 1e-20,
                _ => self.float(),
            })
            .collect()
    }
}

/// GGUF `Q8_0` rows in both forms: bytes for the matrix, blocks for the definition.
pub struct Q8Rows {
    pub bytes: Vec<u8>,
    pub blocks: Vec<([i8; 32], u16)>,
}

/// `wild`: every i8 including -128, every finite f16 scale of either sign, subnormal and zero scales.
pub fn q8_rows(rng: &mut Rng, rows: usize, k: usize, wild: bool) -> Q8Rows {
    let (mut bytes, mut blocks) = (Vec::new(), Vec::new());
    for _ in 0..rows * k / 32 {
        let d = scale(rng, wild);
        let q: [i8; 32] = match (wild, rng.below(5)) {
            (true, 0) => [-128; 32],
            (true, 1) => [127; 32],
            (true, 2) => [0; 32],
            (true, _) => std::array::from_fn(|_| rng.next() as i8),
            (false, _) => std::array::from_fn(|_| (rng.next() as i8).max(-127)),
        };
        bytes.extend_from_slice(&d.to_le_bytes());
        bytes.extend(q.map(|q| q as u8));
        blocks.push((q, d));
    }
    Q8Rows { bytes, blocks }
}

/// A finite f16 scale; `wild`: of any size and sign, subnormal and zero included.
pub fn scale(rng: &mut Rng, wild: bool) -> u16 {
    match (wild, rng.below(6)) {
        (false, _) => f16::from_f32_rne(0.002 + 0.01 * rng.float().abs()),
        (true, 0) => 0,
        (true, 1) => rng.next() as u16 & 0x83ff,
        (true, 2) => 0x7bff,
        (true, _) => rng.next() as u16 & 0xbfff,
    }
}

/// Every instruction set of this CPU.
pub fn kernels() -> Vec<Kernels> {
    Isa::available().into_iter().map(|isa| Kernels::with_isa(isa).expect("available")).collect()
}

/// Equality of bits, all NaNs being one: their payloads are not canonical.
pub fn assert_bits(expect: &[f32], got: &[f32], what: &str) {
    assert_eq!(expect.len(), got.len(), "{what}");
    for (i, (e, g)) in expect.iter().zip(got).enumerate() {
        let same = e.to_bits() == g.to_bits() || (e.is_nan() && g.is_nan());
        assert!(same, "{what}: [{i}] is {g:e} ({:#x}), the definition says {e:e} ({:#x})", g.to_bits(), e.to_bits());
    }
}

/// FNV-1a over the bits: changes when any bit changes.
pub fn hash(values: &[f32]) -> u64 {
    hash_bytes(values.iter().flat_map(|v| v.to_le_bytes()))
}

pub fn hash_bytes(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
