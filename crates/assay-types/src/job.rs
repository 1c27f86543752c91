//! A request at token level: everything that determines the output, and nothing else.

use crate::embed::Embed;
use crate::grammar::{GRAMMAR_LEN_MAX, GRAMMAR_VERSION, Grammar};
use crate::{ModelId, RequestHash, TokenId};
use alloy_primitives::{B256, keccak256};
use serde::{Deserialize, Serialize};

/// Fixed point of sampling parameters: 1.0 is this many millionths.
pub const MICRO: u32 = 1_000_000;

/// How the next token is chosen. Integers, so that two parties cannot read one request differently.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sampling {
    /// Temperature in millionths; 0 is greedy. At most 100.0.
    pub temperature_micro: u32,
    /// Nucleus: smallest set of most likely tokens whose probability reaches this many millionths; 1..=1_000_000.
    pub top_p_micro: u32,
    /// Only this many most likely tokens; 0 is all.
    pub top_k: u32,
    /// Only tokens at least this many millionths as likely as the most likely one; 0 is all, at most 1_000_000.
    #[serde(default)]
    pub min_p_micro: u32,
    /// Divides positive logits of tokens in prompt or output and multiplies the others; 1_000_000 changes nothing.
    #[serde(default = "one_micro")]
    pub repetition_penalty_micro: u32,
    /// Taken from a token's logit for each time it is in the output; within ±2_000_000.
    #[serde(default)]
    pub frequency_penalty_micro: i32,
    /// Taken from a token's logit once if it is in the output; within ±2_000_000.
    #[serde(default)]
    pub presence_penalty_micro: i32,
    /// Seed of the counter-based generator.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self {
        temperature_micro: 0,
        top_p_micro: MICRO,
        top_k: 0,
        min_p_micro: 0,
        repetition_penalty_micro: MICRO,
        frequency_penalty_micro: 0,
        presence_penalty_micro: 0,
        seed: 0,
    };
}

fn one_micro() -> u32 {
    MICRO
}

/// A constant that is added to one token's logit.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogitBias {
    /// Whose.
    pub token: TokenId,
    /// In millionths; within ±100_000_000.
    pub bias_micro: i32,
}

/// One request. Its hash is what the provider signs; re-running it gives the same output tokens.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Job {
    /// The model, by manifest.
    pub model_id: ModelId,
    /// Prompt as token ids, special tokens included.
    pub prompt: Vec<TokenId>,
    /// Output tokens that exist already: empty, or what another provider produced before it was lost. They are fed
    /// to the model after the prompt, count towards `max_tokens`, stop strings and the sampler's position.
    #[serde(default)]
    pub prefix: Vec<TokenId>,
    /// Bound on output tokens, `prefix` included.
    pub max_tokens: u32,
    /// Choice of tokens.
    pub sampling: Sampling,
    /// Added to logits before everything else; at most [`LOGIT_BIAS_MAX`], ascending by token, each token once.
    #[serde(default)]
    pub logit_bias: Vec<LogitBias>,
    /// What the output has to look like; only tokens that fit are chosen among.
    #[serde(default)]
    pub grammar: Option<Grammar>,
    /// The output ends before the first of these strings.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Go on after an end-of-generation token (for load tests and forced lengths).
    #[serde(default)]
    pub ignore_eos: bool,
    /// Log probabilities that come with each output token: `None` is none, else the token's own and those of so many
    /// most likely tokens, at most [`TOP_LOGPROBS_MAX`].
    #[serde(default)]
    pub logprobs: Option<u8>,
    /// The output is not text but the vectors of several texts, which are the prompt.
    #[serde(default)]
    pub embed: Option<Embed>,
    /// Makes the request unique; chosen by the client's side.
    pub nonce: B256,
}

/// The model's log probabilities at one position, before bias, penalties and temperature, in millionths. They are not
/// signed: whoever has the model derives them from job and output.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Of the output token.
    pub token_micro: i32,
    /// Of the most likely tokens, most likely first.
    pub top: Vec<(TokenId, i32)>,
}

