//! WordPiece vocabularies: `tokenizer.json`, or `vocab.txt` with `tokenizer_config.json`, as GGUF's "bert" tokenizer.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use crate::ImportError;
use crate::folder::Folder;
use crate::json::{Json, shown};
use crate::plan::Import;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const VOCAB: &str = "vocab.txt";

/// Before a piece that begins a word, in GGUF.
const WORD_START: char = '\u{2581}';
/// Before a piece that continues one, in published vocabularies.
const CONTINUED: &str = "##";

/// Numbers of token types in GGUF.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// Special tokens: the key of `tokenizer_config.json`, the usual text, GGUF's key. The first three must exist.
const SPECIALS: &[(&str, &str, &str)] = &[
    ("cls_token", "[CLS]", "tokenizer.ggml.cls_token_id"),
    ("sep_token", "[SEP]", "tokenizer.ggml.seperator_token_id"),
    ("unk_token", "[UNK]", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "[PAD]", "tokenizer.ggml.padding_token_id"),
    ("mask_token", "[MASK]", "tokenizer.ggml.mask_token_id"),
];

/// Most tokens of a vocabulary; published ones have up to about 260,000.
const VOCAB_SIZE_MAX: u32 = 1 << 22;

/// Sets the tokenizer's keys. `size` is the number of rows of the embedding, from `model`.
pub(crate) fn put(import: &mut Import<'_>, folder: &Folder<'_>, model: &Json, size: u32) -> Result<(), ImportError> {
    if size > VOCAB_SIZE_MAX {
        return Err(model.unexpected("vocab_size", format!("at most {VOCAB_SIZE_MAX} is supported")));
    }
    let config = folder.json(TOKENIZER_CONFIG)?;
    let (tokens, normalizer, added) = match folder.json(TOKENIZER)? {
        Some(json) => {
            let tokens = vocabulary(&json, size)?;
            (tokens, normalizer(&json)?, added(&json)?)
        }
        None => (vocab_file(folder, size)?, config.as_ref().map_or(Ok(UNCASED), basic_tokenizer)?, HashSet::new()),
    };
    let mut types: Vec<i32> = tokens.iter().map(|text| if added.contains(text) { CONTROL } else { NORMAL }).collect();
    for (i, (name, usual, key)) in SPECIALS.iter().enumerate() {
        let text = match &config {
            None => usual.to_string(),
            Some(config) => special_text(config, name)?.unwrap_or(usual).to_owned(),
        };
        match tokens.iter().position(|token| *token == text) {
            Some(id) => {
                types[id] = CONTROL;
                // Below the size, which is a u32.
                import.set(key, id as u32);
            }
            None if i >= 3 => {}
            None => {
                let (file, key) = (TOKENIZER_CONFIG.to_owned(), (*name).to_owned());
                let expected = "no token of the vocabulary has this text".to_owned();
                return Err(ImportError::Value { file, key, found: shown(&format!("{text:?}")), expected });
            }
        }
    }
    let texts = tokens.iter().zip(&types).map(|(text, ty)| match text.strip_prefix(CONTINUED) {
        _ if *ty == CONTROL => text.clone(),
        Some(rest) => rest.to_owned(),
        None => format!("{WORD_START}{text}"),
    });
    import.set("tokenizer.ggml.model", "bert");
    import.set("tokenizer.ggml.pre", "bert-bge");
    import.set("tokenizer.ggml.tokens", texts.collect::<assay_gguf::StrArray>());
    import.set("tokenizer.ggml.token_type", types);
    import.set("tokenizer.ggml.normalizer.lowercase", normalizer.lowercase);
    import.set("tokenizer.ggml.normalizer.strip_accents", normalizer.strip_accents);
    Ok(())
}

struct Normalizer {
    lowercase: bool,
    strip_accents: bool,
}

const UNCASED: Normalizer = Normalizer { lowercase: true, strip_accents: true };

