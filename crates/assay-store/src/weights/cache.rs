//! Finding packed weights, or making them: once, whoever asks.

use super::file::{Memory, Reader, WeightsError, WeightsFile, Writer};
use super::format::Flaw;
use super::source::{Identity, Note, content_hash};
use crate::ModelFile;
use alloy_primitives::B256;
use assay_num::{InMemory, PackedStore, Team};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Ending of the files' names.
pub(super) const SUFFIX: &str = ".weights";
/// Ending of the name of a file that is being written.
pub(super) const FRESH_SUFFIX: &str = ".weights.new";
/// Others may finish or remove a file while this process waits for its lock; it looks again this often at most.
const LOCK_TRIES: usize = 16;

/// How weights are kept.
#[derive(Clone, Debug)]
pub struct WeightsOptions {
    /// Directories for the cache in the order in which they are tried; none keeps the weights in memory.
    pub dirs: Vec<PathBuf>,
    /// A model with less tensor data is packed at every start: that takes less than a look at the clock.
    pub len_min: u64,
    /// Threads that hash, check and pack.
    pub threads: usize,
}

impl WeightsOptions {
    /// Default of `len_min`.
    pub const LEN_MIN: u64 = 64 << 20;
}

/// The directory for the cache of a model: beside its file.
#[must_use]
pub fn dir_beside(model: &Path) -> PathBuf {
    model.parent().unwrap_or(Path::new("")).join(".assay-cache")
}

/// What happens meanwhile, for a person who waits.
#[derive(Debug)]
pub enum WeightsEvent<'a> {
    /// The model file is hashed, to find the cache by.
    Hashing {
        /// Bytes so far.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Another process is packing the same weights.
    Waiting {
        /// What it writes.
        path: &'a Path,
    },
    /// There is a cache, but it cannot be used and is replaced.
    Replacing {
        /// Why.
        error: &'a WeightsError,
    },
    /// A directory cannot hold the cache; the next is tried, after the last the weights stay in memory.
    Unusable {
        /// Why.
        error: &'a WeightsError,
        /// Bytes that the cache would have, about.
        needed: u64,
    },
}

/// Where the weights of a model that was loaded are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    /// In this process's memory.
    Memory,
    /// In a file, found or made.
    File {
        /// The file.
        path: PathBuf,
        /// Made just now.
        is_new: bool,
    },
}

/// The weights of one model file.
pub struct WeightCache<'a> {
    model: &'a ModelFile,
    options: &'a WeightsOptions,
    team: Team,
    source: Option<B256>,
}

/// A failure of the cache, for which there is a way out, or of the load, for which there is none.
enum Failure<E> {
    Cache(WeightsError),
    Load(E),
}

impl<E> From<WeightsError> for Failure<E> {
    fn from(error: WeightsError) -> Self {
        Failure::Cache(error)
    }
}

impl<'a> WeightCache<'a> {
    /// Of `model`.
    #[must_use]
    pub fn new(model: &'a ModelFile, options: &'a WeightsOptions) -> Self {
        WeightCache { model, options, team: Team::new(options.threads), source: None }
    }

