//! The models: the one that comes with Assay, encoded anew in every format, and one of 109 million random weights.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use assay_engine::Model;
use assay_gguf::write::{GgufWriter, TensorSpec};
use assay_gguf::{Array, GgmlType, Gguf, StrArray, Value};
use assay_num::f16;

/// Formats of the matrices; norms are always F32.
pub const FORMATS: [GgmlType; 8] = [
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Shipped,
    Large,
}

/// A model and a text for it.
pub struct Subject {
    pub name: String,
    pub size: Size,
    pub is_quantized: bool,
    pub model: Arc<Model>,
    pub tokens: Vec<u32>,
    /// How many of the tokens slow ways compute.
    pub head: usize,
}

impl Subject {
    fn new(size: Size, name: &str, format: usize, n_tokens: usize, head: usize, file: &[u8]) -> Subject {
        let gguf = Gguf::parse(file).expect("a parseable file");
        let model = Model::load(&gguf, file).expect("a valid model");
        let ty = FORMATS[format];
        let is_quantized = !matches!(ty, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
        let name = format!("{name} {ty}");
        Subject { name, size, is_quantized, model, tokens: Random(7).tokens(n_tokens), head }
    }
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Tokens that both vocabularies have.
    pub fn tokens(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| 5 + self.below(LARGE_VOCAB as usize - 5) as u32).collect()
    }
}

/// `assay-tiny` with its F16 matrices encoded in another format. The text crosses a border of KV blocks.
pub fn shipped(format: usize) -> Subject {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/assay-tiny/assay-tiny-f16.gguf");
    let source = std::fs::read(path).expect("the shipped model");
    let gguf = Gguf::parse(&source).expect("it parses");
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        writer.set(key, value.clone());
    }
    for tensor in gguf.tensors() {
        let ty = if tensor.dims.len() > 1 { FORMATS[format] } else { tensor.ty };
        writer.tensor(&tensor.name, &tensor.dims, ty).expect("all rows are whole blocks");
    }
    let mut file = Vec::new();
    let written = writer.write(&mut file, |spec, sink| {
        let tensor = gguf.tensor(&spec.name).expect("it is a copy");
        let bytes = gguf.tensor_bytes(&source, tensor).expect("inside the file");
        let values: Vec<f32> = if tensor.ty == GgmlType::F32 {
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        } else {
            bytes.as_chunks().0.iter().map(|b| f16::to_f32(u16::from_le_bytes(*b))).collect()
        };
        sink.write_values(spec.ty, &values)
    });
    written.expect("a valid file");
    Subject::new(Size::Shipped, "assay-tiny", format, 300, 40, &file)
}

const LARGE_VOCAB: u32 = 3 + 256 + 26;
const LARGE_LAYERS: u32 = 9;

/// Random weights, made as bytes of the format: quick to make, and all values a format has are there.
pub fn large(format: usize) -> Subject {
    let (width, kv_width, ffn, ty) = (1024, 256, 3072, FORMATS[format]);
    let mut writer = large_metadata();
    let mut n_weights = 0;
    let mut add = |name: String, dims: &[u64], ty| {
        n_weights += dims.iter().product::<u64>();
        writer.tensor(&name, dims, ty).expect("a valid shape");
    };
    add("token_embd.weight".into(), &[width, LARGE_VOCAB.into()], ty);
    add("output_norm.weight".into(), &[width], GgmlType::F32);
    for i in 0..LARGE_LAYERS {
        let norms = ["attn_norm", "ffn_norm"];
        norms.iter().for_each(|name| add(format!("blk.{i}.{name}.weight"), &[width], GgmlType::F32));
        for (name, k, rows) in [
            ("attn_q", width, width),
            ("attn_k", width, kv_width),
            ("attn_v", width, kv_width),
            ("attn_output", width, width),
            ("ffn_gate", width, ffn),
            ("ffn_up", width, ffn),
            ("ffn_down", ffn, width),
        ] {
            add(format!("blk.{i}.{name}.weight"), &[k, rows], ty);
        }
    }
    assert!(n_weights > 100_000_000, "{n_weights} weights");
    let mut random = Random(100 + format as u64);
    let mut file = Vec::new();
    let written = writer.write(&mut file, |spec, sink| random_tensor(spec, &mut random, sink));
    written.expect("a valid file");
    Subject::new(Size::Large, "109 M", format, 20, 4, &file)
}

