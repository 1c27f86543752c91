//! One task per key owns its nonce: transactions leave in the order they came, none waits for another's receipt.

use super::{ChainError, Rpc};
use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{B256, Bytes, TxKind, U64, U256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Transactions that wait to be signed; more callers wait for a place.
const QUEUE_MAX: usize = 64;
/// How often a nonce that another user of the key took is replaced; each time one of the two gets on.
const NONCE_ATTEMPTS: u32 = 16;

pub(super) enum Job {
    Send(Send, oneshot::Sender<Result<Sent, ChainError>>),
    ForgetNonce,
}

pub(super) struct Send {
    pub to: TxKind,
    pub data: Bytes,
    pub value: U256,
    pub gas_limit: u64,
}

/// A transaction that an endpoint took.
#[derive(Debug)]
pub(super) struct Sent {
    pub hash: B256,
    pub raw: Bytes,
}

struct Terms {
    max_fee: u128,
    tip: u128,
    gas_limit_max: u64,
}

/// Starts the task; it ends when the last client with this queue is gone.
pub(super) fn start(rpc: Rpc, signer: PrivateKeySigner) -> mpsc::Sender<Job> {
    let (jobs, mut inbox) = mpsc::channel(QUEUE_MAX);
    tokio::spawn(async move {
        let mut sender = Sender { rpc, signer, nonce: None };
        while let Some(job) = inbox.recv().await {
            match job {
                Job::ForgetNonce => sender.nonce = None,
                Job::Send(send, reply) => {
                    let result = sender.send(&send).await;
                    // The caller may be gone; the transaction is on its way all the same.
                    reply.send(result).ok();
                }
            }
        }
    });
    jobs
}

struct Sender {
    rpc: Rpc,
    signer: PrivateKeySigner,
    /// The next one, if the chain need not be asked.
    nonce: Option<u64>,
}

impl Sender {
    async fn send(&mut self, send: &Send) -> Result<Sent, ChainError> {
        let terms = self.terms().await?;
        let mut refused = String::new();
        for attempt in 0..NONCE_ATTEMPTS {
            let nonce = self.next_nonce().await?;
            let sent = self.sign(send, nonce, &terms)?;
            match self.rpc.request::<_, B256>("eth_sendRawTransaction", (&sent.raw,)).await {
                Ok(_) => {}
                Err(ChainError::Refused { message, .. }) if is_known(&message) => {}
                Err(ChainError::Refused { message, .. }) if is_about_nonce(&message) => {
                    // A try whose answer was lost may have got through.
                    let known: Option<Value> = self.rpc.request("eth_getTransactionByHash", (sent.hash,)).await?;
                    if known.is_none() {
                        tracing::debug!(nonce, %message, "nonce refused, asking for the next one");
                        self.nonce = None;
                        refused = message;
                        // Growing pauses let the other side finish its burst.
                        tokio::time::sleep(Duration::from_millis(1 << attempt.min(7))).await;
                        continue;
                    }
                }
                Err(error) => {
                    self.nonce = None;
                    return Err(error);
                }
            }
            self.nonce = Some(nonce + 1);
            return Ok(sent);
        }
        Err(ChainError::Refused { method: "eth_sendRawTransaction", code: -32000, message: refused })
    }

    async fn next_nonce(&self) -> Result<u64, ChainError> {
        match self.nonce {
            Some(nonce) => Ok(nonce),
            None => {
                let params = json!([self.signer.address(), "pending"]);
                Ok(self.rpc.request::<_, U64>("eth_getTransactionCount", params).await?.to())
            }
        }
    }

    /// Price per gas: twice the base fee and the tip, so the transaction survives a few full blocks.
    async fn terms(&self) -> Result<Terms, ChainError> {
        let block = self.rpc.latest_block().await?.header.inner;
        let base = u128::from(block.base_fee_per_gas.unwrap_or(0));
        let tip = match self.rpc.request::<_, U256>("eth_maxPriorityFeePerGas", ()).await {
            Ok(tip) => u128::try_from(tip).unwrap_or(u128::MAX),
            // Not every endpoint has it; what the gas price is above the base fee is the tip.
            Err(ChainError::Refused { .. }) => {
                let price: U256 = self.rpc.request("eth_gasPrice", ()).await?;
                u128::try_from(price).unwrap_or(u128::MAX).saturating_sub(base)
            }
            Err(error) => return Err(error),
        };
        Ok(Terms { max_fee: base.saturating_mul(2).saturating_add(tip), tip, gas_limit_max: block.gas_limit })
    }

    fn sign(&self, send: &Send, nonce: u64, terms: &Terms) -> Result<Sent, ChainError> {
        let transaction = TxEip1559 {
            chain_id: self.rpc.chain_id,
            nonce,
            gas_limit: send.gas_limit.min(terms.gas_limit_max),
            max_fee_per_gas: terms.max_fee,
            max_priority_fee_per_gas: terms.tip,
            to: send.to,
            value: send.value,
            access_list: alloy_eips::eip2930::AccessList::default(),
            input: send.data.clone(),
        };
        let signature = self
            .signer
            .sign_hash_sync(&transaction.signature_hash())
            .map_err(|error| ChainError::BadArgument(format!("the key cannot sign: {error}")))?;
        let envelope = TxEnvelope::from(transaction.into_signed(signature));
        Ok(Sent { hash: *envelope.tx_hash(), raw: envelope.encoded_2718().into() })
    }
}

/// The endpoint has this very transaction.
pub(super) fn is_known(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["already known", "alreadyknown", "already imported", "known transaction"].iter().any(|text| message.contains(text))
}

/// Another transaction has this nonce, or one before it is missing.
fn is_about_nonce(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("nonce") || message.contains("replacement transaction underpriced")
}
