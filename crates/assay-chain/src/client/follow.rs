//! Following the logs of a contract through reorganizations of the chain, failures of its endpoint and restarts.
//!
//! Only blocks that are `depth` below the head are read. Should the chain change below that all the same, the blocks
//! since the change are read again, and the caller is told from where: what it does with a log must not depend on
//! seeing it once. What was read is a [`Cursor`], which the caller keeps in a file; a lost one costs reading again.

use super::{ChainClient, ChainError};
use alloy_primitives::{Address, B256};
use alloy_rpc_types_eth::{Filter, Log};
use serde::{Deserialize, Serialize};
use std::{future::Future, ops::RangeInclusive};

/// Blocks of one request, unless the endpoint wants fewer.
pub(super) const SPAN_MAX: u64 = 2_000;
/// Blocks whose hashes are remembered: ends of ranges that were read.
const SEEN_MAX: usize = 128;

/// Blocks below the head that are taken for final on a chain; a chain that is not listed has Ethereum's.
#[must_use]
pub fn finality_depth(chain_id: u64) -> u64 {
    match chain_id {
        // One writer, and a block is durable before it is seen.
        crate::LOCAL_CHAIN_ID => 0,
        // Test nodes.
        1_337 | 31_337 => 0,
        // Rollups: the sequencer's order stands unless the rollup itself fails.
        10 | 8_453 | 84_532 | 42_161 | 421_614 => 30,
        // Polygon PoS before a milestone.
        137 | 80_002 => 128,
        // Instant or nearly so: Gnosis is not, Avalanche is.
        43_114 | 43_113 => 1,
        // Two epochs.
        _ => 64,
    }
}

/// A block that was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SeenBlock {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: B256,
}

/// What was read so far.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cursor {
    /// First block that matters.
    pub since: u64,
    /// First block that was not read.
    pub next: u64,
    /// Ends of ranges that were read, oldest first.
    pub seen: Vec<SeenBlock>,
}

impl Cursor {
    /// Nothing was read; what is before `since` does not matter.
    #[must_use]
    pub fn new(since: u64) -> Self {
        Self { since, next: since, seen: vec![] }
    }
}

/// Where logs come from.
pub trait LogSource: Send + Sync {
    /// Number of the last block.
    fn head(&self) -> impl Future<Output = Result<u64, ChainError>> + Send;
    /// Hash of a block, `None` if there is none.
    fn block_hash(&self, number: u64) -> impl Future<Output = Result<Option<B256>, ChainError>> + Send;
    /// Logs of a range of blocks, in order.
    fn logs(&self, range: RangeInclusive<u64>) -> impl Future<Output = Result<Vec<Log>, ChainError>> + Send;
}

/// The logs of one contract.
#[derive(Clone)]
pub struct ContractLogs {
    /// The chain.
    pub client: ChainClient,
    /// The contract.
    pub address: Address,
    /// Which of its events, by the hash of the signature; none is all.
    pub events: Vec<B256>,
    /// Only with this first indexed argument.
    pub about: Option<B256>,
}

impl LogSource for ContractLogs {
    async fn head(&self) -> Result<u64, ChainError> {
        self.client.block_number().await
    }

    async fn block_hash(&self, number: u64) -> Result<Option<B256>, ChainError> {
        Ok(self.client.block(number).await?.map(|block| block.hash))
    }

    async fn logs(&self, range: RangeInclusive<u64>) -> Result<Vec<Log>, ChainError> {
        let mut filter = Filter::new().address(self.address).from_block(*range.start()).to_block(*range.end());
        if !self.events.is_empty() {
            filter = filter.event_signature(self.events.clone());
        }
        if let Some(about) = self.about {
            filter = filter.topic1(about);
        }
        self.client.logs(&filter).await
    }
}

/// What a look brought.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Followed {
    /// The chain was changed from this block on: what came from there is void and is told again.
    pub changed_from: Option<u64>,
    /// New logs, in order.
    pub logs: Vec<Log>,
    /// Nothing more is to be read for now.
    pub is_caught_up: bool,
}

/// Follows a source.
pub struct Follower<S> {
    source: S,
    depth: u64,
    span: u64,
    cursor: Cursor,
}

impl<S: LogSource> Follower<S> {
    /// Goes on from `cursor`; blocks less than `depth` below the head are left for later.
    pub fn new(source: S, depth: u64, cursor: Cursor) -> Self {
        Self { source, depth, span: SPAN_MAX, cursor }
    }

