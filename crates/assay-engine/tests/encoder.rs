//! Encoders: the same bits however the work is done, the right numbers, and files that contradict themselves.

use assay_engine::encoder::{EmbedError, Embedder, Embedding, Encoder, Pooling, TooLong};
use assay_gguf::{Array, Gguf, Value, write::GgufWriter};
use assay_num::{Isa, Kernels};
use assay_testkit::encoders::{TinyBert, tiny_bert};
use assay_testkit::models::Format;
use std::sync::Arc;

fn load(bytes: &[u8]) -> Arc<Encoder> {
    Encoder::load(&Gguf::parse(bytes).unwrap(), bytes).unwrap()
}

/// Short and long ones, among them one beyond a chunk of 256 keys and one beyond a step of 512 rows.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> =
        ["", "the cat", "The dog and the house.", "x", "a1b2 c3", "hat, hat, hat"].map(str::to_owned).to_vec();
    texts.extend((1..24).step_by(3).map(|n| "the dog and 1 cat ".repeat(n)));
    texts.push("cat ".repeat(270));
    texts.push("dog hat ".repeat(300));
    texts.push("the house".to_owned());
    texts
}

fn embed(embedder: &mut Embedder, encoder: &Encoder, texts: &[String]) -> Vec<Embedding> {
    embedder.embed_texts(encoder, texts, TooLong::Refuse).unwrap()
}

fn assert_same(expect: &[Embedding], found: &[Embedding], what: &str) {
    assert_eq!(expect.len(), found.len(), "{what}");
    for (i, (a, b)) in expect.iter().zip(found).enumerate() {
        let bits = |e: &Embedding| e.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!((bits(a), a.n_tokens), (bits(b), b.n_tokens), "{what}: text {i}");
    }
}

