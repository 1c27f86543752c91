//! The trace against the engine, which computes the same bits in another way.

use std::path::Path;

use assay_engine::{KvPool, LOGIT_ROWS, Model, Runner, Slice};
use assay_gguf::Gguf;
use assay_graph::{Trace, TraceOptions, TracedModel, Tree, greedy};

use crate::cases::{file, models, tokens};

/// Bits of the logits of each output token, as the engine computes them in one prefill.
fn logits(model: &Model, tokens: &[u32], input: usize) -> Vec<Vec<u32>> {
    let mut runner = Runner::new(2);
    let fed = &tokens[..tokens.len() - 1];
    let mut pool = KvPool::new(model.kv_shape(), fed.len());
    let mut kv = pool.reserve(fed.len()).unwrap();
    pool.grow(&mut kv, fed.len());
    let slice = Slice { kv: &mut kv, tokens: fed, logits_from: input - 1 };
    assert_eq!(runner.step(model, &mut [slice]), [true]);
    let n = runner.n_asked(model);
    let mut rows = vec![];
    for first in (0..n).step_by(LOGIT_ROWS) {
        let logits = runner.logits(model, first, LOGIT_ROWS.min(n - first));
        rows.extend(logits.chunks(model.config().vocab).map(|row| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>()));
    }
    rows
}

fn check(gguf: &Gguf, bytes: std::sync::Arc<Vec<u8>>, tokens: &[u32], input: u32, what: &str) {
    let model = Model::load(gguf, &bytes).unwrap();
    let expect = logits(&model, tokens, input as usize);
    let traced = std::sync::Arc::new(TracedModel::new(gguf, bytes).unwrap());
    let logits_op = traced.graph().ops()[usize::from(traced.graph().choose_op())].a;
    let mut seen = vec![];
    let mut choose = |index: usize, row: &[f32]| {
        assert_eq!(index, seen.len());
        seen.push(row.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        greedy(index, row)
    };
    let options = TraceOptions { threads: 2, lie: None };
    let trace = Trace::compute(traced, tokens.to_vec(), input, options, &mut choose, &mut |_, _| {}).unwrap();
    assert!(seen == expect, "{what}: other logits than the engine's");
    assert_eq!(trace.non_finite(), None, "{what}");
    for (index, row) in expect.iter().enumerate() {
        let best = greedy(index, &row.iter().map(|bits| f32::from_bits(*bits)).collect::<Vec<_>>());
        assert_eq!(Some(trace.chosen()[index]), best, "{what}");
    }
    // The numbers that are computed again are those of the first pass.
    let last = trace.positions() - 1;
    let leaves = trace.count(Tree::Leaves { position: last, op: logits_op }).unwrap();
    let again = trace.leaves(last, logits_op, 0, leaves).unwrap();
    let again: Vec<u32> = again.as_chunks().0.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect();
    assert!(again[..model.config().vocab] == expect[expect.len() - 1], "{what}");
    for position in [0, input / 2, last] {
        let own = trace.nodes(Tree::Positions, 0, position.into(), 1).unwrap()[0];
        let ops = trace.nodes(Tree::Ops { position }, 0, 0, usize::MAX).unwrap();
        assert_eq!(assay_graph::tree::root(&ops), own, "{what}, position {position}");
    }
}

#[test]
fn logits_and_choices_of_every_family_and_format_are_the_engines() {
    for model in models() {
        let (gguf, bytes) = file(model);
        let what = format!("{} in {:?}", model.family.name(), model.format);
        check(&gguf, bytes, &tokens(75, model.vocab), 70, &what);
    }
}

#[test]
fn so_are_those_behind_several_chunks_of_attention() {
    for model in models().into_iter().filter(|model| model.d_model == 64) {
        let (gguf, bytes) = file(model);
        check(&gguf, bytes, &tokens(600, model.vocab), 597, model.family.name());
    }
}

#[test]
fn so_are_those_of_the_shipped_model() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/assay-tiny/assay-tiny-q8_0.gguf");
    let bytes = std::sync::Arc::new(std::fs::read(path).unwrap());
    let gguf = Gguf::parse(&bytes).unwrap();
    check(&gguf, bytes, &tokens(300, 2048), 280, "assay-tiny");
}
