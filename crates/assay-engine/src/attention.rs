//! Attention of a step: keys and values into memory, queries against them.
//!
//! Owns how (row, head) pairs become tasks for the team. What one query computes is `assay_num::scalar::attend`.
//! Queries that read the same keys (the heads of a group, neighbouring tokens of a prompt) share a task, because a
//! task reads its keys once.

use std::ops::Range;

use assay_num::{AttendScratch, KV_CHUNK, Kernels, KvChunk};

use crate::compute::Compute;
use crate::forward::{Row, Slice};
use assay_graph::ModelConfig;

/// Queries a task aims at: enough to pay for reading the keys, few enough to spread a prompt over the team.
const TASK_QUERIES: usize = 16;

/// Pieces per thread of what is stored.
const STORE_PIECES: usize = 4;

/// Largest magnitude below which a value rounds to a finite f16.
const F16_LIMIT: f32 = 65_520.0;

/// Buffers of [`attend`].
#[derive(Debug, Default)]
pub(crate) struct AttentionBuffers {
    /// Outputs in task order: per slice `[kv head][row][head of the group][head_dim]`.
    by_task: Vec<f32>,
    /// One per thread.
    scratch: Vec<TaskScratch>,
}

#[derive(Debug, Default)]
struct TaskScratch {
    attend: AttendScratch,
    /// The task's queries, `[rows][head of the group][head_dim]`.
    q: Vec<f32>,
    n_keys: Vec<usize>,
}

/// What a layer's attention reads. Shared by the threads of a team.
pub(crate) struct Inputs<'a> {
    pub kernels: Kernels,
    pub config: &'a ModelConfig,
    pub layer: usize,
    pub rows: &'a [Row],
    /// `[rows, q_width + 2 kv_width]`: q, k and v of each row.
    pub qkv: &'a [f32],
}

/// The queries of neighbouring rows for the heads of one group.
struct Task<'a> {
    slice: usize,
    kv_head: usize,
    /// Rows of the step.
    rows: Range<usize>,
    out: &'a mut [f32],
}

/// Keys and values of neighbouring rows for one head, to be written.
struct Stored<'a> {
    head: usize,
    /// Rows of the step.
    rows: Range<usize>,
    /// The head's share of the block that has the positions of all of them.
    chunk: &'a mut [u16],
}

/// Writes k and v of every row to the memory of its sequence. Rows whose k or v would not be finite in f16 are marked.
pub(crate) fn store(compute: &Compute, inputs: &Inputs<'_>, slices: &mut [Slice<'_>]) {
    let Inputs { config, layer, rows, .. } = *inputs;
    let head_len = 2 * KV_CHUNK * config.head_dim;
    let mut tasks = Vec::with_capacity(slices.len() * config.n_kv_heads);
    let mut first = 0;
    for slice in slices {
        let (start, end) = (slice.kv.len(), slice.kv.len() + slice.tokens.len());
        let blocks = start / KV_CHUNK..end.div_ceil(KV_CHUNK);
        for (block, part) in blocks.clone().zip(slice.kv.layers_mut(blocks, layer)) {
            let row = |position: usize| first + position.clamp(start, end) - start;
            let rows = row(block * KV_CHUNK)..row((block + 1) * KV_CHUNK);
            let heads = part.chunks_mut(head_len).enumerate();
            tasks.extend(heads.map(|(head, chunk)| Stored { head, rows: rows.clone(), chunk }));
        }
        first += end - start;
    }
    // Few large pieces: a task may be a single row.
    let at_once = tasks.len().div_ceil(compute.team.threads() * STORE_PIECES);
    compute.chunks(rows.len() * config.kv_width() * 8, &mut tasks, at_once, |_, tasks| {
        tasks.iter_mut().for_each(|task| inputs.store(task));
    });
}

