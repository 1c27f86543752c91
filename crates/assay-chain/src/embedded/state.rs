//! The state that one block or one call sees: a snapshot, and what was changed on top of it.

use super::{EmbeddedError, store::Snapshot};
use alloy_primitives::{Address, B256, Bytes, U256};
use revm::{
    Database, DatabaseCommit,
    database_interface::DBErrorMarker,
    primitives::AddressMap,
    state::{Account, AccountInfo, Bytecode},
};
use std::collections::{HashMap, HashSet};

/// State could not be read or written; the text says what.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct StateError(pub String);

impl DBErrorMarker for StateError {}

impl From<StateError> for EmbeddedError {
    fn from(error: StateError) -> Self {
        Self::Storage(error.0)
    }
}

/// What a block writes. `None` is an account that is gone, a zero a slot that is.
#[derive(Default)]
pub(super) struct Changes {
    pub accounts: Vec<(Address, Option<AccountInfo>)>,
    pub slots: Vec<((Address, U256), U256)>,
    pub code: Vec<(B256, Bytes)>,
}

/// Reads go through to the snapshot and are kept; writes stay here.
pub(super) struct Overlay {
    snapshot: Snapshot,
    accounts: HashMap<Address, Option<AccountInfo>>,
    slots: HashMap<(Address, U256), U256>,
    code: HashMap<B256, Bytecode>,
    changed_accounts: HashSet<Address>,
    changed_slots: HashSet<(Address, U256)>,
    changed_code: HashSet<B256>,
}

impl Overlay {
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            accounts: HashMap::new(),
            slots: HashMap::new(),
            code: HashMap::new(),
            changed_accounts: HashSet::new(),
            changed_slots: HashSet::new(),
            changed_code: HashSet::new(),
        }
    }

    /// What was committed so far, in key order: neighbours on disk are written together.
    pub fn into_changes(self) -> Changes {
        let mut changes = Changes::default();
        for address in &self.changed_accounts {
            changes.accounts.push((*address, self.accounts.get(address).cloned().flatten()));
        }
        for key in &self.changed_slots {
            changes.slots.push((*key, self.slots.get(key).copied().unwrap_or_default()));
        }
        for hash in &self.changed_code {
            if let Some(code) = self.code.get(hash) {
                changes.code.push((*hash, code.original_bytes()));
            }
        }
        changes.accounts.sort_unstable_by_key(|(address, _)| *address);
        changes.slots.sort_unstable_by_key(|(key, _)| *key);
        changes.code.sort_unstable_by_key(|(hash, _)| *hash);
        changes
    }
}

impl Database for Overlay {
    type Error = StateError;

    fn basic(&mut self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        if let Some(known) = self.accounts.get(&address) {
            return Ok(known.clone());
        }
        let account = self.snapshot.account(address)?;
        self.accounts.insert(address, account.clone());
        Ok(account)
    }

    fn code_by_hash(&mut self, hash: B256) -> Result<Bytecode, StateError> {
        if let Some(known) = self.code.get(&hash) {
            return Ok(known.clone());
        }
        let code = Bytecode::new_legacy(self.snapshot.code(hash)?);
        self.code.insert(hash, code.clone());
        Ok(code)
    }

    fn storage(&mut self, address: Address, slot: U256) -> Result<U256, StateError> {
        if let Some(known) = self.slots.get(&(address, slot)) {
            return Ok(*known);
        }
        let value = self.snapshot.slot(address, slot)?;
        self.slots.insert((address, slot), value);
        Ok(value)
    }

    fn block_hash(&mut self, number: u64) -> Result<B256, StateError> {
        Ok(self.snapshot.block(number)?.map_or(B256::ZERO, |block| block.hash))
    }
}

impl DatabaseCommit for Overlay {
    fn commit(&mut self, changes: AddressMap<Account>) {
        for (address, account) in changes {
            if !account.is_touched() {
                continue;
            }
            self.changed_accounts.insert(address);
            // EIP-161: an account with nothing in it does not exist. EIP-6780: only a contract made in the same
            // transaction can self-destruct, so it has no storage on disk.
            if account.is_selfdestructed() || account.is_empty() {
                self.accounts.insert(address, None);
                continue;
            }
            for (slot, value) in &account.storage {
                if value.is_changed() {
                    self.slots.insert((address, *slot), value.present_value);
                    self.changed_slots.insert((address, *slot));
                }
            }
            let mut info = account.info;
            if let Some(code) = info.code.take()
                && !code.is_empty()
                && self.code.insert(info.code_hash, code).is_none()
            {
                self.changed_code.insert(info.code_hash);
            }
            self.accounts.insert(address, Some(info));
        }
    }
}
