//! The self-contained file that `assay verify` takes and the gateway hands out.

use crate::{Address, ChannelConfig, Finish, Job, Manifest, ProviderId, SignedReceipt, TokenId};
use serde::{Deserialize, Serialize};

/// Version of the file format.
pub const RECEIPT_FILE_VERSION: u32 = 1;

/// Everything needed to check an answer without asking anyone; with the model file, to re-derive it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptFile {
    /// [`RECEIPT_FILE_VERSION`].
    pub version: u32,
    /// Hash of the job as the client's side first sent it; the receipt's name in URLs.
    pub id: crate::RequestHash,
    /// Chain on which the provider's stake and the channel stand.
    pub chain_id: u64,
    /// Provider registry: verifying contract of the receipts' typed data.
    pub registry: Address,
    /// Settlement contract: verifying contract of the channels' typed data.
    pub settlement: Address,
    /// The model.
    pub manifest: Manifest,
    /// The request, with an empty prefix.
    pub job: Job,
    /// One part a provider, in order; a stream that was spliced has several.
    pub parts: Vec<ReceiptPart>,
}

/// What one provider produced and signed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReceiptPart {
    /// Who.
    pub provider: ProviderId,
    /// The channel that paid; its hash is the receipt's `channelId`.
    pub channel: ChannelConfig,
    /// Output token ids of this part.
    pub output: Vec<TokenId>,
    /// How this part ended; `open` for a provider that was lost.
    pub finish: Finish,
    /// The latest receipt for this part.
    #[serde(flatten)]
    pub signed: SignedReceipt,
}
