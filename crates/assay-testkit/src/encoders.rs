//! Generated encoders of the BERT family: random weights, a working WordPiece tokenizer, the same bytes for the same
//! parameters.

use crate::models::{Format, mix};
use assay_gguf::{GgmlType, StrArray, quant::encode, write::GgufWriter};
use std::io::Write;

/// Parameters of an encoder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TinyBert {
    /// Transformer blocks.
    pub layers: u32,
    /// Width of hidden states; a multiple of `heads`, and of the format's block.
    pub width: u32,
    /// Attention heads.
    pub heads: u32,
    /// Width of the feed-forward layer; a multiple of the format's block.
    pub ffn: u32,
    /// Rows of the position table.
    pub positions: u32,
    /// `bert.pooling_type`: 1 is the mean, 2 the first token.
    pub pooling: u32,
    /// Format of the matrices.
    pub format: Format,
    /// Weights are a function of this.
    pub seed: u64,
}

impl Default for TinyBert {
    fn default() -> Self {
        Self { layers: 2, width: 64, heads: 4, ffn: 128, positions: 640, pooling: 1, format: Format::F32, seed: 1 }
    }
}

/// Special tokens, ids 0 to 4.
pub const SPECIALS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Words of the vocabulary, besides each lower-case letter and digit at the start of a word and inside it.
pub const WORDS: [&str; 8] = ["the", "cat", "dog", "and", "hat", "house", ".", ","];

/// The vocabulary as published files write it: `##` before what continues a word.
#[must_use]
pub fn bert_vocab() -> Vec<String> {
    let letters = || ('a'..='z').chain('0'..='9');
    let starts = letters().map(String::from);
    let inside = letters().map(|c| format!("##{c}"));
    SPECIALS.iter().chain(&WORDS).map(|&word| word.to_owned()).chain(starts).chain(inside).collect()
}

/// A complete GGUF file in memory.
///
/// # Panics
/// If the parameters contradict each other.
#[must_use]
pub fn tiny_bert(model: TinyBert) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    let (width, ffn) = (u64::from(model.width), u64::from(model.ffn));
    let vocab = bert_vocab();
    put_metadata(&mut writer, &model, &vocab);
    let mut put = |name: &str, dims: &[u64]| {
        // As converters do it: vectors and the tables of positions and types stay exact.
        let exact = dims.len() == 1 || name.starts_with("position") || name.starts_with("token_types");
        let ty = if exact { GgmlType::F32 } else { model.format.ggml() };
        writer.tensor(name, dims, ty).expect("widths are multiples of the format's block");
    };
    put("token_embd.weight", &[width, vocab.len() as u64]);
    put("position_embd.weight", &[width, u64::from(model.positions)]);
    put("token_types.weight", &[width, 2]);
    put("token_embd_norm.weight", &[width]);
    put("token_embd_norm.bias", &[width]);
    for layer in 0..model.layers {
        let products = [("attn_q", width, width), ("attn_k", width, width), ("attn_v", width, width)];
        let products = products.into_iter().chain([
            ("attn_output", width, width),
            ("ffn_up", width, ffn),
            ("ffn_down", ffn, width),
        ]);
        for (part, k, rows) in products {
            put(&format!("blk.{layer}.{part}.weight"), &[k, rows]);
            put(&format!("blk.{layer}.{part}.bias"), &[rows]);
        }
        for norm in ["attn_output_norm", "layer_output_norm"] {
            put(&format!("blk.{layer}.{norm}.weight"), &[width]);
            put(&format!("blk.{layer}.{norm}.bias"), &[width]);
        }
    }
    let mut out = Vec::new();
    let write = writer.write(&mut out, |tensor, sink| {
        let mut encoded = Vec::new();
        assert!(
            encode(tensor.ty, &values(model.seed, &tensor.name, &tensor.dims), &mut encoded),
            "shapes were checked"
        );
        sink.write_all(&encoded)
    });
    write.expect("writing to memory succeeds");
    out
}

fn put_metadata(writer: &mut GgufWriter, model: &TinyBert, vocab: &[String]) {
    let texts = vocab.iter().enumerate().map(|(id, text)| match text.strip_prefix("##") {
        _ if id < SPECIALS.len() => text.clone(),
        Some(rest) => rest.to_owned(),
        None => format!("\u{2581}{text}"),
    });
    // 3 is control, 1 normal.
    let types: Vec<i32> = (0..vocab.len()).map(|id| if id < SPECIALS.len() { 3 } else { 1 }).collect();
    writer
        .set("general.architecture", "bert")
        .set("general.name", "tiny-bert")
        .set("bert.block_count", model.layers)
        .set("bert.context_length", model.positions)
        .set("bert.embedding_length", model.width)
        .set("bert.feed_forward_length", model.ffn)
        .set("bert.attention.head_count", model.heads)
        .set("bert.attention.layer_norm_epsilon", 1e-12_f32)
        .set("bert.attention.causal", false)
        .set("bert.pooling_type", model.pooling)
        .set("tokenizer.ggml.model", "bert")
        .set("tokenizer.ggml.tokens", texts.collect::<StrArray>())
        .set("tokenizer.ggml.token_type", types)
        .set("tokenizer.ggml.unknown_token_id", 1_u32)
        .set("tokenizer.ggml.cls_token_id", 2_u32)
        .set("tokenizer.ggml.seperator_token_id", 3_u32);
}

/// Norms near 1; biases and tables of small values; matrices uniform with variance `3 / k`, so that attention prefers some
/// keys to others.
fn values(seed: u64, name: &str, dims: &[u64]) -> Vec<f32> {
    let mut state = name.bytes().fold(mix(seed), |h, b| mix(h ^ u64::from(b)));
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // 24 bits: exact in f32, -1 to 1.
        (mix(state) >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    let count = dims.iter().product::<u64>();
    let scale = (9.0 / dims[0] as f32).sqrt();
    let value = |uniform: f32| match name {
        _ if name.ends_with(".bias") => 0.3 * uniform,
        _ if dims.len() == 1 => 1.0 + 0.2 * uniform,
        _ if name.starts_with("blk.") => scale * uniform,
        _ => uniform,
    };
    (0..count).map(|_| value(uniform())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_gguf::{Gguf, Tokenizer};

    #[test]
    fn generated_encoders_parse_and_tokenize() {
        let bytes = tiny_bert(TinyBert::default());
        let gguf = Gguf::parse(&bytes).unwrap();
        assert_eq!(gguf.tensors().len(), 5 + 2 * 16);
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let ids = tokenizer.encode("The cat, x1!", true, false);
        let texts: Vec<&str> = ids.iter().map(|&id| tokenizer.token_text(id)).collect();
        assert_eq!(texts, ["[CLS]", "\u{2581}the", "\u{2581}cat", "\u{2581},", "\u{2581}x", "1", "[UNK]", "[SEP]"]);
        assert_eq!(bytes, tiny_bert(TinyBert::default()));
        assert_ne!(bytes, tiny_bert(TinyBert { seed: 2, ..TinyBert::default() }));
    }
}
