//! `assay up`: the whole network on one machine, in one process tree.
//!
//! This process holds the embedded chain and the gateway; each provider is a process of its own (`children.rs`), so
//! that one can die without the others. Order of starting: chain, contracts, money, providers, gateway. Order of
//! stopping: gateway (streams finish or are cut), providers (they claim), balances, chain.

use crate::children::{Ready, Supervised};
use crate::dispute::Chain;
use crate::memory::{MemoryArgs, Share};
use crate::prosecutor::{Listener, Prosecutor, Settings};
use crate::provide::{EncoderConfig, ProvideConfig, TransportKind};
use crate::referee::EngineReferee;
use crate::state::{self, NetworkFile, State};
use crate::stop::StopSignals;
use crate::{load, models, say, shipped, start_logging, tell};
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, bail, ensure};
use assay_chain::client::Court;
use assay_chain::{
    ChainClient, ChainOptions, ClientOptions, DeployParams, EmbeddedChain, Genesis, LOCAL_CHAIN_ID, Network,
    deploy_local,
};
use assay_engine::{EngineOptions, ModelConfig};
use assay_gateway::{AuditConfig, Gateway, GatewayConfig, GatewayHandle, GatewayModel, X402Config};
use assay_net::{AddressPolicy, Sockets};
use assay_store::{ManifestCache, ModelFile};
use assay_types::{Amount, Prices, ProviderId};
use clap::Args;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// Port of the gateway if nobody says otherwise; the chain has the next one.
const PORT_DEFAULT: u16 = 7411;
/// Most providers on one machine.
const PROVIDERS_MAX: usize = 32;
/// Each provider's stake: five times the least.
const STAKE: Amount = Amount(500_000_000);
/// What the gateway has at the start, in test dollars' base units.
const GATEWAY_FUNDS: Amount = Amount(1_000_000_000_000);
/// What the gateway puts into each channel at a time.
const DEPOSIT: Amount = Amount(50_000_000);
/// Seconds between a wish to withdraw from a channel and the withdrawal.
const WITHDRAW_DELAY_S: u64 = 86_400;
/// How often the gateway claims what paying callers owe.
const X402_CLAIM_INTERVAL: Duration = Duration::from_secs(600);
/// How long the gateway may take to find and fund all providers.
const READY_TIME_MAX: Duration = Duration::from_secs(60);

/// Arguments of `assay up`.
#[derive(Args)]
pub struct UpArgs {
    /// Folder for everything; a second start resumes it [default: ~/.assay/local]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Port of the gateway, the chain has the next one; 0 picks free ports
    #[arg(long, value_name = "PORT", default_value_t = PORT_DEFAULT)]
    port: u16,
    /// How many providers
    #[arg(long, value_name = "N", default_value_t = 3)]
    providers: usize,
    /// What they serve: a GGUF file, or assay-tiny
    #[arg(long, value_name = "FILE_OR_NAME", default_value = shipped::NAME)]
    model: String,
    /// An encoder that they serve, too, for /v1/embeddings and /v1/rerank: a GGUF file, or a name that `assay list` shows
    #[arg(long, value_name = "FILE_OR_NAME")]
    encoder: Option<String>,
    /// Threads of each provider; several values go to the providers in turn [default: cores / providers]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    threads: Vec<usize>,
    /// Instruction set of each provider: scalar, avx2, avx-vnni, avx512, neon, dotprod, i8mm; several values in turn [default: the best]
    #[arg(long, value_name = "ISA", value_delimiter = ',')]
    isa: Vec<assay_num::Isa>,
    /// No auditor: nobody replays any answers
    #[arg(long)]
    no_audit: bool,
    /// Wrong answers are kept in DIR/convictions and not taken to court
    #[arg(long)]
    no_dispute: bool,
    /// The most that may be in bonds of disputes, those included that were lost, in base units of the coin
    #[arg(long, value_name = "UNITS", default_value_t = 250_000_000)]
    bond_limit: u128,
    /// File with the key whose account pays bonds [default: DIR/challenger.key, made if it is not there]
    #[arg(long, value_name = "FILE")]
    challenger_key: Option<PathBuf>,
    /// Mean time between two challenges of one provider, requests of the gateway's own at random times; 0 is none
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    challenge_every: u64,
    #[command(flatten)]
    cache: load::CacheArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Answer callers without a key who pay by request (x402): exact transfers and batch-settlement vouchers in test dollars
    #[arg(long)]
    x402: bool,
    /// Start providers whose database is gone although they have claimed on chain: what no gateway shows is lost
    #[arg(long)]
    new_database: bool,
    /// Print one JSON line when ready and one when stopped
    #[arg(long)]
    json: bool,
}

