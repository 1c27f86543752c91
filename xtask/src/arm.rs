//! The AArch64 column of the tests: built with Debian's compiler, whose standard library comes for that architecture
//! too, and run under qemu. The same golden values are compared as on x86-64.

use crate::shell::{self, root, target_dir};
use crate::test::published_encoder;
use anyhow::{Context, bail};
use std::path::Path;
use std::process::{Command, Stdio};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Not the `rustc` of the path, which seldom has the other standard library.
const RUSTC: &str = "/usr/bin/rustc";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64-static";

/// What [`run`] needs and this machine lacks is an error that says how to get it.
pub fn check() -> anyhow::Result<()> {
    if cfg!(target_arch = "aarch64") {
        return Ok(());
    }
    let std_dir = Path::new("/usr/lib/rustlib").join(TARGET).join("lib");
    let mut missing = vec![];
    if !(Path::new(RUSTC).is_file() && std_dir.is_dir()) {
        missing.push("rustc-web libstd-rust-web-dev:arm64");
    }
    if !starts(LINKER) {
        missing.push("gcc-aarch64-linux-gnu libc6-dev-arm64-cross");
    }
    if !starts(EMULATOR) {
        missing.push("qemu-user-static");
    }
    if !missing.is_empty() {
        bail!(
            "the tests on AArch64 need packages of Debian 12:\n\n  dpkg --add-architecture arm64 && apt-get update\n  \
             apt-get install --no-install-recommends {}\n\nor leave this step out: cargo xtask test --without arm",
            missing.join(" ")
        );
    }
    Ok(())
}

fn starts(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The kernels' tests, and whole models and encoders against the golden values.
pub fn run() -> anyhow::Result<()> {
    if cfg!(target_arch = "aarch64") {
        eprintln!("this machine is AArch64: step rust has run these tests on it");
        return Ok(());
    }
    check()?;
    let test = |what: &[&str]| cargo(&[&["test", "--no-fail-fast"], what].concat());
    test(&["--package", "assay-num", "--tests"]).context("kernels on AArch64")?;
    test(&["--package", "assay-engine", "--test", "identity"]).context("whole models on AArch64")?;
    // The other tests of encoders compare with numbers in f64, not with bits.
    test(&["--package", "assay-engine", "--test", "encoder", "vectors_do_not_depend"])
        .context("encoders on AArch64")?;
    let [folder, sentences] = published_encoder()?;
    cargo(&["run", "--quiet", "--package", "assay-import", "--example", "encoder_bits", "--", &folder, &sentences])
        .context("a published encoder on AArch64")
}

fn cargo(words: &[&str]) -> anyhow::Result<()> {
    // A folder of its own: the programs that build scripts run are built by the other compiler, too.
    let target_dir = target_dir().join("aarch64");
    let (verb, what) = words.split_first().context("a command of cargo")?;
    shell::run(
        Command::new("cargo")
            .args([verb, "--release", "--locked", "--target", TARGET])
            .args(what)
            .current_dir(root())
            // The tests of whole models compute less of what is slow under emulation, and want every kernel to be there.
            .env("ASSAY_EMULATED", "1")
            .env("RUSTC", RUSTC)
            .env("CARGO_TARGET_DIR", target_dir)
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
            // Without a root of its own the emulator takes the libraries of Debian's arm64 packages, all of one version.
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", EMULATOR),
    )
}
