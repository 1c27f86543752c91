//! Checking a finished output against the model with one prefill.
//!
//! Decoding n tokens reads the weights n times; replaying them reads the weights n/256 times, because the tokens are
//! known. Every sampled token is compared; the first difference is named.

use assay_num::sample::SampleScratch;
use assay_types::{Finish, Job, JobError, TokenId, TokenLogprobs};

use crate::choose::{Chooser, ConstraintError, NoToken, logprobs_of};
use crate::engine::job_limits;
use crate::forward::{LOGIT_ROWS, Runner, Slice};
use crate::kv::KvPool;
use crate::model::Model;
use crate::sequence::{finish_of, resumed_text};

/// Tokens per step.
pub(crate) const REPLAY_CHUNK: usize = 256;

/// What a replay found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Every token and the finish are what the job gives.
    Exact,
    /// The first wrong token.
    FirstWrong {
        /// Index in the checked output (the job's prefix not counted).
        index: usize,
        /// The right token; `None` if the output ends before it.
        expected: Option<TokenId>,
        /// The token that was claimed.
        got: TokenId,
    },
    /// Every token is right, but the output does not end the way that was claimed.
    WrongFinish {
        /// How it really stands after the last token: `Open` if it goes on.
        expected: Finish,
        /// The claim.
        got: Finish,
    },
}

/// Why a replay cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The job does not fit the model.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The job's prefix is a complete output, so nothing can follow it.
    #[error("the prefix is a complete output (it ended with {finish:?})")]
    PrefixComplete {
        /// How it ended.
        finish: Finish,
    },
    /// The job's grammar is none, or the model cannot follow it.
    #[error(transparent)]
    Constraint(#[from] ConstraintError),
    /// The grammar allows no token here, so no output is right.
    #[error("the grammar allows no output token {index}")]
    NoToken {
        /// Index in the checked output.
        index: usize,
    },
    /// The honest computation fails here, so no output is right.
    #[error("the model computes a value that is not finite before output token {index}")]
    NonFinite {
        /// Index in the checked output.
        index: usize,
    },
}

/// Replays `job` and compares `output`, the tokens produced after its prefix, and how it is said to have ended.
///
/// `Stop` and `Length` must be true of exactly this output. `Open` and `Cancelled` may be claimed anywhere up to the
/// true end: they say that the producer stopped, not that the text did. Memory: KV of the whole job and
/// 32 rows of logits.
///
/// # Errors
/// See [`ReplayError`].
pub fn replay(
    model: &Model,
    runner: &mut Runner,
    job: &Job,
    output: &[TokenId],
    finish: Finish,
) -> Result<Replay, ReplayError> {
    replay_watched(model, runner, job, output, finish, &mut |_, _| ())
}

/// As [`replay`], and shows `watch` the logits before each output token that is compared, by its index: what an auditor
/// proves its replay with.
///
/// # Errors
/// See [`ReplayError`].
pub fn replay_watched(
    model: &Model,
    runner: &mut Runner,
    job: &Job,
    output: &[TokenId],
    finish: Finish,
    watch: &mut dyn FnMut(usize, &[f32]),
) -> Result<Replay, ReplayError> {
    job.validate(&job_limits(model))?;
    let mut text = resumed_text(job, model.tokenizer()).map_err(|finish| ReplayError::PrefixComplete { finish })?;
    let vocab = model.config().vocab;
    // Up to the end, and up to a token that no model of this vocabulary could have produced.
    let mut ended = None;
    let mut n_checked = 0;
    for token in output {
        if ended.is_some() || *token as usize >= vocab {
            break;
        }
        ended = text.push(*token).finish.map(finish_of);
        n_checked += 1;
    }
    // One token more is asked for if a claimed token is impossible, to name the right one.
    let impossible = ended.is_none() && n_checked < output.len();
    if let Some(wrong) = first_wrong(model, runner, job, &output[..n_checked + usize::from(impossible)], watch)? {
        return Ok(wrong);
    }
    if let Some(got) = output.get(n_checked) {
        return Ok(Replay::FirstWrong { index: n_checked, expected: None, got: *got });
    }
    let expected = ended.unwrap_or(Finish::Open);
    let stopped_early = matches!(finish, Finish::Open | Finish::Cancelled);
    if expected == finish || stopped_early {
        Ok(Replay::Exact)
    } else {
        Ok(Replay::WrongFinish { expected, got: finish })
    }
}

/// Log probabilities of `output`, the tokens after the job's prefix, and of the `top` most likely tokens at each place:
/// what a provider says for a job that asks for them, and cannot sign for. The tokens are taken as they are.
///
/// # Errors
/// See [`ReplayError`]; a token outside the vocabulary is [`JobError::TokenOutOfRange`].
pub fn score(
    model: &Model,
    runner: &mut Runner,
    job: &Job,
    output: &[TokenId],
    top: u8,
) -> Result<Vec<TokenLogprobs>, ReplayError> {
    let limits = job_limits(model);
    job.validate(&limits)?;
    if let Some(&token) = output.iter().find(|token| **token >= limits.vocab_size) {
        return Err(JobError::TokenOutOfRange { token, vocab_size: limits.vocab_size }.into());
    }
    let mut scratch = SampleScratch::default();
    let mut scores = Vec::with_capacity(output.len());
    for_each_row(model, runner, job, output, |index, row| {
        let score = logprobs_of(row, output[index], top, &mut scratch);
        scores.push(score.map_err(|_| ReplayError::NonFinite { index })?);
        Ok(None::<()>)
    })?;
    Ok(scores)
}

