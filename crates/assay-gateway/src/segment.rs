//! One answer, and the segment of it that one provider produces: what may be believed, sent on and paid for.
//!
//! Pure: frames in, text or a fault out. The client may have seen tokens beyond the last signed position; when a
//! provider is lost, the next one starts at the signed position, and what it produces again is compared with what
//! the client has, never sent twice.

use assay_gguf::{FinishReason, OutputText};
use assay_protocol::{ReceiptExpectation, ReceiptFault, StreamTerms};
use assay_types::{
    ChannelConfig, ChannelId, Finish, Job, Prices, ProviderId, ReceiptPart, RequestHash, SignatureError, SignedReceipt,
    SigningDomain, TokenId, TokenLogprobs,
};

/// All that is known of one answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The original job: empty prefix.
    pub(crate) job: Job,
    /// Output tokens, whoever produced them.
    tokens: Vec<TokenId>,
    reading: Reading,
    /// How many of `tokens` are covered by `parts`.
    signed: usize,
    /// Signed parts in order, without gaps.
    parts: Vec<ReceiptPart>,
    vocab_size: u32,
}

/// What output tokens are, and where they end.
#[derive(Debug)]
pub(crate) enum Reading {
    /// Text.
    Text(Box<OutputText>),
    /// Bits of vectors' values, as many as the job says.
    Values,
}

/// What one provider is asked for and has produced.
#[derive(Debug)]
pub(crate) struct Segment {
    /// The job with the prefix that is signed so far.
    pub(crate) job: Job,
    pub(crate) request: RequestHash,
    pub(crate) terms: StreamTerms,
    provider: ProviderId,
    channel: ChannelConfig,
    channel_id: ChannelId,
    /// Position of its first token in the answer.
    start: usize,
    output: Vec<TokenId>,
    checkpoint: Option<SignedReceipt>,
}

/// What tokens add to an answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct News {
    pub(crate) text: String,
    pub(crate) scored: Vec<(TokenId, TokenLogprobs)>,
}

/// What a provider said that cannot be true.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("token {0} is outside the vocabulary")]
    TokenOutOfRange(TokenId),
    #[error("value {index} of the vectors is not a finite number")]
    NotFinite { index: usize },
    #[error("tokens after the end of the output")]
    AfterEnd,
    #[error("its log probabilities are not those that were asked for")]
    Logprobs,
    #[error("output token {index} is {got}, but another provider produced {expected}")]
    Diverged { index: usize, expected: TokenId, got: TokenId },
    #[error("the end is {claimed:?}, but the output is not at its end")]
    EarlyEnd { claimed: Finish },
    #[error("the end is {claimed:?}, not {expected:?}")]
    WrongEnd { claimed: Finish, expected: Finish },
    #[error("the last receipt covers {covered} of {arrived} tokens")]
    Uncovered { covered: u64, arrived: u64 },
    #[error("a checkpoint at {found} after one at {last}")]
    CheckpointOrder { last: u64, found: u64 },
    #[error(transparent)]
    Receipt(#[from] ReceiptFault),
    #[error("the receipt's {0}")]
    Signature(#[from] SignatureError),
}

impl Fault {
    /// For the metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::TokenOutOfRange(_) | Self::NotFinite { .. } | Self::AfterEnd | Self::Logprobs => "token",
            Self::Diverged { .. } => "diverged",
            Self::EarlyEnd { .. } | Self::WrongEnd { .. } => "finish",
            Self::Uncovered { .. } | Self::CheckpointOrder { .. } | Self::Receipt(_) => "receipt",
            Self::Signature(_) => "signature",
        }
    }
}

impl Answer {
    pub(crate) fn new(job: Job, reading: Reading, vocab_size: u32) -> Self {
        Self { job, tokens: Vec::new(), reading, signed: 0, parts: Vec::new(), vocab_size }
    }

    /// Output tokens so far.
    pub(crate) fn tokens_count(&self) -> usize {
        self.tokens.len()
    }

    /// Tokens that no receipt covers yet; the next provider has to produce at least one.
    pub(crate) fn max_tokens_left(&self) -> u64 {
        u64::from(self.job.max_tokens).saturating_sub(self.signed as u64)
    }

