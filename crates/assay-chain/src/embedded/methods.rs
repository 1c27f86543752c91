//! The `eth_*` methods: what alloy, cast and viem call.

use super::{
    exec::{self, ExecError, Mode, SPEC},
    filters,
    pool::PoolTransaction,
    rpc::{Params, RpcError},
    sealer::Shared,
    state::Overlay,
    store::{BLOCK_GAS_LIMIT, Snapshot, StoredBlock},
    views,
};
use alloy_consensus::{Transaction as _, TxEnvelope, TxType, transaction::SignerRecoverable};
use alloy_eips::{BlockId, BlockNumberOrTag, eip2718::Decodable2718};
use alloy_primitives::{Address, B256, Bytes, TxKind, U64, U256};
use alloy_rpc_types_eth::{FeeHistory, Filter, TransactionRequest};
use alloy_sol_types::decode_revert_reason;
use revm::{
    Database,
    context::{TxEnv, result::ExecutionResult},
    context_interface::cfg::GasParams,
};
use serde::Serialize;
use serde_json::{Value, json};

/// Largest init code (EIP-3860).
const INIT_CODE_BYTES_MAX: usize = 49_152;
/// Largest transaction, as most nodes have it.
const TRANSACTION_BYTES_MAX: usize = 128 << 10;
/// Blocks in one `eth_feeHistory`.
const FEE_HISTORY_BLOCKS_MAX: u64 = 1024;
/// An estimate is at most this much above the least gas that works, in per mille.
const ESTIMATE_SLACK_PER_MILLE: u64 = 15;

pub(super) fn dispatch(shared: &Shared, method: &str, params: Value) -> Result<Value, RpcError> {
    let params = Params::new(params)?;
    let snapshot = || shared.store.snapshot();
    match method {
        "eth_chainId" => value(U64::from(shared.chain_id)),
        "net_version" => value(shared.chain_id.to_string()),
        "net_listening" => value(true),
        "web3_clientVersion" => value(concat!("assay/", env!("CARGO_PKG_VERSION"))),
        "eth_syncing" => value(false),
        "eth_accounts" => value(Vec::<Address>::new()),
        "eth_blockNumber" => value(U64::from(snapshot()?.head()?.header.number)),
        "eth_gasPrice" | "eth_maxPriorityFeePerGas" => value(U256::ZERO),
        "eth_feeHistory" => fee_history(&snapshot()?, &params),
        "eth_getBalance" => account_state(&snapshot()?, &params, 1, |state, address| {
            value(state.account(address)?.unwrap_or_default().balance)
        }),
        "eth_getCode" => account_state(&snapshot()?, &params, 1, |state, address| {
            let account = state.account(address)?.unwrap_or_default();
            value(state.code(account.code_hash)?)
        }),
        "eth_getStorageAt" => {
            let slot: U256 = params.get(1, "slot")?;
            account_state(&snapshot()?, &params, 2, |state, address| value(B256::from(state.slot(address, slot)?)))
        }
        "eth_getTransactionCount" => transaction_count(shared, &params),
        "eth_call" => call(shared, &params),
        "eth_estimateGas" => estimate_gas(shared, &params),
        "eth_sendRawTransaction" => send_raw(shared, &params),
        "eth_getTransactionByHash" => views::transaction_by_hash(shared, params.get(0, "hash")?),
        "eth_getTransactionReceipt" => views::receipt_by_hash(&snapshot()?, params.get(0, "hash")?),
        "eth_getBlockByNumber" => {
            let block: BlockNumberOrTag = params.get(0, "block")?;
            views::block(&snapshot()?, block.into(), params.opt(1, "full")?.unwrap_or(false))
        }
        "eth_getBlockByHash" => {
            let hash: B256 = params.get(0, "hash")?;
            views::block(&snapshot()?, hash.into(), params.opt(1, "full")?.unwrap_or(false))
        }
        "eth_getBlockReceipts" => views::block_receipts(&snapshot()?, params.get(0, "block")?),
        "eth_getLogs" => {
            let filter: Filter = params.get(0, "filter")?;
            views::logs(&snapshot()?, &filter)
        }
        "eth_getTransactionByBlockHashAndIndex" | "eth_getTransactionByBlockNumberAndIndex" => {
            let block: BlockId = params.get(0, "block")?;
            views::transaction_by_index(&snapshot()?, block, params.get::<U64>(1, "index")?.to())
        }
        "eth_getBlockTransactionCountByHash" | "eth_getBlockTransactionCountByNumber" => {
            views::transaction_count(&snapshot()?, params.get(0, "block")?)
        }
        _ => filters::dispatch(shared, method, &params).unwrap_or_else(|| Err(RpcError::unknown_method(method))),
    }
}

