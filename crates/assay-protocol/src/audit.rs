//! Which receipts are audited, what an auditor's report is worth, and what an auditor earns.
//!
//! A new provider's answers are all audited; the rate falls with the work that audits have proven, down to a floor. A
//! receipt is drawn by a beacon that nobody outside knows until its epoch is over ([`Beacons`]). Some tasks are decoys:
//! a right answer with one token changed, which an auditor that does not replay takes for a right one ([`Decoy`]).
//! Pure: the caller draws, stores and pays.

use assay_types::{
    Address, Amount, AuditProof, AuditVerdict, B256, TokenId, first_u64, is_in_proof, keccak256, proof_digest,
    proof_positions,
};

/// One million: rates are in millionths.
const MILLION: u64 = 1_000_000;
/// Epochs that one chain of beacons lasts.
pub const BEACONS: u32 = 1 << 16;
/// Beacons between two that are kept.
const MARK_EVERY: u32 = 256;

/// How much is audited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditPolicy {
    /// Share of answers that is audited however much was proven, in millionths.
    pub floor_ppm: u32,
    /// Proven tokens after which half of the answers are audited.
    pub half_tokens: u64,
    /// Share of an auditor's tasks that are decoys, in millionths.
    pub decoy_ppm: u32,
    /// Share of findings that are replayed once more by whoever pays for them, in millionths; every finding that an
    /// answer is wrong is.
    pub recheck_ppm: u32,
}

impl Default for AuditPolicy {
    /// At 2 % a cheat that gains 42 % of the price of an answer is caught after 50 answers on average, and loses a
    /// stake worth far more than 50 of them. A replay costs about an eighth of the answer, so 2 % is 0.25 % of the work.
    fn default() -> Self {
        Self { floor_ppm: 20_000, half_tokens: 4096, decoy_ppm: 50_000, recheck_ppm: 30_000 }
    }
}

impl AuditPolicy {
    /// Share of a provider's answers that is audited, in millionths, after `proven` of its tokens were replayed and found
    /// exact: `half / (half + proven)`, at least the floor, all of them at the start.
    #[must_use]
    pub fn rate_ppm(&self, proven_tokens: u64) -> u32 {
        let half = u128::from(self.half_tokens.max(1));
        let whole = half.saturating_add(u128::from(proven_tokens));
        let rate = half.saturating_mul(u128::from(MILLION)).checked_div(whole).unwrap_or(0);
        u32::try_from(rate).unwrap_or(u32::MAX).max(self.floor_ppm).min(MILLION as u32)
    }
}

/// Whether a draw of 64 uniform bits falls into a share of `rate_ppm` millionths.
#[must_use]
pub fn is_drawn(draw: u64, rate_ppm: u32) -> bool {
    (u128::from(draw).saturating_mul(u128::from(MILLION)) >> 64) < u128::from(rate_ppm)
}

/// A chain of beacons: each is the hash of the one that is revealed after it, so who has seen the anchor knows that no
/// beacon was chosen after the receipts that it draws, and nobody can compute the next one from those before.
#[derive(Clone, Debug)]
pub struct Beacons {
    anchor: B256,
    /// Every [`MARK_EVERY`]th, the seed first.
    marks: Vec<B256>,
    epoch: u32,
    current: B256,
}

impl Beacons {
    /// A chain from 32 random bytes that nobody else knows. Hashes [`BEACONS`] times.
    #[must_use]
    pub fn new(seed: B256) -> Self {
        let (mut marks, mut beacon) = (Vec::new(), seed);
        let mut current = seed;
        for index in 0..BEACONS {
            if index.is_multiple_of(MARK_EVERY) {
                marks.push(beacon);
            }
            current = beacon;
            beacon = after(&beacon);
        }
        Self { anchor: beacon, marks, epoch: 0, current }
    }

    /// What is published before the first epoch.
    #[must_use]
    pub fn anchor(&self) -> B256 {
        self.anchor
    }

    /// The running epoch.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The running epoch's beacon; a secret until [`Self::advance`].
    #[must_use]
    pub fn current(&self) -> B256 {
        self.current
    }

