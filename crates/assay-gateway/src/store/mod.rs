//! What survives a restart: keys, receipts, and how far each channel's vouchers may have gone.
//!
//! One SQLite file in WAL mode with `synchronous=FULL`. All writes go through one task that commits whatever is
//! waiting in one transaction, so a hundred answers that end together cost one disk flush; a write is acknowledged
//! after its commit. Reads use their own connections and never wait for the writer.

mod audits;
mod refunds;
mod rows;
mod writer;

pub use audits::{AuditRow, DeedRow, DrawRow};
pub use refunds::RefundRow;
pub use rows::{ChannelRow, KeyRow, NewKey, NewReceipt, PartRow, StoredReceipt, UsageRow};

use crate::account::KeyLimits;
use assay_types::{Amount, ChannelId, Manifest, ModelId, RequestHash};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use writer::{Write, WriteKind};

/// Marks the file as this program's: "asGW".
const APPLICATION_ID: i64 = 0x6173_4757;
/// Version of the schema below.
const SCHEMA_VERSION: i64 = 3;
/// Writes that may wait for the writer.
const QUEUE_MAX: usize = 1024;
/// Files up to this size are checked page by page when they are opened; larger ones as they are read.
const QUICK_CHECK_BYTES_MAX: u64 = 64 << 20;