/// Seed of one of several answers to one request: the request's own for the first, then the first 53 bits of
/// `keccak("assay/choice/1" || u64 seed || u32 choice)`. 53, because a receipt file writes it as a JSON number.
#[must_use]
pub fn choice_seed(seed: u64, choice: u32) -> u64 {
    if choice == 0 {
        return seed;
    }
    let hash = keccak256([b"assay/choice/1".as_slice(), &seed.to_be_bytes(), &choice.to_be_bytes()].concat());
    hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first) >> 11)
}

/// What a party accepts.
#[derive(Clone, Copy, Debug)]
pub struct JobLimits {
    /// Size of the vocabulary: token ids are below it.
    pub vocab_size: u32,
    /// Context of the model in tokens: `prompt + max_tokens` fits; of an encoder the longest text.
    pub context_length: u32,
    /// Values of a vector; 0 for a model that writes text.
    pub dimensions: u32,
}

/// Most entries of `logit_bias` (OpenAI documents no bound, other servers 300 to 1024).
pub const LOGIT_BIAS_MAX: usize = 1024;
/// Most of the most likely tokens that a job can ask for (OpenAI's bound).
pub const TOP_LOGPROBS_MAX: u8 = 20;
/// Most stop strings in a job (OpenAI allows 4).
pub const STOP_COUNT_MAX: usize = 16;
/// Longest stop string in bytes.
pub const STOP_LEN_MAX: usize = 256;

/// Why a job cannot run.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum JobError {
    /// No prompt token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// `prompt + max_tokens` is longer than the model's context.
    #[error("{prompt} prompt tokens and {max_tokens} output tokens exceed the context of {context_length}")]
    ContextOverflow {
        /// Tokens of the prompt.
        prompt: u64,
        /// Output tokens asked for.
        max_tokens: u32,
        /// What the model has.
        context_length: u32,
    },
    /// A text is longer than the encoder takes.
    #[error("a text has {tokens} tokens, the model takes {max}")]
    TextTooLong {
        /// What it has.
        tokens: u32,
        /// What the model takes.
        max: u32,
    },
    /// A token id outside the vocabulary.
    #[error("token id {token} is outside the vocabulary of {vocab_size}")]
    TokenOutOfRange {
        /// The id.
        token: TokenId,
        /// Size of the vocabulary.
        vocab_size: u32,
    },
    /// A field outside its range.
    #[error("{field} is out of range: {reason}")]
    BadField {
        /// Its name.
        field: &'static str,
        /// What is allowed.
        reason: &'static str,
    },
}

