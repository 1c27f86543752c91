//! The vocabulary of a GGUF file: texts, kinds and scores of its tokens. Not how text becomes tokens.

use crate::{
    gguf::{Gguf, GgufError},
    tokenizer::TokenizerError,
    value::{Array, StrArray, Value},
};
use std::collections::HashMap;

/// Most tokens of a vocabulary; published ones have up to about 260,000.
const VOCAB_SIZE_MAX: usize = 1 << 22;

/// What a token is for (`enum llama_token_type` of the GGUF specification).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

#[derive(Debug)]
pub(crate) struct Vocab {
    texts: StrArray,
    kinds: Vec<Kind>,
    /// Empty if the file has none.
    scores: Vec<f32>,
    /// The first token with each text.
    ids: HashMap<Box<str>, u32>,
}

/// Texts of tokens that end a generation in published models whose metadata does not say so. The list is part of what
/// decides where an output ends, so it changes only with the protocol.
const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<EOT>",
    "<eos>",
];

impl Vocab {
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let texts: &StrArray = gguf.require("tokenizer.ggml.tokens")?;
        if texts.is_empty() || texts.len() > VOCAB_SIZE_MAX {
            return Err(TokenizerError::VocabSize { size: texts.len(), max: VOCAB_SIZE_MAX });
        }
        let same_len = |key: &'static str, len: usize| match len == texts.len() {
            true => Ok(()),
            false => Err(TokenizerError::Length { key, len, vocab_size: texts.len() }),
        };
        let scores = gguf.get::<&[f32]>("tokenizer.ggml.scores")?.unwrap_or_default();
        if !scores.is_empty() {
            same_len("tokenizer.ggml.scores", scores.len())?;
        }
        let kinds = match numbers(gguf, "tokenizer.ggml.token_type")? {
            Some(numbers) => {
                same_len("tokenizer.ggml.token_type", numbers.len())?;
                numbers.into_iter().map(kind).collect()
            }
            None => vec![Kind::Normal; texts.len()],
        };
        let mut ids = HashMap::with_capacity(texts.len());
        for (id, text) in (0_u32..).zip(texts.iter()) {
            ids.entry(text.into()).or_insert(id);
        }
        let mut vocab = Self { texts: texts.clone(), kinds, scores: scores.to_vec(), ids };
        for text in END_TEXTS {
            if let Some(id) = vocab.id(text) {
                vocab.kinds[id as usize] = Kind::Control;
            }
        }
        Ok(vocab)
    }

    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Text of token `id`, empty past the end.
    pub(crate) fn text(&self, id: u32) -> &str {
        self.texts.get(id as usize).unwrap_or_default()
    }

    pub(crate) fn texts(&self) -> impl Iterator<Item = (u32, &str)> {
        (0..).zip(self.texts.iter())
    }

    /// Kind of token `id`; unused past the end.
    pub(crate) fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
    }

    pub(crate) fn score(&self, id: u32) -> f32 {
        self.scores.get(id as usize).copied().unwrap_or_default()
    }

    pub(crate) fn has_scores(&self) -> bool {
        !self.scores.is_empty()
    }

    pub(crate) fn id(&self, text: &str) -> Option<u32> {
        self.ids.get(text).copied()
    }

    /// A token that plain text may become: not one with a meaning of its own to the model.
    pub(crate) fn plain_id(&self, text: &str) -> Option<u32> {
        let id = self.id(text)?;
        matches!(self.kind(id), Kind::Normal | Kind::UserDefined | Kind::Unused).then_some(id)
    }

    /// A token id from metadata; `None` if the key is absent or holds -1, which some converters write for "none".
    pub(crate) fn special(&self, gguf: &Gguf, key: &'static str) -> Result<Option<u32>, TokenizerError> {
        match gguf.value(key) {
            None | Some(Value::I32(-1) | Value::U32(u32::MAX)) => Ok(None),
            Some(_) => match gguf.require::<u32>(key)? {
                id if (id as usize) < self.len() => Ok(Some(id)),
                id => Err(TokenizerError::SpecialOutOfRange { key, id, vocab_size: self.len() }),
            },
        }
    }

    /// Sorted ids of the tokens that end a generation: the named ones, and those known by their text.
    pub(crate) fn end_ids(&self, named: &[Option<u32>]) -> Vec<u32> {
        let by_text = END_TEXTS.iter().filter_map(|text| self.id(text));
        let mut ids: Vec<u32> = named.iter().flatten().copied().chain(by_text).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

fn kind(number: i64) -> Kind {
    match number {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        6 => Kind::Byte,
        _ => Kind::Unused,
    }
}

/// An array of any integer width; writers differ.
fn numbers(gguf: &Gguf, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
    let found = match gguf.value(key) {
        None => return Ok(None),
        Some(Value::Array(Array::I32(v))) => return Ok(Some(v.iter().map(|&n| i64::from(n)).collect())),
        Some(Value::Array(Array::U32(v))) => return Ok(Some(v.iter().map(|&n| i64::from(n)).collect())),
        Some(Value::Array(Array::U8(v))) => return Ok(Some(v.iter().map(|&n| i64::from(n)).collect())),
        Some(Value::Array(Array::I8(v))) => return Ok(Some(v.iter().map(|&n| i64::from(n)).collect())),
        Some(other) => other.type_name(),
    };
    Err(GgufError::WrongType { key: key.to_owned(), found, expected: "array of i32" })
}
