//! `assay list`, `assay show`, `assay rm`: the models on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use assay_engine::encoder::{EncoderConfig, Pooling};
use assay_engine::{ConfigError, KvShape, ModelConfig};
use assay_gguf::{Gguf, StrArray, TensorInfo};
use assay_store::{CacheFile, CacheState, ModelFile};
use serde_json::{Value, json};

use crate::import::is_encoder;
use crate::load::CacheArgs;
use crate::{load, models, print, shipped, tell};

/// Longest answer to a question that is read.
const ANSWER_LEN_MAX: usize = 64;

/// Arguments of `assay list`.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print one JSON array
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `assay show`.
#[derive(Debug, clap::Args)]
pub struct ShowArgs {
    /// GGUF file, or a name that `assay list` shows
    pub model: String,
    #[command(flatten)]
    pub cache: CacheArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `assay rm`.
#[derive(Debug, clap::Args)]
pub struct RmArgs {
    /// Name of a model that `assay list` shows; with --prepared also a GGUF file
    #[arg(required_unless_present = "orphans")]
    pub model: Option<String>,
    /// Keep the model and remove only its prepared weights
    #[arg(long)]
    pub prepared: bool,
    /// Remove prepared weights that no model needs any more, or that this release cannot use
    #[arg(long, conflicts_with_all = ["model", "prepared"])]
    pub orphans: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Runs `assay list`.
///
/// # Errors
/// The folder cannot be read.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut rows = vec![];
    let opened = load::open(shipped::NAME)?;
    rows.push(row(shipped::NAME, opened.gguf(), opened.bytes().len() as u64, "built in"));
    for path in models::all()? {
        let name = models::name(&path);
        match ModelFile::open(&path) {
            Ok(file) => {
                let cache = cache_word(&path, &args.cache);
                rows.push(row(&name, file.gguf(), file.bytes().len() as u64, &cache));
            }
            // One bad file does not hide the others.
            Err(error) => rows.push(json!({"name": name, "error": error.to_string()})),
        }
    }
    if args.json {
        return print(&Value::Array(rows).to_string());
    }
    let text = |row: &Value, key: &str| row[key].as_str().map_or_else(|| row[key].to_string(), str::to_owned);
    let width = rows.iter().map(|row| text(row, "name").len()).max().unwrap_or(0).max(4);
    print(&format!("{:<width$}  {:<8} {:<7} {:>9} {:>9}  prepared", "name", "family", "format", "size", "context"))?;
    for row in &rows {
        let name = text(row, "name");
        if row["error"].is_string() {
            print(&format!("{name:<width$}  {}", text(row, "error")))?;
            continue;
        }
        let size = size(row["bytes"].as_u64().unwrap_or(0));
        let (family, format, context) = (text(row, "family"), text(row, "format"), text(row, "context"));
        print(&format!("{name:<width$}  {family:<8} {format:<7} {size:>9} {context:>9}  {}", text(row, "prepared")))?;
    }
    if let Some(dir) = models::dir() {
        tell(format_args!("GGUF files in {} are found by their names\n", dir.display()));
    }
    Ok(())
}

fn row(name: &str, gguf: &Gguf, bytes: u64, prepared: &str) -> Value {
    json!({
        "name": name,
        "family": gguf.architecture().unwrap_or("?"),
        "format": main_format(gguf),
        "bytes": bytes,
        "context": gguf.context_length().ok(),
        "prepared": prepared,
    })
}

/// The format of most of the tensor data.
fn main_format(gguf: &Gguf) -> String {
    let formats = by_format(gguf);
    formats.into_iter().max_by_key(|(_, (_, bytes))| *bytes).map_or_else(String::new, |(name, _)| name)
}

/// Tensors and bytes of each format.
fn by_format(gguf: &Gguf) -> BTreeMap<String, (u64, u64)> {
    let mut formats = BTreeMap::new();
    for tensor in gguf.tensors() {
        let entry: &mut (u64, u64) = formats.entry(tensor.ty.to_string()).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.len);
    }
    formats
}

/// The file of prepared weights of the model at `path`.
fn cache_file(path: &Path, cache: &CacheArgs) -> Option<(PathBuf, CacheFile)> {
    cache.dirs(path).into_iter().find_map(|dir| {
        let file = CacheFile::of(&dir, path).ok().flatten()?;
        Some((dir, file))
    })
}

fn cache_word(path: &Path, cache: &CacheArgs) -> String {
    match cache_file(path, cache).map(|(_, file)| file.state) {
        None => "no".to_owned(),
        Some(CacheState::Ready) => "yes".to_owned(),
        Some(CacheState::Unfinished) => "unfinished".to_owned(),
        Some(CacheState::Unusable(flaw)) if flaw.is_stale() => "outdated".to_owned(),
        Some(CacheState::Unusable(_)) => "damaged".to_owned(),
        Some(CacheState::Unreadable(_)) => "unreadable".to_owned(),
    }
}

