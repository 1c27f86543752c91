//! A model as disputes see it: its graph, its bytes by leaves, and openings of both of its trees.

use std::sync::{Arc, OnceLock};

use alloy_primitives::B256;
use assay_gguf::{Gguf, RopeTables, rope_tables};
use assay_num::Team;

use crate::compile::{Graph, GraphError, ROPE_POSITIONS_MAX, for_each_leaf, tables_of};
use crate::merkle::{LEAF_LEN, MerkleTree, leaf, node};
use crate::trace::Opening;

/// Height of the nodes that are kept of a model's tree: 1 MiB of bytes has one of them.
const KEPT_HEIGHT: u32 = 10;
/// More threads than this wait for memory, not for each other.
const HASH_THREADS_MAX: usize = 16;

/// The file of a model with its graph. The file's bytes are read when they are asked for.
pub struct TracedModel {
    graph: Graph,
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// First leaf, offset in the file and length of each tensor, in order.
    tensors: Vec<(u64, usize, usize)>,
    gguf: Gguf,
    positions_max: usize,
    weights: OnceLock<ModelTree>,
}

impl std::fmt::Debug for TracedModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TracedModel").field("head", self.graph.head()).finish_non_exhaustive()
    }
}

impl TracedModel {
    /// The model in `bytes`, of which `gguf` is the parsed header.
    ///
    /// # Errors
    /// Why it has no graph.
    pub fn new(gguf: &Gguf, bytes: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Result<TracedModel, GraphError> {
        let file = (*bytes).as_ref();
        let tables = rope_tables(gguf, file, ROPE_POSITIONS_MAX)?;
        let graph = Graph::with_tables(gguf, &tables)?;
        let mut tensors = Vec::with_capacity(gguf.tensors().len());
        let mut first = 0;
        for tensor in gguf.tensors() {
            let len = gguf.tensor_bytes(file, tensor)?.len();
            tensors.push((first, tensor.offset as usize, len));
            first += len.div_ceil(LEAF_LEN) as u64;
        }
        let positions_max = tables.global.n_positions();
        Ok(TracedModel { graph, bytes, tensors, gguf: gguf.clone(), positions_max, weights: OnceLock::new() })
    }

    /// Its operations.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Positions that its rotation tables have.
    pub fn positions_max(&self) -> usize {
        self.positions_max
    }

    /// The bytes from `offset` on of the tensor whose first leaf is `leaf`; empty behind its end.
    pub(crate) fn tensor(&self, leaf: u32, offset: u64) -> &[u8] {
        let at = self.tensors.partition_point(|(first, ..)| *first <= u64::from(leaf));
        let Some((_, start, len)) = at.checked_sub(1).map(|at| self.tensors[at]) else { return &[] };
        let offset = usize::try_from(offset).map_or(len, |offset| offset.min(len));
        self.file().get(start + offset..start + len).unwrap_or_default()
    }

    /// The rotation tables for `n` positions: their angles are those of the manifest's tables.
    ///
    /// # Errors
    /// Why the file has none, which [`TracedModel::new`] would have said.
    pub(crate) fn tables(&self, n: usize) -> Result<RopeTables, GraphError> {
        Ok(rope_tables(&self.gguf, self.file(), n as u32)?)
    }

    /// Leaf `index` of the weights tree with the hashes beside its way to the root. The first call hashes the whole model.
    ///
    /// # Panics
    /// If there is no such leaf.
    pub fn open_weights(&self, index: u64) -> Opening {
        Opening { leaf: self.leaf(index).to_vec(), path: self.weights_tree().path(index, |i| self.leaf(i)) }
    }

    /// Root of the weights tree; the first call hashes the whole model.
    pub fn weights_root(&self) -> B256 {
        self.weights_tree().root()
    }

    /// Leaf `index` of the rotation tree with the hashes beside its way to the root. Makes the tables of the manifest anew.
    ///
    /// # Errors
    /// As [`TracedModel::new`].
    ///
    /// # Panics
    /// If there is no such leaf.
    pub fn open_rotation(&self, index: u64) -> Result<Opening, GraphError> {
        let tables = self.tables(self.positions_max)?;
        let (mut hashes, mut wanted) = (Vec::with_capacity(self.graph.head().rotation_leaves as usize), vec![]);
        for table in tables_of(&tables) {
            for_each_leaf(table, |bytes| {
                if hashes.len() as u64 == index {
                    wanted = bytes.to_vec();
                }
                hashes.push(leaf(bytes));
            });
        }
        assert!(index < hashes.len() as u64, "leaf {index} of {}", hashes.len());
        Ok(Opening { leaf: wanted, path: path_up(hashes, index as usize) })
    }

    fn weights_tree(&self) -> &ModelTree {
        self.weights.get_or_init(|| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from).min(HASH_THREADS_MAX);
            ModelTree::new(&Team::new(threads), u64::from(self.graph.head().weight_leaves), |i| self.leaf(i))
        })
    }

    fn file(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    fn leaf(&self, index: u64) -> &[u8] {
        let at = self.tensors.partition_point(|(first, ..)| *first <= index);
        let (first, start, len) = self.tensors[at - 1];
        let from = (index - first) as usize * LEAF_LEN;
        &self.file()[start + from..start + len.min(from + LEAF_LEN)]
    }
}

