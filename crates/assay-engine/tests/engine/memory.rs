//! The prefix cache and scarce KV memory: they decide when something is computed, never what.

use std::sync::Arc;
use std::sync::mpsc;

use assay_engine::latency::{Crowd, LatencyError, measure};
use assay_engine::{
    Engine, EngineOptions, JobFailure, KvPool, MemoryNeed, Model, Payer, PrefixCache, Runner, SinkState, Slice,
    SubmitError,
};
use assay_gguf::Gguf;
use assay_num::{Isa, Kernels};
use assay_types::{Finish, Job};

use crate::serving::{Client, gated};
use crate::support::{
    ALL, FAMILIES, Outcome, Q4_K_M, Q8, Random, Running, engine, job, letter, options, run_alone, submit, submit_for,
};

/// Bits of the logits after the last of `tokens`, and how many positions the cache knew.
fn last_logits(model: &Model, runner: &mut Runner, pool: &mut KvPool, tokens: &[u32]) -> (Vec<u32>, usize) {
    let mut kv = pool.reserve_cached(Payer::default(), tokens, tokens.len()).expect("room");
    let known = kv.len();
    let rest = &tokens[known..];
    pool.grow(&mut kv, rest.len());
    let slice = Slice { kv: &mut kv, tokens: rest, logits_from: rest.len() - 1 };
    assert_eq!(runner.step(model, &mut [slice]), [true]);
    pool.retire(kv, tokens);
    (runner.logits(model, 0, 1).iter().map(|x| x.to_bits()).collect(), known)
}

#[test]
fn a_hit_gives_the_bits_of_a_miss_on_every_isa() {
    for tiny in ALL {
        let model = tiny.model();
        let stem = job(600, 1, 1).prompt;
        for isa in Isa::available() {
            let mut runner = Runner::with_kernels(Kernels::with_isa(isa).expect("it is available"), 2);
            let mut cached = KvPool::new(model.kv_shape(), 4096);
            last_logits(&model, &mut runner, &mut cached, &stem);
            // Nothing in common, part of the first block, the first block and one more, and the kept end.
            for shared in [0, 255, 257, 599] {
                let tail = job(1 + shared % 50, 1, 2).prompt;
                let tokens = [&stem[..shared], &tail].concat();
                let mut empty = KvPool::new(model.kv_shape(), 4096);
                let (miss, none) = last_logits(&model, &mut runner, &mut empty, &tokens);
                let (hit, known) = last_logits(&model, &mut runner, &mut cached, &tokens);
                // Fewer than 16 positions of a block are not worth a copy.
                let expect = shared.min(tokens.len() - 1);
                assert!(none == 0 && known + 16 > expect, "{known} of {shared} were known");
                assert!(hit == miss, "{isa}: {shared} known positions change the logits on {tiny:?}");
            }
        }
    }
}

#[test]
fn a_chat_goes_on_where_it_was_and_a_resumed_job_too() {
    for tiny in [Q8, Q4_K_M].into_iter().chain(FAMILIES) {
        let model = tiny.model();
        let engine = engine(&model, options());
        let mut turn = job(100, 60, 1);
        let mut fed = 0;
        for reply in 0..5 {
            let before = engine.stats();
            let expect = run_alone(&model, &turn);
            assert_eq!(submit(&engine, &turn, 4096).expect("accepted").outcome(), expect, "turn {reply}");
            let stats = engine.stats();
            let known = stats.prefix_tokens - before.prefix_tokens;
            assert!(known + 16 > fed, "all but the last token of the reply was fed: {known} of {fed}");
            assert_eq!(stats.prompt_tokens - before.prompt_tokens, turn.prompt.len() as u64 - known);
            // Lost in the middle and resumed: what was computed before counts.
            let resumed = turn.resumed_after(&expect.tokens[..30]);
            let rest = submit(&engine, &resumed, 4096).expect("accepted").outcome();
            assert_eq!(rest.tokens, expect.tokens[30..]);
            assert!(engine.stats().prompt_tokens - stats.prompt_tokens <= 16);
            fed = (turn.prompt.len() + expect.tokens.len() - 1) as u64;
            turn.prompt.extend(&expect.tokens);
            turn.prompt.extend(job(37, 1, 50 + reply).prompt);
            turn.sampling.seed += 1;
        }
        assert_eq!(engine.stats().prefix_hits, 9);
    }
}