pub(super) fn value(result: impl Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(result).map_err(|error| RpcError::internal(error.to_string()))
}

/// The block that an id names, `None` if there is no such block. `pending` is the latest.
pub(super) fn find_block(snapshot: &Snapshot, id: BlockId) -> Result<Option<StoredBlock>, RpcError> {
    let number = match id {
        BlockId::Hash(hash) => match snapshot.block_number(hash.block_hash)? {
            Some(number) => number,
            None => return Ok(None),
        },
        BlockId::Number(BlockNumberOrTag::Number(number)) => number,
        BlockId::Number(BlockNumberOrTag::Earliest) => 0,
        BlockId::Number(_) => return Ok(Some(snapshot.head()?)),
    };
    Ok(snapshot.block(number)?)
}

/// Only the latest state is kept: any other block is an error and not a wrong answer.
fn require_latest(snapshot: &Snapshot, params: &Params, index: usize) -> Result<(), RpcError> {
    let Some(id) = params.opt::<BlockId>(index, "block")? else { return Ok(()) };
    let block = find_block(snapshot, id)?.ok_or_else(|| RpcError::refused("header not found"))?;
    if block.hash == snapshot.head()?.hash {
        Ok(())
    } else {
        Err(RpcError::refused(format!("state of block {} is not kept, only the latest", block.header.number)))
    }
}

fn account_state(
    snapshot: &Snapshot,
    params: &Params,
    block_index: usize,
    read: impl FnOnce(&Snapshot, Address) -> Result<Value, RpcError>,
) -> Result<Value, RpcError> {
    let address = params.get(0, "address")?;
    require_latest(snapshot, params, block_index)?;
    read(snapshot, address)
}

fn transaction_count(shared: &Shared, params: &Params) -> Result<Value, RpcError> {
    let address: Address = params.get(0, "address")?;
    let block: Option<BlockId> = params.opt(1, "block")?;
    let pending = match block {
        // Asked before the snapshot is taken: a transaction sealed in between is then in the snapshot.
        Some(BlockId::Number(BlockNumberOrTag::Pending)) => shared.read_pool(|pool| pool.next_nonce(address)),
        _ => None,
    };
    let snapshot = shared.store.snapshot()?;
    require_latest(&snapshot, params, 1)?;
    let sealed = snapshot.account(address)?.unwrap_or_default().nonce;
    value(U64::from(pending.unwrap_or(0).max(sealed)))
}

fn fee_history(snapshot: &Snapshot, params: &Params) -> Result<Value, RpcError> {
    let count = params.get::<U64>(0, "blockCount")?.to::<u64>().min(FEE_HISTORY_BLOCKS_MAX);
    let newest: BlockNumberOrTag = params.get(1, "newestBlock")?;
    let percentiles: Vec<f64> = params.opt(2, "rewardPercentiles")?.unwrap_or_default();
    if percentiles.len() > 100 {
        return Err(RpcError::invalid_params("more than 100 percentiles"));
    }
    let newest = find_block(snapshot, newest.into())?.ok_or_else(|| RpcError::refused("header not found"))?;
    let newest = newest.header.number;
    let count = count.min(newest.saturating_add(1));
    let oldest = (newest + 1).saturating_sub(count);
    let mut history = FeeHistory {
        base_fee_per_gas: vec![0; usize::try_from(count).unwrap_or(0) + 1],
        oldest_block: oldest,
        reward: (!percentiles.is_empty()).then(|| (0..count).map(|_| vec![0; percentiles.len()]).collect()),
        ..FeeHistory::default()
    };
    for number in oldest..oldest + count {
        let used = snapshot.block(number)?.map_or(0, |block| block.header.gas_used);
        history.gas_used_ratio.push(used as f64 / BLOCK_GAS_LIMIT as f64);
    }
    value(history)
}

// ---------------------------------------------------------------- simulation

/// Calls see the block that would come next: an idle chain's clock does not stand still for them.
struct Simulation {
    state: Overlay,
    block: revm::context::BlockEnv,
    tx: TxEnv,
    chain_id: u64,
}

