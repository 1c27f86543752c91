//! Reads a dispute from the chain: where it stands, and what was said in it so far.

use super::{Documents, Move, PlayError, Record, challenger, phase, provider, record::moves_of};
use assay_chain::{
    B256, ChainClient, ChainError,
    client::{ContractLogs, Court, Cursor, Dispute, Follower, Phase},
};
use assay_graph::Trace;

/// Looks for further logs at a time; each is up to 2,000 blocks.
const LOOKS_MAX: usize = 100_000;

/// Why a dispute cannot be read or played on.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The chain.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The game.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// There is no such dispute.
    #[error("there is no dispute {0} on this chain")]
    NoDispute(B256),
}

impl WatchError {
    /// Whether it may go away by itself: the endpoint is late, or fails for a while.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Chain(ChainError::Reverted(revert)) => ["WrongPhase", "NotLate"].contains(&revert.name),
            Self::Chain(ChainError::BadUrl { .. } | ChainError::OtherChain { .. } | ChainError::Closed) => false,
            Self::Chain(_) | Self::Play(PlayError::OutOfStep(_)) => true,
            Self::Play(_) | Self::NoDispute(_) => false,
        }
    }
}

/// Which side is played.
#[derive(Clone, Copy, Debug)]
pub enum Role<'a> {
    /// With what the challenger shows.
    Challenger(&'a Documents),
    /// The provider.
    Provider,
}

/// Whose turn it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Turn {
    /// Ours, and what to do.
    Ours(Move),
    /// The other side's, until this Unix second; then the dispute can be ended by `timeout`.
    Theirs {
        /// Unix seconds.
        deadline: u64,
    },
    /// Nobody's: it is decided.
    Over,
}

/// One dispute on a chain.
pub struct Watch {
    client: ChainClient,
    court: Court,
    id: B256,
    since: u64,
    follower: Follower<ContractLogs>,
    record: Option<Record>,
    last: Option<B256>,
}

impl Watch {
    /// Of the dispute `id`, which is in no block before `since`.
    #[must_use]
    pub fn new(client: ChainClient, court: Court, id: B256, since: u64) -> Self {
        let follower = follower(&client, &court, id, since);
        Self { client, court, id, since, follower, record: None, last: None }
    }

    /// Where it stands.
    ///
    /// # Errors
    /// [`WatchError::Chain`], [`WatchError::NoDispute`].
    pub async fn dispute(&self) -> Result<Dispute, WatchError> {
        let dispute = self.court.dispute(self.id).await?;
        if dispute.phase == Phase::None as u8 { Err(WatchError::NoDispute(self.id)) } else { Ok(dispute) }
    }

    /// Whose turn it is, and for one's own the move. The challenger's needs what was said so far, which is read here.
    ///
    /// # Errors
    /// [`WatchError`].
    pub async fn turn(&mut self, role: Role<'_>, trace: &Trace) -> Result<Turn, WatchError> {
        let d = self.dispute().await?;
        let now = phase(&d)?;
        let is_ours = match role {
            Role::Provider => now.is_providers(),
            Role::Challenger(_) => now == Phase::Guilty || (now.is_open() && !now.is_providers()),
        };
        Ok(match role {
            _ if !is_ours && now.is_open() => Turn::Theirs { deadline: d.deadline.into() },
            _ if !is_ours => Turn::Over,
            Role::Provider => Turn::Ours(provider::answer(trace, self.id, &d)?),
            Role::Challenger(documents) => {
                self.read(&d, trace).await?;
                let record = self.record.as_ref().ok_or(PlayError::OutOfStep("nothing was read"))?;
                Turn::Ours(challenger::attack(trace, self.id, &d, record, documents)?)
            }
        })
    }

    /// Takes note of the moves since the last look.
    async fn read(&mut self, d: &Dispute, trace: &Trace) -> Result<(), WatchError> {
        for _ in 0..LOOKS_MAX {
            // A look that fails half-way must not lose what it found: it is read again.
            let before = self.follower.cursor().clone();
            let step = self.follower.poll().await?;
            if step.changed_from.is_some() {
                (self.record, self.last) = (None, None);
                self.follower = follower(&self.client, &self.court, self.id, self.since);
                continue;
            }
            let mut found = vec![];
            for hash in step.logs.iter().filter_map(|log| log.transaction_hash) {
                if self.last.replace(hash) == Some(hash) {
                    continue;
                }
                match self.client.calls_to(self.court.trial, hash).await {
                    Ok(Some(calls)) => found.extend(calls),
                    other => {
                        let source = source(&self.client, &self.court, self.id);
                        (self.follower, self.last) = (Follower::new(source, 0, before), None);
                        other?;
                        return Err(PlayError::OutOfStep("a transaction is not known yet").into());
                    }
                }
            }
            let record = self.record.get_or_insert_with(|| Record::new(d.positions, u32::from(d.ops)));
            for call in found.iter().flat_map(|call| moves_of(self.id, &call.input)) {
                record.apply(&call, trace);
            }
            if step.is_caught_up {
                return Ok(());
            }
        }
        Err(PlayError::OutOfStep("the chain grows faster than it can be read").into())
    }
}

fn source(client: &ChainClient, court: &Court, id: B256) -> ContractLogs {
    ContractLogs { client: client.clone(), address: court.trial, events: vec![], about: Some(id) }
}

fn follower(client: &ChainClient, court: &Court, id: B256, since: u64) -> Follower<ContractLogs> {
    // Moves are answered as soon as they are in a block: one that is undone is made again, and so is the answer.
    Follower::new(source(client, court, id), 0, Cursor::new(since))
}
