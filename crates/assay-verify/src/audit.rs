//! An auditor's work on one task: the replay, what it commits to, and what it shows of it afterwards.
//!
//! The task does not say who answered or whether it is a decoy; the auditor finds out what the model says, no more.

use crate::replay::Unchecked;
use assay_engine::{Model, Replay, Runner, replay_watched};
use assay_types::{
    Address, AuditFinding, AuditProof, AuditTask, AuditVerdict, B256, ModelId, ShownLeaf, logits_leaf, proof_path,
    proof_positions, proof_root,
};

/// What a replay of a task gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Examined {
    /// The finding.
    pub verdict: AuditVerdict,
    /// [`logits_leaf`] of each position up to the first wrong token.
    pub leaves: Vec<B256>,
}

/// Replays the output of `task` with one prefill.
///
/// `found` is the id of the model that `model` was loaded from.
///
/// # Errors
/// [`Unchecked`] says why there is no finding.
pub fn examine(task: &AuditTask, model: &Model, found: ModelId, runner: &mut Runner) -> Result<Examined, Unchecked> {
    if found != task.job.model_id {
        return Err(Unchecked::OtherModel { expected: task.job.model_id, found });
    }
    let mut leaves = Vec::with_capacity(task.output.len());
    let mut watch = |index: usize, row: &[f32]| leaves.push(logits_leaf(position(index), row));
    let replayed = replay_watched(model, runner, &task.job, &task.output, task.finish, &mut watch)?;
    let verdict = match replayed {
        Replay::Exact => AuditVerdict::Exact,
        Replay::FirstWrong { index, expected, got } => {
            AuditVerdict::WrongToken { index: position(index), expected, got }
        }
        Replay::WrongFinish { expected, got } => AuditVerdict::WrongFinish { expected, got },
    };
    Ok(Examined { verdict, leaves })
}

/// Outputs are bounded by `max_tokens`, a `u32`.
fn position(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl Examined {
    /// What is committed to.
    #[must_use]
    pub fn finding(&self) -> AuditFinding {
        AuditFinding { verdict: self.verdict, positions: position(self.leaves.len()), root: proof_root(&self.leaves) }
    }

    /// What is shown once the beacon is known.
    #[must_use]
    pub fn proof(&self, task: B256, auditor: Address, beacon: B256) -> AuditProof {
        let finding = self.finding();
        let show = |index: u32| {
            let leaf = *self.leaves.get(index as usize)?;
            Some(ShownLeaf { leaf, path: proof_path(&self.leaves, index as usize) })
        };
        let shown = proof_positions(beacon, task, auditor, finding.positions).into_iter().filter_map(show).collect();
        AuditProof { finding, shown }
    }
}
