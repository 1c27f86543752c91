//! The provider in court: whoever challenges one of its answers or claims gets every answer in time.
//!
//! Silence loses stake, so this runs as long as the provider does, goes on with open disputes after a restart, and
//! depends on nothing but the chain, the database and the model file. What it knows of open cases is in a small file
//! beside the database; if that is lost, the chain is read again from the court's first block.
//!
//! A trace is only computed when a dispute is opened, which costs the challenger its bond if the answer was right.

use crate::store::{Store, StoreError, Transcript};
use assay_chain::{
    B256, ChainClient, ChainError,
    client::{Challenge, ClaimChallenge, ContractLogs, Court, Cursor, Dispute, Follower, Outcome, Phase},
};
use assay_graph::Trace;
use assay_types::{ChannelId, ModelId, ProviderId, RequestHash};
use assay_verify::dispute::{PlayError, provider};
use serde::{Deserialize, Serialize};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Cases that are defended at a time; each costs a challenger a bond.
const OPEN_MAX: usize = 1_024;
/// Traces that are kept for the next move.
const TRACES_MAX: usize = 4;
/// Reads of the chain in one look, each up to 2,000 blocks; the rest comes with the next look.
const READS_MAX: usize = 1_000;
/// Version of the file.
const DOCKET_VERSION: u32 = 1;

/// Computes the trace of an answer.
pub trait Tracer: Send + Sync + 'static {
    /// Of what `model` computes for these tokens. Blocks for as long as it takes.
    ///
    /// # Errors
    /// In words: the model is not served, or its file cannot be read.
    fn trace(&self, model: ModelId, transcript: &Transcript) -> Result<Trace, String>;
}

/// What a defence needs besides the provider's database.
#[derive(Clone)]
pub struct DefenceOptions {
    /// With the provider's key.
    pub client: ChainClient,
    /// The court of the provider's registry.
    pub court: Court,
    /// No case is in an earlier block.
    pub since: u64,
    /// Blocks below the head that are taken for final.
    pub depth: u64,
    /// Where open cases are kept.
    pub docket: PathBuf,
    /// How often the chain is looked at while nothing is open.
    pub idle_poll: Duration,
    /// And while something is.
    pub busy_poll: Duration,
    /// Computes traces.
    pub tracer: Arc<dyn Tracer>,
}

/// What is known of open cases.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Docket {
    version: u32,
    provider: ProviderId,
    trial: Cursor,
    court: Cursor,
    disputes: Vec<OpenDispute>,
    claims: Vec<ChannelId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct OpenDispute {
    id: B256,
    request: RequestHash,
}

/// Why a case could not be dealt with now; it is tried again.
#[derive(Debug, thiserror::Error)]
enum CaseError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Play(#[from] PlayError),
    #[error("the tokens of request {0} are not in the database: a release that did not keep them served it")]
    NoTranscript(RequestHash),
    #[error("request {0} has no receipt in the database")]
    NoReceipt(RequestHash),
    #[error("the trace cannot be computed: {0}")]
    NoTrace(String),
}

/// A provider's defence.
pub(crate) struct Defence {
    options: DefenceOptions,
    provider: ProviderId,
    store: Store,
    docket: Docket,
    disputes: Follower<ContractLogs>,
    claims: Follower<ContractLogs>,
    traces: Vec<(B256, Arc<Trace>)>,
}

impl Defence {
    pub(crate) fn new(options: DefenceOptions, provider: ProviderId, store: Store) -> Self {
        let fresh = Docket {
            version: DOCKET_VERSION,
            provider,
            trial: Cursor::new(options.since),
            court: Cursor::new(options.since),
            disputes: vec![],
            claims: vec![],
        };
        let docket = read(&options.docket, provider).unwrap_or(fresh);
        let follow = |address, event, cursor: &Cursor| {
            let client = options.client.clone();
            let source = ContractLogs { client, address, events: vec![event], about: None };
            Follower::new(source, options.depth, cursor.clone())
        };
        let disputes = follow(options.court.trial, Challenge::EVENT, &docket.trial);
        let claims = follow(options.court.address, ClaimChallenge::EVENT, &docket.court);
        Self { options, provider, store, docket, disputes, claims, traces: vec![] }
    }

