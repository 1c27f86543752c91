//! What a fuzzer throws at the code that reads strangers' bytes, and what must hold whatever comes.
//!
//! Each module is one target: `run` takes any bytes and panics if an invariant breaks; `seeds` gives inputs to start
//! from. Memory is counted by an allocator that belongs to this crate alone.

mod input;
mod limit;

pub mod dagpb;
pub mod gguf;
pub mod model;
pub mod request;
pub mod safetensors;
pub mod template;
pub mod tokenizer;
pub mod wire;

/// Where a target writes its seeds before it starts, if this is set.
pub const SEEDS_DIR: &str = "ASSAY_FUZZ_SEEDS";

/// Writes `seeds` into the folder that [`SEEDS_DIR`] names.
///
/// # Panics
/// If it cannot: nothing would be fuzzed from the right place.
pub fn write_seeds(seeds: Vec<Vec<u8>>) {
    let Some(dir) = std::env::var_os(SEEDS_DIR).map(std::path::PathBuf::from) else { return };
    std::fs::create_dir_all(&dir).expect("a folder for the seeds");
    for (index, seed) in seeds.iter().enumerate() {
        std::fs::write(dir.join(format!("seed-{index:03}")), seed).expect("a seed is written");
    }
}
