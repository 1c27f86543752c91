//! Tokenizers against llama.cpp's vocabulary files: `vocabularies DIR`, where DIR has `ggml-vocab-NAME.gguf` and, for
//! most of them, texts in `.inp` and the ids that the model's own tokenizer gives in `.out`.
//!
//! Every vector of a tokenizer that is supported must match; one that is not must be refused with an error that names
//! it.

use anyhow::{Context, bail, ensure};
use assay_gguf::{Gguf, Tokenizer};
use std::path::{Path, PathBuf};

/// Texts in a `.inp` file are separated by this.
const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
/// Tokenizers that this release refuses, and a word of the error that must say so.
const REFUSED: &[(&str, &str)] = &[("gemma-4", "\"gemma4\""), ("nomic-bert-moe", "\"t5\"")];
/// Vocabularies with vectors: fewer than this means that files are missing.
const CHECKED_MIN: usize = 14;

fn main() -> anyhow::Result<()> {
    let dir = std::env::args().nth(1).context("usage: vocabularies DIR")?;
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir)
        .with_context(|| dir.clone())?
        .map(|entry| Ok(entry?.path()))
        .collect::<anyhow::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|ext| ext == "gguf"));
    files.sort();
    let mut checked = 0;
    let mut failed = 0;
    println!("{:<20} {:>8} {:>8}  vectors", "vocabulary", "tokens", "texts");
    for file in &files {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().replace("ggml-vocab-", "");
        let bytes = std::fs::read(file).with_context(|| file.display().to_string())?;
        let tokenizer = Tokenizer::from_gguf(&Gguf::parse(&bytes)?);
        if let Some((_, word)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            let error = tokenizer.map(|_| ()).err().map(|error| error.to_string()).unwrap_or_default();
            ensure!(error.contains(word), "{name} is refused, but not by name: {error:?}");
            println!("{name:<20} {:>8} {:>8}  refused: {error}", "-", "-");
            continue;
        }
        let tokenizer = tokenizer.with_context(|| name.clone())?;
        let vectors = vectors(file)?;
        let wrong: Vec<String> = vectors.iter().filter_map(|(text, ids)| check(&tokenizer, text, ids)).collect();
        let verdict = match (vectors.len(), wrong.len()) {
            (0, _) => "none in the distribution".to_owned(),
            (_, 0) => "all match".to_owned(),
            (_, wrong) => format!("{wrong} DIFFER"),
        };
        println!("{name:<20} {:>8} {:>8}  {verdict}", tokenizer.vocab_size(), vectors.len());
        wrong.iter().for_each(|line| println!("  {line}"));
        checked += usize::from(!vectors.is_empty());
        failed += wrong.len();
    }
    ensure!(checked >= CHECKED_MIN, "{checked} vocabularies with vectors, there should be {CHECKED_MIN}");
    if failed > 0 {
        bail!("{failed} vectors differ");
    }
    println!("{checked} passed, {failed} failed");
    Ok(())
}

/// Each text and its ids; empty if the distribution has none for this vocabulary.
fn vectors(file: &Path) -> anyhow::Result<Vec<(String, Vec<u32>)>> {
    let beside = |ext: &str| PathBuf::from(format!("{}.{ext}", file.display()));
    if !beside("inp").exists() {
        return Ok(vec![]);
    }
    let read = |path: PathBuf| std::fs::read_to_string(&path).with_context(|| path.display().to_string());
    let (texts, lines) = (read(beside("inp"))?, read(beside("out"))?);
    let texts: Vec<&str> = texts.split(SEPARATOR).collect();
    let lines: Vec<&str> = lines.lines().collect();
    // The last separator is followed by nothing.
    let texts = if texts.len() == lines.len() + 1 { &texts[..lines.len()] } else { &texts[..] };
    ensure!(texts.len() == lines.len(), "{}: {} texts, {} lines", file.display(), texts.len(), lines.len());
    let ids = |line: &str| line.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>();
    texts.iter().zip(lines).map(|(text, line)| Ok(((*text).to_owned(), ids(line)?))).collect()
}

/// What is wrong with one text's ids, if anything is.
fn check(tokenizer: &Tokenizer, text: &str, expect: &[u32]) -> Option<String> {
    let ids = tokenizer.encode(text, false, false);
    (ids != expect).then(|| {
        let shown =
            |ids: &[u32]| ids.iter().map(|&id| format!("{id}={:?}", tokenizer.token_text(id))).collect::<Vec<_>>();
        let at = ids.iter().zip(expect).position(|(a, b)| a != b).unwrap_or(ids.len().min(expect.len()));
        let around = |ids: &[u32]| shown(ids.get(at..(at + 6).min(ids.len())).unwrap_or_default()).join(" ");
        format!("{text:?} at token {at}: {} instead of {}", around(&ids), around(expect))
    })
}
