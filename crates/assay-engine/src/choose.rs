//! One job's choice of tokens: everything it depends on besides the logits.
//!
//! A function of the job and its output so far, token by token. It holds nothing of the KV cache, so it stays as it is
//! when a sequence's memory is taken and filled again.

use assay_grammar::{GrammarError, Matcher, MatcherError, VocabularyError};
use assay_num::sample::{self, PickError, SampleParams, SampleScratch};
use assay_num::{Adjustments, NonFinite, Penalties};
use assay_types::{Job, TokenId, TokenLogprobs};

use crate::model::Model;
use crate::sequence::JobFailure;

pub(crate) struct Chooser {
    params: SampleParams,
    adjustments: Adjustments,
    grammar: Option<Box<Matcher>>,
    /// As in the job.
    logprobs: Option<u8>,
}

/// The next output token.
pub(crate) struct Picked {
    pub id: TokenId,
    /// If the job asks for them.
    pub logprobs: Option<Box<TokenLogprobs>>,
}

/// Why a job's grammar cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The model's tokens do not allow it.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// The grammar does not compile.
    #[error("grammar: {0}")]
    Grammar(#[from] GrammarError),
    /// The prefix of a resumed job breaks it.
    #[error("the prefix does not follow the grammar: {0}")]
    Prefix(MatcherError),
}

/// Why no token is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoToken {
    NonFinite,
    Grammar,
}

impl NoToken {
    /// As the end of a job, before its output token `index`.
    pub fn failure(self, index: u64) -> JobFailure {
        match self {
            NoToken::NonFinite => JobFailure::NonFinite { index },
            NoToken::Grammar => JobFailure::Grammar { index },
        }
    }
}

impl From<PickError> for NoToken {
    fn from(error: PickError) -> Self {
        match error {
            PickError::NonFinite(_) => NoToken::NonFinite,
            PickError::NothingAllowed => NoToken::Grammar,
        }
    }
}

impl Chooser {
    /// After the job's prefix.
    pub fn new(job: &Job, model: &Model) -> Result<Chooser, ConstraintError> {
        let sampling = &job.sampling;
        let penalties = Penalties {
            repetition_micro: sampling.repetition_penalty_micro,
            frequency_micro: sampling.frequency_penalty_micro,
            presence_micro: sampling.presence_penalty_micro,
        };
        let bias = job.logit_bias.iter().map(|entry| (entry.token, entry.bias_micro)).collect();
        let params = SampleParams {
            temperature_micro: sampling.temperature_micro,
            top_p_micro: sampling.top_p_micro,
            top_k: sampling.top_k,
            min_p_micro: sampling.min_p_micro,
            seed: sampling.seed,
        };
        let mut adjustments = Adjustments::new(bias, penalties, &job.prompt);
        let mut grammar = match &job.grammar {
            None => None,
            Some(grammar) => Some(Box::new(model.vocabulary()?.compile(grammar)?)),
        };
        for &token in &job.prefix {
            adjustments.push(token);
            if let Some(grammar) = &mut grammar {
                grammar.push(token).map_err(ConstraintError::Prefix)?;
            }
        }
        Ok(Chooser { params, adjustments, grammar, logprobs: job.logprobs })
    }

    /// The token for these logits at this index of the output, the prefix included.
    pub fn pick(&mut self, logits: &[f32], index: u64, scratch: &mut SampleScratch) -> Result<Picked, NoToken> {
        let mask = match &mut self.grammar {
            None => None,
            Some(grammar) => Some(grammar.mask().map_err(|_| NoToken::Grammar)?),
        };
        let id = sample::pick_with(logits, &self.params, index, &self.adjustments, mask, scratch)?;
        let score = |top| logprobs_of(logits, id, top, scratch).map(Box::new);
        let logprobs = self.logprobs.map(score).transpose().map_err(PickError::from)?;
        Ok(Picked { id, logprobs })
    }

    /// Takes the next output token, one that was picked.
    pub fn push(&mut self, token: TokenId) {
        self.adjustments.push(token);
        if let Some(grammar) = &mut self.grammar {
            // A grammar that cannot take it gives no mask either: the next pick fails.
            let _ = grammar.push(token);
        }
    }
}

/// What the model thinks of `token` and of the `top` most likely tokens.
pub(crate) fn logprobs_of(
    logits: &[f32],
    token: TokenId,
    top: u8,
    scratch: &mut SampleScratch,
) -> Result<TokenLogprobs, NonFinite> {
    let logprobs = assay_num::logprobs(logits, token, top.into(), scratch)?;
    Ok(TokenLogprobs { token_micro: logprobs.token_micro, top: logprobs.top })
}