impl Simulation {
    fn new(shared: &Shared, params: &Params) -> Result<Self, RpcError> {
        let request: TransactionRequest = params.get(0, "transaction")?;
        if params.opt::<Value>(2, "stateOverride")?.is_some() {
            return Err(RpcError::invalid_params("state overrides are not supported"));
        }
        let snapshot = shared.store.snapshot()?;
        require_latest(&snapshot, params, 1)?;
        let head = snapshot.head()?;
        let block = exec::block_after(&head, shared.timestamp_after(&head));
        let tx = call_env(shared.chain_id, request)?;
        Ok(Self { state: Overlay::new(snapshot), block, tx, chain_id: shared.chain_id })
    }

    fn run(&mut self, gas_limit: u64) -> Result<ExecutionResult, ExecError> {
        let tx = TxEnv { gas_limit, ..self.tx.clone() };
        let done = exec::execute(&mut self.state, self.chain_id, &self.block, tx, Mode::Call)?;
        Ok(done.result)
    }
}

fn call_env(chain_id: u64, request: TransactionRequest) -> Result<TxEnv, RpcError> {
    if request.blob_versioned_hashes.is_some() || request.sidecar.is_some() || request.authorization_list.is_some() {
        return Err(RpcError::invalid_params("blobs and authorization lists are not supported"));
    }
    if request.chain_id.is_some_and(|id| id != chain_id) {
        return Err(RpcError::invalid_params(format!("chain id is {chain_id}")));
    }
    let access_list = request.access_list.unwrap_or_default();
    let tx_type = match (request.max_fee_per_gas.or(request.max_priority_fee_per_gas), access_list.is_empty()) {
        (Some(_), _) => TxType::Eip1559,
        (None, false) => TxType::Eip2930,
        (None, true) => TxType::Legacy,
    };
    Ok(TxEnv {
        tx_type: tx_type as u8,
        caller: request.from.unwrap_or_default(),
        gas_limit: request.gas.unwrap_or(BLOCK_GAS_LIMIT).min(BLOCK_GAS_LIMIT),
        gas_price: request.max_fee_per_gas.or(request.gas_price).unwrap_or(0),
        gas_priority_fee: (tx_type == TxType::Eip1559).then(|| request.max_priority_fee_per_gas.unwrap_or(0)),
        kind: request.to.unwrap_or(TxKind::Create),
        value: request.value.unwrap_or_default(),
        data: request.input.into_input().unwrap_or_default(),
        chain_id: Some(chain_id),
        access_list,
        ..TxEnv::default()
    })
}

fn call(shared: &Shared, params: &Params) -> Result<Value, RpcError> {
    let mut simulation = Simulation::new(shared, params)?;
    let gas_limit = simulation.tx.gas_limit;
    let result = simulation.run(gas_limit).map_err(exec_error)?;
    value(successful(&result)?)
}

/// The output, or the error that clients decode reverts from.
fn successful(result: &ExecutionResult) -> Result<Bytes, RpcError> {
    match result {
        ExecutionResult::Success { .. } => Ok(exec::output(result)),
        ExecutionResult::Revert { output, .. } => {
            let message = match decode_revert_reason(output) {
                Some(reason) if !output.is_empty() => format!("execution reverted: {reason}"),
                _ => "execution reverted".to_owned(),
            };
            Err(RpcError { code: 3, message, data: Some(json!(output)) })
        }
        ExecutionResult::Halt { reason, .. } => Err(RpcError::refused(format!("execution halted: {reason:?}"))),
    }
}

fn exec_error(error: ExecError) -> RpcError {
    match error {
        ExecError::Invalid(why) => RpcError::refused(why.to_string()),
        ExecError::State(error) => error.into(),
    }
}

/// Bisection between the gas that was used and the limit: refunds and the 63/64 rule make the least limit that works
/// higher than what is used.
fn estimate_gas(shared: &Shared, params: &Params) -> Result<Value, RpcError> {
    let mut simulation = Simulation::new(shared, params)?;
    let mut high = simulation.tx.gas_limit;
    if simulation.tx.gas_price > 0 {
        let sender = simulation.state.basic(simulation.tx.caller)?.unwrap_or_default();
        let spendable = sender.balance.saturating_sub(simulation.tx.value);
        let affordable = spendable / U256::from(simulation.tx.gas_price);
        high = high.min(u64::try_from(affordable).unwrap_or(u64::MAX));
    }
    let first = simulation.run(high).map_err(exec_error)?;
    successful(&first)?;
    let mut low = exec::gas_used(&first);
    // Plain transfers, and calls that get nothing back on the way.
    if low >= high || succeeds(&mut simulation, low)? {
        return value(U64::from(low.min(high)));
    }
    // Most calls need just what they spend plus the 1/64 that is held back at one level.
    let guess = first.gas().total_gas_spent().saturating_add(2_300).saturating_mul(64) / 63;
    if guess < high {
        if succeeds(&mut simulation, guess)? { high = guess } else { low = guess }
    }
    while high - low > 1 && (high - low) > high / 1000 * ESTIMATE_SLACK_PER_MILLE {
        let middle = low + (high - low) / 2;
        if succeeds(&mut simulation, middle)? { high = middle } else { low = middle }
    }
    value(U64::from(high))
}

