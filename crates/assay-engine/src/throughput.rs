//! How fast a model runs here: prefill and decode, without queue, sampler or text.
//!
//! Made for comparison with other engines' own benchmarks, which time the same two things. The tokens are arbitrary
//! but fixed, and the logits are hashed, so that a run that computes something else is not taken for a fast one.

use std::time::{Duration, Instant};

use assay_num::read_memory;
use assay_num::sample::SampleScratch;
use assay_types::{Finish, Job, ModelId, Sampling};

use crate::choose::Chooser;
use crate::forward::{LOGIT_ROWS, Runner, Slice};
use crate::kv::{KvPool, KvSeq};
use crate::model::Model;
use crate::replay::{REPLAY_CHUNK, Replay, replay};

/// What to time.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Prompt tokens of each sequence.
    pub n_prompt: usize,
    /// Tokens decoded by each sequence after its prompt.
    pub n_decode: usize,
    /// Sequences at once, at most [`LOGIT_ROWS`].
    pub n_sequences: usize,
    /// Prompt tokens per step, over all sequences.
    pub prefill_chunk: usize,
}

/// One timed repetition.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Time for all prompts.
    pub prefill: Duration,
    /// Time for all decoded tokens.
    pub decode: Duration,
    /// Hash of the logits' bits after the prompts and after each decoded token; equal for equal work.
    pub logits_hash: u64,
}

/// Why a workload cannot run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkloadError {
    /// Longer than the model's context.
    #[error("{positions} positions exceed the model's context of {context}")]
    Context {
        /// Prompt and decoded tokens of a sequence.
        positions: usize,
        /// What the model has.
        context: usize,
    },
    /// Nothing to do, or too many sequences.
    #[error("prompt tokens, sequences and chunk must be at least 1, sequences at most {LOGIT_ROWS}")]
    Empty,
    /// The computation left the finite numbers.
    #[error("the model computed a value that is not finite")]
    NonFinite,
    /// A reply was not found to be exact: this is a bug.
    #[error("the replay of a reply made here found {0}: this is a bug")]
    Replay(String),
}

/// Runs the workload once.
///
/// # Errors
/// See [`WorkloadError`].
pub fn measure(model: &Model, runner: &mut Runner, workload: &Workload) -> Result<Timing, WorkloadError> {
    let Workload { n_prompt, n_decode, n_sequences, prefill_chunk } = *workload;
    let positions = n_prompt + n_decode;
    if positions > model.context() {
        return Err(WorkloadError::Context { positions, context: model.context() });
    }
    if n_prompt == 0 || prefill_chunk == 0 || !(1..=LOGIT_ROWS).contains(&n_sequences) {
        return Err(WorkloadError::Empty);
    }
    let block = positions.next_multiple_of(assay_num::KV_CHUNK);
    let mut pool = KvPool::new(model.kv_shape(), block * n_sequences);
    touch(&mut pool, model, n_sequences, positions);
    let mut sequences: Vec<KvSeq> = (0..n_sequences).filter_map(|_| pool.reserve(positions)).collect();
    let mut hash = 0;

    let start = Instant::now();
    for (i, kv) in sequences.iter_mut().enumerate() {
        let tokens: Vec<u32> = (0..n_prompt).map(|position| token(model, i, position)).collect();
        for chunk in tokens.chunks(prefill_chunk) {
            pool.grow(kv, chunk.len());
            let last = kv.len() + chunk.len() == n_prompt;
            let logits_from = if last { chunk.len() - 1 } else { chunk.len() };
            let slice = Slice { kv, tokens: chunk, logits_from };
            check(runner.step(model, &mut [slice]))?;
        }
        hash = hash_bits(hash, runner.logits(model, 0, 1));
    }
    let prefill = start.elapsed();

    let start = Instant::now();
    for position in n_prompt..positions {
        let tokens: Vec<u32> = (0..n_sequences).map(|i| token(model, i, position)).collect();
        let mut slices = Vec::with_capacity(n_sequences);
        for (kv, token) in sequences.iter_mut().zip(&tokens) {
            pool.grow(kv, 1);
            slices.push(Slice { kv, tokens: std::slice::from_ref(token), logits_from: 0 });
        }
        check(runner.step(model, &mut slices))?;
        hash = hash_bits(hash, &runner.logits(model, 0, n_sequences)[..1]);
    }
    Ok(Timing { prefill, decode: start.elapsed(), logits_hash: hash })
}

/// Time of a reply and of its verification.
#[derive(Clone, Copy, Debug)]
pub struct ReplayTiming {
    /// Time to decode the reply, its prompt not counted.
    pub generate: Duration,
    /// Time to verify it with [`replay`], prompt and all.
    pub replay: Duration,
}

