//! What auditors say to the gateway: they ask for a task, commit to a finding, and prove it. No API key: each request is
//! signed, or opens what was signed. And what came of it, for whoever has a key: every provider's standing with the
//! events that it is made of, every auditor's account, the latest audits.

use crate::auditing::AuditError;
use crate::body;
use crate::error::GatewayError;
use crate::gateway::Inner;
use crate::http::{Reply, Shared, authorize, finish, json, typed};
use assay_protocol::{Deed, Event};
use assay_types::{AuditCommit, AuditLease, AuditProof, B256, ModelId, Offer, ProviderId, RequestHash};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Paths below `/v1/audits`.
pub(crate) fn routes() -> Router<Arc<Inner>> {
    Router::new()
        .route("/v1/providers", get(providers))
        .route("/v1/audits", get(audits))
        .route("/v1/audits/lease", post(lease))
        .route("/v1/audits/beacon", get(beacon))
        .route("/v1/audits/{id}/commit", post(commit))
        .route("/v1/audits/{id}/proof", post(proof))
}

async fn lease(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    let reply = async {
        let lease: AuditLease = read(&inner, request).await?;
        Ok(match inner.auditing.lease(&lease).await? {
            Some(task) => json(&task),
            None => {
                let mut nothing = typed("application/json", Body::empty());
                *nothing.status_mut() = StatusCode::NO_CONTENT;
                nothing
            }
        })
    };
    let reply: Reply = reply.await;
    finish(&inner, reply)
}

async fn commit(State(inner): Shared, Path(id): Path<String>, request: Request<Body>) -> Response<Body> {
    let reply = async {
        let id = task_id(&id)?;
        let commit: AuditCommit = read(&inner, request).await?;
        Ok(json(&inner.auditing.commit(id, commit)?))
    };
    let reply: Reply = reply.await;
    finish(&inner, reply)
}

async fn proof(State(inner): Shared, Path(id): Path<String>, request: Request<Body>) -> Response<Body> {
    let reply = async {
        let id = task_id(&id)?;
        let proof: AuditProof = read(&inner, request).await?;
        // What follows from a proof is booked whether or not the auditor waits for the reply.
        let auditing = Arc::clone(&inner.auditing);
        let proved = inner.tasks.spawn(async move { auditing.prove(id, proof).await });
        Ok(json(&proved.await.map_err(|_| GatewayError::ShuttingDown)??))
    };
    let reply: Reply = reply.await;
    finish(&inner, reply)
}

/// The running chain of beacons, for whoever checks draws.
async fn beacon(State(inner): Shared) -> Response<Body> {
    let (anchor, epoch, revealed) = inner.auditing.beacon();
    finish(&inner, Ok(json(&json!({"anchor": anchor, "epoch": epoch, "revealed": revealed}))))
}

/// Audits that are shown.
const RECORDS_SHOWN: u32 = 100;
/// Models of one provider that are shown.
const MODELS_SHOWN: usize = 16;

async fn providers(State(inner): Shared, headers: HeaderMap) -> Response<Body> {
    let reply = authorize(&inner, &headers).map(|_| json(&all_providers(&inner)));
    finish(&inner, reply)
}

async fn audits(State(inner): Shared, headers: HeaderMap) -> Response<Body> {
    let reply = async {
        authorize(&inner, &headers)?;
        Ok(json(&all_audits(&inner).await?))
    };
    let reply: Reply = reply.await;
    finish(&inner, reply)
}

