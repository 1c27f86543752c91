//! The user's models: files in one folder, each with a name.
//!
//! ```text
//! ~/.assay/models/llama-3.2-1b-q4_k_m.gguf      `assay run llama-3.2-1b-q4_k_m`
//! ~/.assay/cache/                               packed weights of models in folders that cannot be written
//! ~/.assay/blocks/                              which block is which part of a model that is given to others
//! ```

use anyhow::Context as _;
use assay_dag::{Cid, Codec, Version};
use std::path::{Path, PathBuf};

/// Ending of the files' names.
const SUFFIX: &str = ".gguf";
/// Entries of the folder that are looked at.
const ENTRIES_MAX: usize = 10_000;

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").map(PathBuf::from)
}

/// The folder of the user's models, which need not exist.
pub fn dir() -> Option<PathBuf> {
    Some(home()?.join(".assay/models"))
}

/// The folder for packed weights that cannot be kept beside their model.
pub fn cache_dir() -> Option<PathBuf> {
    Some(home()?.join(".assay/cache"))
}

/// The file of a new model of this name; `None` if it is no name.
pub fn path(name: &str) -> Option<PathBuf> {
    let file = name.strip_suffix(SUFFIX).unwrap_or(name);
    is_name(file).then(|| Some(dir()?.join(format!("{file}{SUFFIX}"))))?
}

/// Where it is kept which block is which part of the file at `path`.
pub fn block_index(path: &Path) -> Option<PathBuf> {
    let full = std::path::absolute(path).ok()?;
    let hash = Cid::of(Version::V1, Codec::Raw, full.as_os_str().as_encoded_bytes());
    Some(home()?.join(".assay/blocks").join(format!("{hash}.dag")))
}

/// The file that `name` stands for: a path, or the name of a model in the folder. A path that is there comes first.
pub fn find(name: &str) -> PathBuf {
    let path = PathBuf::from(name);
    let in_folder = dir().filter(|_| !path.exists()).and_then(|dir| find_in(&dir, name));
    in_folder.unwrap_or(path)
}

/// The files in the folder, by name.
///
/// # Errors
/// The folder is there and cannot be read.
pub fn all() -> anyhow::Result<Vec<PathBuf>> {
    let Some(dir) = dir().filter(|dir| dir.exists()) else { return Ok(vec![]) };
    let entries = std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let paths = entries.take(ENTRIES_MAX).filter_map(|entry| Some(entry.ok()?.path()));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.to_string_lossy().ends_with(SUFFIX)).collect();
    paths.sort();
    Ok(paths)
}

/// The name of a file in the folder.
pub fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// Whether a file is directly in the folder.
pub fn is_inside(path: &Path) -> bool {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    parent.is_some() && parent == dir().and_then(|dir| dir.canonicalize().ok())
}

fn find_in(dir: &Path, name: &str) -> Option<PathBuf> {
    let files = [dir.join(format!("{name}{SUFFIX}")), dir.join(name)];
    files.into_iter().find(|file| is_name(name) && file.is_file())
}

/// A name, not a way out of the folder.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\']) && !name.contains(char::is_control)
}
