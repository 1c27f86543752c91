//! Blocks, logs and transactions of a chain, as the log follower and the players of a dispute read them.

use super::{ChainClient, ChainError};
use alloy_eips::BlockNumberOrTag;
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256};
use alloy_rpc_types_eth::{Block, Filter, Log, TransactionReceipt};
use serde::Deserialize;
use serde_json::{Value, json};

/// Calls of one traced transaction that are looked at.
const TRACED_CALLS_MAX: usize = 10_000;

/// A block, as far as following needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockHead {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
    /// Unix seconds.
    pub timestamp: u64,
}

/// A call to a contract, with who is the caller as the contract sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContractCall {
    /// The caller.
    pub from: Address,
    /// Its data.
    pub input: Bytes,
}

/// What a node's `callTracer` says of one call.
#[derive(Debug, Deserialize)]
struct TracedCall {
    #[serde(rename = "type", default)]
    kind: String,
    from: Address,
    to: Option<Address>,
    #[serde(default)]
    input: Bytes,
    error: Option<Value>,
    #[serde(default)]
    calls: Vec<TracedCall>,
}

#[derive(Debug, Deserialize)]
struct SentTransaction {
    from: Address,
    to: Option<Address>,
    input: Bytes,
}

impl ChainClient {
    /// The last block.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn head(&self) -> Result<BlockHead, ChainError> {
        Ok(head_of(&self.0.rpc.latest_block().await?))
    }

    /// A block by number, `None` if there is none (yet).
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn block(&self, number: u64) -> Result<Option<BlockHead>, ChainError> {
        let params = (BlockNumberOrTag::Number(number), false);
        let block: Option<Block> = self.0.rpc.request("eth_getBlockByNumber", params).await?;
        Ok(block.as_ref().map(head_of))
    }

    /// Logs that fit a filter, in the order of the chain.
    ///
    /// # Errors
    /// [`ChainError`]; many endpoints refuse long ranges.
    pub async fn logs(&self, filter: &Filter) -> Result<Vec<Log>, ChainError> {
        self.0.rpc.request("eth_getLogs", (filter.clone(),)).await
    }

    /// Wei for a unit of gas, as the endpoint suggests.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn gas_price(&self) -> Result<u128, ChainError> {
        let price: U256 = self.0.rpc.request("eth_gasPrice", ()).await?;
        Ok(u128::try_from(price).unwrap_or(u128::MAX))
    }

    /// The nonce that the next transaction of this key gets, those that wait counted.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn next_nonce(&self) -> Result<u64, ChainError> {
        let params = json!([self.address(), "pending"]);
        Ok(self.0.rpc.request::<_, U64>("eth_getTransactionCount", params).await?.to())
    }

    /// Sends encoded call data to a contract and waits until it is in a block. A call that would revert is not sent.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn send_data(&self, to: Address, data: Bytes) -> Result<TransactionReceipt, ChainError> {
        if !self.has_code(to).await? {
            return Err(ChainError::NoContract { address: to, chain_id: self.chain_id() });
        }
        self.transact(TxKind::Call(to), data, U256::ZERO).await
    }

    /// Asks a test node (anvil, hardhat) to place code at an address.
    ///
    /// # Errors
    /// [`ChainError::Refused`] by every node that is not one.
    pub async fn place_code(&self, address: Address, code: &Bytes) -> Result<(), ChainError> {
        match self.0.rpc.request::<_, Value>("anvil_setCode", (address, code.clone())).await {
            Err(ChainError::Refused { .. }) => {
                self.0.rpc.request::<_, Value>("hardhat_setCode", (address, code.clone())).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// The calls that a transaction made to `contract`, in order: its own, or, if it went through other contracts,
    /// those that the node's tracer tells. `None` if the transaction is not known.
    ///
    /// # Errors
    /// [`ChainError`]; [`ChainError::Refused`] by a node without `debug_traceTransaction` if that is needed.
    pub async fn calls_to(&self, contract: Address, hash: B256) -> Result<Option<Vec<ContractCall>>, ChainError> {
        let sent: Option<SentTransaction> = self.0.rpc.request("eth_getTransactionByHash", (hash,)).await?;
        let Some(sent) = sent else { return Ok(None) };
        if sent.to == Some(contract) {
            return Ok(Some(vec![ContractCall { from: sent.from, input: sent.input }]));
        }
        let root: TracedCall =
            self.0.rpc.request("debug_traceTransaction", (hash, json!({"tracer": "callTracer"}))).await?;
        Ok(Some(calls_in(&root, contract)))
    }
}

fn head_of(block: &Block) -> BlockHead {
    BlockHead { number: block.header.inner.number, hash: block.header.hash, timestamp: block.header.inner.timestamp }
}

/// What reached `contract` from outside of it: what it calls in itself is part of that.
fn calls_in(root: &TracedCall, contract: Address) -> Vec<ContractCall> {
    let mut found = vec![];
    let mut open = vec![root];
    while let Some(call) = open.pop() {
        if call.error.is_some() || found.len() >= TRACED_CALLS_MAX {
            continue;
        }
        if call.kind == "CALL" && call.to == Some(contract) {
            found.push(ContractCall { from: call.from, input: call.input.clone() });
            continue;
        }
        open.extend(call.calls.iter().rev());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_through_other_contracts_are_found_in_order_and_failed_ones_are_not() {
        let address = |n: u8| Address::repeat_byte(n);
        let call = |to: u8, input: &str, more: Value| json!({"type": "CALL", "from": address(1), "to": address(to), "input": input, "calls": more});
        let mut failed = call(9, "0x05", json!([]));
        failed["error"] = json!("execution reverted");
        let inner = call(9, "0x02", json!([call(9, "0x03", json!([]))]));
        let root = call(2, "0x", json!([call(9, "0x01", json!([])), call(3, "0x", json!([inner, failed]))]));
        let root: TracedCall = serde_json::from_value(root).unwrap();
        let inputs: Vec<_> = calls_in(&root, address(9)).into_iter().map(|call| call.input.to_string()).collect();
        assert_eq!(inputs, ["0x01", "0x02"]);
    }
}
