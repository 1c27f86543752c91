//! What an auditor says and how it is held to it: the statements, their hashes, and the tree over the logits it saw.
//!
//! An auditor commits to its finding before it learns which positions it has to show, so it cannot compute those alone:
//! task, finding, [`AuditFinding::commitment`], then a beacon, then [`AuditProof`]. docs/PROTOCOL.md has the bytes.

use crate::{Finish, Job, ProviderId, ReceiptFile, RequestHash, ResponseHash, Signature, SignatureError, TokenId};
use alloy_primitives::{Address, B256, keccak256};
use serde::{Deserialize, Serialize};

/// Logits of one position that are hashed at most: every n-th of a longer row. A row that is wrong anywhere comes from
/// a wrong hidden state, which moves all of them.
pub const LOGITS_HASHED_MAX: usize = 1024;
/// Positions that an auditor has to show.
pub const PROOF_POSITIONS: u32 = 4;

/// What an auditor is given. It does not say who answered: a decoy looks the same.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditTask {
    /// Drawn for this task; no hash of anything.
    pub id: B256,
    /// The job, with an empty prefix.
    pub job: Job,
    /// The claimed output.
    pub output: Vec<TokenId>,
    /// How it is said to have ended.
    pub finish: Finish,
}

/// What a replay says about a claimed output.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum AuditVerdict {
    /// Every token and the end are what the job gives.
    Exact,
    /// The first wrong token.
    WrongToken {
        /// Its index in the output.
        index: u32,
        /// What the model gives; `None` if the output ends before.
        expected: Option<TokenId>,
        /// What was claimed.
        got: TokenId,
    },
    /// All tokens are right, but it does not end there in that way.
    WrongFinish {
        /// How it stands.
        expected: Finish,
        /// What was claimed.
        got: Finish,
    },
}

impl AuditVerdict {
    /// Index of the first wrong token; for a wrong finish the number of tokens. `None`: nothing is wrong.
    #[must_use]
    pub fn first_wrong(&self, output_tokens: u32) -> Option<u32> {
        match self {
            Self::Exact => None,
            Self::WrongToken { index, .. } => Some(*index),
            Self::WrongFinish { .. } => Some(output_tokens),
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Exact => out.push(0),
            Self::WrongToken { index, expected, got } => {
                out.push(1);
                out.extend_from_slice(&index.to_be_bytes());
                out.push(u8::from(expected.is_some()));
                out.extend_from_slice(&expected.unwrap_or(0).to_be_bytes());
                out.extend_from_slice(&got.to_be_bytes());
            }
            Self::WrongFinish { expected, got } => out.extend_from_slice(&[2, expected.code(), got.code()]),
        }
    }
}

/// What an auditor found, and the root over the logits that it saw on the way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditFinding {
    /// The finding.
    pub verdict: AuditVerdict,
    /// Positions whose logits were computed: up to the first wrong token, it included.
    pub positions: u32,
    /// [`proof_root`] of their leaves.
    pub root: B256,
}

impl AuditFinding {
    /// What the auditor signs before it learns which positions to show.
    #[must_use]
    pub fn commitment(&self, chain_id: u64, task: B256, auditor: Address) -> B256 {
        let mut out = Vec::with_capacity(160);
        out.extend_from_slice(b"assay/audit-commit/1");
        out.extend_from_slice(&chain_id.to_be_bytes());
        out.extend_from_slice(task.as_slice());
        out.extend_from_slice(auditor.as_slice());
        self.verdict.put(&mut out);
        out.extend_from_slice(&self.positions.to_be_bytes());
        out.extend_from_slice(self.root.as_slice());
        keccak256(out)
    }
}

/// An auditor's request for work.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditLease {
    /// Who asks.
    pub auditor: Address,
    /// Seconds since the Unix epoch, by the auditor's clock.
    pub issued_at: u64,
    /// Of [`AuditLease::digest`].
    pub signature: Signature,
}

impl AuditLease {
    /// What is signed.
    #[must_use]
    pub fn digest(chain_id: u64, auditor: Address, issued_at: u64) -> B256 {
        let tag = b"assay/audit-lease/1".as_slice();
        keccak256([tag, &chain_id.to_be_bytes(), auditor.as_slice(), &issued_at.to_be_bytes()].concat())
    }

