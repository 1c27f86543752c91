//! Attention as a trace has it: every score, weight and partial sum that `assay_num::scalar::attend` defines and the
//! kernels keep to themselves. And the keys and values that it reads of earlier positions.

use assay_num::{f16, scalar};

use crate::judge::larger;
use crate::op::{CHUNK, Keys, Kind, Op};
use crate::operands::first_of_lane;
use crate::position::State;

/// Keys and values of all positions, rounded to binary16 as the operations NARROW give them.
#[derive(Debug)]
pub(crate) struct Kv {
    /// By operation: `[positions, cols]` where later positions read it.
    rows: Vec<Vec<u16>>,
    cols: Vec<usize>,
}

impl Kv {
    /// Room for `positions` of the operations that attention reads.
    pub fn new(ops: &[Op], positions: usize) -> Kv {
        let mut cols = vec![0; ops.len()];
        for op in ops.iter().filter(|op| matches!(op.kind, Kind::Score | Kind::ChunkOut)) {
            cols[usize::from(op.b)] = ops[usize::from(op.b)].cols as usize;
        }
        Kv { rows: cols.iter().map(|cols| vec![0; cols * positions]).collect(), cols }
    }

    /// Whether later positions read an operation.
    pub fn has(&self, op: usize) -> bool {
        self.cols[op] != 0
    }

    pub fn put(&mut self, op: usize, position: usize, numbers: &[f32]) {
        let cols = self.cols[op];
        let row = &mut self.rows[op][position * cols..][..cols];
        row.iter_mut().zip(numbers).for_each(|(bits, number)| *bits = f16::from_f32_rne(*number));
    }

    /// What an operation gave at a position.
    pub fn row(&self, op: usize, position: usize) -> &[u16] {
        let cols = self.cols[op];
        &self.rows[op][position * cols..][..cols]
    }
}

/// The numbers of an operation of attention.
pub(crate) fn attention(op: &Op, state: &State, kv: &Kv) -> Vec<f32> {
    let keys = op.keys_at(state.position.into());
    let a = state.numbers(op.a);
    match op.kind {
        Kind::Score => scores(op, &keys, a, kv),
        Kind::ChunkMax => by_chunk(op, &keys, a, |scores, _, out| {
            out.push(scores.iter().skip(1).fold(scores[0], |so_far, &score| larger(so_far, score)));
        }),
        Kind::Weigh => {
            let largest = state.numbers(op.b).chunks_exact(keys.chunks as usize);
            let rows = a.chunks_exact(keys.keys as usize).zip(largest);
            let weigh = |(scores, largest): (&[f32], &[f32])| -> Vec<f32> {
                let chunk = |i: usize| ((keys.first + i as u64) / CHUNK - keys.chunk) as usize;
                scores.iter().enumerate().map(|(i, score)| scalar::exp(score - largest[chunk(i)])).collect()
            };
            rows.flat_map(weigh).collect()
        }
        Kind::ChunkLanes => by_chunk(op, &keys, a, |weights, low, out| {
            out.extend((0..16).map(|lane| {
                let first = (first_of_lane(lane, low) - low) as usize;
                weights.iter().skip(first).step_by(16).fold(0.0, |sum, weight| sum + weight)
            }));
        }),
        Kind::ChunkOut => chunk_out(op, &keys, a, kv),
        Kind::RunMax => running(&keys, 1, a, |_, so_far, this| larger(so_far, this)),
        Kind::RunSum => {
            let sums: Vec<f32> = a.as_chunks().0.iter().map(scalar::lane_sum).collect();
            let join = joining(state.numbers(op.b), state.numbers(op.c));
            running(&keys, 1, &sums, join)
        }
        Kind::RunOut => {
            let join = joining(state.numbers(op.b), state.numbers(op.c));
            running(&keys, op.cols as usize, a, join)
        }
        _ => {
            let (cols, chunks) = (op.cols as usize, keys.chunks as usize);
            let sums = state.numbers(op.b).chunks_exact(chunks);
            let outs = a.chunks_exact(cols * chunks).zip(sums);
            outs.flat_map(|(outs, sums)| outs[cols * (chunks - 1)..].iter().map(|out| out / sums[chunks - 1])).collect()
        }
    }
}

