//! The provider: admits jobs against vouchers, runs them, signs receipts and claims what they charge.
//!
//! ```text
//! connection (serve) --admit--> ledger (channels, receipts) --writer--> disk --claims--> chain
//!        |                         ^
//!        +--- engine --tokens--> assay_protocol::ServedStream (what may be sent, when to sign)
//! ```
//!
//! Owns the money and the promises of one provider: a receipt is on the disk before it is sent, a claim is never above
//! the receipts, a stream is never more than one chunk ahead of its payment. Does not compute tokens (`assay-engine`,
//! or somebody else's engine over HTTP: `upstream`), does not define bytes (`assay-types`, `assay-net`) and trusts nothing that a client sends.

mod backend;
mod chain;
mod claims;
mod config;
mod defence;
mod earnings;
mod encoder;
mod ledger;
#[cfg(test)]
mod lives;
mod offer;
mod provider;
mod serve;
mod store;
mod upstream;

pub use chain::{Answer, Chain, ChannelOnChain, Entry, Registered};
pub use config::{ClaimPolicy, Limits, ProviderConfig, ServedModel, Work};
pub use defence::{DefenceOptions, Tracer};
pub use earnings::{ChannelEarnings, ModelEarnings, earnings};
pub use provider::{Farewell, Provider, ProviderStats, StartError};
pub use store::{StoreError, Transcript};
pub use upstream::{UpstreamError, UpstreamModel, UpstreamOptions};
