//! The chain on disk: one redb file, one commit per block.
//!
//! | table | key | value |
//! |---|---|---|
//! | meta | name | `format` (u64), `chain_id` (u64) |
//! | accounts | address | nonce (8 bytes) balance (32) code hash (32), big-endian |
//! | slots | address, slot | 32 bytes; zero is absent |
//! | code | keccak256 | runtime code |
//! | blocks | number | block hash, RLP of the header |
//! | block_by_hash | hash | number |
//! | transactions | number, index | RLP of [`StoredTransaction`] |
//! | transaction_by_hash | hash | number, index |
//!
//! Logs are read from the receipts of the blocks whose bloom filter matches, so memory does not grow with the chain.

use super::{
    EmbeddedError, Genesis,
    probe::CopyOnWrite,
    state::{Changes, StateError},
};
use alloy_consensus::{EMPTY_OMMER_ROOT_HASH, Header, constants::EMPTY_ROOT_HASH};
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_rlp::{Decodable, Encodable, RlpDecodable, RlpEncodable};
use redb::{
    Database, DatabaseError, Durability, ReadOnlyTable, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition,
};
use revm::state::AccountInfo;
use std::{
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Version of the layout above.
const FORMAT: u32 = 1;
/// Page cache of redb; its default of 1 GiB is for servers that do nothing else.
const CACHE_BYTES: usize = 32 << 20;
/// A file up to this size is read and its checksums are verified when it is opened (about a second a gigabyte).
const CHECKED_BYTES_MAX: u64 = 1 << 30;
/// Header and one page; redb takes an empty file for a new one.
const REDB_FILE_BYTES_MIN: u64 = 2 * 4096;
/// Gas limit of every block.
pub(super) const BLOCK_GAS_LIMIT: u64 = 60_000_000;

type Accounts = TableDefinition<'static, &'static [u8; 20], &'static [u8; 72]>;
type Slots = TableDefinition<'static, &'static [u8; 52], &'static [u8; 32]>;
type Hashes<V> = TableDefinition<'static, &'static [u8; 32], V>;

const META: TableDefinition<'static, &'static str, u64> = TableDefinition::new("meta");
const ACCOUNTS: Accounts = TableDefinition::new("accounts");
const SLOTS: Slots = TableDefinition::new("slots");
const CODE: Hashes<&'static [u8]> = TableDefinition::new("code");
const BLOCKS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("blocks");
const BLOCK_BY_HASH: Hashes<u64> = TableDefinition::new("block_by_hash");
const TRANSACTIONS: TableDefinition<'static, (u64, u32), &'static [u8]> = TableDefinition::new("transactions");
const TRANSACTION_BY_HASH: Hashes<(u64, u32)> = TableDefinition::new("transaction_by_hash");

/// A header and its hash.
#[derive(Clone, Debug)]
pub(super) struct StoredBlock {
    pub hash: B256,
    pub header: Header,
}

impl StoredBlock {
    pub fn new(header: Header) -> Self {
        Self { hash: header.hash_slow(), header }
    }
}

/// A transaction with what its execution gave.
#[derive(Clone, Debug, RlpEncodable, RlpDecodable)]
pub(super) struct StoredTransaction {
    pub hash: B256,
    pub sender: Address,
    /// EIP-2718 bytes as they were sent.
    pub raw: Bytes,
    /// EIP-2718 bytes of the receipt.
    pub receipt: Bytes,
    pub gas_used: u64,
}

pub(super) struct Store {
    db: Database,
}

impl Store {
    pub fn open(dir: &Path, genesis: &Genesis, now: u64) -> Result<Self, EmbeddedError> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| EmbeddedError::Io { path, source }
        };
        std::fs::create_dir_all(dir).map_err(io(dir))?;
        let path = dir.join("chain.redb");
        if !path.try_exists().map_err(io(&path))? {
            create(dir, &path, genesis, now)?;
        }
        // redb asserts what it reads, so damage that it does not expect is a panic here and not an error.
        let checked = catch_unwind(AssertUnwindSafe(|| probe(&path, genesis.chain_id)));
        checked.unwrap_or_else(|_| {
            Err(EmbeddedError::Damaged { path: path.clone(), detail: "it cannot be read".into() })
        })?;
        Ok(Self { db: builder().open(&path).map_err(|error| database_error(&path, error))? })
    }

    /// A consistent view of the last sealed block.
    pub fn snapshot(&self) -> Result<Snapshot, StateError> {
        let read = self.db.begin_read().map_err(storage)?;
        Ok(Snapshot {
            accounts: read.open_table(ACCOUNTS).map_err(storage)?,
            slots: read.open_table(SLOTS).map_err(storage)?,
            code: read.open_table(CODE).map_err(storage)?,
            blocks: read.open_table(BLOCKS).map_err(storage)?,
            block_by_hash: read.open_table(BLOCK_BY_HASH).map_err(storage)?,
            transactions: read.open_table(TRANSACTIONS).map_err(storage)?,
            transaction_by_hash: read.open_table(TRANSACTION_BY_HASH).map_err(storage)?,
        })
    }

    /// Makes a block durable: state, header and transactions in one commit with one fsync.
    pub fn append(
        &self,
        block: &StoredBlock,
        transactions: &[StoredTransaction],
        changes: &Changes,
    ) -> Result<(), StateError> {
        append(&self.db, block, transactions, changes)
    }

    /// Refuses what this version cannot continue, before anything is written.
    fn check(&self, path: &Path, chain_id: u64) -> Result<(), EmbeddedError> {
        let damaged = |detail: String| EmbeddedError::Damaged { path: path.to_path_buf(), detail };
        let read = self.db.begin_read().map_err(|error| damaged(error.to_string()))?;
        let meta = read.open_table(META).map_err(|error| damaged(error.to_string()))?;
        let number = |name: &str| -> Result<u64, EmbeddedError> {
            let value = meta.get(name).map_err(|error| damaged(error.to_string()))?;
            Ok(value.ok_or_else(|| damaged(format!("no {name}")))?.value())
        };
        let found = u32::try_from(number("format")?).unwrap_or(u32::MAX);
        if found != FORMAT {
            return Err(EmbeddedError::OtherFormat { path: path.to_path_buf(), found, expected: FORMAT });
        }
        let found = number("chain_id")?;
        if found != chain_id {
            return Err(EmbeddedError::OtherChain { path: path.to_path_buf(), found, expected: chain_id });
        }
        let snapshot = self.snapshot().map_err(|error| damaged(error.to_string()))?;
        snapshot.check_head().map_err(|error| damaged(error.to_string()))
    }
}

