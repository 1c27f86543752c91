//! End to end: the binary as a user runs it.

mod attacks;
mod cheats;
mod cli;
mod court;
mod earnings;
mod keys;
mod machine;
mod network;
mod prosecution;
mod support;
mod tolerant;
