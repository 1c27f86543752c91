//! What a provider signs: this request got this response from this model, and so much is charged for it.

use crate::{
    Amount, ChannelId, Finish, ModelId, ProviderId, RequestHash, ResponseHash, Signature, SignatureError,
    SigningDomain, domain::type_hash,
};
use alloy_primitives::{Address, B256};
use alloy_sol_types::{SolStruct, eip712_domain, sol};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

mod typed {
    use super::sol;
    sol! {
        struct Receipt {
            bytes32 channelId;
            bytes32 requestHash;
            bytes32 responseHash;
            bytes32 modelId;
            uint64 promptTokens;
            uint64 outputTokens;
            uint128 charged;
            uint128 chargedTotal;
            uint64 issuedAt;
        }
    }
}

static RECEIPT_TYPE: LazyLock<B256> = LazyLock::new(type_hash::<typed::Receipt>);

/// EIP-712 domain of receipts: bound to the chain and to the registry that holds the provider's stake.
#[must_use]
pub fn receipt_domain(chain_id: u64, registry: Address) -> SigningDomain {
    SigningDomain::new(&eip712_domain! {
        name: "Assay",
        version: "1",
        chain_id: chain_id,
        verifying_contract: registry,
    })
}

/// A receipt. Several may exist for one request: checkpoints (finish `open`) and the final one; each commits to a
/// longer prefix of the same output. Two with equal `requestHash` and `outputTokens` but different `responseHash`
/// prove that the provider equivocated.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The channel that pays.
    pub channel_id: ChannelId,
    /// [`crate::Job::request_hash`].
    pub request_hash: RequestHash,
    /// [`crate::response_hash`] of the output tokens so far.
    pub response_hash: ResponseHash,
    /// The model that was run.
    pub model_id: ModelId,
    /// Input tokens billed: prompt and prefix.
    pub prompt_tokens: u64,
    /// Output tokens billed.
    pub output_tokens: u64,
    /// For this request so far, [`crate::Prices::charge_up`].
    pub charged: Amount,
    /// For the channel so far: the sum over its requests of their latest `charged`.
    pub charged_total: Amount,
    /// Seconds since the Unix epoch, by the provider's clock.
    pub issued_at: u64,
}

impl Receipt {
    /// What the provider signs.
    #[must_use]
    pub fn digest(&self, domain: &SigningDomain) -> B256 {
        domain.digest(&RECEIPT_TYPE, &self.typed())
    }

    /// The receipt as a typed struct, in no domain: by this hash a court's case names it.
    #[must_use]
    pub fn struct_hash(&self) -> B256 {
        self.typed().eip712_hash_struct()
    }

    fn typed(&self) -> typed::Receipt {
        typed::Receipt {
            channelId: self.channel_id.0,
            requestHash: self.request_hash.0,
            responseHash: self.response_hash.0,
            modelId: self.model_id.0,
            promptTokens: self.prompt_tokens,
            outputTokens: self.output_tokens,
            charged: self.charged.0,
            chargedTotal: self.charged_total.0,
            issuedAt: self.issued_at,
        }
    }
}

/// A receipt and the provider's signature.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedReceipt {
    /// The statement.
    pub receipt: Receipt,
    /// By the provider's registered key.
    pub signature: Signature,
}

/// A receipt and how its job had ended by then.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done {
    /// The receipt.
    pub receipt: SignedReceipt,
    /// Hashed in the receipt. In a last receipt [`Finish::Open`] where the job was cut and the last checkpoint covers
    /// all that is billed.
    pub finish: Finish,
}

impl SignedReceipt {
    /// Checks that `provider` signed.
    ///
    /// # Errors
    /// [`SignatureError`] says what is wrong.
    pub fn verify(&self, domain: &SigningDomain, provider: ProviderId) -> Result<(), SignatureError> {
        self.signature.verify(&self.receipt.digest(domain), provider.0)
    }
}
