//! A redundant job: several providers, one answer that all of them gave.
//!
//! Each provider has a flight and a job of its own, the jobs differing in nothing but the nonce. Who is lost before the
//! answers are shown is replaced; who is late is sent away. Where the answers are not all the same, each is replayed:
//! the right one is returned, and who signed another is convicted. Without a replay nothing is returned: a majority is
//! no proof.

use crate::account::{Account, Hold, tokens_at_most};
use crate::directory::{Picked, Wish};
use crate::error::GatewayError;
use crate::flight::{Finished, Flight, Out, Ticket, UPDATES_MAX, Update, longest};
use crate::gateway::Inner;
use crate::model::GatewayModel;
use crate::running::Entry;
use crate::sealed::Sealed;
use assay_api::{OutputLogprob, Wishes};
use assay_protocol::{Outcome, REDUNDANT_MAX};
use assay_types::{Amount, AuditTask, Finish, Job, ProviderId, RequestHash, ResponseHash, first_u64, response_hash};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What is asked for.
pub(crate) struct Plan {
    pub(crate) needed: usize,
    /// The job of the first provider; those of the others have other nonces.
    pub(crate) job: Job,
    pub(crate) model: Arc<GatewayModel>,
    pub(crate) account: Arc<Account>,
    /// What the first job may cost, and its place in the list of what is running.
    pub(crate) first: Option<(Hold, Entry)>,
    pub(crate) only: Vec<ProviderId>,
    pub(crate) ignore: Vec<ProviderId>,
    pub(crate) wishes: Wishes,
}

/// One provider's part.
struct Arm {
    provider: ProviderId,
    id: RequestHash,
    text: String,
    logprobs: Vec<OutputLogprob>,
    finished: Option<Finished>,
    has_failed: bool,
}

struct Redundant {
    inner: Arc<Inner>,
    plan: Plan,
    out: Out,
    seal: Arc<Sealed>,
    arms: Vec<Arm>,
    sender: mpsc::Sender<(u32, Update)>,
    began: Instant,
    /// Who has not committed by then is late.
    late_at: Option<Instant>,
    last_error: Option<GatewayError>,
}

/// Runs the round and tells the client.
pub(crate) async fn run(inner: Arc<Inner>, plan: Plan, out: Out) {
    let (sender, updates) = mpsc::channel(UPDATES_MAX);
    let limit = inner.timeouts.client_write;
    let seal = Arc::new(Sealed::new(plan.needed));
    let (began, client) = (Instant::now(), out.sender.clone());
    let mut redundant =
        Redundant { inner, plan, out, seal, arms: Vec::new(), sender, began, late_at: None, last_error: None };
    let result = tokio::select! {
        result = redundant.answer(updates) => result,
        // The flights cancel as their updates are not heard any more.
        () = client.closed() => return,
    };
    let updates = result.unwrap_or_else(|error| vec![Update::Failed(error)]);
    for update in updates {
        if !redundant.out.send(update, limit).await {
            return;
        }
    }
}

impl Redundant {
    async fn answer(&mut self, mut updates: mpsc::Receiver<(u32, Update)>) -> Result<Vec<Update>, GatewayError> {
        for _ in 0..self.plan.needed {
            self.start_arm()?;
        }
        let mut seen = 0;
        while self.arms.iter().any(|arm| arm.finished.is_none() && !arm.has_failed) {
            tokio::select! {
                update = updates.recv() => {
                    // This value holds a sender.
                    let Some((arm, update)) = update else { break };
                    self.on_update(arm, update)?;
                }
                now = self.seal.changed(seen) => {
                    seen = now;
                    self.on_change();
                }
                () = late(self.late_at) => {
                    self.late_at = None;
                    let late = self.seal.drop_late();
                    for arm in self.arms.iter_mut().filter(|arm| late.contains(&arm.provider)) {
                        arm.has_failed = true;
                    }
                    self.replace()?;
                    self.on_change();
                }
            }
        }
        match self.seal.outcome() {
            Outcome::Agreement { .. } => {
                let best = self.arms.iter().position(|arm| arm.finished.is_some());
                Ok(self.tell(best.ok_or(GatewayError::Disagreement)?, |_| true))
            }
            Outcome::Disagreement { answers } => {
                let answers = answers.into_iter().map(|(response, _)| response).collect();
                self.disagreed(answers).await
            }
            Outcome::TooFew { answered } => Err(match self.last_error.take() {
                Some(error) if answered == 0 => error,
                _ => GatewayError::TooFewAgree { needed: self.plan.needed, answered },
            }),
        }
    }

