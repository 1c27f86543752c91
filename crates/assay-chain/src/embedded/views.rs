//! Blocks, transactions, receipts and logs in the JSON shape of the execution API.

use super::{
    methods::{find_block, value},
    rpc::RpcError,
    sealer::Shared,
    store::{Snapshot, StoredBlock, StoredTransaction},
};
use alloy_consensus::{ReceiptEnvelope, Transaction as _, TxEnvelope, transaction::Recovered};
use alloy_eips::{BlockId, BlockNumberOrTag, eip2718::Decodable2718, eip4895::Withdrawals};
use alloy_primitives::{B256, Sealed, U64, U256};
use alloy_rlp::Encodable;
use alloy_rpc_types_eth::{Block, BlockTransactions, Filter, Header, Log, Transaction, TransactionReceipt};
use serde_json::Value;

/// Blocks that one `eth_getLogs` may look at.
const LOG_BLOCKS_MAX: u64 = 100_000;
/// Logs in one answer.
const LOGS_MAX: usize = 10_000;
/// Data bytes of the logs in one answer.
const LOG_BYTES_MAX: usize = 8 << 20;

pub(super) fn transaction_by_hash(shared: &Shared, hash: B256) -> Result<Value, RpcError> {
    // The pool first: what leaves it is sealed by then.
    let pending = shared.read_pool(|pool| pool.get(hash));
    let snapshot = shared.store.snapshot()?;
    if let Some((block, index, stored)) = find(&snapshot, hash)? {
        return value(sealed_transaction(&block, u64::from(index), &stored)?);
    }
    let pending = pending.map(|pending| Transaction {
        inner: Recovered::new_unchecked(pending.envelope.clone(), pending.sender),
        block_hash: None,
        block_number: None,
        transaction_index: None,
        effective_gas_price: Some(pending.envelope.max_fee_per_gas()),
        block_timestamp: None,
    });
    value(pending)
}

pub(super) fn receipt_by_hash(snapshot: &Snapshot, hash: B256) -> Result<Value, RpcError> {
    let Some((block, index, _)) = find(snapshot, hash)? else { return Ok(Value::Null) };
    let mut receipts = receipts(snapshot, &block)?;
    let index = usize::try_from(index).unwrap_or(usize::MAX);
    if index >= receipts.len() {
        return Err(RpcError::internal("the block is shorter than its index"));
    }
    value(receipts.swap_remove(index))
}

pub(super) fn block_receipts(snapshot: &Snapshot, id: BlockId) -> Result<Value, RpcError> {
    match find_block(snapshot, id)? {
        Some(block) => value(receipts(snapshot, &block)?),
        None => Ok(Value::Null),
    }
}

pub(super) fn block(snapshot: &Snapshot, id: BlockId, full: bool) -> Result<Value, RpcError> {
    let Some(block) = find_block(snapshot, id)? else { return Ok(Value::Null) };
    let stored = snapshot.transactions(block.header.number)?;
    let transactions = if full {
        let full: Result<Vec<_>, RpcError> =
            (0u64..).zip(&stored).map(|(index, stored)| sealed_transaction(&block, index, stored)).collect();
        BlockTransactions::Full(full?)
    } else {
        BlockTransactions::Hashes(stored.iter().map(|stored| stored.hash).collect())
    };
    let size = block.header.length() + stored.iter().map(|stored| stored.raw.len()).sum::<usize>();
    let header = Header {
        size: Some(U256::from(size)),
        total_difficulty: Some(U256::ZERO),
        ..Header::from_sealed(Sealed::new_unchecked(block.header, block.hash))
    };
    value(Block { header, uncles: Vec::new(), transactions, withdrawals: Some(Withdrawals::default()) })
}

/// A block without its transactions, as subscribers get it.
pub(super) fn head(snapshot: &Snapshot, number: u64) -> Result<Value, RpcError> {
    let mut head = block(snapshot, BlockId::number(number), false)?;
    if let Some(fields) = head.as_object_mut() {
        for field in ["transactions", "uncles", "withdrawals", "size", "totalDifficulty"] {
            fields.remove(field);
        }
    }
    Ok(head)
}

/// One transaction of a block, null if there is no such block or it is shorter.
pub(super) fn transaction_by_index(snapshot: &Snapshot, id: BlockId, index: u64) -> Result<Value, RpcError> {
    let Some(block) = find_block(snapshot, id)? else { return Ok(Value::Null) };
    let stored = snapshot.transactions(block.header.number)?;
    match usize::try_from(index).ok().and_then(|position| stored.get(position)) {
        Some(stored) => value(sealed_transaction(&block, index, stored)?),
        None => Ok(Value::Null),
    }
}

/// How many transactions a block has, null if there is no such block.
pub(super) fn transaction_count(snapshot: &Snapshot, id: BlockId) -> Result<Value, RpcError> {
    let Some(block) = find_block(snapshot, id)? else { return Ok(Value::Null) };
    value(U64::from(snapshot.transactions(block.header.number)?.len()))
}

pub(super) fn logs(snapshot: &Snapshot, filter: &Filter) -> Result<Value, RpcError> {
    match log_range(snapshot, filter)? {
        Some((from, to)) => value(find_logs(snapshot, filter, from, to)?),
        None => value(Vec::<Log>::new()),
    }
}

