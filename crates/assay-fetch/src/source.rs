//! One gateway that may have blocks. Nothing that it says is believed.

use crate::http::{Http, HttpError, Reply, Url};
use assay_dag::{BLOCK_LEN_MAX, Cid};
use hyper::header;
use std::{fmt, str::FromStr};

/// A trustless gateway by its address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Source(Url);

/// Why a source did not give a block.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It does not have it.
    #[error("it does not have the block")]
    NotHere,
    /// It cannot be asked, or its answer cannot be used.
    #[error(transparent)]
    Http(#[from] HttpError),
}

impl FromStr for Source {
    type Err = HttpError;

    fn from_str(text: &str) -> Result<Self, HttpError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Source {
    /// The bytes that it gives for `cid`, which may be any.
    ///
    /// # Errors
    /// [`SourceError`].
    pub async fn block(&self, http: &Http, cid: &Cid) -> Result<Vec<u8>, SourceError> {
        let reply = self.ask(http, cid, "raw", "application/vnd.ipld.raw").await?;
        Ok(reply.bytes(BLOCK_LEN_MAX).await?)
    }

    /// The stream that it gives for all below `cid`.
    ///
    /// # Errors
    /// [`SourceError`].
    pub(crate) async fn car(&self, http: &Http, cid: &Cid) -> Result<Reply, SourceError> {
        let accept = "application/vnd.ipld.car; version=1; order=dfs; dups=n";
        self.ask(http, cid, "car&dag-scope=entity", accept).await
    }

    /// Names of files that it says it has, with their CIDs.
    ///
    /// # Errors
    /// [`SourceError::Http`].
    pub async fn models(&self, http: &Http) -> Result<Vec<(String, Cid)>, SourceError> {
        let reply = http.get(&self.0.join("/models.json")?, &[]).await?;
        if !reply.status.is_success() {
            return Err(reply.unexpected().into());
        }
        let rows: serde_json::Value = serde_json::from_slice(&reply.bytes(BLOCK_LEN_MAX).await?).unwrap_or_default();
        let rows = rows.as_array().map(Vec::as_slice).unwrap_or_default();
        let row =
            |row: &serde_json::Value| Some((row["name"].as_str()?.to_owned(), row["cid"].as_str()?.parse().ok()?));
        Ok(rows.iter().filter_map(row).collect())
    }

    /// Redirects are not followed: a source is who was named, nobody else.
    async fn ask(&self, http: &Http, cid: &Cid, format: &str, accept: &str) -> Result<Reply, SourceError> {
        let url = self.0.join(&format!("/ipfs/{cid}?format={format}"))?;
        let reply = http.get(&url, &[(header::ACCEPT, accept.to_owned())]).await?;
        match reply.status.as_u16() {
            200 => Ok(reply),
            404 | 410 | 412 => Err(SourceError::NotHere),
            _ => Err(reply.unexpected().into()),
        }
    }
}
