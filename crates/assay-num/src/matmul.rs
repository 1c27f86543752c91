//! The matrix product: splits row groups over the team and calls the kernel of the instruction set.
//!
//! The unit of work is a batch of row groups whose weights fit the L2 cache: a batch meets all tokens before the next
//! is loaded, so the weights stream from memory once per call. Whatever the split, an output is
//! computed by one thread in the order of [`crate::scalar`].

use std::marker::PhantomData;
use std::ops::Range;

use crate::acts::{ActBlock, ActSuperBlock, Acts};
use crate::f16;
use crate::float_env;
use crate::isa::{Kernels, dispatch};
use crate::k_matrix::{KWeights, k_groups};
use crate::matrix::{Data, FLOAT_ROWS, FloatWeights, GROUP, Matrix, Q8Weights};
use crate::scalar;
use crate::team::Team;

/// Weights of one batch: half of a small L2 cache.
const BATCH_BYTES: usize = 256 * 1024;

/// Below this product of weights and tokens one thread is done before a second one has started.
const ALONE_BYTES: usize = 64 * 1024;

/// Batches per thread at least, so that a thread that was held up does not keep the others waiting for long.
const BATCHES_PER_THREAD: usize = 8;

impl Kernels {
    /// `out[t, row] = dot(matrix[row], acts[t])`, `out: [m, rows]` row-major. Definitions: [`scalar::q8_dot`],
    /// [`scalar::k_dot`], [`scalar::dot_f16`], [`scalar::dot_bf16`], [`scalar::dot`].
    ///
    /// # Panics
    /// If the shapes or the kind of activations do not match the matrix.
    pub fn matmul(self, team: &Team, matrix: &Matrix, acts: &Acts, out: &mut [f32]) {
        self.matmul_many(team, acts, &mut [(matrix, out)]);
    }

    /// [`Kernels::matmul`] of several matrices with the same activations in one go of the team (q, k, v; gate, up).
    ///
    /// # Panics
    /// As [`Kernels::matmul`], for any of them.
    pub fn matmul_many(self, team: &Team, acts: &Acts, products: &mut [(&Matrix, &mut [f32])]) {
        if acts.m == 0 {
            return;
        }
        let mut n_batches = 0;
        let plans: Vec<Plan<'_>> = products
            .iter_mut()
            .map(|(matrix, out)| {
                let plan = Plan::new(matrix, acts, out, n_batches, team.threads());
                n_batches += plan.n_groups.div_ceil(plan.batch);
                plan
            })
            .collect();
        let run = |i: usize| {
            let plan = &plans[plans.partition_point(|plan| plan.first_batch <= i) - 1];
            let start = (i - plan.first_batch) * plan.batch;
            let groups = start..(start + plan.batch).min(plan.n_groups);
            #[expect(unsafe_code, reason = "disjoint columns of one output")]
            // SAFETY: the batches of a plan are disjoint, the outputs of two plans are, and each index runs once.
            let mut columns = unsafe { plan.out.columns(groups.start * GROUP..groups.end * GROUP) };
            self.matmul_groups(plan.matrix, groups, acts, &mut columns);
        };
        let weight_bytes: usize = plans.iter().map(|plan| plan.matrix.bytes()).sum();
        if weight_bytes.saturating_mul(acts.m) < ALONE_BYTES {
            float_env::assert_default();
            (0..n_batches).for_each(run);
        } else {
            team.run(n_batches, run);
        }
    }

    fn matmul_groups(self, matrix: &Matrix, groups: Range<usize>, acts: &Acts, out: &mut Columns<'_>) {
        // Groups of quantized rows have twice the rows of groups of floats.
        let floats = groups.start * 2..groups.end * 2;
        match &matrix.data {
            Data::F32(w) => self.dot_groups_f32(w, floats.start..floats.end.min(w.n_groups()), &acts.floats, out),
            Data::F16(w) => self.dot_groups_f16(w, floats.start..floats.end.min(w.n_groups()), &acts.floats, out),
            Data::Bf16(w) => self.dot_groups_bf16(w, floats.start..floats.end.min(w.n_groups()), &acts.floats, out),
            Data::Q8(w) => self.q8_groups(w, groups, &acts.blocks, out),
            Data::Q4K(w) => self.k_groups(w, groups, &acts.super_blocks, out),
            Data::Q5K(w) => self.k_groups(w, groups, &acts.super_blocks, out),
            Data::Q6K(w) => self.k_groups(w, groups, &acts.super_blocks, out),
        }
    }

    fn k_groups<const HIGH: usize, const SCALES: usize, const MINS: usize>(
        self,
        w: &KWeights<HIGH, SCALES, MINS>,
        groups: Range<usize>,
        x: &[ActSuperBlock],
        out: &mut Columns<'_>,
    ) {
        dispatch!(self, k_groups(w, groups, x, out), k_groups(w, groups, x, out));
    }

    fn q8_groups(self, w: &Q8Weights, groups: Range<usize>, x: &[ActBlock], out: &mut Columns<'_>) {
        dispatch!(self, q8_groups(w, groups, x, out), q8_groups(w, groups, x, out));
    }

    fn dot_groups_f16(self, w: &FloatWeights<u16>, groups: Range<usize>, x: &[f32], out: &mut Columns<'_>) {
        dispatch!(self, dot_groups_f16(w, groups, x, out), dot_groups(w, groups, x, scalar::dot_f16, out));
    }

