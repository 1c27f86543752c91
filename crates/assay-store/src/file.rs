//! One mapped GGUF file.

use crate::{StoreError, map::Map};
use assay_gguf::Gguf;
use std::{
    fs::{File, Metadata},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// A GGUF file, mapped and parsed. Processes that open the same file share its memory.
///
/// The file must not be written or shortened while it is open: like every mapping, this one would show the change, or
/// the process would be killed by SIGBUS. Replacing it by renaming another file over it is safe.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    map: Map,
    gguf: Gguf,
    metadata: Metadata,
}

impl ModelFile {
    /// Maps and parses `path`.
    ///
    /// # Errors
    /// [`StoreError`], with the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let read = |source| StoreError::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(StoreError::NotAFile { path });
        }
        let map = Map::whole(&file).map_err(read)?;
        let gguf = Gguf::parse(map.as_ref()).map_err(|source| StoreError::Gguf { path: path.clone(), source })?;
        Ok(Self { path, map, gguf, metadata })
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_ref()
    }

    /// Its header.
    #[must_use]
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// As given to [`Self::open`].
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// When it was last written, if the system knows.
    #[must_use]
    pub fn modified(&self) -> Option<SystemTime> {
        self.metadata.modified().ok()
    }

    /// What the system knew of it when it was opened.
    pub(crate) fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Says that `bytes`, a part of [`Self::bytes`], are not needed for now: they do not count as memory of this process
    /// until they are read again.
    ///
    /// # Panics
    /// If they are no part of it.
    pub fn release(&self, bytes: &[u8]) {
        self.map.release(bytes);
    }
}

impl AsRef<[u8]> for ModelFile {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

/// Any file, mapped. What [`ModelFile`] says about writing to it holds here, too.
#[derive(Debug)]
pub struct MappedFile {
    /// None of an empty file, which cannot be mapped.
    map: Option<Map>,
}

impl MappedFile {
    /// Maps `path`.
    ///
    /// # Errors
    /// [`StoreError`], with the path.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let read = |source| StoreError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if !metadata.is_file() {
            return Err(StoreError::NotAFile { path: path.to_owned() });
        }
        let map = if metadata.len() == 0 { None } else { Some(Map::whole(&file).map_err(read)?) };
        Ok(Self { map })
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_ref().map_or(&[], AsRef::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_testkit::models::{TinyLlama, tiny_llama};

    #[test]
    fn a_valid_file_is_mapped_and_parsed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tiny.gguf");
        let bytes = tiny_llama(TinyLlama::default());
        std::fs::write(&path, &bytes).unwrap();
        let file = ModelFile::open(&path).unwrap();
        assert_eq!(file.bytes(), bytes);
        assert_eq!(file.gguf().architecture().unwrap(), "llama");
        assert_eq!(file.path(), path);
    }

    #[test]
    fn any_file_is_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for content in [&b""[..], b"abc"] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(MappedFile::open(&path).unwrap().bytes(), content);
        }
        assert!(matches!(MappedFile::open(dir.path()).unwrap_err(), StoreError::NotAFile { .. }));
        assert!(matches!(MappedFile::open(dir.path().join("y")).unwrap_err(), StoreError::Read { .. }));
    }

    #[test]
    fn what_is_no_model_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, content: Option<&[u8]>, expect: &str| {
            let path = dir.path().join(name);
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = ModelFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(expect) && error.contains(&*path.to_string_lossy()), "{error}");
        };
        check("absent", None, "cannot read");
        check(".", None, "not a regular file");
        check("empty", Some(b""), "not a GGUF file");
        check("text", Some(b"hello"), "not a GGUF file");
        check("short", Some(b"GGUF\x03\0\0\0"), "number of tensors at byte 8");
    }
}
