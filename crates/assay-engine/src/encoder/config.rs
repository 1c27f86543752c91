//! Hyper-parameters of an encoder, from the metadata keys `bert.*`, checked against each other.

use assay_gguf::Gguf;

use assay_graph::{ConfigError, limits, metadata_string as string};

/// Value of `general.architecture`.
pub(crate) const ARCHITECTURE: &str = "bert";

/// Most tokens of one text that the model's authors meant it for, where that is less than its positions; written by
/// `assay import`, since GGUF has no key for it.
const INPUT_LENGTH: &str = "assay.input_length";

/// How the rows of a text become its vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first of them, which belongs to the token that begins every text.
    Cls,
}

/// Hyper-parameters of one encoder. All counts are at least 1 and within [`limits`].
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Transformer blocks (`bert.block_count`).
    pub n_layers: usize,
    /// Width of the hidden states and of a text's vector (`bert.embedding_length`).
    pub width: usize,
    /// Feed-forward width (`bert.feed_forward_length`).
    pub feed_forward: usize,
    /// Attention heads (`bert.attention.head_count`); divides `width`.
    pub n_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Layer norm epsilon, finite, positive (`bert.attention.layer_norm_epsilon`).
    pub norm_eps: f32,
    /// Rows of the position table (`bert.context_length`).
    pub positions: usize,
    /// Most tokens of a text, those that mark its ends included: at least 2, at most `positions`.
    pub input_length: usize,
    /// How a text's vector is made (`bert.pooling_type`).
    pub pooling: Pooling,
}

impl EncoderConfig {
    /// Reads and checks the config.
    ///
    /// # Errors
    /// The first key that is missing, out of range or contradicts another.
    pub fn from_gguf(gguf: &Gguf) -> Result<EncoderConfig, ConfigError> {
        const KEY: &str = "general.architecture";
        let found = string(gguf, KEY)?.ok_or_else(|| ConfigError::Missing { key: KEY.to_owned() })?;
        if found != ARCHITECTURE {
            return Err(ConfigError::Architecture { found });
        }
        let width = count(gguf, "bert.embedding_length", limits::WIDTH)?;
        let n_heads = count(gguf, "bert.attention.head_count", limits::N_HEADS)?;
        if !width.is_multiple_of(n_heads) || width / n_heads > limits::HEAD_DIM as usize {
            return Err(ConfigError::Contradiction {
                key: "bert.attention.head_count".to_owned(),
                found: n_heads.to_string(),
                because: format!(
                    "it must divide bert.embedding_length, which is {width}, into at most {} each",
                    limits::HEAD_DIM
                ),
            });
        }
        let positions = count(gguf, "bert.context_length", limits::CONTEXT)?;
        let input_length = match gguf.value(INPUT_LENGTH) {
            None => positions,
            Some(_) => count(gguf, INPUT_LENGTH, limits::CONTEXT)?.min(positions),
        };
        if input_length < 2 {
            return Err(ConfigError::Range {
                key: "bert.context_length".to_owned(),
                found: input_length.to_string(),
                allowed: "2 or more: a text has a token at either end".to_owned(),
            });
        }
        refuse_causal(gguf)?;
        Ok(EncoderConfig {
            n_layers: count(gguf, "bert.block_count", limits::N_LAYERS)?,
            width,
            feed_forward: count(gguf, "bert.feed_forward_length", limits::FEED_FORWARD)?,
            n_heads,
            head_dim: width / n_heads,
            norm_eps: norm_eps(gguf)?,
            positions,
            input_length,
            pooling: pooling(gguf)?,
        })
    }
}

/// An encoder sees what follows, unless its file says otherwise.
fn refuse_causal(gguf: &Gguf) -> Result<(), ConfigError> {
    const KEY: &str = "bert.attention.causal";
    match gguf.bool(KEY).map_err(|source| ConfigError::Key { key: KEY.to_owned(), source })? {
        Some(true) => Err(ConfigError::Unsupported { key: KEY.to_owned(), found: "true".to_owned() }),
        _ => Ok(()),
    }
}

/// `enum llama_pooling_type` of llama.cpp.
fn pooling(gguf: &Gguf) -> Result<Pooling, ConfigError> {
    const KEY: &str = "bert.pooling_type";
    match gguf.u32(KEY).map_err(|source| ConfigError::Key { key: KEY.to_owned(), source })? {
        Some(1) => Ok(Pooling::Mean),
        Some(2) => Ok(Pooling::Cls),
        Some(other) => Err(ConfigError::Range {
            key: KEY.to_owned(),
            found: other.to_string(),
            allowed: "1 (mean) or 2 (cls)".to_owned(),
        }),
        None => Err(ConfigError::Missing { key: KEY.to_owned() }),
    }
}

fn norm_eps(gguf: &Gguf) -> Result<f32, ConfigError> {
    const KEY: &str = "bert.attention.layer_norm_epsilon";
    let value = gguf.f32(KEY).map_err(|source| ConfigError::Key { key: KEY.to_owned(), source })?;
    let value = value.ok_or_else(|| ConfigError::Missing { key: KEY.to_owned() })?;
    // NaN is in no range. Published values are 1e-12 and 1e-5; the former is a little less than that as an f32.
    if (1e-13..=1.0).contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::Range { key: KEY.to_owned(), found: value.to_string(), allowed: "1e-13 to 1".to_owned() })
}

fn count(gguf: &Gguf, key: &str, max: u32) -> Result<usize, ConfigError> {
    let value = gguf.get::<u64>(key).map_err(|source| ConfigError::Key { key: key.to_owned(), source })?;
    let value = value.ok_or_else(|| ConfigError::Missing { key: key.to_owned() })?;
    match u32::try_from(value) {
        Ok(n) if (1..=max).contains(&n) => Ok(n as usize),
        _ => Err(ConfigError::Range { key: key.to_owned(), found: value.to_string(), allowed: format!("1 to {max}") }),
    }
}
