//! The file of packed weights: where everything is, and what tells that it is whole.
//!
//! ```text
//! 0       head, 4096 bytes: magic, version, layout, source, lengths, checksum of the table, checksum of the head
//! 4096    body: the matrices in the order in which the model loads them, each from a multiple of 4096 bytes on
//! ..      table: 40 bytes for each matrix, then a checksum of each MiB of the body
//! ```
//! All numbers are little-endian; the weights themselves are as this machine's kernels read them, which is part of
//! the layout's id. Every byte of the file is below exactly one checksum, and the length is in the head. The head is
//! written last: a file without a valid one was never finished.

use alloy_primitives::B256;
use assay_num::{Format, Packing, checksum};

/// Bytes before the body.
pub(crate) const HEAD_LEN: usize = 4096;
/// Bytes of the body below one checksum.
pub(crate) const CHUNK_LEN: usize = 1 << 20;
/// Matrices start at a multiple of it: the page of most machines.
pub(crate) const PAGE: u64 = 4096;

const MAGIC: [u8; 8] = *b"ASSAYWTS";
const VERSION: u32 = 1;
const ENTRY_LEN: usize = 40;

/// What a file of packed weights is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// [`assay_num::layout_id`] of the build that wrote it.
    pub layout: u64,
    /// Content hash of the model file.
    pub source: B256,
    /// Bytes between head and table.
    pub body_len: u64,
    pub n_matrices: u64,
    pub table_checksum: u64,
}

/// Where a matrix is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// From the start of the file.
    pub offset: u64,
    pub packing: Packing,
    pub has_min: bool,
}

/// The end of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub entries: Vec<Entry>,
    /// Of each [`CHUNK_LEN`] bytes of the body.
    pub checksums: Vec<u64>,
}

/// Why packed weights in a file are not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// It does not start as such a file.
    #[error("it is no file of packed weights, or was never finished")]
    NotWeights,
    /// Another release wrote it.
    #[error("it has version {found}, this release reads {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// This build packs weights in another way.
    #[error("its weights are packed for another release or another kind of machine")]
    Layout,
    /// The weights of another model.
    #[error("it was made from another model file")]
    Source,
    /// It was cut off, or something was added.
    #[error("it has {got} bytes instead of {expected}")]
    Length {
        /// As its head says.
        expected: u64,
        /// As it is.
        got: u64,
    },
    /// A byte changed in the part that is named.
    #[error("its {part} is damaged")]
    Damaged {
        /// Which part.
        part: &'static str,
    },
    /// A byte of the weights changed.
    #[error("its weights are damaged in MiB {chunk}")]
    Weights {
        /// Number of the piece, from 0.
        chunk: u64,
    },
    /// The model has other matrices than the file.
    #[error("it has other matrices than the model")]
    Matrices,
}

impl Flaw {
    /// Whether the file is as it was written, but not for this build: no reason to suspect the disk.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        matches!(self, Flaw::Version { .. } | Flaw::Layout | Flaw::Matrices)
    }
}

impl Head {
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut bytes = [0; HEAD_LEN];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.layout.to_le_bytes());
        put(24, self.source.as_slice());
        put(56, &self.body_len.to_le_bytes());
        put(64, &self.n_matrices.to_le_bytes());
        put(72, &self.table_checksum.to_le_bytes());
        let sum = checksum(&bytes[..HEAD_LEN - 8]);
        bytes[HEAD_LEN - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// `bytes`: the file's start. Checks everything that the head alone can tell, the layout not among it.
    pub fn decode(bytes: &[u8]) -> Result<Head, Flaw> {
        let bytes: &[u8; HEAD_LEN] = bytes.first_chunk().ok_or(Flaw::NotWeights)?;
        if bytes[..8] != MAGIC {
            return Err(Flaw::NotWeights);
        }
        // Only the magic is the same in every version.
        let found = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        if found != VERSION {
            return Err(Flaw::Version { found });
        }
        if u64_at(bytes, HEAD_LEN - 8) != checksum(&bytes[..HEAD_LEN - 8]) {
            return Err(Flaw::Damaged { part: "head" });
        }
        Ok(Head {
            layout: u64_at(bytes, 16),
            source: B256::from_slice(&bytes[24..56]),
            body_len: u64_at(bytes, 56),
            n_matrices: u64_at(bytes, 64),
            table_checksum: u64_at(bytes, 72),
        })
    }

    /// Bytes of the whole file; `None` if the numbers cannot be.
    pub fn file_len(&self) -> Option<u64> {
        let checksums = self.body_len.div_ceil(CHUNK_LEN as u64).checked_mul(8)?;
        let table = self.n_matrices.checked_mul(ENTRY_LEN as u64)?.checked_add(checksums)?;
        (HEAD_LEN as u64).checked_add(self.body_len)?.checked_add(table)
    }
}

