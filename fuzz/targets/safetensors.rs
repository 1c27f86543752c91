#![no_main]

use assay_fuzz::safetensors::{run, seeds};

libfuzzer_sys::fuzz_target!(init: assay_fuzz::write_seeds(seeds()), |data: &[u8]| run(data));
