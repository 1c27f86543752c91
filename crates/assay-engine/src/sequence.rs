//! A job while it runs: what was fed to the model, what was produced, and who receives it.
//!
//! Owns the rule that a token is delivered before the next one is computed. Does not run the model.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use assay_gguf::{FinishReason, OutputLimits, OutputText, Tokenizer};
use assay_num::sample::SampleParams;
use assay_types::{Finish, Job, TokenId};

use crate::kv::{KvPool, KvSeq};
use crate::scheduler::Ready;

/// What a job's sink receives, in order: any number of tokens, then `Done` or `Failed`, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// The next output token.
    Token {
        /// Its id.
        id: TokenId,
    },
    /// The output is complete.
    Done {
        /// `Stop` or `Length`.
        finish: Finish,
    },
    /// The job ended without completing.
    Failed {
        /// Why.
        error: JobFailure,
    },
}

/// Why a running job ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobFailure {
    /// NaN or infinity appeared; such a value is never canonical, so no token follows from it.
    #[error("the model computed a value that is not finite before output token {index}")]
    NonFinite {
        /// Index in the output, the job's prefix included, of the token that could not be chosen.
        index: u64,
    },
    /// [`crate::JobHandle::cancel`] was called, or the sink closed.
    #[error("the job was cancelled")]
    Cancelled,
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    ShuttingDown,
}

/// What a sink says to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkState {
    /// The event was taken.
    Ready,
    /// The event was not taken; the job pauses and the same event is offered again later.
    Full,
    /// Nobody listens any more; the job is cancelled.
    Closed,
}

/// The consumer of one job's events, called on the engine's thread between steps: it must return at once. It is
/// dropped when the job has ended, also when the engine dies, so a channel's other end always learns of the end.
pub trait TokenSink: Send {
    /// Offers one event.
    fn push(&mut self, event: EngineEvent) -> SinkState;
}

impl<F: FnMut(EngineEvent) -> SinkState + Send> TokenSink for F {
    fn push(&mut self, event: EngineEvent) -> SinkState {
        self(event)
    }
}

/// An accepted job that waits for a place in the batch.
pub(crate) struct Pending {
    /// Prompt, then the prefix of a resumed job: everything that is prefilled.
    pub input: Vec<TokenId>,
    /// Positions it may use.
    pub positions: usize,
    pub sampler: SampleParams,
    /// Index of the next output token, counted from the end of the prompt.
    pub index: u64,
    pub text: OutputText,
    pub sink: Box<dyn TokenSink>,
    pub cancelled: Arc<AtomicBool>,
}

impl Pending {
    /// Prepares a validated job. `Err` if its prefix is already a complete output.
    pub fn new(job: &Job, tokenizer: &Arc<Tokenizer>, sink: Box<dyn TokenSink>) -> Result<Pending, Finish> {
        Ok(Pending {
            input: [job.prompt.as_slice(), &job.prefix].concat(),
            positions: job.prompt.len() + job.max_tokens as usize,
            sampler: sample_params(job),
            index: job.prefix.len() as u64,
            text: resumed_text(job, tokenizer)?,
            sink,
            cancelled: Arc::new(AtomicBool::new(false)),
        })
    }
}

/// The sampler's view of a job.
pub(crate) fn sample_params(job: &Job) -> SampleParams {
    SampleParams {
        temperature_micro: job.sampling.temperature_micro,
        top_p_micro: job.sampling.top_p_micro,
        top_k: job.sampling.top_k,
        seed: job.sampling.seed,
    }
}

/// The output's end detector after the job's prefix; `Err` if the prefix reached the end.
pub(crate) fn resumed_text(job: &Job, tokenizer: &Arc<Tokenizer>) -> Result<OutputText, Finish> {
    let limits = OutputLimits { max_tokens: job.max_tokens, stop: job.stop.clone(), ignore_eos: job.ignore_eos };
    let mut text = OutputText::new(Arc::clone(tokenizer), limits);
    match text.resume(&job.prefix) {
        Some(reason) => Err(finish_of(reason)),
        None => Ok(text),
    }
}

pub(crate) fn finish_of(reason: FinishReason) -> Finish {
    match reason {
        FinishReason::Stop => Finish::Stop,
        FinishReason::Length => Finish::Length,
    }
}

/// A job in the batch.
pub(crate) struct Sequence {
    pub kv: KvSeq,
    pub input: Vec<TokenId>,
    /// The newest output token, which the model has not seen yet; none while the input is being prefilled.
    pub newest: Option<TokenId>,
    pub sampler: SampleParams,
    pub index: u64,
    text: OutputText,
    sink: Box<dyn TokenSink>,
    cancelled: Arc<AtomicBool>,
    /// Events the sink has not taken: at most a token and the end.
    outbox: VecDeque<EngineEvent>,
    /// Whether the last event is in the outbox or was taken.
    ended: bool,
}

impl Sequence {
    pub fn new(pending: Pending, kv: KvSeq) -> Sequence {
        let Pending { input, sampler, index, text, sink, cancelled, .. } = pending;
        let outbox = VecDeque::with_capacity(2);
        Sequence { kv, input, newest: None, sampler, index, text, sink, cancelled, outbox, ended: false }
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What it can do in the next step.
    pub fn ready(&self) -> Ready {
        if self.ended || !self.outbox.is_empty() {
            Ready::Paused
        } else if self.kv.len() < self.input.len() {
            Ready::Prefill(self.input.len() - self.kv.len())
        } else {
            Ready::Decode
        }
    }

    /// Takes the next output token.
    pub fn produced(&mut self, id: TokenId) {
        self.newest = Some(id);
        self.index += 1;
        self.outbox.push_back(EngineEvent::Token { id });
        if let Some(reason) = self.text.push(id).finish {
            self.end(EngineEvent::Done { finish: finish_of(reason) });
        }
    }

    /// Ends the job after what is already in the outbox.
    pub fn fail(&mut self, error: JobFailure) {
        if !self.ended {
            self.end(EngineEvent::Failed { error });
        }
    }

    /// Offers waiting events. `true` when the job is over: the end was taken or nobody listens.
    pub fn deliver(&mut self) -> bool {
        while let Some(event) = self.outbox.front() {
            match self.sink.push(event.clone()) {
                SinkState::Ready => {
                    self.outbox.pop_front();
                }
                SinkState::Full => return false,
                SinkState::Closed => return true,
            }
        }
        self.ended
    }

    /// Offers a failure once, unless something else is still in the way.
    pub fn last_word(&mut self, error: JobFailure) {
        if self.outbox.is_empty() && !self.ended {
            let _ = self.sink.push(EngineEvent::Failed { error });
        }
    }

    /// Gives its memory back; what is left is its sink.
    pub fn release(self, pool: &mut KvPool) -> Box<dyn TokenSink> {
        pool.release(self.kv);
        self.sink
    }

    fn end(&mut self, event: EngineEvent) {
        self.outbox.push_back(event);
        self.ended = true;
    }
}
