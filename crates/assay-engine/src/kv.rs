//! Memory for keys and values: fixed blocks of 256 positions from a bounded pool.
//!
//! A block holds all layers and all key/value heads of [`KV_CHUNK`] consecutive absolute positions of one sequence.
//! Layout, f16 bits: `[layer][kv head]{ k: [8][head_dim][32], v: [256][head_dim] }`.
//!
//! Blocks are promised to a sequence first (growing within a promise never fails), allocated when their first position
//! is written, shared through the prefix cache when they are full, and kept there after the sequence has ended until
//! the memory is wanted. A shared block is never written. Recycled memory is not cleared: a position is written before
//! it is ever read, and masked positions are never read.
//!
//! ```text
//! promised --grow--> own --publish (full)--> shared by sequences --last holder leaves--> idle --evicted--> own
//! ```
//! Invariants: blocks held plus blocks promised are at most `blocks_max`; so are blocks held, idle and free.

use std::ops::Range;
use std::sync::Arc;

use assay_num::{KV_CHUNK, KvChunk};
use assay_types::TokenId;

use crate::prefix::{Block, EntryId, Parent, Payer, PrefixCache, PrefixTree};
use assay_graph::ModelConfig;

/// Fewest positions worth copying out of a cached block: computing so few costs no more than the copy.
const COPY_MIN: usize = 16;

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

    /// Bytes that a sequence of `n_positions` takes, in whole blocks.
    pub fn bytes_for(&self, n_positions: usize) -> u64 {
        blocks_for(n_positions) as u64 * self.block_bytes() as u64
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
    /// Blocks that sequences hold, each counted once however many share it.
    held: usize,
    /// Blocks promised to sequences beyond those they hold.
    promised: usize,
    /// Cached blocks that no sequence holds.
    idle: usize,
    policy: PrefixCache,
    cache: PrefixTree,
    /// Recycled blocks, ready for reuse.
    free: Vec<Block>,
}

/// The keys and values of one sequence. Returned to its pool with [`KvPool::release`] or [`KvPool::retire`].
#[derive(Debug)]
pub struct KvSeq {
    shape: KvShape,
    /// Shared ones first, then own ones.
    blocks: Vec<Slot>,
    /// Blocks it may have in all.
    promised: usize,
    len: usize,
    /// The cache's entry of the last shared block.
    cached: Parent,
}

#[derive(Debug)]
enum Slot {
    /// Only this sequence knows it.
    Own(Block),
    /// Full, in the cache, and never written again.
    Shared(Arc<Block>),
}

impl Slot {
    fn data(&self) -> &[u16] {
        match self {
            Slot::Own(block) => &block.0,
            Slot::Shared(block) => &block.0,
        }
    }
}

impl KvPool {
    /// A pool that holds at least `tokens_max` positions (rounded up to whole blocks).
    pub fn new(shape: KvShape, tokens_max: usize) -> KvPool {
        KvPool::with_cache(shape, tokens_max, PrefixCache::PerPayer)
    }

    /// As [`KvPool::new`]; `policy` says what [`KvPool::publish`] and [`KvPool::retire`] keep.
    pub fn with_cache(shape: KvShape, tokens_max: usize, policy: PrefixCache) -> KvPool {
        KvPool {
            policy,
            shape,
            blocks_max: blocks_for(tokens_max),
            held: 0,
            promised: 0,
            idle: 0,
            cache: PrefixTree::default(),
            free: Vec::new(),
        }
    }

    /// Promises memory for `n_positions`, or `None` while others have too much of it.
    pub fn reserve(&mut self, n_positions: usize) -> Option<KvSeq> {
        self.reserve_cached(Payer::default(), &[], n_positions)
    }

    /// Whether [`KvPool::reserve_cached`] would succeed.
    pub fn fits(&self, payer: Payer, tokens: &[TokenId], n_positions: usize) -> bool {
        let missing = self.missing(Parent::Root(payer), tokens, blocks_for(n_positions));
        self.held + self.promised + missing <= self.blocks_max
    }

    /// As [`KvPool::reserve`] for a sequence of `payer` that begins with `tokens` (at most `n_positions`). What the
    /// cache knows of all but the last of them is there already: [`KvSeq::len`] says how much.
    pub fn reserve_cached(&mut self, payer: Payer, tokens: &[TokenId], n_positions: usize) -> Option<KvSeq> {
        if !self.fits(payer, tokens, n_positions) {
            return None;
        }
        let promised = blocks_for(n_positions);
        self.promised += promised;
        let cached = Parent::Root(payer);
        let mut seq = KvSeq { shape: self.shape, blocks: Vec::with_capacity(promised), promised, len: 0, cached };
        self.attach(&mut seq, tokens);
        self.copy_partial(&mut seq, tokens);
        Some(seq)
    }

