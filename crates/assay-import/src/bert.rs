//! BERT-family encoders, as sentence-transformers and the BGE models publish them.

use serde_json::{Value, json};

use crate::ImportError;
use crate::folder::{Folder, Weights};
use crate::json::{Json, shown};
use crate::plan::{Import, Options, Pooling};
use crate::put::Put;
use crate::wordpiece;

const ARCHITECTURE: &str = "bert";
const POOLING: &str = "1_Pooling/config.json";
const MODULES: &str = "modules.json";

/// Tensors that embeddings do not need: positions as numbers, the pooler and the heads of pre-training.
const UNUSED: &[&str] = &["embeddings.position_ids", "pooler.", "cls.predictions.", "cls.seq_relationship."];

/// The tensors of one block: name here, name there, and which sizes.
const LAYER: &[(&str, &str, Part)] = &[
    ("attn_q", "attention.self.query", Part::Matrix(Size::Width, Size::Width)),
    ("attn_k", "attention.self.key", Part::Matrix(Size::Width, Size::Width)),
    ("attn_v", "attention.self.value", Part::Matrix(Size::Width, Size::Width)),
    ("attn_output", "attention.output.dense", Part::Matrix(Size::Width, Size::Width)),
    ("attn_output_norm", "attention.output.LayerNorm", Part::Norm),
    ("ffn_up", "intermediate.dense", Part::Matrix(Size::FeedForward, Size::Width)),
    ("ffn_down", "output.dense", Part::Matrix(Size::Width, Size::FeedForward)),
    ("layer_output_norm", "output.LayerNorm", Part::Norm),
];

#[derive(Clone, Copy)]
enum Part {
    /// Rows and columns of a weight; its bias has as many values as it has rows.
    Matrix(Size, Size),
    Norm,
}

#[derive(Clone, Copy)]
enum Size {
    Width,
    FeedForward,
}

struct Shape {
    layers: u32,
    width: u32,
    heads: u32,
    feed_forward: u32,
    positions: u32,
    types: u32,
    vocab: u32,
}

pub(crate) fn plan<'a>(folder: &Folder<'a>, config: &Json, options: Options) -> Result<Import<'a>, ImportError> {
    config.only("position_embedding_type", &json!("absolute"))?;
    // "gelu" is the form with the error function, the only one the engine's encoder has.
    config.only("hidden_act", &json!("gelu"))?;
    config.only("is_decoder", &json!(false))?;
    let shape = Shape {
        layers: config.require_count("num_hidden_layers")?,
        width: config.require_count("hidden_size")?,
        heads: config.require_count("num_attention_heads")?,
        feed_forward: config.require_count("intermediate_size")?,
        positions: config.require_count("max_position_embeddings")?,
        types: config.count("type_vocab_size")?.unwrap_or(2),
        vocab: config.require_count("vocab_size")?,
    };
    let eps = config.f64("layer_norm_eps")?.unwrap_or(1e-12) as f32;
    refuse_modules(folder)?;

    let mut import = Import::new(ARCHITECTURE, folder, options.precision);
    import.set("bert.block_count", shape.layers);
    import.set("bert.context_length", shape.positions);
    import.set("bert.embedding_length", shape.width);
    import.set("bert.feed_forward_length", shape.feed_forward);
    import.set("bert.attention.head_count", shape.heads);
    import.set("bert.attention.layer_norm_epsilon", eps);
    import.set("bert.attention.causal", false);
    // `enum llama_pooling_type` of llama.cpp.
    import.set(
        "bert.pooling_type",
        match pooling(folder, options)? {
            Pooling::Mean => 1_u32,
            Pooling::Cls => 2,
        },
    );
    if let Some(length) = input_length(folder)? {
        import.set("assay.input_length", length.min(shape.positions));
    }
    // First the tensors: they show that the sizes are not just large numbers.
    put_tensors(&mut import, &folder.weights()?, config, &shape)?;
    wordpiece::put(&mut import, folder, config, shape.vocab)?;
    import.set("tokenizer.ggml.token_type_count", shape.types);
    Ok(import)
}

/// What follows the transformer may only be pooling and normalisation.
fn refuse_modules(folder: &Folder<'_>) -> Result<(), ImportError> {
    let Some(modules) = folder.json(MODULES)? else { return Ok(()) };
    for (i, module) in modules.root().as_array().into_iter().flatten().enumerate() {
        let ty = module.get("type").and_then(Value::as_str).unwrap_or_default();
        let last = ty.rsplit('.').next().unwrap_or_default();
        if !matches!(last, "Transformer" | "Pooling" | "Normalize") {
            return Err(ImportError::Value {
                file: MODULES.to_owned(),
                key: format!("{i}.type"),
                found: shown(&format!("{ty:?}")),
                expected: "Transformer, Pooling and Normalize are supported".to_owned(),
            });
        }
    }
    Ok(())
}

