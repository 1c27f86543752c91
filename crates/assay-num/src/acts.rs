//! Activations `[m, k]` in the form a matrix product reads.

use crate::isa::{Kernels, dispatch};
use crate::scalar::{self, Q8_BLOCK};
use crate::team::Team;

/// Form of the activations; a matrix is defined on one of them ([`crate::Matrix::act_kind`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActKind {
    /// As they are.
    F32,
    /// Quantized in blocks of 32 by [`scalar::quantize_block`].
    Q8,
}

/// A reusable buffer of activations, filled by [`Kernels::prepare`]. One fill serves every matrix
/// that reads the same input (q, k, v; gate, up).
#[derive(Debug, Clone)]
pub struct Acts {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) kind: ActKind,
    /// `[m, k]` if `kind` is `F32`.
    pub(crate) floats: Vec<f32>,
    /// `[m, k / 32]` if `kind` is `Q8`.
    pub(crate) blocks: Vec<ActBlock>,
}

/// 32 quantized activations.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct ActBlock {
    pub q: [[i8; 4]; 8],
    pub d: f32,
    /// -128 * sum(q): what the offset of 128 in the stored weights adds, to be taken off again.
    pub offset: i32,
}

impl ActBlock {
    const ZERO: ActBlock = ActBlock { q: [[0; 4]; 8], d: 0.0, offset: 0 };
}

impl Acts {
    /// An empty buffer.
    pub fn new() -> Acts {
        Acts { m: 0, k: 0, kind: ActKind::F32, floats: Vec::new(), blocks: Vec::new() }
    }

    /// Rows: tokens.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Columns.
    pub fn k(&self) -> usize {
        self.k
    }
}

impl Default for Acts {
    fn default() -> Self {
        Self::new()
    }
}

/// Below this many values one thread quantizes faster than a team wakes up.
const TEAM_VALUES: usize = 32 * 1024;

impl Kernels {
    /// Brings `x: [m, k]` into the form `kind` in `acts`, whose buffers grow as needed and are kept.
    ///
    /// Values that are not finite become NaN results of the product, see [`scalar::quantize_block`].
    ///
    /// # Panics
    /// If `x` is not `[m, k]`, or `kind` is `Q8` and k is no multiple of 32.
    pub fn prepare(self, team: &Team, x: &[f32], m: usize, k: usize, kind: ActKind, acts: &mut Acts) {
        assert_eq!(x.len(), m * k, "activations are not [{m}, {k}]");
        (acts.m, acts.k, acts.kind) = (m, k, kind);
        match kind {
            ActKind::F32 => {
                acts.floats.clear();
                acts.floats.extend_from_slice(x);
            }
            ActKind::Q8 => {
                assert!(k.is_multiple_of(Q8_BLOCK), "{k} columns are no multiple of {Q8_BLOCK}");
                let (x, _) = x.as_chunks::<Q8_BLOCK>();
                acts.blocks.resize(x.len(), ActBlock::ZERO);
                let chunk = (TEAM_VALUES / Q8_BLOCK).max(1);
                team.for_each_chunk(&mut acts.blocks, chunk, |i, out| {
                    let from = i * chunk;
                    self.quantize(&x[from..from + out.len()], out);
                });
            }
        }
    }

    fn quantize(self, x: &[[f32; Q8_BLOCK]], out: &mut [ActBlock]) {
        dispatch!(self, quantize(x, out), quantize_scalar(x, out));
    }
}

fn quantize_scalar(x: &[[f32; Q8_BLOCK]], out: &mut [ActBlock]) {
    for (x, out) in x.iter().zip(out) {
        let (q, d) = scalar::quantize_block(x);
        let sum: i32 = q.iter().map(|&q| i32::from(q)).sum();
        let (fours, _) = q.as_chunks::<4>();
        for (out, four) in out.q.iter_mut().zip(fours) {
            *out = *four;
        }
        (out.d, out.offset) = (d, -128 * sum);
    }
}
