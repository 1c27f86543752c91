//! One transaction or call on one state, by revm with the Prague rules.

use super::{
    state::{Overlay, StateError},
    store::{BLOCK_GAS_LIMIT, StoredBlock},
};
use alloy_consensus::{Transaction as _, TxEnvelope};
use alloy_primitives::{Address, Bytes, U256, keccak256};
use revm::{
    Context, ExecuteEvm, MainBuilder, MainContext,
    context::{
        BlockEnv, TxEnv,
        result::{EVMError, ExecutionResult, InvalidTransaction, ResultAndState},
    },
    primitives::hardfork::SpecId,
};

/// Rules of the chain.
pub(super) const SPEC: SpecId = SpecId::PRAGUE;

/// Which checks apply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// A signed transaction.
    Transaction,
    /// `eth_call` and `eth_estimateGas`: no nonce, and contracts may be the sender.
    Call,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExecError {
    /// The transaction cannot be part of a block.
    #[error("{0}")]
    Invalid(InvalidTransaction),
    /// The state failed.
    #[error(transparent)]
    State(StateError),
}

/// The environment of the block after `parent`.
pub(super) fn block_after(parent: &StoredBlock, timestamp: u64) -> BlockEnv {
    BlockEnv {
        number: U256::from(parent.header.number.saturating_add(1)),
        beneficiary: Address::ZERO,
        timestamp: U256::from(timestamp),
        gas_limit: BLOCK_GAS_LIMIT,
        basefee: 0,
        prevrandao: Some(keccak256(parent.hash)),
        ..BlockEnv::default()
    }
}

/// Runs `tx` on `state`; what it changes is in the result and not committed.
pub(super) fn execute(
    state: &mut Overlay,
    chain_id: u64,
    block: &BlockEnv,
    tx: TxEnv,
    mode: Mode,
) -> Result<ResultAndState, ExecError> {
    let mut evm = Context::mainnet()
        .with_db(state)
        .modify_cfg_chained(|cfg| {
            cfg.chain_id = chain_id;
            cfg.set_spec_and_mainnet_gas_params(SPEC);
            cfg.disable_nonce_check = mode == Mode::Call;
            cfg.disable_eip3607 = mode == Mode::Call;
        })
        .with_block(block.clone())
        .build_mainnet();
    evm.transact(tx).map_err(|error| match error {
        EVMError::Transaction(why) => ExecError::Invalid(why),
        EVMError::Database(why) => ExecError::State(why),
        other => ExecError::State(StateError(other.to_string())),
    })
}

/// What revm needs to know of a signed transaction.
pub(super) fn tx_env(envelope: &TxEnvelope, sender: Address) -> TxEnv {
    TxEnv {
        tx_type: envelope.tx_type() as u8,
        caller: sender,
        gas_limit: envelope.gas_limit(),
        gas_price: envelope.max_fee_per_gas(),
        gas_priority_fee: envelope.max_priority_fee_per_gas(),
        kind: envelope.kind(),
        value: envelope.value(),
        data: envelope.input().clone(),
        nonce: envelope.nonce(),
        chain_id: envelope.chain_id(),
        access_list: envelope.access_list().cloned().unwrap_or_default(),
        ..TxEnv::default()
    }
}

/// Gas the sender pays for.
pub(super) fn gas_used(result: &ExecutionResult) -> u64 {
    result.tx_gas_used()
}

/// What the call returned or reverted with.
pub(super) fn output(result: &ExecutionResult) -> Bytes {
    result.output().cloned().unwrap_or_default()
}