#[test]
fn payers_do_not_share_and_the_cache_can_be_off() {
    let model = Q8.model();
    let job = job(400, 20, 1);
    let expect = run_alone(&model, &job);
    let run = |engine: &Engine, payer| {
        let got = submit_for(engine, Payer([payer; 20]), &job, 64).expect("accepted").outcome();
        assert_eq!(got, expect);
        engine.stats().prefix_tokens
    };
    let shared = engine(&model, options());
    assert_eq!([0, 1, 0, 1].map(|payer| run(&shared, payer)), [0, 0, 399, 798]);
    assert_eq!(shared.stats().kv_blocks_cached, 4);
    let off = engine(&model, EngineOptions { prefix_cache: PrefixCache::Off, ..options() });
    assert_eq!([0, 0].map(|payer| run(&off, payer)), [0, 0]);
    assert_eq!(off.stats().kv_blocks_cached, 0);
}

#[test]
fn a_prompt_that_is_being_computed_is_not_computed_again_beside_it() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { prefill_chunk: 100, ..options() });
    let (gate, _events) = gated(&engine, &job(3, 200, 9));
    gate.wait();
    let jobs: Vec<Job> = (0..4).map(|seed| Job { sampling: job(1, 1, seed).sampling, ..job(600, 9, 1) }).collect();
    let running: Vec<_> = jobs.iter().map(|job| submit(&engine, job, 64).expect("accepted")).collect();
    gate.open();
    for (running, job) in running.into_iter().zip(&jobs) {
        assert_eq!(running.outcome(), run_alone(&model, job));
    }
    // Two full blocks are computed once; what follows them four times.
    assert_eq!(engine.stats().prompt_tokens, 3 + 512 + 4 * 88);
}

#[test]
fn a_job_that_does_not_fit_beside_older_ones_is_parked_and_goes_on() {
    let model = Q8.model();
    // Each of the four comes to need two blocks of the four there are: 100 + 300 positions.
    let engine = engine(&model, EngineOptions { kv_tokens: 1024, ..options() });
    let jobs: Vec<Job> = (0..4).map(|seed| job(100, 700, seed)).collect();
    let expect: Vec<Outcome> = jobs.iter().map(|job| run_alone(&model, job)).collect();
    let running: Vec<_> = jobs.iter().map(|job| submit(&engine, job, 4096).expect("accepted")).collect();
    for (running, expect) in running.into_iter().zip(expect) {
        assert_eq!(running.outcome(), expect);
    }
    let stats = engine.stats();
    assert!(stats.preemptions > 0, "two jobs were let in at once: {stats:?}");
    assert_eq!((stats.running, stats.kv_blocks), (0, 0));
    assert!(stats.kv_blocks_cached <= stats.kv_blocks_max);
}

#[test]
fn a_reader_that_stops_reading_keeps_no_memory_from_others() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { kv_tokens: 512, ..options() });
    let jobs: Vec<Job> = (0..4).map(|seed| job(100, 400, seed)).collect();
    let expect: Vec<Outcome> = jobs.iter().map(|job| run_alone(&model, job)).collect();
    let stuck = submit(&engine, &jobs[0], 2).expect("accepted");
    let others: Vec<_> = jobs[1..].iter().map(|job| submit(&engine, job, 4096).expect("accepted")).collect();
    for (other, expect) in others.into_iter().zip(&expect[1..]) {
        assert_eq!(&other.outcome(), expect);
    }
    assert_eq!(stuck.outcome(), expect[0], "it goes on where it was");
}

