//! Tiny models of shapes that the test kit does not generate (tied, partly rotated, of mixed formats, or wrong), jobs,
//! and a sink that remembers.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TryRecvError};

use assay_engine::{
    Engine, EngineEvent, EngineOptions, Family, JobFailure, JobHandle, LoadError, Model, Payer, SinkState, SubmitError,
    TokenSink,
};
use assay_gguf::{Array, GgmlType, Gguf, StrArray, Value, quant, write::GgufWriter};
use assay_types::{B256, Finish, Job, LogitBias, ModelId, Sampling, TokenLogprobs};

/// Shape of a tiny model.
#[derive(Clone, Copy, Debug)]
pub struct Tiny {
    pub family: Family,
    pub width: u32,
    pub feed_forward: u32,
    pub n_layers: u32,
    pub n_heads: u32,
    pub n_kv_heads: u32,
    pub head_dim: u32,
    pub rope_dims: u32,
    pub context: u32,
    /// Of all layers but each second one; 0 for none.
    pub window: u32,
    pub tied: bool,
    pub rope_freqs: bool,
    pub ty: GgmlType,
    /// Format of attn_v and ffn_up, to have stacks of unlike formats.
    pub odd_ty: GgmlType,
    pub seed: u64,
}

/// Grouped heads, tied embeddings, Q8_0.
pub const Q8: Tiny = Tiny {
    family: Family::Llama,
    width: 64,
    feed_forward: 96,
    n_layers: 2,
    n_heads: 4,
    n_kv_heads: 2,
    head_dim: 16,
    rope_dims: 16,
    context: 1024,
    window: 0,
    tied: true,
    rope_freqs: false,
    ty: GgmlType::Q8_0,
    odd_ty: GgmlType::Q8_0,
    seed: 1,
};

/// One head per key head, own output matrix, partial rotation with frequency factors, F16.
pub const F16: Tiny = Tiny {
    n_heads: 3,
    n_kv_heads: 3,
    head_dim: 32,
    rope_dims: 24,
    tied: false,
    rope_freqs: true,
    ty: GgmlType::F16,
    odd_ty: GgmlType::F16,
    seed: 2,
    ..Q8
};

/// All heads share one key head, F32.
pub const F32: Tiny = Tiny { n_kv_heads: 1, ty: GgmlType::F32, odd_ty: GgmlType::F32, seed: 3, ..Q8 };

/// Stacks whose parts have different formats.
pub const MIXED: Tiny = Tiny { odd_ty: GgmlType::F16, seed: 4, ..Q8 };

/// Biases; halves of a head are rotated against each other.
pub const QWEN2: Tiny = Tiny { family: Family::Qwen2, seed: 5, ..F32 };

/// Normed heads that are together wider than the residual stream.
pub const QWEN3: Tiny = Tiny { family: Family::Qwen3, head_dim: 32, rope_dims: 32, seed: 6, ..F32 };

/// q, k and v in one tensor, gate and up in another; partial rotation.
pub const PHI3: Tiny = Tiny { family: Family::Phi3, rope_dims: 12, tied: false, seed: 7, ..F32 };

/// Gelu, scaled embeddings.
pub const GEMMA: Tiny = Tiny { family: Family::Gemma, head_dim: 24, rope_dims: 24, seed: 8, ..F32 };

/// Post-norms, caps, and a window shorter than a chunk of the KV memory in the first layer of two.
pub const GEMMA2: Tiny = Tiny { family: Family::Gemma2, window: 100, n_layers: 3, seed: 9, ..GEMMA };

/// Post-norms, normed heads, and a window longer than a chunk, with another rotation.
pub const GEMMA3: Tiny = Tiny { family: Family::Gemma3, window: 300, n_layers: 3, seed: 10, ..GEMMA };

/// One of each family but Llama, F32.
pub const FAMILIES: [Tiny; 6] = [QWEN2, QWEN3, PHI3, GEMMA, GEMMA2, GEMMA3];

/// As a Q4_K_M file: one of q|k|v and one of gate|up in Q6_K, the rest in Q4_K.
pub const Q4_K_M: Tiny = Tiny {
    width: 256,
    feed_forward: 512,
    n_layers: 1,
    head_dim: 64,
    rope_dims: 64,
    ty: GgmlType::Q4_K,
    odd_ty: GgmlType::Q6_K,
    seed: 11,
    ..Q8
};

