//! Opening a model for the commands that run one here: a file, or the model that is part of the program.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use assay_engine::encoder::Encoder;
use assay_engine::{LoadError, LoadOptions, Model};
use assay_gguf::Gguf;
use assay_graph::TracedModel;
use assay_num::{Isa, Kernels, PackedStore};
use assay_store::{ModelFile, WeightCache, WeightsEvent, WeightsOptions, dir_beside, manifest, manifest_of};
use assay_types::Manifest;

use crate::{models, shipped, tell};

/// Works in silence up to this long.
const QUIET: Duration = Duration::from_secs(1);

/// Where the packed weights of large models are kept.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CacheArgs {
    /// Keep packed weights in this folder [default: .assay-cache beside the model, else ~/.assay/cache]
    #[arg(long, value_name = "DIR", conflicts_with = "no_cache")]
    #[serde(default)]
    pub cache_dir: Option<PathBuf>,
    /// Pack the weights at each start and keep them in memory
    #[arg(long)]
    #[serde(default)]
    pub no_cache: bool,
}

impl CacheArgs {
    /// The folders for the weights of `model`, in the order in which they are tried.
    pub fn dirs(&self, model: &Path) -> Vec<PathBuf> {
        match &self.cache_dir {
            _ if self.no_cache => vec![],
            Some(dir) => vec![dir.clone()],
            None => [Some(dir_beside(model)), models::cache_dir()].into_iter().flatten().collect(),
        }
    }

    /// None at all.
    pub fn none() -> Self {
        Self { cache_dir: None, no_cache: true }
    }

    /// With a folder that other processes find, whatever folder they are in.
    pub fn absolute(&self) -> std::io::Result<Self> {
        Ok(Self { cache_dir: self.cache_dir.as_ref().map(std::path::absolute).transpose()?, ..self.clone() })
    }
}

/// A model whose file was read and parsed, its weights not yet prepared.
pub struct Opened {
    name: String,
    source: Source,
}

enum Source {
    File(Box<ModelFile>),
    Shipped(Box<Gguf>, &'static [u8]),
}

/// Opens `name`: a path, or the name of the shipped model.
///
/// # Errors
/// What is wrong with the file or its name.
pub fn open(name: &str) -> anyhow::Result<Opened> {
    let source = match shipped::bytes(name) {
        Some(bytes) => Source::Shipped(Box::new(Gguf::parse(bytes).context("the shipped model")?), bytes),
        None => Source::File(Box::new(ModelFile::open(models::find(name)).with_context(|| {
            format!(
                "cannot open {name} (give a GGUF file, a name that `assay list` shows, or {:?} for the model that comes \
                 with assay)",
                shipped::NAME
            )
        })?)),
    };
    Ok(Opened { name: name.to_owned(), source })
}

/// Opens and loads `name` for the kernels of `isa`, the best ones if it is `None`.
///
/// # Errors
/// What is wrong with the file or its name, or an `isa` this CPU does not have.
pub fn load(name: &str, isa: Option<Isa>, cache: &CacheArgs) -> anyhow::Result<Arc<Model>> {
    ensure_isa(isa)?;
    open(name)?.load(cache, LoadOptions::default())
}

/// Loads a file that is open already.
///
/// # Errors
/// As [`load`].
pub fn load_file(
    file: ModelFile,
    isa: Option<Isa>,
    cache: &CacheArgs,
    options: LoadOptions,
) -> anyhow::Result<Arc<Model>> {
    ensure_isa(isa)?;
    Opened { name: file.path().display().to_string(), source: Source::File(Box::new(file)) }.load(cache, options)
}

/// Fails if this CPU does not have `isa`.
///
/// # Errors
/// With what it has.
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
    /// Its header.
    pub fn gguf(&self) -> &Gguf {
        match &self.source {
            Source::File(file) => file.gguf(),
            Source::Shipped(gguf, _) => gguf,
        }
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        match &self.source {
            Source::File(file) => file.bytes(),
            Source::Shipped(_, bytes) => bytes,
        }
    }

