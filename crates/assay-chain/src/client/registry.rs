//! Providers: identity, endpoint, stake.

use super::{ChainClient, ChainError, token::Token};
use crate::bindings::registry::{IProviderRegistry, ProviderRegistry};
use alloy_primitives::{Address, B256, U256};
use alloy_rpc_types_eth::TransactionReceipt;
use assay_types::{Amount, ProviderId};
use std::collections::HashSet;

/// Rows of one page; the contract's own limit.
const PAGE_ROWS: usize = 100;
/// Providers that are listed at most; a page past it is not read.
const PROVIDERS_MAX: usize = 10_000;

/// What a provider publishes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProviderInfo {
    /// Where it claims to be reachable.
    pub endpoint: String,
    /// Public key of its transport.
    pub transport_key: B256,
    /// Commitment to what it publishes off chain.
    pub terms_hash: B256,
    /// Unix seconds.
    pub registered_at: u64,
}

/// One registered provider.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listing {
    /// Who.
    pub provider: ProviderId,
    /// What it publishes.
    pub info: ProviderInfo,
    /// Active stake.
    pub stake: Amount,
    /// Registered and with the least stake.
    pub active: bool,
}

/// A provider's stake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StakeDetails {
    /// Counts.
    pub active: Amount,
    /// On its way out.
    pub unbonding: Amount,
    /// Unix second from which all of `unbonding` can be withdrawn.
    pub release_at: u64,
}

/// The provider registry at an address.
#[derive(Clone)]
pub struct Registry {
    client: ChainClient,
    /// Where it is.
    pub address: Address,
}

impl Registry {
    /// Does not ask the chain.
    #[must_use]
    pub fn new(client: ChainClient, address: Address) -> Self {
        Self { client, address }
    }

    /// Publishes the client's address as a provider.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `AlreadyRegistered`.
    pub async fn register(
        &self,
        endpoint: &str,
        transport_key: B256,
        terms_hash: B256,
    ) -> Result<TransactionReceipt, ChainError> {
        let call = ProviderRegistry::registerCall {
            endpoint: endpoint.to_owned(),
            transportKey: transport_key,
            termsHash: terms_hash,
        };
        self.client.send(self.address, &call).await
    }

    /// Replaces what the client's address publishes.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NotRegistered`.
    pub async fn update(
        &self,
        endpoint: &str,
        transport_key: B256,
        terms_hash: B256,
    ) -> Result<TransactionReceipt, ChainError> {
        let call = ProviderRegistry::updateCall {
            endpoint: endpoint.to_owned(),
            transportKey: transport_key,
            termsHash: terms_hash,
        };
        self.client.send(self.address, &call).await
    }

