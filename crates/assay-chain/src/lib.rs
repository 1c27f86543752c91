//! Everything that touches an EVM chain, in three parts.
//!
//! - [`embedded`]: a chain in this process: revm, state on disk, JSON-RPC over HTTP and without a socket.
//! - [`bindings`]: types and bytecode generated from the committed contract artifacts.
//! - [`client`]: [`ChainClient`] and typed calls to the contracts, over either that chain or any other by URL.
//!
//! Owns no key file and no configuration: the caller passes signers, addresses and the clock. Amounts are base units
//! of the token, times are Unix seconds.

pub mod bindings;
pub mod client;
pub mod embedded;
mod signer;

pub use alloy_primitives::{Address, B256, Bytes, U256};
pub use alloy_signer_local::PrivateKeySigner;
pub use alloy_sol_types::Eip712Domain;
pub use client::{
    ChainClient, ChainError, ClaimRow, ClientOptions, CourtAddresses, CourtParams, DeployParams, DepositRequest,
    Endpoint, Existing, Network, NetworkAddresses, SignedDeposit, Slasher, TransferAuthorization, deploy, deploy_local,
};
pub use embedded::{COLLECTOR_ADDRESS, ChainOptions, EmbeddedChain, EmbeddedError, Genesis, LOCAL_CHAIN_ID};
pub use signer::DigestSigner;
