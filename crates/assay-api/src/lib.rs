//! The OpenAI HTTP API as bytes: requests in, responses and server-sent events out.
//!
//! Owns the wire types, which parameters are understood, refused or reported as ignored, and how decimal parameters
//! become the integers of a [`Job`](assay_types::Job). Holds no socket, clock or randomness, knows no HTTP status
//! and no tokenizer: the gateway maps [`RequestError`] to a status and hands in token ids, seed and nonce.

mod base64;
mod constraint;
mod embeddings;
mod error;
mod json;
mod logprobs;
mod messages;
mod request;
mod response;
mod responses;
mod stream;
mod tools;
mod verify;
pub mod x402;

pub use constraint::Constraint;
pub use embeddings::{
    EmbeddingRequest, Encoding, INPUTS_MAX, Input, RerankRequest, VectorInfo, VectorUsage, embedding_reply,
    rerank_reply,
};
pub use error::{ErrorBody, ErrorObject, RequestError};
pub use logprobs::{ChatLogprobs, CompletionLogprobs, Logprob, OutputLogprob, ScoredToken};
pub use messages::{MessageEnd, MessageStream, StopReason, message_error, message_error_event, message_reply};
pub use request::{
    Asked, CHOICES_MAX, ChatRequest, CompletionRequest, Limits, MODEL_NAME_LEN_MAX, MaxPrice, Message, Options, Prompt,
    Role, Sort, WARNINGS_MAX, Wishes,
};
pub use response::{
    AssayInfo, AssistantMessage, ChatChoice, ChatCompletion, Choice, Completion, CompletionChoice, Ending,
    FinishReason, Head, ModelCard, ModelList, Usage,
};
pub use responses::{ResponseEnd, ResponseStream, ResponsesRequest};
pub use stream::{DONE, Logprobs, StreamEncoder, StreamKind, error_event};
pub use tools::{FunctionCall, Tool, ToolCall, ToolChoice, Tooling};
pub use verify::Verify;
