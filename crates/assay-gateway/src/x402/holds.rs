//! What running requests have a claim on, so that nothing pays for two of them.

use assay_types::{Address, Amount, B256, ChannelId};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bounded by the number of requests that are being answered: each holds one entry of each kind at most.
#[derive(Debug, Default)]
pub(super) struct Holds(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    /// One request at a time on a channel: each voucher goes on from the last one's charge.
    channels: HashSet<ChannelId>,
    authorizations: HashSet<(Address, B256)>,
    /// Sum of what a payer's running transfers will take.
    funds: HashMap<Address, Amount>,
}

/// The channel is this request's until it is dropped.
#[derive(Debug)]
pub(super) struct ChannelHold(Arc<Holds>, ChannelId);

/// The signed transfer is this request's until it is dropped.
#[derive(Debug)]
pub(super) struct FundsHold {
    holds: Arc<Holds>,
    payer: Address,
    nonce: B256,
    amount: Amount,
    /// What all of the payer's running transfers take, this one included.
    pub(super) held: Amount,
}

impl Holds {
    /// `None` while another request has it.
    pub(super) fn channel(self: &Arc<Self>, id: ChannelId) -> Option<ChannelHold> {
        let is_free = self.lock().channels.insert(id);
        is_free.then(|| ChannelHold(Arc::clone(self), id))
    }

    /// `None` while another request has it.
    pub(super) fn funds(self: &Arc<Self>, payer: Address, nonce: B256, amount: Amount) -> Option<FundsHold> {
        let mut all = self.lock();
        if !all.authorizations.insert((payer, nonce)) {
            return None;
        }
        let sum = all.funds.entry(payer).or_default();
        *sum = sum.saturating_add(amount);
        Some(FundsHold { holds: Arc::clone(self), payer, nonce, amount, held: *sum })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        // A few inserts and removes that do not panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ChannelHold {
    fn drop(&mut self) {
        self.0.lock().channels.remove(&self.1);
    }
}

impl Drop for FundsHold {
    fn drop(&mut self) {
        let mut all = self.holds.lock();
        all.authorizations.remove(&(self.payer, self.nonce));
        if let Some(sum) = all.funds.get_mut(&self.payer) {
            *sum = sum.saturating_sub(self.amount);
            if *sum == Amount::ZERO {
                all.funds.remove(&self.payer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payment_is_held_once_and_funds_add_up() {
        let holds = Arc::new(Holds::default());
        let payer = Address::repeat_byte(1);
        let nonce = B256::repeat_byte;
        let first = holds.funds(payer, nonce(1), Amount(5)).unwrap();
        assert!(holds.funds(payer, nonce(1), Amount(5)).is_none());
        let second = holds.funds(payer, nonce(2), Amount(7)).unwrap();
        assert_eq!((first.held, second.held), (Amount(5), Amount(12)));
        assert_eq!(holds.funds(Address::repeat_byte(2), nonce(1), Amount(1)).unwrap().held, Amount(1));
        drop(first);
        assert_eq!(holds.funds(payer, nonce(1), Amount(1)).unwrap().held, Amount(8));
        drop(second);
        assert!(holds.lock().funds.is_empty() && holds.lock().authorizations.is_empty());

        let id = ChannelId(nonce(3));
        let hold = holds.channel(id);
        assert!(hold.is_some() && holds.channel(id).is_none());
        drop(hold);
        assert!(holds.channel(id).is_some());
    }
}
