//! From a file's bytes to blocks: how it is cut (profiles of IPIP-499), and the balanced tree above.

use crate::{
    Cid, Codec, Version,
    node::{Part, encode_node, wrapped_leaf},
};
use std::{fmt, str::FromStr};

/// How a file becomes blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of the file in each leaf but the last.
    pub chunk_len: u32,
    /// Links of each node but the last of its level; at least 2.
    pub links_max: u32,
    /// What leaves are.
    pub leaves: Leaves,
    /// Of the CIDs of nodes.
    pub version: Version,
}

/// What a leaf's block is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaves {
    /// The file's bytes.
    Raw,
    /// A dag-pb node with the file's bytes in it.
    Wrapped,
}

/// Layouts with a name, so that two people who have the same file get the same CID.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Profile {
    /// `unixfs-v1-2025`: raw leaves of 1 MiB, 1,024 links, CIDv1.
    #[default]
    UnixfsV1,
    /// `unixfs-v0-2015`: dag-pb leaves of 256 KiB, 174 links, CIDv0.
    UnixfsV0,
}

impl Profile {
    /// All of them, the default first.
    pub const ALL: [Self; 2] = [Self::UnixfsV1, Self::UnixfsV0];

    /// As IPIP-499 has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::UnixfsV1 => "unixfs-v1-2025",
            Self::UnixfsV0 => "unixfs-v0-2015",
        }
    }

    /// What it says.
    #[must_use]
    pub fn layout(self) -> Layout {
        match self {
            Self::UnixfsV1 => Layout { chunk_len: 1 << 20, links_max: 1024, leaves: Leaves::Raw, version: Version::V1 },
            Self::UnixfsV0 => {
                Layout { chunk_len: 256 << 10, links_max: 174, leaves: Leaves::Wrapped, version: Version::V0 }
            }
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No profile has this name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there are the profiles unixfs-v1-2025 and unixfs-v0-2015")]
pub struct UnknownProfile;

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        Self::ALL.into_iter().find(|profile| profile.name() == name).ok_or(UnknownProfile)
    }
}

impl Layout {
    /// The leaf that holds `chunk`: `chunk_len` bytes of the file, or its last ones, or all of an empty one.
    #[must_use]
    pub fn leaf(&self, chunk: &[u8]) -> Leaf {
        let (cid, dag_len) = match self.leaves {
            Leaves::Raw => (Cid::of(Version::V1, Codec::Raw, chunk), chunk.len()),
            Leaves::Wrapped => {
                let block = wrapped_leaf(chunk);
                (Cid::of(self.version, Codec::DagPb, &block), block.len())
            }
        };
        Leaf(Part { cid, len: chunk.len() as u64, dag_len: dag_len as u64 })
    }
}

/// A leaf without its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Leaf(Part);

/// What became of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Its name.
    pub cid: Cid,
    /// Bytes of the file.
    pub len: u64,
    /// Bytes of all its blocks.
    pub dag_len: u64,
    /// How many blocks it has, each time one occurs.
    pub blocks: u64,
}

/// Puts the tree above leaves, which come in the order of the file. Holds at most `links_max` links a level.
#[derive(Debug)]
pub struct Builder {
    layout: Layout,
    levels: Vec<Vec<Part>>,
    blocks: u64,
}

