//! A running provider: start, accept, shut down.
//!
//! Start: open the database, register and stake, start the engines, listen, claim what an earlier run left.
//! Shutdown: 1. no new connections and jobs (offers say so); 2. running jobs finish, or are cut after the grace time,
//! each with its receipt; 3. the engines stop; 4. everything is claimed; 5. the database is closed.
//! Dropping a provider instead is a crash: nothing that was sent is lost, the rest is for the next start.

use crate::{
    backend::Backend,
    chain::{Chain, Entry, enroll},
    claims::{self, ClaimTimes},
    config::{ProviderConfig, ServedModel},
    defence::{Defence, DefenceOptions},
    ledger::{ChannelPolicy, Ledger, LedgerKeys},
    offer::OfferBoard,
    serve::{Served, Service},
    store::{Identity, Store, StoreError, Transcript},
    upstream::{Upstream, UpstreamError, UpstreamModel},
};
use assay_chain::ChainError;
use assay_net::{Endpoint, Listener, NetError, Scheme};
use assay_types::{Amount, B256, ModelOffer, Offer, ProviderId, RequestHash, receipt_domain, settlement_domain};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// Pause after the operating system refused a connection: it is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Added to the grace time for the last receipts of streams that were cut.
const CUT_TIME: Duration = Duration::from_secs(2);

/// Why a provider does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database is empty, but the chain shows that this provider has claimed: it is not the one that it had.
    #[error(
        "{path} holds no channel, but on chain this provider has claimed {claimed}: restore a copy of its database; \
         if there is none, start it once with --new-database: it takes over what gateways show, the rest is lost"
    )]
    LostDatabase {
        /// Where.
        path: PathBuf,
        /// Over all channels, in base units.
        claimed: Amount,
    },
    /// The chain refuses the registration or can not be asked.
    #[error("registering: {0}")]
    Chain(#[from] ChainError),
    /// An engine.
    #[error(transparent)]
    Engine(#[from] assay_engine::StartError),
    /// Somebody else's engine.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The socket.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: NetError,
    },
    /// The transport key.
    #[error(transparent)]
    Key(NetError),
    /// What is to be registered is not what is served.
    #[error("endpoint {endpoint} cannot be served: this provider {}", manner(.is_sealed))]
    Scheme {
        /// Which.
        endpoint: Endpoint,
        /// Whether the provider speaks TLS.
        is_sealed: bool,
    },
    /// No model, too many, or one twice.
    #[error("a provider serves 1 to {} models, each once", Offer::MODELS_MAX)]
    Models,
}

fn manner(is_sealed: &bool) -> &'static str {
    if *is_sealed { "speaks TLS" } else { "has no transport key, so it speaks in the clear" }
}

/// What a provider has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ProviderStats {
    /// Requests with a receipt, over all starts.
    pub receipts: u64,
    /// Charged by them.
    pub charged_total: Amount,
}

/// How a shutdown went.
#[derive(Debug)]
pub struct Farewell {
    /// What the provider had done by then.
    pub stats: ProviderStats,
    /// Transferred to the provider by the last claim, or why not; it is claimed at the next start then.
    pub settled: Result<Amount, String>,
}

/// A running provider.
pub struct Provider {
    service: Arc<Service>,
    address: SocketAddr,
    endpoint: Endpoint,
    shutdown_timeout: Duration,
    tasks: Tasks,
}

/// Aborted on drop.
struct Tasks {
    accepting: JoinHandle<()>,
    claiming: JoinHandle<()>,
    writing: JoinHandle<()>,
    defending: Option<JoinHandle<()>>,
    stop_claiming: CancellationToken,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.accepting.abort();
        self.claiming.abort();
        self.writing.abort();
        if let Some(defending) = &self.defending {
            defending.abort();
        }
    }
}

impl Provider {
    /// Starts a provider; when this returns, it is registered and accepts jobs.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing runs then.
    pub async fn start(
        config: ProviderConfig,
        chain: Arc<dyn Chain>,
        models: Vec<ServedModel>,
    ) -> Result<Self, StartError> {
        Self::start_with(config, chain, start_engines(models)?).await
    }

