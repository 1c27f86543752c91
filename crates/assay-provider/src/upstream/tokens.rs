//! Text of an engine that reports no token ids as tokens of the model, and prompts as text for one that takes no ids.
//!
//! The text is always exactly the engine's. The ids are the engine's own wherever it sends one token at a time, as
//! engines that stream do; a piece that holds several (a character of several tokens, or a server that collects) is cut
//! by longest match, which may differ from what the engine computed with. Then the count may differ by as many, and the
//! statistics see unlikely tokens there.

use assay_gguf::Tokenizer;
use assay_types::TokenId;
use std::collections::HashMap;
use std::sync::Arc;

/// What a model's tokens print, backwards.
pub(super) struct Printed {
    tokenizer: Arc<Tokenizer>,
    ids: HashMap<Box<[u8]>, TokenId>,
    longest: usize,
    /// Ends an answer where the engine does not say by which token.
    end: Option<TokenId>,
}

impl Printed {
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let mut ids: HashMap<Box<[u8]>, TokenId> = HashMap::new();
        let mut longest = 0;
        for id in 0..tokenizer.vocab_size() {
            let bytes = tokenizer.token_bytes(id);
            if bytes.is_empty() {
                continue;
            }
            longest = longest.max(bytes.len());
            // A byte has a token of its own in vocabularies that also have it as a character: the character is what an
            // engine prints where it can.
            let is_byte = tokenizer.token_text(id).starts_with("<0x");
            let place = ids.entry(bytes.into()).or_insert(id);
            if tokenizer.token_text(*place).starts_with("<0x") && !is_byte {
                *place = id;
            }
        }
        let mut ends = tokenizer.eos().into_iter().chain(0..tokenizer.vocab_size());
        let end = ends.find(|id| tokenizer.is_eog(*id));
        Self { tokenizer, ids, longest, end }
    }

    pub fn vocab_size(&self) -> u32 {
        self.tokenizer.vocab_size()
    }

    pub fn end(&self) -> Option<TokenId> {
        self.end
    }

    /// Tokens that print exactly `text`; `None` if the vocabulary lacks a byte of it.
    pub fn cut(&self, text: &str) -> Option<Vec<TokenId>> {
        let mut rest = text.as_bytes();
        let mut tokens = Vec::new();
        while !rest.is_empty() {
            let most = rest.len().min(self.longest);
            let found = (1..=most).rev().find_map(|len| self.ids.get(&rest[..len]).map(|id| (*id, len)));
            let (id, len) = found?;
            tokens.push(id);
            rest = &rest[len..];
        }
        Some(tokens)
    }

    /// A text that the engine's tokenizer, which adds what the model's file asks for, makes these tokens of. Where there
    /// is none (a prompt that no text gives), the text that they print.
    pub fn prompt(&self, tokens: &[TokenId]) -> String {
        let tokens = match (tokens.split_first(), self.tokenizer.bos()) {
            (Some((first, rest)), Some(bos)) if self.tokenizer.add_bos() && *first == bos => rest,
            _ => tokens,
        };
        let mut bytes = Vec::new();
        for &id in tokens {
            let printed = self.tokenizer.token_bytes(id);
            bytes.extend_from_slice(if printed.is_empty() {
                self.tokenizer.token_text(id).as_bytes()
            } else {
                printed
            });
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // Vocabularies that begin a text with a space have it in the first token already.
        match text.strip_prefix(' ') {
            Some(shorter) if self.tokenizer.encode(shorter, false, true) == tokens => shorter.to_owned(),
            _ => text,
        }
    }
}
