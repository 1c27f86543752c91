//! Rows of wrong answers whose money is to come back.

use super::rows::{amount, fixed};
use super::{Store, StoreError, WriteKind};
use assay_types::{Amount, B256, ProviderId, RequestHash};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use std::collections::BTreeMap;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS refunds (
    provider     BLOB    NOT NULL,
    request_hash BLOB    NOT NULL,
    receipt_id   BLOB    NOT NULL,
    key_id       INTEGER NOT NULL,
    charged      BLOB    NOT NULL,
    noted_at     INTEGER NOT NULL,
    paid         BLOB,
    PRIMARY KEY (provider, request_hash)
) STRICT, WITHOUT ROWID;
";

/// A wrong answer and what of its price came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RefundRow {
    /// Who signed it.
    pub provider: ProviderId,
    /// What that provider was asked.
    pub request: RequestHash,
    /// The answer's name.
    pub receipt: RequestHash,
    /// Whose key paid.
    pub key_id: i64,
    /// What the key was charged for this provider's part.
    pub charged: Amount,
    /// Seconds since the Unix epoch.
    pub noted_at: u64,
    /// What came back; `None` as long as nothing is decided.
    pub paid: Option<Amount>,
}

impl RefundRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            provider: ProviderId(fixed::<20>(row.try_get("provider")?, "provider")?.into()),
            request: RequestHash(B256::from(fixed::<32>(row.try_get("request_hash")?, "request")?)),
            receipt: RequestHash(B256::from(fixed::<32>(row.try_get("receipt_id")?, "receipt")?)),
            key_id: row.try_get("key_id")?,
            charged: amount(row.try_get("charged")?)?,
            noted_at: row.try_get::<i64, _>("noted_at")?.cast_unsigned(),
            paid: row.try_get::<Option<&[u8]>, _>("paid")?.map(amount).transpose()?,
        })
    }
}

impl Store {
    /// Notes a wrong answer, or what came back of its price. What is noted as paid stays so.
    ///
    /// # Errors
    /// The write failed.
    pub async fn put_refund(&self, row: RefundRow) -> Result<(), StoreError> {
        self.write(WriteKind::PutRefund { row }).await
    }

    /// Wrong answers that were noted since then and of which nothing is decided, the oldest first.
    ///
    /// # Errors
    /// The read failed.
    pub async fn refunds_pending(&self, since: u64, limit: u32) -> Result<Vec<RefundRow>, StoreError> {
        let sql = "SELECT * FROM refunds WHERE paid IS NULL AND noted_at >= ? ORDER BY noted_at LIMIT ?";
        let rows = sqlx::query(sql).bind(since.cast_signed()).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        rows.iter().map(RefundRow::read).collect()
    }

    /// What each key got back in all.
    ///
    /// # Errors
    /// The read failed.
    pub async fn refunded(&self) -> Result<BTreeMap<i64, Amount>, StoreError> {
        let rows = sqlx::query("SELECT key_id, paid FROM refunds WHERE paid IS NOT NULL").fetch_all(&self.pool).await?;
        let mut sums = BTreeMap::<i64, Amount>::new();
        for row in rows {
            let sum = sums.entry(row.try_get("key_id")?).or_default();
            *sum = sum.saturating_add(amount(row.try_get("paid")?)?);
        }
        Ok(sums)
    }
}
