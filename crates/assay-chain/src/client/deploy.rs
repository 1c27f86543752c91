//! The contracts of one network, and how they are deployed.
//!
//! Three of them name each other for good: the registry its court as slasher, the court its trial, the trial its court.
//! So each is deployed before the one that it names, with the address that one will have by the deployer's next nonces.

use super::{
    ChainClient, ChainError,
    court::Court,
    models::Models,
    parameters::{NetworkPolicy, Parameters, Terms, policy_words, terms_words},
    registry::Registry,
    settlement::Settlement,
    token::Token,
};
use crate::{
    bindings::{
        court::Court as CourtContract, judge::Judge, models::ModelRegistry,
        parameters::Parameters as ParametersContract, registry::ProviderRegistry, token::TestUSD, trial::Trial,
    },
    embedded::COLLECTOR_ADDRESS,
};
use alloy_primitives::{Address, aliases::U96};
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
    /// The court; none in networks of before there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub court: Option<CourtAddresses>,
}

/// Where the court is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CourtAddresses {
    /// Holds bonds, convicts, pays rewards.
    pub court: Address,
    /// The game over one answer.
    pub trial: Address,
    /// Repeats one step.
    pub judge: Address,
    /// What the network can change about itself; none in networks of before there were any, whose court this release
    /// does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Address>,
    /// No dispute is in an earlier block.
    pub since: u64,
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
    /// The court, if the network has one that this release knows.
    pub court: Option<Court>,
    /// What the network can change about itself.
    pub parameters: Option<Parameters>,
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
            court: addresses
                .court
                .filter(|at| at.parameters.is_some())
                .map(|at| Court::new(client.clone(), at.court, at.trial)),
            parameters: addresses.court.and_then(|at| at.parameters).map(|at| Parameters::new(client.clone(), at)),
            client,
            addresses,
        })
    }

    /// Checks that every address has code.
    ///
    /// # Errors
    /// [`ChainError::NoContract`] for the first that has none.
    pub async fn check(&self) -> Result<(), ChainError> {
        for (_, address) in self.addresses.all() {
            if !self.client.has_code(address).await? {
                return Err(ChainError::NoContract { address, chain_id: self.addresses.chain_id });
            }
        }
        Ok(())
    }
}

impl NetworkAddresses {
    /// Every contract with its name.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, Address)> {
        let mut all = vec![
            ("token", self.token),
            ("registry", self.registry),
            ("model registry", self.model_registry),
            ("settlement", self.settlement),
            ("collector", self.collector),
        ];
        if let Some(at) = self.court {
            all.extend([("court", at.court), ("trial", at.trial), ("judge", at.judge)]);
            all.extend(at.parameters.map(|at| ("parameters", at)));
        }
        all
    }
}

/// Parameters of a network's contracts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeployParams {
    /// Least active stake of a provider.
    pub min_stake: Amount,
    /// Seconds between a request to unstake and the payout.
    pub unbonding_delay_s: u64,
    /// The only one that can slash; it cannot be changed later.
    pub slasher: Slasher,
    /// The most that can be slashed of a stake within one unbonding delay, in basis points.
    pub max_slash_bps: u16,
}

/// Who can take stake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slasher {
    /// A court that is deployed with the rest.
    Court(CourtParams),
    /// Some address. There is no court then.
    Address(Address),
}

/// Parameters of a court. Amounts are base units of the stake token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CourtParams {
    /// Where what the challenger does not get of a penalty goes.
    pub sink: Address,
    /// What a challenger puts up; it pays for the provider's moves.
    pub bond: Amount,
    /// What one request costs a convicted provider.
    pub penalty: Amount,
    /// Seconds for each move; at most a 49th of the unbonding delay.
    pub move_window_s: u32,
    /// The challenger's share of a penalty in basis points.
    pub reward_bps: u16,
    /// The most of a penalty that goes back to who paid, in basis points; with the reward at most 9,000.
    pub refund_bps: u16,
    /// How much is audited.
    pub policy: NetworkPolicy,
    /// Who may propose other parameters; the deployer's key if it is zero.
    pub owner: Address,
    /// Seconds between a proposal and its application, an hour to 90 days.
    pub delay_s: u64,
}

impl CourtParams {
    /// Bonds and penalties may grow so much over what a network begins with, never more.
    const GROWTH_MAX: u128 = 100;
}

impl DeployParams {
    /// 100 coins of stake, seven days, half of a stake; coins have six decimals.
    #[must_use]
    pub fn local(slasher: Address) -> Self {
        Self {
            min_stake: Amount(100_000_000),
            unbonding_delay_s: 7 * 86_400,
            slasher: Slasher::Address(slasher),
            max_slash_bps: 5_000,
        }
    }

    /// [`Self::local`] with a court: a bond of 25 coins, a penalty of 100, three hours a move, 40 % to the challenger and
    /// up to 10 % back to the payer; two days until a change holds.
    #[must_use]
    pub fn local_court(sink: Address) -> Self {
        let court = CourtParams {
            sink,
            bond: Amount(25_000_000),
            penalty: Amount(100_000_000),
            move_window_s: 3 * 3_600,
            reward_bps: 4_000,
            refund_bps: 1_000,
            policy: NetworkPolicy::default(),
            owner: Address::ZERO,
            delay_s: 2 * 86_400,
        };
        Self { slasher: Slasher::Court(court), ..Self::local(sink) }
    }
}