/// Logs of the blocks `from..=to`, whatever range the filter has.
pub(super) fn find_logs(snapshot: &Snapshot, filter: &Filter, from: u64, to: u64) -> Result<Vec<Log>, RpcError> {
    if to.saturating_sub(from) >= LOG_BLOCKS_MAX {
        return Err(RpcError::limit(format!("more than {LOG_BLOCKS_MAX} blocks: ask for a smaller range")));
    }
    let addresses = filter.address_bloom_filter();
    let topics = filter.topics_bloom_filter();
    let mut found = Vec::new();
    let mut bytes = 0usize;
    for number in from..=to {
        let Some(block) = snapshot.block(number)? else { break };
        let bloom = block.header.logs_bloom;
        if !addresses.matches(bloom) || !topics.iter().all(|topic| topic.matches(bloom)) {
            continue;
        }
        for receipt in receipts(snapshot, &block)? {
            for log in receipt.inner.logs() {
                if !filter.matches(&log.inner) {
                    continue;
                }
                bytes += log.inner.data.data.len();
                if found.len() >= LOGS_MAX || bytes > LOG_BYTES_MAX {
                    return Err(RpcError::limit(format!("more than {LOGS_MAX} logs: ask for a smaller range")));
                }
                found.push(log.clone());
            }
        }
    }
    Ok(found)
}

/// First and last block of a filter, both included; `None` if there is nothing in between yet.
fn log_range(snapshot: &Snapshot, filter: &Filter) -> Result<Option<(u64, u64)>, RpcError> {
    if let Some(hash) = filter.block_option.as_block_hash() {
        let number = snapshot.block_number(*hash)?.ok_or_else(|| RpcError::refused("unknown block"))?;
        return Ok(Some((number, number)));
    }
    let head = snapshot.head()?.header.number;
    let number = |tag: Option<&BlockNumberOrTag>| match tag {
        Some(BlockNumberOrTag::Number(number)) => *number,
        Some(BlockNumberOrTag::Earliest) => 0,
        _ => head,
    };
    let (from, to) = filter.block_option.as_range();
    let (from, to) = (number(from), number(to));
    if from > to && to != head {
        return Err(RpcError::invalid_params(format!("invalid block range: {from} to {to}")));
    }
    Ok((from <= to.min(head)).then_some((from, to.min(head))))
}

fn find(snapshot: &Snapshot, hash: B256) -> Result<Option<(StoredBlock, u32, StoredTransaction)>, RpcError> {
    let Some((number, index)) = snapshot.find_transaction(hash)? else { return Ok(None) };
    let missing = || RpcError::internal(format!("block {number} is incomplete"));
    let block = snapshot.block(number)?.ok_or_else(missing)?;
    let position = usize::try_from(index).unwrap_or(usize::MAX);
    let mut transactions = snapshot.transactions(number)?;
    if position >= transactions.len() {
        return Err(missing());
    }
    Ok(Some((block, index, transactions.swap_remove(position))))
}

fn sealed_transaction(
    block: &StoredBlock,
    index: u64,
    stored: &StoredTransaction,
) -> Result<Transaction<TxEnvelope>, RpcError> {
    let envelope = envelope(stored)?;
    Ok(Transaction {
        effective_gas_price: Some(envelope.effective_gas_price(block.header.base_fee_per_gas)),
        inner: Recovered::new_unchecked(envelope, stored.sender),
        block_hash: Some(block.hash),
        block_number: Some(block.header.number),
        transaction_index: Some(index),
        block_timestamp: Some(block.header.timestamp),
    })
}

/// All receipts of a block: a log's index counts from the block's first log.
fn receipts(snapshot: &Snapshot, block: &StoredBlock) -> Result<Vec<TransactionReceipt>, RpcError> {
    let mut receipts = Vec::new();
    let mut log_index = 0u64;
    for (index, stored) in (0u64..).zip(&snapshot.transactions(block.header.number)?) {
        let envelope = envelope(stored)?;
        let receipt = ReceiptEnvelope::decode_2718(&mut stored.receipt.as_ref())
            .map_err(|error| RpcError::internal(format!("a receipt cannot be read: {error}")))?;
        let receipt = receipt.map_logs(|inner| {
            log_index += 1;
            Log {
                inner,
                block_hash: Some(block.hash),
                block_number: Some(block.header.number),
                block_timestamp: Some(block.header.timestamp),
                transaction_hash: Some(stored.hash),
                transaction_index: Some(index),
                log_index: Some(log_index - 1),
                removed: false,
            }
        });
        receipts.push(TransactionReceipt {
            inner: receipt,
            transaction_hash: stored.hash,
            transaction_index: Some(index),
            block_hash: Some(block.hash),
            block_number: Some(block.header.number),
            gas_used: stored.gas_used,
            effective_gas_price: envelope.effective_gas_price(block.header.base_fee_per_gas),
            blob_gas_used: None,
            blob_gas_price: None,
            from: stored.sender,
            to: envelope.to(),
            contract_address: envelope.is_create().then(|| stored.sender.create(envelope.nonce())),
        });
    }
    Ok(receipts)
}

fn envelope(stored: &StoredTransaction) -> Result<TxEnvelope, RpcError> {
    TxEnvelope::decode_2718(&mut stored.raw.as_ref())
        .map_err(|error| RpcError::internal(format!("a transaction cannot be read: {error}")))
}
