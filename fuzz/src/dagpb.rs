//! Blocks, names and streams that come from strangers' gateways: CIDs, dag-pb nodes, CAR streams, and whole trees.

use crate::input::Input;
use crate::limit::{bounded, printable};
use assay_dag::{
    Assembly, Builder, CarReader, Cid, Codec, Layout, Leaves, Limits, Node, Version, car_header, car_section, wrapped_leaf,
};
use std::collections::HashMap;

/// What reading may take per byte of the input, and besides.
const GROWTH_MAX: usize = 64;
const SLACK: usize = 1 << 16;
/// A tree's bounds; small, so that they are met.
const LIMITS: Limits = Limits { file_len_max: 1 << 20, blocks_max: 4096 };
const TREE_BYTES_MAX: usize = 8 << 20;
const NODES_MAX: usize = 24;

pub fn run(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    let bytes_max = GROWTH_MAX * data.len() + SLACK;
    match kind % 4 {
        0 => bounded("a node", bytes_max, || node(data)),
        1 => bounded("a name", bytes_max, || name(data)),
        2 => bounded("a stream", bytes_max, || stream(data)),
        _ => bounded("a tree", TREE_BYTES_MAX, || tree(data)),
    }
}

fn node(data: &[u8]) {
    match Node::decode(Codec::DagPb, data) {
        Ok(Node::Leaf(bytes)) => assert!(bytes.len() < data.len()),
        Ok(Node::File(node)) => {
            assert!(!node.children.is_empty() && node.children.iter().all(|child| child.len > 0));
            assert_eq!(node.children.iter().map(|child| child.len).sum::<u64>(), node.len);
        }
        Ok(Node::Directory(_)) => (),
        Err(error) => printable(&error),
    }
}

fn name(data: &[u8]) {
    match Cid::from_bytes(data) {
        Ok(cid) => assert_eq!(cid.to_string().parse(), Ok(cid)),
        Err(error) => printable(&error),
    }
    match String::from_utf8_lossy(data).parse::<Cid>() {
        Ok(cid) => assert_eq!(Cid::from_bytes(&cid.to_bytes()), Ok(cid)),
        Err(error) => printable(&error),
    }
}

fn stream(data: &[u8]) {
    let Some((&piece, data)) = data.split_first() else { return };
    let mut reader = CarReader::new();
    for piece in data.chunks(usize::from(piece) + 1) {
        reader.feed(piece);
        loop {
            match reader.next_block() {
                Ok(Some((cid, block))) => assert!(block.len() < data.len() && cid.to_bytes().len() < data.len()),
                Ok(None) => break,
                Err(error) => return printable(&error),
            }
        }
    }
    let _ = reader.finish();
}

/// Nodes whose children are earlier blocks, with lengths that may be lies; the last one is the root.
fn tree(data: &[u8]) {
    let mut input = Input::new(data);
    let leaves = [&b""[..], b"a", b"bc", b"defghijk"];
    let mut made: Vec<(Cid, u64)> = vec![];
    let mut blocks = HashMap::new();
    for leaf in leaves {
        let wrapped = wrapped_leaf(leaf);
        for (codec, block) in [(Codec::Raw, leaf.to_vec()), (Codec::DagPb, wrapped)] {
            let cid = Cid::of(Version::V1, codec, &block);
            made.push((cid, leaf.len() as u64));
            blocks.insert(cid, block);
        }
    }
    for _ in 0..NODES_MAX {
        if input.is_empty() {
            break;
        }
        let (mut block, mut lens, mut sum) = (vec![], vec![], 0_u64);
        for _ in 0..1 + input.u8() % 12 {
            let (cid, len) = input.pick(&made);
            // Seldom a lie.
            let len = if input.u8() == 255 { u64::from(input.u8()) } else { len };
            sum = sum.saturating_add(len);
            let cid = cid.to_bytes();
            block.extend([0x12, cid.len() as u8 + 2, 0x0a, cid.len() as u8]);
            block.extend(cid);
            lens.push(0x20);
            put(&mut lens, len);
        }
        let mut inner = vec![8, 2, 0x18];
        put(&mut inner, sum);
        inner.extend(lens);
        block.push(0x0a);
        put(&mut block, inner.len() as u64);
        block.extend(inner);
        let cid = Cid::of(Version::V1, Codec::DagPb, &block);
        made.push((cid, sum));
        blocks.insert(cid, block);
    }
    let Some(&(root, _)) = made.last() else { return };
    let mut assembly = Assembly::new(root, LIMITS);
    let mut filled = 0_u64;
    while let Some(cid) = assembly.next_block() {
        match assembly.accept(&cid, &blocks[&cid]) {
            Ok(placed) => {
                filled += placed.data.len() as u64 * placed.offsets.len() as u64;
                filled += placed.copies.iter().map(|copy| copy.len).sum::<u64>();
                let len = assembly.len().expect("the root comes first");
                assert!(placed.offsets.iter().all(|at| at + placed.data.len() as u64 <= len));
                assert!(placed.copies.iter().all(|copy| copy.from.max(copy.to) + copy.len <= len));
            }
            Err(error) => return printable(&error),
        }
    }
    assert!(assembly.is_complete());
    assert_eq!((Some(filled), assembly.done()), (assembly.len(), filled));
}

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![];
    let mut with = |kind: u8, bytes: &[u8]| seeds.push([&[kind][..], bytes].concat());
    for leaves in [Leaves::Raw, Leaves::Wrapped] {
        let version = if leaves == Leaves::Raw { Version::V1 } else { Version::V0 };
        let layout = Layout { chunk_len: 3, links_max: 4, leaves, version };
        let (mut builder, mut car) = (Builder::new(layout), vec![]);
        for chunk in b"a file in a few parts".chunks(3) {
            builder.push(layout.leaf(chunk), &mut |cid, block| {
                with(0, &block);
                car.extend(car_section(&cid, block.len()));
                car.extend(block);
            });
        }
        let root = builder.finish(&mut |_, block| with(0, &block)).cid;
        with(1, root.to_string().as_bytes());
        with(1, &root.to_bytes());
        with(2, &[&[40][..], &car_header(&root), &car].concat());
    }
    with(0, &wrapped_leaf(b"bytes"));
    with(0, &[0x0a, 2, 8, 1]);
    with(3, &[2, 1, 0, 3, 0, 5, 0, 1, 8, 0, 9, 0]);
    with(3, &[0, 7, 255, 200, 1, 8, 0, 8, 0, 1, 9, 0, 9, 0, 1, 10, 0, 10, 0]);
    seeds
}
