//! What the first block holds: funded accounts and the two contracts that live at well-known addresses.

use crate::bindings::{collector::Erc3009Collector, settlement::BatchSettlement};
use alloy_primitives::{Address, Bytes, U256, address};
use assay_types::SETTLEMENT_ADDRESS;

/// Chain id of a local network, used by no public one that we know of.
pub const LOCAL_CHAIN_ID: u64 = 42_330;

/// Where x402 clients expect the ERC-3009 deposit collector on every chain.
pub const COLLECTOR_ADDRESS: Address = address!("4020806089470a89826cB9fB1f4059150b550004");

/// One account of the first block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GenesisAccount {
    /// Its address.
    pub address: Address,
    /// Its balance in wei.
    pub balance: U256,
    /// Runtime code, empty for a key's account.
    pub code: Bytes,
}

/// The first block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Genesis {
    /// Chain id that transactions sign.
    pub chain_id: u64,
    /// Every account that exists at the start.
    pub accounts: Vec<GenesisAccount>,
}

impl Genesis {
    /// The settlement contract and its collector at their well-known addresses, and a billion ether for `faucet`.
    ///
    /// Gas is free here (base fee zero), so the ether is only for tools that insist on paying a tip.
    #[must_use]
    pub fn local(chain_id: u64, faucet: Address) -> Self {
        let wei_per_ether = U256::from(10u64).pow(U256::from(18));
        let contract = |address, code: &Bytes| GenesisAccount { address, balance: U256::ZERO, code: code.clone() };
        Self {
            chain_id,
            accounts: vec![
                contract(SETTLEMENT_ADDRESS, &BatchSettlement::DEPLOYED_BYTECODE),
                contract(COLLECTOR_ADDRESS, &Erc3009Collector::DEPLOYED_BYTECODE),
                GenesisAccount {
                    address: faucet,
                    balance: wei_per_ether * U256::from(1_000_000_000u64),
                    code: Bytes::new(),
                },
            ],
        }
    }
}
