//! Models that write text: the Llama, Mistral, Qwen2 and Qwen3 families as their makers publish them.
//!
//! Published rows of q and k hold the two halves of each rotated pair half a head apart. GGUF files of architecture
//! "llama" have them as neighbours, so these are reordered; the Qwen families keep the published order.

use serde_json::{Value, json};

use crate::ImportError;
use crate::bpe;
use crate::folder::{Folder, Weights};
use crate::json::Json;
use crate::plan::{Import, Options};
use crate::put::Put;

/// Values of `model_type` and the architectures they become.
const FAMILIES: &[(&str, Family)] =
    &[("llama", Family::Llama), ("mistral", Family::Llama), ("qwen2", Family::Qwen2), ("qwen3", Family::Qwen3)];

/// Widest head, as in the engine.
const HEAD_DIM_MAX: u32 = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Qwen2,
    Qwen3,
}

struct Shape {
    family: Family,
    layers: u32,
    width: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    feed_forward: u32,
    vocab: u32,
    /// Whether the embedding serves as the output, too.
    tied: bool,
}

/// Whether `model_type` is one of these families.
pub(crate) fn is_known(model_type: &str) -> bool {
    FAMILIES.iter().any(|(name, _)| *name == model_type)
}

pub(crate) fn plan<'a>(folder: &Folder<'a>, config: &Json, options: Options) -> Result<Import<'a>, ImportError> {
    let model_type = config.str("model_type")?.unwrap_or_default();
    let known = FAMILIES.iter().find(|(name, _)| *name == model_type);
    let (_, family) = known.ok_or_else(|| config.unexpected("model_type", "another family is expected"))?;
    refuse_unsupported(config, *family)?;
    let shape = Shape::read(config, *family)?;
    let architecture = family.architecture();
    let mut import = Import::new(architecture, folder, options.precision);
    let key = |name: &str| format!("{architecture}.{name}");
    import.set(&key("block_count"), shape.layers);
    import.set(&key("context_length"), config.require_count("max_position_embeddings")?);
    import.set(&key("embedding_length"), shape.width);
    import.set(&key("feed_forward_length"), shape.feed_forward);
    import.set(&key("vocab_size"), shape.vocab);
    import.set(&key("attention.head_count"), shape.heads);
    import.set(&key("attention.head_count_kv"), shape.kv_heads);
    import.set(&key("attention.key_length"), shape.head_dim);
    import.set(&key("attention.value_length"), shape.head_dim);
    import.set(&key("attention.layer_norm_rms_epsilon"), config.f64("rms_norm_eps")?.unwrap_or(1e-6) as f32);
    import.set(&key("rope.dimension_count"), shape.head_dim);
    if let Some(window) = window(config)? {
        import.set(&key("attention.sliding_window"), window);
    }
    put_rope(&mut import, config, &shape)?;
    // First the tensors: they show that the sizes are not just large numbers.
    put_tensors(&mut import, &folder.weights()?, config, &shape)?;
    bpe::put(&mut import, folder, config, shape.vocab)?;
    Ok(import)
}

impl Family {
    fn architecture(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }
}

