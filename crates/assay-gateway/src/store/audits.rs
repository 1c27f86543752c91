//! Rows of audits, of auditors, and of what providers did.
//!
//! Tables of their own, made where they are missing: a database without them is one in which nothing was audited yet.

use super::{Store, StoreError, WriteKind, rows::fixed};
use crate::standing::Noted;
use assay_protocol::{AuditorAccount, Deed, Event};
use assay_types::{Address, Amount, B256, ProviderId, RequestHash};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// Convictions are kept for ever, everything else while it weighs anything: six half-lives.
pub(super) const DEEDS_KEPT_S: u64 = 90 * 86_400;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS audits (
    audit_id   BLOB    PRIMARY KEY,
    receipt_id BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    draw       TEXT    NOT NULL,
    record     TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS audits_open ON audits (created_at) WHERE record IS NULL;
CREATE TABLE IF NOT EXISTS auditors (
    auditor BLOB PRIMARY KEY,
    account TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deeds (
    at         INTEGER NOT NULL,
    provider   BLOB    NOT NULL,
    deed       TEXT    NOT NULL,
    receipt_id BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS deeds_at ON deeds (at);
";

/// Why an answer is audited.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrawRow {
    /// Anchor of the chain of beacons.
    pub anchor: B256,
    /// Whose beacon drew it.
    pub epoch: u32,
    /// At this rate, in millionths.
    pub rate_ppm: u32,
}

/// An answer that is to be audited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditRow {
    /// The task's name.
    pub audit_id: B256,
    /// Which answer.
    pub receipt_id: RequestHash,
    /// Seconds since the Unix epoch.
    pub created_at: u64,
    /// Why.
    pub draw: DrawRow,
}

impl AuditRow {
    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            audit_id: B256::from(fixed::<32>(row.try_get("audit_id")?, "audit")?),
            receipt_id: RequestHash(B256::from(fixed::<32>(row.try_get("receipt_id")?, "receipt")?)),
            created_at: row.try_get::<i64, _>("created_at")?.cast_unsigned(),
            draw: serde_json::from_str(row.try_get("draw")?).map_err(|_| StoreError::BadRow("draw"))?,
        })
    }
}

/// What a provider did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeedRow {
    pub(crate) noted: Noted,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "deed")]
enum DeedText {
    Proven {
        tokens: u64,
        fees: Amount,
    },
    Matched {
        tokens: u64,
        odd: u64,
        fees: Amount,
    },
    Deviated {
        tokens: u64,
        odd: u64,
    },
    #[serde(rename_all = "camelCase")]
    Answered {
        tokens: u64,
        first_millis: u64,
        millis: u64,
    },
    Silent,
    Abandoned,
    Withheld,
    Accused,
    Convicted,
}

impl DeedRow {
    pub(super) fn text(&self) -> Result<String, StoreError> {
        let text = match self.noted.event.deed {
            Deed::Proven { tokens, fees } => DeedText::Proven { tokens, fees },
            Deed::Matched { tokens, odd, fees } => DeedText::Matched { tokens, odd, fees },
            Deed::Deviated { tokens, odd } => DeedText::Deviated { tokens, odd },
            Deed::Answered { tokens, first_millis, millis } => DeedText::Answered { tokens, first_millis, millis },
            Deed::Silent => DeedText::Silent,
            Deed::Abandoned => DeedText::Abandoned,
            Deed::Withheld => DeedText::Withheld,
            Deed::Accused => DeedText::Accused,
            Deed::Convicted => DeedText::Convicted,
        };
        serde_json::to_string(&text).map_err(|_| StoreError::BadRow("deed"))
    }

    fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        let text = serde_json::from_str(row.try_get("deed")?).map_err(|_| StoreError::BadRow("deed"))?;
        let deed = match text {
            DeedText::Proven { tokens, fees } => Deed::Proven { tokens, fees },
            DeedText::Matched { tokens, odd, fees } => Deed::Matched { tokens, odd, fees },
            DeedText::Deviated { tokens, odd } => Deed::Deviated { tokens, odd },
            DeedText::Answered { tokens, first_millis, millis } => Deed::Answered { tokens, first_millis, millis },
            DeedText::Silent => Deed::Silent,
            DeedText::Abandoned => Deed::Abandoned,
            DeedText::Withheld => Deed::Withheld,
            DeedText::Accused => Deed::Accused,
            DeedText::Convicted => Deed::Convicted,
        };
        let receipt: Option<Vec<u8>> = row.try_get("receipt_id")?;
        let receipt = receipt.map(|bytes| fixed::<32>(&bytes, "receipt")).transpose()?;
        let at = row.try_get::<i64, _>("at")?.cast_unsigned();
        let provider = ProviderId(fixed::<20>(row.try_get("provider")?, "provider")?.into());
        Ok(Self {
            noted: Noted { provider, event: Event { at, deed }, receipt: receipt.map(|r| RequestHash(B256::from(r))) },
        })
    }
}

