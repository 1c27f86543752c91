//! Tokenizers: those of fixed vocabularies on any text, and any vocabulary.

use crate::{input::Input, limit::bounded};
use assay_gguf::{FinishReason, Gguf, OutputLimits, OutputText, StrArray, TextDecoder, Tokenizer, write::GgufWriter};
use std::sync::{Arc, LazyLock};

/// Values of `tokenizer.ggml.pre`, one for each expression.
const PRES: &[&str] = &[
    "gpt-2",
    "starcoder",
    "falcon",
    "llama-bpe",
    "dbrx",
    "qwen2",
    "qwen35",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "tekken",
    "gpt-4o",
];
/// Kinds of tokens as a file numbers them: normal, unknown, control, user defined, unused, byte, none of these.
const KINDS: &[i32] = &[1, 1, 1, 2, 3, 4, 5, 6, 0];
const CONTROL: i32 = 3;
/// Texts that end a generation whatever their kind says are control tokens, too.
const TOKENS_MAX: usize = 48;
const MERGES_MAX: usize = 24;
/// Maps and lists of a tokenizer, per byte of its file and besides.
const GROWTH_MAX: usize = 64;
const SLACK: usize = 1 << 20;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.u8();
    if kind % 2 == 0 {
        let tokenizer = &FIXED[usize::from(kind / 2) % FIXED.len()];
        let text = input.rest();
        let ids = check(tokenizer, &text);
        if tokenizer.token_text(0) == "!" {
            let printed: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).copied().collect();
            assert_eq!(String::from_utf8_lossy(&printed), text, "byte-level tokens print the text");
        }
        return;
    }
    let (bytes, controls) = vocabulary(&mut input, kind / 2);
    let Ok(gguf) = Gguf::parse(&bytes) else { return };
    let bytes_max = GROWTH_MAX * bytes.len() + SLACK;
    let Ok(tokenizer) = bounded("a tokenizer", bytes_max, || Tokenizer::from_gguf(&gguf)) else { return };
    let tokenizer = Arc::new(tokenizer);
    let text = input.rest();
    let ids = check(&tokenizer, &text);
    assert!(ids.iter().all(|id| !controls.contains(id)), "text became a control token: {text:?} {ids:?}");
    output(&tokenizer, &ids, &text);
}

/// What holds for every tokenizer and text; the ids of the plain text.
fn check(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let plain = tokenizer.encode(text, false, false);
    let special = tokenizer.encode(text, true, true);
    assert!(plain.iter().chain(&special).all(|&id| id < tokenizer.vocab_size()));
    let mut decoder = TextDecoder::default();
    let mut decoded = String::new();
    let mut printed = Vec::new();
    for &id in &plain {
        decoded += &decoder.push(tokenizer.token_bytes(id));
        printed.extend_from_slice(tokenizer.token_bytes(id));
        let _ = (tokenizer.is_eog(id), tokenizer.token_text(id));
    }
    decoded += &decoder.finish();
    assert_eq!(decoded, String::from_utf8_lossy(&printed), "the text does not depend on how bytes arrive");
    plain
}

/// The end of an output is the same however its text is cut.
fn output(tokenizer: &Arc<Tokenizer>, ids: &[u32], text: &str) {
    let stop: Vec<String> = text.split(' ').map(|word| word.chars().take(4).collect()).take(3).collect();
    let limits = OutputLimits { max_tokens: 8, stop: stop.clone(), ignore_eos: false };
    let mut output = OutputText::new(Arc::clone(tokenizer), limits);
    let mut shown = String::new();
    for (count, &id) in (1_u32..).zip(ids) {
        let piece = output.push(id);
        shown += &piece.text;
        assert!(piece.finish != Some(FinishReason::Length) || count == 8);
        if piece.finish.is_some() {
            break;
        }
    }
    assert!(output.tokens() <= 8);
    // An end in the middle of a character shows U+FFFD, which is not looked at for stop strings.
    let certain = shown.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&shown);
    for stop in stop.iter().filter(|stop| !stop.is_empty()) {
        assert!(!certain.contains(stop.as_str()), "{stop:?} is in {shown:?}");
    }
}

