//! The vectors that the contracts read.

use std::path::Path;

use crate::records::golden_json;

#[test]
fn the_committed_vectors_are_what_traces_give() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors/trace.json");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        committed == golden_json(),
        "vectors/trace.json differs: `cargo run --release -p assay-graph --example trace_vectors -- golden` writes it"
    );
}
