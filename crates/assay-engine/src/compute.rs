//! Kernels with the team they run on, and the few compositions of them that a model graph is made of.
//!
//! Owns the decision whether an operation is worth waking the team. It never changes a bit.

use assay_num::{Acts, Kernels, Matrix, Team};

use crate::forward::Row;
use crate::model::Stack;
use assay_graph::{ModelConfig, limits};

/// Below this much work (about one multiply-add each) one thread is done before a second one is awake.
const SMALL_WORK: usize = 1 << 15;

/// Replaces each head of `x: [heads, w.len()]` by its `rms_norm`. A head is at most as wide as the limit.
pub(crate) fn norm_heads(kernels: Kernels, x: &mut [f32], w: &[f32], eps: f32) {
    let mut copy = [0.0; limits::HEAD_DIM as usize];
    let copy = &mut copy[..w.len()];
    for head in x.chunks_exact_mut(w.len()) {
        copy.copy_from_slice(head);
        kernels.rms_norm(copy, w, eps, head);
    }
}

pub(crate) struct Compute {
    pub kernels: Kernels,
    pub team: Team,
}

impl Compute {
    pub fn is_small(&self, work: usize) -> bool {
        work < SMALL_WORK || self.team.threads() == 1
    }

    /// Calls `f(i, chunk)` for each chunk of `out`; on the team unless the work of all of them is small.
    pub fn chunks<T: Send>(&self, work: usize, out: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        if self.is_small(work) {
            out.chunks_mut(len).enumerate().for_each(|(i, chunk)| f(i, chunk));
        } else {
            self.team.for_each_chunk(out, len, f);
        }
    }

    /// `out[n, width] = rms_norm` of each row of `x`; rows that are not finite are marked.
    pub fn norm(&self, x: &[f32], w: &[f32], eps: f32, rows: &[Row], out: &mut [f32]) {
        let (width, kernels) = (w.len(), self.kernels);
        self.chunks(x.len() * 2, out, width, |row, out| {
            kernels.rms_norm(&x[row * width..][..width], w, eps, out);
            rows[row].check(out);
        });
    }

    /// `x += y`, both `[n, width]`.
    pub fn add(&self, x: &mut [f32], y: &[f32], width: usize) {
        let kernels = self.kernels;
        self.chunks(x.len(), x, width, |row, x| kernels.add_assign(x, &y[row * width..][..width]));
    }

    /// `x += y`, or `x += rms_norm(y)` if there are weights for it; `normed` is a buffer.
    pub fn add_normed(
        &self,
        x: &mut [f32],
        y: &[f32],
        norm: Option<&[f32]>,
        config: &ModelConfig,
        rows: &[Row],
        normed: &mut Vec<f32>,
    ) {
        let Some(norm) = norm else { return self.add(x, y, config.width) };
        normed.resize(y.len(), 0.0);
        self.norm(y, norm, config.rms_eps, rows, normed);
        self.add(x, normed, config.width);
    }

    /// `out[n, rows] = x[n, k] * matrix^T`
    pub fn product(&self, acts: &mut Acts, matrix: &Matrix, x: &[f32], out: &mut [f32]) {
        let k = matrix.k();
        self.kernels.prepare(&self.team, x, x.len() / k, k, matrix.act_kind(), acts);
        self.kernels.matmul(&self.team, matrix, acts, out);
    }

    /// As [`Compute::product`] for matrices below each other: row `i` of `out: [n, stack.rows]` is row `i` of each
    /// part's product, one after the other. `part_out` is a buffer.
    pub fn stack(&self, acts: &mut Acts, stack: &Stack, x: &[f32], out: &mut [f32], part_out: &mut Vec<f32>) {
        if let [matrix] = stack.parts.as_slice() {
            return self.product(acts, matrix, x, out);
        }
        let mut column = 0;
        for matrix in &stack.parts {
            let rows = matrix.rows();
            part_out.resize(x.len() / matrix.k() * rows, 0.0);
            self.product(acts, matrix, x, part_out);
            for (part, out) in part_out.chunks_exact(rows).zip(out.chunks_exact_mut(stack.rows)) {
                out[column..column + rows].copy_from_slice(part);
            }
            column += rows;
        }
    }
}
