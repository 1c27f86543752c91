//! `assay chain deploy` and `assay chain status`: a network's contracts on any EVM chain.

use crate::state::{self, NetworkFile};
use crate::{print, tell};
use anyhow::{Context, bail, ensure};
use assay_chain::bindings::settlement::BatchSettlement;
use assay_chain::bindings::{
    collector::Erc3009Collector, court::Court as CourtCode, judge::Judge, models::ModelRegistry,
    parameters::Parameters as ParametersCode, registry::ProviderRegistry, token::TestUSD, trial::Trial,
};
use assay_chain::client::{NetworkPolicy, Token, finality_depth};
use assay_chain::{
    Address, ChainClient, ClientOptions, CourtParams, DeployParams, Existing, Network, NetworkAddresses,
    PrivateKeySigner, Slasher, deploy,
};
use assay_types::Amount;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Where `assay up` has its chain.
const RPC_DEFAULT: &str = "http://127.0.0.1:7412";
/// Gas that a byte of a contract costs to deploy, with its calldata; and what a transaction costs besides.
const GAS_PER_BYTE: u64 = 230;
const GAS_PER_DEPLOYMENT: u64 = 150_000;
/// Providers that `status` lists.
const PROVIDERS_SHOWN: usize = 50;

/// The contracts of a network: deploy them, look at them.
#[derive(Args)]
pub struct ChainArgs {
    #[command(subcommand)]
    command: ChainCommand,
}

#[derive(Subcommand)]
enum ChainCommand {
    /// Deploys registry, model list, court and, if none is given, a test coin
    Deploy(DeployArgs),
    /// The chain, the contracts and their parameters, the providers' stakes
    Status(StatusArgs),
}

