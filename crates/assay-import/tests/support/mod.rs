//! Folders made of generated models, file by file, and a writer of safetensors.

#![allow(dead_code, reason = "each test binary uses a part")]

use assay_gguf::{Gguf, StrArray};
use assay_import::Folder;
use assay_testkit::encoders::{SPECIALS, TinyBert, bert_vocab, tiny_bert};
use assay_testkit::models::{CHAT_TEMPLATE, Family, TinyLlama, tiny_llama};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A tensor of a file to be written.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub data: Vec<u8>,
}

/// A safetensors file of `tensors`, in order.
pub fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.data.len();
        let entry = json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(header.as_bytes());
    tensors.iter().for_each(|tensor| out.extend_from_slice(&tensor.data));
    out
}

/// A folder in memory.
pub struct Files {
    files: BTreeMap<String, Vec<u8>>,
    tensors: Vec<Tensor>,
    /// Tensors from this one on are in a second file.
    split: Option<usize>,
}

impl Files {
    /// The folder that `model` would be published as.
    pub fn bert(model: TinyBert) -> Files {
        let bytes = tiny_bert(model);
        let gguf = Gguf::parse(&bytes).unwrap();
        let positions =
            Tensor { name: "embeddings.position_ids".to_owned(), dtype: "I64", shape: vec![1, 2], data: vec![0; 16] };
        let mut tensors = vec![positions];
        for info in gguf.tensors() {
            tensors.push(Tensor {
                name: published_name(&info.name),
                dtype: "F32",
                shape: info.dims.iter().rev().copied().collect(),
                data: gguf.tensor_bytes(&bytes, info).unwrap().to_vec(),
            });
        }
        let mut files = Files { files: BTreeMap::new(), tensors, split: None };
        for (file, value) in texts(&model) {
            files.put(file, value.to_string().into_bytes());
        }
        files.put("vocab.txt", bert_vocab().join("\n").into_bytes());
        files.write_weights();
        files
    }

    /// The folder that `model`, with matrices in F32, would be published as.
    pub fn decoder(model: TinyLlama) -> Files {
        let bytes = tiny_llama(model);
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut tensors = Vec::new();
        for info in gguf.tensors().iter().filter(|info| info.name != "rope_freqs.weight") {
            let mut data = gguf.tensor_bytes(&bytes, info).unwrap().to_vec();
            let is_rotated = info.name.contains("attn_q.") || info.name.contains("attn_k.");
            if is_rotated && matches!(model.family, Family::Llama { .. }) {
                data = halves(&data, info.dims[0] as usize * 4, (model.d_model / model.heads) as usize);
            }
            let shape = info.dims.iter().rev().copied().collect();
            tensors.push(Tensor { name: published_decoder_name(&info.name), dtype: "F32", shape, data });
        }
        let mut files = Files { files: BTreeMap::new(), tensors, split: None };
        files.put("config.json", decoder_config(&model, &gguf).to_string().into_bytes());
        files.put("tokenizer.json", decoder_tokenizer(&gguf).to_string().into_bytes());
        let config = json!({"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, "pad_token": null,
            "chat_template": CHAT_TEMPLATE});
        files.put("tokenizer_config.json", config.to_string().into_bytes());
        files.write_weights();
        files
    }

    pub fn folder(&self) -> Folder<'_> {
        let mut folder = Folder::new("tiny");
        self.files.iter().for_each(|(file, bytes)| folder.add(file.clone(), bytes));
        folder
    }

    pub fn put(&mut self, file: &str, bytes: Vec<u8>) {
        self.files.insert(file.to_owned(), bytes);
    }

    pub fn remove(&mut self, file: &str) {
        self.files.remove(file).expect(file);
    }

    /// Changes a JSON file.
    pub fn set(&mut self, file: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&self.files[file]).unwrap();
        change(&mut value);
        self.put(file, value.to_string().into_bytes());
    }

    pub fn rename_tensors(&mut self, rename: impl Fn(&str) -> String) {
        self.tensors.iter_mut().for_each(|tensor| tensor.name = rename(&tensor.name));
        self.write_weights();
    }

    pub fn edit_tensor(&mut self, name: &str, edit: impl FnOnce(&mut Vec<f32>)) {
        let tensor = self.tensors.iter_mut().find(|tensor| tensor.name == name).expect(name);
        let mut values = tensor.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        edit(&mut values);
        tensor.data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.write_weights();
    }

    pub fn split_weights(&mut self) {
        self.remove("model.safetensors");
        self.split = Some(self.tensors.len() / 2);
        self.write_weights();
    }

    fn write_weights(&mut self) {
        match self.split {
            None => self.put("model.safetensors", safetensors(&self.tensors)),
            Some(at) => {
                self.put("model-00001-of-00002.safetensors", safetensors(&self.tensors[..at]));
                self.put("model-00002-of-00002.safetensors", safetensors(&self.tensors[at..]));
            }
        }
    }
}

