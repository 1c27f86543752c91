//! The engine's thread: admit, step, sample, deliver, for ever.
//!
//! Owns the batch, the KV pool and the runner. The inbox lock is held only to take waiting jobs; sinks are called and
//! dropped without it.

use std::collections::VecDeque;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use assay_num::Kernels;
use assay_num::sample::SampleScratch;

use crate::engine::{EngineOptions, Inbox, Shared, Stop};
use crate::forward::{LOGIT_ROWS, Runner};
use crate::kv::KvPool;
use crate::model::Model;
use crate::pace::Pace;
use crate::prefix::Payer;
use crate::scheduler::{self, Ready, Work};
use crate::sequence::{JobFailure, Pending, Sequence};

/// How often full sinks are asked again when nothing else happens.
const RETRY: Duration = Duration::from_millis(2);

pub(crate) struct Driver<'a> {
    model: &'a Model,
    pub shared: &'a Shared,
    pub options: &'a EngineOptions,
    runner: Runner,
    pub pool: KvPool,
    /// At most `sequences_max`, in order of admission.
    pub sequences: Vec<Sequence>,
    ready: Vec<(Payer, Ready)>,
    pace: Pace,
    pub plan: Vec<Work>,
    scratch: SampleScratch,
}

/// What the thread does next.
enum Next {
    Go,
    Exit,
}

/// Runs until a stop is asked for. On a panic the inbox is closed, so that callers are not left waiting.
pub(crate) fn run(model: &Model, shared: &Shared, kernels: Kernels, options: &EngineOptions) {
    let _close = CloseOnExit(shared);
    let mut driver = Driver {
        model,
        shared,
        options,
        runner: Runner::with_kernels(kernels, options.threads),
        pool: KvPool::with_cache(model.kv_shape(), options.kv_tokens, options.prefix_cache),
        sequences: Vec::with_capacity(options.sequences_max),
        ready: Vec::new(),
        pace: Pace::default(),
        plan: Vec::new(),
        scratch: SampleScratch::default(),
    };
    while let Next::Go = driver.take_jobs() {
        driver.end_cancelled();
        driver.step();
        driver.deliver();
    }
    driver.abort(JobFailure::ShuttingDown, |_| true);
}

