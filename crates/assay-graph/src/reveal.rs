//! What the other side has shown of its trace: the hashes beside the way to a number, where the two traces differ.

use alloy_primitives::B256;

use crate::trace::Tree;
use crate::tree;

/// The reveals of a dispute so far. Everything before the first difference is equal in both traces, and everything beside
/// the way to it was revealed: with both, whatever a number is made of can be opened in the other side's trace.
#[derive(Clone, Debug, Default)]
pub struct Revealed {
    nodes: Vec<Nodes>,
    leaves: Vec<Leaves>,
}

#[derive(Clone, Debug)]
struct Nodes {
    tree: Tree,
    height: u32,
    first: u64,
    hashes: Vec<B256>,
}

#[derive(Clone, Debug)]
struct Leaves {
    tree: Tree,
    first: u64,
    len: usize,
    bytes: Vec<u8>,
}

impl Revealed {
    /// Nodes `first..` of a tree at `height`: what `reveal` shows.
    pub fn add(&mut self, tree: Tree, height: u32, first: u64, hashes: Vec<B256>) {
        self.nodes.push(Nodes { tree, height, first, hashes });
    }

    /// Leaves `first..` of an operation, `len` bytes each: what `revealNumbers` shows.
    ///
    /// # Panics
    /// If a leaf has no bytes.
    pub fn add_leaves(&mut self, position: u32, op: u16, first: u64, len: usize, bytes: Vec<u8>) {
        let tree = Tree::Leaves { position, op };
        let hashes = bytes.chunks_exact(len).map(tree::leaf_hash).collect();
        self.add(tree, 0, first, hashes);
        self.leaves.push(Leaves { tree, first, len, bytes });
    }

    /// Node `index` at `height` of a tree over `count` leaves, if what was revealed says it.
    pub(crate) fn node(&self, tree: Tree, height: u32, index: u64, count: u64) -> Option<B256> {
        self.nodes.iter().filter(|nodes| nodes.tree == tree && nodes.height <= height).find_map(|nodes| {
            let levels = height - nodes.height;
            let in_use = count.div_ceil(1 << nodes.height);
            let (start, end) = (index << levels, ((index + 1) << levels).min(in_use));
            let from = usize::try_from(start.checked_sub(nodes.first)?).ok()?;
            let to = usize::try_from(end.checked_sub(nodes.first)?).ok()?;
            let part = nodes.hashes.get(from..to).filter(|part| !part.is_empty())?;
            Some(tree::fold(part, levels, nodes.height))
        })
    }

    /// The bytes of a leaf, if they were revealed.
    pub(crate) fn leaf(&self, tree: Tree, index: u64) -> Option<&[u8]> {
        self.leaves.iter().filter(|leaves| leaves.tree == tree).find_map(|leaves| {
            let at = usize::try_from(index.checked_sub(leaves.first)?).ok()?;
            leaves.bytes.chunks_exact(leaves.len).nth(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_above_a_reveal_follow_from_it() {
        let leaves: Vec<B256> = (0..13_u8).map(|i| tree::leaf_hash(&[i])).collect();
        let ops = Tree::Ops { position: 1 };
        let mut revealed = Revealed::default();
        revealed.add(ops, 0, 8, leaves[8..].to_vec());
        for height in 0..=3 {
            for index in 0..(16 >> height) {
                let (start, end) = ((index << height) as usize, (((index + 1) << height) as usize).min(13));
                let known = (8..13).contains(&start);
                let expect = known.then(|| tree::fold(&leaves[start..end], height, 0));
                assert_eq!(revealed.node(ops, height, index, 13), expect, "node {index} at {height}");
                assert_eq!(revealed.node(Tree::Positions, height, index, 13), None);
            }
        }
        revealed.add_leaves(1, 2, 8, 1, vec![8, 9]);
        let tree = Tree::Leaves { position: 1, op: 2 };
        assert_eq!(revealed.node(tree, 0, 9, 13), Some(leaves[9]));
        assert_eq!((revealed.leaf(tree, 9), revealed.leaf(tree, 10)), (Some(&[9][..]), None));
    }
}