impl Job {
    /// Checks every field against `limits`; costs one pass over the tokens.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn validate(&self, limits: &JobLimits) -> Result<(), JobError> {
        let bad = |field, reason| Err(JobError::BadField { field, reason });
        if self.prompt.is_empty() {
            return Err(JobError::EmptyPrompt);
        }
        if let Some(embed) = &self.embed {
            return embed.validate(self, limits);
        }
        if limits.dimensions != 0 {
            return bad("model", "this model makes vectors and writes no text");
        }
        if self.max_tokens == 0 {
            return bad("max_tokens", "at least 1");
        }
        if self.prefix.len() as u64 >= u64::from(self.max_tokens) {
            return bad("prefix", "shorter than max_tokens");
        }
        let prompt = self.prompt.len() as u64;
        if prompt + u64::from(self.max_tokens) > u64::from(limits.context_length) {
            return Err(JobError::ContextOverflow {
                prompt,
                max_tokens: self.max_tokens,
                context_length: limits.context_length,
            });
        }
        if let Some(&token) = self.prompt.iter().chain(&self.prefix).find(|&&t| t >= limits.vocab_size) {
            return Err(JobError::TokenOutOfRange { token, vocab_size: limits.vocab_size });
        }
        if self.sampling.temperature_micro > 100 * MICRO {
            return bad("temperature", "0 to 100");
        }
        if self.sampling.top_p_micro == 0 || self.sampling.top_p_micro > MICRO {
            return bad("top_p", "above 0, at most 1");
        }
        if self.sampling.min_p_micro > MICRO {
            return bad("min_p", "0 to 1");
        }
        if !(MICRO / 100..=100 * MICRO).contains(&self.sampling.repetition_penalty_micro) {
            return bad("repetition_penalty", "0.01 to 100");
        }
        if self.sampling.frequency_penalty_micro.unsigned_abs() > 2 * MICRO {
            return bad("frequency_penalty", "-2 to 2");
        }
        if self.sampling.presence_penalty_micro.unsigned_abs() > 2 * MICRO {
            return bad("presence_penalty", "-2 to 2");
        }
        self.validate_bias(limits)?;
        if self.stop.len() > STOP_COUNT_MAX {
            return bad("stop", "at most 16 strings");
        }
        if self.stop.iter().any(|s| s.is_empty() || s.len() > STOP_LEN_MAX) {
            return bad("stop", "each string 1 to 256 bytes");
        }
        if let Some(grammar) = &self.grammar {
            if grammar.version != GRAMMAR_VERSION {
                return bad("grammar", "a version that is not known here");
            }
            if grammar.text.is_empty() || grammar.text.len() > GRAMMAR_LEN_MAX {
                return bad("grammar", "1 to 65536 bytes");
            }
            if self.ignore_eos {
                return bad("ignore_eos", "a grammar decides where the output ends");
            }
        }
        if self.logprobs.is_some_and(|top| top > TOP_LOGPROBS_MAX) {
            return bad("top_logprobs", "0 to 20");
        }
        Ok(())
    }

    fn validate_bias(&self, limits: &JobLimits) -> Result<(), JobError> {
        let bad = |reason| Err(JobError::BadField { field: "logit_bias", reason });
        if self.logit_bias.len() > LOGIT_BIAS_MAX {
            return bad("at most 1024 tokens");
        }
        // One order only: two requests that mean the same have the same hash.
        if self.logit_bias.windows(2).any(|pair| matches!(pair, [a, b] if a.token >= b.token)) {
            return bad("ascending by token, each token once");
        }
        if self.logit_bias.last().is_some_and(|last| last.token >= limits.vocab_size) {
            return bad("a token id outside the vocabulary");
        }
        if self.logit_bias.iter().any(|entry| entry.bias_micro.unsigned_abs() > 100 * MICRO) {
            return bad("each bias -100 to 100");
        }
        Ok(())
    }

    /// Tokens that are billed as input: prompt and prefix.
    #[must_use]
    pub fn input_tokens(&self) -> u64 {
        self.prompt.len() as u64 + self.prefix.len() as u64
    }

    /// Canonical bytes (docs/PROTOCOL.md, "Job"): the tag `assay/job/1`, then every field in declaration order;
    /// integers big-endian, lists and strings with a `u32` count before them. A job for vectors has a form of its own.
    #[must_use]
    pub fn canonical_bytes(&self) -> Vec<u8> {
        if let Some(embed) = &self.embed {
            return embed.canonical_bytes(self);
        }
        let tokens = self.prompt.len() + self.prefix.len();
        let mut out = Vec::with_capacity(
            180 + 4 * tokens + 8 * self.logit_bias.len() + self.stop.iter().map(|s| s.len() + 4).sum::<usize>(),
        );
        out.extend_from_slice(b"assay/job/1");
        out.extend_from_slice(self.model_id.0.as_slice());
        put_tokens(&mut out, &self.prompt);
        put_tokens(&mut out, &self.prefix);
        out.extend_from_slice(&self.max_tokens.to_be_bytes());
        out.extend_from_slice(&self.sampling.temperature_micro.to_be_bytes());
        out.extend_from_slice(&self.sampling.top_p_micro.to_be_bytes());
        out.extend_from_slice(&self.sampling.top_k.to_be_bytes());
        out.extend_from_slice(&self.sampling.min_p_micro.to_be_bytes());
        out.extend_from_slice(&self.sampling.repetition_penalty_micro.to_be_bytes());
        out.extend_from_slice(&self.sampling.frequency_penalty_micro.to_be_bytes());
        out.extend_from_slice(&self.sampling.presence_penalty_micro.to_be_bytes());
        out.extend_from_slice(&self.sampling.seed.to_be_bytes());
        put_count(&mut out, self.logit_bias.len());
        for entry in &self.logit_bias {
            out.extend_from_slice(&entry.token.to_be_bytes());
            out.extend_from_slice(&entry.bias_micro.to_be_bytes());
        }
        match &self.grammar {
            None => out.push(0),
            Some(grammar) => grammar.put(&mut out),
        }
        put_count(&mut out, self.stop.len());
        for stop in &self.stop {
            put_count(&mut out, stop.len());
            out.extend_from_slice(stop.as_bytes());
        }
        out.push(u8::from(self.ignore_eos));
        out.push(self.logprobs.map_or(0, |top| top.saturating_add(1)));
        out.extend_from_slice(self.nonce.as_slice());
        out
    }

    /// keccak256 of [`Self::canonical_bytes`].
    #[must_use]
    pub fn request_hash(&self) -> RequestHash {
        RequestHash(keccak256(self.canonical_bytes()))
    }

    /// Output tokens that one receipt covers at most: a chunk; all the values of vectors, which are there at once.
    #[must_use]
    pub fn chunk_tokens(&self) -> u32 {
        if self.embed.is_some() { u32::MAX } else { crate::CHUNK_TOKENS }
    }

    /// The job that goes on after `produced` further output tokens.
    #[must_use]
    pub fn resumed_after(&self, produced: &[TokenId]) -> Self {
        let mut job = self.clone();
        job.prefix.extend_from_slice(produced);
        job
    }
}

