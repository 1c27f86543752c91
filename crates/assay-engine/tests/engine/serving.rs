//! Queue, cancellation, slow consumers, ends and shutdown.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use assay_engine::{
    Engine, EngineEvent, EngineOptions, JobFailure, Model, Payer, Shutdown, SinkState, StartError, SubmitError,
};
use assay_gguf::Gguf;
use assay_testkit::models::{TinyLlama, tiny_llama};
use assay_types::{Finish, Job, JobError};

use crate::support::{EOS, Outcome, Q8, Random, Running, Tiny, VOCAB, engine, greedy, job, options, run_alone, submit};

const MINUTE: Duration = Duration::from_secs(60);

/// A sink that does not let the engine's thread go on before the test says so: what the test does meanwhile happens
/// between two steps.
pub struct Gate {
    reached: Receiver<()>,
    open: SyncSender<()>,
}

pub fn gated(engine: &Engine, job: &Job) -> (Gate, Receiver<EngineEvent>) {
    let (reached_sender, reached) = mpsc::sync_channel(1);
    let (open, open_receiver) = mpsc::sync_channel::<()>(1);
    let (sender, events) = mpsc::sync_channel(4096);
    let mut first = true;
    let sink = move |event| {
        if std::mem::take(&mut first) {
            let _ = reached_sender.send(());
            let _ = open_receiver.recv_timeout(MINUTE);
        }
        let _ = sender.try_send(event);
        SinkState::Ready
    };
    engine.submit(job, Box::new(sink)).expect("accepted");
    (Gate { reached, open }, events)
}

impl Gate {
    pub fn wait(&self) {
        self.reached.recv_timeout(MINUTE).expect("the engine reaches the gate");
    }

    pub fn open(self) {
        self.open.send(()).expect("the engine waits at the gate");
    }
}

#[test]
fn tokens_arrive_in_order_and_the_end_once() {
    let bytes = tiny_llama(TinyLlama::default());
    let model = Model::load(&Gguf::parse(&bytes).expect("valid"), &bytes).expect("valid");
    let job = Job { prompt: vec![0, 9, 8, 7], ..job(1, 30, 1) };
    let engine = engine(&model, options());
    let running = submit(&engine, &job, 4096).expect("accepted");
    let events: Vec<EngineEvent> = running.events.iter().collect();
    assert_eq!(events.len(), 31, "the sink is dropped after the end");
    assert!(events[..30].iter().all(|event| matches!(event, EngineEvent::Token { .. })));
    assert_eq!(events[30], EngineEvent::Done { finish: Finish::Length });
    let stats = engine.stats();
    assert_eq!((stats.running, stats.queued, stats.kv_blocks), (0, 0, 0));
    assert_eq!((stats.prompt_tokens, stats.output_tokens), (4, 29), "the first token follows from the prompt");
}

#[test]
fn the_queue_is_bounded_and_in_order() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { sequences_max: 1, queue_depth: 3, ..options() });
    let (gate, _events) = gated(&engine, &job(4, 3, 0));
    gate.wait();
    let (order_sender, order) = mpsc::sync_channel(16);
    for i in 0..3 {
        let order_sender = order_sender.clone();
        let sink = move |event| {
            if let EngineEvent::Done { .. } = event {
                let _ = order_sender.try_send(i);
            }
            SinkState::Ready
        };
        engine.submit(&job(4, 3, i), Box::new(sink)).expect("there is room");
    }
    drop(order_sender);
    let full = submit(&engine, &job(4, 3, 9), 1).err();
    assert_eq!(full, Some(SubmitError::QueueFull { waiting: 3 }));
    assert_eq!(engine.stats().queued, 3);
    gate.open();
    assert_eq!(order.iter().collect::<Vec<_>>(), [0, 1, 2]);
    assert!(submit(&engine, &job(4, 3, 9), 16).is_ok(), "there is room again");
}

#[test]
fn cancelling_frees_memory_and_ends_the_stream() {
    let model = Q8.model();
    // Memory for one job of this length and no more.
    let engine = engine(&model, EngineOptions { kv_tokens: 512, ..options() });
    let (gate, events) = gated(&engine, &job(100, 400, 0));
    let waiting = submit(&engine, &job(100, 400, 1), 4096).expect("accepted");
    gate.wait();
    assert_eq!((engine.stats().running, engine.stats().queued), (1, 1), "the second waits for memory");
    assert_eq!(engine.stats().kv_blocks, 2);
    waiting.handle.cancel();
    gate.open();
    assert_eq!(waiting.outcome(), Outcome { tokens: vec![], end: Err(JobFailure::Cancelled) });
    drop(events);

    let running = submit(&engine, &job(100, 400, 2), 8).expect("accepted");
    let next = submit(&engine, &job(100, 400, 3), 4096).expect("accepted");
    assert!(matches!(running.next(), EngineEvent::Token { .. }));
    running.handle.cancel();
    assert_eq!(next.outcome().end, Ok(Finish::Length), "the cancelled job's memory is free");
    assert!(running.is_over());
}

