//! Files of packed weights, read and written: each side is a store that a model is loaded into.

use super::format::{CHUNK_LEN, Entry, Flaw, HEAD_LEN, Head, PAGE, Table};
use crate::ModelFile;
use crate::map::Map;
use alloy_primitives::B256;
use assay_num::{
    AlignedBytes, InMemory, Matrix, Owner, PackedStore, PackedStoreError, Packing, SourceRows, Team, checksum,
    layout_id,
};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Bytes that are packed between two writes.
const PIECE_LEN: usize = 16 << 20;

/// Why a file of packed weights cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The file is not what it has to be.
    #[error("{}: {flaw}", path.display())]
    Flaw {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        flaw: Flaw,
    },
}

impl WeightsError {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> WeightsError {
        move |source| WeightsError::Io { path: path.to_owned(), source }
    }

    pub(crate) fn flaw(path: &Path) -> impl Fn(Flaw) -> WeightsError {
        move |flaw| WeightsError::Flaw { path: path.to_owned(), flaw }
    }

    /// Whether there is no such file.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self, WeightsError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// A whole, mapped file of packed weights.
pub(crate) struct WeightsFile {
    pub path: PathBuf,
    owner: Owner,
    entries: Vec<Entry>,
}

/// The head of the file at `path`, and whether the length fits it.
pub(crate) fn read_head(path: &Path) -> Result<Head, WeightsError> {
    let file = File::open(path).map_err(WeightsError::io(path))?;
    let len = file.metadata().map_err(WeightsError::io(path))?.len();
    let mut bytes = vec![0; HEAD_LEN.min(usize::try_from(len).unwrap_or(HEAD_LEN))];
    file.read_exact_at(&mut bytes, 0).map_err(WeightsError::io(path))?;
    check_head(&bytes, len).map_err(WeightsError::flaw(path))
}

fn check_head(bytes: &[u8], len: u64) -> Result<Head, Flaw> {
    let head = Head::decode(bytes)?;
    if head.layout != layout_id() {
        return Err(Flaw::Layout);
    }
    match head.file_len() {
        Some(expected) if expected == len => Ok(head),
        expected => Err(Flaw::Length { expected: expected.unwrap_or(u64::MAX), got: len }),
    }
}

impl WeightsFile {
    /// Maps the file and checks every byte of it: 4 GB take 0.2 s on two cores if the system has them in memory, and they
    /// have to be mapped page by page anyway before a model can answer.
    pub fn open(path: &Path, source: B256, team: &Team) -> Result<WeightsFile, WeightsError> {
        let file = File::open(path).map_err(WeightsError::io(path))?;
        let map = Map::whole(&file).map_err(WeightsError::io(path))?;
        let entries = check(&map, source, team).map_err(WeightsError::flaw(path))?;
        Ok(WeightsFile { path: path.to_owned(), owner: Arc::new(map), entries })
    }
}

/// Checks the whole file.
fn check(map: &Map, source: B256, team: &Team) -> Result<Vec<Entry>, Flaw> {
    let bytes = map.as_ref();
    let head = check_head(bytes, bytes.len() as u64)?;
    if head.source != source {
        return Err(Flaw::Source);
    }
    let (body, table) = bytes[HEAD_LEN..].split_at(head.body_len as usize);
    let table = Table::decode(&head, table)?;
    let sums = checksums(body, team);
    match sums.iter().zip(&table.checksums).position(|(is, expected)| is != expected) {
        Some(chunk) => Err(Flaw::Weights { chunk: chunk as u64 }),
        None => Ok(table.entries),
    }
}

/// Of each MiB.
fn checksums(body: &[u8], team: &Team) -> Vec<u64> {
    let mut sums = vec![0; body.len().div_ceil(CHUNK_LEN)];
    team.for_each_chunk(&mut sums, 1, |i, sum| {
        let start = i * CHUNK_LEN;
        sum[0] = checksum(&body[start..(start + CHUNK_LEN).min(body.len())]);
    });
    sums
}

/// Hands out the matrices of a file in its order.
pub(crate) struct Reader<'a> {
    file: &'a WeightsFile,
    next: usize,
    /// The model asked for something else than the file has.
    pub differs: bool,
}

impl<'a> Reader<'a> {
    pub fn new(file: &'a WeightsFile) -> Self {
        Reader { file, next: 0, differs: false }
    }

    /// Whether the model took all and only what is there.
    pub fn fits(&self) -> bool {
        !self.differs && self.next == self.file.entries.len()
    }
}

impl PackedStore for Reader<'_> {
    fn place(&mut self, packing: Packing, _: &SourceRows<'_>) -> Result<Matrix, PackedStoreError> {
        let entry = self.file.entries.get(self.next).filter(|entry| entry.packing == packing);
        let Some(entry) = entry else {
            self.differs = true;
            return Err(WeightsError::flaw(&self.file.path)(Flaw::Matrices).into());
        };
        self.next += 1;
        Ok(Matrix::from_packed(packing, entry.has_min, &self.file.owner, entry.offset as usize)?)
    }
}

