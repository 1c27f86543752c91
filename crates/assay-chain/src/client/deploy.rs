//! The contracts of one network, and how a local one is set up.

use super::{ChainClient, ChainError, models::Models, registry::Registry, settlement::Settlement, token::Token};
use crate::{
    bindings::{models::ModelRegistry, registry::ProviderRegistry, token::TestUSD},
    embedded::COLLECTOR_ADDRESS,
};
use alloy_primitives::Address;
use alloy_sol_types::SolConstructor;
use assay_types::{Amount, SETTLEMENT_ADDRESS};
use serde::{Deserialize, Serialize};

/// Where everything is. The caller keeps it in a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkAddresses {
    /// On this chain.
    pub chain_id: u64,
    /// The stablecoin that is paid and staked.
    pub token: Address,
    /// Providers and their stake.
    pub registry: Address,
    /// Models.
    pub model_registry: Address,
    /// Payment channels.
    pub settlement: Address,
    /// ERC-3009 deposits into channels.
    pub collector: Address,
}

/// The contracts of one network, through one client.
#[derive(Clone)]
pub struct Network {
    /// The connection.
    pub client: ChainClient,
    /// Where everything is.
    pub addresses: NetworkAddresses,
    /// The stablecoin.
    pub token: Token,
    /// Providers.
    pub registry: Registry,
    /// Models.
    pub models: Models,
    /// Channels.
    pub settlement: Settlement,
}

impl Network {
    /// Does not ask the chain for more than its id, which the client knows.
    ///
    /// # Errors
    /// [`ChainError::OtherChain`].
    pub fn new(client: ChainClient, addresses: NetworkAddresses) -> Result<Self, ChainError> {
        if client.chain_id() != addresses.chain_id {
            return Err(ChainError::OtherChain { found: client.chain_id(), expected: addresses.chain_id });
        }
        Ok(Self {
            token: Token::new(client.clone(), addresses.token),
            registry: Registry::new(client.clone(), addresses.registry),
            models: Models::new(client.clone(), addresses.model_registry),
            settlement: Settlement::new(client.clone(), addresses.settlement, addresses.collector),
            client,
            addresses,
        })
    }

    /// Checks that every address has code.
    ///
    /// # Errors
    /// [`ChainError::NoContract`] for the first that has none.
    pub async fn check(&self) -> Result<(), ChainError> {
        let all = &self.addresses;
        for address in [all.token, all.registry, all.model_registry, all.settlement, all.collector] {
            if !self.client.has_code(address).await? {
                return Err(ChainError::NoContract { address, chain_id: all.chain_id });
            }
        }
        Ok(())
    }
}

/// Parameters of a local network's contracts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeployParams {
    /// Least active stake of a provider.
    pub min_stake: Amount,
    /// Seconds between a request to unstake and the payout.
    pub unbonding_delay_s: u64,
    /// The only address that can slash; it cannot be changed later.
    pub slasher: Address,
    /// The most that can be slashed of a stake within one unbonding delay, in basis points.
    pub max_slash_bps: u16,
}

impl DeployParams {
    /// 100 test dollars of stake, seven days, half of a stake.
    #[must_use]
    pub fn local(slasher: Address) -> Self {
        Self { min_stake: Amount(100_000_000), unbonding_delay_s: 7 * 86_400, slasher, max_slash_bps: 5_000 }
    }
}

/// Deploys the test coin (minted by the client's key), the provider registry and the model registry beside the
/// settlement contract of genesis. With `saved`, checks that those contracts are there and deploys nothing.
///
/// # Errors
/// [`ChainError`]; [`ChainError::NoContract`] if `saved` does not fit the chain, or it has no settlement contract.
pub async fn deploy_local(
    client: &ChainClient,
    params: &DeployParams,
    saved: Option<NetworkAddresses>,
) -> Result<Network, ChainError> {
    let addresses = match saved {
        Some(addresses) => addresses,
        None => deploy_contracts(client, params).await?,
    };
    let network = Network::new(client.clone(), addresses)?;
    network.check().await?;
    Ok(network)
}

async fn deploy_contracts(client: &ChainClient, params: &DeployParams) -> Result<NetworkAddresses, ChainError> {
    let arguments = TestUSD::constructorCall { owner: client.address() };
    let token = client.deploy(&TestUSD::BYTECODE, &arguments.abi_encode()).await?;
    let arguments = ProviderRegistry::constructorCall {
        token_: token,
        minStake_: params.min_stake.0,
        unbondingDelay_: params.unbonding_delay_s,
        slasher_: params.slasher,
        maxSlashBps_: params.max_slash_bps,
    };
    let registry = client.deploy(&ProviderRegistry::BYTECODE, &arguments.abi_encode()).await?;
    let model_registry = client.deploy(&ModelRegistry::BYTECODE, &[]).await?;
    Ok(NetworkAddresses {
        chain_id: client.chain_id(),
        token,
        registry,
        model_registry,
        settlement: SETTLEMENT_ADDRESS,
        collector: COLLECTOR_ADDRESS,
    })
}
