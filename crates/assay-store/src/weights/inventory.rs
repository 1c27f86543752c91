//! What is in a directory of packed weights, and taking it out again.

use super::cache::{FRESH_SUFFIX, SUFFIX, file_name};
use super::file::{WeightsError, WeightsFile, read_head};
use super::format::Flaw;
use super::source::Note;
use assay_num::Team;
use std::fs;
use std::path::{Path, PathBuf};

/// Directory entries that are looked at.
const ENTRIES_MAX: usize = 100_000;

/// A file in the cache.
#[derive(Clone, Debug)]
pub struct CacheFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub len: u64,
    /// Files of the model that are still there; none if nobody needs the file any more.
    pub models: Vec<PathBuf>,
    /// As far as its head tells.
    pub state: CacheState,
}

/// Whether a file in the cache can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheState {
    /// It can.
    Ready,
    /// It is being written, or was when its process ended.
    Unfinished,
    /// It is replaced when its model is loaded next.
    Unusable(Flaw),
    /// The system does not let it be read.
    Unreadable(String),
}

impl CacheFile {
    /// What is in `dir`, which need not exist; a file of weights each.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn all(dir: &Path) -> Result<Vec<CacheFile>, WeightsError> {
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(WeightsError::io(dir)(error)),
        };
        let paths: Vec<PathBuf> = entries.take(ENTRIES_MAX).filter_map(|entry| Some(entry.ok()?.path())).collect();
        let ends_in = |suffix: &str| {
            let suffix = suffix.to_owned();
            move |path: &&PathBuf| path.to_str().is_some_and(|path| path.ends_with(&suffix))
        };
        let notes: Vec<Note> = paths.iter().filter(ends_in(Note::SUFFIX)).filter_map(|path| Note::read(path)).collect();
        let file = |path: &PathBuf, state: CacheState| {
            let name = path.file_name().unwrap_or_default();
            let of_it = |note: &&Note| file_name(note.source).as_str() == name && note.identity.path.exists();
            let models = notes.iter().filter(of_it).map(|note| note.identity.path.clone()).collect();
            let len = fs::metadata(path).map_or(0, |metadata| metadata.len());
            CacheFile { path: path.clone(), len, models, state }
        };
        let mut files: Vec<CacheFile> = paths.iter().filter(ends_in(SUFFIX)).map(|p| file(p, head_state(p))).collect();
        files.extend(paths.iter().filter(ends_in(FRESH_SUFFIX)).map(|path| file(path, CacheState::Unfinished)));
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    /// The weights of the model file at `model`, if `dir` has them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn of(dir: &Path, model: &Path) -> Result<Option<CacheFile>, WeightsError> {
        let Ok(model) = model.canonicalize() else { return Ok(None) };
        let Some(note) = Note::read(&Note::path(dir, &model)) else { return Ok(None) };
        let name = file_name(note.source);
        Ok(CacheFile::all(dir)?.into_iter().find(|file| file.path.ends_with(&name)))
    }

    /// Checks every byte.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, team: &Team) -> Result<(), WeightsError> {
        let head = read_head(&self.path)?;
        WeightsFile::open(&self.path, head.source, team).map(|_| ())
    }

    /// Removes the file; who has it mapped keeps it until the end. A process that is writing it is left alone.
    /// Returns whether it is gone.
    ///
    /// # Errors
    /// The system refuses.
    pub fn remove(&self) -> Result<bool, WeightsError> {
        let io = WeightsError::io(&self.path);
        if self.state == CacheState::Unfinished {
            let file = fs::File::options().write(true).open(&self.path).map_err(&io)?;
            if file.try_lock().is_err() {
                return Ok(false);
            }
        }
        fs::remove_file(&self.path).map_err(io)?;
        Ok(true)
    }

    /// Removes the notes in `dir` on files that are not there any more, and on `model`.
    pub fn forget(dir: &Path, model: Option<&Path>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for path in entries.take(ENTRIES_MAX).filter_map(|entry| Some(entry.ok()?.path())) {
            let note = if path.to_string_lossy().ends_with(Note::SUFFIX) { Note::read(&path) } else { None };
            let is_over = |note: &Note| !note.identity.path.exists() || Some(&*note.identity.path) == model;
            if note.as_ref().is_some_and(is_over) {
                // What cannot be removed is in nobody's way.
                let _ = fs::remove_file(&path);
            }
        }
        // Succeeds if nothing is left.
        let _ = fs::remove_dir(dir);
    }
}

fn head_state(path: &Path) -> CacheState {
    match read_head(path) {
        Ok(_) => CacheState::Ready,
        Err(WeightsError::Flaw { flaw, .. }) => CacheState::Unusable(flaw),
        Err(WeightsError::Io { source, .. }) => CacheState::Unreadable(source.to_string()),
    }
}
