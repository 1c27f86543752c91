//! A small model file whose metadata and tensors contradict each other: loading, and a step if it loads, which the trace of
//! its graph has to equal.

use crate::{
    input::Input,
    limit::{bounded, printable},
};
use assay_engine::{KvPool, LoadOptions, Model, Runner, Slice};
use assay_gguf::{GgmlType, Gguf, StrArray, Value, write::GgufWriter};
use assay_graph::{Trace, TraceOptions, TracedModel, greedy};
use std::cell::RefCell;
use std::sync::Arc;

const FAMILIES: &[&str] = &["llama", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "gemma3"];
const WIDTH: u64 = 32;
const HEAD_DIM: u64 = 16;
const VOCAB: u64 = 8;
/// Positions, so that tables are small whatever the file says.
const CONTEXT: usize = 8;
/// Loading may take this many bytes per byte of file, and besides.
const GROWTH_MAX: usize = 8;
const SLACK: usize = 1 << 20;
const EDITS_MAX: usize = 12;
/// Longer rotation tables are not worth their time here.
const TABLE_POSITIONS_MAX: u32 = 4096;

/// Keys that an edit can set; `*` is the architecture.
const KEYS: &[&str] = &[
    "*.block_count",
    "*.context_length",
    "*.embedding_length",
    "*.feed_forward_length",
    "*.attention.head_count",
    "*.attention.head_count_kv",
    "*.attention.key_length",
    "*.attention.value_length",
    "*.rope.dimension_count",
    "*.rope.freq_base",
    "*.rope.freq_base_swa",
    "*.rope.scaling.type",
    "*.rope.scaling.factor",
    "*.rope.scaling.original_context_length",
    "*.rope.scaling.attn_factor",
    "*.attention.layer_norm_rms_epsilon",
    "*.attention.sliding_window",
    "*.attention.sliding_window_pattern",
    "*.attn_logit_softcapping",
    "*.final_logit_softcapping",
    "*.vocab_size",
    "*.expert_count",
    "*.logit_scale",
    "*.attention.scale",
    "general.architecture",
    "general.name",
    "tokenizer.ggml.model",
    "tokenizer.ggml.bos_token_id",
    "tokenizer.ggml.eos_token_id",
    "tokenizer.chat_template",
];
const TEXTS: &[&str] =
    &["", "llama", "gemma3", "linear", "yarn", "longrope", "none", "bert", "{{ x }}", "{% for %}", "\u{1b}[31m\u{7f}"];
/// A text that no message should repeat in full.
const LONG_LEN: usize = 5_000;
const NUMBERS: &[u64] = &[
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    17,
    31,
    32,
    33,
    46,
    62,
    64,
    256,
    512,
    513,
    1 << 16,
    1 << 20,
    (1 << 20) + 1,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    u64::MAX,
];
const TYPES: &[GgmlType] = &[
    GgmlType::F32,
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_K,
    GgmlType::Q6_K,
    GgmlType(3),
    GgmlType(28),
];

struct Tensor {
    name: String,
    dims: Vec<u64>,
    ty: GgmlType,
}

thread_local! {
    static RUNNER: RefCell<Runner> = RefCell::new(Runner::new(1));
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let family = input.pick(FAMILIES);
    let layers = u32::from(input.u8() % 2) + 1;
    let ty = input.pick(&TYPES[..5]);
    let fill = input.u8();
    let mut metadata = metadata(family, layers);
    let mut tensors = tensors(family, layers, ty);
    for _ in 0..EDITS_MAX {
        if input.is_empty() {
            break;
        }
        edit(&mut input, family, &mut metadata, &mut tensors);
    }
    let Some(bytes) = file(&metadata, &tensors, fill) else { return };
    let Ok(gguf) = Gguf::parse(&bytes) else { return };
    let bytes_max = GROWTH_MAX * bytes.len() + SLACK;
    let options = LoadOptions { context_max: CONTEXT, ..LoadOptions::default() };
    let loaded = bounded("loading", bytes_max, || Model::load_with(&gguf, &bytes, options, &mut |_, _| {}));
    let model = match loaded {
        Ok(model) => model,
        Err(error) => return printable(&error),
    };
    let _ = (model.template().is_ok(), model.weight_bytes(), model.tokenizer().encode("ab", true, true));
    if fill % 4 != 0 {
        return;
    }
    let trace = trace(&gguf, &bytes);
    let mut pool = KvPool::new(model.kv_shape(), CONTEXT);
    let Some(mut kv) = pool.reserve(2) else { return };
    pool.grow(&mut kv, 2);
    RUNNER.with_borrow_mut(|runner| {
        let tokens = &[0, 1][..model.context().min(2)];
        let fine = runner.step(&model, &mut [Slice { kv: &mut kv, tokens, logits_from: tokens.len() - 1 }]);
        if fine == [true] {
            let logits = runner.logits(&model, 0, 1);
            assert_eq!(logits.len(), model.config().vocab);
            if tokens.len() == 2 && logits.iter().all(|logit| logit.is_finite()) {
                trace.iter().for_each(|trace| is_as(trace, logits));
            }
        }
    });
    pool.release(kv);
}