    /// Ends the epoch: returns its beacon, which may be published now. `None` once the chain is used up.
    pub fn advance(&mut self) -> Option<B256> {
        let ended = self.current;
        let epoch = self.epoch.saturating_add(1);
        let index = BEACONS.checked_sub(1)?.checked_sub(epoch)?;
        let mark = index.checked_div(MARK_EVERY)?;
        let mut beacon = *self.marks.get(usize::try_from(mark).ok()?)?;
        for _ in mark.saturating_mul(MARK_EVERY)..index {
            beacon = after(&beacon);
        }
        (self.epoch, self.current) = (epoch, beacon);
        Some(ended)
    }

    /// Whether `beacon` is the one that comes after `before`, the anchor for the first.
    #[must_use]
    pub fn follows(before: B256, beacon: B256) -> bool {
        after(&beacon) == before
    }
}

fn after(beacon: &B256) -> B256 {
    keccak256([b"assay/beacon/1".as_slice(), beacon.as_slice()].concat())
}

/// One token that was changed in an answer, to see whether an auditor notices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decoy {
    /// Where.
    pub index: u32,
    /// What stood there.
    pub was: TokenId,
    /// What stands there now.
    pub is: TokenId,
}

impl Decoy {
    /// Changes one token of `output` to another that the output has, or to a neighbour in the vocabulary if it has none:
    /// nothing in the text alone gives it away. `None` for an empty output.
    pub fn plant(draw: B256, output: &mut [TokenId]) -> Option<Self> {
        let at = |draw: u64, len: usize| {
            usize::try_from((u128::from(draw).saturating_mul(u128::try_from(len).unwrap_or(0))) >> 64).unwrap_or(0)
        };
        let index = at(first_u64(&draw), output.len());
        let was = *output.get(index)?;
        let others: Vec<TokenId> = output.iter().copied().filter(|&token| token != was).collect();
        let second = first_u64(&keccak256(draw));
        // A neighbour downwards: it is in every vocabulary that has `was`.
        let is = others.get(at(second, others.len())).copied().unwrap_or(was.checked_sub(1).unwrap_or(1));
        *output.get_mut(index)? = is;
        Some(Self { index: u32::try_from(index).ok()?, was, is })
    }
}

/// What a report is worth before anybody replays anything.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// It stands unless somebody replays the task and sees something else.
    Plausible,
    /// An answer is said to be wrong: to be confirmed before anyone is blamed.
    Accuses {
        /// Index of the first wrong token, or the number of tokens for a wrong end.
        first_wrong: u32,
    },
    /// The planted token was found.
    FoundDecoy,
    /// The auditor names an earlier or another fault than the planted one: the answer behind the decoy is to be
    /// audited; the report earns nothing.
    Doubts,
    /// It does not know what it would know had it replayed.
    Lazy,
}

/// A proof does not open its commitment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProofFault {
    /// Another finding than was committed to.
    #[error("the finding is not the one that was committed to")]
    Commitment,
    /// More positions than output tokens, fewer than the verdict needs, or another number of leaves than was drawn.
    #[error("it shows {found} positions, not {expected}")]
    Positions {
        /// What follows from verdict and output.
        expected: u32,
        /// What it says.
        found: u32,
    },
    /// A leaf is not under the root.
    #[error("the leaf for position {0} is not under the root")]
    Leaf(u32),
}

/// Checks that a proof opens `commitment` at the drawn positions; returns [`proof_digest`]. Whether the leaves are those
/// of the model only a replay tells.
///
/// # Errors
/// [`ProofFault`].
pub fn check_proof(
    proof: &AuditProof,
    commitment: B256,
    chain_id: u64,
    (task, auditor, beacon): (B256, Address, B256),
    output_tokens: u32,
) -> Result<B256, ProofFault> {
    let finding = &proof.finding;
    if finding.commitment(chain_id, task, auditor) != commitment {
        return Err(ProofFault::Commitment);
    }
    let expected = match finding.verdict {
        AuditVerdict::WrongToken { index, .. } => index.saturating_add(1).min(output_tokens),
        AuditVerdict::Exact | AuditVerdict::WrongFinish { .. } => output_tokens,
    };
    // A token after the end has no logits: then those up to the end are shown.
    let is_after_end = matches!(finding.verdict, AuditVerdict::WrongToken { expected: None, .. });
    let found = finding.positions;
    if found != expected && !(is_after_end && found.saturating_add(1) == expected) {
        return Err(ProofFault::Positions { expected, found });
    }
    let drawn = proof_positions(beacon, task, auditor, found);
    if proof.shown.len() != drawn.len() {
        let count = |len| u32::try_from(len).unwrap_or(u32::MAX);
        return Err(ProofFault::Positions { expected: count(drawn.len()), found: count(proof.shown.len()) });
    }
    for (&position, shown) in drawn.iter().zip(&proof.shown) {
        if !is_in_proof(finding.root, found, position, shown) {
            return Err(ProofFault::Leaf(position));
        }
    }
    Ok(proof_digest(beacon, auditor, proof.shown.iter().map(|shown| shown.leaf)))
}