/// `s = fma(q[d], k[d], s)` over d, then scaled and capped.
fn scores(op: &Op, keys: &Keys, queries: &[f32], kv: &Kv) -> Vec<f32> {
    let cols = op.cols as usize;
    let (scale, cap) = (f32::from_bits(op.x), (op.y != 0).then(|| f32::from_bits(op.y)));
    let mut out = vec![0.0; op.rows as usize * keys.keys as usize];
    let group = op.rows as usize / usize::from(op.heads);
    let mut key = vec![0.0; cols];
    for kv_head in 0..usize::from(op.heads) {
        for j in 0..keys.keys as usize {
            let row = &kv.row(op.b.into(), keys.first as usize + j)[kv_head * cols..][..cols];
            key.iter_mut().zip(row).for_each(|(key, bits)| *key = f16::to_f32(*bits));
            for head in kv_head * group..(kv_head + 1) * group {
                let query = &queries[head * cols..][..cols];
                let score = query.iter().zip(&key).fold(0.0, |s, (q, k)| scalar::fma(*q, *k, s)) * scale;
                out[head * keys.keys as usize + j] = cap.map_or(score, |cap| scalar::softcap(score, cap));
            }
        }
    }
    out
}

/// `o = fma(weight, v, o)` over the positions of each chunk.
fn chunk_out(op: &Op, keys: &Keys, weights: &[f32], kv: &Kv) -> Vec<f32> {
    let (cols, n_keys, chunks) = (op.cols as usize, keys.keys as usize, keys.chunks as usize);
    let mut out = vec![0.0; op.rows as usize * chunks * cols];
    let group = op.rows as usize / usize::from(op.heads);
    let mut value = vec![0.0; cols];
    for kv_head in 0..usize::from(op.heads) {
        for j in 0..n_keys {
            let position = keys.first as usize + j;
            let row = &kv.row(op.b.into(), position)[kv_head * cols..][..cols];
            value.iter_mut().zip(row).for_each(|(value, bits)| *value = f16::to_f32(*bits));
            let chunk = position / CHUNK as usize - keys.chunk as usize;
            for head in kv_head * group..(kv_head + 1) * group {
                let weight = weights[head * n_keys + j];
                let out = &mut out[(head * chunks + chunk) * cols..][..cols];
                out.iter_mut().zip(&value).for_each(|(o, v)| *o = scalar::fma(weight, *v, *o));
            }
        }
    }
    out
}

/// Of each row and chunk of numbers by key: `f(numbers, first position, out)`.
fn by_chunk(op: &Op, keys: &Keys, numbers: &[f32], f: impl Fn(&[f32], u64, &mut Vec<f32>)) -> Vec<f32> {
    let mut out = vec![];
    debug_assert_eq!(numbers.len() as u64, u64::from(op.rows) * keys.keys);
    for row in numbers.chunks_exact(keys.keys as usize) {
        for i in 0..keys.chunks {
            let chunk = keys.chunk_at(i);
            f(&row[(chunk.start - keys.first) as usize..(chunk.end - keys.first) as usize], chunk.start, &mut out);
        }
    }
    out
}

/// Of each row, `width` numbers a chunk: the first as they are, the next joined with what came out before, by
/// `join(chunk of all rows, before, this)`.
fn running(keys: &Keys, width: usize, numbers: &[f32], join: impl Fn(usize, f32, f32) -> f32) -> Vec<f32> {
    let chunks = keys.chunks as usize;
    let mut out = numbers.to_vec();
    for at in (0..numbers.len() / width).filter(|at| at % chunks != 0) {
        for e in at * width..(at + 1) * width {
            out[e] = join(at, out[e - width], out[e]);
        }
    }
    out
}

/// `fma(before, exp(m1 - M), this * exp(m2 - M))`, by the largest of each chunk and up to each chunk.
fn joining<'a>(chunk_max: &'a [f32], run_max: &'a [f32]) -> impl Fn(usize, f32, f32) -> f32 + 'a {
    |at, before, this| {
        let of_before = scalar::exp(run_max[at - 1] - run_max[at]);
        let of_this = scalar::exp(chunk_max[at] - run_max[at]);
        scalar::fma(before, of_before, this * of_this)
    }
}
