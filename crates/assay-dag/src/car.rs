//! CAR, version 1: a header that names roots, then blocks with their CIDs, one after the other.

use crate::{BLOCK_LEN_MAX, Cid, CidError, varint};

/// Longest header that is read; one with a root has 58 bytes.
const HEADER_LEN_MAX: u64 = 4096;
/// Longest CID before a block.
const CID_LEN_MAX: u64 = 64;
/// Bytes of a length that are looked at.
const LENGTH_LEN_MAX: usize = 10;

/// Why a stream is no CAR that can be read here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CarError {
    /// The header is not that of version 1.
    #[error("the CAR's header is damaged: {0}")]
    Header(&'static str),
    /// Version 2 wraps a version 1 and is no stream.
    #[error("CAR version {0} is not supported, only 1")]
    UnknownVersion(u64),
    /// A length is no number, or larger than any block.
    #[error("a block of the CAR has no valid length")]
    Length,
    /// A block's name cannot be used.
    #[error("a block of the CAR: {0}")]
    Cid(#[from] CidError),
    /// It ends in the middle.
    #[error("the CAR ends early")]
    Truncated,
}

/// The header of a stream for `root`.
#[must_use]
pub fn header(root: &Cid) -> Vec<u8> {
    let cid = root.to_bytes();
    // dag-cbor: {"roots": [42(0x00 cid)], "version": 1}
    let mut cbor = vec![0xa2, 0x65];
    cbor.extend_from_slice(b"roots");
    cbor.extend_from_slice(&[0x81, 0xd8, 0x2a, 0x58, cid.len() as u8 + 1, 0]);
    cbor.extend_from_slice(&cid);
    cbor.push(0x67);
    cbor.extend_from_slice(b"version");
    cbor.push(1);
    let mut out = vec![];
    varint::put(&mut out, cbor.len() as u64);
    out.extend_from_slice(&cbor);
    out
}

/// What comes before a block of `len` bytes.
#[must_use]
pub fn section(cid: &Cid, len: usize) -> Vec<u8> {
    let cid = cid.to_bytes();
    let mut out = Vec::with_capacity(cid.len() + 5);
    varint::put(&mut out, (cid.len() + len) as u64);
    out.extend_from_slice(&cid);
    out
}

/// Reads a stream that comes in pieces. Holds one block and one piece.
#[derive(Debug, Default)]
pub struct CarReader {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that were read.
    at: usize,
    /// Bytes before `buffer`.
    before: u64,
    roots: Option<Vec<Cid>>,
}

impl CarReader {
    /// Nothing is read.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what came. Ask [`Self::next_block`] until it gives nothing before adding more.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.at);
        self.before += self.at as u64;
        self.at = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The roots that the header names, once it is read. Those that cannot be used here are left out.
    #[must_use]
    pub fn roots(&self) -> Option<&[Cid]> {
        self.roots.as_deref()
    }

    /// Bytes of the stream up to the end of what was read last.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.before + self.at as u64
    }

    /// The next whole block, whose hash is not checked.
    ///
    /// # Errors
    /// [`CarError`]; the rest of the stream means nothing then.
    pub fn next_block(&mut self) -> Result<Option<(Cid, Vec<u8>)>, CarError> {
        if self.roots.is_none() {
            let Some(header) = self.part(HEADER_LEN_MAX).map_err(|_| CarError::Header("its length"))? else {
                return Ok(None);
            };
            self.roots = Some(parse_header(&header)?);
        }
        let Some(part) = self.part(BLOCK_LEN_MAX as u64 + CID_LEN_MAX)? else { return Ok(None) };
        let mut rest = &part[..];
        let cid = Cid::take(&mut rest)?;
        let cid_len = part.len() - rest.len();
        let mut block = part;
        block.drain(..cid_len);
        Ok(Some((cid, block)))
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// [`CarError::Truncated`].
    pub fn finish(&self) -> Result<(), CarError> {
        if self.roots.is_some() && self.at == self.buffer.len() { Ok(()) } else { Err(CarError::Truncated) }
    }

    /// The next part behind its length, if all of it is there.
    fn part(&mut self, len_max: u64) -> Result<Option<Vec<u8>>, CarError> {
        let unread = &self.buffer[self.at..];
        let mut rest = unread;
        let Some(len) = varint::take(&mut rest) else {
            return if unread.len() < LENGTH_LEN_MAX { Ok(None) } else { Err(CarError::Length) };
        };
        if len == 0 || len > len_max {
            return Err(CarError::Length);
        }
        let Some(part) = varint::take_bytes(&mut rest, len) else { return Ok(None) };
        let part = part.to_vec();
        self.at = self.buffer.len() - rest.len();
        Ok(Some(part))
    }
}

/// A header's map has two keys, in dag-cbor's order; other orders and lengths of numbers are no dag-cbor.
fn parse_header(bytes: &[u8]) -> Result<Vec<Cid>, CarError> {
    let mut cbor = Cbor(bytes);
    let mut roots = vec![];
    let mut version = None;
    for _ in 0..cbor.head(5)? {
        let len = cbor.head(3)?;
        match cbor.bytes(len)? {
            b"roots" => {
                for _ in 0..cbor.head(4)? {
                    if cbor.head(6)? != 42 {
                        return Err(CarError::Header("a root is no link"));
                    }
                    let len = cbor.head(2)?;
                    let link = cbor.bytes(len)?;
                    let cid = link.strip_prefix(&[0]).ok_or(CarError::Header("a link without its prefix"))?;
                    roots.extend(Cid::from_bytes(cid));
                }
            }
            b"version" => version = Some(cbor.head(0)?),
            _ => return Err(CarError::Header("a key that it does not have")),
        }
    }
    match version {
        Some(1) if cbor.0.is_empty() => Ok(roots),
        Some(1) => Err(CarError::Header("it goes on")),
        Some(other) => Err(CarError::UnknownVersion(other)),
        None => Err(CarError::Header("it has no version")),
    }
}

struct Cbor<'a>(&'a [u8]);

