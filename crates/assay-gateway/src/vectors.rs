//! `/v1/embeddings` and `/v1/rerank`: texts to jobs for vectors, jobs to flights, and all that comes of them to one reply.
//!
//! A request is cut into jobs of bounded size, some of which run at once; the answer is whole or an error. What was
//! computed before an error is charged and has its receipt, as with every answer that breaks.

use crate::account::{Account, Hold};
use crate::ask::{holds, name_receipt, tell_route};
use crate::error::GatewayError;
use crate::flight::{Finished, Flight, Out, Ticket, UPDATES_MAX, Update};
use crate::gateway::Inner;
use crate::http::{Shared, Use, find_model, paid, tokenize, typed};
use crate::model::GatewayModel;
use crate::redundant::{self, Plan};
use crate::voice::Shape;
use assay_api::{
    Asked, EmbeddingRequest, Input, RequestError, RerankRequest, VectorInfo, VectorUsage, Verify, embedding_reply,
    rerank_reply,
};
use assay_types::{
    Amount, B256, EMBED_TEXTS_MAX, EMBED_TOKENS_MAX, EMBED_VALUES_MAX, Job, ProviderId, RequestHash, TokenId,
};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, Response};
use axum::routing::post;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Jobs of one request that run at once.
const JOBS_AT_ONCE: usize = 4;

pub(crate) fn paths() -> Router<Arc<Inner>> {
    Router::new().route("/v1/embeddings", post(embeddings)).route("/v1/rerank", post(rerank))
}

async fn embeddings(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    paid(&inner, request, Shape::OpenAi, async |account, bytes| {
        let mut request = EmbeddingRequest::parse(&bytes)?;
        let model = find_model(&inner, &request.model, Use::Vectors)?;
        if let (Some(asked), Some(own)) = (request.dimensions, model.dimensions)
            && asked != own
        {
            let reason = format!("this model's vectors have {own} values, and fewer of them are no good vectors");
            return Err(RequestError::invalid("dimensions", reason).into());
        }
        let input = std::mem::take(&mut request.input);
        let is_single = input.len() == 1;
        let read = move |model: &GatewayModel| -> Vec<Vec<TokenId>> {
            let tokens = |input| match input {
                Input::Text(text) => model.text_prompt(&text),
                Input::Tokens(tokens) => tokens,
            };
            input.into_iter().map(tokens).collect()
        };
        let texts = tokenize(bytes.len(), Arc::clone(&model), read).await?;
        let name = |index| if is_single { "input".to_owned() } else { format!("input[{index}]") };
        check(&model, &texts, name)?;
        let done = vectors(&inner, account, model, &request.model, texts, &request.asked).await?;
        Ok(done.reply(embedding_reply(&request, &done.vectors, done.usage, &done.info)))
    })
    .await
}

async fn rerank(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    paid(&inner, request, Shape::OpenAi, async |account, bytes| {
        let request = RerankRequest::parse(&bytes)?;
        let model = find_model(&inner, &request.model, Use::Vectors)?;
        let lines: Vec<String> = std::iter::once(&request.query).chain(&request.documents).cloned().collect();
        let read = move |model: &GatewayModel| -> Vec<Vec<TokenId>> {
            lines.iter().map(|line| model.text_prompt(line)).collect()
        };
        let texts = tokenize(bytes.len(), Arc::clone(&model), read).await?;
        let name = |index: usize| index.checked_sub(1).map_or("query".to_owned(), |n| format!("documents[{n}]"));
        check(&model, &texts, name)?;
        let done = vectors(&inner, account, model, &request.model, texts, &request.asked).await?;
        let scores: Vec<f64> = match done.vectors.split_first() {
            Some((query, documents)) => documents.iter().map(|document| cosine(query, document)).collect(),
            None => Vec::new(),
        };
        Ok(done.reply(rerank_reply(&request, &scores, done.usage, &done.info)))
    })
    .await
}

/// All vectors of a request.
struct Vectors {
    /// In the order of the texts.
    vectors: Vec<Vec<f32>>,
    usage: VectorUsage,
    info: VectorInfo,
    /// Of the first job.
    route: String,
}

impl Vectors {
    fn reply(&self, body: Vec<u8>) -> Response<Body> {
        let mut response = typed("application/json", body);
        name_receipt(&mut response, self.info.receipt);
        tell_route(&mut response, &self.route);
        response
    }
}

/// What is wrong with the texts, with the field that has it.
fn check(model: &GatewayModel, texts: &[Vec<TokenId>], name: impl Fn(usize) -> String) -> Result<(), GatewayError> {
    let limits = model.job_limits();
    for (index, text) in texts.iter().enumerate() {
        if text.len() > limits.context_length as usize {
            let (param, tokens, max) = (name(index), text.len(), limits.context_length);
            return Err(GatewayError::TextTooLong { param, tokens, max });
        }
        if let Some(token) = text.iter().find(|token| **token >= limits.vocab_size) {
            let reason = format!("token id {token} is outside the vocabulary of {}", limits.vocab_size);
            return Err(RequestError::invalid(name(index), reason).into());
        }
    }
    Ok(())
}

