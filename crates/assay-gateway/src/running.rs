//! Requests that are being answered, whose they are, and how far they are.

use crate::keys::KeyId;
use assay_types::{ProviderId, RequestHash};
use serde::Serialize;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Bounded by the number of requests that are answered at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running(Arc<Mutex<HashMap<RequestHash, Arc<Live>>>>);

/// One request on its way.
#[derive(Debug)]
pub(crate) struct Live {
    key: KeyId,
    model: String,
    prompt_tokens: u64,
    since: Instant,
    output_tokens: AtomicU64,
    provider: Mutex<Option<ProviderId>>,
}

/// A request as an operator sees it: no text of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Process {
    receipt: RequestHash,
    key_id: i64,
    model: String,
    /// Who works on it; `null` while nobody does.
    provider: Option<ProviderId>,
    prompt_tokens: u64,
    output_tokens: u64,
    millis: u64,
}

/// Removes its entry when it is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    running: Running,
    id: RequestHash,
    live: Arc<Live>,
}

impl Running {
    pub(crate) fn enter(&self, id: RequestHash, key: KeyId, model: &str, prompt_tokens: u64) -> Entry {
        let live = Arc::new(Live {
            key,
            model: model.into(),
            prompt_tokens,
            since: Instant::now(),
            output_tokens: AtomicU64::new(0),
            provider: Mutex::new(None),
        });
        self.lock().insert(id, Arc::clone(&live));
        Entry { running: self.clone(), id, live }
    }

    pub(crate) fn owner(&self, id: RequestHash) -> Option<KeyId> {
        self.lock().get(&id).map(|live| live.key)
    }

    /// The longest running first.
    pub(crate) fn list(&self) -> Vec<Process> {
        let mut list: Vec<Process> = self.lock().iter().map(|(id, live)| live.process(*id)).collect();
        list.sort_by_key(|process| std::cmp::Reverse(process.millis));
        list
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestHash, Arc<Live>>> {
        // One insert or remove at a time: nothing half-done can be left behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn process(&self, receipt: RequestHash) -> Process {
        Process {
            receipt,
            key_id: self.key.0,
            model: self.model.clone(),
            provider: *self.provider.lock().unwrap_or_else(PoisonError::into_inner),
            prompt_tokens: self.prompt_tokens,
            output_tokens: self.output_tokens.load(Ordering::Relaxed),
            millis: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Entry {
    /// Who works on it now.
    pub(crate) fn at(&self, provider: ProviderId) {
        *self.live.provider.lock().unwrap_or_else(PoisonError::into_inner) = Some(provider);
    }

    /// So many tokens are there.
    pub(crate) fn has(&self, output_tokens: u64) {
        self.live.output_tokens.store(output_tokens, Ordering::Relaxed);
    }

    pub(crate) fn since(&self) -> Instant {
        self.live.since
    }

    pub(crate) fn model(&self) -> &str {
        &self.live.model
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.lock().remove(&self.id);
    }
}
