//! The HTTP surface: who may ask, what is asked, and the reply's shape. No status codes: see `rescue`.

use crate::account::{Account, Rate};
use crate::ask::{self, Ask};
use crate::audit_http;
use crate::body;
use crate::error::GatewayError;
use crate::gateway::Inner;
use crate::model::GatewayModel;
use crate::page;
use crate::rescue;
use crate::serve::Routers;
use crate::store::parse_receipt_id;
use crate::tools;
use crate::vectors;
use crate::voice::{Dialect, Shape};
use assay_api::{
    ChatRequest, CompletionRequest, Constraint, ModelCard, ModelList, Options, Prompt, ResponsesRequest, ToolChoice,
    Verify,
};
use assay_types::{Class, RECEIPT_FILE_VERSION, ReceiptFile};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use axum::routing::{get, post};
use serde_json::Value;
use std::sync::Arc;
use tokio::time::Instant;

/// Prompts from this many bytes are tokenized off the I/O threads.
const TOKENIZE_INLINE_BYTES_MAX: usize = 16 << 10;

/// The key, where it is not in `Authorization`.
const KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

pub(crate) type Shared = State<Arc<Inner>>;
pub(crate) type Reply = Result<Response<Body>, GatewayError>;

/// The description of all paths.
const OPENAPI: &str = include_str!("openapi.json");

/// All paths. Counters are for those on this machine.
pub(crate) fn routers(inner: &Arc<Inner>) -> Routers {
    let whole = |paths: Router<Arc<Inner>>| {
        let others = paths.fallback(unknown_url).method_not_allowed_fallback(method_not_allowed);
        others.with_state(Arc::clone(inner))
    };
    Routers { local: whole(paths().route("/metrics", get(metrics))), remote: whole(paths()) }
}

fn paths() -> Router<Arc<Inner>> {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/messages", post(messages))
        .route("/v1/responses", post(responses))
        .route("/v1/models", get(models))
        .route("/v1/receipts/{id}", get(receipt))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/openapi.json", get(openapi))
        .merge(vectors::paths())
        .merge(page::paths())
        .merge(audit_http::routes())
}

async fn chat(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    paid(&inner, request, Shape::OpenAi, async |account, bytes| {
        let chat = ChatRequest::parse(&bytes, &inner.limits.request)?;
        ask::answer(&inner, chat_ask(&inner, account, chat, Dialect::Chat, bytes.len()).await?).await
    })
    .await
}

async fn messages(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    paid(&inner, request, Shape::Anthropic, async |account, bytes| {
        let chat = ChatRequest::parse_messages(&bytes, &inner.limits.request)?;
        ask::answer(&inner, chat_ask(&inner, account, chat, Dialect::Messages, bytes.len()).await?).await
    })
    .await
}

async fn responses(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    paid(&inner, request, Shape::OpenAi, async |account, bytes| {
        let ResponsesRequest { chat, echo } = ResponsesRequest::parse(&bytes, &inner.limits.request)?;
        ask::answer(&inner, chat_ask(&inner, account, chat, Dialect::Responses(echo), bytes.len()).await?).await
    })
    .await
}

/// A conversation, whatever API it came by, as a prompt.
async fn chat_ask(
    inner: &Inner,
    account: Arc<Account>,
    chat: ChatRequest,
    dialect: Dialect,
    bytes: usize,
) -> Result<Ask, GatewayError> {
    let ChatRequest { model: name, messages, tooling, mut options } = chat;
    let model = find_model(inner, &name, Use::Text)?;
    let work = move |model: &GatewayModel| (model.chat_prompt(&messages, &tooling), tooling);
    let (prompt, tooling) = tokenize(bytes, Arc::clone(&model), work).await?;
    let prompt = prompt?;
    let is_offered = !tooling.tools.is_empty() && tooling.choice != ToolChoice::None;
    let tools = model.tool_style().filter(|_| is_offered).map(|style| (style, tooling));
    if let Some(grammar) = tools.as_ref().and_then(|(style, tooling)| tools::grammar(tooling, *style)) {
        options.constraint = Some(Constraint { grammar, param: "tools" });
    }
    let model = of_class(inner, model, &options)?;
    Ok(Ask { dialect, account, name, model, prompt, options, tools })
}

