//! Computes a model's manifest: one pass of SHA-256 over the file and one keccak tree over its tensors, side by side.

use crate::{ModelFile, StoreError};
use alloy_primitives::{B256, keccak256};
use assay_gguf::{Gguf, Tokenizer, rope_tables};
use assay_graph::{Graph, LEAF_LEN, MerkleTree, ROPE_POSITIONS_MAX};
use assay_types::{CANONICAL_PROFILE, Manifest};
use sha2::{Digest, Sha256};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

/// Leaves that one thread hashes at a time, a power of two: 1 MiB.
const CHUNK_HEIGHT: u32 = 10;
const CHUNK_LEAVES: u64 = 1 << CHUNK_HEIGHT;
/// Bytes of the file that are hashed between two reports of progress.
const SHA_PART_LEN: usize = 1 << 22;
/// More threads than this wait for memory, not for each other.
const THREADS_MAX: usize = 16;

/// The manifest of `file`. `progress(done, total)` counts bytes hashed and is called on this thread.
///
/// # Errors
/// [`StoreError`] if a tensor has an unknown format, or tokenizer or rotary table are not usable.
pub fn manifest(file: &ModelFile, progress: &mut dyn FnMut(u64, u64)) -> Result<Manifest, StoreError> {
    let manifest = manifest_of(file.gguf(), file.bytes(), progress);
    file.release(file.bytes());
    manifest
}

/// [`manifest`] of a file that is in memory as `bytes`, parsed as `gguf`.
///
/// # Errors
/// As [`manifest`].
pub fn manifest_of(gguf: &Gguf, bytes: &[u8], progress: &mut dyn FnMut(u64, u64)) -> Result<Manifest, StoreError> {
    // What can fail comes before what takes long.
    let tokenizer_hash = Tokenizer::from_gguf(gguf)?.hash();
    let tables = rope_tables(gguf, bytes, ROPE_POSITIONS_MAX)?;
    let rope_hash = keccak256(tables.hash_bytes());
    // A model without a graph can be served and audited, but nobody can take its answers to court.
    let graph_hash = Graph::with_tables(gguf, &tables).map_or(B256::ZERO, |graph| graph.head().hash());
    let leaves = Leaves::new(gguf, bytes)?;
    let (file_sha256, weights_root) = hash_all(bytes, &leaves, progress);
    Ok(Manifest {
        profile: CANONICAL_PROFILE.to_owned(),
        file_sha256,
        file_len: bytes.len() as u64,
        weights_root,
        tokenizer_hash: tokenizer_hash.into(),
        rope_hash,
        graph_hash,
        name: gguf.name().unwrap_or_default().to_owned(),
        license: gguf.license().unwrap_or_default().to_owned(),
    })
}

/// The tensors' data as one sequence of leaves.
struct Leaves<'a> {
    tensors: Vec<&'a [u8]>,
    /// First leaf of each tensor.
    starts: Vec<u64>,
    count: u64,
    len: u64,
}

impl<'a> Leaves<'a> {
    fn new(gguf: &Gguf, bytes: &'a [u8]) -> Result<Self, StoreError> {
        let mut leaves = Self { tensors: vec![], starts: vec![], count: 0, len: 0 };
        for tensor in gguf.tensors() {
            let data = gguf.tensor_bytes(bytes, tensor)?;
            leaves.tensors.push(data);
            leaves.starts.push(leaves.count);
            leaves.count += data.len().div_ceil(LEAF_LEN) as u64;
            leaves.len += data.len() as u64;
        }
        Ok(leaves)
    }

    fn chunk_count(&self) -> usize {
        self.count.div_ceil(CHUNK_LEAVES) as usize
    }

    /// Root and bytes of the leaves of chunk `index`.
    fn chunk(&self, index: usize) -> (B256, u64) {
        let mut at = index as u64 * CHUNK_LEAVES;
        let end = (at + CHUNK_LEAVES).min(self.count);
        let mut tensor = self.starts.partition_point(|&start| start <= at) - 1;
        let (mut tree, mut len) = (MerkleTree::default(), 0);
        while at < end {
            let first = (at - self.starts[tensor]) as usize;
            let data = &self.tensors[tensor][first * LEAF_LEN..];
            for leaf in data.chunks(LEAF_LEN).take((end - at) as usize) {
                tree.push_leaf(leaf);
                len += leaf.len() as u64;
                at += 1;
            }
            tensor += 1;
        }
        (tree.root(), len)
    }
}