impl Table {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * ENTRY_LEN + self.checksums.len() * 8);
        for Entry { offset, packing, has_min } in &self.entries {
            bytes.extend(offset.to_le_bytes());
            bytes.extend((packing.rows() as u64).to_le_bytes());
            bytes.extend((packing.k() as u64).to_le_bytes());
            let format = Format::ALL.iter().position(|format| *format == packing.format());
            bytes.extend((format.expect("ALL has all formats") as u64).to_le_bytes());
            bytes.extend(u64::from(*has_min).to_le_bytes());
        }
        self.checksums.iter().for_each(|sum| bytes.extend(sum.to_le_bytes()));
        bytes
    }

    /// `bytes`: the table of a file whose length fits `head`.
    pub fn decode(head: &Head, bytes: &[u8]) -> Result<Table, Flaw> {
        let damaged = Flaw::Damaged { part: "table" };
        if checksum(bytes) != head.table_checksum {
            return Err(damaged);
        }
        // The file has this many bytes, so the product is no larger than it.
        let (entries, checksums) = bytes.split_at(head.n_matrices as usize * ENTRY_LEN);
        let entry = |bytes: &[u8; ENTRY_LEN]| {
            let [offset, rows, k, format, has_min] = std::array::from_fn(|i| u64_at(bytes, 8 * i));
            let format = *Format::ALL.get(usize::try_from(format).ok()?)?;
            let packing = Packing::new(format, rows.try_into().ok()?, k.try_into().ok()?).ok()?;
            let end = offset.checked_add(packing.bytes() as u64)?;
            let is_inside = offset >= HEAD_LEN as u64 && end <= HEAD_LEN as u64 + head.body_len;
            (is_inside && offset.is_multiple_of(PAGE)).then_some(Entry { offset, packing, has_min: has_min != 0 })
        };
        let entries = entries.as_chunks().0.iter().map(entry).collect::<Option<_>>().ok_or(damaged)?;
        let checksums = checksums.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        Ok(Table { entries, checksums })
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes: [u8; 8] = bytes[at..at + 8].try_into().expect("eight bytes");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let (layout, source) = (7, B256::repeat_byte(9));
        Head { layout, source, body_len: CHUNK_LEN as u64 + 4096, n_matrices: 2, table_checksum: 5 }
    }

    #[test]
    fn a_head_is_read_as_it_was_written_and_every_flipped_bit_is_found() {
        let mut bytes = head().encode();
        assert_eq!(Head::decode(&bytes), Ok(head()));
        assert_eq!(head().file_len(), Some(4096 + CHUNK_LEN as u64 + 4096 + 2 * 40 + 2 * 8));
        for bit in 0..8 * bytes.len() {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Head::decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for len in 0..HEAD_LEN {
            assert_eq!(Head::decode(&bytes[..len]), Err(Flaw::NotWeights));
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_no_length() {
        assert_eq!(Head { n_matrices: u64::MAX, ..head() }.file_len(), None);
        assert_eq!(Head { body_len: u64::MAX, ..head() }.file_len(), None);
    }

    #[test]
    fn a_table_is_read_as_it_was_written_and_no_entry_points_outside() {
        let packing = Packing::new(Format::Q8_0, 16, 64).expect("a shape");
        let entry = |offset| Entry { offset, packing, has_min: true };
        let check = |table: Table, expect: Result<(), Flaw>| {
            let bytes = table.encode();
            let head = Head { table_checksum: checksum(&bytes), ..head() };
            assert_eq!(Table::decode(&head, &bytes), expect.map(|()| table));
        };
        let table = |offset| Table { entries: vec![entry(4096), entry(offset)], checksums: vec![1, 2] };
        let damaged = Err(Flaw::Damaged { part: "table" });
        check(table(CHUNK_LEN as u64 + 4096), Ok(()));
        check(table(CHUNK_LEN as u64 + 8192), damaged.clone());
        check(table(0), damaged.clone());
        check(table(4097), damaged.clone());
        check(table(u64::MAX - 4095), damaged.clone());
        assert_eq!(Table::decode(&head(), &table(8192).encode()).map(|_| ()), damaged);
    }
}
