//! Generated models: random weights, a working tokenizer and chat template, the same bytes for the same parameters.
//! They answer nonsense; what they are for is shape, speed and reproducibility.

use assay_gguf::{
    GgmlType, StrArray,
    quant::encode,
    write::{GgufWriter, TensorSpec, WriteError},
};
use std::io::Write;

/// Format of the matrices; norms are always F32.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "ggml's names")]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    pub(crate) fn ggml(self) -> GgmlType {
        match self {
            Self::F32 => GgmlType::F32,
            Self::F16 => GgmlType::F16,
            Self::BF16 => GgmlType::BF16,
            Self::Q8_0 => GgmlType::Q8_0,
            Self::Q4_0 => GgmlType::Q4_0,
            Self::Q4K => GgmlType::Q4_K,
            Self::Q5K => GgmlType::Q5_K,
            Self::Q6K => GgmlType::Q6_K,
        }
    }
}

/// The graph a file asks for, by its architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    /// "llama", with `rope_freqs.weight` as Llama 3.1 and later have it if `scaled`.
    Llama {
        /// Whether the frequencies of the rotation are scaled.
        scaled: bool,
    },
    /// "qwen2": biases on q, k and v.
    Qwen2,
    /// "qwen3": normed heads, 16 wider than the residual stream's share.
    Qwen3,
    /// "phi3": q, k and v in one tensor, gate and up in another.
    Phi3,
    /// "gemma": gelu, scaled embeddings, heads 16 wider than the residual stream's share.
    Gemma,
    /// "gemma2": besides, norms after each part, soft caps, a window of 24 in every second layer.
    Gemma2,
    /// "gemma3": besides Gemma, norms after each part, normed heads, a window of 24 in every second layer, and another
    /// rotation there.
    Gemma3,
}

impl Family {
    /// One of each.
    pub const ALL: [Family; 8] = [
        Family::Llama { scaled: false },
        Family::Llama { scaled: true },
        Family::Qwen2,
        Family::Qwen3,
        Family::Phi3,
        Family::Gemma,
        Family::Gemma2,
        Family::Gemma3,
    ];

    /// `general.architecture`.
    #[must_use]
    pub fn architecture(self) -> &'static str {
        match self {
            Family::Llama { .. } => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Phi3 => "phi3",
            Family::Gemma => "gemma",
            Family::Gemma2 => "gemma2",
            Family::Gemma3 => "gemma3",
        }
    }

    fn is_gemma(self) -> bool {
        matches!(self, Family::Gemma | Family::Gemma2 | Family::Gemma3)
    }

    fn has_wide_heads(self) -> bool {
        self == Family::Qwen3 || self.is_gemma()
    }

    fn has_post_norms(self) -> bool {
        matches!(self, Family::Gemma2 | Family::Gemma3)
    }

    /// A name of its own: the architecture, or "llama-scaled".
    #[must_use]
    pub fn name(self) -> &'static str {
        if self == (Family::Llama { scaled: true }) { "llama-scaled" } else { self.architecture() }
    }
}

/// Parameters of a model, by default of the Llama architecture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TinyLlama {
    /// What the file says it is.
    pub family: Family,
    /// Transformer blocks.
    pub layers: u32,
    /// Width of the residual stream; a multiple of `heads`, and of 32 for Q8_0 and Q4_0, of 256 for the K formats.
    pub d_model: u32,
    /// Query heads.
    pub heads: u32,
    /// Key and value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of the feed-forward layer; a multiple of 32 for Q8_0, of 256 for the K formats.
    pub ffn: u32,
    /// Tokens; at least [`VOCAB_MIN`].
    pub vocab: u32,
    /// Format of the matrices.
    pub format: Format,
    /// Weights are a function of this.
    pub seed: u64,
    /// Positions.
    pub context: u32,
}

impl TinyLlama {
    /// Width of one head.
    fn head_dim(&self) -> u32 {
        self.d_model / self.heads + if self.family.has_wide_heads() { 16 } else { 0 }
    }
}

impl Default for TinyLlama {
    fn default() -> Self {
        Self {
            family: Family::Llama { scaled: false },
            layers: 2,
            d_model: 64,
            heads: 4,
            kv_heads: 2,
            ffn: 128,
            vocab: 384,
            format: Format::F32,
            seed: 1,
            context: 512,
        }
    }
}

