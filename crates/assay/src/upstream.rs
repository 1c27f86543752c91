//! `assay provide --upstream URL`: somebody's own engine (Ollama, vLLM, llama-server, whatever speaks OpenAI's API) as a
//! provider of class tolerant on the network of this machine.

use crate::provide::ProvideConfig;
use crate::{load, models, state, tell};
use anyhow::{Context, bail, ensure};
use assay_chain::{ChainClient, ClientOptions, LOCAL_CHAIN_ID, Network};
use assay_gguf::Tokenizer;
use assay_provider::{UpstreamModel, UpstreamOptions};
use assay_store::{ManifestCache, ModelFile};
use assay_types::{Amount, Prices, ProviderId};
use clap::Args;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;

/// Most answers at a time that are asked of one engine.
const STREAMS_MAX: u32 = 1024;

/// How somebody's own engine joins.
#[derive(Args)]
pub struct UpstreamArgs {
    /// Serve with an engine of your own: its OpenAI-compatible URL, like http://127.0.0.1:11434/v1
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    pub upstream: Option<String>,
    /// The engine's name for the model [default: the one that it has]
    #[arg(long, value_name = "NAME", requires = "upstream")]
    upstream_model: Option<String>,
    /// Environment variable with the engine's API key
    #[arg(long, value_name = "VAR", requires = "upstream")]
    upstream_key_env: Option<String>,
    /// Longest prompt and output that the engine keeps, in tokens [default: what it says, else the model's; Ollama 8192]
    #[arg(long, value_name = "N", requires = "upstream")]
    upstream_context: Option<u32>,
    /// Answers that the engine writes at a time
    #[arg(long, value_name = "N", requires = "upstream", default_value_t = 16)]
    upstream_streams: u32,
    /// Which model the engine runs: the GGUF file with its tokenizer [default: what the network serves]
    #[arg(long, value_name = "FILE_OR_NAME", requires = "upstream")]
    model: Option<String>,
    /// Price of a million input tokens, in base units [default: the network's first provider's]
    #[arg(long, value_name = "UNITS", requires = "upstream")]
    price_in: Option<u128>,
    /// Price of a million output tokens, in base units [default: the network's first provider's]
    #[arg(long, value_name = "UNITS", requires = "upstream")]
    price_out: Option<u128>,
    /// Folder of the network that it joins, as `assay up` has it [default: ~/.assay/local]
    #[arg(long, value_name = "DIR", requires = "upstream")]
    dir: Option<PathBuf>,
    /// Name of the provider's own folder in DIR/upstreams, with its key and its books: each has one
    #[arg(long, value_name = "NAME", requires = "upstream", default_value = "1")]
    name: String,
}

/// Of the configuration file.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpstreamConfig {
    /// OpenAI-compatible URL.
    pub url: String,
    /// The engine's name for the model.
    #[serde(default)]
    pub model: Option<String>,
    /// Environment variable with the engine's API key; the key itself is in no file.
    #[serde(default)]
    pub key_env: Option<String>,
    /// Longest prompt and output that the engine keeps.
    #[serde(default)]
    pub context: Option<u32>,
    /// Answers at a time.
    pub streams: u32,
}

impl UpstreamArgs {
    /// The configuration of a provider on the network in the folder, written beside the others'.
    pub async fn config(&self) -> anyhow::Result<ProvideConfig> {
        let url = self.upstream.clone().context("no --upstream")?;
        ensure!((1..=STREAMS_MAX).contains(&self.upstream_streams), "--upstream-streams is 1 to {STREAMS_MAX}");
        let is_name = self.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') && !self.name.is_empty();
        ensure!(is_name, "--name is letters, digits and hyphens");
        let root = self.dir.clone().map_or_else(state::default_dir, Ok)?;
        let of_first = root.join("provider-1/config.json");
        let Some(first) = state::read_json::<ProvideConfig>(&of_first)? else {
            bail!("there is no network in {}; start one with assay up, or name its folder with --dir", root.display());
        };
        let dir = root.join("upstreams").join(&self.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let prices = Prices {
            input_per_million: self.price_in.map_or(first.prices.input_per_million, Amount),
            output_per_million: self.price_out.map_or(first.prices.output_per_million, Amount),
        };
        let upstream = UpstreamConfig {
            url,
            model: self.upstream_model.clone(),
            key_env: self.upstream_key_env.clone(),
            context: self.upstream_context,
            streams: self.upstream_streams,
        };
        let config = ProvideConfig {
            key_file: dir.join("provider.key"),
            model: self.model.as_ref().map_or(first.model, |name| models::find(name)),
            encoder: None,
            prices,
            upstream: Some(upstream),
            dir: dir.clone(),
            ..first
        };
        state::write_json(&dir.join("config.json"), &config)?;
        self.endow(&root, &config).await?;
        Ok(config)
    }

    /// On a network of one's own, stake is test money that its operator makes; elsewhere the key has to have it.
    async fn endow(&self, root: &std::path::Path, config: &ProvideConfig) -> anyhow::Result<()> {
        let deployer = root.join("deployer.key");
        if config.addresses.chain_id != LOCAL_CHAIN_ID || !deployer.exists() {
            return Ok(());
        }
        let key = state::load_or_create_key(&config.key_file)?;
        let options = ClientOptions { chain_id: Some(LOCAL_CHAIN_ID), ..ClientOptions::default() };
        let client = ChainClient::connect(config.rpc.as_str(), state::read_key(&deployer)?, options).await;
        let client = client.with_context(|| {
            format!("cannot reach the chain at {}; is the network in {} running?", config.rpc, root.display())
        })?;
        let network = Network::new(client, config.addresses)?;
        if network.registry.stake_of(ProviderId(key.address())).await? < config.stake
            && network.token.balance_of(key.address()).await? < config.stake
        {
            network.token.mint(key.address(), config.stake).await?;
        }
        Ok(())
    }
}

impl UpstreamConfig {
    /// What is served: the tolerant twin of the model in the configuration's file, of which only the head and the hash are
    /// needed here.
    pub fn model(&self, config: &ProvideConfig) -> anyhow::Result<UpstreamModel> {
        let file = ModelFile::open(&config.model).with_context(|| format!("cannot open {}", config.model.display()))?;
        let mut hashing = load::Progress::new("hashing the model");
        let manifest = ManifestCache::new(&config.manifests)
            .manifest(&file, &mut |done, total| hashing.show(done, total))?
            .tolerant();
        let key = self.key_env.as_ref().map(|name| {
            std::env::var(name)
                .with_context(|| format!("the environment has no {name}, which is to hold the engine's key"))
        });
        let options = UpstreamOptions {
            model: self.model.clone(),
            key: key.transpose()?,
            context: self.context,
            streams_max: self.streams,
            ..UpstreamOptions::new(self.url.clone())
        };
        Ok(UpstreamModel {
            id: manifest.model_id(),
            name: config.model_name.clone(),
            tokenizer: Arc::new(Tokenizer::from_gguf(file.gguf())?),
            context_length: file.gguf().context_length()?,
            prices: config.prices,
            upstream: options,
        })
    }

    /// For whoever waits at the terminal.
    pub fn announce(&self, config: &ProvideConfig) {
        let name = &config.model_name;
        tell(format_args!(
            "{name} from {} joins as class tolerant: its answers cannot be re-derived, so callers ask for it with\n\
             \"model\": \"{name}:tolerant\" or \"assay\": {{\"verify\": \"tolerant\"}}\n",
            self.url
        ));
    }
}
