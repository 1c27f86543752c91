//! Rows of the database as values.

use super::StoreError;
use assay_types::{Amount, B256, ChannelId, Job, Manifest, ProviderId, ReceiptPart, RequestHash};
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
        })
    }
}

/// One channel's books.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelRow {
    /// Which.
    pub channel_id: ChannelId,
    /// Who is paid.
    pub provider: ProviderId,
    /// No voucher above this was ever sent.
    pub mark: Amount,
    /// Sum over all requests of what receipts charged.
    pub charged_total: Amount,
}

impl ChannelRow {
    pub(super) fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let amount = |name: &'static str| -> Result<Amount, StoreError> {
            Ok(Amount(u128::from_be_bytes(fixed(row.try_get(name)?, "amount")?)))
        };
        Ok(Self {
            channel_id: ChannelId(B256::from(fixed::<32>(row.try_get("channel_id")?, "channel id")?)),
            provider: ProviderId(fixed::<20>(row.try_get("provider")?, "provider")?.into()),
            mark: amount("mark")?,
            charged_total: amount("charged_total")?,
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

fn fixed<const N: usize>(bytes: &[u8], what: &'static str) -> Result<[u8; N], StoreError> {
    bytes.try_into().map_err(|_| StoreError::BadRow(what))
}
