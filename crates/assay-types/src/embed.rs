//! Jobs for vectors: the prompt is several texts, one after the other, and the output is their vectors.
//!
//! A vector's values are output words, the bits of each `f32`, so receipts commit to them as to tokens.

use crate::job::{put_count, put_tokens};
use crate::{Job, JobError, JobLimits, ModelId, Sampling, TokenId};
use alloy_primitives::B256;
use serde::{Deserialize, Serialize};

/// Most texts in one job.
pub const EMBED_TEXTS_MAX: usize = 64;
/// Most tokens in one job, over all its texts.
pub const EMBED_TOKENS_MAX: usize = 16_384;
/// Most values in one job, over all its vectors.
pub const EMBED_VALUES_MAX: usize = 1 << 18;

/// What makes a job one for vectors.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Embed {
    /// Tokens of each text; their sum is the prompt's length.
    pub lengths: Vec<u32>,
    /// Values of each vector.
    pub dimensions: u32,
}

impl Job {
    /// A job for the vectors of `texts`, whose lists of tokens are taken as they are.
    #[must_use]
    pub fn embedding(model_id: ModelId, texts: &[Vec<TokenId>], dimensions: u32, nonce: B256) -> Self {
        let length = |text: &Vec<TokenId>| u32::try_from(text.len()).unwrap_or(u32::MAX);
        let lengths: Vec<u32> = texts.iter().map(length).collect();
        let count = u32::try_from(lengths.len()).unwrap_or(u32::MAX);
        Self {
            model_id,
            prompt: texts.concat(),
            prefix: Vec::new(),
            max_tokens: count.saturating_mul(dimensions),
            sampling: Sampling::GREEDY,
            logit_bias: Vec::new(),
            grammar: None,
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            embed: Some(Embed { lengths, dimensions }),
            nonce,
        }
    }

    /// The texts of a job for vectors; none of another. What lengths and prompt contradict each other in is left out.
    #[must_use]
    pub fn texts(&self) -> Vec<Vec<TokenId>> {
        let mut rest = self.prompt.as_slice();
        let lengths = self.embed.iter().flat_map(|embed| &embed.lengths);
        let text = |&length: &u32| {
            let (text, after) = rest.split_at_checked(length as usize)?;
            rest = after;
            Some(text.to_vec())
        };
        lengths.map_while(text).collect()
    }
}

impl Embed {
    /// [`Job::validate`] of a job for vectors.
    pub(crate) fn validate(&self, job: &Job, limits: &JobLimits) -> Result<(), JobError> {
        let bad = |field, reason| Err(JobError::BadField { field, reason });
        if limits.dimensions == 0 {
            return bad("model", "this model writes text and makes no vectors");
        }
        if self.dimensions != limits.dimensions {
            return bad("dimensions", "the model's own number of values");
        }
        if self.lengths.len() > EMBED_TEXTS_MAX || job.prompt.len() > EMBED_TOKENS_MAX {
            return bad("input", "at most 64 texts and 16384 tokens in one job");
        }
        let sum = self.lengths.iter().fold(0u64, |sum, &length| sum.saturating_add(length.into()));
        if self.lengths.contains(&0) || sum != job.prompt.len() as u64 {
            return bad("input", "each text has a token, and together they are the prompt");
        }
        if let Some(&longest) = self.lengths.iter().max().filter(|&&length| length > limits.context_length) {
            return Err(JobError::TextTooLong { tokens: longest, max: limits.context_length });
        }
        let values = u64::from(self.dimensions).saturating_mul(self.lengths.len() as u64);
        if values > EMBED_VALUES_MAX as u64 || values != u64::from(job.max_tokens) {
            return bad("max_tokens", "one for each value of a vector, at most 262144");
        }
        if let Some(&token) = job.prompt.iter().find(|&&token| token >= limits.vocab_size) {
            return Err(JobError::TokenOutOfRange { token, vocab_size: limits.vocab_size });
        }
        // One form only: what a job for vectors does not use is not in its hash.
        let plain = Self::plain(job);
        if *job != plain { bad("input", "vectors have no other parameters") } else { Ok(()) }
    }

