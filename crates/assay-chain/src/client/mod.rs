//! A client of any EVM chain: typed calls to the contracts, one transaction queue per key, retries, named reverts.
//!
//! Transport failures are retried with growing pauses and a limit; a signed transaction is only ever sent again with
//! the same bytes, or after the chain said that its nonce is gone, so nothing happens twice.

mod court;
mod deploy;
mod error;
mod follow;
mod http;
mod models;
mod parameters;
mod read;
mod registry;
mod sender;
mod settlement;
mod token;

pub use alloy_rpc_types_eth::{Log, TransactionReceipt};
pub use court::{Case, Challenge, ClaimChallenge, Court, CourtTerms, Dispute, Opening, Outcome, Phase, Shown, Spot};
pub use deploy::{
    CourtAddresses, CourtParams, DeployParams, Existing, Network, NetworkAddresses, Slasher, deploy, deploy_local,
};
pub use error::{ChainError, Revert};
pub use follow::{ContractLogs, Cursor, Followed, Follower, LogSource, SeenBlock, finality_depth};
pub use models::{ModelRecord, Models};
pub use parameters::{Caps, NetworkPolicy, Parameters, Terms};
pub use read::{BlockHead, ContractCall};
pub use registry::{Listing, ProviderInfo, Registry, StakeDetails};
pub use settlement::{
    ChannelState, ClaimReport, ClaimRow, DepositRequest, ReceiverState, Settlement, SignedDeposit, WithdrawalState,
};
pub use token::{ReceiveAuthorization, Token, TransferAuthorization};

use crate::embedded::EmbeddedChain;
use alloy_json_rpc::{RpcRecv, RpcSend};
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256};
use alloy_rpc_client::RpcClient;
use alloy_rpc_types_eth::Block;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolCall;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::Instant};

/// Where a chain is.
#[derive(Clone)]
pub enum Endpoint {
    /// `http://` or `https://`.
    Url(String),
    /// In this process.
    Embedded(EmbeddedChain),
}

impl From<&str> for Endpoint {
    fn from(url: &str) -> Self {
        Self::Url(url.to_owned())
    }
}

impl From<String> for Endpoint {
    fn from(url: String) -> Self {
        Self::Url(url)
    }
}

impl From<&EmbeddedChain> for Endpoint {
    fn from(chain: &EmbeddedChain) -> Self {
        Self::Embedded(chain.clone())
    }
}

/// Limits of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Refuse another chain.
    pub chain_id: Option<u64>,
    /// Tries of one request that fails in transport.
    pub attempts: u32,
    /// Pause before the second try; it doubles each time.
    pub retry_pause: Duration,
    /// A transaction that is in no block after so long is sent again if the endpoint does not know it any more.
    pub resend_after: Duration,
    /// How long to wait for a transaction to be in a block.
    pub receipt_timeout: Duration,
    /// Blocks that may be undone: a deposit counts when it is deeper. 0 for a chain that never undoes one.
    pub finality_depth: u64,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            chain_id: None,
            attempts: 4,
            retry_pause: Duration::from_millis(200),
            resend_after: Duration::from_secs(2),
            receipt_timeout: Duration::from_secs(90),
            finality_depth: 0,
        }
    }
}

/// A connection with a key; clones share both, and the queue of transactions.
#[derive(Clone)]
pub struct ChainClient(Arc<Inner>);

struct Inner {
    rpc: Rpc,
    signer: PrivateKeySigner,
    jobs: mpsc::Sender<sender::Job>,
}

/// First pause between looks for a receipt; it grows to [`POLL_PAUSE_MAX`].
const POLL_PAUSE: Duration = Duration::from_millis(4);
const POLL_PAUSE_MAX: Duration = Duration::from_millis(500);

impl ChainClient {
    /// Connects; asks for the chain id. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ChainError::BadUrl`], [`ChainError::Transport`], or [`ChainError::OtherChain`].
    pub async fn connect(
        endpoint: impl Into<Endpoint>,
        signer: PrivateKeySigner,
        options: ClientOptions,
    ) -> Result<Self, ChainError> {
        let client = match endpoint.into() {
            Endpoint::Url(url) => RpcClient::new(http::HttpTransport::new(&url)?, false),
            Endpoint::Embedded(chain) => RpcClient::new(chain.transport(), true),
        };
        let mut rpc = Rpc { client, options, chain_id: 0 };
        rpc.chain_id = rpc.request::<_, U64>("eth_chainId", ()).await?.to();
        if let Some(expected) = options.chain_id.filter(|expected| *expected != rpc.chain_id) {
            return Err(ChainError::OtherChain { found: rpc.chain_id, expected });
        }
        let jobs = sender::start(rpc.clone(), signer.clone());
        Ok(Self(Arc::new(Inner { rpc, signer, jobs })))
    }

