//! Text to token ids and back, as the model's file defines it.

use crate::{
    bpe::{self, Bpe},
    gguf::{Gguf, GgufError},
    special::{Fragment, Specials},
    spm::{self, Spm},
    vocab::{Kind, Vocab},
    wordpiece::{self, WordPiece},
};
use sha2::{Digest, Sha256};

/// The tokenizer of one model. Immutable; share it in an `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    scheme: Scheme,
    /// What each token prints, one after the other, and where each ends.
    printed: Vec<u8>,
    printed_ends: Vec<usize>,
    /// Found in every text.
    user_defined: Specials,
    /// Found in a text whose special tokens are to be parsed.
    all_special: Specials,
    /// Those of them that no message may forge.
    controls: Specials,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    /// Sorted.
    end_ids: Vec<u32>,
    hash: [u8; 32],
}

#[derive(Debug)]
enum Scheme {
    Bpe(Box<Bpe>),
    Spm(Box<Spm>),
    WordPiece(Box<WordPiece>),
}

/// Why a file's tokenizer cannot be used.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A key is missing or has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// `tokenizer.ggml.model` is not "llama", "gpt2" or "bert".
    #[error("tokenizer model {name:?} is not supported (llama, gpt2 and bert are)")]
    Model {
        /// The file's value.
        name: String,
    },
    /// `tokenizer.ggml.pre` is none of the known ones.
    #[error("pre-tokenizer {name:?} is not supported (there are {})", crate::pretokenize::PreTokenizer::names())]
    PreTokenizer {
        /// The file's value.
        name: String,
    },
    /// No token, or more than the limit.
    #[error("the vocabulary has {size} tokens, 1 to {max} are allowed")]
    VocabSize {
        /// Tokens in the file.
        size: usize,
        /// Limit.
        max: usize,
    },
    /// An array that has one element per token has another length.
    #[error("{key} has {len} elements for {vocab_size} tokens")]
    Length {
        /// Its key.
        key: &'static str,
        /// Its length.
        len: usize,
        /// Tokens in the file.
        vocab_size: usize,
    },
    /// A special token's id is outside the vocabulary.
    #[error("{key} is {id}, the vocabulary has {vocab_size} tokens")]
    SpecialOutOfRange {
        /// Its key.
        key: &'static str,
        /// Its value.
        id: u32,
        /// Tokens in the file.
        vocab_size: usize,
    },
    /// No token stands for a byte that text can contain.
    #[error("the vocabulary has no token for the byte 0x{byte:02x}")]
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// More merges than the limit.
    #[error("{count} merges, at most {max} are allowed")]
    MergeCount {
        /// Merges in the file.
        count: usize,
        /// Limit.
        max: usize,
    },
    /// A merge is not two texts with a space between.
    #[error("merge {rank} is not two texts separated by a space")]
    BadMerge {
        /// Its index.
        rank: u32,
    },
    /// A "llama" vocabulary without scores.
    #[error("tokenizer.ggml.scores is missing, which decides merges")]
    NoScores,
    /// A "bert" vocabulary without a token that it cannot do without.
    #[error("the vocabulary has no token {text}, and {key} names none")]
    NoSpecial {
        /// The token's usual text.
        text: &'static str,
        /// The key that could name it.
        key: &'static str,
    },
    /// A token's text is longer than the limit for its kind.
    #[error("a token's text has {len} bytes, at most {max} are allowed")]
    TokenLength {
        /// Its length.
        len: usize,
        /// Limit.
        max: usize,
    },
}

