//! A secp256k1 signature over a digest, and who made it.

use alloy_primitives::{Address, B256, hex};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// `r || s || v`, 65 bytes, `v` 27 or 28, `s` in the lower half (EIP-2): what EVM contracts take.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature(pub [u8; 65]);

/// Why a signature names nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SignatureError {
    /// Not 65 bytes of `r || s || v`, or a high `s`.
    #[error("signature is malformed")]
    Malformed,
    /// It recovers to an address, but not to the one that had to sign.
    #[error("signed by {found:#x}, not by {expected:#x}")]
    WrongSigner {
        /// Who had to sign.
        expected: Address,
        /// Who did.
        found: Address,
    },
}

impl Signature {
    /// From an `alloy` signature.
    #[must_use]
    pub fn new(signature: &alloy_primitives::Signature) -> Self {
        Self(signature.as_bytes())
    }

    /// The address whose key signed `digest`.
    ///
    /// # Errors
    /// [`SignatureError::Malformed`] for bytes that are no signature; a high `s` is refused because it would give
    /// one statement two encodings.
    pub fn recover(&self, digest: &B256) -> Result<Address, SignatureError> {
        if !matches!(self.0[64], 27 | 28) {
            return Err(SignatureError::Malformed);
        }
        let signature = alloy_primitives::Signature::from_raw_array(&self.0).map_err(|_| SignatureError::Malformed)?;
        if signature.normalize_s().is_some() {
            return Err(SignatureError::Malformed);
        }
        signature.recover_address_from_prehash(digest).map_err(|_| SignatureError::Malformed)
    }

    /// Checks that `expected` signed `digest`.
    ///
    /// # Errors
    /// [`SignatureError`] says what is wrong.
    pub fn verify(&self, digest: &B256, expected: Address) -> Result<(), SignatureError> {
        let found = self.recover(digest)?;
        if found == expected { Ok(()) } else { Err(SignatureError::WrongSigner { expected, found }) }
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({})", hex::encode_prefixed(self.0))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&hex::encode_prefixed(self.0))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            let mut bytes = [0; 65];
            hex::decode_to_slice(&text, &mut bytes).map_err(serde::de::Error::custom)?;
            Ok(Self(bytes))
        } else {
            deserializer.deserialize_bytes(Bytes65)
        }
    }
}

struct Bytes65;

impl serde::de::Visitor<'_> for Bytes65 {
    type Value = Signature;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("65 bytes")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Signature, E> {
        bytes.try_into().map(Signature).map_err(|_| E::invalid_length(bytes.len(), &self))
    }
}
