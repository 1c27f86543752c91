//! Names of blocks: CIDs of versions 0 and 1 (multiformats/cid).

use crate::{base, varint};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Longest text that is looked at.
const TEXT_LEN_MAX: usize = 160;
/// Multihash code of SHA-256.
const SHA2_256: u64 = 0x12;
const DIGEST_LEN: u64 = 32;

/// How a CID is written, which is part of its name only as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Version {
    /// `Qm...`: dag-pb with SHA-256, nothing else.
    V0,
    /// `baf...`.
    V1,
}

/// What a block's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Codec {
    /// Bytes of a file.
    Raw,
    /// A node with links.
    DagPb,
}

impl Codec {
    fn code(self) -> u64 {
        match self {
            Self::Raw => 0x55,
            Self::DagPb => 0x70,
        }
    }
}

/// The name of a block: SHA-256 of its bytes, and how they are to be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cid {
    /// Version 0 is always dag-pb.
    version: Version,
    codec: Codec,
    digest: [u8; 32],
}

/// Why something is no CID that can be used here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CidError {
    /// Neither `Qm...` nor a multibase text.
    #[error("{text:?} is no CID: {what}")]
    Text {
        /// The first characters of it.
        text: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The bytes end early or go on.
    #[error("a CID's bytes are damaged")]
    Damaged,
    /// Not version 0 or 1.
    #[error("CID version {0} is not known")]
    UnknownVersion(u64),
    /// Not raw and not dag-pb.
    #[error("blocks of codec {0:#x} are not supported, only raw (0x55) and dag-pb (0x70)")]
    UnknownCodec(u64),
    /// Not SHA-256.
    #[error("hash function {0:#x} is not supported, only SHA-256 (0x12)")]
    UnknownHash(u64),
}

impl Cid {
    /// The name of `block`.
    #[must_use]
    pub fn of(version: Version, codec: Codec, block: &[u8]) -> Self {
        Self::from_digest(version, codec, Sha256::digest(block).into())
    }

    /// The name of a block that hashes to `digest`. A raw block's is of version 1.
    #[must_use]
    pub fn from_digest(version: Version, codec: Codec, digest: [u8; 32]) -> Self {
        let version = if codec == Codec::Raw { Version::V1 } else { version };
        Self { version, codec, digest }
    }

    /// Whether `block` is what this names.
    #[must_use]
    pub fn is_of(&self, block: &[u8]) -> bool {
        self.digest == <[u8; 32]>::from(Sha256::digest(block))
    }

    /// SHA-256 of the block.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// How the block's bytes are to be read.
    #[must_use]
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// How this is written.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The binary form.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(36);
        if self.version == Version::V1 {
            varint::put(&mut bytes, 1);
            varint::put(&mut bytes, self.codec.code());
        }
        varint::put(&mut bytes, SHA2_256);
        varint::put(&mut bytes, DIGEST_LEN);
        bytes.extend_from_slice(&self.digest);
        bytes
    }

    /// Takes a binary CID off the front of `bytes`.
    ///
    /// # Errors
    /// [`CidError`], `bytes` are then anywhere.
    pub fn take(bytes: &mut &[u8]) -> Result<Self, CidError> {
        // Version 0 is a bare multihash, and there is no version 0x12.
        if bytes.starts_with(&[SHA2_256 as u8, DIGEST_LEN as u8]) {
            let digest = take_multihash(bytes)?;
            return Ok(Self { version: Version::V0, codec: Codec::DagPb, digest });
        }
        let version = varint::take(bytes).ok_or(CidError::Damaged)?;
        if version != 1 {
            return Err(CidError::UnknownVersion(version));
        }
        let codec = match varint::take(bytes).ok_or(CidError::Damaged)? {
            0x55 => Codec::Raw,
            0x70 => Codec::DagPb,
            other => return Err(CidError::UnknownCodec(other)),
        };
        Ok(Self { version: Version::V1, codec, digest: take_multihash(bytes)? })
    }

    /// Reads a binary CID.
    ///
    /// # Errors
    /// [`CidError`], also if something follows it.
    pub fn from_bytes(mut bytes: &[u8]) -> Result<Self, CidError> {
        let cid = Self::take(&mut bytes)?;
        if bytes.is_empty() { Ok(cid) } else { Err(CidError::Damaged) }
    }
}