    /// Signed parts, in order.
    pub(crate) fn parts(&self) -> &[ReceiptPart] {
        &self.parts
    }

    /// The stop string that ended it, if one did.
    pub(crate) fn stopped_by(&self) -> Option<&str> {
        match &self.reading {
            Reading::Text(text) => text.stopped_by(),
            Reading::Values => None,
        }
    }

    /// The bits of all values, if these are vectors.
    pub(crate) fn values(&self) -> Vec<TokenId> {
        if self.job.embed.is_some() { self.tokens.clone() } else { Vec::new() }
    }

    /// How the output has ended, if it has.
    fn finish(&self) -> Option<FinishReason> {
        match &self.reading {
            Reading::Text(text) => text.finish(),
            Reading::Values => (self.tokens.len() as u64 >= self.job.max_tokens.into()).then_some(FinishReason::Length),
        }
    }

    /// The next provider's segment.
    pub(crate) fn segment(
        &self,
        provider: ProviderId,
        channel: ChannelConfig,
        channel_id: ChannelId,
        prices: Prices,
    ) -> Segment {
        let job = self.job.resumed_after(self.tokens.get(..self.signed).unwrap_or_default());
        Segment {
            request: job.request_hash(),
            terms: StreamTerms::new(&job, prices),
            job,
            provider,
            channel,
            channel_id,
            start: self.signed,
            output: Vec::new(),
            checkpoint: None,
        }
    }

    /// The provider of `segment` was lost: what it signed stays.
    pub(crate) fn keep_signed(&mut self, segment: &Segment) {
        if let Some(checkpoint) = segment.checkpoint {
            self.parts.push(segment.part(checkpoint, Finish::Open));
            self.signed = segment.start + covered(&checkpoint);
        }
    }

    /// The provider of `segment` ended it before the answer's end with this receipt, up to which everything is paid: the
    /// next one goes on from there. `false` if nobody can: it covers nothing, or all but the word that this is the end.
    pub(crate) fn go_on_after(&mut self, segment: &Segment, last: SignedReceipt, finish: Finish) -> bool {
        let is_whole = self.finish().is_some() && segment.start + covered(&last) == self.tokens.len();
        if covered(&last) == 0 || is_whole {
            return false;
        }
        self.end(segment, last, finish);
        true
    }

    /// The answer has ended with this receipt of `segment`.
    pub(crate) fn end(&mut self, segment: &Segment, last: SignedReceipt, finish: Finish) {
        self.parts.push(segment.part(last, finish));
        self.signed = segment.start + covered(&last);
    }

    /// Takes a token at `index`; returns its text if it is new.
    fn take(&mut self, index: usize, token: TokenId) -> Result<Option<String>, Fault> {
        if let Some(&expected) = self.tokens.get(index) {
            return if expected == token { Ok(None) } else { Err(Fault::Diverged { index, expected, got: token }) };
        }
        if self.finish().is_some() {
            return Err(Fault::AfterEnd);
        }
        let text = match &mut self.reading {
            Reading::Text(_) if token >= self.vocab_size => return Err(Fault::TokenOutOfRange(token)),
            Reading::Text(text) => text.push(token).text,
            Reading::Values if f32::from_bits(token).is_finite() => String::new(),
            Reading::Values => return Err(Fault::NotFinite { index }),
        };
        self.tokens.push(token);
        Ok(Some(text))
    }

    /// Log probabilities are there if they were asked for, and of the shape that was asked for. What they say is the
    /// provider's word: it takes the model to know better.
    fn check_logprobs(&self, logprobs: Option<&TokenLogprobs>) -> Result<(), Fault> {
        let is_right = match (self.job.logprobs, logprobs) {
            (None, None) => true,
            (Some(top), Some(logprobs)) => {
                logprobs.top.len() == usize::from(top).min(self.vocab_size as usize)
                    && logprobs.top.iter().all(|(token, _)| *token < self.vocab_size)
            }
            _ => false,
        };
        if is_right { Ok(()) } else { Err(Fault::Logprobs) }
    }
}

