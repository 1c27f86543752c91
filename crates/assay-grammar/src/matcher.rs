//! One output under a grammar.

use assay_types::TokenId;
use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;

/// Where an output stands in its grammar.
pub struct Matcher {
    inner: llguidance::Matcher,
    ends: Vec<TokenId>,
    /// Of the tokens that may come next, once it was asked for.
    mask: Option<SimpleVob>,
    has_ended: bool,
}

/// Why no token can follow.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MatcherError {
    /// A bound on counted work was reached, or no token of the vocabulary fits.
    #[error("the grammar cannot go on: {0}")]
    Stuck(String),
    /// The token is not one of the allowed.
    #[error("the grammar does not allow token {0} here")]
    NotAllowed(TokenId),
    /// The output has ended.
    #[error("the output has ended")]
    Ended,
}

impl Matcher {
    pub(crate) fn new(parser: TokenParser, ends: Vec<TokenId>) -> Self {
        Self { inner: llguidance::Matcher::new(Ok(parser)), ends, mask: None, has_ended: false }
    }

    /// A copy that shares nothing with this one, which has not moved yet.
    pub(crate) fn fresh_copy(&self) -> Self {
        Self { inner: self.inner.deep_clone(), ends: self.ends.clone(), mask: None, has_ended: false }
    }

    /// Tokens that may come next: bit `id % 32` of word `id / 32`, 0 behind the end. Tokens that end an answer are
    /// among them where the grammar may end; where it has to, they are all there is.
    ///
    /// # Errors
    /// [`MatcherError::Stuck`] and [`MatcherError::Ended`].
    pub fn mask(&mut self) -> Result<&[u32], MatcherError> {
        if self.has_ended {
            return Err(MatcherError::Ended);
        }
        if self.mask.is_none() {
            let stuck = |reason: String| MatcherError::Stuck(reason.chars().take(200).collect());
            // A stop for any other reason than a complete sentence is a failure that would look like one.
            let reason = self.inner.stop_reason();
            if !matches!(reason, StopReason::NotStopped | StopReason::NoExtension | StopReason::EndOfSentence) {
                return Err(stuck(self.inner.get_error().unwrap_or_else(|| reason.to_string())));
            }
            let mask = self.inner.compute_mask_or_eos().map_err(|error| stuck(error.to_string()))?;
            self.mask = Some(mask);
        }
        Ok(self.mask.as_ref().map_or(&[], |mask| mask.as_slice()))
    }

    /// Takes the next token. The mask before it is always made: it takes its share of the bounded work.
    ///
    /// # Errors
    /// See [`MatcherError`].
    pub fn push(&mut self, token: TokenId) -> Result<(), MatcherError> {
        let mask = self.mask()?;
        if mask.get(token as usize / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
            return Err(MatcherError::NotAllowed(token));
        }
        self.mask = None;
        if self.ends.contains(&token) {
            self.has_ended = true;
            return Ok(());
        }
        self.inner.consume_token(token).map_err(|error| MatcherError::Stuck(error.to_string()))
    }

    /// Whether the output may end here.
    ///
    /// # Errors
    /// As [`Self::mask`].
    pub fn may_end(&mut self) -> Result<bool, MatcherError> {
        let ends = std::mem::take(&mut self.ends);
        let result = self.mask().map(|mask| {
            ends.iter().any(|end| mask.get(*end as usize / 32).is_some_and(|word| word >> (end % 32) & 1 == 1))
        });
        self.ends = ends;
        result
    }
}
