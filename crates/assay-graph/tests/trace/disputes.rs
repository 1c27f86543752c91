//! What the sides of a dispute ask of traces: nodes, openings, and traces that lie.

use assay_gguf::Gguf;
use assay_graph::{Kind, Lie, Op, Operand, Revealed, Site, Source, Trace, TracedModel, Tree, tree};
use assay_testkit::models::{Family, Format};
use std::sync::Arc;

use crate::cases::{file, model, tokens, trace, traced};

const INPUT: u32 = 20;

fn llama() -> Arc<TracedModel> {
    traced(model(Family::Llama { scaled: false }, Format::Q8_0))
}

fn op_of(model: &TracedModel, kind: Kind, skip: usize) -> (u16, Op) {
    let (at, op) = model.graph().ops().iter().enumerate().filter(|(_, op)| op.kind == kind).nth(skip).unwrap();
    (at as u16, *op)
}

/// As `Trial._requireInTrace` climbs.
fn climbs(trace: &Trace, position: u32, op: u16, leaf: u64, opening: &assay_graph::Opening) -> alloy_primitives::B256 {
    let above = tree::height_of(trace.model().graph().ops().len() as u64) + tree::height_of(trace.positions().into());
    let within = opening.path.len() as u32 - above;
    let ops = tree::height_of(trace.model().graph().ops().len() as u64);
    let index = ((((u64::from(position)) << ops) + u64::from(op)) << within) + leaf;
    tree::climb(tree::leaf_hash(&opening.leaf), index, &opening.path)
}

#[test]
fn nodes_of_every_height_lead_to_the_root() {
    let model = llama();
    let trace = trace(&model, &tokens(45, 300), INPUT, None);
    let (wide, _) = op_of(&model, Kind::Squares, 0);
    for tree in [Tree::Positions, Tree::Ops { position: 30 }, Tree::Leaves { position: 30, op: wide + 1 }] {
        let count = trace.count(tree).unwrap();
        let height = tree::height_of(count);
        let root = trace.nodes(tree, height, 0, 1).unwrap()[0];
        for at in 0..=height {
            let nodes = trace.nodes(tree, at, 0, usize::MAX).unwrap();
            assert_eq!(nodes.len() as u64, count.div_ceil(1 << at));
            assert_eq!(tree::fold(&nodes, height - at, at), root, "{tree:?} at {at}");
            let second = trace.nodes(tree, at, 1, 2).unwrap();
            assert_eq!(second, nodes.iter().skip(1).take(2).copied().collect::<Vec<_>>());
        }
    }
    assert_eq!(trace.nodes(Tree::Positions, tree::height_of(44), 0, 1).unwrap()[0], trace.root());
    assert!(trace.nodes(Tree::Ops { position: 44 }, 0, 0, 1).is_err());
}

#[test]
fn leaves_open_to_the_root() {
    let model = llama();
    let trace = trace(&model, &tokens(45, 300), INPUT, None);
    for (position, kind, skip) in
        [(0, Kind::Token, 0), (3, Kind::Narrow, 1), (30, Kind::Quantize, 2), (43, Kind::Choose, 0)]
    {
        let (op, _) = op_of(&model, kind, skip);
        let last = trace.count(Tree::Leaves { position, op }).unwrap() - 1;
        let opening = trace.open(position, op, last, &Revealed::default()).unwrap();
        assert_eq!(opening.leaf, trace.leaves(position, op, last, 1).unwrap());
        assert_eq!(climbs(&trace, position, op, last, &opening), trace.root(), "{kind:?} at {position}");
        assert!(trace.open(position, op, last + 1, &Revealed::default()).is_err());
    }
    // The head of the graph has no numbers where no token was chosen.
    let (choose, _) = op_of(&model, Kind::Choose, 0);
    assert_eq!(trace.count(Tree::Leaves { position: 0, op: choose }).unwrap(), 0);
    assert_eq!(trace.nodes(Tree::Ops { position: 0 }, 0, choose.into(), 1).unwrap(), [alloy_primitives::B256::ZERO]);
}