    /// What was read. To be kept after what came with it was dealt with.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Reads the next blocks, at most 2,000.
    ///
    /// # Errors
    /// [`ChainError`]; nothing was taken note of then but a change of the chain, which is told by the next call.
    pub async fn poll(&mut self) -> Result<Followed, ChainError> {
        let head = self.source.head().await?;
        let changed_from = self.rewind(head).await?;
        let Some(last) = head.checked_sub(self.depth).filter(|last| *last >= self.cursor.next) else {
            return Ok(Followed { changed_from, logs: vec![], is_caught_up: true });
        };
        let end = last.min(self.cursor.next.saturating_add(self.span - 1));
        let range = self.cursor.next..=end;
        let before = self.source.block_hash(end).await?;
        let logs = match self.source.logs(range.clone()).await {
            Ok(logs) => logs,
            // What endpoints say of a range that is too long has no common form.
            Err(ChainError::Refused { .. }) if self.span > 1 => {
                self.span = (self.span / 4).max(1);
                return Ok(Followed { changed_from, logs: vec![], is_caught_up: false });
            }
            Err(error) => return Err(error),
        };
        // If the chain changed meanwhile, these logs may be of either.
        let after = self.source.block_hash(end).await?;
        let is_whole = logs.iter().all(|log| !log.removed && log.block_number.is_some_and(|n| range.contains(&n)));
        match (before, after) {
            (Some(hash), Some(again)) if hash == again && is_whole => {
                self.cursor.next = end + 1;
                self.cursor.seen.push(SeenBlock { number: end, hash });
                if self.cursor.seen.len() > SEEN_MAX {
                    self.cursor.seen.remove(0);
                }
                self.span = self.span.saturating_mul(2).min(SPAN_MAX);
                Ok(Followed { changed_from, logs, is_caught_up: end == last })
            }
            _ => Ok(Followed { changed_from, logs: vec![], is_caught_up: false }),
        }
    }

