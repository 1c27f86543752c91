//! Byte-level BPE vocabularies: `tokenizer.json` as GGUF's "gpt2" tokenizer.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::ImportError;
use crate::folder::Folder;
use crate::json::{Json, shown};
use crate::plan::Import;

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";

/// Most tokens and merges, as in the engine's tokenizer.
const VOCAB_SIZE_MAX: u32 = 1 << 20;

/// Numbers of token types in GGUF.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// What cuts a text into words: the expression in published files, GGUF's name for it, and whether a word that is a
/// token as it stands is that token whatever the merges say.
const SPLITS: &[(&str, &str, bool)] = &[
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "llama-bpe",
        true,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "dbrx",
        false,
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "qwen2",
        false,
    ),
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        "tekken",
        true,
    ),
];

/// Special tokens: their key in the tokenizer's configuration, and GGUF's.
const SPECIALS: &[(&str, &str)] = &[
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
];

/// Sets the tokenizer's keys. `size` is the number of rows of the embedding, from `model`.
pub(crate) fn put(import: &mut Import<'_>, folder: &Folder<'_>, model: &Json, size: u32) -> Result<(), ImportError> {
    if size > VOCAB_SIZE_MAX {
        return Err(model.unexpected("vocab_size", format!("at most {VOCAB_SIZE_MAX} is supported")));
    }
    let hint = " (a SentencePiece tokenizer.model is not read)";
    let missing = || ImportError::MissingFile { file: TOKENIZER.to_owned(), hint };
    let json = folder.json(TOKENIZER)?.ok_or_else(missing)?;
    refuse_unsupported(&json)?;
    let pre = pre_tokenizer(&json)?;
    let (tokens, types) = vocabulary(&json, size)?;
    let config = folder.json(TOKENIZER_CONFIG)?;
    let mut ids = BTreeMap::new();
    for (name, key) in SPECIALS {
        if let Some(id) = special(config.as_ref(), model, name, &tokens)? {
            import.set(key, id);
            ids.insert(*name, id);
        }
    }
    let (add_bos, add_eos) = ends(&json)?;
    for (name, key, text) in [
        ("bos_token", "tokenizer.ggml.add_bos_token", &add_bos),
        ("eos_token", "tokenizer.ggml.add_eos_token", &add_eos),
    ] {
        let id = ids.get(name).map(|id| &tokens[*id as usize]);
        if text.is_some() && text.as_ref() != id {
            return Err(json.unexpected("post_processor", format!("at the ends of a text the {name} is expected")));
        }
        import.set(key, text.is_some());
    }
    import.set("tokenizer.ggml.model", "gpt2");
    import.set("tokenizer.ggml.pre", pre);
    import.set("tokenizer.ggml.tokens", tokens.iter().map(String::as_str).collect::<assay_gguf::StrArray>());
    import.set("tokenizer.ggml.token_type", types);
    import.set("tokenizer.ggml.merges", merges(&json)?);
    if let Some(template) = template(folder, config.as_ref())? {
        import.set("tokenizer.chat_template", template.as_str());
    }
    Ok(())
}

/// What would give other tokens than GGUF's "gpt2" tokenizer has.
fn refuse_unsupported(json: &Json) -> Result<(), ImportError> {
    json.require("model.vocab")?;
    json.only("model.type", &json!("BPE"))?;
    json.only("model.byte_fallback", &json!(false))?;
    json.only("model.continuing_subword_prefix", &json!(""))?;
    json.only("model.end_of_word_suffix", &json!(""))?;
    if json.get("model.dropout").is_some() {
        return Err(json.unexpected("model.dropout", "only null is supported"));
    }
    // Composed characters: files of this architecture leave that to who writes the text, in every engine.
    match json.str("normalizer.type")? {
        None | Some("NFC") => Ok(()),
        Some(_) => Err(json.unexpected("normalizer.type", "NFC is known")),
    }
}