/// Q5_K beside Q8_0: stacks whose parts quantize the same input in two ways.
pub const Q5_K: Tiny = Tiny { tied: false, ty: GgmlType::Q5_K, odd_ty: GgmlType::Q8_0, seed: 12, ..Q4_K_M };

/// BF16 beside Q4_0.
pub const BF16: Tiny = Tiny { ty: GgmlType::BF16, odd_ty: GgmlType::Q4_0, seed: 13, ..Q8 };

pub const ALL: [Tiny; 13] = [
    Q4_K_M,
    Q5_K,
    BF16,
    Q8,
    F16,
    F32,
    MIXED,
    Tiny { ty: GgmlType::Q8_0, odd_ty: GgmlType::F16, ..QWEN2 },
    QWEN3,
    PHI3,
    GEMMA,
    GEMMA2,
    GEMMA3,
];

/// Soft caps of [`GEMMA2`], low enough to matter, and the base of [`GEMMA3`]'s second rotation.
pub const ATTENTION_CAP: f32 = 3.0;
pub const LOGIT_CAP: f32 = 4.0;
pub const LOCAL_BASE: f32 = 500.0;

/// Letters `a` to `z` follow `<unk>`, `<s>`, `</s>` and the 256 bytes.
pub const VOCAB: u32 = 3 + 256 + 26;
pub const EOS: u32 = 2;

pub fn letter(i: u32) -> u32 {
    259 + i % 26
}

