//! What a gateway is started with.

use crate::auditing::AuditConfig;
use crate::model::GatewayModel;
use crate::x402::X402Config;
use alloy_signer_local::PrivateKeySigner;
use assay_net::{AddressPolicy, Transport};
use assay_types::Amount;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything a gateway needs.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Address to listen on; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The database file.
    pub database: PathBuf,
    /// Socket file over which the operator's commands reach the running gateway; `None`: there is none.
    pub control: Option<PathBuf>,
    /// Pays, and signs vouchers.
    pub signer: PrivateKeySigner,
    /// What is served.
    pub models: Vec<GatewayModel>,
    /// What is put into a channel at a time; topped up when less than half of it is free.
    pub deposit: Amount,
    /// Seconds between a wish to withdraw from a channel and the withdrawal.
    pub withdraw_delay: u64,
    /// Which addresses a registered endpoint may resolve to.
    pub addresses: AddressPolicy,
    /// How providers are reached.
    pub transport: Arc<dyn Transport>,
    /// Who audits, how much, and what comes of it.
    pub audit: AuditConfig,
    /// Bounds.
    pub limits: GatewayLimits,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Callers without a key may pay by request; without this they are refused.
    pub x402: Option<X402Config>,
}

/// Bounds on what is held at once.
#[derive(Clone, Copy, Debug)]
pub struct GatewayLimits {
    /// HTTP connections; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Requests that are being answered; further ones get 429.
    pub requests_max: usize,
    /// Bytes of request bodies that are being read, all connections together; the first 16 KiB of each are free.
    pub bodies_bytes_max: usize,
    /// Body and message bounds.
    pub request: assay_api::Limits,
    /// Output bound of a chat request that names none, if the context has room for more.
    pub max_tokens_default: u32,
    /// Providers tried for one request.
    pub attempts_max: usize,
    /// Providers that are polled for offers.
    pub providers_max: usize,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            requests_max: 1024,
            bodies_bytes_max: 64 << 20,
            request: assay_api::Limits::default(),
            max_tokens_default: 4096,
            attempts_max: 4,
            providers_max: 1024,
        }
    }
}

/// Deadlines. Each names what happens when it passes.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Headers of a request, and idleness between two: the connection is closed.
    pub header: Duration,
    /// Body of a request: 408.
    pub body: Duration,
    /// A client that reads nothing: the connection is cut and the work cancelled.
    pub client_write: Duration,
    /// Connecting to a provider: the next one is tried.
    pub connect: Duration,
    /// From the job to the first token: the next provider is tried.
    pub first_token: Duration,
    /// Between two tokens: the next provider goes on.
    pub next_token: Duration,
    /// From `Cancel` to the last receipt: the stream counts as lost.
    pub cancel: Duration,
    /// A stream whose channel is empty waits for a deposit: somebody else goes on.
    pub fund: Duration,
    /// Between two rounds of asking providers for offers.
    pub offers: Duration,
    /// Between two readings of the provider registry.
    pub registry: Duration,
    /// Between two looks at the gateway's channels on chain.
    pub channels: Duration,
    /// Age of an offer, by the provider's clock or since it arrived, from which it is not used.
    pub offer_age_max: Duration,
    /// From the wish to stop until running streams are cut.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            header: Duration::from_secs(30),
            body: Duration::from_secs(20),
            client_write: Duration::from_secs(20),
            connect: Duration::from_secs(2),
            first_token: Duration::from_secs(60),
            next_token: Duration::from_secs(10),
            cancel: Duration::from_secs(3),
            fund: Duration::from_secs(3),
            offers: Duration::from_millis(300),
            registry: Duration::from_secs(2),
            channels: Duration::from_secs(15),
            offer_age_max: Duration::from_secs(30),
            drain: Duration::from_millis(3500),
        }
    }
}