    /// Blocks that a sequence of `n_blocks` adds to those that are held.
    fn missing(&self, root: Parent, tokens: &[TokenId], n_blocks: usize) -> usize {
        let (mut parent, mut rest, mut missing) = (root, all_but_last(tokens), n_blocks);
        while let Some((id, KV_CHUNK)) = self.cache.best_child(parent, rest) {
            missing -= usize::from(!self.cache.is_idle(id));
            (parent, rest) = (Parent::Entry(id), &rest[KV_CHUNK..]);
        }
        missing
    }

    /// Goes on in the cache from a sequence that ends with a full block: takes the full blocks that hold its next
    /// tokens, of which `tokens` are all from position 0 on. Returns how many positions it gained.
    pub fn attach(&mut self, seq: &mut KvSeq, tokens: &[TokenId]) -> usize {
        let before = seq.len;
        let ends_shared = !matches!(seq.blocks.last(), Some(Slot::Own(_)));
        if !ends_shared || seq.blocks.len() * KV_CHUNK != before {
            return 0;
        }
        let known = all_but_last(tokens);
        while seq.blocks.len() < seq.promised
            && let Some((id, KV_CHUNK)) = self.cache.best_child(seq.cached, known.get(seq.len..).unwrap_or_default())
        {
            self.promised -= 1;
            seq.blocks.push(self.hold(id));
            seq.len += KV_CHUNK;
            seq.cached = Parent::Entry(id);
        }
        if let Parent::Entry(id) = seq.cached
            && seq.len > before
        {
            self.cache.touch(id);
        }
        seq.len - before
    }

    /// Copies the beginning of a cached block that agrees with the next tokens only in part.
    fn copy_partial(&mut self, seq: &mut KvSeq, tokens: &[TokenId]) {
        let rest = all_but_last(tokens).get(seq.len..).unwrap_or_default();
        let Some((id, n)) = self.cache.best_child(seq.cached, rest).filter(|(_, n)| *n >= COPY_MIN) else { return };
        self.cache.touch(id);
        self.promised -= 1;
        self.held += 1;
        let source = self.cache.share(id);
        let block = match self.take_block() {
            Some(mut block) => {
                block.0.copy_from_slice(&source.0);
                block
            }
            // It is the only block that could be evicted: it becomes the copy.
            None => {
                drop(source);
                self.idle -= 1;
                self.cache.remove(id)
            }
        };
        seq.blocks.push(Slot::Own(block));
        seq.len += n;
    }

    /// Raises a sequence's promise to `n_positions` in all. `false`, and nothing changes, while others have too much.
    pub fn extend(&mut self, seq: &mut KvSeq, n_positions: usize) -> bool {
        let more = blocks_for(n_positions).saturating_sub(seq.promised);
        let fits = self.held + self.promised + more <= self.blocks_max;
        if fits {
            self.promised += more;
            seq.promised += more;
        }
        fits
    }

    /// Backs the next `n` positions of `seq` with memory.
    ///
    /// # Panics
    /// If that exceeds what was promised: the caller's admission is wrong.
    pub fn grow(&mut self, seq: &mut KvSeq, n: usize) {
        let need = blocks_for(seq.len + n);
        assert!(need <= seq.promised, "sequence grows to {need} blocks, {} were promised", seq.promised);
        while seq.blocks.len() < need {
            self.promised -= 1;
            self.held += 1;
            let block = self.take_block().expect("blocks that are neither held nor free are idle");
            seq.blocks.push(Slot::Own(block));
        }
    }

    /// A block for somebody who is already counted as its holder. `None` if the only idle ones are being copied.
    fn take_block(&mut self) -> Option<Block> {
        if let Some(block) = self.free.pop() {
            return Some(block);
        }
        if self.held + self.idle <= self.blocks_max {
            let len = self.shape.n_layers * self.shape.layer_len();
            return Some(Block(vec![0; len].into_boxed_slice()));
        }
        let evicted = self.cache.evict();
        self.idle -= usize::from(evicted.is_some());
        evicted
    }

    /// Puts the full blocks of a sequence into the cache; `tokens` are at least those it was fed. Only for sequences
    /// all of whose values are finite.
    pub fn publish(&mut self, seq: &mut KvSeq, tokens: &[TokenId]) {
        let first = seq.blocks.iter().take_while(|slot| matches!(slot, Slot::Shared(_))).count();
        let full = seq.len / KV_CHUNK;
        if first == full || !self.is_caching() {
            return;
        }
        for (index, slot) in seq.blocks[..full].iter_mut().enumerate().skip(first) {
            let tokens = &tokens[index * KV_CHUNK..][..KV_CHUNK];
            let id = match self.cache.best_child(seq.cached, tokens) {
                // Somebody else computed the same meanwhile: one of the two is enough.
                Some((id, KV_CHUNK)) => {
                    if let Slot::Own(block) = std::mem::replace(slot, self.hold(id)) {
                        self.held -= 1;
                        self.free.push(block);
                    }
                    id
                }
                _ => {
                    self.drop_shorter(seq.cached, tokens);
                    let Slot::Own(block) = std::mem::replace(slot, Slot::Own(Block(Box::default()))) else {
                        unreachable!("shared blocks come first")
                    };
                    let block = Arc::new(block);
                    *slot = Slot::Shared(Arc::clone(&block));
                    self.cache.insert(seq.cached, tokens, block)
                }
            };
            seq.cached = Parent::Entry(id);
        }
        if let Parent::Entry(id) = seq.cached {
            self.cache.touch(id);
        }
    }

