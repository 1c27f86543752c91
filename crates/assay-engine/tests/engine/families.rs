//! Every family against llama.cpp, on the models of the test kit. What llama.cpp said is in `../vectors`, written by
//! `../family_vectors.py`.

use std::path::Path;
use std::sync::Arc;

use assay_engine::{KvPool, Model, Runner, Slice};
use assay_testkit::models::{Family, TinyLlama, tiny_llama};
use assay_types::Job;

use crate::support::{engine, greedy, job, load, options, submit};

struct Case {
    prompt: Vec<u32>,
    output: Vec<u32>,
    logits: Vec<f32>,
}

fn cases(family: Family) -> Vec<Case> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/families.json");
    let vectors = std::fs::read(file).expect("vectors of llama.cpp");
    let vectors: serde_json::Value = serde_json::from_slice(&vectors).expect("JSON");
    let cases = vectors["cases"].as_array().expect("cases").iter().filter(|case| case["family"] == family.name());
    let numbers = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().expect("a list").iter().map(|number| number.as_f64().expect("a number")).collect()
    };
    let ids = |value: &serde_json::Value| numbers(value).into_iter().map(|id| id as u32).collect();
    let case = |case: &serde_json::Value| Case {
        prompt: ids(&case["prompt"]),
        output: ids(&case["output"]),
        logits: numbers(&case["logits"]).into_iter().map(|logit| logit as f32).collect(),
    };
    cases.map(case).collect()
}

fn model(family: Family) -> Arc<Model> {
    load(&tiny_llama(TinyLlama { family, ..TinyLlama::default() })).expect("it loads")
}

/// Logits after the last of `tokens`.
fn logits(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let mut pool = KvPool::new(model.kv_shape(), tokens.len());
    let mut kv = pool.reserve(tokens.len()).expect("room");
    pool.grow(&mut kv, tokens.len());
    let mut runner = Runner::new(1);
    runner.step(model, &mut [Slice { kv: &mut kv, tokens, logits_from: tokens.len() - 1 }]);
    runner.logits(model, 0, 1).to_vec()
}

#[test]
fn greedy_text_of_every_family_is_that_of_llama_cpp() {
    for family in Family::ALL {
        let model = model(family);
        let engine = engine(&model, options());
        let cases = cases(family);
        assert!(cases.len() >= 3, "{family:?}");
        for Case { prompt, output, .. } in cases {
            let n = prompt.len();
            let job = Job { prompt, ..greedy(job(1, output.len() as u32, 0)) };
            let got = submit(&engine, &job, 4096).expect("accepted").outcome();
            assert_eq!(got.tokens, output, "{family:?}, prompt of {n}");
            assert!(output.len() >= 50 && output.iter().any(|id| *id != output[0]), "an output worth comparing");
        }
    }
}

/// Both keep keys and values in f16 and differ in the order of summation; llama.cpp's gelu is a table in f16.
#[test]
fn logits_of_every_family_are_close_to_those_of_llama_cpp() {
    for family in Family::ALL {
        let model = model(family);
        for Case { prompt, logits: expect, .. } in cases(family) {
            let got = logits(&model, &prompt);
            assert_eq!(got.len(), expect.len());
            let most =
                |values: &mut dyn Iterator<Item = f32>| values.map(f32::abs).max_by(f32::total_cmp).expect("logits");
            let largest = most(&mut expect.iter().copied());
            let apart = most(&mut got.iter().zip(&expect).map(|(a, b)| a - b));
            println!("{family:?}, prompt of {}: logits to {largest}, at most {apart} apart", prompt.len());
            assert!(largest > 0.1 && apart < 2e-3 * largest, "{family:?}: {apart} apart, largest {largest}");
        }
    }
}
