//! The matrix product: splits row groups over the team and picks the register block.
//!
//! Whatever the split, an output is computed by one thread in the order of [`crate::scalar`].

use crate::acts::{ActBlock, ActKind, Acts};
use crate::isa::Kernels;
use crate::matrix::{Data, GROUP, Matrix, Q8Weights};
use crate::scalar;
use crate::team::Team;
use crate::f16;

impl Kernels {
    /// `out[t, row] = dot(matrix[row], acts[t])`, `out: [m, rows]` row-major. Definitions: [`scalar::q8_dot`],
    /// [`scalar::dot_f16`], [`scalar::dot`].
    ///
    /// # Panics
    /// If the shapes or the kind of activations do not match the matrix.
    pub fn matmul(self, team: &Team, matrix: &Matrix, acts: &Acts, out: &mut [f32]) {
        assert_eq!(acts.k, matrix.k(), "activations do not fit the matrix");
        assert_eq!(acts.kind, matrix.act_kind(), "activations were prepared for another format");
        assert_eq!(out.len(), acts.m * matrix.rows(), "output is not [m, rows]");
        let rows = matrix.rows();
        team.for_each_chunk(out, rows, |t, out| match &matrix.data {
            Data::F32(w) => {
                let x = &acts.floats[t * acts.k..(t + 1) * acts.k];
                w.chunks_exact(acts.k).zip(out).for_each(|(w, out)| *out = scalar::dot(w, x));
            }
            Data::F16(w) => {
                let x = &acts.floats[t * acts.k..(t + 1) * acts.k];
                w.chunks_exact(acts.k).zip(out).for_each(|(w, out)| *out = scalar::dot_f16(w, x));
            }
            Data::Q8(w) => {
                debug_assert_eq!(acts.kind, ActKind::Q8);
                let x = &acts.blocks[t * w.n_blocks..(t + 1) * w.n_blocks];
                out.chunks_mut(GROUP).enumerate().for_each(|(g, out)| out.copy_from_slice(&q8_group(w, g, x)[..out.len()]));
            }
        });
    }
}

/// 16 outputs of one group: [`scalar::q8_dot`] row by row on the interleaved layout.
fn q8_group(w: &Q8Weights, g: usize, x: &[ActBlock]) -> [f32; GROUP] {
    let (q, d) = w.group(g);
    let mut acc = [0.0; GROUP];
    for ((q, d), x) in q.iter().zip(d).zip(x) {
        let mut isum = [0i32; GROUP];
        for (line, x) in q.0.iter().zip(&x.q) {
            let (rows, _) = line.as_chunks::<4>();
            for (isum, w) in isum.iter_mut().zip(rows) {
                for (w, x) in w.iter().zip(x) {
                    *isum += i32::from((w ^ 0x80) as i8) * i32::from(*x);
                }
            }
        }
        for ((acc, isum), d) in acc.iter_mut().zip(isum).zip(d) {
            *acc = scalar::fma(isum as f32, f16::to_f32(*d) * x.d, *acc);
        }
    }
    acc
}
