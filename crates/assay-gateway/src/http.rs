//! The HTTP surface: who may ask, what is asked, and the reply's shape. No status codes: see `rescue`.

use crate::body;
use crate::clock;
use crate::error::GatewayError;
use crate::flight::{Finished, Flight, Ticket, UPDATES_MAX, Update};
use crate::gateway::Inner;
use crate::keys::KeyId;
use crate::model::GatewayModel;
use crate::rescue;
use crate::store::parse_receipt_id;
use assay_api::{
    AssayInfo, ChatCompletion, ChatRequest, Completion, CompletionRequest, Ending, FinishReason, Head, ModelCard,
    ModelList, Options, Prompt, StreamEncoder, StreamKind, Usage, error_event,
};
use assay_types::{B256, Job, ProviderId, RECEIPT_FILE_VERSION, ReceiptFile, RequestHash, TokenId};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use axum::routing::{get, post};
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Name of the receipt on every reply.
const RECEIPT_HEADER: HeaderName = HeaderName::from_static("x-assay-receipt");
/// Prompts from this many bytes are tokenized off the I/O threads.
const TOKENIZE_INLINE_BYTES_MAX: usize = 16 << 10;

type Shared = State<Arc<Inner>>;
type Reply = Result<Response<Body>, GatewayError>;

/// All paths.
pub(crate) fn router(inner: Arc<Inner>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/v1/receipts/{id}", get(receipt))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(inner)
}

async fn chat(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    let reply = async {
        let key = authorize(&inner, request.headers())?;
        let bytes = body::read(&inner, request).await?;
        let chat = ChatRequest::parse(&bytes, &inner.limits.request)?;
        let model = find_model(&inner, &chat.model)?;
        let prompt =
            tokenize(bytes.len(), Arc::clone(&model), move |model| model.chat_prompt(&chat.messages)).await??;
        let ask = Ask { kind: StreamKind::Chat, key, name: chat.model, model, prompt, options: chat.options };
        answer(&inner, ask).await
    };
    finish(&inner, reply.await)
}

async fn completions(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    let reply = async {
        let key = authorize(&inner, request.headers())?;
        let bytes = body::read(&inner, request).await?;
        let completion = CompletionRequest::parse(&bytes)?;
        let model = find_model(&inner, &completion.model)?;
        let prompt = match completion.prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => {
                tokenize(bytes.len(), Arc::clone(&model), move |model| model.text_prompt(&text)).await?
            }
        };
        let (name, options) = (completion.model, completion.options);
        answer(&inner, Ask { kind: StreamKind::Completion, key, name, model, prompt, options }).await
    };
    finish(&inner, reply.await)
}

async fn models(State(inner): Shared, headers: HeaderMap) -> Response<Body> {
    let reply = authorize(&inner, &headers).map(|_| json(&model_list(&inner)));
    finish(&inner, reply)
}

/// One card for each name.
fn model_list(inner: &Inner) -> ModelList {
    let mut cards = Vec::new();
    for model in &inner.models {
        let offered = inner.directory.longest_context(model.model_id).unwrap_or(model.context_length);
        let context = offered.min(model.context_length);
        for name in std::iter::once(&model.name).chain(&model.aliases) {
            cards.push(ModelCard::new(name.clone(), inner.started_at, context, model.model_id));
        }
    }
    ModelList::new(cards)
}

async fn receipt(State(inner): Shared, Path(id): Path<String>, headers: HeaderMap) -> Response<Body> {
    let reply = async {
        let key = authorize(&inner, &headers)?;
        let not_found = || GatewayError::ReceiptNotFound(id.chars().take(80).collect());
        let id = parse_receipt_id(&id).ok_or_else(not_found)?;
        if inner.running.owner(id) == Some(key) {
            return Err(GatewayError::ReceiptPending);
        }
        // Another key's receipt is not found: its existence is nobody else's business.
        let stored = inner.store.receipt(id).await?.filter(|stored| stored.key_id == key.0).ok_or_else(not_found)?;
        if stored.parts.is_empty() {
            return Err(GatewayError::ReceiptEmpty);
        }
        let network = inner.purse.network;
        let file = ReceiptFile {
            version: RECEIPT_FILE_VERSION,
            id,
            chain_id: network.chain_id,
            registry: network.registry,
            settlement: network.settlement,
            manifest: stored.manifest,
            job: stored.job,
            parts: stored.parts,
        };
        let text = serde_json::to_vec_pretty(&file).map_err(|_| crate::store::StoreError::BadRow("receipt"))?;
        Ok(typed("application/json", text))
    };
    finish(&inner, reply.await)
}