/// Contracts that are there already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Existing {
    /// The coin; a test coin, minted by the client's key, is deployed if there is none.
    pub token: Option<Address>,
    /// The scheme's settlement contract.
    pub settlement: Address,
    /// Its collector of ERC-3009 deposits.
    pub collector: Address,
}

impl Default for Existing {
    fn default() -> Self {
        Self { token: None, settlement: SETTLEMENT_ADDRESS, collector: COLLECTOR_ADDRESS }
    }
}

/// Deploys the test coin, the registries and, if `params` has one, the court beside the settlement contract of genesis.
/// With `saved`, checks that those contracts are there and deploys nothing.
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
        None => deploy(client, params, &Existing::default(), &mut |_, _| ()).await?,
    };
    let network = Network::new(client.clone(), addresses)?;
    network.check().await?;
    Ok(network)
}

/// Deploys a network's contracts with the client's key, which must send nothing else meanwhile. `progress` is told of
/// each contract that is in a block.
///
/// # Errors
/// [`ChainError`]; [`ChainError::NoContract`] if one of `existing` is not there. What was deployed before an error
/// stays on the chain and is of no use to anyone.
pub async fn deploy(
    client: &ChainClient,
    params: &DeployParams,
    existing: &Existing,
    progress: &mut (dyn FnMut(&'static str, Address) + Send),
) -> Result<NetworkAddresses, ChainError> {
    for address in existing.token.into_iter().chain([existing.settlement, existing.collector]) {
        if !client.has_code(address).await? {
            return Err(ChainError::NoContract { address, chain_id: client.chain_id() });
        }
    }
    let token = match existing.token {
        Some(token) => token,
        None => {
            let arguments = TestUSD::constructorCall { owner: client.address() };
            let token = client.deploy(&TestUSD::BYTECODE, &arguments.abi_encode()).await?;
            progress("token", token);
            token
        }
    };
    let model_registry = client.deploy(&ModelRegistry::BYTECODE, &[]).await?;
    progress("model registry", model_registry);
    let (registry, court) = match params.slasher {
        Slasher::Address(slasher) => (deploy_registry(client, params, token, slasher).await?, None),
        Slasher::Court(court) => {
            let (registry, court) = deploy_court(client, params, &court, token, existing, progress).await?;
            (registry, Some(court))
        }
    };
    progress("registry", registry);
    Ok(NetworkAddresses {
        chain_id: client.chain_id(),
        token,
        registry,
        model_registry,
        settlement: existing.settlement,
        collector: existing.collector,
        court,
    })
}

async fn deploy_court(
    client: &ChainClient,
    params: &DeployParams,
    court: &CourtParams,
    token: Address,
    existing: &Existing,
    progress: &mut (dyn FnMut(&'static str, Address) + Send),
) -> Result<(Address, CourtAddresses), ChainError> {
    let since = client.block_number().await?;
    let judge = client.deploy(&Judge::BYTECODE, &[]).await?;
    progress("judge", judge);
    let parameters = deploy_parameters(client, court).await?;
    progress("parameters", parameters);
    let nonce = client.next_nonce().await?;
    let court_at = client.address().create(nonce + 1);
    let trial_at = client.address().create(nonce + 2);
    let registry = deploy_registry(client, params, token, court_at).await?;
    let arguments = CourtContract::constructorCall {
        registry_: registry,
        trial_: trial_at,
        settlement_: existing.settlement,
        sink_: court.sink,
        parameters_: parameters,
    };
    let court_found = client.deploy(&CourtContract::BYTECODE, &arguments.abi_encode()).await?;
    progress("court", court_found);
    let arguments = Trial::constructorCall { judge_: judge, court_: court_found };
    let trial = client.deploy(&Trial::BYTECODE, &arguments.abi_encode()).await?;
    progress("trial", trial);
    // The constructors check each other, so an address other than foreseen was refused by one of them.
    if (court_found, trial) != (court_at, trial_at) {
        let text = "the key sent something else while it deployed; deploy again with a key of its own";
        return Err(ChainError::BadArgument(text.into()));
    }
    Ok((registry, CourtAddresses { court: court_found, trial, judge, parameters: Some(parameters), since }))
}

async fn deploy_parameters(client: &ChainClient, court: &CourtParams) -> Result<Address, ChainError> {
    let CourtParams { bond, penalty, reward_bps, refund_bps, .. } = *court;
    let cap = |amount: Amount| U96::saturating_from(amount.0.saturating_mul(CourtParams::GROWTH_MAX));
    let arguments = ParametersContract::constructorCall {
        owner_: if court.owner.is_zero() { client.address() } else { court.owner },
        delay_: court.delay_s,
        moveWindow_: court.move_window_s,
        bondMax_: cap(bond),
        penaltyMax_: cap(penalty),
        terms_: terms_words(&Terms { bond, penalty, reward_bps, refund_bps, version: 0 })?,
        policy_: policy_words(&court.policy),
    };
    client.deploy(&ParametersContract::BYTECODE, &arguments.abi_encode()).await
}

async fn deploy_registry(
    client: &ChainClient,
    params: &DeployParams,
    token: Address,
    slasher: Address,
) -> Result<Address, ChainError> {
    let arguments = ProviderRegistry::constructorCall {
        token_: token,
        minStake_: params.min_stake.0,
        unbondingDelay_: params.unbonding_delay_s,
        slasher_: slasher,
        maxSlashBps_: params.max_slash_bps,
    };
    client.deploy(&ProviderRegistry::BYTECODE, &arguments.abi_encode()).await
}
