//! What serving a model takes of the machine's memory, known from the file's header before any of it is taken.

use assay_gguf::{GgmlType, Gguf};

use crate::engine::{EngineOptions, PREFILL_CHUNK_MAX, SEQUENCES_MAX};
use crate::forward::LOGIT_ROWS;
use crate::kv::{KvShape, blocks_for};
use assay_graph::{ConfigError, ModelConfig};

/// Bytes, by what they are for. Upper bounds, except that a tokenizer and the program itself are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Positions that a job may use.
    pub context: usize,
    /// Packed weights: mapped where they are kept in a file, else in memory.
    pub weights: u64,
    /// Rotation tables, which cover the context.
    pub tables: u64,
    /// Positions of keys and values.
    pub kv_tokens: usize,
    /// Bytes of the keys and values of one position.
    pub kv_per_token: u64,
    /// Keys and values when all of these are in use; taken block by block.
    pub kv: u64,
    /// Buffers of the largest step.
    pub step: u64,
}

impl MemoryNeed {
    /// Of the model with header `gguf` whose jobs may use `context_max` positions, if the model has so many.
    ///
    /// # Errors
    /// What is wrong with the header.
    pub fn of(gguf: &Gguf, context_max: usize, options: &EngineOptions) -> Result<MemoryNeed, ConfigError> {
        let rows = gguf.tensor("token_embd.weight").and_then(|tensor| tensor.dims.get(1).copied()).unwrap_or(1);
        let config = ModelConfig::from_gguf(gguf, rows)?;
        let context = config.context.min(context_max.max(1));
        let weights = gguf.tensors().iter().map(|tensor| match tensor.ty {
            // Blocks of 18 bytes, which the kernels read as blocks of 34.
            GgmlType::Q4_0 => tensor.len / 18 * 34,
            _ => tensor.len,
        });
        let block = KvShape::of(&config).block_bytes() as u64;
        let n_tables = 1 + u64::from(config.window.is_some());
        Ok(MemoryNeed {
            context,
            weights: weights.fold(0, u64::saturating_add),
            // Cosine and sine of each pair, f32.
            tables: n_tables * (context * config.head_dim * size_of::<f32>()) as u64,
            kv_tokens: options.kv_tokens,
            kv_per_token: block / assay_num::KV_CHUNK as u64,
            kv: (blocks_for(options.kv_tokens) as u64).saturating_mul(block),
            step: step_bytes(&config, options),
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        [self.tables, self.kv, self.step].into_iter().fold(self.weights, u64::saturating_add)
    }
}

/// The buffers of `forward.rs`: f32 per row of the largest step, its quantized copy, and logits.
fn step_bytes(config: &ModelConfig, options: &EngineOptions) -> u64 {
    let rows = options.prefill_chunk.clamp(1, PREFILL_CHUNK_MAX) + options.sequences_max.clamp(1, SEQUENCES_MAX);
    let (q, kv) = (config.q_width(), config.kv_width());
    let per_row = 3 * config.width + (q + 2 * kv) + 2 * q + 3 * config.feed_forward;
    let quantized = config.feed_forward.max(config.width).max(q);
    let logits = LOGIT_ROWS * config.vocab + options.sequences_max.clamp(1, SEQUENCES_MAX) * config.width;
    (size_of::<f32>() * (rows * (per_row + quantized) + logits)) as u64
}
