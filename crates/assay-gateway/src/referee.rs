//! Who replays answers for the gateway, which runs no model itself.

use assay_protocol::Sign;
use assay_types::{AuditTask, AuditVerdict, B256, ReceiptFile};

/// What a replay gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refereed {
    /// What it says of the output.
    pub verdict: AuditVerdict,
    /// `logits_leaf` of each position up to the first wrong token.
    pub leaves: Vec<B256>,
}

/// Replays where it matters: an auditor says that an answer is wrong, providers of one job disagree, or an auditor's own
/// work is looked at. Whoever starts the gateway brings one, with an engine in it.
pub trait Referee: std::fmt::Debug + Send + Sync + 'static {
    /// Replays one answer with one prefill. Blocks; the gateway calls it where that is in nobody's way, one at a time.
    ///
    /// # Errors
    /// Why it cannot, for the log.
    fn replay(&self, task: &AuditTask) -> Result<Refereed, String>;

    /// What each output token of `task` is a sign of, for an answer of class tolerant; the job names the canonical model.
    /// Blocks as [`Self::replay`].
    ///
    /// # Errors
    /// Why it cannot, for the log.
    fn compare(&self, task: &AuditTask) -> Result<Vec<Sign>, String> {
        Err(format!("there is no engine here that task {} could be compared with", task.id))
    }

    /// A replay has shown that a provider signed a wrong answer: `file` has its signature, `first_wrong` is the index of
    /// the first wrong token, or the number of tokens where only the end is wrong. Returns soon; what follows from it
    /// (a dispute on chain) is done elsewhere.
    fn on_conviction(&self, file: &ReceiptFile, first_wrong: u32);
}
