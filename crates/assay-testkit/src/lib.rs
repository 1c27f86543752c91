//! Test support: tiny models, virtual peers.
