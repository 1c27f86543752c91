//! Byte-level byte-pair encoding (GPT-2's scheme): bytes written as printable characters, merged by rank.
//!
//! Merging keeps candidates in a heap: O(n log n) in the bytes of a word, so a megabyte of one letter is no attack.

use crate::{
    gguf::Gguf, pretokenize::PreTokenizer, tokenizer::TokenizerError, value::StrArray, vocab::Kind, vocab::Vocab,
};
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
};

/// Most merges of a vocabulary.
const MERGES_MAX: usize = 1 << 23;

#[derive(Debug)]
pub(crate) struct Bpe {
    pre: PreTokenizer,
    /// A word that is a token as it stands is that token, whatever the merges say (Llama 3).
    whole_words: bool,
    /// Symbol of each byte; one that text has no use for may have none and is dropped.
    byte_symbols: [Option<u32>; 256],
    /// (left symbol, right symbol) to rank and merged symbol. Symbols below the vocabulary's size are tokens.
    merges: HashMap<(u32, u32), Merge>,
    vocab_size: u32,
    /// Texts, as tokens of single bytes, of the symbols that only occur between merges and are no token.
    loose: Vec<Box<[u32]>>,
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    symbol: u32,
}

impl Bpe {
    pub(crate) fn from_gguf(gguf: &Gguf, vocab: &Vocab) -> Result<Self, TokenizerError> {
        let name = gguf.str("tokenizer.ggml.pre")?.unwrap_or("default");
        let pre = PreTokenizer::by_name(name);
        let pre = pre.ok_or_else(|| TokenizerError::PreTokenizer { name: crate::parse::shown(name) })?;
        let mut byte_symbols = [None; 256];
        for byte in 0..=u8::MAX {
            byte_symbols[usize::from(byte)] = vocab.id(byte_char(byte).encode_utf8(&mut [0; 4]));
            if byte_symbols[usize::from(byte)].is_none() && in_text(byte) {
                return Err(TokenizerError::MissingByte { byte });
            }
        }
        let vocab_size = u32::try_from(vocab.len()).unwrap_or(u32::MAX);
        let mut bpe = Self {
            pre,
            whole_words: pre.whole_words(),
            byte_symbols,
            merges: HashMap::new(),
            vocab_size,
            loose: vec![],
        };
        bpe.add_merges(gguf.require("tokenizer.ggml.merges")?, vocab)?;
        Ok(bpe)
    }

    pub(crate) fn pre(&self) -> PreTokenizer {
        self.pre
    }

    fn add_merges(&mut self, lines: &StrArray, vocab: &Vocab) -> Result<(), TokenizerError> {
        if lines.len() > MERGES_MAX {
            return Err(TokenizerError::MergeCount { count: lines.len(), max: MERGES_MAX });
        }
        let mut loose_ids = HashMap::<String, u32>::new();
        self.merges.reserve(lines.len());
        for (rank, line) in (0_u32..).zip(lines.iter()) {
            // The space that separates is not the first character, which belongs to the left part.
            let first = line.chars().next().map_or(0, char::len_utf8);
            let Some(at) = line[first..].find(' ') else { return Err(TokenizerError::BadMerge { rank }) };
            let (left, right) = (&line[..first + at], &line[first + at + 1..]);
            let mut symbol = |text: &str| -> u32 {
                // Text never becomes a control token, whatever the file's merges make.
                if let Some(id) = vocab.id(text).filter(|&id| vocab.kind(id) != Kind::Control) {
                    return id;
                }
                if let Some(&id) = loose_ids.get(text) {
                    return id;
                }
                let tokens = text.chars().filter_map(|c| self.byte_symbols[usize::from(char_byte(c)?)]).collect();
                let id = self.vocab_size.saturating_add(self.loose.len() as u32);
                self.loose.push(tokens);
                loose_ids.insert(text.to_owned(), id);
                id
            };
            let pair = (symbol(left), symbol(right));
            let merged = symbol(&[left, right].concat());
            self.merges.entry(pair).or_insert(Merge { rank, symbol: merged });
        }
        Ok(())
    }

    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, scratch: &mut Scratch, out: &mut Vec<u32>) {
        for word in self.pre.words(text) {
            if self.whole_words {
                scratch.mapped.clear();
                scratch.mapped.extend(word.bytes().map(byte_char));
                if let Some(id) = vocab.plain_id(&scratch.mapped) {
                    out.push(id);
                    continue;
                }
            }
            self.merge_word(word, scratch);
            let mut at = 0;
            while let Some(symbol) = scratch.symbols.get(at) {
                match symbol.id.checked_sub(self.vocab_size) {
                    None => out.push(symbol.id),
                    Some(loose) => out.extend(self.loose.get(loose as usize).into_iter().flatten()),
                }
                at = symbol.next;
            }
        }
    }

    /// Merges the bytes of `word`; the result is the linked list of symbols that starts at index 0.
    fn merge_word(&self, word: &str, scratch: &mut Scratch) {
        let Scratch { symbols, heap, .. } = scratch;
        symbols.clear();
        heap.clear();
        for byte in word.bytes() {
            if let Some(id) = self.byte_symbols[usize::from(byte)] {
                let at = symbols.len();
                symbols.push(Symbol { id, prev: at.wrapping_sub(1), next: at + 1 });
            }
        }
        for at in 1..symbols.len() {
            self.push_candidate(symbols, heap, at - 1);
        }
        while let Some(Reverse((_, left, pair, merged))) = heap.pop() {
            let Symbol { id, next, .. } = symbols[left];
            let Some(&Symbol { id: right_id, next: after, .. }) = symbols.get(next) else { continue };
            if (id, right_id) != pair {
                continue;
            }
            symbols[left] = Symbol { id: merged, next: after, ..symbols[left] };
            // A removed symbol must not look like a live left part to an older candidate.
            symbols[next] = Symbol { id: GONE, next: usize::MAX, prev: usize::MAX };
            if let Some(after) = symbols.get_mut(after) {
                after.prev = left;
            }
            self.push_candidate(symbols, heap, left);
            if left > 0 {
                self.push_candidate(symbols, heap, symbols[left].prev);
            }
        }
    }

    fn push_candidate(&self, symbols: &[Symbol], heap: &mut BinaryHeap<Reverse<Candidate>>, left: usize) {
        let Some(&Symbol { id, next, .. }) = symbols.get(left) else { return };
        let Some(right) = symbols.get(next) else { return };
        let pair = (id, right.id);
        if let Some(&Merge { rank, symbol }) = self.merges.get(&pair) {
            heap.push(Reverse((rank, left, pair, symbol)));
        }
    }
}