impl Tokenizer {
    /// Builds the tokenizer that `gguf` describes.
    ///
    /// # Errors
    /// [`TokenizerError`]: an unsupported scheme, or metadata that contradicts itself.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let model: &str = gguf.require("tokenizer.ggml.model")?;
        let vocab = Vocab::from_gguf(gguf)?;
        let scheme = match model {
            "gpt2" => Scheme::Bpe(Box::new(Bpe::from_gguf(gguf, &vocab)?)),
            "llama" => Scheme::Spm(Box::new(Spm::from_gguf(gguf, &vocab)?)),
            "bert" => Scheme::WordPiece(Box::new(WordPiece::from_gguf(gguf, &vocab)?)),
            other => return Err(TokenizerError::Model { name: crate::parse::shown(other) }),
        };
        let mut printed = Vec::new();
        let mut printed_ends = Vec::with_capacity(vocab.len());
        for (id, _) in vocab.texts() {
            match scheme {
                Scheme::Bpe(_) => bpe::print(&vocab, id, &mut printed),
                Scheme::Spm(_) => spm::print(&vocab, id, &mut printed),
                Scheme::WordPiece(_) => wordpiece::print(&vocab, id, &mut printed),
            }
            printed_ends.push(printed.len());
        }
        let (bos, eos) = match &scheme {
            Scheme::WordPiece(wordpiece) => (Some(wordpiece.cls), Some(wordpiece.sep)),
            _ => (
                vocab.special(gguf, "tokenizer.ggml.bos_token_id")?,
                vocab.special(gguf, "tokenizer.ggml.eos_token_id")?,
            ),
        };
        let eot = vocab.special(gguf, "tokenizer.ggml.eot_token_id")?;
        let eom = vocab.special(gguf, "tokenizer.ggml.eom_token_id")?;
        // Encoders were trained on inputs with both ends marked; their files' keys about it are not reliable.
        let (add_bos, add_eos) = match &scheme {
            Scheme::WordPiece(_) => (true, true),
            _ => (
                gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(scheme.adds_bos_by_default()),
                gguf.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false),
            ),
        };
        Ok(Self {
            printed,
            printed_ends,
            user_defined: Specials::new(&vocab, &[Kind::UserDefined])?,
            all_special: Specials::new(&vocab, &[Kind::UserDefined, Kind::Control, Kind::Unknown])?,
            controls: Specials::new(&vocab, &[Kind::Control, Kind::Unknown])?,
            bos,
            eos,
            add_bos: add_bos && bos.is_some(),
            add_eos: add_eos && eos.is_some(),
            end_ids: vocab.end_ids(&[eos, eot, eom]),
            hash: hash(gguf),
            scheme,
            vocab,
        })
    }

    /// Token ids of `text`. `add_special` adds what the file asks for at the ends (usually the begin-of-sequence
    /// token); `parse_special` reads the texts of control tokens as those tokens, which is for templates, never for
    /// text from a user. O(n log n) in the bytes of `text`.
    #[must_use]
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Vec<u32> {
        let mut out = Vec::new();
        if add_special && self.add_bos {
            out.extend(self.bos);
        }
        let specials = if parse_special { &self.all_special } else { &self.user_defined };
        self.encode_fragments(specials.split(text, None), &mut out);
        if add_special && self.add_eos {
            out.extend(self.eos);
        }
        out
    }

    /// Token ids of a text from a template in which messages are shielded ([`Self::shield`]): special tokens are read
    /// where the template wrote them, the messages' text becomes what `encode` without `parse_special` makes of it.
    pub(crate) fn encode_shielded(&self, text: &str, mark: char) -> Vec<u32> {
        let mut out = Vec::new();
        let plain: Vec<Result<String, u32>> = self
            .all_special
            .split(text, Some(mark))
            .map(|fragment| match fragment {
                Fragment::Text(text) => Ok(text.replace(mark, "")),
                Fragment::Token(id) => Err(id),
            })
            .collect();
        let fragments = plain.iter().flat_map(|fragment| {
            let (text, token) = match fragment {
                Ok(text) => (text.as_str(), None),
                Err(id) => ("", Some(Fragment::Token(*id))),
            };
            self.user_defined.split(text, None).chain(token)
        });
        self.encode_fragments(fragments, &mut out);
        out
    }

    /// `text` with `mark` wherever a control token could be read; `None` if there is no such place.
    pub(crate) fn shield(&self, text: &str, mark: char) -> Option<String> {
        self.controls.shield(text, mark)
    }

    fn encode_fragments<'a>(&self, fragments: impl Iterator<Item = Fragment<'a>>, out: &mut Vec<u32>) {
        match &self.scheme {
            Scheme::Bpe(bpe) => {
                let mut scratch = bpe::Scratch::default();
                for fragment in fragments {
                    match fragment {
                        Fragment::Token(id) => out.push(id),
                        Fragment::Text(text) => bpe.encode(&self.vocab, text, &mut scratch, out),
                    }
                }
            }
            Scheme::WordPiece(wordpiece) => {
                for fragment in fragments {
                    match fragment {
                        Fragment::Token(id) => out.push(id),
                        Fragment::Text(text) => wordpiece.encode(&self.vocab, text, out),
                    }
                }
            }
            Scheme::Spm(spm) => {
                let mut scratch = spm::Scratch::default();
                let mut at_start = true;
                for fragment in fragments {
                    match fragment {
                        Fragment::Token(id) => out.push(id),
                        Fragment::Text(text) => spm.encode(&self.vocab, text, at_start, &mut scratch, out),
                    }
                    at_start = matches!(fragment, Fragment::Token(_));
                }
            }
        }
    }

    /// Bytes that token `id` prints: nothing for control tokens and ids outside the vocabulary. Not always valid UTF-8
    /// by itself; see [`crate::TextDecoder`].
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.printed_ends.get(id) else { return &[] };
        let start = id.checked_sub(1).map_or(0, |before| self.printed_ends[before]);
        &self.printed[start..end]
    }

    /// Text of token `id` as the vocabulary writes it, control tokens included; empty outside the vocabulary.
    #[must_use]
    pub fn token_text(&self, id: u32) -> &str {
        self.vocab.text(id)
    }

    /// The token whose text in the vocabulary is `text`.
    #[must_use]
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.vocab.id(text)
    }

    /// Whether `id` ends a generation.
    #[must_use]
    pub fn is_eog(&self, id: u32) -> bool {
        self.end_ids.binary_search(&id).is_ok()
    }

    /// The begin-of-sequence token.
    #[must_use]
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token.
    #[must_use]
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Whether `encode` with `add_special` begins with [`Self::bos`].
    #[must_use]
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Number of tokens; ids are below it.
    #[must_use]
    pub fn vocab_size(&self) -> u32 {
        u32::try_from(self.vocab.len()).unwrap_or(u32::MAX)
    }

    /// SHA-256 of the metadata that defines tokenizer and chat template: every key that starts with `tokenizer.`, in
    /// ascending order, as GGUF encodes key, type and value.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        self.hash
    }
}

impl Scheme {
    /// What published models of each scheme mean when their file does not say.
    fn adds_bos_by_default(&self) -> bool {
        match self {
            Self::Bpe(bpe) => bpe.pre().adds_bos_by_default(),
            Self::Spm(_) | Self::WordPiece(_) => true,
        }
    }
}

fn hash(gguf: &Gguf) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut encoded = Vec::new();
    for (key, value) in gguf.metadata().filter(|(key, _)| key.starts_with("tokenizer.")) {
        encoded.clear();
        crate::write::put_entry(&mut encoded, key, value);
        hasher.update(&encoded);
    }
    hasher.finalize().into()
}
