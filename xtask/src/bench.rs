//! `cargo xtask bench`: measurements against peers in one interleaved run.
//!
//! Nothing here asserts a time; results are written to bench/record/ with the command and the machine.

use crate::shell::{self, root, target_dir};
use crate::test::{python, python_with};
use anyhow::bail;
use std::process::Command;

/// Each benchmark: its name and the script that runs it; every script writes bench/record/NAME.json.
const BENCHES: &[(&str, &str)] = &[
    ("engine", "bench/engine.py"),
    ("latency", "bench/latency.py"),
    ("faithful", "bench/faithful.py"),
    ("gateway", "bench/gateway.py"),
    ("load", "bench/load.py"),
    ("embeddings", "bench/embeddings.py"),
    ("chain", "bench/chain.py"),
    ("audit", "bench/audit.py"),
    ("tolerant", "bench/tolerant.py"),
];

/// Runs the named benchmarks, or all of them. Arguments from the first option on go to the script, of which there must
/// then be one.
pub fn run(args: &[&str]) -> anyhow::Result<()> {
    let (names, options) = args.split_at(args.iter().position(|arg| arg.starts_with('-')).unwrap_or(args.len()));
    if !options.is_empty() && names.len() != 1 {
        bail!("options are those of one benchmark: name it before them");
    }
    if let Some(unknown) = names.iter().find(|n| !BENCHES.iter().any(|(b, _)| b == *n)) {
        let known: Vec<&str> = BENCHES.iter().map(|(name, _)| *name).collect();
        bail!("no benchmark {unknown:?}; there are {}", known.join(", "));
    }
    shell::run(
        Command::new("cargo").args(["build", "--release", "--locked", "--package", "assay"]).current_dir(root()),
    )?;
    for (name, script) in BENCHES {
        if names.is_empty() || names.contains(name) {
            let python = match *name {
                // It needs no package.
                "chain" => "python3".into(),
                // With every package pinned: one of them asks for gigabytes that its weights do not need.
                "embeddings" => python_with(&root().join("bench/encoder"), &["--no-deps"])?,
                "tolerant" => python(&root().join("bench/tolerant"))?,
                _ => python(&root().join("bench"))?,
            };
            shell::run(
                Command::new(&python)
                    .arg(root().join(script))
                    .arg(target_dir().join("release/assay"))
                    .args(options)
                    .current_dir(root()),
            )?;
        }
    }
    Ok(())
}
