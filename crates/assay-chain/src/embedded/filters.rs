//! Filters: what is new since a client asked last (`eth_newFilter` and its kin), for clients that poll.
//!
//! A filter is a position, nothing is collected for it: the answer is read from the blocks and from a short list of
//! pending transactions when it is asked for. Filters live in memory and are gone after a restart, which clients are
//! used to: they make a new one on "filter not found".

use super::{
    rpc::{Params, RpcError},
    sealer::Shared,
    views,
};
use alloy_eips::BlockNumberOrTag;
use alloy_primitives::{B256, U64};
use alloy_rpc_types_eth::{Filter, Log};
use serde_json::Value;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Filters of all clients together; the one that was asked for least recently makes room.
const FILTERS_MAX: usize = 256;
/// A filter that nobody asks for is forgotten.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// Pending transactions that are remembered for filters.
const PENDING_MAX: usize = 8192;
/// Blocks that one answer may name.
const BLOCKS_MAX: u64 = 10_000;

/// What a filter is about, and how far it was answered.
#[derive(Clone, Debug)]
enum Watch {
    Logs {
        filter: Box<Filter>,
        next_block: u64,
    },
    Blocks {
        next_block: u64,
    },
    /// Counts transactions since the start.
    Pending {
        next: u64,
    },
}

#[derive(Debug)]
struct Entry {
    watch: Watch,
    asked: Instant,
}

/// All filters, and the hashes that those on pending transactions answer with.
#[derive(Debug, Default)]
pub(super) struct Filters(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    last_id: u64,
    pending: VecDeque<B256>,
    /// Number of the first one that is remembered.
    pending_first: u64,
}

impl Filters {
    /// A transaction was taken into the pool.
    pub fn on_pending(&self, hash: B256) {
        let mut state = self.lock();
        state.pending.push_back(hash);
        if state.pending.len() > PENDING_MAX {
            state.pending.pop_front();
            state.pending_first += 1;
        }
    }

    fn insert(&self, watch: Watch) -> u64 {
        let mut state = self.lock();
        state.entries.retain(|_, entry| entry.asked.elapsed() < IDLE_MAX);
        if state.entries.len() >= FILTERS_MAX {
            let oldest = state.entries.iter().min_by_key(|(_, entry)| entry.asked).map(|(id, _)| *id);
            oldest.map(|id| state.entries.remove(&id));
        }
        state.last_id += 1;
        let id = state.last_id;
        state.entries.insert(id, Entry { watch, asked: Instant::now() });
        id
    }

    fn remove(&self, id: u64) -> bool {
        self.lock().entries.remove(&id).is_some()
    }

    fn get(&self, id: u64) -> Result<Watch, RpcError> {
        let mut state = self.lock();
        let entry = state.entries.get_mut(&id).ok_or_else(|| RpcError::refused("filter not found"))?;
        entry.asked = Instant::now();
        Ok(entry.watch.clone())
    }

    /// Moves a filter on, unless another request did so meanwhile.
    fn advance(&self, id: u64, to: Watch) {
        if let Some(entry) = self.lock().entries.get_mut(&id) {
            match (&mut entry.watch, to) {
                (Watch::Logs { next_block, .. }, Watch::Logs { next_block: to, .. })
                | (Watch::Blocks { next_block }, Watch::Blocks { next_block: to }) => {
                    *next_block = (*next_block).max(to)
                }
                (Watch::Pending { next }, Watch::Pending { next: to }) => *next = (*next).max(to),
                _ => {}
            }
        }
    }

