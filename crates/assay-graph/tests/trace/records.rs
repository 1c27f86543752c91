//! Vectors for the contracts: steps of real traces, with what each reads and gives, and the documents that a judge reads.
//!
//! A record, integers big-endian: word 32 bytes, operation u16, position u32, leaf u32, slot u16, step u32, steps u32, input
//! tokens u32, result of the step before u32, result of the step u32, number u32, its leaf and the stated operands, each
//! with a length u16 before it; then a count u8 of operands, each with source u8, position u32, operation u16, leaf u32,
//! offset u64 and length u16. `contracts/test/TraceVectors.t.sol` reads them.

use std::collections::BTreeMap;
use std::fmt::Write;

use alloy_primitives::{B256, hex};
use assay_graph::{Kind, Op, Site, Trace, TracedModel, Tree, slots};
use assay_testkit::models::{Family, Format, TinyLlama};
use assay_types::{
    CANONICAL_PROFILE, Finish, Grammar, GrammarKind, Job, LogitBias, Manifest, ModelId, Sampling, response_hash,
};

use crate::cases::{model, models, tokens, trace, traced};

/// What makes records alike: kind, format, flags, operands, and what of the word or the step changes the computation.
type Class = (Kind, u8, u8, usize, bool, bool, bool, bool);

/// Steps of traces of every family and format: `per_class` of each class, and of each model at most as many.
pub fn records(per_class: usize) -> Vec<u8> {
    let mut out = vec![];
    let mut counts = BTreeMap::new();
    let mut of_model = |model: TinyLlama, n: usize, positions: &[u32]| {
        let traced = traced(model);
        let trace = trace(&traced, &tokens(n, model.vocab), n as u32 - 3, None);
        for &position in positions {
            for (index, op) in traced.graph().ops().iter().enumerate().filter(|(_, op)| op.kind != Kind::Choose) {
                let many = per_class > 2;
                sites(&trace, op, index as u16, position, many, &mut |site, step| {
                    put(&trace, op, site, step, per_class, &mut counts, &mut out);
                });
            }
        }
    };
    for model in models() {
        of_model(model, 32, &[29, 3]);
    }
    for family in [Family::Llama { scaled: false }, Family::Gemma2, Family::Gemma3] {
        of_model(model(family, Format::Q8_0), 540, &[538, 300]);
    }
    out
}

/// Some numbers of an operation, and some of the steps of each.
fn sites(trace: &Trace, op: &Op, index: u16, position: u32, many: bool, visit: &mut dyn FnMut(Site, u64)) {
    let leaves = trace.count(Tree::Leaves { position, op: index }).unwrap();
    if leaves == 0 {
        return;
    }
    let per_leaf = u64::from(slots(op));
    let count = op.count_at(position.into(), trace.input_tokens().into());
    let all = if op.block().is_some() { leaves * per_leaf } else { count };
    let seed = u64::from(index) * 7919 + u64::from(position) * 104_729;
    let rest = if many { 12 } else { 2 };
    let mut picked: Vec<u64> = vec![all - 1, seed % all];
    picked.extend((0..rest).map(|i| (seed + i * 15_485_863) / 3 % all));
    for e in picked {
        let site = Site { position, op: index, leaf: (e / per_leaf) as u32, slot: (e % per_leaf) as u16 };
        let steps = trace.steps(site).unwrap();
        // A lane of a chunk that has no position.
        if steps > 0 {
            [0, seed % steps, steps - 1].into_iter().for_each(|step| visit(site, step));
        }
    }
}

fn put(
    trace: &Trace,
    op: &Op,
    site: Site,
    step: u64,
    per_class: usize,
    counts: &mut BTreeMap<Class, usize>,
    out: &mut Vec<u8>,
) {
    let (steps, stated) = (trace.steps(site).unwrap(), trace.operands(site, step).unwrap());
    let scale = op.block().is_some_and(|width| usize::from(site.slot) == width);
    let (ends, begins) = (step + 1 == steps, step == 0);
    let windowed = op.extra != 0 || op.y != 0 || (op.kind == Kind::Embed && op.x != 0) || scale;
    let class = (op.kind, op.format, op.flags, stated.operands.len(), windowed, ends, begins, op.y != 0);
    let count = counts.entry(class).or_default();
    if *count >= per_class {
        return;
    }
    *count += 1;
    let chain = trace.chain(site, step, step + 1).unwrap();
    let leaf = trace.leaves(site.position, site.op, site.leaf.into(), 1).unwrap();
    out.extend(op.word().to_be_bytes::<32>());
    out.extend(site.op.to_be_bytes());
    out.extend(site.position.to_be_bytes());
    out.extend(site.leaf.to_be_bytes());
    out.extend(site.slot.to_be_bytes());
    for field in [step as u32, steps as u32, trace.input_tokens(), chain[0], chain[1], trace.number(site).unwrap()] {
        out.extend(field.to_be_bytes());
    }
    for bytes in [&leaf, &stated.bytes] {
        out.extend((bytes.len() as u16).to_be_bytes());
        out.extend(bytes);
    }
    out.push(stated.operands.len() as u8);
    for operand in &stated.operands {
        out.push(operand.source as u8);
        out.extend((operand.position as u32).to_be_bytes());
        out.extend(operand.op.to_be_bytes());
        out.extend((operand.leaf as u32).to_be_bytes());
        out.extend(operand.offset.to_be_bytes());
        out.extend((operand.length as u16).to_be_bytes());
    }
}