    /// Forgets blocks that are not in the chain any more; returns the first of them.
    ///
    /// An endpoint that is behind knows nothing of the latest blocks: they are not forgotten for that, only when an
    /// earlier one has another hash.
    async fn rewind(&mut self, head: u64) -> Result<Option<u64>, ChainError> {
        let Some(newest) = self.cursor.seen.iter().rposition(|block| block.number <= head) else { return Ok(None) };
        let mut keep = newest + 1;
        while let Some(block) = keep.checked_sub(1).map(|last| self.cursor.seen[last]) {
            match self.source.block_hash(block.number).await? {
                None => return Ok(None),
                Some(hash) if hash == block.hash => break,
                Some(_) => keep -= 1,
            }
        }
        if keep > newest {
            return Ok(None);
        }
        self.cursor.seen.truncate(keep);
        self.cursor.next = self.cursor.seen.last().map_or(self.cursor.since, |block| block.number + 1);
        Ok(Some(self.cursor.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Blocks by number: the hash says which version of the block it is; each has one log, that tells the version.
    #[derive(Clone, Default)]
    struct Script(Arc<Mutex<State>>);

    #[derive(Default)]
    struct State {
        versions: Vec<u8>,
        /// Blocks that the endpoint knows, if fewer than there are.
        shown: Option<usize>,
        range_max: u64,
        /// Applied when the logs of a block are asked for: the chain changes under the reader.
        change_during_logs: Option<Vec<u8>>,
    }

    impl Script {
        fn new(versions: &[u8]) -> Self {
            let state = State { versions: versions.to_vec(), range_max: u64::MAX, ..State::default() };
            Self(Arc::new(Mutex::new(state)))
        }

        fn set(&self, change: impl FnOnce(&mut State)) {
            change(&mut self.0.lock().unwrap());
        }
    }

    impl LogSource for Script {
        async fn head(&self) -> Result<u64, ChainError> {
            let state = self.0.lock().unwrap();
            Ok(state.shown.unwrap_or(state.versions.len()) as u64 - 1)
        }

        async fn block_hash(&self, number: u64) -> Result<Option<B256>, ChainError> {
            let state = self.0.lock().unwrap();
            let shown = state.shown.unwrap_or(usize::MAX) as u64;
            let version = state.versions.get(number as usize).filter(|_| number < shown);
            Ok(version.map(|version| B256::repeat_byte(*version)))
        }

        async fn logs(&self, range: RangeInclusive<u64>) -> Result<Vec<Log>, ChainError> {
            let mut state = self.0.lock().unwrap();
            if range.end() - range.start() >= state.range_max {
                return Err(ChainError::Refused { method: "eth_getLogs", code: -32000, message: "range".into() });
            }
            let logs = range.map(|number| {
                let inner = alloy_primitives::Log::new_unchecked(
                    Address::ZERO,
                    vec![],
                    vec![state.versions[number as usize]].into(),
                );
                Log { inner, block_number: Some(number), ..Log::default() }
            });
            let logs = logs.collect();
            if let Some(versions) = state.change_during_logs.take() {
                state.versions = versions;
            }
            Ok(logs)
        }
    }

    /// Reads all there is; the versions that were told, and from where the chain was said to have changed.
    async fn read(follower: &mut Follower<Script>) -> (Vec<u8>, Option<u64>) {
        let (mut told, mut changed) = (vec![], None);
        for _ in 0..100 {
            let step = follower.poll().await.unwrap();
            changed = changed.or(step.changed_from);
            told.extend(step.logs.iter().map(|log| log.inner.data.data[0]));
            if step.is_caught_up {
                return (told, changed);
            }
        }
        panic!("never caught up");
    }

    #[tokio::test]
    async fn what_is_not_final_is_left_and_what_was_read_is_not_told_again() {
        let chain = Script::new(&[0, 1, 2, 3, 4]);
        let mut follower = Follower::new(chain.clone(), 2, Cursor::new(1));
        assert_eq!(read(&mut follower).await, (vec![1, 2], None));
        // Changes above the depth go unnoticed.
        chain.set(|state| state.versions = vec![0, 1, 2, 13, 14, 15]);
        assert_eq!(read(&mut follower).await, (vec![13], None));
        let cursor = serde_json::to_string(follower.cursor()).unwrap();
        let mut again = Follower::new(chain.clone(), 2, serde_json::from_str(&cursor).unwrap());
        assert_eq!(read(&mut again).await, (vec![], None));
        chain.set(|state| state.versions.push(16));
        assert_eq!(read(&mut again).await, (vec![14], None));
    }

    #[tokio::test]
    async fn a_change_below_the_depth_is_told_and_read_again_also_after_a_restart() {
        let chain = Script::new(&[0, 1]);
        let mut follower = Follower::new(chain.clone(), 0, Cursor::new(0));
        for block in 2..8 {
            read(&mut follower).await;
            chain.set(|state| state.versions.push(block));
        }
        read(&mut follower).await;
        let cursor = follower.cursor().clone();
        chain.set(|state| state.versions = vec![0, 1, 2, 3, 14, 15, 16, 17, 18]);
        for mut follower in [follower, Follower::new(chain.clone(), 0, cursor)] {
            assert_eq!(read(&mut follower).await, (vec![14, 15, 16, 17, 18], Some(4)));
            assert_eq!(read(&mut follower).await, (vec![], None));
        }
        // Another chain altogether: from the first block that matters.
        let mut follower = Follower::new(chain.clone(), 0, Cursor::new(3));
        read(&mut follower).await;
        chain.set(|state| state.versions = vec![20, 21, 22, 23, 24, 25, 26, 27, 28]);
        assert_eq!(read(&mut follower).await, (vec![23, 24, 25, 26, 27, 28], Some(3)));
    }

    #[tokio::test]
    async fn an_endpoint_that_is_behind_changes_nothing() {
        let chain = Script::new(&[0, 1, 2, 3, 4, 5]);
        let mut follower = Follower::new(chain.clone(), 0, Cursor::new(0));
        read(&mut follower).await;
        chain.set(|state| state.shown = Some(3));
        assert_eq!(read(&mut follower).await, (vec![], None));
        chain.set(|state| {
            state.shown = None;
            state.versions.push(6);
        });
        assert_eq!(read(&mut follower).await, (vec![6], None));
    }

    #[tokio::test]
    async fn a_change_while_reading_and_short_ranges_lose_nothing() {
        let chain = Script::new(&[0, 1, 2, 3, 4]);
        chain.set(|state| state.change_during_logs = Some(vec![0, 11, 12, 13, 14, 15]));
        let mut follower = Follower::new(chain.clone(), 0, Cursor::new(0));
        assert_eq!(read(&mut follower).await, (vec![0, 11, 12, 13, 14, 15], None));
        let long = Script::new(&(0..=255).collect::<Vec<u8>>());
        long.set(|state| state.range_max = 7);
        let mut follower = Follower::new(long, 0, Cursor::new(0));
        assert_eq!(read(&mut follower).await.0, (0..=255).collect::<Vec<u8>>());
        assert!(follower.cursor().seen.len() <= SEEN_MAX);
    }
}