    /// A cached block for one more sequence.
    fn hold(&mut self, id: EntryId) -> Slot {
        let was_idle = usize::from(self.cache.is_idle(id));
        self.idle -= was_idle;
        self.held += was_idle;
        Slot::Shared(self.cache.share(id))
    }

    fn drop_shorter(&mut self, parent: Parent, tokens: &[TokenId]) {
        let shorter = self.cache.remove_shorter(parent, tokens);
        self.idle -= shorter.len();
        self.free.extend(shorter);
    }

    /// Takes a sequence's memory back and keeps what it holds in the cache, the last block too. As
    /// [`KvPool::publish`], only for finite sequences.
    pub fn retire(&mut self, mut seq: KvSeq, tokens: &[TokenId]) {
        self.publish(&mut seq, tokens);
        let full = seq.len / KV_CHUNK;
        let tail = &tokens[full * KV_CHUNK..seq.len];
        if tail.len() >= COPY_MIN && self.is_caching() {
            match self.cache.best_child(seq.cached, tail) {
                Some((id, n)) if n == tail.len() => self.cache.touch(id),
                _ => self.keep_tail(&mut seq, tail),
            }
        }
        self.release(seq);
    }

    fn keep_tail(&mut self, seq: &mut KvSeq, tail: &[TokenId]) {
        self.drop_shorter(seq.cached, tail);
        // Blocks behind the last position were never written.
        self.drop_blocks(seq, blocks_for(seq.len));
        if let Some(Slot::Own(block)) = seq.blocks.pop() {
            seq.promised -= 1;
            self.held -= 1;
            self.idle += 1;
            let id = self.cache.insert(seq.cached, tail, Arc::new(block));
            self.cache.touch(id);
        }
    }

    /// Takes a sequence's memory back; only what is in the cache already is kept.
    pub fn release(&mut self, mut seq: KvSeq) {
        self.drop_blocks(&mut seq, 0);
        self.promised -= seq.promised;
    }

    /// Gives back all blocks but the first `n`; they are no longer promised either.
    fn drop_blocks(&mut self, seq: &mut KvSeq, n: usize) {
        for slot in seq.blocks.drain(n.min(seq.blocks.len())..) {
            seq.promised -= 1;
            match slot {
                Slot::Own(block) => {
                    self.held -= 1;
                    self.free.push(block);
                }
                Slot::Shared(block) => {
                    // The cache's own and this one.
                    let is_last = Arc::strong_count(&block) == 2;
                    self.held -= usize::from(is_last);
                    self.idle += usize::from(is_last);
                }
            }
        }
    }

    /// Whether anything is kept.
    pub fn is_caching(&self) -> bool {
        self.policy == PrefixCache::PerPayer
    }

    /// Blocks that running sequences hold.
    pub fn blocks_held(&self) -> usize {
        self.held
    }

    /// Blocks promised to sequences now, those they hold included.
    pub fn blocks_reserved(&self) -> usize {
        self.held + self.promised
    }

    /// Blocks kept for reuse by later sequences.
    pub fn blocks_idle(&self) -> usize {
        self.idle
    }

    /// Blocks there is memory for now: held, idle and free.
    pub fn blocks_allocated(&self) -> usize {
        self.held + self.idle + self.free.len()
    }

    /// Blocks the pool may hand out in total.
    pub fn blocks_max(&self) -> usize {
        self.blocks_max
    }
}

/// The last token is always computed, because something follows from it.
fn all_but_last(tokens: &[TokenId]) -> &[TokenId] {
    tokens.split_last().map_or(&[], |(_, before)| before)
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

    /// One layer of each of some blocks, mutable: `[kv head]{k, v}`, heads of [`KvShape::head_len`] elements.
    pub(crate) fn layers_mut(&mut self, blocks: Range<usize>, layer: usize) -> impl Iterator<Item = &mut [u16]> {
        let len = self.shape.layer_len();
        self.blocks[blocks].iter_mut().map(move |slot| match slot {
            Slot::Own(block) => &mut block.0[layer * len..][..len],
            Slot::Shared(_) => unreachable!("a shared block is full"),
        })
    }

    /// Appends to `out` the chunks of one (layer, kv head) that cover the first `n_positions`.
    pub(crate) fn chunks<'a>(&'a self, layer: usize, kv_head: usize, n_positions: usize, out: &mut Vec<KvChunk<'a>>) {
        let start = layer * self.shape.layer_len() + kv_head * self.shape.head_len();
        for slot in &self.blocks[..blocks_for(n_positions)] {
            let (k, v) = slot.data()[start..][..self.shape.head_len()].split_at(KV_CHUNK * self.shape.head_dim);
            out.push(KvChunk { k, v });
        }
    }
}

#[cfg(test)]
#[path = "kv_tests.rs"]
mod tests;