    /// Calls `load` with a store that has, or takes, the packed weights. `load` must ask for the same matrices in the
    /// same order every time; it is called again if a cache turns out not to fit or cannot be written. Afterwards the
    /// model file's pages do not count as this process's memory.
    ///
    /// # Errors
    /// Those of `load`, except where the cache caused them: without one the weights are kept in memory.
    pub fn load<T, E>(
        mut self,
        report: &mut dyn FnMut(WeightsEvent<'_>),
        mut load: impl FnMut(&mut dyn PackedStore) -> Result<T, E>,
    ) -> Result<(T, Kept), E> {
        let needed = self.model.gguf().tensors().iter().map(|tensor| tensor.len).sum();
        let dirs: &[PathBuf] = if needed < self.options.len_min { &[] } else { &self.options.dirs };
        for dir in dirs {
            match self.load_from(dir, report, &mut load) {
                Ok(loaded) => return Ok(loaded),
                Err(Failure::Load(error)) => return Err(error),
                Err(Failure::Cache(error)) => report(WeightsEvent::Unusable { error: &error, needed }),
            }
        }
        let mut memory = Memory { file: self.model, store: InMemory::new(self.team) };
        Ok((load(&mut memory)?, Kept::Memory))
    }

    fn load_from<T, E>(
        &mut self,
        dir: &Path,
        report: &mut dyn FnMut(WeightsEvent<'_>),
        load: &mut impl FnMut(&mut dyn PackedStore) -> Result<T, E>,
    ) -> Result<(T, Kept), Failure<E>> {
        let identity = Identity::of(self.model).map_err(WeightsError::io(self.model.path()))?;
        let note = Note::read(&Note::path(dir, &identity.path)).filter(|note| note.identity == identity);
        if let Some(note) = &note {
            match self.read(dir, note.source, load) {
                Ok(loaded) => return Ok(loaded),
                Err(Failure::Load(error)) => return Err(Failure::Load(error)),
                Err(Failure::Cache(error)) if error.is_absent() => {}
                Err(Failure::Cache(error)) => report(WeightsEvent::Replacing { error: &error }),
            }
        }
        // From here on the hash is this process's own: a note may be as damaged as anything.
        let source = *self.source.get_or_insert_with(|| {
            content_hash(self.model, &self.team, &mut |done, total| report(WeightsEvent::Hashing { done, total }))
        });
        let is_known = note.is_some_and(|note| note.source == source);
        if !is_known && let Ok(loaded) = self.read(dir, source, load) {
            // Only a note: without it the next start hashes again.
            let _ = Note { identity, source }.write(dir);
            return Ok(loaded);
        }
        fs::create_dir_all(dir).map_err(WeightsError::io(dir))?;
        Note { identity, source }.write(dir).map_err(WeightsError::io(dir))?;
        self.make(dir, source, report, load)
    }

    /// From a file that is there.
    fn read<T, E>(
        &self,
        dir: &Path,
        source: B256,
        load: &mut impl FnMut(&mut dyn PackedStore) -> Result<T, E>,
    ) -> Result<(T, Kept), Failure<E>> {
        let path = dir.join(file_name(source));
        let file = WeightsFile::open(&path, source, &self.team)?;
        let mut reader = Reader::new(&file);
        match load(&mut reader) {
            Ok(loaded) if reader.fits() => Ok((loaded, Kept::File { path, is_new: false })),
            Err(error) if !reader.differs => Err(Failure::Load(error)),
            _ => Err(WeightsError::flaw(&path)(Flaw::Matrices).into()),
        }
    }

    /// Makes the file under a lock, unless another process has made it meanwhile.
    fn make<T, E>(
        &self,
        dir: &Path,
        source: B256,
        report: &mut dyn FnMut(WeightsEvent<'_>),
        load: &mut impl FnMut(&mut dyn PackedStore) -> Result<T, E>,
    ) -> Result<(T, Kept), Failure<E>> {
        let path = dir.join(file_name(source));
        let fresh = Fresh::lock(&dir.join(file_stem(source) + FRESH_SUFFIX), report)?;
        match self.read(dir, source, load) {
            Err(Failure::Cache(_)) => {}
            done => return done,
        }
        fresh.file.set_len(0).map_err(WeightsError::io(&fresh.path))?;
        let mut writer = Writer::new(self.model, &fresh.file, &fresh.path, &self.team);
        let loaded = match load(&mut writer) {
            Ok(loaded) => loaded,
            Err(error) => return Err(writer.failure.take().map_or(Failure::Load(error), Failure::Cache)),
        };
        writer.finish(source)?;
        fs::rename(&fresh.path, &path).map_err(WeightsError::io(&path))?;
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(WeightsError::io(dir))?;
        Ok((loaded, Kept::File { path, is_new: true }))
    }
}

fn file_stem(source: B256) -> String {
    source.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Name of the file of the weights of `source`.
pub(super) fn file_name(source: B256) -> String {
    file_stem(source) + SUFFIX
}

/// A file that this process alone writes. It is removed at the end, unless it got another name.
struct Fresh {
    file: File,
    path: PathBuf,
}

impl Fresh {
    /// Waits for whoever else writes it. The lock is the system's and ends with the process that holds it; what a
    /// process that died left behind is written over.
    fn lock(path: &Path, report: &mut dyn FnMut(WeightsEvent<'_>)) -> Result<Fresh, WeightsError> {
        let io = WeightsError::io(path);
        for _ in 0..LOCK_TRIES {
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(&io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    report(WeightsEvent::Waiting { path });
                    file.lock().map_err(&io)?;
                }
                Err(TryLockError::Error(error)) => return Err(io(error)),
            }
            let own = file.metadata().map_err(&io)?;
            // Who held the lock may have renamed or removed what this process opened.
            if fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (own.dev(), own.ino())) {
                return Ok(Fresh { file, path: path.to_owned() });
            }
        }
        Err(io(std::io::Error::other("it is replaced again and again")))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // After the renaming there is none, and nobody else makes one while this one holds the lock... of that name.
        let is_own = self.file.metadata().and_then(|own| Ok((own, fs::metadata(&self.path)?)));
        if is_own.is_ok_and(|(own, now)| (own.dev(), own.ino()) == (now.dev(), now.ino())) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
