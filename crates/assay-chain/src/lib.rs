//! Embedded EVM chain, contract bindings and chain client.