    /// Checks that the auditor it names signed it for this chain.
    ///
    /// # Errors
    /// [`SignatureError`] says what is wrong.
    pub fn verify(&self, chain_id: u64) -> Result<(), SignatureError> {
        self.signature.verify(&Self::digest(chain_id, self.auditor, self.issued_at), self.auditor)
    }
}

/// A signed commitment to a finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditCommit {
    /// Who.
    pub auditor: Address,
    /// [`AuditFinding::commitment`].
    pub commitment: B256,
    /// Of the commitment.
    pub signature: Signature,
}

/// One position that is shown.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShownLeaf {
    /// [`logits_leaf`].
    pub leaf: B256,
    /// Siblings from the bottom, see [`proof_path`].
    pub path: Vec<B256>,
}

/// The opening of a commitment.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditProof {
    /// What was committed to.
    pub finding: AuditFinding,
    /// The leaves at [`proof_positions`], in that order.
    pub shown: Vec<ShownLeaf>,
}

/// Reply to a commitment: what draws the positions to show.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditBeacon {
    /// Drawn after the commitment was there.
    pub beacon: B256,
}

/// How an audit ended for the auditor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum AuditEnd {
    /// It counts as replayed.
    Proven,
    /// It found a wrong answer, and a second replay says the same.
    Caught,
    /// It counts for nothing: the finding could not be confirmed, or the task was none.
    Void,
    /// It was not replayed: a decoy was missed, the proof does not open, or the model says something else.
    Failed,
}

/// Reply to a proof.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditReply {
    /// What it counts for.
    pub end: AuditEnd,
    /// Proof of replay, as it is kept.
    pub digest: Option<B256>,
    /// The answer that was audited with its signatures; none for a decoy.
    pub file: Option<Box<ReceiptFile>>,
}

/// Whether a receipt is audited: `keccak("assay/audit-draw/1" || beacon || nonce || receipt)`, where `nonce` is the
/// job's and `receipt` the digest that the provider signed. The beacon is not known before.
#[must_use]
pub fn audit_draw(beacon: B256, nonce: B256, receipt: B256) -> B256 {
    let tag = b"assay/audit-draw/1".as_slice();
    keccak256([tag, beacon.as_slice(), nonce.as_slice(), receipt.as_slice()].concat())
}

/// What a provider of a redundant job commits to before it shows its answer: bound to who it is, so that a copy of the
/// commitment, or of the answer behind it, is nobody else's.
#[must_use]
pub fn answer_commitment(provider: ProviderId, request: RequestHash, salt: B256, response: ResponseHash) -> B256 {
    let tag = b"assay/answer-commit/1".as_slice();
    keccak256([tag, provider.0.as_slice(), request.0.as_slice(), salt.as_slice(), response.0.as_slice()].concat())
}

/// The logits before output token `index`, hashed: `keccak("assay/logits/1" || u32 index || u32 count || bits)`, the
/// bits of every n-th logit from the first on as `u32`, n the least with at most [`LOGITS_HASHED_MAX`] of them.
#[must_use]
pub fn logits_leaf(index: u32, logits: &[f32]) -> B256 {
    let step = logits.len().div_ceil(LOGITS_HASHED_MAX).max(1);
    let mut out = Vec::with_capacity(32 + 4 * LOGITS_HASHED_MAX);
    out.extend_from_slice(b"assay/logits/1");
    out.extend_from_slice(&index.to_be_bytes());
    out.extend_from_slice(&u32::try_from(logits.len()).unwrap_or(u32::MAX).to_be_bytes());
    logits.iter().step_by(step).for_each(|logit| out.extend_from_slice(&logit.to_bits().to_be_bytes()));
    keccak256(out)
}

/// Root over leaves: node = `keccak(0x01 || left || right)`, an odd last node moves up unchanged; zero for none.
#[must_use]
pub fn proof_root(leaves: &[B256]) -> B256 {
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        level = parents(&level);
    }
    level.first().copied().unwrap_or_default()
}

/// Siblings of leaf `index` from the bottom up; a level on which it has none adds nothing.
#[must_use]
pub fn proof_path(leaves: &[B256], index: usize) -> Vec<B256> {
    let (mut level, mut at, mut path) = (leaves.to_vec(), index, Vec::new());
    while level.len() > 1 {
        path.extend(level.get(at ^ 1));
        (level, at) = (parents(&level), at / 2);
    }
    path
}