/// Words, weights and rotation tables open to what a manifest commits to.
#[test]
fn the_model_opens_to_its_roots() {
    for family in [Family::Llama { scaled: false }, Family::Gemma3] {
        let parameters = model(family, Format::Q8_0);
        let (gguf, bytes) = file(parameters);
        let model = Arc::new(TracedModel::new(&gguf, Arc::clone(&bytes) as _).unwrap());
        let trace = trace(&model, &tokens(30, 300), INPUT, None);
        let head = *model.graph().head();
        for (at, op) in model.graph().ops().iter().enumerate() {
            let leaf = tree::leaf_hash(&op.word().to_be_bytes::<32>());
            assert_eq!(tree::climb(leaf, at as u64, &model.graph().word_path(at as u16)), head.ops_root);
        }
        let (product, op) = op_of(&model, Kind::Product, 0);
        let stated = trace.operands(Site::of(3, product, 1), 1).unwrap();
        assert_eq!(stated.operands[0].source, Source::Weights);
        let expect = tensor_of(&gguf, &bytes, &op)[stated.operands[0].offset as usize..][..34].to_vec();
        assert_eq!(stated.bytes[..34], expect);
        // 30 blocks of 34 bytes and 4 bytes more are in a leaf.
        let across = Operand { offset: 34 * 30, length: 34, ..stated.operands[0] };
        assert_eq!((across.parts(), stated.operands[0].parts()), (2, 1));
        let [first, second] = [0, 1].map(|part| trace.open_model(&across, part).unwrap());
        let joined = [&first.leaf[34 * 30..], &second.leaf[..30]].concat();
        assert_eq!(joined, tensor_of(&gguf, &bytes, &op)[34 * 30..34 * 31]);
        let leaf = across.leaf + 1;
        assert_eq!(root_of_model(&second, leaf, head.weight_leaves.into()), model.weights_root());
        assert_ne!(root_of_model(&second, leaf - 1, head.weight_leaves.into()), model.weights_root());

        // The last rotation is one of the local table, if there is one.
        for skip in [0, 2] {
            let (rotate, _) = op_of(&model, Kind::Rotate, skip);
            let stated = trace.operands(Site::of(7, rotate, 2), 0).unwrap();
            for (operand, at) in stated.operands[2..].iter().zip([8, 12]) {
                let opening = trace.open_model(operand, 0).unwrap();
                let leaf = operand.leaf + operand.offset / 1024;
                assert_eq!(root_of_model(&opening, leaf, head.rotation_leaves.into()), head.rotation_root);
                let within = (operand.offset % 1024) as usize;
                assert_eq!(opening.leaf[within..within + 4], stated.bytes[at..at + 4], "{operand:?}");
            }
        }
    }
}

fn tensor_of<'a>(gguf: &Gguf, bytes: &'a [u8], op: &Op) -> &'a [u8] {
    let mut leaf = 0;
    for tensor in gguf.tensors() {
        if leaf == u64::from(op.tensor) {
            return gguf.tensor_bytes(bytes, tensor).unwrap();
        }
        leaf += tensor.len.div_ceil(1024);
    }
    panic!("no tensor begins at leaf {}", op.tensor);
}

/// As `TraceTree.rootOfModel` climbs.
fn root_of_model(opening: &assay_graph::Opening, mut index: u64, mut n: u64) -> alloy_primitives::B256 {
    let mut hash = tree::leaf_hash(&opening.leaf);
    let mut path = opening.path.iter();
    while n > 1 {
        if index ^ 1 < n {
            let beside = path.next().unwrap();
            hash =
                if index.is_multiple_of(2) { tree::node_hash(hash, *beside) } else { tree::node_hash(*beside, hash) };
        }
        index >>= 1;
        n = n.div_ceil(2);
    }
    assert_eq!(path.next(), None);
    hash
}