/// SHA-256 of `bytes` and the root over `leaves`.
fn hash_all(bytes: &[u8], leaves: &Leaves<'_>, progress: &mut dyn FnMut(u64, u64)) -> (B256, B256) {
    let next = AtomicUsize::new(0);
    let roots = Mutex::new(vec![B256::ZERO; leaves.chunk_count()]);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
    let total = bytes.len() as u64 + leaves.len;
    // Bounded: a thread that is far ahead of the reports waits.
    let (reports, done) = mpsc::sync_channel::<u64>(64);
    let sha = thread::scope(|scope| {
        for _ in 0..threads {
            let (reports, next, roots) = (reports.clone(), &next, &roots);
            scope.spawn(move || {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= leaves.chunk_count() {
                        return;
                    }
                    let (root, len) = leaves.chunk(index);
                    roots.lock().expect("no thread panics while it holds this lock")[index] = root;
                    // The receiver lives until all threads are done.
                    let _ = reports.send(len);
                }
            });
        }
        let sha = scope.spawn(move || {
            let mut hasher = Sha256::new();
            for part in bytes.chunks(SHA_PART_LEN) {
                hasher.update(part);
                let _ = reports.send(part.len() as u64);
            }
            B256::from(<[u8; 32]>::from(hasher.finalize()))
        });
        let mut sum = 0;
        for len in done {
            sum += len;
            progress(sum, total);
        }
        sha.join().expect("hashing does not panic")
    });
    let mut tree = MerkleTree::default();
    for root in roots.into_inner().expect("no thread panics while it holds this lock") {
        tree.push_subtree(CHUNK_HEIGHT, root);
    }
    (sha, tree.root())
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_testkit::models::{Family, Format, TinyLlama, tiny_llama};

    fn of(bytes: &[u8]) -> Manifest {
        manifest_of(&Gguf::parse(bytes).unwrap(), bytes, &mut |_, _| {}).unwrap()
    }

    #[test]
    fn weights_root_is_the_tree_over_all_leaves_in_order() {
        // Over 2 MiB of tensor data, so that several chunks and a short last one occur.
        let model = TinyLlama { vocab: 3_001, format: Format::F16, d_model: 160, ffn: 200, ..TinyLlama::default() };
        let bytes = tiny_llama(model);
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut tree = MerkleTree::default();
        for tensor in gguf.tensors() {
            for leaf in gguf.tensor_bytes(&bytes, tensor).unwrap().chunks(LEAF_LEN) {
                tree.push_leaf(leaf);
            }
        }
        let leaves = Leaves::new(&gguf, &bytes).unwrap();
        assert!(leaves.chunk_count() > 2 && !leaves.count.is_multiple_of(CHUNK_LEAVES), "{} leaves", leaves.count);
        let manifest = of(&bytes);
        assert_eq!(manifest.weights_root, tree.root());
        assert_eq!(manifest.file_sha256, B256::from(<[u8; 32]>::from(Sha256::digest(&bytes))));
        assert_eq!((manifest.file_len, manifest.name.as_str()), (bytes.len() as u64, "tiny-model"));
    }

    #[test]
    fn every_part_of_the_file_changes_the_model() {
        let model = TinyLlama { layers: 1, d_model: 32, ffn: 32, vocab: 300, ..TinyLlama::default() };
        let base = of(&tiny_llama(model));
        let mut weights = tiny_llama(model);
        *weights.last_mut().unwrap() ^= 1;
        let weights = of(&weights);
        assert_ne!(weights.weights_root, base.weights_root);
        assert_eq!((weights.tokenizer_hash, weights.rope_hash), (base.tokenizer_hash, base.rope_hash));
        let context = of(&tiny_llama(TinyLlama { context: 511, ..model }));
        assert_ne!(context.rope_hash, base.rope_hash);
        assert_eq!(context.weights_root, base.weights_root);
        let vocab = of(&tiny_llama(TinyLlama { vocab: 301, ..model }));
        assert_ne!(vocab.tokenizer_hash, base.tokenizer_hash);
        let ids = [&base, &weights, &context, &vocab].map(Manifest::model_id);
        assert!(ids.iter().enumerate().all(|(i, id)| !ids[..i].contains(id)));
    }

    #[test]
    fn the_manifest_holds_for_every_family() {
        let model = TinyLlama { layers: 1, ..TinyLlama::default() };
        let manifests = Family::ALL.map(|family| of(&tiny_llama(TinyLlama { family, ..model })));
        for (i, manifest) in manifests.iter().enumerate() {
            assert_eq!(manifest.tokenizer_hash, manifests[0].tokenizer_hash);
            assert!(manifests[..i].iter().all(|other| other.model_id() != manifest.model_id()));
        }
        let of_family = |family| &manifests[Family::ALL.iter().position(|f| *f == family).unwrap()].rope_hash;
        let plain = of_family(Family::Llama { scaled: false });
        // Rotations of the same width, one of them by way of the width of heads; scaled; wider.
        assert_eq!((of_family(Family::Qwen2), of_family(Family::Phi3)), (plain, plain));
        assert_ne!(of_family(Family::Llama { scaled: true }), plain);
        assert_ne!(of_family(Family::Qwen3), plain);
        // Two tables.
        assert_ne!(of_family(Family::Gemma3), of_family(Family::Gemma));
        assert_eq!(of_family(Family::Gemma2), of_family(Family::Gemma));
    }

    #[test]
    fn a_model_that_no_word_expresses_has_no_graph_but_a_manifest() {
        let plain = TinyLlama { layers: 1, ..TinyLlama::default() };
        let graph_of = |bytes: &[u8]| Graph::compile(&Gguf::parse(bytes).unwrap(), bytes);
        let bytes = tiny_llama(plain);
        assert_eq!(of(&bytes).graph_hash, graph_of(&bytes).unwrap().head().hash());
        // Sums of squares have steps of 16.
        let odd = tiny_llama(TinyLlama { d_model: 40, ..plain });
        let error = graph_of(&odd).unwrap_err().to_string();
        assert!(error.contains("token_embd.weight in F32 with rows of 40"), "{error}");
        assert_eq!(of(&odd).graph_hash, B256::ZERO);
        assert_ne!(of(&odd).weights_root, B256::ZERO);
    }

    #[test]
    fn progress_ends_at_the_total() {
        let bytes = tiny_llama(TinyLlama { layers: 1, ..TinyLlama::default() });
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut calls = vec![];
        manifest_of(&gguf, &bytes, &mut |done, total| calls.push((done, total))).unwrap();
        let &(done, total) = calls.last().unwrap();
        assert_eq!(done, total);
        assert_eq!(total, bytes.len() as u64 + gguf.tensors().iter().map(|t| t.len).sum::<u64>());
        assert!(calls.is_sorted());
    }
}