#[test]
fn a_closed_sink_cancels_its_job() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { kv_tokens: 512, ..options() });
    let Running { events, .. } = submit(&engine, &job(100, 400, 0), 4).expect("accepted");
    let next = submit(&engine, &job(100, 400, 1), 4096).expect("accepted");
    drop(events);
    assert_eq!(next.outcome().tokens.len(), 400);
}

#[test]
fn a_dropped_handle_does_not_cancel() {
    let model = Q8.model();
    let engine = engine(&model, options());
    let Running { handle, events } = submit(&engine, &job(10, 50, 0), 4096).expect("accepted");
    drop(handle);
    assert_eq!(events.iter().count(), 51);
}

#[test]
fn a_reader_that_stops_reading_stops_only_its_own_job() {
    let model = Q8.model();
    let engine = engine(&model, options());
    let jobs: Vec<Job> = (0..6).map(|i| job(20, 100, i)).collect();
    let expect: Vec<Outcome> = jobs.iter().map(|job| run_alone(&model, job)).collect();
    let stuck = submit(&engine, &jobs[0], 3).expect("accepted");
    let others: Vec<_> = jobs[1..].iter().map(|job| submit(&engine, job, 4096).expect("accepted")).collect();
    for (other, expect) in others.into_iter().zip(&expect[1..]) {
        assert_eq!(&other.outcome(), expect);
    }
    assert_eq!(engine.stats().running, 1, "the stuck job is still there");
    assert_eq!(stuck.outcome(), expect[0], "and goes on where it was");
}

#[test]
fn outputs_end_at_stop_strings_end_tokens_and_lengths() {
    // Letters only would never print an end token: sample hot until one comes.
    let model = Q8.model();
    let hot = |seed, ignore_eos| {
        let mut job = job(5, 900, seed);
        job.sampling.temperature_micro = 30_000_000;
        job.sampling.top_k = 0;
        job.sampling.top_p_micro = 1_000_000;
        Job { ignore_eos, ..job }
    };
    let (seed, ended) = (0..50)
        .map(|seed| (seed, run_alone(&model, &hot(seed, false))))
        .find(|(_, outcome)| outcome.end == Ok(Finish::Stop))
        .expect("one of fifty outputs of up to 900 nearly uniform tokens contains the end token");
    let n = ended.tokens.len();
    assert_eq!(ended.tokens[n - 1], EOS);
    let ignored = run_alone(&model, &hot(seed, true));
    assert_eq!((ignored.end, ignored.tokens.len()), (Ok(Finish::Length), 900));
    assert_eq!(ignored.tokens[..n], ended.tokens, "the end token is a token like any other");

    // Two letters in a row somewhere in the ignored output make a stop string.
    let at = ignored.tokens.windows(2).position(|pair| pair.iter().all(|t| *t >= 259)).expect("letters");
    let stop: String = ignored.tokens[at..at + 2].iter().map(|t| (b'a' + (t - 259) as u8) as char).collect();
    let stopped = run_alone(&model, &Job { stop: vec![stop], ..hot(seed, true) });
    assert_eq!(stopped, Outcome { tokens: ignored.tokens[..at + 2].to_vec(), end: Ok(Finish::Stop) });
}

#[test]
fn jobs_that_cannot_run_are_refused_with_numbers() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { kv_tokens: 512, ..options() });
    let refused = |job: &Job| submit(&engine, job, 1).err().expect("refused").to_string();
    assert_eq!(refused(&job(1000, 25, 0)), "1000 prompt tokens and 25 output tokens exceed the context of 1024");
    let kv = "prompt and output need 513 positions of KV memory, the engine has 512";
    assert_eq!(refused(&job(413, 100, 0)), kv);
    let mut bad = job(3, 3, 0);
    bad.prompt[1] = VOCAB;
    assert_eq!(refused(&bad), format!("token id {VOCAB} is outside the vocabulary of {VOCAB}"));
    assert_eq!(submit(&engine, &job(0, 3, 0), 1).err(), Some(SubmitError::Job(JobError::EmptyPrompt)));
    let done = Job { prefix: vec![EOS], ignore_eos: false, ..job(3, 3, 0) };
    assert_eq!(submit(&engine, &done, 1).err(), Some(SubmitError::PrefixComplete { finish: Finish::Stop }));
}