/// Writes a complete first block beside the final name and renames it: a kill leaves either nothing or a chain.
fn create(dir: &Path, path: &Path, genesis: &Genesis, now: u64) -> Result<(), EmbeddedError> {
    let draft = dir.join("chain.redb.new");
    let io = |source| EmbeddedError::Io { path: draft.clone(), source };
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let db = builder().create(&draft).map_err(|error| database_error(&draft, error))?;
    let write = db.begin_write().map_err(storage)?;
    {
        let mut meta = write.open_table(META).map_err(storage)?;
        meta.insert("format", u64::from(FORMAT)).map_err(storage)?;
        meta.insert("chain_id", genesis.chain_id).map_err(storage)?;
    }
    write.commit().map_err(storage)?;
    append(&db, &first_block(genesis, now), &[], &first_state(genesis))?;
    drop(db);
    std::fs::File::open(&draft).and_then(|file| file.sync_all()).map_err(io)?;
    std::fs::rename(&draft, path).map_err(io)?;
    std::fs::File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|source| EmbeddedError::Io { path: dir.to_path_buf(), source })
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Whether the file can be continued, without writing to it.
fn probe(path: &Path, chain_id: u64) -> Result<(), EmbeddedError> {
    let io = |source| EmbeddedError::Io { path: path.to_path_buf(), source };
    let view = CopyOnWrite::open(path).map_err(io)?;
    let len = view.len().map_err(io)?;
    let damaged = |detail: String| EmbeddedError::Damaged { path: path.to_path_buf(), detail };
    if len < REDB_FILE_BYTES_MIN {
        return Err(damaged(format!("it has only {len} bytes")));
    }
    let mut db = builder().create_with_backend(view).map_err(|error| database_error(path, error))?;
    if len <= CHECKED_BYTES_MAX && !db.check_integrity().map_err(|error| database_error(path, error))? {
        return Err(damaged("its checksums are wrong".into()));
    }
    Store { db }.check(path, chain_id)
}

fn database_error(path: &Path, error: DatabaseError) -> EmbeddedError {
    let path = PathBuf::from(path);
    match error {
        DatabaseError::DatabaseAlreadyOpen => EmbeddedError::InUse { path },
        DatabaseError::Storage(StorageError::Io(source))
            if !matches!(
                source.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput
            ) =>
        {
            EmbeddedError::Io { path, source }
        }
        other => EmbeddedError::Damaged { path, detail: other.to_string() },
    }
}