impl Tiny {
    pub fn writer(&self) -> GgufWriter {
        let mut writer = GgufWriter::new();
        let family = self.family.name();
        let metadata: [(&str, Value); 16] = [
            ("general.architecture", Value::Str(family.into())),
            ("general.name", Value::Str("tiny".into())),
            ("*.block_count", Value::U32(self.n_layers)),
            ("*.embedding_length", Value::U32(self.width)),
            ("*.feed_forward_length", Value::U32(self.feed_forward)),
            ("*.attention.head_count", Value::U32(self.n_heads)),
            ("*.attention.head_count_kv", Value::U32(self.n_kv_heads)),
            ("*.attention.key_length", Value::U32(self.head_dim)),
            ("*.attention.value_length", Value::U32(self.head_dim)),
            ("*.rope.dimension_count", Value::U32(self.rope_dims)),
            ("*.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("*.context_length", Value::U32(self.context)),
            ("tokenizer.ggml.model", Value::Str("llama".into())),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(EOS)),
            ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ];
        for (key, value) in metadata {
            writer.set(&key.replace('*', family), value);
        }
        let extra: &[(&str, Value)] = match self.family {
            Family::Gemma2 => &[
                ("attn_logit_softcapping", Value::F32(ATTENTION_CAP)),
                ("final_logit_softcapping", Value::F32(LOGIT_CAP)),
                ("attention.sliding_window", Value::U32(self.window)),
            ],
            Family::Gemma3 => &[
                ("attention.sliding_window", Value::U32(self.window)),
                ("attention.sliding_window_pattern", Value::U32(2)),
                ("rope.freq_base_swa", Value::F32(LOCAL_BASE)),
            ],
            _ => &[],
        };
        for (key, value) in extra {
            writer.set(&format!("{family}.{key}"), value.clone());
        }
        let mut texts = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
        texts.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        texts.extend((b'a'..=b'z').map(|letter| (letter as char).to_string()));
        let kinds = (0..VOCAB as i32).map(|id| match id {
            0 => 2,
            1 | 2 => 3,
            3..259 => 6,
            _ => 1,
        });
        writer.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds.collect())));
        writer.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0; VOCAB as usize])));
        writer.set(
            "tokenizer.ggml.tokens",
            Value::Array(Array::Str(texts.iter().map(String::as_str).collect::<StrArray>())),
        );
        self.add_tensors(&mut writer);
        writer
    }

    fn add_tensors(&self, writer: &mut GgufWriter) {
        let width = u64::from(self.width);
        let mut add = |name: String, dims: &[u64], ty| {
            writer.tensor(&name, dims, ty).expect("a valid shape");
        };
        add("token_embd.weight".into(), &[width, VOCAB.into()], self.ty);
        add("output_norm.weight".into(), &[width], GgmlType::F32);
        if !self.tied {
            add("output.weight".into(), &[width, VOCAB.into()], self.ty);
        }
        if self.rope_freqs {
            add("rope_freqs.weight".into(), &[u64::from(self.rope_dims / 2)], GgmlType::F32);
        }
        for i in 0..self.n_layers {
            for (name, dims, ty) in self.layer() {
                add(format!("blk.{i}.{name}"), &dims, ty);
            }
        }
    }

    /// Names, sizes and formats of a layer's tensors.
    fn layer(&self) -> Vec<(&'static str, Vec<u64>, GgmlType)> {
        let (width, ffn) = (u64::from(self.width), u64::from(self.feed_forward));
        let head_dim = u64::from(self.head_dim);
        let (q, kv) = (head_dim * u64::from(self.n_heads), head_dim * u64::from(self.n_kv_heads));
        let mut all = vec![
            ("attn_norm.weight", vec![width], GgmlType::F32),
            ("attn_output.weight", vec![q, width], self.ty),
            ("ffn_norm.weight", vec![width], GgmlType::F32),
            ("ffn_down.weight", vec![ffn, width], self.ty),
        ];
        if self.family == Family::Phi3 {
            all.push(("attn_qkv.weight", vec![width, q + 2 * kv], self.ty));
            all.push(("ffn_up.weight", vec![width, 2 * ffn], self.ty));
        } else {
            all.push(("attn_q.weight", vec![width, q], self.ty));
            all.push(("attn_k.weight", vec![width, kv], self.ty));
            all.push(("attn_v.weight", vec![width, kv], self.odd_ty));
            all.push(("ffn_gate.weight", vec![width, ffn], self.ty));
            all.push(("ffn_up.weight", vec![width, ffn], self.odd_ty));
        }
        if self.family == Family::Qwen2 {
            all.push(("attn_q.bias", vec![q], GgmlType::F32));
            all.push(("attn_k.bias", vec![kv], GgmlType::F32));
            all.push(("attn_v.bias", vec![kv], GgmlType::F32));
        }
        if matches!(self.family, Family::Gemma2 | Family::Gemma3) {
            all.push(("post_attention_norm.weight", vec![width], GgmlType::F32));
            all.push(("post_ffw_norm.weight", vec![width], GgmlType::F32));
        }
        if matches!(self.family, Family::Qwen3 | Family::Gemma3) {
            all.push(("attn_q_norm.weight", vec![head_dim], GgmlType::F32));
            all.push(("attn_k_norm.weight", vec![head_dim], GgmlType::F32));
        }
        all
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_of(&self.writer())
    }

    pub fn bytes_of(&self, writer: &GgufWriter) -> Vec<u8> {
        let mut random = Random(self.seed);
        let mut bytes = Vec::new();
        let written = writer.write(&mut bytes, |tensor, sink| {
            if !quant::can_encode(tensor.ty) {
                return sink.write_all(&vec![0; tensor.len as usize]);
            }
            let matrix = tensor.dims.len() > 1;
            // Large enough that heads and layers matter: a wrong rotation or mask must change tokens.
            let size = if matrix { 4.0 / (tensor.dims[0] as f32).sqrt() } else { 0.5 };
            let middle = if matrix || tensor.name.ends_with(".bias") { 0.0 } else { 1.0 };
            let values: Vec<f32> = (0..tensor.count()).map(|_| middle + size * random.centered()).collect();
            sink.write_values(tensor.ty, &values)
        });
        written.expect("a valid file");
        bytes
    }

    pub fn model(&self) -> Arc<Model> {
        load(&self.bytes()).expect("a valid model")
    }
}

