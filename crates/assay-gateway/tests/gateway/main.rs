//! The gateway over real sockets: HTTP in front, the real frames behind, scripted providers at the end.

mod audits;
mod chain;
mod challenges;
mod chaos;
mod dialects;
mod errors;
mod failover;
mod keys;
mod lifecycle;
mod lives;
mod money;
mod redundant;
mod refunds;
mod routing;
mod streaming;
mod vectors;
mod world;
mod x402;
