//! Starts the parts of a gateway and stops them in order.
//!
//! Order of the end: no new connections and requests; running streams finish; after [`Timeouts::drain`] the rest is
//! cut with an error event and a last receipt; the background task ends; everything is on disk; the file is closed.

use crate::auditing::{AuditError, Auditing};
use crate::body::BODY_UNIT;
use crate::chain::ChainLedger;
use crate::challenge;
use crate::channel::{ChannelTotal, Purse};
use crate::clock;
use crate::config::{GatewayConfig, GatewayLimits, Timeouts};
use crate::control::Control;
use crate::directory::Directory;
use crate::http;
use crate::journal::Journal;
use crate::keys::Keys;
use crate::ledger::Ledger;
use crate::likeness::Comparing;
use crate::metrics::Metrics;
use crate::model::GatewayModel;
use crate::running::Running;
use crate::scout::{Roster, Scout, Settings};
use crate::serve::{self, Door};
use crate::standing::Standings;
use crate::store::{Store, StoreError};
use crate::watch::Watch;
use crate::x402::{self, Toll};
use assay_net::{Pool, PoolOptions};
use assay_types::{Amount, ProviderId};
use axum::body::Bytes;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// Between two looks at what other processes did to the keys.
const KEYS_RELOAD: Duration = Duration::from_secs(1);
/// Tasks that are still there this long after the cut are left behind.
const LAST_WAIT: Duration = Duration::from_millis(1200);

/// How long the end waits for the claims of what paying callers owe.
const CLAIM_TIME_MAX: Duration = Duration::from_secs(3);

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}; choose another port or stop what uses it")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// The socket for the operator's commands cannot be made.
    #[error("cannot make the socket {path}: {error}; choose a shorter path in a folder that can be written")]
    Control {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The database cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The audits cannot be resumed.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Payment by request is wanted and not possible.
    #[error("payment by request: {0}")]
    X402(String),
    /// Two models answer to one name, or there is none.
    #[error("{0}")]
    Models(String),
}

/// What all requests share.
pub(crate) struct Inner {
    pub(crate) limits: GatewayLimits,
    pub(crate) timeouts: Timeouts,
    pub(crate) models: Vec<Arc<GatewayModel>>,
    /// Of each of them, what it is where an engine that is not canonical runs it.
    pub(crate) tolerant: Vec<Arc<GatewayModel>>,
    /// What can be asked here, as OpenAPI.
    pub(crate) description: Bytes,
    pub(crate) directory: Arc<Directory>,
    pub(crate) comparing: Arc<Comparing>,
    pub(crate) auditing: Arc<Auditing>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) purse: Arc<Purse>,
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) running: Running,
    pub(crate) journal: Journal,
    /// Requests that may still begin.
    pub(crate) requests: Arc<Semaphore>,
    /// Memory for bodies, in [`BODY_UNIT`]s.
    pub(crate) bodies: Semaphore,
    /// What must finish although a handler is dropped.
    pub(crate) tasks: TaskTracker,
    /// Nothing new.
    pub(crate) stop: CancellationToken,
    /// Running streams end now.
    pub(crate) cut: CancellationToken,
    pub(crate) started_at: u64,
}

/// The gateway.
#[derive(Debug)]
pub struct Gateway;

/// A running gateway. Dropping it stops it without order; use [`Self::shutdown`].
pub struct GatewayHandle {
    address: SocketAddr,
    inner: Arc<Inner>,
    roster: Arc<Roster>,
    toll: Option<Arc<Toll>>,
    connections: TaskTracker,
    background: Vec<JoinHandle<()>>,
    writer: JoinHandle<()>,
    _stop: DropGuard,
    _cut: DropGuard,
}

/// What a gateway's books say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Totals {
    /// Answers stored in the database, earlier runs included.
    pub receipts: u64,
    /// The channels used in this run.
    pub channels: Vec<ChannelTotal>,
}

impl Totals {
    /// Sum of all charges.
    #[must_use]
    pub fn charged(&self) -> Amount {
        self.channels.iter().fold(Amount::ZERO, |sum, channel| sum.saturating_add(channel.charged_total))
    }
}

