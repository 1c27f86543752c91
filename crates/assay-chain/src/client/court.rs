//! The court: what a conviction costs and brings, proofs of one transaction, and the game over one answer.
//!
//! Only what the contracts say: who moves what in a dispute is decided by the players (`assay-verify`).

use super::{
    ChainClient, ChainError, TransactionReceipt, follow::SPAN_MAX, parameters::Parameters, registry::Registry,
    token::Token,
};
use crate::bindings::{
    court::{Court as CourtContract, IBatchSettlement, ReceiptLib as CourtReceipt},
    trial::{ReceiptLib, Trial as TrialContract},
};
use alloy_primitives::{Address, B256, Bytes, Log, aliases::U40, keccak256};
use alloy_rpc_types_eth::Filter;
use alloy_sol_types::{SolCall, SolEvent, SolValue};
use assay_types::{Amount, ChannelConfig, ChannelId, ProviderId, Receipt, RequestHash, SignedReceipt};

pub use crate::bindings::trial::ITrial::{Case, Dispute, Opening, Shown, Spot};

/// Phases of a dispute, in the order of the contract.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "the contract's names")]
pub enum Phase {
    None,
    RevealPositions,
    PickPosition,
    RevealOps,
    PickOp,
    RevealLeaves,
    PickLeaf,
    RevealNumbers,
    PickNumber,
    RevealSteps,
    PickStep,
    RevealOperands,
    Convict,
    Guilty,
    Closed,
}

impl Phase {
    const ALL: [Self; 15] = [
        Self::None,
        Self::RevealPositions,
        Self::PickPosition,
        Self::RevealOps,
        Self::PickOp,
        Self::RevealLeaves,
        Self::PickLeaf,
        Self::RevealNumbers,
        Self::PickNumber,
        Self::RevealSteps,
        Self::PickStep,
        Self::RevealOperands,
        Self::Convict,
        Self::Guilty,
        Self::Closed,
    ];

    /// By the contract's number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Somebody is to move.
    #[must_use]
    pub fn is_open(self) -> bool {
        self != Self::None && self < Self::Guilty
    }

    /// The provider is to move, if the dispute is open.
    #[must_use]
    pub fn is_providers(self) -> bool {
        self.is_open() && self as u8 % 2 == 1
    }
}

/// What holds at the court now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CourtTerms {
    /// What a challenger puts up.
    pub bond: Amount,
    /// What one request costs a convicted provider, as far as the registry's cap allows.
    pub penalty: Amount,
    /// Seconds for each move.
    pub move_window_s: u64,
    /// The challenger's share of a penalty, in basis points.
    pub reward_bps: u16,
    /// The most of a penalty that goes back to who paid for the answer, in basis points.
    pub refund_bps: u16,
    /// Number of these terms; a dispute keeps those of its opening.
    pub version: u16,
    /// Where they stand and can be changed.
    pub parameters: Address,
    /// Where the rest goes.
    pub sink: Address,
    /// Whose stake it takes.
    pub registry: Address,
    /// Bond and stake.
    pub token: Address,
}

/// How a dispute or a proof ended, from the events of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The provider lost so much stake.
    Convicted {
        /// Taken from its stake.
        slashed: Amount,
        /// Of the terms that held.
        version: u16,
    },
    /// The challenger lost its bond.
    Acquitted,
}

/// The court and its trial.
#[derive(Clone)]
pub struct Court {
    client: ChainClient,
    /// Holds the money.
    pub address: Address,
    /// Plays the game.
    pub trial: Address,
}

impl Court {
    /// Does not ask the chain.
    #[must_use]
    pub fn new(client: ChainClient, address: Address, trial: Address) -> Self {
        Self { client, address, trial }
    }

