//! The public face of a running engine: submit, cancel, watch, shut down.
//!
//! Owns the bounded queue between callers and the engine's thread. The thread itself is `drive.rs`. Nothing here
//! blocks on the model: a submit is a few lines under a mutex, and a full queue is an error.
//!
//! ```text
//! caller --submit--> [queue, bounded] --admit (KV memory promised)--> batch --step--> sink.push --> caller
//!        --cancel--> flag, read between steps             ^--park (memory short)--'
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use assay_num::{Isa, Kernels};
use assay_types::{Finish, Job, JobError, JobLimits};

use crate::choose::ConstraintError;
use crate::drive;
use crate::kv::{KvPool, blocks_for};
use crate::model::Model;
use crate::prefix::{Payer, PrefixCache};
use crate::sequence::{Pending, TokenSink};

/// Bound of [`EngineOptions::sequences_max`].
pub const SEQUENCES_MAX: usize = 1024;

/// Bound of [`EngineOptions::prefill_chunk`].
pub const PREFILL_CHUNK_MAX: usize = 4096;

/// How an engine runs. None of it affects the bits of an output.
#[derive(Clone, Copy, Debug)]
pub struct EngineOptions {
    /// Threads that compute, the engine's own included; 0 is [`threads_for`] the model.
    pub threads: usize,
    /// Instruction set; `None` is the best this CPU has.
    pub isa: Option<Isa>,
    /// Jobs that run at once; clamped to 1..=[`SEQUENCES_MAX`].
    pub sequences_max: usize,
    /// Prompt tokens per step (fewer while other jobs decode: they wait at most about twice as long for a token as
    /// without it); clamped to 1..=[`PREFILL_CHUNK_MAX`]. Activations
    /// take about `(prefill_chunk + sequences_max) * 4 * (4 * width + 3 * feed_forward)` bytes.
    pub prefill_chunk: usize,
    /// Accepted jobs that wait; one more is [`SubmitError::QueueFull`].
    pub queue_depth: usize,
    /// Positions of KV memory shared by running jobs and the prefix cache; allocated in blocks of 256 as they are
    /// written. A job that could not run in it alone is [`SubmitError::KvOverflow`]; more jobs than it holds at once
    /// take turns.
    pub kv_tokens: usize,
    /// What is kept of a job's keys and values for later ones.
    pub prefix_cache: PrefixCache,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            threads: 0,
            isa: None,
            sequences_max: 64,
            prefill_chunk: 256,
            queue_depth: 64,
            kv_tokens: 32_768,
            prefix_cache: PrefixCache::PerPayer,
        }
    }
}

/// A model being served. Dropping it is [`Shutdown::Now`].
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    shared: Arc<Shared>,
    options: EngineOptions,
    isa: Isa,
    thread: Option<thread::JoinHandle<()>>,
}

/// How an engine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// Running and waiting jobs fail with [`crate::JobFailure::ShuttingDown`] after the current step.
    Now,
    /// Accepted jobs are finished first; what is left after `timeout` fails as with `Now`.
    Drain {
        /// How long to wait.
        timeout: Duration,
    },
}

/// Why a job was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The job itself is wrong; contains the context overflow with its numbers.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The job could never get its memory.
    #[error("prompt and output need {needed} positions of KV memory, the engine has {kv_tokens}")]
    KvOverflow {
        /// Positions it asks for.
        needed: usize,
        /// What the engine was started with.
        kv_tokens: usize,
    },
    /// The prefix of a resumed job is already complete.
    #[error("the prefix is a complete output (it ended with {finish:?})")]
    PrefixComplete {
        /// How it ended.
        finish: Finish,
    },
    /// The job's grammar is none, or the model cannot follow it.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// Too many jobs wait.
    #[error("{waiting} jobs are waiting; the queue is full")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// The engine is shutting down or has died.
    #[error("the engine is not running")]
    Stopped,
}

/// Why an engine does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The CPU lacks the instruction set that was asked for.
    #[error("this CPU does not have {isa}")]
    Isa {
        /// What was asked for.
        isa: Isa,
    },
    /// The operating system refused a thread.
    #[error("cannot start the engine's thread: {0}")]
    Thread(#[from] std::io::Error),
}