/// FNV-1a of all values' bits.
fn hash(embeddings: &[Embedding]) -> u64 {
    let bytes = embeddings.iter().flat_map(|e| &e.values).flat_map(|v| v.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// The same on every machine.
const GOLDEN: [&str; 8] = [
    "F32 490f845a0a132cb7",
    "F16 e3cf2f3c8d5e8c9c",
    "BF16 dec6219eec6dc89b",
    "Q8_0 5274d07a3aa8bc83",
    "Q4_0 bab55e331815ccb5",
    "Q4K 7ad9bff3d2d56171",
    "Q5K 1bb69bc6cef37da1",
    "Q6K 2d53d6a31ebffd3c",
];

/// Texts that the scalar code computes under emulation, where it takes a second for each hundred tokens.
const EMULATED_TEXTS: usize = 8;

/// What each instruction set computes besides all texts at once, in order.
struct Extent {
    threads: std::ops::RangeInclusive<usize>,
    /// Only so many texts.
    n_texts: usize,
    /// How many texts at a time.
    pieces: &'static [usize],
    reversed: bool,
}

impl Extent {
    /// `None`: nothing, since another instruction set has the same kernels.
    fn of(isa: Isa, format: Format, n_texts: usize) -> Option<Extent> {
        let is_float = matches!(format, Format::F32 | Format::F16 | Format::BF16);
        let plain = Extent { threads: 2..=2, n_texts, pieces: &[], reversed: false };
        match (std::env::var_os("ASSAY_EMULATED").is_some(), isa) {
            (true, Isa::Scalar) => Some(Extent { n_texts: EMULATED_TEXTS, ..plain }),
            (true, Isa::Dotprod | Isa::I8mm) if is_float => None,
            (true, Isa::I8mm) => Some(Extent { pieces: &[7], ..plain }),
            (true, _) => Some(plain),
            (false, Isa::Scalar) => Some(plain),
            (false, _) => Some(Extent { threads: 1..=3, n_texts, pieces: &[1, 7], reversed: true }),
        }
    }
}

#[test]
fn vectors_do_not_depend_on_how_they_are_computed() {
    let texts = texts();
    if std::env::var_os("ASSAY_EMULATED").is_some() {
        // The emulator has all of them: a kernel that is not found is not tested.
        assert_eq!(Isa::available(), [Isa::Scalar, Isa::Neon, Isa::Dotprod, Isa::I8mm]);
    }
    let formats = [
        (Format::F32, 64),
        (Format::F16, 64),
        (Format::BF16, 64),
        (Format::Q8_0, 64),
        (Format::Q4_0, 64),
        (Format::Q4K, 256),
        (Format::Q5K, 256),
        (Format::Q6K, 256),
    ];
    let mut hashes = Vec::new();
    for (format, width) in formats {
        let encoder = load(&tiny_bert(TinyBert {
            format,
            width,
            ffn: width + 256,
            layers: if width == 64 { 2 } else { 1 },
            ..TinyBert::default()
        }));
        let expect = embed(&mut Embedder::new(1), &encoder, &texts);
        hashes.push(format!("{format:?} {:016x}", hash(&expect)));
        for isa in Isa::available() {
            let Some(extent) = Extent::of(isa, format, texts.len()) else { continue };
            let (texts, expect) = (&texts[..extent.n_texts], &expect[..extent.n_texts]);
            for threads in extent.threads {
                let mut embedder = Embedder::with_kernels(Kernels::with_isa(isa).unwrap(), threads);
                let what = format!("{format:?} on {isa} with {threads} threads");
                assert_same(expect, &embed(&mut embedder, &encoder, texts), &what);
                for &n in extent.pieces {
                    let parts: Vec<Embedding> =
                        texts.chunks(n).flat_map(|texts| embed(&mut embedder, &encoder, texts)).collect();
                    assert_same(expect, &parts, &format!("{what}, {n} at a time"));
                }
                if extent.reversed {
                    let reversed: Vec<String> = texts.iter().rev().cloned().collect();
                    let mut found = embed(&mut embedder, &encoder, &reversed);
                    found.reverse();
                    assert_same(expect, &found, &format!("{what}, from the last to the first"));
                }
            }
        }
    }
    assert_eq!(hashes, GOLDEN);
}

/// A plain implementation in f64 of what the module's head says, without the rounding of keys and values.
struct Reference<'a> {
    gguf: &'a Gguf,
    bytes: &'a [u8],
}

impl Reference<'_> {
    fn tensor(&self, name: &str) -> Vec<f64> {
        let tensor = self.gguf.tensor(name).unwrap();
        let data = self.gguf.tensor_bytes(self.bytes, tensor).unwrap();
        data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
    }

    fn product(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (w, b) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
        let row = |x: &Vec<f64>, w: &[f64]| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
        x.iter().map(|x| w.chunks(x.len()).zip(&b).map(|(w, b)| row(x, w) + b).collect()).collect()
    }

    fn norm(&self, name: &str, x: Vec<Vec<f64>>) -> Vec<Vec<f64>> {
        let (w, b) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
        let normed = |x: Vec<f64>| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n;
            let scaled = x.iter().map(|x| (x - mean) / (variance + 1e-12).sqrt());
            scaled.zip(w.iter().zip(&b)).map(|(x, (w, b))| x * w + b).collect()
        };
        x.into_iter().map(normed).collect()
    }

    fn embed(&self, model: &TinyBert, tokens: &[u32]) -> Vec<f64> {
        let (width, heads) = (model.width as usize, model.heads as usize);
        let [token, position, kind] =
            ["token_embd", "position_embd", "token_types"].map(|name| self.tensor(&format!("{name}.weight")));
        let row = |(p, id): (usize, &u32)| {
            (0..width).map(|i| token[*id as usize * width + i] + kind[i] + position[p * width + i]).collect()
        };
        let mut x = self.norm("token_embd_norm", tokens.iter().enumerate().map(row).collect());
        let add = |a: Vec<Vec<f64>>, b: &[Vec<f64>]| {
            a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect::<Vec<Vec<f64>>>()
        };
        for layer in 0..model.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let [q, k, v] = ["attn_q", "attn_k", "attn_v"].map(|part| self.product(&name(part), &x));
            let attended = q.iter().map(|q| attend(q, &k, &v, heads)).collect::<Vec<_>>();
            x = self.norm(&name("attn_output_norm"), add(self.product(&name("attn_output"), &attended), &x));
            let mut h = self.product(&name("ffn_up"), &x);
            h.iter_mut().flatten().for_each(|x| *x *= 0.5 * erfc(-*x / std::f64::consts::SQRT_2));
            x = self.norm(&name("layer_output_norm"), add(self.product(&name("ffn_down"), &h), &x));
        }
        match model.pooling {
            2 => x[0].clone(),
            _ => (0..width).map(|i| x.iter().map(|row| row[i]).sum::<f64>()).collect(),
        }
    }
}

/// One query, all heads.
fn attend(q: &[f64], k: &[Vec<f64>], v: &[Vec<f64>], heads: usize) -> Vec<f64> {
    let dim = q.len() / heads;
    let mut out = vec![0.0; q.len()];
    for head in (0..q.len()).step_by(dim) {
        let score = |k: &Vec<f64>| (head..head + dim).map(|d| q[d] * k[d]).sum::<f64>() / (dim as f64).sqrt();
        let weights: Vec<f64> = k.iter().map(|k| exp(score(k))).collect();
        let sum: f64 = weights.iter().sum();
        for d in head..head + dim {
            out[d] = weights.iter().zip(v).map(|(w, v)| w * v[d]).sum::<f64>() / sum;
        }
    }
    out
}

