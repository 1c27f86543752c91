//! Rotary position embedding: tables of cosines and sines made once in f64.
//!
//! The tables use `libm`, whose f64 functions are the same Rust code on every platform, so the bits
//! of a table follow from its parameters alone. The rotation itself is [`crate::scalar::rope`].

use std::fmt;

/// Which dimensions form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// (2i, 2i + 1): GGUF files of architecture "llama".
    Interleaved,
    /// (i, i + rope_dims / 2): the "NeoX" order, GGUF files of architecture "qwen2".
    Halves,
}

/// Cosines and sines for positions `0..n_positions`, each `[n_positions, rope_dims / 2]`.
#[derive(Debug, Clone)]
pub struct RopeTable {
    n_positions: usize,
    rope_dims: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

/// Parameters no table can be made from.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeTableError {
    /// `rope_dims` is 0 or odd, or the table would exceed 2^26 angles (512 MiB).
    Shape {
        /// Positions asked for.
        n_positions: usize,
        /// Rotated dimensions asked for.
        rope_dims: usize,
    },
    /// The base is not a finite number above 0.
    ThetaBase(f64),
    /// The number of frequency factors is not `rope_dims / 2`, or one is not a finite number above 0.
    Factors {
        /// Index of the bad factor, or the number of factors given.
        at: usize,
    },
}

impl fmt::Display for RopeTableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { n_positions, rope_dims } => {
                write!(f, "no rope table of {n_positions} positions and {rope_dims} dimensions")
            }
            Self::ThetaBase(base) => write!(f, "rope base {base} is not a finite number above 0"),
            Self::Factors { at } => {
                write!(f, "rope frequency factors do not match the dimensions or are not finite and above 0 (at {at})")
            }
        }
    }
}

impl std::error::Error for RopeTableError {}

impl RopeTable {
    /// Makes the table; all arithmetic in f64, each result rounded once to f32.
    ///
    /// Order: `freq_i = pow(theta_base, -(2i) / rope_dims)`, divided by `freq_factors[i]` (f32 widened) if given;
    /// `angle = pos * freq_i`; `cos(angle)`, `sin(angle)`.
    pub fn new(
        n_positions: usize,
        rope_dims: usize,
        theta_base: f64,
        freq_factors: Option<&[f32]>,
    ) -> Result<RopeTable, RopeTableError> {
        let half = rope_dims / 2;
        let n_angles = n_positions.checked_mul(half).filter(|&n| n <= 1 << 26);
        let Some(n_angles) = n_angles.filter(|_| half > 0 && rope_dims.is_multiple_of(2)) else {
            return Err(RopeTableError::Shape { n_positions, rope_dims });
        };
        if !theta_base.is_finite() || theta_base <= 0.0 {
            return Err(RopeTableError::ThetaBase(theta_base));
        }
        let freqs = frequencies(half, theta_base, freq_factors)?;
        let (mut cos, mut sin) = (Vec::with_capacity(n_angles), Vec::with_capacity(n_angles));
        for pos in 0..n_positions {
            for freq in &freqs {
                let angle = pos as f64 * freq;
                cos.push(libm::cos(angle) as f32);
                sin.push(libm::sin(angle) as f32);
            }
        }
        Ok(RopeTable { n_positions, rope_dims, cos, sin })
    }

    /// Positions in the table.
    pub fn n_positions(&self) -> usize {
        self.n_positions
    }

    /// Rotated dimensions of a head.
    pub fn rope_dims(&self) -> usize {
        self.rope_dims
    }

    /// Cosines and sines of one position, `[rope_dims / 2]` each.
    ///
    /// # Panics
    /// If `pos` is not below `n_positions`.
    #[inline]
    pub fn at(&self, pos: usize) -> (&[f32], &[f32]) {
        let half = self.rope_dims / 2;
        let range = pos * half..(pos + 1) * half;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// The bytes whose hash stands for the table in a manifest, all little-endian: `n_positions` and
    /// `rope_dims` as u64, the cosines, the sines (f32, row-major).
    pub fn hash_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(16 + 8 * self.cos.len());
        bytes.extend_from_slice(&(self.n_positions as u64).to_le_bytes());
        bytes.extend_from_slice(&(self.rope_dims as u64).to_le_bytes());
        for v in self.cos.iter().chain(&self.sin) {
            bytes.extend_from_slice(&v.to_le_bytes());
        }
        bytes
    }
}

fn frequencies(half: usize, theta_base: f64, factors: Option<&[f32]>) -> Result<Vec<f64>, RopeTableError> {
    if let Some(factors) = factors {
        if factors.len() != half {
            return Err(RopeTableError::Factors { at: factors.len() });
        }
        if let Some(at) = factors.iter().position(|f| !f.is_finite() || *f <= 0.0) {
            return Err(RopeTableError::Factors { at });
        }
    }
    let rope_dims = (2 * half) as f64;
    Ok((0..half)
        .map(|i| {
            let freq = libm::pow(theta_base, -((2 * i) as f64) / rope_dims);
            factors.map_or(freq, |factors| freq / f64::from(factors[i]))
        })
        .collect())
}
