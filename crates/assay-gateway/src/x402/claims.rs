//! Puts what callers' channels owe into the gateway's account.
//!
//! By time: the first round at the start, further ones at least four times within the delay of a withdrawal, so that a
//! payer who takes its deposit back is always met by a claim first, also if the gateway was down for a while.

use super::Toll;
use super::books::Books;
use assay_chain::{ChainError, ClaimRow, Network};
use assay_types::{Amount, SignedVoucher, Voucher};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Claims until `stop`, every `period` or a quarter of the withdrawal delay.
pub(crate) async fn run(toll: Arc<Toll>, period: Duration, stop: CancellationToken) {
    let in_time = Duration::from_secs((toll.withdraw_delay / 4).max(1));
    let mut ticks = interval(period.clamp(Duration::from_millis(10), in_time));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // Not cut by `stop`: a transaction that was sent is waited for.
        if let Err(error) = toll.claim_all().await {
            tracing::warn!(%error, "callers' vouchers are not claimed yet; trying again");
        }
    }
}

/// One round: claims what is not claimed, then moves what is claimed.
pub(super) async fn claim_all(network: &Network, books: &Books) -> Result<(), ChainError> {
    let mut rows = Vec::new();
    for (id, account) in books.unclaimed() {
        let Some((ceiling, signature)) = account.voucher else { continue };
        let state = network.settlement.channel(id).await?;
        let total_claimed = account.charged.min(ceiling).min(state.balance);
        if total_claimed < account.charged {
            tracing::error!(channel = %id, charged = %account.charged, claimable = %total_claimed, "a channel holds less than was charged");
        }
        if state.total_claimed >= total_claimed {
            books.on_claimed(id, state.total_claimed);
            continue;
        }
        let voucher = SignedVoucher { voucher: Voucher { channel_id: id, max_claimable_amount: ceiling }, signature };
        rows.push(ClaimRow { config: account.config, voucher, total_claimed });
    }
    if !rows.is_empty() {
        let report = network.settlement.claim(&rows).await?;
        for row in rows.iter().filter(|row| report.claimed.contains(&row.voucher.voucher.channel_id)) {
            books.on_claimed(row.voucher.voucher.channel_id, row.total_claimed);
        }
        for (channel, error) in &report.refused {
            tracing::error!(%channel, %error, "the settlement contract refuses a claim");
        }
    }
    let (payee, token) = (network.client.address(), network.addresses.token);
    let sums = network.settlement.receiver(payee, token).await?;
    if sums.total_claimed.saturating_sub(sums.total_settled) > Amount::ZERO {
        network.settlement.settle(payee, token).await?;
    }
    Ok(())
}