fn succeeds(simulation: &mut Simulation, gas_limit: u64) -> Result<bool, RpcError> {
    match simulation.run(gas_limit) {
        Ok(result) => Ok(result.is_success()),
        // Below the intrinsic gas.
        Err(ExecError::Invalid(_)) => Ok(false),
        Err(ExecError::State(error)) => Err(error.into()),
    }
}

// ---------------------------------------------------------------- transactions

fn send_raw(shared: &Shared, params: &Params) -> Result<Value, RpcError> {
    let raw: Bytes = params.get(0, "transaction")?;
    let transaction = decode(shared.chain_id, raw)?;
    let hash = transaction.hash;
    let now = shared.now();
    shared.add_to_pool(|pool| {
        // Taken under the pool's lock: what the pool has forgotten is in this snapshot.
        let snapshot = shared.store.snapshot()?;
        let sender = snapshot.account(transaction.sender)?.unwrap_or_default();
        let price = U256::from(transaction.envelope.max_fee_per_gas());
        let cost = price
            .saturating_mul(U256::from(transaction.envelope.gas_limit()))
            .saturating_add(transaction.envelope.value());
        if sender.balance < cost {
            return Err(RpcError::refused(format!(
                "insufficient funds for gas * price + value: address {} have {} want {cost}",
                transaction.sender, sender.balance
            )));
        }
        pool.insert(transaction, sender.nonce, now).map_err(|error| RpcError::refused(error.to_string()))
    })??;
    shared.filters.on_pending(hash);
    shared.moved.send_replace(());
    value(hash)
}

/// Everything that can be said about a transaction without the state.
fn decode(chain_id: u64, raw: Bytes) -> Result<PoolTransaction, RpcError> {
    if raw.len() > TRANSACTION_BYTES_MAX {
        return Err(RpcError::refused(format!(
            "oversized data: transaction size {}, limit {TRANSACTION_BYTES_MAX}",
            raw.len()
        )));
    }
    let mut rest = raw.as_ref();
    let envelope = TxEnvelope::decode_2718(&mut rest)
        .map_err(|error| RpcError::invalid_params(format!("failed to decode transaction: {error}")))?;
    if !rest.is_empty() {
        return Err(RpcError::invalid_params("bytes after the transaction"));
    }
    if matches!(envelope.tx_type(), TxType::Eip4844 | TxType::Eip7702) {
        return Err(RpcError::refused("transaction type not supported"));
    }
    match envelope.chain_id() {
        Some(id) if id == chain_id => {}
        Some(id) => return Err(RpcError::refused(format!("invalid chain id: have {id}, want {chain_id}"))),
        None => return Err(RpcError::refused("only replay-protected (EIP-155) transactions are allowed")),
    }
    check_limits(&envelope)?;
    let sender = envelope.recover_signer().map_err(|_| RpcError::refused("invalid sender"))?;
    Ok(PoolTransaction { hash: *envelope.tx_hash(), sender, envelope, raw })
}

fn check_limits(envelope: &TxEnvelope) -> Result<(), RpcError> {
    let gas_limit = envelope.gas_limit();
    if gas_limit > BLOCK_GAS_LIMIT {
        return Err(RpcError::refused(format!("exceeds block gas limit: {gas_limit} > {BLOCK_GAS_LIMIT}")));
    }
    if envelope.max_priority_fee_per_gas().is_some_and(|tip| tip > envelope.max_fee_per_gas()) {
        return Err(RpcError::refused("max priority fee per gas higher than max fee per gas"));
    }
    if envelope.is_create() && envelope.input().len() > INIT_CODE_BYTES_MAX {
        return Err(RpcError::refused("max initcode size exceeded"));
    }
    let intrinsic = GasParams::new_spec(SPEC).initial_tx_gas_for_tx(exec::tx_env(envelope, Address::ZERO), None);
    let least = intrinsic.initial_total_gas().max(intrinsic.floor_gas);
    if gas_limit < least {
        return Err(RpcError::refused(format!("intrinsic gas too low: gas {gas_limit}, minimum needed {least}")));
    }
    Ok(())
}