#[test]
fn a_lie_changes_its_own_hashes_and_no_other() {
    let model = llama();
    let tokens = tokens(45, 300);
    let honest = trace(&model, &tokens, INPUT, None);
    let (op, _) = op_of(&model, Kind::Product, 3);
    let site = Site { position: 21, op, leaf: 1, slot: 5 };
    let lie = Lie { site, flip: 0x40, from_step: 1 };
    let liar = trace(&model, &tokens, INPUT, Some(lie));
    assert_eq!(liar.number(site).unwrap(), honest.number(site).unwrap() ^ 0x40);
    assert_eq!(liar.chosen(), honest.chosen());
    let differing = |tree: Tree| {
        let (ours, theirs) =
            (honest.nodes(tree, 0, 0, usize::MAX).unwrap(), liar.nodes(tree, 0, 0, usize::MAX).unwrap());
        (0..ours.len()).filter(|at| ours[*at] != theirs[*at]).collect::<Vec<_>>()
    };
    assert_eq!(differing(Tree::Positions), [21]);
    assert_eq!(differing(Tree::Ops { position: 21 }), [usize::from(op)]);
    assert_eq!(differing(Tree::Leaves { position: 21, op }), [1]);
    let (ours, theirs) = (honest.chain(site, 0, 2).unwrap(), liar.chain(site, 0, 2).unwrap());
    assert_eq!((ours[1], ours[2] ^ 0x40), (theirs[1], theirs[2]));
}

/// A challenger opens a number of the liar's trace from its own and what the liar revealed on the way down.
#[test]
fn with_the_reveals_of_a_liar_its_trace_can_be_opened() {
    let model = llama();
    let tokens = tokens(45, 300);
    let honest = trace(&model, &tokens, INPUT, None);
    let (run_max, _) = op_of(&model, Kind::ChunkOut, 1);
    let site = Site { position: 33, op: run_max, leaf: 1, slot: 9 };
    let liar = trace(&model, &tokens, INPUT, Some(Lie { site, flip: 1 << 20, from_step: 0 }));
    let mut revealed = Revealed::default();
    // Down from each root, 32 children at a time.
    for (tree, index) in [(Tree::Positions, 33), (Tree::Ops { position: 33 }, u64::from(run_max))] {
        let mut remaining = tree::height_of(liar.count(tree).unwrap());
        while remaining > 0 {
            let levels = remaining.min(5);
            let height = remaining - levels;
            let first = index >> remaining << levels;
            revealed.add(tree, height, first, liar.nodes(tree, height, first, 32).unwrap());
            remaining = height;
        }
    }
    let leaves = liar.leaves(33, run_max, 0, 2).unwrap();
    revealed.add_leaves(33, run_max, 0, 128, leaves);
    // Of an earlier position, of the same position, of the same operation, and the lie itself.
    for (position, op, leaf) in [(5, 20, 0), (33, 3, 1), (33, run_max, 0), (33, run_max, 1)] {
        let opening = honest.open(position, op, leaf, &revealed).unwrap();
        assert_eq!(opening, liar.open(position, op, leaf, &Revealed::default()).unwrap(), "{position} {op} {leaf}");
        assert_eq!(climbs(&liar, position, op, leaf, &opening), liar.root());
        assert_ne!(honest.open(position, op, leaf, &Revealed::default()).unwrap(), opening);
    }
}

#[test]
fn what_cannot_be_traced_is_refused() {
    use assay_graph::{TraceError, TraceOptions, greedy};
    let model = llama();
    let compute = |n: usize, input: u32| {
        let options = TraceOptions { threads: 1, lie: None };
        Trace::compute(Arc::clone(&model), tokens(n, 300), input, options, &mut greedy, &mut |_, _| {}).map(|_| ())
    };
    assert!(matches!(compute(5, 0), Err(TraceError::NoTokens { input: 0, output: 5 })));
    assert!(matches!(compute(5, 5), Err(TraceError::NoTokens { input: 5, output: 0 })));
    assert!(matches!(compute(1026, 5), Err(TraceError::TooLong { found: 1025, max: 1024 })));
    assert!(compute(2, 1).is_ok());
}

/// A token that the model does not have is read as NaN, which convicts whoever signed for it.
#[test]
fn a_token_that_there_is_not_is_found() {
    let model = llama();
    let trace = trace(&model, &[1, 2, 300, 4], 2, None);
    let (embed, _) = op_of(&model, Kind::Embed, 0);
    assert_eq!(trace.first_nan(), Some(Site { position: 2, op: embed, leaf: 0, slot: 0 }));
    assert_eq!(trace.chosen()[1], u32::MAX);
    assert_eq!(trace.chain(Site::of(2, embed, 0), 0, 1).unwrap()[1], 0x7fc0_0000);
}
