//! What survives a crash: the highest voucher of each channel, what was charged on it, and every receipt that was sent.
//!
//! One SQLite file in WAL mode with `synchronous=FULL`. One task writes; it commits whatever waits in one transaction,
//! in the order in which it was queued, and answers after the commit. So what is durable is always a prefix of what
//! was signed, and a channel's total is the sum of its receipts at any moment of a crash.

pub(crate) mod read;
mod rows;
mod transcripts;
mod writer;

pub(crate) use rows::{ChannelRow, ReceiptRow};
pub(crate) use transcripts::Spoken;
pub use transcripts::Transcript;
pub(crate) use writer::Write;

use assay_net::Done;
use assay_types::{Address, Amount, ChannelId, ProviderId, RequestHash};
use sqlx::{
    ConnectOptions, Row, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

/// Marks the file as a provider's: "asPR".
const APPLICATION_ID: i64 = 0x6173_5052;
/// Version of [`SCHEMA`] with [`transcripts::TABLES`]; version 1 had no transcripts.
const SCHEMA_VERSION: i64 = 2;
/// Writes that may wait for the writer.
const QUEUE_MAX: usize = 1024;
/// Files up to this size are checked page by page when they are opened.
const QUICK_CHECK_BYTES_MAX: u64 = 64 << 20;
/// Before it, resetting the WAL could corrupt a database under load.
const SQLITE_VERSION_MIN: (u64, u64, u64) = (3, 51, 3);

/// Amounts are 16 bytes big-endian: as blobs they compare like the numbers.
const SCHEMA: &str = "
CREATE TABLE identity (
    chain_id   INTEGER NOT NULL,
    provider   BLOB    NOT NULL,
    registry   BLOB    NOT NULL,
    settlement BLOB    NOT NULL
) STRICT;
CREATE TABLE channels (
    channel_id          BLOB    PRIMARY KEY,
    payer               BLOB    NOT NULL,
    payer_authorizer    BLOB    NOT NULL,
    receiver            BLOB    NOT NULL,
    receiver_authorizer BLOB    NOT NULL,
    token               BLOB    NOT NULL,
    withdraw_delay      INTEGER NOT NULL,
    salt                BLOB    NOT NULL,
    ceiling             BLOB    NOT NULL,
    voucher_signature   BLOB    NOT NULL,
    charged_total       BLOB    NOT NULL,
    claimed             BLOB    NOT NULL,
    latest_request      BLOB    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE receipts (
    request_hash  BLOB    PRIMARY KEY,
    channel_id    BLOB    NOT NULL,
    response_hash BLOB    NOT NULL,
    model_id      BLOB    NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    output_tokens INTEGER NOT NULL,
    charged       BLOB    NOT NULL,
    charged_total BLOB    NOT NULL,
    issued_at     INTEGER NOT NULL,
    signature     BLOB    NOT NULL,
    finish        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// Why nothing was stored or found.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or created.
    #[error("cannot open the provider's database {path}: {reason}; check the directory and its permissions")]
    Open {
        /// Where.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The file is damaged, or not this provider's. It was left as it is.
    #[error(
        "the provider's database {path} is unusable ({reason}); it was not changed: restore a copy or move it away"
    )]
    Unusable {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A read or a write failed.
    #[error("the provider's database failed: {0}")]
    Failed(String),
    /// A row does not hold what this program writes.
    #[error("the provider's database holds a bad {0}")]
    BadRow(&'static str),
    /// A receipt for a request that ended in an earlier run, or shorter than the stored one.
    #[error("request {0} has a receipt that this one can not follow")]
    Superseded(RequestHash),
    /// The store was closed.
    #[error("the provider's database is closed")]
    Closed,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Whose database it is. One key on one chain: vouchers and receipts of another would be worth nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Identity {
    pub chain_id: u64,
    pub provider: ProviderId,
    pub registry: Address,
    pub settlement: Address,
}

/// The provider's database.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    reads: SqlitePool,
    writes: mpsc::Sender<Write>,
}

impl Store {
    /// Opens `path`, creates it if it does not exist, and starts the writer, which ends when the last [`Store`] is
    /// dropped.
    pub(crate) async fn open(path: &Path, identity: &Identity) -> Result<(Self, JoinHandle<()>), StoreError> {
        let open_error = |e: sqlx::Error| StoreError::Open { path: path.into(), reason: e.to_string() };
        check_header(path)?;
        let plain = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .synchronous(SqliteSynchronous::Full)
            .pragma("temp_store", "memory")
            .disable_statement_logging()
            .busy_timeout(Duration::from_secs(5));
        // Setting the journal mode changes the file, so it is looked at without.
        let first = connect(plain.clone(), 1).await;
        let first = first.map_err(|e| if is_damage(&e) { unusable(path, &e.to_string()) } else { open_error(e) })?;
        let prepared = prepare(&first, path, identity).await;
        first.close().await;
        prepared?;
        let options = plain.journal_mode(SqliteJournalMode::Wal);
        let writer = connect(options.clone(), 1).await.map_err(open_error)?;
        let reads = connect(options, 2).await.map_err(open_error)?;
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(writer::run(writer, reads.clone(), queue));
        Ok((Self { reads, writes }, task))
    }

    /// A place in the writer's queue; waits while it is full.
    pub(crate) async fn reserve(&self) -> Result<mpsc::Permit<'_, Write>, StoreError> {
        self.writes.reserve().await.map_err(|_| StoreError::Closed)
    }

    /// Notes what the chain says is claimed: more than before, or less after a reorganization.
    pub(crate) async fn mark_claimed(&self, channel_id: ChannelId, claimed: Amount) -> Result<(), StoreError> {
        let (done, committed) = oneshot::channel();
        self.reserve().await?.send(Write::Claimed { channel_id, claimed, done });
        committed.await.map_err(|_| StoreError::Closed)?
    }

    /// All channels.
    pub(crate) async fn channels(&self) -> Result<Vec<ChannelRow>, StoreError> {
        let rows = sqlx::query("SELECT * FROM channels").fetch_all(&self.reads).await?;
        rows.iter().map(ChannelRow::read).collect()
    }

    /// The latest receipt of a request.
    pub(crate) async fn receipt(&self, request: RequestHash) -> Result<Option<Done>, StoreError> {
        let query = sqlx::query("SELECT * FROM receipts WHERE request_hash = ?").bind(request.0.as_slice());
        let row = query.fetch_optional(&self.reads).await?;
        Ok(row.as_ref().map(ReceiptRow::read).transpose()?.map(|row| row.done))
    }

    /// The receipt that has a channel's total.
    pub(crate) async fn latest(&self, channel_id: ChannelId) -> Result<Option<Done>, StoreError> {
        let query = sqlx::query(
            "SELECT r.* FROM receipts r JOIN channels c ON c.latest_request = r.request_hash WHERE c.channel_id = ?",
        );
        let row = query.bind(channel_id.0.as_slice()).fetch_optional(&self.reads).await?;
        Ok(row.as_ref().map(ReceiptRow::read).transpose()?.map(|row| row.done))
    }

    /// How many requests were receipted, and the sum of all channels' totals.
    pub(crate) async fn sums(&self) -> Result<(u64, Amount), StoreError> {
        let row = sqlx::query("SELECT count(*) FROM receipts").fetch_one(&self.reads).await?;
        let receipts = row.try_get::<i64, _>(0)?.cast_unsigned();
        let channels = self.channels().await?;
        Ok((receipts, channels.iter().fold(Amount::ZERO, |sum, row| sum.saturating_add(row.charged_total))))
    }
}

async fn connect(options: SqliteConnectOptions, connections: u32) -> Result<SqlitePool, sqlx::Error> {
    SqlitePoolOptions::new().max_connections(connections).test_before_acquire(false).connect_with(options).await
}

fn unusable(path: &Path, reason: &str) -> StoreError {
    StoreError::Unusable { path: path.into(), reason: reason.into() }
}

/// SQLite's words for a file that is not, or no longer, a database.
fn is_damage(error: &sqlx::Error) -> bool {
    let text = error.to_string();
    ["not a database", "malformed", "disk image"].iter().any(|words| text.contains(words))
}

/// A file that exists and is not empty begins with SQLite's magic.
fn check_header(path: &Path) -> Result<(), StoreError> {
    // Missing: it will be created. Anything else is SQLite's to report.
    let Ok(mut file) = std::fs::File::open(path) else { return Ok(()) };
    let mut magic = [0; 16];
    match file.read_exact(&mut magic) {
        Ok(()) if &magic == b"SQLite format 3\0" => Ok(()),
        Ok(()) => Err(unusable(path, "not an SQLite file")),
        Err(_) if file.metadata().is_ok_and(|m| m.len() == 0) => Ok(()),
        Err(_) => Err(unusable(path, "too short")),
    }
}

async fn prepare(pool: &SqlitePool, path: &Path, identity: &Identity) -> Result<(), StoreError> {
    let number = async |query: &'static str| -> Result<i64, StoreError> {
        let row = sqlx::query(query).fetch_one(pool).await.map_err(|e| unusable(path, &e.to_string()))?;
        row.try_get(0).map_err(|e| unusable(path, &e.to_string()))
    };
    check_version(pool).await?;
    let tables = number("SELECT count(*) FROM sqlite_schema").await?;
    let application_id = number("PRAGMA application_id").await?;
    if tables == 0 && application_id == 0 {
        return create(pool, identity).await;
    }
    if application_id != APPLICATION_ID {
        return Err(unusable(path, "another program's database"));
    }
    let version = number("PRAGMA user_version").await?;
    if version != 1 && version != SCHEMA_VERSION {
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
    let found = rows::read_identity(pool).await?;
    if found != *identity {
        let reason = format!("it belongs to provider {} on chain {}", found.provider, found.chain_id);
        return Err(unusable(path, &reason));
    }
    if version == 1 {
        upgrade_1(pool).await?;
    }
    Ok(())
}

async fn check_version(pool: &SqlitePool) -> Result<(), StoreError> {
    let version: String = sqlx::query("SELECT sqlite_version()").fetch_one(pool).await?.try_get(0)?;
    let mut parts = version.split('.').map(|part| part.parse::<u64>().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    let found = (part(), part(), part());
    if found < SQLITE_VERSION_MIN {
        return Err(StoreError::Failed(format!("SQLite {version} can corrupt a database; 3.51.3 is the least")));
    }
    Ok(())
}

async fn upgrade_1(pool: &SqlitePool) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await?;
    let connection: &mut SqliteConnection = &mut transaction;
    sqlx::raw_sql(transcripts::TABLES).execute(&mut *connection).await?;
    sqlx::raw_sql("PRAGMA user_version = 2;").execute(connection).await?;
    Ok(transaction.commit().await?)
}

async fn create(pool: &SqlitePool, identity: &Identity) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await?;
    let connection: &mut SqliteConnection = &mut transaction;
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await?;
    sqlx::raw_sql(transcripts::TABLES).execute(&mut *connection).await?;
    rows::write_identity(connection, identity).await?;
    // Pragmas take no parameters; both are constants of this file.
    let marks = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};");
    sqlx::raw_sql(sqlx::AssertSqlSafe(marks)).execute(connection).await?;
    transaction.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests;
