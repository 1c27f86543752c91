//! End to end: the binary as a user runs it.

mod cli;
mod network;
mod support;