/// Runs `assay show`.
///
/// # Errors
/// There is no such model, or it is no model.
pub fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let opened = load::open(&args.model)?;
    let gguf = opened.gguf();
    let facts = facts(gguf, opened.bytes().len() as u64);
    let path = opened.path();
    let prepared = path.and_then(|path| cache_file(path, &args.cache));
    if args.json {
        let mut facts = facts;
        facts["path"] = json!(path);
        facts["prepared"] = json!(path.map(|path| cache_word(path, &args.cache)));
        facts["prepared_path"] = json!(prepared.as_ref().map(|(_, file)| &file.path));
        return print(&facts.to_string());
    }
    let line = |name: &str, value: &str| print(&format!("{name:<14} {value}"));
    let text = |key: &str| match &facts[key] {
        Value::Null => "not stated".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let number = |key: &str| facts[key].as_u64().unwrap_or(0);
    line("name", &text("name"))?;
    line("file", &path.map_or_else(|| "part of the program".to_owned(), |path| path.display().to_string()))?;
    line("size", &size(number("bytes")))?;
    line("family", &text("family"))?;
    line("parameters", &count(number("parameters")))?;
    line("licence", &text("licence"))?;
    line("context", &text("context"))?;
    line("tokenizer", &format!("{}, {} tokens", text("tokenizer"), text("vocabulary")))?;
    line("template", if facts["chat_template"] == true { "yes" } else { "no: texts are continued as they are" })?;
    for tensors in facts["tensors"].as_array().into_iter().flatten() {
        let (format, n) = (tensors["format"].as_str().unwrap_or("?"), &tensors["count"]);
        let bytes = size(tensors["bytes"].as_u64().unwrap_or(0));
        line("tensors", &format!("{format:<6} {n:>5}  {bytes:>9}"))?;
    }
    if let Some(why) = facts["cannot_run"].as_str() {
        line("runs here", &format!("no: {why}"))?;
    } else if facts["pooling"].is_string() {
        let (layers, width, most) = (text("layers"), text("width"), text("input_length"));
        let way = if facts["pooling"] == "mean" { "the mean over the tokens" } else { "those of the first token" };
        line("shape", &format!("{layers} layers, width {width}, {} heads", text("heads")))?;
        line("embeds", &format!("texts of up to {most} tokens as {width} values, {way}"))?;
    } else {
        let (layers, width) = (text("layers"), text("width"));
        line(
            "shape",
            &format!("{layers} layers, width {width}, {} heads, {} for keys", text("heads"), text("kv_heads")),
        )?;
        line("KV memory", &format!("{} for 1,000 tokens", size(number("kv_bytes_per_1000_tokens"))))?;
        line("", &format!("{} for the whole context", size(number("kv_bytes_context"))))?;
    }
    match &prepared {
        Some((_, file)) => line("prepared", &format!("{} at {}", size(file.len), file.path.display())),
        None => line("prepared", "no"),
    }
}

fn facts(gguf: &Gguf, bytes: u64) -> Value {
    let parameters: u64 = gguf.tensors().iter().map(|tensor| tensor.dims.iter().product::<u64>()).sum();
    let tensors: Vec<Value> = by_format(gguf)
        .into_iter()
        .map(|(format, (count, bytes))| json!({"format": format, "count": count, "bytes": bytes}))
        .collect();
    let vocabulary = gguf.get::<&StrArray>("tokenizer.ggml.tokens").ok().flatten().map(StrArray::len);
    let mut facts = json!({
        "name": gguf.name(),
        "bytes": bytes,
        "family": gguf.architecture().ok(),
        "parameters": parameters,
        "licence": gguf.license(),
        "context": gguf.context_length().ok(),
        "tokenizer": gguf.str("tokenizer.ggml.model").ok().flatten(),
        "vocabulary": vocabulary,
        "chat_template": gguf.str("tokenizer.chat_template").ok().flatten().is_some(),
        "tensors": tensors,
    });
    match purpose(gguf) {
        Ok(Purpose::Embeds(config)) => {
            facts["layers"] = json!(config.n_layers);
            facts["width"] = json!(config.width);
            facts["heads"] = json!(config.n_heads);
            facts["input_length"] = json!(config.input_length);
            facts["dimensions"] = json!(config.width);
            facts["pooling"] = json!(match config.pooling {
                Pooling::Mean => "mean",
                Pooling::Cls => "cls",
            });
        }
        Ok(Purpose::Writes(config)) => {
            // Blocks of 256 positions, as they are taken.
            let bytes = |tokens: usize| KvShape::of(&config).bytes_for(tokens);
            facts["layers"] = json!(config.n_layers);
            facts["width"] = json!(config.width);
            facts["heads"] = json!(config.n_heads);
            facts["kv_heads"] = json!(config.n_kv_heads);
            facts["kv_bytes_per_1000_tokens"] = json!(bytes(1000));
            facts["kv_bytes_context"] = json!(bytes(config.context));
        }
        Err(error) => facts["cannot_run"] = json!(error.to_string()),
    }
    facts
}

