//! Activations `[m, k]` in the form a matrix product reads.

use crate::isa::{Kernels, dispatch};
use crate::scalar::{self, Q8_BLOCK, SUB_BLOCK, SUB_BLOCKS, SUPER_BLOCK};
use crate::team::Team;

/// Form of the activations; a matrix is defined on one of them ([`crate::Matrix::act_kind`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActKind {
    /// As they are.
    F32,
    /// Quantized in blocks of 32 by [`scalar::quantize_block`].
    Q8,
    /// Quantized in blocks of 256 by [`scalar::quantize_super_block`].
    Q8K,
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
    /// `[m, k / 256]` if `kind` is `Q8K`.
    pub(crate) super_blocks: Vec<ActSuperBlock>,
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

/// 256 quantized activations.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct ActSuperBlock {
    pub q: [[i8; 4]; SUPER_BLOCK / 4],
    /// Sums of q over 16 columns: at most 16 * 127.
    pub sums: [i16; SUB_BLOCKS],
    /// Sums of q over 32 columns.
    pub double_sums: [i16; SUB_BLOCKS / 2],
    pub d: f32,
}

impl ActSuperBlock {
    pub(crate) const ZERO: ActSuperBlock =
        ActSuperBlock { q: [[0; 4]; SUPER_BLOCK / 4], sums: [0; SUB_BLOCKS], double_sums: [0; SUB_BLOCKS / 2], d: 0.0 };

    /// Fills `double_sums` from `sums`.
    #[inline]
    pub(crate) fn add_sums(&mut self) {
        for (double, [a, b]) in self.double_sums.iter_mut().zip(self.sums.as_chunks().0) {
            *double = a + b;
        }
    }
}

impl Acts {
    /// An empty buffer.
    pub fn new() -> Acts {
        Acts { m: 0, k: 0, kind: ActKind::F32, floats: Vec::new(), blocks: Vec::new(), super_blocks: Vec::new() }
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
    /// Values that are not finite become NaN results of the product, see [`scalar::quantize_block`] and
    /// [`scalar::quantize_super_block`].
    ///
    /// # Panics
    /// If `x` is not `[m, k]`, or k is no multiple of the block of `kind`: 32 for `Q8`, 256 for `Q8K`.
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
            ActKind::Q8K => {
                assert!(k.is_multiple_of(SUPER_BLOCK), "{k} columns are no multiple of {SUPER_BLOCK}");
                let (x, _) = x.as_chunks::<SUPER_BLOCK>();
                acts.super_blocks.resize(x.len(), ActSuperBlock::ZERO);
                let chunk = TEAM_VALUES / SUPER_BLOCK;
                team.for_each_chunk(&mut acts.super_blocks, chunk, |i, out| {
                    let from = i * chunk;
                    self.quantize_super(&x[from..from + out.len()], out);
                });
            }
        }
    }

    fn quantize_super(self, x: &[[f32; SUPER_BLOCK]], out: &mut [ActSuperBlock]) {
        dispatch!(self, quantize_super(x, out), quantize_super_scalar(x, out));
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

fn quantize_super_scalar(x: &[[f32; SUPER_BLOCK]], out: &mut [ActSuperBlock]) {
    for (x, out) in x.iter().zip(out) {
        let (q, d) = scalar::quantize_super_block(x);
        out.q.as_flattened_mut().copy_from_slice(&q);
        out.d = d;
        for (sum, q) in out.sums.iter_mut().zip(q.as_chunks::<SUB_BLOCK>().0) {
            *sum = q.iter().map(|&q| i16::from(q)).sum();
        }
        out.add_sums();
    }
}
