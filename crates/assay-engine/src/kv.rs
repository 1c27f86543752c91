//! Memory for keys and values: fixed blocks of 256 positions from a bounded pool.
//!
//! A block holds all layers and all key/value heads of [`KV_CHUNK`] consecutive absolute positions of one sequence.
//! Layout, f16 bits: `[layer][kv head]{ k: [head_dim][256], v: [256][head_dim] }`.
//! Blocks are promised to a sequence when it is admitted (so that a running sequence never fails for memory),
//! allocated when its first position is written, and recycled when the sequence ends. Recycled memory is not
//! cleared: a position is written before it is ever read, and masked positions are never read.

use assay_num::{KV_CHUNK, KvChunk};

use crate::config::ModelConfig;

/// Shape of the KV memory of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer blocks.
    pub n_layers: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
}

impl KvShape {
    /// The shape a config asks for.
    pub fn of(config: &ModelConfig) -> KvShape {
        KvShape { n_layers: config.n_layers, n_kv_heads: config.n_kv_heads, head_dim: config.head_dim }
    }

    /// Elements of one head's share of a block: keys, then values.
    pub fn head_len(&self) -> usize {
        2 * KV_CHUNK * self.head_dim
    }

    /// Elements of one layer's share of a block.
    pub fn layer_len(&self) -> usize {
        self.n_kv_heads * self.head_len()
    }

    /// Bytes of one block.
    pub fn block_bytes(&self) -> usize {
        self.n_layers * self.layer_len() * size_of::<u16>()
    }
}

/// Blocks needed to hold `n_positions`.
pub fn blocks_for(n_positions: usize) -> usize {
    n_positions.div_ceil(KV_CHUNK)
}

/// The bounded store of blocks. Memory is at most `blocks_max * shape.block_bytes()`.
#[derive(Debug)]
pub struct KvPool {
    shape: KvShape,
    blocks_max: usize,
    /// Blocks promised to admitted sequences, written or not.
    reserved: usize,
    /// Recycled blocks, ready for reuse.
    free: Vec<Box<[u16]>>,
}

/// The keys and values of one sequence. Returned to its pool with [`KvPool::release`].
#[derive(Debug)]
pub struct KvSeq {
    shape: KvShape,
    blocks: Vec<Box<[u16]>>,
    reserved: usize,
    len: usize,
}

impl KvPool {
    /// A pool that holds at least `tokens_max` positions (rounded up to whole blocks).
    pub fn new(shape: KvShape, tokens_max: usize) -> KvPool {
        KvPool { shape, blocks_max: blocks_for(tokens_max), reserved: 0, free: Vec::new() }
    }

    /// Promises memory for `n_positions`, or `None` while others hold too much of it.
    pub fn reserve(&mut self, n_positions: usize) -> Option<KvSeq> {
        let blocks = blocks_for(n_positions);
        if blocks > self.blocks_max - self.reserved {
            return None;
        }
        self.reserved += blocks;
        Some(KvSeq { shape: self.shape, blocks: Vec::with_capacity(blocks), reserved: blocks, len: 0 })
    }

    /// Backs the next `n` positions of `seq` with memory.
    ///
    /// # Panics
    /// If that exceeds what was reserved: the caller's admission is wrong.
    pub fn grow(&mut self, seq: &mut KvSeq, n: usize) {
        let need = blocks_for(seq.len + n);
        assert!(need <= seq.reserved, "sequence grows to {need} blocks, {} were reserved", seq.reserved);
        while seq.blocks.len() < need {
            let len = self.shape.n_layers * self.shape.layer_len();
            let block = self.free.pop().unwrap_or_else(|| vec![0; len].into_boxed_slice());
            seq.blocks.push(block);
        }
    }

    /// Takes a sequence's memory back.
    pub fn release(&mut self, seq: KvSeq) {
        self.reserved -= seq.reserved;
        self.free.extend(seq.blocks);
    }

    /// Blocks promised to sequences now.
    pub fn blocks_reserved(&self) -> usize {
        self.reserved
    }

    /// Blocks the pool may hand out in total.
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }
}

