//! Test support: tiny models, virtual peers, vectors for the judge.

#[cfg(feature = "money")]
pub mod actions;
pub mod encoders;
#[cfg(feature = "peers")]
pub mod fake_provider;
pub mod judge_vectors;
#[cfg(feature = "peers")]
pub mod memory_net;
pub mod models;
#[cfg(feature = "money")]
pub mod settlement;
