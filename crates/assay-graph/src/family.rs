//! The model families this engine runs and in what their graphs differ.
//!
//! Owns the names (`general.architecture`, which is also the prefix of a file's keys) and the differences that follow
//! from the name alone. Numbers come from metadata (`config.rs`), tensors are taken in `model.rs`, and the graph that
//! reads both is in `forward.rs`. Source of the differences: the models' published configurations and llama.cpp's
//! graphs of the same names.

use assay_num::RopeStyle;

/// An architecture, as named by `general.architecture`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// "llama": Llama 1 to 3.x, Mistral, TinyLlama, SmolLM.
    Llama,
    /// "qwen2": Qwen 2 and 2.5.
    Qwen2,
    /// "qwen3": Qwen 3, dense.
    Qwen3,
    /// "phi3": Phi-3 mini and medium, Phi-4 mini.
    Phi3,
    /// "gemma": Gemma 1.
    Gemma,
    /// "gemma2": Gemma 2.
    Gemma2,
    /// "gemma3": Gemma 3, text.
    Gemma3,
}

impl Family {
    /// Every family.
    pub const ALL: [Family; 7] =
        [Family::Llama, Family::Qwen2, Family::Qwen3, Family::Phi3, Family::Gemma, Family::Gemma2, Family::Gemma3];

    /// Value of `general.architecture` and first part of the family's keys.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Phi3 => "phi3",
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
        }
    }

    /// The family of that name.
    pub fn from_name(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|family| family.name() == name)
    }

    /// All names, for people.
    pub(crate) fn names() -> String {
        Family::ALL.map(|family| format!("\"{}\"", family.name())).join(", ")
    }

    /// Which dimensions of q and k are rotated together. Files of architecture "llama" have the rows of q and k
    /// permuted so that pairs are neighbours; the others keep the order of the published weights.
    pub fn rope_style(self) -> RopeStyle {
        match self {
            Family::Llama => RopeStyle::Interleaved,
            _ => RopeStyle::Halves,
        }
    }

    /// Whether q, k and v have biases.
    pub fn has_qkv_bias(self) -> bool {
        self == Family::Qwen2
    }

    /// Whether each head of q and k is normed before it is rotated.
    pub fn has_qk_norm(self) -> bool {
        matches!(self, Family::Qwen3 | Family::Gemma3)
    }

    /// Whether q, k and v are one tensor, and gate and up another.
    pub fn is_fused(self) -> bool {
        self == Family::Phi3
    }

    /// Whether embeddings are multiplied by the root of their width, and gates pass through gelu instead of silu.
    pub fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma | Family::Gemma2 | Family::Gemma3)
    }

    /// Whether what a block adds to the residual stream is normed first; these also have layers with a sliding window.
    pub fn has_post_norms(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }
}