async fn vectors(
    inner: &Arc<Inner>,
    account: Arc<Account>,
    model: Arc<GatewayModel>,
    name: &str,
    texts: Vec<Vec<TokenId>>,
    asked: &Asked,
) -> Result<Vectors, GatewayError> {
    if inner.stop.is_cancelled() {
        return Err(GatewayError::ShuttingDown);
    }
    let tokens = texts.iter().map(|text| text.len() as u64).sum();
    let jobs = jobs(&model, &texts)?;
    let at_once = jobs.len().min(JOBS_AT_ONCE);
    let permits = u32::try_from(at_once).unwrap_or(u32::MAX);
    let permits = Arc::clone(&inner.requests).try_acquire_many_owned(permits).map_err(|_| GatewayError::Busy)?;
    // All that is asked for, or nothing.
    let holds = holds(&account, &jobs)?;
    let permits = Arc::new(permits);
    let parts: Vec<Part> = stream::iter(jobs.into_iter().zip(holds))
        .map(|(job, hold)| part(inner, &account, &model, name, asked, (job, hold), Arc::clone(&permits)))
        .buffered(at_once.max(1))
        .try_collect()
        .await?;
    Ok(gather(parts, VectorUsage::new(tokens)))
}

/// As few jobs as the bounds of one allow.
fn jobs(model: &GatewayModel, texts: &[Vec<TokenId>]) -> Result<Vec<Job>, GatewayError> {
    let dimensions = model.dimensions.unwrap_or(0);
    let count_max = (EMBED_VALUES_MAX / dimensions.max(1) as usize).clamp(1, EMBED_TEXTS_MAX);
    let mut jobs = Vec::new();
    let mut rest = texts;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |text: &&Vec<TokenId>| {
            tokens += text.len();
            tokens <= EMBED_TOKENS_MAX
        };
        let count = rest.iter().take(count_max).take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        let mut nonce = B256::ZERO;
        getrandom::fill(nonce.as_mut_slice()).map_err(|_| GatewayError::Random)?;
        let job = Job::embedding(model.model_id, now, dimensions, nonce);
        job.validate(&model.job_limits())?;
        jobs.push(job);
        rest = later;
    }
    Ok(jobs)
}

/// What came of one job.
struct Part {
    receipts: Vec<RequestHash>,
    dimensions: usize,
    finished: Finished,
}

async fn part(
    inner: &Arc<Inner>,
    account: &Arc<Account>,
    model: &Arc<GatewayModel>,
    name: &str,
    asked: &Asked,
    (job, hold): (Job, Hold),
    permits: Arc<OwnedSemaphorePermit>,
) -> Result<Part, GatewayError> {
    let id = job.request_hash();
    let dimensions = job.embed.as_ref().map_or(0, |embed| embed.dimensions as usize);
    let prompt_tokens = job.prompt.len() as u64;
    inner.metrics.tokens_prompt.inc_by(prompt_tokens);
    let entry = inner.running.enter(id, account.id, name, prompt_tokens);
    let (sender, mut updates) = mpsc::channel(UPDATES_MAX);
    let out = Out { choice: 0, sender };
    let (only, ignore, wishes) = (asked.only.clone(), asked.ignore.clone(), asked.wishes.clone());
    let (gauge, model) = (Arc::clone(inner), Arc::clone(model));
    let account = Arc::clone(account);
    let verify = asked.verify;
    // Runs to its receipt, whoever listens.
    inner.tasks.spawn(async move {
        gauge.metrics.requests_running.inc();
        match verify {
            Verify::Redundant(providers) => {
                let (needed, first) = (providers as usize, Some((hold, entry)));
                let plan = Plan { needed, job, model, account, first, only, ignore, wishes };
                redundant::run(Arc::clone(&gauge), plan, out).await;
            }
            Verify::Exact | Verify::Tolerant | Verify::None => {
                let is_audited = false;
                let ticket = Ticket { id, job, model, hold, entry, only, ignore, wishes, is_audited, seal: None };
                Flight::new(Arc::clone(&gauge), ticket, out).run().await;
            }
        }
        gauge.metrics.requests_running.dec();
        drop(permits);
    });
    let mut receipts = vec![id];
    while let Some((_, update)) = updates.recv().await {
        match update {
            Update::Receipts(agreed) => receipts = agreed,
            Update::Started(..) | Update::Piece(..) => {}
            Update::Finished(finished) => return Ok(Part { receipts, dimensions, finished: *finished }),
            Update::Failed(error) => return Err(error),
        }
    }
    Err(GatewayError::ShuttingDown)
}

fn gather(parts: Vec<Part>, usage: VectorUsage) -> Vectors {
    let mut vectors = Vec::new();
    let mut receipts = Vec::new();
    let mut providers: Vec<ProviderId> = Vec::new();
    let mut cost = Amount::ZERO;
    let route = parts.first().map(|part| part.finished.route.clone()).unwrap_or_default();
    for Part { receipts: own, dimensions, finished } in parts {
        let values: Vec<f32> = finished.values.into_iter().map(f32::from_bits).collect();
        vectors.extend(values.chunks(dimensions.max(1)).map(<[f32]>::to_vec));
        receipts.extend(own);
        for provider in finished.providers {
            if !providers.contains(&provider) {
                providers.push(provider);
            }
        }
        cost = cost.saturating_add(finished.cost);
    }
    let receipt = receipts.first().copied().unwrap_or_default();
    if receipts.len() == 1 {
        receipts.clear();
    }
    Vectors { vectors, usage, info: VectorInfo { receipt, receipts, providers, cost }, route }
}

/// Of two vectors of as many values; 0 if one of them has no direction. In `f64` and in one order, so that whoever has
/// the receipt computes the same score.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0, |sum, (x, y)| sum + f64::from(*x) * f64::from(*y));
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::cosine;

    #[test]
    fn scores_are_cosines() {
        assert_eq!(cosine(&[3.0, 4.0], &[6.0, 8.0]), 1.0);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
        assert_eq!(cosine(&[1.0, 0.0], &[-5.0, 0.0]), -1.0);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 1.0]), 0.0);
    }
}