    /// `job` with nothing in it that a job for vectors does not use.
    fn plain(job: &Job) -> Job {
        Job {
            prefix: Vec::new(),
            sampling: Sampling::GREEDY,
            logit_bias: Vec::new(),
            grammar: None,
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            ..job.clone()
        }
    }

    /// The tag `assay/embed/1`, model, texts as one list of tokens and one of lengths, dimensions, nonce.
    pub(crate) fn canonical_bytes(&self, job: &Job) -> Vec<u8> {
        let mut out = Vec::with_capacity(100 + 4 * (job.prompt.len() + self.lengths.len()));
        out.extend_from_slice(b"assay/embed/1");
        out.extend_from_slice(job.model_id.0.as_slice());
        put_tokens(&mut out, &job.prompt);
        put_count(&mut out, self.lengths.len());
        for length in &self.lengths {
            out.extend_from_slice(&length.to_be_bytes());
        }
        out.extend_from_slice(&self.dimensions.to_be_bytes());
        out.extend_from_slice(job.nonce.as_slice());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RequestHash;
    use alloy_primitives::keccak256;

    const LIMITS: JobLimits = JobLimits { vocab_size: 100, context_length: 4, dimensions: 3 };

    fn job() -> Job {
        Job::embedding(ModelId(B256::repeat_byte(1)), &[vec![1, 2], vec![3]], 3, B256::repeat_byte(2))
    }

    #[test]
    fn texts_and_everything_else_are_in_the_hash() {
        let base = job();
        assert_eq!((base.max_tokens, base.texts()), (6, vec![vec![1, 2], vec![3]]));
        let other_cut = Job::embedding(base.model_id, &[vec![1], vec![2, 3]], 3, base.nonce);
        let changes: [fn(&mut Job); 4] = [
            |job| job.model_id = ModelId(B256::repeat_byte(9)),
            |job| job.prompt[0] = 7,
            |job| job.embed.as_mut().unwrap().dimensions = 4,
            |job| job.nonce = B256::ZERO,
        ];
        let mut hashes = vec![base.request_hash(), other_cut.request_hash()];
        hashes.push(Job { embed: None, ..base.clone() }.request_hash());
        for change in changes {
            let mut job = base.clone();
            change(&mut job);
            hashes.push(job.request_hash());
        }
        let different: std::collections::HashSet<RequestHash> = hashes.iter().copied().collect();
        assert_eq!(different.len(), hashes.len());
        assert_eq!(base.canonical_bytes().len(), 13 + 32 + 16 + 12 + 4 + 32);
        assert_eq!(base.request_hash().0, keccak256(base.canonical_bytes()));
    }

    #[test]
    fn only_what_a_model_can_do_is_valid() {
        assert_eq!(job().validate(&LIMITS), Ok(()));
        assert!(job().validate(&JobLimits { dimensions: 0, ..LIMITS }).is_err());
        assert!(Job { embed: None, ..job() }.validate(&LIMITS).is_err());
        let too_long = Job::embedding(job().model_id, &[vec![1; 5]], 3, B256::ZERO);
        assert_eq!(too_long.validate(&LIMITS), Err(JobError::TextTooLong { tokens: 5, max: 4 }));
        let changes: [fn(&mut Job); 9] = [
            |job| job.max_tokens = 5,
            |job| job.prompt[0] = 100,
            |job| job.prompt.push(1),
            |job| job.embed.as_mut().unwrap().lengths = vec![3, 0],
            |job| job.embed.as_mut().unwrap().dimensions = 2,
            |job| job.sampling.seed = 1,
            |job| job.stop.push("x".into()),
            |job| job.prefix.push(1),
            |job| job.ignore_eos = true,
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let mut job = job();
            change(&mut job);
            assert!(job.validate(&LIMITS).is_err(), "{index}");
        }
        let many = Job::embedding(job().model_id, &vec![vec![1]; EMBED_TEXTS_MAX + 1], 3, B256::ZERO);
        assert!(many.validate(&LIMITS).is_err());
        assert!(Job::embedding(job().model_id, &[], 3, B256::ZERO).validate(&LIMITS).is_err());
        // Whatever a file says, this does not panic.
        let mut broken = job();
        broken.embed.as_mut().unwrap().lengths = vec![u32::MAX, u32::MAX];
        assert!(broken.texts().is_empty() && broken.validate(&LIMITS).is_err());
    }
}
