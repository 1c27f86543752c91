//! Model graph, KV cache, continuous batching and sampling on the canonical arithmetic of `assay_num`.
//!
//! Bytes of a GGUF file in, output tokens out. The same job gives the same tokens on every instruction set, with any
//! number of threads, alone or among others, however the prompt is cut, and when it is resumed after any prefix.
//! Owns its threads; knows nothing of the network, money, files or HTTP.
//!
//! ```text
//! Gguf + bytes --Model::load--> Model (config, tokenizer, template, weights)
//!                                 |
//!   Engine (queue, thread) --plan (scheduler)--> Runner::step (forward) --logits--> sample --> TokenSink
//!   replay -----------------------------------> Runner::step, one prefill
//! ```

mod admission;
mod attention;
mod choose;
mod compute;
mod drive;
pub mod encoder;
mod engine;
mod forward;
mod kv;
pub mod latency;
mod model;
mod need;
mod pace;
mod prefix;
mod replay;
mod scheduler;
mod sequence;
pub mod throughput;

pub use assay_graph::{ConfigError, Family, ModelConfig, Window, limits};
pub use choose::ConstraintError;
pub use engine::{
    Engine, EngineOptions, EngineStats, JobHandle, PREFILL_CHUNK_MAX, SEQUENCES_MAX, Shutdown, StartError, SubmitError,
    job_limits, threads_for,
};
pub use forward::{LOGIT_ROWS, Runner, Slice};
pub use kv::{KvPool, KvSeq, KvShape};
pub use model::{CONTEXT_MAX_DEFAULT, LoadError, LoadOptions, Model};
pub use need::MemoryNeed;
pub use prefix::{Payer, PrefixCache};
pub use replay::{Replay, ReplayError, chooser, replay, replay_watched, score, watch};
pub use sequence::{EngineEvent, JobFailure, SinkState, TokenSink};
