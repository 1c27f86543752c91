//! The one task that writes: everything that waits goes into one transaction.

use super::{ChannelRow, NewReceipt, StoreError, model_key};
use assay_types::Manifest;
use sqlx::sqlite::{SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};

/// Most writes in one transaction.
const GROUP_MAX: usize = 256;

/// A write and who waits for it.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) kind: WriteKind,
    pub(super) done: oneshot::Sender<Result<(), StoreError>>,
}

#[derive(Debug)]
pub(super) enum WriteKind {
    InsertKey {
        name: String,
        hash: [u8; 32],
        hint: String,
        now: u64,
    },
    RevokeKey {
        key_id: i64,
        now: u64,
    },
    PutManifest {
        manifest: Manifest,
    },
    PutChannel {
        row: ChannelRow,
    },
    PutReceipt {
        receipt: Box<NewReceipt>,
    },
    /// Nothing more is written after the group that this is in.
    Close,
}

/// Runs until [`WriteKind::Close`] or until every sender is gone.
pub(super) async fn run(pool: SqlitePool, mut queue: mpsc::Receiver<Write>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queue.recv_many(&mut group, GROUP_MAX).await > 0 {
        let is_last = group.iter().any(|write| matches!(write.kind, WriteKind::Close));
        let whole = commit(&pool, &group).await;
        for write in group.drain(..) {
            let result = match &whole {
                Ok(()) => Ok(()),
                // One bad write must not take the others of its group with it: each is tried alone.
                Err(_) => commit(&pool, std::slice::from_ref(&write)).await,
            };
            if let Err(error) = &result {
                tracing::error!(%error, "a write was not stored");
            }
            // Whoever waited may be gone; the write stands.
            let _ = write.done.send(result);
        }
        if is_last {
            break;
        }
    }
    pool.close().await;
}

async fn commit(pool: &SqlitePool, group: &[Write]) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await?;
    for write in group {
        apply(&mut transaction, &write.kind).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn apply(connection: &mut SqliteConnection, kind: &WriteKind) -> Result<(), StoreError> {
    match kind {
        WriteKind::InsertKey { name, hash, hint, now } => {
            sqlx::query("INSERT INTO keys (name, hash, hint, created_at) VALUES (?, ?, ?, ?)")
                .bind(name)
                .bind(hash.as_slice())
                .bind(hint)
                .bind(now.cast_signed())
                .execute(connection)
                .await?;
        }
        WriteKind::RevokeKey { key_id, now } => {
            sqlx::query("UPDATE keys SET revoked_at = ? WHERE key_id = ? AND revoked_at IS NULL")
                .bind(now.cast_signed())
                .bind(key_id)
                .execute(connection)
                .await?;
        }
        WriteKind::PutManifest { manifest } => {
            sqlx::query("INSERT OR REPLACE INTO manifests (model_id, manifest) VALUES (?, ?)")
                .bind(model_key(manifest.model_id()))
                .bind(json(manifest, "manifest")?)
                .execute(connection)
                .await?;
        }
        WriteKind::PutChannel { row } => put_channel(connection, row).await?,
        WriteKind::PutReceipt { receipt } => put_receipt(connection, receipt).await?,
        WriteKind::Close => {}
    }
    Ok(())
}

/// Amounts are 16 bytes big-endian: as blobs they compare like the numbers.
async fn put_channel(connection: &mut SqliteConnection, row: &ChannelRow) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO channels (channel_id, provider, mark, charged_total) VALUES (?, ?, ?, ?) \
         ON CONFLICT (channel_id) DO UPDATE SET mark = max(mark, excluded.mark), \
         charged_total = max(charged_total, excluded.charged_total)",
    )
    .bind(row.channel_id.0.as_slice())
    .bind(row.provider.0.as_slice())
    .bind(row.mark.0.to_be_bytes().to_vec())
    .bind(row.charged_total.0.to_be_bytes().to_vec())
    .execute(connection)
    .await?;
    Ok(())
}

async fn put_receipt(connection: &mut SqliteConnection, receipt: &NewReceipt) -> Result<(), StoreError> {
    let id = receipt.id.0.as_slice();
    sqlx::query("INSERT INTO receipts (receipt_id, key_id, created_at, model_id, job) VALUES (?, ?, ?, ?, ?)")
        .bind(id)
        .bind(receipt.key_id)
        .bind(receipt.created_at.cast_signed())
        .bind(model_key(receipt.job.model_id))
        .bind(json(&receipt.job, "job")?)
        .execute(&mut *connection)
        .await?;
    for (seq, row) in (0i64..).zip(&receipt.parts) {
        sqlx::query("INSERT INTO parts (receipt_id, seq, in_answer, part) VALUES (?, ?, ?, ?)")
            .bind(id)
            .bind(seq)
            .bind(row.in_answer)
            .bind(json(&row.part, "part")?)
            .execute(&mut *connection)
            .await?;
    }
    for row in &receipt.channels {
        put_channel(connection, row).await?;
    }
    Ok(())
}

fn json(value: &impl serde::Serialize, what: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::BadRow(what))
}