/// Receipts stand in the order of their arrival, so that a group of them fills whole pages; only the index of their
/// hashes is written all over.
const SCHEMA: &str = "
CREATE TABLE keys (
    key_id      INTEGER PRIMARY KEY,
    name        TEXT    NOT NULL,
    hash        BLOB    NOT NULL UNIQUE,
    hint        TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    revoked_at  INTEGER,
    requests_per_minute INTEGER,
    tokens_per_minute   INTEGER,
    budget      BLOB,
    expires_at  INTEGER,
    spent       BLOB    NOT NULL DEFAULT x'00000000000000000000000000000000'
) STRICT;
CREATE TABLE channels (
    channel_id    BLOB PRIMARY KEY,
    provider      BLOB NOT NULL,
    mark          BLOB NOT NULL,
    charged_total BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE manifests (
    model_id BLOB PRIMARY KEY,
    manifest TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE receipts (
    receipt_id BLOB    PRIMARY KEY,
    key_id     INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    model_id   BLOB    NOT NULL,
    job        TEXT    NOT NULL,
    parts      TEXT    NOT NULL,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    charged    BLOB    NOT NULL DEFAULT x'00000000000000000000000000000000'
) STRICT;
";

/// From version 2, which knew no limits and did not count what an answer cost: such answers count as nothing.
const UPGRADE_2: &str = "
BEGIN IMMEDIATE;
ALTER TABLE keys ADD COLUMN requests_per_minute INTEGER;
ALTER TABLE keys ADD COLUMN tokens_per_minute INTEGER;
ALTER TABLE keys ADD COLUMN budget BLOB;
ALTER TABLE keys ADD COLUMN expires_at INTEGER;
ALTER TABLE keys ADD COLUMN spent BLOB NOT NULL DEFAULT x'00000000000000000000000000000000';
ALTER TABLE receipts ADD COLUMN prompt_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE receipts ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE receipts ADD COLUMN charged BLOB NOT NULL DEFAULT x'00000000000000000000000000000000';
PRAGMA user_version = 3;
COMMIT;
";
/// Rows of one read of the usage.
const USAGE_PAGE: i64 = 1000;
/// What came later and stands beside the rest: databases of earlier releases get it when they are opened.
const ADDITIONS: &str = "
CREATE TABLE IF NOT EXISTS latest_receipts (
    channel_id BLOB PRIMARY KEY,
    total      BLOB NOT NULL,
    latest     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
";

/// All channels, with the receipt that has the highest total.
const CHANNELS: &str = "SELECT c.channel_id, c.provider, c.mark, c.charged_total, l.latest FROM channels c \
                        LEFT JOIN latest_receipts l ON l.channel_id = c.channel_id";

/// Why nothing was stored or found.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or created.
    #[error("cannot open the gateway's database {path}: {reason}; check the directory and its permissions")]
    Open {
        /// Where.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// The file is damaged, or not this program's. It was left as it is.
    #[error("the gateway's database {path} is unusable ({reason}); it was not changed: restore a copy or move it away")]
    Unusable {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A read or a write failed.
    #[error("the gateway's database failed: {0}")]
    Failed(String),
    /// A row does not hold what this program writes.
    #[error("the gateway's database holds a bad {0}")]
    BadRow(&'static str),
    /// The store was closed.
    #[error("the gateway's database is closed")]
    Closed,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// The gateway's database.
#[derive(Clone, Debug)]
pub struct Store {
    pool: SqlitePool,
    writes: mpsc::Sender<Write>,
}

impl Store {
    /// Opens `path`, creates it if it does not exist, and starts the writer on the current tokio runtime. The
    /// returned task ends when the last [`Store`] is dropped.
    ///
    /// # Errors
    /// [`StoreError::Open`] and [`StoreError::Unusable`]; the file is not changed then.
    pub async fn open(path: &Path) -> Result<(Self, tokio::task::JoinHandle<()>), StoreError> {
        let open_error = |e: sqlx::Error| StoreError::Open { path: path.into(), reason: e.to_string() };
        check_header(path)?;
        let plain = SqliteConnectOptions::new()
            .disable_statement_logging()
            .filename(path)
            .create_if_missing(true)
            .synchronous(SqliteSynchronous::Full)
            // What a statement would need to undo itself stays out of the file system.
            .pragma("temp_store", "memory")
            .busy_timeout(Duration::from_secs(5));
        // Setting the journal mode changes the file, so it is looked at without.
        let first = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(plain.clone())
            .await
            .map_err(|e| if is_damage(&e) { unusable(path, &e.to_string()) } else { open_error(e) })?;
        let prepared = prepare(&first, path).await;
        let prepared = match prepared {
            Ok(()) => sqlx::raw_sql(AssertSqlSafe([audits::SCHEMA, refunds::SCHEMA].concat()))
                .execute(&first)
                .await
                .map(drop)
                .map_err(open_error),
            refused => refused,
        };
        first.close().await;
        prepared?;
        let options = plain.journal_mode(SqliteJournalMode::Wal);
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await
            .map_err(open_error)?;
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(open_error)?;
        sqlx::raw_sql(ADDITIONS).execute(&mut connection).await.map_err(open_error)?;
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(writer::run(connection, queue));
        Ok((Self { pool, writes }, task))
    }

    /// Notes a key.
    ///
    /// # Errors
    /// The write failed.
    pub async fn insert_key(&self, key: NewKey) -> Result<(), StoreError> {
        self.write(WriteKind::InsertKey { key: Box::new(key) }).await
    }

    /// Changes what a key may do; `false` if there is none with this number.
    ///
    /// # Errors
    /// The read or write failed.
    pub async fn change_key(&self, key_id: i64, limits: KeyLimits) -> Result<bool, StoreError> {
        let found = self.keys().await?.iter().any(|key| key.key_id == key_id);
        if found {
            self.write(WriteKind::ChangeKey { key_id, limits }).await?;
        }
        Ok(found)
    }

    /// Marks a key as revoked; `false` if there is none or it was revoked before.
    ///
    /// # Errors
    /// The read or write failed.
    pub async fn revoke_key(&self, key_id: i64, now: u64) -> Result<bool, StoreError> {
        let found = self.keys().await?.iter().any(|key| key.key_id == key_id && key.revoked_at.is_none());
        if found {
            self.write(WriteKind::RevokeKey { key_id, now }).await?;
        }
        Ok(found)
    }

    /// All keys, the oldest first.
    ///
    /// # Errors
    /// The read failed.
    pub async fn keys(&self) -> Result<Vec<KeyRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT key_id, name, hash, hint, created_at, revoked_at, requests_per_minute, tokens_per_minute, budget, \
             expires_at, spent FROM keys ORDER BY key_id",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut keys: Vec<KeyRow> = rows.iter().map(KeyRow::read).collect::<Result<_, _>>()?;
        let refunded = self.refunded().await?;
        for key in &mut keys {
            key.refunded = refunded.get(&key.key_id).copied().unwrap_or_default();
        }
        Ok(keys)
    }

    /// A page of what answers cost, in the order in which they were stored: those behind `after`, which is 0 at first
    /// and then what the last page returned. An empty page is the end.
    ///
    /// # Errors
    /// The read failed.
    pub async fn usage(&self, after: i64) -> Result<(Vec<UsageRow>, i64), StoreError> {
        let rows = sqlx::query(
            "SELECT r.rowid AS place, r.receipt_id, r.key_id, coalesce(k.name, '') AS name, r.created_at, r.model_id, \
             r.prompt_tokens, r.output_tokens, r.charged FROM receipts r LEFT JOIN keys k USING (key_id) \
             WHERE r.rowid > ? ORDER BY r.rowid LIMIT ?",
        )
        .bind(after)
        .bind(USAGE_PAGE)
        .fetch_all(&self.pool)
        .await?;
        let last = rows.last().map_or(Ok(after), |row| row.try_get("place"))?;
        Ok((rows.iter().map(UsageRow::read).collect::<Result<_, _>>()?, last))
    }

    /// Notes a model's manifest.
    ///
    /// # Errors
    /// The write failed.
    pub async fn put_manifest(&self, manifest: &Manifest) -> Result<(), StoreError> {
        self.write(WriteKind::PutManifest { manifest: manifest.clone() }).await
    }

    /// What was noted of a channel.
    ///
    /// # Errors
    /// The read failed.
    pub async fn channel(&self, channel_id: ChannelId) -> Result<Option<ChannelRow>, StoreError> {
        let row = sqlx::query(AssertSqlSafe(format!("{CHANNELS} WHERE c.channel_id = ?")))
            .bind(channel_id.0.as_slice())
            .fetch_optional(&self.pool)
            .await?;
        row.as_ref().map(ChannelRow::read).transpose()
    }

    /// All channels.
    ///
    /// # Errors
    /// The read failed.
    pub async fn channels(&self) -> Result<Vec<ChannelRow>, StoreError> {
        let rows = sqlx::query(CHANNELS).fetch_all(&self.pool).await?;
        rows.iter().map(ChannelRow::read).collect()
    }

    /// Notes how far the vouchers of a channel may go and what was charged on it. Both only ever rise: an older row
    /// that arrives late changes nothing.
    ///
    /// # Errors
    /// The write failed.
    pub async fn put_channel(&self, row: ChannelRow) -> Result<(), StoreError> {
        self.write(WriteKind::PutChannel { row }).await
    }

    /// Stores an answer's job, its parts and the charges of the channels that paid, in one transaction.
    ///
    /// # Errors
    /// The write failed; nothing of it is stored then.
    pub async fn put_receipt(&self, receipt: NewReceipt) -> Result<(), StoreError> {
        self.write(WriteKind::PutReceipt { receipt: Box::new(receipt) }).await
    }

    /// An answer's record.
    ///
    /// # Errors
    /// The read failed or the row is damaged.
    pub async fn receipt(&self, id: RequestHash) -> Result<Option<StoredReceipt>, StoreError> {
        let row = sqlx::query(
            "SELECT r.key_id, r.job, r.parts, m.manifest FROM receipts r JOIN manifests m USING (model_id) \
             WHERE r.receipt_id = ?",
        )
        .bind(id.0.as_slice())
        .fetch_optional(&self.pool)
        .await?;
        row.as_ref().map(StoredReceipt::read).transpose()
    }

    /// How many answers are stored.
    ///
    /// # Errors
    /// The read failed.
    pub async fn receipts_count(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT count(*) FROM receipts").fetch_one(&self.pool).await?;
        Ok(row.try_get::<i64, _>(0)?.cast_unsigned())
    }

    /// Sum of all charges on all channels.
    ///
    /// # Errors
    /// The read failed.
    pub async fn charged_total(&self) -> Result<Amount, StoreError> {
        let channels = self.channels().await?;
        Ok(channels.iter().fold(Amount::ZERO, |sum, row| sum.saturating_add(row.books.charged_total)))
    }

    /// Commits what waits and closes the file; later reads and writes fail.
    ///
    /// # Errors
    /// The last commit failed.
    pub async fn close(&self) -> Result<(), StoreError> {
        let closed = self.write(WriteKind::Close).await;
        self.pool.close().await;
        closed
    }

    async fn write(&self, kind: WriteKind) -> Result<(), StoreError> {
        let (done, committed) = oneshot::channel();
        self.writes.send(Write { kind, done }).await.map_err(|_| StoreError::Closed)?;
        committed.await.map_err(|_| StoreError::Closed)?
    }
}

fn unusable(path: &Path, reason: &str) -> StoreError {
    StoreError::Unusable { path: path.into(), reason: reason.into() }
}

/// SQLite's words for a file that is not, or no longer, a database.
fn is_damage(error: &sqlx::Error) -> bool {
    let text = error.to_string();
    text.contains("not a database") || text.contains("malformed") || text.contains("disk image")
}

/// A file that exists and is not empty begins with SQLite's magic.
fn check_header(path: &Path) -> Result<(), StoreError> {
    use std::io::Read;
    let mut file = match std::fs::File::open(path) {
        Ok(file) => file,
        // Missing: it will be created. Anything else is SQLite's to report.
        Err(_) => return Ok(()),
    };
    let mut magic = [0; 16];
    match file.read_exact(&mut magic) {
        Ok(()) if &magic == b"SQLite format 3\0" => Ok(()),
        Ok(()) => Err(unusable(path, "not an SQLite file")),
        Err(_) if file.metadata().is_ok_and(|m| m.len() == 0) => Ok(()),
        Err(_) => Err(unusable(path, "too short")),
    }
}

async fn prepare(pool: &SqlitePool, path: &Path) -> Result<(), StoreError> {
    let pragma = async |name: &'static str| -> Result<i64, StoreError> {
        let row = sqlx::query(name).fetch_one(pool).await.map_err(|e| unusable(path, &e.to_string()))?;
        row.try_get(0).map_err(|e| unusable(path, &e.to_string()))
    };
    let tables = pragma("SELECT count(*) FROM sqlite_schema").await?;
    let application_id = pragma("PRAGMA application_id").await?;
    if tables == 0 && application_id == 0 {
        return create(pool).await;
    }
    if application_id != APPLICATION_ID {
        return Err(unusable(path, "another program's database"));
    }
    let mut version = pragma("PRAGMA user_version").await?;
    if version == 2 {
        sqlx::raw_sql(UPGRADE_2).execute(pool).await.map_err(|e| unusable(path, &e.to_string()))?;
        version = pragma("PRAGMA user_version").await?;
    }
    if version != SCHEMA_VERSION {
        let reason = format!("schema version {version}; this release reads version {SCHEMA_VERSION}");
        return Err(unusable(path, &reason));
    }
    if std::fs::metadata(path).is_ok_and(|m| m.len() <= QUICK_CHECK_BYTES_MAX) {
        let row = sqlx::query("PRAGMA quick_check(1)").fetch_one(pool).await;
        let verdict = row.and_then(|row| row.try_get::<String, _>(0)).map_err(|e| unusable(path, &e.to_string()))?;
        if verdict != "ok" {
            return Err(unusable(path, verdict.lines().next().unwrap_or_default()));
        }
    }
    Ok(())
}

async fn create(pool: &SqlitePool) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *transaction).await?;
    // Pragmas take no parameters; both are constants of this file.
    let marks =
        AssertSqlSafe(format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"));
    sqlx::raw_sql(marks).execute(&mut *transaction).await?;
    transaction.commit().await?;
    Ok(())
}

/// Parses an id as it stands in a URL: `0x` and 64 hex digits.
#[must_use]
pub fn parse_receipt_id(text: &str) -> Option<RequestHash> {
    // `B256` accepts the digits without the prefix, too; one name for one receipt.
    text.strip_prefix("0x").filter(|digits| digits.len() == 64)?;
    RequestHash::from_str(text).ok()
}

/// The model of a stored job.
pub(crate) fn model_key(model_id: ModelId) -> Vec<u8> {
    model_id.0.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_protocol::PayerRow;
    use assay_types::{B256, Job, ProviderId, Sampling};

    fn key(n: u8) -> NewKey {
        let limits = KeyLimits { budget: Some(Amount(1 << 100)), ..Default::default() };
        NewKey { name: "k".into(), hash: [n; 32], hint: "h".into(), created_at: 0, limits }
    }

    #[tokio::test]
    async fn one_bad_write_does_not_take_its_group_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(&dir.path().join("gateway.db")).await.unwrap();
        // Polled together, so they wait together: the writer takes them as one group.
        let writes = futures_util::future::join_all([1u8, 2, 1, 3].map(|n| store.insert_key(key(n))));
        let results: Vec<bool> = writes.await.iter().map(Result::is_ok).collect();
        assert_eq!(results, [true, true, false, true]);
        assert_eq!(store.keys().await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_receipt_that_is_there_already_does_not_take_its_group_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _writer) = Store::open(&dir.path().join("gateway.db")).await.unwrap();
        let channel = |charged| ChannelRow {
            channel_id: ChannelId(B256::repeat_byte(9)),
            provider: ProviderId::default(),
            books: PayerRow { mark: Amount(9), charged_total: Amount(charged), latest: None },
        };
        let receipt = |n: u8| NewReceipt {
            id: RequestHash(B256::repeat_byte(n)),
            key_id: 1,
            created_at: 0,
            job: Job {
                model_id: ModelId::default(),
                prompt: vec![1],
                prefix: vec![],
                max_tokens: 1,
                sampling: Sampling::GREEDY,
                logit_bias: vec![],
                grammar: None,
                stop: vec![],
                ignore_eos: false,
                logprobs: None,
                embed: None,
                nonce: B256::ZERO,
            },
            parts: vec![],
            channels: vec![channel(u128::from(n))],
            prompt_tokens: 1,
            output_tokens: 2,
            charged: Amount(u128::from(n)),
            // Out of order: what arrives last is not the most.
            spent: Amount(if n == 2 { 1 << 70 } else { 7 }),
        };
        store.insert_key(key(1)).await.unwrap();
        let writes = futures_util::future::join_all([1u8, 2, 1, 3].map(|n| store.put_receipt(receipt(n))));
        let results: Vec<bool> = writes.await.iter().map(Result::is_ok).collect();
        assert_eq!(results, [true, true, false, true]);
        assert_eq!(store.receipts_count().await.unwrap(), 3);
        assert_eq!(store.channels().await.unwrap(), [channel(3)]);
        assert_eq!(store.keys().await.unwrap()[0].spent, Amount(1 << 70));
        let (usage, last) = store.usage(0).await.unwrap();
        let charged: Vec<_> = usage.iter().map(|row| (row.key_name.as_str(), row.charged.0)).collect();
        assert_eq!(charged, [("k", 1), ("k", 2), ("k", 3)]);
        assert_eq!(store.usage(last).await.unwrap(), (vec![], last));
    }

    #[tokio::test]
    async fn a_database_of_the_last_version_is_brought_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true);
        let mut old = SqliteConnection::connect_with(&options).await.unwrap();
        let made = "
            CREATE TABLE keys (key_id INTEGER PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE,
                hint TEXT NOT NULL, created_at INTEGER NOT NULL, revoked_at INTEGER) STRICT;
            CREATE TABLE channels (channel_id BLOB PRIMARY KEY, provider BLOB NOT NULL, mark BLOB NOT NULL,
                charged_total BLOB NOT NULL) STRICT, WITHOUT ROWID;
            CREATE TABLE manifests (model_id BLOB PRIMARY KEY, manifest TEXT NOT NULL) STRICT, WITHOUT ROWID;
            CREATE TABLE receipts (receipt_id BLOB PRIMARY KEY, key_id INTEGER NOT NULL, created_at INTEGER NOT NULL,
                model_id BLOB NOT NULL, job TEXT NOT NULL, parts TEXT NOT NULL) STRICT;
            INSERT INTO keys (name, hash, hint, created_at)
                VALUES ('old', x'0101010101010101010101010101010101010101010101010101010101010101', 'h', 5);
            PRAGMA application_id = 1634944855; PRAGMA user_version = 2;";
        sqlx::raw_sql(made).execute(&mut old).await.unwrap();
        old.close().await.unwrap();
        let (store, writer) = Store::open(&path).await.unwrap();
        store.insert_key(key(2)).await.unwrap();
        let keys = store.keys().await.unwrap();
        assert_eq!((keys[0].name.as_str(), keys[0].limits, keys[0].spent), ("old", KeyLimits::default(), Amount::ZERO));
        assert_eq!(keys[1].limits.budget, Some(Amount(1 << 100)));
        store.close().await.unwrap();
        writer.await.unwrap();
        Store::open(&path).await.unwrap();
    }

    #[tokio::test]
    async fn books_only_rise_and_survive_a_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.db");
        let channel_id = ChannelId(B256::repeat_byte(1));
        let row = |mark, charged| ChannelRow {
            channel_id,
            provider: ProviderId::default(),
            books: PayerRow { mark: Amount(mark), charged_total: Amount(charged), latest: None },
        };
        let (store, writer) = Store::open(&path).await.unwrap();
        // More than 64 bits, and bytes whose order as text would be another.
        for (mark, charged) in [(1 << 100, 5), (7, 1 << 90), (255, 256), (256, 255)] {
            store.put_channel(row(mark, charged)).await.unwrap();
        }
        store.close().await.unwrap();
        writer.await.unwrap();
        assert!(store.put_channel(row(1, 1)).await.is_err(), "a closed store takes nothing");
        let (store, _writer) = Store::open(&path).await.unwrap();
        assert_eq!(store.channel(channel_id).await.unwrap(), Some(row(1 << 100, 1 << 90)));
        assert_eq!(store.charged_total().await.unwrap(), Amount(1 << 90));
    }

    #[test]
    fn only_one_spelling_names_a_receipt() {
        let id = format!("0x{}", "ab".repeat(32));
        assert_eq!(parse_receipt_id(&id), Some(RequestHash(B256::repeat_byte(0xab))));
        for bad in [&id[2..], &id[..65], &format!("{id}0"), "0x", "", &id.replace('b', "g")] {
            assert_eq!(parse_receipt_id(bad), None, "{bad}");
        }
    }
}
