//! What a provider serves, at which price, right now; signed, so that anyone may pass it on.

use crate::{ModelId, Prices, ProviderId, Signature, SignatureError, job::put_count};
use alloy_primitives::{B256, keccak256};
use serde::{Deserialize, Serialize};

/// One model on offer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelOffer {
    /// By manifest.
    pub model_id: ModelId,
    /// Name that clients ask for.
    pub name: String,
    /// Longest prompt + output in tokens.
    pub context_length: u32,
    /// The price.
    pub prices: Prices,
}

/// A provider's offer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// Who offers.
    pub provider: ProviderId,
    /// What; at most [`Offer::MODELS_MAX`].
    pub models: Vec<ModelOffer>,
    /// Jobs it runs at once.
    pub capacity: u32,
    /// Jobs it is running.
    pub running: u32,
    /// Jobs that wait.
    pub queued: u32,
    /// It finishes what it has and takes nothing new.
    pub draining: bool,
    /// Seconds since the Unix epoch, by the provider's clock.
    pub issued_at: u64,
}

impl Offer {
    /// Most models in one offer.
    pub const MODELS_MAX: usize = 256;

    /// keccak256 of the tag `assay/offer/1`, the chain id (`u64`) and every field in declaration order; integers
    /// big-endian, lists and strings with a `u32` count before them.
    #[must_use]
    pub fn digest(&self, chain_id: u64) -> B256 {
        let mut out = Vec::with_capacity(128 + 128 * self.models.len());
        out.extend_from_slice(b"assay/offer/1");
        out.extend_from_slice(&chain_id.to_be_bytes());
        out.extend_from_slice(self.provider.0.as_slice());
        put_count(&mut out, self.models.len());
        for model in &self.models {
            out.extend_from_slice(model.model_id.0.as_slice());
            put_count(&mut out, model.name.len());
            out.extend_from_slice(model.name.as_bytes());
            out.extend_from_slice(&model.context_length.to_be_bytes());
            out.extend_from_slice(&model.prices.input_per_million.0.to_be_bytes());
            out.extend_from_slice(&model.prices.output_per_million.0.to_be_bytes());
        }
        out.extend_from_slice(&self.capacity.to_be_bytes());
        out.extend_from_slice(&self.running.to_be_bytes());
        out.extend_from_slice(&self.queued.to_be_bytes());
        out.push(u8::from(self.draining));
        out.extend_from_slice(&self.issued_at.to_be_bytes());
        keccak256(out)
    }
}

/// An offer and the provider's signature.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedOffer {
    /// The statement.
    pub offer: Offer,
    /// By `offer.provider`.
    pub signature: Signature,
}

impl SignedOffer {
    /// Checks that the provider it names signed it for this chain.
    ///
    /// # Errors
    /// [`SignatureError`] says what is wrong.
    pub fn verify(&self, chain_id: u64) -> Result<(), SignatureError> {
        self.signature.verify(&self.offer.digest(chain_id), self.offer.provider.0)
    }
}