fn take_multihash(bytes: &mut &[u8]) -> Result<[u8; 32], CidError> {
    let hash = varint::take(bytes).ok_or(CidError::Damaged)?;
    if hash != SHA2_256 {
        return Err(CidError::UnknownHash(hash));
    }
    if varint::take(bytes) != Some(DIGEST_LEN) {
        return Err(CidError::Damaged);
    }
    let digest = varint::take_bytes(bytes, DIGEST_LEN).ok_or(CidError::Damaged)?;
    digest.try_into().map_err(|_| CidError::Damaged)
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Version::V0 => f.write_str(&base::to_base58(&self.to_bytes())),
            Version::V1 => write!(f, "b{}", base::to_base32(&self.to_bytes())),
        }
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Cid {
    type Err = CidError;

    fn from_str(text: &str) -> Result<Self, CidError> {
        let no = |what| CidError::Text { text: text.chars().take(80).collect(), what };
        if text.len() > TEXT_LEN_MAX {
            return Err(no("it is too long"));
        }
        if text.len() == 46 && text.starts_with("Qm") {
            let bytes = base::from_base58(text).ok_or_else(|| no("it has a character that base58 lacks"))?;
            return Self::from_bytes(&bytes);
        }
        let mut rest = text.chars();
        let bytes = match rest.next() {
            Some('b' | 'B') => base::from_base32(rest.as_str()),
            Some('z') => base::from_base58(rest.as_str()),
            Some('f' | 'F') => base::from_base16(rest.as_str()),
            _ => return Err(no("it begins with neither Qm nor b, z or f")),
        };
        let cid = Self::from_bytes(&bytes.ok_or_else(|| no("it has a character that its base lacks"))?)?;
        // A version 0 has no multibase form.
        if cid.version == Version::V0 { Err(no("version 0 is written Qm...")) } else { Ok(cid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_everybody_knows() {
        let empty = Cid::of(Version::V1, Codec::Raw, b"");
        assert_eq!(empty.to_string(), "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku");
        let v0 = Cid::of(Version::V0, Codec::DagPb, &[0x0a, 4, 8, 2, 0x18, 0]);
        assert_eq!(v0.to_string(), "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH");
        assert!(empty.is_of(b"") && !empty.is_of(b"x"));
    }

    #[test]
    fn every_form_comes_back() {
        let cids = [
            Cid::of(Version::V0, Codec::DagPb, b"x"),
            Cid::of(Version::V1, Codec::DagPb, b"x"),
            Cid::of(Version::V0, Codec::Raw, b"x"),
        ];
        for cid in cids {
            assert_eq!(cid.to_string().parse(), Ok(cid));
            assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid));
        }
        let bytes = cids[1].to_bytes();
        for text in [
            cids[1].to_string().to_uppercase(),
            format!("z{}", base::to_base58(&bytes)),
            format!("f{}", hex::encode(&bytes)),
        ] {
            assert_eq!(text.parse(), Ok(cids[1]), "{text}");
        }
    }

    #[test]
    fn what_is_no_cid_says_why() {
        let check = |text: &str, expect: &str| {
            let error = text.parse::<Cid>().unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check("", "begins with neither");
        check("assay-tiny", "begins with neither");
        check("QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQ0", "base58 lacks");
        check("bafkrei1", "its base lacks");
        check(&"b".repeat(200), "too long");
        check(&format!("z{}", Cid::of(Version::V0, Codec::DagPb, b"")), "version 0 is written Qm");
        // dag-cbor; blake3; version 2; one byte short; one more.
        check(&format!("f017112 20{}", "00".repeat(32)).replace(' ', ""), "codec 0x71");
        check(&format!("f01551e20{}", "00".repeat(32)), "hash function 0x1e");
        check(&format!("f02551220{}", "00".repeat(32)), "version 2");
        check(&format!("f01551220{}", "00".repeat(31)), "damaged");
        check(&format!("f01551220{}", "00".repeat(33)), "damaged");
        check(&format!("f0155121f{}", "00".repeat(31)), "damaged");
    }
}