/// `u32` big-endian count. Lists that reach here were bounded by a frame or body limit far below `u32::MAX`.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).expect("lists are bounded far below 2^32 before they are hashed");
    out.extend_from_slice(&count.to_be_bytes());
}

/// Count, then each id big-endian.
pub(crate) fn put_tokens(out: &mut Vec<u8>, tokens: &[TokenId]) {
    put_count(out, tokens.len());
    for token in tokens {
        out.extend_from_slice(&token.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GrammarKind;

    fn job() -> Job {
        Job {
            model_id: ModelId(B256::repeat_byte(1)),
            prompt: vec![1, 2, 3],
            prefix: vec![],
            max_tokens: 5,
            sampling: Sampling {
                temperature_micro: 700_000,
                top_p_micro: 900_000,
                top_k: 40,
                min_p_micro: 50_000,
                repetition_penalty_micro: 1_100_000,
                frequency_penalty_micro: -300_000,
                presence_penalty_micro: 400_000,
                seed: 7,
            },
            logit_bias: vec![LogitBias { token: 2, bias_micro: -5_000_000 }, LogitBias { token: 5, bias_micro: 7 }],
            grammar: None,
            stop: vec!["\n\n".into()],
            ignore_eos: false,
            logprobs: None,
            embed: None,
            nonce: B256::repeat_byte(2),
        }
    }

    const LIMITS: JobLimits = JobLimits { vocab_size: 10, context_length: 8, dimensions: 0 };

    #[test]
    fn every_field_changes_the_hash() {
        let base = job();
        let changes: [fn(&mut Job); 25] = [
            |j| j.model_id = ModelId(B256::repeat_byte(9)),
            |j| j.prompt[1] = 4,
            |j| j.prompt.push(0),
            |j| j.prefix.push(3),
            |j| j.max_tokens = 4,
            |j| j.sampling.temperature_micro += 1,
            |j| j.sampling.top_p_micro += 1,
            |j| j.sampling.top_k += 1,
            |j| j.sampling.min_p_micro += 1,
            |j| j.sampling.repetition_penalty_micro += 1,
            |j| j.sampling.frequency_penalty_micro += 1,
            |j| j.sampling.presence_penalty_micro += 1,
            |j| j.sampling.seed += 1,
            |j| j.logit_bias[0].token += 1,
            |j| j.logit_bias[1].bias_micro = -7,
            |j| j.logit_bias.truncate(1),
            |j| j.grammar = Some(Grammar::new(GrammarKind::Regex, "a")),
            |j| j.grammar = Some(Grammar::new(GrammarKind::Lark, "a")),
            |j| j.grammar = Some(Grammar::new(GrammarKind::Lark, "b")),
            |j| j.grammar = Some(Grammar { version: 2, ..Grammar::new(GrammarKind::Lark, "a") }),
            |j| j.stop[0].push('x'),
            |j| j.ignore_eos = true,
            |j| j.logprobs = Some(0),
            |j| j.logprobs = Some(1),
            |j| j.nonce = B256::repeat_byte(3),
        ];
        let mut seen = vec![base.request_hash()];
        for change in changes {
            let mut changed = base.clone();
            change(&mut changed);
            assert!(!seen.contains(&changed.request_hash()), "{changed:?}");
            seen.push(changed.request_hash());
        }
    }

    #[test]
    fn token_moved_between_prompt_and_prefix_changes_the_hash() {
        let mut moved = job();
        moved.prefix = moved.prompt.split_off(2);
        assert_ne!(moved.request_hash(), job().request_hash());
    }

    #[test]
    fn limits_are_enforced() {
        let check = |change: fn(&mut Job), expect: &str| {
            let mut changed = job();
            change(&mut changed);
            let got = changed.validate(&LIMITS).map_or_else(|e| e.to_string(), |()| "ok".into());
            assert!(got.contains(expect), "{got} does not contain {expect}");
        };
        check(|_| (), "ok");
        check(|j| j.prompt.clear(), "prompt is empty");
        check(|j| j.prompt.push(1), "exceed the context of 8");
        check(|j| j.prompt[0] = 10, "token id 10");
        check(|j| j.prefix = vec![0; 5], "prefix");
        check(|j| j.max_tokens = 0, "max_tokens");
        check(|j| j.max_tokens = u32::MAX, "exceed the context");
        check(|j| j.sampling.top_p_micro = 0, "top_p");
        check(|j| j.sampling.top_p_micro = MICRO + 1, "top_p");
        check(|j| j.sampling.temperature_micro = u32::MAX, "temperature");
        check(|j| j.sampling.min_p_micro = MICRO + 1, "min_p");
        check(|j| j.sampling.repetition_penalty_micro = 9_999, "repetition_penalty");
        check(|j| j.sampling.repetition_penalty_micro = u32::MAX, "repetition_penalty");
        check(|j| j.sampling.frequency_penalty_micro = i32::MIN, "frequency_penalty");
        check(|j| j.sampling.presence_penalty_micro = 2_000_001, "presence_penalty");
        check(|j| j.logit_bias.swap(0, 1), "ascending");
        check(|j| j.logit_bias[1].token = 2, "ascending");
        check(|j| j.logit_bias[1].token = 10, "vocabulary");
        check(|j| j.logit_bias[1].bias_micro = i32::MIN, "-100 to 100");
        check(|j| j.logit_bias = vec![LogitBias { token: 0, bias_micro: 0 }; 1025], "at most 1024");
        check(|j| j.stop = vec!["a".into(); 17], "stop");
        check(|j| j.stop = vec![String::new()], "stop");
        check(|j| j.grammar = Some(Grammar::new(GrammarKind::Regex, "x".repeat(65_536))), "ok");
        check(|j| j.grammar = Some(Grammar::new(GrammarKind::Regex, "x".repeat(65_537))), "grammar");
        check(|j| j.grammar = Some(Grammar::new(GrammarKind::Regex, "")), "grammar");
        check(|j| j.grammar = Some(Grammar { version: 0, ..Grammar::new(GrammarKind::Lark, "a") }), "version");
        check(|j| (j.ignore_eos, j.grammar) = (true, Some(Grammar::new(GrammarKind::Lark, "a"))), "ignore_eos");
        check(|j| j.logprobs = Some(20), "ok");
        check(|j| j.logprobs = Some(21), "top_logprobs");
    }

    #[test]
    fn choices_have_seeds_of_their_own() {
        let seeds: Vec<u64> = (0..4).map(|choice| choice_seed(7, choice)).collect();
        assert_eq!(seeds, [7, 828_196_289_274_078, 5_102_671_370_553_722, 1_046_135_264_007_700]);
        assert_ne!(choice_seed(8, 1), seeds[1]);
    }

    #[test]
    fn golden_hash() {
        // Fixed by docs/PROTOCOL.md: a change here is a change of the wire format.
        assert_eq!(job().canonical_bytes().len(), 11 + 32 + 16 + 4 + 4 + 28 + 8 + 20 + 1 + 4 + 6 + 1 + 1 + 32);
        assert_eq!(
            job().request_hash().to_string(),
            "0xb8b729a9de012660150c1c51ea68b7e9a45328789d76cc244ad2d51665d0363c"
        );
    }
}
