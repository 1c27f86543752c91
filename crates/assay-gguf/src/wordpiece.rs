//! WordPiece encoding as BERT uses it: text normalised and cut into words, each word covered by the longest pieces from
//! its start on. A word that the vocabulary does not cover is one unknown token.
//!
//! In a GGUF file a piece that begins a word is written with U+2581 before it, one that continues a word as it is (the
//! published vocabularies write `##` before the latter and nothing before the former); control tokens keep their texts.
//! Normalisation and words are those of the reference implementation, Hugging Face `tokenizers`: `BertNormalizer`,
//! `BertPreTokenizer` and `WordPiece`. Like there, and unlike llama.cpp, control characters vanish before white space is
//! looked for (a form feed does not end a word) and words above 100 characters are unknown. The reference knows Unicode
//! up to version 8: marks and punctuation assigned later are letters to it, not here.

use crate::{
    gguf::Gguf,
    tokenizer::TokenizerError,
    vocab::{Kind, Vocab},
};
use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// Before a piece that begins a word.
const WORD_START: char = '\u{2581}';

/// A word of more characters is unknown: with the length of the longest piece, the bound on the work per character.
const WORD_CHARS_MAX: usize = 100;

/// Longest piece in bytes: what a word of the longest length can be made of, its start mark included.
const PIECE_LEN_MAX: usize = 4 * (WORD_CHARS_MAX + 1);

#[derive(Debug)]
pub(crate) struct WordPiece {
    lowercase: bool,
    strip_accents: bool,
    /// Longest piece in bytes.
    piece_len_max: usize,
    unknown: u32,
    /// Begins every input.
    pub cls: u32,
    /// Ends every input.
    pub sep: u32,
}

impl WordPiece {
    pub(crate) fn from_gguf(gguf: &Gguf, vocab: &Vocab) -> Result<Self, TokenizerError> {
        let named = |keys: &[&'static str], text: &'static str| {
            for key in keys {
                if let Some(id) = vocab.special(gguf, key)? {
                    return Ok(id);
                }
            }
            vocab.id(text).ok_or(TokenizerError::NoSpecial { text, key: keys[0] })
        };
        let pieces = vocab.texts().filter(|(id, _)| vocab.kind(*id) != Kind::Control);
        let longest = pieces.map(|(_, text)| text.len()).max().unwrap_or_default();
        let lowercase = gguf.bool("tokenizer.ggml.normalizer.lowercase")?.unwrap_or(true);
        Ok(Self {
            lowercase,
            strip_accents: gguf.bool("tokenizer.ggml.normalizer.strip_accents")?.unwrap_or(lowercase),
            piece_len_max: longest.min(PIECE_LEN_MAX),
            unknown: named(&["tokenizer.ggml.unknown_token_id"], "[UNK]")?,
            cls: named(&["tokenizer.ggml.cls_token_id", "tokenizer.ggml.bos_token_id"], "[CLS]")?,
            // The key is misspelt in the specification.
            sep: named(&["tokenizer.ggml.seperator_token_id", "tokenizer.ggml.eos_token_id"], "[SEP]")?,
        })
    }

    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, out: &mut Vec<u32>) {
        let mut word = Word::default();
        let clean = text.chars().filter(|c| !is_dropped(*c)).flat_map(|c| match is_ideograph(c) {
            true => [Some(' '), Some(c), Some(' ')],
            false => [Some(c), None, None],
        });
        let clean = clean.flatten();
        let mut take = |c: char| {
            if !self.lowercase {
                return self.take(vocab, c, &mut word, out);
            }
            for c in c.to_lowercase() {
                self.take(vocab, c, &mut word, out);
            }
        };
        if self.strip_accents {
            clean.nfd().filter(|c| c.general_category() != GeneralCategory::NonspacingMark).for_each(&mut take);
        } else {
            clean.for_each(&mut take);
        }
        self.finish(vocab, &mut word, out);
    }

    /// One normalised character: part of the word, or its end.
    fn take(&self, vocab: &Vocab, c: char, word: &mut Word, out: &mut Vec<u32>) {
        if c.is_whitespace() {
            self.finish(vocab, word, out);
        } else if is_punctuation(c) {
            self.finish(vocab, word, out);
            word.push(c);
            self.finish(vocab, word, out);
        } else {
            word.push(c);
        }
    }

    /// Appends the pieces of the word, if there is one, and empties it.
    fn finish(&self, vocab: &Vocab, word: &mut Word, out: &mut Vec<u32>) {
        let first = out.len();
        let (mut rest, too_long) = (word.text.as_str(), word.chars > WORD_CHARS_MAX);
        let mut start = WORD_START.len_utf8();
        while !rest.is_empty() && !too_long {
            // A piece has at least one character besides the mark.
            let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).filter(|end| *end > start);
            let ends: Vec<usize> = ends.take_while(|end| *end <= self.piece_len_max).collect();
            let found = ends.iter().rev().find_map(|end| Some((*end, vocab.plain_id(&rest[..*end])?)));
            let Some((end, id)) = found else { break };
            out.push(id);
            rest = &rest[end..];
            start = 0;
        }
        if !rest.is_empty() {
            out.truncate(first);
            out.push(self.unknown);
        }
        word.text.clear();
        word.chars = 0;
    }
}

/// A word so far, its start mark included.
#[derive(Default)]
struct Word {
    text: String,
    /// Without the mark.
    chars: usize,
}

impl Word {
    /// Characters past the longest word are counted, not kept.
    fn push(&mut self, c: char) {
        if self.text.is_empty() {
            self.text.push(WORD_START);
        }
        if self.chars <= WORD_CHARS_MAX {
            self.text.push(c);
            self.chars += 1;
        }
    }
}

/// NUL, the replacement character, control and format characters, and those for private use.
fn is_dropped(c: char) -> bool {
    use GeneralCategory::{Control, Format, PrivateUse};
    match c {
        '\t' | '\n' | '\r' => false,
        '\0' | char::REPLACEMENT_CHARACTER => true,
        _ => matches!(c.general_category(), Control | Format | PrivateUse),
    }
}

/// What becomes a word of its own: the blocks that BERT names. Not those of kana, hangul or punctuation.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c),
        0x4E00..=0x9FFF | 0x3400..=0x4DBF | 0x2_0000..=0x2_A6DF | 0x2_A700..=0x2_B73F | 0x2_B740..=0x2_B81F
        // The reference has this start where 0x2B820 was meant.
        | 0x2_B920..=0x2_CEAF | 0xF900..=0xFAFF | 0x2_F800..=0x2_FA1F)
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || c.general_category_group() == GeneralCategoryGroup::Punctuation
}

/// What token `id` prints.
pub(crate) fn print(vocab: &Vocab, id: u32, out: &mut Vec<u8>) {
    if matches!(vocab.kind(id), Kind::Normal | Kind::UserDefined | Kind::Unused) {
        let text = vocab.text(id);
        match text.strip_prefix(WORD_START) {
            Some(word) => {
                out.push(b' ');
                out.extend_from_slice(word.as_bytes());
            }
            None => out.extend_from_slice(text.as_bytes()),
        }
    }
}
