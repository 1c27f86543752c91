//! What callers' channels owe: in memory, and on disk before anything is acknowledged.
//!
//! A file of its own, `gateway.x402.sqlite` beside the gateway's database. A channel that owes nothing need not be in
//! it: what it was charged is what the chain says was claimed.

use crate::store::StoreError;
use assay_chain::{U256, client::WithdrawalState};
use assay_types::{Amount, B256, ChannelConfig, ChannelId, Signature};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// Marks the file as this program's: "asX4".
const APPLICATION_ID: i64 = 0x6173_5834;
/// Version of the schema below.
const SCHEMA_VERSION: i64 = 1;
/// Amounts are 16 bytes, big-endian.
const SCHEMA: &str = "
CREATE TABLE accounts (
    channel_id BLOB PRIMARY KEY,
    config     TEXT NOT NULL,
    charged    BLOB NOT NULL,
    ceiling    BLOB NOT NULL,
    signature  BLOB
) STRICT, WITHOUT ROWID;
";
/// Channels in the books; of those that owe nothing, one is forgotten for each that comes above it.
const ACCOUNTS_MAX: usize = 65_536;
/// How long the chain's word on a channel is believed. A payer gets nothing out of a channel without its delay, of which
/// this is a small part.
const FRESH: Duration = Duration::from_secs(60);

/// One channel's books.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Account {
    pub(super) config: ChannelConfig,
    /// What its requests have cost.
    pub(super) charged: Amount,
    /// The highest that was taken; its ceiling covers `charged`.
    pub(super) voucher: Option<(Amount, Signature)>,
}

/// What the chain says of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OnChain {
    pub(super) balance: Amount,
    pub(super) claimed: Amount,
    pub(super) withdrawal: Option<WithdrawalState>,
    pub(super) refund_nonce: U256,
}

