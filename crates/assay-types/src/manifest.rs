//! What a model is: everything that two parties must share to get the same bits.

use crate::{ModelId, job::put_count};
use alloy_primitives::{B256, keccak256};
use serde::{Deserialize, Serialize};

/// The arithmetic profile of this release (docs/PROTOCOL.md, "canonical-1").
pub const CANONICAL_PROFILE: &str = "canonical-1";

/// The profile of engines that are not canonical: the same weights and tokenizer, any arithmetic, any batching, any
/// random numbers (docs/PROTOCOL.md, "tolerant-1").
pub const TOLERANT_PROFILE: &str = "tolerant-1";

/// What can be said of an answer afterwards. It follows from the model's profile, so whoever signs a [`ModelId`], in an
/// offer or a receipt, signs the class with it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Its tokens are re-derived bit for bit; a wrong one costs the provider its stake.
    Exact,
    /// Its tokens are compared with the canonical engine's in the long run; only reputation moves.
    Tolerant,
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Exact => "exact",
            Self::Tolerant => "tolerant",
        })
    }
}

/// A model's manifest; its hash is the [`ModelId`].
///
/// Only what follows from the file and the profile is in it, so that two people who have the same file have the
/// same model without agreeing on anything else.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// `canonical-1`.
    pub profile: String,
    /// SHA-256 of the file.
    pub file_sha256: B256,
    /// Bytes of the file.
    pub file_len: u64,
    /// keccak Merkle root over the tensor data in 1 KiB leaves.
    pub weights_root: B256,
    /// Hash of the metadata that defines the tokenizer.
    pub tokenizer_hash: B256,
    /// Hash of the RoPE cosine and sine tables.
    pub rope_hash: B256,
    /// Hash of the model's graph (docs/COURT.md); zero if no court can judge its numbers.
    pub graph_hash: B256,
    /// `general.name` of the file, empty if it has none.
    pub name: String,
    /// `general.license` of the file, empty if it has none.
    pub license: String,
}

impl Manifest {
    /// Canonical bytes: the tag `assay/manifest/2`, then every field in declaration order; integers big-endian,
    /// strings with a `u32` length before them.
    #[must_use]
    pub fn canonical_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        out.extend_from_slice(b"assay/manifest/2");
        put_string(&mut out, &self.profile);
        out.extend_from_slice(self.file_sha256.as_slice());
        out.extend_from_slice(&self.file_len.to_be_bytes());
        out.extend_from_slice(self.weights_root.as_slice());
        out.extend_from_slice(self.tokenizer_hash.as_slice());
        out.extend_from_slice(self.rope_hash.as_slice());
        out.extend_from_slice(self.graph_hash.as_slice());
        put_string(&mut out, &self.name);
        put_string(&mut out, &self.license);
        out
    }

    /// The class of its profile; `None` for one that this release does not know.
    #[must_use]
    pub fn class(&self) -> Option<Class> {
        match self.profile.as_str() {
            CANONICAL_PROFILE => Some(Class::Exact),
            TOLERANT_PROFILE => Some(Class::Tolerant),
            _ => None,
        }
    }

    /// The same file run by an engine that is not canonical: another profile, and no court that could judge it.
    #[must_use]
    pub fn tolerant(&self) -> Self {
        Self { profile: TOLERANT_PROFILE.into(), graph_hash: B256::ZERO, ..self.clone() }
    }

    /// keccak256 of [`Self::canonical_bytes`].
    #[must_use]
    pub fn model_id(&self) -> ModelId {
        ModelId(keccak256(self.canonical_bytes()))
    }
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}
