//! Test support: tiny models, virtual peers.

#[cfg(feature = "peers")]
pub mod fake_provider;
pub mod models;
