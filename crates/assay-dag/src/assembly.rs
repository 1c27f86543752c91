//! From a root CID to a file: which blocks are needed, whether one that came is right, and where its bytes go.
//!
//! A plain state machine: whoever has blocks (many sources at once, a CAR stream, what an interrupted pull left) offers
//! them, in any order in which a parent comes before its children. A block that occurs several times is asked for once.

use crate::{
    Cid, FileNode,
    node::{Child, Node, NodeError},
};
use std::collections::{HashMap, VecDeque};

/// Nodes above each other; a balanced tree of the least links has as many over two thousand million leaves.
const DEPTH_MAX: u8 = 32;

/// What a stranger's root may make us do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Bytes of the file.
    pub file_len_max: u64,
    /// Blocks, each time one occurs.
    pub blocks_max: u64,
}

impl Default for Limits {
    /// 1 TiB, in blocks of at least half a MiB on average.
    fn default() -> Self {
        Self { file_len_max: 1 << 40, blocks_max: 1 << 21 }
    }
}

/// Why a block was not taken. Only [`Self::WrongHash`] and [`Self::NotWanted`] are the fault of who sent it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AssemblyError {
    /// These are not the bytes that were asked for.
    #[error("the bytes that came for block {cid} are not that block")]
    WrongHash {
        /// What was asked for.
        cid: Cid,
    },
    /// No part of the file, not yet known to be one, or here already.
    #[error("block {cid} was not asked for")]
    NotWanted {
        /// What came.
        cid: Cid,
    },
    /// What was named is no file.
    #[error("block {cid}: {source}")]
    Node {
        /// Which block.
        cid: Cid,
        /// What is wrong with it.
        source: NodeError,
    },
    /// What was named is a directory.
    #[error("{cid} is a directory; name a file in it")]
    Directory {
        /// Which.
        cid: Cid,
    },
    /// A parent says another length than its child.
    #[error("block {cid} holds {has} bytes of the file, its parent says {stated}")]
    Length {
        /// The child.
        cid: Cid,
        /// What it has.
        has: u64,
        /// What it should have.
        stated: u64,
    },
    /// The file is larger than the caller wants.
    #[error("the file has {len} bytes, at most {max} are taken")]
    TooLarge {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The tree is made to cost more than it holds.
    #[error("the tree of {cid} is too {what}")]
    Tree {
        /// The root.
        cid: Cid,
        /// In which way.
        what: &'static str,
    },
}

/// Where an accepted block's bytes go.
#[derive(PartialEq, Eq, Debug)]
pub struct Placed<'a> {
    /// Bytes of the file; none if the block is a node.
    pub data: &'a [u8],
    /// Where they belong, each place.
    pub offsets: Vec<u64>,
    /// What is in the file already and belongs elsewhere, too.
    pub copies: Vec<Copy>,
}

/// `len` bytes of the file that are also needed at `to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copy {
    /// Where they are.
    pub from: u64,
    /// Where they belong, too.
    pub to: u64,
    /// How many.
    pub len: u64,
}

/// A place in the file that a block fills.
#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: u64,
    /// `None` of the root.
    len: Option<u64>,
    depth: u8,
}

/// A file that is being put together.
#[derive(Debug)]
pub struct Assembly {
    root: Cid,
    limits: Limits,
    /// Known once the root is there.
    len: Option<u64>,
    /// Blocks that are not here, and what they fill.
    missing: HashMap<Cid, Vec<Slot>>,
    /// Those that nobody was told to get, in the order of the file.
    queue: VecDeque<Cid>,
    /// Taken nodes: one may occur again.
    nodes: HashMap<Cid, FileNode>,
    /// Taken leaves: place and length.
    leaves: HashMap<Cid, (u64, u64)>,
    blocks: u64,
    done: u64,
}

impl Assembly {
    /// Nothing is there.
    #[must_use]
    pub fn new(root: Cid, limits: Limits) -> Self {
        let slot = Slot { offset: 0, len: None, depth: 0 };
        Self {
            root,
            limits,
            len: None,
            missing: HashMap::from([(root, vec![slot])]),
            queue: VecDeque::from([root]),
            nodes: HashMap::new(),
            leaves: HashMap::new(),
            blocks: 1,
            done: 0,
        }
    }

