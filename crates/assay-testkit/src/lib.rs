//! Test support: tiny models, virtual peers.

pub mod models;
