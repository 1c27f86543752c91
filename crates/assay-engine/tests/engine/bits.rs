//! The claim: the same bits whatever the instruction set, threads, batch and cutting.

use std::sync::Arc;

use assay_engine::throughput::{ReplayTiming, Workload, WorkloadError, measure, measure_memory, measure_replay};
use assay_engine::{EngineOptions, KvPool, KvSeq, Model, Runner, Slice};
use assay_num::{Isa, Kernels};
use assay_types::Job;

use crate::support::{
    ALL, F16, FAMILIES, GEMMA3, MIXED, Q4_K_M, Q8, QWEN2, Random, engine, job, letter, options, run_alone, submit,
};

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut random = Random(seed);
    (0..n).map(|_| letter(random.below(26) as u32)).collect()
}

fn sequence(model: &Model, n: usize) -> (KvPool, KvSeq) {
    let mut pool = KvPool::new(model.kv_shape(), n);
    let kv = pool.reserve(n).expect("room for one sequence");
    (pool, kv)
}

/// Bits of the logits after each of `tokens`, fed in steps of the given sizes (the last size repeats).
fn logits(model: &Model, runner: &mut Runner, tokens: &[u32], steps: &[usize]) -> Vec<Vec<u32>> {
    let (mut pool, mut kv) = sequence(model, tokens.len());
    let mut all = Vec::new();
    let mut steps = steps.iter().copied();
    let (mut rest, mut size) = (tokens, 1);
    while !rest.is_empty() {
        size = steps.next().unwrap_or(size);
        let (now, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        pool.grow(&mut kv, now.len());
        let finite = runner.step(model, &mut [Slice { kv: &mut kv, tokens: now, logits_from: 0 }]);
        assert_eq!(finite, [true]);
        collect(model, runner, &mut all);
    }
    assert_eq!(all.len(), tokens.len());
    all
}

/// Reads all asked logits, in uneven parts.
fn collect(model: &Model, runner: &mut Runner, all: &mut Vec<Vec<u32>>) {
    let (n, mut first) = (runner.n_asked(model), 0);
    while first < n {
        let part = (7 + first % 5).min(n - first);
        let logits = runner.logits(model, first, part);
        all.extend(logits.chunks(model.config().vocab).map(|row| row.iter().map(|x| x.to_bits()).collect()));
        first += part;
    }
}

/// Long enough to cross two borders of KV chunks.
const LENGTH: usize = 530;

#[test]
fn every_isa_and_thread_count_gives_the_bits_of_one_scalar_thread() {
    for tiny in ALL {
        let model = tiny.model();
        let tokens = tokens(LENGTH, 5);
        let scalar = Kernels::with_isa(Isa::Scalar).expect("scalar always exists");
        let expect = logits(&model, &mut Runner::with_kernels(scalar, 1), &tokens, &[256]);
        for isa in Isa::available() {
            for threads in 1..=3 {
                let kernels = Kernels::with_isa(isa).expect("it is available");
                let mut runner = Runner::with_kernels(kernels, threads);
                let got = logits(&model, &mut runner, &tokens, &[256]);
                assert!(got == expect, "{isa} with {threads} threads differs on {tiny:?}");
            }
        }
    }
}

#[test]
fn cutting_the_prompt_does_not_change_the_bits() {
    for tiny in ALL {
        let model = tiny.model();
        let tokens = tokens(LENGTH, 6);
        let mut runner = Runner::new(2);
        let expect = logits(&model, &mut runner, &tokens, &[LENGTH]);
        for steps in [&[1][..], &[64], &[255, 1, 1, 256], &[256, 1], &[100, 3, 200, 17]] {
            assert!(logits(&model, &mut runner, &tokens, steps) == expect, "steps {steps:?} differ on {tiny:?}");
        }
    }
}

#[test]
fn neighbours_in_a_step_do_not_change_the_bits() {
    for tiny in [Q8, MIXED, Q4_K_M, QWEN2, GEMMA3] {
        let model = tiny.model();
        let mut runner = Runner::new(2);
        let prompts: Vec<Vec<u32>> = (0..16).map(|i| tokens(20 + 37 * i, 70 + i as u64)).collect();
        let alone: Vec<_> = prompts.iter().map(|prompt| logits(&model, &mut runner, prompt, &[prompt.len()])).collect();
        for n in 2..=prompts.len() {
            // Different lengths of prompt and of step: prefill and decode meet in one step.
            let mut random = Random(n as u64);
            let mut states: Vec<_> = prompts[..n].iter().map(|prompt| sequence(&model, prompt.len())).collect();
            let mut got: Vec<Vec<Vec<u32>>> = vec![Vec::new(); n];
            while got.iter().zip(&prompts).any(|(got, prompt)| got.len() < prompt.len()) {
                let mut slices = Vec::new();
                let mut who = Vec::new();
                for (i, (pool, kv)) in states.iter_mut().enumerate() {
                    let left = prompts[i].len() - kv.len();
                    let size = if random.below(2) == 0 { 1 } else { 1 + random.below(90) }.min(left);
                    if size > 0 {
                        pool.grow(kv, size);
                        let tokens = &prompts[i][kv.len()..][..size];
                        who.extend(std::iter::repeat_n(i, size));
                        slices.push(Slice { kv, tokens, logits_from: 0 });
                    }
                }
                let finite = runner.step(&model, &mut slices);
                assert!(finite.iter().all(|finite| *finite));
                let mut rows = Vec::new();
                collect(&model, &mut runner, &mut rows);
                who.iter().zip(rows).for_each(|(i, row)| got[*i].push(row));
            }
            for i in 0..n {
                assert!(got[i] == alone[i], "sequence {i} among {n} differs on {tiny:?}");
            }
        }
    }
}

#[test]
fn logits_are_given_only_for_rows_that_are_asked() {
    let model = Q8.model();
    let tokens = tokens(10, 8);
    let mut runner = Runner::new(1);
    let all = logits(&model, &mut runner, &tokens, &[10]);
    for logits_from in 0..=10 {
        let (mut pool, mut kv) = sequence(&model, 10);
        pool.grow(&mut kv, 10);
        runner.step(&model, &mut [Slice { kv: &mut kv, tokens: &tokens, logits_from }]);
        let mut got = Vec::new();
        collect(&model, &mut runner, &mut got);
        assert!(got == all[logits_from..], "from {logits_from}");
    }
}

#[test]
fn engine_output_is_the_same_alone_in_a_crowd_and_with_any_threads() {
    for tiny in [Q8, F16] {
        let model = tiny.model();
        let jobs: Vec<Job> = (0..16).map(|i| job(3 + 23 * i, 20 + i as u32, i as u64)).collect();
        let alone: Vec<_> = jobs.iter().map(|job| run_alone(&model, job)).collect();
        for (threads, prefill_chunk) in [(1, 256), (2, 33), (3, 7)] {
            let engine = engine(&model, EngineOptions { threads, prefill_chunk, ..options() });
            let running: Vec<_> = jobs.iter().map(|job| submit(&engine, job, 4096).expect("accepted")).collect();
            for ((running, alone), job) in running.into_iter().zip(&alone).zip(&jobs) {
                let outcome = running.outcome();
                assert_eq!(outcome.tokens.len(), job.max_tokens as usize);
                assert_eq!(&outcome, alone, "{threads} threads, chunks of {prefill_chunk}");
            }
        }
    }
}

#[test]
fn every_isa_gives_the_same_output() {
    let model = Q8.model();
    let job = job(40, 60, 11);
    let expect = run_alone(&model, &job);
    assert!(expect.tokens.iter().any(|token| *token != expect.tokens[0]), "an output worth comparing");
    for isa in Isa::available() {
        let engine = engine(&model, EngineOptions { isa: Some(isa), ..options() });
        assert_eq!(submit(&engine, &job, 4096).expect("accepted").outcome(), expect, "{isa}");
        assert_eq!(engine.isa(), isa);
    }
}

#[test]
fn resuming_after_any_prefix_gives_the_rest_of_the_same_output() {
    for tiny in [Q8].into_iter().chain(FAMILIES) {
        resume(&tiny.model());
    }
}

fn resume(model: &Arc<Model>) {
    let job = job(250, 24, 12);
    let whole = run_alone(model, &job);
    let engine = engine(model, options());
    for cut in 0..whole.tokens.len() {
        let (before, after) = whole.tokens.split_at(cut);
        let rest = submit(&engine, &job.resumed_after(before), 4096).expect("accepted").outcome();
        assert_eq!(rest.tokens, after, "resumed after {cut}");
        assert_eq!(rest.end, whole.end);
    }
}

#[test]
fn a_benchmark_does_the_same_work_every_time() {
    let model = Q8.model();
    let workload = Workload { n_prompt: 300, n_decode: 20, n_sequences: 3, prefill_chunk: 256 };
    let hash =
        |threads, workload| measure(&model, &mut Runner::new(threads), &workload).map(|timing| timing.logits_hash);
    let expect = hash(1, workload).expect("it fits");
    assert_eq!(hash(2, Workload { prefill_chunk: 7, ..workload }), Ok(expect));
    assert_ne!(hash(1, Workload { n_decode: 19, ..workload }), Ok(expect));
    let long = Workload { n_decode: 725, ..workload };
    assert_eq!(hash(1, long), Err(WorkloadError::Context { positions: 1025, context: 1024 }));
    assert_eq!(hash(1, Workload { n_prompt: 0, ..workload }), Err(WorkloadError::Empty));
    assert_eq!(hash(1, Workload { n_sequences: 33, ..workload }), Err(WorkloadError::Empty));
}

#[test]
fn a_reply_made_for_its_replay_is_found_exact() {
    let model = Q8.model();
    let mut runner = Runner::new(2);
    for (n_prompt, n_decode) in [(1, 1), (5, 3), (300, 40)] {
        let timing = measure_replay(&model, &mut runner, n_prompt, n_decode);
        assert!(timing.is_ok(), "{n_prompt} and {n_decode}: {timing:?}");
    }
    let of = |timing: Result<ReplayTiming, WorkloadError>| timing.map(|_| ()).unwrap_err();
    let long = measure_replay(&model, &mut runner, 1000, 25);
    assert_eq!(of(long), WorkloadError::Context { positions: 1025, context: 1024 });
    assert_eq!(of(measure_replay(&model, &mut runner, 0, 25)), WorkloadError::Empty);
    assert_eq!(of(measure_replay(&model, &mut runner, 9, 0)), WorkloadError::Empty);
    assert!(measure_memory(&model, &runner).is_finite());
}