    /// The court that can slash a registry's stakes; `None` if what can is no court.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn of_registry(client: ChainClient, registry: Address) -> Result<Option<Self>, ChainError> {
        let slasher = Registry::new(client.clone(), registry).slasher().await?;
        let found = async {
            // A court of before there were parameters has other terms and other moves.
            client.call(slasher, &CourtContract::parametersCall {}).await?;
            client.call(slasher, &CourtContract::trialCall {}).await
        };
        match found.await {
            Ok(trial) => Ok(Some(Self::new(client.clone(), slasher, trial))),
            Err(ChainError::NoContract { .. } | ChainError::BadReturn { .. } | ChainError::Reverted(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The block in which a dispute was opened, searched from the head back to block `since`.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn block_of(&self, dispute: B256, since: u64) -> Result<Option<u64>, ChainError> {
        let filter = Filter::new().address(self.trial).event_signature(Challenge::EVENT).topic1(dispute);
        Ok(self.last_log(&filter, since).await?.and_then(|log| log.block_number))
    }

    /// The conviction of a provider for a request, searched from the head back to block `since`.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn conviction(
        &self,
        provider: ProviderId,
        request: RequestHash,
        since: u64,
    ) -> Result<Option<Outcome>, ChainError> {
        let event = CourtContract::Convicted::SIGNATURE_HASH;
        let filter = Filter::new().address(self.address).event_signature(event).topic2(offence(provider, request));
        Ok(self.last_log(&filter, since).await?.and_then(|log| convicted(&log.inner)))
    }

    /// The first log of the last range that has any.
    async fn last_log(&self, filter: &Filter, since: u64) -> Result<Option<alloy_rpc_types_eth::Log>, ChainError> {
        let mut span = SPAN_MAX;
        let mut end = Some(self.client.block_number().await?);
        while let Some(last) = end.filter(|last| *last >= since) {
            let first = last.saturating_sub(span - 1).max(since);
            match self.client.logs(&filter.clone().from_block(first).to_block(last)).await {
                Ok(logs) => match logs.into_iter().next() {
                    Some(log) => return Ok(Some(log)),
                    None => end = first.checked_sub(1),
                },
                // What endpoints say of a range that is too long has no common form.
                Err(ChainError::Refused { .. }) if span > 1 => span = (span / 4).max(1),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Where its terms stand.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn parameters(&self) -> Result<Parameters, ChainError> {
        let address = self.client.call(self.address, &CourtContract::parametersCall {}).await?;
        Ok(Parameters::new(self.client.clone(), address))
    }

    /// What holds there now.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn terms(&self) -> Result<CourtTerms, ChainError> {
        let parameters = self.parameters().await?;
        let terms = parameters.current().await?;
        Ok(CourtTerms {
            bond: terms.bond,
            penalty: terms.penalty,
            move_window_s: self.client.call(self.address, &CourtContract::moveWindowCall {}).await?.into(),
            reward_bps: terms.reward_bps,
            refund_bps: terms.refund_bps,
            version: terms.version,
            parameters: parameters.address,
            sink: self.client.call(self.address, &CourtContract::sinkCall {}).await?,
            registry: self.client.call(self.address, &CourtContract::registryCall {}).await?,
            token: self.client.call(self.address, &CourtContract::tokenCall {}).await?,
        })
    }

    /// What the court owes an account: bonds that came back, rewards.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn owed(&self, account: Address) -> Result<Amount, ChainError> {
        let owed = self.client.call(self.address, &CourtContract::owedCall { account }).await?;
        super::token::amount(owed)
    }

    /// Whether a provider was convicted for a request.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn is_convicted(&self, provider: ProviderId, request: RequestHash) -> Result<bool, ChainError> {
        self.client.call(self.address, &CourtContract::convictedCall { offence: offence(provider, request) }).await
    }

    /// What went back to the payer of a punished answer; `None` as long as nobody has had it paid back.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn refunded(&self, provider: ProviderId, request: RequestHash) -> Result<Option<Amount>, ChainError> {
        let call = CourtContract::refundedCall { offence: offence(provider, request) };
        let found = self.client.call(self.address, &call).await?;
        Ok(found.isPaid.then_some(Amount(found.amount)))
    }

    /// Has the payer of a punished receipt paid back; the court owes it the amount then. `slashed` and `version` are
    /// those of the conviction.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NothingHeld`, `NotTheChannel`.
    pub async fn refund(
        &self,
        provider: ProviderId,
        receipt: &Receipt,
        channel: &ChannelConfig,
        (slashed, version): (Amount, u16),
    ) -> Result<TransactionReceipt, ChainError> {
        let call = CourtContract::refundCall {
            receipt: for_court(receipt),
            provider: provider.0,
            config: config_words(channel),
            slashed: slashed.0,
            version,
        };
        self.client.send(self.address, &call).await
    }

    /// Pays out what the client is owed.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NothingOwed`.
    pub async fn withdraw(&self) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &CourtContract::withdrawCall {}).await
    }

    /// What of a provider's stake can be taken now.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn slashable(&self, provider: ProviderId) -> Result<Amount, ChainError> {
        let registry = self.client.call(self.address, &CourtContract::registryCall {}).await?;
        Registry::new(self.client.clone(), registry).slashable_of(provider).await
    }

    // ---------------------------------------------------------------- proofs of one transaction

    /// Two receipts for one request, of as many tokens, with different answers.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NotEquivocation`.
    pub async fn convict_equivocation(
        &self,
        a: &SignedReceipt,
        b: &SignedReceipt,
    ) -> Result<TransactionReceipt, ChainError> {
        let call = CourtContract::convictEquivocationCall {
            a: for_court(&a.receipt),
            signatureA: signature(a),
            b: for_court(&b.receipt),
            signatureB: signature(b),
        };
        self.client.send(self.address, &call).await
    }

    /// A receipt that counts other input tokens than its job has, or names another model. `job`: canonical bytes.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NoFault`.
    pub async fn convict_input(&self, receipt: &SignedReceipt, job: Vec<u8>) -> Result<TransactionReceipt, ChainError> {
        let (receipt, signature) = (for_court(&receipt.receipt), signature(receipt));
        self.client.send(self.address, &CourtContract::convictInputCall { receipt, signature, job: job.into() }).await
    }

    /// A receipt that counts other output tokens than its answer has. `response`: canonical bytes.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NoFault`.
    pub async fn convict_output(
        &self,
        receipt: &SignedReceipt,
        response: Vec<u8>,
    ) -> Result<TransactionReceipt, ChainError> {
        let (receipt, signature) = (for_court(&receipt.receipt), signature(receipt));
        let call = CourtContract::convictOutputCall { receipt, signature, response: response.into() };
        self.client.send(self.address, &call).await
    }

    // ---------------------------------------------------------------- claims above receipts

    /// Asks the provider of a channel for a receipt over what it claimed from it; costs the bond if it has one.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NoFault` if nothing was claimed.
    pub async fn challenge_claim(&self, config: &ChannelConfig) -> Result<TransactionReceipt, ChainError> {
        let config = config_words(config);
        self.client.send(self.address, &CourtContract::challengeClaimCall { config }).await
    }

    /// Shows the receipt that was asked for.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NoFault` if it covers less than was claimed, `TooLate`.
    pub async fn justify_claim(&self, receipt: &SignedReceipt) -> Result<TransactionReceipt, ChainError> {
        let call = CourtContract::justifyClaimCall {
            channelId: receipt.receipt.channel_id.0,
            receipt: for_court(&receipt.receipt),
            signature: signature(receipt),
        };
        self.client.send(self.address, &call).await
    }

    /// Convicts a provider that showed no receipt in time.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NotLate`.
    pub async fn convict_claim(&self, channel: ChannelId) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &CourtContract::convictClaimCall { channelId: channel.0 }).await
    }

    /// Until when a claim can be justified, in Unix seconds; `None` if nobody asks.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn claim_deadline(&self, channel: ChannelId) -> Result<Option<u64>, ChainError> {
        let call = CourtContract::claimDisputesCall { channelId: channel.0 };
        let found = self.client.call(self.address, &call).await?;
        Ok((!found.challenger.is_zero()).then_some(found.deadline.into()))
    }

    // ---------------------------------------------------------------- the game

    /// The id of the dispute that a challenger's case has.
    #[must_use]
    pub fn dispute_id(challenger: Address, case: &Case) -> B256 {
        keccak256((challenger, case.clone()).abi_encode())
    }

    /// Lets the court take a bond from the client's account, unless it may already or has one there; `None` if no
    /// transaction was needed.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn prepare_bond(&self, terms: &CourtTerms) -> Result<Option<TransactionReceipt>, ChainError> {
        if self.owed(self.client.address()).await? >= terms.bond {
            return Ok(None);
        }
        let token = Token::new(self.client.clone(), terms.token);
        if token.allowance(self.client.address(), self.address).await? >= terms.bond {
            return Ok(None);
        }
        token.approve(self.address, terms.bond).await.map(Some)
    }

    /// Opens a dispute; the bond is taken. `manifest`: canonical bytes.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NotTheCase`, `AlreadyChallenged`, `AlreadyConvicted`, `NothingAtStake`.
    pub async fn challenge(
        &self,
        receipt: &SignedReceipt,
        manifest: Vec<u8>,
        case: Case,
    ) -> Result<TransactionReceipt, ChainError> {
        let call = TrialContract::challengeCall {
            receipt: for_trial(&receipt.receipt),
            signature: signature(receipt),
            manifest: manifest.into(),
            content: case,
        };
        self.client.send(self.trial, &call).await
    }

    /// A dispute as it stands; its phase is `None` if there is none.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn dispute(&self, id: B256) -> Result<Dispute, ChainError> {
        self.client.call(self.trial, &TrialContract::disputeCall { id }).await
    }

    /// Sends moves, several in one transaction. None may be empty.
    ///
    /// # Errors
    /// [`ChainError`], with the trial's errors as reverts.
    pub async fn play(&self, moves: &[Bytes]) -> Result<TransactionReceipt, ChainError> {
        let data = match moves {
            [one] => one.clone(),
            several => TrialContract::batchCall { calls: several.to_vec() }.abi_encode().into(),
        };
        self.client.send_data(self.trial, data).await
    }

    /// Ends a dispute whose next mover is late.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NotLate`.
    pub async fn timeout(&self, dispute: B256) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.trial, &TrialContract::timeoutCall { id: dispute }).await
    }

    /// Gives a dispute up.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NotYourMove` for who is no party to it.
    pub async fn concede(&self, dispute: B256) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.trial, &TrialContract::concedeCall { id: dispute }).await
    }

    /// Has a provider punished that was found guilty.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn punish(&self, dispute: B256, case: Case) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.trial, &TrialContract::punishCall { id: dispute, content: case }).await
    }

    /// What the events of a transaction say about the end of a dispute or proof.
    #[must_use]
    pub fn outcome(&self, receipt: &TransactionReceipt) -> Option<Outcome> {
        receipt.inner.logs().iter().filter(|log| log.inner.address == self.address).find_map(|log| {
            convicted(&log.inner)
                .or_else(|| CourtContract::Acquitted::decode_log(&log.inner).is_ok().then_some(Outcome::Acquitted))
        })
    }
}

