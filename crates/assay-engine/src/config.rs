//! The hyper-parameters of a Llama-architecture model, read from GGUF metadata and checked against each other.
//!
//! Owns the meaning of the `llama.*` keys. Does not look at tensor data; tensor shapes are checked against this
//! config where the tensors are taken (`model.rs`), the rotation table comes from `assay_gguf::rope_table`. Key names and defaults: the GGUF specification and llama.cpp's
//! `llama-hparams`. A key that would change the arithmetic and is not implemented is an error, never ignored.

use assay_gguf::{Gguf, GgufError};

/// Largest accepted values. They bound every allocation made from a config; real models are far below.
pub mod limits {
    /// Transformer blocks.
    pub const N_LAYERS: u32 = 512;
    /// Residual width and attention width.
    pub const WIDTH: u32 = 65_536;
    /// Feed-forward width.
    pub const FEED_FORWARD: u32 = 1 << 20;
    /// Query heads.
    pub const N_HEADS: u32 = 1024;
    /// Width of one head.
    pub const HEAD_DIM: u32 = 512;
    /// Vocabulary entries.
    pub const VOCAB: u32 = 1 << 20;
    /// Positions.
    pub const CONTEXT: u32 = 1 << 20;
}

/// Hyper-parameters of one model. All counts are at least 1 and within [`limits`].
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Transformer blocks (`llama.block_count`).
    pub n_layers: usize,
    /// Residual width (`llama.embedding_length`).
    pub width: usize,
    /// Feed-forward width (`llama.feed_forward_length`).
    pub feed_forward: usize,
    /// Query heads (`llama.attention.head_count`).
    pub n_heads: usize,
    /// Key and value heads (`llama.attention.head_count_kv`); divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head, even.
    pub head_dim: usize,
    /// Leading dimensions of each head that are rotated, even, at most `head_dim`.
    pub rope_dims: usize,
    /// RMSNorm epsilon, finite, positive.
    pub rms_eps: f32,
    /// Positions the model was made for (`llama.context_length`).
    pub context: usize,
    /// Vocabulary entries, from `llama.vocab_size` if stated; always equal to the rows of `token_embd.weight`.
    pub vocab: usize,
}

/// Why a file's metadata does not describe a model this engine runs.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Another architecture.
    #[error("general.architecture is \"{found}\"; this engine runs \"llama\" models")]
    Architecture {
        /// The stated architecture.
        found: String,
    },
    /// A key without which the model cannot be run.
    #[error("metadata key {key} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A key of the wrong type, or unreadable.
    #[error("metadata key {key}: {source}")]
    Key {
        /// The key.
        key: &'static str,
        /// What the parser said.
        source: GgufError,
    },
    /// A value outside its range.
    #[error("metadata key {key} is {found}, allowed is {allowed}")]
    Range {
        /// The key.
        key: &'static str,
        /// The value in the file.
        found: String,
        /// The accepted range, for people.
        allowed: String,
    },
    /// Two values that cannot both hold.
    #[error("metadata key {key} is {found}, but {because}")]
    Contradiction {
        /// The key.
        key: &'static str,
        /// The value in the file.
        found: String,
        /// What it contradicts.
        because: String,
    },
    /// A feature the file asks for and the engine does not have.
    #[error("metadata key {key} is \"{found}\": not supported")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// The value in the file.
        found: String,
    },
}

impl LlamaConfig {
    /// Width of the query rows and of the attention output: `n_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of the key rows and of the value rows: `n_kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Reads and checks the config. `vocab` is the row count of `token_embd.weight`.
    pub fn from_gguf(gguf: &Gguf, vocab: u64) -> Result<LlamaConfig, ConfigError> {
        let architecture =
            string(gguf, "general.architecture")?.ok_or(ConfigError::Missing { key: "general.architecture" })?;
        if architecture != "llama" {
            return Err(ConfigError::Architecture { found: architecture });
        }
        refuse_unsupported(gguf)?;

        let n_layers = count(gguf, "llama.block_count", limits::N_LAYERS, None)?;
        let width = count(gguf, "llama.embedding_length", limits::WIDTH, None)?;
        let feed_forward = count(gguf, "llama.feed_forward_length", limits::FEED_FORWARD, None)?;
        let n_heads = count(gguf, "llama.attention.head_count", limits::N_HEADS, None)?;
        let n_kv_heads = count(gguf, "llama.attention.head_count_kv", limits::N_HEADS, Some(n_heads))?;
        if n_heads % n_kv_heads != 0 {
            return Err(ConfigError::Contradiction {
                key: "llama.attention.head_count_kv",
                found: n_kv_heads.to_string(),
                because: format!("it must divide llama.attention.head_count, which is {n_heads}"),
            });
        }
        let head_dim = head_dim(gguf, width, n_heads)?;
        let rope_dims = count(gguf, "llama.rope.dimension_count", limits::HEAD_DIM, Some(head_dim))?;
        if rope_dims > head_dim || rope_dims % 2 != 0 {
            return Err(ConfigError::Contradiction {
                key: "llama.rope.dimension_count",
                found: rope_dims.to_string(),
                because: format!("it must be even and at most the head width, {head_dim}"),
            });
        }
        let vocab = check_vocab(gguf, vocab)?;
        Ok(LlamaConfig {
            n_layers: n_layers as usize,
            width: width as usize,
            feed_forward: feed_forward as usize,
            n_heads: n_heads as usize,
            n_kv_heads: n_kv_heads as usize,
            head_dim: head_dim as usize,
            rope_dims: rope_dims as usize,
            rms_eps: rms_eps(gguf)?,
            context: count(gguf, "llama.context_length", limits::CONTEXT, None)? as usize,
            vocab: vocab as usize,
        })
    }
}