/// The committed vectors.
pub fn golden_json() -> String {
    let mut json = String::from("{\n  \"about\": \"written by crates/assay-graph/examples/trace_vectors.rs\",\n");
    writeln!(json, "  \"records\": \"0x{}\",\n  \"graphs\": [", hex::encode(records(1))).unwrap();
    let graphs: Vec<String> = models().into_iter().take(Family::ALL.len()).map(graph).collect();
    writeln!(json, "{}\n  ],\n  \"jobs\": [", graphs.join(",\n")).unwrap();
    writeln!(json, "{}\n  ],\n  \"responses\": [", jobs().join(",\n")).unwrap();
    writeln!(json, "{}\n  ]\n}}", responses().join(",\n")).unwrap();
    json
}

/// The words of a model's operations, what they hash to, and a manifest.
fn graph(model: TinyLlama) -> String {
    let traced: std::sync::Arc<TracedModel> = traced(model);
    let head = *traced.graph().head();
    let words: Vec<u8> = traced.graph().ops().iter().flat_map(|op| op.word().to_be_bytes::<32>()).collect();
    let manifest = Manifest {
        profile: CANONICAL_PROFILE.to_owned(),
        file_sha256: B256::repeat_byte(1),
        file_len: 0x0102_0304_0506,
        weights_root: traced.weights_root(),
        tokenizer_hash: B256::repeat_byte(2),
        rope_hash: B256::repeat_byte(3),
        graph_hash: head.hash(),
        name: model.family.name().to_owned(),
        license: "Apache-2.0".to_owned(),
    };
    format!(
        "    {{\"name\": \"{}\", \"words\": \"0x{}\", \"ops\": {}, \"weightLeaves\": {}, \"rotationLeaves\": {},\n     \
         \"rotationRoot\": \"{}\", \"opsRoot\": \"{}\", \"graphHash\": \"{}\", \"weightsRoot\": \"{}\",\n     \
         \"manifest\": \"0x{}\", \"modelId\": \"{}\"}}",
        model.family.name(),
        hex::encode(words),
        head.ops,
        head.weight_leaves,
        head.rotation_leaves,
        head.rotation_root,
        head.ops_root,
        head.hash(),
        manifest.weights_root,
        hex::encode(manifest.canonical_bytes()),
        manifest.model_id(),
    )
}

/// Jobs with every field that moves another, and whether a judge can say what the sampler takes.
fn jobs() -> Vec<String> {
    let plain = Job {
        model_id: ModelId(B256::repeat_byte(9)),
        prompt: vec![5, 0x0102_0304, 7],
        prefix: vec![],
        max_tokens: 64,
        sampling: Sampling::GREEDY,
        logit_bias: vec![],
        grammar: None,
        stop: vec![],
        ignore_eos: false,
        logprobs: None,
        embed: None,
        nonce: B256::repeat_byte(8),
    };
    let warm = Sampling { temperature_micro: 700_000, top_k: 40, seed: u64::MAX, ..Sampling::GREEDY };
    let with = |sampling| Job { sampling, ..plain.clone() };
    let cases = [
        (plain.clone(), true),
        (Job { prefix: vec![11, u32::MAX, 13, 14], stop: vec!["\n".into()], ignore_eos: true, ..plain.clone() }, true),
        (Job { logprobs: Some(3), prompt: (0..70).collect(), ..plain.clone() }, true),
        (with(warm), false),
        (with(Sampling { top_k: 1, ..warm }), true),
        (with(Sampling { min_p_micro: 9, top_p_micro: 5, seed: 3, ..Sampling::GREEDY }), true),
        (with(Sampling { repetition_penalty_micro: 1_000_001, ..Sampling::GREEDY }), false),
        (with(Sampling { frequency_penalty_micro: -1, ..Sampling::GREEDY }), false),
        (with(Sampling { presence_penalty_micro: 1, ..Sampling::GREEDY }), false),
        (Job { logit_bias: vec![LogitBias { token: 1, bias_micro: 0 }], ..plain.clone() }, false),
        (Job { grammar: Some(Grammar::new(GrammarKind::Regex, "a")), ..plain.clone() }, false),
    ];
    cases
        .iter()
        .map(|(job, greedy)| {
            let input: Vec<String> = job.prompt.iter().chain(&job.prefix).map(u32::to_string).collect();
            format!(
                "    {{\"job\": \"0x{}\", \"requestHash\": \"{}\", \"input\": [{}], \"greedy\": {greedy}}}",
                hex::encode(job.canonical_bytes()),
                job.request_hash(),
                input.join(", ")
            )
        })
        .collect()
}

fn responses() -> Vec<String> {
    let cases: [(&[u32], Finish); 3] =
        [(&[1], Finish::Stop), (&[9, u32::MAX, 0], Finish::Length), (&[4, 4, 4, 4], Finish::Open)];
    cases
        .iter()
        .map(|(output, finish)| {
            let mut bytes = b"assay/response/1".to_vec();
            bytes.extend((output.len() as u32).to_be_bytes());
            bytes.extend(output.iter().flat_map(|token| token.to_be_bytes()));
            bytes.push(finish.code());
            format!(
                "    {{\"response\": \"0x{}\", \"responseHash\": \"{}\", \"output\": {output:?}}}",
                hex::encode(bytes),
                response_hash(output, *finish)
            )
        })
        .collect()
}
