//! Payment channels: deposit, claim, settle, withdraw.

use super::{
    ChainClient, ChainError,
    token::{ReceiveAuthorization, Token},
};
use crate::bindings::settlement::{BatchSettlement, IBatchSettlement};
use alloy_primitives::{Address, B256, Bytes, U256, aliases::U40};
use alloy_rpc_types_eth::TransactionReceipt;
use alloy_signer_local::PrivateKeySigner;
use alloy_sol_types::SolValue;
use assay_types::{Amount, ChannelConfig, ChannelId, Signature, SignedVoucher, SigningDomain, settlement_domain};

/// Rows of one claim transaction: about 1.5 M gas.
const CLAIM_ROWS_MAX: usize = 50;

/// A deposit that the payer agrees to with one signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DepositRequest {
    /// The channel; created by its first deposit.
    pub config: ChannelConfig,
    /// How much to add.
    pub amount: Amount,
    /// The signature is void from this Unix second on.
    pub valid_before: u64,
    /// The same salt twice deposits once: the second attempt reverts.
    pub salt: B256,
}

/// A payer's consent to a deposit: the signature over a [`ReceiveAuthorization`] for the collector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SignedDeposit {
    /// The channel; created by its first deposit.
    pub config: ChannelConfig,
    /// How much to add.
    pub amount: Amount,
    /// Valid strictly after this Unix second.
    pub valid_after: u64,
    /// Valid strictly before this Unix second.
    pub valid_before: u64,
    /// Names the deposit among others into the channel.
    pub salt: B256,
    /// By the channel's payer, in the token's domain.
    pub signature: Signature,
}

/// A voucher to claim on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimRow {
    /// The channel.
    pub config: ChannelConfig,
    /// The payer's latest.
    pub voucher: SignedVoucher,
    /// What is claimed, cumulative; at most the voucher's ceiling.
    pub total_claimed: Amount,
}

/// What became of a claim.
#[derive(Debug, Default)]
pub struct ClaimReport {
    /// Channels whose claim is booked (or was already).
    pub claimed: Vec<ChannelId>,
    /// Channels whose row the contract refused, and why.
    pub refused: Vec<(ChannelId, ChainError)>,
}

/// A channel's money.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChannelState {
    /// Deposited, less refunds and withdrawals.
    pub balance: Amount,
    /// Claimed so far, cumulative.
    pub total_claimed: Amount,
}

/// A pending withdrawal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WithdrawalState {
    /// Asked for.
    pub amount: Amount,
    /// Unix seconds.
    pub initiated_at: u64,
}

/// Sums over a receiver's channels in one token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReceiverState {
    /// Claimed.
    pub total_claimed: Amount,
    /// Of that, sent to the receiver.
    pub total_settled: Amount,
}

/// The settlement contract at an address, with the collector for ERC-3009 deposits.
#[derive(Clone)]
pub struct Settlement {
    client: ChainClient,
    /// Where it is.
    pub address: Address,
    /// Where its ERC-3009 collector is.
    pub collector: Address,
}

impl Settlement {
    /// Does not ask the chain.
    #[must_use]
    pub fn new(client: ChainClient, address: Address, collector: Address) -> Self {
        Self { client, address, collector }
    }

    /// The domain of vouchers and channel ids.
    #[must_use]
    pub fn domain(&self) -> SigningDomain {
        settlement_domain(self.client.chain_id(), self.address)
    }

    /// Signs with `payer` and sends with the client's key (they may be the same; the payer needs no gas).
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn deposit(
        &self,
        request: &DepositRequest,
        payer: &PrivateKeySigner,
    ) -> Result<TransactionReceipt, ChainError> {
        let DepositRequest { config, amount, valid_before, salt } = *request;
        let signature = Signature([0; 65]);
        let mut signed = SignedDeposit { config, amount, valid_after: 0, valid_before, salt, signature };
        let token = Token::new(self.client.clone(), config.token);
        signed.signature = self.authorization(&signed).sign(&token.domain().await?, payer)?;
        self.deliver_deposit(&signed).await
    }

