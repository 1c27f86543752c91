//! From a file's header to the list of operations that its model computes.
//!
//! Owns the order of operations as a dispute sees them; `assay_engine::forward` owns the same order as it is run. Families
//! differ here in what they differ there. A model that no word can express is refused by name: its manifest has a zero
//! graph hash, and nobody can take its answers to court.

use std::collections::HashMap;

use alloy_primitives::{B256, keccak256};
use assay_gguf::{Gguf, GgufError, RopeError, RopeTables, rope_tables, shown};
use assay_num::{RopeStyle, RopeTable};

use crate::config::{ConfigError, ModelConfig};
use crate::merkle::{LEAF_LEN, MerkleTree};
use crate::op::{Kind, Op, flags, unit_of};
use crate::tree;

/// The manifest commits to rotation tables of at most this many positions, so that a file cannot ask for a table of
/// gigabytes.
pub const ROPE_POSITIONS_MAX: u32 = 131_072;

/// What a dispute has to know of a model besides its weights root; its hash is in the manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GraphHead {
    /// Operations.
    pub ops: u32,
    /// Leaves of the weights tree.
    pub weight_leaves: u32,
    /// Leaves of the rotation tree.
    pub rotation_leaves: u32,
    /// Root over the rotation tables.
    pub rotation_root: B256,
    /// Root over the words of the operations.
    pub ops_root: B256,
}

impl GraphHead {
    /// `graphHash` of a manifest.
    pub fn hash(&self) -> B256 {
        let mut bytes = Vec::with_capacity(89);
        bytes.extend_from_slice(b"assay/graph/1");
        for count in [self.ops, self.weight_leaves, self.rotation_leaves] {
            bytes.extend_from_slice(&count.to_be_bytes());
        }
        bytes.extend_from_slice(self.rotation_root.as_slice());
        bytes.extend_from_slice(self.ops_root.as_slice());
        keccak256(bytes)
    }
}

/// The operations of a model, in an order in which each follows what it reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Graph {
    ops: Vec<Op>,
    leaves: Vec<B256>,
    head: GraphHead,
}

/// Why a file has no graph.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// Metadata.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file's directory and its bytes disagree.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The rotation tables.
    #[error("rope keys and rope_freqs.weight: {0}")]
    Rope(#[from] RopeError),
    /// A tensor that the family needs is not in the file.
    #[error("tensor {name} is missing")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor of another shape than the metadata asks for.
    #[error("tensor {name} has {found} values, the metadata asks for {expected}")]
    Size {
        /// Its name.
        name: String,
        /// Values in the file.
        found: u64,
        /// Values that follow from the metadata.
        expected: u64,
    },
    /// A format, or a width in it, that no operation computes with.
    #[error("tensor {name} in {format} with rows of {cols} values: no court can judge its numbers ({reason})")]
    NotJudged {
        /// Its name.
        name: String,
        /// Its format.
        format: String,
        /// Length of a row.
        cols: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// More operations or leaves than the words have room for.
    #[error("the model has {found} {what}, more than {max}: no court can judge it")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        found: u64,
        /// How many there may be.
        max: u64,
    },
}

/// Most operations (`Trial.OPS_MAX`).
const OPS_MAX: u64 = 1 << 15;

impl Graph {
    /// The graph of the model in `bytes`, of which `gguf` is the parsed header. Takes as long as hashing the rotation tables
    /// does: half a second for the longest.
    ///
    /// # Errors
    /// Why it has none.
    pub fn compile(gguf: &Gguf, bytes: &[u8]) -> Result<Graph, GraphError> {
        Graph::with_tables(gguf, &rope_tables(gguf, bytes, ROPE_POSITIONS_MAX)?)
    }

