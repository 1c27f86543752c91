//! Claiming: what was charged is taken from the channels in batches.
//!
//! Claims are made from the disk, never from memory: a total that is claimed is one that a receipt proves. The
//! contract takes a total, not an increment, so a claim that is repeated after a crash changes nothing.

use crate::{ledger::Ledger, store::ChannelRow};
use assay_chain::{ChainError, ClaimRow, client::ClaimReport};
use assay_types::Amount;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

/// Which channels a run looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Scope {
    /// All with something unclaimed.
    Unclaimed,
    /// Those over the threshold or whose payer withdraws.
    Urgent { threshold: Amount },
}

/// Why a claim was not made; it is tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

/// When to claim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClaimTimes {
    /// An earlier run may have left something to claim: the first claim is made at once.
    pub has_past: bool,
    pub interval: Duration,
    pub poll: Duration,
    pub threshold: Amount,
}

/// Claims what an earlier run left, then by time, threshold and withdrawals, until `stop`.
pub(crate) async fn run(ledger: Arc<Ledger>, times: ClaimTimes, stop: CancellationToken) {
    let first = if times.has_past { Duration::ZERO } else { times.interval };
    let mut regular = interval_at(Instant::now() + first, times.interval);
    regular.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut poll = interval(times.poll);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let scope = tokio::select! {
            () = stop.cancelled() => return,
            _ = regular.tick() => Scope::Unclaimed,
            _ = poll.tick() => {
                watch(&ledger).await;
                Scope::Urgent { threshold: Amount(u128::MAX) }
            }
            () = ledger.claim_due.notified() => Scope::Urgent { threshold: times.threshold },
        };
        // Not cut by `stop`: a transaction that was sent has to be noted.
        if let Err(error) = claim(&ledger, scope).await {
            tracing::warn!(%error, "vouchers are not claimed yet; trying again");
        }
    }
}

/// Claims everything; returns what was transferred to the provider.
pub(crate) async fn claim_all(ledger: &Ledger) -> Result<Amount, ClaimError> {
    claim(ledger, Scope::Unclaimed).await
}

/// Asks the chain about the channels in use: deposits change, and a withdrawal has to be noticed within its delay.
async fn watch(ledger: &Ledger) {
    for channel in ledger.channels_in_use() {
        if let Err(error) = ledger.refresh(&channel).await {
            tracing::warn!(%error, channel = %channel.terms.id(), "the chain does not say what a channel holds");
            return;
        }
    }
}

async fn claim(ledger: &Ledger, scope: Scope) -> Result<Amount, ClaimError> {
    let mut rows = Vec::new();
    for row in ledger.store.channels().await?.into_iter().filter(|row| row.charged_total > row.claimed) {
        let unclaimed = row.charged_total.saturating_sub(row.claimed);
        let is_due = match scope {
            Scope::Unclaimed => true,
            Scope::Urgent { threshold } => {
                unclaimed >= threshold || ledger.is_withdrawing(row.voucher.voucher.channel_id)
            }
        };
        if is_due && let Some(row) = claimable(ledger, &row).await? {
            rows.push(row);
        }
    }
    let report = match (rows.is_empty(), scope) {
        // What an earlier run claimed may not be settled: a regular run looks.
        (true, Scope::Unclaimed) => ClaimReport::default(),
        (true, Scope::Urgent { .. }) => return Ok(Amount::ZERO),
        (false, _) => ledger.chain.claim(rows.clone()).await?,
    };
    for id in &report.claimed {
        let claimed = rows.iter().find(|row| row.voucher.voucher.channel_id == *id).map(|row| row.total_claimed);
        ledger.on_claimed(*id, claimed.unwrap_or(Amount::ZERO)).await?;
    }
    for (channel, error) in &report.refused {
        tracing::error!(%channel, %error, "the settlement contract refuses a claim");
    }
    let settled = ledger.chain.settle().await?;
    if settled > Amount::ZERO {
        tracing::info!(channels = report.claimed.len(), %settled, "claimed");
    }
    Ok(settled)
}

/// The claim for a channel, unless the chain has it already: never above what receipts prove, what the voucher
/// promises and what the channel holds.
async fn claimable(ledger: &Ledger, row: &ChannelRow) -> Result<Option<ClaimRow>, ClaimError> {
    let id = row.voucher.voucher.channel_id;
    let found = ledger.chain.channel(id).await?.state;
    let total_claimed = row.charged_total.min(row.voucher.voucher.max_claimable_amount).min(found.balance);
    if total_claimed < row.charged_total {
        tracing::error!(channel = %id, charged = %row.charged_total, claimable = %total_claimed, "a channel holds less than was charged");
    }
    if found.total_claimed >= total_claimed {
        ledger.on_claimed(id, found.total_claimed).await?;
        return Ok(None);
    }
    Ok(Some(ClaimRow { config: row.config, voucher: row.voucher, total_claimed }))
}