/// Special tokens, ids 0 to 4.
pub const SPECIALS: [&str; 5] = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];
/// Id of the begin-of-sequence token.
pub const BOS: u32 = 0;
/// Id of the end-of-sequence token.
pub const EOS: u32 = 1;
/// Special tokens and one token per byte.
pub const VOCAB_MIN: u32 = SPECIALS.len() as u32 + 256;

/// Turns are `<|user|>text<|end|>`; the generation prompt is `<|assistant|>`.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}\
    {% if message['role'] not in ['system', 'user', 'assistant'] %}\
    {{ raise_exception('unknown role ' + message['role']) }}{% endif %}\
    {{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

/// A complete GGUF file in memory.
///
/// # Panics
/// If the parameters contradict each other.
#[must_use]
pub fn tiny_llama(model: TinyLlama) -> Vec<u8> {
    let mut out = Vec::new();
    write_llama(model, &mut out).expect("writing to memory succeeds for consistent parameters");
    out
}

/// Writes a complete GGUF file, in memory of one matrix row.
///
/// # Errors
/// Those of `out`, and shapes that the format does not allow.
///
/// # Panics
/// If the vocabulary is too small or heads do not divide.
pub fn write_llama<W: Write>(model: TinyLlama, out: &mut W) -> Result<(), WriteError> {
    assert!(model.vocab >= VOCAB_MIN, "{} tokens are fewer than {VOCAB_MIN}", model.vocab);
    assert_eq!((model.d_model % model.heads, model.heads % model.kv_heads), (0, 0), "heads must divide");
    let mut writer = GgufWriter::new();
    put_metadata(&mut writer, &model);
    put_tokenizer(&mut writer, model.vocab);
    put_tensors(&mut writer, &model)?;
    writer.write(out, |tensor, sink| {
        let row_len = tensor.dims[0];
        let mut values = vec![0.0_f32; row_len as usize];
        let mut encoded = Vec::new();
        for row in 0..tensor.count() / row_len {
            fill_row(&model, tensor, row, &mut values);
            encoded.clear();
            assert!(encode(tensor.ty, &values, &mut encoded), "shapes were checked when the tensor was added");
            sink.write_all(&encoded)?;
        }
        Ok(())
    })
}

fn put_metadata(writer: &mut GgufWriter, model: &TinyLlama) {
    let architecture = model.family.architecture();
    let key = |name: &str| format!("{architecture}.{name}");
    writer
        .set("general.architecture", architecture)
        // llama.cpp changes the vocabulary of models whose name says Phi-3.
        .set("general.name", "tiny-model")
        .set("general.license", "Apache-2.0")
        .set("general.alignment", 32_u32)
        .set(&key("block_count"), model.layers)
        .set(&key("context_length"), model.context)
        .set(&key("embedding_length"), model.d_model)
        .set(&key("feed_forward_length"), model.ffn)
        .set(&key("vocab_size"), model.vocab)
        .set(&key("attention.head_count"), model.heads)
        .set(&key("attention.head_count_kv"), model.kv_heads)
        .set(&key("attention.layer_norm_rms_epsilon"), 1e-5_f32)
        .set(&key("rope.freq_base"), 10_000.0_f32);
    // Files of families state the width of heads or that of the rotation, or leave both to the reader.
    if model.family.has_wide_heads() {
        writer.set(&key("attention.key_length"), model.head_dim());
        writer.set(&key("attention.value_length"), model.head_dim());
    } else if model.family != Family::Qwen2 {
        writer.set(&key("rope.dimension_count"), model.head_dim());
    }
    if model.family.has_post_norms() {
        writer.set(&key("attention.sliding_window"), 24_u32);
    }
    match model.family {
        // Low enough to matter at the size of these models' scores and logits.
        Family::Gemma2 => {
            writer.set(&key("attn_logit_softcapping"), 2.0_f32).set(&key("final_logit_softcapping"), 0.3_f32);
        }
        Family::Gemma3 => {
            writer
                .set(&key("attention.sliding_window_pattern"), 2_u32)
                .set(&key("rope.freq_base_swa"), 1_000.0_f32)
                .set(&key("rope.scaling.type"), "linear")
                .set(&key("rope.scaling.factor"), 8.0_f32);
        }
        _ => {}
    }
}

fn put_tensors(writer: &mut GgufWriter, model: &TinyLlama) -> Result<(), WriteError> {
    let (d, vocab) = (u64::from(model.d_model), u64::from(model.vocab));
    let ty = model.format.ggml();
    writer.tensor("token_embd.weight", &[d, vocab], ty)?;
    if model.family == (Family::Llama { scaled: true }) {
        writer.tensor("rope_freqs.weight", &[u64::from(model.head_dim() / 2)], GgmlType::F32)?;
    }
    for layer in 0..model.layers {
        put_layer(writer, model, layer)?;
    }
    writer.tensor("output_norm.weight", &[d], GgmlType::F32)?;
    // Gemma ties the two.
    if !model.family.is_gemma() {
        writer.tensor("output.weight", &[d, vocab], ty)?;
    }
    Ok(())
}

fn put_layer(writer: &mut GgufWriter, model: &TinyLlama, layer: u32) -> Result<(), WriteError> {
    let (d, ffn, head_dim) = (u64::from(model.d_model), u64::from(model.ffn), u64::from(model.head_dim()));
    let (q, kv) = (head_dim * u64::from(model.heads), head_dim * u64::from(model.kv_heads));
    let ty = model.format.ggml();
    let name = |part: &str| format!("blk.{layer}.{part}.weight");
    writer.tensor(&name("attn_norm"), &[d], GgmlType::F32)?;
    if model.family == Family::Phi3 {
        writer.tensor(&name("attn_qkv"), &[d, q + 2 * kv], ty)?;
    } else {
        for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
            writer.tensor(&name(part), &[d, rows], ty)?;
            if model.family == Family::Qwen2 {
                writer.tensor(&format!("blk.{layer}.{part}.bias"), &[rows], GgmlType::F32)?;
            }
        }
    }
    if matches!(model.family, Family::Qwen3 | Family::Gemma3) {
        writer.tensor(&name("attn_q_norm"), &[head_dim], GgmlType::F32)?;
        writer.tensor(&name("attn_k_norm"), &[head_dim], GgmlType::F32)?;
    }
    writer.tensor(&name("attn_output"), &[q, d], ty)?;
    if model.family.has_post_norms() {
        writer.tensor(&name("post_attention_norm"), &[d], GgmlType::F32)?;
        writer.tensor(&name("post_ffw_norm"), &[d], GgmlType::F32)?;
    }
    writer.tensor(&name("ffn_norm"), &[d], GgmlType::F32)?;
    if model.family == Family::Phi3 {
        writer.tensor(&name("ffn_up"), &[d, 2 * ffn], ty)?;
    } else {
        writer.tensor(&name("ffn_gate"), &[d, ffn], ty)?;
        writer.tensor(&name("ffn_up"), &[d, ffn], ty)?;
    }
    writer.tensor(&name("ffn_down"), &[ffn, d], ty)?;
    Ok(())
}

fn put_tokenizer(writer: &mut GgufWriter, vocab: u32) {
    let bytes = (0..=u8::MAX).map(|byte| byte_text(byte).to_string());
    let merges: Vec<(String, String)> = merges().take((vocab - VOCAB_MIN) as usize).collect();
    assert_eq!(merges.len() as u32, vocab - VOCAB_MIN, "the generator has not that many merges");
    let specials = SPECIALS.iter().map(|&text| text.to_owned());
    let merged = merges.iter().map(|(left, right)| format!("{left}{right}"));
    let tokens: StrArray = specials.chain(bytes).chain(merged).collect();
    // 3 is control, 1 normal.
    let types: Vec<i32> = (0..vocab).map(|id| if id < SPECIALS.len() as u32 { 3 } else { 1 }).collect();
    let lines: StrArray = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
    writer
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "gpt-2")
        .set("tokenizer.ggml.tokens", tokens)
        .set("tokenizer.ggml.token_type", types)
        .set("tokenizer.ggml.merges", lines)
        .set("tokenizer.ggml.bos_token_id", BOS)
        .set("tokenizer.ggml.eos_token_id", EOS)
        .set("tokenizer.ggml.add_bos_token", true)
        .set("tokenizer.chat_template", CHAT_TEMPLATE);
}

