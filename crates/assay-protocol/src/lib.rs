//! The rules of the network as pure functions and plain structs.
//!
//! Owns: what a payer may sign and a receiver may take on one payment channel ([`PayerChannel`], [`ReceiverChannel`]),
//! what either side keeps across restarts and asks the chain ([`PayerBook`], [`ReceiverWatch`]), how tokens become money
//! ([`StreamTerms`], [`ServedStream`]), what a payer checks in a receipt ([`ReceiptExpectation`]), which provider gets a
//! request ([`route`]), which answers are audited ([`AuditPolicy`]), what a provider's past is worth ([`Reputation`]),
//! how several providers are held to one answer ([`Round`]) and whether an engine that is not canonical runs the model that
//! it says ([`LikenessTest`]). Holds no socket, file, clock, key or randomness: the caller signs, stores, measures and
//! draws. Nothing here panics, whatever a peer sends.

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::float_arithmetic
    )
)]

mod audit;
mod book;
mod likeness;
mod payer;
mod receipt;
mod receiver;
mod redundancy;
mod reputation;
mod route;
mod served;
mod terms;
mod watch;

#[cfg(test)]
mod channel_tests;

pub use audit::{
    AuditOutcome, AuditPolicy, AuditTerms, AuditorAccount, BEACONS, Beacons, Decoy, ProofFault, Report, check_proof,
    is_drawn, judge,
};
pub use book::{PayerBook, PayerRow, Shown, StandingFault};
pub use likeness::{Choice, Likeness, LikenessTest, Sign};
pub use payer::{PayerChannel, PayerError, PayerState};
pub use receipt::{ReceiptExpectation, ReceiptFault};
pub use receiver::{ChannelTerms, ReceiverChannel, ReceiverError, ReceiverState, VerifiedVoucher, VoucherError};
pub use redundancy::{Outcome, REDUNDANT_MAX, Round, RoundError};
pub use reputation::{Components, Deed, EVENTS_MAX, Event, Reputation, ReputationPolicy, SCORE_MAX};
pub use route::{Candidate, RouteQuery, Snapshot, route};
pub use served::{Bill, ServedStream, Step};
pub use terms::StreamTerms;
pub use watch::{OnChain, ReceiverWatch, claimable_down, lasting_balance_down};

/// Most requests that one channel carries at a time; a further one is an error on both sides.
pub const STREAMS_MAX: usize = 1024;