    /// As [`Graph::compile`] with the rotation tables of the manifest, of [`ROPE_POSITIONS_MAX`] positions.
    ///
    /// # Errors
    /// Why it has none.
    pub fn with_tables(gguf: &Gguf, tables: &RopeTables) -> Result<Graph, GraphError> {
        let rows = gguf.tensor("token_embd.weight").and_then(|tensor| tensor.dims.get(1).copied()).unwrap_or(1);
        let config = ModelConfig::from_gguf(gguf, rows)?;
        let weight_leaves = gguf.tensors().iter().map(|tensor| tensor.len.div_ceil(LEAF_LEN as u64)).sum::<u64>();
        let too_large = |what, found, max| GraphError::TooLarge { what, found, max };
        let weight_leaves =
            u32::try_from(weight_leaves).map_err(|_| too_large("leaves of weights", weight_leaves, u32::MAX.into()))?;
        let mut next = 0;
        let starts = gguf.tensors().iter().map(|tensor| {
            let start = next;
            next += tensor.len.div_ceil(LEAF_LEN as u64) as u32;
            (tensor.name.as_str(), start)
        });
        let starts = starts.collect();
        let mut compiler = Compiler { gguf, config: &config, tables, starts, ops: vec![], quantized: vec![] };
        compiler.model()?;
        let ops = compiler.ops;
        if ops.len() as u64 > OPS_MAX {
            return Err(too_large("operations", ops.len() as u64, OPS_MAX));
        }
        let leaves: Vec<B256> = ops.iter().map(|op| tree::leaf_hash(&op.word().to_be_bytes::<32>())).collect();
        let mut rotation = MerkleTree::default();
        let mut rotation_leaves = 0;
        for table in tables_of(tables) {
            for_each_leaf(table, |leaf| rotation.push_leaf(leaf));
            rotation_leaves += leaves_of(table) as u32;
        }
        let head = GraphHead {
            ops: ops.len() as u32,
            weight_leaves,
            rotation_leaves,
            rotation_root: rotation.root(),
            ops_root: tree::root(&leaves),
        };
        Ok(Graph { ops, leaves, head })
    }

    /// What the manifest commits to.
    pub fn head(&self) -> &GraphHead {
        &self.head
    }

    /// The operations.
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The hashes beside the way from an operation's word to [`GraphHead::ops_root`].
    ///
    /// # Panics
    /// If there is no such operation.
    pub fn word_path(&self, op: u16) -> Vec<B256> {
        assert!(usize::from(op) < self.ops.len(), "operation {op} of {}", self.ops.len());
        tree::path(&self.leaves, tree::height_of(self.leaves.len() as u64), 0, op.into())
    }

    /// The operation that chooses tokens: the last one.
    pub fn choose_op(&self) -> u16 {
        self.ops.len() as u16 - 1
    }
}

/// The tables in the order of their leaves.
pub(crate) fn tables_of(tables: &RopeTables) -> impl Iterator<Item = &RopeTable> {
    std::iter::once(&tables.global).chain(&tables.local)
}

/// Leaves of a table: two counts of 8 bytes, then cosines and sines.
pub(crate) fn leaves_of(table: &RopeTable) -> usize {
    (16 + 4 * table.n_positions() * table.rope_dims()).div_ceil(LEAF_LEN)
}

/// Shows the leaves of a table in order: what [`RopeTable::hash_bytes`] gives, without a second table in memory.
pub(crate) fn for_each_leaf(table: &RopeTable, mut visit: impl FnMut(&[u8])) {
    let mut leaf = Vec::with_capacity(LEAF_LEN);
    leaf.extend((table.n_positions() as u64).to_le_bytes());
    leaf.extend((table.rope_dims() as u64).to_le_bytes());
    let of = |position: usize| table.at(position);
    let all = || 0..table.n_positions();
    let numbers = all().flat_map(|position| of(position).0).chain(all().flat_map(|position| of(position).1));
    for number in numbers {
        leaf.extend(number.to_le_bytes());
        if leaf.len() == LEAF_LEN {
            visit(&leaf);
            leaf.clear();
        }
    }
    if !leaf.is_empty() {
        visit(&leaf);
    }
}

/// A matrix or vector of the file.
#[derive(Clone, Copy)]
struct Tensor {
    /// Number of its format.
    format: u8,
    /// First leaf.
    leaf: u32,
}

/// Rows `first..` of a matrix.
#[derive(Clone, Copy)]
struct Rows {
    tensor: Tensor,
    first: u32,
    rows: u32,
}

struct Compiler<'a> {
    gguf: &'a Gguf,
    config: &'a ModelConfig,
    tables: &'a RopeTables,
    /// First leaf of each tensor.
    starts: HashMap<&'a str, u32>,
    ops: Vec<Op>,
    /// Operations that were quantized, in which kind of blocks, and by which operation.
    quantized: Vec<(u16, Kind, u16)>,
}

