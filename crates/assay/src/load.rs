//! Opening a model for the commands that run one here: a file, or the model that is part of the program.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use assay_engine::{LoadOptions, Model};
use assay_gguf::Gguf;
use assay_num::{Isa, Kernels};
use assay_store::{ModelFile, manifest_of};
use assay_types::Manifest;

use crate::{shipped, tell};

/// Works in silence up to this long.
const QUIET: Duration = Duration::from_secs(1);

/// A model whose file was read and parsed, its weights not yet prepared.
pub struct Opened {
    name: String,
    source: Source,
}

enum Source {
    File(ModelFile),
    Shipped(Box<Gguf>, &'static [u8]),
}

/// Opens `name`: a path, or the name of the shipped model.
///
/// # Errors
/// What is wrong with the file or its name.
pub fn open(name: &str) -> anyhow::Result<Opened> {
    let source = match shipped::bytes(name) {
        Some(bytes) => Source::Shipped(Box::new(Gguf::parse(bytes).context("the shipped model")?), bytes),
        None => Source::File(ModelFile::open(Path::new(name)).with_context(|| {
            format!("cannot open {name} (give a GGUF file, or {:?} for the model that comes with assay)", shipped::NAME)
        })?),
    };
    Ok(Opened { name: name.to_owned(), source })
}

/// Opens and loads `name` for the kernels of `isa`, the best ones if it is `None`.
///
/// # Errors
/// What is wrong with the file or its name, or an `isa` this CPU does not have.
pub fn load(name: &str, isa: Option<Isa>) -> anyhow::Result<Arc<Model>> {
    ensure_isa(isa)?;
    open(name)?.load()
}

/// Loads a file that is open already.
///
/// # Errors
/// As [`load`].
pub fn load_file(file: ModelFile, isa: Option<Isa>) -> anyhow::Result<Arc<Model>> {
    ensure_isa(isa)?;
    Opened { name: file.path().display().to_string(), source: Source::File(file) }.load()
}

/// Whether this CPU has `isa`.
///
/// # Errors
/// That it does not, and what it has.
pub fn ensure_isa(isa: Option<Isa>) -> anyhow::Result<()> {
    if let Some(isa) = isa {
        let have = || Isa::available().iter().map(Isa::to_string).collect::<Vec<_>>().join(", ");
        ensure!(Kernels::with_isa(isa).is_some(), "this CPU does not have {isa}; it has {}", have());
    }
    Ok(())
}

/// As many threads as the machine has cores.
pub fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Opened {
    fn gguf(&self) -> &Gguf {
        match &self.source {
            Source::File(file) => file.gguf(),
            Source::Shipped(gguf, _) => gguf,
        }
    }

    fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::File(file) => file.bytes(),
            Source::Shipped(_, bytes) => bytes,
        }
    }

    /// What the model is: hashes the whole file.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn manifest(&self) -> anyhow::Result<Manifest> {
        let mut progress = Progress::new("hashing the model");
        manifest_of(self.gguf(), self.bytes(), &mut |done, total| progress.show(done, total))
            .with_context(|| format!("cannot hash {}", self.name))
    }

    /// Prepares the weights.
    ///
    /// # Errors
    /// What is wrong with the model.
    pub fn load(&self) -> anyhow::Result<Arc<Model>> {
        let mut progress = Progress::new("loading the model");
        let mut show = |done: u64, total: u64| progress.show(done, total);
        Model::load_with(self.gguf(), self.bytes(), LoadOptions::default(), &mut show)
            .with_context(|| format!("cannot load {}", self.name))
    }
}

/// Percent on standard error for what takes longer than a second; one line if that is no terminal.
pub struct Progress {
    what: &'static str,
    started: Instant,
    shown: Option<u64>,
    terminal: bool,
}

impl Progress {
    /// Starts the clock.
    pub fn new(what: &'static str) -> Self {
        Self { what, started: Instant::now(), shown: None, terminal: std::io::stderr().is_terminal() }
    }

    /// `done` of `total` is done.
    pub fn show(&mut self, done: u64, total: u64) {
        let percent = done * 100 / total.max(1);
        if self.started.elapsed() > QUIET && self.shown != Some(percent) && (self.terminal || self.shown.is_none()) {
            self.shown = Some(percent);
            let (start, end) = if self.terminal { ("\r", "") } else { ("", "\n") };
            tell(format_args!("{start}{}: {percent} %{end}", self.what));
            let _ = std::io::stderr().flush();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            tell(format_args!("\n"));
        }
    }
}