/// The upper nodes of a model's tree, in which an odd last node moves up; those below are made anew when they are needed.
#[derive(Clone, Debug)]
pub struct ModelTree {
    n: u64,
    /// Nodes at [`KEPT_HEIGHT`], then those of each level above.
    levels: Vec<Vec<B256>>,
}

impl ModelTree {
    /// Hashes all `n` leaves, at least one, on the threads of `team`.
    pub fn new<'a>(team: &Team, n: u64, leaf: impl Fn(u64) -> &'a [u8] + Sync) -> ModelTree {
        assert!(n > 0, "a model has leaves");
        let mut kept = vec![B256::ZERO; n.div_ceil(1 << KEPT_HEIGHT) as usize];
        team.for_each_chunk(&mut kept, 1, |i, out| {
            let mut tree = MerkleTree::default();
            group(i as u64, n).for_each(|at| tree.push_leaf(leaf(at)));
            out[0] = tree.root();
        });
        let mut levels = vec![kept];
        while let Some(last) = levels.last().filter(|last| last.len() > 1) {
            levels.push(above(last));
        }
        ModelTree { n, levels }
    }

    /// The root.
    pub fn root(&self) -> B256 {
        self.levels.last().map_or(B256::ZERO, |top| top[0])
    }

    /// The hashes beside the way from leaf `index` to the root, as `TraceTree.rootOfModel` reads them.
    ///
    /// # Panics
    /// If there is no such leaf.
    pub fn path<'a>(&self, index: u64, leaf_at: impl Fn(u64) -> &'a [u8]) -> Vec<B256> {
        assert!(index < self.n, "leaf {index} of {}", self.n);
        let group_index = index >> KEPT_HEIGHT;
        let nodes = group(group_index, self.n).map(|at| leaf(leaf_at(at))).collect();
        // A last group with fewer leaves is a whole tree of its own.
        let mut path = path_up(nodes, (index % (1 << KEPT_HEIGHT)) as usize);
        let mut at = group_index as usize;
        for level in &self.levels {
            path.extend(level.get(at ^ 1));
            at /= 2;
        }
        path
    }
}

fn group(index: u64, n: u64) -> std::ops::Range<u64> {
    index << KEPT_HEIGHT..((index + 1) << KEPT_HEIGHT).min(n)
}

/// The hashes beside the way from node `at` of `nodes` to the one above all of them.
fn path_up(mut nodes: Vec<B256>, mut at: usize) -> Vec<B256> {
    let mut path = vec![];
    while nodes.len() > 1 {
        path.extend(nodes.get(at ^ 1));
        nodes = above(&nodes);
        at /= 2;
    }
    path
}

/// One level up; an odd last node moves.
fn above(nodes: &[B256]) -> Vec<B256> {
    nodes.chunks(2).map(|pair| if let [left, right] = pair { node(*left, *right) } else { pair[0] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `TraceTree.rootOfModel`.
    fn root_of(mut hash: B256, mut index: u64, mut n: u64, path: &[B256]) -> Option<B256> {
        let mut path = path.iter();
        while n > 1 {
            if index ^ 1 < n {
                let sibling = path.next()?;
                hash = if index.is_multiple_of(2) { node(hash, *sibling) } else { node(*sibling, hash) };
            }
            index >>= 1;
            n = n.div_ceil(2);
        }
        path.next().is_none().then_some(hash)
    }

    #[test]
    fn paths_lead_to_the_root_for_every_count() {
        for n in [1_u64, 2, 3, 5, 7, 1023, 1024, 1025, 1027, 2048, 2049, 3071, 3500] {
            let leaves: Vec<[u8; 8]> = (0..n).map(u64::to_be_bytes).collect();
            let leaf_at = |i: u64| leaves[i as usize].as_slice();
            let tree = ModelTree::new(&Team::new(2), n, leaf_at);
            let mut whole = MerkleTree::default();
            leaves.iter().for_each(|leaf| whole.push_leaf(leaf));
            assert_eq!(tree.root(), whole.root(), "{n} leaves");
            for index in [0, 1, 2, n / 2, 1023, 1024, 2047, 2048, n - 1] {
                if index < n {
                    let path = tree.path(index, leaf_at);
                    assert_eq!(
                        root_of(leaf(leaf_at(index)), index, n, &path),
                        Some(tree.root()),
                        "leaf {index} of {n}"
                    );
                }
            }
        }
    }
}
