//! What the gateway needs of a chain: who is registered, and money in channels.
//!
//! A narrow interface, so that the request path cannot reach the chain at all: only the background tasks hold one.

use assay_protocol::AuditPolicy;
use assay_types::{Address, Amount, B256, ChannelConfig, ChannelId, ProviderId, RequestHash};
use std::future::Future;

/// A provider as the registry has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// Who.
    pub id: ProviderId,
    /// Where it listens: `tls://HOST:PORT` or `tcp://HOST:PORT`.
    pub endpoint: String,
    /// What it proves there, under TLS.
    pub transport_key: B256,
    /// Whether its stake is in place; others get no requests.
    pub is_active: bool,
}

/// Which network: chain and contracts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    /// Chain id, in every signed statement.
    pub chain_id: u64,
    /// Provider registry: verifying contract of receipts.
    pub registry: Address,
    /// Settlement contract: verifying contract of vouchers.
    pub settlement: Address,
    /// The ERC-20 that providers are paid in.
    pub token: Address,
}

/// A withdrawal from a channel that the gateway's key has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Withdrawal {
    /// Asked for; what is claimed until it ends is not paid out.
    pub amount: Amount,
    /// The channel's delay is over: it can be ended.
    pub is_due: bool,
}

/// The chain did not answer, or said no.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("chain: {0}")]
pub struct LedgerError(pub String);

/// Access to a chain.
pub trait Ledger: Send + Sync + 'static {
    /// Where the contracts are.
    fn addresses(&self) -> Addresses;

    /// Everyone in the provider registry.
    fn providers(&self) -> impl Future<Output = Result<Vec<Registered>, LedgerError>> + Send;

    /// What was ever put into a channel; claimed amounts stay counted, withdrawn ones do not. 0 if it does not exist.
    fn channel_deposit(&self, id: ChannelId) -> impl Future<Output = Result<Amount, LedgerError>> + Send;

    /// The channel's pending withdrawal.
    fn withdrawal(
        &self,
        channel: &ChannelConfig,
    ) -> impl Future<Output = Result<Option<Withdrawal>, LedgerError>> + Send;

    /// Ends a withdrawal that is due; the tokens are the gateway's again when this returns.
    fn finalize(&self, channel: &ChannelConfig) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// Puts `amount` of the gateway's tokens into the channel and opens it if need be; returns when it is final.
    fn deposit(&self, channel: &ChannelConfig, amount: Amount) -> impl Future<Output = Result<(), LedgerError>> + Send;

    /// What the court gave back of a punished answer's price; `None` as long as it has not. Without a court it never does.
    fn refunded(
        &self,
        _provider: ProviderId,
        _request: RequestHash,
    ) -> impl Future<Output = Result<Option<Amount>, LedgerError>> + Send {
        std::future::ready(Ok(None))
    }

    /// Takes what the court owes the gateway to its account.
    fn collect(&self) -> impl Future<Output = Result<(), LedgerError>> + Send {
        std::future::ready(Ok(()))
    }

    /// How much the network audits; `None` if it does not say.
    fn audit_policy(&self) -> impl Future<Output = Result<Option<AuditPolicy>, LedgerError>> + Send {
        std::future::ready(Ok(None))
    }
}
