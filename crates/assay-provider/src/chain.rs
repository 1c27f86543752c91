//! What the provider needs of the chain. The implementation is [`assay_chain::Network`] with the provider's key; the
//! trait exists so that tests can play a chain that is slow, forgets or refuses.

use assay_chain::{
    ChainError, ClaimRow, Network,
    client::{ChannelState, ClaimReport},
};
use assay_protocol::lasting_balance_down;
use assay_types::{Amount, B256, ChannelId, ProviderId};
use std::{future::Future, pin::Pin};

/// What a call to the chain gives in the end.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ChainError>> + Send + 'a>>;

/// A channel as the settlement contract has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChannelOnChain {
    /// Its money, by the latest block.
    pub state: ChannelState,
    /// Of its balance, what no reorganization takes back.
    pub settled_balance: Amount,
    /// The payer has begun to take back what is not claimed.
    pub is_withdrawing: bool,
}

/// What a provider tells the registry of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Where it can be reached.
    pub endpoint: String,
    /// What it proves there, if that is under TLS. The registry wants one of everybody; in the clear it is the
    /// provider's address, which says the same about who answers there: nothing.
    pub transport_key: B256,
}

/// A provider as the registry has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Registered {
    /// None if it is not registered.
    pub entry: Option<Entry>,
    /// Active stake.
    pub stake: Amount,
}

/// The provider's view of the chain. Transactions are sent from its key and are in a block when the call returns.
pub trait Chain: Send + Sync + 'static {
    /// A channel; all zero if nothing was ever deposited.
    fn channel(&self, id: ChannelId) -> Answer<'_, ChannelOnChain>;

    /// Claims rows of any number of channels; the report says which were refused.
    fn claim(&self, rows: Vec<ClaimRow>) -> Answer<'_, ClaimReport>;

    /// Transfers what was claimed to the provider; returns how much.
    fn settle(&self) -> Answer<'_, Amount>;

    /// What this provider ever claimed, over all channels.
    fn claimed(&self) -> Answer<'_, Amount>;

    /// The provider's own entry.
    fn registered(&self) -> Answer<'_, Registered>;

    /// Enters the provider.
    fn register(&self, entry: Entry) -> Answer<'_, ()>;

    /// Changes the entry.
    fn update(&self, entry: Entry) -> Answer<'_, ()>;

    /// Adds to the active stake.
    fn stake(&self, amount: Amount) -> Answer<'_, ()>;
}

impl Chain for Network {
    fn channel(&self, id: ChannelId) -> Answer<'_, ChannelOnChain> {
        Box::pin(async move {
            let state = self.settlement.channel(id).await?;
            let settled = self.settlement.settled_channel(id).await?;
            let withdrawal = self.settlement.settled_withdrawal(id).await?;
            let settled_balance = lasting_balance_down(state.balance, settled.balance, withdrawal);
            let is_withdrawing = self.settlement.pending_withdrawal(id).await?.is_some();
            Ok(ChannelOnChain { state, settled_balance, is_withdrawing })
        })
    }

    fn claim(&self, rows: Vec<ClaimRow>) -> Answer<'_, ClaimReport> {
        Box::pin(async move { self.settlement.claim(&rows).await })
    }

    fn settle(&self) -> Answer<'_, Amount> {
        Box::pin(async move {
            let (receiver, token) = (self.client.address(), self.addresses.token);
            let sums = self.settlement.receiver(receiver, token).await?;
            let due = sums.total_claimed.saturating_sub(sums.total_settled);
            if due > Amount::ZERO {
                self.settlement.settle(receiver, token).await?;
            }
            Ok(due)
        })
    }

    fn claimed(&self) -> Answer<'_, Amount> {
        Box::pin(async move {
            let sums = self.settlement.receiver(self.client.address(), self.addresses.token).await?;
            Ok(sums.total_claimed)
        })
    }

    fn registered(&self) -> Answer<'_, Registered> {
        Box::pin(async move {
            let provider = ProviderId(self.client.address());
            let info = self.registry.provider(provider).await?;
            let stake = self.registry.stake_of(provider).await?;
            let entry = info.map(|info| Entry { endpoint: info.endpoint, transport_key: info.transport_key });
            Ok(Registered { entry, stake })
        })
    }

    fn register(&self, entry: Entry) -> Answer<'_, ()> {
        Box::pin(async move {
            self.registry.register(&entry.endpoint, entry.transport_key, B256::ZERO).await?;
            Ok(())
        })
    }

    fn update(&self, entry: Entry) -> Answer<'_, ()> {
        Box::pin(async move {
            self.registry.update(&entry.endpoint, entry.transport_key, B256::ZERO).await?;
            Ok(())
        })
    }

    fn stake(&self, amount: Amount) -> Answer<'_, ()> {
        Box::pin(async move {
            self.registry.stake(amount).await?;
            Ok(())
        })
    }
}

/// Registers `entry` if it is not what the registry has, and stakes what is missing to `stake`.
pub(crate) async fn enroll(chain: &dyn Chain, entry: Entry, stake: Amount) -> Result<(), ChainError> {
    let registered = chain.registered().await?;
    match registered.entry {
        None => chain.register(entry).await?,
        Some(found) if found != entry => chain.update(entry).await?,
        Some(_) => {}
    }
    let missing = stake.saturating_sub(registered.stake);
    if missing > Amount::ZERO {
        chain.stake(missing).await?;
    }
    Ok(())
}