static FIXED: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let build = |writer: &GgufWriter| {
        let bytes = writer.to_bytes(|_| vec![]).expect("no tensors");
        Tokenizer::from_gguf(&Gguf::parse(&bytes).expect("written by us")).expect("a tokenizer")
    };
    let merges = ["t h", "th e", "i n", "a a", "aa aa", "\u{120} t", "1 2", "12 3", "\u{c3} \u{a9}", "\u{120} \u{120}"];
    let mut all: Vec<Tokenizer> = PRES.iter().map(|pre| build(&bpe(pre, &[], &merges))).collect();
    let pieces = ["\u{2581}", "a", "b", "ab", "\u{2581}a", "\u{2581}ab", "\u{e9}", "aa", "aaaa"];
    let tokens: Vec<(String, i32)> = ["<unk>", "<s>"]
        .into_iter()
        .map(|t| (t.to_owned(), CONTROL))
        .chain((0..=u8::MAX).map(|b| (format!("<0x{b:02X}>"), 6)))
        .chain(pieces.map(|t| (t.to_owned(), 1)))
        .collect();
    let mut writer = writer("llama", &tokens);
    let scores: Vec<f32> = (0..tokens.len()).map(|i| -(i as f32)).collect();
    writer.set("tokenizer.ggml.scores", scores);
    all.push(build(&writer));
    let words =
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u{2581}a", "b", "\u{2581}ab", "c", "\u{2581},", "\u{2581}\u{4e00}", "e"];
    all.push(build(&word_piece(words.map(|t| (t.to_owned(), 1)).to_vec())));
    all
});

fn writer(model: &str, tokens: &[(String, i32)]) -> GgufWriter {
    let mut writer = GgufWriter::new();
    writer
        .set("tokenizer.ggml.model", model)
        .set("tokenizer.ggml.tokens", tokens.iter().map(|(text, _)| text).collect::<StrArray>())
        .set("tokenizer.ggml.token_type", tokens.iter().map(|(_, kind)| *kind).collect::<Vec<i32>>());
    writer
}

/// The byte tokens of GPT-2's scheme, every left, right and merged part of `merges` that is longer, and `more`.
fn bpe(pre: &str, more: &[(String, i32)], merges: &[&str]) -> GgufWriter {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let mut bytes: Vec<String> = (0..256)
        .map(|b| {
            let code = if printable(b) { b } else { next };
            next += u32::from(!printable(b));
            char::from_u32(code).expect("a character").to_string()
        })
        .collect();
    // Token 0 is "!", by which a complete byte vocabulary is known.
    bytes.sort();
    // Parts that a further token spells may be of its kind.
    let merged = merges.iter().map(|line| line.replace(' ', "")).filter(|text| more.iter().all(|(t, _)| t != text));
    let tokens: Vec<(String, i32)> =
        bytes.into_iter().chain(merged).map(|t| (t, 1)).chain(more.iter().cloned()).collect();
    let mut writer = writer("gpt2", &tokens);
    writer.set("tokenizer.ggml.pre", pre).set("tokenizer.ggml.merges", merges.iter().collect::<StrArray>());
    writer
}

fn word_piece(tokens: Vec<(String, i32)>) -> GgufWriter {
    let mut writer = writer("bert", &tokens);
    writer
        .set("tokenizer.ggml.unknown_token_id", 1_u32)
        .set("tokenizer.ggml.bos_token_id", 2_u32)
        .set("tokenizer.ggml.seperator_token_id", 3_u32);
    writer
}

