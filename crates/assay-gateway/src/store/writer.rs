//! The one task that writes: everything that waits goes into one transaction.

use super::audits::DEEDS_KEPT_S;
use super::{AuditRow, ChannelRow, DeedRow, NewKey, NewReceipt, RefundRow, StoreError, model_key};
use crate::account::KeyLimits;
use assay_protocol::PayerRow;
use assay_types::{Address, Amount, ChannelId, Done, Manifest};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, Connection};
use std::collections::BTreeMap;
use tokio::sync::{mpsc, oneshot};

/// Most writes in one transaction. Every size is a statement text of its own, kept prepared.
const GROUP_MAX: usize = 64;

/// A write and who waits for it.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) kind: WriteKind,
    pub(super) done: oneshot::Sender<Result<(), StoreError>>,
}

#[derive(Debug)]
pub(super) enum WriteKind {
    InsertKey {
        key: Box<NewKey>,
    },
    ChangeKey {
        key_id: i64,
        limits: KeyLimits,
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
    PutAudit {
        row: AuditRow,
    },
    EndAudit {
        row: AuditRow,
        record: String,
        auditor: Address,
        account: String,
    },
    PutDeed {
        row: DeedRow,
    },
    PutRefund {
        row: RefundRow,
    },
    /// Nothing more is written after the group that this is in.
    Close,
}

/// Runs until [`WriteKind::Close`] or until every sender is gone.
pub(super) async fn run(mut connection: SqliteConnection, mut queue: mpsc::Receiver<Write>) {
    let mut group = Vec::with_capacity(GROUP_MAX);
    while queue.recv_many(&mut group, GROUP_MAX).await > 0 {
        let is_last = group.iter().any(|write| matches!(write.kind, WriteKind::Close));
        let whole = commit(&mut connection, &group).await;
        for write in group.drain(..) {
            let result = match &whole {
                Ok(()) => Ok(()),
                // One bad write must not take the others of its group with it: each is tried alone.
                Err(_) => commit(&mut connection, std::slice::from_ref(&write)).await,
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
    if let Err(error) = connection.close().await {
        tracing::error!(%error, "the database was not closed cleanly");
    }
}

/// One transaction, sent to SQLite's thread as one text: each hand-over costs more than the statements in it.
async fn commit(connection: &mut SqliteConnection, group: &[Write]) -> Result<(), StoreError> {
    let mut batch = Batch::default();
    for write in group {
        batch.add(&write.kind)?;
    }
    let (sql, arguments) = batch.finish()?;
    // The text has no values in it, only how many there are.
    let result = sqlx::query_with(AssertSqlSafe(sql), arguments).execute(&mut *connection).await;
    if let Err(error) = result {
        // Fails if the transaction did not begin or ended by itself; then there is nothing to undo.
        let _ = sqlx::query("ROLLBACK").execute(connection).await;
        return Err(error.into());
    }
    Ok(())
}

/// A transaction in the making.
#[derive(Default)]
struct Batch<'a> {
    /// Statements of single writes.
    sql: String,
    arguments: SqliteArguments,
    receipts: Vec<&'a NewReceipt>,
    /// One row for each channel: its books only rise.
    channels: BTreeMap<ChannelId, ChannelRow>,
    /// What each key has spent: it only rises.
    spent: BTreeMap<i64, Amount>,
}

impl<'a> Batch<'a> {
    fn add(&mut self, kind: &'a WriteKind) -> Result<(), StoreError> {
        match kind {
            WriteKind::InsertKey { key } => {
                self.sql += "INSERT INTO keys (name, hash, hint, created_at, requests_per_minute, tokens_per_minute, \
                             budget, expires_at, spent) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);";
                let NewKey { name, hash, hint, created_at, limits } = key.as_ref();
                self.bind(name.clone())?;
                self.bind(hash.to_vec())?;
                self.bind(hint.clone())?;
                self.bind(created_at.cast_signed())?;
                self.bind_limits(limits)?;
                self.bind(bytes(Amount::ZERO))
            }
            WriteKind::ChangeKey { key_id, limits } => {
                self.sql += "UPDATE keys SET requests_per_minute = ?, tokens_per_minute = ?, budget = ?, expires_at = ? \
                             WHERE key_id = ?;";
                self.bind_limits(limits)?;
                self.bind(*key_id)
            }
            WriteKind::RevokeKey { key_id, now } => {
                self.sql += "UPDATE keys SET revoked_at = ? WHERE key_id = ? AND revoked_at IS NULL;";
                self.bind(now.cast_signed())?;
                self.bind(*key_id)
            }
            WriteKind::PutManifest { manifest } => {
                self.sql += "INSERT OR REPLACE INTO manifests (model_id, manifest) VALUES (?, ?);";
                self.bind(model_key(manifest.model_id()))?;
                self.bind(json(manifest, "manifest")?)
            }
            WriteKind::PutChannel { row } => {
                self.raise(row);
                Ok(())
            }
            WriteKind::PutReceipt { receipt } => {
                self.receipts.push(receipt);
                receipt.channels.iter().for_each(|row| self.raise(row));
                let spent = self.spent.entry(receipt.key_id).or_default();
                *spent = (*spent).max(receipt.spent);
                Ok(())
            }
            WriteKind::PutAudit { row } => self.audit(row, None),
            WriteKind::EndAudit { row, record, auditor, account } => {
                self.audit(row, Some(record))?;
                self.sql += "INSERT OR REPLACE INTO auditors (auditor, account) VALUES (?, ?);";
                self.bind(auditor.to_vec())?;
                self.bind(account.clone())
            }
            WriteKind::PutDeed { row } => {
                let at = row.noted.event.at;
                self.sql += "DELETE FROM deeds WHERE at < ? AND deed NOT LIKE '%onvicted%';";
                self.bind(at.saturating_sub(DEEDS_KEPT_S).cast_signed())?;
                self.sql += "INSERT INTO deeds (at, provider, deed, receipt_id) VALUES (?, ?, ?, ?);";
                self.bind(at.cast_signed())?;
                self.bind(row.noted.provider.0.to_vec())?;
                self.bind(row.text()?)?;
                self.bind(row.noted.receipt.map(|receipt| receipt.0.to_vec()))
            }
            WriteKind::PutRefund { row } => {
                self.sql += "INSERT INTO refunds (provider, request_hash, receipt_id, key_id, charged, noted_at, paid) \
                             VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET paid = coalesce(paid, excluded.paid);";
                self.bind(row.provider.0.to_vec())?;
                self.bind(row.request.0.to_vec())?;
                self.bind(row.receipt.0.to_vec())?;
                self.bind(row.key_id)?;
                self.bind(bytes(row.charged))?;
                self.bind(row.noted_at.cast_signed())?;
                self.bind(row.paid.map(bytes))
            }
            WriteKind::Close => Ok(()),
        }
    }

    fn bind_limits(&mut self, limits: &KeyLimits) -> Result<(), StoreError> {
        self.bind(limits.requests_per_minute.map(i64::from))?;
        self.bind(limits.tokens_per_minute.map(i64::from))?;
        self.bind(limits.budget.map(bytes))?;
        self.bind(limits.expires_at.map(u64::cast_signed))
    }

    fn audit(&mut self, row: &AuditRow, record: Option<&String>) -> Result<(), StoreError> {
        self.sql += "INSERT OR REPLACE INTO audits (audit_id, receipt_id, created_at, draw, record) \
                     VALUES (?, ?, ?, ?, ?);";
        self.bind(row.audit_id.to_vec())?;
        self.bind(row.receipt_id.0.to_vec())?;
        self.bind(row.created_at.cast_signed())?;
        self.bind(json(&row.draw, "draw")?)?;
        self.bind(record.cloned())
    }

    fn raise(&mut self, row: &ChannelRow) {
        let raised = &mut self.channels.entry(row.channel_id).or_insert(*row).books;
        let total = |books: &PayerRow| books.latest.map(|done| done.receipt.receipt.charged_total);
        if total(&row.books) > total(raised) {
            raised.latest = row.books.latest;
        }
        raised.mark = raised.mark.max(row.books.mark);
        raised.charged_total = raised.charged_total.max(row.books.charged_total);
    }

    /// The whole text and what is bound to it, in the text's order.
    fn finish(mut self) -> Result<(String, SqliteArguments), StoreError> {
        let mut sql = String::from("BEGIN IMMEDIATE;");
        sql += &self.sql;
        let receipts = std::mem::take(&mut self.receipts);
        if !receipts.is_empty() {
            sql += "INSERT OR ROLLBACK INTO receipts (receipt_id, key_id, created_at, model_id, job, parts, \
                    prompt_tokens, output_tokens, charged) VALUES ";
            push_rows(&mut sql, "(?, ?, ?, ?, ?, ?, ?, ?, ?)", receipts.len());
            sql += ";";
        }
        for receipt in receipts {
            self.bind(receipt.id.0.to_vec())?;
            self.bind(receipt.key_id)?;
            self.bind(receipt.created_at.cast_signed())?;
            self.bind(model_key(receipt.job.model_id))?;
            self.bind(json(&receipt.job, "job")?)?;
            self.bind(json(&receipt.parts, "part")?)?;
            self.bind(receipt.prompt_tokens.cast_signed())?;
            self.bind(receipt.output_tokens.cast_signed())?;
            self.bind(bytes(receipt.charged))?;
        }
        let mut channels: Vec<ChannelRow> = std::mem::take(&mut self.channels).into_values().collect();
        if let Some(&last) = channels.last() {
            // Once more changes nothing, and there are fewer texts to prepare.
            channels.resize(channels.len().next_power_of_two(), last);
            sql += "INSERT INTO channels (channel_id, provider, mark, charged_total) VALUES ";
            push_rows(&mut sql, "(?, ?, ?, ?)", channels.len());
            sql += " ON CONFLICT (channel_id) DO UPDATE SET mark = max(mark, excluded.mark), \
                    charged_total = max(charged_total, excluded.charged_total);";
        }
        let mut latest: Vec<(ChannelId, Done)> =
            channels.iter().filter_map(|row| Some((row.channel_id, row.books.latest?))).collect();
        for row in channels {
            self.bind(row.channel_id.0.to_vec())?;
            self.bind(row.provider.0.to_vec())?;
            self.bind(bytes(row.books.mark))?;
            self.bind(bytes(row.books.charged_total))?;
        }
        let mut spent: Vec<(i64, Amount)> = std::mem::take(&mut self.spent).into_iter().collect();
        if let Some(&last) = spent.last() {
            spent.resize(spent.len().next_power_of_two(), last);
            sql += "UPDATE keys SET spent = max(keys.spent, new.column2) FROM (VALUES ";
            push_rows(&mut sql, "(?, ?)", spent.len());
            sql += ") AS new WHERE keys.key_id = new.column1;";
        }
        for (key_id, amount) in spent {
            self.bind(key_id)?;
            self.bind(bytes(amount))?;
        }
        if let Some(&last) = latest.last() {
            latest.resize(latest.len().next_power_of_two(), last);
            sql += "INSERT INTO latest_receipts (channel_id, total, latest) VALUES ";
            push_rows(&mut sql, "(?, ?, ?)", latest.len());
            sql += " ON CONFLICT (channel_id) DO UPDATE SET total = excluded.total, latest = excluded.latest \
                    WHERE excluded.total > total;";
        }
        for (channel_id, done) in latest {
            self.bind(channel_id.0.to_vec())?;
            self.bind(bytes(done.receipt.receipt.charged_total))?;
            self.bind(json(&done, "latest receipt")?)?;
        }
        sql += "COMMIT";
        Ok((sql, self.arguments))
    }

    fn bind<T>(&mut self, value: T) -> Result<(), StoreError>
    where
        T: for<'q> sqlx::Encode<'q, Sqlite> + sqlx::Type<Sqlite>,
    {
        self.arguments.add(value).map_err(|e| StoreError::Failed(e.to_string()))
    }
}

/// 16 bytes big-endian: as blobs they compare like the numbers.
fn bytes(amount: Amount) -> Vec<u8> {
    amount.0.to_be_bytes().to_vec()
}

fn push_rows(sql: &mut String, row: &str, count: usize) {
    for index in 0..count {
        if index > 0 {
            sql.push(',');
        }
        sql.push_str(row);
    }
}

fn json(value: &impl serde::Serialize, what: &'static str) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|_| StoreError::BadRow(what))
}