    /// Takes the client's address off the list; its stake stays.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn deregister(&self) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &ProviderRegistry::deregisterCall {}).await
    }

    /// Adds to the client's active stake; approves exactly that much first if the allowance is too small.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn stake(&self, amount: Amount) -> Result<TransactionReceipt, ChainError> {
        let token = Token::new(self.client.clone(), self.token().await?);
        if token.allowance(self.client.address(), self.address).await? < amount {
            token.approve(self.address, amount).await?;
        }
        self.client.send(self.address, &ProviderRegistry::stakeCall { amount: amount.0 }).await
    }

    /// Starts taking stake out.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `InsufficientStake`.
    pub async fn request_unstake(&self, amount: Amount) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &ProviderRegistry::requestUnstakeCall { amount: amount.0 }).await
    }

    /// Pays out everything that is unbonding.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `StillUnbonding` before `release_at`.
    pub async fn withdraw_unstaked(&self) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &ProviderRegistry::withdrawUnstakedCall {}).await
    }

    /// The stake token.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn token(&self) -> Result<Address, ChainError> {
        self.client.call(self.address, &ProviderRegistry::tokenCall {}).await
    }

    /// The least active stake.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn min_stake(&self) -> Result<Amount, ChainError> {
        self.client.call(self.address, &ProviderRegistry::minStakeCall {}).await.map(Amount)
    }

    /// Seconds between a request to unstake and the payout.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn unbonding_delay_s(&self) -> Result<u64, ChainError> {
        self.client.call(self.address, &ProviderRegistry::unbondingDelayCall {}).await
    }

    /// Active stake.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn stake_of(&self, provider: ProviderId) -> Result<Amount, ChainError> {
        let call = ProviderRegistry::stakeOfCall { operator: provider.0 };
        self.client.call(self.address, &call).await.map(Amount)
    }

    /// The most that can be taken of a provider's stake now.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn slashable_of(&self, provider: ProviderId) -> Result<Amount, ChainError> {
        let call = ProviderRegistry::slashableOfCall { operator: provider.0 };
        self.client.call(self.address, &call).await.map(Amount)
    }

    /// Who can take stake.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn slasher(&self) -> Result<Address, ChainError> {
        self.client.call(self.address, &ProviderRegistry::slasherCall {}).await
    }

    /// The most that can be taken within one unbonding delay, in basis points of a stake.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn max_slash_bps(&self) -> Result<u16, ChainError> {
        self.client.call(self.address, &ProviderRegistry::maxSlashBpsCall {}).await
    }

    /// All of a provider's stake.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn stake_details(&self, provider: ProviderId) -> Result<StakeDetails, ChainError> {
        let call = ProviderRegistry::stakeDetailsCall { operator: provider.0 };
        let stake = self.client.call(self.address, &call).await?;
        Ok(StakeDetails {
            active: Amount(stake.active),
            unbonding: Amount(stake.unbonding),
            release_at: stake.releaseAt,
        })
    }

    /// Registered and with the least stake.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn is_active(&self, provider: ProviderId) -> Result<bool, ChainError> {
        self.client.call(self.address, &ProviderRegistry::isActiveCall { operator: provider.0 }).await
    }

    /// What a provider publishes, `None` if it is not registered.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn provider(&self, provider: ProviderId) -> Result<Option<ProviderInfo>, ChainError> {
        let call = ProviderRegistry::providerCall { operator: provider.0 };
        let found = self.client.call(self.address, &call).await?;
        Ok((found.registeredAt != 0).then(|| info(found)))
    }

    /// Every registered provider, at most 10,000.
    ///
    /// The contract's order changes when someone leaves, so a provider could be missed when a block comes between two
    /// pages: then the list is read again, a few times; no provider is ever in it twice.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn list(&self) -> Result<Vec<Listing>, ChainError> {
        let mut listings = Vec::new();
        for _ in 0..3 {
            let before = self.client.block_number().await?;
            listings = self.read_pages().await?;
            if listings.len() < PAGE_ROWS || self.client.block_number().await? == before {
                break;
            }
        }
        Ok(listings)
    }

    async fn read_pages(&self) -> Result<Vec<Listing>, ChainError> {
        let mut listings = Vec::new();
        let mut seen = HashSet::new();
        for offset in (0..PROVIDERS_MAX).step_by(PAGE_ROWS) {
            let call = ProviderRegistry::providersPageCall { offset: U256::from(offset), limit: U256::from(PAGE_ROWS) };
            let page = self.client.call(self.address, &call).await?;
            let is_last = page.len() < PAGE_ROWS;
            for row in page.into_iter().filter(|row| seen.insert(row.operator)) {
                listings.push(Listing {
                    provider: ProviderId(row.operator),
                    info: info(row.info),
                    stake: Amount(row.stake),
                    active: row.active,
                });
            }
            if is_last {
                break;
            }
        }
        Ok(listings)
    }
}

fn info(found: IProviderRegistry::Provider) -> ProviderInfo {
    ProviderInfo {
        endpoint: found.endpoint,
        transport_key: found.transportKey,
        terms_hash: found.termsHash,
        registered_at: found.registeredAt,
    }
}