/// Runs `assay up` until TERM or Ctrl-C.
pub fn run(args: UpArgs) -> anyhow::Result<()> {
    start_logging();
    ensure!((1..=PROVIDERS_MAX).contains(&args.providers), "--providers is 1 to {PROVIDERS_MAX}");
    ensure!(args.threads.iter().all(|t| (1..=256).contains(t)), "--threads is 1 to 256");
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(up(args))
}

/// What is running, in the order in which it was started.
struct Running {
    state: State,
    chain: EmbeddedChain,
    chain_url: String,
    network: Network,
    providers: Vec<(Ready, Supervised)>,
    auditor: Option<Supervised>,
    prosecutor: Option<Prosecutor>,
    gateway: GatewayHandle,
    key: String,
    model: String,
    encoder: Option<String>,
}

async fn up(args: UpArgs) -> anyhow::Result<()> {
    let mut signals = StopSignals::install()?;
    let progress = Say { json: args.json };
    let running = tokio::select! {
        running = start(&args, &progress) => running?,
        // Everything that was started ends as its owner is dropped.
        () = signals.wait() => bail!("stopped before it was ready"),
    };
    running.announce(args.json);
    signals.wait().await;
    progress.say("stopping: streams finish or are cut, vouchers are claimed");
    running.stop(args.json).await
}

async fn start(args: &UpArgs, progress: &Say) -> anyhow::Result<Running> {
    let root = args.dir.clone().map_or_else(state::default_dir, Ok)?;
    let state = State::open(&root)?;
    let gateway_listen = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    drop(bind(gateway_listen)?);
    let chain_port = if args.port == 0 { 0 } else { args.port.checked_add(1).context("--port is at most 65534")? };

    let deployer = state::load_or_create_key(&state.file("deployer.key"))?;
    let chain = open_chain(&state, &deployer)?;
    let chain_url = serve_chain(&chain, SocketAddr::from((Ipv4Addr::LOCALHOST, chain_port)))?;
    let network = contracts(&state, &chain, &deployer).await?;
    progress.say(&format!("chain {} at {chain_url}", chain.chain_id()));

    let path = shipped::resolve(&args.model, &state)?;
    let (model, share) = gateway_model(args, &path, &state)?;
    if let Some(statement) = share.statement() {
        progress.say(&format!("each of {} providers, {statement}", args.providers));
    }
    let encoder = args.encoder.as_deref().map(|name| gateway_encoder(name, &state)).transpose()?;
    let memory = args.memory.as_shared(&share);
    let mut starting = vec![];
    for index in 0..args.providers {
        let served = Served { model: &path, name: &model.name, encoder: encoder.as_ref().map(|(config, _)| config) };
        starting.push(start_provider(args, index, &state, &network, &chain_url, served, &memory).await?);
    }
    let gateway_key = state::load_or_create_key(&state.file("gateway.key"))?;
    if network.token.balance_of(gateway_key.address()).await? < Amount(GATEWAY_FUNDS.0 / 100) {
        network.token.mint(gateway_key.address(), GATEWAY_FUNDS).await?;
    }
    let mut providers = vec![];
    for mut provider in starting {
        let ready = provider.ready().await?;
        progress.say(&format!("provider {} at {}", ready.id, ready.endpoint));
        providers.push((ready, provider));
    }
    let name = model.name.clone();
    let prosecutor = prosecutor(args, progress, &state, &chain, &network, &path).await?;
    let waker = prosecutor.as_ref().map(Prosecutor::waker);
    let audit = audit_config(args, &state, &path, &model, &share, waker)?;
    let x402 = args.x402.then(|| x402_prices(args.providers));
    let options = GatewayOptions { listen: gateway_listen, audit, x402 };
    let (encoder, also) = encoder.map(|(config, model)| (config.name, model)).unzip();
    let models = std::iter::once(model).chain(also).collect();
    let gateway = start_gateway(&state, &chain, &network, gateway_key, models, options).await?;
    let key = api_key(&state, &gateway).await?;
    wait_for_channels(&gateway, &providers).await?;
    let auditor = match args.no_audit {
        true => None,
        false => Some(start_auditor(&state, &path, &args.cache, gateway.address(), chain.chain_id()).await?),
    };
    Ok(Running { state, chain, chain_url, network, providers, auditor, prosecutor, gateway, key, model: name, encoder })
}

