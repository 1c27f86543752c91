//! The database from outside, while its provider may be running.

use super::{APPLICATION_ID, ChannelRow, SCHEMA_VERSION, StoreError, check_header, connect, rows, unusable};
use crate::earnings::{ChannelEarnings, ModelEarnings};
use assay_types::{Amount, ChannelId, ModelId};
use sqlx::{
    ConnectOptions, Row,
    sqlite::{SqliteConnectOptions, SqlitePool},
};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// Opens a database that is there; reads alone.
async fn open(path: &Path) -> Result<SqlitePool, StoreError> {
    check_header(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .disable_statement_logging()
        .pragma("query_only", "on")
        .busy_timeout(Duration::from_secs(5));
    let open_error = |e: sqlx::Error| StoreError::Open { path: path.into(), reason: e.to_string() };
    let pool = connect(options, 1).await.map_err(open_error)?;
    let number = async |query: &'static str| -> Result<i64, StoreError> {
        let row = sqlx::query(query).fetch_one(&pool).await.map_err(|e| unusable(path, &e.to_string()))?;
        row.try_get(0).map_err(|e| unusable(path, &e.to_string()))
    };
    if number("PRAGMA application_id").await? != APPLICATION_ID {
        return Err(unusable(path, "another program's database"));
    }
    let version = number("PRAGMA user_version").await?;
    if version != 1 && version != SCHEMA_VERSION {
        let reason = format!("schema version {version}; this release reads version {SCHEMA_VERSION}");
        return Err(unusable(path, &reason));
    }
    Ok(pool)
}

/// See [`crate::earnings()`].
pub(crate) async fn earnings(path: &Path) -> Result<Vec<ChannelEarnings>, StoreError> {
    let pool = open(path).await?;
    // One view of both tables, whatever is written meanwhile.
    let mut view = pool.begin().await?;
    let channels = sqlx::query("SELECT * FROM channels").fetch_all(&mut *view).await?;
    let channels: Vec<ChannelRow> = channels.iter().map(ChannelRow::read).collect::<Result<_, _>>()?;
    let mut sums = BTreeMap::<(ChannelId, ModelId), ModelEarnings>::new();
    // Amounts are bytes, so SQLite can not add them; a page at a time, because there may be millions.
    let mut after = vec![];
    loop {
        let page = "SELECT request_hash, channel_id, model_id, prompt_tokens, output_tokens, charged FROM receipts \
                    WHERE request_hash > ? ORDER BY request_hash LIMIT 4096";
        let page = sqlx::query(page).bind(after).fetch_all(&mut *view).await?;
        let Some(last) = page.last() else { break };
        after = last.try_get("request_hash")?;
        for row in &page {
            let model = ModelId(rows::hash(row, "model_id")?);
            let sum = sums.entry((ChannelId(rows::hash(row, "channel_id")?), model)).or_insert(ModelEarnings {
                model,
                requests: 0,
                prompt_tokens: 0,
                output_tokens: 0,
                charged: Amount::ZERO,
            });
            sum.requests = sum.requests.saturating_add(1);
            sum.prompt_tokens = sum.prompt_tokens.saturating_add(rows::number(row, "prompt_tokens")?);
            sum.output_tokens = sum.output_tokens.saturating_add(rows::number(row, "output_tokens")?);
            sum.charged = sum.charged.saturating_add(rows::amount(row, "charged")?);
        }
    }
    drop(view);
    pool.close().await;
    let of = |id: ChannelId| sums.iter().filter(|((channel, _), _)| *channel == id).map(|(_, sum)| *sum).collect();
    let earned = |row: &ChannelRow| ChannelEarnings {
        config: row.config,
        voucher: row.voucher,
        charged_total: row.charged_total,
        claimed: row.claimed,
        models: of(row.channel_id()),
    };
    Ok(channels.iter().map(earned).collect())
}