/// Packs matrices into memory and lets go of what it has read of the model file.
pub(crate) struct Memory<'a> {
    pub file: &'a ModelFile,
    pub store: InMemory,
}

impl PackedStore for Memory<'_> {
    fn place(&mut self, packing: Packing, source: &SourceRows<'_>) -> Result<Matrix, PackedStoreError> {
        let matrix = self.store.place(packing, source)?;
        source.slices(0..packing.rows()).for_each(|bytes| self.file.release(bytes));
        Ok(matrix)
    }
}

/// Packs matrices into a new file, a piece at a time, and maps each from there.
pub(crate) struct Writer<'a> {
    model: &'a ModelFile,
    file: &'a File,
    path: &'a Path,
    team: &'a Team,
    end: u64,
    entries: Vec<Entry>,
    buffer: AlignedBytes,
    /// The file could not be written.
    pub failure: Option<WeightsError>,
}

impl<'a> Writer<'a> {
    /// Into `file`, which is at `path` and empty.
    pub fn new(model: &'a ModelFile, file: &'a File, path: &'a Path, team: &'a Team) -> Self {
        let (entries, buffer) = (vec![], AlignedBytes::zeroed(0));
        Writer { model, file, path, team, end: HEAD_LEN as u64, entries, buffer, failure: None }
    }

    fn write(&mut self, packing: Packing, source: &SourceRows<'_>) -> io::Result<Matrix> {
        let offset = self.end.next_multiple_of(PAGE);
        let step = (PIECE_LEN / packing.group_bytes()).clamp(1, packing.n_groups());
        let mut has_min = false;
        for start in (0..packing.n_groups()).step_by(step) {
            let groups = start..(start + step).min(packing.n_groups());
            let len = packing.group_bytes() * groups.len();
            if self.buffer.as_ref().len() < len {
                self.buffer = AlignedBytes::zeroed(len);
            }
            has_min |= packing.pack(self.team, source, groups.clone(), &mut self.buffer);
            let mut rest = self.buffer.as_ref();
            for section in packing.sections() {
                let (part, after) = rest.split_at(section.group_bytes * groups.len());
                let at = offset + (section.start + section.group_bytes * start) as u64;
                write_on_all(self.team, self.file, part, at)?;
                rest = after;
            }
            let rows = groups.start * packing.group_rows()..(groups.end * packing.group_rows()).min(packing.rows());
            source.slices(rows).for_each(|bytes| self.model.release(bytes));
        }
        self.end = offset + packing.bytes() as u64;
        self.entries.push(Entry { offset, packing, has_min });
        let map: Owner = Arc::new(Map::part(self.file, offset, packing.bytes())?);
        Matrix::from_packed(packing, has_min, &map, 0).map_err(io::Error::other)
    }

    /// Writes what makes the file valid. It is on the disk when this returns.
    pub fn finish(self, source: B256) -> Result<(), WeightsError> {
        let body_len = self.end - HEAD_LEN as u64;
        let n_matrices = self.entries.len() as u64;
        let write = || {
            self.file.set_len(self.end)?;
            let map = Map::part(self.file, HEAD_LEN as u64, body_len as usize)?;
            let table = Table { entries: self.entries, checksums: checksums(map.as_ref(), self.team) }.encode();
            self.file.write_all_at(&table, self.end)?;
            self.file.sync_all()?;
            let head = Head { layout: layout_id(), source, body_len, n_matrices, table_checksum: checksum(&table) };
            self.file.write_all_at(&head.encode(), 0)?;
            self.file.sync_all()
        };
        write().map_err(WeightsError::io(self.path))
    }
}

impl PackedStore for Writer<'_> {
    fn place(&mut self, packing: Packing, source: &SourceRows<'_>) -> Result<Matrix, PackedStoreError> {
        self.write(packing, source).map_err(|source| {
            let said = source.to_string();
            self.failure = Some(WeightsError::io(self.path)(source));
            said.into()
        })
    }
}

/// Writes by all threads: the system copies the bytes, which takes longer than packing them.
fn write_on_all(team: &Team, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
    const PART: usize = 1 << 20;
    let failed = Mutex::new(None);
    team.run(bytes.len().div_ceil(PART), |i| {
        let start = i * PART;
        let part = &bytes[start..(start + PART).min(bytes.len())];
        if let Err(error) = file.write_all_at(part, at + start as u64) {
            *failed.lock().expect("nothing panics while it holds this lock") = Some(error);
        }
    });
    match failed.into_inner().expect("nothing panics while it holds this lock") {
        Some(error) => Err(error),
        None => Ok(()),
    }
}
