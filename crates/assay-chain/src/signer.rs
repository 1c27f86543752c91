//! Signs digests by the thousand: vouchers and receipts.

use alloy_primitives::keccak256;
use alloy_signer_local::PrivateKeySigner;
use assay_types::{B256, Signature};
use secp256k1::{Message, Secp256k1, SecretKey, SignOnly};
use std::fmt;

/// A private key in the form of libsecp256k1, which signs several times faster than the pure Rust signer that
/// transactions go through. Both choose nonces by RFC 6979, so they make the same signatures.
pub struct DigestSigner {
    context: Secp256k1<SignOnly>,
    key: SecretKey,
}

impl DigestSigner {
    /// Signs as `signer`.
    #[must_use]
    pub fn new(signer: &PrivateKeySigner) -> Self {
        let bytes = signer.to_bytes();
        let key = SecretKey::from_byte_array(bytes.0).expect("both libraries take the scalars from 1 to the order");
        let mut context = Secp256k1::signing_only();
        // Blinds the multiplication against listeners; known to nobody who does not know the key.
        context.seeded_randomize(&keccak256([b"assay/blind/1".as_slice(), bytes.as_slice()].concat()).0);
        Self { context, key }
    }

    /// `r || s || v` with a low `s`, for [`Signature::recover`].
    #[must_use]
    pub fn sign(&self, digest: &B256) -> Signature {
        let signature = self.context.sign_ecdsa_recoverable(Message::from_digest(digest.0), &self.key);
        Signature::new(&signature.into())
    }
}

impl Drop for DigestSigner {
    fn drop(&mut self) {
        self.key.non_secure_erase();
    }
}

impl fmt::Debug for DigestSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DigestSigner").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_signer::SignerSync;

    #[test]
    fn signs_as_the_transaction_signer_does() {
        for seed in 1u8..=64 {
            let signer = PrivateKeySigner::from_bytes(&B256::repeat_byte(seed)).unwrap();
            let digest = keccak256([seed]);
            let signature = DigestSigner::new(&signer).sign(&digest);
            assert_eq!(signature, Signature::new(&signer.sign_hash_sync(&digest).unwrap()));
            assert_eq!(signature.recover(&digest), Ok(signer.address()));
        }
    }
}
