//! Published model folders to GGUF files: Hugging Face's `config.json`, tokenizer files and safetensors.
//!
//! Bytes in, a file out: who calls reads the folder. What a folder says and this crate does not implement is an error
//! that names file and key, never ignored where it would change the model's output. Does not run models and does not
//! check that weights make sense beyond their shapes and being finite.
//!
//! ```text
//! Folder (files by name) --plan--> Import (metadata, and where each tensor comes from) --write--> GGUF
//! ```

mod bert;
mod bpe;
mod decoder;
mod folder;
mod json;
mod plan;
mod put;
mod safetensors;
mod wordpiece;

pub use folder::Folder;
pub use plan::{Import, Options, Pooling, Precision, UnknownPrecision, plan};
pub use safetensors::{Dtype, SafeTensor, Safetensors, SafetensorsError};

use assay_gguf::write::WriteError;

/// Why a folder does not become a GGUF file.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file that the model needs is not in the folder.
    #[error("{file} is missing{hint}")]
    MissingFile {
        /// Its name in the folder.
        file: String,
        /// What to do about it, possibly empty.
        hint: &'static str,
    },
    /// A file that is no JSON.
    #[error("{file}: {reason}")]
    Json {
        /// The file.
        file: String,
        /// What the parser said, with line and column.
        reason: String,
    },
    /// A key that must be there is not.
    #[error("{file}: key {key} is missing")]
    MissingKey {
        /// The file.
        file: String,
        /// The key, with those around it.
        key: String,
    },
    /// A value that this release does not implement, or that makes no sense.
    #[error("{file}: key {key} is {found}; {expected}")]
    Value {
        /// The file.
        file: String,
        /// The key, with those around it.
        key: String,
        /// What the file says, shortened.
        found: String,
        /// What is possible.
        expected: String,
    },
    /// Weights that cannot be read.
    #[error("{file}: {source}")]
    Safetensors {
        /// The file.
        file: String,
        /// Why.
        source: SafetensorsError,
    },
    /// A tensor that the architecture asks for is in no file.
    #[error("tensor {name} is in none of {files}")]
    MissingTensor {
        /// Its name there.
        name: String,
        /// The weights' files.
        files: String,
    },
    /// A tensor that is not what the config asks for.
    #[error("{file}: tensor {name} {reason}")]
    Tensor {
        /// The file.
        file: String,
        /// Its name there.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
}
