#![no_main]

use assay_fuzz::dagpb::{run, seeds};

libfuzzer_sys::fuzz_target!(init: assay_fuzz::write_seeds(seeds()), |data: &[u8]| run(data));
