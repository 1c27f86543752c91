//! EIP-712 digests in a domain whose separator is hashed once instead of for every digest.

use alloy_primitives::{B256, keccak256};
use alloy_sol_types::{Eip712Domain, SolStruct};

/// Where a signature counts: one contract on one chain.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SigningDomain {
    separator: B256,
}

impl SigningDomain {
    pub(crate) fn new(domain: &Eip712Domain) -> Self {
        Self { separator: domain.separator() }
    }

    /// `keccak256(0x1901 || separator || keccak256(type_hash || value))`.
    pub(crate) fn digest<T: SolStruct>(&self, type_hash: &B256, value: &T) -> B256 {
        let fields = value.eip712_encode_data();
        let mut message = Vec::with_capacity(32 + fields.len());
        message.extend_from_slice(type_hash.as_slice());
        message.extend_from_slice(&fields);
        let mut digest = [0; 66];
        digest[..2].copy_from_slice(&[0x19, 0x01]);
        digest[2..34].copy_from_slice(self.separator.as_slice());
        digest[34..].copy_from_slice(keccak256(message).as_slice());
        keccak256(digest)
    }
}

/// What EIP-712 puts before the fields of every `T`.
pub(crate) fn type_hash<T: SolStruct>() -> B256 {
    keccak256(T::eip712_encode_type().as_bytes())
}
