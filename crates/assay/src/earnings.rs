//! `assay earnings` and `assay withdraw`: what the providers on this machine have earned, and how it is got.
//!
//! Both read a provider's database beside the provider, which may be running, and ask the chain what of it is claimed.
//! A withdrawal is made with the provider's key; the provider notices at its next look at the chain.

use crate::key::{PlaceArgs, columns};
use crate::provide::ProvideConfig;
use crate::{print, state, tell};
use anyhow::{Context, ensure};
use assay_chain::client::{ChannelState, ReceiverState};
use assay_chain::{Address, ChainClient, ClaimRow, ClientOptions, Network, PrivateKeySigner};
use assay_provider::{ChannelEarnings, earnings};
use assay_types::Amount;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments of `assay earnings`.
#[derive(Args)]
pub struct EarningsArgs {
    #[command(flatten)]
    which: WhichArgs,
}

/// Arguments of `assay withdraw`.
#[derive(Args)]
pub struct WithdrawArgs {
    /// Who gets the coins: an address of the operator's
    #[arg(long, value_name = "ADDRESS")]
    to: Address,
    #[command(flatten)]
    which: WhichArgs,
}

/// Whose earnings.
#[derive(Args)]
struct WhichArgs {
    /// Configuration of one provider [default: all in the network's folder]
    #[arg(long, value_name = "FILE", conflicts_with = "dir")]
    config: Option<PathBuf>,
    /// JSON-RPC of the chain [default: that of the configuration]
    #[arg(long, value_name = "URL")]
    rpc: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
}

/// A provider on this machine, by its files.
struct Books {
    config: ProvideConfig,
    key: PrivateKeySigner,
    channels: Vec<ChannelEarnings>,
}

/// What the chain says besides.
struct OnChain {
    channels: Vec<ChannelState>,
    sums: ReceiverState,
    wallet: Amount,
}

/// Runs `assay earnings`.
pub fn run(args: &EarningsArgs) -> anyhow::Result<()> {
    crate::start_logging();
    block_on(async {
        let mut shown = vec![];
        for books in all(&args.which).await? {
            // Without the chain there is still what the provider noted.
            let chain = match ask(&books, args.which.rpc.as_deref()).await {
                Ok((_, chain)) => Some(chain),
                Err(error) => {
                    tell(format_args!("{error:#}; shown is what the provider noted last\n"));
                    None
                }
            };
            shown.push(if args.which.place.json {
                to_json(&books, chain.as_ref()).to_string()
            } else {
                to_text(&books, chain.as_ref())
            });
        }
        print(&if args.which.place.json { format!("[{}]", shown.join(",")) } else { shown.join("\n\n") })
    })
}

/// Runs `assay withdraw`.
pub fn withdraw(args: &WithdrawArgs) -> anyhow::Result<()> {
    crate::start_logging();
    ensure!(args.to != Address::ZERO, "coins that are sent to {} are lost", args.to);
    block_on(async {
        let mut sent = vec![];
        for books in all(&args.which).await? {
            sent.push(withdraw_one(&books, args).await?);
        }
        if args.which.place.json {
            return print(&Value::from(sent).to_string());
        }
        let line = |row: &Value| {
            let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
            format!("{}: claimed {}, sent {} to {}", text("provider"), text("claimed"), text("sent"), args.to)
        };
        print(&sent.iter().map(line).collect::<Vec<_>>().join("\n"))
    })
}

fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Claims what can be claimed, has it transferred to the provider's key, and sends all that the key holds on.
async fn withdraw_one(books: &Books, args: &WithdrawArgs) -> anyhow::Result<Value> {
    let (network, chain) = ask(books, args.which.rpc.as_deref()).await?;
    let mut rows = vec![];
    let mut claimed = Amount::ZERO;
    for (channel, found) in books.channels.iter().zip(&chain.channels) {
        let more = channel.claimable_down(found.balance, found.total_claimed);
        if more > Amount::ZERO {
            let total_claimed = found.total_claimed.saturating_add(more);
            rows.push(ClaimRow { config: channel.config, voucher: channel.voucher, total_claimed });
            claimed = claimed.saturating_add(more);
        }
    }
    let report = network.settlement.claim(&rows).await.context("claiming")?;
    for (channel, error) in &report.refused {
        tell(format_args!("the settlement contract refuses the claim on channel {channel}: {error}\n"));
    }
    let (me, token) = (books.key.address(), books.config.addresses.token);
    let sums = network.settlement.receiver(me, token).await?;
    if sums.total_claimed > sums.total_settled {
        network.settlement.settle(me, token).await.context("settling what was claimed")?;
    }
    let wallet = network.token.balance_of(me).await?;
    if wallet > Amount::ZERO && args.to != me {
        network.token.transfer(args.to, wallet).await.with_context(|| format!("sending {wallet} to {}", args.to))?;
    }
    ensure!(report.refused.is_empty(), "{} claims were refused; the rest went to {}", report.refused.len(), args.to);
    let sent = if args.to == me { Amount::ZERO } else { wallet };
    Ok(json!({"provider": me, "claimed": claimed, "sent": sent, "to": args.to}))
}