fn pooling(folder: &Folder<'_>, options: Options) -> Result<Pooling, ImportError> {
    let Some(json) = folder.json(POOLING)? else {
        let hint = " (it says how a text's vector is made; --pooling mean or cls says it instead)";
        return options.pooling.ok_or_else(|| ImportError::MissingFile { file: POOLING.to_owned(), hint });
    };
    let mut modes = Vec::new();
    for (key, value) in json.root().as_object().into_iter().flatten() {
        if key.starts_with("pooling_mode_") && *value == Value::Bool(true) {
            modes.push(key.as_str());
        }
    }
    match modes.as_slice() {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        [] => match json.str("pooling_mode")? {
            Some("mean") => Ok(Pooling::Mean),
            Some("cls") => Ok(Pooling::Cls),
            _ => Err(json.unexpected("pooling_mode", "mean and cls are supported")),
        },
        [mode] => Err(json.unexpected(mode, "mean and cls are supported")),
        [_, mode, ..] => Err(json.unexpected(mode, "one way of pooling at a time is supported")),
    }
}

/// Most tokens of a text, as sentence-transformers has it.
fn input_length(folder: &Folder<'_>) -> Result<Option<u32>, ImportError> {
    match folder.json("sentence_bert_config.json")? {
        None => Ok(None),
        Some(json) => match json.count("max_seq_length")? {
            Some(0 | 1) => Err(json.unexpected("max_seq_length", "at least 2 is expected")),
            length => Ok(length),
        },
    }
}

fn put_tensors<'a>(
    import: &mut Import<'a>,
    weights: &Weights<'a>,
    config: &Json,
    shape: &Shape,
) -> Result<(), ImportError> {
    // Models with a head of pre-training have the encoder under this name.
    let prefix = if weights.names().any(|name| name.starts_with("bert.")) { "bert." } else { "" };
    // Checkpoints converted from the first release call a norm's weight and bias so.
    let old_norms = weights.names().any(|name| name.ends_with("LayerNorm.gamma"));
    let (norm_weight, norm_bias) = if old_norms { ("gamma", "beta") } else { ("weight", "bias") };
    let mut put = Put::new(import, weights, prefix);
    let size = |size: Size| {
        u64::from(match size {
            Size::Width => shape.width,
            Size::FeedForward => shape.feed_forward,
        })
    };
    let width = size(Size::Width);

    put.matrix("token_embd.weight", "embeddings.word_embeddings.weight", u64::from(shape.vocab), width)?;
    // Small, and not part of any product: exact.
    put.table("position_embd.weight", "embeddings.position_embeddings.weight", &[u64::from(shape.positions), width])?;
    put.table("token_types.weight", "embeddings.token_type_embeddings.weight", &[u64::from(shape.types), width])?;
    put.table("token_embd_norm.weight", &format!("embeddings.LayerNorm.{norm_weight}"), &[width])?;
    put.table("token_embd_norm.bias", &format!("embeddings.LayerNorm.{norm_bias}"), &[width])?;
    for layer in 0..shape.layers {
        for (here, there, part) in LAYER {
            let here = |what: &str| format!("blk.{layer}.{here}.{what}");
            let there = |what: &str| format!("encoder.layer.{layer}.{there}.{what}");
            match *part {
                Part::Matrix(rows, k) => {
                    put.matrix(&here("weight"), &there("weight"), size(rows), size(k))?;
                    put.table(&here("bias"), &there("bias"), &[size(rows)])?;
                }
                Part::Norm => {
                    put.table(&here("weight"), &there(norm_weight), &[width])?;
                    put.table(&here("bias"), &there(norm_bias), &[width])?;
                }
            }
        }
    }
    let left = put.left(|name| {
        let own = name.strip_prefix(prefix).unwrap_or(name);
        UNUSED.iter().any(|unused| own.starts_with(unused) || name.starts_with(unused))
    });
    match left {
        None => Ok(()),
        Some(name) => Err(config.unexpected(
            "architectures",
            format!("tensor {name} is not part of a plain BERT encoder of {} layers", shape.layers),
        )),
    }
}
