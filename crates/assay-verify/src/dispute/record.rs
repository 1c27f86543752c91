//! What was said in a dispute so far, read back from the calls that said it.
//!
//! The contract keeps only where the descent stands. The hashes beside the way down, which an opening in the provider's
//! trace needs, are in the calls that revealed them.

use super::{Level, PlayError, group, parts};
use alloy_sol_types::SolInterface;
use assay_chain::{
    B256, Bytes,
    bindings::trial::Trial::TrialCalls,
    client::{Dispute, Phase},
};
use assay_graph::{Kind, Revealed, Trace, Tree, tree};

/// Calls inside of calls that are looked into.
const DEPTH_MAX: usize = 4;
/// Moves that are taken from one transaction.
const CALLS_MAX: usize = 256;

/// A tree in words.
pub(super) fn what(tree: Tree) -> String {
    match tree {
        Tree::Positions => "positions".into(),
        Tree::Ops { position } => format!("operations at position {position}"),
        Tree::Leaves { position, op } => format!("leaves of operation {op} at position {position}"),
    }
}

/// None if there is no such operation: the contract would not have accepted the move.
fn leaves_of(trace: &Trace, tree: Tree) -> u32 {
    trace.count(tree).ok().and_then(|count| u32::try_from(count).ok()).unwrap_or(0)
}

/// The calls of one dispute in a call of `Trial`, those inside of `batch` and `relay` too, in order.
#[must_use]
pub fn moves_of(id: B256, input: &Bytes) -> Vec<TrialCalls> {
    let mut found = vec![];
    collect(id, input, DEPTH_MAX, &mut found);
    found
}

fn collect(id: B256, input: &[u8], depth: usize, found: &mut Vec<TrialCalls>) {
    let Ok(call) = TrialCalls::abi_decode(input) else { return };
    if found.len() >= CALLS_MAX || depth == 0 {
        return;
    }
    let of = match &call {
        TrialCalls::batch(batch) => {
            for inner in &batch.calls {
                collect(id, inner, depth - 1, found);
            }
            return;
        }
        TrialCalls::relay(relay) => return collect(id, &relay.call, depth - 1, found),
        TrialCalls::reveal(call) => call.id,
        TrialCalls::revealNumbers(call) => call.id,
        TrialCalls::revealSteps(call) => call.id,
        TrialCalls::revealOperands(call) => call.id,
        TrialCalls::pick(call) => call.id,
        TrialCalls::pickOp(call) => call.id,
        TrialCalls::pickNumber(call) => call.id,
        TrialCalls::pickStep(call) => call.id,
        TrialCalls::advance(call) => call.id,
        _ => return,
    };
    if of == id {
        found.push(call);
    }
}

/// Where a dispute stands by the moves that were read, and what the provider revealed on the way.
#[derive(Debug)]
pub struct Record {
    stage: Stage,
    /// Of the provider's trace, what is known.
    pub(super) revealed: Revealed,
    /// Of the last reveal.
    pub(super) children: Vec<B256>,
    /// Of the last reveal of numbers, steps or operands.
    pub(super) bytes: Bytes,
    positions: u32,
    ops: u32,
    /// Parts of the game were played off the chain: what was revealed there is not known.
    has_gap: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Tree { tree: Tree, remaining: u32, prefix: u64 },
    Numbers { position: u32, op: u16, leaves: u32, prefix: u32 },
    Chain,
}

impl Record {
    /// Nothing was said yet about a trace of so many positions and operations.
    #[must_use]
    pub fn new(positions: u32, ops: u32) -> Self {
        let remaining = tree::height_of(u64::from(positions));
        Self {
            stage: Stage::Tree { tree: Tree::Positions, remaining, prefix: 0 },
            revealed: Revealed::default(),
            children: vec![],
            bytes: Bytes::new(),
            positions,
            ops,
            has_gap: false,
        }
    }

    /// The children that were revealed last, and where they are.
    pub(super) fn level(&self) -> Option<Level> {
        match self.stage {
            Stage::Tree { tree, remaining, prefix } => Some(Level::of(tree, remaining, prefix)),
            _ => None,
        }
    }