/// Judges a verdict by what is known without a replay. `output_tokens` is the length of the claimed output.
#[must_use]
pub fn judge(verdict: AuditVerdict, decoy: Option<Decoy>, output_tokens: u32) -> Report {
    let Some(decoy) = decoy else {
        return match verdict.first_wrong(output_tokens) {
            None => Report::Plausible,
            Some(first_wrong) => Report::Accuses { first_wrong },
        };
    };
    match verdict {
        AuditVerdict::WrongToken { index, expected, got } if index == decoy.index && got == decoy.is => {
            if expected == Some(decoy.was) { Report::FoundDecoy } else { Report::Doubts }
        }
        AuditVerdict::WrongToken { index, .. } if index < decoy.index => Report::Doubts,
        AuditVerdict::WrongToken { .. } | AuditVerdict::WrongFinish { .. } | AuditVerdict::Exact => Report::Lazy,
    }
}

/// What auditing pays, and what it costs not to do it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AuditTerms {
    /// For a replay, per million tokens of input and output.
    pub fee_per_million: Amount,
    /// For an answer that was found wrong and is.
    pub catch: Amount,
    /// What an auditor loses that did not replay, beside everything that it has not been paid yet.
    pub bond: Amount,
}

impl Default for AuditTerms {
    /// A replay costs a fraction of an answer, and so does its fee; the bond is that of 10 million tokens.
    fn default() -> Self {
        Self { fee_per_million: Amount(20_000), catch: Amount(50_000), bond: Amount(200_000) }
    }
}

/// How one task ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuditOutcome {
    /// Replayed, as far as anyone knows.
    Proven {
        /// Input and output.
        tokens: u64,
    },
    /// Found a wrong answer, confirmed by a second replay.
    Caught {
        /// Input and output.
        tokens: u64,
    },
    /// Earns nothing and costs nothing.
    Void,
    /// Missed a decoy, showed other leaves than the model's, or accused somebody of a right answer.
    Failed,
}

/// An auditor's account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct AuditorAccount {
    /// Tasks that were replayed.
    pub proven: u64,
    /// Wrong answers found.
    pub caught: u64,
    /// Tasks that were not replayed.
    pub failed: u64,
    /// Earned; nothing after a failure.
    pub earned: Amount,
    /// Forfeited: the bond, once for each failure, and what was earned by then.
    pub lost: Amount,
}

impl AuditorAccount {
    /// Books a task.
    pub fn on_outcome(&mut self, outcome: AuditOutcome, terms: &AuditTerms) {
        let fee = |tokens: u64| {
            let units = terms.fee_per_million.0.saturating_mul(u128::from(tokens));
            Amount(units.checked_div(u128::from(MILLION)).unwrap_or(0))
        };
        match outcome {
            AuditOutcome::Proven { tokens } => {
                self.proven = self.proven.saturating_add(1);
                self.earned = self.earned.saturating_add(fee(tokens));
            }
            AuditOutcome::Caught { tokens } => {
                self.caught = self.caught.saturating_add(1);
                self.earned = self.earned.saturating_add(fee(tokens)).saturating_add(terms.catch);
            }
            AuditOutcome::Void => {}
            AuditOutcome::Failed => {
                self.failed = self.failed.saturating_add(1);
                self.lost = self.lost.saturating_add(terms.bond).saturating_add(self.earned);
                self.earned = Amount::ZERO;
            }
        }
    }

    /// Whether it gets further tasks: one failure is no accident, replays being exact.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.failed == 0
    }
}

#[cfg(test)]
mod tests;
