//! The provider's side: it shows what its trace has, wherever the challenger asks.

use super::{Level, Move, PlayError, check_shape, group, parts, phase, site};
use alloy_sol_types::SolCall;
use assay_chain::{
    B256,
    bindings::trial::Trial,
    client::{Dispute, Phase},
};
use assay_graph::Trace;

/// The provider's next move.
///
/// # Errors
/// [`PlayError::NotOurMove`], [`PlayError::OtherShape`], [`PlayError::Trace`].
pub fn answer(trace: &Trace, id: B256, d: &Dispute) -> Result<Move, PlayError> {
    let phase = phase(d)?;
    if !phase.is_providers() {
        return Err(PlayError::NotOurMove(phase));
    }
    check_shape(d, trace)?;
    let (call, says): (Vec<u8>, String) = match phase {
        Phase::RevealNumbers => {
            let (first, count, _) = group(d.spot.leaves, d.prefix);
            let leaves = trace.leaves(d.spot.position, d.spot.op, first.into(), count.into())?;
            let says = format!("shows the numbers of {count} leaves of operation {}", d.spot.op);
            (Trial::revealNumbersCall { id, leaves: leaves.into() }.abi_encode(), says)
        }
        Phase::RevealSteps => {
            let (low, high) = (d.spot.low.to::<u32>(), d.spot.high.to::<u32>());
            let (count, _) = parts(low, high);
            let values = trace.states(site(d), low.into(), high.into(), count.into())?;
            let says = format!("shows what {count} parts of steps {low} to {high} end with");
            (Trial::revealStepsCall { id, values: values.into() }.abi_encode(), says)
        }
        Phase::RevealOperands => {
            let step = d.spot.low.to::<u32>();
            let stated = trace.operands(site(d), step.into())?.bytes;
            let says = format!("states the {} bytes that step {step} reads", stated.len());
            (Trial::revealOperandsCall { id, stated: stated.into() }.abi_encode(), says)
        }
        _ => {
            let level = Level::of_dispute(d, phase);
            let children = trace.nodes(level.tree, level.height, level.first, 1 << level.levels)?;
            let says = format!("shows {} hashes of its {}", children.len(), super::record::what(level.tree));
            (Trial::revealCall { id, children }.abi_encode(), says)
        }
    };
    Ok(Move { calls: vec![call.into()], says })
}
