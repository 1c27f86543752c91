//! Re-deriving an answer from its receipt file: one prefill over the prompt and all output tokens.

use crate::statements::Statements;
use assay_engine::{Model, Replay, ReplayError, Runner};
use assay_types::{Finish, ModelId, ProviderId, ReceiptFile, TokenId};

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

/// Who signed the output token with this index in the whole answer.
fn signer(file: &ReceiptFile, index: usize) -> Option<ProviderId> {
    let mut end = 0;
    file.parts.iter().find_map(|part| {
        end += part.output.len();
        (index < end).then_some(part.provider)
    })
}
