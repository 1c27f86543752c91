//! A chain in a temporary directory with keys that are the same in every run.

#![allow(dead_code, reason = "each test file uses its part")]

use assay_chain::{
    ChainClient, ChainOptions, ClientOptions, DeployParams, EmbeddedChain, Genesis, LOCAL_CHAIN_ID, Network,
    NetworkAddresses, PrivateKeySigner, U256, deploy_local,
};
use std::{path::Path, sync::Arc};

/// Where the chain's clock stands; only `advance_time` moves it.
pub const NOW: u64 = 1_800_000_000;

/// Key number `n`; 1 is the faucet.
pub fn key(n: u64) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&U256::from(n).into()).unwrap()
}

pub fn genesis() -> Genesis {
    Genesis::local(LOCAL_CHAIN_ID, key(1).address())
}

pub fn options() -> ChainOptions {
    ChainOptions::new(Arc::new(|| NOW))
}

pub fn open(dir: &Path) -> EmbeddedChain {
    EmbeddedChain::open(dir, &genesis(), options()).unwrap()
}

pub async fn connect(chain: &EmbeddedChain, n: u64) -> ChainClient {
    ChainClient::connect(chain, key(n), ClientOptions::default()).await.unwrap()
}

/// A chain with the contracts deployed by the faucet.
pub struct World {
    pub dir: tempfile::TempDir,
    pub chain: EmbeddedChain,
    pub faucet: Network,
}

impl World {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let chain = open(dir.path());
        let client = connect(&chain, 1).await;
        let params = DeployParams::local(key(99).address());
        let faucet = deploy_local(&client, &params, None).await.unwrap();
        Self { dir, chain, faucet }
    }

    pub fn addresses(&self) -> NetworkAddresses {
        self.faucet.addresses
    }

    pub async fn network(&self, n: u64) -> Network {
        Network::new(connect(&self.chain, n).await, self.addresses()).unwrap()
    }
}