    /// Runs until `stop`.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "the chain cannot be asked about challenges; trying again");
            }
            let has_moved = self.defend().await;
            let pause = match (has_moved, self.is_idle()) {
                (true, _) => Duration::ZERO,
                (false, true) => self.options.idle_poll,
                (false, false) => self.options.busy_poll,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.docket.disputes.is_empty() && self.docket.claims.is_empty()
    }

    /// Finds new cases.
    async fn look(&mut self) -> Result<(), ChainError> {
        let before = self.docket.clone();
        for _ in 0..READS_MAX {
            let step = self.disputes.poll().await?;
            for challenge in step.logs.iter().filter_map(Challenge::from_log) {
                let case = OpenDispute { id: challenge.dispute, request: RequestHash(challenge.case.requestHash) };
                let is_new = challenge.provider == self.provider && !self.docket.disputes.contains(&case);
                if is_new && self.docket.disputes.len() < OPEN_MAX {
                    tracing::warn!(dispute = %case.id, challenger = %challenge.challenger, request = %case.request, "an answer of this provider is challenged");
                    self.docket.disputes.push(case);
                }
            }
            if step.is_caught_up {
                break;
            }
        }
        for _ in 0..READS_MAX {
            let step = self.claims.poll().await?;
            for claim in step.logs.iter().filter_map(ClaimChallenge::from_log) {
                let is_new = claim.provider == self.provider && !self.docket.claims.contains(&claim.channel);
                if is_new && self.docket.claims.len() < OPEN_MAX {
                    tracing::warn!(channel = %claim.channel, claimed = %claim.claimed, "a claim of this provider is challenged");
                    self.docket.claims.push(claim.channel);
                }
            }
            if step.is_caught_up {
                break;
            }
        }
        self.docket.trial.clone_from(self.disputes.cursor());
        self.docket.court.clone_from(self.claims.cursor());
        if (&before.disputes, &before.claims) != (&self.docket.disputes, &self.docket.claims)
            || self.docket.trial.next > before.trial.next + 100
        {
            self.keep();
        }
        Ok(())
    }

    /// Writes the docket: an older one costs reading some blocks again.
    fn keep(&self) {
        let path = &self.options.docket;
        let fresh = path.with_extension("new");
        let written = serde_json::to_vec(&self.docket)
            .map_err(std::io::Error::other)
            .and_then(|bytes| std::fs::write(&fresh, bytes))
            .and_then(|()| std::fs::rename(&fresh, path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "open cases are not kept; they are found on the chain again");
        }
    }

    /// Makes every move that is due; whether there was one.
    async fn defend(&mut self) -> bool {
        let mut has_moved = false;
        let mut done = vec![];
        for case in self.docket.disputes.clone() {
            match self.play(case).await {
                Ok(Played::Moved) => has_moved = true,
                Ok(Played::Waits) => {}
                Ok(Played::Over) => done.push(case.id),
                Err(error) => {
                    tracing::error!(%error, dispute = %case.id, "a dispute cannot be played on; trying again")
                }
            }
        }
        let mut justified = vec![];
        for channel in self.docket.claims.clone() {
            match self.justify(channel).await {
                Ok(true) => justified.push(channel),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, %channel, "a claim is not justified yet; trying again"),
            }
        }
        if !done.is_empty() || !justified.is_empty() {
            self.docket.disputes.retain(|case| !done.contains(&case.id));
            self.docket.claims.retain(|channel| !justified.contains(channel));
            self.traces.retain(|(id, _)| !done.contains(id));
            self.keep();
        }
        has_moved
    }

    async fn play(&mut self, case: OpenDispute) -> Result<Played, CaseError> {
        let dispute = self.options.court.dispute(case.id).await?;
        let phase = Phase::from_number(dispute.phase).ok_or(PlayError::UnknownPhase(dispute.phase))?;
        // No dispute: the block with the challenge is gone.
        if !phase.is_open() {
            tracing::info!(dispute = %case.id, ?phase, "a dispute is over");
            return Ok(Played::Over);
        }
        if !phase.is_providers() {
            return self.end_if_late(case, &dispute).await;
        }
        let trace = self.trace(case, &dispute).await?;
        let id = case.id;
        let answer = tokio::task::spawn_blocking(move || provider::answer(&trace, id, &dispute));
        let answer = answer.await.map_err(|error| CaseError::NoTrace(error.to_string()))??;
        let sent = self.options.court.play(&answer.calls).await?;
        tracing::info!(dispute = %case.id, transaction = %sent.transaction_hash, says = answer.says, "moved");
        Ok(Played::Moved)
    }

    /// A challenger that is silent has lost, but somebody has to say so.
    async fn end_if_late(&self, case: OpenDispute, dispute: &Dispute) -> Result<Played, CaseError> {
        let deadline = u64::from(dispute.deadline);
        if crate::ledger::unix_now() <= deadline && self.options.client.block_timestamp().await? <= deadline {
            return Ok(Played::Waits);
        }
        match self.options.court.timeout(case.id).await {
            Ok(sent) => {
                let outcome = self.options.court.outcome(&sent);
                let earned = matches!(outcome, Some(Outcome::Acquitted));
                tracing::info!(dispute = %case.id, transaction = %sent.transaction_hash, earned, "the challenger was late");
                Ok(Played::Over)
            }
            // This machine's clock is ahead of the chain's, or somebody else was faster.
            Err(ChainError::Reverted(revert)) if ["NotLate", "WrongPhase"].contains(&revert.name) => Ok(Played::Waits),
            Err(error) => Err(error.into()),
        }
    }

    async fn trace(&mut self, case: OpenDispute, dispute: &Dispute) -> Result<Arc<Trace>, CaseError> {
        if let Some((_, trace)) = self.traces.iter().find(|(id, _)| *id == case.id) {
            return Ok(Arc::clone(trace));
        }
        let receipt = self.store.receipt(case.request).await?.ok_or(CaseError::NoReceipt(case.request))?;
        let transcript = self.store.transcript(case.request).await?.ok_or(CaseError::NoTranscript(case.request))?;
        let transcript = upto(transcript, dispute);
        let (model, tracer) = (receipt.receipt.receipt.model_id, Arc::clone(&self.options.tracer));
        let trace = tokio::task::spawn_blocking(move || tracer.trace(model, &transcript));
        let trace = trace.await.map_err(|error| CaseError::NoTrace(error.to_string()))?.map_err(CaseError::NoTrace)?;
        let trace = Arc::new(trace);
        if self.traces.len() >= TRACES_MAX {
            self.traces.remove(0);
        }
        self.traces.push((case.id, Arc::clone(&trace)));
        Ok(trace)
    }

    /// Shows the receipt that covers a claim; whether the case is closed.
    async fn justify(&self, channel: ChannelId) -> Result<bool, CaseError> {
        if self.options.court.claim_deadline(channel).await?.is_none() {
            return Ok(true);
        }
        let Some(receipt) = self.store.latest(channel).await? else { return Ok(false) };
        let sent = self.options.court.justify_claim(&receipt.receipt).await?;
        tracing::info!(%channel, transaction = %sent.transaction_hash, "a claim is justified by its receipt");
        Ok(true)
    }
}

enum Played {
    Moved,
    Waits,
    Over,
}

/// The tokens that the disputed receipt is about: it may be an earlier one than the last.
fn upto(mut transcript: Transcript, dispute: &Dispute) -> Transcript {
    let outputs = (dispute.positions + 1).saturating_sub(dispute.inputTokens);
    transcript.output.truncate(outputs as usize);
    transcript
}

/// The docket, unless it is another provider's, another version's or damaged: then it is made anew.
fn read(path: &Path, provider: ProviderId) -> Option<Docket> {
    let bytes = std::fs::read(path).ok()?;
    let docket: Option<Docket> = serde_json::from_slice(&bytes).ok();
    let docket = docket.filter(|docket| docket.version == DOCKET_VERSION && docket.provider == provider);
    if docket.is_none() {
        tracing::warn!(path = %path.display(), "the file with open cases is not usable; they are found on the chain again");
    }
    docket
}