    /// The file, if the model is not part of the program.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            Source::File(file) => Some(file.path()),
            Source::Shipped(..) => None,
        }
    }

    /// What the model is: hashes the whole file.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn manifest(&self) -> anyhow::Result<Manifest> {
        let mut progress = Progress::new("hashing the model");
        let mut show = |done: u64, total: u64| progress.show(done, total);
        let manifest = match &self.source {
            Source::File(file) => manifest(file, &mut show),
            Source::Shipped(gguf, bytes) => manifest_of(gguf, bytes, &mut show),
        };
        manifest.with_context(|| format!("cannot hash {}", self.name))
    }

    /// The model as a dispute sees it.
    ///
    /// # Errors
    /// It has no graph, or its file is gone.
    pub fn traced(&self) -> anyhow::Result<TracedModel> {
        let bytes: Arc<dyn AsRef<[u8]> + Send + Sync> = match &self.source {
            // Mapped once more: the model outlives what was opened here.
            Source::File(file) => Arc::new(ModelFile::open(file.path())?),
            Source::Shipped(_, bytes) => Arc::new(*bytes),
        };
        TracedModel::new(self.gguf(), bytes).with_context(|| format!("{} cannot be taken to court", self.name))
    }

    /// Prepares the weights, or finds them prepared.
    ///
    /// # Errors
    /// What is wrong with the model.
    pub fn load(&self, cache: &CacheArgs, options: LoadOptions) -> anyhow::Result<Arc<Model>> {
        let model = match &self.source {
            Source::Shipped(gguf, bytes) => Model::load_with(gguf, bytes, options, &mut |_, _| {}),
            Source::File(file) => load_kept(file, cache, &mut |store, progress| {
                Model::load_into(file.gguf(), file.bytes(), options, store, progress)
            }),
        };
        model.with_context(|| format!("cannot load {}", self.name))
    }
}

/// Opens and loads the encoder `name`: a path, or the name of a file in the user's folder.
///
/// # Errors
/// What is wrong with the file or its name, or that it is no encoder.
pub fn load_encoder(name: &str, cache: &CacheArgs) -> anyhow::Result<Arc<Encoder>> {
    let cannot_open = || format!("cannot open {name} (give a GGUF file, or a name that `assay list` shows)");
    load_encoder_file(&ModelFile::open(models::find(name)).with_context(cannot_open)?, cache)
}

/// Loads an encoder from a file that is open already.
///
/// # Errors
/// What is wrong with the file, or that it is no encoder.
pub fn load_encoder_file(file: &ModelFile, cache: &CacheArgs) -> anyhow::Result<Arc<Encoder>> {
    let encoder =
        load_kept(file, cache, &mut |store, progress| Encoder::load_into(file.gguf(), file.bytes(), store, progress));
    encoder.with_context(|| format!("cannot load {}", file.path().display()))
}

/// Loads into a store, and shows its progress in bytes.
type Load<'a, T> = dyn FnMut(&mut dyn PackedStore, &mut dyn FnMut(u64, u64)) -> Result<T, LoadError> + 'a;

/// Calls `load` with a store that has the packed weights of `file` or keeps them, and with what shows progress.
fn load_kept<T>(file: &ModelFile, cache: &CacheArgs, load: &mut Load<'_, T>) -> Result<T, LoadError> {
    let dirs = cache.dirs(file.path());
    let options = WeightsOptions { dirs, len_min: WeightsOptions::LEN_MIN, threads: all_cores() };
    let mut hashing = Progress::new("hashing the model");
    let mut said = |event: WeightsEvent<'_>| match event {
        WeightsEvent::Hashing { done, total } => hashing.show(done, total),
        WeightsEvent::Waiting { .. } => tell(format_args!("another process prepares these weights; waiting for it\n")),
        WeightsEvent::Replacing { error } => tell(format_args!("the prepared weights are made anew: {error}\n")),
        WeightsEvent::Unusable { error, needed } => tell(format_args!(
            "prepared weights ({:.1} GB) cannot be kept there: {error}; --cache-dir names another folder, --no-cache \
             none\n",
            needed as f64 / 1e9
        )),
    };
    let load = |store: &mut dyn PackedStore| {
        let mut progress = Progress::new("preparing the weights");
        let mut show = |done: u64, total: u64| progress.show(done, total);
        load(store, &mut show)
    };
    WeightCache::new(file, &options).load(&mut said, load).map(|(loaded, _)| loaded)
}

/// A bar on standard error for what takes longer than a second; one line if that is no terminal.
pub struct Progress {
    what: &'static str,
    started: Instant,
    shown: Option<u64>,
    terminal: bool,
}

/// Width of the bar in characters.
const BAR_WIDTH: usize = 30;

impl Progress {
    /// Starts the clock.
    pub fn new(what: &'static str) -> Self {
        Self { what, started: Instant::now(), shown: None, terminal: std::io::stderr().is_terminal() }
    }

    /// `done` of `total` is done.
    pub fn show(&mut self, done: u64, total: u64) {
        let percent = (done * 100 / total.max(1)).min(100);
        if self.started.elapsed() <= QUIET || self.shown == Some(percent) {
            return;
        }
        let what = self.what;
        if self.terminal {
            tell(format_args!("\r{what} [{}] {percent:>3} %", bar(percent)));
            let _ = std::io::stderr().flush();
        } else if self.shown.is_none() {
            tell(format_args!("{what}\n"));
        }
        self.shown = Some(percent);
    }
}

fn bar(percent: u64) -> String {
    let full = BAR_WIDTH * percent as usize / 100;
    format!("{:<BAR_WIDTH$}", "=".repeat(full))
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            // The line goes: what was waited for is there.
            tell(format_args!("\r{:1$}\r", "", self.what.len() + BAR_WIDTH + 10));
        }
    }
}
