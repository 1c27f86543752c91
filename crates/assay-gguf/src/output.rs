//! Where an output ends, and its text up to there. Provider, gateway and verifier all ask here, so that they agree.
//!
//! The rule, for output tokens t1, t2, ..: the output ends with the first token after which one of these holds, tried
//! in this order.
//! 1. The token ends a generation and `ignore_eos` is off: stop. The token counts and prints nothing.
//! 2. The text of all tokens contains a stop string: stop. The text is cut before the stop string that is complete
//!    first; of several complete at the same character, the longest.
//! 3. `max_tokens` tokens are there: length.
//!
//! The text is a function of the tokens alone: how it was cut into pieces does not matter.

use crate::{decode::TextDecoder, tokenizer::Tokenizer};
use std::sync::Arc;

/// What bounds an output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputLimits {
    /// Bound on tokens, those given to [`OutputText::resume`] included.
    pub max_tokens: u32,
    /// The text ends before the first of these; empty strings are ignored.
    pub stop: Vec<String>,
    /// Go on after an end-of-generation token.
    pub ignore_eos: bool,
}

/// Why an output ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FinishReason {
    /// An end-of-generation token or a stop string.
    Stop,
    /// `max_tokens` were produced.
    Length,
}

/// What one token adds.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Piece {
    /// Text that is now certain, possibly empty.
    pub text: String,
    /// Set by the last token of the output.
    pub finish: Option<FinishReason>,
}

/// The text and end of one output, token by token.
#[derive(Clone, Debug)]
pub struct OutputText {
    tokenizer: Arc<Tokenizer>,
    limits: OutputLimits,
    decoder: TextDecoder,
    /// Decoded text not given out yet: it could be the beginning of a stop string.
    held: String,
    tokens: u32,
    finish: Option<FinishReason>,
    /// The stop string that ended it.
    stopped_by: Option<String>,
}

impl OutputText {
    /// An output without tokens.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, mut limits: OutputLimits) -> Self {
        limits.stop.retain(|s| !s.is_empty());
        let (decoder, held) = (TextDecoder::default(), String::new());
        Self { tokenizer, limits, decoder, held, tokens: 0, finish: None, stopped_by: None }
    }

    /// Takes the next token. After the end, further tokens change nothing and give an empty piece with the same finish.
    pub fn push(&mut self, token: u32) -> Piece {
        if self.finish.is_some() {
            return Piece { text: String::new(), finish: self.finish };
        }
        self.tokens += 1;
        if self.tokenizer.is_eog(token) && !self.limits.ignore_eos {
            return self.end(FinishReason::Stop);
        }
        let text = self.decoder.push(self.tokenizer.token_bytes(token));
        self.held.push_str(&text);
        if let Some((start, stop)) = first_stop(&self.held, &self.limits.stop) {
            self.stopped_by = Some(stop.to_owned());
            self.held.truncate(start);
            self.finish = Some(FinishReason::Stop);
            self.decoder = TextDecoder::default();
            return Piece { text: std::mem::take(&mut self.held), finish: self.finish };
        }
        if self.tokens >= self.limits.max_tokens {
            return self.end(FinishReason::Length);
        }
        let keep_from = self.held.len() - possible_stop_len(&self.held, &self.limits.stop);
        let keep = self.held.split_off(keep_from);
        Piece { text: std::mem::replace(&mut self.held, keep), finish: None }
    }

    /// Takes tokens that were given out before; their text is not returned again. A finish means that no token may
    /// follow.
    pub fn resume(&mut self, tokens: &[u32]) -> Option<FinishReason> {
        for &token in tokens {
            self.push(token);
        }
        self.finish
    }

    /// Text that is held back, for an output that is cut off by something else than its own end.
    pub fn flush(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&self.decoder.finish());
        text
    }

    /// Tokens taken so far.
    #[must_use]
    pub fn tokens(&self) -> u32 {
        self.tokens
    }

    /// Why the output ended, if it has.
    #[must_use]
    pub fn finish(&self) -> Option<FinishReason> {
        self.finish
    }

    /// The stop string that ended the output, if one did.
    #[must_use]
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped_by.as_deref()
    }

    fn end(&mut self, finish: FinishReason) -> Piece {
        self.finish = Some(finish);
        Piece { text: self.flush(), finish: self.finish }
    }
}

/// The stop string that is complete first in `text`, and where it starts; of those complete at one place, the longest.
fn first_stop<'a>(text: &str, stops: &'a [String]) -> Option<(usize, &'a str)> {
    let hits = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start, stop)));
    hits.min().map(|(_, start, stop)| (start, stop.as_str()))
}

/// Bytes of the longest end of `text` that a stop string starts with.
fn possible_stop_len(text: &str, stops: &[String]) -> usize {
    let longest = |stop: &String| {
        let mut starts = stop.char_indices().map(|(at, _)| at).rev();
        starts.find(|&len| text.ends_with(&stop[..len])).unwrap_or(0)
    };
    stops.iter().map(longest).max().unwrap_or(0)
}
