//! Scheme `batch-settlement`: vouchers on a channel from the caller to this gateway.
//!
//! The books say what a channel's requests have cost so far. A voucher is for that and the next request's quote; when
//! the answer is there, what it cost is booked on disk, and only then does it go out. Requests on one channel take
//! turns, as the scheme has it.

use super::books::{Account, OnChain};
use super::holds::{ChannelHold, FundsHold};
use super::{Refusal, Toll, VALID_S_MIN, Visit, put};
use crate::clock;
use crate::error::GatewayError;
use assay_api::x402::{
    ChannelPayment, ChannelPaymentKind, ChannelState, Deposit, Erc3009Authorization, RESPONSE_HEADER, SettleExtra,
    SettleResponse, VoucherState, encode,
};
use assay_chain::{ClaimRow, SignedDeposit};
use assay_types::{Amount, ChannelConfig, ChannelId, SignedVoucher, Voucher};
use axum::body::Body;
use axum::http::Response;
use axum::http::header::CONTENT_TYPE;
use std::sync::Arc;

/// A refusal that comes with the state of the books.
pub(super) const CUMULATIVE_MISMATCH: &str = "invalid_batch_settlement_evm_cumulative_amount_mismatch";

/// A refusal of this scheme.
fn refused(reason: &str) -> Refusal {
    Refusal::Unpaid(format!("invalid_batch_settlement_evm_{reason}"))
}

/// A message whose channel is this gateway's and whose turn it is.
struct Turn {
    id: ChannelId,
    account: Account,
    on_chain: OnChain,
    voucher: SignedVoucher,
    hold: ChannelHold,
}

/// A deposit that was checked.
struct Funding {
    deposit: SignedDeposit,
    _hold: FundsHold,
}

impl Toll {
    /// Takes a message on a channel.
    pub(super) async fn batch(
        self: &Arc<Self>,
        payment: ChannelPayment,
        visit: Visit,
    ) -> Result<Response<Body>, Refusal> {
        let turn = self.turn(&payment).await?;
        match payment.kind {
            ChannelPaymentKind::Refund => self.refund(turn, payment.amount).await,
            ChannelPaymentKind::Voucher => self.request(turn, None, visit).await,
            ChannelPaymentKind::Deposit => {
                let deposit = payment.deposit.ok_or_else(|| refused("deposit_payload"))?;
                self.request(turn, Some(deposit), visit).await
            }
        }
    }

    /// Whether the channel is one to this gateway, and where its books stand.
    async fn turn(&self, payment: &ChannelPayment) -> Result<Turn, Refusal> {
        let config = payment.channel_config;
        self.check_config(&config)?;
        let id = config.id(&self.network.settlement.domain());
        if id != payment.voucher.channel_id {
            return Err(refused("channel_id_mismatch"));
        }
        let voucher = Voucher { channel_id: id, max_claimable_amount: payment.voucher.max_claimable_amount };
        let voucher = SignedVoucher { voucher, signature: payment.voucher.signature };
        let is_signed = voucher.verify(&self.network.settlement.domain(), config.payer_authorizer);
        is_signed.map_err(|_| refused("voucher_signature"))?;
        let hold = self.holds.channel(id).ok_or_else(|| refused("channel_busy"))?;
        let known = self.books.get(id);
        let on_chain = match self.books.fresh(id).filter(|_| payment.kind == ChannelPaymentKind::Voucher) {
            Some(on_chain) => on_chain,
            None => self.look(id).await?,
        };
        let mut account = known.unwrap_or(Account { config, charged: Amount::ZERO, voucher: None });
        // What is claimed was charged: an older copy of the books may not know it.
        account.charged = account.charged.max(on_chain.claimed);
        Ok(Turn { id, account, on_chain, voucher, hold })
    }

    fn check_config(&self, config: &ChannelConfig) -> Result<(), Refusal> {
        if config.token != self.network.addresses.token {
            return Err(refused("token_mismatch"));
        }
        if config.receiver != self.payee {
            return Err(refused("receiver_mismatch"));
        }
        if config.receiver_authorizer != self.payee {
            return Err(refused("receiver_authorizer_mismatch"));
        }
        if config.withdraw_delay != self.withdraw_delay {
            return Err(refused("withdraw_delay_mismatch"));
        }
        Ok(())
    }