/// A submitted job. Dropping the handle does not cancel the job: whoever holds the sink decides, by
/// [`crate::SinkState::Closed`], and a job nobody waits for still completes and is paid.
#[derive(Clone, Debug)]
pub struct JobHandle {
    cancelled: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

/// A snapshot for people and routers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Jobs in the batch.
    pub running: u64,
    /// Jobs waiting for a place.
    pub queued: u64,
    /// Prompt tokens computed since the start.
    pub prompt_tokens: u64,
    /// Output tokens produced since the start.
    pub output_tokens: u64,
    /// Steps since the start.
    pub steps: u64,
    /// Jobs that found at least one position of their input in the prefix cache, each time they got memory.
    pub prefix_hits: u64,
    /// Positions that were found and not computed.
    pub prefix_tokens: u64,
    /// Times that a running job gave its memory to an older one.
    pub preemptions: u64,
    /// Blocks of 256 positions promised to running jobs.
    pub kv_blocks: u64,
    /// Blocks that are kept for later jobs while nobody wants the memory.
    pub kv_blocks_cached: u64,
    /// Blocks there are.
    pub kv_blocks_max: u64,
}

/// What callers and the engine's thread share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    changed: Condvar,
    pub running: AtomicU64,
    pub prompt_tokens: AtomicU64,
    pub output_tokens: AtomicU64,
    pub steps: AtomicU64,
    pub prefix_hits: AtomicU64,
    pub prefix_tokens: AtomicU64,
    pub preemptions: AtomicU64,
    pub kv_blocks: AtomicU64,
    pub kv_blocks_cached: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Inbox {
    /// At most `queue_depth`.
    pub waiting: VecDeque<Pending>,
    pub stop: Option<Stop>,
}

/// The engine stops when nothing is left to do, or at `by` at the latest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub by: Instant,
}

impl Engine {
    /// Starts the engine's threads.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(model: Arc<Model>, options: EngineOptions) -> Result<Engine, StartError> {
        let kernels = match options.isa {
            None => Kernels::detect(),
            Some(isa) => Kernels::with_isa(isa).ok_or(StartError::Isa { isa })?,
        };
        let options = EngineOptions {
            threads: if options.threads == 0 { threads_for(&model) } else { options.threads },
            sequences_max: options.sequences_max.clamp(1, SEQUENCES_MAX),
            prefill_chunk: options.prefill_chunk.clamp(1, PREFILL_CHUNK_MAX),
            ..options
        };
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("assay-engine".to_owned()).spawn({
            let (model, shared) = (Arc::clone(&model), Arc::clone(&shared));
            move || drive::run(&model, &shared, kernels, &options)
        })?;
        Ok(Engine { model, shared, options, isa: kernels.isa(), thread: Some(thread) })
    }

    /// The model that is served.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use, the engine's own included.
    pub fn threads(&self) -> usize {
        self.options.threads
    }

    /// Positions of KV memory it may use.
    pub fn kv_tokens(&self) -> usize {
        self.options.kv_tokens
    }

    /// What the engine accepts.
    pub fn limits(&self) -> JobLimits {
        job_limits(&self.model)
    }

    /// As [`Engine::submit_for`] the default payer.
    ///
    /// # Errors
    /// See [`SubmitError`]; the sink is dropped unused.
    pub fn submit(&self, job: &Job, sink: Box<dyn TokenSink>) -> Result<JobHandle, SubmitError> {
        self.submit_for(Payer::default(), job, sink)
    }

    /// Accepts a job. Its events go to `sink`. The jobs of a payer are admitted to the batch in the order they were
    /// accepted; between payers, the one with the fewest running jobs goes first.
    ///
    /// # Errors
    /// See [`SubmitError`]; the sink is dropped unused.
    pub fn submit_for(&self, payer: Payer, job: &Job, sink: Box<dyn TokenSink>) -> Result<JobHandle, SubmitError> {
        job.validate(&self.limits())?;
        let pending = Pending::new(payer, job, &self.model, sink)?;
        if blocks_for(pending.positions) > blocks_for(self.options.kv_tokens) {
            return Err(SubmitError::KvOverflow { needed: pending.positions, kv_tokens: self.options.kv_tokens });
        }
        let cancelled = Arc::clone(&pending.cancelled);
        let mut inbox = self.shared.lock();
        if inbox.stop.is_some() {
            return Err(SubmitError::Stopped);
        }
        if inbox.waiting.len() >= self.options.queue_depth {
            return Err(SubmitError::QueueFull { waiting: inbox.waiting.len() });
        }
        inbox.waiting.push_back(pending);
        drop(inbox);
        self.shared.changed.notify_one();
        Ok(JobHandle { cancelled, shared: Arc::clone(&self.shared) })
    }

    /// What it is doing now.
    pub fn stats(&self) -> EngineStats {
        let shared = &self.shared;
        let queued = shared.lock().waiting.len() as u64;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EngineStats {
            running: read(&shared.running),
            queued,
            prompt_tokens: read(&shared.prompt_tokens),
            output_tokens: read(&shared.output_tokens),
            steps: read(&shared.steps),
            prefix_hits: read(&shared.prefix_hits),
            prefix_tokens: read(&shared.prefix_tokens),
            preemptions: read(&shared.preemptions),
            kv_blocks: read(&shared.kv_blocks),
            kv_blocks_cached: read(&shared.kv_blocks_cached),
            kv_blocks_max: blocks_for(self.options.kv_tokens) as u64,
        }
    }

    /// Refuses new jobs from now on, ends the others as `how` says, and joins the threads.
    pub fn shutdown(mut self, how: Shutdown) {
        self.stop_and_join(how);
    }

    fn stop_and_join(&mut self, how: Shutdown) {
        let wait = match how {
            Shutdown::Now => Duration::ZERO,
            Shutdown::Drain { timeout } => timeout,
        };
        // A timeout too long for the clock is a day: the engine is a process's child, not its owner.
        let now = Instant::now();
        let by = now.checked_add(wait).unwrap_or(now + Duration::from_secs(86_400));
        self.shared.lock().stop = Some(Stop { by });
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the engine's thread was reported by the panic hook; its jobs saw their sinks dropped.
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop_and_join(Shutdown::Now);
        }
    }
}

