//! [`Ledger`] over the contracts of a real chain, embedded or remote.

use crate::clock;
use crate::ledger::{Addresses, Ledger, LedgerError, Registered, Withdrawal};
use alloy_signer_local::PrivateKeySigner;
use assay_chain::{ChainError, DepositRequest, Network};
use assay_protocol::AuditPolicy;
use assay_types::{Amount, B256, ChannelConfig, ChannelId, ProviderId, RequestHash};

/// How long a signed deposit may wait for its block.
const DEPOSIT_VALID_S: u64 = 3600;

/// The contracts, and the key whose tokens are deposited.
#[derive(Clone)]
pub struct ChainLedger {
    network: Network,
    payer: PrivateKeySigner,
}

impl ChainLedger {
    /// `payer` is the gateway's key; transactions are sent with the client's key, usually the same.
    #[must_use]
    pub fn new(network: Network, payer: PrivateKeySigner) -> Self {
        Self { network, payer }
    }
}

impl Ledger for ChainLedger {
    fn addresses(&self) -> Addresses {
        let at = self.network.addresses;
        Addresses { chain_id: at.chain_id, registry: at.registry, settlement: at.settlement, token: at.token }
    }

    async fn providers(&self) -> Result<Vec<Registered>, LedgerError> {
        let listings = self.network.registry.list().await.map_err(failed)?;
        let registered = listings.into_iter().map(|listing| Registered {
            id: listing.provider,
            endpoint: listing.info.endpoint,
            transport_key: listing.info.transport_key,
            is_active: listing.active,
        });
        Ok(registered.collect())
    }

    async fn channel_deposit(&self, id: ChannelId) -> Result<Amount, LedgerError> {
        Ok(self.network.settlement.channel(id).await.map_err(failed)?.balance)
    }

    async fn withdrawal(&self, channel: &ChannelConfig) -> Result<Option<Withdrawal>, LedgerError> {
        let settlement = &self.network.settlement;
        let id = channel.id(&settlement.domain());
        let Some(pending) = settlement.pending_withdrawal(id).await.map_err(failed)? else { return Ok(None) };
        let now = self.network.client.block_timestamp().await.map_err(failed)?.max(clock::unix_seconds());
        let is_due = now >= pending.initiated_at.saturating_add(channel.withdraw_delay);
        Ok(Some(Withdrawal { amount: pending.amount, is_due }))
    }

    async fn finalize(&self, channel: &ChannelConfig) -> Result<(), LedgerError> {
        self.network.settlement.finalize_withdraw(channel).await.map(drop).map_err(failed)
    }

    async fn deposit(&self, channel: &ChannelConfig, amount: Amount) -> Result<(), LedgerError> {
        let mut salt = B256::ZERO;
        getrandom::fill(salt.as_mut_slice()).map_err(|e| LedgerError(e.to_string()))?;
        // The chain's clock may be ahead of this machine's.
        let now = self.network.client.block_timestamp().await.map_err(failed)?.max(clock::unix_seconds());
        let request = DepositRequest { config: *channel, amount, valid_before: now + DEPOSIT_VALID_S, salt };
        self.network.settlement.deposit(&request, &self.payer).await.map_err(failed)?;
        Ok(())
    }

    async fn refunded(&self, provider: ProviderId, request: RequestHash) -> Result<Option<Amount>, LedgerError> {
        let Some(court) = &self.network.court else { return Ok(None) };
        court.refunded(provider, request).await.map_err(failed)
    }

    async fn collect(&self) -> Result<(), LedgerError> {
        let Some(court) = &self.network.court else { return Ok(()) };
        if court.owed(self.network.client.address()).await.map_err(failed)? > Amount::ZERO {
            court.withdraw().await.map_err(failed)?;
        }
        Ok(())
    }

    async fn audit_policy(&self) -> Result<Option<AuditPolicy>, LedgerError> {
        let Some(parameters) = &self.network.parameters else { return Ok(None) };
        let policy = parameters.policy().await.map_err(failed)?;
        Ok(Some(AuditPolicy {
            floor_ppm: policy.audit_floor_ppm,
            half_tokens: policy.audit_half_tokens,
            decoy_ppm: policy.decoy_ppm,
            recheck_ppm: policy.recheck_ppm,
        }))
    }
}

fn failed(error: ChainError) -> LedgerError {
    LedgerError(error.to_string())
}