    /// The chain's id.
    #[must_use]
    pub fn chain_id(&self) -> u64 {
        self.0.rpc.chain_id
    }

    /// The address of the key.
    #[must_use]
    pub fn address(&self) -> Address {
        self.0.signer.address()
    }

    /// The key.
    #[must_use]
    pub fn signer(&self) -> &PrivateKeySigner {
        &self.0.signer
    }

    /// Number of the last block.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn block_number(&self) -> Result<u64, ChainError> {
        Ok(self.0.rpc.request::<_, U64>("eth_blockNumber", ()).await?.to())
    }

    /// Unix seconds of the last block; an idle embedded chain's last block may be long ago.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn block_timestamp(&self) -> Result<u64, ChainError> {
        Ok(self.0.rpc.latest_block().await?.header.inner.timestamp)
    }

    /// Wei of an account.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn ether_balance(&self, address: Address) -> Result<U256, ChainError> {
        self.0.rpc.request("eth_getBalance", json!([address, "latest"])).await
    }

    /// Whether there is code at `address`.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn has_code(&self, address: Address) -> Result<bool, ChainError> {
        let code: Bytes = self.0.rpc.request("eth_getCode", json!([address, "latest"])).await?;
        Ok(!code.is_empty())
    }

    /// Reads from a contract.
    ///
    /// # Errors
    /// [`ChainError::Reverted`], [`ChainError::NoContract`] and those of transport.
    pub async fn call<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, ChainError> {
        self.call_at(to, call, json!("latest")).await
    }

    /// As [`Self::call`], of the state as deep as [`ClientOptions::finality_depth`].
    ///
    /// # Errors
    /// As there.
    pub async fn call_settled<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, ChainError> {
        let block = match self.0.rpc.options.finality_depth {
            0 => json!("latest"),
            depth => json!(U64::from(self.block_number().await?.saturating_sub(depth))),
        };
        self.call_at(to, call, block).await
    }

    async fn call_at<C: SolCall>(&self, to: Address, call: &C, block: Value) -> Result<C::Return, ChainError> {
        let request = json!({ "from": self.address(), "to": to, "input": Bytes::from(call.abi_encode()) });
        let output: Bytes = self.0.rpc.request("eth_call", json!([request, block])).await?;
        if output.is_empty() && !self.has_code(to).await? {
            return Err(ChainError::NoContract { address: to, chain_id: self.chain_id() });
        }
        C::abi_decode_returns_validate(&output)
            .map_err(|error| ChainError::BadReturn { call: C::SIGNATURE, detail: error.to_string() })
    }

    /// Sends a transaction to a contract and waits until it is in a block. A call that would revert is not sent.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn send<C: SolCall>(&self, to: Address, call: &C) -> Result<TransactionReceipt, ChainError> {
        if !self.has_code(to).await? {
            return Err(ChainError::NoContract { address: to, chain_id: self.chain_id() });
        }
        self.transact(TxKind::Call(to), call.abi_encode().into(), U256::ZERO).await
    }

    /// Sends ether.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn send_ether(&self, to: Address, wei: U256) -> Result<TransactionReceipt, ChainError> {
        self.transact(TxKind::Call(to), Bytes::new(), wei).await
    }

    /// Creates a contract from creation code and ABI-encoded constructor arguments; returns its address.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn deploy(&self, bytecode: &Bytes, arguments: &[u8]) -> Result<Address, ChainError> {
        let code = [bytecode.as_ref(), arguments].concat();
        let receipt = self.transact(TxKind::Create, code.into(), U256::ZERO).await?;
        receipt.contract_address.ok_or_else(|| ChainError::BadReturn {
            call: "constructor",
            detail: "the receipt names no contract".into(),
        })
    }

    async fn transact(&self, to: TxKind, data: Bytes, value: U256) -> Result<TransactionReceipt, ChainError> {
        let call = json!({ "from": self.address(), "to": to.to(), "input": data, "value": value });
        let gas: U64 = self.0.rpc.request("eth_estimateGas", json!([call])).await?;
        // Other transactions may come first and make this one dearer: new slots, other branches.
        let gas_limit = gas.to::<u64>().saturating_mul(5) / 4 + 20_000;
        let sent = self.enqueue(sender::Send { to, data, value, gas_limit }).await?;
        let receipt = match self.wait_for_receipt(&sent).await {
            Ok(receipt) => receipt,
            Err(error) => {
                // Its nonce may be free again: ask the chain before the next transaction.
                self.0.jobs.send(sender::Job::ForgetNonce).await.map_err(|_| ChainError::Closed)?;
                return Err(error);
            }
        };
        if receipt.inner.status() {
            return Ok(receipt);
        }
        // What it would say now; the state may have moved on since.
        match self.0.rpc.request::<_, Bytes>("eth_call", json!([call, "latest"])).await {
            Err(error @ ChainError::Reverted(_)) => Err(error),
            _ => Err(ChainError::Reverted(Revert::new(Bytes::new()))),
        }
    }

    /// The queue finishes what it took, also if the caller goes away.
    async fn enqueue(&self, send: sender::Send) -> Result<sender::Sent, ChainError> {
        let (reply, answer) = tokio::sync::oneshot::channel();
        self.0.jobs.send(sender::Job::Send(send, reply)).await.map_err(|_| ChainError::Closed)?;
        answer.await.map_err(|_| ChainError::Closed)?
    }

    async fn wait_for_receipt(&self, sent: &sender::Sent) -> Result<TransactionReceipt, ChainError> {
        let timeout = self.0.rpc.options.receipt_timeout;
        let started = Instant::now();
        let resend_after = self.0.rpc.options.resend_after;
        let mut resend_at = started + resend_after;
        let mut pause = POLL_PAUSE;
        loop {
            let receipt: Option<TransactionReceipt> =
                self.0.rpc.request("eth_getTransactionReceipt", (sent.hash,)).await?;
            if let Some(receipt) = receipt {
                return Ok(receipt);
            }
            if started.elapsed() >= timeout {
                return Err(ChainError::ReceiptTimeout { hash: sent.hash, waited_s: timeout.as_secs() });
            }
            if Instant::now() >= resend_at {
                resend_at = Instant::now() + resend_after;
                self.resend_if_forgotten(sent).await?;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(POLL_PAUSE_MAX);
        }
    }

    /// An endpoint that was restarted may have lost its pool: the same bytes go there again.
    async fn resend_if_forgotten(&self, sent: &sender::Sent) -> Result<(), ChainError> {
        let known: Option<Value> = self.0.rpc.request("eth_getTransactionByHash", (sent.hash,)).await?;
        if known.is_some() {
            return Ok(());
        }
        match self.0.rpc.request::<_, B256>("eth_sendRawTransaction", (&sent.raw,)).await {
            Ok(_) => Ok(()),
            Err(ChainError::Refused { message, .. }) if sender::is_known(&message) => Ok(()),
            Err(ChainError::Refused { message, .. }) => {
                // It may have been sealed between the two questions.
                let known: Option<Value> = self.0.rpc.request("eth_getTransactionByHash", (sent.hash,)).await?;
                known.map(|_| ()).ok_or(ChainError::Dropped { hash: sent.hash, detail: message })
            }
            Err(error) => Err(error),
        }
    }
}