impl Driver<'_> {
    /// Waits until there is something to do, admitting what fits.
    fn take_jobs(&mut self) -> Next {
        let may_admit = self.seat_parked();
        let mut inbox = self.shared.lock();
        loop {
            // Memory is copied and sinks are called without the lock.
            let dropped: Vec<Pending> = Self::take_cancelled(&mut inbox);
            if !dropped.is_empty() {
                drop(inbox);
                dropped.into_iter().for_each(|pending| refuse(pending, JobFailure::Cancelled));
                inbox = self.shared.lock();
                continue;
            }
            if may_admit && let Some(pending) = self.next_job(&mut inbox) {
                drop(inbox);
                self.admit(pending);
                inbox = self.shared.lock();
                continue;
            }
            self.shared.count(self.sequences.len(), &self.pool);
            let idle = self.sequences.is_empty();
            if let Some(Stop { by }) = inbox.stop {
                let done = idle && inbox.waiting.is_empty();
                if done || Instant::now() >= by {
                    return Next::Exit;
                }
            }
            if self.sequences.iter().any(|s| s.is_cancelled() || s.ready() != Ready::Paused) {
                return Next::Go;
            }
            // Jobs wait only while others run, so an idle engine has nothing to retry.
            inbox = self.shared.wait(inbox, (!idle).then_some(RETRY));
            if !idle {
                return Next::Go;
            }
        }
    }

    fn take_cancelled(inbox: &mut MutexGuard<'_, Inbox>) -> Vec<Pending> {
        let is_cancelled = |pending: &Pending| pending.cancelled.load(Ordering::Relaxed);
        if !inbox.waiting.iter().any(is_cancelled) {
            return Vec::new();
        }
        let (dropped, kept): (VecDeque<_>, _) = std::mem::take(&mut inbox.waiting).into_iter().partition(is_cancelled);
        inbox.waiting = kept;
        Vec::from(dropped)
    }

    fn end_cancelled(&mut self) {
        self.abort(JobFailure::Cancelled, Sequence::is_cancelled);
    }

    /// Ends the jobs that `which` chooses at once.
    fn abort(&mut self, error: JobFailure, which: impl Fn(&Sequence) -> bool) {
        let mut chosen: Vec<Sequence> = self.sequences.extract_if(.., |sequence| which(sequence)).collect();
        chosen.iter_mut().for_each(|sequence| sequence.last_word(error));
        self.release(chosen);
    }

    /// Memory and statistics first, sinks last: whoever sees a stream closed sees its memory free.
    fn release(&mut self, over: Vec<Sequence>) {
        let sinks: Vec<_> = over.into_iter().map(|sequence| sequence.release(&mut self.pool)).collect();
        self.shared.count(self.sequences.len(), &self.pool);
        drop(sinks);
    }

    fn step(&mut self) {
        self.begin_round();
        self.ready.clear();
        self.ready.extend(self.sequences.iter().map(|sequence| (sequence.payer, sequence.ready())));
        for i in 0..self.ready.len() {
            if matches!(self.ready[i].1, Ready::Prefill(_)) && self.follows(i) {
                self.ready[i].1 = Ready::Paused;
            }
        }
        let n_decode = self.ready.iter().filter(|(_, ready)| *ready == Ready::Decode).count();
        let budget = self.pace.prefill_budget(n_decode, self.options.prefill_chunk);
        scheduler::plan(&self.ready, budget, &mut self.plan);
        self.promise_memory();
        if self.plan.is_empty() {
            return;
        }
        let started = Instant::now();
        let mut slices = Vec::with_capacity(self.plan.len());
        let mut planned = self.plan.iter().peekable();
        for (i, sequence) in self.sequences.iter_mut().enumerate() {
            let Some(work) = planned.next_if(|work| work.sequence == i) else { continue };
            if let Some(kv) = &mut sequence.kv {
                self.pool.grow(kv, work.n_tokens);
            }
            slices.extend(sequence.slice(work.n_tokens));
        }
        let finite = self.runner.step(self.model, &mut slices);
        let asked: Vec<bool> = slices.iter().map(|slice| slice.logits_from < slice.tokens.len()).collect();
        drop(slices);
        self.keep_finite(&finite);
        let (n_prefill, n_decode) = self.count_step();
        self.sample(&finite, &asked);
        self.pace.observe(n_decode, n_prefill, started.elapsed());
        // What has ended needs no memory, however long its consumer takes.
        self.sequences.iter_mut().filter(|s| s.has_ended()).for_each(|s| s.park(&mut self.pool));
    }

    /// Lets others use what was computed; what is not finite is forgotten at once.
    fn keep_finite(&mut self, finite: &[bool]) {
        for (work, finite) in self.plan.iter().zip(finite) {
            let sequence = &mut self.sequences[work.sequence];
            match &mut sequence.kv {
                Some(kv) if *finite => self.pool.publish(kv, &sequence.tokens),
                _ => sequence.kv.take().into_iter().for_each(|kv| self.pool.release(kv)),
            }
        }
    }

    /// Chooses the next token of every sequence whose logits were computed.
    fn sample(&mut self, finite: &[bool], asked: &[bool]) {
        let vocab = self.model.config().vocab;
        let n_asked = asked.iter().filter(|asked| **asked).count();
        let mut works = self.plan.iter().zip(finite).zip(asked);
        let mut first = 0;
        while first < n_asked {
            let n = LOGIT_ROWS.min(n_asked - first);
            let logits = self.runner.logits(self.model, first, n);
            let mut rows = logits.chunks(vocab);
            while rows.len() > 0 {
                let Some(((work, finite), asked)) = works.next() else { break };
                let sequence = &mut self.sequences[work.sequence];
                if !finite {
                    sequence.fail(JobFailure::NonFinite { index: sequence.index });
                }
                if !asked {
                    continue;
                }
                let row = rows.next().expect("a row for each asked slice");
                match sequence.sampler.pick(row, sequence.index, &mut self.scratch) {
                    Ok(picked) if *finite => sequence.produced(picked),
                    Ok(_) => {}
                    Err(error) => sequence.fail(error.failure(sequence.index)),
                }
            }
            first += n;
        }
        for ((work, finite), _) in works {
            let sequence = &mut self.sequences[work.sequence];
            if !finite {
                sequence.fail(JobFailure::NonFinite { index: sequence.index });
            }
        }
    }

    fn deliver(&mut self) {
        let over = self.sequences.extract_if(.., Sequence::deliver).collect();
        self.release(over);
    }

    /// Returns how many prompt tokens were computed and how many sequences decoded.
    fn count_step(&self) -> (usize, usize) {
        let (mut prompt, mut output) = (0, 0);
        for work in &self.plan {
            match self.ready[work.sequence].1 {
                Ready::Prefill(_) => prompt += work.n_tokens,
                _ => output += 1,
            }
        }
        self.shared.prompt_tokens.fetch_add(prompt as u64, Ordering::Relaxed);
        self.shared.output_tokens.fetch_add(output as u64, Ordering::Relaxed);
        self.shared.steps.fetch_add(1, Ordering::Relaxed);
        (prompt, output)
    }
}

fn refuse(mut pending: Pending, error: JobFailure) {
    let _ = pending.sink.push(crate::sequence::EngineEvent::Failed { error });
}

/// Closes the inbox whatever way the thread ends; waiting jobs are told.
struct CloseOnExit<'a>(&'a Shared);

impl Drop for CloseOnExit<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut inbox = self.0.lock();
            inbox.stop = Some(Stop { by: Instant::now() });
            std::mem::take(&mut inbox.waiting)
        };
        waiting.into_iter().for_each(|pending| refuse(pending, JobFailure::ShuttingDown));
    }
}