async fn healthz(State(inner): Shared) -> Response<Body> {
    finish(&inner, Ok(typed("application/json", r#"{"status":"ok"}"#)))
}

async fn readyz(State(inner): Shared) -> Response<Body> {
    let is_ready = inner.models.iter().all(|model| inner.directory.serves(model.model_id));
    let reply = if inner.stop.is_cancelled() {
        Err(GatewayError::ShuttingDown)
    } else if is_ready {
        Ok(typed("application/json", r#"{"status":"ready"}"#))
    } else {
        Err(GatewayError::NoProvider)
    };
    finish(&inner, reply)
}

async fn metrics(State(inner): Shared) -> Response<Body> {
    inner.metrics.providers.set(i64::try_from(inner.directory.ready().len()).unwrap_or(i64::MAX));
    let text = inner.metrics.text();
    finish(&inner, Ok(typed("application/openmetrics-text; version=1.0.0; charset=utf-8", text)))
}

async fn unknown_url(State(inner): Shared, method: Method, uri: Uri) -> Response<Body> {
    let path = uri.path().chars().take(128).collect();
    finish(&inner, Err(GatewayError::UnknownUrl { method: method.to_string(), path }))
}

async fn method_not_allowed(State(inner): Shared, method: Method) -> Response<Body> {
    finish(&inner, Err(GatewayError::MethodNotAllowed { method: method.to_string() }))
}

fn finish(inner: &Inner, reply: Reply) -> Response<Body> {
    let response = reply.unwrap_or_else(|error| rescue::response(&error));
    inner.metrics.response(response.status().as_u16());
    response
}

fn typed(content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn json(value: &impl serde::Serialize) -> Response<Body> {
    // Own types of strings and integers always have a JSON form.
    typed("application/json", serde_json::to_vec(value).unwrap_or_default())
}

fn authorize(inner: &Inner, headers: &HeaderMap) -> Result<KeyId, GatewayError> {
    let header = headers.get(AUTHORIZATION).ok_or(GatewayError::MissingKey)?;
    let text = header.to_str().map_err(|_| GatewayError::BadKey)?;
    let (scheme, key) = text.split_once(' ').ok_or(GatewayError::BadKey)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(GatewayError::BadKey);
    }
    inner.keys.check(key.trim()).ok_or(GatewayError::BadKey)
}

fn find_model(inner: &Inner, name: &str) -> Result<Arc<GatewayModel>, GatewayError> {
    let found = inner.models.iter().find(|model| model.answers_to(name));
    found.cloned().ok_or_else(|| GatewayError::ModelNotFound(name.into()))
}

async fn tokenize<T: Send + 'static>(
    bytes: usize,
    model: Arc<GatewayModel>,
    work: impl FnOnce(&GatewayModel) -> T + Send + 'static,
) -> Result<T, GatewayError> {
    if bytes < TOKENIZE_INLINE_BYTES_MAX {
        return Ok(work(&model));
    }
    // Fails only if the work panics or the runtime is being shut down.
    tokio::task::spawn_blocking(move || work(&model)).await.map_err(|_| GatewayError::ShuttingDown)
}

/// A request that was read and tokenized.
struct Ask {
    kind: StreamKind,
    key: KeyId,
    /// The model's name as it was asked for.
    name: String,
    model: Arc<GatewayModel>,
    prompt: Vec<TokenId>,
    options: Options,
}

/// What a reply repeats.
struct Frame {
    kind: StreamKind,
    head: Head,
    prompt_tokens: u64,
    id: RequestHash,
    seed: u64,
    warnings: Vec<String>,
}

async fn answer(inner: &Arc<Inner>, ask: Ask) -> Reply {
    if inner.stop.is_cancelled() {
        return Err(GatewayError::ShuttingDown);
    }
    let permit = Arc::clone(&inner.requests).try_acquire_owned().map_err(|_| GatewayError::Busy)?;
    let job = job(inner, &ask)?;
    let id = job.request_hash();
    let prefix = if ask.kind == StreamKind::Chat { "chatcmpl" } else { "cmpl" };
    let frame = Frame {
        kind: ask.kind,
        head: Head {
            id: format!("{prefix}-{}", &id.to_string()[2..26]),
            created: clock::unix_seconds(),
            model: ask.name,
            system_fingerprint: ask.model.fingerprint(),
        },
        prompt_tokens: job.prompt.len() as u64,
        id,
        seed: job.sampling.seed,
        warnings: ask.options.warnings,
    };
    inner.metrics.tokens_prompt.inc_by(frame.prompt_tokens);
    let (out, updates) = mpsc::channel(UPDATES_MAX);
    let running = inner.running.enter(id, ask.key);
    let (only, ignore) = (ask.options.only, ask.options.ignore);
    let ticket = Ticket { id, job, model: ask.model, key: ask.key, only, ignore };
    let flight = Flight::new(Arc::clone(inner), ticket, out);
    let gauge = Arc::clone(inner);
    inner.tasks.spawn(async move {
        gauge.metrics.requests_running.inc();
        flight.run().await;
        gauge.metrics.requests_running.dec();
        drop((running, permit));
    });
    let reply = if ask.options.stream {
        streamed(frame, updates, ask.options.include_usage).await
    } else {
        whole(frame, updates).await
    };
    // The receipt's name is known from the start, whatever comes of the request.
    let mut response = reply.unwrap_or_else(|error| rescue::response(&error));
    if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
        response.headers_mut().insert(RECEIPT_HEADER, value);
    }
    Ok(response)
}

fn job(inner: &Inner, ask: &Ask) -> Result<Job, GatewayError> {
    let mut random = [0u8; 40];
    getrandom::fill(&mut random).map_err(|_| GatewayError::Random)?;
    let nonce = B256::from_slice(&random[..32]);
    let seed = random[32..].iter().fold(0, |seed, &byte| seed << 8 | u64::from(byte));
    // 53 bits: the seed is reported as a JSON number, which many readers hold in a double.
    let seed = seed >> 11;
    let limits = ask.model.job_limits();
    let offered = inner.directory.longest_context(ask.model.model_id).unwrap_or(limits.context_length);
    let context = u64::from(offered.min(limits.context_length));
    let room = context.saturating_sub(ask.prompt.len() as u64);
    let max_tokens = u32::try_from(room).unwrap_or(u32::MAX).min(inner.limits.max_tokens_default);
    if max_tokens == 0 {
        let needed = ask.prompt.len() as u64 + 1;
        return Err(GatewayError::ContextLength { needed, longest: offered.min(limits.context_length) });
    }
    let job = ask.options.job(ask.model.model_id, ask.prompt.clone(), max_tokens, seed, nonce);
    job.validate(&limits)?;
    Ok(job)
}

impl Frame {
    fn assay(&self, providers: Vec<ProviderId>) -> AssayInfo {
        AssayInfo { receipt: self.id, providers, cost: None, seed: self.seed }
    }

    /// Only an output that ended by itself gets here.
    fn end(&mut self, finished: Finished) -> Ending {
        let assay = AssayInfo { cost: Some(finished.cost), ..self.assay(finished.providers) };
        Ending {
            finish_reason: FinishReason::from_finish(finished.finish).unwrap_or(FinishReason::Length),
            usage: Usage::new(self.prompt_tokens, finished.output_tokens),
            assay,
            warnings: std::mem::take(&mut self.warnings),
        }
    }
}

async fn whole(mut frame: Frame, mut updates: mpsc::Receiver<Update>) -> Reply {
    let mut text = String::new();
    let finished = loop {
        match updates.recv().await {
            Some(Update::Started(_)) => {}
            Some(Update::Text(piece)) => text.push_str(&piece),
            Some(Update::Finished(finished)) => break finished,
            Some(Update::Failed(error)) => return Err(error),
            None => return Err(GatewayError::ShuttingDown),
        }
    };
    let ending = frame.end(*finished);
    Ok(match frame.kind {
        StreamKind::Chat => json(&ChatCompletion::new(frame.head, text, ending)),
        StreamKind::Completion => json(&Completion::new(frame.head, text, ending)),
    })
}

/// Waits for the first token, so that what fails before it is an HTTP error and not a broken stream.
async fn streamed(frame: Frame, mut updates: mpsc::Receiver<Update>, include_usage: bool) -> Reply {
    let provider = match updates.recv().await {
        Some(Update::Started(provider)) => provider,
        Some(Update::Failed(error)) => return Err(error),
        // A flight says `Started` before anything else; without a word it was cut at shutdown.
        Some(Update::Text(_) | Update::Finished(_)) | None => return Err(GatewayError::ShuttingDown),
    };
    let encoder = StreamEncoder::new(frame.kind, &frame.head, include_usage);
    let first = Bytes::from(encoder.start(&frame.assay(vec![provider])));
    let state = Some((updates, encoder, frame));
    let rest = stream::unfold(state, async |state| {
        let (mut updates, encoder, mut frame) = state?;
        let (bytes, is_last) = match updates.recv().await {
            Some(Update::Started(_)) => (Vec::new(), false),
            Some(Update::Text(text)) => (encoder.text(&text), false),
            Some(Update::Finished(finished)) => (encoder.finish(&frame.end(*finished)), true),
            Some(Update::Failed(error)) => (error_event(&rescue::error_body(&error)), true),
            None => (error_event(&rescue::error_body(&GatewayError::ShuttingDown)), true),
        };
        let next = (!is_last).then_some((updates, encoder, frame));
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), next))
    });
    let events = stream::StreamExt::chain(stream::once(async { Ok(first) }), rest);
    let mut response = typed("text/event-stream; charset=utf-8", Body::from_stream(events));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}
