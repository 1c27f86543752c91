//! The hyper-parameters of a model, read from GGUF metadata and checked against each other.
//!
//! Owns the meaning of the keys that begin with the architecture's name (`llama.*`, `qwen2.*`, ..). Does not look at
//! tensor data; tensor shapes are checked against this config where the tensors are taken (`model.rs`), the rotation
//! table comes from `assay_gguf::rope_tables`. Key names and defaults: the GGUF specification and llama.cpp's
//! `llama-hparams`. A key that would change the arithmetic and is not implemented is an error, never ignored.

use assay_gguf::{Gguf, GgufError, shown};
use assay_num::Scoring;

use crate::family::Family;

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

const ATTENTION_SOFTCAP: &str = "attn_logit_softcapping";
const LOGIT_SOFTCAP: &str = "final_logit_softcapping";

/// Hyper-parameters of one model. All counts are at least 1 and within [`limits`].
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture.
    pub family: Family,
    /// Transformer blocks (`*.block_count`).
    pub n_layers: usize,
    /// Residual width (`*.embedding_length`).
    pub width: usize,
    /// Feed-forward width (`*.feed_forward_length`).
    pub feed_forward: usize,
    /// Query heads (`*.attention.head_count`).
    pub n_heads: usize,
    /// Key and value heads (`*.attention.head_count_kv`); divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head, even.
    pub head_dim: usize,
    /// Leading dimensions of each head that are rotated, even, at most `head_dim`.
    pub rope_dims: usize,
    /// RMSNorm epsilon, finite, positive.
    pub rms_eps: f32,
    /// Positions the model was made for (`*.context_length`). If a file of a family other than Gemma states a sliding
    /// window (`*.attention.sliding_window`), at most that many: as long as it covers everything, it changes nothing.
    pub context: usize,
    /// Layers that see only the last positions; Gemma 2 and 3.
    pub window: Option<Window>,
    /// Factor of attention scores.
    pub attention_scale: f32,
    /// Soft cap of attention scores (`*.attn_logit_softcapping`), finite, positive; Gemma 2.
    pub attention_softcap: Option<f32>,
    /// Soft cap of logits (`*.final_logit_softcapping`), finite, positive; Gemma 2 and 3.
    pub logit_softcap: Option<f32>,
    /// Vocabulary entries, from `*.vocab_size` if stated; always equal to the rows of `token_embd.weight`.
    pub vocab: usize,
}

/// Which layers see only the last positions, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Positions they see, their own included (`*.attention.sliding_window`).
    pub length: usize,
    /// The last of each so many layers sees all positions (`*.attention.sliding_window_pattern`).
    pub pattern: usize,
}

/// Why a file's metadata does not describe a model this engine runs.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Another architecture.
    #[error(
        "general.architecture is \"{found}\"; this engine writes text with {} and embeds it with \"bert\"",
        Family::names()
    )]
    Architecture {
        /// The stated architecture.
        found: String,
    },
    /// A key without which the model cannot be run.
    #[error("metadata key {key} is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// A key of the wrong type, or unreadable.
    #[error("metadata key {key}: {source}")]
    Key {
        /// The key.
        key: String,
        /// What the parser said.
        source: GgufError,
    },
    /// A value outside its range.
    #[error("metadata key {key} is {found}, allowed is {allowed}")]
    Range {
        /// The key.
        key: String,
        /// The value in the file.
        found: String,
        /// The accepted range, for people.
        allowed: String,
    },
    /// Two values that cannot both hold.
    #[error("metadata key {key} is {found}, but {because}")]
    Contradiction {
        /// The key.
        key: String,
        /// The value in the file.
        found: String,
        /// What it contradicts.
        because: String,
    },
    /// A feature the file asks for and the engine does not have.
    #[error("metadata key {key} is \"{found}\": not supported")]
    Unsupported {
        /// The key.
        key: String,
        /// The value in the file.
        found: String,
    },
}