/// A model in which the embedding of `z` is so large that its keys do not fit f16, and `z`.
pub fn with_infinite_z() -> (Arc<Model>, u32) {
    let tiny = Tiny { ty: assay_gguf::GgmlType::F32, odd_ty: assay_gguf::GgmlType::F32, tied: false, ..Q8 };
    let mut bytes = tiny.bytes();
    let gguf = Gguf::parse(&bytes).expect("valid");
    let embd = gguf.tensor("token_embd.weight").expect("there");
    let row = embd.offset as usize + 4 * tiny.width as usize * (VOCAB as usize - 1);
    for value in bytes[row..][..4 * tiny.width as usize].chunks_mut(4) {
        value.copy_from_slice(&f32::INFINITY.to_le_bytes());
    }
    (crate::support::load(&bytes).expect("weights are not judged"), VOCAB - 1)
}

#[test]
fn a_value_that_is_not_finite_fails_its_job_only() {
    let (model, _) = with_infinite_z();
    let engine = engine(&model, options());
    let good = greedy(job(10, 5, 3));
    let good = Job { prompt: good.prompt.iter().map(|t| (*t).min(VOCAB - 2)).collect(), ..good };
    for place in 0..10 {
        let mut bad = good.clone();
        bad.prompt[place] = VOCAB - 1;
        let (bad, good) = (submit(&engine, &bad, 64), submit(&engine, &good, 64));
        let expect = Err(JobFailure::NonFinite { index: 0 });
        assert_eq!(bad.expect("accepted").outcome(), Outcome { tokens: vec![], end: expect });
        assert_eq!(good.expect("accepted").outcome().end, Ok(Finish::Length));
    }
    assert_eq!(engine.stats().kv_blocks, 0);
}

#[test]
fn keys_that_do_not_fit_f16_fail_the_job() {
    // The values themselves are finite, and an infinite key far below the others would vanish in the softmax.
    let tiny = Tiny { ty: assay_gguf::GgmlType::F32, odd_ty: assay_gguf::GgmlType::F32, ..Q8 };
    let mut bytes = tiny.bytes();
    let gguf = Gguf::parse(&bytes).expect("valid");
    let keys = gguf.tensor("blk.1.attn_k.weight").expect("there");
    for value in bytes[keys.offset as usize..][..keys.len as usize].chunks_mut(4) {
        let large = f32::from_le_bytes([value[0], value[1], value[2], value[3]]) * 1e6;
        value.copy_from_slice(&large.to_le_bytes());
    }
    let model = crate::support::load(&bytes).expect("weights are not judged");
    let expect = Outcome { tokens: vec![], end: Err(JobFailure::NonFinite { index: 0 }) };
    assert_eq!(run_alone(&model, &job(10, 5, 3)), expect);
}

#[test]
fn shutdown_now_fails_what_runs_and_what_waits() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { sequences_max: 1, ..options() });
    let (gate, events) = gated(&engine, &job(10, 900, 0));
    let waiting = submit(&engine, &job(10, 10, 1), 64).expect("accepted");
    gate.wait();
    let shared = Arc::clone(engine.model());
    let stopper = std::thread::spawn(move || engine.shutdown(Shutdown::Now));
    gate.open();
    stopper.join().expect("shutdown returns");
    assert_eq!(waiting.outcome().end, Err(JobFailure::ShuttingDown));
    let events: Vec<_> = events.iter().collect();
    assert_eq!(events.last(), Some(&EngineEvent::Failed { error: JobFailure::ShuttingDown }));
    assert!(events.len() < 900, "it did not finish first");
    drop(shared);
}

#[test]
fn draining_finishes_accepted_jobs() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { sequences_max: 2, ..options() });
    let jobs: Vec<Job> = (0..6).map(|i| job(10 + i, 30, i as u64)).collect();
    let running: Vec<_> = jobs.iter().map(|job| submit(&engine, job, 4096).expect("accepted")).collect();
    engine.shutdown(Shutdown::Drain { timeout: MINUTE });
    for (running, job) in running.into_iter().zip(&jobs) {
        assert_eq!(running.outcome(), run_alone(&model, job));
    }
}

#[test]
fn draining_gives_up_on_readers_that_do_not_read() {
    let model = Q8.model();
    let engine = engine(&model, options());
    let stuck = submit(&engine, &job(10, 30, 0), 2).expect("accepted");
    assert!(matches!(stuck.next(), EngineEvent::Token { .. }));
    engine.shutdown(Shutdown::Drain { timeout: Duration::from_millis(20) });
    assert!(stuck.is_over());
}

