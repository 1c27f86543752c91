//! A published encoder's vectors, to the last bit: `encoder_bits FOLDER SENTENCES`, where FOLDER is all-MiniLM-L6-v2 as
//! published and SENTENCES a text file.
//!
//! Imports the folder in memory and embeds the first lines with each instruction set. Machines that never meet compare
//! themselves with the same written hashes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use assay_engine::encoder::{Embedder, Embedding, Encoder, TooLong};
use assay_gguf::Gguf;
use assay_import::{Folder, Options, Precision, plan};
use assay_num::{Isa, Kernels};

/// Lines that are embedded: a scalar kernel under emulation takes seconds for each.
const SENTENCES: usize = 3;
const THREADS: usize = 2;

/// Per format of the matrices, the hash of the vectors of the first sentences.
const GOLDEN: [(Precision, u64); 3] = [
    (Precision::F32, 0x29c4_92f7_70d1_b197),
    (Precision::F16, 0x6116_3ba9_535e_365b),
    (Precision::Q8_0, 0x0fdb_2ed7_1283_41e7),
];

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).map(PathBuf::from);
    let usage = "usage: encoder_bits FOLDER SENTENCES";
    let (dir, sentences) = (args.next().context(usage)?, args.next().context(usage)?);
    let text = fs::read_to_string(&sentences).with_context(|| sentences.display().to_string())?;
    let texts: Vec<&str> = text.lines().take(SENTENCES).collect();
    ensure!(texts.len() == SENTENCES, "{} has less than {SENTENCES} lines", sentences.display());
    let files = files(&dir)?;
    let mut folder = Folder::new("encoder");
    files.iter().for_each(|(name, bytes)| folder.add(name.clone(), bytes));
    let mut wrong = vec![];
    for (precision, golden) in GOLDEN {
        let bytes = plan(&folder, Options { precision, pooling: None })?.to_bytes()?;
        let encoder = Encoder::load(&Gguf::parse(&bytes)?, &bytes)?;
        let mut line = format!("{:<5} {golden:016x}", precision.to_string());
        for isa in Isa::available() {
            let kernels = Kernels::with_isa(isa).context("an instruction set that is available")?;
            let found =
                hash(&Embedder::with_kernels(kernels, THREADS).embed_texts(&encoder, &texts, TooLong::Refuse)?);
            if found == golden {
                line += &format!("  {isa}");
            } else {
                line += &format!("  {isa} DIFFERS");
                wrong.push(format!("{precision} on {isa}: {found:016x}"));
            }
        }
        println!("{line}");
    }
    ensure!(wrong.is_empty(), "other bits than the written ones: {}", wrong.join(", "));
    Ok(())
}

/// Every file of `dir` that an import may look at, by name.
fn files(dir: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut files = vec![];
    let weights = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    let weights = weights.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    let names = weights.filter(|name| name.ends_with(".safetensors"));
    for name in names.chain(Folder::TEXT_FILES.iter().map(|name| (*name).to_owned())) {
        if let Ok(bytes) = fs::read(dir.join(&name)) {
            files.push((name, bytes));
        }
    }
    Ok(files)
}

/// FNV-1a of all values' bits.
fn hash(embeddings: &[Embedding]) -> u64 {
    let bytes = embeddings.iter().flat_map(|e| &e.values).flat_map(|v| v.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
