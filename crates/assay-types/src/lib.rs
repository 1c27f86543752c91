//! The vocabulary of the network: ids, amounts, jobs, vouchers, receipts, manifests.
//!
//! Owns every byte that is hashed or signed. Canonical bytes are big-endian and domain-separated, typed data is
//! EIP-712; docs/PROTOCOL.md is the normative text and `vectors/` holds the golden bytes. Holds no socket, file,
//! clock or randomness, and no private key: callers sign the digests that are computed here.

mod amount;
mod audit;
mod domain;
mod embed;
mod grammar;
mod ids;
mod job;
mod manifest;
mod offer;
mod receipt;
mod receipt_file;
mod response;
mod signature;
mod voucher;

pub use alloy_primitives::{Address, B256, keccak256};
pub use amount::{Amount, Prices};
pub use audit::{
    AuditBeacon, AuditCommit, AuditEnd, AuditFinding, AuditLease, AuditProof, AuditReply, AuditTask, AuditVerdict,
    LOGITS_HASHED_MAX, PROOF_POSITIONS, ShownLeaf, answer_commitment, audit_draw, first_u64, is_in_proof, logits_leaf,
    proof_digest, proof_path, proof_positions, proof_root,
};
pub use domain::SigningDomain;
pub use embed::{EMBED_TEXTS_MAX, EMBED_TOKENS_MAX, EMBED_VALUES_MAX, Embed};
pub use grammar::{GRAMMAR_LEN_MAX, GRAMMAR_VERSION, Grammar, GrammarKind};
pub use ids::{ChannelId, ModelId, ProviderId, RequestHash, ResponseHash, TokenId};
pub use job::{
    Job, JobError, JobLimits, LOGIT_BIAS_MAX, LogitBias, MICRO, Sampling, TOP_LOGPROBS_MAX, TokenLogprobs, choice_seed,
};
pub use manifest::{CANONICAL_PROFILE, Class, Manifest, TOLERANT_PROFILE};
pub use offer::{ModelOffer, Offer, SignedOffer};
pub use receipt::{Done, Receipt, SignedReceipt, receipt_domain};
pub use receipt_file::{RECEIPT_FILE_VERSION, ReceiptFile, ReceiptPart};
pub use response::{Finish, response_bytes, response_hash};
pub use signature::{Signature, SignatureError};
pub use voucher::{ChannelConfig, SETTLEMENT_ADDRESS, SignedVoucher, Voucher, settlement_domain};

/// Output tokens that one chunk of trust covers: a stream is at most this far ahead of its voucher, and a provider
/// signs a checkpoint receipt each time this many further tokens exist.
pub const CHUNK_TOKENS: u32 = 64;
