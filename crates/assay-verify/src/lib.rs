//! Checks receipts: first what they say about themselves (hashes, signatures, sums), then, with the model file,
//! that the answer is the one the model gives.
//!
//! Needs no network. Whether a provider's stake stands behind its signature is asked of the chain by the caller,
//! who has the list of providers from [`statements::check`].
//!
//! A wrong answer can be taken to court: [`dispute`] has both players of that game.

pub mod audit;
pub mod dispute;
pub mod likeness;
pub mod replay;
pub mod statements;
