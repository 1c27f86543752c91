//! The tokens of a model as grammars see them, and grammars compiled for them.

use crate::matcher::Matcher;
use assay_types::{GRAMMAR_VERSION, Grammar, GrammarKind, TokenId};
use llguidance::ParserFactory;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most bytes of all tokens: each is at most one node of a tree that has room for 2^22.
const BYTES_MAX: usize = (1 << 22) - 1024;
/// Longest token that a grammar can use, in bytes.
const TOKEN_LEN_MAX: usize = 256;
/// Deepest nesting of brackets in a grammar: compilers walk them recursively.
const NESTING_MAX: usize = 64;
/// Longest expression or context-free grammar in bytes; its rules may refer to each other in one long chain.
const RULES_LEN_MAX: usize = 16 << 10;
/// Stack of the thread that compiles.
const STACK_BYTES: usize = 64 << 20;

/// Compiled grammars that are kept: many requests have the same.
const KEPT_MAX: usize = 32;

/// A model's tokens. Made once a model; holds a tree of the bytes of all of them.
pub struct Vocabulary {
    factory: ParserFactory,
    ends: Vec<TokenId>,
    /// Latest first. Only matchers that never moved: a copy of one is what compiling again would give.
    kept: Mutex<VecDeque<(Grammar, Matcher)>>,
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("ends", &self.ends).finish_non_exhaustive()
    }
}

/// Why there are no grammars for a model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VocabularyError {
    /// An output could never end where the grammar ends.
    #[error("the model has no token that ends an answer, so it cannot follow a grammar")]
    NoEnd,
    /// Too many or too long tokens.
    #[error("the model's tokens have {bytes} bytes; grammars are for at most {max}")]
    TooLarge {
        /// Of all tokens.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// Why a grammar is none.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GrammarError {
    /// Another version of what grammars mean.
    #[error("grammar version {found}; this is version {expected}")]
    Version {
        /// In the job.
        found: u32,
        /// Here.
        expected: u32,
    },
    /// Too long or too deep.
    #[error("the grammar exceeds the limit on its {what}: {max}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// It does not compile.
    #[error("{0}")]
    Invalid(String),
}

impl Vocabulary {
    /// From the bytes that each token prints, by id, and the ids of the tokens that end an answer. Tokens that print
    /// nothing, and those that end an answer, never occur inside of one. So it is with those that begin with a byte
    /// 0xFF or are longer than 256 bytes: the first are never text, the second never needed.
    ///
    /// # Errors
    /// See [`VocabularyError`].
    pub fn new<'a>(tokens: impl IntoIterator<Item = &'a [u8]>, ends: &[TokenId]) -> Result<Self, VocabularyError> {
        let usable =
            |bytes: &[u8]| bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) && bytes.len() <= TOKEN_LEN_MAX;
        let mut words: Vec<Vec<u8>> =
            tokens.into_iter().map(|bytes| if usable(bytes) { bytes.to_vec() } else { Vec::new() }).collect();
        let mut ends: Vec<TokenId> = ends.iter().copied().filter(|end| (*end as usize) < words.len()).collect();
        ends.sort_unstable();
        ends.dedup();
        let first = *ends.first().ok_or(VocabularyError::NoEnd)?;
        ends.iter().for_each(|end| words[*end as usize].clear());
        let bytes: usize = words.iter().map(Vec::len).sum();
        if bytes > BYTES_MAX || words.len() > BYTES_MAX {
            return Err(VocabularyError::TooLarge { bytes: bytes.max(words.len()), max: BYTES_MAX });
        }
        let info = TokRxInfo::new(words.len() as u32, first);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
        // Not canonical: no token is forced because the tokenizer would have cut the text so; every token that the
        // grammar allows may be chosen.
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&env).expect("its own constant slices compile");
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, ends, kept: Mutex::default() })
    }

    /// Tokens that end an answer, ascending.
    pub fn ends(&self) -> &[TokenId] {
        &self.ends
    }

    /// Compiles a grammar, or takes a kept one. The work is counted and bounded by the limits above.
    ///
    /// # Errors
    /// See [`GrammarError`].
    pub fn compile(&self, grammar: &Grammar) -> Result<Matcher, GrammarError> {
        if let Some(found) = self.take_kept(grammar) {
            return Ok(found);
        }
        let matcher = self.compile_new(grammar)?;
        let mut kept = self.kept();
        kept.truncate(KEPT_MAX - 1);
        kept.push_front((grammar.clone(), matcher.fresh_copy()));
        Ok(matcher)
    }

    fn take_kept(&self, grammar: &Grammar) -> Option<Matcher> {
        let mut kept = self.kept();
        let at = kept.iter().position(|(other, _)| other == grammar)?;
        let found = kept.remove(at)?;
        let copy = found.1.fresh_copy();
        kept.push_front(found);
        Some(copy)
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Grammar, Matcher)>> {
        // Every change leaves a list that is right.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compile_new(&self, grammar: &Grammar) -> Result<Matcher, GrammarError> {
        if grammar.version != GRAMMAR_VERSION {
            return Err(GrammarError::Version { found: grammar.version, expected: GRAMMAR_VERSION });
        }
        if nesting(&grammar.text) > NESTING_MAX {
            return Err(GrammarError::TooLarge { what: "nesting", max: NESTING_MAX });
        }
        if grammar.kind != GrammarKind::JsonSchema && grammar.text.len() > RULES_LEN_MAX {
            return Err(GrammarError::TooLarge { what: "bytes", max: RULES_LEN_MAX });
        }
        let top = match grammar.kind {
            GrammarKind::JsonSchema => TopLevelGrammar::from_json_schema(schema(&grammar.text)?),
            GrammarKind::Regex => TopLevelGrammar::from_regex(&grammar.text),
            GrammarKind::Lark => TopLevelGrammar::from_lark(grammar.text.clone()),
        };
        // A stack of its own: how deep the compiler goes is the grammar's doing.
        let compiled = std::thread::scope(|scope| {
            let compile = || self.factory.create_parser(top).map_err(|error| GrammarError::Invalid(one_line(&error)));
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, compile);
            let failed = || GrammarError::Invalid("the compiler could not be run".to_owned());
            thread.map_err(|_| failed())?.join().map_err(|_| failed())?
        })?;
        Ok(Matcher::new(compiled, self.ends.clone()))
    }
}

/// Counted work and memory: see the README of llguidance for what each costs.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// The schema with our rule for white space: none but one optional space behind a comma or colon, so that no model can
/// fill its answer with it.
fn schema(text: &str) -> Result<Value, GrammarError> {
    let invalid = |reason: String| GrammarError::Invalid(reason);
    let mut value: Value = serde_json::from_str(text).map_err(|error| invalid(format!("not JSON: {error}")))?;
    let object = value.as_object_mut().ok_or_else(|| invalid("a schema is a JSON object".to_owned()))?;
    let style = json!({"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": false});
    object.insert("x-guidance".to_owned(), style);
    Ok(value)
}

/// Deepest nesting of brackets of any kind, as if none was quoted.
fn nesting(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    for byte in text.bytes() {
        match byte {
            b'{' | b'[' | b'(' => depth += 1,
            b'}' | b']' | b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// An error's causes in one line of bounded length.
fn one_line(error: &impl fmt::Display) -> String {
    let text = format!("{error:#}");
    let first = text.split("<backtrace>").next().unwrap_or_default();
    first.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}
