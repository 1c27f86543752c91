//! Finds the texts of special tokens inside a text, leftmost first, longest first at one place.

use crate::{
    tokenizer::TokenizerError,
    vocab::{Kind, Vocab},
};

/// Longest text of a special token in bytes; bounds the work per byte of input.
const SPECIAL_LEN_MAX: usize = 256;

#[derive(Debug)]
pub(crate) struct Specials {
    /// Texts and ids, sorted by text: a walk down narrows a range of it, byte by byte.
    texts: Vec<(Box<str>, u32)>,
    /// Bytes that a text can start with.
    starts: [bool; 256],
}

/// A piece of text between special tokens, or one of these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

impl Specials {
    /// All tokens of `vocab` whose kind is in `kinds`.
    pub(crate) fn new(vocab: &Vocab, kinds: &[Kind]) -> Result<Self, TokenizerError> {
        let mut texts = Vec::new();
        let mut starts = [false; 256];
        for (id, text) in vocab.texts() {
            let Some(&first) = text.as_bytes().first() else { continue };
            if !kinds.contains(&vocab.kind(id)) {
                continue;
            }
            if text.len() > SPECIAL_LEN_MAX {
                return Err(TokenizerError::TokenLength { len: text.len(), max: SPECIAL_LEN_MAX });
            }
            starts[usize::from(first)] = true;
            texts.push((text.into(), id));
        }
        texts.sort();
        texts.dedup_by(|(a, _), (b, _)| a == b);
        Ok(Self { texts, starts })
    }

    /// Cuts `text` at special tokens; no text fragment is empty. No token starts right behind `shield`.
    pub(crate) fn split<'a>(&'a self, text: &'a str, shield: Option<char>) -> impl Iterator<Item = Fragment<'a>> {
        let shielded = move |before: &str| shield.is_some_and(|mark| before.ends_with(mark));
        let mut rest = text;
        let mut found = None;
        std::iter::from_fn(move || {
            if let Some(id) = found.take() {
                return Some(Fragment::Token(id));
            }
            if rest.is_empty() {
                return None;
            }
            let hit = (0..rest.len()).find_map(|at| {
                let (len, id) = self.at(&rest.as_bytes()[at..])?;
                (!shielded(&rest[..at])).then_some((at, len, id))
            });
            let Some((at, len, id)) = hit else { return Some(Fragment::Text(std::mem::take(&mut rest))) };
            // A special token's text starts and ends at character boundaries, so its places in a text do too.
            let before = &rest[..at];
            rest = &rest[at + len..];
            if before.is_empty() {
                return Some(Fragment::Token(id));
            }
            found = Some(id);
            Some(Fragment::Text(before))
        })
    }

    /// `text` with `mark` before each place where a special token starts; `None` if there is no such place.
    pub(crate) fn shield(&self, text: &str, mark: char) -> Option<String> {
        let starts = |at: usize| self.at(&text.as_bytes()[at..]).is_some();
        let mut shielded = String::new();
        let mut done = 0;
        for (at, _) in text.char_indices().filter(|&(at, _)| starts(at)) {
            shielded.push_str(&text[done..at]);
            shielded.push(mark);
            done = at;
        }
        (!shielded.is_empty()).then(|| shielded + &text[done..])
    }

    /// Length and id of the longest special token that `text` starts with.
    fn at(&self, text: &[u8]) -> Option<(usize, u32)> {
        if !self.starts[usize::from(*text.first()?)] {
            return None;
        }
        let mut range = &self.texts[..];
        let mut longest = None;
        for (depth, byte) in text.iter().enumerate() {
            let low = range.partition_point(|(t, _)| t.as_bytes().get(depth) < Some(byte));
            let high = range.partition_point(|(t, _)| t.as_bytes().get(depth) <= Some(byte));
            range = &range[low..high];
            match range.first() {
                None => break,
                Some((t, id)) if t.len() == depth + 1 => longest = Some((depth + 1, *id)),
                Some(_) => (),
            }
        }
        longest
    }
}