/// Long enough to be admitted and shared, many enough that 1 to 6 blocks are too few.
fn crowd_jobs() -> Vec<Job> {
    let lengths = [1, 30, 200, 255, 256, 257, 300, 500, 513];
    let jobs = (0..18).map(|i| {
        let stem = job(lengths[i % lengths.len()], 1, i as u64 % 2).prompt;
        let own = job(1 + 7 * i, 1, i as u64);
        let prompt = [stem, own.prompt].concat();
        Job { max_tokens: (10 + 45 * i as u32).min(1000 - prompt.len() as u32), prompt, ..own }
    });
    jobs.collect()
}

#[test]
fn any_memory_any_crowd_and_any_quitting_give_the_output_of_running_alone() {
    let model = Q8.model();
    let jobs = crowd_jobs();
    let alone = |job: &Job| {
        let off = EngineOptions { prefix_cache: PrefixCache::Off, ..options() };
        submit(&engine(&model, off), job, 4096).expect("accepted").outcome()
    };
    let expect: Vec<Outcome> = jobs.iter().map(alone).collect();
    let mut preemptions = 0;
    for seed in 0..16 {
        preemptions += crowd(&model, &jobs, &expect, seed);
    }
    assert!(preemptions > 0, "memory was never short");
}

/// Runs a random crowd; returns how often memory was short.
fn crowd(model: &Arc<Model>, jobs: &[Job], expect: &[Outcome], seed: u64) -> u64 {
    let mut random = Random(seed);
    let options = EngineOptions {
        threads: 1 + random.below(2),
        sequences_max: 2 + random.below(12),
        prefill_chunk: 1 + random.below(300),
        kv_tokens: 256 * (1 + random.below(6)),
        prefix_cache: if random.below(4) == 0 { PrefixCache::Off } else { PrefixCache::PerPayer },
        ..options()
    };
    let engine = engine(model, options);
    let mut clients = Vec::new();
    for _ in 0..40 {
        let which = random.below(jobs.len());
        let client = match random.below(6) {
            0 => Client::CancelsAfter(random.below(20)),
            1 => Client::LeavesAfter(random.below(20)),
            _ => Client::Reads,
        };
        let payer = Payer([random.below(2) as u8; 20]);
        match submit_for(&engine, payer, &jobs[which], 1 + random.below(4)) {
            Ok(running) => clients.push((which, client, std::thread::spawn(move || client.run(running)))),
            Err(error) => assert!(matches!(error, SubmitError::KvOverflow { .. }), "{error}"),
        }
    }
    for (which, client, thread) in clients {
        let (tokens, end) = thread.join().expect("no panic");
        let Outcome { tokens: whole, end: right_end } = &expect[which];
        let context = format!("seed {seed}, {client:?} of job {which}, {options:?}");
        assert!(whole.starts_with(&tokens), "{context}: wrong tokens");
        match client {
            Client::Reads => assert_eq!((&tokens, end), (whole, Some(*right_end)), "{context}"),
            Client::CancelsAfter(_) => {
                let cancelled = matches!(end, None | Some(Err(JobFailure::Cancelled)));
                assert!(cancelled || end == Some(*right_end), "{context}: {end:?}");
            }
            Client::LeavesAfter(n) => assert_eq!(tokens.len(), n.min(whole.len()), "{context}"),
        }
        let stats = engine.stats();
        assert!(stats.kv_blocks_cached <= stats.kv_blocks_max && stats.kv_blocks <= stats.kv_blocks_max, "{stats:?}");
    }
    // Jobs whose clients left end at their next event; then nothing is held, and all of the memory can be had.
    let (sender, gone) = mpsc::channel::<()>();
    let sink = move |_| {
        let _alive = &sender;
        SinkState::Ready
    };
    engine.submit(&job(1, options.kv_tokens.min(1024) as u32 - 1, 0), Box::new(sink)).expect("accepted");
    assert!(gone.recv().is_err(), "the sink is dropped when the job is over");
    let stats = engine.stats();
    assert_eq!((stats.running, stats.queued, stats.kv_blocks), (0, 0, 0), "seed {seed}");
    stats.preemptions
}

