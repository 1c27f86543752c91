//! What a payer compares a receipt with before it pays on.

use crate::StreamTerms;
use assay_types::{Amount, ChannelId, Finish, ModelId, Receipt, RequestHash, TokenId, response_hash};

/// What a payer knows of a stream when a receipt for it arrives.
#[derive(Clone, Copy, Debug)]
pub struct ReceiptExpectation<'a> {
    /// The channel that pays.
    pub channel_id: ChannelId,
    /// Hash of the job that was sent.
    pub request_hash: RequestHash,
    /// The model that was asked for.
    pub model_id: ModelId,
    /// Prices and counts that were agreed on.
    pub terms: &'a StreamTerms,
    /// Output tokens that arrived so far; a receipt may cover fewer.
    pub output: &'a [TokenId],
    /// How the stream ended; [`Finish::Open`] for a checkpoint.
    pub finish: Finish,
}

/// The first field of a receipt that is not what it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReceiptFault {
    /// Another channel.
    #[error("the receipt names another channel")]
    Channel,
    /// Another request.
    #[error("the receipt names another request")]
    Request,
    /// Another model.
    #[error("the receipt names another model")]
    Model,
    /// Another number of input tokens.
    #[error("the receipt bills {found} input tokens, not {expected}")]
    PromptTokens {
        /// Sent.
        expected: u64,
        /// Billed.
        found: u64,
    },
    /// More output tokens than arrived.
    #[error("the receipt bills {found} output tokens, but {arrived} arrived")]
    OutputTokens {
        /// Received.
        arrived: u64,
        /// Billed.
        found: u64,
    },
    /// Other tokens than arrived, or another finish.
    #[error("the receipt is for another output")]
    Response,
    /// Another amount than the prices give.
    #[error("the receipt charges {found}, not {expected}")]
    Charged {
        /// By the prices.
        expected: Amount,
        /// By the receipt.
        found: Amount,
    },
}

impl ReceiptExpectation<'_> {
    /// Compares every field but the channel's total, which [`crate::PayerChannel::on_receipt`] bounds, and the time.
    /// Hashes the tokens that the receipt covers.
    ///
    /// # Errors
    /// The first difference.
    pub fn check(&self, receipt: &Receipt) -> Result<(), ReceiptFault> {
        if receipt.channel_id != self.channel_id {
            return Err(ReceiptFault::Channel);
        }
        if receipt.request_hash != self.request_hash {
            return Err(ReceiptFault::Request);
        }
        if receipt.model_id != self.model_id {
            return Err(ReceiptFault::Model);
        }
        let (expected, found) = (self.terms.input_tokens, receipt.prompt_tokens);
        if expected != found {
            return Err(ReceiptFault::PromptTokens { expected, found });
        }
        let (arrived, found) = (self.output.len() as u64, receipt.output_tokens);
        let covered = usize::try_from(found).ok().and_then(|n| self.output.get(..n));
        let Some(covered) = covered else {
            return Err(ReceiptFault::OutputTokens { arrived, found });
        };
        if receipt.response_hash != response_hash(covered, self.finish) {
            return Err(ReceiptFault::Response);
        }
        let (expected, found) = (self.terms.charge_up(receipt.output_tokens), receipt.charged);
        if expected != found {
            return Err(ReceiptFault::Charged { expected, found });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_types::{B256, Prices};

    #[test]
    fn each_wrong_field_is_named() {
        let prices = Prices { input_per_million: Amount(1_000_000), output_per_million: Amount(2_000_000) };
        let terms = StreamTerms { prices, input_tokens: 5, output_tokens_max: 10 };
        let expectation = ReceiptExpectation {
            channel_id: ChannelId(B256::repeat_byte(1)),
            request_hash: RequestHash(B256::repeat_byte(2)),
            model_id: ModelId(B256::repeat_byte(3)),
            terms: &terms,
            output: &[7, 8, 9],
            finish: Finish::Open,
        };
        let genuine = Receipt {
            channel_id: expectation.channel_id,
            request_hash: expectation.request_hash,
            response_hash: response_hash(&[7, 8], Finish::Open),
            model_id: expectation.model_id,
            prompt_tokens: 5,
            output_tokens: 2,
            charged: Amount(9),
            charged_total: Amount(1_000),
            issued_at: 0,
        };
        let check = |change: fn(&mut Receipt), expect: Result<(), ReceiptFault>| {
            let mut receipt = genuine;
            change(&mut receipt);
            assert_eq!(expectation.check(&receipt), expect);
        };
        check(|_| (), Ok(()));
        check(|r| r.channel_id.0[0] ^= 1, Err(ReceiptFault::Channel));
        check(|r| r.request_hash.0[0] ^= 1, Err(ReceiptFault::Request));
        check(|r| r.model_id.0[0] ^= 1, Err(ReceiptFault::Model));
        check(|r| r.prompt_tokens = 4, Err(ReceiptFault::PromptTokens { expected: 5, found: 4 }));
        check(|r| r.output_tokens = 4, Err(ReceiptFault::OutputTokens { arrived: 3, found: 4 }));
        check(|r| r.output_tokens = u64::MAX, Err(ReceiptFault::OutputTokens { arrived: 3, found: u64::MAX }));
        check(|r| r.output_tokens = 3, Err(ReceiptFault::Response));
        check(|r| r.response_hash = response_hash(&[7, 8], Finish::Stop), Err(ReceiptFault::Response));
        check(|r| r.charged = Amount(10), Err(ReceiptFault::Charged { expected: Amount(9), found: Amount(10) }));
    }
}