    /// Takes note of a move that the contract accepted. `trace` says how many leaves an operation has.
    pub fn apply(&mut self, call: &TrialCalls, trace: &Trace) {
        match (call, self.stage) {
            (TrialCalls::reveal(call), Stage::Tree { tree, remaining, prefix }) => {
                let level = Level::of(tree, remaining, prefix);
                self.revealed.add(tree, level.height, level.first, call.children.clone());
                self.children.clone_from(&call.children);
            }
            (TrialCalls::pick(call), Stage::Tree { tree, remaining, prefix }) => {
                let index = call.index.saturating_to::<u32>();
                self.descend(tree, remaining, prefix, index, trace);
            }
            (TrialCalls::pickOp(call), Stage::Tree { tree, remaining, prefix }) => {
                let index = call.index.saturating_to::<u32>();
                self.descend(tree, remaining, prefix, index, trace);
            }
            (TrialCalls::revealNumbers(call), Stage::Numbers { position, op, leaves, prefix }) => {
                let (first, count, _) = group(leaves, prefix);
                let width = (call.leaves.len() / count.max(1) as usize).max(1);
                self.revealed.add_leaves(position, op, u64::from(first), width, call.leaves.to_vec());
                self.bytes = call.leaves.clone();
            }
            (TrialCalls::pickNumber(_), Stage::Numbers { .. }) => self.stage = Stage::Chain,
            (TrialCalls::revealSteps(call), Stage::Chain) => self.bytes = call.values.clone(),
            (TrialCalls::revealOperands(call), Stage::Chain) => self.bytes = call.stated.clone(),
            (TrialCalls::pickStep(_), Stage::Chain) => {}
            _ => self.has_gap = true,
        }
    }

    fn descend(&mut self, tree: Tree, remaining: u32, prefix: u64, index: u32, trace: &Trace) {
        let levels = remaining.min(super::LEVELS);
        let (remaining, prefix) = (remaining - levels, (prefix << levels) + u64::from(index));
        let small = u32::try_from(prefix).unwrap_or(u32::MAX);
        self.stage = match tree {
            _ if remaining != 0 => Stage::Tree { tree, remaining, prefix },
            Tree::Positions => {
                let remaining = tree::height_of(u64::from(self.ops));
                Stage::Tree { tree: Tree::Ops { position: small }, remaining, prefix: 0 }
            }
            Tree::Ops { position } => {
                let op = u16::try_from(small).unwrap_or(u16::MAX);
                let leaves = leaves_of(trace, Tree::Leaves { position, op });
                let height = tree::height_of(u64::from(leaves));
                match height.checked_sub(super::NUMBER_LEVELS).filter(|left| *left > 0) {
                    Some(remaining) => Stage::Tree { tree: Tree::Leaves { position, op }, remaining, prefix: 0 },
                    None => Stage::Numbers { position, op, leaves, prefix: 0 },
                }
            }
            Tree::Leaves { position, op } => {
                let leaves = leaves_of(trace, tree);
                Stage::Numbers { position, op, leaves, prefix: small }
            }
        };
    }

    /// Whether these moves lead to where the contract says that the dispute stands.
    pub(super) fn check(&self, d: &Dispute, phase: Phase) -> Result<(), PlayError> {
        let in_step = match self.stage {
            Stage::Tree { tree, remaining, prefix } => {
                let phases = match tree {
                    Tree::Positions => [Phase::RevealPositions, Phase::PickPosition],
                    Tree::Ops { position } if position == d.spot.position => [Phase::RevealOps, Phase::PickOp],
                    Tree::Leaves { position, op } if (position, op) == (d.spot.position, d.spot.op) => {
                        [Phase::RevealLeaves, Phase::PickLeaf]
                    }
                    _ => return Err(PlayError::OutOfStep("another place")),
                };
                phases.contains(&phase) && (u32::from(d.remaining), u64::from(d.prefix)) == (remaining, prefix)
            }
            Stage::Numbers { position, op, prefix, .. } => {
                [Phase::RevealNumbers, Phase::PickNumber].contains(&phase)
                    && (position, op, prefix) == (d.spot.position, d.spot.op, d.prefix)
            }
            Stage::Chain => phase >= Phase::RevealSteps,
        };
        if self.has_gap || d.positions != self.positions || u32::from(d.ops) != self.ops {
            return Err(PlayError::OutOfStep("a part was played off the chain, or is of another dispute"));
        }
        if !in_step {
            return Err(PlayError::OutOfStep("moves are missing"));
        }
        // The last reveal must be the one that is to be picked from.
        let complete = match phase {
            Phase::PickStep => {
                let (count, _) = parts(d.spot.low.to(), d.spot.high.to());
                self.bytes.len() as u32 == 4 * (count - 1) && assay_types::keccak256(&self.bytes) == d.node
            }
            Phase::Convict if d.word.byte(0) != Kind::Choose as u8 => assay_types::keccak256(&self.bytes) == d.node,
            _ => true,
        };
        if complete { Ok(()) } else { Err(PlayError::OutOfStep("the last reveal is missing")) }
    }
}