    /// A channel as the chain has it.
    async fn look(&self, id: ChannelId) -> Result<OnChain, Refusal> {
        let settlement = &self.network.settlement;
        let state = settlement.channel(id).await.map_err(Refusal::chain)?;
        let withdrawal = settlement.pending_withdrawal(id).await.map_err(Refusal::chain)?;
        let refund_nonce = settlement.refund_nonce(id).await.map_err(Refusal::chain)?;
        Ok(OnChain { balance: state.balance, claimed: state.total_claimed, withdrawal, refund_nonce })
    }

    async fn request(
        self: &Arc<Self>,
        turn: Turn,
        deposit: Option<Deposit>,
        visit: Visit,
    ) -> Result<Response<Body>, Refusal> {
        let ceiling = turn.voucher.voucher.max_claimable_amount;
        if turn.account.charged.checked_add(visit.quote.amount) != Some(ceiling) {
            return Err(turn.corrective());
        }
        // What the payer takes back can be gone before it is claimed.
        let mut available = turn.on_chain.available();
        let mut funding = None;
        if let Some(deposit) = deposit {
            available = available.saturating_add(deposit.amount);
            funding = Some(self.check_deposit(&turn.account.config, &deposit).await?);
        }
        if ceiling > available {
            return Err(refused("cumulative_exceeds_balance"));
        }
        self.books.check_room(turn.id).map_err(|()| GatewayError::Busy)?;

        let answer = visit.next.run(visit.request).await;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        let measured = visit.quote.measure(answer).await;
        let (mut answer, cost) = measured.map_err(|_| GatewayError::ShuttingDown)?;
        let toll = Arc::clone(self);
        // What was begun is seen to its end, also if the caller leaves.
        let booking = self.inner.tasks.spawn(async move { toll.book(turn, funding, cost).await });
        let settled = booking.await.map_err(|_| GatewayError::ShuttingDown)??;
        put(&mut answer, RESPONSE_HEADER, &encode(&settled));
        Ok(answer)
    }

    async fn check_deposit(&self, config: &ChannelConfig, deposit: &Deposit) -> Result<Funding, Refusal> {
        let Some(authorization) = &deposit.authorization.erc3009_authorization else {
            return Err(refused("erc3009_authorization_required"));
        };
        let Erc3009Authorization { valid_after, valid_before, salt, signature } = *authorization;
        let signed =
            SignedDeposit { config: *config, amount: deposit.amount, valid_after, valid_before, salt, signature };
        let now = clock::unix_seconds();
        if deposit.amount == Amount::ZERO {
            return Err(refused("deposit_payload"));
        }
        if valid_after >= now {
            return Err(refused("payload_authorization_valid_after"));
        }
        if valid_before < now.saturating_add(VALID_S_MIN) {
            return Err(refused("payload_authorization_valid_before"));
        }
        let consent = self.network.settlement.authorization(&signed);
        if signature.verify(&consent.digest(&self.token), config.payer).is_err() {
            return Err(refused("receive_authorization_signature"));
        }
        let hold = self.holds.funds(config.payer, consent.nonce, deposit.amount);
        let hold = hold.ok_or_else(|| refused("deposit_simulation_failed"))?;
        self.check_funds(config.payer, hold.held, "invalid_batch_settlement_evm_insufficient_balance").await?;
        let checked = self.network.settlement.check_deposit(&signed).await;
        checked.map_err(|e| Refusal::checked(e, "invalid_batch_settlement_evm_deposit_simulation_failed"))?;
        Ok(Funding { deposit: signed, _hold: hold })
    }