impl Shape {
    fn read(config: &Json, family: Family) -> Result<Shape, ImportError> {
        let width = config.require_count("hidden_size")?;
        let heads = config.require_count("num_attention_heads")?;
        let head_dim = match config.count("head_dim")? {
            Some(head_dim) => head_dim,
            None if heads > 0 && width.is_multiple_of(heads) => width / heads,
            None => return Err(config.unexpected("num_attention_heads", "a divisor of hidden_size is expected")),
        };
        if head_dim == 0 || head_dim % 2 != 0 || head_dim > HEAD_DIM_MAX {
            let expected = format!("an even width of heads up to {HEAD_DIM_MAX} is expected, this is {head_dim}");
            return Err(config.unexpected("head_dim", expected));
        }
        Ok(Shape {
            family,
            layers: config.require_count("num_hidden_layers")?,
            width,
            heads,
            kv_heads: config.count("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            feed_forward: config.require_count("intermediate_size")?,
            vocab: config.require_count("vocab_size")?,
            tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
        })
    }
}

/// What would change the computation in ways that the engine does not have.
fn refuse_unsupported(config: &Json, family: Family) -> Result<(), ImportError> {
    config.only("hidden_act", &json!("silu"))?;
    config.only("mlp_bias", &json!(false))?;
    // Qwen2 has biases on q, k and v, whatever it says.
    if family != Family::Qwen2 {
        config.only("attention_bias", &json!(false))?;
    }
    config.only_one("partial_rotary_factor")?;
    if config.get("quantization_config").is_some() {
        return Err(config.unexpected("quantization_config", "weights in F64, F32, F16 and BF16 are imported"));
    }
    let layers = config.get("layer_types").and_then(Value::as_array);
    if layers.into_iter().flatten().any(|layer| layer != "full_attention" && layer != "sliding_attention") {
        return Err(config.unexpected("layer_types", "full_attention and sliding_attention are known"));
    }
    Ok(())
}

/// Positions that a token sees, where that is not all of them.
fn window(config: &Json) -> Result<Option<u32>, ImportError> {
    if config.bool("use_sliding_window")? == Some(false) {
        return Ok(None);
    }
    config.count("sliding_window")
}

/// The rotation's base, and how its frequencies are scaled.
fn put_rope(import: &mut Import<'_>, config: &Json, shape: &Shape) -> Result<(), ImportError> {
    // Newer configurations have base and scaling in one object.
    let scaling = ["rope_scaling", "rope_parameters"].into_iter().find(|path| config.get(path).is_some());
    let path = |key: &str| format!("{}.{key}", scaling.unwrap_or("rope_parameters"));
    let theta = match config.f64("rope_theta")? {
        Some(theta) => theta,
        None => config.f64("rope_parameters.rope_theta")?.unwrap_or(10_000.0),
    };
    let key = |name: &str| format!("{}.{name}", shape.family.architecture());
    import.set(&key("rope.freq_base"), theta as f32);
    let kind = ["rope_type", "type"].into_iter().map(path).find(|path| config.get(path).is_some());
    let Some(kind) = kind else {
        return match config.get(&path("factor")) {
            None => Ok(()),
            Some(_) => Err(config.unexpected(&path("rope_type"), "the way of scaling is expected")),
        };
    };
    match config.str(&kind)? {
        Some("default") => Ok(()),
        Some("linear") => {
            config.require(&path("factor"))?;
            import.set(&key("rope.scaling.type"), "linear");
            import.set(&key("rope.scaling.factor"), config.f64(&path("factor"))?.unwrap_or(1.0) as f32);
            Ok(())
        }
        Some("llama3") => {
            let number = |name: &str| {
                let path = path(name);
                config.require(&path)?;
                match config.f64(&path)? {
                    Some(number) if number > 0.0 => Ok(number),
                    _ => Err(config.unexpected(&path, "a number above 0 is expected")),
                }
            };
            let scaling = Llama3Scaling {
                factor: number("factor")?,
                low: number("low_freq_factor")?,
                high: number("high_freq_factor")?,
                context: number("original_max_position_embeddings")?,
            };
            import.values("rope_freqs.weight", scaling.factors(theta, shape.head_dim))
        }
        _ => Err(config.unexpected(&kind, "default, linear and llama3 are supported")),
    }
}

/// How Llama 3.1 and later scale: short waves not at all, long ones by `factor`, those between in between.
struct Llama3Scaling {
    factor: f64,
    low: f64,
    high: f64,
    /// Positions of the training before.
    context: f64,
}

impl Llama3Scaling {
    /// What the frequency of each pair is divided by.
    fn factors(&self, theta: f64, head_dim: u32) -> Vec<f32> {
        let Llama3Scaling { factor, low, high, context } = *self;
        (0..head_dim / 2)
            .map(|pair| {
                // The same bits on every machine, unlike that of the standard library.
                let wave = std::f64::consts::TAU * libm::pow(theta, f64::from(2 * pair) / f64::from(head_dim));
                if wave < context / high {
                    1.0
                } else if wave > context / low {
                    factor as f32
                } else {
                    let smooth = (context / wave - low) / (high - low);
                    (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
                }
            })
            .collect()
    }
}

fn put_tensors<'a>(
    import: &mut Import<'a>,
    weights: &Weights<'a>,
    config: &Json,
    shape: &Shape,
) -> Result<(), ImportError> {
    let [width, ffn, vocab, head_dim] = [shape.width, shape.feed_forward, shape.vocab, shape.head_dim].map(u64::from);
    let (q, kv) = (head_dim * u64::from(shape.heads), head_dim * u64::from(shape.kv_heads));
    let mut put = Put::new(import, weights, "");
    put.matrix("token_embd.weight", "model.embed_tokens.weight", vocab, width)?;
    for layer in 0..shape.layers {
        let here = |name: &str| format!("blk.{layer}.{name}");
        let there = |name: &str| format!("model.layers.{layer}.{name}");
        put.table(&here("attn_norm.weight"), &there("input_layernorm.weight"), &[width])?;
        for (name, rows, is_rotated) in [("q", q, true), ("k", kv, true), ("v", kv, false)] {
            let (here, there) = (here(&format!("attn_{name}")), there(&format!("self_attn.{name}_proj")));
            let (matrix, published) = (format!("{here}.weight"), format!("{there}.weight"));
            if is_rotated && shape.family == Family::Llama {
                put.rotated(&matrix, &published, (rows, width), head_dim)?;
            } else {
                put.matrix(&matrix, &published, rows, width)?;
            }
            if shape.family == Family::Qwen2 {
                put.table(&format!("{here}.bias"), &format!("{there}.bias"), &[rows])?;
            }
        }
        if shape.family == Family::Qwen3 {
            put.table(&here("attn_q_norm.weight"), &there("self_attn.q_norm.weight"), &[head_dim])?;
            put.table(&here("attn_k_norm.weight"), &there("self_attn.k_norm.weight"), &[head_dim])?;
        }
        put.matrix(&here("attn_output.weight"), &there("self_attn.o_proj.weight"), width, q)?;
        put.table(&here("ffn_norm.weight"), &there("post_attention_layernorm.weight"), &[width])?;
        put.matrix(&here("ffn_gate.weight"), &there("mlp.gate_proj.weight"), ffn, width)?;
        put.matrix(&here("ffn_up.weight"), &there("mlp.up_proj.weight"), ffn, width)?;
        put.matrix(&here("ffn_down.weight"), &there("mlp.down_proj.weight"), width, ffn)?;
    }
    put.table("output_norm.weight", "model.norm.weight", &[width])?;
    if !shape.tied {
        put.matrix("output.weight", "lm_head.weight", vocab, width)?;
    }
    // Frequencies that follow from the config; a second copy of what is tied.
    let left = put.left(|name| name.ends_with(".rotary_emb.inv_freq") || (shape.tied && name == "lm_head.weight"));
    match left {
        None => Ok(()),
        Some(name) => Err(config.unexpected(
            "model_type",
            format!("tensor {name} is not part of a plain model of this family with {} layers", shape.layers),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_waves_are_scaled_and_short_ones_are_not() {
        // Llama 3.1 8B; values of its published conversions.
        let scaling = Llama3Scaling { factor: 8.0, low: 1.0, high: 4.0, context: 8192.0 };
        let factors = scaling.factors(500_000.0, 128);
        assert_eq!((factors.len(), factors[0], factors[28], factors[63]), (64, 1.0, 1.0, 8.0));
        assert!(factors.is_sorted() && factors[29] > 1.0 && factors[34] < 8.0 && factors[35] == 8.0, "{factors:?}");
    }
}