    /// What is put together.
    #[must_use]
    pub fn root(&self) -> Cid {
        self.root
    }

    /// Bytes of the file, once its root is there.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        self.len
    }

    /// Whether the file is known to have no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == Some(0)
    }

    /// Bytes of the file that have their place.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Whether all are.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Where the first of the bytes below `cid` belong, and how many they are (known but of the root), if it is needed and
    /// not here.
    #[must_use]
    pub fn place(&self, cid: &Cid) -> Option<(u64, Option<u64>)> {
        self.missing.get(cid)?.first().map(|slot| (slot.offset, slot.len))
    }

    /// Whether `cid` was taken.
    #[must_use]
    pub fn has(&self, cid: &Cid) -> bool {
        self.nodes.contains_key(cid) || self.leaves.contains_key(cid)
    }

    /// A block to get, each once. None while others are on their way, or at the end.
    pub fn next_block(&mut self) -> Option<Cid> {
        loop {
            let cid = self.queue.pop_front()?;
            // One that came unasked needs not be got.
            if self.missing.contains_key(&cid) {
                return Some(cid);
            }
        }
    }

    /// Makes [`Self::next_block`] give `cid` again: who was told to get it could not.
    pub fn put_back(&mut self, cid: Cid) {
        self.queue.push_front(cid);
    }

    /// Takes `block` if it is what `cid` names and the file needs it.
    ///
    /// # Errors
    /// [`AssemblyError`]. After one that is not the sender's fault the file cannot be completed.
    pub fn accept<'a>(&mut self, cid: &Cid, block: &'a [u8]) -> Result<Placed<'a>, AssemblyError> {
        if !self.missing.contains_key(cid) {
            return Err(AssemblyError::NotWanted { cid: *cid });
        }
        if !cid.is_of(block) {
            return Err(AssemblyError::WrongHash { cid: *cid });
        }
        let node = Node::decode(cid.codec(), block).map_err(|source| AssemblyError::Node { cid: *cid, source })?;
        let len = match &node {
            Node::Leaf(data) => data.len() as u64,
            Node::File(node) => node.len,
            Node::Directory(_) => return Err(AssemblyError::Directory { cid: *cid }),
        };
        let slots = self.missing.remove(cid).unwrap_or_default();
        for slot in &slots {
            match slot.len {
                None if len > self.limits.file_len_max => {
                    return Err(AssemblyError::TooLarge { len, max: self.limits.file_len_max });
                }
                None => self.len = Some(len),
                Some(stated) if stated != len => {
                    return Err(AssemblyError::Length { cid: *cid, has: len, stated });
                }
                Some(_) => (),
            }
        }
        match node {
            Node::Leaf(data) => {
                self.done += len * slots.len() as u64;
                self.leaves.insert(*cid, (slots.first().map_or(0, |slot| slot.offset), len));
                Ok(Placed { data, offsets: slots.iter().map(|slot| slot.offset).collect(), copies: vec![] })
            }
            Node::File(node) => {
                self.nodes.insert(*cid, node);
                let copies = self.expand(*cid, slots)?;
                Ok(Placed { data: &[], offsets: vec![], copies })
            }
            Node::Directory(_) => Err(AssemblyError::Directory { cid: *cid }),
        }
    }

    /// Gives the children of the node `cid` their places in each of `slots`. A loop with a list, not a recursion: the
    /// tree is a stranger's. Nodes have no cycles, as no block can hold its own hash.
    fn expand(&mut self, cid: Cid, slots: Vec<Slot>) -> Result<Vec<Copy>, AssemblyError> {
        let (mut copies, mut fresh) = (vec![], vec![]);
        let mut todo: Vec<(Child, Slot)> = vec![];
        let child = |slot: &Slot| Child { cid, len: slot.len.unwrap_or(0) };
        todo.extend(slots.iter().rev().map(|slot| (child(slot), *slot)));
        while let Some((Child { cid, len }, slot)) = todo.pop() {
            if let Some(node) = self.nodes.get(&cid) {
                if slot.len.is_some_and(|stated| stated != node.len) {
                    return Err(AssemblyError::Length { cid, has: node.len, stated: len });
                }
                self.blocks = self.blocks.saturating_add(node.children.len() as u64);
                if self.blocks > self.limits.blocks_max {
                    return Err(AssemblyError::Tree { cid: self.root, what: "wide" });
                }
                if slot.depth == DEPTH_MAX {
                    return Err(AssemblyError::Tree { cid: self.root, what: "deep" });
                }
                let first = todo.len();
                let mut offset = slot.offset;
                for child in &node.children {
                    todo.push((*child, Slot { offset, len: Some(child.len), depth: slot.depth + 1 }));
                    // Their sum was checked to be the node's length, which is within the file's.
                    offset = offset.saturating_add(child.len);
                }
                todo[first..].reverse();
            } else if let Some(&(from, has)) = self.leaves.get(&cid) {
                if has != len {
                    return Err(AssemblyError::Length { cid, has, stated: len });
                }
                copies.push(Copy { from, to: slot.offset, len });
                self.done += len;
            } else {
                let slots = self.missing.entry(cid).or_default();
                if slots.is_empty() {
                    fresh.push(cid);
                }
                slots.push(slot);
            }
        }
        for cid in fresh.into_iter().rev() {
            self.queue.push_front(cid);
        }
        Ok(copies)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Builder, Codec, Layout, Leaves, Version,
        node::{Part, encode_node, wrapped_leaf},
    };

    type Blocks = HashMap<Cid, Vec<u8>>;

    fn layout(leaves: Leaves) -> Layout {
        let version = if leaves == Leaves::Raw { Version::V1 } else { Version::V0 };
        Layout { chunk_len: 8, links_max: 3, leaves, version }
    }

    fn build(layout: Layout, bytes: &[u8]) -> (Cid, Blocks) {
        let (mut blocks, mut builder) = (Blocks::new(), Builder::new(layout));
        let chunks: Vec<&[u8]> = if bytes.is_empty() { vec![b""] } else { bytes.chunks(8).collect() };
        for chunk in chunks {
            let (codec, block) = match layout.leaves {
                Leaves::Raw => (Codec::Raw, chunk.to_vec()),
                Leaves::Wrapped => (Codec::DagPb, wrapped_leaf(chunk)),
            };
            blocks.insert(Cid::of(layout.version, codec, &block), block);
            builder.push(layout.leaf(chunk), &mut |cid, block| drop(blocks.insert(cid, block)));
        }
        let root = builder.finish(&mut |cid, block| drop(blocks.insert(cid, block)));
        (root.cid, blocks)
    }

    /// Gets blocks in the order in which they are asked for, or the other way round.
    fn assemble(root: Cid, blocks: &Blocks, backwards: bool) -> (Vec<u8>, usize) {
        let mut assembly = Assembly::new(root, Limits::default());
        let (mut file, mut asked) = (vec![], 0);
        while !assembly.is_complete() {
            let mut wanted: Vec<Cid> = std::iter::from_fn(|| assembly.next_block()).collect();
            if backwards {
                wanted.reverse();
            }
            for cid in wanted {
                asked += 1;
                let placed = assembly.accept(&cid, &blocks[&cid]).unwrap();
                file.resize(assembly.len().unwrap() as usize, 0xee);
                for at in placed.offsets {
                    file[at as usize..][..placed.data.len()].copy_from_slice(placed.data);
                }
                for copy in placed.copies {
                    file.copy_within(copy.from as usize..(copy.from + copy.len) as usize, copy.to as usize);
                }
            }
        }
        assert_eq!((assembly.done(), assembly.next_block()), (file.len() as u64, None));
        (file, asked)
    }

    #[test]
    fn every_file_comes_back_in_either_order() {
        for leaves in [Leaves::Raw, Leaves::Wrapped] {
            for len in (0..100).chain([500, 1000]) {
                let bytes: Vec<u8> = (0..len).map(|i| (i / 8) as u8 ^ i as u8).collect();
                let (root, blocks) = build(layout(leaves), &bytes);
                for backwards in [false, true] {
                    assert_eq!(assemble(root, &blocks, backwards).0, bytes, "{len} bytes");
                }
            }
        }
    }

    #[test]
    fn a_block_that_occurs_often_is_asked_for_once() {
        // Zeros: one leaf, and one node a level, but for the ends.
        let bytes = vec![0; 8 * 27 * 4 + 3];
        for leaves in [Leaves::Raw, Leaves::Wrapped] {
            let (root, blocks) = build(layout(leaves), &bytes);
            for backwards in [false, true] {
                let (file, asked) = assemble(root, &blocks, backwards);
                assert_eq!((file.as_slice(), asked), (&bytes[..], blocks.len()));
            }
        }
    }

    #[test]
    fn a_wrong_block_changes_nothing() {
        let bytes: Vec<u8> = (0..100).collect();
        let (root, blocks) = build(layout(Leaves::Raw), &bytes);
        let mut assembly = Assembly::new(root, Limits::default());
        let mut flipped = blocks[&root].clone();
        flipped[10] ^= 1;
        assert_eq!(assembly.accept(&root, &flipped), Err(AssemblyError::WrongHash { cid: root }));
        assert_eq!(assembly.accept(&root, b""), Err(AssemblyError::WrongHash { cid: root }));
        let stranger = Cid::of(Version::V1, Codec::Raw, b"x");
        assert_eq!(assembly.accept(&stranger, b"x"), Err(AssemblyError::NotWanted { cid: stranger }));
        assert_eq!((assembly.place(&root), assembly.has(&root)), (Some((0, None)), false));
        assembly.accept(&root, &blocks[&root]).unwrap();
        assert_eq!((assembly.place(&root), assembly.has(&root)), (None, true));
        let next = assembly.next_block().and_then(|cid| assembly.place(&cid));
        assert_eq!(next, Some((0, Some(72))), "a node over nine leaves of eight bytes");
        assert_eq!(assembly.accept(&root, &blocks[&root]), Err(AssemblyError::NotWanted { cid: root }));
    }

    /// A node over `parts` of given lengths.
    fn node(parts: &[(Cid, u64)]) -> (Cid, Vec<u8>) {
        let parts: Vec<Part> = parts.iter().map(|&(cid, len)| Part { cid, len, dag_len: 0 }).collect();
        let block = encode_node(&parts);
        (Cid::of(Version::V1, Codec::DagPb, &block), block)
    }

    fn refused(root: Cid, blocks: &Blocks) -> String {
        let mut assembly = Assembly::new(root, Limits { file_len_max: 1 << 30, blocks_max: 10_000 });
        loop {
            let cid = assembly.next_block().expect("it is refused before the end");
            if let Err(error) = assembly.accept(&cid, &blocks[&cid]) {
                return error.to_string();
            }
        }
    }

    #[test]
    fn trees_that_lie_are_refused() {
        let leaf = Cid::of(Version::V1, Codec::Raw, b"abc");
        let raw = (leaf, b"abc".to_vec());
        let check = |blocks: Vec<(Cid, Vec<u8>)>, expect: &str| {
            let root = blocks.last().unwrap().0;
            let error = refused(root, &blocks.into_iter().collect());
            assert!(error.contains(expect), "{error}");
        };
        check(vec![raw.clone(), node(&[(leaf, 4)])], "holds 3 bytes of the file, its parent says 4");
        check(vec![raw.clone(), node(&[(leaf, 3), (leaf, 2)])], "parent says 2");
        check(vec![raw.clone(), node(&[(leaf, 1 << 31)])], "at most 1073741824 are taken");
        let directory = vec![0x0a, 2, 8, 1];
        check(vec![(Cid::of(Version::V1, Codec::DagPb, &directory), directory)], "is a directory");
        let other = b"no node".to_vec();
        check(vec![(Cid::of(Version::V1, Codec::DagPb, &other), other)], "is damaged");
        // Each level names the one below ten times: a file of 3 * 10^8 bytes out of 2 KiB.
        let mut blocks = vec![raw.clone()];
        for level in 0..8 {
            let below = blocks.last().unwrap().0;
            blocks.push(node(&[(below, 3 * 10_u64.pow(level)); 10]));
        }
        check(blocks, "too wide");
        let mut blocks = vec![raw];
        for _ in 0..40 {
            let below = blocks.last().unwrap().0;
            blocks.push(node(&[(below, 3)]));
        }
        check(blocks, "too deep");
    }

    #[test]
    fn what_could_not_be_got_is_asked_for_again() {
        let (root, _) = build(layout(Leaves::Raw), &[1; 30]);
        let mut assembly = Assembly::new(root, Limits::default());
        assert_eq!((assembly.next_block(), assembly.next_block()), (Some(root), None));
        assembly.put_back(root);
        assert_eq!(assembly.next_block(), Some(root));
    }
}
