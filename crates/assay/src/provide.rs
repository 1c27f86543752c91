//! `assay provide`: one provider as a process. `assay up` starts several of these; by hand it joins any network whose
//! chain and contracts its configuration names.

use crate::memory::MemoryArgs;
use crate::stop::StopSignals;
use crate::upstream::{UpstreamArgs, UpstreamConfig};
use crate::{load, say, start_logging, state};
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, bail, ensure};
use assay_chain::client::finality_depth;

use assay_chain::{ChainClient, ClientOptions, Network, NetworkAddresses};
use assay_engine::EngineOptions;
use assay_graph::{Graph, Trace, TraceOptions, TracedModel};
use assay_net::Sockets;
use assay_provider::{
    ClaimPolicy, DefenceOptions, Limits, Provider, ProviderConfig, ServedModel, Tracer, Transcript, Work,
};
use assay_store::{ManifestCache, ModelFile};
use assay_types::{Amount, ModelId, Prices};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How often a provider is asked whether it can still store receipts.
const BROKEN_LOOK: Duration = Duration::from_secs(1);
/// How often the chain is asked about challenges, without and with open ones: where blocks are final at once, and where
/// a move has hours.
const POLLS_FAST: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(200));
const POLLS_SLOW: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));

/// Arguments of `assay provide`.
#[derive(Args)]
pub struct ProvideArgs {
    /// Configuration, as `assay up` writes it to DIR/provider-N/config.json
    #[arg(long, value_name = "FILE", required_unless_present = "upstream")]
    config: Option<PathBuf>,
    /// Start with an empty database although this provider has claimed on chain: what no gateway shows is lost
    #[arg(long)]
    new_database: bool,
    #[command(flatten)]
    upstream: UpstreamArgs,
}

/// The configuration file.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProvideConfig {
    /// Where the provider keeps its database.
    pub dir: PathBuf,
    /// The key that is registered, signs receipts and claims.
    pub key_file: PathBuf,
    /// GGUF file.
    pub model: PathBuf,
    /// Name under which it is offered.
    pub model_name: String,
    /// Folder of the manifest cache.
    pub manifests: PathBuf,
    /// JSON-RPC of the chain.
    pub rpc: String,
    /// Contracts on that chain.
    pub addresses: NetworkAddresses,
    /// Blocks of that chain that may be undone: a deposit counts when it is deeper. If absent, what is known of the chain.
    #[serde(default)]
    pub finality_depth: Option<u64>,
    /// Where to listen, `HOST:PORT`; port 0 takes a free one.
    pub listen: String,
    /// How gateways reach it.
    #[serde(default)]
    pub transport: TransportKind,
    /// An encoder that is served, too.
    #[serde(default)]
    pub encoder: Option<EncoderConfig>,
    /// The price; of vectors the input's.
    pub prices: Prices,
    /// Stake to put up if there is less.
    pub stake: Amount,
    /// Threads of the engine.
    pub threads: usize,
    /// Instruction set, the best if absent.
    pub isa: Option<String>,
    /// Where packed weights are kept.
    #[serde(default)]
    pub cache: load::CacheArgs,
    /// How much memory it may take.
    #[serde(default)]
    pub memory: MemoryArgs,
    /// An engine of one's own instead of the canonical one: class tolerant.
    #[serde(default)]
    pub upstream: Option<UpstreamConfig>,
}

/// How bytes travel between a gateway and a provider.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub enum TransportKind {
    /// TLS over TCP, with the key in DIR/transport.key, which is made at the first start and registered.
    #[default]
    Tls,
    /// TCP in the clear: for one machine.
    Tcp,
}

/// An encoder to serve.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncoderConfig {
    /// GGUF file.
    pub model: PathBuf,
    /// Name under which it is offered.
    pub name: String,
}

/// Runs a provider until TERM, or until its standard input ends if it runs by a configuration file; prints one JSON line when it is ready, one at the end.
pub fn run(args: &ProvideArgs) -> anyhow::Result<()> {
    start_logging();
    // The engine has threads of its own; here are sockets, the database and signatures.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let result = runtime.block_on(async {
        let signals = StopSignals::install()?;
        let Some(path) = &args.config else {
            let config = args.upstream.config().await?;
            return upstream(config, args.new_database, signals, Parent::None).await;
        };
        let Some(config) = state::read_json::<ProvideConfig>(path)? else {
            bail!("no configuration at {}; `assay up` writes one for each of its providers", path.display());
        };
        if config.upstream.is_some() {
            upstream(config, args.new_database, signals, Parent::Stdin).await
        } else {
            provide(config, args.new_database, signals).await
        }
    });
    // A read of standard input cannot be taken back; waiting for it would be waiting for the parent.
    runtime.shutdown_background();
    result
}

