//! Trees over a trace: filled up with zero hashes to a power of two, so that the children of any node can be shown.
//!
//! Leaf = `keccak(0x00 || bytes)`, node = `keccak(0x01 || left || right)`, as in a model's tree (`merkle.rs`). A node at
//! height h stands for `2^h` leaves.

use alloy_primitives::B256;

pub use crate::merkle::{leaf as leaf_hash, node as node_hash};

/// The smallest height at which a tree holds `n` leaves.
pub fn height_of(n: u64) -> u32 {
    n.max(1).next_power_of_two().trailing_zeros()
}

/// A node of which no leaf is in use.
pub fn empty(height: u32) -> B256 {
    (0..height).fold(B256::ZERO, |below, _| node_hash(below, below))
}

/// The nodes one level above `nodes`, which stand at `height` and begin at an even index.
pub fn above(nodes: &[B256], height: u32) -> Vec<B256> {
    let pad = if nodes.len() % 2 == 1 { empty(height) } else { B256::ZERO };
    nodes.chunks(2).map(|pair| node_hash(pair[0], pair.get(1).copied().unwrap_or(pad))).collect()
}

/// The nodes `levels` above.
pub fn lift(mut nodes: Vec<B256>, levels: u32, height: u32) -> Vec<B256> {
    for level in 0..levels {
        nodes = above(&nodes, height + level);
    }
    nodes
}

/// The node `levels` above `nodes`, which stand at `height`, begin at a multiple of `2^levels` and are at most that many;
/// those behind the last are empty.
pub fn fold(nodes: &[B256], levels: u32, height: u32) -> B256 {
    lift(nodes.to_vec(), levels, height).first().copied().unwrap_or_else(|| empty(height + levels))
}

/// The hashes beside the way from node `index` of `nodes`, which stand at `height`, to the node `levels` above.
pub fn path(nodes: &[B256], levels: u32, height: u32, index: usize) -> Vec<B256> {
    let (mut nodes, mut index) = (nodes.to_vec(), index);
    (0..levels)
        .map(|level| {
            let sibling = nodes.get(index ^ 1).copied().unwrap_or_else(|| empty(height + level));
            nodes = above(&nodes, height + level);
            index /= 2;
            sibling
        })
        .collect()
}

/// The root over all `leaves`; a zero hash if there are none.
pub fn root(leaves: &[B256]) -> B256 {
    if leaves.is_empty() { B256::ZERO } else { fold(leaves, height_of(leaves.len() as u64), 0) }
}

/// The node `path.len()` above the node `hash`, whose index there is `index`.
pub fn climb(hash: B256, index: u64, path: &[B256]) -> B256 {
    let step = |(hash, index): (B256, u64), beside: &B256| {
        let up = if index % 2 == 0 { node_hash(hash, *beside) } else { node_hash(*beside, hash) };
        (up, index / 2)
    };
    path.iter().fold((hash, index), step).0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(n: u8) -> Vec<B256> {
        (0..n).map(|i| leaf_hash(&[i])).collect()
    }

    #[test]
    fn a_tree_is_filled_up_with_zero_hashes() {
        assert_eq!([0, 1, 2, 3, 4, 5, 32, 33].map(height_of), [0, 0, 1, 2, 2, 3, 5, 6]);
        for n in 1..=40 {
            let leaves = leaves(n);
            let mut level = leaves.clone();
            level.resize(usize::from(n).next_power_of_two(), B256::ZERO);
            while level.len() > 1 {
                level = level.chunks(2).map(|pair| node_hash(pair[0], pair[1])).collect();
            }
            assert_eq!(root(&leaves), level[0], "{n} leaves");
        }
        assert_eq!(root(&[]), B256::ZERO);
    }

    #[test]
    fn paths_lead_to_the_root() {
        for n in 1..=40 {
            let leaves = leaves(n);
            let height = height_of(n.into());
            for index in 0..usize::from(n) {
                let path = path(&leaves, height, 0, index);
                assert_eq!(climb(leaves[index], index as u64, &path), root(&leaves));
                assert_ne!(
                    climb(leaves[index], index as u64 ^ 1, &path),
                    if n == 1 { B256::ZERO } else { root(&leaves) }
                );
            }
            let middle = lift(leaves.clone(), height / 2, 0);
            assert_eq!(fold(&middle, height - height / 2, height / 2), root(&leaves));
        }
    }
}