/// Working memory of one `encode`.
#[derive(Default)]
pub(crate) struct Scratch {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Candidate>>,
    mapped: String,
}

/// Rank, index of the left symbol, symbols of the pair, merged symbol: lowest rank first, then leftmost.
type Candidate = (u32, usize, (u32, u32), u32);

/// No symbol: merged away.
const GONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    prev: usize,
    next: usize,
}

/// Bytes that a text has a use for: not those that UTF-8 never contains or only in planes without a
/// character, and not control characters, all of which Falcon's vocabulary leaves out and its tokenizer drops.
fn in_text(byte: u8) -> bool {
    !matches!(byte, 0xc0 | 0xc1 | 0xf1 | 0xf2 | 0xf5..|0..=0x08| 0x0b | 0x0c | 0x0e..=0x1f | 0x7f)
}

/// Bytes that GPT-2's vocabulary writes as the character of the same number; the others follow from U+0100 on.
fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..)
}

/// The character that stands for `byte` in token texts.
pub(crate) fn byte_char(byte: u8) -> char {
    if is_printable(byte) {
        return char::from(byte);
    }
    let shifted = match byte {
        0..=0x20 => u32::from(byte),
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x21,
        _ => 0x43,
    };
    char::from_u32(0x100 + shifted).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// Inverse of [`byte_char`].
pub(crate) fn char_byte(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ 0..=0xff => u8::try_from(code).ok().filter(|&b| is_printable(b)),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// What token `id` prints.
pub(crate) fn print(vocab: &Vocab, id: u32, out: &mut Vec<u8>) {
    let text = vocab.text(id);
    match vocab.kind(id) {
        Kind::Normal | Kind::Byte => {
            for c in text.chars() {
                match char_byte(c) {
                    Some(byte) => out.push(byte),
                    None => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                }
            }
        }
        Kind::UserDefined => out.extend_from_slice(text.as_bytes()),
        Kind::Unknown | Kind::Control | Kind::Unused => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_map_one_to_one() {
        let chars: Vec<char> = (0..=u8::MAX).map(byte_char).collect();
        for (byte, &c) in (0..=u8::MAX).zip(&chars) {
            assert_eq!(char_byte(c), Some(byte));
            assert!(!c.is_whitespace() && !c.is_control(), "{byte} is written as {c:?}");
        }
        assert_eq!([b' ', b'\n', b'a', 0x7f, 0xad].map(byte_char), ['Ġ', 'Ċ', 'a', 'ġ', 'Ń']);
        assert_eq!((0..=0x10ffff).filter_map(char::from_u32).filter_map(char_byte).count(), 256);
    }
}