/// Binds a port, or says in one line why not.
fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow::anyhow!("port {} is in use; stop what uses it or choose another with --port", address.port())
        }
        _ => anyhow::anyhow!("cannot listen on {address}: {error}"),
    })
}

fn open_chain(state: &State, deployer: &PrivateKeySigner) -> anyhow::Result<EmbeddedChain> {
    let clock = Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
    let genesis = Genesis::local(LOCAL_CHAIN_ID, deployer.address());
    let dir = state.dir("chain")?;
    // A damaged file makes the database panic. The chain turns that into an error, which says more than the panic's
    // own lines; nothing else runs yet whose panics would go unseen.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let chain = EmbeddedChain::open(&dir, &genesis, ChainOptions::new(clock));
    std::panic::set_hook(hook);
    Ok(chain?)
}

fn serve_chain(chain: &EmbeddedChain, address: SocketAddr) -> anyhow::Result<String> {
    let listener = bind(address)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let url = format!("http://{}", listener.local_addr()?);
    let chain = chain.clone();
    tokio::spawn(async move {
        // Ends with the runtime: nothing that it serves needs an orderly end.
        if let Err(error) = chain.serve(listener, std::future::pending()).await {
            tracing::error!(%error, "the chain's JSON-RPC server ended");
        }
    });
    Ok(url)
}

/// The contracts: deployed at the first start, found again later.
async fn contracts(state: &State, chain: &EmbeddedChain, deployer: &PrivateKeySigner) -> anyhow::Result<Network> {
    let path = state.file("network.json");
    let saved: Option<NetworkFile> = state::read_json(&path)?;
    if let Some(file) = &saved {
        ensure!(
            file.version == NetworkFile::VERSION,
            "{} has version {}; this release reads version {}",
            path.display(),
            file.version,
            NetworkFile::VERSION
        );
    }
    let client = ChainClient::connect(chain, deployer.clone(), ClientOptions::default()).await?;
    let known = saved.map(|f| f.addresses);
    let network = deploy_local(&client, &DeployParams::local_court(deployer.address()), known)
        .await
        .with_context(|| format!("{} does not fit the chain beside it", path.display()))?;
    if known.is_none() {
        state::write_json(&path, &NetworkFile { version: NetworkFile::VERSION, addresses: network.addresses })?;
    }
    Ok(network)
}

/// What the gateway knows of the model, and what memory each provider may take for it.
fn gateway_model(args: &UpArgs, path: &Path, state: &State) -> anyhow::Result<(GatewayModel, Share)> {
    let name = &args.model;
    let file = ModelFile::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let cache = ManifestCache::new(state.dir("models")?);
    let mut hashing = load::Progress::new("hashing the model");
    let manifest = cache.manifest(&file, &mut |done, total| hashing.show(done, total))?;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).context("a model file has a name")?;
    let shown = if name == shipped::NAME { name.clone() } else { stem.clone() };
    let aliases = if shown == stem { vec![] } else { vec![stem] };
    let refused = || format!("{} cannot be served", path.display());
    let model = GatewayModel::from_gguf(shown, aliases, manifest, file.gguf()).with_context(refused)?;
    ensure!(model.dimensions.is_none(), "{} makes vectors and writes no text: give it with --encoder", path.display());
    // Said once here instead of once by each provider.
    ModelConfig::from_gguf(file.gguf(), u64::from(model.job_limits().vocab_size)).with_context(refused)?;
    let share = args.memory.share(file.gguf(), &EngineOptions::default(), args.providers).with_context(refused)?;
    Ok((model, share))
}

/// What each provider is told to serve.
struct Served<'a> {
    model: &'a Path,
    name: &'a str,
    encoder: Option<&'a EncoderConfig>,
}

/// What providers and gateway are told of an encoder.
fn gateway_encoder(name: &str, state: &State) -> anyhow::Result<(EncoderConfig, GatewayModel)> {
    let found = models::find(name);
    let path = std::path::absolute(&found).with_context(|| format!("--encoder {name}"))?;
    let file = ModelFile::open(&path).with_context(|| format!("cannot open the encoder {name}"))?;
    let refused = || format!("{} cannot be served as an encoder", path.display());
    assay_engine::encoder::EncoderConfig::from_gguf(file.gguf()).with_context(refused)?;
    let mut hashing = load::Progress::new("hashing the encoder");
    let manifests = ManifestCache::new(state.dir("models")?);
    let manifest = manifests.manifest(&file, &mut |done, total| hashing.show(done, total))?;
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).context("a model file has a name")?;
    let model = GatewayModel::from_gguf(stem.clone(), vec![], manifest, file.gguf()).with_context(refused)?;
    Ok((EncoderConfig { model: path, name: stem }, model))
}

