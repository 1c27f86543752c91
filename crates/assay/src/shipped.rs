//! The model that is part of the program, so that a new user has nothing to download.

use crate::models;
use crate::state::State;
use anyhow::Context;
use std::path::{Path, PathBuf};

/// Its name.
pub const NAME: &str = "assay-tiny";
/// Its file name.
const FILE: &str = "assay-tiny-q8_0.gguf";
/// Its bytes: a few megabytes, in the binary so that it works wherever the binary is.
static BYTES: &[u8] = include_bytes!("../../../models/assay-tiny/assay-tiny-q8_0.gguf");

/// The file for `--model`: a path, or the name of the shipped model, which is then written below the state folder
/// (providers are processes and share one mapping of it).
pub fn resolve(model: &str, state: &State) -> anyhow::Result<PathBuf> {
    if model != NAME {
        return existing(model);
    }
    let path = state.dir("models")?.join(FILE);
    if !std::fs::read(&path).is_ok_and(|have| have == BYTES) {
        // Written beside and renamed: a provider may have the old file mapped.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, BYTES)
            .and_then(|()| std::fs::rename(&fresh, &path))
            .with_context(|| format!("cannot write the shipped model to {}", path.display()))?;
    }
    Ok(path)
}

/// Bytes of the shipped model if `model` is its name and no such file exists.
pub fn bytes(model: &str) -> Option<&'static [u8]> {
    (model == NAME && !Path::new(model).exists()).then_some(BYTES)
}

fn existing(model: &str) -> anyhow::Result<PathBuf> {
    models::find(model).canonicalize().with_context(|| {
        format!("no model {model:?}: give the path of a GGUF file, a name that `assay list` shows, or {NAME:?} for the one that comes with assay")
    })
}