impl JobHandle {
    /// Ends the job after the current step; its memory is free then. The sink gets
    /// [`crate::JobFailure::Cancelled`], unless it is full or has already got the end.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Tells the engine that the sink has room again (without it the engine looks every 2 ms).
    pub fn wake(&self) {
        // The lock orders this after a check that is just being made, so that the wake-up is not lost.
        drop(self.shared.lock());
        self.shared.changed.notify_one();
    }
}

impl Shared {
    pub fn lock(&self) -> MutexGuard<'_, Inbox> {
        // Every critical section leaves the inbox consistent at each step, so a poisoned lock is still good.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, at most `timeout`.
    pub fn wait<'a>(&self, inbox: MutexGuard<'a, Inbox>, timeout: Option<Duration>) -> MutexGuard<'a, Inbox> {
        match timeout {
            None => self.changed.wait(inbox).unwrap_or_else(PoisonError::into_inner),
            Some(timeout) => self.changed.wait_timeout(inbox, timeout).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    pub fn count(&self, running: usize, pool: &KvPool) {
        self.running.store(running as u64, Ordering::Relaxed);
        self.kv_blocks.store(pool.blocks_reserved() as u64, Ordering::Relaxed);
        self.kv_blocks_cached.store(pool.blocks_idle() as u64, Ordering::Relaxed);
    }

    /// A job got memory and `known` positions with it.
    pub fn count_known(&self, known: usize) {
        self.prefix_hits.fetch_add(u64::from(known > 0), Ordering::Relaxed);
        self.prefix_tokens.fetch_add(known as u64, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("waiting", &self.waiting.len()).field("stop", &self.stop).finish()
    }
}

/// Threads that pay off for a model: a core's share of the weights, read once for every token, should take longer
/// than waiting for the other cores some five times per layer. A small model is fastest on one core, and leaves the
/// others to its neighbours.
pub fn threads_for(model: &Model) -> usize {
    const SHARE: usize = 8 << 20;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (model.weight_bytes() / SHARE).clamp(1, cores)
}

/// What a job must satisfy to run on `model`.
pub fn job_limits(model: &Model) -> JobLimits {
    // Both are bounded far below 2^32 when the model is loaded.
    JobLimits { vocab_size: model.config().vocab as u32, context_length: model.context() as u32, dimensions: 0 }
}