impl KvSeq {
    /// Positions written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Counts `n` positions as written; they must have been backed by [`KvPool::grow`].
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
        assert!(blocks_for(self.len) <= self.blocks.len(), "positions written without memory");
    }

    /// One layer of one block, mutable: `[kv head]{k, v}`, heads of [`KvShape::head_len`] elements.
    pub(crate) fn layer_mut(&mut self, block: usize, layer: usize) -> &mut [u16] {
        let len = self.shape.layer_len();
        &mut self.blocks[block][layer * len..][..len]
    }

    /// Appends to `out` the chunks of one (layer, kv head) that cover the first `n_positions`.
    pub(crate) fn chunks<'a>(&'a self, layer: usize, kv_head: usize, n_positions: usize, out: &mut Vec<KvChunk<'a>>) {
        let start = layer * self.shape.layer_len() + kv_head * self.shape.head_len();
        for block in &self.blocks[..blocks_for(n_positions)] {
            let (k, v) = block[start..][..self.shape.head_len()].split_at(KV_CHUNK * self.shape.head_dim);
            out.push(KvChunk { k, v });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: KvShape = KvShape { n_layers: 2, n_kv_heads: 3, head_dim: 4 };

    #[test]
    fn reservations_are_bounded_and_returned() {
        let mut pool = KvPool::new(SHAPE, 4 * KV_CHUNK);
        let a = pool.reserve(KV_CHUNK + 1).expect("two of four blocks");
        let b = pool.reserve(2 * KV_CHUNK).expect("the other two");
        assert!(pool.reserve(1).is_none());
        pool.release(a);
        assert_eq!(pool.blocks_reserved(), 2);
        let c = pool.reserve(2 * KV_CHUNK).expect("released blocks");
        assert!(pool.reserve(1).is_none());
        pool.release(b);
        pool.release(c);
        assert_eq!(pool.blocks_reserved(), 0);
    }

    #[test]
    fn memory_is_allocated_when_written_and_recycled() {
        let mut pool = KvPool::new(SHAPE, 8 * KV_CHUNK);
        let mut seq = pool.reserve(3 * KV_CHUNK).expect("room");
        pool.grow(&mut seq, 1);
        assert_eq!(seq.blocks.len(), 1);
        seq.advance(1);
        pool.grow(&mut seq, KV_CHUNK - 1);
        assert_eq!(seq.blocks.len(), 1);
        seq.advance(KV_CHUNK - 1);
        pool.grow(&mut seq, 1);
        assert_eq!(seq.blocks.len(), 2);
        pool.release(seq);
        assert_eq!(pool.free.len(), 2);
        let mut again = pool.reserve(KV_CHUNK).expect("room");
        pool.grow(&mut again, KV_CHUNK);
        assert_eq!(pool.free.len(), 1);
    }

    #[test]
    fn heads_and_layers_do_not_overlap() {
        let mut pool = KvPool::new(SHAPE, KV_CHUNK);
        let mut seq = pool.reserve(KV_CHUNK).expect("room");
        pool.grow(&mut seq, KV_CHUNK);
        for layer in 0..SHAPE.n_layers {
            for (head, share) in seq.layer_mut(0, layer).chunks_mut(SHAPE.head_len()).enumerate() {
                let (k, v) = share.split_at_mut(KV_CHUNK * SHAPE.head_dim);
                k.fill((10 * layer + head) as u16);
                v.fill((10 * layer + head + 100) as u16);
            }
        }
        seq.advance(KV_CHUNK);
        for layer in 0..SHAPE.n_layers {
            for head in 0..SHAPE.n_kv_heads {
                let mut chunks = Vec::new();
                seq.chunks(layer, head, KV_CHUNK, &mut chunks);
                assert_eq!(chunks.len(), 1);
                assert!(chunks[0].k.iter().all(|x| *x == (10 * layer + head) as u16));
                assert!(chunks[0].v.iter().all(|x| *x == (10 * layer + head + 100) as u16));
                assert_eq!(chunks[0].k.len(), KV_CHUNK * SHAPE.head_dim);
            }
        }
    }

    #[test]
    #[should_panic(expected = "were reserved")]
    fn growing_past_the_reservation_is_a_bug() {
        let mut pool = KvPool::new(SHAPE, 8 * KV_CHUNK);
        let mut seq = pool.reserve(KV_CHUNK).expect("room");
        pool.grow(&mut seq, KV_CHUNK + 1);
    }
}
