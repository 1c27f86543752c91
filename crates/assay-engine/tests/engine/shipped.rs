//! The model that comes with Assay, against llama.cpp and on every kernel.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use assay_engine::{EngineOptions, Model};
use assay_gguf::Gguf;
use assay_num::Isa;
use assay_types::{Finish, Job};

use crate::support::{Outcome, engine, greedy, job, load, options, submit};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/assay-tiny").join(name)
}

fn model(name: &str) -> Arc<Model> {
    let bytes = std::fs::read(file(name)).expect("the shipped model");
    load(&bytes).expect("it loads")
}

fn tokens(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// llama.cpp computes the same weights in F32 with other orders of summation, so its logits differ in the last bits;
/// the most likely token differs only where two are almost equally likely.
#[test]
fn greedy_text_is_that_of_llama_cpp() {
    let model = model("assay-tiny-f16.gguf");
    let engine = engine(&model, options());
    let vectors = std::fs::read(file("vectors/greedy.json")).expect("vectors of llama.cpp");
    let vectors: serde_json::Value = serde_json::from_slice(&vectors).expect("JSON");
    let cases = vectors["cases"].as_array().expect("cases");
    let mut n_compared = 0;
    for case in cases {
        let text = case["text"].as_str().expect("text");
        let (prompt, expect) = (tokens(&case["prompt"]), tokens(&case["output"]));
        assert_eq!(model.tokenizer().encode(text, false, true), prompt, "{text:?}");
        let max_tokens = if model.tokenizer().is_eog(expect[expect.len() - 1]) { 300 } else { expect.len() as u32 };
        let job = Job { prompt, max_tokens, ignore_eos: false, ..greedy(job(1, 1, 0)) };
        let got = submit(&engine, &job, 4096).expect("accepted").outcome();
        assert_eq!(got.tokens, expect, "{text:?}");
        n_compared += expect.len();
    }
    assert!(n_compared > 300, "{n_compared} tokens are too few to mean anything");
}

#[test]
fn the_shipped_files_give_the_same_output_on_every_kernel_and_in_a_crowd() {
    for name in ["assay-tiny-f16.gguf", "assay-tiny-q8_0.gguf"] {
        let model = model(name);
        let prompt = model.tokenizer().encode("<|user|>Tell me a story about an owl.<|assistant|>", false, true);
        let asked = Job { prompt, ignore_eos: false, ..job(1, 60, 7) };
        let mut outcomes: Vec<Outcome> = Vec::new();
        for isa in Isa::available() {
            let alone = engine(&model, EngineOptions { isa: Some(isa), ..options() });
            outcomes.push(submit(&alone, &asked, 4096).expect("accepted").outcome());
            let crowd = engine(&model, EngineOptions { isa: Some(isa), threads: 2, prefill_chunk: 5, ..options() });
            let others: Vec<_> = (0..15).map(|i| submit(&crowd, &job(2 * i + 1, 5, i as u64), 64)).collect();
            outcomes.push(submit(&crowd, &asked, 4096).expect("accepted").outcome());
            for other in others {
                assert_eq!(other.expect("accepted").outcome().end, Ok(Finish::Length));
            }
        }
        assert!(outcomes[0].tokens.len() > 10, "a story is longer");
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "{name}");
    }
}

#[test]
fn its_prompts_follow_its_chat_template() {
    let bytes = std::fs::read(file("assay-tiny-q8_0.gguf")).expect("the shipped model");
    let gguf = Gguf::parse(&bytes).expect("it parses");
    let model = Model::load(&gguf, &bytes).expect("it loads");
    let template = model.template().expect("it compiles").expect("it has one");
    let message = assay_gguf::ChatMessage { role: "user".to_owned(), content: "hello".to_owned() };
    let text = template.render(&[message], true, &assay_gguf::Limits::default()).expect("it renders");
    assert_eq!(text, "<|user|>hello<|assistant|>");
}