    fn dot_groups_bf16(self, w: &FloatWeights<u16>, groups: Range<usize>, x: &[f32], out: &mut Columns<'_>) {
        dispatch!(self, dot_groups_bf16(w, groups, x, out), dot_groups(w, groups, x, scalar::dot_bf16, out));
    }

    fn dot_groups_f32(self, w: &FloatWeights<f32>, groups: Range<usize>, x: &[f32], out: &mut Columns<'_>) {
        dispatch!(self, dot_groups_f32(w, groups, x, out), dot_groups(w, groups, x, scalar::dot, out));
    }
}

/// How one product is cut.
struct Plan<'a> {
    matrix: &'a Matrix,
    out: Output<'a>,
    first_batch: usize,
    n_groups: usize,
    /// Groups per batch.
    batch: usize,
}

impl<'a> Plan<'a> {
    fn new(matrix: &'a Matrix, acts: &Acts, out: &'a mut [f32], first_batch: usize, threads: usize) -> Self {
        assert_eq!(acts.k, matrix.k(), "activations do not fit the matrix");
        assert_eq!(acts.kind, matrix.act_kind(), "activations were prepared for another format");
        assert_eq!(out.len(), acts.m * matrix.rows(), "output is not [m, rows]");
        let n_groups = matrix.rows().div_ceil(GROUP);
        let batch = batch_groups(n_groups, matrix.bytes().div_ceil(n_groups), threads);
        let out = Output { start: out.as_mut_ptr(), m: acts.m, rows: matrix.rows(), slice: PhantomData };
        Plan { matrix, out, first_batch, n_groups, batch }
    }
}

/// Row groups that a kernel takes at once.
pub(crate) const GROUPS: usize = 4;

/// Groups per batch: a multiple of [`GROUPS`], about [`BATCH_BYTES`] and enough batches for all threads.
fn batch_groups(n_groups: usize, group_bytes: usize, threads: usize) -> usize {
    let by_cache = BATCH_BYTES / group_bytes.max(1);
    let by_threads = if threads == 1 { n_groups } else { n_groups / (threads * BATCHES_PER_THREAD) };
    by_cache.min(by_threads).next_multiple_of(GROUPS).max(GROUPS)
}

fn dot_groups<W: Copy + Default>(
    w: &FloatWeights<W>,
    groups: Range<usize>,
    x: &[f32],
    dot: impl Fn(&[W], &[f32]) -> f32,
    out: &mut Columns<'_>,
) {
    for row in groups.start * FLOAT_ROWS..groups.end * FLOAT_ROWS {
        let values: Vec<W> = w.row(row).collect();
        for (t, x) in x.chunks_exact(w.k).enumerate() {
            out.write(t, row, &[dot(&values, x)]);
        }
    }
}

fn q8_groups(w: &Q8Weights, groups: Range<usize>, x: &[ActBlock], out: &mut Columns<'_>) {
    for (t, x) in x.chunks_exact(w.n_blocks).enumerate() {
        for g in groups.clone() {
            out.write(t, g * GROUP, &q8_group(w, g, x));
        }
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
                    // At most 32 * 128 * 127 in all; wrapping leaves the compiler free to use vectors.
                    *isum = isum.wrapping_add(i32::from((w ^ 0x80) as i8).wrapping_mul(i32::from(*x)));
                }
            }
        }
        for ((acc, isum), d) in acc.iter_mut().zip(isum).zip(d) {
            *acc = scalar::fma(isum as f32, f16::to_f32(*d) * x.d, *acc);
        }
    }
    acc
}

/// An output `[m, rows]` that threads write by columns.
struct Output<'a> {
    start: *mut f32,
    m: usize,
    rows: usize,
    slice: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "hands out disjoint columns of a mutable slice")]
// SAFETY: the only access is `columns`, whose contract makes them disjoint.
unsafe impl Sync for Output<'_> {}

impl Output<'_> {
    /// The right to write `rows` of every token.
    ///
    /// # Safety
    /// While the value is alive, no other one may exist for a row in `rows`.
    #[expect(unsafe_code, reason = "the caller promises disjoint rows")]
    unsafe fn columns(&self, rows: Range<usize>) -> Columns<'_> {
        Columns { start: self.start, m: self.m, stride: self.rows, rows, slice: PhantomData }
    }
}

/// The columns of an output that one thread computes.
pub(crate) struct Columns<'a> {
    start: *mut f32,
    m: usize,
    stride: usize,
    rows: Range<usize>,
    slice: PhantomData<&'a mut [f32]>,
}

impl Columns<'_> {
    /// Writes outputs `row..` of token `t`; values for the padding rows of the last group are dropped.
    #[inline]
    #[expect(unsafe_code, reason = "writes within the columns owned by this value")]
    pub fn write(&mut self, t: usize, row: usize, values: &[f32]) {
        assert!(t < self.m && self.rows.start <= row && row + values.len() <= self.rows.end);
        let n = values.len().min(self.stride.saturating_sub(row));
        // SAFETY: t < m and row + n <= stride, so the target is inside [m, rows]; only this value may write these rows,
        // and `&mut self` makes this the only write now. `values` is a live reference to other memory.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(t * self.stride + row), n) };
    }
}
