//! What a provider is started with.

use assay_chain::{NetworkAddresses, PrivateKeySigner};
use assay_engine::encoder::Encoder;
use assay_engine::{EngineOptions, Model};
use assay_net::{Endpoint, Transport, TransportSecret};
use assay_num::Isa;
use assay_types::{Amount, ModelId, Prices};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

/// Everything but the models and the chain client.
#[derive(Clone, Debug)]
pub struct ProviderConfig {
    /// The SQLite file with vouchers and receipts. Losing it is losing what was not claimed.
    pub database: PathBuf,
    /// Whether to start with an empty database although this provider has claimed on chain before.
    pub accepts_new_database: bool,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What to register, if gateways reach this provider elsewhere than at `listen`.
    pub endpoint: Option<Endpoint>,
    /// How clients reach it.
    pub transport: Arc<dyn Transport>,
    /// What it proves to them, under TLS; without it everything travels in the clear.
    pub transport_secret: Option<TransportSecret>,
    /// The registered and staked identity: signs receipts and offers, receives payments.
    pub signer: PrivateKeySigner,
    /// Chain and contracts.
    pub network: NetworkAddresses,
    /// Stake to have at least; what is missing is staked at the start.
    pub stake: Amount,
    /// Deadlines and bounds.
    pub limits: Limits,
    /// When to claim.
    pub claims: ClaimPolicy,
}

/// A model to serve.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// By manifest.
    pub id: ModelId,
    /// Name that clients ask for.
    pub name: String,
    /// What it does, with its weights.
    pub work: Work,
    /// What it costs. Vectors cost the input alone.
    pub prices: Prices,
}

/// What a model does.
#[derive(Clone, Debug)]
pub enum Work {
    /// It continues texts.
    Writes {
        /// Weights, ready to run.
        model: Arc<Model>,
        /// Its engine.
        engine: EngineOptions,
    },
    /// It makes vectors of texts.
    Embeds {
        /// Weights, ready to run.
        encoder: Arc<Encoder>,
        /// Threads, at least 1.
        threads: usize,
        /// Instruction set, the best if absent or if this CPU does not have it.
        isa: Option<Isa>,
    },
}

/// Deadlines and bounds of the service.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; a further one is closed at once.
    pub connections_max: usize,
    /// Of these, from one IP address: a gateway needs one for each of its jobs.
    pub connections_per_address_max: usize,
    /// For the greeting.
    pub greeting_timeout: Duration,
    /// A connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// A client that does not take a frame within this time is gone.
    pub write_timeout: Duration,
    /// A stream that waits for payment longer is cut.
    pub pay_timeout: Duration,
    /// At a shutdown, streams that run longer are cut.
    pub grace: Duration,
    /// Shortest withdraw delay of a channel that is accepted, in seconds: time to claim before the payer has it back.
    pub withdraw_delay_min_s: u64,
    /// Requests make the provider ask the chain about one channel again at most this often.
    pub lookup_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_per_address_max: 256,
            greeting_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(60),
            write_timeout: Duration::from_secs(10),
            pay_timeout: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            withdraw_delay_min_s: 3_600,
            lookup_pause: Duration::from_secs(1),
        }
    }
}

/// When vouchers are claimed, besides at the start, at a shutdown and when a payer begins to withdraw.
#[derive(Clone, Copy, Debug)]
pub struct ClaimPolicy {
    /// Regularly.
    pub interval: Duration,
    /// As soon as a channel has this much unclaimed.
    pub threshold: Amount,
    /// How often the chain is asked about channels in use; far below the shortest withdraw delay.
    pub poll: Duration,
    /// A channel is left alone when the chain has said for so long that all of it is claimed: longer than any
    /// reorganization that undoes a claim.
    pub settled_after: Duration,
    /// How long a claim at a shutdown may take; what is left is claimed at the next start.
    pub shutdown_timeout: Duration,
}

impl Default for ClaimPolicy {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(600),
            threshold: Amount(1_000_000),
            poll: Duration::from_secs(15),
            settled_after: Duration::from_secs(900),
            shutdown_timeout: Duration::from_secs(10),
        }
    }
}
