//! Grammars: which tokens may come next, so that an output is valid JSON of a schema, matches a regular expression, or
//! is a sentence of a context-free grammar.
//!
//! A mask is a function of the grammar, the vocabulary and the tokens so far, and of nothing else: no clock, no thread
//! count, no history of other jobs. Work is bounded by counted steps, never by time, and the masks of all earlier
//! positions are made in order by whoever goes on from them, so that two parties reach a bound at the same token or not
//! at all. What a grammar means is [`assay_types::GRAMMAR_VERSION`]; the vectors in `tests` fail when that changes.
//!
//! Owns `llguidance`, which does the work. Knows nothing of models and logits.

mod matcher;
mod vocabulary;

pub use matcher::{Matcher, MatcherError};
pub use vocabulary::{GrammarError, Vocabulary, VocabularyError};