/// GGUF's name for what cuts a text into words.
fn pre_tokenizer(json: &Json) -> Result<&'static str, ImportError> {
    const PATH: &str = "pre_tokenizer";
    let unknown = || json.unexpected(PATH, "those of GPT-2, SmolLM, Llama 3, Qwen 2 and Tekken are known");
    let pre = json.require(PATH)?;
    let ignores_merges = json.bool("model.ignore_merges")?.unwrap_or(false);
    let parts: Vec<&Value> = match pre.get("type").and_then(Value::as_str) {
        Some("Sequence") => pre.get("pretokenizers").and_then(Value::as_array).into_iter().flatten().collect(),
        _ => vec![pre],
    };
    let is = |part: &Value, ty: &str| part.get("type").and_then(Value::as_str) == Some(ty);
    let flag = |part: &Value, key: &str, default| part.get(key).and_then(Value::as_bool).unwrap_or(default);
    let bytes = |part: &Value, by_regex: bool| {
        is(part, "ByteLevel") && !flag(part, "add_prefix_space", true) && flag(part, "use_regex", true) == by_regex
    };
    let (name, whole_words) = match parts.as_slice() {
        [part] if bytes(part, true) => ("gpt-2", false),
        [digits, part] if is(digits, "Digits") && flag(digits, "individual_digits", false) && bytes(part, true) => {
            ("smollm", false)
        }
        [split, part] if is(split, "Split") && bytes(part, false) => {
            let isolated = split.get("behavior").and_then(Value::as_str) == Some("Isolated");
            let expression = split.pointer("/pattern/Regex").and_then(Value::as_str);
            let known = |(known, _, whole): &&(&str, &str, bool)| {
                Some(*known) == expression && isolated && !flag(split, "invert", false) && *whole == ignores_merges
            };
            let (_, name, whole_words) = SPLITS.iter().find(known).ok_or_else(unknown)?;
            (*name, *whole_words)
        }
        _ => return Err(unknown()),
    };
    if whole_words != ignores_merges {
        return Err(json.unexpected("model.ignore_merges", format!("{whole_words} goes with this pre_tokenizer")));
    }
    Ok(name)
}

/// Texts by id, and their types.
fn vocabulary(json: &Json, size: u32) -> Result<(Vec<String>, Vec<i32>), ImportError> {
    let Some(vocab) = json.get("model.vocab").and_then(Value::as_object) else {
        return Err(json.unexpected("model.vocab", "an object of texts and ids is expected"));
    };
    let mut by_id: BTreeMap<u32, (&str, i32)> = BTreeMap::new();
    let mut put = |key: &str, text, id: Option<&Value>, ty| {
        let id = id.and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok()).filter(|id| *id < size);
        let Some(id) = id else {
            let text = shown(text);
            let expected = format!("the id of {text:?} is not below vocab_size of config.json, {size}");
            return Err(json.unexpected(key, expected));
        };
        match by_id.insert(id, (text, ty)) {
            Some((other, _)) if other != text => {
                let (text, other) = (shown(text), shown(other));
                Err(json.unexpected(key, format!("{text:?} and {other:?} have the same id, {id}")))
            }
            _ => Ok(()),
        }
    };
    for (text, id) in vocab {
        put("model.vocab", text, Some(id), NORMAL)?;
    }
    for token in json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let is_special = token.get("special").and_then(Value::as_bool) == Some(true);
        let Some(text) = token.get("content").and_then(Value::as_str) else {
            return Err(json.unexpected("added_tokens", "a content for each is expected"));
        };
        put("added_tokens", text, token.get("id"), if is_special { CONTROL } else { USER_DEFINED })?;
    }
    // Some models have more rows than tokens; GGUF wants a text for each.
    let of = |id| match by_id.get(&id) {
        Some((text, ty)) => ((*text).to_owned(), *ty),
        None => (format!("[PAD{id}]"), UNUSED),
    };
    Ok((0..size).map(of).unzip())
}

