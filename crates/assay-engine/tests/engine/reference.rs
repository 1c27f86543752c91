//! The model graph written down a second time, one token at a time on scalar definitions, straight from the file's
//! tensors. It shares no code with the engine's graph: a wrong head, position, order or tensor shows here.

use assay_engine::{Family, KvPool, Model, Runner, Slice};
use assay_gguf::{GgmlType, Gguf};
use assay_num::{KV_CHUNK, KvChunk, RopeStyle, RopeTable, Scoring, f16, scalar};

use crate::support::{ATTENTION_CAP, F32, FAMILIES, LOCAL_BASE, LOGIT_CAP, Random, Tiny, letter};

struct Reference {
    tiny: Tiny,
    bytes: Vec<u8>,
    gguf: Gguf,
    rope: RopeTable,
    /// Gemma3's, of layers with a window.
    local_rope: RopeTable,
    /// Per layer and kv head: chunks of keys (transposed) and values.
    cache: Vec<Vec<(Vec<u16>, Vec<u16>)>>,
    position: usize,
}

impl Reference {
    fn new(tiny: Tiny) -> Reference {
        let bytes = tiny.bytes();
        let gguf = Gguf::parse(&bytes).expect("a valid file");
        let factors = tiny.rope_freqs.then(|| floats(&gguf, &bytes, "rope_freqs.weight"));
        let (context, dims) = (tiny.context as usize, tiny.rope_dims as usize);
        let rope = RopeTable::new(context, dims, 10_000.0, factors.as_deref()).expect("a valid table");
        let local_rope = RopeTable::new(context, dims, f64::from(LOCAL_BASE), None).expect("a valid table");
        let heads = (tiny.n_layers * tiny.n_kv_heads) as usize;
        Reference { tiny, bytes, gguf, rope, local_rope, cache: vec![Vec::new(); heads], position: 0 }
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        floats(&self.gguf, &self.bytes, name)
    }

    fn product(&self, name: &str, x: &[f32]) -> Vec<f32> {
        self.tensor(name).chunks(x.len()).map(|row| scalar::dot(row, x)).collect()
    }

    fn norm(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        scalar::rms_norm(x, &self.tensor(name), 1e-5, &mut out);
        out
    }

    /// Feeds one token; its logits.
    fn feed(&mut self, token: u32) -> Vec<f32> {
        let width = self.tiny.width as usize;
        let mut x = self.tensor("token_embd.weight")[token as usize * width..][..width].to_vec();
        let family = self.tiny.family;
        let is_gemma = matches!(family, Family::Gemma | Family::Gemma2 | Family::Gemma3);
        if is_gemma {
            x.iter_mut().for_each(|x| *x *= (width as f32).sqrt());
        }
        for layer in 0..self.tiny.n_layers {
            let name = |part: &str| format!("blk.{layer}.{part}.weight");
            let n = self.norm(&name("attn_norm"), &x);
            let [q, k, v] = self.qkv(layer, &n);
            let a = self.attention(layer as usize, q, k, v);
            self.add(&mut x, self.product(&name("attn_output"), &a), &name("post_attention_norm"));
            let n = self.norm(&name("ffn_norm"), &x);
            let [gate, up] = self.gate_up(layer, &n);
            let act = if is_gemma { scalar::gelu } else { scalar::silu };
            let inner: Vec<f32> = gate.iter().zip(&up).map(|(gate, up)| act(*gate) * up).collect();
            self.add(&mut x, self.product(&name("ffn_down"), &inner), &name("post_ffw_norm"));
        }
        self.position += 1;
        let output = if self.tiny.tied { "token_embd.weight" } else { "output.weight" };
        let logits = self.product(output, &self.norm("output_norm.weight", &x));
        let cap = |logit| if family == Family::Gemma2 { scalar::softcap(logit, LOGIT_CAP) } else { logit };
        logits.into_iter().map(cap).collect()
    }

    /// Adds `y` to the residual stream, normed where the family has weights for that.
    fn add(&self, x: &mut [f32], y: Vec<f32>, norm: &str) {
        let has_norm = matches!(self.tiny.family, Family::Gemma2 | Family::Gemma3);
        let y = if has_norm { self.norm(norm, &y) } else { y };
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }

    fn qkv(&self, layer: u32, n: &[f32]) -> [Vec<f32>; 3] {
        let Tiny { family, head_dim, n_heads, n_kv_heads, .. } = self.tiny;
        let (q, kv) = ((n_heads * head_dim) as usize, (n_kv_heads * head_dim) as usize);
        let part = |part: &str| format!("blk.{layer}.attn_{part}");
        match family {
            Family::Llama | Family::Gemma | Family::Gemma2 => {
                ["q", "k", "v"].map(|name| self.product(&part(&format!("{name}.weight")), n))
            }
            Family::Qwen2 => ["q", "k", "v"].map(|name| {
                let product = self.product(&part(&format!("{name}.weight")), n);
                let bias = self.tensor(&part(&format!("{name}.bias")));
                product.iter().zip(bias).map(|(x, b)| x + b).collect()
            }),
            Family::Qwen3 | Family::Gemma3 => ["q", "k", "v"].map(|name| {
                let product = self.product(&part(&format!("{name}.weight")), n);
                let heads = product.chunks(head_dim as usize);
                let norm = |head| self.norm(&part(&format!("{name}_norm.weight")), head);
                if name == "v" { product } else { heads.flat_map(norm).collect() }
            }),
            Family::Phi3 => {
                let all = self.product(&part("qkv.weight"), n);
                [&all[..q], &all[q..q + kv], &all[q + kv..]].map(<[f32]>::to_vec)
            }
        }
    }