impl Builder {
    /// # Panics
    /// If a node of `layout` has fewer than 2 links, or a chunk no bytes.
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        assert!(layout.links_max >= 2 && layout.chunk_len >= 1, "a layout that ends: {layout:?}");
        Self { layout, levels: vec![vec![]], blocks: 0 }
    }

    /// Takes the next leaf; `node` gets each node that is complete with it.
    pub fn push(&mut self, leaf: Leaf, node: &mut dyn FnMut(Cid, Vec<u8>)) {
        self.blocks += 1;
        self.levels[0].push(leaf.0);
        let mut level = 0;
        while self.levels[level].len() == self.layout.links_max as usize {
            self.reduce(level, node);
            level += 1;
        }
    }

    /// One node over all of `level`, in the level above.
    fn reduce(&mut self, level: usize, node: &mut dyn FnMut(Cid, Vec<u8>)) {
        let parts = std::mem::take(&mut self.levels[level]);
        let block = encode_node(&parts);
        let cid = Cid::of(self.layout.version, Codec::DagPb, &block);
        let dag_len = block.len() as u64 + parts.iter().map(|part| part.dag_len).sum::<u64>();
        if self.levels.len() == level + 1 {
            self.levels.push(vec![]);
        }
        self.levels[level + 1].push(Part { cid, len: parts.iter().map(|part| part.len).sum(), dag_len });
        self.blocks += 1;
        node(cid, block);
    }

    /// The rest of the tree. A file that has no leaf is an empty one; its leaf is in `node` only if it is dag-pb.
    #[must_use]
    pub fn finish(mut self, node: &mut dyn FnMut(Cid, Vec<u8>)) -> Root {
        if self.blocks == 0 {
            self.push(self.layout.leaf(b""), node);
        }
        let mut level = 0;
        loop {
            let is_top = self.levels[level + 1..].iter().all(Vec::is_empty);
            match self.levels[level][..] {
                [Part { cid, len, dag_len }] if is_top => return Root { cid, len, dag_len, blocks: self.blocks },
                [] => (),
                _ => self.reduce(level, node),
            }
            level += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// As the generator of the vectors makes them.
    fn bytes(len: usize) -> Vec<u8> {
        let mut state = 7_u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    fn root(layout: Layout, bytes: &[u8]) -> Root {
        let mut builder = Builder::new(layout);
        for chunk in bytes.chunks(layout.chunk_len as usize) {
            builder.push(layout.leaf(chunk), &mut |_, _| ());
        }
        builder.finish(&mut |_, _| ())
    }

    #[test]
    fn cids_equal_those_of_another_implementation() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../vectors/unixfs.json");
        let vectors: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let files = vectors["files"].as_array().unwrap();
        let bytes = bytes(files.iter().map(|file| file["len"].as_u64().unwrap() as usize).max().unwrap());
        assert!(files.len() >= 5);
        for file in files {
            let len = file["len"].as_u64().unwrap();
            for profile in Profile::ALL {
                let root = root(profile.layout(), &bytes[..len as usize]);
                assert_eq!((root.cid.to_string().as_str(), root.len), (file[profile.name()].as_str().unwrap(), len));
            }
        }
        // Layouts of little bytes and few links have deep trees.
        for tree in vectors["trees"].as_array().unwrap() {
            let number = |key: &str| tree[key].as_u64().unwrap() as u32;
            let (leaves, version) = match tree["raw"].as_bool().unwrap() {
                true => (Leaves::Raw, Version::V1),
                false => (Leaves::Wrapped, Version::V0),
            };
            let layout = Layout { chunk_len: number("chunk"), links_max: number("links"), leaves, version };
            let root = root(layout, &bytes[..number("len") as usize]);
            assert_eq!(root.cid.to_string(), tree["cid"].as_str().unwrap(), "{tree}");
        }
    }

    #[test]
    fn every_block_is_given_once_and_counted() {
        for links_max in [2, 3, 7] {
            let layout = Layout { chunk_len: 4, links_max, leaves: Leaves::Raw, version: Version::V1 };
            for len in 0..200_usize {
                let (mut builder, mut nodes, mut sum) = (Builder::new(layout), 0, 0);
                let bytes = bytes(len);
                for chunk in bytes.chunks(4) {
                    builder.push(layout.leaf(chunk), &mut |cid, block| {
                        assert!(cid.is_of(&block));
                        (nodes, sum) = (nodes + 1, sum + block.len());
                    });
                }
                let root = builder.finish(&mut |_, block| (nodes, sum) = (nodes + 1, sum + block.len()));
                assert_eq!(root.blocks, nodes + len.div_ceil(4).max(1) as u64, "{len} bytes");
                assert_eq!((root.len, root.dag_len), (len as u64, (sum + len) as u64));
            }
        }
    }

    #[test]
    fn profiles_have_names() {
        for profile in Profile::ALL {
            assert_eq!(profile.to_string().parse(), Ok(profile));
        }
        assert!("unixfs".parse::<Profile>().unwrap_err().to_string().contains("unixfs-v0-2015"));
    }
}