/// Lines of two texts, written as such or as pairs.
fn merges(json: &Json) -> Result<assay_gguf::StrArray, ImportError> {
    const PATH: &str = "model.merges";
    let Some(merges) = json.require(PATH)?.as_array() else {
        return Err(json.unexpected(PATH, "a list is expected"));
    };
    let line = |merge: &Value| match merge {
        Value::String(line) => Some(line.clone()),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(a), Value::String(b)] => Some(format!("{a} {b}")),
            _ => None,
        },
        _ => None,
    };
    let mut lines = Vec::with_capacity(merges.len());
    for (rank, merge) in merges.iter().enumerate() {
        let line = line(merge).filter(|line| line.split(' ').filter(|part| !part.is_empty()).count() == 2);
        lines.push(line.ok_or_else(|| {
            let found = shown(&merge.to_string());
            let (file, key) = (TOKENIZER.to_owned(), format!("{PATH}.{rank}"));
            ImportError::Value { file, key, found, expected: "two texts without spaces are expected".to_owned() }
        })?);
    }
    Ok(lines.iter().map(String::as_str).collect())
}

/// The texts of the special tokens before and behind each text, if there are any.
fn ends(json: &Json) -> Result<(Option<String>, Option<String>), ImportError> {
    const PATH: &str = "post_processor";
    let Some(post) = json.get(PATH) else { return Ok((None, None)) };
    let parts: Vec<&Value> = match post.get("processors").and_then(Value::as_array) {
        Some(parts) => parts.iter().collect(),
        None => vec![post],
    };
    let unknown = || json.unexpected(PATH, "ByteLevel and TemplateProcessing with one token at an end are known");
    let mut found = (None, None);
    for part in parts {
        match part.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => {}
            Some("TemplateProcessing") => {
                let items = part.get("single").and_then(Value::as_array).ok_or_else(unknown)?;
                let at = items.iter().position(|item| item.get("Sequence").is_some()).ok_or_else(unknown)?;
                let token = |items: &[Value]| match items {
                    [] => Ok(None),
                    [item] => {
                        let text = item.pointer("/SpecialToken/id").and_then(Value::as_str);
                        text.map(|text| Some(text.to_owned())).ok_or_else(unknown)
                    }
                    _ => Err(unknown()),
                };
                found = (token(&items[..at])?, token(&items[at + 1..])?);
            }
            _ => return Err(unknown()),
        }
    }
    Ok(found)
}

/// The id of the special token `name`: by its text in the tokenizer's configuration, else as the model's says.
fn special(config: Option<&Json>, model: &Json, name: &str, tokens: &[String]) -> Result<Option<u32>, ImportError> {
    let id_of = |text: &str| tokens.iter().position(|token| token == text).map(|id| id as u32);
    if let Some(config) = config {
        let text = match config.get(name) {
            Some(Value::Object(token)) => token.get("content").and_then(Value::as_str),
            _ => config.str(name)?,
        };
        if let Some(text) = text {
            let unknown = || config.unexpected(name, "no token of the vocabulary has this text");
            return id_of(text).map(Some).ok_or_else(unknown);
        }
    }
    let path = format!("{name}_id");
    let id = match model.get(&path) {
        // A list has all that end a text; the first is the usual one.
        Some(Value::Array(ids)) => ids.first().and_then(Value::as_u64),
        _ => model.count(&path)?.map(u64::from),
    };
    match id {
        None => Ok(None),
        Some(id) if id < tokens.len() as u64 => Ok(Some(id as u32)),
        Some(_) => Err(model.unexpected(&path, "an id below vocab_size is expected")),
    }
}

fn template(folder: &Folder<'_>, config: Option<&Json>) -> Result<Option<String>, ImportError> {
    if let Some(bytes) = folder.bytes(TEMPLATE) {
        let text = std::str::from_utf8(bytes).map_err(|error| ImportError::Value {
            file: TEMPLATE.to_owned(),
            key: "its text".to_owned(),
            found: format!("not UTF-8 at byte {}", error.valid_up_to()),
            expected: "a text is expected".to_owned(),
        })?;
        return Ok(Some(text.to_owned()));
    }
    let Some(config) = config else { return Ok(None) };
    match config.get("chat_template") {
        // Several, each with a name.
        Some(Value::Array(templates)) => {
            let is_default = |template: &&Value| template.get("name").and_then(Value::as_str) == Some("default");
            let default = templates.iter().find(is_default).and_then(|template| template.get("template"));
            Ok(default.and_then(Value::as_str).map(str::to_owned))
        }
        _ => Ok(config.str("chat_template")?.map(str::to_owned)),
    }
}