async fn completions(State(inner): Shared, request: Request<Body>) -> Response<Body> {
    paid(&inner, request, Shape::OpenAi, async |account, bytes| {
        let completion = CompletionRequest::parse(&bytes)?;
        let model = find_model(&inner, &completion.model, Use::Text)?;
        let prompt = match completion.prompt {
            Prompt::Tokens(tokens) => tokens,
            Prompt::Text(text) => {
                tokenize(bytes.len(), Arc::clone(&model), move |model| model.text_prompt(&text)).await?
            }
        };
        let (dialect, name, options) = (Dialect::Completion, completion.model, completion.options);
        let model = of_class(&inner, model, &options)?;
        ask::answer(&inner, Ask { dialect, account, name, model, prompt, options, tools: None }).await
    })
    .await
}

/// What all requests that cost something share: a key, its rates, a body, and headers that tell of the rates.
pub(crate) async fn paid(
    inner: &Inner,
    request: Request<Body>,
    shape: Shape,
    work: impl AsyncFnOnce(Arc<Account>, Bytes) -> Reply,
) -> Response<Body> {
    let account = match authorize(inner, request.headers()) {
        Ok(account) => account,
        Err(error) => return finish_as(inner, Err(error), shape),
    };
    let reply = async {
        account.request(Instant::now())?;
        let bytes = body::read(inner, request).await?;
        work(Arc::clone(&account), bytes).await
    };
    let mut response = finish_as(inner, reply.await, shape);
    tell_rates(&account, response.headers_mut());
    response
}

/// The headers that OpenAI's clients know, for rates that are limited.
fn tell_rates(account: &Account, headers: &mut HeaderMap) {
    for (rate, level) in account.levels(Instant::now()) {
        let Some(level) = level else { continue };
        let [limit, remaining, reset] = match rate {
            Rate::Requests => {
                ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]
            }
            Rate::Tokens => ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"],
        }
        .map(HeaderName::from_static);
        headers.insert(limit, HeaderValue::from(level.limit));
        headers.insert(remaining, HeaderValue::from(level.remaining));
        if let Ok(value) = HeaderValue::from_str(&format!("{:.3}s", level.reset.as_secs_f64())) {
            headers.insert(reset, value);
        }
    }
}

async fn models(State(inner): Shared, headers: HeaderMap) -> Response<Body> {
    let reply = authorize(&inner, &headers).map(|_| json(&model_list(&inner)));
    finish(&inner, reply)
}

/// One card for each name.
fn model_list(inner: &Inner) -> ModelList {
    let mut cards = Vec::new();
    // Of class tolerant there is what somebody offers right now.
    let tolerant = inner.tolerant.iter().filter(|model| inner.directory.serves(model.model_id));
    for model in inner.models.iter().chain(tolerant) {
        let offered = inner.directory.longest_context(model.model_id).unwrap_or(model.context_length);
        let context = offered.min(model.context_length);
        for name in std::iter::once(&model.name).chain(&model.aliases) {
            cards.push(ModelCard::new(name.clone(), inner.started_at, context, model.model_id, model.class()));
        }
    }
    ModelList::new(cards)
}

