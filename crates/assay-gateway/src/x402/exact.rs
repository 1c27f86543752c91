//! Scheme `exact`: one ERC-3009 transfer a request, delivered by the gateway once the answer is there.

use super::{Refusal, Toll, VALID_S_MIN, Visit, put};
use crate::clock;
use crate::error::GatewayError;
use assay_api::x402::{ExactPayment, RESPONSE_HEADER, SettleResponse, encode};
use assay_chain::{Eip712Domain, TransferAuthorization};
use assay_types::{Address, Amount, Signature};
use axum::body::Body;
use axum::http::Response;
use std::sync::Arc;

impl Toll {
    /// Checks a transfer in full, has the request answered, delivers the transfer, and only then lets the answer go.
    pub(super) async fn exact(
        self: &Arc<Self>,
        payment: ExactPayment,
        visit: Visit,
    ) -> Result<Response<Body>, Refusal> {
        let fields = payment.authorization;
        let transfer = TransferAuthorization {
            from: fields.from,
            to: fields.to,
            value: fields.value,
            valid_after: fields.valid_after,
            valid_before: fields.valid_before,
            nonce: fields.nonce,
        };
        let signature = payment.signature;
        let terms =
            Terms { payee: self.payee, amount: visit.quote.amount, token: &self.token, now: clock::unix_seconds() };
        terms.check(&transfer, &signature).map_err(Refusal::unpaid)?;
        let hold = self.holds.funds(transfer.from, transfer.nonce, transfer.value);
        let hold = hold.ok_or_else(|| Refusal::unpaid("invalid_exact_evm_nonce_already_used"))?;
        self.check_funds(transfer.from, hold.held, "insufficient_funds").await?;
        // Also whether the transfer was made before: the token keeps the nonces.
        let checked = self.network.token.check_transfer(&transfer, &signature).await;
        checked.map_err(|e| Refusal::checked(e, "invalid_exact_evm_transaction_simulation_failed"))?;

        let mut answer = visit.next.run(visit.request).await;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        // A transaction that was begun is seen to its end, also if the caller leaves.
        let token = self.network.token.clone();
        let delivery = self.inner.tasks.spawn(async move {
            let delivered = token.deliver_transfer(&transfer, &signature).await;
            drop(hold);
            delivered
        });
        let delivered = delivery.await.map_err(|_| GatewayError::ShuttingDown)?;
        let receipt = delivered.map_err(|error| {
            tracing::warn!(payer = %transfer.from, %error, "a payment was promised and could not be made");
            Refusal::Failed("invalid_exact_evm_transaction_failed".into(), transfer.from)
        })?;
        let settled = SettleResponse {
            transaction: format!("{:#x}", receipt.transaction_hash),
            amount: transfer.value.to_string(),
            ..self.settled(transfer.from)
        };
        put(&mut answer, RESPONSE_HEADER, &encode(&settled));
        Ok(answer)
    }
}

/// What a transfer has to be.
struct Terms<'a> {
    payee: Address,
    amount: Amount,
    token: &'a Eip712Domain,
    now: u64,
}

impl Terms<'_> {
    fn check(&self, transfer: &TransferAuthorization, signature: &Signature) -> Result<(), &'static str> {
        if transfer.to != self.payee {
            return Err("invalid_exact_evm_payload_recipient_mismatch");
        }
        if transfer.value != self.amount {
            return Err("invalid_exact_evm_payload_authorization_value");
        }
        if transfer.valid_after >= self.now {
            return Err("invalid_exact_evm_payload_authorization_valid_after");
        }
        if transfer.valid_before < self.now.saturating_add(VALID_S_MIN) {
            return Err("invalid_exact_evm_payload_authorization_valid_before");
        }
        if signature.verify(&transfer.digest(self.token), transfer.from).is_err() {
            return Err("invalid_exact_evm_payload_signature");
        }
        Ok(())
    }
}