    /// Sends the job to one more provider.
    fn start_arm(&mut self) -> Result<(), GatewayError> {
        let nobody = GatewayError::TooFewAgree { needed: self.plan.needed, answered: self.arms.len() };
        // Twice as many as may agree: a round that loses more has no chance.
        if self.arms.len() >= 2 * REDUNDANT_MAX {
            return Err(nobody);
        }
        let mut job = self.plan.job.clone();
        if !self.arms.is_empty() {
            getrandom::fill(job.nonce.as_mut_slice()).map_err(|_| GatewayError::Random)?;
        }
        let id = job.request_hash();
        let exclude: Vec<ProviderId> =
            self.arms.iter().map(|arm| arm.provider).chain(self.plan.ignore.iter().copied()).collect();
        let (input_tokens, max_tokens) =
            job.embed.as_ref().map_or((job.prompt.len() as u64, job.max_tokens.into()), longest);
        let wish = Wish {
            model: self.plan.model.model_id,
            input_tokens,
            max_tokens,
            only: &self.plan.only,
            exclude: &exclude,
            wishes: &self.plan.wishes,
        };
        let Picked { listing, .. } = self.inner.directory.pick(&wish, first_u64(&id.0)).map_err(|_| nobody)?;
        let provider = listing.peer.id;
        let tokens = tokens_at_most(&job);
        let (hold, entry) = match self.plan.first.take() {
            Some(first) => first,
            None => {
                let hold = self.plan.account.hold(tokens, Instant::now())?;
                let (key, name) = (self.plan.account.id, &self.plan.model.name);
                (hold, self.inner.running.enter(id, key, name, job.prompt.len() as u64))
            }
        };
        let arm = u32::try_from(self.arms.len()).unwrap_or(u32::MAX);
        self.arms.push(Arm {
            provider,
            id,
            text: String::new(),
            logprobs: Vec::new(),
            finished: None,
            has_failed: false,
        });
        let is_audited = job.embed.is_none();
        let ticket = Ticket {
            id,
            job,
            model: Arc::clone(&self.plan.model),
            hold,
            entry,
            only: vec![provider],
            ignore: Vec::new(),
            wishes: Wishes::default(),
            is_audited,
            seal: Some(Arc::clone(&self.seal)),
        };
        let out = Out { choice: arm, sender: self.sender.clone() };
        let flight = Flight::new(Arc::clone(&self.inner), ticket, out);
        self.inner.tasks.spawn(flight.run());
        Ok(())
    }

    fn on_update(&mut self, arm: u32, update: Update) -> Result<(), GatewayError> {
        let Some(arm) = self.arms.get_mut(arm as usize) else { return Ok(()) };
        match update {
            Update::Receipts(_) | Update::Started(..) => {}
            Update::Piece(text, logprobs) => {
                arm.text.push_str(&text);
                arm.logprobs.extend(logprobs);
            }
            Update::Finished(finished) => arm.finished = Some(*finished),
            // It was sent away, and is replaced already.
            Update::Failed(_) if arm.has_failed => {}
            Update::Failed(error) => {
                arm.has_failed = true;
                self.seal.lost(arm.provider);
                // What no provider can do is not asked of another.
                if matches!(error, GatewayError::JobRefused(_) | GatewayError::ShuttingDown) {
                    return Err(error);
                }
                self.last_error = Some(error);
                self.replace()?;
            }
        }
        Ok(())
    }

    /// As many as are needed, while that is possible.
    fn replace(&mut self) -> Result<(), GatewayError> {
        while !self.seal.is_shown() && self.arms.iter().filter(|arm| !arm.has_failed).count() < self.plan.needed {
            self.start_arm()?;
        }
        Ok(())
    }

    fn on_change(&mut self) {
        if self.seal.is_shown() {
            return;
        }
        if self.seal.all_committed() {
            self.late_at = None;
            self.seal.show();
        } else if self.seal.has_commitment() && self.late_at.is_none() {
            // As long again as the first one took, and a little: nobody is that much slower by itself.
            self.late_at = Some(Instant::now() + self.began.elapsed() + self.inner.timeouts.next_token);
        }
    }

    /// Replays each answer; returns the right one.
    async fn disagreed(&mut self, answers: Vec<ResponseHash>) -> Result<Vec<Update>, GatewayError> {
        let auditing = Arc::clone(&self.inner.auditing);
        let mut right = None;
        for response in answers {
            let mut first_wrong = None;
            let mut is_replayed = false;
            for index in 0..self.arms.len() {
                let Some(stored) = self.inner.store.receipt(self.arms[index].id).await? else { continue };
                let Some(part) = stored.parts.last() else { continue };
                if response_hash(&part.output, part.finish) != response
                    || !matches!(part.finish, Finish::Stop | Finish::Length)
                {
                    continue;
                }
                // One replay for all who gave it.
                if !is_replayed {
                    let task = AuditTask {
                        id: self.arms[index].id.0,
                        job: stored.job.clone(),
                        output: part.output.clone(),
                        finish: part.finish,
                    };
                    let replayed = auditing.replay(&task).await.ok_or(GatewayError::Disagreement)?;
                    let tokens = u32::try_from(part.output.len()).unwrap_or(u32::MAX);
                    first_wrong = replayed.verdict.first_wrong(tokens);
                    is_replayed = true;
                }
                match first_wrong {
                    None => right = right.or(Some(index)),
                    Some(at) => {
                        let file = auditing.file(self.arms[index].id, stored);
                        auditing.convict(&file, at).await?;
                    }
                }
            }
        }
        let right = right.ok_or(GatewayError::Disagreement)?;
        let text = self.arms[right].text.clone();
        Ok(self.tell(right, |arm| arm.text == text))
    }

    /// The answer of one arm, with the receipts of all who gave it.
    fn tell(&mut self, best: usize, agrees: impl Fn(&Arm) -> bool) -> Vec<Update> {
        let mut receipts = vec![self.arms[best].id];
        let mut providers = vec![self.arms[best].provider];
        let mut cost = Amount::ZERO;
        for (index, arm) in self.arms.iter().enumerate() {
            let Some(finished) = &arm.finished else { continue };
            cost = cost.saturating_add(finished.cost);
            if index != best && agrees(arm) {
                receipts.push(arm.id);
                providers.push(arm.provider);
            }
        }
        let arm = &mut self.arms[best];
        let Some(finished) = arm.finished.take() else { return vec![Update::Failed(GatewayError::Disagreement)] };
        let started = Update::Started(arm.provider, finished.route.clone());
        let piece = Update::Piece(std::mem::take(&mut arm.text), std::mem::take(&mut arm.logprobs));
        let last = Update::Finished(Box::new(Finished { providers, cost, ..finished }));
        vec![Update::Receipts(receipts), started, piece, last]
    }
}

async fn late(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
