//! One hash of the logits per model and format, whatever computes them: instruction sets, threads, neighbours in a
//! batch, cuts of the prompt, prefix cache. The hashes are written down, so that machines that never meet compare
//! themselves with the same values; `cargo xtask test arm` runs this on AArch64.
//!
//! What runs where is in `plan.rs`. Each test prints a table: per format the written hash, per instruction set how many
//! runs gave it.

mod golden;
mod models;
mod plan;
mod ways;

use std::io::Write as _;

use assay_num::{Isa, Kernels};

use crate::golden::Golden;
use crate::models::{FORMATS, Subject};
use crate::ways::hash_of;

/// What every way must give: a hash for each position, as far as they were computed yet.
struct Expected {
    rows: Vec<u64>,
    golden: Golden,
    head: usize,
    whole: usize,
}

impl Expected {
    /// Whether `rows`, of the positions from `from` on, are those that earlier ways gave; the first way is compared
    /// with the written hashes.
    fn takes(&mut self, from: usize, rows: &[u64]) -> bool {
        let n_known = self.rows.len().saturating_sub(from).min(rows.len());
        if rows[..n_known] != self.rows[self.rows.len().min(from)..][..n_known] {
            return false;
        }
        self.rows.extend(&rows[n_known..]);
        let is_written = |n: usize, written: u64| self.rows.len() < n || hash_of(&self.rows[..n]) == written;
        is_written(self.head, self.golden.head) && is_written(self.whole, self.golden.whole)
    }

    /// The hashes to write down.
    fn computed(&self) -> String {
        let hash =
            |n: usize| self.rows.get(..n).map_or("not computed".into(), |rows| format!("{:#018x}", hash_of(rows)));
        format!("head: {}, whole: {}", hash(self.head), hash(self.whole))
    }
}

/// All ways of the plan; returns what differed.
fn check(subject: &Subject, golden: Golden) -> Vec<String> {
    let mut expected = Expected { rows: Vec::new(), golden, head: subject.head, whole: subject.tokens.len() };
    let mut differs = Vec::new();
    let mut line = format!("{:<18} {:016x}", subject.name, golden.head);
    for isa in Isa::available() {
        let kernels = Kernels::with_isa(isa).expect("it is available");
        let (mut n_runs, n_other) = (0, differs.len());
        for run in plan::runs(subject, isa) {
            let (from, rows) = ways::rows(subject, kernels, run);
            n_runs += 1;
            if !expected.takes(from, &rows) {
                differs.push(format!("{}: {isa}, {run:?}; it has {}", subject.name, expected.computed()));
                break;
            }
        }
        line += &match n_runs {
            0 => format!("  {isa} -"),
            n if differs.len() == n_other => format!("  {isa} {n}"),
            _ => format!("  {isa} DIFFERS"),
        };
    }
    // Not by println, which the test harness keeps for failures: what ran is worth seeing.
    writeln!(std::io::stdout(), "{line}").expect("standard output");
    differs
}

fn check_all(subject: fn(usize) -> Subject, golden: &[Golden; FORMATS.len()]) {
    if std::env::var_os("ASSAY_EMULATED").is_some() {
        // The emulator has all of them: a kernel that is not found is not tested.
        assert_eq!(Isa::available(), [Isa::Scalar, Isa::Neon, Isa::Dotprod, Isa::I8mm]);
    }
    let differs: Vec<String> =
        golden.iter().enumerate().flat_map(|(format, golden)| check(&subject(format), *golden)).collect();
    assert!(differs.is_empty(), "\n{}", differs.join("\n"));
}

#[test]
fn assay_tiny_has_one_hash_per_format() {
    check_all(models::shipped, &golden::SHIPPED);
}

#[test]
fn a_model_of_100_million_parameters_has_one_hash_per_format() {
    check_all(models::large, &golden::LARGE);
}
