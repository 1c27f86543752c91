//! SentencePiece encoding as Llama 2 uses it: characters merged into pieces by score, bytes for what no piece covers.
//!
//! Like SentencePiece, and unlike a lookup in the whole vocabulary, text never becomes a control token.

use crate::{
    gguf::Gguf,
    tokenizer::TokenizerError,
    vocab::{Kind, Vocab},
};
use std::{cmp::Ordering, collections::BinaryHeap};

/// Longest piece in bytes. A merge looks its result up by text, so this bounds the work per byte of input.
const PIECE_LEN_MAX: usize = 1024;
const SPACE: &str = "\u{2581}";

#[derive(Debug)]
pub(crate) struct Spm {
    add_space_prefix: bool,
    /// Longest text of a token.
    piece_len_max: usize,
    /// Token of each byte, or the unknown token.
    bytes: [u32; 256],
}

impl Spm {
    pub(crate) fn from_gguf(gguf: &Gguf, vocab: &Vocab) -> Result<Self, TokenizerError> {
        if !vocab.has_scores() {
            return Err(TokenizerError::NoScores);
        }
        let piece_len_max = vocab.texts().map(|(_, text)| text.len()).max().unwrap_or_default();
        if piece_len_max > PIECE_LEN_MAX {
            return Err(TokenizerError::TokenLength { len: piece_len_max, max: PIECE_LEN_MAX });
        }
        let unknown = vocab.special(gguf, "tokenizer.ggml.unknown_token_id")?;
        let mut bytes = [0; 256];
        for byte in 0..=u8::MAX {
            let id = vocab.id(&format!("<0x{byte:02X}>")).or(unknown);
            bytes[usize::from(byte)] = id.ok_or(TokenizerError::MissingByte { byte })?;
        }
        let add_space_prefix = gguf.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
        Ok(Self { add_space_prefix, piece_len_max, bytes })
    }

    /// Encodes `text`, which begins the input or follows a special token if `at_start`.
    pub(crate) fn encode(&self, vocab: &Vocab, text: &str, at_start: bool, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let Scratch { text: escaped, symbols, heap } = scratch;
        escaped.clear();
        symbols.clear();
        heap.clear();
        if at_start && self.add_space_prefix {
            escaped.push_str(SPACE);
        }
        for c in text.chars() {
            match c {
                ' ' => escaped.push_str(SPACE),
                c => escaped.push(c),
            }
        }
        for (at, (start, c)) in escaped.char_indices().enumerate() {
            symbols.push(Symbol { start, len: c.len_utf8(), prev: at.wrapping_sub(1), next: at + 1 });
        }
        for at in 1..symbols.len() {
            self.push_candidate(vocab, escaped, symbols, heap, at - 1);
        }
        while let Some(Candidate { left, right, len, .. }) = heap.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            if a.len == 0 || b.len == 0 || a.len + b.len != len {
                continue;
            }
            symbols[left] = Symbol { len, next: b.next, ..a };
            symbols[right].len = 0;
            if let Some(after) = symbols.get_mut(b.next) {
                after.prev = left;
            }
            self.push_candidate(vocab, escaped, symbols, heap, left);
            if left > 0 {
                self.push_candidate(vocab, escaped, symbols, heap, a.prev);
            }
        }
        let mut at = 0;
        while let Some(&Symbol { start, len, next, .. }) = symbols.get(at) {
            let piece = &escaped[start..start + len];
            match vocab.plain_id(piece) {
                Some(id) => out.push(id),
                None => out.extend(piece.bytes().map(|byte| self.bytes[usize::from(byte)])),
            }
            at = next;
        }
    }

    fn push_candidate(
        &self,
        vocab: &Vocab,
        text: &str,
        symbols: &[Symbol],
        heap: &mut BinaryHeap<Candidate>,
        left: usize,
    ) {
        let Some(a) = symbols.get(left) else { return };
        let Some(b) = symbols.get(a.next) else { return };
        let len = a.len + b.len;
        if len > self.piece_len_max {
            return;
        }
        if let Some(id) = vocab.plain_id(&text[a.start..a.start + len]) {
            heap.push(Candidate { score: vocab.score(id), left, right: a.next, len });
        }
    }
}

/// Working memory of one `encode`.
#[derive(Default)]
pub(crate) struct Scratch {
    text: String,
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0 once merged away.
    len: usize,
    prev: usize,
    next: usize,
}

/// Highest score first, then leftmost.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

/// What token `id` prints.
pub(crate) fn print(vocab: &Vocab, id: u32, out: &mut Vec<u8>) {
    let text = vocab.text(id);
    match vocab.kind(id) {
        Kind::Normal => out.extend_from_slice(text.replace(SPACE, " ").as_bytes()),
        Kind::UserDefined => out.extend_from_slice(text.as_bytes()),
        Kind::Byte => {
            let digits = text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
            out.extend(digits.and_then(|d| u8::from_str_radix(d, 16).ok()));
        }
        Kind::Unknown | Kind::Control | Kind::Unused => (),
    }
}
