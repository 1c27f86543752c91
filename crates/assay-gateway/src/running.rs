//! Requests that are being answered, and whose they are.

use crate::keys::KeyId;
use assay_types::RequestHash;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bounded by the number of requests that are answered at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running(Arc<Mutex<HashMap<RequestHash, KeyId>>>);

/// Removes its entry when it is dropped.
#[derive(Debug)]
pub(crate) struct Entry {
    running: Running,
    id: RequestHash,
}

impl Running {
    pub(crate) fn enter(&self, id: RequestHash, key: KeyId) -> Entry {
        self.lock().insert(id, key);
        Entry { running: self.clone(), id }
    }

    pub(crate) fn owner(&self, id: RequestHash) -> Option<KeyId> {
        self.lock().get(&id).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestHash, KeyId>> {
        // One insert or remove at a time: nothing half-done can be left behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.lock().remove(&self.id);
    }
}
