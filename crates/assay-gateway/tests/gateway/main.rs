//! The gateway over real sockets: HTTP in front, the real frames behind, scripted providers at the end.

mod chain;
mod errors;
mod failover;
mod lifecycle;
mod money;
mod streaming;
mod world;