async fn start_provider(
    args: &UpArgs,
    index: usize,
    state: &State,
    network: &Network,
    chain_url: &str,
    served: Served<'_>,
    memory: &MemoryArgs,
) -> anyhow::Result<Supervised> {
    let name = format!("provider-{}", index + 1);
    let dir = state.dir(&name)?;
    let key_file = dir.join("provider.key");
    let key = state::load_or_create_key(&key_file)?;
    // A provider that is registered has paid its stake already.
    if network.registry.stake_of(ProviderId(key.address())).await? < STAKE
        && network.token.balance_of(key.address()).await? < STAKE
    {
        network.token.mint(key.address(), STAKE).await?;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let in_turn = |n: usize| index % n;
    let config = ProvideConfig {
        dir: dir.clone(),
        key_file,
        model: served.model.to_path_buf(),
        model_name: served.name.to_owned(),
        encoder: served.encoder.cloned(),
        manifests: state.dir("models")?,
        rpc: chain_url.to_owned(),
        addresses: network.addresses,
        finality_depth: None,
        listen: "127.0.0.1:0".to_owned(),
        // It does not leave this machine.
        transport: TransportKind::Tcp,
        prices: prices(index),
        stake: STAKE,
        threads: if args.threads.is_empty() {
            (cores / args.providers).max(1)
        } else {
            args.threads[in_turn(args.threads.len())]
        },
        isa: (!args.isa.is_empty()).then(|| args.isa[in_turn(args.isa.len())].to_string()),
        cache: args.cache.absolute().context("--cache-dir")?,
        memory: memory.clone(),
        upstream: None,
    };
    let path = dir.join("config.json");
    state::write_json(&path, &config)?;
    let mut command = vec!["provide".into(), "--config".into(), path.into()];
    if args.new_database {
        command.push("--new-database".into());
    }
    Ok(Supervised::start(name, command))
}

/// Who audits the providers: one auditor on this machine, and an engine in this process that is asked before anybody is
/// blamed.
fn audit_config(
    args: &UpArgs,
    state: &State,
    path: &Path,
    model: &GatewayModel,
    share: &Share,
    prosecutor: Option<Arc<Notify>>,
) -> anyhow::Result<AuditConfig> {
    if args.no_audit {
        return Ok(AuditConfig::default());
    }
    let key = state::load_or_create_key(&state.dir("auditor")?.join("auditor.key"))?;
    let cache = args.cache.absolute().context("--cache-dir")?;
    let convictions = state.file("convictions");
    let referee = EngineReferee::new(path, model.model_id, cache, share.load.context_max, convictions)
        .with_prosecutor(prosecutor);
    Ok(AuditConfig {
        auditors: vec![key.address()],
        referee: Some(Arc::new(referee)),
        challenge: Duration::from_secs(args.challenge_every),
        ..AuditConfig::default()
    })
}

/// Takes wrong answers to court; `None` if nobody does.
async fn prosecutor(
    args: &UpArgs,
    progress: &Say,
    state: &State,
    chain: &EmbeddedChain,
    network: &Network,
    model: &Path,
) -> anyhow::Result<Option<Prosecutor>> {
    let off = match &network.court {
        _ if args.no_audit => Some("nobody replays answers (--no-audit)"),
        _ if args.no_dispute => Some("--no-dispute"),
        None => Some("this network has no court"),
        Some(_) => None,
    };
    if let Some(why) = off {
        progress.say(&format!("disputes do not begin by themselves: {why}"));
        return Ok(None);
    }
    let key = match &args.challenger_key {
        Some(path) => state::read_key(path)?,
        None => state::load_or_create_key(&state.file("challenger.key"))?,
    };
    let (account, bonds_max) = (key.address(), Amount(args.bond_limit));
    let has = network.token.balance_of(account).await?;
    if has < bonds_max {
        network.token.mint(account, bonds_max.saturating_sub(has)).await?;
    }
    let client = ChainClient::connect(chain, key, ClientOptions::default()).await?;
    let prosecutor = start_prosecutor(state, client, network, model, bonds_max, None).await?;
    progress.say(&format!("wrong answers go to court: {account} puts up at most {bonds_max} base units in bonds"));
    Ok(prosecutor)
}

/// Begins disputes with the client's key, as soon as there is something to dispute.
pub async fn start_prosecutor(
    state: &State,
    client: ChainClient,
    network: &Network,
    model: &Path,
    bonds_max: Amount,
    listener: Option<Listener>,
) -> anyhow::Result<Option<Prosecutor>> {
    let Some(court) = &network.court else { return Ok(None) };
    let court = Court::new(client.clone(), court.address, court.trial);
    let terms = court.terms().await?;
    let settings = Settings {
        convictions: state.file("convictions"),
        disputes: state.file("disputes"),
        model: model.to_path_buf(),
        bonds_max,
        threads: 1,
        listener,
    };
    Prosecutor::start(settings, Chain { client, court, terms }).map(Some)
}

/// An auditor as a process of its own, with its key and records in the network's folder.
pub async fn start_auditor(
    state: &State,
    model: &Path,
    cache: &load::CacheArgs,
    gateway: SocketAddr,
    chain_id: u64,
) -> anyhow::Result<Supervised> {
    let mut command: Vec<OsString> = ["audit", "--child", "--threads", "1"].map(OsString::from).into();
    command.extend(["--gateway".into(), format!("http://{gateway}").into()]);
    command.extend(["--model".into(), model.into(), "--dir".into(), state.dir("auditor")?.into()]);
    command.extend(["--chain-id".into(), chain_id.to_string().into()]);
    if let Some(dir) = cache.absolute().context("--cache-dir")?.cache_dir {
        command.extend(["--cache-dir".into(), dir.into()]);
    }
    if cache.no_cache {
        command.push("--no-cache".into());
    }
    let mut auditor = Supervised::start("auditor".into(), command);
    auditor.ready().await?;
    Ok(auditor)
}

/// What the provider with this number asks: each a little more than the one before.
fn prices(index: usize) -> Prices {
    let step = index as u128;
    Prices { input_per_million: Amount(40_000 + 10_000 * step), output_per_million: Amount(80_000 + 20_000 * step) }
}

/// What callers pay who pay by request: a quarter above the dearest provider.
fn x402_prices(providers: usize) -> Prices {
    let dearest = prices(providers.saturating_sub(1));
    Prices {
        input_per_million: Amount(dearest.input_per_million.0 * 5 / 4),
        output_per_million: Amount(dearest.output_per_million.0 * 5 / 4),
    }
}

/// How the gateway of a local network differs from run to run.
pub struct GatewayOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Who checks answers.
    pub audit: AuditConfig,
    /// What callers pay who have no key; without it they are refused.
    pub x402: Option<Prices>,
}

