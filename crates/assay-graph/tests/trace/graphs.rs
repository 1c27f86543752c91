//! Which files have a graph, and what it holds of their differences.

use std::sync::Arc;

use assay_gguf::write::{GgufWriter, TensorSpec};
use assay_gguf::{GgmlType, Gguf};
use assay_graph::{Graph, Kind, Trace, flags};
use assay_testkit::models::{Family, Format, TinyLlama, tiny_llama};

use crate::cases::model;

fn graph(model: TinyLlama) -> Result<Graph, String> {
    let bytes = tiny_llama(model);
    Graph::compile(&Gguf::parse(&bytes).unwrap(), &bytes).map_err(|error| error.to_string())
}

fn kinds(model: TinyLlama) -> Vec<Kind> {
    graph(TinyLlama { layers: 1, ..model }).unwrap().ops().iter().map(|op| op.kind).collect()
}

#[test]
fn a_block_is_these_operations() {
    use Kind::*;
    let attention = [Score, ChunkMax, Weigh, ChunkLanes, ChunkOut, RunMax, RunSum, RunOut, Attended];
    let start = [Token, Embed, Squares, Norm, Quantize, Product, Product, Product, Rotate, Rotate, Narrow, Narrow];
    let middle = [Quantize, Product, Add, Squares, Norm, Quantize, Product, Product, Gate, Quantize, Product, Add];
    let end = [Squares, Norm, Quantize, Product, Choose];
    let expect = [&start[..], &attention, &middle, &end].concat();
    assert_eq!(kinds(model(Family::Llama { scaled: true }, Format::Q8_0)), expect);
    assert_eq!(kinds(model(Family::Phi3, Format::Q8_0)), expect);
    let count = |family, kind| kinds(model(family, Format::Q8_0)).into_iter().filter(|k| *k == kind).count();
    assert_eq!(count(Family::Qwen2, Bias), 3);
    assert_eq!((count(Family::Qwen3, Norm), count(Family::Gemma3, Norm)), (5, 7));
    assert_eq!((count(Family::Gemma2, Norm), count(Family::Gemma2, Cap)), (5, 1));
    let floats = kinds(model(Family::Llama { scaled: false }, Format::F16));
    assert!(floats.iter().all(|kind| !matches!(kind, Quantize | Product)));
    assert_eq!(floats.iter().filter(|kind| **kind == Lanes).count(), 8);
}

#[test]
fn windows_caps_and_styles_are_in_the_words() {
    let of = |family, kind| {
        let graph = graph(model(family, Format::Q8_0)).unwrap();
        graph.ops().iter().filter(|op| op.kind == kind).copied().collect::<Vec<_>>()
    };
    let windows = |family| of(family, Kind::RunOut).iter().map(|op| op.extra).collect::<Vec<_>>();
    assert_eq!((windows(Family::Gemma), windows(Family::Gemma2)), (vec![0, 0], vec![24, 0]));
    let caps: Vec<u32> = of(Family::Gemma2, Kind::Score).iter().map(|op| op.y).collect();
    assert_eq!(caps, [2.0_f32.to_bits(); 2]);
    let tables: Vec<bool> = of(Family::Gemma3, Kind::Rotate).iter().map(|op| op.tensor != 0).collect();
    assert_eq!(tables, [true, true, false, false]);
    let neighbours = |family| of(family, Kind::Rotate)[0].has(flags::NEIGHBOURS);
    assert_eq!((neighbours(Family::Llama { scaled: false }), neighbours(Family::Qwen2)), (true, false));
    assert!(of(Family::Gemma, Kind::Gate)[0].has(flags::GELU) && !of(Family::Phi3, Kind::Gate)[0].has(flags::GELU));
    // One matrix, two products of parts of it.
    let fused = of(Family::Phi3, Kind::Product);
    assert_eq!(
        fused[..3].iter().map(|op| (op.tensor == fused[0].tensor, op.extra)).collect::<Vec<_>>(),
        [(true, 0), (true, 64), (true, 96)]
    );
}

#[test]
fn what_no_word_expresses_is_refused_by_name() {
    let plain = model(Family::Qwen3, Format::F16);
    let refused = |model: TinyLlama, expect: &str| {
        let error = graph(model).unwrap_err();
        assert!(error.contains(expect), "{error}");
    };
    refused(TinyLlama { d_model: 72, ..plain }, "token_embd.weight in F16 with rows of 72 values");
    refused(TinyLlama { ffn: 100, ..plain }, "blk.0.ffn_down.weight in F16 with rows of 100 values");
    // Heads of 10 values: their norms have no steps.
    refused(TinyLlama { d_model: 160, heads: 16, ..plain }, "blk.0.attn_q_norm.weight in F32 with rows of 26 values");
}

/// The header of a file with other tensors: `change` gives the sizes and format of each, or leaves it out. Their values
/// are without meaning, near 1 in vectors.
pub fn rewritten(
    gguf: &Gguf,
    change: impl Fn(&str, &[u64], GgmlType) -> Option<(Vec<u64>, GgmlType)>,
) -> (Gguf, Arc<Vec<u8>>) {
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        writer.set(key, value.clone());
    }
    for tensor in gguf.tensors() {
        if let Some((dims, ty)) = change(&tensor.name, &tensor.dims, tensor.ty) {
            writer.tensor(&tensor.name, &dims, ty).unwrap();
        }
    }
    let mut state = 1_u32;
    let values = |tensor: &TensorSpec| {
        let (scale, offset) = if tensor.dims.len() == 1 { (0.1, 1.0) } else { (0.1, 0.0) };
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            offset + scale * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        (0..tensor.count()).map(|_| next()).collect()
    };
    let bytes = writer.to_bytes(values).unwrap();
    (Gguf::parse(&bytes).unwrap(), Arc::new(bytes))
}

#[test]
fn a_tensor_that_is_missing_or_of_another_kind_is_named() {
    let bytes = tiny_llama(model(Family::Llama { scaled: false }, Format::Q8_0));
    let gguf = Gguf::parse(&bytes).unwrap();
    let error = |name: &str, to: Option<(Vec<u64>, GgmlType)>| {
        let change =
            |tensor: &str, dims: &[u64], ty| if tensor == name { to.clone() } else { Some((dims.to_vec(), ty)) };
        let (gguf, bytes) = rewritten(&gguf, change);
        Graph::compile(&gguf, &bytes).unwrap_err().to_string()
    };
    assert_eq!(error("blk.1.ffn_up.weight", None), "tensor blk.1.ffn_up.weight is missing");
    let halves = error("output_norm.weight", Some((vec![64], GgmlType::F16)));
    assert!(halves.contains("output_norm.weight in F16") && halves.contains("norms and biases are F32"), "{halves}");
    assert_eq!(
        error("blk.0.attn_v.weight", Some((vec![64, 31], GgmlType::Q8_0))),
        "tensor blk.0.attn_v.weight has 1984 values, the metadata asks for 2048"
    );
}

/// Sides of a dispute keep traces across threads.
#[test]
fn a_trace_can_be_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<Trace>();
}
