//! A model whose weights are mapped from the cache computes the bits of one whose weights are in memory.

use assay_engine::throughput::{Workload, measure};
use assay_engine::{LoadOptions, Model, Runner};
use assay_num::{Isa, Kernels};
use assay_store::{Kept, ModelFile, WeightCache, WeightsOptions};
use assay_testkit::models::{Format, TinyLlama, tiny_llama};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn load(path: &Path, dirs: Vec<PathBuf>) -> (Arc<Model>, Kept) {
    let file = ModelFile::open(path).expect("a model");
    let options = WeightsOptions { dirs, len_min: 0, threads: 2 };
    let (gguf, bytes) = (file.gguf(), file.bytes());
    WeightCache::new(&file, &options)
        .load(&mut |_| {}, |store| Model::load_into(gguf, bytes, LoadOptions::default(), store, &mut |_, _| {}))
        .expect("it loads")
    // The model file is unmapped here: nothing of it is needed any more.
}

fn logits(model: &Model, isa: Isa) -> u64 {
    let mut runner = Runner::with_kernels(Kernels::with_isa(isa).expect("this CPU has it"), 2);
    let workload = Workload { n_prompt: 9, n_decode: 3, n_sequences: 2, prefill_chunk: 4 };
    measure(model, &mut runner, &workload).expect("it runs").logits_hash
}

#[test]
fn cached_weights_give_the_same_logits_in_every_format() {
    let dir = tempfile::tempdir().expect("a directory");
    use Format::{BF16, F16, F32, Q4_0, Q4K, Q5K, Q6K, Q8_0};
    for format in [F32, F16, BF16, Q8_0, Q4_0, Q4K, Q5K, Q6K] {
        let path = dir.path().join("model.gguf");
        let fresh = dir.path().join("fresh");
        std::fs::write(&fresh, tiny_llama(TinyLlama { format, d_model: 256, ffn: 512, ..TinyLlama::default() }))
            .expect("written");
        std::fs::rename(fresh, &path).expect("renamed");
        let (memory, kept) = load(&path, vec![]);
        assert_eq!(kept, Kept::Memory);
        let cache = vec![dir.path().join("cache")];
        for is_expected_new in [true, false] {
            let (model, kept) = load(&path, cache.clone());
            assert!(matches!(kept, Kept::File { is_new, .. } if is_new == is_expected_new), "{format:?} {kept:?}");
            for isa in Isa::available() {
                assert_eq!(logits(&model, isa), logits(&memory, isa), "{format:?} {isa} {is_expected_new}");
            }
        }
    }
}
