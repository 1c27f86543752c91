//! What computes a model's tokens: the canonical engine in this process, or somebody else's engine over HTTP.

use crate::config::Work;
use crate::encoder::{EncoderThread, NotTaken};
use crate::upstream::{Stream, Upstream};
use assay_engine::{Engine, EngineEvent, JobFailure, JobHandle, Payer, SinkState, StartError, SubmitError};
use assay_net::{Refused, RefusedCode};
use assay_types::{Finish, Job, JobLimits, TokenId, TokenLogprobs};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::mpsc;

/// Tokens that a backend may be ahead of the connection.
const EVENTS_MAX: usize = 32;

/// Computes tokens.
pub(crate) enum Backend {
    /// Canonical: class exact.
    Engine(Engine),
    /// Canonical, for vectors.
    Encoder(EncoderThread),
    /// An OpenAI-compatible server: class tolerant.
    Upstream(Arc<Upstream>),
}

/// What comes of a job.
#[derive(Debug)]
pub(crate) enum Event {
    /// Of the token that follows.
    Logprobs(Box<TokenLogprobs>),
    /// The next output token.
    Token(TokenId),
    /// The bits of all values of all vectors, which is the whole output.
    Vectors(Vec<TokenId>),
    /// The output is complete.
    Done(Finish),
    /// It is not going to be.
    Failed(Failure),
}

/// Why an output is not complete.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The job was cancelled, or the backend is stopping.
    Cancelled,
    /// There is no room, and nothing was computed.
    Busy(String),
    /// The job's own fault, which every provider would find.
    Hopeless(String),
    /// The backend's.
    Broken(String),
}

/// A job that runs; dropping an upstream's ends it, an engine's is to be cancelled.
pub(crate) struct Working {
    pub events: mpsc::Receiver<Event>,
    handle: Handle,
}

enum Handle {
    Engine {
        job: JobHandle,
        /// The engine was told to wait.
        is_held: Arc<AtomicBool>,
    },
    Encoder {
        is_cancelled: Arc<AtomicBool>,
    },
    Upstream {
        /// Ends the exchange when it is dropped.
        _stream: Stream,
    },
}

impl From<EngineEvent> for Event {
    fn from(event: EngineEvent) -> Self {
        match event {
            EngineEvent::Logprobs(logprobs) => Self::Logprobs(logprobs),
            EngineEvent::Token { id } => Self::Token(id),
            EngineEvent::Done { finish } => Self::Done(finish),
            EngineEvent::Failed { error } => Self::Failed(match error {
                JobFailure::ShuttingDown | JobFailure::Cancelled => Failure::Cancelled,
                JobFailure::Grammar { .. } => Failure::Hopeless(error.to_string()),
                JobFailure::NonFinite { .. } => Failure::Broken(error.to_string()),
            }),
        }
    }
}

impl Backend {
    /// What `work` needs, in this process.
    pub fn start(work: Work) -> Result<Self, StartError> {
        match work {
            Work::Writes { model, engine } => Engine::start(model, engine).map(Self::Engine),
            Work::Embeds { encoder, threads, isa } => Ok(Self::Encoder(EncoderThread::start(encoder, threads, isa))),
        }
    }

    /// What a job may ask for.
    pub fn limits(&self) -> JobLimits {
        match self {
            Self::Engine(engine) => engine.limits(),
            Self::Encoder(encoder) => encoder.limits(),
            Self::Upstream(upstream) => upstream.limits(),
        }
    }

    /// Jobs that run, and that wait.
    pub fn load(&self) -> (u64, u64) {
        match self {
            Self::Engine(engine) => {
                let stats = engine.stats();
                (stats.running, stats.queued)
            }
            Self::Encoder(encoder) => encoder.load(),
            Self::Upstream(upstream) => (upstream.running(), 0),
        }
    }