/// An auditor's account on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct AccountText {
    proven: u64,
    caught: u64,
    failed: u64,
    earned: Amount,
    lost: Amount,
}

impl From<AuditorAccount> for AccountText {
    fn from(account: AuditorAccount) -> Self {
        let AuditorAccount { proven, caught, failed, earned, lost } = account;
        Self { proven, caught, failed, earned, lost }
    }
}

impl From<AccountText> for AuditorAccount {
    fn from(text: AccountText) -> Self {
        let AccountText { proven, caught, failed, earned, lost } = text;
        Self { proven, caught, failed, earned, lost }
    }
}

impl Store {
    /// Notes that an answer is to be audited.
    ///
    /// # Errors
    /// The write failed.
    pub async fn put_audit(&self, row: AuditRow) -> Result<(), StoreError> {
        self.write(WriteKind::PutAudit { row }).await
    }

    /// Answers that are still to be audited, the oldest first, at most `limit`.
    ///
    /// # Errors
    /// The read failed.
    pub async fn audits_waiting(&self, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let sql = "SELECT audit_id, receipt_id, created_at, draw FROM audits WHERE record IS NULL \
                   ORDER BY created_at LIMIT ?";
        let rows = sqlx::query(sql).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        rows.iter().map(AuditRow::read).collect()
    }

    /// The end of an audit, decoys included, and what it made of its auditor's account, in one transaction.
    ///
    /// # Errors
    /// The write failed.
    pub async fn end_audit(
        &self,
        row: AuditRow,
        record: String,
        auditor: Address,
        account: AuditorAccount,
    ) -> Result<(), StoreError> {
        let account = serde_json::to_string(&AccountText::from(account)).map_err(|_| StoreError::BadRow("account"))?;
        self.write(WriteKind::EndAudit { row, record, auditor, account }).await
    }

    /// Records of audits that have ended, the latest first, as they were given.
    ///
    /// # Errors
    /// The read failed.
    pub async fn audit_records(&self, limit: u32) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT record FROM audits WHERE record IS NOT NULL ORDER BY rowid DESC LIMIT ?";
        let rows = sqlx::query(sql).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok(row.try_get("record")?)).collect()
    }

    /// Accounts of all auditors that did anything.
    ///
    /// # Errors
    /// The read failed.
    pub async fn auditors(&self) -> Result<Vec<(Address, AuditorAccount)>, StoreError> {
        let rows = sqlx::query("SELECT auditor, account FROM auditors").fetch_all(&self.pool).await?;
        let read = |row: &SqliteRow| {
            let account: AccountText =
                serde_json::from_str(row.try_get("account")?).map_err(|_| StoreError::BadRow("account"))?;
            Ok((fixed::<20>(row.try_get("auditor")?, "auditor")?.into(), account.into()))
        };
        rows.iter().map(read).collect()
    }

    /// Notes what a provider did.
    ///
    /// # Errors
    /// The write failed.
    pub async fn put_deed(&self, row: DeedRow) -> Result<(), StoreError> {
        self.write(WriteKind::PutDeed { row }).await
    }

    /// Everything that providers did and that still weighs something, in order.
    ///
    /// # Errors
    /// The read failed.
    pub async fn deeds(&self) -> Result<Vec<DeedRow>, StoreError> {
        let sql = "SELECT at, provider, deed, receipt_id FROM deeds ORDER BY at, rowid";
        let rows = sqlx::query(sql).fetch_all(&self.pool).await?;
        rows.iter().map(DeedRow::read).collect()
    }

    /// The name of the `number`th latest answer; `None` if there are fewer.
    ///
    /// # Errors
    /// The read failed.
    pub async fn nth_latest_receipt(&self, number: u32) -> Result<Option<RequestHash>, StoreError> {
        let row = sqlx::query("SELECT receipt_id FROM receipts ORDER BY rowid DESC LIMIT 1 OFFSET ?")
            .bind(i64::from(number))
            .fetch_optional(&self.pool)
            .await?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(RequestHash(B256::from(fixed::<32>(row.try_get("receipt_id")?, "receipt")?))))
    }
}