#[derive(Args)]
struct DeployArgs {
    /// JSON-RPC of the chain
    #[arg(long, value_name = "URL")]
    rpc: String,
    /// File with the key that deploys and pays the gas, in hex; it must send nothing else meanwhile
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Where the addresses are written; must not be there yet
    #[arg(long, value_name = "FILE", default_value = "network.json")]
    network: PathBuf,
    /// An ERC-20 coin with ERC-3009 to pay and stake with [default: deploy a test coin that the key can mint]
    #[arg(long, value_name = "ADDRESS")]
    token: Option<Address>,
    /// The x402 settlement contract, if it is not at its well-known address
    #[arg(long, value_name = "ADDRESS", requires = "collector")]
    settlement: Option<Address>,
    /// The collector of that settlement contract for ERC-3009 deposits
    #[arg(long, value_name = "ADDRESS", requires = "settlement")]
    collector: Option<Address>,
    /// On a test node (anvil, hardhat): have it place the settlement contract at its well-known address
    #[arg(long, conflicts_with = "settlement")]
    place_settlement: bool,
    /// Who gets what the challenger does not get of a penalty [default: the key's address]
    #[arg(long, value_name = "ADDRESS")]
    sink: Option<Address>,
    /// Least stake of a provider, in whole coins
    #[arg(long, value_name = "COINS", default_value_t = 100)]
    min_stake: u64,
    /// What a challenger puts up, in whole coins; it pays for the provider's moves
    #[arg(long, value_name = "COINS", default_value_t = 25)]
    bond: u64,
    /// What one wrong answer costs a provider, in whole coins
    #[arg(long, value_name = "COINS", default_value_t = 100)]
    penalty: u64,
    /// The challenger's share of a penalty, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 40, value_parser = clap::value_parser!(u16).range(0..=99))]
    reward: u16,
    /// The most of a penalty that goes back to who paid for the answer, in percent; with the reward at most 90
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=90))]
    refund: u16,
    /// Who may propose other bonds, penalties, shares and audit rates [default: the key's address]
    #[arg(long, value_name = "ADDRESS")]
    owner: Option<Address>,
    /// Hours between a proposal and the time when it can hold
    #[arg(long, value_name = "HOURS", default_value_t = 48, value_parser = clap::value_parser!(u64).range(1..=2160))]
    parameters_delay: u64,
    /// The most of a stake that can be taken within one unbonding delay, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=100))]
    max_slash: u16,
    /// Seconds for each move of a dispute
    #[arg(long, value_name = "SECONDS", default_value_t = 10_800)]
    move_window: u32,
    /// Days between a request to unstake and the payout; at least 49 moves
    #[arg(long, value_name = "DAYS", default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=365))]
    unbonding: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct StatusArgs {
    /// JSON-RPC of the chain
    #[arg(long, value_name = "URL", default_value = RPC_DEFAULT)]
    rpc: String,
    /// The file with the addresses [default: network.json in ~/.assay/local]
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs `assay chain`.
pub fn run(args: ChainArgs) -> anyhow::Result<()> {
    crate::start_logging();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.command {
        ChainCommand::Deploy(args) => runtime.block_on(run_deploy(&args)),
        ChainCommand::Status(args) => runtime.block_on(status(&args)),
    }
}

/// Reads a network's file.
///
/// # Errors
/// It is not there, or another version's.
pub fn read_network(path: &Path) -> anyhow::Result<NetworkAddresses> {
    let file: Option<NetworkFile> = state::read_json(path)?;
    let file = file
        .with_context(|| format!("{} is not there; `assay chain deploy` and `assay up` write one", path.display()))?;
    ensure!(
        file.version == NetworkFile::VERSION,
        "{} has version {}; this release reads version {}",
        path.display(),
        file.version,
        NetworkFile::VERSION
    );
    Ok(file.addresses)
}

async fn connect(rpc: &str, key: PrivateKeySigner, options: ClientOptions) -> anyhow::Result<ChainClient> {
    ChainClient::connect(rpc, key, options).await.with_context(|| format!("cannot use the chain at {rpc}"))
}

// -------------------------------------------------------------------- deploy

async fn run_deploy(args: &DeployArgs) -> anyhow::Result<()> {
    let say = |text: String| {
        if !args.json {
            tell(format_args!("{text}\n"));
        }
    };
    if args.network.exists() {
        let found = read_network(&args.network)?;
        bail!(
            "{} names a network on chain {} already (registry {}); give another file with --network to deploy one more",
            args.network.display(),
            found.chain_id,
            found.registry
        );
    }
    let key = state::read_key(&args.key_file)?;
    let client = connect(&args.rpc, key, ClientOptions::default()).await?;
    let existing = existing(args, &client).await?;
    let decimals = match existing.token {
        Some(token) => check_token(&client, token).await?,
        None => 6,
    };
    let params = params(args, client.address(), decimals)?;
    announce(args, &client, &params, &existing, &say).await?;
    let mut told = |name: &'static str, address: Address| say(format!("{name:<15} {address}"));
    let addresses = deploy(&client, &params, &existing, &mut told).await.context("deploying")?;
    let network = Network::new(client, addresses)?;
    network.check().await.context("after deploying")?;
    state::write_json(&args.network, &NetworkFile { version: NetworkFile::VERSION, addresses })?;
    if args.json {
        return print(&json!({"network": args.network, "addresses": addresses}).to_string());
    }
    print(&format!("{} has the addresses; `assay chain status` shows the network", args.network.display()))
}

/// What is there already.
async fn existing(args: &DeployArgs, client: &ChainClient) -> anyhow::Result<Existing> {
    let well_known = Existing { token: args.token, ..Existing::default() };
    if let (Some(settlement), Some(collector)) = (args.settlement, args.collector) {
        return Ok(Existing { settlement, collector, ..well_known });
    }
    let places = [
        (well_known.settlement, &BatchSettlement::DEPLOYED_BYTECODE),
        (well_known.collector, &Erc3009Collector::DEPLOYED_BYTECODE),
    ];
    for (address, code) in places {
        if client.has_code(address).await? {
            continue;
        }
        ensure!(
            args.place_settlement,
            "chain {} has no x402 settlement contract at {address}; give --settlement and --collector if they are \
             elsewhere, or --place-settlement on a test node",
            client.chain_id()
        );
        client
            .place_code(address, code)
            .await
            .context("this node does not place code: --place-settlement is for anvil and hardhat")?;
    }
    Ok(well_known)
}

/// Whether a coin can be paid with; its decimals.
async fn check_token(client: &ChainClient, address: Address) -> anyhow::Result<u8> {
    let token = Token::new(client.clone(), address);
    let decimals = token.decimals().await.with_context(|| format!("{address} is no ERC-20 coin"))?;
    ensure!(decimals <= 18, "{address} has {decimals} decimals; coins with up to 18 can be used");
    token.domain().await.with_context(|| format!("{address} takes no signed deposits (ERC-3009 with EIP-712)"))?;
    Ok(decimals)
}

fn params(args: &DeployArgs, deployer: Address, decimals: u8) -> anyhow::Result<DeployParams> {
    let unit = 10u128.pow(u32::from(decimals));
    let coins = |name: &str, whole: u64| {
        ensure!(whole > 0, "--{name} is at least 1");
        Ok(Amount(u128::from(whole) * unit))
    };
    let unbonding_delay_s = args.unbonding * 86_400;
    ensure!(
        args.move_window > 0 && u64::from(args.move_window) * 49 <= unbonding_delay_s,
        "--move-window is 1 to {} seconds for an unbonding delay of {} days: stake must not leave during a dispute",
        unbonding_delay_s / 49,
        args.unbonding
    );
    ensure!(args.reward + args.refund <= 90, "--reward and --refund are at most 90 percent together");
    Ok(DeployParams {
        min_stake: coins("min-stake", args.min_stake)?,
        unbonding_delay_s,
        slasher: Slasher::Court(CourtParams {
            sink: args.sink.unwrap_or(deployer),
            bond: coins("bond", args.bond)?,
            penalty: coins("penalty", args.penalty)?,
            move_window_s: args.move_window,
            reward_bps: args.reward * 100,
            refund_bps: args.refund * 100,
            policy: NetworkPolicy::default(),
            owner: args.owner.unwrap_or(deployer),
            delay_s: args.parameters_delay * 3_600,
        }),
        max_slash_bps: args.max_slash * 100,
    })
}

/// Says what will be deployed and what it takes, and refuses if the key cannot pay for it.
async fn announce(
    args: &DeployArgs,
    client: &ChainClient,
    params: &DeployParams,
    existing: &Existing,
    say: &impl Fn(String),
) -> anyhow::Result<()> {
    let mut codes = vec![
        ModelRegistry::BYTECODE.len(),
        Judge::BYTECODE.len(),
        ProviderRegistry::BYTECODE.len(),
        CourtCode::BYTECODE.len(),
        ParametersCode::BYTECODE.len(),
        Trial::BYTECODE.len(),
    ];
    if existing.token.is_none() {
        codes.push(TestUSD::BYTECODE.len());
    }
    let gas: u64 = codes.iter().map(|len| *len as u64 * GAS_PER_BYTE + GAS_PER_DEPLOYMENT).sum();
    let price = client.gas_price().await?;
    let cost = u128::from(gas).saturating_mul(price);
    let balance = client.ether_balance(client.address()).await?;
    let coin = existing.token.map_or_else(|| "a new test coin".into(), |token| token.to_string());
    say(format!(
        "chain {} at {}, key {}\n{} contracts, about {:.1} M gas at {:.3} gwei: {:.6} ether; the key has {:.6}\n\
         coin {coin}, settlement {}\nstake from {} coins, unbonding {} days, at most {} % slashed; bond {}, penalty {}, \
         {} % to the challenger, {} s a move",
        client.chain_id(),
        args.rpc,
        client.address(),
        codes.len(),
        gas as f64 / 1e6,
        price as f64 / 1e9,
        cost as f64 / 1e18,
        f64::from(balance) / 1e18,
        existing.settlement,
        args.min_stake,
        params.unbonding_delay_s / 86_400,
        args.max_slash,
        args.bond,
        args.penalty,
        args.reward,
        args.move_window,
    ));
    ensure!(
        balance >= assay_chain::U256::from(cost),
        "{} has {} wei and needs about {cost} for gas; send it some",
        client.address(),
        balance
    );
    Ok(())
}

// -------------------------------------------------------------------- status

async fn status(args: &StatusArgs) -> anyhow::Result<()> {
    let path = match &args.network {
        Some(path) => path.clone(),
        None => state::default_dir()?.join("network.json"),
    };
    let addresses = read_network(&path)?;
    let options = ClientOptions { chain_id: Some(addresses.chain_id), attempts: 2, ..ClientOptions::default() };
    let client = connect(&args.rpc, state::nobody()?, options).await?;
    let head = client.head().await?;
    let depth = finality_depth(client.chain_id());
    let mut contracts = vec![];
    for (name, address) in addresses.all() {
        contracts.push(json!({"name": name, "address": address, "hasCode": client.has_code(address).await?}));
    }
    let is_whole = contracts.iter().all(|contract| contract["hasCode"] == true);
    let mut report = json!({
        "chainId": client.chain_id(), "rpc": args.rpc, "block": head.number, "blockTime": head.timestamp,
        "finalityDepth": depth, "contracts": contracts,
    });
    if is_whole {
        let network = Network::new(client, addresses)?;
        report["registry"] = registry_status(&network).await?;
        report["court"] = court_status(&network).await?;
        report["providers"] = providers(&network).await?;
    }
    if args.json {
        print(&report.to_string())?
    } else {
        print(&status_text(&report))?
    }
    ensure!(is_whole, "contracts of {} are missing on this chain", path.display());
    Ok(())
}

async fn registry_status(network: &Network) -> anyhow::Result<Value> {
    let registry = &network.registry;
    Ok(json!({
        "minStake": registry.min_stake().await?,
        "unbondingDelayS": registry.unbonding_delay_s().await?,
        "maxSlashBps": registry.max_slash_bps().await?,
        "slasher": registry.slasher().await?,
    }))
}

async fn court_status(network: &Network) -> anyhow::Result<Value> {
    let Some(court) = &network.court else { return Ok(Value::Null) };
    let terms = court.terms().await?;
    Ok(json!({
        "bond": terms.bond, "penalty": terms.penalty, "moveWindowS": terms.move_window_s,
        "rewardBps": terms.reward_bps, "refundBps": terms.refund_bps, "version": terms.version, "sink": terms.sink, "since": network.addresses.court.map(|at| at.since),
        "canSlash": network.registry.slasher().await? == court.address,
    }))
}

async fn providers(network: &Network) -> anyhow::Result<Value> {
    let mut rows = vec![];
    for listing in network.registry.list().await?.into_iter().take(PROVIDERS_SHOWN) {
        let stake = network.registry.stake_details(listing.provider).await?;
        rows.push(json!({
            "provider": listing.provider, "endpoint": listing.info.endpoint, "active": listing.active,
            "stake": stake.active, "unbonding": stake.unbonding,
            "slashable": network.registry.slashable_of(listing.provider).await?,
        }));
    }
    Ok(rows.into())
}

fn status_text(report: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut lines = vec![format!(
        "chain {} at {}: block {}, taken for final {} blocks below",
        report["chainId"],
        text(&report["rpc"]),
        report["block"],
        report["finalityDepth"]
    )];
    for contract in report["contracts"].as_array().into_iter().flatten() {
        let state = if contract["hasCode"] == true { "" } else { "  MISSING: there is no code" };
        lines.push(format!("{:<15} {}{state}", text(&contract["name"]), text(&contract["address"])));
    }
    let (registry, court) = (&report["registry"], &report["court"]);
    if registry.is_object() {
        lines.push(format!(
            "registry: stake from {} base units, unbonding {} s, at most {} bps slashed in that time",
            text(&registry["minStake"]),
            registry["unbondingDelayS"],
            registry["maxSlashBps"]
        ));
        lines.push(if court.is_object() {
            format!(
                "court: bond {}, penalty {}, {} bps of it to the challenger, up to {} to the payer, the rest to {}; {} s a move",
                text(&court["bond"]),
                text(&court["penalty"]),
                court["rewardBps"],
                court["refundBps"],
                text(&court["sink"]),
                court["moveWindowS"]
            )
        } else {
            "court: none; this network was made by a release without one".into()
        });
    }
    for row in report["providers"].as_array().into_iter().flatten() {
        lines.push(format!(
            "provider {} at {}: stake {}, of which {} can be slashed now{}",
            text(&row["provider"]),
            text(&row["endpoint"]),
            text(&row["stake"]),
            text(&row["slashable"]),
            if row["active"] == true { "" } else { " (not active)" }
        ));
    }
    lines.join("\n")
}