/// The trace of the same tokens, if the model has a graph.
fn trace(gguf: &Gguf, bytes: &[u8]) -> Option<Trace> {
    if gguf.context_length().ok()? > TABLE_POSITIONS_MAX {
        return None;
    }
    let model = TracedModel::new(gguf, Arc::new(bytes.to_vec())).map_err(|error| printable(&error)).ok()?;
    let options = TraceOptions { threads: 1, lie: None };
    Trace::compute(Arc::new(model), vec![0, 1, 0], 2, options, &mut greedy, &mut |_, _| {}).ok()
}

/// Where the engine gives logits, nobody who signs for what follows from them can be convicted.
fn is_as(trace: &Trace, logits: &[f32]) {
    assert_eq!(trace.first_nan(), None);
    let graph = trace.model().graph();
    let op = graph.ops()[usize::from(graph.choose_op())].a;
    let leaves = trace.leaves(1, op, 0, (logits.len() as u64).div_ceil(32)).expect("the last position has logits");
    let words = leaves.as_chunks::<4>().0.iter().map(|word| u32::from_be_bytes(*word));
    assert!(words.zip(logits).all(|(bits, logit)| bits == logit.to_bits()), "other logits than the engine's");
}

fn edit(input: &mut Input<'_>, family: &str, metadata: &mut Vec<(String, Value)>, tensors: &mut Vec<Tensor>) {
    let at = |input: &mut Input<'_>, len: usize| usize::from(input.u8()) % len.max(1);
    match input.u8() % 8 {
        // A key gets another value, or a new one.
        0..4 => {
            let key = input.pick(KEYS).replace('*', family);
            let value = match input.u8() % 6 {
                0 | 1 => Value::U32(u32::try_from(input.pick(NUMBERS)).unwrap_or(u32::MAX)),
                2 => Value::U64(input.pick(NUMBERS)),
                3 => Value::I32(i32::from_le_bytes(input.bytes())),
                4 => Value::F32(f32::from_bits(u32::from_le_bytes(input.bytes()))),
                _ if input.u8() == 0 => Value::Str("x".repeat(LONG_LEN)),
                _ => Value::Str(input.pick(TEXTS).to_owned()),
            };
            metadata.retain(|(known, _)| *known != key);
            metadata.push((key, value));
        }
        // A key is lost.
        4 => {
            if !metadata.is_empty() {
                let index = at(input, metadata.len());
                metadata.remove(index);
            }
        }
        // A tensor is lost, or another one comes.
        5 => {
            if !tensors.is_empty() {
                let index = at(input, tensors.len());
                let mut tensor = tensors.remove(index);
                if input.u8() % 2 == 0 {
                    tensor.name =
                        ["output.weight", "rope_freqs.weight", "blk.0.attn_q.bias", "\u{1b}x"][at(input, 4)].into();
                    tensors.push(tensor);
                }
            }
        }
        // Another shape.
        6 => {
            let index = at(input, tensors.len());
            if let Some(tensor) = tensors.get_mut(index) {
                let dim = at(input, tensor.dims.len());
                match input.u8() % 4 {
                    0 => tensor.dims.push(input.pick(&NUMBERS[..4])),
                    1 => tensor.dims.reverse(),
                    _ => tensor.dims[dim] = input.pick(&NUMBERS[..17]),
                }
            }
        }
        // Another format.
        _ => {
            let index = at(input, tensors.len());
            if let Some(tensor) = tensors.get_mut(index) {
                tensor.ty = input.pick(TYPES);
            }
        }
    }
}

