//! The tokenizers against vectors made with llama.cpp, for the shipped model and a SentencePiece vocabulary.

use assay_gguf::{ChatMessage, ChatTemplate, Gguf, Limits, Tokenizer};
use serde_json::Value;
use std::path::PathBuf;

fn path(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/assay-tiny")).join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{}: {error}", path(name).display()))
}

/// Checks every case of `vectors` with the vocabulary of `model`; returns how many there were.
fn check(vectors: &str, model: &str) -> usize {
    let gguf = Gguf::parse(&read(model)).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let vectors: Value = serde_json::from_slice(&read(vectors)).unwrap();
    let cases = vectors["cases"].as_array().unwrap();
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(tokenizer.encode(text, false, case["parse_special"].as_bool().unwrap()), ids, "{text:?}");
        let printed: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
        let has_special = ids.iter().any(|&id| tokenizer.token_bytes(id).is_empty());
        if !has_special && gguf.str("tokenizer.ggml.model").unwrap() == Some("gpt2") {
            assert_eq!(String::from_utf8(printed).unwrap(), text);
        }
    }
    cases.len()
}

#[test]
fn byte_pair_encoding_matches() {
    assert!(check("vectors/bpe.json", "assay-tiny-q8_0.gguf") >= 100);
}

#[test]
fn sentencepiece_matches() {
    assert!(check("vectors/spm.json", "vectors/spm-vocab.gguf") >= 50);
}

#[test]
fn the_shipped_template_makes_prompts_of_special_tokens() {
    let gguf = Gguf::parse(&read("assay-tiny-q8_0.gguf")).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf).unwrap().unwrap();
    let message = |role: &str, content: &str| ChatMessage { role: role.into(), content: content.into() };
    let turns = [message("system", "Be brief."), message("user", " Hi <|end|> ")];
    let prompt = template.render(&turns, true, &Limits::default()).unwrap();
    assert_eq!(prompt, "<|system|>Be brief.<|user|>Hi <|end|><|assistant|>");
    let ids = tokenizer.encode(&prompt, true, true);
    assert_eq!(ids.first(), tokenizer.token_id("<|system|>").as_ref());
    assert_eq!(ids.last(), tokenizer.token_id("<|assistant|>").as_ref());
    let refused = template.render(&[message("robot", "Hi")], true, &Limits::default()).unwrap_err();
    assert!(refused.to_string().contains("refuses these messages"), "{refused}");
}