fn large_metadata() -> GgufWriter {
    let mut writer = GgufWriter::new();
    let metadata: [(&str, Value); 13] = [
        ("general.architecture", Value::Str("llama".into())),
        ("general.name", Value::Str("large".into())),
        ("llama.block_count", Value::U32(LARGE_LAYERS)),
        ("llama.embedding_length", Value::U32(1024)),
        ("llama.feed_forward_length", Value::U32(3072)),
        ("llama.attention.head_count", Value::U32(16)),
        ("llama.attention.head_count_kv", Value::U32(4)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("llama.context_length", Value::U32(512)),
        ("tokenizer.ggml.model", Value::Str("llama".into())),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
    ];
    for (key, value) in metadata {
        writer.set(key, value);
    }
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let letters = (b'a'..=b'z').map(|letter| char::from(letter).to_string());
    let texts: Vec<String> =
        ["<unk>", "<s>", "</s>"].into_iter().map(str::to_owned).chain(bytes).chain(letters).collect();
    let kinds = (0..LARGE_VOCAB as i32).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        3..259 => 6,
        _ => 1,
    });
    writer.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds.collect())));
    writer.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; LARGE_VOCAB as usize])));
    writer
        .set("tokenizer.ggml.tokens", Value::Array(Array::Str(texts.iter().map(String::as_str).collect::<StrArray>())));
    writer
}

/// Where a block has f16 scales, the bits they share and a mask of those that are random. The weights are then about 0.03,
/// which keeps activations of this width at their size.
fn scales(ty: GgmlType) -> &'static [(usize, u16, u16)] {
    match ty {
        GgmlType::Q8_0 => &[(0, 0x0e00, 0x81ff)],
        GgmlType::Q4_0 => &[(0, 0x1e00, 0x81ff)],
        GgmlType::Q4_K => &[(0, 0x0580, 0x007f), (2, 0x1100, 0x00ff)],
        GgmlType::Q5_K => &[(0, 0x0280, 0x007f), (2, 0x1100, 0x00ff)],
        GgmlType::Q6_K => &[(208, 0x0100, 0x80ff)],
        _ => &[],
    }
}

/// Floats have a random sign, two random bits of exponent, magnitudes from 2^-8 to 2^-4, and a random mantissa.
fn random_tensor(spec: &TensorSpec, random: &mut Random, sink: &mut impl Write) -> io::Result<()> {
    if spec.dims.len() == 1 {
        return (0..spec.count()).try_for_each(|_| {
            let value = 1.0 + (random.next() >> 40) as f32 / (1 << 26) as f32;
            sink.write_all(&value.to_le_bytes())
        });
    }
    let mut bytes = vec![0; spec.len as usize];
    for piece in bytes.chunks_mut(8) {
        piece.copy_from_slice(&random.next().to_le_bytes()[..piece.len()]);
    }
    match spec.ty {
        GgmlType::F32 => bytes.as_chunks_mut().0.iter_mut().for_each(|b| {
            let bits = u32::from_le_bytes(*b);
            *b = (bits & 0x807f_ffff | (119 + (bits >> 23 & 3)) << 23).to_le_bytes();
        }),
        GgmlType::F16 => bytes.as_chunks_mut().0.iter_mut().for_each(|b| {
            let bits = u16::from_le_bytes(*b);
            *b = (bits & 0x83ff | (7 + (bits >> 10 & 3)) << 10).to_le_bytes();
        }),
        GgmlType::BF16 => bytes.as_chunks_mut().0.iter_mut().for_each(|b| {
            let bits = u16::from_le_bytes(*b);
            *b = (bits & 0x807f | (119 + (bits >> 7 & 3)) << 7).to_le_bytes();
        }),
        // No quantizer makes a -128, and AVX2 has a slower kernel for matrices with one.
        GgmlType::Q8_0 => bytes.iter_mut().filter(|b| **b == 0x80).for_each(|b| *b = 0x81),
        _ => {}
    }
    let block = spec.ty.block_bytes().expect("a known format") as usize;
    for block in bytes.chunks_exact_mut(block) {
        for &(at, fixed, mask) in scales(spec.ty) {
            let bits = u16::from_le_bytes([block[at], block[at + 1]]) & mask | fixed;
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
    }
    sink.write_all(&bytes)
}