fn append(
    db: &Database,
    block: &StoredBlock,
    transactions: &[StoredTransaction],
    changes: &Changes,
) -> Result<(), StateError> {
    let mut write = db.begin_write().map_err(storage)?;
    write.set_durability(Durability::Immediate).map_err(storage)?;
    {
        let mut table = write.open_table(ACCOUNTS).map_err(storage)?;
        for (address, account) in &changes.accounts {
            match account {
                Some(account) => table.insert(&address.0.0, &encode_account(account)).map_err(storage)?,
                None => table.remove(&address.0.0).map_err(storage)?,
            };
        }
        let mut table = write.open_table(SLOTS).map_err(storage)?;
        for ((address, slot), value) in &changes.slots {
            let key = slot_key(*address, *slot);
            if value.is_zero() {
                table.remove(&key).map_err(storage)?;
            } else {
                table.insert(&key, &value.to_be_bytes::<32>()).map_err(storage)?;
            }
        }
        let mut table = write.open_table(CODE).map_err(storage)?;
        for (hash, code) in &changes.code {
            table.insert(&hash.0, code.as_ref()).map_err(storage)?;
        }
        let number = block.header.number;
        let mut bytes = block.hash.to_vec();
        block.header.encode(&mut bytes);
        write.open_table(BLOCKS).map_err(storage)?.insert(number, bytes.as_slice()).map_err(storage)?;
        write.open_table(BLOCK_BY_HASH).map_err(storage)?.insert(&block.hash.0, number).map_err(storage)?;
        let mut by_number = write.open_table(TRANSACTIONS).map_err(storage)?;
        let mut by_hash = write.open_table(TRANSACTION_BY_HASH).map_err(storage)?;
        for (index, transaction) in (0u32..).zip(transactions) {
            by_number.insert((number, index), alloy_rlp::encode(transaction).as_slice()).map_err(storage)?;
            by_hash.insert(&transaction.hash.0, (number, index)).map_err(storage)?;
        }
    }
    write.commit().map_err(storage)
}

/// One state of the chain; cheap to take, valid while newer blocks are sealed.
pub(super) struct Snapshot {
    accounts: ReadOnlyTable<&'static [u8; 20], &'static [u8; 72]>,
    slots: ReadOnlyTable<&'static [u8; 52], &'static [u8; 32]>,
    code: ReadOnlyTable<&'static [u8; 32], &'static [u8]>,
    blocks: ReadOnlyTable<u64, &'static [u8]>,
    block_by_hash: ReadOnlyTable<&'static [u8; 32], u64>,
    transactions: ReadOnlyTable<(u64, u32), &'static [u8]>,
    transaction_by_hash: ReadOnlyTable<&'static [u8; 32], (u64, u32)>,
}

impl Snapshot {
    pub fn account(&self, address: Address) -> Result<Option<AccountInfo>, StateError> {
        let value = self.accounts.get(&address.0.0).map_err(storage)?;
        Ok(value.map(|value| decode_account(value.value())))
    }

    pub fn slot(&self, address: Address, slot: U256) -> Result<U256, StateError> {
        let value = self.slots.get(&slot_key(address, slot)).map_err(storage)?;
        Ok(value.map_or(U256::ZERO, |value| U256::from_be_bytes(*value.value())))
    }

    pub fn code(&self, hash: B256) -> Result<Bytes, StateError> {
        if hash == KECCAK256_EMPTY {
            return Ok(Bytes::new());
        }
        let value = self.code.get(&hash.0).map_err(storage)?;
        value
            .map(|value| Bytes::copy_from_slice(value.value()))
            .ok_or_else(|| StateError(format!("code {hash} is missing")))
    }

    pub fn head(&self) -> Result<StoredBlock, StateError> {
        let (number, value) =
            self.blocks.last().map_err(storage)?.ok_or_else(|| StateError("there is no block".into()))?;
        decode_block(number.value(), value.value())
    }

    pub fn block(&self, number: u64) -> Result<Option<StoredBlock>, StateError> {
        let value = self.blocks.get(number).map_err(storage)?;
        value.map(|value| decode_block(number, value.value())).transpose()
    }

    pub fn block_number(&self, hash: B256) -> Result<Option<u64>, StateError> {
        Ok(self.block_by_hash.get(&hash.0).map_err(storage)?.map(|value| value.value()))
    }

    /// All transactions of a block, in order.
    pub fn transactions(&self, number: u64) -> Result<Vec<StoredTransaction>, StateError> {
        let mut found = Vec::new();
        for entry in self.transactions.range((number, 0)..=(number, u32::MAX)).map_err(storage)? {
            let (_, value) = entry.map_err(storage)?;
            found.push(decode_transaction(value.value())?);
        }
        Ok(found)
    }

