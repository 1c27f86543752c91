//! The weights of a model as the kernels read them, kept in a file so that they are packed once and not at every start.
//!
//! ```text
//! models/llama.gguf
//! models/.assay-cache/3f..e1.weights        packed weights, named by the content hash of the model file
//! models/.assay-cache/0b..77.source         the hash of the file that had this path, inode, length and times
//! ```
//! Processes that run one model map one file and share its memory. The first of them packs; others wait for its lock.
//!
//! What is trusted: nothing that is read back. Wrong weights are wrong answers, and for a provider the loss of its
//! stake, so every byte is checked at every start before a model can use it, by a checksum that runs at the speed of
//! memory: at that point the file has to be mapped page by page anyway. A file that fails is made anew. Two things are
//! out of reach: memory that errs later, as with every program, and a disk that errs when the system drops pages for
//! lack of memory and reads them again; `assay doctor` looks for the latter. Checksums are no signatures: whoever may
//! write to the directory may change weights, as whoever may write the model file.

mod cache;
mod file;
mod format;
mod source;

pub use cache::{Kept, WeightCache, WeightsEvent, WeightsOptions, dir_beside};
pub use file::WeightsError;
pub use format::Flaw;
pub use source::content_hash;

pub use inventory::{CacheFile, CacheState};
mod inventory;
#[cfg(test)]
mod tests;