#[test]
fn an_instruction_set_the_cpu_lacks_is_refused() {
    let model = Q8.model();
    for isa in assay_num::Isa::ALL {
        let started = Engine::start(Arc::clone(&model), EngineOptions { isa: Some(isa), ..options() });
        match started {
            Ok(engine) => assert_eq!(engine.isa(), isa),
            Err(StartError::Isa { isa: refused }) => {
                assert_eq!(refused, isa);
                assert!(!assay_num::Isa::available().contains(&isa));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// What a client of the crowd does with its stream.
#[derive(Clone, Copy, Debug)]
pub enum Client {
    Reads,
    CancelsAfter(usize),
    LeavesAfter(usize),
}

impl Client {
    /// What it got; the end if it saw one.
    pub fn run(self, running: Running) -> (Vec<u32>, Option<Result<Finish, JobFailure>>) {
        let Running { handle, events } = running;
        let mut tokens = Vec::new();
        loop {
            match self {
                Client::CancelsAfter(n) if n == tokens.len() => handle.cancel(),
                Client::LeavesAfter(n) if n == tokens.len() => return (tokens, None),
                _ => {}
            }
            match events.recv() {
                Ok(EngineEvent::Token { id }) => tokens.push(id),
                Ok(EngineEvent::Logprobs(_)) => panic!("nobody asked"),
                Ok(EngineEvent::Done { finish }) => return (tokens, Some(Ok(finish))),
                Ok(EngineEvent::Failed { error }) => return (tokens, Some(Err(error))),
                // A cancelled job whose sink was full ends without a word.
                Err(_) => return (tokens, None),
            }
            handle.wake();
        }
    }
}

#[test]
fn a_crowd_of_readers_quitters_and_leavers_gets_the_right_tokens() {
    let model = Q8.model();
    let jobs: Vec<Job> = (0..12).map(|i| job(1 + 41 * i, 10 + 7 * i as u32, i as u64)).collect();
    let expect: Vec<Outcome> = jobs.iter().map(|job| run_alone(&model, job)).collect();
    for seed in 0..8 {
        let mut random = Random(seed);
        let engine = engine(
            &model,
            EngineOptions {
                threads: 1 + random.below(3),
                sequences_max: 1 + random.below(8),
                prefill_chunk: 1 + random.below(100),
                kv_tokens: 1024,
                queue_depth: 64,
                ..options()
            },
        );
        let mut clients = Vec::new();
        for _ in 0..40 {
            let which = random.below(jobs.len());
            let client = match random.below(4) {
                0 => Client::CancelsAfter(random.below(20)),
                1 => Client::LeavesAfter(random.below(20)),
                _ => Client::Reads,
            };
            let running = submit(&engine, &jobs[which], 1 + random.below(4)).expect("the queue holds them all");
            clients.push((which, client, std::thread::spawn(move || client.run(running))));
        }
        for (which, client, thread) in clients {
            let (tokens, end) = thread.join().expect("no panic");
            let Outcome { tokens: whole, end: right_end } = &expect[which];
            let context = format!("seed {seed}, {client:?} of job {which}");
            assert!(whole.starts_with(&tokens), "{context}: wrong tokens");
            match client {
                Client::Reads => assert_eq!((&tokens, end), (whole, Some(*right_end)), "{context}"),
                Client::CancelsAfter(n) => {
                    let cancelled = matches!(end, None | Some(Err(JobFailure::Cancelled)));
                    assert!(cancelled || end == Some(*right_end), "{context}: {end:?}");
                    assert!(tokens.len() >= n.min(whole.len()), "{context}");
                }
                Client::LeavesAfter(n) => assert_eq!(tokens.len(), n.min(whole.len()), "{context}"),
            }
        }
        // Jobs whose clients left end at their next event; then nothing is held.
        let (sender, gone) = mpsc::channel::<()>();
        let sink = move |_| {
            let _alive = &sender;
            SinkState::Ready
        };
        engine.submit(&job(400, 600, 0), Box::new(sink)).expect("accepted");
        assert!(gone.recv().is_err(), "the sink is dropped when the job is over");
        let stats = engine.stats();
        assert_eq!((stats.running, stats.queued, stats.kv_blocks), (0, 0, 0), "seed {seed}");
    }
}

#[test]
fn the_payer_with_the_fewest_jobs_is_next() {
    let model = Q8.model();
    let engine = engine(&model, EngineOptions { sequences_max: 2, ..options() });
    let (gate, _events) = gated(&engine, &job(4, 200, 0));
    gate.wait();
    let (sender, order) = mpsc::sync_channel(16);
    // The gated job is the default payer's; it goes on beside all of these.
    for (i, payer) in [0, 0, 1, 1, 0].into_iter().enumerate() {
        let sender = sender.clone();
        let sink = move |event| {
            if let EngineEvent::Done { .. } = event {
                let _ = sender.try_send(i);
            }
            SinkState::Ready
        };
        engine.submit_for(Payer([payer; 20]), &job(4, 3, i as u64), Box::new(sink)).expect("there is room");
    }
    drop(sender);
    gate.open();
    assert_eq!(order.iter().collect::<Vec<_>>(), [2, 3, 0, 1, 4]);
}