impl Segment {
    /// Whether a token has arrived.
    pub(crate) fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Output tokens that arrived.
    pub(crate) fn output_count(&self) -> u32 {
        u32::try_from(self.output.len()).unwrap_or(u32::MAX)
    }

    /// Further tokens; returns what the client has not seen.
    pub(crate) fn on_tokens(
        &mut self,
        answer: &mut Answer,
        tokens: impl IntoIterator<Item = (TokenId, Option<TokenLogprobs>)>,
    ) -> Result<News, Fault> {
        let mut news = News::default();
        for (token, logprobs) in tokens {
            answer.check_logprobs(logprobs.as_ref())?;
            if let Some(text) = answer.take(self.start + self.output.len(), token)? {
                news.text.push_str(&text);
                news.scored.extend(logprobs.map(|logprobs| (token, logprobs)));
            }
            self.output.push(token);
        }
        Ok(news)
    }

    /// A checkpoint: it must go further than the last one, and cover only what arrived.
    pub(crate) fn on_checkpoint(
        &mut self,
        answer: &Answer,
        signed: &SignedReceipt,
        domain: &SigningDomain,
    ) -> Result<(), Fault> {
        let (last, found) = (self.checkpoint.map_or(0, |c| c.receipt.output_tokens), signed.receipt.output_tokens);
        if found <= last {
            return Err(Fault::CheckpointOrder { last, found });
        }
        self.check(signed, Finish::Open, domain)?;
        let at_end = self.start + covered(signed) == answer.tokens.len();
        if let Some(expected) = answer.finish().map(wire).filter(|_| at_end) {
            return Err(Fault::WrongEnd { claimed: Finish::Open, expected });
        }
        self.checkpoint = Some(*signed);
        Ok(())
    }

    /// The last receipt. One that claims the output's own end must cover all of it, and the output must be at that
    /// end; one that was cut may cover less than what arrived.
    pub(crate) fn on_done(
        &self,
        answer: &Answer,
        signed: &SignedReceipt,
        finish: Finish,
        domain: &SigningDomain,
    ) -> Result<(), Fault> {
        self.check(signed, finish, domain)?;
        let last = self.checkpoint.map_or(0, |c| c.receipt.output_tokens);
        if signed.receipt.output_tokens < last {
            return Err(Fault::CheckpointOrder { last, found: signed.receipt.output_tokens });
        }
        if matches!(finish, Finish::Open | Finish::Cancelled) {
            return Ok(());
        }
        let (covered, arrived) = (signed.receipt.output_tokens, self.output.len() as u64);
        if covered != arrived {
            return Err(Fault::Uncovered { covered, arrived });
        }
        let at_end = self.start + self.output.len() == answer.tokens.len();
        match answer.finish().map(wire) {
            Some(expected) if at_end && expected == finish => Ok(()),
            Some(expected) if at_end => Err(Fault::WrongEnd { claimed: finish, expected }),
            _ => Err(Fault::EarlyEnd { claimed: finish }),
        }
    }

    /// The output so far as a part of the answer.
    pub(crate) fn part(&self, signed: SignedReceipt, finish: Finish) -> ReceiptPart {
        let output = self.output.get(..covered(&signed)).unwrap_or_default().to_vec();
        ReceiptPart { provider: self.provider, channel: self.channel, output, finish, signed }
    }

    fn check(&self, signed: &SignedReceipt, finish: Finish, domain: &SigningDomain) -> Result<(), Fault> {
        // Content first: it is cheaper than the signature.
        ReceiptExpectation {
            channel_id: self.channel_id,
            request_hash: self.request,
            model_id: self.job.model_id,
            terms: &self.terms,
            output: &self.output,
            finish,
        }
        .check(&signed.receipt)?;
        Ok(signed.verify(domain, self.provider)?)
    }
}

fn covered(signed: &SignedReceipt) -> usize {
    usize::try_from(signed.receipt.output_tokens).unwrap_or(usize::MAX)
}

fn wire(finish: FinishReason) -> Finish {
    match finish {
        FinishReason::Stop => Finish::Stop,
        FinishReason::Length => Finish::Length,
    }
}
