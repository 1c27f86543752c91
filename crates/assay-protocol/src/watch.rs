//! What a receiver knows of its channel on chain: what is claimed there, and whether its payer takes the deposit back.
//!
//! The chain's word replaces what was known, upwards and downwards: a block that held a claim may be replaced by one
//! that does not, and then it is claimed again. So a channel is left alone only when the chain has said for a while that
//! everything is claimed.

use assay_types::Amount;
use std::time::Duration;

/// A channel in the settlement contract.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OnChain {
    /// Deposited, less withdrawals, as far as it lasts ([`lasting_balance_down`]); claimed tokens stay counted.
    pub balance: Amount,
    /// Claimed so far, cumulative.
    pub claimed: Amount,
    /// The payer has begun to take back what is not claimed.
    pub is_withdrawing: bool,
}

/// The receiver's view of one channel on chain. Times are counted from any fixed moment, by a clock that never goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReceiverWatch {
    claimed: Amount,
    is_withdrawing: bool,
    /// When the chain was asked last; never for a channel that was only read from the disk.
    seen_at: Option<Duration>,
    /// Since when the chain has said that so much is claimed.
    same_since: Duration,
}

impl ReceiverWatch {
    /// A channel of which `claimed` was noted earlier and the chain was not asked yet.
    #[must_use]
    pub fn new(claimed: Amount) -> Self {
        Self { claimed, ..Self::default() }
    }

    /// What the chain says.
    pub fn on_chain(&mut self, now: Duration, found: &OnChain) {
        if self.seen_at.is_none() || self.claimed != found.claimed {
            self.same_since = now;
        }
        self.claimed = found.claimed;
        self.is_withdrawing = found.is_withdrawing;
        self.seen_at = Some(now);
    }

    /// What the chain said last is claimed.
    #[must_use]
    pub fn claimed(&self) -> Amount {
        self.claimed
    }

    /// The payer has begun to take back what is not claimed: nothing more is granted, and all is claimed now.
    #[must_use]
    pub fn is_withdrawing(&self) -> bool {
        self.is_withdrawing
    }

    /// Whether nothing is left to do: all of `charged_total` is claimed, and the chain has said so for `settled_after`.
    #[must_use]
    pub fn is_settled(&self, now: Duration, charged_total: Amount, settled_after: Duration) -> bool {
        self.seen_at.is_some() && self.claimed >= charged_total && now.saturating_sub(self.same_since) >= settled_after
    }

    /// Whether the chain has to be asked before a stream is opened with a voucher of `ceiling`.
    ///
    /// A payer that was not withdrawing when the chain was asked can have its deposit back `withdraw_delay` later at
    /// the earliest: a look is good for half of it, the other half is left for claiming. What looks wrong is looked at
    /// again, at most once in `pause`.
    #[must_use]
    pub fn needs_lookup(
        &self,
        now: Duration,
        ceiling: Amount,
        deposit: Amount,
        withdraw_delay: Duration,
        pause: Duration,
    ) -> bool {
        let Some(seen_at) = self.seen_at else { return true };
        let age = now.saturating_sub(seen_at);
        let is_suspect = ceiling > deposit || self.is_withdrawing;
        age.saturating_mul(2) >= withdraw_delay || (is_suspect && age >= pause)
    }
}

/// What may be claimed on a channel: not above what receipts prove, what the voucher promises and what the channel holds.
#[must_use]
pub fn claimable_down(charged_total: Amount, ceiling: Amount, balance: Amount) -> Amount {
    charged_total.min(ceiling).min(balance)
}

/// What of a channel's balance no reorganization takes back, with the balance and the withdrawal of the last block that is
/// final: a withdrawal that ended in a later block may end once more before the claims that came first, and take more.
#[must_use]
pub fn lasting_balance_down(head: Amount, settled: Amount, settled_withdrawal: Amount) -> Amount {
    settled.saturating_sub(settled_withdrawal).min(head)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_claim_that_a_reorganization_undid_is_due_again() {
        let mut watch = ReceiverWatch::new(Amount(50));
        assert!(!watch.is_settled(at(1_000), Amount(50), at(60)), "the chain was not asked");
        let found = |claimed| OnChain { balance: Amount(100), claimed: Amount(claimed), is_withdrawing: false };
        watch.on_chain(at(0), &found(50));
        assert!(!watch.is_settled(at(59), Amount(50), at(60)));
        watch.on_chain(at(59), &found(50));
        assert!(watch.is_settled(at(60), Amount(50), at(60)));
        assert!(!watch.is_settled(at(60), Amount(51), at(60)));
        watch.on_chain(at(70), &found(20));
        assert_eq!(watch.claimed(), Amount(20));
        watch.on_chain(at(80), &found(50));
        assert!(!watch.is_settled(at(100), Amount(50), at(60)), "it was claimed anew");
        assert!(watch.is_settled(at(140), Amount(50), at(60)));
    }

    #[test]
    fn a_look_is_good_for_half_of_the_delay_unless_something_is_wrong() {
        let mut watch = ReceiverWatch::default();
        let needs = |watch: &ReceiverWatch, now, ceiling| {
            watch.needs_lookup(at(now), Amount(ceiling), Amount(100), at(1_000), at(5))
        };
        assert!(needs(&watch, 0, 1));
        watch.on_chain(at(10), &OnChain { balance: Amount(100), ..OnChain::default() });
        assert!(!needs(&watch, 509, 100));
        assert!(needs(&watch, 510, 100));
        assert!(!needs(&watch, 14, 101));
        assert!(needs(&watch, 15, 101));
        watch.on_chain(at(20), &OnChain { is_withdrawing: true, ..OnChain::default() });
        assert!(!needs(&watch, 24, 1));
        assert!(needs(&watch, 25, 1));
    }

    #[test]
    fn what_a_withdrawal_may_take_in_another_order_does_not_last() {
        // 500, of which 213 are withdrawn; 106 were claimed first, so that 112 were left to take, and the head has 388.
        for (head, settled, withdrawal, expect) in [(500, 500, 0, 500), (388, 500, 213, 287), (287, 500, 213, 287)] {
            assert_eq!(lasting_balance_down(Amount(head), Amount(settled), Amount(withdrawal)), Amount(expect));
        }
        assert_eq!(lasting_balance_down(Amount(750), Amount(500), Amount(0)), Amount(500), "a deposit of just now");
    }

    #[test]
    fn the_least_of_receipts_voucher_and_balance_is_claimed() {
        for (charged, ceiling, balance, expect) in [(5, 6, 7, 5), (6, 5, 7, 5), (7, 6, 5, 5), (0, 6, 7, 0)] {
            assert_eq!(claimable_down(Amount(charged), Amount(ceiling), Amount(balance)), Amount(expect));
        }
    }
}
