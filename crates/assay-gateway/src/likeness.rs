//! Answers of class tolerant, compared with the canonical engine's in the long run: one test for each provider that goes
//! on from answer to answer (`assay_protocol::LikenessTest`). What comes of it moves the provider's reputation and
//! nothing else. A running test is not kept over a restart: it begins anew, and its tokens are compared again.

use crate::auditing::Auditing;
use crate::model::GatewayModel;
use crate::store::Store;
use assay_protocol::{Deed, Likeness, LikenessTest, is_drawn};
use assay_types::{Amount, AuditTask, B256, Finish, Job, ModelId, ProviderId, ReceiptPart, RequestHash, first_u64};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Answers that may wait to be compared; further ones are not, which is logged.
const WAITING_MAX: usize = 256;

/// What of a provider is being compared.
#[derive(Clone, Copy, Debug, Default)]
struct Running {
    test: LikenessTest,
    /// Of the answers in the test.
    fees: Amount,
}

/// Where answers are handed in.
#[derive(Debug)]
pub(crate) struct Comparing {
    auditing: Arc<Auditing>,
    store: Store,
    /// Of each tolerant model, the canonical one that it is compared with.
    models: BTreeMap<ModelId, ModelId>,
    waiting: mpsc::Sender<RequestHash>,
    running: Mutex<BTreeMap<ProviderId, Running>>,
}

impl Comparing {
    /// With the queue for [`Self::run`].
    pub(crate) fn new(
        auditing: Arc<Auditing>,
        store: Store,
        models: &[Arc<GatewayModel>],
    ) -> (Self, mpsc::Receiver<RequestHash>) {
        let (waiting, queue) = mpsc::channel(WAITING_MAX);
        let models = models.iter().map(|model| (model.manifest.tolerant().model_id(), model.model_id)).collect();
        (Self { auditing, store, models, waiting, running: Mutex::default() }, queue)
    }

    /// An answer is stored: draws whether it is compared; a new provider's all are, fewer the more was found alike.
    pub(crate) fn on_answer(&self, id: RequestHash, parts: &[ReceiptPart]) {
        let Some(part) = parts.first().filter(|part| !part.output.is_empty()) else { return };
        if !self.auditing.has_referee() {
            return;
        }
        let mut draw = B256::ZERO;
        if getrandom::fill(draw.as_mut_slice()).is_ok() {
            let rate_ppm = self.auditing.rate_of(self.auditing.standings.components(part.provider).matched_tokens);
            if !is_drawn(first_u64(&draw), rate_ppm) {
                return;
            }
        }
        self.demand(id);
    }

    /// Compares an answer whatever was drawn.
    pub(crate) fn demand(&self, id: RequestHash) {
        if self.waiting.try_send(id).is_err() {
            tracing::warn!(receipt = %id, "{WAITING_MAX} answers wait to be compared; this one is not");
        }
    }

    /// Of the running test of a provider: tokens, and how many of them were odd.
    pub(crate) fn so_far(&self, provider: ProviderId) -> (u64, u64) {
        let all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&provider).map_or((0, 0), |running| running.test.so_far())
    }

    /// Compares one after the other until `stop`.
    pub(crate) async fn run(self: Arc<Self>, mut queue: mpsc::Receiver<RequestHash>, stop: CancellationToken) {
        loop {
            let id = tokio::select! {
                id = queue.recv() => id,
                () = stop.cancelled() => return,
            };
            let Some(id) = id else { return };
            if let Err(error) = self.compare(id).await {
                tracing::error!(receipt = %id, %error, "an answer was not compared");
            }
        }
    }

    async fn compare(&self, id: RequestHash) -> Result<(), crate::store::StoreError> {
        let Some(stored) = self.store.receipt(id).await? else { return Ok(()) };
        let (Some(part), Some(&model_id)) = (stored.parts.first(), self.models.get(&stored.job.model_id)) else {
            return Ok(());
        };
        let job = Job { model_id, ..stored.job };
        let task = AuditTask { id: id.0, job, output: part.output.clone(), finish: Finish::Open };
        let Some(signs) = self.auditing.compare(&task).await else { return Ok(()) };
        let mut deeds = Vec::new();
        {
            // Numbers alone: a test that a panic cut short goes on.
            let mut all = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let running = all.entry(part.provider).or_default();
            running.fees = running.fees.saturating_add(part.signed.receipt.charged);
            for sign in signs {
                match running.test.on(sign) {
                    None => {}
                    Some(Likeness::Alike { tokens, odd }) => {
                        let fees = std::mem::take(&mut running.fees);
                        deeds.push(Deed::Matched { tokens, odd, fees });
                    }
                    Some(Likeness::Different { tokens, odd }) => {
                        running.fees = Amount::ZERO;
                        deeds.push(Deed::Deviated { tokens, odd });
                    }
                }
            }
        }
        for deed in deeds {
            if let Deed::Deviated { tokens, odd } = deed {
                let provider = part.provider;
                tracing::warn!(%provider, receipt = %id, tokens, odd, "a provider's tokens are not those of its model");
            }
            self.auditing.standings.note(part.provider, deed, Some(id)).await?;
        }
        Ok(())
    }
}
