//! What the chain says that answers and audits follow: money back for wrong answers, and how much is audited.
//!
//! An answer that was shown to be wrong is noted with what its key was charged for it. When the court has taken that from
//! the provider's stake and given it to the gateway, which had paid, the key gets it back: from then on its budget is
//! larger by as much. What the gateway is owed is taken to its account.

use crate::auditing::Auditing;
use crate::clock;
use crate::keys::Keys;
use crate::ledger::{Ledger, LedgerError};
use crate::store::{RefundRow, Store};
use assay_types::Amount;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Between two looks at answers whose money is to come back.
const LOOK: Duration = Duration::from_millis(500);
/// Looks between two readings of the policy.
const POLICY_LOOKS: u32 = 60;
/// Answers that are looked at in one go; the rest follow when these are paid.
const PENDING_MAX: u32 = 256;
/// An answer that no court has judged after this long is given up: a dispute takes six days at most.
const PENDING_S: u64 = 30 * 86_400;

/// What the task holds.
pub(crate) struct Watch<L> {
    pub(crate) ledger: Arc<L>,
    pub(crate) store: Store,
    pub(crate) keys: Keys,
    pub(crate) auditing: Arc<Auditing>,
}

impl<L: Ledger> Watch<L> {
    /// Until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut looks, mut trouble) = (0u32, String::new());
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            if looks.is_multiple_of(POLICY_LOOKS) {
                self.follow_policy().await;
            }
            looks = looks.wrapping_add(1);
            let now = self.pay_back().await.err().unwrap_or_default();
            if !now.is_empty() && now != trouble {
                tracing::warn!(error = now, "refunds are not looked at; trying again");
            }
            trouble = now;
        }
    }

    async fn follow_policy(&self) {
        match self.ledger.audit_policy().await {
            Ok(Some(policy)) => self.auditing.follow(policy),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "the network's parameters were not read; those of before hold"),
        }
    }

    async fn pay_back(&self) -> Result<(), String> {
        let since = clock::unix_seconds().saturating_sub(PENDING_S);
        let pending = self.store.refunds_pending(since, PENDING_MAX).await.map_err(|error| error.to_string())?;
        let mut paid = Amount::ZERO;
        for row in pending {
            let found = self.ledger.refunded(row.provider, row.request).await;
            if let Some(amount) = found.map_err(|error: LedgerError| error.to_string())? {
                // Never more than it had cost.
                let amount = amount.min(row.charged);
                let row = RefundRow { paid: Some(amount), ..row };
                self.store.put_refund(row).await.map_err(|error| error.to_string())?;
                paid = paid.saturating_add(amount);
                tracing::warn!(receipt = %row.receipt, provider = %row.provider, key = row.key_id, %amount, "a wrong answer was paid back out of the stake: the key is credited");
            }
        }
        if paid > Amount::ZERO {
            self.keys.reload().await.map_err(|error| error.to_string())?;
            // What stays in the court is taken with the next refund.
            if let Err(error) = self.ledger.collect().await {
                tracing::warn!(%error, "what the court owes the gateway was not taken out; it is safe there");
            }
        }
        Ok(())
    }
}