/// The providers that are meant.
async fn all(which: &WhichArgs) -> anyhow::Result<Vec<Books>> {
    let configs = match &which.config {
        Some(config) => vec![config.clone()],
        None => configs(&which.place.dir.clone().map_or_else(state::default_dir, Ok)?)?,
    };
    let mut all = vec![];
    for path in configs {
        let config = state::read_json::<ProvideConfig>(&path)?;
        let config = config.with_context(|| format!("no configuration at {}", path.display()))?;
        let key = state::read_key(&config.key_file)?;
        let database = config.dir.join("provider.sqlite");
        ensure!(
            database.is_file(),
            "no provider has run in {}: {} is not there",
            config.dir.display(),
            database.display()
        );
        let channels = earnings(&database).await?;
        all.push(Books { config, key, channels });
    }
    Ok(all)
}

/// Configurations that `assay up` wrote, by number.
fn configs(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let config = |number: usize| root.join(format!("provider-{number}")).join("config.json");
    let found: Vec<PathBuf> = (1..).map(config).take_while(|path| path.is_file()).collect();
    ensure!(
        !found.is_empty(),
        "no provider has run in {}; start a network with assay up, or name a provider with --config",
        root.display()
    );
    Ok(found)
}

async fn ask(books: &Books, rpc: Option<&str>) -> anyhow::Result<(Network, OnChain)> {
    let (rpc, addresses) = (rpc.unwrap_or(&books.config.rpc), books.config.addresses);
    let options = ClientOptions { chain_id: Some(addresses.chain_id), ..ClientOptions::default() };
    let client = ChainClient::connect(rpc, books.key.clone(), options)
        .await
        .with_context(|| format!("cannot use the chain at {rpc}"))?;
    let network = Network::new(client, addresses)?;
    let mut channels = vec![];
    for channel in &books.channels {
        channels.push(network.settlement.channel(channel.id()).await?);
    }
    let sums = network.settlement.receiver(books.key.address(), addresses.token).await?;
    let wallet = network.token.balance_of(books.key.address()).await?;
    Ok((network, OnChain { channels, sums, wallet }))
}

/// What of a channel is claimed, can be claimed, and is promised for what is not charged yet.
fn split(channel: &ChannelEarnings, chain: Option<&ChannelState>) -> [Amount; 3] {
    let ceiling = channel.voucher.voucher.max_claimable_amount;
    let (balance, claimed) = chain.map_or((ceiling, channel.claimed), |found| (found.balance, found.total_claimed));
    [claimed, channel.claimable_down(balance, claimed), channel.in_flight(balance)]
}

fn to_json(books: &Books, chain: Option<&OnChain>) -> Value {
    let channel = |(index, channel): (usize, &ChannelEarnings)| {
        let [claimed, claimable, in_flight] = split(channel, chain.map(|chain| &chain.channels[index]));
        let model = |model: &assay_provider::ModelEarnings| {
            json!({
                "model": model.model, "requests": model.requests, "promptTokens": model.prompt_tokens,
                "outputTokens": model.output_tokens, "charged": model.charged,
            })
        };
        json!({
            "channel": channel.id(), "payer": channel.config.payer, "token": channel.config.token,
            "charged": channel.charged_total, "claimed": claimed, "claimable": claimable, "inFlight": in_flight,
            "models": channel.models.iter().map(model).collect::<Vec<_>>(),
        })
    };
    json!({
        "provider": books.key.address(),
        "fromChain": chain.is_some(),
        "wallet": chain.map(|chain| chain.wallet),
        "claimedNotTransferred": chain.map(|chain| chain.sums.total_claimed.saturating_sub(chain.sums.total_settled)),
        "channels": books.channels.iter().enumerate().map(channel).collect::<Vec<_>>(),
    })
}

fn to_text(books: &Books, chain: Option<&OnChain>) -> String {
    let mut text = format!("provider {}, in base units of {}\n", books.key.address(), books.config.addresses.token);
    let mut rows = vec![["CHANNEL", "PAYER", "CHARGED", "CLAIMED", "CLAIMABLE", "IN FLIGHT"].map(str::to_owned)];
    let mut models =
        vec![["CHANNEL", "MODEL", "REQUESTS", "PROMPT TOKENS", "OUTPUT TOKENS", "CHARGED"].map(str::to_owned)];
    for (index, channel) in books.channels.iter().enumerate() {
        let [claimed, claimable, in_flight] = split(channel, chain.map(|chain| &chain.channels[index]));
        let id = channel.id().to_string();
        let payer = channel.config.payer.to_string();
        let amounts = [channel.charged_total, claimed, claimable, in_flight].map(|amount| amount.to_string());
        let [charged, claimed, claimable, in_flight] = amounts;
        rows.push([id.clone(), payer, charged, claimed, claimable, in_flight]);
        models.extend(channel.models.iter().map(|model| {
            let counts = [model.requests, model.prompt_tokens, model.output_tokens].map(|count| count.to_string());
            let [requests, prompt, output] = counts;
            [id.clone(), model.model.to_string(), requests, prompt, output, model.charged.to_string()]
        }));
    }
    text += &columns(&rows);
    text += "\n\n";
    text += &columns(&models);
    if let Some(OnChain { sums, wallet, .. }) = chain {
        let waiting = sums.total_claimed.saturating_sub(sums.total_settled);
        text += &format!("\n\nclaimed and not transferred yet {waiting}; the provider's key holds {wallet}");
    }
    text
}
