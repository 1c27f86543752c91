//! What a provider's database says it has earned, for whoever looks at it from outside: the provider may be running.

use crate::store::{StoreError, read};
use assay_protocol::claimable_down;
use assay_types::{Amount, ChannelConfig, ChannelId, ModelId, SignedVoucher};
use std::path::Path;

/// What was charged on one channel for one model.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ModelEarnings {
    /// Which model.
    pub model: ModelId,
    /// Requests with a receipt.
    pub requests: u64,
    /// Input tokens of them.
    pub prompt_tokens: u64,
    /// Output tokens of them.
    pub output_tokens: u64,
    /// The sum of their latest receipts.
    pub charged: Amount,
}

/// One channel, by the database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChannelEarnings {
    /// Who pays, and how.
    pub config: ChannelConfig,
    /// The highest voucher.
    pub voucher: SignedVoucher,
    /// What receipts prove.
    pub charged_total: Amount,
    /// What the chain said when it was last asked.
    pub claimed: Amount,
    /// By model, by id.
    pub models: Vec<ModelEarnings>,
}

impl ChannelEarnings {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> ChannelId {
        self.voucher.voucher.channel_id
    }

    /// What can be claimed besides what is claimed, of a channel that holds `balance` with `claimed` of it claimed.
    #[must_use]
    pub fn claimable_down(&self, balance: Amount, claimed: Amount) -> Amount {
        let ceiling = self.voucher.voucher.max_claimable_amount;
        claimable_down(self.charged_total, ceiling, balance).saturating_sub(claimed)
    }

    /// What the payer has promised for answers that are not charged yet, as far as the channel holds it.
    #[must_use]
    pub fn in_flight(&self, balance: Amount) -> Amount {
        self.voucher.voucher.max_claimable_amount.min(balance).saturating_sub(self.charged_total)
    }
}

/// Reads the channels of a provider's database and what they earned. The file is not changed, and the provider may be
/// running. Linear in the receipts.
///
/// # Errors
/// There is no database at `path`, or it is not a provider's of this release.
pub async fn earnings(path: &Path) -> Result<Vec<ChannelEarnings>, StoreError> {
    read::earnings(path).await
}
