//! A thread with an encoder: takes all jobs that wait, up to a bound, and computes their texts together. A text's bits do
//! not depend on what else is computed with it. Its queue is bounded; a job that does not fit is refused.

use crate::backend::{Event, Failure};
use crate::config::Work;
use assay_engine::EngineOptions;
use assay_engine::encoder::{EmbedError, Embedder, Embedding, Encoder};
use assay_num::{Isa, Kernels};
use assay_types::{JobLimits, TokenId};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::mpsc;

/// Jobs that may wait for the encoder.
const QUEUE_MAX: usize = 64;
/// Jobs that an offer says it runs at once.
const CAPACITY: u32 = 8;
/// No further job is taken into a step that has so many tokens.
const STEP_TOKENS: usize = 4096;

/// A thread that owns an encoder.
pub(crate) struct EncoderThread {
    limits: JobLimits,
    load: Arc<Load>,
    /// Gone when it is dropped, which ends the thread.
    tasks: Option<SyncSender<Task>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Load {
    running: AtomicU32,
    queued: AtomicU32,
}

/// One job.
struct Task {
    texts: Vec<Vec<TokenId>>,
    answer: mpsc::Sender<Event>,
    is_cancelled: Arc<AtomicBool>,
}

/// Why the encoder does not take a job.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotTaken {
    Full,
    Stopped,
}

impl Work {
    /// Jobs that it runs at once, and the longest context that its memory has room for.
    pub(crate) fn room(&self) -> (u32, u32) {
        let short = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        match self {
            Self::Writes { engine: EngineOptions { sequences_max, kv_tokens, .. }, .. } => {
                (short(*sequences_max), short(*kv_tokens))
            }
            Self::Embeds { .. } => (CAPACITY, u32::MAX),
        }
    }
}

impl EncoderThread {
    /// Starts it; `isa` is one that this CPU has.
    pub(crate) fn start(encoder: Arc<Encoder>, threads: usize, isa: Option<Isa>) -> Self {
        let config = encoder.config();
        let short = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let limits = JobLimits {
            vocab_size: encoder.tokenizer().vocab_size(),
            context_length: short(config.input_length),
            dimensions: short(encoder.dimensions()),
        };
        let load = Arc::new(Load::default());
        let (tasks, queue) = sync_channel(QUEUE_MAX);
        // The caller has asked whether this CPU has it.
        let kernels = isa.and_then(Kernels::with_isa).unwrap_or_else(Kernels::detect);
        let seen = Arc::clone(&load);
        let thread = std::thread::spawn(move || {
            run(&encoder, &mut Embedder::with_kernels(kernels, threads), &queue, &seen);
        });
        Self { limits, load, tasks: Some(tasks), thread: Mutex::new(Some(thread)) }
    }

    pub(crate) fn limits(&self) -> JobLimits {
        self.limits
    }

    /// Jobs that run, and that wait.
    pub(crate) fn load(&self) -> (u64, u64) {
        let count = |count: &AtomicU32| count.load(Ordering::Relaxed).into();
        (count(&self.load.running), count(&self.load.queued))
    }

    /// Queues `texts`; the vectors, or why there are none, are sent to `answer`.
    pub(crate) fn submit(
        &self,
        texts: Vec<Vec<TokenId>>,
        answer: mpsc::Sender<Event>,
        is_cancelled: Arc<AtomicBool>,
    ) -> Result<(), NotTaken> {
        let tasks = self.tasks.as_ref().ok_or(NotTaken::Stopped)?;
        // Before the thread can take it out again.
        self.load.queued.fetch_add(1, Ordering::Relaxed);
        tasks.try_send(Task { texts, answer, is_cancelled }).map_err(|error| {
            self.load.queued.fetch_sub(1, Ordering::Relaxed);
            match error {
                TrySendError::Full(_) => NotTaken::Full,
                TrySendError::Disconnected(_) => NotTaken::Stopped,
            }
        })
    }
}

impl Drop for EncoderThread {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // One that panicked has said so, and its jobs have failed.
            let _ = thread.join();
        }
    }
}

fn run(encoder: &Encoder, embedder: &mut Embedder, queue: &Receiver<Task>, load: &Load) {
    while let Ok(first) = queue.recv() {
        let mut tokens = 0;
        let mut tasks = Vec::new();
        let mut next = Some(first);
        while let Some(task) = next {
            load.queued.fetch_sub(1, Ordering::Relaxed);
            tokens += task.texts.iter().map(Vec::len).sum::<usize>();
            if !task.is_cancelled.load(Ordering::Relaxed) {
                tasks.push(task);
            }
            next = if tokens < STEP_TOKENS { queue.try_recv().ok() } else { None };
        }
        load.running.store(u32::try_from(tasks.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        step(encoder, embedder, &tasks);
        load.running.store(0, Ordering::Relaxed);
    }
}

/// All together; one after the other if one of them has no vectors, so that the others do not suffer.
fn step(encoder: &Encoder, embedder: &mut Embedder, tasks: &[Task]) {
    let texts: Vec<Vec<TokenId>> = tasks.iter().flat_map(|task| task.texts.iter().cloned()).collect();
    match embedder.embed_tokens(encoder, &texts) {
        Ok(mut embeddings) => {
            for task in tasks.iter().rev() {
                let own = embeddings.split_off(embeddings.len() - task.texts.len());
                task.tell(Ok(own));
            }
        }
        Err(_) if tasks.len() > 1 => {
            for task in tasks {
                task.tell(embedder.embed_tokens(encoder, &task.texts));
            }
        }
        Err(error) => tasks.iter().for_each(|task| task.tell(Err(error.clone()))),
    }
}

impl Task {
    fn tell(&self, result: Result<Vec<Embedding>, EmbedError>) {
        let event = match result {
            Ok(embeddings) => {
                let values = embeddings.iter().flat_map(|embedding| &embedding.values);
                Event::Vectors(values.map(|value| value.to_bits()).collect())
            }
            // Every provider would find the same.
            Err(error) => Event::Failed(Failure::Hopeless(error.to_string())),
        };
        // Its channel has room for the only event; if it is closed, nobody wants it.
        let _ = self.answer.try_send(event);
    }
}
