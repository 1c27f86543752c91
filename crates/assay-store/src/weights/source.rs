//! Which model packed weights belong to: a hash of the whole file, and a note that saves hashing it again.

use crate::ModelFile;
use alloy_primitives::B256;
use assay_num::Team;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Bytes of a leaf of the hash.
const LEAF_LEN: usize = 1 << 20;
/// Leaves between two reports of progress.
const BATCH: usize = 64;
/// What makes this hash another than any other SHA-256 over hashes.
const DOMAIN: &[u8] = b"assay packed weights: source 1";
/// Longest note that is read.
const NOTE_LEN_MAX: u64 = 64 << 10;

/// Content hash of a model file: SHA-256 over a name for this use, its length and the SHA-256 of each MiB. Nobody can
/// make two files with one hash, so the cache of one model never serves another. 2 GB/s a core where the CPU has
/// instructions for it.
pub fn content_hash(file: &ModelFile, team: &Team, progress: &mut dyn FnMut(u64, u64)) -> B256 {
    let bytes = file.bytes();
    let total = bytes.len() as u64;
    let mut root = Sha256::new();
    root.update(DOMAIN);
    root.update(total.to_le_bytes());
    let mut done = 0;
    for batch in bytes.chunks(BATCH * LEAF_LEN) {
        let mut leaves = vec![[0u8; 32]; batch.len().div_ceil(LEAF_LEN)];
        team.for_each_chunk(&mut leaves, 1, |i, leaf| {
            let start = i * LEAF_LEN;
            leaf[0] = Sha256::digest(&batch[start..(start + LEAF_LEN).min(batch.len())]).into();
        });
        leaves.iter().for_each(|leaf| root.update(leaf));
        file.release(batch);
        done += batch.len() as u64;
        progress(done, total);
    }
    B256::from(<[u8; 32]>::from(root.finalize()))
}

/// A file as the system knows it. A change of its content changes the times, of which nobody can set the second.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    pub path: PathBuf,
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    pub fn of(file: &ModelFile) -> io::Result<Identity> {
        let metadata = file.metadata();
        Ok(Identity {
            path: file.path().canonicalize()?,
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// The hash of a file, for the next start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    #[serde(flatten)]
    pub identity: Identity,
    pub source: B256,
}

impl Note {
    /// Ending of the files' names.
    pub const SUFFIX: &str = ".source";

    /// Where the note on `path` is.
    pub fn path(dir: &Path, path: &Path) -> PathBuf {
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        dir.join(hex + Note::SUFFIX)
    }

    /// One that cannot be read is as good as none.
    pub fn read(path: &Path) -> Option<Note> {
        let mut text = Vec::new();
        fs::File::open(path).ok()?.take(NOTE_LEN_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Written beside and renamed, so that a reader sees a whole note or none.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let path = Note::path(dir, &self.identity.path);
        // Threads of one process may get here at the same time, too.
        let fresh = path.with_extension(format!("{}-{:?}.new", std::process::id(), std::thread::current().id()));
        let mut file = fs::File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        fs::rename(&fresh, &path)
    }
}