/// Whether `leaf` is at `index` of the `count` leaves under `root`.
#[must_use]
pub fn is_in_proof(root: B256, count: u32, index: u32, leaf: &ShownLeaf) -> bool {
    let (mut node, mut at, mut width) = (leaf.leaf, index, count);
    let mut path = leaf.path.iter();
    while width > 1 {
        // The last one of an odd number has no sibling.
        if at ^ 1 < width {
            let Some(sibling) = path.next() else { return false };
            node = if at & 1 == 0 { parent(&node, sibling) } else { parent(sibling, &node) };
        }
        (at, width) = (at / 2, width.div_ceil(2));
    }
    index < count && path.next().is_none() && node == root
}

/// Which of `count` positions an auditor has to show: the first eight bytes of
/// `keccak("assay/audit-position/1" || beacon || task || auditor || u32 i)` as a fraction of 2^64, times `count`, for
/// `i` below [`PROOF_POSITIONS`]. A position may come twice.
#[must_use]
pub fn proof_positions(beacon: B256, task: B256, auditor: Address, count: u32) -> Vec<u32> {
    if count == 0 {
        return Vec::new();
    }
    let position = |i: u32| {
        let tag = b"assay/audit-position/1".as_slice();
        let hash = keccak256([tag, beacon.as_slice(), task.as_slice(), auditor.as_slice(), &i.to_be_bytes()].concat());
        u32::try_from((u128::from(first_u64(&hash)) * u128::from(count)) >> 64).unwrap_or(0)
    };
    (0..PROOF_POSITIONS).map(position).collect()
}

/// Proof of replay: `keccak("assay/audit-digest/1" || beacon || auditor || leaves at the drawn positions)`. Anyone who
/// replays the task gets the same; nobody gets it from another auditor's.
#[must_use]
pub fn proof_digest(beacon: B256, auditor: Address, leaves: impl IntoIterator<Item = B256>) -> B256 {
    let mut out = Vec::with_capacity(220);
    out.extend_from_slice(b"assay/audit-digest/1");
    out.extend_from_slice(beacon.as_slice());
    out.extend_from_slice(auditor.as_slice());
    leaves.into_iter().for_each(|leaf| out.extend_from_slice(leaf.as_slice()));
    keccak256(out)
}