impl Gateway {
    /// Starts a gateway on the contracts of `network`; the configuration's signer is the payer.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(config: GatewayConfig, network: assay_chain::Network) -> Result<GatewayHandle, StartError> {
        let ledger = ChainLedger::new(network, config.signer.clone());
        Self::start_with(config, Arc::new(ledger)).await
    }

    /// Opens the database, listens, and starts the background tasks on the current tokio runtime. Returns at once;
    /// [`GatewayHandle::ready`] waits for providers.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start_with<L: Ledger>(config: GatewayConfig, ledger: Arc<L>) -> Result<GatewayHandle, StartError> {
        check_names(&config.models)?;
        let listen_error = |error| StartError::Listen { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let (store, writer) = Store::open(&config.database).await?;
        for model in &config.models {
            store.put_manifest(&model.manifest).await?;
            store.put_manifest(&model.manifest.tolerant()).await?;
        }
        let network = ledger.addresses();
        let settings = Settings::of(&config, network.chain_id);
        let GatewayConfig {
            limits,
            timeouts,
            signer,
            models,
            withdraw_delay,
            control,
            audit,
            x402,
            database,
            transport,
            ..
        } = config;
        let control = control.map(|path| Control::bind(&path).map_err(|error| StartError::Control { path, error }));
        let control = control.transpose()?;
        let pool = PoolOptions { connect_timeout: timeouts.connect, ..PoolOptions::new(network.chain_id) };
        let models: Vec<Arc<GatewayModel>> = models.into_iter().map(Arc::new).collect();
        let tolerant = models.iter().map(|model| Arc::new(model.tolerant())).collect();
        let purse = Arc::new(Purse::new(network, &signer, withdraw_delay));
        let standings = Arc::new(Standings::open(audit.reputation, store.clone()).await?);
        let challenge = audit.challenge;
        let auditing = Auditing::open(audit, network, purse.receipts, store.clone(), Arc::clone(&standings)).await?;
        let auditing = Arc::new(auditing);
        let (comparing, queue) = Comparing::new(Arc::clone(&auditing), store.clone(), &models);
        let inner = Arc::new(Inner {
            limits,
            timeouts,
            description: http::description(&models),
            models,
            tolerant,
            directory: Arc::new(Directory::new(timeouts.offer_age_max, standings)),
            comparing: Arc::new(comparing),
            auditing,
            pool: Arc::new(Pool::new(transport, pool)),
            purse,
            keys: Keys::open(store.clone()).await?,
            store,
            metrics: Arc::new(Metrics::new()),
            running: Running::default(),
            journal: Journal::new(),
            requests: Arc::new(Semaphore::new(limits.requests_max)),
            bodies: Semaphore::new(limits.bodies_bytes_max / BODY_UNIT),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            cut: CancellationToken::new(),
            started_at: clock::unix_seconds(),
        });
        let roster = Arc::new(Roster::default());
        let watch = Watch {
            ledger: Arc::clone(&ledger),
            store: inner.store.clone(),
            keys: inner.keys.clone(),
            auditing: Arc::clone(&inner.auditing),
        };
        let scout = Scout {
            ledger,
            directory: Arc::clone(&inner.directory),
            pool: Arc::clone(&inner.pool),
            purse: Arc::clone(&inner.purse),
            store: inner.store.clone(),
            metrics: Arc::clone(&inner.metrics),
            roster: Arc::clone(&roster),
            tasks: inner.tasks.clone(),
            settings,
        };
        let connections = TaskTracker::new();
        let door = Door {
            listener,
            connections_max: limits.connections_max,
            header_timeout: timeouts.header,
            write_timeout: timeouts.client_write,
            stop: inner.stop.clone(),
            connections: connections.clone(),
        };
        let mut routers = http::routers(&inner);
        let mut background = vec![
            tokio::spawn(scout.run(inner.stop.clone())),
            tokio::spawn(watch.run(inner.stop.clone())),
            tokio::spawn(reload_keys(inner.keys.clone(), inner.stop.clone())),
            tokio::spawn(Arc::clone(&inner.auditing).run(inner.stop.clone())),
            tokio::spawn(Arc::clone(&inner.comparing).run(queue, inner.stop.clone())),
        ];
        if challenge > Duration::ZERO {
            background.push(tokio::spawn(challenge::run(Arc::clone(&inner), challenge, inner.stop.clone())));
        }
        if let Some(control) = control {
            background.push(tokio::spawn(control.run(Arc::clone(&inner), inner.stop.clone())));
        }
        let mut toll = None;
        if let Some(config) = x402 {
            let interval = config.claim_interval;
            let open = Toll::open(Arc::clone(&inner), config, &database).await?;
            routers.local = x402::guard(routers.local, Arc::clone(&open));
            routers.remote = x402::guard(routers.remote, Arc::clone(&open));
            background.push(tokio::spawn(x402::run_claims(Arc::clone(&open), interval, inner.stop.clone())));
            toll = Some(open);
        }
        background.push(tokio::spawn(serve::run(door, routers)));
        let (stop, cut) = (inner.stop.clone().drop_guard(), inner.cut.clone().drop_guard());
        Ok(GatewayHandle { address, inner, roster, toll, connections, background, writer, _stop: stop, _cut: cut })
    }
}

