//! Running other programs: where the workspace is, one line before each command, its failure as an error.

use anyhow::{Context, bail};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

/// Root of the workspace: what cargo says now, not where this binary was compiled, because checkouts may share a target
/// folder.
pub fn root() -> PathBuf {
    let manifest_dir =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest_dir.parent().expect("xtask is a folder of the workspace").to_path_buf()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Runs `command` with inherited output; an exit status other than 0 is an error.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = describe(command);
    eprintln!("\n$ {line}");
    let start = Instant::now();
    let status = as_by_hand(command).status().with_context(|| format!("cannot start `{line}`; is it installed?"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    eprintln!("  ({:.1} s)", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs `command` and returns what it printed on standard output.
pub fn read(command: &mut Command) -> anyhow::Result<String> {
    let line = describe(command);
    let output = as_by_hand(command)
        .stderr(std::process::Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{line}`; is it installed?"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", output.status);
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Takes away what cargo tells of this program. Build scripts see it otherwise, and those that look at it (ring's does)
/// would run again, with everything above them, whenever somebody changes between `cargo` and `cargo xtask`.
fn as_by_hand(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

fn describe(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        line.push(' ');
        line.push_str(&arg.to_string_lossy());
    }
    line
}