/// The character that GPT-2's vocabulary writes `byte` as: itself if it is printable, else the next one from U+0100.
fn byte_text(byte: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count() as u32;
    char::from_u32(0x100 + before).expect("0x100 to 0x143 are characters")
}

/// Pairs to merge, every part made by an earlier merge: letter pairs (common ones first), space and pair, pair and
/// pair.
fn merges() -> impl Iterator<Item = (String, String)> {
    const COMMON: [&str; 16] =
        ["th", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of", "ed"];
    let pairs = || {
        let all = ('a'..='z').flat_map(|l| ('a'..='z').map(move |r| format!("{l}{r}")));
        COMMON.iter().map(|&p| p.to_owned()).chain(all.filter(|p| !COMMON.contains(&p.as_str())))
    };
    let letters = pairs().map(|p| (p[..1].to_owned(), p[1..].to_owned()));
    let spaced = pairs().map(|p| ("\u{120}".to_owned(), p));
    let fours = pairs().flat_map(move |l| pairs().map(move |r| (l.clone(), r)));
    letters.chain(spaced).chain(fours)
}

/// Row `row` of `tensor`: norms near 1; biases small; frequency factors 1 to 8, rising; embeddings uniform; matrices uniform with variance `1/k`, so that activations
/// keep their size.
fn fill_row(model: &TinyLlama, tensor: &TensorSpec, row: u64, values: &mut [f32]) {
    let mut state = tensor.name.bytes().fold(mix(model.seed), |h, b| mix(h ^ u64::from(b))) ^ mix(row);
    let scale = match tensor.name.as_str() {
        // Gemma multiplies embeddings by 8 and more and ties them to the output: small ones, or it repeats its input.
        "token_embd.weight" if model.family.is_gemma() => 0.03,
        "token_embd.weight" => 1.0,
        _ => (3.0 / values.len() as f32).sqrt(),
    };
    let len = values.len() as f32;
    for (i, value) in values.iter_mut().enumerate() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        // 24 bits: exact in f32, -1 to 1.
        let uniform = (mix(state) >> 40) as f32 / (1_u32 << 23) as f32 - 1.0;
        *value = if tensor.name == "rope_freqs.weight" {
            1.0 + 7.0 * i as f32 / len
        } else if tensor.name.ends_with(".bias") {
            0.5 * uniform
        } else if tensor.dims.len() == 1 {
            1.0 + 0.1 * uniform
        } else {
            scale * uniform
        };
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_gguf::{Gguf, Tokenizer};

    #[test]
    fn generated_files_parse_and_their_tokenizer_round_trips() {
        use Format::{BF16, F16, F32, Q4_0, Q4K, Q5K, Q6K, Q8_0};
        let small = [F32, F16, BF16, Q8_0, Q4_0].map(|format| (format, 64));
        for (format, d_model) in small.into_iter().chain([Q4K, Q5K, Q6K].map(|format| (format, 256))) {
            let model = TinyLlama { format, d_model, ffn: 256, vocab: 2_000, ..TinyLlama::default() };
            let bytes = tiny_llama(model);
            let gguf = Gguf::parse(&bytes).unwrap();
            assert_eq!(gguf.context_length().unwrap(), 512);
            assert_eq!(gguf.tensors().len(), 3 + 9 * 2);
            let last = gguf.tensors().last().unwrap();
            assert_eq!(
                (last.name.as_str(), last.ty, &last.dims[..]),
                ("output.weight", format.ggml(), &[d_model.into(), 2_000][..])
            );
            assert_eq!(gguf.tensor_bytes(&bytes, last).unwrap().len() as u64, last.len);
            let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
            let text = "The cat and the hat, naïve 😀\n\n  42";
            let ids = tokenizer.encode(text, true, false);
            assert_eq!(ids[0], BOS);
            let printed: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
            assert_eq!(String::from_utf8(printed).unwrap(), text);
            assert!(ids.len() < text.len(), "no merge applied");
            assert!(tokenizer.is_eog(EOS));
        }
    }

    #[test]
    fn bytes_depend_on_the_seed_alone() {
        let model = TinyLlama::default();
        assert_eq!(tiny_llama(model), tiny_llama(model));
        assert_ne!(tiny_llama(model), tiny_llama(TinyLlama { seed: 2, ..model }));
    }
}