#[test]
fn what_failed_is_not_kept() {
    // The embedding of `z` is so large that its keys do not fit f16.
    let (model, z) = crate::serving::with_infinite_z();
    let engine = engine(&model, options());
    for _ in 0..2 {
        let mut bad = job(300, 5, 3);
        bad.prompt.iter_mut().for_each(|token| *token = (*token).min(z - 1));
        bad.prompt[280] = z;
        let outcome = submit(&engine, &bad, 64).expect("accepted").outcome();
        assert_eq!(outcome, Outcome { tokens: vec![], end: Err(JobFailure::NonFinite { index: 0 }) });
        // The same beginning without the bad token is right.
        bad.prompt[280] = letter(0);
        let good = submit(&engine, &bad, 64).expect("accepted").outcome();
        assert_eq!(good.end, Ok(Finish::Length));
        assert_eq!(good, run_alone(&model, &bad));
    }
}

#[test]
fn a_cancelled_job_that_waits_for_memory_ends() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { kv_tokens: 512, ..options() });
    let running: Vec<Running> =
        (0..3).map(|seed| submit(&engine, &job(200, 300, seed), 4096).expect("accepted")).collect();
    running[1].handle.cancel();
    let ends: Vec<_> = running.into_iter().map(|running| running.outcome().end).collect();
    assert_eq!(ends[0], Ok(Finish::Length));
    assert_eq!(ends[2], Ok(Finish::Length));
    assert!(matches!(ends[1], Err(JobFailure::Cancelled) | Ok(Finish::Length)), "{ends:?}");
}

#[test]
fn latency_is_seen_alone_and_beside_a_prefill() {
    let model = crate::support::Tiny { context: 8192, ..Q8 }.model();
    let engine = engine(&model, EngineOptions { prefill_chunk: 16, ..options() });
    let crowd = Crowd { n_streams: 3, n_prompt: 600 };
    // Where this thread sleeps for long, streams reach their end before the prompt is there; that is said.
    let seen = (0..50).find_map(|seed| match measure(&engine, &crowd, seed) {
        Ok(seen) => Some(seen),
        Err(LatencyError::Ended) => None,
        Err(error) => panic!("{error}"),
    });
    let seen = seen.expect("one of fifty");
    let (n_alone, n_beside) = (seen.undisturbed.len(), seen.beside_prefill.len());
    assert!(n_alone >= 100 && n_beside > 0, "{n_alone} and {n_beside}");
    assert!(seen.undisturbed.is_sorted() && seen.beside_prefill.is_sorted());
    assert_eq!(engine.stats().prefix_tokens, 0, "prompts are new ones");
    let long = Crowd { n_prompt: 9000, ..crowd };
    assert!(matches!(measure(&engine, &long, 99), Err(LatencyError::Submit(SubmitError::Job(_)))));
}

#[test]
fn memory_is_known_before_it_is_taken() {
    for tiny in ALL {
        let bytes = tiny.bytes();
        let gguf = Gguf::parse(&bytes).expect("valid");
        let model = tiny.model();
        let of = |context, kv_tokens| {
            let options = EngineOptions { kv_tokens, ..options() };
            MemoryNeed::of(&gguf, context, &options).expect("a valid header")
        };
        let need = of(usize::MAX, 1000);
        assert_eq!((need.context, need.kv_tokens), (model.context(), 1000));
        assert_eq!(need.kv, 4 * model.kv_shape().block_bytes() as u64, "whole blocks");
        assert_eq!(need.kv_per_token, (model.kv_shape().block_bytes() / 256) as u64);
        assert_eq!(need.total(), need.weights + need.tables + need.kv + need.step);
        // Norms and the embedding are not what a token reads.
        assert!(need.weights as usize >= model.weight_bytes() * 9 / 10, "{need:?} of {tiny:?}");
        let half = of(model.context() / 2, 1000);
        assert_eq!((half.context, half.tables), (model.context() / 2, need.tables / 2));
        assert_eq!(of(1, usize::MAX).total(), u64::MAX, "no number overflows");
    }
}