/// What a model is for.
pub enum Purpose {
    /// Continues texts.
    Writes(Box<ModelConfig>),
    /// Makes vectors of texts.
    Embeds(Box<EncoderConfig>),
}

/// What `gguf` is for here.
///
/// # Errors
/// Why it does not run.
pub fn purpose(gguf: &Gguf) -> Result<Purpose, ConfigError> {
    if is_encoder(gguf) {
        return EncoderConfig::from_gguf(gguf).map(|config| Purpose::Embeds(Box::new(config)));
    }
    let rows = |tensor: &TensorInfo| tensor.dims.get(1).copied().unwrap_or(1);
    let vocab = gguf.tensor("token_embd.weight").map_or(1, rows);
    ModelConfig::from_gguf(gguf, vocab).map(|config| Purpose::Writes(Box::new(config)))
}

/// Runs `assay rm`.
///
/// # Errors
/// There is no such model, nobody said yes, or the system refuses.
pub fn rm(args: &RmArgs) -> anyhow::Result<()> {
    let Some(name) = &args.model else { return rm_orphans(args) };
    let path = models::find(name);
    ensure!(path.exists(), "no model {name:?}; `assay list` shows those there are");
    let prepared = cache_file(&path, &args.cache);
    if !args.prepared {
        ensure!(
            models::is_inside(&path),
            "{} is not in the folder of models; remove it yourself, or with --prepared only its prepared weights",
            path.display()
        );
    }
    let mut what = vec![];
    if !args.prepared {
        what.push(format!("{} ({})", path.display(), size(fs::metadata(&path)?.len())));
    }
    what.extend(prepared.iter().map(|(_, file)| format!("{} ({})", file.path.display(), size(file.len))));
    ensure!(!what.is_empty(), "{name} has no prepared weights");
    ask(&what, args.yes)?;
    let canonical = path.canonicalize()?;
    if let Some((dir, file)) = prepared {
        // Another copy of the same model may use them, too.
        if file.models.iter().all(|model| *model == canonical) {
            ensure!(file.remove()?, "{} is being written by another process", file.path.display());
        }
        CacheFile::forget(&dir, Some(&canonical));
    }
    if !args.prepared {
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn rm_orphans(args: &RmArgs) -> anyhow::Result<()> {
    let mut useless = vec![];
    for dir in cache_dirs(&args.cache) {
        for file in CacheFile::all(&dir)? {
            if file.models.is_empty() || file.state != CacheState::Ready {
                useless.push((dir.clone(), file));
            }
        }
    }
    if useless.is_empty() {
        tell(format_args!("nothing to remove\n"));
        return Ok(());
    }
    let what: Vec<String> =
        useless.iter().map(|(_, file)| format!("{} ({})", file.path.display(), size(file.len))).collect();
    ask(&what, args.yes)?;
    for (dir, file) in useless {
        if !file.remove()? {
            tell(format_args!("{} is being written and stays\n", file.path.display()));
        }
        CacheFile::forget(&dir, None);
    }
    Ok(())
}

/// The folders for prepared weights that are not a matter of some file elsewhere.
pub fn cache_dirs(cache: &CacheArgs) -> Vec<PathBuf> {
    models::dir().map(|dir| cache.dirs(&dir.join("any"))).unwrap_or_default()
}

fn ask(what: &[String], yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    ensure!(std::io::stdin().is_terminal(), "would remove {}; say so with --yes", what.join(", "));
    tell(format_args!("remove {}? [y/N] ", what.join("\n   and ")));
    let _ = std::io::stderr().flush();
    let mut answer = vec![];
    std::io::Read::take(std::io::stdin().lock(), ANSWER_LEN_MAX as u64).read_until(b'\n', &mut answer)?;
    if !matches!(answer.trim_ascii(), b"y" | b"Y" | b"yes") {
        bail!("nothing was removed");
    }
    Ok(())
}

/// Bytes for a person.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

fn count(n: u64) -> String {
    match n {
        0..1_000_000_000 => format!("{:.1} million", n as f64 / 1e6),
        _ => format!("{:.2} billion", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::{count, size};

    #[test]
    fn numbers_for_people() {
        assert_eq!([size(0), size(999_999), size(1_000_000)], ["0.0 kB", "1000.0 kB", "1.0 MB"]);
        assert_eq!([size(999_999_999), size(4_081_067_360)], ["1000.0 MB", "4.08 GB"]);
        assert_eq!([count(370_000_000), count(6_738_415_616)], ["370.0 million", "6.74 billion"]);
    }
}