impl<'a> Cbor<'a> {
    /// The number of an item of type `major`. Each item takes a byte at least, so counts need no limit of their own.
    fn head(&mut self, major: u8) -> Result<u64, CarError> {
        let damaged = CarError::Header("it is no dag-cbor map of roots and version");
        let (&first, rest) = self.0.split_first().ok_or(damaged.clone())?;
        if first >> 5 != major {
            return Err(damaged);
        }
        self.0 = rest;
        let len = match first & 31 {
            small @ 0..=23 => return Ok(u64::from(small)),
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => return Err(damaged),
        };
        let bytes = self.bytes(len)?;
        Ok(bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn bytes(&mut self, len: u64) -> Result<&'a [u8], CarError> {
        varint::take_bytes(&mut self.0, len).ok_or(CarError::Header("it ends early"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Codec, Version};

    fn stream() -> (Vec<(Cid, Vec<u8>)>, Vec<u8>) {
        let blocks: Vec<(Cid, Vec<u8>)> =
            [(Version::V0, Codec::DagPb, 3), (Version::V1, Codec::Raw, 700), (Version::V1, Codec::DagPb, 0)]
                .map(|(version, codec, len)| {
                    let block = vec![len as u8; len];
                    (Cid::of(version, codec, &block), block)
                })
                .into();
        let mut bytes = header(&blocks[0].0);
        for (cid, block) in &blocks {
            bytes.extend(section(cid, block.len()));
            bytes.extend(block);
        }
        (blocks, bytes)
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<(Cid, Vec<u8>)>, CarError> {
        let (mut reader, mut blocks) = (CarReader::new(), vec![]);
        for piece in bytes.chunks(piece) {
            reader.feed(piece);
            while let Some(block) = reader.next_block()? {
                blocks.push(block);
            }
        }
        reader.finish()?;
        Ok(blocks)
    }

    #[test]
    fn a_stream_in_pieces_of_any_length_gives_its_blocks() {
        let (blocks, bytes) = stream();
        for piece in [1, 2, 7, 64, 1 << 20] {
            assert_eq!(read(&bytes, piece).unwrap(), blocks);
        }
        let mut reader = CarReader::new();
        reader.feed(&bytes);
        reader.next_block().unwrap();
        assert_eq!(reader.roots(), Some(&[blocks[0].0][..]));
        let first = header(&blocks[0].0).len() + section(&blocks[0].0, 3).len() + 3;
        assert_eq!(reader.position(), first as u64);
        reader.feed(b"");
        assert_eq!(reader.position(), first as u64);
    }

    #[test]
    fn a_cut_is_noticed_wherever_it_is() {
        let (blocks, bytes) = stream();
        let ends: Vec<usize> = {
            let mut at = header(&blocks[0].0).len();
            let sections = blocks.iter().map(|(cid, block)| {
                at += section(cid, block.len()).len() + block.len();
                at
            });
            std::iter::once(header(&blocks[0].0).len()).chain(sections).collect()
        };
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut], 50).is_ok(), ends.contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn other_headers_are_refused_by_name() {
        let check = |cbor: &[u8], expect: &str| {
            let mut bytes = vec![cbor.len() as u8];
            bytes.extend_from_slice(cbor);
            let error = read(&bytes, 100).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        // The pragma of version 2.
        check(b"\xa1\x67version\x02", "version 2 is not supported");
        check(b"\xa0", "no version");
        check(b"\x80", "no dag-cbor map");
        check(b"\xa1\x67version\x01\x00", "goes on");
        check(b"\xa1\x67versiox\x01", "does not have");
        check(b"\xa1\x65roots\x9b\xff\xff\xff\xff\xff\xff\xff\xff", "no dag-cbor map");
        check(b"\xa1\x65roots\x81\xd8\x2b\x41\x00", "no link");
        check(b"\xa1\x7b\xff\xff\xff\xff\xff\xff\xff\xff", "ends early");
        let error = |bytes: &[u8]| read(bytes, 100).unwrap_err();
        assert_eq!(error(&[0xff; 11]), CarError::Header("its length"));
        assert_eq!(error(&[0xff, 0xff, 3]), CarError::Header("its length"));
        let with = |section: &[u8]| [&header(&stream().0[0].0)[..], section].concat();
        assert_eq!(error(&with(&[0])), CarError::Length);
        assert_eq!(error(&with(&[0xff, 0xff, 0xff, 0x7f])), CarError::Length);
        assert_eq!(error(&with(&[2, 0x12, 0x20])), CarError::Cid(CidError::Damaged));
        assert_eq!(error(&with(&[3, 1, 0x71, 0x12])), CarError::Cid(CidError::UnknownCodec(0x71)));
    }

    #[test]
    fn mutated_streams_do_not_panic() {
        let (_, bytes) = stream();
        let mut state = 5_u32;
        for _ in 0..20_000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut mutated = bytes.clone();
            // Mostly the header and the first lengths.
            let at = (state >> 8) as usize % if state & 8 == 0 { 110 } else { bytes.len() };
            mutated[at] ^= 1 << (state >> 28 & 7);
            for (cid, block) in read(&mutated, 97).unwrap_or_default() {
                assert!(block.len() <= BLOCK_LEN_MAX && cid.to_bytes().len() <= 64);
            }
        }
    }
}
