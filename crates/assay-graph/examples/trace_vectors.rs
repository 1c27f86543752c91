//! Writes vectors of traces for the contracts' tests.
//!
//! `trace_vectors golden`: the committed `vectors/trace.json`.
//! `trace_vectors records FILE [COUNT]`: up to COUNT (default 40) records of each class.

#[path = "../tests/trace/cases.rs"]
mod cases;
#[path = "../tests/trace/records.rs"]
mod records;

use std::io::{Error, Write};

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["golden"] => std::io::stdout().write_all(records::golden_json().as_bytes()),
        ["records", file] => std::fs::write(file, records::records(40)),
        ["records", file, count] => std::fs::write(file, records::records(count.parse().map_err(Error::other)?)),
        _ => Err(Error::other("usage: trace_vectors golden | records FILE [COUNT]")),
    }
}