/// Requests with retries.
#[derive(Clone)]
struct Rpc {
    client: RpcClient,
    options: ClientOptions,
    chain_id: u64,
}

impl Rpc {
    async fn request<P: RpcSend + Clone, R: RpcRecv>(&self, method: &'static str, params: P) -> Result<R, ChainError> {
        let mut pause = self.options.retry_pause;
        let mut attempt = 1;
        loop {
            let error = match self.client.request(method, params.clone()).await {
                Ok(result) => return Ok(result),
                Err(error) => error,
            };
            let again = match &error {
                alloy_transport::RpcError::Transport(kind) => !kind.is_non_retryable(),
                alloy_transport::RpcError::ErrorResp(payload) => payload.is_retry_err(),
                _ => false,
            };
            if !again || attempt >= self.options.attempts {
                return Err(ChainError::from_transport(method, error));
            }
            tracing::debug!(%error, method, attempt, "chain request failed, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
            attempt += 1;
        }
    }

    async fn latest_block(&self) -> Result<Block, ChainError> {
        let block: Option<Block> = self.request("eth_getBlockByNumber", ("latest", false)).await?;
        block.ok_or(ChainError::Refused {
            method: "eth_getBlockByNumber",
            code: 0,
            message: "there is no latest block".into(),
        })
    }
}