    /// Makes the deposit and notes the charge, in this order: a voucher counts for what is in the channel.
    async fn book(&self, turn: Turn, funding: Option<Funding>, cost: Amount) -> Result<SettleResponse, Refusal> {
        let Turn { id, mut account, mut on_chain, voucher, hold } = turn;
        let payer = account.config.payer;
        let mut settled = self.settled(payer);
        if let Some(Funding { deposit, _hold }) = funding {
            let receipt = self.network.settlement.deliver_deposit(&deposit).await.map_err(|error| {
                tracing::warn!(%payer, %error, "a deposit was promised and could not be made");
                Refusal::Failed("invalid_batch_settlement_evm_deposit_transaction_failed".into(), payer)
            })?;
            settled.transaction = format!("{:#x}", receipt.transaction_hash);
            settled.amount = deposit.amount.to_string();
            on_chain = self.look(id).await?;
        }
        // Within the voucher's ceiling, which was checked to be a number.
        account.charged = account.charged.saturating_add(cost);
        account.voucher = Some((voucher.voucher.max_claimable_amount, voucher.signature));
        let state = account.state(id, &on_chain);
        self.books.put(id, account, on_chain).await.map_err(GatewayError::from)?;
        drop(hold);
        settled.extra = Some(SettleExtra { charged_amount: Some(cost), channel_state: state });
        Ok(settled)
    }

    /// Claims what the channel owes and gives back the rest of it, or `wished` of the rest.
    async fn refund(self: &Arc<Self>, turn: Turn, wished: Option<Amount>) -> Result<Response<Body>, Refusal> {
        if turn.voucher.voucher.max_claimable_amount != turn.account.charged {
            return Err(turn.corrective());
        }
        let payer = turn.account.config.payer;
        let left = turn.on_chain.balance.saturating_sub(turn.account.charged);
        if left == Amount::ZERO {
            return Err(Refusal::Failed("invalid_batch_settlement_evm_refund_no_balance".into(), payer));
        }
        let amount = wished.unwrap_or(left).min(left);
        if amount == Amount::ZERO {
            return Err(refused("refund_amount_invalid"));
        }
        let toll = Arc::clone(self);
        let task = self.inner.tasks.spawn(async move { toll.give_back(turn, amount).await });
        let settled = task.await.map_err(|_| GatewayError::ShuttingDown)??;
        let mut response = Response::new(Body::from("{}"));
        response.headers_mut().insert(CONTENT_TYPE, axum::http::HeaderValue::from_static("application/json"));
        put(&mut response, RESPONSE_HEADER, &encode(&settled));
        Ok(self.counted(response))
    }

    async fn give_back(&self, turn: Turn, amount: Amount) -> Result<SettleResponse, Refusal> {
        let Turn { id, account, on_chain, voucher, hold } = turn;
        let payer = account.config.payer;
        let failed = |error: assay_chain::ChainError| {
            tracing::warn!(%payer, %error, "a channel was not refunded");
            Refusal::Failed("invalid_batch_settlement_evm_refund_transaction_failed".into(), payer)
        };
        if account.charged > on_chain.claimed {
            // The refund's voucher is for just what is owed.
            let row = ClaimRow { config: account.config, voucher, total_claimed: account.charged };
            let report = self.network.settlement.claim(&[row]).await.map_err(failed)?;
            if let Some((_, error)) = report.refused.into_iter().next() {
                return Err(failed(error));
            }
        }
        let receipt = self.network.settlement.refund(&account.config, amount).await.map_err(failed)?;
        let on_chain = self.look(id).await?;
        let state = account.state(id, &on_chain);
        self.books.put(id, account, on_chain).await.map_err(GatewayError::from)?;
        drop(hold);
        Ok(SettleResponse {
            transaction: format!("{:#x}", receipt.transaction_hash),
            amount: amount.to_string(),
            extra: Some(SettleExtra { charged_amount: None, channel_state: state }),
            ..self.settled(payer)
        })
    }
}

impl Turn {
    /// With the payer's own signature, if there is one: it need not believe anything else.
    fn corrective(&self) -> Refusal {
        let voucher = self.account.voucher.filter(|(ceiling, _)| *ceiling >= self.account.charged);
        let voucher = voucher.map(|(signed_max_claimable, signature)| VoucherState { signed_max_claimable, signature });
        Refusal::Corrective(Box::new(self.account.state(self.id, &self.on_chain)), voucher)
    }
}

impl Account {
    fn state(&self, channel_id: ChannelId, on_chain: &OnChain) -> ChannelState {
        ChannelState {
            channel_id,
            balance: on_chain.balance,
            total_claimed: on_chain.claimed,
            withdraw_requested_at: on_chain.withdrawal.map_or(0, |withdrawal| withdrawal.initiated_at),
            refund_nonce: on_chain.refund_nonce.to_string(),
            charged_cumulative_amount: self.charged,
        }
    }
}