/// Shows `visit` the logits before each token of `output`, the tokens after the job's prefix, which are taken as they are:
/// for whoever compares another engine's tokens with this one's.
///
/// # Errors
/// As [`score`].
pub fn watch(
    model: &Model,
    runner: &mut Runner,
    job: &Job,
    output: &[TokenId],
    visit: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), ReplayError> {
    let limits = job_limits(model);
    job.validate(&limits)?;
    if let Some(&token) = output.iter().find(|token| **token >= limits.vocab_size) {
        return Err(JobError::TokenOutOfRange { token, vocab_size: limits.vocab_size }.into());
    }
    for_each_row(model, runner, job, output, |index, row| {
        visit(index, row);
        Ok(None::<()>)
    })?;
    Ok(())
}

/// The sampler of `job` by itself, for whoever has the logits: called with the index of each token of `output` (the tokens
/// after the job's prefix) and its logits, in order, it gives the token that the job takes there, and then goes on with the
/// one that the output has. `None` if there is none to take: a value is not finite, or the grammar allows no token.
///
/// # Errors
/// The job's grammar is none, or the model cannot follow it.
pub fn chooser(
    model: &Model,
    job: &Job,
    output: &[TokenId],
) -> Result<impl FnMut(usize, &[f32]) -> Option<TokenId> + use<>, ConstraintError> {
    let mut chooser = Chooser::new(&Job { logprobs: None, ..job.clone() }, model)?;
    let (mut scratch, output, before) = (SampleScratch::default(), output.to_vec(), job.prefix.len() as u64);
    Ok(move |index: usize, logits: &[f32]| {
        let picked = chooser.pick(logits, before + index as u64, &mut scratch).ok().map(|picked| picked.id);
        if let Some(token) = output.get(index) {
            chooser.push(*token);
        }
        picked
    })
}

/// Compares sampled tokens with `output`, whose last token is not fed to the model.
fn first_wrong(
    model: &Model,
    runner: &mut Runner,
    job: &Job,
    output: &[TokenId],
    watch: &mut dyn FnMut(usize, &[f32]),
) -> Result<Option<Replay>, ReplayError> {
    let mut chooser = Chooser::new(&Job { logprobs: None, ..job.clone() }, model)?;
    let mut scratch = SampleScratch::default();
    for_each_row(model, runner, job, output, |index, row| {
        watch(index, row);
        let position = job.prefix.len() as u64 + index as u64;
        let picked = chooser.pick(row, position, &mut scratch).map_err(|error| match error {
            NoToken::NonFinite => ReplayError::NonFinite { index },
            NoToken::Grammar => ReplayError::NoToken { index },
        })?;
        let (expected, got) = (picked.id, output[index]);
        if expected != got {
            return Ok(Some(Replay::FirstWrong { index, expected: Some(expected), got }));
        }
        chooser.push(expected);
        Ok(None)
    })
}

/// Shows the logits before each token of `output` to `visit`, until it has found something. The last token is not fed
/// to the model.
fn for_each_row<T>(
    model: &Model,
    runner: &mut Runner,
    job: &Job,
    output: &[TokenId],
    mut visit: impl FnMut(usize, &[f32]) -> Result<Option<T>, ReplayError>,
) -> Result<Option<T>, ReplayError> {
    let Some((_, fed_output)) = output.split_last() else { return Ok(None) };
    let tokens = [job.prompt.as_slice(), &job.prefix, fed_output].concat();
    let first_asked = job.prompt.len() + job.prefix.len() - 1;
    let vocab = model.config().vocab;
    let mut pool = KvPool::new(model.kv_shape(), tokens.len());
    let mut kv = pool.reserve(tokens.len()).expect("the pool was made for this sequence");
    let mut index = 0;
    for chunk in tokens.chunks(REPLAY_CHUNK) {
        let start = kv.len();
        pool.grow(&mut kv, chunk.len());
        let logits_from = first_asked.saturating_sub(start).min(chunk.len());
        let slice = Slice { kv: &mut kv, tokens: chunk, logits_from };
        if !runner.step(model, &mut [slice])[0] {
            return Err(ReplayError::NonFinite { index });
        }
        let n_asked = chunk.len() - logits_from;
        for first in (0..n_asked).step_by(LOGIT_ROWS) {
            let n = LOGIT_ROWS.min(n_asked - first);
            for row in runner.logits(model, first, n).chunks(vocab) {
                if let Some(found) = visit(index, row)? {
                    return Ok(Some(found));
                }
                index += 1;
            }
        }
    }
    Ok(None)
}