/// The name that `name` has in a published checkpoint.
fn published_name(name: &str) -> String {
    let (stem, what) = name.rsplit_once('.').unwrap();
    let stem = match stem {
        "token_embd" => "embeddings.word_embeddings".to_owned(),
        "position_embd" => "embeddings.position_embeddings".to_owned(),
        "token_types" => "embeddings.token_type_embeddings".to_owned(),
        "token_embd_norm" => "embeddings.LayerNorm".to_owned(),
        _ => {
            let (layer, part) = stem.strip_prefix("blk.").unwrap().split_once('.').unwrap();
            let part = match part {
                "attn_q" => "attention.self.query",
                "attn_k" => "attention.self.key",
                "attn_v" => "attention.self.value",
                "attn_output" => "attention.output.dense",
                "attn_output_norm" => "attention.output.LayerNorm",
                "ffn_up" => "intermediate.dense",
                "ffn_down" => "output.dense",
                "layer_output_norm" => "output.LayerNorm",
                other => panic!("{other}"),
            };
            format!("encoder.layer.{layer}.{part}")
        }
    };
    format!("{stem}.{what}")
}

/// Everything but the weights and the vocabulary as text.
fn texts(model: &TinyBert) -> Vec<(&'static str, Value)> {
    let vocab = bert_vocab();
    let ids: Map<String, Value> = vocab.iter().enumerate().map(|(id, text)| (text.clone(), json!(id))).collect();
    let added: Vec<Value> = SPECIALS
        .iter()
        .enumerate()
        .map(|(id, text)| json!({"id": id, "content": text, "special": true, "normalized": false}))
        .collect();
    vec![
        (
            "config.json",
            json!({
                "architectures": ["BertModel"],
                "model_type": "bert",
                "hidden_act": "gelu",
                "hidden_size": model.width,
                "num_hidden_layers": model.layers,
                "num_attention_heads": model.heads,
                "intermediate_size": model.ffn,
                "max_position_embeddings": model.positions,
                "type_vocab_size": 2,
                "vocab_size": vocab.len(),
                "layer_norm_eps": 1e-12,
            }),
        ),
        (
            "tokenizer.json",
            json!({
                "added_tokens": added,
                "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": null, "lowercase": true},
                "pre_tokenizer": {"type": "BertPreTokenizer"},
                "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100, "vocab": ids},
            }),
        ),
        (
            "tokenizer_config.json",
            json!({"do_lower_case": true, "cls_token": "[CLS]", "sep_token": {"content": "[SEP]"}}),
        ),
        (
            "modules.json",
            json!([
                {"idx": 0, "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "type": "sentence_transformers.models.Pooling"},
                {"idx": 2, "type": "sentence_transformers.models.Normalize"},
            ]),
        ),
        ("sentence_bert_config.json", json!({"max_seq_length": 512})),
        (
            "1_Pooling/config.json",
            json!({
                "pooling_mode_cls_token": model.pooling == 2,
                "pooling_mode_mean_tokens": model.pooling == 1,
                "pooling_mode_max_tokens": false,
            }),
        ),
    ]
}

/// The rows of each head, which are pairs, as all firsts and then all seconds.
fn halves(data: &[u8], row_len: usize, head_dim: usize) -> Vec<u8> {
    let heads = data.chunks_exact(row_len * head_dim);
    let order = (0..head_dim).step_by(2).chain((1..head_dim).step_by(2));
    heads.flat_map(|head| order.clone().flat_map(|row| head[row * row_len..][..row_len].to_vec())).collect()
}

fn published_decoder_name(name: &str) -> String {
    let (stem, what) = name.rsplit_once('.').unwrap();
    let stem = match stem {
        "token_embd" => "model.embed_tokens".to_owned(),
        "output_norm" => "model.norm".to_owned(),
        "output" => "lm_head".to_owned(),
        _ => {
            let (layer, part) = stem.strip_prefix("blk.").unwrap().split_once('.').unwrap();
            let part = match part {
                "attn_norm" => "input_layernorm",
                "attn_q" => "self_attn.q_proj",
                "attn_k" => "self_attn.k_proj",
                "attn_v" => "self_attn.v_proj",
                "attn_q_norm" => "self_attn.q_norm",
                "attn_k_norm" => "self_attn.k_norm",
                "attn_output" => "self_attn.o_proj",
                "ffn_norm" => "post_attention_layernorm",
                "ffn_gate" => "mlp.gate_proj",
                "ffn_up" => "mlp.up_proj",
                "ffn_down" => "mlp.down_proj",
                other => panic!("{other}"),
            };
            format!("model.layers.{layer}.{part}")
        }
    };
    format!("{stem}.{what}")
}

fn decoder_config(model: &TinyLlama, gguf: &Gguf) -> Value {
    let q = gguf.tensor("blk.0.attn_q.weight").unwrap().dims[1];
    let mut config = json!({
        "model_type": model.family.architecture(),
        "hidden_act": "silu",
        "hidden_size": model.d_model,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "intermediate_size": model.ffn,
        "max_position_embeddings": model.context,
        "vocab_size": model.vocab,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": false,
        "use_sliding_window": false,
        "sliding_window": 32_768,
    });
    if model.family == Family::Qwen3 {
        config["head_dim"] = json!(q / u64::from(model.heads));
    }
    config
}

fn decoder_tokenizer(gguf: &Gguf) -> Value {
    let texts = |key: &str| gguf.require::<&StrArray>(key).unwrap().iter().map(str::to_owned).collect::<Vec<String>>();
    let tokens = texts("tokenizer.ggml.tokens");
    let n = assay_testkit::models::SPECIALS.len();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().skip(n).map(|(id, text)| (text.clone(), json!(id))).collect();
    let added: Vec<Value> =
        tokens[..n].iter().enumerate().map(|(id, text)| json!({"id": id, "content": text, "special": true})).collect();
    let single = json!([{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    json!({
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "Sequence", "processors": [
            {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
            {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}},
        ]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": texts("tokenizer.ggml.merges")},
    })
}