async fn receipt(State(inner): Shared, Path(id): Path<String>, headers: HeaderMap) -> Response<Body> {
    let reply = async {
        let key = authorize(&inner, &headers)?;
        let not_found = || GatewayError::ReceiptNotFound(id.chars().take(80).collect());
        let id = parse_receipt_id(&id).ok_or_else(not_found)?;
        // Asked first, as a request that ends in between is in the store then; believed last, as a request whose
        // receipt is stored runs on for a moment.
        let is_running = inner.running.owner(id) == Some(key.id);
        // Another key's receipt is not found: its existence is nobody else's business.
        let stored = match inner.store.receipt(id).await?.filter(|stored| stored.key_id == key.id.0) {
            Some(stored) => stored,
            None if is_running => return Err(GatewayError::ReceiptPending),
            None => return Err(not_found()),
        };
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
    let serves = |model: &GatewayModel| inner.directory.serves(model.model_id);
    let is_ready = inner.models.iter().zip(&inner.tolerant).all(|(exact, tolerant)| serves(exact) || serves(tolerant));
    let reply = if inner.stop.is_cancelled() {
        Err(GatewayError::ShuttingDown)
    } else if is_ready {
        Ok(typed("application/json", r#"{"status":"ready"}"#))
    } else {
        Err(GatewayError::NoProvider)
    };
    finish(&inner, reply)
}

async fn openapi(State(inner): Shared) -> Response<Body> {
    finish(&inner, Ok(typed("application/json", inner.description.clone())))
}

/// [`OPENAPI`] with the names of what is served.
pub(crate) fn description(models: &[Arc<GatewayModel>]) -> Bytes {
    // It is JSON: a test asks for it.
    let mut document: Value = serde_json::from_str(OPENAPI).unwrap_or_default();
    for (schema, is_encoder) in [("ModelName", false), ("EncoderName", true)] {
        let such = models.iter().filter(|model| model.dimensions.is_some() == is_encoder);
        let names: Vec<&String> = such.flat_map(|model| std::iter::once(&model.name).chain(&model.aliases)).collect();
        // A list of allowed values has at least one.
        if !names.is_empty() {
            document["components"]["schemas"][schema]["enum"] = names.into_iter().cloned().collect();
        }
    }
    document.to_string().into()
}

async fn metrics(State(inner): Shared, method: Method, uri: Uri, headers: HeaderMap) -> Response<Body> {
    // What a proxy on this machine passes on comes from elsewhere.
    if ["forwarded", "x-forwarded-for", "x-real-ip", "via"].iter().any(|name| headers.contains_key(*name)) {
        return unknown_url(State(inner), method, uri).await;
    }
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

/// Counts a reply; an error gets its shape here.
pub(crate) fn finish(inner: &Inner, reply: Reply) -> Response<Body> {
    finish_as(inner, reply, Shape::OpenAi)
}

fn finish_as(inner: &Inner, reply: Reply, shape: Shape) -> Response<Body> {
    let response = reply.unwrap_or_else(|error| rescue::response(&error, shape));
    inner.metrics.response(response.status().as_u16());
    response
}

pub(crate) fn typed(content_type: &'static str, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub(crate) fn json(value: &impl serde::Serialize) -> Response<Body> {
    // Own types of strings and integers always have a JSON form.
    typed("application/json", serde_json::to_vec(value).unwrap_or_default())
}

pub(crate) fn authorize(inner: &Inner, headers: &HeaderMap) -> Result<Arc<Account>, GatewayError> {
    // Anthropic's clients send the key alone.
    if let Some(key) = headers.get(KEY_HEADER) {
        let key = key.to_str().map_err(|_| GatewayError::BadKey)?;
        return inner.keys.account(key.trim()).ok_or(GatewayError::BadKey);
    }
    let header = headers.get(AUTHORIZATION).ok_or(GatewayError::MissingKey)?;
    let text = header.to_str().map_err(|_| GatewayError::BadKey)?;
    let (scheme, key) = text.split_once(' ').ok_or(GatewayError::BadKey)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(GatewayError::BadKey);
    }
    inner.keys.account(key.trim()).ok_or(GatewayError::BadKey)
}

/// What a model is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Use {
    Text,
    Vectors,
}

pub(crate) fn find_model(inner: &Inner, name: &str, what: Use) -> Result<Arc<GatewayModel>, GatewayError> {
    // Of vectors there is the exact class alone.
    let tolerant = inner.tolerant.iter().filter(|_| what == Use::Text);
    let found = inner.models.iter().chain(tolerant).find(|model| model.answers_to(name));
    let model = found.ok_or_else(|| GatewayError::ModelNotFound(name.into()))?;
    let makes_vectors = model.dimensions.is_some();
    if makes_vectors != (what == Use::Vectors) {
        return Err(GatewayError::OtherUse { name: name.into(), makes_vectors });
    }
    Ok(Arc::clone(model))
}

/// The model that answers by what the caller allows. Without a word nobody gets an answer that cannot be re-derived: it is
/// allowed by the model's name or by `verify`, where it counts if somebody serves it and the request can be held to it.
fn of_class(inner: &Inner, model: Arc<GatewayModel>, options: &Options) -> Result<Arc<GatewayModel>, GatewayError> {
    if model.class() == Class::Tolerant {
        return match options.verify {
            Verify::Redundant(_) => Err(GatewayError::JobRefused(
                "providers of class tolerant do not agree in every token; ask for the model without :tolerant".into(),
            )),
            _ => Ok(model),
        };
    }
    let needs_exact = options.constraint.is_some() || options.logprobs.is_some();
    if options.verify != Verify::Tolerant || needs_exact {
        return Ok(model);
    }
    let mut pairs = inner.models.iter().zip(&inner.tolerant);
    let twin = pairs.find(|(exact, _)| exact.model_id == model.model_id).map(|(_, tolerant)| Arc::clone(tolerant));
    Ok(twin.filter(|twin| inner.directory.serves(twin.model_id)).unwrap_or(model))
}

pub(crate) async fn tokenize<T: Send + 'static>(
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
