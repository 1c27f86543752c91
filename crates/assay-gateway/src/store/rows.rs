//! Rows of the database as values.

use super::StoreError;
use crate::account::KeyLimits;
use assay_protocol::PayerRow;
use assay_types::{Amount, B256, ChannelId, Job, Manifest, ModelId, ProviderId, ReceiptPart, RequestHash};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// One API key. The key itself is not stored, only its SHA-256.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRow {
    /// Number to refer to it.
    pub key_id: i64,
    /// Given by whoever made it.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// First and last characters, to recognise it.
    pub hint: String,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Seconds since the Unix epoch; `None` while it works.
    pub revoked_at: Option<u64>,
    /// What it may do.
    pub limits: KeyLimits,
    /// Sum of what its stored answers were charged.
    pub spent: Amount,
    /// Sum of what came back for answers that were wrong.
    pub refunded: Amount,
}

/// A key to note.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewKey {
    /// Given by whoever makes it.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// First and last characters, to recognise it.
    pub hint: String,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// What it may do.
    pub limits: KeyLimits,
}

impl KeyRow {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            key_id: row.try_get("key_id")?,
            name: row.try_get("name")?,
            hash: fixed(row.try_get("hash")?, "key hash")?,
            hint: row.try_get("hint")?,
            created_at: row.try_get::<i64, _>("created_at")?.cast_unsigned(),
            revoked_at: row.try_get::<Option<i64>, _>("revoked_at")?.map(i64::cast_unsigned),
            limits: KeyLimits {
                requests_per_minute: rate(row, "requests_per_minute")?,
                tokens_per_minute: rate(row, "tokens_per_minute")?,
                budget: row.try_get::<Option<&[u8]>, _>("budget")?.map(amount).transpose()?,
                expires_at: row.try_get::<Option<i64>, _>("expires_at")?.map(i64::cast_unsigned),
            },
            spent: amount(row.try_get("spent")?)?,
            refunded: Amount::ZERO,
        })
    }
}

fn rate(row: &SqliteRow, name: &'static str) -> Result<Option<u32>, StoreError> {
    let value = row.try_get::<Option<i64>, _>(name)?;
    value.map(|value| u32::try_from(value).map_err(|_| StoreError::BadRow("rate"))).transpose()
}

pub(super) fn amount(bytes: &[u8]) -> Result<Amount, StoreError> {
    Ok(Amount(u128::from_be_bytes(fixed(bytes, "amount")?)))
}

/// One channel's books.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelRow {
    /// Which.
    pub channel_id: ChannelId,
    /// Who is paid.
    pub provider: ProviderId,
    /// What has to survive.
    pub books: PayerRow,
}

impl ChannelRow {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let latest: Option<&str> = row.try_get("latest")?;
        let latest = latest.map(serde_json::from_str).transpose().map_err(|_| StoreError::BadRow("latest receipt"))?;
        let books = PayerRow {
            mark: amount(row.try_get("mark")?)?,
            charged_total: amount(row.try_get("charged_total")?)?,
            latest,
        };
        Ok(Self {
            channel_id: ChannelId(B256::from(fixed::<32>(row.try_get("channel_id")?, "channel id")?)),
            provider: ProviderId(fixed::<20>(row.try_get("provider")?, "provider")?.into()),
            books,
        })
    }
}

/// What one provider signed for one request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartRow {
    /// The part.
    pub part: ReceiptPart,
    /// Whether its tokens are in the answer; otherwise it is kept as evidence of what was paid.
    pub in_answer: bool,
}

/// An answer to store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewReceipt {
    /// Hash of the original job.
    pub id: RequestHash,
    /// Whose key asked.
    pub key_id: i64,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// The original job.
    pub job: Job,
    /// In order.
    pub parts: Vec<PartRow>,
    /// Books of the channels that paid.
    pub channels: Vec<ChannelRow>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens that were signed for.
    pub output_tokens: u64,
    /// What the key is charged.
    pub charged: Amount,
    /// What the key has spent, this answer included; only ever rises.
    pub spent: Amount,
}

/// What one answer cost whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UsageRow {
    /// Of the answer.
    pub receipt_id: RequestHash,
    /// Whose key asked.
    pub key_id: i64,
    /// The key's name.
    pub key_name: String,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// The model.
    pub model_id: ModelId,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens that were signed for.
    pub output_tokens: u64,
    /// What the key was charged.
    pub charged: Amount,
}

impl UsageRow {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            receipt_id: RequestHash(B256::from(fixed::<32>(row.try_get("receipt_id")?, "receipt id")?)),
            key_id: row.try_get("key_id")?,
            key_name: row.try_get("name")?,
            created_at: row.try_get::<i64, _>("created_at")?.cast_unsigned(),
            model_id: ModelId(B256::from(fixed::<32>(row.try_get("model_id")?, "model id")?)),
            prompt_tokens: row.try_get::<i64, _>("prompt_tokens")?.cast_unsigned(),
            output_tokens: row.try_get::<i64, _>("output_tokens")?.cast_unsigned(),
            charged: amount(row.try_get("charged")?)?,
        })
    }
}

/// An answer as it was stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredReceipt {
    /// Whose key asked.
    pub key_id: i64,
    /// The original job.
    pub job: Job,
    /// The model.
    pub manifest: Manifest,
    /// Parts of the answer, in order.
    pub parts: Vec<ReceiptPart>,
}

impl StoredReceipt {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let parts: Vec<PartRow> =
            serde_json::from_str(row.try_get("parts")?).map_err(|_| StoreError::BadRow("part"))?;
        Ok(Self {
            key_id: row.try_get("key_id")?,
            job: serde_json::from_str(row.try_get("job")?).map_err(|_| StoreError::BadRow("job"))?,
            manifest: serde_json::from_str(row.try_get("manifest")?).map_err(|_| StoreError::BadRow("manifest"))?,
            parts: parts.into_iter().filter(|row| row.in_answer).map(|row| row.part).collect(),
        })
    }
}

pub(super) fn fixed<const N: usize>(bytes: &[u8], what: &'static str) -> Result<[u8; N], StoreError> {
    bytes.try_into().map_err(|_| StoreError::BadRow(what))
}