    /// Block number and index of a transaction.
    pub fn find_transaction(&self, hash: B256) -> Result<Option<(u64, u32)>, StateError> {
        Ok(self.transaction_by_hash.get(&hash.0).map_err(storage)?.map(|value| value.value()))
    }

    /// The last two headers hash to what is stored and are linked; everything older was checked when it was last.
    fn check_head(&self) -> Result<(), StateError> {
        let head = self.head()?;
        let number = head.header.number;
        if head.header.hash_slow() != head.hash {
            return Err(StateError(format!("block {number} does not have its hash")));
        }
        if let Some(before) = number.checked_sub(1) {
            let parent = self.block(before)?.ok_or_else(|| StateError(format!("block {before} is missing")))?;
            if parent.hash != head.header.parent_hash || parent.header.hash_slow() != parent.hash {
                return Err(StateError(format!("block {number} does not follow block {before}")));
            }
        }
        Ok(())
    }
}

fn first_block(genesis: &Genesis, now: u64) -> StoredBlock {
    // The state root is absent, so the accounts are bound into the hash here.
    let mut accounts = Vec::new();
    for account in &genesis.accounts {
        accounts.extend_from_slice(account.address.as_slice());
        accounts.extend_from_slice(&account.balance.to_be_bytes::<32>());
        accounts.extend_from_slice(keccak256(&account.code).as_slice());
    }
    StoredBlock::new(Header {
        timestamp: now,
        extra_data: Bytes::copy_from_slice(keccak256(accounts).as_slice()),
        ..empty_header()
    })
}

fn first_state(genesis: &Genesis) -> Changes {
    let mut changes = Changes::default();
    for account in &genesis.accounts {
        let code_hash = keccak256(&account.code);
        // EIP-161: a contract starts at nonce one.
        let nonce = u64::from(!account.code.is_empty());
        let info = AccountInfo { balance: account.balance, nonce, code_hash, ..AccountInfo::default() };
        changes.accounts.push((account.address, Some(info)));
        if !account.code.is_empty() {
            changes.code.push((code_hash, account.code.clone()));
        }
    }
    changes
}

/// A header of the Prague kind with nothing in it.
pub(super) fn empty_header() -> Header {
    Header {
        ommers_hash: EMPTY_OMMER_ROOT_HASH,
        state_root: B256::ZERO,
        transactions_root: EMPTY_ROOT_HASH,
        receipts_root: EMPTY_ROOT_HASH,
        gas_limit: BLOCK_GAS_LIMIT,
        base_fee_per_gas: Some(0),
        withdrawals_root: Some(EMPTY_ROOT_HASH),
        blob_gas_used: Some(0),
        excess_blob_gas: Some(0),
        parent_beacon_block_root: Some(B256::ZERO),
        requests_hash: Some(alloy_eips::eip7685::EMPTY_REQUESTS_HASH),
        ..Header::default()
    }
}

fn slot_key(address: Address, slot: U256) -> [u8; 52] {
    let mut key = [0; 52];
    key[..20].copy_from_slice(address.as_slice());
    key[20..].copy_from_slice(&slot.to_be_bytes::<32>());
    key
}

fn encode_account(account: &AccountInfo) -> [u8; 72] {
    let mut bytes = [0; 72];
    bytes[..8].copy_from_slice(&account.nonce.to_be_bytes());
    bytes[8..40].copy_from_slice(&account.balance.to_be_bytes::<32>());
    bytes[40..].copy_from_slice(account.code_hash.as_slice());
    bytes
}

fn decode_account(bytes: &[u8; 72]) -> AccountInfo {
    let mut nonce = [0; 8];
    nonce.copy_from_slice(&bytes[..8]);
    AccountInfo {
        nonce: u64::from_be_bytes(nonce),
        balance: U256::from_be_slice(&bytes[8..40]),
        code_hash: B256::from_slice(&bytes[40..]),
        // The default says "known to be empty"; this says "load it by its hash".
        code: None,
        ..AccountInfo::default()
    }
}

fn decode_block(number: u64, bytes: &[u8]) -> Result<StoredBlock, StateError> {
    let broken = |why: String| StateError(format!("block {number} cannot be read: {why}"));
    let (hash, mut header) = bytes.split_at_checked(32).ok_or_else(|| broken("too short".into()))?;
    let header = Header::decode(&mut header).map_err(|error| broken(error.to_string()))?;
    Ok(StoredBlock { hash: B256::from_slice(hash), header })
}

fn decode_transaction(mut bytes: &[u8]) -> Result<StoredTransaction, StateError> {
    StoredTransaction::decode(&mut bytes).map_err(|error| StateError(format!("a transaction cannot be read: {error}")))
}

fn storage(error: impl std::fmt::Display) -> StateError {
    StateError(error.to_string())
}
