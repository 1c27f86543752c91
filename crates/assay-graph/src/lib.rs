//! What a dispute is about: a model's graph, the trace of a request, and what one number of it is made of.
//!
//! Owns the meaning of a model's metadata ([`ModelConfig`]), the list of operations that stands for it on a chain
//! ([`Graph`]), the numbers that those operations give for a request ([`Trace`]), and the trees over all of that.
//! docs/COURT.md is the normative text; `contracts/src/Graph.sol` and `Judge.sol` are its other implementation, and
//! vectors hold both to each other. Does not know contracts, signatures or who plays which part.
//!
//! The trace is computed from the graph and the file's bytes alone, without the engine: it is a second computation of
//! the same bits. Only the products of matrices come from the kernels, which are equal to their definitions.
//!
//! ```text
//! Gguf --compile--> Graph --head--> graphHash in the manifest
//!                     |
//! file bytes ------ TracedModel --compute(tokens)--> Trace --> roots, nodes, leaves, steps, operands, openings
//! ```

#![warn(missing_docs)]

mod attention;
mod compile;
mod config;
mod family;
mod forward;
mod judge;
mod merkle;
mod model;
mod op;
mod operands;
mod position;
mod reveal;
mod trace;
pub mod tree;

pub use compile::{Graph, GraphError, GraphHead, ROPE_POSITIONS_MAX};
pub use config::{ConfigError, ModelConfig, Window, limits, metadata_string};
pub use family::Family;
pub use judge::evaluate;
pub use merkle::{LEAF_LEN, MerkleTree};
pub use model::{ModelTree, TracedModel};
pub use op::{Keys, Kind, Op, flags, unit_of};
pub use operands::{Operand, Site, Source, operands, slots, steps};
pub use reveal::Revealed;
pub use trace::{Lie, Opening, Stated, Trace, TraceError, TraceOptions, Tree, greedy};
