//! The rules of docs/ARCHITECTURE.md that a program can check. Each rule is a function over the tree.

use crate::shell::{read, root};
use anyhow::{Context, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Layer of each crate (R1). A crate that is missing here fails the check.
const LAYERS: &[(&str, u32)] = &[
    ("assay-num", 0),
    ("assay-types", 0),
    ("assay-gguf", 1),
    ("assay-grammar", 1),
    ("assay-protocol", 1),
    ("assay-api", 1),
    ("assay-dag", 1),
    ("assay-graph", 2),
    ("assay-engine", 3),
    ("assay-import", 3),
    ("assay-store", 3),
    ("assay-net", 3),
    ("assay-chain", 3),
    ("assay-fetch", 4),
    ("assay-verify", 4),
    ("assay-provider", 5),
    ("assay-gateway", 5),
    ("assay", 6),
];

/// Third-party crates with one owner (R3); `|` separates owners.
const OWNERS: &[(&str, &str)] = &[
    ("revm", "assay-chain"),
    ("redb", "assay-chain"),
    ("alloy-provider", "assay-chain"),
    ("clap", "assay"),
    ("minijinja", "assay-gguf"),
    ("llguidance", "assay-grammar"),
    ("memmap2", "assay-store"),
    ("axum", "assay-chain|assay-fetch|assay-gateway"),
    ("sqlx", "assay-provider|assay-gateway"),
];

/// What layers 0 and 1 may not name (R2).
const IMPURE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::env",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "getrandom",
    "thread_rng",
    "tokio::",
];

/// Longest source file in lines; the guidance is 500.
const FILE_LINES_MAX: usize = 900;

struct Package {
    name: String,
    dir: PathBuf,
    /// Normal dependencies by name.
    dependencies: BTreeSet<String>,
}

/// Runs every rule and prints what is broken.
pub fn run() -> anyhow::Result<()> {
    let broken = check()?;
    if broken.is_empty() {
        eprintln!("tidy: nothing to say");
        return Ok(());
    }
    for line in &broken {
        eprintln!("{line}");
    }
    bail!("tidy: {} finding(s)", broken.len());
}

fn check() -> anyhow::Result<Vec<String>> {
    let packages = packages()?;
    let mut broken = vec![];
    layers(&packages, &mut broken);
    owners(&packages, &mut broken);
    gateway_without_engine(&packages, &mut broken);
    for package in &packages {
        for path in sources(&package.dir)? {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let shown = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
            purity(package, &shown, &text, &mut broken);
            habits(&shown, &text, &mut broken);
        }
    }
    vectors_are_read(&mut broken)?;
    Ok(broken)
}

fn packages() -> anyhow::Result<Vec<Package>> {
    let text = read(
        Command::new("cargo")
            .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1"])
            .current_dir(root()),
    )?;
    let metadata: Value = serde_json::from_str(&text)?;
    let list = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    list.iter()
        .map(|package| {
            let name = package["name"].as_str().context("a package has a name")?.to_owned();
            let manifest = package["manifest_path"].as_str().context("a package has a manifest")?;
            let dependencies = package["dependencies"].as_array().context("a package lists dependencies")?;
            Ok(Package {
                name,
                dir: Path::new(manifest).parent().context("a manifest is in a folder")?.to_path_buf(),
                dependencies: dependencies
                    .iter()
                    .filter(|d| d["kind"].is_null())
                    .filter_map(|d| d["name"].as_str().map(str::to_owned))
                    .collect(),
            })
        })
        .collect()
}

fn layer(name: &str) -> Option<u32> {
    LAYERS.iter().find(|(n, _)| *n == name).map(|(_, l)| *l)
}

