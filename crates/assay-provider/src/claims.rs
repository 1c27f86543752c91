//! Claiming: what was charged is taken from the channels in batches.
//!
//! Claims are made from the disk, never from memory: a total that is claimed is one that a receipt proves. The
//! contract takes a total, not an increment, so a claim that is repeated after a crash changes nothing.

use crate::{ledger::Ledger, store::ChannelRow};
use assay_chain::{ChainError, ClaimRow, client::ClaimReport};
use assay_protocol::claimable_down;
use assay_types::{Amount, ChannelId};
use std::{collections::HashSet, sync::Arc, time::Duration};
use tokio::time::{Instant, MissedTickBehavior, interval, interval_at};
use tokio_util::sync::CancellationToken;

/// Which channels a run looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// All that may have something unclaimed.
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
pub(crate) async fn watch(ledger: &Ledger) {
    for channel in ledger.channels_in_use() {
        if let Err(error) = ledger.refresh(&channel).await {
            tracing::warn!(%error, channel = %channel.terms.id(), "the chain does not say what a channel holds");
            return;
        }
    }
}

/// Claims what `scope` says is due; returns what was transferred to the provider.
pub(crate) async fn claim(ledger: &Ledger, scope: Scope) -> Result<Amount, ClaimError> {
    let in_use: HashSet<ChannelId> = ledger.channels_in_use().iter().map(|channel| channel.terms.id()).collect();
    let mut rows = Vec::new();
    // A channel that was claimed from just now may have to be claimed from again: its block may be undone.
    for row in ledger.store.channels().await?.into_iter().filter(|row| in_use.contains(&row.channel_id())) {
        let unclaimed = row.charged_total.saturating_sub(ledger.claimed(row.channel_id()));
        let is_due = match scope {
            Scope::Unclaimed => true,
            Scope::Urgent { threshold } => unclaimed >= threshold || ledger.is_withdrawing(row.channel_id()),
        };
        if is_due && let Some(row) = claimable(ledger, &row).await? {
            rows.push(row);
        }
    }
    let report = match (rows.is_empty(), scope) {
        // What an earlier run claimed may not be settled: a regular run looks.
        (true, Scope::Unclaimed) => ClaimReport::default(),
        (true, Scope::Urgent { .. }) => return Ok(Amount::ZERO),
        (false, _) => ledger.chain.claim(rows).await?,
    };
    for id in &report.claimed {
        ledger.on_chain(*id, &ledger.chain.channel(*id).await?).await?;
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

/// The claim for a channel, unless the chain has it already.
async fn claimable(ledger: &Ledger, row: &ChannelRow) -> Result<Option<ClaimRow>, ClaimError> {
    let id = row.channel_id();
    let found = ledger.chain.channel(id).await?;
    let ceiling = row.voucher.voucher.max_claimable_amount;
    let total_claimed = claimable_down(row.charged_total, ceiling, found.state.balance);
    if total_claimed < row.charged_total {
        tracing::error!(channel = %id, charged = %row.charged_total, claimable = %total_claimed, "a channel holds less than was charged");
    }
    ledger.on_chain(id, &found).await?;
    let is_new = found.state.total_claimed < total_claimed;
    Ok(is_new.then_some(ClaimRow { config: row.config, voucher: row.voucher, total_claimed }))
}
