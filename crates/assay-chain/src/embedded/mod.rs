//! An EVM chain in this process: one writer thread, state on disk, standard JSON-RPC.
//!
//! ```text
//! HTTP, WS --+                   +--> snapshot of the last sealed block --> answer
//!            +--> dispatcher ----+
//! alloy -----+    (rpc.rs)       +--> pool --> sealer thread --> redb, one fsync a block
//! ```
//!
//! Invariants:
//! - A block is visible only after it is durable. `eth_sendRawTransaction` answers when the transaction is in the
//!   pool; a kill loses at most the pool, never a block.
//! - One process per directory (file lock of redb); a damaged file is reported and left as it is.
//! - Readers see one snapshot per request and never wait for the writer.
//!
//! Where it differs from a public chain: no peers and no consensus; the state root is zero (there is no state trie);
//! base fee zero; `prevrandao` is a hash of the parent and no randomness; timestamps do not fall but may repeat; only
//! the latest state can be read; no blob and no EIP-7702 transactions; no KZG precompile.

mod exec;
mod filters;
mod genesis;
mod http;
mod methods;
mod pool;
mod probe;
mod rpc;
mod sealer;
mod state;
mod store;
mod subscriptions;
mod transport;
mod views;

pub use genesis::{COLLECTOR_ADDRESS, Genesis, GenesisAccount, LOCAL_CHAIN_ID};
pub use rpc::RpcError;
pub use transport::InProcess;

use sealer::Shared;
use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

/// Unix seconds; called once per block and per simulated call.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// How a chain runs. Changing it never changes what is on disk already.
#[derive(Clone)]
pub struct ChainOptions {
    /// Where block timestamps come from.
    pub clock: Clock,
    /// How long a block stays open for more transactions after its first one; at most 50 ms is useful.
    pub seal_window: Duration,
    /// A block is closed at once when it has this many.
    pub block_transactions_max: usize,
    /// An HTTP connection on which nothing moves for so long is closed.
    pub idle_timeout: Duration,
}

impl ChainOptions {
    /// 5 ms, 200 transactions, a minute.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            seal_window: Duration::from_millis(5),
            block_transactions_max: 200,
            idle_timeout: Duration::from_secs(60),
        }
    }
}

/// Why a chain cannot be opened or went on strike.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// The file lock is taken.
    #[error("{} is in use by another process: stop it or choose another directory", path.display())]
    InUse {
        /// The state file.
        path: PathBuf,
    },
    /// The state file cannot be trusted. It was not changed.
    #[error("{} is damaged ({detail}): restore a copy, or move it away to start a new chain", path.display())]
    Damaged {
        /// The state file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The directory holds another chain.
    #[error("{} holds chain {found}, not chain {expected}: choose another directory", path.display())]
    OtherChain {
        /// The state file.
        path: PathBuf,
        /// Chain id on disk.
        found: u64,
        /// Chain id asked for.
        expected: u64,
    },
    /// Written by another version.
    #[error("{} has format {found}, this version reads format {expected}", path.display())]
    OtherFormat {
        /// The state file.
        path: PathBuf,
        /// On disk.
        found: u32,
        /// Known here.
        expected: u32,
    },
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// Its reason.
        source: std::io::Error,
    },
    /// It was closed and takes no more transactions.
    #[error("the chain is closed")]
    Closed,
    /// Reading or writing failed while running.
    #[error("chain storage failed: {0}")]
    Storage(String),
}

/// A running chain; clones share it. The last clone seals what is in the pool, stops the writer and unlocks the
/// directory.
#[derive(Clone)]
pub struct EmbeddedChain(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    sealer: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Requests that compute at the same time; more of them wait.
    permits: Arc<tokio::sync::Semaphore>,
}

/// Requests that may run at once; each can hold a few megabytes.
const REQUESTS_AT_ONCE: usize = 32;

impl EmbeddedChain {
    /// Opens the chain in `dir`, or creates it from `genesis` if there is none (the directory is created too).
    ///
    /// Of an existing chain only the id is compared with `genesis`: its contracts stay what they were.
    ///
    /// # Errors
    /// [`EmbeddedError`]; nothing on disk was changed then.
    pub fn open(dir: &Path, genesis: &Genesis, options: ChainOptions) -> Result<Self, EmbeddedError> {
        let store = store::Store::open(dir, genesis, (options.clock)())?;
        let shared = Arc::new(Shared::new(store, genesis.chain_id, options));
        let sealer = sealer::start(Arc::clone(&shared))
            .map_err(|source| EmbeddedError::Io { path: dir.to_path_buf(), source })?;
        let permits = Arc::new(tokio::sync::Semaphore::new(REQUESTS_AT_ONCE));
        Ok(Self(Arc::new(Inner { shared, sealer: Mutex::new(Some(sealer)), permits })))
    }

    /// The chain id.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.0.shared.chain_id
    }

    /// Number and hash of the last durable block.
    ///
    /// # Errors
    /// [`EmbeddedError::Storage`].
    pub fn head(&self) -> Result<(u64, alloy_primitives::B256), EmbeddedError> {
        let head = self.0.shared.store.snapshot()?.head()?;
        Ok((head.header.number, head.hash))
    }

    /// Moves the chain's clock ahead for good (until it is closed): unbonding and withdrawal delays can be tested
    /// without waiting. Not reachable over JSON-RPC.
    pub fn advance_time(&self, seconds: u64) {
        self.0.shared.time_offset.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Seals what can be sealed, then takes no more transactions; reads still work. The directory stays locked until
    /// the last clone is gone (clients of the in-process transport hold one). Blocks for one write.
    pub fn close(&self) {
        self.0.close();
    }

    /// Answers one request. Blocks for as long as it computes: call it from a thread that may.
    ///
    /// # Errors
    /// [`RpcError`], as it would go over the wire.
    pub fn dispatch(&self, method: &str, params: serde_json::Value) -> Result<serde_json::Value, RpcError> {
        methods::dispatch(&self.0.shared, method, params)
    }

    /// [`Self::dispatch`] off the async threads, bounded in number.
    ///
    /// # Errors
    /// As [`Self::dispatch`].
    pub async fn request(&self, method: String, params: serde_json::Value) -> Result<serde_json::Value, RpcError> {
        self.run_blocking(move |chain| chain.dispatch(&method, params)).await?
    }

    /// An alloy transport to this chain that needs no socket.
    #[must_use]
    pub fn transport(&self) -> InProcess {
        InProcess::new(self.clone())
    }

    async fn run_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, RpcError> {
        let permit = Arc::clone(&self.0.permits).acquire_owned().await;
        let chain = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            // Held to the end of the work, also when the caller went away meanwhile.
            let _permit = permit;
            job(&chain)
        });
        task.await.map_err(|error| {
            tracing::error!(%error, "a request failed inside the chain");
            RpcError::internal("the request failed inside the chain")
        })
    }
}

impl Inner {
    fn close(&self) {
        self.shared.stop();
        let sealer = self.sealer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sealer) = sealer
            && sealer.join().is_err()
        {
            tracing::error!("the chain's writer panicked; sealed blocks are safe");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}