/// The first eight bytes of a hash, big-endian: 64 bits for a draw.
#[must_use]
pub fn first_u64(hash: &B256) -> u64 {
    hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

fn parents(level: &[B256]) -> Vec<B256> {
    let pair = |pair: &[B256]| match pair {
        [left, right] => parent(left, right),
        [last] => *last,
        _ => B256::ZERO,
    };
    level.chunks(2).map(pair).collect()
}

fn parent(left: &B256, right: &B256) -> B256 {
    keccak256([&[1], left.as_slice(), right.as_slice()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u8) -> Vec<B256> {
        (0..count).map(|i| B256::repeat_byte(i + 1)).collect()
    }

    #[test]
    fn every_leaf_of_every_tree_is_found_and_nothing_else() {
        for count in 1..20u8 {
            let leaves = leaves(count);
            let root = proof_root(&leaves);
            for index in 0..count {
                let shown = ShownLeaf { leaf: leaves[usize::from(index)], path: proof_path(&leaves, index.into()) };
                for claimed in 0..count + 2 {
                    let is_there = is_in_proof(root, count.into(), claimed.into(), &shown);
                    assert_eq!(is_there, claimed == index, "leaf {index} of {count} at {claimed}");
                }
                let mut longer = shown.clone();
                longer.path.push(B256::ZERO);
                assert!(!is_in_proof(root, count.into(), index.into(), &longer));
                let other = ShownLeaf { leaf: B256::repeat_byte(0xee), ..shown };
                assert!(!is_in_proof(root, count.into(), index.into(), &other));
            }
        }
    }

    #[test]
    fn every_field_of_a_finding_is_committed_to() {
        let finding = |verdict| AuditFinding { verdict, positions: 7, root: B256::repeat_byte(3) };
        let verdicts = [
            AuditVerdict::Exact,
            AuditVerdict::WrongToken { index: 1, expected: Some(2), got: 3 },
            AuditVerdict::WrongToken { index: 1, expected: None, got: 3 },
            AuditVerdict::WrongToken { index: 1, expected: Some(0), got: 3 },
            AuditVerdict::WrongToken { index: 2, expected: Some(2), got: 3 },
            AuditVerdict::WrongFinish { expected: Finish::Stop, got: Finish::Length },
            AuditVerdict::WrongFinish { expected: Finish::Length, got: Finish::Stop },
        ];
        let (task, auditor) = (B256::repeat_byte(1), Address::repeat_byte(2));
        let mut seen: Vec<B256> = verdicts.map(|v| finding(v).commitment(1, task, auditor)).to_vec();
        let exact = finding(AuditVerdict::Exact);
        seen.push(exact.commitment(2, task, auditor));
        seen.push(exact.commitment(1, B256::ZERO, auditor));
        seen.push(exact.commitment(1, task, Address::ZERO));
        seen.push(AuditFinding { positions: 8, ..exact }.commitment(1, task, auditor));
        seen.push(AuditFinding { root: B256::ZERO, ..exact }.commitment(1, task, auditor));
        let count = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), count);
    }

    #[test]
    fn positions_spread_over_the_whole_output_and_depend_on_beacon_and_auditor() {
        let at = |beacon, auditor| {
            proof_positions(B256::repeat_byte(beacon), B256::ZERO, Address::repeat_byte(auditor), 1000)
        };
        assert_eq!(at(1, 1).len(), PROOF_POSITIONS as usize);
        assert_ne!(at(1, 1), at(2, 1));
        assert_ne!(at(1, 1), at(1, 2));
        let all: Vec<u32> = (0..=255).flat_map(|beacon| at(beacon, 1)).collect();
        assert!(all.iter().all(|&p| p < 1000));
        let low = all.iter().filter(|&&p| p < 500).count();
        assert!((450..570).contains(&low), "{low} of {}", all.len());
        assert!(proof_positions(B256::ZERO, B256::ZERO, Address::ZERO, 0).is_empty());
    }

    #[test]
    fn long_rows_are_hashed_in_steps_and_short_ones_whole() {
        let row = vec![0.5f32; 5000];
        let changed = |index: usize| {
            let mut other = row.clone();
            other[index] = 0.25;
            logits_leaf(0, &row) != logits_leaf(0, &other)
        };
        assert!(changed(0) && changed(5) && !changed(1));
        let short = [1.0, 2.0, 3.0];
        assert_ne!(logits_leaf(0, &short), logits_leaf(1, &short));
        assert_ne!(logits_leaf(0, &short), logits_leaf(0, &[1.0, 2.0, -3.0]));
        assert_ne!(logits_leaf(0, &[0.0]), logits_leaf(0, &[-0.0]));
    }

    /// Written down: another implementation has to get the same.
    #[test]
    fn golden_hashes() {
        let shown = |hash: B256| hash.to_string();
        let (b, n, r) = (B256::repeat_byte(1), B256::repeat_byte(2), B256::repeat_byte(3));
        let auditor = Address::repeat_byte(4);
        let verdict = AuditVerdict::WrongToken { index: 5, expected: Some(6), got: 7 };
        let finding = AuditFinding { verdict, positions: 6, root: r };
        let golden = [
            shown(audit_draw(b, n, r)),
            shown(answer_commitment(ProviderId(auditor), RequestHash(b), n, ResponseHash(r))),
            shown(logits_leaf(9, &[1.0, -2.5])),
            shown(proof_root(&leaves(5))),
            shown(finding.commitment(31_337, n, auditor)),
            shown(AuditLease::digest(31_337, auditor, 1_700_000_000)),
            shown(proof_digest(b, auditor, [n, r])),
        ];
        assert_eq!(golden.join("\n"), GOLDEN);
        assert_eq!(proof_positions(b, n, auditor, 1000), POSITIONS);
    }

    const GOLDEN: &str = "0x2fea43e536e054b99d4adc2f5f31071a642921345d419285d5e8b553a354db0c\n\
        0x8e4992772d2957ff25e23d869c219d66b5bebc754319140682474cc5fcbc09ec\n\
        0xff47234662595dce74f153bac80fd0ca6f9792c2a0621eff8f783d6a801222e9\n\
        0x487a669ee32567d676e2825ea9ebc40d66b1767e550ae3748012612b6dbe6769\n\
        0x48b887c2d06db3d706c3cfaea2d472eb5065d653bb815818cde6a991622dac72\n\
        0x8f73d503e20f848073d95b3f66755fa2ee4c83d37845482fbb5b474745222ed3\n\
        0x6c7c3b933926146d41d17d44964f2066204f6e53553534737ba0e0ea08351e23";
    const POSITIONS: [u32; 4] = [915, 625, 436, 69];
}
