//! Both players of a dispute (docs/COURT.md): from what stands on the chain and an own trace to the next move.
//!
//! ```text
//! chain --dispute()--> Dispute --+
//!       --logs, calls--> Record -+--> provider::answer  or  challenger::attack --> calls of Trial
//! own Trace ---------------------+
//! ```
//! Players are functions: whoever calls them has the chain, the clock and the key. [`watch::Watch`] reads the chain for
//! them. What the other side sent decides which of several moves is made, never what is in it: every hash, number and
//! opening that is sent comes from the own trace or is repeated from the other side's reveals.

pub mod challenger;
pub mod provider;
mod record;
pub mod watch;

pub use challenger::Documents;
pub use record::Record;

use assay_chain::client::{Dispute, Phase};
use assay_graph::{Site, Tree};
use assay_types::{Job, MICRO};

/// Levels of a tree in one reveal.
const LEVELS: u32 = 5;
/// Levels of a trace that are revealed as numbers.
const NUMBER_LEVELS: u32 = 3;
/// Parts of a chain of steps in one reveal.
const PARTS: u32 = 128;

/// A move: calls for one transaction, and what it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Move {
    /// Calls of `Trial`, in order.
    pub calls: Vec<assay_chain::Bytes>,
    /// For people.
    pub says: String,
}

/// Why there is no move.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// The other side is to move, or nobody.
    #[error("nothing is to be done in phase {0:?}")]
    NotOurMove(Phase),
    /// The chain has a phase that this release does not know.
    #[error("the dispute is in a phase ({0}) that this release does not know")]
    UnknownPhase(u8),
    /// What stands on the chain is not what the moves that were read lead to; they may be read too early.
    #[error("the moves that were read do not lead to where the dispute stands ({0})")]
    OutOfStep(&'static str),
    /// The other side's trace and answer are those of the own trace.
    #[error("the provider's trace and answer are right: there is nothing to convict")]
    NothingWrong,
    /// The dispute is about another number of tokens or operations than the own trace has.
    #[error("the dispute has {found} {what}, the own trace {expected}")]
    OtherShape {
        /// Of what.
        what: &'static str,
        /// On the chain.
        found: u64,
        /// In the trace.
        expected: u64,
    },
    /// The own computation failed.
    #[error(transparent)]
    Trace(#[from] assay_graph::TraceError),
}

/// Whether the court judges how a job's tokens are chosen: only where that is the first token of the order of the
/// logits as they are (`Preimages.job` in the contracts).
#[must_use]
pub fn is_choice_judged(job: &Job) -> bool {
    let sampling = &job.sampling;
    let is_first = sampling.temperature_micro == 0 || sampling.top_k == 1;
    let is_plain = sampling.repetition_penalty_micro == MICRO
        && sampling.frequency_penalty_micro == 0
        && sampling.presence_penalty_micro == 0;
    is_first && is_plain && job.logit_bias.is_empty() && job.grammar.is_none()
}

/// The tree that a phase is about, and the part of it that is revealed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Level {
    tree: Tree,
    /// Of the children.
    height: u32,
    levels: u32,
    /// Index of the first child at its height.
    first: u64,
}

impl Level {
    fn of(tree: Tree, remaining: u32, prefix: u64) -> Self {
        let levels = remaining.min(LEVELS);
        let below = if matches!(tree, Tree::Leaves { .. }) { NUMBER_LEVELS } else { 0 };
        Self { tree, height: remaining - levels + below, levels, first: prefix << levels }
    }

    fn of_dispute(d: &Dispute, phase: Phase) -> Self {
        let tree = match phase {
            Phase::RevealPositions | Phase::PickPosition => Tree::Positions,
            Phase::RevealOps | Phase::PickOp => Tree::Ops { position: d.spot.position },
            _ => Tree::Leaves { position: d.spot.position, op: d.spot.op },
        };
        Self::of(tree, u32::from(d.remaining), u64::from(d.prefix))
    }
}

/// The leaves whose numbers are revealed: first, count, levels above them.
fn group(leaves: u32, prefix: u32) -> (u32, u32, u32) {
    let levels = assay_graph::tree::height_of(u64::from(leaves)).min(NUMBER_LEVELS);
    let first = prefix << NUMBER_LEVELS;
    (first, leaves.saturating_sub(first).min(1 << levels), levels)
}

/// Into how many parts of how many steps a chain is cut; the last may be shorter.
fn parts(low: u32, high: u32) -> (u32, u32) {
    let steps = high.saturating_sub(low).max(1);
    let width = steps.div_ceil(PARTS);
    (steps.div_ceil(width), width)
}

fn site(d: &Dispute) -> Site {
    Site { position: d.spot.position, op: d.spot.op, leaf: d.spot.leaf, slot: d.spot.slot }
}

fn phase(d: &Dispute) -> Result<Phase, PlayError> {
    Phase::from_number(d.phase).ok_or(PlayError::UnknownPhase(d.phase))
}

/// Whether a dispute is about a trace of this shape.
fn check_shape(d: &Dispute, trace: &assay_graph::Trace) -> Result<(), PlayError> {
    let rows = [
        ("positions", u64::from(d.positions), u64::from(trace.positions())),
        ("input tokens", u64::from(d.inputTokens), u64::from(trace.input_tokens())),
        ("operations", u64::from(d.ops), trace.model().graph().ops().len() as u64),
    ];
    for (what, found, expected) in rows {
        if found != expected {
            return Err(PlayError::OtherShape { what, found, expected });
        }
    }
    Ok(())
}
