//! Payment channels and vouchers in the shape of x402 `batch-settlement`.

use crate::{Amount, ChannelId, Signature, SignatureError, SigningDomain, domain::type_hash};
use alloy_primitives::{Address, B256, U256, address, aliases::U40};
use alloy_sol_types::{eip712_domain, sol};
use serde::{Deserialize, Serialize};
use std::sync::LazyLock;

/// Where x402 clients expect the settlement contract on every chain.
pub const SETTLEMENT_ADDRESS: Address = address!("4020074e9dF2ce1deE5A9C1b5c3f541D02a10003");

mod typed {
    use super::sol;
    sol! {
        struct ChannelConfig {
            address payer;
            address payerAuthorizer;
            address receiver;
            address receiverAuthorizer;
            address token;
            uint40 withdrawDelay;
            bytes32 salt;
        }
        struct Voucher {
            bytes32 channelId;
            uint128 maxClaimableAmount;
        }
    }
}

static CHANNEL_TYPE: LazyLock<B256> = LazyLock::new(type_hash::<typed::ChannelConfig>);
static VOUCHER_TYPE: LazyLock<B256> = LazyLock::new(type_hash::<typed::Voucher>);

/// EIP-712 domain of vouchers and channels.
#[must_use]
pub fn settlement_domain(chain_id: u64, settlement: Address) -> SigningDomain {
    SigningDomain::new(&eip712_domain! {
        name: "x402 Batch Settlement",
        version: "1",
        chain_id: chain_id,
        verifying_contract: settlement,
    })
}

/// A channel: who pays whom in which token. Immutable; its hash is its id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelConfig {
    /// Whose deposit it is.
    pub payer: Address,
    /// Whose key signs vouchers.
    pub payer_authorizer: Address,
    /// Who is paid.
    pub receiver: Address,
    /// Whose key may claim.
    pub receiver_authorizer: Address,
    /// The ERC-20.
    pub token: Address,
    /// Seconds between a payer's wish to withdraw and the withdrawal; below 2^40.
    pub withdraw_delay: u64,
    /// Makes several channels between the same parties distinct.
    pub salt: B256,
}

impl ChannelConfig {
    /// The EIP-712 digest in the settlement contract's domain: the same parties have another id on another chain.
    ///
    /// `withdraw_delay` is taken modulo 2^40 (the contract's type); [`Self::is_well_formed`] refuses larger ones.
    #[must_use]
    pub fn id(&self, domain: &SigningDomain) -> ChannelId {
        let typed = typed::ChannelConfig {
            payer: self.payer,
            payerAuthorizer: self.payer_authorizer,
            receiver: self.receiver,
            receiverAuthorizer: self.receiver_authorizer,
            token: self.token,
            withdrawDelay: U40::wrapping_from(U256::from(self.withdraw_delay)),
            salt: self.salt,
        };
        ChannelId(domain.digest(&CHANNEL_TYPE, &typed))
    }

    /// Whether the delay fits the contract's `uint40`.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        self.withdraw_delay < 1 << 40
    }
}

/// A promise: the receiver may claim up to this much from the channel, ever.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Voucher {
    /// The channel.
    pub channel_id: ChannelId,
    /// Cumulative ceiling; never falls.
    pub max_claimable_amount: Amount,
}

impl Voucher {
    /// What the payer's authorizer signs.
    #[must_use]
    pub fn digest(&self, domain: &SigningDomain) -> B256 {
        let typed = typed::Voucher { channelId: self.channel_id.0, maxClaimableAmount: self.max_claimable_amount.0 };
        domain.digest(&VOUCHER_TYPE, &typed)
    }
}

/// A voucher and the payer's signature.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SignedVoucher {
    /// The promise.
    pub voucher: Voucher,
    /// By the channel's `payerAuthorizer`.
    pub signature: Signature,
}

impl SignedVoucher {
    /// Checks that `authorizer` signed.
    ///
    /// # Errors
    /// [`SignatureError`] says what is wrong.
    pub fn verify(&self, domain: &SigningDomain, authorizer: Address) -> Result<(), SignatureError> {
        self.signature.verify(&self.voucher.digest(domain), authorizer)
    }
}
