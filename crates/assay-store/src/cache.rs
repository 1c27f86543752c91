//! Manifests that were computed before: hashing gigabytes at every start would take minutes.

use crate::{ModelFile, StoreError, manifest};
use assay_types::{CANONICAL_PROFILE, Manifest};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

/// Largest entry that is read; written ones have about a kilobyte.
const ENTRY_LEN_MAX: u64 = 1 << 20;

/// A directory of manifests, one small JSON file for each model file, keyed by its path, length and time of last
/// change. An entry that cannot be read or does not fit is computed anew and replaced: nothing in here is precious.
///
/// Whoever can write to the directory can make a file pass for another; keep it where only its owner writes.
#[derive(Clone, Debug)]
pub struct ManifestCache {
    dir: PathBuf,
}

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Key {
    /// Two releases that compute manifests differently do not share entries.
    profile: String,
    path: PathBuf,
    len: u64,
    modified_ns: u128,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    manifest: Manifest,
}

impl ManifestCache {
    /// The cache in `dir`, which is created when the first entry is written.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The manifest of `file`, from the cache if it is there, else computed and stored; `progress` as for
    /// [`manifest`].
    ///
    /// # Errors
    /// As [`manifest`], and [`StoreError::Write`].
    pub fn manifest(&self, file: &ModelFile, progress: &mut dyn FnMut(u64, u64)) -> Result<Manifest, StoreError> {
        // Without a time a changed file could not be told from an old one.
        let Some(key) = key(file) else { return manifest(file, progress) };
        let path = self.dir.join(entry_name(&key));
        if let Some(entry) = read(&path).filter(|entry| entry.key == key) {
            return Ok(entry.manifest);
        }
        let entry = Entry { key, manifest: manifest(file, progress)? };
        self.write(&path, &entry)?;
        Ok(entry.manifest)
    }

    /// Written beside and renamed, so that a reader sees a whole entry or none.
    fn write(&self, path: &Path, entry: &Entry) -> Result<(), StoreError> {
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let text = serde_json::to_vec(entry).map_err(std::io::Error::other);
        let result = text.and_then(|text| {
            fs::create_dir_all(&self.dir)?;
            let mut file = fs::File::create(&fresh)?;
            file.write_all(&text)?;
            fs::rename(&fresh, path)
        });
        result.map_err(|source| StoreError::Write { path: path.to_owned(), source })
    }
}

fn key(file: &ModelFile) -> Option<Key> {
    let modified_ns = file.modified()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    let path = file.path().canonicalize().ok()?;
    Some(Key { profile: CANONICAL_PROFILE.to_owned(), path, len: file.bytes().len() as u64, modified_ns })
}

fn entry_name(key: &Key) -> String {
    let digest = Sha256::digest(key.path.as_os_str().as_encoded_bytes());
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}.json")
}

fn read(path: &Path) -> Option<Entry> {
    let mut text = Vec::new();
    fs::File::open(path).ok()?.take(ENTRY_LEN_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_testkit::models::{TinyLlama, tiny_llama};

    struct Fixture {
        dir: tempfile::TempDir,
        cache: ManifestCache,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let cache = ManifestCache::new(dir.path().join("deep/cache"));
            Self { dir, cache }
        }

        fn write(&self, seed: u64) -> ModelFile {
            let path = self.dir.path().join("model.gguf");
            // A new file by rename, as an update of a mapped model is done.
            let fresh = self.dir.path().join("fresh");
            let model = TinyLlama { seed, layers: 1, d_model: 32, ffn: 32, vocab: 300, ..TinyLlama::default() };
            fs::write(&fresh, tiny_llama(model)).unwrap();
            let time = UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + seed);
            fs::File::options().write(true).open(&fresh).unwrap().set_modified(time).unwrap();
            fs::rename(&fresh, &path).unwrap();
            ModelFile::open(&path).unwrap()
        }

        /// The manifest, and whether it was computed.
        fn get(&self, file: &ModelFile) -> (Manifest, bool) {
            let mut computed = false;
            let manifest = self.cache.manifest(file, &mut |_, _| computed = true).unwrap();
            (manifest, computed)
        }

        fn entry(&self) -> PathBuf {
            fs::read_dir(&self.cache.dir).unwrap().next().unwrap().unwrap().path()
        }
    }

    #[test]
    fn the_second_look_computes_nothing() {
        let fixture = Fixture::new();
        let file = fixture.write(1);
        let (first, computed) = fixture.get(&file);
        assert!(computed);
        assert_eq!(fixture.get(&file), (first, false));
    }

    #[test]
    fn a_changed_file_is_computed_again() {
        let fixture = Fixture::new();
        let (first, _) = fixture.get(&fixture.write(1));
        let (second, computed) = fixture.get(&fixture.write(2));
        assert!(computed);
        assert_ne!(first.model_id(), second.model_id());
    }

    #[test]
    fn a_damaged_entry_is_replaced() {
        let fixture = Fixture::new();
        let file = fixture.write(1);
        let (first, _) = fixture.get(&file);
        for damage in [&b""[..], b"{}", b"\xff", &vec![b'['; 2 << 20]] {
            fs::write(fixture.entry(), damage).unwrap();
            assert_eq!(fixture.get(&file), (first.clone(), true));
            assert_eq!(fixture.get(&file), (first.clone(), false));
        }
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let fixture = Fixture::new();
        let file = fixture.write(1);
        let blocked = fixture.dir.path().join("blocked");
        fs::write(&blocked, b"a file, no directory").unwrap();
        let error = ManifestCache::new(&blocked).manifest(&file, &mut |_, _| {}).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("blocked"), "{error}");
    }
}
