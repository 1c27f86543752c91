//! Writes the vectors of `assay_testkit::judge_vectors` for the contracts' tests.
//!
//! `judge_vectors golden`: the committed `vectors/judge.json`: per instruction a hash and the first records.
//! `judge_vectors records DIR [COUNT]`: all records in `DIR/NAME-PART.bin`, at most 4096 in each; COUNT for every
//! instruction instead of the counts in `vectors/judge.json`.

use assay_testkit::judge_vectors::{INSTRUCTIONS, Instruction, PART, ci_count, golden_json};
use std::io::{Error, Write};
use std::path::Path;

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["golden"] => std::io::stdout().write_all(golden_json().as_bytes()),
        ["records", dir] => records(Path::new(dir), None),
        ["records", dir, count] => records(Path::new(dir), Some(count.parse().map_err(Error::other)?)),
        _ => Err(Error::other("usage: judge_vectors golden | records DIR [COUNT]")),
    }
}

fn records(dir: &Path, count: Option<u64>) -> Result<(), Error> {
    std::fs::create_dir_all(dir)?;
    for instruction in INSTRUCTIONS {
        write(dir, instruction, count.unwrap_or_else(|| ci_count(instruction)))?;
    }
    Ok(())
}

fn write(dir: &Path, instruction: &Instruction, count: u64) -> Result<(), Error> {
    for part in 0..count.div_ceil(PART) {
        std::fs::write(dir.join(format!("{}-{part}.bin", instruction.name)), instruction.part(part, count))?;
    }
    // The end of the list, so that files of an earlier, longer run are not read.
    match std::fs::remove_file(dir.join(format!("{}-{}.bin", instruction.name, count.div_ceil(PART)))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