    fn gate_up(&self, layer: u32, n: &[f32]) -> [Vec<f32>; 2] {
        if self.tiny.family == Family::Phi3 {
            let all = self.product(&format!("blk.{layer}.ffn_up.weight"), n);
            let (gate, up) = all.split_at(self.tiny.feed_forward as usize);
            return [gate.to_vec(), up.to_vec()];
        }
        ["gate", "up"].map(|name| self.product(&format!("blk.{layer}.ffn_{name}.weight"), n))
    }

    fn attention(&mut self, layer: usize, mut q: Vec<f32>, mut k: Vec<f32>, v: Vec<f32>) -> Vec<f32> {
        let head_dim = self.tiny.head_dim as usize;
        let (n_heads, n_kv_heads) = (self.tiny.n_heads as usize, self.tiny.n_kv_heads as usize);
        let is_local = matches!(self.tiny.family, Family::Gemma2 | Family::Gemma3) && layer.is_multiple_of(2);
        let local_rope = is_local && self.tiny.family == Family::Gemma3;
        let rope = if local_rope { &self.local_rope } else { &self.rope };
        let scoring = Scoring {
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: (self.tiny.family == Family::Gemma2).then_some(ATTENTION_CAP),
            window: is_local.then_some(self.tiny.window as usize),
        };
        for head in q.chunks_mut(head_dim).chain(k.chunks_mut(head_dim)) {
            let is_llama = self.tiny.family == Family::Llama;
            let style = if is_llama { RopeStyle::Interleaved } else { RopeStyle::Halves };
            scalar::rope(head, self.position, rope, style);
        }
        let mut out = vec![0.0; q.len()];
        for kv_head in 0..n_kv_heads {
            let cache = &mut self.cache[layer * n_kv_heads + kv_head];
            let p = self.position % KV_CHUNK;
            if p == 0 {
                cache.push((vec![0; KV_CHUNK * head_dim], vec![0; KV_CHUNK * head_dim]));
            }
            let (keys, values) = cache.last_mut().expect("pushed at position 0");
            for d in 0..head_dim {
                keys[KvChunk::key_index(head_dim, d, p)] = f16::from_f32_rne(k[kv_head * head_dim + d]);
                values[p * head_dim + d] = f16::from_f32_rne(v[kv_head * head_dim + d]);
            }
            let chunks: Vec<KvChunk<'_>> = cache.iter().map(|(k, v)| KvChunk { k, v }).collect();
            for head in (0..n_heads).filter(|head| head * n_kv_heads / n_heads == kv_head) {
                let (q, out) = (&q[head * head_dim..][..head_dim], &mut out[head * head_dim..][..head_dim]);
                scalar::attend(q, &chunks, self.position + 1, scoring, out);
            }
        }
        out
    }
}

fn floats(gguf: &Gguf, bytes: &[u8], name: &str) -> Vec<f32> {
    let tensor = gguf.tensor(name).expect("a tensor of the model");
    let data = gguf.tensor_bytes(bytes, tensor).expect("its bytes");
    match tensor.ty {
        GgmlType::F32 => data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        GgmlType::F16 => data.chunks(2).map(|b| f16::to_f32(u16::from_le_bytes([b[0], b[1]]))).collect(),
        other => panic!("{name} is {other:?}; the reference computes with floats"),
    }
}

fn engine_logits(model: &Model, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut pool = KvPool::new(model.kv_shape(), tokens.len());
    let mut kv = pool.reserve(tokens.len()).expect("room");
    pool.grow(&mut kv, tokens.len());
    let mut runner = Runner::new(2);
    runner.step(model, &mut [Slice { kv: &mut kv, tokens, logits_from: 0 }]);
    let firsts = (0..tokens.len()).step_by(10);
    let vocab = model.config().vocab;
    firsts
        .flat_map(|first| {
            let logits = runner.logits(model, first, 10.min(tokens.len() - first));
            logits.chunks(vocab).map(<[f32]>::to_vec).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn the_graph_is_the_one_written_here() {
    // F16 products are defined as those of the widened weights, so one reference serves both.
    let f16 = Tiny { ty: GgmlType::F16, odd_ty: GgmlType::F32, ..crate::support::F16 };
    for tiny in [F32, Tiny { tied: false, n_kv_heads: 2, n_layers: 3, ..F32 }, f16].into_iter().chain(FAMILIES) {
        let mut random = Random(9);
        let tokens: Vec<u32> = (0..KV_CHUNK + 70).map(|_| letter(random.below(26) as u32)).collect();
        let got = engine_logits(&tiny.model(), &tokens);
        let mut reference = Reference::new(tiny);
        for (position, (token, got)) in tokens.iter().zip(&got).enumerate() {
            let expect = reference.feed(*token);
            let same = expect.iter().zip(got).all(|(expect, got)| expect.to_bits() == got.to_bits());
            assert!(same && expect.len() == got.len(), "position {position} of {tiny:?}");
        }
    }
}
