//! A job while it runs: what was fed to the model, what was produced, and who receives it.
//!
//! Owns the rule that a token is delivered before the next one is computed. Does not run the model.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use assay_gguf::{FinishReason, OutputLimits, OutputText, Tokenizer};
use assay_types::{Finish, Job, TokenId, TokenLogprobs};

use crate::choose::{Chooser, Picked};
use crate::engine::SubmitError;
use crate::forward::Slice;
use crate::kv::{KvPool, KvSeq};
use crate::model::Model;
use crate::prefix::Payer;
use crate::scheduler::Ready;

/// What a job's sink receives, in order: any number of tokens, each behind its log probabilities if the job asks for
/// them, then `Done` or `Failed`, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineEvent {
    /// Log probabilities of the token that follows.
    Logprobs(Box<TokenLogprobs>),
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
    /// The job's grammar allows no token here, or has used up the work that it is allowed. It is the job's fault.
    #[error("the grammar allows no output token {index}")]
    Grammar {
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
    pub payer: Payer,
    /// How many later jobs were admitted before it.
    pub overtaken: u32,
    pub sampler: Chooser,
    /// Index of the next output token, counted from the end of the prompt.
    pub index: u64,
    pub text: OutputText,
    pub sink: Box<dyn TokenSink>,
    pub cancelled: Arc<AtomicBool>,
}

impl Pending {
    /// Prepares a validated job. `Err` if its prefix is already a complete output, or its grammar is none.
    pub fn new(payer: Payer, job: &Job, model: &Model, sink: Box<dyn TokenSink>) -> Result<Pending, SubmitError> {
        let text = resumed_text(job, model.tokenizer()).map_err(|finish| SubmitError::PrefixComplete { finish })?;
        Ok(Pending {
            payer,
            overtaken: 0,
            input: [job.prompt.as_slice(), &job.prefix].concat(),
            positions: job.prompt.len() + job.max_tokens as usize,
            sampler: Chooser::new(job, model)?,
            index: job.prefix.len() as u64,
            text,
            sink,
            cancelled: Arc::new(AtomicBool::new(false)),
        })
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

/// Positions promised to a sequence beyond those it has tokens for: enough that one that gets memory is not robbed of
/// it at once.
const HEADROOM: usize = 256;

/// Positions promised to a sequence that has `n_tokens` and may have `positions`.
pub(crate) fn promise(n_tokens: usize, positions: usize) -> usize {
    positions.min(n_tokens + HEADROOM)
}

/// A job in the batch.
pub(crate) struct Sequence {
    /// Keys and values; none while it is parked (its memory went to others) and when it has ended.
    pub kv: Option<KvSeq>,
    /// Prompt, prefix and output so far. All but the last of them are fed to the model before the next is chosen.
    pub tokens: Vec<TokenId>,
    /// Tokens it had when it got its memory: those are prefilled.
    n_input: usize,
    /// Positions it may use.
    positions: usize,
    pub payer: Payer,
    pub sampler: Chooser,
    pub index: u64,
    text: OutputText,
    sink: Box<dyn TokenSink>,
    cancelled: Arc<AtomicBool>,
    /// Events the sink has not taken: at most a token with its log probabilities and the end.
    outbox: VecDeque<EngineEvent>,
    /// Whether the last event is in the outbox or was taken.
    ended: bool,
    /// Rounds of the engine in a row in which its consumer was behind.
    pub rounds_behind: u32,
}

impl Sequence {
    pub fn new(pending: Pending) -> Sequence {
        let Pending { input, positions, payer, sampler, index, text, sink, cancelled, .. } = pending;
        Sequence {
            kv: None,
            n_input: input.len(),
            tokens: input,
            positions,
            payer,
            sampler,
            index,
            text,
            sink,
            cancelled,
            outbox: VecDeque::with_capacity(3),
            ended: false,
            rounds_behind: 0,
        }
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// What it can do in the next step.
    pub fn ready(&self) -> Ready {
        match &self.kv {
            Some(kv) if !self.ended && self.outbox.is_empty() => match self.n_input.saturating_sub(kv.len()) {
                0 => Ready::Decode,
                left => Ready::Prefill(left),
            },
            _ => Ready::Paused,
        }
    }

    /// Whether it could go on if it had memory.
    pub fn wants_memory(&self) -> bool {
        self.kv.is_none() && !self.ended && self.outbox.is_empty()
    }

    /// Whether its consumer is behind.
    pub fn is_behind(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether nothing more is computed for it.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Gets memory, with what the cache knows of its tokens. Returns how many positions that are; `None` if there is
    /// too little memory.
    pub fn seat(&mut self, pool: &mut KvPool) -> Option<usize> {
        let kv = pool.reserve_cached(self.payer, &self.tokens, promise(self.tokens.len(), self.positions))?;
        let known = kv.len();
        self.n_input = self.tokens.len();
        self.kv = Some(kv);
        Some(known)
    }

    /// Gives its memory back; what was computed stays in the cache while nobody wants the memory.
    pub fn park(&mut self, pool: &mut KvPool) {
        if let Some(kv) = self.kv.take() {
            pool.retire(kv, &self.tokens);
        }
    }

    /// The next `n` tokens; logits for the last one if it is the newest there is.
    pub fn slice(&mut self, n: usize) -> Option<Slice<'_>> {
        let kv = self.kv.as_mut()?;
        let fed = kv.len();
        let logits_from = if fed + n == self.tokens.len() { n - 1 } else { n };
        Some(Slice { kv, tokens: &self.tokens[fed..fed + n], logits_from })
    }

    /// Takes the next output token.
    pub fn produced(&mut self, picked: Picked) {
        let Picked { id, logprobs } = picked;
        self.outbox.extend(logprobs.map(EngineEvent::Logprobs));
        self.tokens.push(id);
        self.sampler.push(id);
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
    pub fn release(mut self, pool: &mut KvPool) -> Box<dyn TokenSink> {
        self.park(pool);
        self.sink
    }

    fn end(&mut self, event: EngineEvent) {
        self.outbox.push_back(event);
        self.ended = true;
    }
}
