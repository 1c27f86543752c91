//! Audits: which answers are drawn, who replays them, and what follows.
//!
//! ```text
//! flight --answer stored--> draw (beacon, nonce, receipt) --> waiting
//! auditor --lease--> task, or a decoy   --commit--> beacon   --proof--> judged --> standings, accounts, conviction
//! ```
//! An answer is drawn when its receipts are stored, with a beacon that is published when its epoch is over. Nobody is
//! blamed on an auditor's word: the [`Referee`] replays first. What auditors earn is booked here and not paid out yet.

use crate::clock;
use crate::referee::{Referee, Refereed};
use crate::standing::Standings;
use crate::store::{AuditRow, DrawRow, RefundRow, Store, StoreError, StoredReceipt};
use assay_protocol::{
    AuditOutcome, AuditPolicy, AuditTerms, AuditorAccount, Beacons, Decoy, Deed, ProofFault, Report, ReputationPolicy,
    Sign, check_proof, is_drawn, judge,
};
use assay_types::{
    Address, AuditBeacon, AuditCommit, AuditEnd, AuditLease, AuditProof, AuditReply, AuditTask, B256, Class, Finish,
    ReceiptFile, ReceiptPart, RequestHash, SignatureError, SigningDomain, audit_draw, first_u64, proof_digest,
    proof_positions,
};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Answers that may wait for an auditor; beyond them nothing is drawn.
const WAITING_MAX: usize = 4096;
/// Tasks that are out at a time.
const LEASES_MAX: usize = 64;
/// Of so many latest answers one becomes a decoy.
const DECOY_WINDOW: u32 = 256;
/// An answer that so many auditors were given and nobody could replay is given to nobody else.
const TRIES_MAX: u32 = 3;
/// How far an auditor's clock may be off.
const CLOCK_OFF_MAX_S: u64 = 60;

/// How a gateway has its providers audited.
#[derive(Clone, Debug)]
pub struct AuditConfig {
    /// How much, as long as the network's parameters say nothing else.
    pub policy: AuditPolicy,
    /// What auditors earn and lose.
    pub terms: AuditTerms,
    /// What providers' pasts are worth.
    pub reputation: ReputationPolicy,
    /// Who may audit; nothing is drawn if there is nobody.
    pub auditors: Vec<Address>,
    /// Replays before anybody is blamed. Without one, accusations are noted and nothing follows from them.
    pub referee: Option<Arc<dyn Referee>>,
    /// How long a beacon draws before it is published.
    pub epoch: Duration,
    /// How long an auditor may take for a task.
    pub lease: Duration,
    /// Mean time between two challenges of one provider; zero: there are none.
    pub challenge: Duration,
}

impl Default for AuditConfig {
    /// No auditors.
    fn default() -> Self {
        Self {
            policy: AuditPolicy::default(),
            terms: AuditTerms::default(),
            reputation: ReputationPolicy::default(),
            auditors: Vec::new(),
            referee: None,
            epoch: Duration::from_secs(30),
            lease: Duration::from_secs(120),
            challenge: Duration::ZERO,
        }
    }
}

/// Why an auditor is turned away.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// Not on the list.
    #[error("{0:#x} is no auditor here")]
    NotAnAuditor(Address),
    /// It did not replay what it said it had.
    #[error("{0:#x} gets no further tasks: it did not replay one of them")]
    Dismissed(Address),
    /// Somebody else signed.
    #[error("the request's {0}")]
    Signature(#[from] SignatureError),
    /// An old request, or a clock that is off.
    #[error("the request was made {0} s away from now; is the clock right?")]
    Clock(u64),
    /// No such task is out, or its time is over.
    #[error("no task {0} is out; its time may be over")]
    NoTask(B256),
    /// A second commitment.
    #[error("a commitment for this task is here already")]
    Committed,
    /// A proof comes before the commitment.
    #[error("the commitment comes first")]
    NotCommitted,
    /// The operating system gives no random bytes.
    #[error("no random bytes")]
    Random,
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A task that is out.
#[derive(Clone, Copy, Debug)]
struct Lease {
    row: AuditRow,
    decoy: Option<Decoy>,
    auditor: Address,
    until: Instant,
    commit: Option<(AuditCommit, B256)>,
}

#[derive(Debug, Default)]
struct State {
    leases: BTreeMap<B256, Lease>,
    accounts: BTreeMap<Address, AuditorAccount>,
    /// How often an answer that waits was let out.
    tries: BTreeMap<B256, u32>,
    /// How many answers wait; as far as known.
    waiting: usize,
}

#[derive(Debug)]
struct Draws {
    beacons: Beacons,
    /// The last epoch's, which is published.
    revealed: Option<B256>,
}

/// Everything about audits.
#[derive(Debug)]
pub(crate) struct Auditing {
    config: AuditConfig,
    /// Where the receipts are good.
    network: crate::ledger::Addresses,
    receipts: SigningDomain,
    store: Store,
    pub(crate) standings: Arc<Standings>,
    draws: Mutex<Draws>,
    state: Mutex<State>,
    /// What holds now.
    policy: Mutex<AuditPolicy>,
    /// One replay at a time.
    referee: tokio::sync::Mutex<()>,
}

fn random() -> Result<B256, AuditError> {
    let mut bytes = B256::ZERO;
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| AuditError::Random)?;
    Ok(bytes)
}

