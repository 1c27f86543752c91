//! The gateway: OpenAI-style HTTP on one side, providers and payment channels on the other.
//!
//! Owns HTTP, API keys, the choice of providers, failover, vouchers and the receipt log. Runs no model: it has a
//! tokenizer and a chat template, and checks what providers sign against what they sent. The request path makes no
//! chain call and reads no database; both are the background task's.
//!
//! ```text
//!  client --HTTP--> handler --tokens--> flight (tracked task) --frames--> provider
//!                      ^                   |  vouchers, receipts
//!                      +---- text ---------+---> books (memory) ---> SQLite (one writer)
//!  registry, offers --> scout (background) --> directory (swapped snapshot) --> flight
//! ```
//!
//! Invariants: no voucher is sent before a mark at or above its ceiling is on disk; no answer is finished towards the
//! client before its receipt is on disk; nothing is paid for that was not signed over tokens that arrived.

mod account;
mod ask;
mod audit_http;
mod auditing;
mod body;
mod chain;
mod challenge;
mod channel;
mod clock;
mod config;
mod control;
mod deadline;
mod directory;
mod error;
mod flight;
mod gateway;
mod http;
mod journal;
mod keys;
mod ledger;
mod likeness;
mod metrics;
mod model;
mod page;
mod peer;
mod redundant;
mod referee;
mod rescue;
mod running;
mod scout;
mod sealed;
mod segment;
mod serve;
mod standing;
mod store;
mod tools;
mod vectors;
mod voice;
mod watch;
mod x402;

pub use account::{KeyLimits, Rate};
pub use assay_protocol::Sign;
pub use auditing::{AuditConfig, AuditError};
pub use chain::ChainLedger;
pub use channel::ChannelTotal;
pub use config::{GatewayConfig, GatewayLimits, Timeouts};
pub use error::GatewayError;
pub use gateway::{Gateway, GatewayHandle, StartError, Totals};
pub use keys::{KEY_PREFIX, KeyError, KeyId, Keys};
pub use ledger::{Addresses, Ledger, LedgerError, Registered, Withdrawal};
pub use model::{GatewayModel, ModelError, PromptError};
pub use referee::{Referee, Refereed};
pub use store::{
    ChannelRow, KeyRow, NewKey, NewReceipt, PartRow, RefundRow, Store, StoreError, StoredReceipt, UsageRow,
};
pub use x402::X402Config;
