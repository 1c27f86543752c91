//! The one task that writes.

use super::{ChannelRow, ReceiptRow, Spoken, StoreError};
use assay_types::{Amount, ChannelId};
use sqlx::{SqliteConnection, sqlite::SqlitePool};
use tokio::sync::{mpsc, oneshot};

/// Most writes in one transaction.
const GROUP_MAX: usize = 256;

/// A write and who waits for it.
#[derive(Debug)]
pub(crate) enum Write {
    /// A receipt, its channel after it and the tokens that it adds.
    Receipt { row: Box<(ReceiptRow, ChannelRow, Spoken)>, done: oneshot::Sender<Result<(), StoreError>> },
    /// A receipt that was shown and is not in the database, and its channel with at least that total.
    Restored { row: Box<(ReceiptRow, ChannelRow)>, done: oneshot::Sender<Result<(), StoreError>> },
    /// What is claimed on chain.
    Claimed { channel_id: ChannelId, claimed: Amount, done: oneshot::Sender<Result<(), StoreError>> },
}

/// Runs until every sender is gone or a write fails. After a failure nothing more is written: later receipts have
/// totals that contain the lost one, and would prove a sum that nobody can re-add.
///
/// Closes both pools when the last sender is gone: a pool that is only dropped closes the file some time later, and by
/// then somebody else may have it.
pub(super) async fn run(pool: SqlitePool, reads: SqlitePool, mut queue: mpsc::Receiver<Write>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queue.recv_many(&mut group, GROUP_MAX).await > 0 {
        let result = commit(&pool, &group).await;
        let failed = result.is_err();
        if let Err(error) = &result {
            tracing::error!(%error, "receipts can not be stored; this provider serves nothing more until it is restarted");
        }
        for write in group.drain(..) {
            let (Write::Receipt { done, .. } | Write::Restored { done, .. } | Write::Claimed { done, .. }) = write;
            // Whoever waited may be gone; the write stands.
            let _ = done.send(result.clone());
        }
        if failed {
            // What was stored can still be read.
            queue.close();
            return pool.close().await;
        }
    }
    reads.close().await;
    pool.close().await;
}

async fn commit(pool: &SqlitePool, group: &[Write]) -> Result<(), StoreError> {
    let mut transaction = pool.begin().await?;
    for write in group {
        apply(&mut transaction, write).await?;
    }
    Ok(transaction.commit().await?)
}

async fn apply(connection: &mut SqliteConnection, write: &Write) -> Result<(), StoreError> {
    match write {
        Write::Receipt { row, .. } => {
            let (receipt, channel, spoken) = &**row;
            let request = receipt.done.receipt.receipt.request_hash;
            receipt.write(connection).await?;
            spoken.write(connection, request).await?;
            channel.write(connection, request).await
        }
        Write::Restored { row, .. } => {
            let (receipt, channel) = &**row;
            receipt.restore(connection).await?;
            channel.raise(connection, receipt.done.receipt.receipt.request_hash).await
        }
        Write::Claimed { channel_id, claimed, .. } => {
            sqlx::query("UPDATE channels SET claimed = ? WHERE channel_id = ?")
                .bind(claimed.0.to_be_bytes().to_vec())
                .bind(channel_id.0.as_slice())
                .execute(connection)
                .await?;
            Ok(())
        }
    }
}
