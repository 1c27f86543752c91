//! What is kept of earlier computation: a tree of KV blocks, found by the tokens they were computed from.
//!
//! An entry is one block and the tokens of its positions; its parent is the entry of the block before it, so the way
//! from a root to an entry spells every token from position 0 to the entry's end. The values of a position depend on
//! nothing else (the pool belongs to one model and the arithmetic is canonical), so a block that is found has the very
//! bits that computing it again would give. Tokens are compared themselves, not by a hash: no two prompts collide.
//!
//! Each payer has its own root: what one payer sent can not be timed by another.
//!
//! Invariants: an entry was used at least as recently as each of its children, and whoever holds a block holds the blocks
//! before it; so the least recently used block that nobody holds has no children, and evicting it strands nothing.

use std::collections::HashMap;
use std::sync::Arc;

use assay_num::KV_CHUNK;
use assay_types::TokenId;

/// Whom a job is computed for. Jobs of one payer share cached prefixes and one fair part of the engine; between payers
/// neither timing nor statistics of a job tell what the other has sent. A program with one user needs only the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Payer(pub [u8; 20]);

/// What is kept for later jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrefixCache {
    /// Everything, as long as nobody wants the memory; found by jobs of the same payer only.
    #[default]
    PerPayer,
    /// Nothing.
    Off,
}

/// Keys and values of [`KV_CHUNK`] positions, all layers; layout in `kv.rs`.
#[derive(Debug)]
pub(crate) struct Block(pub Box<[u16]>);

/// Where an entry hangs in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Parent {
    /// It begins at position 0 of this payer's jobs.
    Root(Payer),
    /// It follows this entry.
    Entry(EntryId),
}

/// Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EntryId(u64);

#[derive(Debug)]
struct Entry {
    parent: Parent,
    /// 1 to [`KV_CHUNK`] tokens; fewer than that only at the end of a sequence.
    tokens: Box<[TokenId]>,
    block: Arc<Block>,
    used: u64,
}

/// The tree. Its size is bounded by the pool that owns the memory.
#[derive(Debug, Default)]
pub(crate) struct PrefixTree {
    entries: HashMap<EntryId, Entry>,
    children: HashMap<Parent, Vec<EntryId>>,
    /// Counts uses and entries.
    clock: u64,
}

impl PrefixTree {
    /// The child of `parent` that shares the most leading tokens with `tokens`, and how many (at least 1).
    pub fn best_child(&self, parent: Parent, tokens: &[TokenId]) -> Option<(EntryId, usize)> {
        let children = self.children.get(&parent)?.iter();
        let shared = |id: &EntryId| (*id, shared_len(&self.entries[id].tokens, tokens));
        children.map(shared).max_by_key(|(_, n)| *n).filter(|(_, n)| *n > 0)
    }

    /// A further owner of an entry's block.
    pub fn share(&self, id: EntryId) -> Arc<Block> {
        Arc::clone(&self.entries[&id].block)
    }

    /// Whether nobody but the tree holds the entry's block.
    pub fn is_idle(&self, id: EntryId) -> bool {
        Arc::strong_count(&self.entries[&id].block) == 1
    }

    /// Marks `id` and all before it as just used.
    pub fn touch(&mut self, id: EntryId) {
        let mut next = Parent::Entry(id);
        while let Parent::Entry(id) = next {
            self.clock += 1;
            let entry = self.entries.get_mut(&id).expect("a parent outlives its children");
            entry.used = self.clock;
            next = entry.parent;
        }
    }

    /// Adds a block; it counts as used once it is touched.
    pub fn insert(&mut self, parent: Parent, tokens: &[TokenId], block: Arc<Block>) -> EntryId {
        debug_assert!((1..=KV_CHUNK).contains(&tokens.len()), "a block of {} tokens", tokens.len());
        self.clock += 1;
        let id = EntryId(self.clock);
        self.entries.insert(id, Entry { parent, tokens: tokens.into(), block, used: self.clock });
        self.children.entry(parent).or_default().push(id);
        id
    }