/// A vocabulary as the input says, and the ids of its control tokens.
fn vocabulary(input: &mut Input<'_>, scheme: u8) -> (Vec<u8>, Vec<u32>) {
    let count = usize::from(input.u8()) % TOKENS_MAX;
    let mut tokens: Vec<(String, i32)> = Vec::new();
    let mut scores: Vec<f32> = Vec::new();
    for _ in 0..count {
        tokens.push((input.text(12), input.pick(KINDS)));
        scores.push(f32::from_bits(u32::from_le_bytes(input.bytes())));
    }
    let mut writer = match scheme % 3 {
        0 => {
            let merges: Vec<String> = (0..usize::from(input.u8()) % MERGES_MAX).map(|_| input.text(12)).collect();
            let merges: Vec<&str> = merges.iter().map(String::as_str).collect();
            bpe(input.pick(PRES), &tokens, &merges)
        }
        1 => {
            let mut writer = writer("llama", &tokens);
            writer.set("tokenizer.ggml.scores", scores);
            writer.set("tokenizer.ggml.unknown_token_id", u32::from(input.u8()));
            writer
        }
        _ => word_piece(tokens.clone()),
    };
    for key in ["bos_token_id", "eos_token_id", "eot_token_id", "unknown_token_id"] {
        if input.u8() % 4 == 0 {
            writer.set(&format!("tokenizer.ggml.{key}"), u32::from(input.u8()));
        }
    }
    for key in ["add_bos_token", "add_eos_token", "add_space_prefix"] {
        match input.u8() % 4 {
            0 => drop(writer.set(&format!("tokenizer.ggml.{key}"), true)),
            1 => drop(writer.set(&format!("tokenizer.ggml.{key}"), false)),
            _ => (),
        }
    }
    let bytes = writer.to_bytes(|_| vec![]).unwrap_or_default();
    // Ids of control tokens whose text no other token has; byte-level merges may make what another token also is.
    let Ok(gguf) = Gguf::parse(&bytes) else { return (bytes, vec![]) };
    let texts = gguf.array_str("tokenizer.ggml.tokens").ok().flatten().cloned().unwrap_or_default();
    let kinds = gguf.get::<&[i32]>("tokenizer.ggml.token_type").ok().flatten().unwrap_or_default();
    // What stands for the unknown may be of any kind.
    let unknown = gguf.u32("tokenizer.ggml.unknown_token_id").ok().flatten();
    let is_control = |&id: &usize| {
        let is_text = texts.get(id).is_some_and(|text| text.chars().count() > 1);
        kinds.get(id) == Some(&CONTROL) && is_text && unknown != Some(id as u32)
    };
    let controls = (0..texts.len()).filter(is_control).map(|id| id as u32).collect();
    (bytes, controls)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        "The quick brown fox's 12345 jumps.\n\n  It's WE'LL \u{e9}\u{301}\u{4e00}\u{3042}\u{ac00} \u{1f600}\r\n\t",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "<s><unk><|end|></s>[CLS]\u{2581}\u{120}",
        "\u{0}\u{200b}\u{feff}\u{ad}\u{85}\u{2028}\u{3000}",
    ];
    let fixed = (0..=(PRES.len() + 1) as u8).flat_map(|i| texts.map(|text| [&[2 * i], text.as_bytes()].concat()));
    let mut seeds: Vec<Vec<u8>> = fixed.collect();
    for scheme in 0..3 {
        let mut seed = vec![2 * scheme + 1, 4];
        for (text, kind) in [("<a>", 4), ("ab", 0), ("\u{2581}a", 0), ("a b", 5)] {
            seed.push(text.len() as u8);
            seed.extend_from_slice(text.as_bytes());
            seed.push(kind);
            seed.extend_from_slice(&1.5_f32.to_le_bytes());
        }
        seed.extend_from_slice(&[2, 3]);
        seed.extend_from_slice(b"a b\x03b c");
        seed.extend_from_slice(&[0, 0, 1, 0, 2, 0, 3, 0, 1, 1, 1]);
        seed.extend_from_slice(b"ab <a>abc");
        seeds.push(seed);
    }
    seeds
}
