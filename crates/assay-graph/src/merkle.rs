//! keccak Merkle trees over byte leaves, as the weights root is defined.
//!
//! Leaf = `keccak(0x00 || bytes)`, node = `keccak(0x01 || left || right)`; level by level, an odd last node moves up
//! unchanged. The root of no leaf is the zero hash.

use alloy_primitives::{B256, Keccak256};

/// Bytes of a leaf of the weights tree; the last of a tensor may be shorter.
pub const LEAF_LEN: usize = 1024;

/// A tree that is given its leaves from left to right and keeps one hash per level: complete subtrees waiting for their
/// right neighbour.
#[derive(Clone, Default, Debug)]
pub struct MerkleTree {
    /// Complete subtrees, largest first, with their height.
    pending: Vec<(u32, B256)>,
}

impl MerkleTree {
    /// Adds the next leaf.
    pub fn push_leaf(&mut self, bytes: &[u8]) {
        self.push_subtree(0, leaf(bytes));
    }

    /// Adds a complete subtree of `2^height` leaves. The number of leaves so far must be a multiple of that.
    pub fn push_subtree(&mut self, height: u32, root: B256) {
        let mut top = (height, root);
        while let Some(&(height, left)) = self.pending.last() {
            if height != top.0 {
                break;
            }
            self.pending.pop();
            top = (height + 1, node(left, top.1));
        }
        self.pending.push(top);
    }

    /// The root over all leaves so far.
    #[must_use]
    pub fn root(&self) -> B256 {
        let mut rest = self.pending.iter().rev().map(|&(_, root)| root);
        let last = rest.next().unwrap_or_default();
        rest.fold(last, |right, left| node(left, right))
    }
}

/// Hash of a leaf.
pub fn leaf(bytes: &[u8]) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update([0]);
    hasher.update(bytes);
    hasher.finalize()
}

/// Hash of a node.
pub fn node(left: B256, right: B256) -> B256 {
    let mut hasher = Keccak256::new();
    hasher.update([1]);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, level by level.
    fn reference(leaves: &[Vec<u8>]) -> B256 {
        let mut level: Vec<B256> = leaves.iter().map(|l| leaf(l)).collect();
        while level.len() > 1 {
            level = level.chunks(2).map(|pair| if let [l, r] = pair { node(*l, *r) } else { pair[0] }).collect();
        }
        level.first().copied().unwrap_or_default()
    }

    #[test]
    fn streaming_equals_the_definition_for_every_count() {
        let leaves: Vec<Vec<u8>> = (0..70_u8).map(|i| vec![i; usize::from(i) + 1]).collect();
        let mut tree = MerkleTree::default();
        for count in 0..leaves.len() {
            assert_eq!(tree.root(), reference(&leaves[..count]), "{count} leaves");
            tree.push_leaf(&leaves[count]);
        }
    }

    #[test]
    fn subtrees_of_a_power_of_two_can_be_made_apart() {
        let leaves: Vec<Vec<u8>> = (0..21_u8).map(|i| vec![i]).collect();
        let mut whole = MerkleTree::default();
        for part in leaves.chunks(4) {
            let mut tree = MerkleTree::default();
            part.iter().for_each(|l| tree.push_leaf(l));
            whole.push_subtree(2, tree.root());
        }
        assert_eq!(whole.root(), reference(&leaves));
    }

    #[test]
    fn golden_roots() {
        // keccak256(0x00) and keccak256(0x01 || that || that).
        let mut tree = MerkleTree::default();
        tree.push_leaf(b"");
        assert_eq!(tree.root().to_string(), "0xbc36789e7a1e281436464229828f817d6612f7b477d66591ff96a9e064bcc98a");
        let once = tree.root();
        tree.push_leaf(b"");
        assert_eq!(tree.root(), alloy_primitives::keccak256([&[1][..], &once[..], &once[..]].concat()));
    }
}