/// Who started it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// A program that holds its standard input.
    Stdin,
    /// A person, or an init system.
    None,
}

/// A provider of class tolerant.
async fn upstream(
    config: ProvideConfig,
    new_database: bool,
    mut signals: StopSignals,
    parent: Parent,
) -> anyhow::Result<()> {
    let upstream = config.upstream.clone().context("no upstream")?;
    let key = state::load_or_create_key(&config.key_file)?;
    let network = connect(&config, &key).await?;
    let model = upstream.model(&config)?;
    let provider = Provider::start_upstream(config.options(key, new_database)?, network, vec![model]).await?;
    upstream.announce(&config);
    serve(provider, &mut signals, parent, &config).await
}

impl ProvideConfig {
    fn options(&self, signer: PrivateKeySigner, accepts_new_database: bool) -> anyhow::Result<ProviderConfig> {
        let transport_secret = match self.transport {
            TransportKind::Tls => Some(state::load_or_create_transport_secret(&self.dir.join("transport.key"))?),
            TransportKind::Tcp => None,
        };
        Ok(ProviderConfig {
            database: self.database(),
            accepts_new_database,
            listen: self.listen.parse().with_context(|| format!("listen: {:?} is no HOST:PORT", self.listen))?,
            endpoint: None,
            transport: Arc::new(Sockets),
            transport_secret,
            signer,
            network: self.addresses,
            stake: self.stake,
            limits: Limits::default(),
            claims: ClaimPolicy::default(),
        })
    }

    fn database(&self) -> PathBuf {
        self.dir.join("provider.sqlite")
    }
}

async fn connect(config: &ProvideConfig, key: &PrivateKeySigner) -> anyhow::Result<Arc<Network>> {
    let options = ClientOptions {
        chain_id: Some(config.addresses.chain_id),
        finality_depth: config.finality_depth.unwrap_or_else(|| finality_depth(config.addresses.chain_id)),
        ..ClientOptions::default()
    };
    let client = ChainClient::connect(config.rpc.as_str(), key.clone(), options)
        .await
        .with_context(|| format!("cannot use the chain at {}", config.rpc))?;
    Ok(Arc::new(Network::new(client, config.addresses)?))
}

async fn provide(config: ProvideConfig, new_database: bool, mut signals: StopSignals) -> anyhow::Result<()> {
    let key = state::load_or_create_key(&config.key_file)?;
    let isa = config.isa.as_deref().map(str::parse::<assay_num::Isa>).transpose().context("isa")?;
    let file = ModelFile::open(&config.model).with_context(|| format!("cannot open {}", config.model.display()))?;
    let mut hashing = load::Progress::new("hashing the model");
    let manifest =
        ManifestCache::new(&config.manifests).manifest(&file, &mut |done, total| hashing.show(done, total))?;
    if manifest.graph_hash.is_zero()
        && let Err(reason) = Graph::compile(file.gguf(), file.bytes())
    {
        tracing::warn!("no court can judge what this model answers; clients have audits alone: {reason}");
    }
    let options = EngineOptions { threads: config.threads, isa, ..EngineOptions::default() };
    let share = config.memory.share(file.gguf(), &options, 1).context("cannot serve this model")?;
    if let Some(statement) = share.statement() {
        tracing::info!("{statement}");
    }
    let model = load::load_file(file, isa, &config.cache, share.load)?;
    let served = ServedModel {
        id: manifest.model_id(),
        name: config.model_name.clone(),
        work: Work::Writes { model, engine: EngineOptions { kv_tokens: share.kv_tokens, ..options } },
        prices: config.prices,
    };
    let mut models = vec![served];
    if let Some(encoder) = &config.encoder {
        models.push(served_encoder(encoder, &config.manifests, (config.threads, isa), &config.cache, config.prices)?);
    }
    let network = connect(&config, &key).await?;
    let tracer = Arc::new(FileTracer::new(config.model.clone(), manifest.model_id(), config.threads));
    let defence = defence(&network, config.dir.join("disputes.json"), tracer);
    let mut provider = Provider::start(config.options(key, new_database)?, network, models).await?;
    if let Some(defence) = defence {
        provider.defend(defence);
    }
    serve(provider, &mut signals, Parent::Stdin, &config).await
}

