//! Re-deriving an answer from its receipt file: one prefill over the prompt and all output tokens.

use crate::statements::Statements;
use assay_engine::encoder::{EmbedError, Embedder, Encoder};
use assay_engine::{Model, Replay, ReplayError, Runner};
use assay_types::{Finish, JobError, JobLimits, ModelId, ProviderId, ReceiptFile, TokenId};

/// What the model says about an answer whose statements hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Every token is the one that the model gives, and it ended where it had to.
    Exact {
        /// Tokens that were checked.
        tokens: usize,
    },
    /// A provider signed a token that the model does not give.
    WrongToken {
        /// Who signed it.
        provider: ProviderId,
        /// Index in the whole answer, from 0.
        index: usize,
        /// What the model gives; `None` if the answer ends before.
        expected: Option<TokenId>,
        /// What was signed.
        got: TokenId,
    },
    /// All tokens are right, but the answer does not end there in that way.
    WrongFinish {
        /// Who signed it.
        provider: ProviderId,
        /// How it stands.
        expected: Finish,
        /// What was signed.
        got: Finish,
    },
}

/// Why an answer could not be replayed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unchecked {
    /// The model at hand is not the one in the receipt.
    #[error("this is another model: the receipt names {expected}, the file is {found}")]
    OtherModel {
        /// In the receipt.
        expected: ModelId,
        /// Of the file.
        found: ModelId,
    },
    /// The engine cannot run the job.
    #[error("the job cannot be replayed: {0}")]
    Replay(#[from] ReplayError),
    /// The encoder does not take the job.
    #[error("the job cannot be replayed: {0}")]
    Job(#[from] JobError),
    /// The encoder has no vectors for it.
    #[error("the job cannot be replayed: {0}")]
    Vectors(#[from] EmbedError),
}

/// Replays the whole answer of `file`, whose [`Statements`] were checked before.
///
/// `found` is the id of the model that `model` was loaded from. The parts are replayed as one: a sampler's choice
/// depends on the position in the answer, not on who produced what was before.
///
/// # Errors
/// [`Unchecked`] says why there is no verdict.
pub fn replay(
    file: &ReceiptFile,
    statements: &Statements,
    model: &Model,
    found: ModelId,
    runner: &mut Runner,
) -> Result<Verdict, Unchecked> {
    if found != file.job.model_id {
        return Err(Unchecked::OtherModel { expected: file.job.model_id, found });
    }
    let last = *statements.providers.last().unwrap_or(&ProviderId::default());
    Ok(match assay_engine::replay(model, runner, &file.job, &statements.output, statements.finish)? {
        Replay::Exact => Verdict::Exact { tokens: statements.output.len() },
        Replay::FirstWrong { index, expected, got } => {
            Verdict::WrongToken { provider: signer(file, index).unwrap_or(last), index, expected, got }
        }
        Replay::WrongFinish { expected, got } => Verdict::WrongFinish { provider: last, expected, got },
    })
}

/// Computes the vectors of `file`, whose [`Statements`] were checked before, and compares their bits.
///
/// `found` is the id of the model that `encoder` was loaded from.
///
/// # Errors
/// [`Unchecked`] says why there is no verdict.
pub fn replay_vectors(
    file: &ReceiptFile,
    statements: &Statements,
    encoder: &Encoder,
    found: ModelId,
    embedder: &mut Embedder,
) -> Result<Verdict, Unchecked> {
    if found != file.job.model_id {
        return Err(Unchecked::OtherModel { expected: file.job.model_id, found });
    }
    let short = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    file.job.validate(&JobLimits {
        vocab_size: encoder.tokenizer().vocab_size(),
        context_length: short(encoder.config().input_length),
        dimensions: short(encoder.dimensions()),
    })?;
    let embeddings = embedder.embed_tokens(encoder, &file.job.texts())?;
    let values = embeddings.iter().flat_map(|embedding| &embedding.values).map(|value| value.to_bits());
    // A job that was cancelled has none; statements say that there are all otherwise.
    for (index, (expected, &got)) in values.zip(&statements.output).enumerate() {
        if expected != got {
            let provider = statements.providers.last().copied().unwrap_or_default();
            return Ok(Verdict::WrongToken { provider, index, expected: Some(expected), got });
        }
    }
    Ok(Verdict::Exact { tokens: statements.output.len() })
}

/// Who signed the output token with this index in the whole answer.
fn signer(file: &ReceiptFile, index: usize) -> Option<ProviderId> {
    let mut end = 0;
    file.parts.iter().find_map(|part| {
        end += part.output.len();
        (index < end).then_some(part.provider)
    })
}
