//! What an output has to look like: a schema, an expression or a grammar, as text.

use crate::job::put_count;
use serde::{Deserialize, Serialize};

/// What grammars mean. Version 1 is `llguidance` 1.9.1 with the bounds and options of `assay-grammar`: a change of
/// either that changes a mask is a new version, because an audit has to find the same masks.
pub const GRAMMAR_VERSION: u32 = 1;
/// Longest grammar in bytes.
pub const GRAMMAR_LEN_MAX: usize = 64 << 10;

/// A constraint on the text of an output.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grammar {
    /// [`GRAMMAR_VERSION`].
    pub version: u32,
    /// How to read the text.
    pub kind: GrammarKind,
    /// 1 to [`GRAMMAR_LEN_MAX`] bytes.
    pub text: String,
}

/// How a grammar is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrammarKind {
    /// The output is JSON that satisfies this JSON Schema.
    JsonSchema,
    /// The whole output matches this regular expression.
    Regex,
    /// The output is a sentence of this grammar in llguidance's variant of Lark.
    Lark,
}

impl GrammarKind {
    /// The byte that is hashed; 0 is a job without a grammar.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::JsonSchema => 1,
            Self::Regex => 2,
            Self::Lark => 3,
        }
    }
}

impl Grammar {
    /// Of the current version.
    #[must_use]
    pub fn new(kind: GrammarKind, text: impl Into<String>) -> Self {
        Self { version: GRAMMAR_VERSION, kind, text: text.into() }
    }

    /// Kind, version and text.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.push(self.kind.code());
        out.extend_from_slice(&self.version.to_be_bytes());
        put_count(out, self.text.len());
        out.extend_from_slice(self.text.as_bytes());
    }
}