pub fn load(bytes: &[u8]) -> Result<Arc<Model>, LoadError> {
    Model::load(&Gguf::parse(bytes).expect("a parseable file"), bytes)
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

    /// Uniform in -0.5..0.5.
    pub fn centered(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A job whose prompt is `n_prompt` letters that depend on `seed`; sampled, never ended by a token.
pub fn job(n_prompt: usize, max_tokens: u32, seed: u64) -> Job {
    let mut random = Random(seed);
    Job {
        model_id: ModelId::default(),
        prompt: (0..n_prompt).map(|_| letter(random.next() as u32 % 26)).collect(),
        prefix: Vec::new(),
        max_tokens,
        sampling: Sampling { temperature_micro: 900_000, top_p_micro: 950_000, top_k: 50, seed, ..Sampling::GREEDY },
        logit_bias: Vec::new(),
        grammar: None,
        stop: Vec::new(),
        ignore_eos: true,
        logprobs: None,
        embed: None,
        nonce: B256::ZERO,
    }
}

/// Every parameter that depends on what came before, and a bias on some letters.
pub fn penalized(job: Job) -> Job {
    let sampling = Sampling {
        min_p_micro: 10_000,
        repetition_penalty_micro: 1_200_000,
        frequency_penalty_micro: 400_000,
        presence_penalty_micro: -300_000,
        ..job.sampling
    };
    let logit_bias =
        [(2, 3_500_000), (7, -2_000_000)].map(|(n, bias_micro)| LogitBias { token: letter(n), bias_micro });
    Job { sampling, logit_bias: logit_bias.into(), ..job }
}

pub fn greedy(job: Job) -> Job {
    Job { sampling: Sampling::GREEDY, ..job }
}

pub fn options() -> EngineOptions {
    EngineOptions { threads: 1, ..EngineOptions::default() }
}

pub fn engine(model: &Arc<Model>, options: EngineOptions) -> Engine {
    Engine::start(Arc::clone(model), options).expect("an engine")
}

/// A submitted job and its events.
pub struct Running {
    pub handle: JobHandle,
    pub events: Receiver<EngineEvent>,
}

/// An output that completed, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub tokens: Vec<u32>,
    pub end: Result<Finish, JobFailure>,
}

/// Submits with a sink that takes everything up to `bound` unread events.
pub fn submit(engine: &Engine, job: &Job, bound: usize) -> Result<Running, SubmitError> {
    submit_for(engine, Payer::default(), job, bound)
}

pub fn submit_for(engine: &Engine, payer: Payer, job: &Job, bound: usize) -> Result<Running, SubmitError> {
    let (sender, events) = mpsc::sync_channel(bound);
    let sink = move |event| match sender.try_send(event) {
        Ok(()) => SinkState::Ready,
        Err(mpsc::TrySendError::Full(_)) => SinkState::Full,
        Err(mpsc::TrySendError::Disconnected(_)) => SinkState::Closed,
    };
    let sink: Box<dyn TokenSink> = Box::new(sink);
    Ok(Running { handle: engine.submit_for(payer, job, sink)?, events })
}

impl Running {
    /// Reads to the end, which comes once and with the drop of the sink.
    pub fn outcome(self) -> Outcome {
        self.scored().0
    }

    /// The same with what came before each token.
    pub fn scored(self) -> (Outcome, Vec<TokenLogprobs>) {
        let (mut tokens, mut scores) = (Vec::new(), Vec::new());
        let end = loop {
            match self.next() {
                EngineEvent::Token { id } => tokens.push(id),
                EngineEvent::Logprobs(score) => {
                    assert_eq!(scores.len(), tokens.len(), "each comes right before its token");
                    scores.push(*score);
                }
                EngineEvent::Done { finish } => break Ok(finish),
                EngineEvent::Failed { error } => break Err(error),
            }
        };
        assert!(self.events.recv().is_err(), "an event after the end");
        (Outcome { tokens, end }, scores)
    }

    /// Waits for one event.
    pub fn next(&self) -> EngineEvent {
        self.events.recv().expect("an event")
    }

    pub fn is_over(&self) -> bool {
        loop {
            match self.events.try_recv() {
                Ok(_) => {}
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
    }
}

/// Runs one job alone; with its log probabilities.
pub fn run_scored(model: &Arc<Model>, job: &Job) -> (Outcome, Vec<TokenLogprobs>) {
    submit(&engine(model, options()), job, 4096).expect("accepted").scored()
}

/// Runs one job alone.
pub fn run_alone(model: &Arc<Model>, job: &Job) -> Outcome {
    submit(&engine(model, options()), job, 4096).expect("accepted").outcome()
}
