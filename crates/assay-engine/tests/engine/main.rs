//! The engine from outside, on tiny random models: bits, serving, replay, hostile files.

mod bits;
mod families;
mod hostile;
mod memory;
mod reference;
mod replaying;
mod serving;
mod shipped;
mod support;
