//! The writer: turns the pool into blocks, one at a time, each durable before anyone sees it.

use super::{
    ChainOptions, EmbeddedError,
    exec::{self, ExecError, Mode},
    filters::Filters,
    pool::{Pool, PoolTransaction},
    state::{Overlay, StateError},
    store::{BLOCK_GAS_LIMIT, Store, StoredBlock, StoredTransaction, empty_header},
};
use alloy_consensus::{Eip658Value, Header, Receipt, ReceiptEnvelope, TxType, proofs};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, Bloom};
use revm::{DatabaseCommit, context::result::ExecutionResult};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

/// What the writer and the readers share.
pub(super) struct Shared {
    pub store: Store,
    pub chain_id: u64,
    pub options: ChainOptions,
    pub time_offset: AtomicU64,
    pub filters: Filters,
    /// Changes with each block and each pending transaction.
    pub moved: tokio::sync::watch::Sender<()>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    pool: Pool,
    stopping: bool,
    /// Set once; a chain that could not write takes no more transactions.
    failure: Option<String>,
}

impl Shared {
    pub fn new(store: Store, chain_id: u64, options: ChainOptions) -> Self {
        Self {
            store,
            chain_id,
            options,
            time_offset: AtomicU64::new(0),
            filters: Filters::default(),
            moved: tokio::sync::watch::Sender::default(),
            queue: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Unix seconds by the chain's clock.
    pub fn now(&self) -> u64 {
        (self.options.clock)().saturating_add(self.time_offset.load(Ordering::Relaxed))
    }

    /// The timestamp of a block after `parent`; never before it.
    pub fn timestamp_after(&self, parent: &StoredBlock) -> u64 {
        self.now().max(parent.header.timestamp)
    }

    /// Runs `change` on the pool; refused when nothing will be sealed any more.
    pub fn add_to_pool<T>(&self, change: impl FnOnce(&mut Pool) -> T) -> Result<T, EmbeddedError> {
        let mut queue = self.lock();
        if let Some(failure) = &queue.failure {
            return Err(EmbeddedError::Storage(failure.clone()));
        }
        if queue.stopping {
            return Err(EmbeddedError::Closed);
        }
        let result = change(&mut queue.pool);
        drop(queue);
        self.wake.notify_one();
        Ok(result)
    }

    /// Looks at the pool.
    pub fn read_pool<T>(&self, look: impl FnOnce(&Pool) -> T) -> T {
        look(&self.lock().pool)
    }

    /// Lets the writer seal what is ready and end.
    pub fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The pool's functions keep it consistent up to every point where they could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work. `None` when there is none and the chain stops.
    fn next_batch(&self) -> Option<Vec<Arc<PoolTransaction>>> {
        let count_max = self.options.block_transactions_max.max(1);
        let mut queue = self.lock();
        while queue.pool.ready_len() == 0 {
            if queue.stopping {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let deadline = Instant::now() + self.options.seal_window;
        while queue.pool.ready_len() < count_max && !queue.stopping {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = self.wake.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(queue.pool.take(count_max, BLOCK_GAS_LIMIT))
    }
}

/// Starts the writer's thread.
pub(super) fn start(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name("chain-sealer".into()).spawn(move || run(&shared))
}

fn run(shared: &Shared) {
    while let Some(batch) = shared.next_batch() {
        // A panic here would leave a chain that takes transactions and never seals them.
        let sealed = catch_unwind(AssertUnwindSafe(|| seal(shared, &batch)))
            .unwrap_or_else(|_| Err(StateError("the block could not be executed".into())));
        match sealed {
            Ok(dropped) => {
                shared.lock().pool.finish(&batch, &dropped);
                shared.moved.send_replace(());
            }
            Err(error) => {
                tracing::error!(%error, "a block could not be written; the chain takes no more transactions");
                shared.lock().failure = Some(error.to_string());
                return;
            }
        }
    }
}

/// Executes and writes one block; returns the senders of transactions that turned out to be invalid.
fn seal(shared: &Shared, batch: &[Arc<PoolTransaction>]) -> Result<Vec<Address>, StateError> {
    let snapshot = shared.store.snapshot()?;
    let parent = snapshot.head()?;
    let timestamp = shared.timestamp_after(&parent);
    let mut draft = Draft::default();
    let mut state = Overlay::new(snapshot);
    let env = exec::block_after(&parent, timestamp);
    for transaction in batch {
        let tx = exec::tx_env(&transaction.envelope, transaction.sender);
        match exec::execute(&mut state, shared.chain_id, &env, tx, Mode::Transaction) {
            Ok(done) => {
                state.commit(done.state);
                draft.push(transaction, &done.result);
            }
            Err(ExecError::Invalid(why)) => {
                tracing::warn!(hash = %transaction.hash, %why, "a pending transaction became invalid and was dropped");
                draft.dropped.push(transaction.sender);
            }
            Err(ExecError::State(error)) => return Err(error),
        }
    }
    if !draft.stored.is_empty() {
        let block = StoredBlock::new(draft.header(&parent, timestamp, &env.prevrandao.unwrap_or_default()));
        shared.store.append(&block, &draft.stored, &state.into_changes())?;
    }
    Ok(draft.dropped)
}

/// A block while it grows.
#[derive(Default)]
struct Draft {
    stored: Vec<StoredTransaction>,
    envelopes: Vec<alloy_consensus::TxEnvelope>,
    receipts: Vec<ReceiptEnvelope>,
    bloom: Bloom,
    gas_used: u64,
    dropped: Vec<Address>,
}

impl Draft {
    fn push(&mut self, transaction: &PoolTransaction, result: &ExecutionResult) {
        let gas_used = exec::gas_used(result);
        self.gas_used += gas_used;
        let logs = if result.is_success() { result.logs().to_vec() } else { Vec::new() };
        let receipt =
            Receipt { status: Eip658Value::Eip658(result.is_success()), cumulative_gas_used: self.gas_used, logs }
                .with_bloom();
        self.bloom |= receipt.logs_bloom;
        let receipt = match transaction.envelope.tx_type() {
            TxType::Legacy => ReceiptEnvelope::Legacy(receipt),
            TxType::Eip2930 => ReceiptEnvelope::Eip2930(receipt),
            TxType::Eip1559 => ReceiptEnvelope::Eip1559(receipt),
            TxType::Eip4844 => ReceiptEnvelope::Eip4844(receipt),
            TxType::Eip7702 => ReceiptEnvelope::Eip7702(receipt),
        };
        self.stored.push(StoredTransaction {
            hash: transaction.hash,
            sender: transaction.sender,
            raw: transaction.raw.clone(),
            receipt: receipt.encoded_2718().into(),
            gas_used,
        });
        self.envelopes.push(transaction.envelope.clone());
        self.receipts.push(receipt);
    }

    fn header(&self, parent: &StoredBlock, timestamp: u64, prevrandao: &alloy_primitives::B256) -> Header {
        Header {
            parent_hash: parent.hash,
            number: parent.header.number + 1,
            timestamp,
            transactions_root: proofs::calculate_transaction_root(&self.envelopes),
            receipts_root: proofs::calculate_receipt_root(&self.receipts),
            logs_bloom: self.bloom,
            gas_used: self.gas_used,
            mix_hash: *prevrandao,
            ..empty_header()
        }
    }
}