/// Until it is told to stop.
async fn serve(
    provider: Provider,
    signals: &mut StopSignals,
    parent: Parent,
    config: &ProvideConfig,
) -> anyhow::Result<()> {
    say(&json!({"ready": true, "id": provider.id(), "endpoint": provider.endpoint().to_string()}).to_string());
    let told = async {
        match parent {
            Parent::Stdin => signals.wait_as_child().await,
            Parent::None => signals.wait().await,
        }
    };
    let is_broken = tokio::select! {
        () = told => false,
        () = broken(&provider) => true,
    };
    let farewell = provider.shutdown().await;
    say(&json!({"stopped": true, "charged": farewell.stats.charged_total}).to_string());
    farewell.settled.map_err(|why| anyhow::anyhow!("the last claim failed and is made at the next start: {why}"))?;
    // Whoever started it starts it again, and with room on the disk it serves again.
    ensure!(!is_broken, "receipts could not be stored in {}", config.database().display());
    Ok(())
}

fn served_encoder(
    config: &EncoderConfig,
    manifests: &Path,
    (threads, isa): (usize, Option<assay_num::Isa>),
    cache: &load::CacheArgs,
    prices: Prices,
) -> anyhow::Result<ServedModel> {
    let file = ModelFile::open(&config.model).with_context(|| format!("cannot open {}", config.model.display()))?;
    let manifest = ManifestCache::new(manifests).manifest(&file, &mut |_, _| ())?;
    let encoder = load::load_encoder_file(&file, cache)?;
    let work = Work::Embeds { encoder, threads, isa };
    Ok(ServedModel { id: manifest.model_id(), name: config.name.clone(), work, prices })
}

/// How challenges are answered, if the network has a court.
fn defence(network: &Network, docket: PathBuf, tracer: Arc<FileTracer>) -> Option<DefenceOptions> {
    let depth = finality_depth(network.client.chain_id());
    let (idle_poll, busy_poll) = if depth == 0 { POLLS_FAST } else { POLLS_SLOW };
    Some(DefenceOptions {
        client: network.client.clone(),
        court: network.court.clone()?,
        since: network.addresses.court?.since,
        depth,
        docket,
        idle_poll,
        busy_poll,
        tracer,
    })
}

/// Traces of the model that is served, from its file, which is read when the first one is needed.
struct FileTracer {
    path: PathBuf,
    id: ModelId,
    threads: usize,
    traced: Mutex<Option<Arc<TracedModel>>>,
}

impl FileTracer {
    fn new(path: PathBuf, id: ModelId, threads: usize) -> Self {
        Self { path, id, threads, traced: Mutex::new(None) }
    }

    fn model(&self) -> Result<Arc<TracedModel>, String> {
        let mut traced = self.traced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = &*traced {
            return Ok(Arc::clone(model));
        }
        let file = Arc::new(ModelFile::open(&self.path).map_err(|error| error.to_string())?);
        let gguf = file.gguf().clone();
        let model = Arc::new(TracedModel::new(&gguf, file).map_err(|error| error.to_string())?);
        *traced = Some(Arc::clone(&model));
        Ok(model)
    }
}

impl Tracer for FileTracer {
    fn trace(&self, model: ModelId, transcript: &Transcript) -> Result<Trace, String> {
        if model != self.id {
            return Err(format!("model {model} is not the one that is served"));
        }
        let tokens = [&transcript.input[..], &transcript.output].concat();
        let input = u32::try_from(transcript.input.len()).map_err(|error| error.to_string())?;
        let options = TraceOptions { threads: self.threads, lie: None };
        // What was chosen is what was signed for.
        let mut choose = |index: usize, _: &[f32]| transcript.output.get(index).copied();
        Trace::compute(self.model()?, tokens, input, options, &mut choose, &mut |_, _| ())
            .map_err(|error| error.to_string())
    }
}

/// Returns when the provider cannot store receipts any more.
async fn broken(provider: &Provider) {
    let mut looks = tokio::time::interval(BROKEN_LOOK);
    while !provider.is_broken() {
        looks.tick().await;
    }
}