/// Decodes a greedy reply of `n_decode` tokens to an arbitrary prompt of `n_prompt` (each at least 1), then replays it.
///
/// # Errors
/// See [`WorkloadError`]; [`WorkloadError::Replay`] if the replay finds anything but an exact reply.
pub fn measure_replay(
    model: &Model,
    runner: &mut Runner,
    n_prompt: usize,
    n_decode: usize,
) -> Result<ReplayTiming, WorkloadError> {
    let positions = n_prompt.saturating_add(n_decode);
    if positions > model.context() {
        return Err(WorkloadError::Context { positions, context: model.context() });
    }
    if n_prompt == 0 || n_decode == 0 {
        return Err(WorkloadError::Empty);
    }
    let job = Job {
        model_id: ModelId(Default::default()),
        prompt: (0..n_prompt).map(|position| token(model, 0, position)).collect(),
        prefix: Vec::new(),
        max_tokens: n_decode as u32,
        sampling: Sampling::GREEDY,
        logit_bias: Vec::new(),
        grammar: None,
        stop: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        embed: None,
        nonce: Default::default(),
    };
    let mut pool = KvPool::new(model.kv_shape(), positions.next_multiple_of(assay_num::KV_CHUNK));
    let mut kv = pool.reserve(positions).expect("the pool was made for this sequence");
    let (mut chooser, mut scratch) =
        (Chooser::new(&job, model).expect("a job without a grammar"), SampleScratch::default());
    let mut output = Vec::with_capacity(n_decode);
    let mut fed = job.prompt.clone();
    let mut start = Instant::now();
    for position in 0..n_decode {
        for chunk in fed.chunks(REPLAY_CHUNK) {
            pool.grow(&mut kv, chunk.len());
            check(runner.step(model, &mut [Slice { kv: &mut kv, tokens: chunk, logits_from: chunk.len() - 1 }]))?;
        }
        if position == 0 {
            start = Instant::now();
        }
        let picked = chooser.pick(runner.logits(model, 0, 1), position as u64, &mut scratch);
        let token = picked.map_err(|_| WorkloadError::NonFinite)?.id;
        output.push(token);
        fed = vec![token];
    }
    let generate = start.elapsed();
    let start = Instant::now();
    match replay(model, runner, &job, &output, Finish::Length) {
        Ok(Replay::Exact) => Ok(ReplayTiming { generate, replay: start.elapsed() }),
        other => Err(WorkloadError::Replay(format!("{other:?}"))),
    }
}

/// Bytes per second of plain reads, with the runner's threads, of as much memory as `model` reads for a token: the fastest
/// of three passes. Takes that much memory, at most 1 GiB (far beyond any cache).
pub fn measure_memory(model: &Model, runner: &Runner) -> f64 {
    const LINE: usize = 64;
    const PASSES: usize = 3;
    let lines = vec![[1u64; 8]; (model.weight_bytes() / LINE).clamp(1, (1 << 30) / LINE)];
    let pass = || {
        let start = Instant::now();
        read_memory(runner.team(), &lines);
        start.elapsed().as_secs_f64()
    };
    let fastest = (0..PASSES).map(|_| pass()).fold(f64::INFINITY, f64::min);
    size_of_val(&lines[..]) as f64 / fastest
}

/// Writes the memory of `n_sequences` sequences and gives it back to the pool: the system hands out memory page by page when
/// it is first written, which an engine that serves pays once and not for each prompt.
fn touch(pool: &mut KvPool, model: &Model, n_sequences: usize, positions: usize) {
    let mut sequences: Vec<KvSeq> = (0..n_sequences).filter_map(|_| pool.reserve(positions)).collect();
    for kv in &mut sequences {
        pool.grow(kv, positions);
        let blocks = positions.div_ceil(assay_num::KV_CHUNK);
        for layer in 0..model.config().n_layers {
            kv.layers_mut(0..blocks, layer).for_each(|part| part.fill(0));
        }
    }
    sequences.into_iter().for_each(|kv| pool.release(kv));
}

/// An arbitrary token, different along positions and sequences.
fn token(model: &Model, sequence: usize, position: usize) -> u32 {
    ((position * 7919 + sequence * 104_729 + 13) % model.config().vocab) as u32
}

fn check(finite: Vec<bool>) -> Result<(), WorkloadError> {
    if finite.into_iter().all(|finite| finite) { Ok(()) } else { Err(WorkloadError::NonFinite) }
}

/// FNV-1a over the values' bits.
fn hash_bits(seed: u64, values: &[f32]) -> u64 {
    values.iter().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, value| {
        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3)
    })
}