    /// Takes out the children of `parent` whose tokens are a proper prefix of `tokens`, and returns their blocks.
    pub fn remove_shorter(&mut self, parent: Parent, tokens: &[TokenId]) -> Vec<Block> {
        let is_shorter = |id: &EntryId| {
            let known = &self.entries[id].tokens;
            known.len() < tokens.len() && tokens.starts_with(known)
        };
        let shorter: Vec<_> = self.children.get(&parent).into_iter().flatten().copied().filter(is_shorter).collect();
        shorter.into_iter().map(|id| self.remove(id)).collect()
    }

    /// Takes out the least recently used block that nobody holds.
    pub fn evict(&mut self) -> Option<Block> {
        let idle = self.entries.iter().filter(|(_, entry)| Arc::strong_count(&entry.block) == 1);
        let oldest = idle.min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id);
        oldest.map(|id| self.remove(id))
    }

    /// Takes out an idle entry without children.
    pub fn remove(&mut self, id: EntryId) -> Block {
        assert!(!self.children.contains_key(&Parent::Entry(id)), "its children would be stranded");
        let entry = self.entries.remove(&id).expect("an entry of this tree");
        let siblings = self.children.get_mut(&entry.parent).expect("it is a child of its parent");
        siblings.retain(|sibling| *sibling != id);
        if siblings.is_empty() {
            self.children.remove(&entry.parent);
        }
        Arc::into_inner(entry.block).expect("only idle entries are removed")
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }
}

fn shared_len(a: &[TokenId], b: &[TokenId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Parent = Parent::Root(Payer([0; 20]));

    fn block(mark: u16) -> Arc<Block> {
        Arc::new(Block([mark].into()))
    }

    #[test]
    fn the_longest_shared_beginning_is_found_under_its_parent_only() {
        let mut tree = PrefixTree::default();
        let a = tree.insert(ROOT, &[1, 2, 3], block(1));
        let b = tree.insert(ROOT, &[1, 2, 4, 5], block(2));
        let c = tree.insert(Parent::Entry(a), &[7, 8], block(3));
        let check = |parent, tokens: &[u32], expect| assert_eq!(tree.best_child(parent, tokens), expect, "{tokens:?}");
        check(ROOT, &[1, 2, 4], Some((b, 3)));
        check(ROOT, &[1, 2, 3, 9], Some((a, 3)));
        check(ROOT, &[2], None);
        check(ROOT, &[], None);
        check(Parent::Entry(a), &[7, 9], Some((c, 1)));
        check(Parent::Entry(b), &[7, 9], None);
        check(Parent::Root(Payer([1; 20])), &[1, 2, 3], None);
    }

    #[test]
    fn the_least_recently_used_leaf_that_nobody_holds_goes_first() {
        let mut tree = PrefixTree::default();
        let a = tree.insert(ROOT, &[1], block(1));
        let b = tree.insert(Parent::Entry(a), &[2], block(2));
        let c = tree.insert(Parent::Entry(a), &[3], block(3));
        [c, b].into_iter().for_each(|id| tree.touch(id));
        let held = tree.share(c);
        assert_eq!(tree.evict().map(|block| block.0[0]), Some(2), "c is older, but held");
        drop(held);
        assert_eq!(tree.evict().map(|block| block.0[0]), Some(3));
        assert_eq!(tree.evict().map(|block| block.0[0]), Some(1));
        assert!(tree.evict().is_none() && tree.children.is_empty());
    }

    #[test]
    fn a_longer_end_replaces_a_shorter_one() {
        let mut tree = PrefixTree::default();
        tree.insert(ROOT, &[1, 2], block(1));
        tree.insert(ROOT, &[1, 3], block(2));
        let gone = tree.remove_shorter(ROOT, &[1, 2, 3]);
        assert_eq!(gone.iter().map(|block| block.0[0]).collect::<Vec<_>>(), [1]);
        assert_eq!(tree.len(), 1);
    }
}