/// A gateway on a network's chain.
///
/// # Errors
/// Its database is missing though there was one, or it does not start.
pub async fn start_gateway(
    state: &State,
    chain: &EmbeddedChain,
    network: &Network,
    signer: PrivateKeySigner,
    models: Vec<GatewayModel>,
    options: GatewayOptions,
) -> anyhow::Result<GatewayHandle> {
    let GatewayOptions { listen, audit, x402 } = options;
    let client = ChainClient::connect(chain, signer.clone(), ClientOptions::default()).await?;
    let network = Network::new(client, network.addresses)?;
    let database = state::gateway_database(&state.dir("gateway")?);
    // A new database would have neither the keys nor the vouchers of this network, so no provider would deal with it.
    let is_lost = std::fs::metadata(&database).map_or(true, |file| file.len() == 0);
    ensure!(
        !(is_lost && state.file("api.key").exists()),
        "{} is missing or empty; restore a copy, or choose another folder with --dir: nothing was changed",
        database.display()
    );
    let config = GatewayConfig {
        listen,
        database,
        control: Some(state::control_socket(&state.dir("gateway")?)),
        signer,
        models,
        deposit: DEPOSIT,
        withdraw_delay: WITHDRAW_DELAY_S,
        // Everything here is on this machine.
        addresses: AddressPolicy::Any,
        transport: Arc::new(Sockets),
        audit,
        limits: assay_gateway::GatewayLimits::default(),
        timeouts: assay_gateway::Timeouts::default(),
        x402: x402.map(|prices| X402Config {
            network: network.clone(),
            prices,
            withdraw_delay: WITHDRAW_DELAY_S,
            claim_interval: X402_CLAIM_INTERVAL,
        }),
    };
    Ok(Gateway::start(config, network).await?)
}