/// e^x by its series on x / 2^10, squared ten times: good to 12 digits for the sizes here.
fn exp(x: f64) -> f64 {
    let r = x / 1024.0;
    let series = (1..12).rev().fold(1.0, |sum, n| 1.0 + sum * r / f64::from(n));
    (0..10).fold(series, |y, _| y * y)
}

/// 1 - erf(x), by Simpson's rule over the density.
fn erfc(x: f64) -> f64 {
    let n = 200;
    let h = x / f64::from(n);
    let density = |t: f64| exp(-t * t);
    let inner: f64 = (1..n).map(|i| density(f64::from(i) * h) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    1.0 - (density(0.0) + density(x) + inner) * h / 3.0 * 2.0 / std::f64::consts::PI.sqrt()
}

fn cosine(a: &[f64], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum();
    let length = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    dot / length(&mut a.iter().copied()) / length(&mut b.iter().map(|b| f64::from(*b)))
}

#[test]
fn vectors_are_those_of_the_definition_in_f64() {
    let texts = ["the cat and the dog", "", "hat 4711, house.", &"the house and 1 dog ".repeat(60)].map(str::to_owned);
    for pooling in [1, 2] {
        let model = TinyBert { pooling, layers: 3, ..TinyBert::default() };
        let bytes = tiny_bert(model);
        let (gguf, encoder) = (Gguf::parse(&bytes).unwrap(), load(&bytes));
        assert_eq!(encoder.config().pooling, if pooling == 1 { Pooling::Mean } else { Pooling::Cls });
        let reference = Reference { gguf: &gguf, bytes: &bytes };
        for (text, found) in texts.iter().zip(embed(&mut Embedder::new(2), &encoder, &texts)) {
            let tokens = encoder.tokenizer().encode(text, true, false);
            assert_eq!((found.n_tokens, found.n_cut, found.values.len()), (tokens.len(), 0, 64));
            let cosine = cosine(&reference.embed(&model, &tokens), &found.values);
            assert!(cosine > 0.999_999 && cosine < 1.000_001, "{text:?}: {cosine}");
            let length: f64 = found.values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
            assert!((length - 1.0).abs() < 1e-6, "{length}");
        }
    }
}

#[test]
fn a_text_that_is_too_long_is_refused_or_cut_as_asked() {
    let encoder = load(&tiny_bert(TinyBert { positions: 8, ..TinyBert::default() }));
    let mut embedder = Embedder::new(1);
    let texts = ["the cat", "the cat and the dog and", "the cat and the dog and the hat"];
    let refused = embedder.embed_texts(&encoder, &texts, TooLong::Refuse).unwrap_err();
    assert_eq!(refused, EmbedError::TooLong { index: 2, n_tokens: 10, max: 8 });
    assert_eq!(refused.to_string(), "text 2 has 10 tokens, the model takes 8");
    let cut = embedder.embed_texts(&encoder, &texts, TooLong::Cut).unwrap();
    assert_eq!(cut.iter().map(|e| (e.n_tokens, e.n_cut)).collect::<Vec<_>>(), [(4, 0), (8, 0), (8, 2)]);
    assert_eq!(cut[1].values, cut[2].values);
    assert!(embedder.embed_texts(&encoder, &[] as &[&str], TooLong::Refuse).unwrap().is_empty());
}

/// The file of `model` with other metadata or tensors: `edit` sees every key and every tensor's name, dims and values.
fn edited(
    model: TinyBert,
    key: impl Fn(&str, &Value) -> Option<Value>,
    tensor: impl Fn(&str, &mut Vec<u64>, &mut Vec<f32>) -> bool,
    extra: &[(&str, Value)],
) -> Vec<u8> {
    let bytes = tiny_bert(model);
    let gguf = Gguf::parse(&bytes).unwrap();
    let mut writer = GgufWriter::new();
    for (name, value) in gguf.metadata() {
        if let Some(value) = key(name, value) {
            writer.set(name, value);
        }
    }
    for (name, value) in extra {
        writer.set(name, value.clone());
    }
    let mut data = Vec::new();
    for info in gguf.tensors() {
        let raw = gguf.tensor_bytes(&bytes, info).unwrap();
        let mut values: Vec<f32> = raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let mut dims = info.dims.clone();
        if tensor(&info.name, &mut dims, &mut values) {
            values.resize(dims.iter().product::<u64>() as usize, 0.0);
            writer.tensor(&info.name, &dims, info.ty).unwrap();
            data.push(values);
        }
    }
    let mut data = data.into_iter();
    writer.to_bytes(|_| data.next().unwrap()).unwrap()
}

#[test]
fn what_a_file_lacks_or_contradicts_is_named() {
    let check = |bytes: Vec<u8>, expect: &str| {
        let error = Encoder::load(&Gguf::parse(&bytes).unwrap(), &bytes).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} does not contain {expect:?}");
    };
    let same = |_: &str, value: &Value| Some(value.clone());
    let all = |_: &str, _: &mut Vec<u64>, _: &mut Vec<f32>| true;
    let with = |key: &'static str, value: Value| edited(TinyBert::default(), same, all, &[(key, value)]);
    let without = |name: &'static str| {
        edited(TinyBert::default(), |key, value| (key != name).then(|| value.clone()), |t, _, _| t != name, &[])
    };
    for key in [
        "bert.block_count",
        "bert.context_length",
        "bert.embedding_length",
        "bert.feed_forward_length",
        "bert.attention.head_count",
        "bert.attention.layer_norm_epsilon",
        "bert.pooling_type",
        "general.architecture",
    ] {
        check(without(key), &format!("{key} is missing"));
    }
    for tensor in ["token_types.weight", "token_embd.weight", "blk.1.attn_q.bias", "blk.0.layer_output_norm.weight"] {
        check(without(tensor), &format!("tensor {tensor} is missing"));
    }
    check(with("general.architecture", "llama".into()), "general.architecture is \"llama\"");
    check(with("bert.attention.head_count", 5_u32.into()), "head_count is 5, but it must divide");
    check(with("bert.attention.head_count", 0_u32.into()), "head_count is 0, allowed is 1 to 1024");
    check(with("bert.embedding_length", u64::MAX.into()), "embedding_length is 18446744073709551615, allowed");
    check(with("bert.embedding_length", 128_u32.into()), "token_types.weight has shape [64, 2]");
    check(with("bert.context_length", 1_u32.into()), "context_length is 1, allowed is 2 or more");
    check(with("bert.context_length", 700_u32.into()), "position_embd.weight has shape [64, 640]");
    check(with("assay.input_length", 0_u32.into()), "assay.input_length is 0, allowed");
    check(with("bert.attention.layer_norm_epsilon", f32::NAN.into()), "epsilon is NaN, allowed");
    check(with("bert.attention.causal", true.into()), "bert.attention.causal is \"true\": not supported");
    check(with("bert.pooling_type", 3_u32.into()), "pooling_type is 3, allowed is 1 (mean) or 2 (cls)");
    check(with("bert.pooling_type", "mean".into()), "bert.pooling_type");
    check(with("bert.block_count", 1_u32.into()), "tensor blk.1.");
    let kinds = Value::Array(Array::I32(vec![1; 3]));
    check(with("tokenizer.ggml.token_type", kinds), "tokenizer.ggml.token_type has 3 elements");
    let short = edited(
        TinyBert::default(),
        same,
        |name, dims, _| {
            if name == "token_embd.weight" {
                dims[1] -= 1;
            }
            true
        },
        &[],
    );
    check(short, "the tokenizer has 85 tokens, token_embd.weight has 84 rows");
}