/// Everyone who offers anything or did anything: the score, what it is made of, and the events behind it.
pub(crate) fn all_providers(inner: &Inner) -> Value {
    let ready: BTreeSet<ProviderId> = inner.directory.ready().into_iter().collect();
    let standings = &inner.auditing.standings;
    let mut ids: BTreeSet<ProviderId> = inner.directory.listed().into_iter().collect();
    ids.extend(standings.known_providers());
    let one = |id: ProviderId| {
        let standing = standings.show(id);
        let parts = standing.components;
        let (comparing_tokens, comparing_odd) = inner.comparing.so_far(id);
        json!({
            "id": id, "ready": ready.contains(&id), "score_ppm": parts.score_ppm, "floor_ppm": parts.floor_ppm,
            "earned_ppm": parts.earned_ppm, "offences_ppm": parts.offences_ppm, "convictions": parts.convictions,
            "proven_fees": parts.proven_fees, "proven_tokens": parts.proven_tokens,
            "matched_tokens": parts.matched_tokens, "deviations_ppm": parts.deviations_ppm,
            "comparing": {"tokens": comparing_tokens, "odd": comparing_odd},
            "offer": inner.directory.offer(id).map(|offer| offered(inner, &offer)),
            "audit_rate_ppm": inner.auditing.rate_ppm(parts.proven_tokens),
            "events": standing.events.iter().rev().map(event).collect::<Vec<_>>(),
        })
    };
    json!({"object": "list", "data": ids.into_iter().map(one).collect::<Vec<_>>()})
}

/// What a provider offers right now.
fn offered(inner: &Inner, offer: &Offer) -> Value {
    let class = |id: ModelId| {
        let known = inner.models.iter().chain(&inner.tolerant).find(|model| model.model_id == id);
        known.map(|model| model.class())
    };
    let models = offer.models.iter().take(MODELS_SHOWN).map(|model| {
        json!({
            "name": model.name, "model_id": model.model_id, "class": class(model.model_id),
            "context_length": model.context_length, "input_per_million": model.prices.input_per_million,
            "output_per_million": model.prices.output_per_million,
        })
    });
    json!({
        "models": models.collect::<Vec<_>>(), "capacity": offer.capacity, "running": offer.running,
        "queued": offer.queued, "draining": offer.draining,
    })
}

fn event((event, receipt): &(Event, Option<RequestHash>)) -> Value {
    let (deed, tokens, fees) = match event.deed {
        Deed::Proven { tokens, fees } => ("proven", Some(tokens), Some(fees)),
        Deed::Matched { tokens, fees, .. } => ("matched", Some(tokens), Some(fees)),
        Deed::Deviated { tokens, .. } => ("deviated", Some(tokens), None),
        Deed::Answered { tokens, .. } => ("answered", Some(tokens), None),
        Deed::Silent => ("silent", None, None),
        Deed::Abandoned => ("abandoned", None, None),
        Deed::Withheld => ("withheld", None, None),
        Deed::Accused => ("accused", None, None),
        Deed::Convicted => ("convicted", None, None),
    };
    let mut line = json!({"at": event.at, "deed": deed, "tokens": tokens, "fees": fees, "receipt": receipt});
    match event.deed {
        Deed::Matched { odd, .. } | Deed::Deviated { odd, .. } => line["odd"] = odd.into(),
        Deed::Answered { first_millis, millis, .. } => {
            line["first_millis"] = first_millis.into();
            line["millis"] = millis.into();
        }
        _ => {}
    }
    line
}

/// The latest audits, how many answers wait, and what every auditor has done and earned.
pub(crate) async fn all_audits(inner: &Inner) -> Result<Value, GatewayError> {
    let records = inner.store.audit_records(RECORDS_SHOWN).await?;
    // They were written here, as JSON.
    let records: Vec<Value> = records.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
    let account = |(auditor, account): (assay_types::Address, assay_protocol::AuditorAccount)| {
        json!({
            "id": auditor, "proven": account.proven, "caught": account.caught, "failed": account.failed,
            "earned": account.earned, "lost": account.lost, "is_trusted": account.is_trusted(),
        })
    };
    let auditors: Vec<Value> = inner.auditing.accounts().into_iter().map(account).collect();
    Ok(json!({"object": "list", "data": records, "waiting": inner.auditing.waiting(), "auditors": auditors}))
}

fn task_id(text: &str) -> Result<B256, GatewayError> {
    text.parse().map_err(|_| GatewayError::Audit(AuditError::NoTask(B256::ZERO)))
}

async fn read<T: DeserializeOwned>(inner: &Arc<Inner>, request: Request<Body>) -> Result<T, GatewayError> {
    let bytes = body::read(inner, request).await?;
    serde_json::from_slice(&bytes).map_err(|error| GatewayError::BadAudit(error.to_string()))
}