/// Texts by id from `model.vocab`.
fn vocabulary(json: &Json, size: u32) -> Result<Vec<String>, ImportError> {
    json.require("model.vocab")?;
    json.only("model.type", &json!("WordPiece"))?;
    json.only("model.continuing_subword_prefix", &json!(CONTINUED))?;
    json.only("model.max_input_chars_per_word", &json!(100))?;
    json.only("pre_tokenizer.type", &json!("BertPreTokenizer"))?;
    let Some(vocab) = json.get("model.vocab").and_then(Value::as_object) else {
        return Err(json.unexpected("model.vocab", "an object of texts and ids is expected"));
    };
    let mut by_id = BTreeMap::new();
    for (text, id) in vocab {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < size);
        let id = id.ok_or_else(|| {
            let text = shown(text);
            json.unexpected("model.vocab", format!("the id of {text:?} is not below vocab_size of config.json, {size}"))
        })?;
        if let Some(other) = by_id.insert(id, text.clone()) {
            let (text, other) = (shown(text), shown(&other));
            return Err(json.unexpected("model.vocab", format!("{text:?} and {other:?} have the same id, {id}")));
        }
    }
    // Some models have more rows than tokens; GGUF wants a text for each.
    Ok((0..size).map(|id| by_id.remove(&id).unwrap_or_else(|| format!("[PAD{id}]"))).collect())
}

fn normalizer(json: &Json) -> Result<Normalizer, ImportError> {
    json.only("normalizer.type", &json!("BertNormalizer"))?;
    json.only("normalizer.clean_text", &json!(true))?;
    json.only("normalizer.handle_chinese_chars", &json!(true))?;
    let lowercase = json.bool("normalizer.lowercase")?.unwrap_or(true);
    Ok(Normalizer { lowercase, strip_accents: json.bool("normalizer.strip_accents")?.unwrap_or(lowercase) })
}

/// Texts of added special tokens.
fn added(json: &Json) -> Result<HashSet<String>, ImportError> {
    let tokens = json.get("added_tokens").and_then(Value::as_array);
    let special = |token: &&Value| token.get("special").and_then(Value::as_bool) == Some(true);
    let content = |token: &Value| token.get("content").and_then(Value::as_str).map(str::to_owned);
    Ok(tokens.into_iter().flatten().filter(special).filter_map(content).collect())
}

/// Texts by line of `vocab.txt`.
fn vocab_file(folder: &Folder<'_>, size: u32) -> Result<Vec<String>, ImportError> {
    let missing = || ImportError::MissingFile { file: TOKENIZER.to_owned(), hint: ", and so is vocab.txt" };
    let bytes = folder.bytes(VOCAB).ok_or_else(missing)?;
    let fail = |found: String, expected: &str| ImportError::Value {
        file: VOCAB.to_owned(),
        key: "its lines".to_owned(),
        found,
        expected: expected.to_owned(),
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| fail(format!("not UTF-8 at byte {}", error.valid_up_to()), "a text is expected"))?;
    let mut tokens: Vec<String> = text.lines().map(str::to_owned).collect();
    if tokens.len() > size as usize {
        return Err(fail(tokens.len().to_string(), &format!("vocab_size of config.json is {size}")));
    }
    tokens.extend((tokens.len()..size as usize).map(|id| format!("[PAD{id}]")));
    Ok(tokens)
}

/// The settings of the tokenizer that goes with a `vocab.txt`.
fn basic_tokenizer(config: &Json) -> Result<Normalizer, ImportError> {
    config.only("tokenize_chinese_chars", &json!(true))?;
    config.only("do_basic_tokenize", &json!(true))?;
    let lowercase = config.bool("do_lower_case")?.unwrap_or(true);
    Ok(Normalizer { lowercase, strip_accents: config.bool("strip_accents")?.unwrap_or(lowercase) })
}

/// A special token's text, written as such or as an object.
fn special_text<'a>(config: &'a Json, name: &str) -> Result<Option<&'a str>, ImportError> {
    match config.get(name) {
        Some(Value::Object(token)) => Ok(token.get("content").and_then(Value::as_str)),
        _ => config.str(name),
    }
}
