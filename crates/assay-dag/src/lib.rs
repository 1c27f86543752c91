//! Content addresses: a file as blocks that are named by their hashes, the way IPFS names them.
//!
//! ```text
//! file ── cut by a Layout ──> leaves ── Builder ──> nodes ──> root Cid
//! root Cid ── Assembly asks for blocks, checks each, says where its bytes go ──> file
//! ```
//! CIDs of versions 0 and 1 with SHA-256, raw and dag-pb blocks, UnixFS files and plain directories, CAR version 1.
//! Everything that is decoded may come from a stranger: nothing here panics on it, recurses, or takes memory that the
//! input does not pay for. No files and no network: see `assay-store` and `assay-fetch`.

mod assembly;
mod base;
mod build;
mod car;
mod cid;
mod node;
mod varint;

pub use assembly::{Assembly, AssemblyError, Copy, Limits, Placed};
pub use build::{Builder, Layout, Leaf, Leaves, Profile, Root, UnknownProfile};
pub use car::{CarError, CarReader, header as car_header, section as car_section};
pub use cid::{Cid, CidError, Codec, Version};
pub use node::{Child, DirectoryEntry, FileNode, Node, NodeError, wrapped_leaf};

/// Longest block that is taken. Blocks of 1 MiB are what profiles make; 2 MiB is what networks carry.
pub const BLOCK_LEN_MAX: usize = 4 << 20;