/// R1: depend on strictly lower layers only; assay-testkit is for tests.
fn layers(packages: &[Package], broken: &mut Vec<String>) {
    for package in packages {
        if matches!(package.name.as_str(), "xtask" | "assay-testkit") {
            continue;
        }
        let Some(own) = layer(&package.name) else {
            broken.push(format!("R1 {}: has no layer in xtask/src/tidy.rs", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| d.starts_with("assay")) {
            if layer(dependency).is_none_or(|l| l >= own) {
                broken.push(format!("R1 {} (layer {own}) may not depend on {dependency}", package.name));
            }
        }
    }
}

/// R3: large third-party crates have one owner.
fn owners(packages: &[Package], broken: &mut Vec<String>) {
    for package in packages.iter().filter(|p| p.name != "assay-testkit") {
        for (library, owners) in OWNERS {
            if package.dependencies.contains(*library) && !owners.split('|').any(|o| o == package.name) {
                broken.push(format!("R3 {} may not depend on {library}: it belongs to {owners}", package.name));
            }
        }
    }
}

/// R5: a gateway is small; it never links the engine, not even through another crate.
fn gateway_without_engine(packages: &[Package], broken: &mut Vec<String>) {
    let by_name: BTreeMap<&str, &Package> = packages.iter().map(|p| (p.name.as_str(), p)).collect();
    let mut todo = vec!["assay-gateway"];
    let mut seen = BTreeSet::new();
    while let Some(name) = todo.pop() {
        if !seen.insert(name) {
            continue;
        }
        if name == "assay-engine" {
            broken.push("R5 assay-gateway reaches assay-engine".into());
        }
        if let Some(package) = by_name.get(name) {
            todo.extend(package.dependencies.iter().map(String::as_str));
        }
    }
}

fn sources(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = vec![];
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() && path.file_name().is_none_or(|n| n != "target" && n != "node_modules") {
                todo.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// R2: layers 0 and 1 hold no socket, file, clock, environment or randomness (their tests may read vectors).
fn purity(package: &Package, shown: &str, text: &str, broken: &mut Vec<String>) {
    if layer(&package.name).is_none_or(|l| l > 1) || !shown.contains("/src/") || shown.contains("/tests") {
        return;
    }
    let library = text.split("#[cfg(test)]").next().unwrap_or(text);
    for word in IMPURE {
        if library.lines().any(|l| !l.trim_start().starts_with("//") && l.contains(word)) {
            broken.push(format!("R2 {shown}: {word} in a pure crate"));
        }
    }
}

/// Habits that are not allowed anywhere.
fn habits(shown: &str, text: &str, broken: &mut Vec<String>) {
    if shown == "xtask/src/tidy.rs" {
        return;
    }
    if text.lines().count() > FILE_LINES_MAX {
        broken.push(format!("{shown}: longer than {FILE_LINES_MAX} lines"));
    }
    let kernels_or_mmap = shown.starts_with("crates/assay-num/") || shown.starts_with("crates/assay-store/");
    if !kernels_or_mmap && ["unsafe {", "unsafe fn", "(unsafe_code"].iter().any(|word| text.contains(word)) {
        broken.push(format!("{shown}: unsafe belongs to kernels (assay-num) and the mapping (assay-store)"));
    }
    for (word, why) in [
        ("#[ignore", "a test runs or does not exist"),
        ("todo!(", "a stub is not done"),
        ("unimplemented!(", "a stub is not done"),
    ] {
        if text.contains(word) {
            broken.push(format!("{shown}: {word} {why}"));
        }
    }
    if shown.contains("/src/") && !text.trim_start().starts_with("//!") {
        broken.push(format!("{shown}: a module opens with //!"));
    }
}

/// A vector that nothing reads checks nothing.
fn vectors_are_read(broken: &mut Vec<String>) -> anyhow::Result<()> {
    let dir = root().join("vectors");
    if !dir.is_dir() {
        return Ok(());
    }
    let mut readers = String::new();
    for path in sources(&root().join("crates"))? {
        readers.push_str(&std::fs::read_to_string(path)?);
    }
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".md") && !readers.contains(&name) {
            broken.push(format!("vectors/{name}: no Rust test reads it"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_workspace_keeps_its_rules() {
        let broken = super::check().expect("the tree can be read");
        assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    }

    #[test]
    fn a_forbidden_edge_is_named() {
        let package = |name: &str, dependencies: &[&str]| super::Package {
            name: name.into(),
            dir: "x".into(),
            dependencies: dependencies.iter().map(|d| (*d).to_owned()).collect(),
        };
        let packages = [
            package("assay-gateway", &["assay-verify"]),
            package("assay-verify", &["assay-engine"]),
            package("assay-gguf", &["assay-engine"]),
            package("assay-api", &["revm"]),
        ];
        let mut broken = vec![];
        super::layers(&packages, &mut broken);
        super::owners(&packages, &mut broken);
        super::gateway_without_engine(&packages, &mut broken);
        assert_eq!(
            broken,
            [
                "R1 assay-gguf (layer 1) may not depend on assay-engine",
                "R3 assay-api may not depend on revm: it belongs to assay-chain",
                "R5 assay-gateway reaches assay-engine",
            ]
        );
    }
}
