//! Transactions that are accepted and not yet in a block. Held in memory only.
//!
//! `ready` can run in arrival order: each sender's nonces are contiguous from the state on. `waiting` came early, with
//! a gap before it; it is bounded and expires. There is no replacement: gas is free and blocks come at once.

use alloy_consensus::{Transaction as _, TxEnvelope};
use alloy_primitives::{Address, B256, Bytes};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// Most transactions that are ready.
const READY_MAX: usize = 4096;
/// Most transactions that wait for an earlier nonce, of all senders together.
const WAITING_MAX: usize = 256;
/// How far ahead of its sender's next nonce a transaction may be.
const NONCE_GAP_MAX: u64 = 64;
/// Seconds that a transaction waits for the one before it.
const WAITING_S_MAX: u64 = 60;

/// A checked transaction.
#[derive(Debug)]
pub(super) struct PoolTransaction {
    pub hash: B256,
    pub sender: Address,
    pub envelope: TxEnvelope,
    /// As it was sent.
    pub raw: Bytes,
}

impl PoolTransaction {
    pub fn nonce(&self) -> u64 {
        self.envelope.nonce()
    }
}

/// Why a transaction is not taken. The texts are those that clients look for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum PoolError {
    #[error("already known")]
    AlreadyKnown,
    #[error("nonce too low: next nonce {next}, tx nonce {nonce}")]
    NonceTooLow { next: u64, nonce: u64 },
    #[error("replacement transaction underpriced: nonce {nonce} is taken by a pending transaction")]
    NonceTaken { nonce: u64 },
    #[error("nonce too high: next nonce {next}, tx nonce {nonce}")]
    NonceTooHigh { next: u64, nonce: u64 },
    #[error("txpool is full")]
    Full,
}

/// Nonces of one sender that are in `ready` or in the block being sealed.
struct Pending {
    next_nonce: u64,
    count: usize,
}

#[derive(Default)]
pub(super) struct Pool {
    ready: VecDeque<Arc<PoolTransaction>>,
    /// With the second in which each came.
    waiting: BTreeMap<(Address, u64), (u64, Arc<PoolTransaction>)>,
    pending: HashMap<Address, Pending>,
    by_hash: HashMap<B256, Arc<PoolTransaction>>,
}

impl Pool {
    /// Takes a transaction whose sender has `state_nonce` in the last sealed state.
    pub fn insert(&mut self, transaction: PoolTransaction, state_nonce: u64, now: u64) -> Result<(), PoolError> {
        let transaction = Arc::new(transaction);
        let (sender, nonce) = (transaction.sender, transaction.nonce());
        if self.by_hash.contains_key(&transaction.hash) {
            return Err(PoolError::AlreadyKnown);
        }
        let next = self.next_nonce(sender).unwrap_or(state_nonce);
        if nonce < state_nonce {
            return Err(PoolError::NonceTooLow { next: state_nonce, nonce });
        }
        if nonce < next || self.waiting.contains_key(&(sender, nonce)) {
            return Err(PoolError::NonceTaken { nonce });
        }
        if nonce > next {
            return self.insert_waiting(transaction, next, now);
        }
        if self.ready.len() >= READY_MAX {
            return Err(PoolError::Full);
        }
        self.push_ready(transaction);
        self.promote(sender);
        Ok(())
    }

    /// The nonce after the sender's last pending transaction, if it has one.
    pub fn next_nonce(&self, sender: Address) -> Option<u64> {
        self.pending.get(&sender).map(|pending| pending.next_nonce)
    }

    pub fn get(&self, hash: B256) -> Option<Arc<PoolTransaction>> {
        self.by_hash.get(&hash).cloned()
    }

    pub fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// The next block: at most `count_max` transactions within `gas_max`, in order. They stay known until
    /// [`Self::finish`].
    pub fn take(&mut self, count_max: usize, gas_max: u64) -> Vec<Arc<PoolTransaction>> {
        let mut batch = Vec::new();
        let mut gas = 0u64;
        while batch.len() < count_max
            && let Some(front) = self.ready.front()
        {
            gas = gas.saturating_add(front.envelope.gas_limit());
            if gas > gas_max && !batch.is_empty() {
                break;
            }
            batch.extend(self.ready.pop_front());
        }
        batch
    }

    /// Forgets a batch that was sealed, except `dropped` senders, of whom everything goes: their later nonces would
    /// never become valid.
    pub fn finish(&mut self, batch: &[Arc<PoolTransaction>], dropped: &[Address]) {
        for transaction in batch {
            self.forget(transaction);
        }
        for sender in dropped {
            let gone: Vec<_> = self.ready.iter().filter(|pending| pending.sender == *sender).cloned().collect();
            self.ready.retain(|pending| pending.sender != *sender);
            for transaction in gone {
                self.forget(&transaction);
            }
            let waiting: Vec<_> = self.waiting.range((*sender, 0)..=(*sender, u64::MAX)).map(|(key, _)| *key).collect();
            self.drop_waiting(&waiting);
        }
    }

