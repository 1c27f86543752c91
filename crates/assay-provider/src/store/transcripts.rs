//! The tokens behind the receipts: a receipt has only hashes, and a provider that is taken to court has to compute its
//! answer again.
//!
//! The input is written with a request's first receipt, of the output what each receipt adds, so that a checkpoint
//! costs what is new in it. Nothing is ever removed: an answer can be disputed as long as there is stake.

use super::{Store, StoreError};
use assay_types::{RequestHash, TokenId};
use sqlx::{Row, SqliteConnection};

pub(super) const TABLES: &str = "
CREATE TABLE inputs (
    request_hash BLOB PRIMARY KEY,
    tokens       BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE outputs (
    request_hash BLOB    NOT NULL,
    first        INTEGER NOT NULL,
    tokens       BLOB    NOT NULL,
    PRIMARY KEY (request_hash, first)
) STRICT, WITHOUT ROWID;
";

/// What a receipt adds to what is known of its request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Spoken {
    /// Prompt and prefix, for the first receipt of a request; else empty.
    pub input: Vec<TokenId>,
    /// Output tokens under earlier receipts.
    pub first: u32,
    /// Those that follow.
    pub output: Vec<TokenId>,
}

/// A request with what was signed as its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transcript {
    /// Prompt and prefix.
    pub input: Vec<TokenId>,
    /// Up to the latest receipt.
    pub output: Vec<TokenId>,
}

impl Spoken {
    pub(super) async fn write(
        &self,
        connection: &mut SqliteConnection,
        request: RequestHash,
    ) -> Result<(), StoreError> {
        if !self.input.is_empty() {
            sqlx::query("INSERT INTO inputs VALUES (?, ?) ON CONFLICT DO NOTHING")
                .bind(request.0.as_slice())
                .bind(to_bytes(&self.input))
                .execute(&mut *connection)
                .await?;
        }
        if !self.output.is_empty() {
            sqlx::query("INSERT INTO outputs VALUES (?, ?, ?) ON CONFLICT DO NOTHING")
                .bind(request.0.as_slice())
                .bind(i64::from(self.first))
                .bind(to_bytes(&self.output))
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}

impl Store {
    /// The tokens of a request; `None` if it was never receipted, or by a release that did not keep them.
    pub(crate) async fn transcript(&self, request: RequestHash) -> Result<Option<Transcript>, StoreError> {
        let query = sqlx::query("SELECT tokens FROM inputs WHERE request_hash = ?").bind(request.0.as_slice());
        let Some(row) = query.fetch_optional(&self.reads).await? else { return Ok(None) };
        let input = from_bytes(row.try_get("tokens")?)?;
        let query = sqlx::query("SELECT first, tokens FROM outputs WHERE request_hash = ? ORDER BY first");
        let mut output: Vec<TokenId> = vec![];
        for row in query.bind(request.0.as_slice()).fetch_all(&self.reads).await? {
            if row.try_get::<i64, _>("first")? != output.len() as i64 {
                return Err(StoreError::BadRow("outputs"));
            }
            output.extend(from_bytes(row.try_get("tokens")?)?);
        }
        Ok(Some(Transcript { input, output }))
    }
}

fn to_bytes(tokens: &[TokenId]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_be_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Result<Vec<TokenId>, StoreError> {
    let (words, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return Err(StoreError::BadRow("tokens"));
    }
    Ok(words.iter().map(|word| TokenId::from_be_bytes(*word)).collect())
}