impl Auditing {
    pub(crate) async fn open(
        config: AuditConfig,
        network: crate::ledger::Addresses,
        receipts: SigningDomain,
        store: Store,
        standings: Arc<Standings>,
    ) -> Result<Self, AuditError> {
        let accounts = store.auditors().await?.into_iter().collect();
        let waiting = store.audits_waiting(u32::try_from(WAITING_MAX).unwrap_or(u32::MAX)).await?.len();
        let draws = Draws { beacons: Beacons::new(random()?), revealed: None };
        Ok(Self {
            policy: Mutex::new(config.policy),
            config,
            network,
            receipts,
            store,
            standings,
            draws: Mutex::new(draws),
            state: Mutex::new(State { leases: BTreeMap::new(), accounts, tries: BTreeMap::new(), waiting }),
            referee: tokio::sync::Mutex::default(),
        })
    }

    /// What holds from now on.
    pub(crate) fn follow(&self, policy: AuditPolicy) {
        let before = std::mem::replace(&mut *self.policy.lock().unwrap_or_else(PoisonError::into_inner), policy);
        if before != policy {
            tracing::info!(?policy, "the network has changed how much is audited");
        }
    }

    fn policy(&self) -> AuditPolicy {
        // Assigned whole.
        *self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends epochs until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.config.epoch.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            tokio::select! {
                _ = ticks.tick() => self.end_epoch(),
                () = stop.cancelled() => return,
            }
        }
    }

    fn end_epoch(&self) {
        {
            let mut draws = self.draws();
            match draws.beacons.advance() {
                Some(beacon) => draws.revealed = Some(beacon),
                // The chain is used up; the next one begins with an anchor of its own.
                None => match random() {
                    Ok(seed) => *draws = Draws { beacons: Beacons::new(seed), revealed: None },
                    Err(error) => tracing::error!(%error, "the last beacon draws on"),
                },
            }
        }
        self.standings.refresh();
        let now = Instant::now();
        self.state().leases.retain(|_, lease| lease.until > now);
    }

    /// The running chain of beacons: anchor, epoch, and the last one that was published.
    pub(crate) fn beacon(&self) -> (B256, u32, Option<B256>) {
        let draws = self.draws();
        (draws.beacons.anchor(), draws.beacons.epoch(), draws.revealed)
    }

    /// An answer and its receipts are stored: draws whether it is audited. `nonce` is the job's.
    pub(crate) async fn on_answer(&self, id: RequestHash, nonce: B256, parts: &[ReceiptPart]) {
        if self.config.auditors.is_empty() || parts.iter().all(|part| part.output.is_empty()) {
            return;
        }
        let (draw, beacon) = {
            let draws = self.draws();
            let (anchor, epoch) = (draws.beacons.anchor(), draws.beacons.epoch());
            (DrawRow { anchor, epoch, rate_ppm: 0 }, draws.beacons.current())
        };
        let drawn = parts.iter().find_map(|part| {
            let rate_ppm = self.policy().rate_ppm(self.standings.proven_tokens(part.provider));
            let hash = audit_draw(beacon, nonce, part.signed.receipt.digest(&self.receipts));
            is_drawn(first_u64(&hash), rate_ppm).then_some(DrawRow { rate_ppm, ..draw })
        });
        let Some(draw) = drawn else { return };
        let noted = self.queue(id, draw).await;
        if let Err(error) = noted {
            tracing::error!(receipt = %id, %error, "an answer that was drawn is not audited");
        }
    }

    /// An answer is audited whatever would be drawn.
    pub(crate) async fn demand(&self, id: RequestHash) {
        if self.config.auditors.is_empty() {
            return;
        }
        let draw = {
            let draws = self.draws();
            DrawRow { anchor: draws.beacons.anchor(), epoch: draws.beacons.epoch(), rate_ppm: 1_000_000 }
        };
        if let Err(error) = self.queue(id, draw).await {
            tracing::error!(receipt = %id, %error, "the answer to a challenge is not audited");
        }
    }

    async fn queue(&self, receipt_id: RequestHash, draw: DrawRow) -> Result<(), AuditError> {
        {
            let mut state = self.state();
            if state.waiting >= WAITING_MAX {
                tracing::warn!("{WAITING_MAX} answers wait for an auditor; is one running?");
                return Ok(());
            }
            state.waiting += 1;
        }
        let row = AuditRow { audit_id: random()?, receipt_id, created_at: clock::unix_seconds(), draw };
        Ok(self.store.put_audit(row).await?)
    }

    /// A task for an auditor, if there is one.
    pub(crate) async fn lease(&self, lease: &AuditLease) -> Result<Option<AuditTask>, AuditError> {
        let auditor = lease.auditor;
        if !self.config.auditors.contains(&auditor) {
            return Err(AuditError::NotAnAuditor(auditor));
        }
        // Nothing to do costs nothing, whoever asks.
        if self.waiting() == 0 {
            return Ok(None);
        }
        let off = clock::unix_seconds().abs_diff(lease.issued_at);
        if off > CLOCK_OFF_MAX_S {
            return Err(AuditError::Clock(off));
        }
        lease.verify(self.network.chain_id)?;
        if !self.account(auditor).is_trusted() {
            return Err(AuditError::Dismissed(auditor));
        }
        for row in self.store.audits_waiting(2 * LEASES_MAX as u32).await? {
            let now = Instant::now();
            let is_free = {
                let mut state = self.state();
                state.leases.retain(|_, lease| lease.until > now);
                state.leases.len() < LEASES_MAX && !state.leases.contains_key(&row.audit_id)
            };
            if !is_free {
                continue;
            }
            if self.state().tries.get(&row.audit_id).is_some_and(|&tries| tries >= TRIES_MAX) {
                self.give_up(row, auditor).await?;
                continue;
            }
            let draw = random()?;
            if is_drawn(first_u64(&draw), self.policy().decoy_ppm)
                && let Some(task) = self.decoy(auditor, random()?, now).await?
            {
                return Ok(Some(task));
            }
            let Some(stored) = self.store.receipt(row.receipt_id).await? else { continue };
            let task = task_of(row.audit_id, stored);
            if self.let_out(Lease { row, decoy: None, auditor, until: now + self.config.lease, commit: None }) {
                return Ok(Some(task));
            }
        }
        Ok(None)
    }

    /// A late answer with one token changed.
    async fn decoy(&self, auditor: Address, draw: B256, now: Instant) -> Result<Option<AuditTask>, AuditError> {
        let count = self.store.receipts_count().await?.min(DECOY_WINDOW.into());
        let number = u32::try_from((u128::from(first_u64(&draw)) * u128::from(count)) >> 64).unwrap_or(0);
        let Some(receipt_id) = self.store.nth_latest_receipt(number).await? else { return Ok(None) };
        let Some(stored) = self.store.receipt(receipt_id).await? else { return Ok(None) };
        // What an auditor replays: a decoy must look like any task, and no vectors are audited.
        if stored.manifest.class() != Some(Class::Exact) || stored.job.embed.is_some() {
            return Ok(None);
        }
        let mut task = task_of(random()?, stored);
        let Some(decoy) = Decoy::plant(random()?, &mut task.output) else { return Ok(None) };
        let nothing = DrawRow { anchor: B256::ZERO, epoch: 0, rate_ppm: 0 };
        let row = AuditRow { audit_id: task.id, receipt_id, created_at: clock::unix_seconds(), draw: nothing };
        let lease = Lease { row, decoy: Some(decoy), auditor, until: now + self.config.lease, commit: None };
        Ok(self.let_out(lease).then_some(task))
    }

    fn let_out(&self, lease: Lease) -> bool {
        let mut state = self.state();
        if state.leases.len() >= LEASES_MAX || state.leases.contains_key(&lease.row.audit_id) {
            return false;
        }
        if lease.decoy.is_none() {
            *state.tries.entry(lease.row.audit_id).or_default() += 1;
        }
        state.leases.insert(lease.row.audit_id, lease);
        true
    }

    async fn give_up(&self, row: AuditRow, auditor: Address) -> Result<(), AuditError> {
        tracing::warn!(receipt = %row.receipt_id, "no auditor could replay this answer");
        let account = {
            let mut state = self.state();
            state.tries.remove(&row.audit_id);
            state.waiting = state.waiting.saturating_sub(1);
            state.accounts.get(&auditor).copied().unwrap_or_default()
        };
        let record = json!({
            "task": row.audit_id, "receipt": row.receipt_id, "at": clock::unix_seconds(), "draw": row.draw,
            "end": AuditEnd::Void, "reason": "no auditor could replay it in time",
        });
        Ok(self.store.end_audit(row, record.to_string(), auditor, account).await?)
    }

    /// A signed commitment to a finding; the reply draws the positions to show.
    pub(crate) fn commit(&self, id: B256, commit: AuditCommit) -> Result<AuditBeacon, AuditError> {
        commit.signature.verify(&commit.commitment, commit.auditor)?;
        let beacon = random()?;
        let mut state = self.state();
        let lease = state.leases.get_mut(&id).filter(|lease| lease.auditor == commit.auditor);
        let lease = lease.filter(|lease| lease.until > Instant::now()).ok_or(AuditError::NoTask(id))?;
        if lease.commit.is_some() {
            return Err(AuditError::Committed);
        }
        lease.commit = Some((commit, beacon));
        Ok(AuditBeacon { beacon })
    }

    /// The opening of a commitment: judges it and does what follows.
    pub(crate) async fn prove(&self, id: B256, proof: AuditProof) -> Result<AuditReply, AuditError> {
        let (lease, commit, beacon) = {
            let mut state = self.state();
            let lease = state.leases.get(&id).copied().ok_or(AuditError::NoTask(id))?;
            let (commit, beacon) = lease.commit.ok_or(AuditError::NotCommitted)?;
            // Nobody proves a task twice.
            state.leases.remove(&id);
            (lease, commit, beacon)
        };
        let stored = self.store.receipt(lease.row.receipt_id).await?.ok_or(AuditError::NoTask(id))?;
        let parts = stored.parts.clone();
        let mut task = task_of(id, stored.clone());
        if let Some(decoy) = lease.decoy
            && let Some(token) = task.output.get_mut(decoy.index as usize)
        {
            *token = decoy.is;
        }
        let tokens = (task.job.prompt.len() + task.output.len()) as u64;
        let who = (id, lease.auditor, beacon);
        let output_tokens = u32::try_from(task.output.len()).unwrap_or(u32::MAX);
        let checked = check_proof(&proof, commit.commitment, self.network.chain_id, who, output_tokens);
        let outcome = match checked {
            Err(fault) => {
                tracing::warn!(auditor = %lease.auditor, %fault, "an auditor's proof does not hold");
                AuditOutcome::Failed
            }
            Ok(digest) => match judge(proof.finding.verdict, lease.decoy, output_tokens) {
                Report::FoundDecoy => AuditOutcome::Proven { tokens },
                Report::Lazy => AuditOutcome::Failed,
                Report::Doubts => {
                    self.queue(lease.row.receipt_id, lease.row.draw).await?;
                    AuditOutcome::Void
                }
                report @ (Report::Plausible | Report::Accuses { .. }) => {
                    self.weigh(&task, &proof, (digest, who), report, tokens, &stored).await?
                }
            },
        };
        if matches!(outcome, AuditOutcome::Proven { .. }) && lease.decoy.is_none() {
            for part in &parts {
                let receipt = &part.signed.receipt;
                let deed = Deed::Proven {
                    tokens: receipt.prompt_tokens.saturating_add(receipt.output_tokens),
                    fees: receipt.charged,
                };
                self.standings.note(part.provider, deed, Some(lease.row.receipt_id)).await?;
            }
        }
        self.end(&lease, &proof, &commit, beacon, checked, outcome).await?;
        let file = lease.decoy.is_none().then(|| Box::new(self.file(lease.row.receipt_id, stored)));
        Ok(AuditReply { end: end_of(outcome), digest: checked.ok(), file })
    }

    /// What a report on a real answer comes to: accusations are replayed, and some of the others.
    async fn weigh(
        &self,
        task: &AuditTask,
        proof: &AuditProof,
        (digest, (_, auditor, beacon)): (B256, (B256, Address, B256)),
        report: Report,
        tokens: u64,
        stored: &StoredReceipt,
    ) -> Result<AuditOutcome, AuditError> {
        let accuses = matches!(report, Report::Accuses { .. });
        if !accuses && !is_drawn(first_u64(&random()?), self.policy().recheck_ppm) {
            return Ok(AuditOutcome::Proven { tokens });
        }
        let Some(second) = self.replay(task).await else {
            if accuses {
                for part in &stored.parts {
                    self.standings.note(part.provider, Deed::Accused, Some(task.job.request_hash())).await?;
                }
                return Ok(AuditOutcome::Void);
            }
            return Ok(AuditOutcome::Proven { tokens });
        };
        let drawn = proof_positions(beacon, task.id, auditor, proof.finding.positions);
        let leaves: Vec<B256> = drawn.iter().filter_map(|&at| second.leaves.get(at as usize).copied()).collect();
        let agrees = second.verdict == proof.finding.verdict && proof_digest(beacon, auditor, leaves) == digest;
        let output_tokens = u32::try_from(task.output.len()).unwrap_or(u32::MAX);
        if let Some(first_wrong) = second.verdict.first_wrong(output_tokens) {
            self.convict(&self.file(task.job.request_hash(), stored.clone()), first_wrong).await?;
        }
        Ok(match (agrees, accuses) {
            (true, true) => AuditOutcome::Caught { tokens },
            (true, false) => AuditOutcome::Proven { tokens },
            (false, _) => AuditOutcome::Failed,
        })
    }

    /// The referee's replay; `None` if there is no referee or it cannot.
    pub(crate) async fn replay(&self, task: &AuditTask) -> Option<Refereed> {
        let referee = Arc::clone(self.config.referee.as_ref()?);
        let _turn = self.referee.lock().await;
        let task = task.clone();
        match tokio::task::spawn_blocking(move || referee.replay(&task)).await {
            Ok(Ok(replayed)) => Some(replayed),
            Ok(Err(error)) => {
                tracing::error!(%error, "an answer could not be replayed");
                None
            }
            Err(error) => {
                tracing::error!(%error, "a replay died");
                None
            }
        }
    }

    /// Whether answers can be compared here.
    pub(crate) fn has_referee(&self) -> bool {
        self.config.referee.is_some()
    }

    /// What each token of an answer of class tolerant is a sign of; `None` if there is no referee or it cannot.
    pub(crate) async fn compare(&self, task: &AuditTask) -> Option<Vec<Sign>> {
        let referee = Arc::clone(self.config.referee.as_ref()?);
        let _turn = self.referee.lock().await;
        let task = task.clone();
        match tokio::task::spawn_blocking(move || referee.compare(&task)).await {
            Ok(Ok(signs)) => Some(signs),
            Ok(Err(error)) => {
                tracing::error!(%error, "an answer could not be compared");
                None
            }
            Err(error) => {
                tracing::error!(%error, "a comparison died");
                None
            }
        }
    }

    /// A replay has shown that the token at `first_wrong` is wrong: its signer gets nothing any more, and the receipt
    /// goes to whoever takes it to court.
    pub(crate) async fn convict(&self, file: &ReceiptFile, first_wrong: u32) -> Result<(), AuditError> {
        let Some(part) = signed_by(&file.parts, first_wrong) else { return Ok(()) };
        let provider = part.provider;
        tracing::error!(%provider, receipt = %file.id, first_wrong, "a provider signed a wrong answer");
        self.standings.note(provider, Deed::Convicted, Some(file.id)).await?;
        if let Some(stored) = self.store.receipt(file.id).await? {
            let receipt = &part.signed.receipt;
            let (key_id, noted_at) = (stored.key_id, clock::unix_seconds());
            let (request, charged) = (receipt.request_hash, receipt.charged);
            self.store
                .put_refund(RefundRow { provider, request, receipt: file.id, key_id, charged, noted_at, paid: None })
                .await?;
        }
        if let Some(referee) = &self.config.referee {
            referee.on_conviction(file, first_wrong);
        }
        Ok(())
    }

    async fn end(
        &self,
        lease: &Lease,
        proof: &AuditProof,
        commit: &AuditCommit,
        beacon: B256,
        checked: Result<B256, ProofFault>,
        outcome: AuditOutcome,
    ) -> Result<(), AuditError> {
        let is_redone = outcome == AuditOutcome::Failed && lease.decoy.is_none();
        let account = {
            let mut state = self.state();
            if lease.decoy.is_none() {
                state.waiting = state.waiting.saturating_sub(usize::from(!is_redone));
                state.tries.remove(&lease.row.audit_id);
            }
            let account = state.accounts.entry(lease.auditor).or_default();
            account.on_outcome(outcome, &self.config.terms);
            *account
        };
        let record = json!({
            "task": lease.row.audit_id,
            "receipt": lease.row.receipt_id,
            "at": clock::unix_seconds(),
            "auditor": lease.auditor,
            "decoy": lease.decoy.map(|decoy| json!({"index": decoy.index, "was": decoy.was, "is": decoy.is})),
            "draw": lease.row.draw,
            "finding": proof.finding,
            "commitment": commit.commitment,
            "signature": commit.signature,
            "beacon": beacon,
            "digest": checked.ok(),
            "end": end_of(outcome),
        });
        // What was not replayed is still to be replayed: the record of the failure gets a name of its own.
        let row = if is_redone { AuditRow { audit_id: random()?, ..lease.row } } else { lease.row };
        Ok(self.store.end_audit(row, record.to_string(), lease.auditor, account).await?)
    }

    pub(crate) fn file(&self, id: RequestHash, stored: StoredReceipt) -> ReceiptFile {
        ReceiptFile {
            version: assay_types::RECEIPT_FILE_VERSION,
            id,
            chain_id: self.network.chain_id,
            registry: self.network.registry,
            settlement: self.network.settlement,
            manifest: stored.manifest,
            job: stored.job,
            parts: stored.parts,
        }
    }

    /// Accounts of those who may audit, and of everyone who ever did.
    pub(crate) fn accounts(&self) -> Vec<(Address, AuditorAccount)> {
        let state = self.state();
        let mut all = state.accounts.clone();
        for &auditor in &self.config.auditors {
            all.entry(auditor).or_default();
        }
        all.into_iter().collect()
    }

    /// How many answers wait for an auditor.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting
    }

    /// Share of a provider's answers that is audited now, in millionths; 0 if nobody audits.
    pub(crate) fn rate_ppm(&self, proven_tokens: u64) -> u32 {
        if self.config.auditors.is_empty() { 0 } else { self.policy().rate_ppm(proven_tokens) }
    }

    /// Share of answers that is looked at after so many tokens were found right, in millionths.
    pub(crate) fn rate_of(&self, tokens: u64) -> u32 {
        self.policy().rate_ppm(tokens)
    }

    fn account(&self, auditor: Address) -> AuditorAccount {
        self.state().accounts.get(&auditor).copied().unwrap_or_default()
    }

    fn draws(&self) -> MutexGuard<'_, Draws> {
        // A chain and its last beacon, both assigned whole.
        self.draws.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Entries are inserted and removed whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who signed the output token with this index; the last one for an index behind the end.
fn signed_by(parts: &[ReceiptPart], index: u32) -> Option<&ReceiptPart> {
    let mut end = 0usize;
    let found = parts.iter().find(|part| {
        end = end.saturating_add(part.output.len());
        (index as usize) < end
    });
    found.or(parts.last())
}

fn task_of(id: B256, stored: StoredReceipt) -> AuditTask {
    let finish = stored.parts.last().map_or(Finish::Open, |part| part.finish);
    let output = stored.parts.into_iter().flat_map(|part| part.output).collect();
    AuditTask { id, job: stored.job, output, finish }
}

fn end_of(outcome: AuditOutcome) -> AuditEnd {
    match outcome {
        AuditOutcome::Proven { .. } => AuditEnd::Proven,
        AuditOutcome::Caught { .. } => AuditEnd::Caught,
        AuditOutcome::Void => AuditEnd::Void,
        AuditOutcome::Failed => AuditEnd::Failed,
    }
}