    /// What a payer signs to consent to a deposit.
    #[must_use]
    pub fn authorization(&self, deposit: &SignedDeposit) -> ReceiveAuthorization {
        let channel = deposit.config.id(&self.domain());
        ReceiveAuthorization {
            from: deposit.config.payer,
            to: self.collector,
            value: deposit.amount,
            valid_after: deposit.valid_after,
            valid_before: deposit.valid_before,
            nonce: ReceiveAuthorization::deposit_nonce(channel, deposit.salt),
        }
    }

    fn deposit_call(&self, deposit: &SignedDeposit) -> Result<BatchSettlement::depositCall, ChainError> {
        let data = (
            U256::from(deposit.valid_after),
            U256::from(deposit.valid_before),
            U256::from_be_bytes(deposit.salt.0),
            Bytes::copy_from_slice(&deposit.signature.0),
        );
        Ok(BatchSettlement::depositCall {
            config: sol_config(&deposit.config)?,
            amount: deposit.amount.0,
            collector: self.collector,
            collectorData: data.abi_encode_params().into(),
        })
    }

    /// Whether a deposit that its payer signed would be done now. Nothing is sent.
    ///
    /// # Errors
    /// [`ChainError::Reverted`] says what is wrong with it.
    pub async fn check_deposit(&self, deposit: &SignedDeposit) -> Result<(), ChainError> {
        self.client.call(self.address, &self.deposit_call(deposit)?).await.map(drop)
    }

