//! The client's idle connections: a job takes one, and gives it back when it has ended in order.

use crate::{Connection, NetError, Route, Transport, connect};
use assay_types::ProviderId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// The chain that providers have to be on.
    pub chain_id: u64,
    /// Idle connections kept to one provider; more are closed.
    pub idle_max: usize,
    /// An idle connection is not used after this long: a middlebox may have forgotten it. Below the provider's own limit.
    pub idle_timeout: Duration,
    /// For connecting and greeting.
    pub connect_timeout: Duration,
}

impl PoolOptions {
    /// 64 idle connections for up to 30 s, 3 s to connect.
    #[must_use]
    pub fn new(chain_id: u64) -> Self {
        let (idle_timeout, connect_timeout) = (Duration::from_secs(30), Duration::from_secs(3));
        Self { chain_id, idle_max: 64, idle_timeout, connect_timeout }
    }
}

/// Idle connections by provider. Holds at most `idle_max` for each provider it was ever asked for.
pub struct Pool {
    transport: Arc<dyn Transport>,
    options: PoolOptions,
    idle: Mutex<HashMap<ProviderId, Vec<Idle>>>,
}

struct Idle {
    connection: Connection,
    route: Route,
    since: Instant,
}

/// A connection on loan. Dropping it closes it, which cancels the job on it; [`Pool::give_back`] keeps it.
pub struct Pooled {
    /// The connection.
    pub connection: Connection,
    /// Whether it carried a job before. If it fails before the provider has answered anything, the provider may only
    /// have closed it for idleness: try once more with a fresh one.
    pub is_reused: bool,
    provider: ProviderId,
    route: Route,
}

impl Pool {
    /// An empty pool of connections over `transport`.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>, options: PoolOptions) -> Self {
        Self { transport, options, idle: Mutex::new(HashMap::new()) }
    }

    /// A connection to `provider` at `route`: an idle one that is still alive, or a new one.
    ///
    /// # Errors
    /// It can not be reached, or somebody else answers there.
    pub async fn get(&self, provider: ProviderId, route: Route) -> Result<Pooled, NetError> {
        while let Some(idle) = self.take(provider) {
            let mut connection = idle.connection;
            let is_fresh = idle.since.elapsed() < self.options.idle_timeout && idle.route == route;
            if is_fresh && connection.receiver.is_quiet().await {
                return Ok(Pooled { connection, is_reused: true, provider, route });
            }
        }
        let (connection, hello) =
            connect(&*self.transport, route, self.options.chain_id, self.options.connect_timeout).await?;
        if hello.provider != provider {
            let found = hello.provider;
            return Err(NetError::WrongPeer(format!("{} is provider {found}, not {provider}", route.address)));
        }
        Ok(Pooled { connection, is_reused: false, provider, route })
    }

    /// Takes back a connection whose last job has ended with Done or Refused.
    pub fn give_back(&self, pooled: Pooled) {
        let Pooled { connection, provider, route, .. } = pooled;
        let mut idle = self.lock();
        let kept = idle.entry(provider).or_default();
        kept.retain(|idle| idle.since.elapsed() < self.options.idle_timeout);
        if kept.len() < self.options.idle_max {
            kept.push(Idle { connection, route, since: Instant::now() });
        }
    }

    /// Closes the idle connections to a provider that is gone from the registry.
    pub fn forget(&self, provider: ProviderId) {
        self.lock().remove(&provider);
    }

    /// The connection that was used last: the others may age out.
    fn take(&self, provider: ProviderId) -> Option<Idle> {
        self.lock().get_mut(&provider)?.pop()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ProviderId, Vec<Idle>>> {
        // A panic while it was held can only have left a list with one connection more or less.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