    fn insert_waiting(&mut self, transaction: Arc<PoolTransaction>, next: u64, now: u64) -> Result<(), PoolError> {
        let (sender, nonce) = (transaction.sender, transaction.nonce());
        if nonce - next > NONCE_GAP_MAX {
            return Err(PoolError::NonceTooHigh { next, nonce });
        }
        if self.waiting.len() >= WAITING_MAX {
            let expired: Vec<_> = self
                .waiting
                .iter()
                .filter(|(_, (since, _))| now.saturating_sub(*since) > WAITING_S_MAX)
                .map(|(key, _)| *key)
                .collect();
            self.drop_waiting(&expired);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(PoolError::Full);
        }
        self.by_hash.insert(transaction.hash, Arc::clone(&transaction));
        self.waiting.insert((sender, nonce), (now, transaction));
        Ok(())
    }

    fn push_ready(&mut self, transaction: Arc<PoolTransaction>) {
        let pending = self.pending.entry(transaction.sender).or_insert(Pending { next_nonce: 0, count: 0 });
        pending.next_nonce = transaction.nonce().saturating_add(1);
        pending.count += 1;
        self.by_hash.insert(transaction.hash, Arc::clone(&transaction));
        self.ready.push_back(transaction);
    }

    fn promote(&mut self, sender: Address) {
        while let Some(next) = self.next_nonce(sender)
            && let Some((_, transaction)) = self.waiting.remove(&(sender, next))
        {
            self.push_ready(transaction);
        }
    }

    fn forget(&mut self, transaction: &PoolTransaction) {
        self.by_hash.remove(&transaction.hash);
        if let Some(pending) = self.pending.get_mut(&transaction.sender) {
            pending.count -= 1;
            if pending.count == 0 {
                self.pending.remove(&transaction.sender);
            }
        }
    }

    fn drop_waiting(&mut self, keys: &[(Address, u64)]) {
        for key in keys {
            if let Some((_, transaction)) = self.waiting.remove(key) {
                self.by_hash.remove(&transaction.hash);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy_consensus::{SignableTransaction, TxLegacy};
    use alloy_primitives::{Signature, U256};

    /// A transaction as the pool sees it; signatures are checked before.
    fn transaction(sender: u8, nonce: u64) -> PoolTransaction {
        let signature = Signature::new(U256::from(sender), U256::from(1), false);
        let envelope =
            TxEnvelope::from(TxLegacy { nonce, gas_limit: 10, ..TxLegacy::default() }.into_signed(signature));
        PoolTransaction {
            hash: *envelope.tx_hash(),
            sender: Address::with_last_byte(sender),
            envelope,
            raw: Bytes::new(),
        }
    }

    fn nonces(batch: &[Arc<PoolTransaction>]) -> Vec<u64> {
        batch.iter().map(|transaction| transaction.nonce()).collect()
    }

    #[test]
    fn a_full_pool_says_so_and_takes_more_after_a_block() {
        let mut pool = Pool::default();
        for nonce in 0..READY_MAX as u64 {
            pool.insert(transaction(1, nonce), 0, 0).unwrap();
        }
        assert_eq!(pool.insert(transaction(2, 0), 0, 0), Err(PoolError::Full));
        let batch = pool.take(3, 25);
        assert_eq!(nonces(&batch), [0, 1], "within the gas of a block");
        pool.finish(&batch, &[]);
        assert_eq!(pool.insert(transaction(2, 0), 0, 0), Ok(()));
        assert_eq!(pool.next_nonce(Address::with_last_byte(1)), Some(READY_MAX as u64));
        assert_eq!(pool.take(1, 1).len(), 1, "one that is larger than a block is tried alone");
    }

    #[test]
    fn what_waits_is_bounded_and_expires() {
        let mut pool = Pool::default();
        for sender in 0..WAITING_MAX {
            pool.insert(transaction(u8::try_from(sender).unwrap(), 5), 0, 100).unwrap();
        }
        assert_eq!(pool.insert(transaction(7, 6), 0, 100 + WAITING_S_MAX), Err(PoolError::Full));
        assert_eq!(pool.insert(transaction(7, 6), 0, 101 + WAITING_S_MAX), Ok(()));
        assert_eq!(pool.by_hash.len(), 1, "the expired ones are forgotten");
        let far = NONCE_GAP_MAX + 1;
        assert_eq!(pool.insert(transaction(8, far), 0, 0), Err(PoolError::NonceTooHigh { next: 0, nonce: far }));
    }

    #[test]
    fn a_dropped_sender_loses_everything_and_others_nothing() {
        let mut pool = Pool::default();
        for (sender, nonce) in [(1, 0), (2, 0), (1, 1), (2, 1), (1, 4)] {
            pool.insert(transaction(sender, nonce), 0, 0).unwrap();
        }
        let batch = pool.take(2, u64::MAX);
        pool.finish(&batch, &[Address::with_last_byte(1)]);
        assert_eq!(pool.next_nonce(Address::with_last_byte(1)), None);
        let rest = pool.take(9, u64::MAX);
        assert_eq!((rest.len(), rest[0].sender, rest[0].nonce()), (1, Address::with_last_byte(2), 1));
        pool.finish(&rest, &[]);
        assert!(pool.by_hash.is_empty() && pool.pending.is_empty() && pool.waiting.is_empty());
    }
}