impl ModelConfig {
    /// Width of the query rows and of the attention output: `n_heads * head_dim`.
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of the key rows and of the value rows: `n_kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Whether layer `layer` sees only the positions of the window.
    pub fn is_local(&self, layer: usize) -> bool {
        self.window.is_some_and(|window| layer % window.pattern < window.pattern - 1)
    }

    /// How the queries of layer `layer` see keys.
    pub fn scoring(&self, layer: usize) -> Scoring {
        let window = self.window.filter(|_| self.is_local(layer)).map(|window| window.length);
        Scoring { scale: self.attention_scale, softcap: self.attention_softcap, window }
    }

    /// Reads and checks the config. `vocab` is the row count of `token_embd.weight`.
    pub fn from_gguf(gguf: &Gguf, vocab: u64) -> Result<ModelConfig, ConfigError> {
        const ARCHITECTURE: &str = "general.architecture";
        let architecture = metadata_string(gguf, ARCHITECTURE)?
            .ok_or_else(|| ConfigError::Missing { key: ARCHITECTURE.to_owned() })?;
        let Some(family) = Family::from_name(&architecture) else {
            return Err(ConfigError::Architecture { found: shown(&architecture) });
        };
        let keys = Keys { gguf, family };
        keys.refuse_unsupported()?;

        let n_heads = keys.count("attention.head_count", limits::N_HEADS, None)?;
        let n_kv_heads = keys.count("attention.head_count_kv", limits::N_HEADS, Some(n_heads))?;
        if n_heads % n_kv_heads != 0 {
            return Err(ConfigError::Contradiction {
                key: keys.name("attention.head_count_kv"),
                found: n_kv_heads.to_string(),
                because: format!("it must divide {}, which is {n_heads}", keys.name("attention.head_count")),
            });
        }
        let width = keys.count("embedding_length", limits::WIDTH, None)?;
        let head_dim = keys.head_dim(width, n_heads)?;
        let n_layers = keys.count("block_count", limits::N_LAYERS, None)?;
        let (attention_softcap, logit_softcap) = keys.softcaps()?;
        Ok(ModelConfig {
            family,
            n_layers: n_layers as usize,
            width: width as usize,
            feed_forward: keys.count("feed_forward_length", limits::FEED_FORWARD, None)? as usize,
            n_heads: n_heads as usize,
            n_kv_heads: n_kv_heads as usize,
            head_dim: head_dim as usize,
            rope_dims: keys.rope_dims(head_dim)? as usize,
            rms_eps: keys.rms_eps()?,
            context: keys.context()? as usize,
            window: keys.window()?,
            attention_scale: attention_scale(family, n_layers, head_dim, width / n_heads),
            attention_softcap,
            logit_softcap,
            vocab: keys.vocab(vocab)? as usize,
        })
    }
}

/// One over the root of the head's width. The 27 B models of Gemma 2 and 3 take that of the residual stream's share
/// instead and say so in no key: they are known by their number of layers.
fn attention_scale(family: Family, n_layers: u32, head_dim: u32, share: u32) -> f32 {
    let by_share = matches!((family, n_layers), (Family::Gemma2, 46) | (Family::Gemma3, 62));
    // 1/sqrt is two IEEE operations, the same everywhere.
    1.0 / (if by_share { share } else { head_dim } as f32).sqrt()
}

/// The keys of one file, read by their names without the family's prefix.
struct Keys<'a> {
    gguf: &'a Gguf,
    family: Family,
}

impl Keys<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.family.name())
    }

    /// The width of one head: stated by key_length and value_length, or `width / n_heads`.
    fn head_dim(&self, width: u32, n_heads: u32) -> Result<u32, ConfigError> {
        const KEY: &str = "attention.key_length";
        const VALUE: &str = "attention.value_length";
        let key = self.count_opt(KEY, limits::HEAD_DIM)?;
        let value = self.count_opt(VALUE, limits::HEAD_DIM)?;
        let derived = width.is_multiple_of(n_heads).then(|| width / n_heads);
        let head_dim = key.or(derived).ok_or_else(|| ConfigError::Contradiction {
            key: self.name("attention.head_count"),
            found: n_heads.to_string(),
            because: format!(
                "it does not divide {}, which is {width}, and {} is not stated",
                self.name("embedding_length"),
                self.name(KEY)
            ),
        })?;
        if let Some(value) = value.filter(|value| *value != head_dim) {
            return Err(ConfigError::Contradiction {
                key: self.name(VALUE),
                found: value.to_string(),
                because: format!("keys are {head_dim} wide; different widths are not supported"),
            });
        }
        if head_dim % 2 != 0 || head_dim > limits::HEAD_DIM || head_dim * n_heads > limits::WIDTH {
            return Err(ConfigError::Range {
                key: self.name(KEY),
                found: head_dim.to_string(),
                allowed: format!("even, at most {}, and at most {} over all heads", limits::HEAD_DIM, limits::WIDTH),
            });
        }
        Ok(head_dim)
    }

    fn rope_dims(&self, head_dim: u32) -> Result<u32, ConfigError> {
        const KEY: &str = "rope.dimension_count";
        let rope_dims = self.count(KEY, limits::HEAD_DIM, Some(head_dim))?;
        if rope_dims > head_dim || rope_dims % 2 != 0 {
            return Err(ConfigError::Contradiction {
                key: self.name(KEY),
                found: rope_dims.to_string(),
                because: format!("it must be even and at most the head width, {head_dim}"),
            });
        }
        Ok(rope_dims)
    }

    /// Positions: those the model was made for, as far as no sliding window would hide one.
    fn context(&self) -> Result<u32, ConfigError> {
        let context = self.count("context_length", limits::CONTEXT, None)?;
        if self.family.has_post_norms() {
            return Ok(context);
        }
        // Files state 0, or a window at or above the context, where there is none.
        match self.integer("attention.sliding_window")? {
            None | Some(0) => Ok(context),
            Some(window) => Ok(u32::try_from(window).map_or(context, |window| window.min(context))),
        }
    }

    /// The window of Gemma's local layers, and which these are. Defaults are those of the published models.
    fn window(&self) -> Result<Option<Window>, ConfigError> {
        let (default, pattern) = match self.family {
            Family::Gemma2 => (Some(4096), 2),
            Family::Gemma3 => (None, 6),
            _ => return Ok(None),
        };
        if self.integer("attention.sliding_window")? == Some(0) {
            return Ok(None);
        }
        let length = self.count_opt("attention.sliding_window", limits::CONTEXT)?.or(default);
        let pattern = self.count("attention.sliding_window_pattern", limits::N_LAYERS, Some(pattern))? as usize;
        Ok(length.map(|length| Window { length: length as usize, pattern }))
    }

    /// Soft caps of attention scores and of logits.
    fn softcaps(&self) -> Result<(Option<f32>, Option<f32>), ConfigError> {
        let cap = |name, default| match self.float(name)?.or(default) {
            Some(0.0) | None => Ok(None),
            // NaN is in no range.
            Some(cap) if (1e-3..=1e6).contains(&cap) => Ok(Some(cap)),
            Some(cap) => Err(ConfigError::Range {
                key: self.name(name),
                found: cap.to_string(),
                allowed: "0, or 0.001 to 1000000".to_owned(),
            }),
        };
        match self.family {
            Family::Gemma2 => Ok((cap(ATTENTION_SOFTCAP, Some(50.0))?, cap(LOGIT_SOFTCAP, Some(30.0))?)),
            Family::Gemma3 => Ok((None, cap(LOGIT_SOFTCAP, None)?)),
            _ => Ok((None, None)),
        }
    }

    fn vocab(&self, rows: u64) -> Result<u32, ConfigError> {
        const KEY: &str = "vocab_size";
        let rows = u32::try_from(rows).ok().filter(|rows| (1..=limits::VOCAB).contains(rows)).ok_or_else(|| {
            ConfigError::Range {
                key: self.name(KEY),
                found: format!("{rows} (rows of token_embd.weight)"),
                allowed: format!("1 to {}", limits::VOCAB),
            }
        })?;
        match self.count_opt(KEY, limits::VOCAB)? {
            Some(stated) if stated != rows => Err(ConfigError::Contradiction {
                key: self.name(KEY),
                found: stated.to_string(),
                because: format!("token_embd.weight has {rows} rows"),
            }),
            _ => Ok(rows),
        }
    }

    /// Keys that change the computation in ways this engine does not implement.
    fn refuse_unsupported(&self) -> Result<(), ConfigError> {
        match self.integer("expert_count")? {
            None | Some(0) => {}
            Some(n) => return Err(ConfigError::Unsupported { key: self.name("expert_count"), found: n.to_string() }),
        }
        // Second: the value that changes nothing, if there is one.
        let scales = [
            ("logit_scale", None),
            ("residual_scale", None),
            ("embedding_scale", None),
            ("attention.scale", None),
            (ATTENTION_SOFTCAP, Some(0.0)),
            (LOGIT_SOFTCAP, Some(0.0)),
            ("rope.freq_base_swa", None),
            ("rope.scaling.attn_factor", Some(1.0)),
        ];
        let supported: &[&str] = match self.family {
            Family::Gemma2 => &[ATTENTION_SOFTCAP, LOGIT_SOFTCAP],
            Family::Gemma3 => &[LOGIT_SOFTCAP, "rope.freq_base_swa"],
            _ => &[],
        };
        for (name, neutral) in scales.into_iter().filter(|(name, _)| !supported.contains(name)) {
            if let Some(scale) = self.float(name)?.filter(|scale| Some(*scale) != neutral) {
                return Err(ConfigError::Unsupported { key: self.name(name), found: scale.to_string() });
            }
        }
        Ok(())
    }

    fn count(&self, name: &str, max: u32, default: Option<u32>) -> Result<u32, ConfigError> {
        self.count_opt(name, max)?.or(default).ok_or_else(|| ConfigError::Missing { key: self.name(name) })
    }

    fn count_opt(&self, name: &str, max: u32) -> Result<Option<u32>, ConfigError> {
        match self.integer(name)? {
            None => Ok(None),
            Some(n) => match u32::try_from(n) {
                Ok(n) if (1..=max).contains(&n) => Ok(Some(n)),
                _ => Err(ConfigError::Range {
                    key: self.name(name),
                    found: n.to_string(),
                    allowed: format!("1 to {max}"),
                }),
            },
        }
    }

    fn rms_eps(&self) -> Result<f32, ConfigError> {
        const KEY: &str = "attention.layer_norm_rms_epsilon";
        let value = self.float(KEY)?.ok_or_else(|| ConfigError::Missing { key: self.name(KEY) })?;
        // NaN is in no range.
        if (1e-12..=1.0).contains(&value) {
            Ok(value)
        } else {
            let key = self.name(KEY);
            Err(ConfigError::Range { key, found: value.to_string(), allowed: "1e-12 to 1".to_owned() })
        }
    }

    fn integer(&self, name: &str) -> Result<Option<u64>, ConfigError> {
        let key = self.name(name);
        self.gguf.get::<u64>(&key).map_err(|source| ConfigError::Key { key, source })
    }

    fn float(&self, name: &str) -> Result<Option<f32>, ConfigError> {
        let key = self.name(name);
        self.gguf.f32(&key).map_err(|source| ConfigError::Key { key, source })
    }
}

/// The text of a key, if the file has it.
///
/// # Errors
/// It is no text.
pub fn metadata_string(gguf: &Gguf, key: &str) -> Result<Option<String>, ConfigError> {
    let value = gguf.str(key).map_err(|source| ConfigError::Key { key: key.to_owned(), source })?;
    Ok(value.map(str::to_owned))
}