/// Attention of every row over the keys up to its position, into `attended: [rows, q_width]`. Keys and values of the
/// step's own rows are already stored.
pub(crate) fn attend(
    compute: &Compute,
    inputs: &Inputs<'_>,
    slices: &[Slice<'_>],
    buffers: &mut AttentionBuffers,
    attended: &mut [f32],
) {
    let Inputs { config, layer, rows, .. } = *inputs;
    let AttentionBuffers { by_task, scratch } = buffers;
    scratch.resize_with(compute.team.threads().max(scratch.len()), TaskScratch::default);
    // With one row per slice the two orders are the same.
    let in_order = slices.iter().all(|slice| slice.tokens.len() == 1);
    if !in_order {
        by_task.resize(attended.len(), 0.0);
    }
    let out: &mut [f32] = if in_order { attended } else { by_task };
    let chunks = Chunks::new(config, layer, slices);
    let mut tasks = tasks(config, slices, out);
    let keys: usize = rows.iter().map(|row| row.position + 1).sum();
    if compute.is_small(keys * config.q_width() * 2) {
        tasks.iter_mut().for_each(|task| inputs.run(&chunks, &mut scratch[0], task));
    } else {
        compute.team.for_each_chunk_with(scratch, &mut tasks, 1, |scratch, _, tasks| {
            tasks.iter_mut().for_each(|task| inputs.run(&chunks, scratch, task));
        });
    }
    if !in_order {
        to_row_order(compute, inputs, slices, by_task, attended);
    }
}

impl Inputs<'_> {
    fn store(&self, task: &mut Stored<'_>) {
        let Inputs { kernels, config, qkv, .. } = *self;
        let (q, kv, head_dim) = (config.q_width(), config.kv_width(), config.head_dim);
        let (chunk_k, chunk_v) = task.chunk.split_at_mut(KV_CHUNK * head_dim);
        for i in task.rows.clone() {
            let row = &self.rows[i];
            let (k, v) = qkv[i * (q + 2 * kv) + q..][..2 * kv].split_at(kv);
            let (k, v) = (&k[task.head * head_dim..][..head_dim], &v[task.head * head_dim..][..head_dim]);
            kernels.store_kv(chunk_k, chunk_v, row.position % KV_CHUNK, k, v);
            let fits = k.iter().chain(v).fold(true, |fits, x| fits & (x.abs() < F16_LIMIT));
            row.check_that(fits);
        }
    }

    fn run(&self, chunks: &Chunks<'_>, scratch: &mut TaskScratch, task: &mut Task<'_>) {
        let Inputs { kernels, config, layer, rows, qkv } = *self;
        let width = config.q_width() + 2 * config.kv_width();
        let group_width = config.q_width() / config.n_kv_heads;
        let TaskScratch { attend, q, n_keys } = scratch;
        q.clear();
        n_keys.clear();
        for row in task.rows.clone() {
            q.extend_from_slice(&qkv[row * width + task.kv_head * group_width..][..group_width]);
            n_keys.resize(n_keys.len() + group_width / config.head_dim, rows[row].position + 1);
        }
        let chunks = chunks.of(task.slice, task.kv_head, rows[task.rows.end - 1].position + 1);
        kernels.attend_many(q, n_keys, chunks, config.scoring(layer), attend, task.out);
        for (row, out) in rows[task.rows.clone()].iter().zip(task.out.chunks_exact(group_width)) {
            row.check(out);
        }
    }
}

/// Cuts `out` (in task order) into tasks.
fn tasks<'a>(config: &ModelConfig, slices: &[Slice<'_>], out: &'a mut [f32]) -> Vec<Task<'a>> {
    let group = config.n_heads / config.n_kv_heads;
    let rows_per_task = (TASK_QUERIES / group).max(1);
    let mut tasks = Vec::new();
    let mut rest = out;
    let mut first = 0;
    for (slice, Slice { tokens, .. }) in slices.iter().enumerate() {
        let end = first + tokens.len();
        for kv_head in 0..config.n_kv_heads {
            for start in (first..end).step_by(rows_per_task) {
                let rows = start..end.min(start + rows_per_task);
                let (out, after) = std::mem::take(&mut rest).split_at_mut(rows.len() * group * config.head_dim);
                rest = after;
                tasks.push(Task { slice, kv_head, rows, out });
            }
        }
        first = end;
    }
    tasks
}

/// `[kv head][row][group width]` of each slice to `[row][kv head][group width]`.
fn to_row_order(compute: &Compute, inputs: &Inputs<'_>, slices: &[Slice<'_>], by_task: &[f32], attended: &mut [f32]) {
    let Inputs { config, rows, .. } = *inputs;
    let width = config.q_width();
    let group_width = width / config.n_kv_heads;
    let lengths: Vec<usize> = slices.iter().map(|slice| slice.tokens.len()).collect();
    compute.chunks(attended.len(), attended, width, |row, out| {
        let Row { slice, index, .. } = rows[row];
        let n = lengths[slice];
        let by_task = &by_task[(row - index) * width..][..n * width];
        for (kv_head, out) in out.chunks_exact_mut(group_width).enumerate() {
            out.copy_from_slice(&by_task[(kv_head * n + index) * group_width..][..group_width]);
        }
    });
}

/// The chunks of each (slice, kv head) of a layer, so that tasks only look them up.
struct Chunks<'a> {
    n_kv_heads: usize,
    chunks: Vec<KvChunk<'a>>,
    first: Vec<usize>,
}

impl<'a> Chunks<'a> {
    fn new(config: &ModelConfig, layer: usize, slices: &'a [Slice<'_>]) -> Chunks<'a> {
        let mut chunks = Vec::new();
        let mut first = Vec::with_capacity(slices.len() * config.n_kv_heads);
        for slice in slices {
            for kv_head in 0..config.n_kv_heads {
                first.push(chunks.len());
                slice.kv.chunks(layer, kv_head, slice.kv.len() + slice.tokens.len(), &mut chunks);
            }
        }
        Chunks { n_kv_heads: config.n_kv_heads, chunks, first }
    }

    fn of(&self, slice: usize, kv_head: usize, n_keys: usize) -> &[KvChunk<'a>] {
        &self.chunks[self.first[slice * self.n_kv_heads + kv_head]..][..n_keys.div_ceil(KV_CHUNK)]
    }
}