    /// What only the canonical engine can do, refused where it costs nothing; grammars are compiled where that holds
    /// nobody up, and the engine finds them among the kept ones.
    pub async fn check(&self, job: &Job) -> Result<(), Refused> {
        match self {
            Self::Engine(engine) => compile_grammar(engine, job).await,
            // All that a job for vectors can ask for was validated.
            Self::Encoder(_) => Ok(()),
            Self::Upstream(upstream) => upstream.check(job).map_err(|reason| Refused::new(RefusedCode::BadJob, reason)),
        }
    }

    /// Begins a job that was checked.
    pub fn submit(&self, payer: [u8; 20], job: &Job) -> Result<Working, Refused> {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let handle = match self {
            Self::Engine(engine) => {
                let is_held = Arc::new(AtomicBool::new(false));
                let held = Arc::clone(&is_held);
                let sink = move |event: EngineEvent| match sender.try_send(event.into()) {
                    Ok(()) => SinkState::Ready,
                    Err(mpsc::error::TrySendError::Full(_)) => {
                        held.store(true, Ordering::Release);
                        SinkState::Full
                    }
                    Err(mpsc::error::TrySendError::Closed(_)) => SinkState::Closed,
                };
                let submitted = engine.submit_for(Payer(payer), job, Box::new(sink));
                Handle::Engine { job: submitted.map_err(refused)?, is_held }
            }
            Self::Encoder(encoder) => {
                let is_cancelled = Arc::new(AtomicBool::new(false));
                encoder.submit(job.texts(), sender, Arc::clone(&is_cancelled)).map_err(|error| match error {
                    NotTaken::Full => Refused::new(RefusedCode::Busy, "too many jobs wait already"),
                    NotTaken::Stopped => Refused::new(RefusedCode::Draining, "this provider is shutting down"),
                })?;
                Handle::Encoder { is_cancelled }
            }
            Self::Upstream(upstream) => match upstream.submit(job.clone(), sender) {
                Some(stream) => Handle::Upstream { _stream: stream },
                None => return Err(Refused::new(RefusedCode::Busy, "the engine behind this provider is full")),
            },
        };
        Ok(Working { events, handle })
    }
}

impl Working {
    /// Nobody waits for what is still computed.
    pub fn cancel(&mut self) {
        match &self.handle {
            Handle::Engine { job, .. } => job.cancel(),
            Handle::Encoder { is_cancelled } => is_cancelled.store(true, Ordering::Relaxed),
            Handle::Upstream { .. } => {}
        }
        self.events.close();
    }

    /// Events were taken: an engine that was told to wait goes on.
    pub fn on_taken(&self) {
        if let Handle::Engine { job, is_held } = &self.handle
            && is_held.swap(false, Ordering::AcqRel)
        {
            job.wake();
        }
    }
}

fn refused(error: SubmitError) -> Refused {
    match error {
        SubmitError::Job(_) | SubmitError::PrefixComplete { .. } | SubmitError::Constraint(_) => {
            Refused::new(RefusedCode::BadJob, error)
        }
        // Another provider may have more memory.
        SubmitError::KvOverflow { .. } | SubmitError::QueueFull { .. } => Refused::new(RefusedCode::Busy, error),
        SubmitError::Stopped => Refused::new(RefusedCode::Draining, error),
    }
}

async fn compile_grammar(engine: &Engine, job: &Job) -> Result<(), Refused> {
    let Some(grammar) = job.grammar.clone() else { return Ok(()) };
    let model = Arc::clone(engine.model());
    let bad = |error: &dyn std::fmt::Display| Refused::new(RefusedCode::BadJob, error);
    let compile = move || match model.vocabulary() {
        Ok(vocabulary) => vocabulary.compile(&grammar).map(drop).map_err(|error| bad(&error)),
        Err(error) => Err(bad(&error)),
    };
    let lost = |_| Refused::new(RefusedCode::Internal, "the provider is shutting down");
    tokio::task::spawn_blocking(compile).await.map_err(lost)?
}
