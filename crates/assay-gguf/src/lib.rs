//! GGUF files, tokenizers and chat templates: bytes in, values out.
//!
//! What comes in was written by strangers: every size is checked against the bytes that exist before memory is taken
//! for it, and nothing here panics on what a file or a text contains. Files, mapping and hashing of weights are
//! `assay-store`'s; arithmetic on tensors is `assay-num`'s.

mod bpe;
mod chat;
mod decode;
mod ggml;
mod gguf;
mod output;
mod parse;
mod pretokenize;
pub mod quant;
mod rope;
mod special;
mod spm;
mod template;
mod template_env;
mod template_guard;
mod tokenizer;
mod value;
mod vocab;
mod wordpiece;
pub mod write;

pub use chat::{chat_tokens, tool_chat_tokens};
pub use decode::TextDecoder;
pub use ggml::GgmlType;
pub use gguf::{FromValue, Gguf, GgufError, TensorInfo};
pub use output::{FinishReason, OutputLimits, OutputText, Piece};
pub use parse::shown;
pub use rope::{RopeError, RopeTables, rope_table, rope_tables};
pub use template::{Chat, ChatMessage, ChatTemplate, Limits, TemplateError, ToolStyle};
pub use tokenizer::{Tokenizer, TokenizerError};
pub use value::{Array, StrArray, Value};