impl OnChain {
    /// What vouchers can count on: not on what the payer is taking back.
    pub(super) fn available(&self) -> Amount {
        self.balance.saturating_sub(self.withdrawal.map_or(Amount::ZERO, |withdrawal| withdrawal.amount))
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    account: Account,
    claimed: Amount,
    seen: Option<(Instant, OnChain)>,
}

/// All books.
#[derive(Debug)]
pub(super) struct Books {
    entries: StdMutex<HashMap<ChannelId, Entry>>,
    /// Writes take turns; `None` once it is closed.
    file: Mutex<Option<SqliteConnection>>,
}

impl Books {
    /// Opens or creates the file and reads it.
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |e: sqlx::Error| StoreError::Open { path: path.into(), reason: e.to_string() };
        let options = SqliteConnectOptions::new()
            .disable_statement_logging()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5));
        let mut file = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        prepare(&mut file, path).await?;
        let rows = sqlx::query("SELECT channel_id, config, charged, ceiling, signature FROM accounts")
            .fetch_all(&mut file)
            .await
            .map_err(failed)?;
        let mut entries = HashMap::with_capacity(rows.len());
        for row in &rows {
            let (id, account) = read(row)?;
            entries.insert(id, Entry { account, claimed: Amount::ZERO, seen: None });
        }
        Ok(Self { entries: StdMutex::new(entries), file: Mutex::new(Some(file)) })
    }

    pub(super) fn get(&self, id: ChannelId) -> Option<Account> {
        self.lock().get(&id).map(|entry| entry.account)
    }

    /// What the chain said a short while ago.
    pub(super) fn fresh(&self, id: ChannelId) -> Option<OnChain> {
        let (at, on_chain) = self.lock().get(&id)?.seen?;
        (at.elapsed() < FRESH).then_some(on_chain)
    }

    /// Whether `id` is in the books or can still come in.
    pub(super) fn check_room(&self, id: ChannelId) -> Result<(), ()> {
        let entries = self.lock();
        let has_room = entries.len() < ACCOUNTS_MAX
            || entries.contains_key(&id)
            || entries.values().any(|entry| entry.claimed >= entry.account.charged);
        if has_room { Ok(()) } else { Err(()) }
    }

    /// Channels with something to claim.
    pub(super) fn unclaimed(&self) -> Vec<(ChannelId, Account)> {
        let entries = self.lock();
        let due = entries.iter().filter(|(_, entry)| entry.account.charged > entry.claimed);
        due.map(|(id, entry)| (*id, entry.account)).collect()
    }

    /// The chain has so much; what it says next is asked anew.
    pub(super) fn on_claimed(&self, id: ChannelId, claimed: Amount) {
        if let Some(entry) = self.lock().get_mut(&id) {
            entry.claimed = entry.claimed.max(claimed);
            entry.seen = None;
        }
    }

    /// Notes an account; durable when it returns.
    pub(super) async fn put(&self, id: ChannelId, account: Account, on_chain: OnChain) -> Result<(), StoreError> {
        let mut file = self.file.lock().await;
        let file = file.as_mut().ok_or(StoreError::Closed)?;
        let forgotten = self.forget_one(id);
        let mut transaction = file.begin().await?;
        if let Some(forgotten) = forgotten {
            let delete = sqlx::query("DELETE FROM accounts WHERE channel_id = ?").bind(forgotten.0.to_vec());
            delete.execute(&mut *transaction).await?;
        }
        let config = serde_json::to_string(&account.config).map_err(|_| StoreError::BadRow("channel"))?;
        let ceiling = account.voucher.map_or(Amount::ZERO, |(ceiling, _)| ceiling);
        sqlx::query(
            "INSERT OR REPLACE INTO accounts (channel_id, config, charged, ceiling, signature) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(id.0.to_vec())
        .bind(config)
        .bind(account.charged.0.to_be_bytes().to_vec())
        .bind(ceiling.0.to_be_bytes().to_vec())
        .bind(account.voucher.map(|(_, signature)| signature.0.to_vec()))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let seen = Some((Instant::now(), on_chain));
        self.lock().insert(id, Entry { account, claimed: on_chain.claimed, seen });
        Ok(())
    }

    /// Makes room for `id` if it takes room.
    fn forget_one(&self, id: ChannelId) -> Option<ChannelId> {
        let mut entries = self.lock();
        if entries.len() < ACCOUNTS_MAX || entries.contains_key(&id) {
            return None;
        }
        let idle = entries.iter().find(|(_, entry)| entry.claimed >= entry.account.charged).map(|(id, _)| *id)?;
        entries.remove(&idle);
        Some(idle)
    }

    pub(super) async fn close(&self) {
        if let Some(file) = self.file.lock().await.take()
            && let Err(error) = file.close().await
        {
            tracing::error!(%error, "the books of paying callers were not closed cleanly");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ChannelId, Entry>> {
        // Held for single look-ups and inserts.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn prepare(file: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let unusable = |reason: String| StoreError::Unusable { path: path.into(), reason };
    let mut pragma = async |text: &'static str| -> Result<i64, StoreError> {
        let row = sqlx::query(text).fetch_one(&mut *file).await.map_err(|e| unusable(e.to_string()))?;
        row.try_get(0).map_err(|e| unusable(e.to_string()))
    };
    let tables = pragma("SELECT count(*) FROM sqlite_schema").await?;
    let application_id = pragma("PRAGMA application_id").await?;
    let version = pragma("PRAGMA user_version").await?;
    if tables == 0 && application_id == 0 {
        let marks = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};");
        // Constants of this file.
        let text = sqlx::AssertSqlSafe(format!("BEGIN; {SCHEMA} {marks} COMMIT;"));
        sqlx::raw_sql(text).execute(file).await?;
        return Ok(());
    }
    if application_id != APPLICATION_ID {
        return Err(unusable("another program's database".into()));
    }
    if version != SCHEMA_VERSION {
        return Err(unusable(format!("schema version {version}; this release reads version {SCHEMA_VERSION}")));
    }
    Ok(())
}

fn read(row: &SqliteRow) -> Result<(ChannelId, Account), StoreError> {
    let bad = StoreError::BadRow("paying caller's account");
    let amount = |name: &'static str| -> Result<Amount, StoreError> {
        let bytes: Vec<u8> = row.try_get(name)?;
        Ok(Amount(u128::from_be_bytes(bytes.try_into().map_err(|_| StoreError::BadRow("amount"))?)))
    };
    let id: Vec<u8> = row.try_get("channel_id")?;
    let id: [u8; 32] = id.try_into().map_err(|_| bad.clone())?;
    let config = serde_json::from_str(row.try_get("config")?).map_err(|_| bad.clone())?;
    let signature: Option<Vec<u8>> = row.try_get("signature")?;
    let ceiling = amount("ceiling")?;
    let voucher = match signature {
        None => None,
        Some(bytes) => Some((ceiling, Signature(bytes.try_into().map_err(|_| bad)?))),
    };
    Ok((ChannelId(B256::from(id)), Account { config, charged: amount("charged")?, voucher }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_types::Address;

    fn account(charged: u128, ceiling: u128) -> Account {
        let config = ChannelConfig {
            payer: Address::repeat_byte(1),
            payer_authorizer: Address::repeat_byte(2),
            receiver: Address::repeat_byte(3),
            receiver_authorizer: Address::repeat_byte(3),
            token: Address::repeat_byte(4),
            withdraw_delay: 900,
            salt: B256::ZERO,
        };
        Account { config, charged: Amount(charged), voucher: Some((Amount(ceiling), Signature([7; 65]))) }
    }

    fn on_chain(claimed: u128) -> OnChain {
        OnChain { balance: Amount(1000), claimed: Amount(claimed), withdrawal: None, refund_nonce: U256::ZERO }
    }

    #[tokio::test]
    async fn what_is_owed_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x402.sqlite");
        let (a, b) = (ChannelId(B256::repeat_byte(1)), ChannelId(B256::repeat_byte(2)));
        let books = Books::open(&path).await.unwrap();
        books.put(a, account(5, 9), on_chain(0)).await.unwrap();
        books.put(a, account(12, u128::MAX), on_chain(0)).await.unwrap();
        books.put(b, account(3, 3), on_chain(3)).await.unwrap();
        assert_eq!(books.unclaimed(), [(a, account(12, u128::MAX))]);
        assert_eq!(books.fresh(b), Some(on_chain(3)));
        books.close().await;
        assert!(matches!(books.put(a, account(13, 13), on_chain(0)).await, Err(StoreError::Closed)));

        let books = Books::open(&path).await.unwrap();
        assert_eq!(books.get(a), Some(account(12, u128::MAX)));
        assert_eq!(books.fresh(a), None, "the chain is asked after a start");
        assert_eq!(books.unclaimed().len(), 2, "what was claimed is for the chain to say");
        books.on_claimed(a, Amount(12));
        books.on_claimed(b, Amount(3));
        assert!(books.unclaimed().is_empty());
    }

    #[tokio::test]
    async fn another_database_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x402.sqlite");
        std::fs::write(&path, "not a database, but long enough to look at").unwrap();
        assert!(Books::open(&path).await.is_err());
        assert_eq!(std::fs::read(&path).unwrap().len(), 42);
    }
}
