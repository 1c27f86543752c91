//! Models over HTTP: the blocks of files, given to anybody and taken from anybody, and plain downloads.
//!
//! ```text
//! Shelf ── routes(): GET /ipfs/CID?format=raw|car ──> any IPFS client
//! any trustless gateway ── pull(): every block checked before it touches the file ──> FILE
//! Hugging Face, any URL ── download(): ranges, resumed, SHA-256 where it is published ──> FILE
//! ```
//! Addresses that are asked are those that the caller names: a source cannot send us elsewhere.

mod download;
mod gateway;
mod http;
mod hub;
mod journal;
mod pull;
mod serve;
mod source;

pub use download::{Download, DownloadError, Downloaded, download};
pub use gateway::routes;
pub use http::{Http, HttpError, Url};
pub use hub::{Hub, HubError, HubFile, choose};
pub use pull::{Dropped, Progress, PullError, PullOptions, Pulled, Way, journal_of, part_of, pull};
pub use serve::serve;
pub use source::{Source, SourceError};
