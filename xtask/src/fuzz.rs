//! `cargo xtask fuzz`: libFuzzer on the stable toolchain, for everything that strangers write.
//!
//! `fuzz/` is a workspace of its own: its crates are compiled with coverage and overflow checks, which nothing else
//! should pay for. Its lock file is made from the workspace's, so that what is fuzzed is what is shipped.

use crate::shell::{self, root, target_dir};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Each target and the longest input that makes sense for it; short ones are fast.
const TARGETS: &[(&str, u32)] = &[
    ("gguf", 1024),
    ("safetensors", 1024),
    ("tokenizer", 512),
    ("template", 512),
    ("model", 160),
    ("dagpb", 768),
    ("wire", 768),
    ("request", 512),
];

/// Coverage as libFuzzer wants it, by the LLVM passes that stable rustc can run. Comparisons are not traced: that would
/// take half of the time, the seeds have the numbers that matter, and texts are seen where memcmp compares them.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];

/// Memory of one target in MiB, coverage and corpus included.
const RSS_MB_MAX: u32 = 2048;
/// One input may take this long.
const INPUT_SECONDS_MAX: u32 = 10;

/// How long each target runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    /// This many inputs.
    Runs(u64),
    /// This many seconds.
    Seconds(u64),
}

/// `[TARGET ...] [--runs N | --seconds N]`; without a target all of them, without a bound a minute each.
pub fn command(words: &[&str]) -> anyhow::Result<()> {
    let mut names = vec![];
    let mut bound = Bound::Seconds(60);
    let mut words = words.iter();
    while let Some(&word) = words.next() {
        let mut number = || -> anyhow::Result<u64> {
            let value = words.next().with_context(|| format!("{word} needs a number"))?;
            value.parse().with_context(|| format!("{word} {value}"))
        };
        match word {
            "--runs" => bound = Bound::Runs(number()?),
            "--seconds" => bound = Bound::Seconds(number()?),
            name if TARGETS.iter().any(|(target, _)| *target == name) => names.push(name),
            other => {
                let known: Vec<&str> = TARGETS.iter().map(|(target, _)| *target).collect();
                bail!("no fuzz target {other:?}; there are {}", known.join(", "));
            }
        }
    }
    run(&names, bound, None)
}

/// Builds and runs the named targets, or all of them, one after the other. From an empty corpus, the same `seed` and
/// number of inputs are the same inputs; without a seed each run has its own.
pub fn run(names: &[&str], bound: Bound, seed: Option<u32>) -> anyhow::Result<()> {
    let programs = build()?;
    let seeds = target_dir().join("fuzz/seeds");
    for (target, len_max) in TARGETS {
        if names.is_empty() || names.contains(target) {
            let corpus = target_dir().join("fuzz/corpus").join(target);
            std::fs::create_dir_all(&corpus)?;
            std::fs::create_dir_all(seeds.join(target))?;
            let bound = match bound {
                Bound::Runs(runs) => format!("-runs={runs}"),
                Bound::Seconds(seconds) => format!("-max_total_time={seconds}"),
            };
            let crashes = target_dir().join("fuzz").join(format!("crash-{target}-"));
            let fuzz = Command::new(programs.join(target))
                .args([&corpus, &seeds.join(target)])
                .env("ASSAY_FUZZ_SEEDS", seeds.join(target))
                .arg(bound)
                .arg(format!("-max_len={len_max}"))
                .arg(format!("-rss_limit_mb={RSS_MB_MAX}"))
                .arg(format!("-timeout={INPUT_SECONDS_MAX}"))
                .arg(format!("-artifact_prefix={}", crashes.display()))
                .args(["-verbosity=0", "-print_final_stats=1"])
                .args(seed.map(|seed| format!("-seed={seed}")))
                .current_dir(root())
                .status()
                .with_context(|| format!("cannot start fuzz target {target}"))?;
            eprintln!("fuzz {target}: {fuzz}");
            if !fuzz.success() {
                bail!("fuzz target {target} failed; the input is at {}*", crashes.display());
            }
        }
    }
    Ok(())
}

/// Builds every target; returns the folder they are in.
fn build() -> anyhow::Result<PathBuf> {
    let dir = root().join("fuzz");
    let lock = dir.join("Cargo.lock");
    std::fs::copy(root().join("Cargo.lock"), &lock).with_context(|| lock.display().to_string())?;
    let host = host()?;
    let target = target_dir().join("fuzz");
    shell::run(
        Command::new("cargo")
            .args(["build", "--release", "--bins", "--target", &host, "--target-dir"])
            .arg(&target)
            .env("RUSTFLAGS", COVERAGE.join(" "))
            .current_dir(&dir),
    )?;
    Ok(Path::new(&target).join(host).join("release"))
}

/// The machine's own target triple. Naming it keeps coverage out of build scripts and macros.
fn host() -> anyhow::Result<String> {
    let version = shell::read(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names the host")?.to_owned())
}