    /// Delivers a deposit that its payer signed.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn deliver_deposit(&self, deposit: &SignedDeposit) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &self.deposit_call(deposit)?).await
    }

    /// Claims in transactions of at most 50 rows. Where one bad row would undo the others, the rows of that
    /// transaction are sent one by one.
    ///
    /// # Errors
    /// [`ChainError`] if the chain cannot be reached; refused rows are in the report. Rows claimed before stay so, and
    /// claiming them again changes nothing.
    pub async fn claim(&self, rows: &[ClaimRow]) -> Result<ClaimReport, ChainError> {
        let mut report = ClaimReport::default();
        for batch in rows.chunks(CLAIM_ROWS_MAX) {
            match self.claim_once(batch).await {
                Err(ChainError::Reverted(_)) if batch.len() > 1 => {
                    for row in batch.chunks(1) {
                        let result = self.claim_once(row).await;
                        self.record(&mut report, row, result)?;
                    }
                }
                result => self.record(&mut report, batch, result)?,
            }
        }
        Ok(report)
    }

    fn record(
        &self,
        report: &mut ClaimReport,
        rows: &[ClaimRow],
        result: Result<TransactionReceipt, ChainError>,
    ) -> Result<(), ChainError> {
        let mut ids = rows.iter().map(|row| row.voucher.voucher.channel_id);
        match result {
            Ok(_) => report.claimed.extend(ids),
            Err(error @ (ChainError::Reverted(_) | ChainError::BadArgument(_))) => {
                report.refused.extend(ids.next().map(|id| (id, error)));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn claim_once(&self, rows: &[ClaimRow]) -> Result<TransactionReceipt, ChainError> {
        let claims: Result<Vec<_>, ChainError> = rows.iter().map(sol_claim).collect();
        self.client.send(self.address, &BatchSettlement::claimCall { voucherClaims: claims? }).await
    }

    /// Sends everything claimed and not yet settled to `receiver`.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn settle(&self, receiver: Address, token: Address) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &BatchSettlement::settleCall { receiver, token }).await
    }

    /// Starts a withdrawal; the client's key is the payer's or its authorizer's.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn initiate_withdraw(
        &self,
        config: &ChannelConfig,
        amount: Amount,
    ) -> Result<TransactionReceipt, ChainError> {
        let call = BatchSettlement::initiateWithdrawCall { config: sol_config(config)?, amount: amount.0 };
        self.client.send(self.address, &call).await
    }

    /// Ends a withdrawal after the channel's delay.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `WithdrawDelayNotElapsed` before that.
    pub async fn finalize_withdraw(&self, config: &ChannelConfig) -> Result<TransactionReceipt, ChainError> {
        let call = BatchSettlement::finalizeWithdrawCall { config: sol_config(config)? };
        self.client.send(self.address, &call).await
    }

    /// The receiver's side gives back what is not claimed, up to `amount`.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn refund(&self, config: &ChannelConfig, amount: Amount) -> Result<TransactionReceipt, ChainError> {
        let call = BatchSettlement::refundCall { config: sol_config(config)?, amount: amount.0 };
        self.client.send(self.address, &call).await
    }

    /// How many refunds a channel has had, tried ones included.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn refund_nonce(&self, channel: ChannelId) -> Result<U256, ChainError> {
        self.client.call(self.address, &BatchSettlement::refundNonceCall { channelId: channel.0 }).await
    }

    /// A channel's money; zero for one that does not exist.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn channel(&self, channel: ChannelId) -> Result<ChannelState, ChainError> {
        let state = self.client.call(self.address, &BatchSettlement::channelsCall { channelId: channel.0 }).await?;
        Ok(ChannelState { balance: Amount(state.balance), total_claimed: Amount(state.totalClaimed) })
    }

    /// A channel's money in the last block that no reorganization undoes.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn settled_channel(&self, channel: ChannelId) -> Result<ChannelState, ChainError> {
        let call = BatchSettlement::channelsCall { channelId: channel.0 };
        let state = self.client.call_settled(self.address, &call).await?;
        Ok(ChannelState { balance: Amount(state.balance), total_claimed: Amount(state.totalClaimed) })
    }

    /// What was to be withdrawn from a channel in the last block that no reorganization undoes; 0 if nothing.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn settled_withdrawal(&self, channel: ChannelId) -> Result<Amount, ChainError> {
        let call = BatchSettlement::pendingWithdrawalsCall { channelId: channel.0 };
        let state = self.client.call_settled(self.address, &call).await?;
        Ok(if state.initiatedAt.is_zero() { Amount::ZERO } else { Amount(state.amount) })
    }

    /// A channel's pending withdrawal.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn pending_withdrawal(&self, channel: ChannelId) -> Result<Option<WithdrawalState>, ChainError> {
        let call = BatchSettlement::pendingWithdrawalsCall { channelId: channel.0 };
        let state = self.client.call(self.address, &call).await?;
        let initiated_at: u64 = state.initiatedAt.to();
        Ok((initiated_at != 0).then_some(WithdrawalState { amount: Amount(state.amount), initiated_at }))
    }

    /// Sums of a receiver in one token.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn receiver(&self, receiver: Address, token: Address) -> Result<ReceiverState, ChainError> {
        let state = self.client.call(self.address, &BatchSettlement::receiversCall { receiver, token }).await?;
        Ok(ReceiverState { total_claimed: Amount(state.totalClaimed), total_settled: Amount(state.totalSettled) })
    }
}

fn sol_config(config: &ChannelConfig) -> Result<IBatchSettlement::ChannelConfig, ChainError> {
    if !config.is_well_formed() {
        return Err(ChainError::BadArgument(format!("withdraw delay {} does not fit 40 bits", config.withdraw_delay)));
    }
    Ok(IBatchSettlement::ChannelConfig {
        payer: config.payer,
        payerAuthorizer: config.payer_authorizer,
        receiver: config.receiver,
        receiverAuthorizer: config.receiver_authorizer,
        token: config.token,
        withdrawDelay: U40::from(config.withdraw_delay),
        salt: config.salt,
    })
}

fn sol_claim(row: &ClaimRow) -> Result<IBatchSettlement::VoucherClaim, ChainError> {
    Ok(IBatchSettlement::VoucherClaim {
        voucher: IBatchSettlement::Voucher {
            channel: sol_config(&row.config)?,
            maxClaimableAmount: row.voucher.voucher.max_claimable_amount.0,
        },
        signature: Bytes::copy_from_slice(&row.voucher.signature.0),
        totalClaimed: row.total_claimed.0,
    })
}
