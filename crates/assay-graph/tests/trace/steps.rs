//! Every number of a trace against the chain of steps that a judge would repeat.

use std::collections::BTreeSet;

use assay_graph::{Kind, Op, Site, Source, Trace, Tree, evaluate, slots};

use crate::cases::{models, tokens, trace, traced};

/// Some numbers of an operation: the first, the last, and a few between that differ by operation and position.
fn sites(trace: &Trace, op: &Op, index: u16, position: u32) -> Vec<Site> {
    let leaves = trace.count(Tree::Leaves { position, op: index }).unwrap() as u32;
    let count = op.count_at(position.into(), trace.input_tokens().into());
    if leaves == 0 {
        return vec![];
    }
    let slot_count = u32::from(slots(op));
    let all = if op.block().is_some() { leaves * slot_count } else { count as u32 };
    let seed = u32::from(index) * 7919 + position * 104_729;
    let picked = BTreeSet::from([0, all - 1, all / 2, seed % all, (seed / 3) % all, (seed ^ 0x5bd1) % all]);
    picked
        .into_iter()
        .map(|e| Site { position, op: index, leaf: e / slot_count, slot: (e % slot_count) as u16 })
        .collect()
}

fn check(trace: &Trace, position: u32, kinds: &mut BTreeSet<Kind>) {
    let ops = trace.model().graph().ops().to_vec();
    for (index, op) in ops.iter().enumerate() {
        for site in sites(trace, op, index as u16, position) {
            if op.kind == Kind::Choose {
                continue;
            }
            kinds.insert(op.kind);
            let steps = trace.steps(site).unwrap();
            let chain = trace.chain(site, 0, steps).unwrap();
            let number = trace.number(site).unwrap();
            assert_eq!((chain[0], chain[steps as usize]), (0, number), "{site:?} of {op:?}");
            // A lane of a chunk that no position belongs to.
            let Some(last) = steps.checked_sub(1) else { continue };
            let stated = trace.operands(site, last).unwrap();
            assert_eq!(evaluate(op, site, last, trace.before(site, last).unwrap(), &stated.bytes), Some(number));
            // Whatever is read precedes it: in the graph, or at an earlier position.
            for operand in stated.operands.iter().filter(|operand| operand.source == Source::Trace) {
                let earlier = operand.position < u64::from(position)
                    || operand.op < site.op
                    || (operand.op == site.op && operand.leaf <= u64::from(site.leaf));
                assert!(earlier, "{site:?} reads {operand:?}");
            }
        }
    }
}

#[test]
fn every_number_is_what_its_steps_give() {
    let mut kinds = BTreeSet::new();
    for model in models() {
        let traced = traced(model);
        let trace = trace(&traced, &tokens(40, model.vocab), 36, None);
        for position in [0, 17, 30, 38] {
            check(&trace, position, &mut kinds);
        }
    }
    assert_eq!(kinds.len(), Kind::ALL.len() - 1, "kinds that occurred: {kinds:?}");
}

#[test]
fn also_behind_several_chunks_of_attention() {
    for model in models().into_iter().filter(|model| model.d_model == 64).take(8) {
        let traced = traced(model);
        let trace = trace(&traced, &tokens(560, model.vocab), 555, None);
        for position in [255, 256, 530, 558] {
            check(&trace, position, &mut BTreeSet::new());
        }
    }
}

#[test]
fn slots_behind_the_last_number_have_no_steps_and_are_zero() {
    let traced = traced(models()[0]);
    let trace = trace(&traced, &tokens(5, 300), 4, None);
    let score = traced.graph().ops().iter().position(|op| op.kind == Kind::Score).unwrap() as u16;
    // 4 heads, 4 keys.
    let site = |slot| Site { position: 3, op: score, leaf: 0, slot };
    assert_eq!((trace.steps(site(15)).unwrap(), trace.steps(site(16)).unwrap()), (16, 0));
    assert_eq!(trace.number(site(16)).unwrap(), 0);
    assert!(trace.number(site(15)).unwrap() != 0);
    assert!(trace.number(site(32)).is_err() && trace.operands(site(16), 0).is_err());
    assert!(
        trace.steps(Site { op: u16::MAX, ..site(0) }).is_err()
            && trace.number(Site { position: 4, ..site(0) }).is_err()
    );
}

#[test]
fn states_of_a_chain_are_cut_as_a_trial_cuts_them() {
    let traced = traced(models()[0]);
    let trace = trace(&traced, &tokens(8, 300), 6, None);
    let op = traced.graph().ops().iter().position(|op| op.kind == Kind::Score).unwrap() as u16;
    let site = Site { position: 5, op, leaf: 0, slot: 3 };
    let chain = trace.chain(site, 0, 16).unwrap();
    let cut = |low, high, parts| {
        let bytes = trace.states(site, low, high, parts).unwrap();
        bytes.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect::<Vec<_>>()
    };
    assert_eq!(cut(0, 16, 128), chain[1..16]);
    assert_eq!(cut(0, 16, 4), [chain[4], chain[8], chain[12]]);
    // Seven parts of three steps are six.
    assert_eq!(cut(0, 16, 7), [3, 6, 9, 12, 15].map(|at| chain[at]));
    assert_eq!(cut(5, 9, 2), [chain[7]]);
    assert!(cut(5, 6, 128).is_empty());
}
