//! How an output ended, and the hash that commits to it.

use crate::{ResponseHash, TokenId, job::put_tokens};
use alloy_primitives::keccak256;
use serde::{Deserialize, Serialize};

/// How an output ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// Not ended: a checkpoint receipt, further tokens follow (or the provider was lost).
    Open,
    /// An end-of-generation token or a stop string.
    Stop,
    /// `max_tokens` reached.
    Length,
    /// The client left or stopped paying.
    Cancelled,
}

impl Finish {
    /// The byte that is hashed.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Open => 0,
            Self::Stop => 1,
            Self::Length => 2,
            Self::Cancelled => 3,
        }
    }
}

/// The tag `assay/response/1`, the tokens (count, then ids, `u32` big-endian) and the finish code.
///
/// `output` is what this provider produced, without the job's prefix.
#[must_use]
pub fn response_bytes(output: &[TokenId], finish: Finish) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(21 + 4 * output.len());
    bytes.extend_from_slice(b"assay/response/1");
    put_tokens(&mut bytes, output);
    bytes.push(finish.code());
    bytes
}

/// keccak256 of [`response_bytes`].
#[must_use]
pub fn response_hash(output: &[TokenId], finish: Finish) -> ResponseHash {
    ResponseHash(keccak256(response_bytes(output, finish)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_and_finish_are_committed() {
        let base = response_hash(&[1, 2], Finish::Stop);
        for (output, finish) in
            [(&[1][..], Finish::Stop), (&[2, 1], Finish::Stop), (&[1, 2], Finish::Length), (&[1, 2, 0], Finish::Stop)]
        {
            assert_ne!(base, response_hash(output, finish));
        }
        assert_eq!(base.to_string(), "0x01dd81ac40336bd24013bded463fe153e092e2035ab4343b226b27cb895ffb6c");
    }
}