fn metadata(family: &str, layers: u32) -> Vec<(String, Value)> {
    let tokens: StrArray = ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u{2581}", "\u{2581}a"].iter().collect();
    let fixed: [(&str, Value); 16] = [
        ("general.architecture", family.into()),
        ("*.block_count", layers.into()),
        ("*.context_length", 64_u32.into()),
        ("*.embedding_length", (WIDTH as u32).into()),
        ("*.feed_forward_length", (WIDTH as u32).into()),
        ("*.attention.head_count", 2_u32.into()),
        ("*.attention.head_count_kv", 1_u32.into()),
        ("*.attention.key_length", (HEAD_DIM as u32).into()),
        ("*.attention.layer_norm_rms_epsilon", 1e-5_f32.into()),
        ("*.rope.freq_base", 10_000.0_f32.into()),
        ("*.attention.sliding_window", 4_u32.into()),
        ("tokenizer.ggml.model", "llama".into()),
        ("tokenizer.ggml.tokens", tokens.into()),
        ("tokenizer.ggml.scores", vec![-1.0_f32; VOCAB as usize].into()),
        ("tokenizer.ggml.token_type", vec![2, 3, 3, 1, 1, 1, 1, 1].into()),
        ("tokenizer.ggml.unknown_token_id", 0_u32.into()),
    ];
    fixed.into_iter().map(|(key, value)| (key.replace('*', family), value)).collect()
}

fn tensors(family: &str, layers: u32, ty: GgmlType) -> Vec<Tensor> {
    let mut all = Vec::new();
    let mut add = |name: String, dims: &[u64], ty| all.push(Tensor { name, dims: dims.to_vec(), ty });
    let (q, kv) = (2 * HEAD_DIM, HEAD_DIM);
    add("token_embd.weight".into(), &[WIDTH, VOCAB], ty);
    add("output_norm.weight".into(), &[WIDTH], GgmlType::F32);
    for layer in 0..layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        add(name("attn_norm.weight"), &[WIDTH], GgmlType::F32);
        add(name("ffn_norm.weight"), &[WIDTH], GgmlType::F32);
        if family == "phi3" {
            add(name("attn_qkv.weight"), &[WIDTH, q + 2 * kv], ty);
            add(name("ffn_up.weight"), &[WIDTH, 2 * WIDTH], ty);
        } else {
            for (part, rows) in [("attn_q", q), ("attn_k", kv), ("attn_v", kv)] {
                add(name(&format!("{part}.weight")), &[WIDTH, rows], ty);
                if family == "qwen2" {
                    add(name(&format!("{part}.bias")), &[rows], GgmlType::F32);
                }
            }
            add(name("ffn_gate.weight"), &[WIDTH, WIDTH], ty);
            add(name("ffn_up.weight"), &[WIDTH, WIDTH], ty);
        }
        if matches!(family, "qwen3" | "gemma3") {
            add(name("attn_q_norm.weight"), &[HEAD_DIM], GgmlType::F32);
            add(name("attn_k_norm.weight"), &[HEAD_DIM], GgmlType::F32);
        }
        if matches!(family, "gemma2" | "gemma3") {
            add(name("post_attention_norm.weight"), &[WIDTH], GgmlType::F32);
            add(name("post_ffw_norm.weight"), &[WIDTH], GgmlType::F32);
        }
        add(name("attn_output.weight"), &[q, WIDTH], ty);
        add(name("ffn_down.weight"), &[WIDTH, WIDTH], ty);
    }
    all
}

/// The file, its data bytes made from `fill`; `None` if a shape cannot be written or is large.
fn file(metadata: &[(String, Value)], tensors: &[Tensor], fill: u8) -> Option<Vec<u8>> {
    let mut writer = GgufWriter::new();
    for (key, value) in metadata {
        writer.set(key, value.clone());
    }
    for tensor in tensors {
        writer.tensor(&tensor.name, &tensor.dims, tensor.ty).ok()?;
    }
    if writer.tensors().iter().try_fold(0_u64, |sum, tensor| sum.checked_add(tensor.len))? > 1 << 18 {
        return None;
    }
    let mut bytes = Vec::new();
    // 0x3c.. is a small number as f32, f16 and bf16.
    let pattern = [0x3c ^ fill, 0x3c, 0x3c ^ (fill >> 4), 0x3c];
    let written = writer.write(&mut bytes, |tensor, sink| {
        let mut data = pattern.repeat(tensor.len as usize / 4 + 1);
        data.truncate(tensor.len as usize);
        std::io::Write::write_all(sink, &data)
    });
    written.ok().map(|()| bytes)
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for family in 0..FAMILIES.len() as u8 {
        for ty in 0..5 {
            seeds.push(vec![family, family % 2, ty, 0]);
        }
        for key in 0..KEYS.len() as u8 {
            seeds.push(vec![family, 0, 0, 0, 0, key, 0, key % NUMBERS.len() as u8]);
        }
        seeds.push(vec![family, 0, 0, 0, 4, 3, 5, 2, 1, 6, 1, 0, 0, 7, 2, 3]);
    }
    seeds
}
