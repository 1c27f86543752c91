//! One job's choice of tokens: everything it depends on besides the model.
//!
//! A function of the job and its output so far, token by token. It holds nothing of the KV cache, so it stays as it is
//! when a sequence's memory is taken and filled again.

use assay_num::sample::{self, PickError, SampleParams, SampleScratch};
use assay_num::{Adjustments, Penalties};
use assay_types::{Job, TokenId};

pub(crate) struct Chooser {
    params: SampleParams,
    adjustments: Adjustments,
}

impl Chooser {
    /// After the job's prefix.
    pub fn new(job: &Job) -> Chooser {
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
        let mut chooser = Chooser { params, adjustments: Adjustments::new(bias, penalties, &job.prompt) };
        job.prefix.iter().for_each(|&token| chooser.push(token));
        chooser
    }

    /// The token for these logits at this index of the output, the prefix included.
    pub fn pick(&mut self, logits: &[f32], index: u64, scratch: &mut SampleScratch) -> Result<TokenId, PickError> {
        sample::pick_with(logits, &self.params, index, &self.adjustments, None, scratch)
    }

    /// Takes the next output token, whether it was picked or is what somebody claims.
    pub fn push(&mut self, token: TokenId) {
        self.adjustments.push(token);
    }
}