/// Weights far outside what f16 holds, and weights that are no numbers: an error for the text, never a vector.
#[test]
fn values_that_are_not_finite_give_no_vector() {
    let same = |_: &str, value: &Value| Some(value.clone());
    for (tensor, value) in [
        ("token_embd.weight", f32::NAN),
        ("blk.0.attn_k.bias", 1e6),
        ("blk.1.ffn_up.bias", f32::INFINITY),
        ("blk.1.attn_output_norm.weight", f32::NAN),
        ("blk.1.layer_output_norm.bias", f32::MAX),
    ] {
        let edit = |name: &str, _: &mut Vec<u64>, values: &mut Vec<f32>| {
            if name == tensor {
                // Of the embedding, the row of "x" only.
                let from = if name == "token_embd.weight" { (5 + 8 + 23) * 64 } else { 0 };
                values[from..from + 64].fill(value);
            }
            true
        };
        let encoder = load(&edited(TinyBert::default(), same, edit, &[]));
        let found = Embedder::new(1).embed_texts(&encoder, &["the cat", "the x"], TooLong::Refuse);
        let index = if tensor == "token_embd.weight" { 1 } else { 0 };
        assert_eq!(found.unwrap_err(), EmbedError::NonFinite { index }, "{tensor}");
    }
}

/// The engine for text says what to do with an encoder.
#[test]
fn an_encoder_is_no_model_that_writes() {
    let bytes = tiny_bert(TinyBert::default());
    let error = assay_engine::Model::load(&Gguf::parse(&bytes).unwrap(), &bytes).unwrap_err().to_string();
    assert!(error.contains("embeds it with \"bert\""), "{error}");
}
