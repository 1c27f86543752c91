//! The only binary: command line and wiring.

fn main() {}
