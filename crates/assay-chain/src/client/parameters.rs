//! What a network can change about itself: the terms of its court and how much is audited, as the chain has it.

use super::{ChainClient, ChainError, TransactionReceipt};
use crate::bindings::parameters::{IParameters, Parameters as Contract};
use alloy_primitives::{Address, aliases::U96};
use assay_types::Amount;
use serde::Serialize;

/// What the court enforces. Amounts are base units of the stake token.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Terms {
    /// What a challenger puts up.
    pub bond: Amount,
    /// What one request costs a convicted provider, as far as the registry's cap allows.
    pub penalty: Amount,
    /// The challenger's share of what was taken, in basis points.
    pub reward_bps: u16,
    /// The most of what was taken that goes back to who paid, in basis points.
    pub refund_bps: u16,
    /// Their number, from 1.
    pub version: u16,
}

/// What gateways and auditors follow.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkPolicy {
    /// Share of answers that is audited however much a provider has proven, in millionths.
    pub audit_floor_ppm: u32,
    /// Proven tokens after which half of the answers are audited.
    pub audit_half_tokens: u64,
    /// Share of an auditor's tasks that are decoys, in millionths.
    pub decoy_ppm: u32,
    /// Share of findings that are replayed once more, in millionths.
    pub recheck_ppm: u32,
}

impl Default for NetworkPolicy {
    /// What `assay_protocol::AuditPolicy` says why of.
    fn default() -> Self {
        Self { audit_floor_ppm: 20_000, audit_half_tokens: 4096, decoy_ppm: 50_000, recheck_ppm: 30_000 }
    }
}

/// What is fixed for good.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Caps {
    /// No bond is ever larger.
    pub bond_max: Amount,
    /// No penalty is ever larger.
    pub penalty_max: Amount,
    /// Seconds for each move of a dispute.
    pub move_window_s: u64,
    /// Seconds between a proposal and its application.
    pub delay_s: u64,
}

/// The contract that has them.
#[derive(Clone)]
pub struct Parameters {
    client: ChainClient,
    /// Where it is.
    pub address: Address,
}

impl Parameters {
    /// Does not ask the chain.
    #[must_use]
    pub fn new(client: ChainClient, address: Address) -> Self {
        Self { client, address }
    }

    /// The terms that hold now.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn current(&self) -> Result<Terms, ChainError> {
        Ok(terms(&self.client.call(self.address, &Contract::currentCall {}).await?))
    }

    /// Terms that held once.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `NoVersion`.
    pub async fn terms_of(&self, version: u16) -> Result<Terms, ChainError> {
        Ok(terms(&self.client.call(self.address, &Contract::termsOfCall { version }).await?))
    }

    /// The policy that holds now.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn policy(&self) -> Result<NetworkPolicy, ChainError> {
        Ok(policy(&self.client.call(self.address, &Contract::policyCall {}).await?))
    }

    /// What is proposed, and the Unix second from which it can be applied; `None` if nothing is.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn proposal(&self) -> Result<Option<(Terms, NetworkPolicy, u64)>, ChainError> {
        let found = self.client.call(self.address, &Contract::proposalCall {}).await?;
        Ok((found.from != 0).then(|| (terms(&found.terms), policy(&found.policy_), found.from)))
    }

    /// Who may propose.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn owner(&self) -> Result<Address, ChainError> {
        self.client.call(self.address, &Contract::ownerCall {}).await
    }

    /// What is fixed for good.
    ///
    /// # Errors
    /// [`ChainError`].
    pub async fn caps(&self) -> Result<Caps, ChainError> {
        Ok(Caps {
            bond_max: Amount(self.client.call(self.address, &Contract::bondMaxCall {}).await?.to()),
            penalty_max: Amount(self.client.call(self.address, &Contract::penaltyMaxCall {}).await?.to()),
            move_window_s: self.client.call(self.address, &Contract::moveWindowCall {}).await?.into(),
            delay_s: self.client.call(self.address, &Contract::delayCall {}).await?,
        })
    }

    /// Proposes terms and a policy, with the owner's key; the version in `to` does not matter.
    ///
    /// # Errors
    /// [`ChainError`]; [`ChainError::BadArgument`] for amounts of more than 96 bits; reverts with `NotOwner`,
    /// `BadParameter`.
    pub async fn propose(&self, to: &Terms, policy: &NetworkPolicy) -> Result<TransactionReceipt, ChainError> {
        let call = Contract::proposeCall { terms: terms_words(to)?, policy_: policy_words(policy) };
        self.client.send(self.address, &call).await
    }

    /// Makes the proposal what holds from now on.
    ///
    /// # Errors
    /// [`ChainError`]; reverts with `TooEarly`, `NothingProposed`.
    pub async fn enact(&self) -> Result<TransactionReceipt, ChainError> {
        self.client.send(self.address, &Contract::enactCall {}).await
    }
}

pub(super) fn terms_words(terms: &Terms) -> Result<IParameters::Terms, ChainError> {
    let word = |amount: Amount| {
        U96::try_from(amount.0).map_err(|_| ChainError::BadArgument(format!("{amount} has more than 96 bits")))
    };
    Ok(IParameters::Terms {
        bond: word(terms.bond)?,
        penalty: word(terms.penalty)?,
        rewardBps: terms.reward_bps,
        refundBps: terms.refund_bps,
        version: terms.version,
    })
}

pub(super) fn policy_words(policy: &NetworkPolicy) -> IParameters::Policy {
    IParameters::Policy {
        auditFloorPpm: policy.audit_floor_ppm,
        auditHalfTokens: policy.audit_half_tokens,
        decoyPpm: policy.decoy_ppm,
        recheckPpm: policy.recheck_ppm,
    }
}

fn terms(words: &IParameters::Terms) -> Terms {
    Terms {
        bond: Amount(words.bond.to()),
        penalty: Amount(words.penalty.to()),
        reward_bps: words.rewardBps,
        refund_bps: words.refundBps,
        version: words.version,
    }
}

fn policy(words: &IParameters::Policy) -> NetworkPolicy {
    NetworkPolicy {
        audit_floor_ppm: words.auditFloorPpm,
        audit_half_tokens: words.auditHalfTokens,
        decoy_ppm: words.decoyPpm,
        recheck_ppm: words.recheckPpm,
    }
}