/// The key of the local user: made once, kept in a file that only its owner may read.
async fn api_key(state: &State, gateway: &GatewayHandle) -> anyhow::Result<String> {
    let path = state.file("api.key");
    if path.exists() {
        let key = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let key = key.trim();
        ensure!(
            gateway.keys().check(key).is_some(),
            "{} does not hold the key that the gateway made; restore a copy, or move it away to get a new key",
            path.display()
        );
        return Ok(key.to_owned());
    }
    let key = gateway.keys().create("local").await?;
    state::write_secret(&path, &key)?;
    Ok(key)
}

/// Waits until the gateway can route to every provider.
async fn wait_for_channels(gateway: &GatewayHandle, providers: &[(Ready, Supervised)]) -> anyhow::Result<()> {
    let all = gateway.ready(providers.len(), READY_TIME_MAX).await;
    ensure!(
        all,
        "the gateway reached {} of {} providers in {} s",
        gateway.routable().len(),
        providers.len(),
        READY_TIME_MAX.as_secs()
    );
    Ok(())
}

impl Running {
    fn announce(&self, json: bool) {
        let gateway = format!("http://{}/v1", self.gateway.address());
        if json {
            let providers: Vec<Value> = self
                .providers
                .iter()
                .map(|(ready, _)| json!({"id": ready.id, "endpoint": ready.endpoint, "pid": ready.pid}))
                .collect();
            let line = json!({
                "ready": true, "gateway": gateway, "key": self.key, "chain": self.chain_url, "providers": providers,
            });
            return say(&line.to_string());
        }
        let (key, model, chain) = (&self.key, &self.model, &self.chain_url);
        let encoder = self.encoder.as_ref().map_or_else(String::new, |name| format!("\nencoder   {name}"));
        let question = json!({
            "model": model,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
        });
        say(&format!(
            "gateway   {gateway}\nchain     {chain}\nkey       {key}\nmodel     {model}{encoder}\n\n\
             curl {gateway}/chat/completions -H 'Authorization: Bearer {key}' -H 'Content-Type: application/json' \\\n  \
             -d '{question}'\n\n\
             Ctrl-C stops everything and claims what was earned."
        ));
    }

    async fn stop(self, json: bool) -> anyhow::Result<()> {
        let Self { state, chain, network, providers, auditor, prosecutor, gateway, .. } = self;
        if let Some(auditor) = auditor
            && let Err(error) = auditor.stop().await
        {
            tracing::error!(error = format!("{error:#}"), "the auditor did not stop cleanly");
        }
        if let Err(error) = gateway.shutdown().await {
            tracing::error!(%error, "the gateway did not stop cleanly");
        }
        if let Some(prosecutor) = prosecutor {
            prosecutor.stop().await;
        }
        let mut rows = vec![];
        // All at once: each drains and claims on its own.
        let mut stopping = vec![];
        for (ready, provider) in providers {
            stopping.push((ready.id, tokio::spawn(provider.stop())));
        }
        for (id, task) in stopping {
            let closing = match task.await? {
                Ok(closing) => closing.unwrap_or_default(),
                Err(error) => {
                    tracing::error!(id, error = format!("{error:#}"), "a provider did not stop cleanly");
                    Value::Null
                }
            };
            let provider: ProviderId = id.parse().context("a provider's id is an address")?;
            let receiver = network.settlement.receiver(provider.0, network.addresses.token).await?;
            rows.push(json!({
                "id": id,
                "charged": closing["charged"],
                "earned": receiver.total_settled,
                "balance": network.token.balance_of(provider.0).await?,
            }));
        }
        if json {
            say(&json!({"stopped": true, "providers": rows}).to_string());
        } else {
            say("\nbase units (6 decimals)                      charged        earned       balance");
            for row in rows {
                let text = |field: &str| row[field].as_str().unwrap_or("?").to_owned();
                say(&format!(
                    "{:<42} {:>9} {:>13} {:>13}",
                    text("id"),
                    text("charged"),
                    text("earned"),
                    text("balance")
                ));
            }
        }
        drop(network);
        chain.close();
        // Only now may another process have the folder.
        drop(state);
        Ok(())
    }
}

/// What is going on, for a person who waits.
struct Say {
    json: bool,
}

impl Say {
    fn say(&self, text: &str) {
        if !self.json {
            tell(format_args!("{text}\n"));
        }
    }
}
