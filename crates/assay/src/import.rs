//! `assay import`: a published model folder to a GGUF file.

use std::fs::{self, File};
use std::io::{BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use assay_engine::ModelConfig;
use assay_engine::encoder::Encoder;
use assay_gguf::{Gguf, Tokenizer};
use assay_import::{Folder, Options, Pooling, Precision, plan};
use assay_store::{MappedFile, ModelFile};

use crate::load::Progress;
use crate::print;

/// Largest JSON or text file that is read; tokenizers have up to 20 MB.
const TEXT_LEN_MAX: u64 = 64 << 20;

/// Arguments of `assay import`.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// Folder with config.json, tokenizer and *.safetensors, or one of these weights' files
    #[arg(value_name = "DIR|FILE")]
    pub source: PathBuf,
    /// The file to write [default: NAME-FORMAT.gguf here]
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Format of the matrices: f32, f16, bf16, q8_0, q4_0, q4_k, q5_k, q6_k
    #[arg(long = "type", value_name = "FORMAT", default_value = "f16")]
    pub precision: Precision,
    /// How an encoder's vectors are made, where the folder does not say
    #[arg(long, value_name = "WAY")]
    pub pooling: Option<Way>,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
}

/// Ways of pooling, as an argument.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Way {
    /// The mean over the text's tokens
    Mean,
    /// The first token's
    Cls,
}

/// Runs `assay import`.
///
/// # Errors
/// What is wrong with the folder, by file and key, or that the file cannot be written.
pub fn run(args: &ImportArgs) -> anyhow::Result<()> {
    let (dir, only) = if args.source.is_dir() {
        (args.source.clone(), None)
    } else {
        let name = args.source.file_name().with_context(|| format!("{} has no name", args.source.display()))?;
        let parent = args.source.parent().filter(|parent| !parent.as_os_str().is_empty());
        (parent.unwrap_or(Path::new(".")).to_owned(), Some(name.to_string_lossy().into_owned()))
    };
    let name = name_of(&dir)?;
    let out = args.out.clone().unwrap_or_else(|| format!("{name}-{}.gguf", args.precision).into());
    ensure!(args.force || !out.exists(), "{} is there already (--force replaces it)", out.display());

    let texts = read_texts(&dir)?;
    let weights = map_weights(&dir, only.as_deref())?;
    let mut folder = Folder::new(name);
    texts.iter().for_each(|(file, bytes)| folder.add(*file, bytes));
    weights.iter().for_each(|(file, map)| folder.add(file.clone(), map.bytes()));
    let pooling = args.pooling.map(|way| match way {
        Way::Mean => Pooling::Mean,
        Way::Cls => Pooling::Cls,
    });
    let import = plan(&folder, Options { precision: args.precision, pooling })
        .with_context(|| format!("cannot import {}", args.source.display()))?;

    write(&import, &out).with_context(|| format!("cannot import {}", args.source.display()))?;
    print(&format!(
        "{}: {}, {} tensors, {} bytes",
        out.display(),
        import.architecture(),
        import.n_tensors(),
        fs::metadata(&out)?.len()
    ))
}

/// The folder's own name, also of ".".
fn name_of(dir: &Path) -> anyhow::Result<String> {
    let full = fs::canonicalize(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    Ok(full.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned()))
}

/// The files that say what the model is.
fn read_texts(dir: &Path) -> anyhow::Result<Vec<(&'static str, Vec<u8>)>> {
    let mut texts = Vec::new();
    for file in Folder::TEXT_FILES {
        let path = dir.join(file);
        let Ok(opened) = File::open(&path) else { continue };
        let mut bytes = Vec::new();
        opened.take(TEXT_LEN_MAX + 1).read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
        ensure!(bytes.len() as u64 <= TEXT_LEN_MAX, "{} has more than {TEXT_LEN_MAX} bytes", path.display());
        texts.push((*file, bytes));
    }
    Ok(texts)
}

/// The files with weights: all of the folder, or `only` that one.
fn map_weights(dir: &Path, only: Option<&str>) -> anyhow::Result<Vec<(String, MappedFile)>> {
    if let Some(file) = only {
        ensure!(file.ends_with(".safetensors"), "{file} is no folder and no .safetensors file");
        return Ok(vec![(file.to_owned(), MappedFile::open(dir.join(file))?)]);
    }
    let mut weights = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".safetensors") {
            let map = MappedFile::open(dir.join(&name))?;
            weights.push((name, map));
        }
    }
    Ok(weights)
}

/// Writes beside `out`, checks that the engine takes the result, and moves it there: `out` is never half a file.
fn write(import: &assay_import::Import<'_>, out: &Path) -> anyhow::Result<()> {
    let mut part = out.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let result = write_checked(import, &part);
    if result.is_err() {
        let _ = fs::remove_file(&part);
        return result;
    }
    fs::rename(&part, out).with_context(|| format!("cannot write {}", out.display()))
}

fn write_checked(import: &assay_import::Import<'_>, path: &Path) -> anyhow::Result<()> {
    let cannot = || format!("cannot write {}", path.display());
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(cannot)?);
    let mut progress = Progress::new("writing the model");
    import.write(&mut file, &mut |done, total| progress.show(done, total))?;
    drop(progress);
    file.flush().with_context(cannot)?;
    file.into_inner().with_context(cannot)?.sync_all().with_context(cannot)?;
    check(&ModelFile::open(path)?).context("the engine does not take what was written")
}

/// Whether the engine would load the file: all of an encoder; of another model, which may not fit in memory, what
/// comes before its weights.
fn check(file: &ModelFile) -> anyhow::Result<()> {
    if is_encoder(file.gguf()) {
        let mut progress = Progress::new("checking the model");
        Encoder::load_with(file.gguf(), file.bytes(), &mut |done, total| progress.show(done, total))?;
        return Ok(());
    }
    let tokenizer = Tokenizer::from_gguf(file.gguf())?;
    let config = ModelConfig::from_gguf(file.gguf(), u64::from(tokenizer.vocab_size()))?;
    if config.vocab != tokenizer.vocab_size() as usize {
        bail!("the tokenizer has {} tokens, the model {}", tokenizer.vocab_size(), config.vocab);
    }
    Ok(())
}

/// Whether `gguf` is an encoder rather than a model that writes text.
pub fn is_encoder(gguf: &Gguf) -> bool {
    gguf.architecture().is_ok_and(|name| name == "bert")
}