/// The width of one head: stated by key_length and value_length, or `width / n_heads`.
fn head_dim(gguf: &Gguf, width: u32, n_heads: u32) -> Result<u32, ConfigError> {
    const KEY: &str = "llama.attention.key_length";
    const VALUE: &str = "llama.attention.value_length";
    let key = count_opt(gguf, KEY, limits::HEAD_DIM)?;
    let value = count_opt(gguf, VALUE, limits::HEAD_DIM)?;
    let derived = width.is_multiple_of(n_heads).then(|| width / n_heads);
    let head_dim = key.or(derived).ok_or_else(|| ConfigError::Contradiction {
        key: "llama.attention.head_count",
        found: n_heads.to_string(),
        because: format!("it does not divide llama.embedding_length, which is {width}, and {KEY} is not stated"),
    })?;
    if let Some(value) = value.filter(|value| *value != head_dim) {
        return Err(ConfigError::Contradiction {
            key: VALUE,
            found: value.to_string(),
            because: format!("keys are {head_dim} wide; different widths are not supported"),
        });
    }
    if head_dim % 2 != 0 || head_dim > limits::HEAD_DIM || head_dim * n_heads > limits::WIDTH {
        return Err(ConfigError::Range {
            key: KEY,
            found: head_dim.to_string(),
            allowed: format!("even, at most {}, and at most {} over all heads", limits::HEAD_DIM, limits::WIDTH),
        });
    }
    Ok(head_dim)
}

fn check_vocab(gguf: &Gguf, rows: u64) -> Result<u32, ConfigError> {
    const KEY: &str = "llama.vocab_size";
    let rows = u32::try_from(rows).ok().filter(|rows| (1..=limits::VOCAB).contains(rows)).ok_or_else(|| {
        ConfigError::Range {
            key: KEY,
            found: format!("{rows} (rows of token_embd.weight)"),
            allowed: format!("1 to {}", limits::VOCAB),
        }
    })?;
    match count_opt(gguf, KEY, limits::VOCAB)? {
        Some(stated) if stated != rows => Err(ConfigError::Contradiction {
            key: KEY,
            found: stated.to_string(),
            because: format!("token_embd.weight has {rows} rows"),
        }),
        _ => Ok(rows),
    }
}

/// Keys of architecture "llama" that change the computation in ways this engine does not implement.
fn refuse_unsupported(gguf: &Gguf) -> Result<(), ConfigError> {
    for key in ["llama.expert_count", "llama.attention.sliding_window"] {
        match integer(gguf, key)? {
            None | Some(0) => {}
            Some(n) => return Err(ConfigError::Unsupported { key, found: n.to_string() }),
        }
    }
    for key in ["llama.logit_scale", "llama.residual_scale", "llama.embedding_scale", "llama.attention.scale"] {
        if let Some(scale) = float(gguf, key)? {
            return Err(ConfigError::Unsupported { key, found: scale.to_string() });
        }
    }
    Ok(())
}

fn count(gguf: &Gguf, key: &'static str, max: u32, default: Option<u32>) -> Result<u32, ConfigError> {
    count_opt(gguf, key, max)?.or(default).ok_or(ConfigError::Missing { key })
}

fn count_opt(gguf: &Gguf, key: &'static str, max: u32) -> Result<Option<u32>, ConfigError> {
    match integer(gguf, key)? {
        None => Ok(None),
        Some(n) => match u32::try_from(n) {
            Ok(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(ConfigError::Range { key, found: n.to_string(), allowed: format!("1 to {max}") }),
        },
    }
}

fn rms_eps(gguf: &Gguf) -> Result<f32, ConfigError> {
    const KEY: &str = "llama.attention.layer_norm_rms_epsilon";
    let value = float(gguf, KEY)?.ok_or(ConfigError::Missing { key: KEY })?;
    // NaN is in no range.
    if (1e-12..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(ConfigError::Range { key: KEY, found: value.to_string(), allowed: "1e-12 to 1".to_owned() })
    }
}

fn integer(gguf: &Gguf, key: &'static str) -> Result<Option<u64>, ConfigError> {
    gguf.get::<u64>(key).map_err(|source| ConfigError::Key { key, source })
}

fn float(gguf: &Gguf, key: &'static str) -> Result<Option<f32>, ConfigError> {
    gguf.f32(key).map_err(|source| ConfigError::Key { key, source })
}

fn string(gguf: &Gguf, key: &'static str) -> Result<Option<String>, ConfigError> {
    Ok(gguf.str(key).map_err(|source| ConfigError::Key { key, source })?.map(str::to_owned))
}