/// What a dispute is opened with, from the event that says so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Challenge {
    /// The dispute.
    pub dispute: B256,
    /// Who put up the bond.
    pub challenger: Address,
    /// Whose answer it is about.
    pub provider: ProviderId,
    /// What it is about.
    pub case: Case,
}

impl Challenge {
    /// Hash of the event's signature.
    pub const EVENT: B256 = TrialContract::Challenged::SIGNATURE_HASH;

    /// Reads the event; `None` if it is another one.
    #[must_use]
    pub fn from_log(log: &alloy_rpc_types_eth::Log) -> Option<Self> {
        let event = TrialContract::Challenged::decode_log(&log.inner).ok()?;
        Some(Self {
            dispute: event.dispute,
            challenger: event.challenger,
            provider: ProviderId(event.provider),
            case: event.content.clone(),
        })
    }
}

/// A provider is asked to show a receipt over what it claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClaimChallenge {
    /// The channel.
    pub channel: ChannelId,
    /// Whose claim it is about.
    pub provider: ProviderId,
    /// What was claimed by then.
    pub claimed: Amount,
}

impl ClaimChallenge {
    /// Hash of the event's signature.
    pub const EVENT: B256 = CourtContract::ClaimChallenged::SIGNATURE_HASH;

    /// Reads the event; `None` if it is another one.
    #[must_use]
    pub fn from_log(log: &alloy_rpc_types_eth::Log) -> Option<Self> {
        let event = CourtContract::ClaimChallenged::decode_log(&log.inner).ok()?;
        Some(Self {
            channel: ChannelId(event.channelId),
            provider: ProviderId(event.provider),
            claimed: Amount(event.claimed),
        })
    }
}

