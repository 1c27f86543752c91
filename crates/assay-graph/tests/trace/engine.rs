//! The trace against the engine, which computes the same bits in another way.

use std::path::Path;

use assay_engine::{KvPool, LOGIT_ROWS, Model, Replay, Runner, Slice, chooser, replay};
use assay_gguf::Gguf;
use assay_graph::{Kind, Trace, TraceOptions, TracedModel, Tree, greedy};
use assay_testkit::models::{Family, Format};
use assay_types::{B256, Finish, Job, ModelId, Sampling};

use crate::cases::{file, model, models, tokens, traced};

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
    assert_eq!(trace.first_nan(), None, "{what}");
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

/// Quantizers write files in which formats take turns.
#[test]
fn so_are_those_of_mixed_formats() {
    use assay_gguf::GgmlType;
    let (gguf, _) = file(model(Family::Llama { scaled: true }, Format::Q4K));
    let formats = [GgmlType::Q6_K, GgmlType::Q4_K, GgmlType::Q8_0, GgmlType::F16, GgmlType::Q5_K, GgmlType::Q4_0];
    let (gguf, bytes) = crate::graphs::rewritten(&gguf, |name, dims, ty| {
        let turn = name.bytes().map(usize::from).sum::<usize>() % formats.len();
        Some((dims.to_vec(), if dims.len() == 1 { ty } else { formats[turn] }))
    });
    let kinds: std::collections::BTreeSet<u32> = gguf.tensors().iter().map(|tensor| tensor.ty.0).collect();
    assert!(kinds.len() >= 6, "{kinds:?}");
    check(&gguf, bytes, &tokens(30, 300), 27, "mixed formats");
}

/// A sum of squares that is infinite gives zeros, in the engine as well: nothing about it is dishonest.
#[test]
fn an_overflow_without_consequence_is_part_of_an_honest_trace() {
    let (gguf, bytes) = file(model(Family::Llama { scaled: false }, Format::F32));
    let mut bytes = bytes.to_vec();
    let table = gguf.tensor("token_embd.weight").unwrap();
    let (start, len) = (table.offset as usize, table.len as usize);
    bytes[start..start + len].as_chunks_mut().0.iter_mut().for_each(|value| *value = 1.5e19_f32.to_le_bytes());
    let bytes = std::sync::Arc::new(bytes);
    check(&gguf, std::sync::Arc::clone(&bytes), &tokens(12, 300), 9, "overflow");
    let model = std::sync::Arc::new(TracedModel::new(&gguf, bytes).unwrap());
    let squares = model.graph().ops().iter().position(|op| op.kind == Kind::Squares).unwrap() as u16;
    let trace = crate::cases::trace(&model, &tokens(12, 300), 9, None);
    let first = trace.leaves(0, squares, 0, 1).unwrap();
    assert_eq!(first[..4], f32::INFINITY.to_bits().to_be_bytes());
}

/// What a job with temperature, penalties and a bias takes is what a replay expects, whatever the output says.
#[test]
fn the_sampler_of_a_job_chooses_as_a_replay_does() {
    let parameters = model(Family::Qwen2, Format::Q8_0);
    let (gguf, bytes) = file(parameters);
    let model = Model::load(&gguf, &bytes).unwrap();
    let sampling = Sampling {
        temperature_micro: 1_500_000,
        repetition_penalty_micro: 1_300_000,
        presence_penalty_micro: 500_000,
        seed: 11,
        ..Sampling::GREEDY
    };
    let job = Job {
        model_id: ModelId(B256::ZERO),
        prompt: tokens(9, parameters.vocab),
        prefix: vec![17],
        max_tokens: 20,
        sampling,
        logit_bias: vec![],
        grammar: None,
        stop: vec![],
        ignore_eos: true,
        logprobs: None,
        embed: None,
        nonce: B256::ZERO,
    };
    let traced = traced(parameters);
    let mut output = tokens(6, parameters.vocab);
    let mut runner = Runner::new(1);
    for right in 0..output.len() {
        let all = [job.prompt.as_slice(), &job.prefix, &output].concat();
        let mut choose = chooser(&model, &job, &output).unwrap();
        let options = TraceOptions { threads: 1, lie: None };
        let trace =
            Trace::compute(std::sync::Arc::clone(&traced), all, 10, options, &mut choose, &mut |_, _| {}).unwrap();
        let chosen = trace.chosen()[right];
        if output[right] != chosen {
            let expect = Replay::FirstWrong { index: right, expected: Some(chosen), got: output[right] };
            assert_eq!(replay(&model, &mut runner, &job, &output, Finish::Open).unwrap(), expect);
            output[right] = chosen;
        }
    }
    assert_eq!(replay(&model, &mut runner, &job, &output, Finish::Open).unwrap(), Replay::Exact);
}