impl Compiler<'_> {
    fn model(&mut self) -> Result<(), GraphError> {
        let config = self.config;
        let (width, vocab) = (config.width as u32, config.vocab as u32);
        let table = self.matrix("token_embd.weight", vocab, width)?;
        let token = self.push(Op::of(Kind::Token));
        let scale = if config.family.is_gemma() { (config.width as f32).sqrt().to_bits() } else { 0 };
        let embed = Op { a: token, rows: vocab, cols: width, x: scale, ..weighted(Kind::Embed, table) };
        let mut x = self.push(embed);
        for layer in 0..config.n_layers {
            x = self.layer(layer, x)?;
        }
        let head = self.ops.len();
        let normed = self.norm(x, "output_norm.weight", 1, width)?;
        let output = match self.gguf.tensor("output.weight") {
            Some(_) => self.matrix("output.weight", vocab, width)?,
            None => table,
        };
        let mut logits = self.product(normed, Rows { tensor: output, first: 0, rows: vocab }, width);
        if let Some(cap) = config.logit_softcap {
            logits = self.push(Op { a: logits, cols: vocab, x: cap.to_bits(), ..Op::of(Kind::Cap) });
        }
        self.push(Op { a: logits, cols: vocab, ..Op::of(Kind::Choose) });
        self.ops[head..].iter_mut().for_each(|op| op.flags |= flags::HEAD);
        Ok(())
    }

    fn layer(&mut self, layer: usize, x: u16) -> Result<u16, GraphError> {
        let config = self.config;
        let (width, ffn) = (config.width as u32, config.feed_forward as u32);
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let normed = self.norm(x, &name("attn_norm"), 1, width)?;
        let attended = self.attention(layer, normed)?;
        let output = self.matrix(&name("attn_output"), width, config.q_width() as u32)?;
        let mut added = self.product(attended, Rows { tensor: output, first: 0, rows: width }, config.q_width() as u32);
        if config.family.has_post_norms() {
            added = self.norm(added, &name("post_attention_norm"), 1, width)?;
        }
        let x = self.push(Op { a: x, b: added, cols: width, ..Op::of(Kind::Add) });

        let normed = self.norm(x, &name("ffn_norm"), 1, width)?;
        let (gate, up) = if config.family.is_fused() {
            let both = self.matrix(&name("ffn_up"), 2 * ffn, width)?;
            (Rows { tensor: both, first: 0, rows: ffn }, Rows { tensor: both, first: ffn, rows: ffn })
        } else {
            let (gate, up) = (self.matrix(&name("ffn_gate"), ffn, width)?, self.matrix(&name("ffn_up"), ffn, width)?);
            (Rows { tensor: gate, first: 0, rows: ffn }, Rows { tensor: up, first: 0, rows: ffn })
        };
        let gate = self.product(normed, gate, width);
        let up = self.product(normed, up, width);
        let gelu = if config.family.is_gemma() { flags::GELU } else { 0 };
        let inner = self.push(Op { a: gate, b: up, cols: ffn, flags: gelu, ..Op::of(Kind::Gate) });
        let down = self.matrix(&name("ffn_down"), width, ffn)?;
        let mut added = self.product(inner, Rows { tensor: down, first: 0, rows: width }, ffn);
        if config.family.has_post_norms() {
            added = self.norm(added, &name("post_ffw_norm"), 1, width)?;
        }
        Ok(self.push(Op { a: x, b: added, cols: width, ..Op::of(Kind::Add) }))
    }

    /// From normed rows to the output of attention.
    fn attention(&mut self, layer: usize, normed: u16) -> Result<u16, GraphError> {
        let config = self.config;
        let (width, head_dim) = (config.width as u32, config.head_dim as u32);
        let (q_rows, kv_rows) = (config.q_width() as u32, config.kv_width() as u32);
        let (heads, kv_heads) = (config.n_heads as u32, config.n_kv_heads as u32);
        let name = |part: &str| format!("blk.{layer}.{part}");
        let [q, k, v] = if config.family.is_fused() {
            let tensor = self.matrix(&name("attn_qkv.weight"), q_rows + 2 * kv_rows, width)?;
            [(0, q_rows), (q_rows, kv_rows), (q_rows + kv_rows, kv_rows)].map(|(first, rows)| Rows {
                tensor,
                first,
                rows,
            })
        } else {
            let rows = |part: &str, rows| {
                let tensor = self.matrix(&name(&format!("{part}.weight")), rows, width)?;
                Ok::<_, GraphError>(Rows { tensor, first: 0, rows })
            };
            [rows("attn_q", q_rows)?, rows("attn_k", kv_rows)?, rows("attn_v", kv_rows)?]
        };
        let mut projected = [q, k, v].map(|rows| self.product(normed, rows, width));
        if config.family.has_qkv_bias() {
            let parts = ["attn_q.bias", "attn_k.bias", "attn_v.bias"].into_iter().zip([q_rows, kv_rows, kv_rows]);
            for (op, (part, cols)) in projected.iter_mut().zip(parts) {
                let bias = self.vector(&name(part), cols)?;
                *op = self.push(Op { a: *op, cols, ..weighted(Kind::Bias, bias) });
            }
        }
        let [mut q, mut k, v] = projected;
        if config.family.has_qk_norm() {
            q = self.norm(q, &name("attn_q_norm.weight"), heads, head_dim)?;
            k = self.norm(k, &name("attn_k_norm.weight"), kv_heads, head_dim)?;
        }
        let q = self.rotate(layer, q, heads);
        let k = self.rotate(layer, k, kv_heads);
        let k = self.push(Op { a: k, cols: kv_rows, ..Op::of(Kind::Narrow) });
        let v = self.push(Op { a: v, cols: kv_rows, ..Op::of(Kind::Narrow) });
        Ok(self.attend(layer, q, k, v))
    }

    fn attend(&mut self, layer: usize, q: u16, k: u16, v: u16) -> u16 {
        let config = self.config;
        let (head_dim, kv_heads) = (config.head_dim as u32, config.n_kv_heads as u16);
        let scoring = config.scoring(layer);
        let (x, y) = (scoring.scale.to_bits(), scoring.softcap.map_or(0, f32::to_bits));
        // What is seen follows from the window, which every operation of attention has to know.
        let window = scoring.window.unwrap_or(0) as u32;
        let of = |kind, a| Op { a, rows: config.n_heads as u32, extra: window, ..Op::of(kind) };
        let score = self.push(Op { b: k, cols: head_dim, heads: kv_heads, x, y, ..of(Kind::Score, q) });
        let chunk_max = self.push(of(Kind::ChunkMax, score));
        let weigh = self.push(Op { b: chunk_max, ..of(Kind::Weigh, score) });
        let lanes = self.push(of(Kind::ChunkLanes, weigh));
        let out = self.push(Op { b: v, cols: head_dim, heads: kv_heads, ..of(Kind::ChunkOut, weigh) });
        let run_max = self.push(of(Kind::RunMax, chunk_max));
        let run_sum = self.push(Op { b: chunk_max, c: run_max, ..of(Kind::RunSum, lanes) });
        let run_out = self.push(Op { b: chunk_max, c: run_max, cols: head_dim, ..of(Kind::RunOut, out) });
        self.push(Op { b: run_sum, cols: head_dim, ..of(Kind::Attended, run_out) })
    }

    fn rotate(&mut self, layer: usize, a: u16, heads: u32) -> u16 {
        let config = self.config;
        let global = &self.tables.global;
        let (table, tensor) = match self.tables.local.as_ref().filter(|_| config.is_local(layer)) {
            Some(local) => (local, leaves_of(global) as u32),
            None => (global, 0),
        };
        let flags = if config.family.rope_style() == RopeStyle::Interleaved { flags::NEIGHBOURS } else { 0 };
        let (rows, cols) = (heads, config.head_dim as u32);
        let (heads, extra) = (table.rope_dims() as u16, table.n_positions() as u32);
        self.push(Op { a, rows, cols, heads, extra, flags, tensor, ..Op::of(Kind::Rotate) })
    }

    /// Each of `rows` rows of `cols` numbers, normed.
    fn norm(&mut self, a: u16, name: &str, rows: u32, cols: u32) -> Result<u16, GraphError> {
        let weights = self.vector(name, cols)?;
        if !cols.is_multiple_of(16) {
            return Err(self.not_judged(name, cols, "sums of squares have steps of 16 values"));
        }
        let squares = self.push(Op { a, rows, cols, ..Op::of(Kind::Squares) });
        let x = self.config.rms_eps.to_bits();
        Ok(self.push(Op { a, b: squares, rows, cols, x, ..weighted(Kind::Norm, weights) }))
    }

    /// Rows of a matrix times the numbers of `a`.
    fn product(&mut self, a: u16, Rows { tensor, first, rows }: Rows, cols: u32) -> u16 {
        let quantizer = match unit_of(tensor.format) {
            Some((32, _)) => Kind::Quantize,
            Some((256, _)) => Kind::QuantizeSuper,
            _ => {
                let lanes = self.push(Op { a, rows, cols, extra: first, ..weighted(Kind::Lanes, tensor) });
                return self.push(Op { a: lanes, rows, ..Op::of(Kind::LaneSum) });
            }
        };
        let known = self.quantized.iter().rev().find(|(of, kind, _)| (*of, *kind) == (a, quantizer));
        let blocks = match known {
            Some((_, _, blocks)) => *blocks,
            None => {
                let blocks = self.push(Op { a, cols, ..Op::of(quantizer) });
                self.quantized.push((a, quantizer, blocks));
                blocks
            }
        };
        self.push(Op { a: blocks, rows, cols, extra: first, ..weighted(Kind::Product, tensor) })
    }

    fn push(&mut self, op: Op) -> u16 {
        self.ops.push(op);
        // Counted when all are there.
        (self.ops.len() - 1) as u16
    }

    fn matrix(&self, name: &str, rows: u32, cols: u32) -> Result<Tensor, GraphError> {
        let tensor = self.tensor(name, u64::from(rows) * u64::from(cols))?;
        match unit_of(tensor.format) {
            None => Err(self.not_judged(name, cols, "the format has no operation")),
            Some((1, _)) if !cols.is_multiple_of(16) => {
                Err(self.not_judged(name, cols, "products of floats have steps of 16 values"))
            }
            Some((columns, _)) if u64::from(cols) % columns != 0 => {
                Err(self.not_judged(name, cols, "rows are whole blocks"))
            }
            Some(_) => Ok(tensor),
        }
    }

    fn vector(&self, name: &str, cols: u32) -> Result<Tensor, GraphError> {
        let tensor = self.tensor(name, cols.into())?;
        if tensor.format == 0 { Ok(tensor) } else { Err(self.not_judged(name, cols, "norms and biases are F32")) }
    }

    fn tensor(&self, name: &str, expected: u64) -> Result<Tensor, GraphError> {
        let missing = || GraphError::MissingTensor { name: shown(name) };
        let (tensor, leaf) = self.gguf.tensor(name).zip(self.starts.get(name)).ok_or_else(missing)?;
        let found = tensor.dims.iter().fold(1, |n: u64, dim| n.saturating_mul(*dim));
        if found != expected {
            return Err(GraphError::Size { name: shown(name), found, expected });
        }
        // A number above 255 is no format of a judge, nor is 255.
        Ok(Tensor { format: u8::try_from(tensor.ty.0).unwrap_or(u8::MAX), leaf: *leaf })
    }

    fn not_judged(&self, name: &str, cols: u32, reason: &'static str) -> GraphError {
        let format = self.gguf.tensor(name).map_or_else(String::new, |tensor| tensor.ty.to_string());
        GraphError::NotJudged { name: shown(name), format, cols: cols.into(), reason }
    }
}

fn weighted(kind: Kind, tensor: Tensor) -> Op {
    Op { format: tensor.format, tensor: tensor.leaf, ..Op::of(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_of_a_table_are_the_bytes_that_are_hashed() {
        for (positions, dims) in [(1, 2), (7, 64), (31, 8), (63, 4), (100, 10)] {
            let table = RopeTable::new(positions, dims, 10_000.0, None).unwrap();
            let mut leaves: Vec<Vec<u8>> = vec![];
            for_each_leaf(&table, |leaf| leaves.push(leaf.to_vec()));
            assert_eq!(leaves.concat(), table.hash_bytes());
            assert_eq!(leaves.len(), leaves_of(&table));
            assert!(leaves[..leaves.len() - 1].iter().all(|leaf| leaf.len() == LEAF_LEN));
        }
    }
}
