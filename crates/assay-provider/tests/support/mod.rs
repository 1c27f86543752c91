//! A provider with a real engine and a real socket, on a chain that is a struct in memory, and a client that pays it.

// Each test binary uses its own part of this.
#![allow(dead_code, unused_imports)]

mod client;
mod fake_chain;

pub use client::{Channel, Client, Opened, Outcome, Wallet};
pub use fake_chain::FakeChain;

use assay_chain::{NetworkAddresses, PrivateKeySigner};
use assay_engine::encoder::{Embedder, Encoder};
use assay_engine::{EngineOptions, Model, Replay, Runner, replay};
use assay_gguf::{Gguf, Tokenizer};
use assay_net::{Sockets, TransportSecret};
use assay_provider::{
    Chain, ClaimPolicy, Limits, Provider, ProviderConfig, ServedModel, StartError, UpstreamModel, UpstreamOptions, Work,
};
use assay_testkit::encoders::{TinyBert, tiny_bert};
use assay_testkit::models::{TinyLlama, tiny_llama};
use assay_types::{Address, Amount, B256, Finish, Job, ModelId, Prices, SETTLEMENT_ADDRESS, Sampling, TokenId};
use std::{
    path::Path,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub const MODEL: ModelId = ModelId(B256::repeat_byte(7));
/// One unit a token, so that tests count in tokens: 2 for an input token, 1 for an output token.
pub const PRICES: Prices = Prices { input_per_million: Amount(2_000_000), output_per_million: Amount(1_000_000) };
pub const TOKEN: Address = Address::repeat_byte(0x70);
pub const DEPOSIT: u128 = 10_000;
/// Nothing in these tests takes so long; a deadline that is reached is a failure.
pub const LONG: Duration = Duration::from_secs(60);

static MODEL_WEIGHTS: LazyLock<Arc<Model>> = LazyLock::new(|| {
    let bytes = tiny_llama(TinyLlama::default());
    Model::load(&Gguf::parse(&bytes).unwrap(), &bytes).unwrap()
});

pub fn tokenizer() -> Arc<Tokenizer> {
    Arc::clone(MODEL_WEIGHTS.tokenizer())
}

pub const ENCODER_ID: ModelId = ModelId(B256::repeat_byte(8));

pub static ENCODER: LazyLock<Arc<Encoder>> = LazyLock::new(|| {
    let bytes = tiny_bert(TinyBert::default());
    Encoder::load(&Gguf::parse(&bytes).unwrap(), &bytes).unwrap()
});

/// The bits of the vectors of these texts, computed here.
pub fn vectors(texts: &[Vec<TokenId>]) -> Vec<TokenId> {
    let embeddings = Embedder::new(1).embed_tokens(&ENCODER, texts).unwrap();
    embeddings.iter().flat_map(|embedding| &embedding.values).map(|value| value.to_bits()).collect()
}

pub fn key(n: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
}

pub fn provider_key() -> PrivateKeySigner {
    key(0x22)
}

pub fn addresses() -> NetworkAddresses {
    NetworkAddresses {
        chain_id: 31_337,
        token: TOKEN,
        registry: Address::repeat_byte(0x71),
        model_registry: Address::repeat_byte(0x72),
        settlement: SETTLEMENT_ADDRESS,
        collector: Address::repeat_byte(0x73),
        court: None,
    }
}

pub fn limits() -> Limits {
    Limits {
        greeting_timeout: LONG,
        idle_timeout: LONG,
        write_timeout: LONG,
        pay_timeout: LONG,
        grace: LONG,
        ..Limits::default()
    }
}

pub fn claims() -> ClaimPolicy {
    ClaimPolicy {
        interval: Duration::from_secs(3_600),
        threshold: Amount(u128::MAX),
        poll: Duration::from_secs(3_600),
        settled_after: Duration::from_secs(60),
        shutdown_timeout: LONG,
    }
}

pub struct Setup {
    pub network: NetworkAddresses,
    pub stake: Amount,
    pub limits: Limits,
    pub claims: ClaimPolicy,
    pub engine: EngineOptions,
    pub accepts_new_database: bool,
    pub transport_secret: Option<TransportSecret>,
}

impl Default for Setup {
    fn default() -> Self {
        let engine = EngineOptions { threads: 1, ..EngineOptions::default() };
        Self {
            network: addresses(),
            stake: Amount(500),
            limits: limits(),
            claims: claims(),
            engine,
            accepts_new_database: false,
            transport_secret: None,
        }
    }
}

impl Setup {
    pub async fn start(&self, directory: &Path, chain: Arc<dyn Chain>) -> Result<Provider, StartError> {
        self.start_as(self.config(directory), chain).await
    }

    pub fn config(&self, directory: &Path) -> ProviderConfig {
        ProviderConfig {
            database: directory.join("provider.sqlite"),
            accepts_new_database: self.accepts_new_database,
            listen: "127.0.0.1:0".parse().unwrap(),
            endpoint: None,
            transport: Arc::new(Sockets),
            transport_secret: self.transport_secret.clone(),
            signer: provider_key(),
            network: self.network,
            stake: self.stake,
            limits: self.limits,
            claims: self.claims,
        }
    }

    pub async fn start_upstream(
        &self,
        directory: &Path,
        chain: Arc<dyn Chain>,
        upstream: UpstreamOptions,
    ) -> Result<Provider, StartError> {
        let model = UpstreamModel {
            id: MODEL,
            name: "tiny".into(),
            tokenizer: tokenizer(),
            context_length: 512,
            prices: PRICES,
            upstream,
        };
        Provider::start_upstream(self.config(directory), chain, vec![model]).await
    }

    pub async fn start_as(&self, config: ProviderConfig, chain: Arc<dyn Chain>) -> Result<Provider, StartError> {
        let model = Arc::clone(&MODEL_WEIGHTS);
        let work = Work::Writes { model, engine: self.engine };
        let model = ServedModel { id: MODEL, name: "tiny".into(), work, prices: PRICES };
        let work = Work::Embeds { encoder: Arc::clone(&ENCODER), threads: 1, isa: None };
        let encoder = ServedModel { id: ENCODER_ID, name: "tiny-bert".into(), work, prices: PRICES };
        Provider::start(config, chain, vec![model, encoder]).await
    }
}

/// A provider on a fake chain with one funded channel, and its directory.
pub struct World {
    pub directory: tempfile::TempDir,
    pub chain: Arc<FakeChain>,
    pub setup: Setup,
    pub wallet: Arc<Wallet>,
}

impl World {
    pub fn new(setup: Setup) -> Self {
        let channel = Channel::new(&key(0x11), 0);
        let chain = Arc::new(FakeChain::default());
        chain.deposit(&channel.config, DEPOSIT);
        let wallet = Arc::new(Wallet::new(channel, DEPOSIT));
        Self { directory: tempfile::tempdir().unwrap(), chain, setup, wallet }
    }

    pub async fn start(&self) -> Provider {
        self.setup.start(self.directory.path(), self.chain.clone()).await.unwrap()
    }

    pub async fn client(&self, provider: &Provider) -> Client {
        Client::connect(provider.address(), Arc::clone(&self.wallet)).await
    }
}

static NONCE: AtomicU64 = AtomicU64::new(1);

fn nonce() -> B256 {
    let mut nonce = [0; 32];
    nonce[..8].copy_from_slice(&NONCE.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    B256::from(nonce)
}

/// A job for the vectors of `texts`.
pub fn embedding(texts: &[Vec<TokenId>]) -> Job {
    Job::embedding(ENCODER_ID, texts, 64, nonce())
}

/// A job of five prompt tokens that runs to exactly `max_tokens`.
pub fn job(max_tokens: u32) -> Job {
    Job {
        model_id: MODEL,
        prompt: vec![0, 3, 70, 80, 90],
        prefix: vec![],
        max_tokens,
        sampling: Sampling { temperature_micro: 900_000, seed: 42, ..Sampling::GREEDY },
        logit_bias: Vec::new(),
        grammar: None,
        stop: vec![],
        ignore_eos: true,
        logprobs: None,
        embed: None,
        nonce: nonce(),
    }
}

pub fn assert_exact(job: &Job, output: &[TokenId], finish: Finish) {
    let mut runner = Runner::new(1);
    assert_eq!(replay(&MODEL_WEIGHTS, &mut runner, job, output, finish), Ok(Replay::Exact));
}