    /// Hashes from number `next` on, and the number of the next one to come.
    pub fn pending_since(&self, next: u64) -> (Vec<B256>, u64) {
        let state = self.lock();
        let skip = usize::try_from(next.saturating_sub(state.pending_first)).unwrap_or(usize::MAX);
        (state.pending.iter().skip(skip).copied().collect(), state.pending_first + state.pending.len() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Inserts and removes that do not panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers a method of filters; `None` for any other.
pub(super) fn dispatch(shared: &Shared, method: &str, params: &Params) -> Option<Result<Value, RpcError>> {
    let answer = match method {
        "eth_newFilter" => new_log_filter(shared, params),
        "eth_newBlockFilter" => next_block(shared).and_then(|next_block| insert(shared, Watch::Blocks { next_block })),
        "eth_newPendingTransactionFilter" => {
            insert(shared, Watch::Pending { next: shared.filters.pending_since(u64::MAX).1 })
        }
        "eth_getFilterChanges" => changes(shared, params),
        "eth_getFilterLogs" => all_logs(shared, params),
        "eth_uninstallFilter" => {
            params.get(0, "filter id").and_then(|id: U64| super::methods::value(shared.filters.remove(id.to())))
        }
        _ => return None,
    };
    Some(answer)
}

fn insert(shared: &Shared, watch: Watch) -> Result<Value, RpcError> {
    super::methods::value(U64::from(shared.filters.insert(watch)))
}

fn next_block(shared: &Shared) -> Result<u64, RpcError> {
    Ok(shared.store.snapshot()?.head()?.header.number + 1)
}

fn new_log_filter(shared: &Shared, params: &Params) -> Result<Value, RpcError> {
    let filter: Filter = params.get(0, "filter")?;
    if filter.block_option.as_block_hash().is_some() {
        return Err(RpcError::invalid_params("a filter follows the chain: one block's logs are eth_getLogs's"));
    }
    // Changes begin with the next block; what was before is eth_getFilterLogs's.
    insert(shared, Watch::Logs { filter: Box::new(filter), next_block: next_block(shared)? })
}

fn changes(shared: &Shared, params: &Params) -> Result<Value, RpcError> {
    let id: u64 = params.get::<U64>(0, "filter id")?.to();
    let watch = shared.filters.get(id)?;
    let snapshot = shared.store.snapshot()?;
    let head = snapshot.head()?.header.number;
    match watch {
        Watch::Pending { next } => {
            let (hashes, next) = shared.filters.pending_since(next);
            shared.filters.advance(id, Watch::Pending { next });
            super::methods::value(hashes)
        }
        Watch::Blocks { next_block } => {
            let until = head.min(next_block.saturating_add(BLOCKS_MAX - 1));
            let mut hashes = Vec::new();
            for number in next_block..=until {
                hashes.extend(snapshot.block(number)?.map(|block| block.hash));
            }
            shared.filters.advance(id, Watch::Blocks { next_block: until + 1 });
            super::methods::value(hashes)
        }
        Watch::Logs { filter, next_block } => {
            let logs = if next_block > head { Vec::new() } else { logs_between(&snapshot, &filter, next_block, head)? };
            shared.filters.advance(id, Watch::Logs { filter, next_block: head + 1 });
            super::methods::value(logs)
        }
    }
}

/// Logs of the blocks `from..=to` that are in the filter's own range, too. A range that names no first or last block
/// goes as far as the chain.
pub(super) fn logs_between(
    snapshot: &super::store::Snapshot,
    filter: &Filter,
    from: u64,
    to: u64,
) -> Result<Vec<Log>, RpcError> {
    let number = |tag: Option<&BlockNumberOrTag>, open: u64| match tag {
        Some(BlockNumberOrTag::Number(number)) => *number,
        Some(BlockNumberOrTag::Earliest) => 0,
        _ => open,
    };
    let (first, last) = filter.block_option.as_range();
    let (first, last) = (number(first, from).max(from), number(last, to).min(to));
    if first > last { Ok(Vec::new()) } else { views::find_logs(snapshot, filter, first, last) }
}

fn all_logs(shared: &Shared, params: &Params) -> Result<Value, RpcError> {
    let id: u64 = params.get::<U64>(0, "filter id")?.to();
    match shared.filters.get(id)? {
        Watch::Logs { filter, .. } => views::logs(&shared.store.snapshot()?, &filter),
        Watch::Blocks { .. } | Watch::Pending { .. } => {
            Err(RpcError::refused("filter not found: it is not about logs"))
        }
    }
}