impl GatewayHandle {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes, lists and revokes API keys.
    #[must_use]
    pub fn keys(&self) -> Keys {
        self.inner.keys.clone()
    }

    /// Providers with a fresh offer and a funded channel.
    #[must_use]
    pub fn routable(&self) -> Vec<ProviderId> {
        self.inner.directory.ready()
    }

    /// Waits until at least `providers` take requests, or `limit` has passed; whether they do.
    pub async fn ready(&self, providers: usize, limit: Duration) -> bool {
        let enough = async {
            // The directory changes once a round; there is nothing to gain from looking more often.
            let mut looks = tokio::time::interval(Duration::from_millis(10));
            while self.inner.directory.ready().len() < providers {
                looks.tick().await;
            }
        };
        tokio::time::timeout(limit, enough).await.is_ok()
    }

    /// What the books say now.
    ///
    /// # Errors
    /// The database could not be read.
    pub async fn totals(&self) -> Result<Totals, StoreError> {
        let channels = self.roster.all().iter().map(|peer| peer.channel.total()).collect();
        Ok(Totals { receipts: self.inner.store.receipts_count().await?, channels })
    }

    /// Stops in order, within five seconds with the default timeouts, and returns the final books.
    ///
    /// # Errors
    /// The database could not be read or closed; everything that was acknowledged is stored nevertheless.
    pub async fn shutdown(self) -> Result<Totals, StoreError> {
        let Self { inner, roster, toll, connections, background, writer, .. } = self;
        inner.stop.cancel();
        inner.tasks.close();
        connections.close();
        let cut = inner.cut.clone();
        if tokio::time::timeout(inner.timeouts.drain, inner.tasks.wait()).await.is_err() {
            tracing::info!(streams = inner.tasks.len(), "cutting the streams that still run");
            cut.cancel();
            let _ = tokio::time::timeout(LAST_WAIT, inner.tasks.wait()).await;
        }
        for task in background {
            task.abort();
            // Ends at once: aborted, or done already.
            let _ = task.await;
        }
        // Clients read their last bytes; one that does not is not waited for.
        let _ = tokio::time::timeout(Duration::from_millis(200), connections.wait()).await;
        if let Some(toll) = toll {
            match tokio::time::timeout(CLAIM_TIME_MAX, toll.claim_all()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "callers' vouchers are claimed after the next start"),
                Err(_) => tracing::warn!("the chain is slow; callers' vouchers are claimed after the next start"),
            }
            toll.close().await;
        }
        for peer in roster.all() {
            inner.store.put_channel(peer.channel.row()).await?;
        }
        let channels = roster.all().iter().map(|peer| peer.channel.total()).collect();
        let receipts = inner.store.receipts_count().await?;
        inner.store.close().await?;
        let _ = writer.await;
        Ok(Totals { receipts, channels })
    }
}

async fn reload_keys(keys: Keys, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(KEYS_RELOAD);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = keys.reload().await {
            tracing::warn!(%error, "the keys were not read");
        }
    }
}

fn check_names(models: &[GatewayModel]) -> Result<(), StartError> {
    if models.is_empty() {
        return Err(StartError::Models("a gateway serves at least one model".into()));
    }
    let mut names: Vec<&String> = models.iter().flat_map(|m| std::iter::once(&m.name).chain(&m.aliases)).collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(StartError::Models(format!("two models answer to the name '{}'", pair[0]))),
        None => Ok(()),
    }
}
