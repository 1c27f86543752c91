//! Model files on disk: mapping, hashing, manifests, the blocks that they consist of, and the cache of packed weights.
//!
//! The only crate that maps files. It does not run models (`assay-engine`) and does not know the network.

mod block_index;
mod blocks;
mod cache;
mod file;
mod manifest;
mod map;
mod shelf;
mod weights;

pub use block_index::{BlockIndex, Place};
pub use blocks::cut;
pub use cache::ManifestCache;
pub use file::{MappedFile, ModelFile};
pub use manifest::{manifest, manifest_of};
pub use shelf::{Shelf, Shelved};
pub use weights::{
    CacheFile, CacheState, Flaw, Kept, WeightCache, WeightsError, WeightsEvent, WeightsOptions, content_hash,
    dir_beside,
};

use assay_gguf::{GgufError, RopeError, TokenizerError};
use std::{io, path::PathBuf};

/// Why a model file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened, mapped or read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a directory, a pipe or another thing that has no fixed bytes.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What was opened.
        path: PathBuf,
    },
    /// It is no valid GGUF file.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// A tensor's data cannot be hashed.
    #[error(transparent)]
    Tensor(#[from] GgufError),
    /// The tokenizer is not usable.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The rotary table is not usable.
    #[error(transparent)]
    Rope(#[from] RopeError),
    /// The cache directory cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// File or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}