/// What convictions for one request share.
fn offence(provider: ProviderId, request: RequestHash) -> B256 {
    keccak256((provider.0, request.0).abi_encode())
}

fn convicted(log: &Log) -> Option<Outcome> {
    let event = CourtContract::Convicted::decode_log(log).ok()?;
    Some(Outcome::Convicted { slashed: Amount(event.slashed), version: event.version })
}

fn config_words(config: &ChannelConfig) -> IBatchSettlement::ChannelConfig {
    IBatchSettlement::ChannelConfig {
        payer: config.payer,
        payerAuthorizer: config.payer_authorizer,
        receiver: config.receiver,
        receiverAuthorizer: config.receiver_authorizer,
        token: config.token,
        withdrawDelay: U40::saturating_from(config.withdraw_delay),
        salt: config.salt,
    }
}

fn signature(signed: &SignedReceipt) -> Bytes {
    signed.signature.0.to_vec().into()
}

fn for_trial(receipt: &Receipt) -> ReceiptLib::Receipt {
    ReceiptLib::Receipt {
        channelId: receipt.channel_id.0,
        requestHash: receipt.request_hash.0,
        responseHash: receipt.response_hash.0,
        modelId: receipt.model_id.0,
        promptTokens: receipt.prompt_tokens,
        outputTokens: receipt.output_tokens,
        charged: receipt.charged.0,
        chargedTotal: receipt.charged_total.0,
        issuedAt: receipt.issued_at,
    }
}

fn for_court(receipt: &Receipt) -> CourtReceipt::Receipt {
    let ReceiptLib::Receipt {
        channelId,
        requestHash,
        responseHash,
        modelId,
        promptTokens,
        outputTokens,
        charged,
        chargedTotal,
        issuedAt,
    } = for_trial(receipt);
    CourtReceipt::Receipt {
        channelId,
        requestHash,
        responseHash,
        modelId,
        promptTokens,
        outputTokens,
        charged,
        chargedTotal,
        issuedAt,
    }
}