    /// Starts a provider of class tolerant, whose models run in somebody else's engines.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing runs then.
    pub async fn start_upstream(
        config: ProviderConfig,
        chain: Arc<dyn Chain>,
        models: Vec<UpstreamModel>,
    ) -> Result<Self, StartError> {
        let count = models.len();
        let mut served = HashMap::new();
        for model in models {
            let upstream = Upstream::connect(&model).await?;
            let (context_length, capacity) = (upstream.limits().context_length, upstream.capacity());
            let offer = ModelOffer { model_id: model.id, name: model.name, context_length, prices: model.prices };
            served.insert(model.id, Served { backend: Backend::Upstream(Arc::new(upstream)), offer, capacity });
        }
        Self::start_with(config, chain, each_once(served, count)?).await
    }

    async fn start_with(
        config: ProviderConfig,
        chain: Arc<dyn Chain>,
        models: HashMap<assay_types::ModelId, Served>,
    ) -> Result<Self, StartError> {
        let network = config.network;
        let identity = Identity {
            chain_id: network.chain_id,
            provider: ProviderId(config.signer.address()),
            registry: network.registry,
            settlement: network.settlement,
        };
        let (store, writing) = Store::open(&config.database, &identity).await?;
        let has_past = !store.channels().await?.is_empty();
        if !has_past && !config.accepts_new_database {
            let claimed = chain.claimed().await?;
            if claimed > Amount::ZERO {
                return Err(StartError::LostDatabase { path: config.database, claimed });
            }
        }
        let listen_error = |error| StartError::Listen { address: config.listen, error };
        let secret = config.transport_secret;
        let scheme = if secret.is_some() { Scheme::Tls } else { Scheme::Tcp };
        let transport_key = match &secret {
            Some(secret) => B256::from(secret.public().map_err(StartError::Key)?.0),
            None => identity.provider.0.into_word(),
        };
        let bound = Listener::bind(&*config.transport, config.listen, secret, config.limits.write_timeout).await;
        let listener = bound.map_err(listen_error)?;
        let address = listener.address().map_err(listen_error)?;
        let endpoint = config.endpoint.unwrap_or_else(|| Endpoint::from_address(scheme, address));
        if endpoint.scheme() != scheme {
            return Err(StartError::Scheme { endpoint, is_sealed: scheme == Scheme::Tls });
        }
        enroll(&*chain, Entry { endpoint: endpoint.to_string(), transport_key }, config.stake).await?;

        let keys = LedgerKeys {
            signer: config.signer,
            receipts: receipt_domain(network.chain_id, network.registry),
            settlement: settlement_domain(network.chain_id, network.settlement),
        };
        let policy = ChannelPolicy {
            token: network.token,
            withdraw_delay_min_s: config.limits.withdraw_delay_min_s,
            claim_threshold: config.claims.threshold,
            lookup_pause: config.limits.lookup_pause,
            settled_after: config.claims.settled_after,
        };
        let service = Arc::new(Service {
            ledger: Arc::new(Ledger::open(keys, policy, store, chain).await?),
            models,
            offers: OfferBoard::default(),
            limits: config.limits,
            chain_id: network.chain_id,
            draining: CancellationToken::new(),
            cutting: CancellationToken::new(),
        });
        let claims = config.claims;
        let times = ClaimTimes { has_past, interval: claims.interval, poll: claims.poll, threshold: claims.threshold };
        let stop_claiming = CancellationToken::new();
        let tasks = Tasks {
            accepting: tokio::spawn(accept(Arc::clone(&service), listener)),
            claiming: tokio::spawn(claims::run(Arc::clone(&service.ledger), times, stop_claiming.clone())),
            writing,
            defending: None,
            stop_claiming,
        };
        tracing::info!(provider = %identity.provider, %endpoint, "serving");
        Ok(Self { service, address, endpoint, shutdown_timeout: claims.shutdown_timeout, tasks })
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> ProviderId {
        self.service.ledger.provider
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it registered.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What it has done so far.
    ///
    /// # Errors
    /// The database can not be read.
    pub async fn stats(&self) -> Result<ProviderStats, StoreError> {
        let (receipts, charged_total) = self.service.ledger.store.sums().await?;
        Ok(ProviderStats { receipts, charged_total })
    }

    /// The tokens of a request that it answered; `None` if it did not, or before a release that kept them.
    ///
    /// # Errors
    /// The database can not be read.
    pub async fn transcript(&self, request: RequestHash) -> Result<Option<Transcript>, StoreError> {
        self.service.ledger.store.transcript(request).await
    }

    /// Whether it can not store receipts any more, and so serves nothing: it has to be restarted.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.service.ledger.is_broken()
    }

    /// Answers challenges of this provider from now on, those of before included, until the provider ends.
    pub fn defend(&mut self, options: DefenceOptions) {
        let ledger = &self.service.ledger;
        let defence = Defence::new(options, ledger.provider, ledger.store.clone());
        let stop = self.tasks.stop_claiming.clone();
        if let Some(before) = self.tasks.defending.replace(tokio::spawn(defence.run(stop))) {
            before.abort();
        }
    }

    /// Claims everything now; returns what was transferred.
    ///
    /// # Errors
    /// The chain or the database, in words.
    pub async fn claim(&self) -> Result<Amount, String> {
        claims::claim_all(&self.service.ledger).await.map_err(|e| e.to_string())
    }

    /// Ends it in order, within about `grace` + `shutdown_timeout`.
    pub async fn shutdown(self) -> Farewell {
        let Self { service, shutdown_timeout, mut tasks, .. } = self;
        service.draining.cancel();
        if timeout(service.limits.grace, &mut tasks.accepting).await.is_err() {
            service.cutting.cancel();
            if timeout(CUT_TIME, &mut tasks.accepting).await.is_err() {
                tracing::warn!("connections did not end in time");
                tasks.accepting.abort();
            }
        }
        tasks.stop_claiming.cancel();
        if let Some(mut defending) = tasks.defending.take()
            && timeout(shutdown_timeout, &mut defending).await.is_err()
        {
            // A move that takes longer is made at the next start.
            defending.abort();
        }
        if timeout(shutdown_timeout, &mut tasks.claiming).await.is_err() {
            tracing::warn!("a claim takes too long; it is left to the next start");
            tasks.claiming.abort();
        }
        let ledger = Arc::clone(&service.ledger);
        let settled = timeout(shutdown_timeout, claims::claim_all(&ledger)).await;
        let settled = match settled {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err(format!("the chain took longer than {shutdown_timeout:?}")),
        };
        let (receipts, charged_total) = ledger.store.sums().await.unwrap_or_default();
        // Joining engine threads blocks.
        let engines = tokio::task::spawn_blocking(move || drop(service));
        let _ = engines.await;
        drop(ledger);
        // The last store is gone, so the writer ends.
        let _ = timeout(CUT_TIME, &mut tasks.writing).await;
        Farewell { stats: ProviderStats { receipts, charged_total }, settled }
    }
}

fn start_engines(models: Vec<ServedModel>) -> Result<HashMap<assay_types::ModelId, Served>, StartError> {
    let count = models.len();
    let mut served = HashMap::new();
    for model in models {
        let (capacity, room) = model.work.room();
        let backend = Backend::start(model.work)?;
        let context_length = backend.limits().context_length.min(room);
        let offer = ModelOffer { model_id: model.id, name: model.name, context_length, prices: model.prices };
        served.insert(model.id, Served { backend, offer, capacity });
    }
    each_once(served, count)
}

fn each_once(
    served: HashMap<assay_types::ModelId, Served>,
    count: usize,
) -> Result<HashMap<assay_types::ModelId, Served>, StartError> {
    if (1..=Offer::MODELS_MAX).contains(&count) && served.len() == count { Ok(served) } else { Err(StartError::Models) }
}

/// Accepts until the provider drains, then waits for the connections.
async fn accept(service: Arc<Service>, listener: Listener) {
    let mut connections: JoinSet<IpAddr> = JoinSet::new();
    let mut by_address: HashMap<IpAddr, usize> = HashMap::new();
    loop {
        let accepted = tokio::select! {
            () = service.draining.cancelled() => break,
            accepted = listener.accept() => accepted,
            // Keeps the set as small as the number of open connections.
            Some(ended) = connections.join_next() => {
                if let Ok(ip) = ended {
                    by_address.entry(ip).and_modify(|count| *count -= 1);
                    by_address.retain(|_, count| *count > 0);
                }
                continue;
            }
        };
        match accepted {
            Ok(guest) => {
                let ip = guest.peer.ip().to_canonical();
                let count = by_address.get(&ip).copied().unwrap_or(0);
                // Full: closing at once tells a client more than a silent queue.
                if connections.len() >= service.limits.connections_max
                    || count >= service.limits.connections_per_address_max
                {
                    continue;
                }
                by_address.insert(ip, count + 1);
                let service = Arc::clone(&service);
                connections.spawn(async move {
                    service.connection(guest).await;
                    ip
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}
