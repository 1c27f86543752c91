//! The HTTP surface: who may ask, what is asked, and the reply's shape. No status codes: see `rescue`.

use crate::body;
use crate::clock;
use crate::error::GatewayError;
use crate::flight::{Finished, Flight, Out, Ticket, UPDATES_MAX, Update};
use crate::gateway::Inner;
use crate::keys::KeyId;
use crate::model::GatewayModel;
use crate::rescue;
use crate::store::parse_receipt_id;
use crate::tools::{self, Finder, Found};
use assay_api::{
    AssayInfo, ChatCompletion, ChatLogprobs, ChatRequest, Choice, Completion, CompletionLogprobs, CompletionRequest,
    Constraint, Ending, FinishReason, Head, Logprobs, ModelCard, ModelList, Options, OutputLogprob, Prompt,
    StreamEncoder, StreamKind, ToolCall, ToolChoice, Tooling, Usage, error_event,
};
use assay_gguf::ToolStyle;
use assay_types::{
    Amount, B256, Job, ProviderId, RECEIPT_FILE_VERSION, ReceiptFile, RequestHash, TokenId, choice_seed,
};
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
        let ChatRequest { model: name, messages, tooling, mut options } = chat;
        let model = find_model(&inner, &name)?;
        let work = move |model: &GatewayModel| (model.chat_prompt(&messages, &tooling), tooling);
        let (prompt, tooling) = tokenize(bytes.len(), Arc::clone(&model), work).await?;
        let prompt = prompt?;
        let is_offered = !tooling.tools.is_empty() && tooling.choice != ToolChoice::None;
        let tools = model.tool_style().filter(|_| is_offered).map(|style| (style, tooling));
        if let Some(grammar) = tools.as_ref().and_then(|(style, tooling)| tools::grammar(tooling, *style)) {
            options.constraint = Some(Constraint { grammar, param: "tools" });
        }
        let ask = Ask { kind: StreamKind::Chat, key, name, model, prompt, options, tools };
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
        answer(&inner, Ask { kind: StreamKind::Completion, key, name, model, prompt, options, tools: None }).await
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
    /// What the answer may call.
    tools: Option<(ToolStyle, Tooling)>,
}

/// What a reply repeats.
struct Frame {
    kind: StreamKind,
    head: Head,
    /// Of one job.
    prompt_tokens: u64,
    /// Receipt and seed of each choice.
    choices: Vec<(RequestHash, u64)>,
    has_logprobs: bool,
    warnings: Vec<String>,
}

async fn answer(inner: &Arc<Inner>, ask: Ask) -> Reply {
    if inner.stop.is_cancelled() {
        return Err(GatewayError::ShuttingDown);
    }
    // Each choice is a job of its own, and counts as one.
    let mut permits =
        Arc::clone(&inner.requests).try_acquire_many_owned(ask.options.n).map_err(|_| GatewayError::Busy)?;
    let jobs = jobs(inner, &ask)?;
    if let Some(Constraint { grammar, param }) = ask.options.constraint.clone() {
        let model = Arc::clone(&ask.model);
        // Compiling is work of the CPU.
        let check = tokio::task::spawn_blocking(move || model.check_grammar(&grammar)).await;
        let result = check.map_err(|_| GatewayError::ShuttingDown)?;
        result.map_err(|reason| GatewayError::Grammar { param, reason })?;
    }
    let Some((first, job)) = jobs.first().map(|job| (job.request_hash(), job)) else { return Err(GatewayError::Busy) };
    let prefix = if ask.kind == StreamKind::Chat { "chatcmpl" } else { "cmpl" };
    let mut frame = Frame {
        kind: ask.kind,
        head: Head {
            id: format!("{prefix}-{}", &first.to_string()[2..26]),
            created: clock::unix_seconds(),
            model: ask.name,
            system_fingerprint: ask.model.fingerprint(),
        },
        prompt_tokens: job.prompt.len() as u64,
        choices: Vec::with_capacity(jobs.len()),
        has_logprobs: job.logprobs.is_some(),
        warnings: ask.options.warnings,
    };
    let tools = ask.tools;
    let finder = |id: &RequestHash| {
        tools.as_ref().map(|(style, tooling)| Finder::new(*style, tooling, id.to_string().trim_start_matches("0x")))
    };
    let (sender, updates) = mpsc::channel(UPDATES_MAX);
    let mut finders = Vec::with_capacity(jobs.len());
    for (choice, job) in (0..).zip(jobs) {
        let id = job.request_hash();
        frame.choices.push((id, job.sampling.seed));
        finders.push(finder(&id));
        inner.metrics.tokens_prompt.inc_by(frame.prompt_tokens);
        let running = inner.running.enter(id, ask.key);
        let (only, ignore) = (ask.options.only.clone(), ask.options.ignore.clone());
        let ticket = Ticket { id, job, model: Arc::clone(&ask.model), key: ask.key, only, ignore };
        let flight = Flight::new(Arc::clone(inner), ticket, Out { choice, sender: sender.clone() });
        let gauge = Arc::clone(inner);
        let permit = permits.split(1);
        inner.tasks.spawn(async move {
            gauge.metrics.requests_running.inc();
            flight.run().await;
            gauge.metrics.requests_running.dec();
            drop((running, permit));
        });
    }
    drop(sender);
    let reply = if ask.options.stream {
        streamed(frame, finders, updates, ask.options.include_usage).await
    } else {
        whole(frame, finders, updates).await
    };
    // The receipt's name is known from the start, whatever comes of the request.
    let mut response = reply.unwrap_or_else(|error| rescue::response(&error));
    if let Ok(value) = HeaderValue::from_str(&first.to_string()) {
        response.headers_mut().insert(RECEIPT_HEADER, value);
    }
    Ok(response)
}

/// One job for each choice. They differ in seed and nonce.
fn jobs(inner: &Inner, ask: &Ask) -> Result<Vec<Job>, GatewayError> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random).map_err(|_| GatewayError::Random)?;
    // 53 bits: the seed is reported as a JSON number, which many readers hold in a double.
    let seed = u64::from_be_bytes(random) >> 11;
    let limits = ask.model.job_limits();
    let offered = inner.directory.longest_context(ask.model.model_id).unwrap_or(limits.context_length);
    let context = u64::from(offered.min(limits.context_length));
    let room = context.saturating_sub(ask.prompt.len() as u64);
    let max_tokens = u32::try_from(room).unwrap_or(u32::MAX).min(inner.limits.max_tokens_default);
    if max_tokens == 0 {
        let needed = ask.prompt.len() as u64 + 1;
        return Err(GatewayError::ContextLength { needed, longest: offered.min(limits.context_length) });
    }
    let mut job = ask.options.job(ask.model.model_id, ask.prompt.clone(), max_tokens, seed, B256::ZERO);
    job.validate(&limits)?;
    let seed = job.sampling.seed;
    (0..ask.options.n)
        .map(|choice| {
            getrandom::fill(job.nonce.as_mut_slice()).map_err(|_| GatewayError::Random)?;
            job.sampling.seed = choice_seed(seed, choice);
            Ok(job.clone())
        })
        .collect()
}

/// Only an output that ended by itself is finished.
fn reason(finished: &Finished, calls: usize) -> FinishReason {
    match FinishReason::from_finish(finished.finish).unwrap_or(FinishReason::Length) {
        FinishReason::Stop if calls > 0 => FinishReason::ToolCalls,
        other => other,
    }
}

impl Frame {
    /// Of one choice.
    fn assay(&self, choice: u32, providers: Vec<ProviderId>, cost: Option<Amount>) -> AssayInfo {
        let (receipt, seed) = self.choices.get(choice as usize).copied().unwrap_or_default();
        AssayInfo { receipt, receipts: Vec::new(), providers, cost, seed }
    }

    /// What all choices add up to. Each choice's prompt was charged, so each counts.
    fn usage(&self, finished: &[Finished]) -> Usage {
        let output = finished.iter().fold(0, |sum: u64, one| sum.saturating_add(one.output_tokens));
        Usage::new(self.prompt_tokens.saturating_mul(finished.len() as u64), output)
    }

    /// The end of a reply that is one body.
    fn end(&mut self, finished: &[Finished]) -> Ending {
        let cost = finished.iter().fold(Amount::ZERO, |sum, one| sum.saturating_add(one.cost));
        let mut providers: Vec<ProviderId> = Vec::new();
        for provider in finished.iter().flat_map(|one| &one.providers) {
            // One choice keeps its parts in order; of several it is only said who took part.
            if finished.len() == 1 || !providers.contains(provider) {
                providers.push(*provider);
            }
        }
        let mut assay = self.assay(0, providers, Some(cost));
        if self.choices.len() > 1 {
            assay.receipts = self.choices.iter().map(|(receipt, _)| *receipt).collect();
        }
        Ending { usage: self.usage(finished), assay, warnings: std::mem::take(&mut self.warnings) }
    }

    /// Log probabilities of one chunk, the first of whose tokens begins at character `offset`.
    fn logprobs(&self, tokens: Vec<OutputLogprob>, offset: &mut u64) -> Option<Logprobs> {
        if !self.has_logprobs || tokens.is_empty() {
            return None;
        }
        Some(match self.kind {
            StreamKind::Chat => Logprobs::Chat(ChatLogprobs::new(tokens)),
            StreamKind::Completion => {
                let logprobs = CompletionLogprobs::new(tokens, *offset);
                *offset = logprobs.end_offset();
                Logprobs::Completion(logprobs)
            }
        })
    }
}

/// What has come of one choice.
#[derive(Default)]
struct Heard {
    text: String,
    logprobs: Vec<OutputLogprob>,
    finished: Option<Finished>,
}

/// The calls in an answer, and the rest of it.
fn find_calls(finder: Option<Finder>, text: String) -> (String, Vec<ToolCall>) {
    let Some(mut finder) = finder else { return (text, Vec::new()) };
    let (mut found, last) = (finder.push(&text), finder.end());
    found.text.push_str(&last.text);
    found.calls.extend(last.calls);
    (found.text, found.calls)
}

async fn whole(mut frame: Frame, finders: Vec<Option<Finder>>, mut updates: mpsc::Receiver<(u32, Update)>) -> Reply {
    let mut heard: Vec<Heard> = Vec::new();
    heard.resize_with(frame.choices.len(), Heard::default);
    while heard.iter().any(|one| one.finished.is_none()) {
        let Some((choice, update)) = updates.recv().await else { return Err(GatewayError::ShuttingDown) };
        let Some(one) = heard.get_mut(choice as usize) else { continue };
        match update {
            Update::Started(_) => {}
            Update::Piece(text, logprobs) => {
                one.text.push_str(&text);
                one.logprobs.extend(logprobs);
            }
            Update::Finished(finished) => one.finished = Some(*finished),
            // The others are cancelled by leaving.
            Update::Failed(error) => return Err(error),
        }
    }
    let (mut choices, mut ends) = (Vec::new(), Vec::new());
    for (Heard { text, logprobs, finished }, finder) in heard.into_iter().zip(finders) {
        let Some(finished) = finished else { continue };
        let logprobs = frame.has_logprobs.then_some(logprobs);
        let (text, tool_calls) = find_calls(finder, text);
        let finish_reason = reason(&finished, tool_calls.len());
        choices.push(Choice { text, tool_calls, logprobs, finish_reason });
        ends.push(finished);
    }
    let ending = frame.end(&ends);
    Ok(match frame.kind {
        StreamKind::Chat => json(&ChatCompletion::new(frame.head, choices, ending)),
        StreamKind::Completion => json(&Completion::new(frame.head, choices, ending)),
    })
}

/// Turns what is heard of a request into the events of its stream.
struct Teller {
    frame: Frame,
    encoder: StreamEncoder,
    /// Of each choice, where there are tools.
    finders: Vec<Option<Finder>>,
    /// Characters of each choice that were told, as its tokens count them.
    offsets: Vec<u64>,
    finished: Vec<Finished>,
}

impl Teller {
    fn finder(&mut self, choice: u32) -> Option<&mut Finder> {
        self.finders.get_mut(choice as usize)?.as_mut()
    }

    /// Text, if there is any, then calls.
    fn tell_found(&mut self, choice: u32, found: &Found, logprobs: Option<&Logprobs>) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !found.text.is_empty() || logprobs.is_some() {
            bytes = self.encoder.text(choice, &found.text, logprobs);
        }
        let before = self.finder(choice).map_or(0, |finder| finder.calls().saturating_sub(found.calls.len()));
        for (number, call) in (before..).zip(&found.calls) {
            bytes.extend(self.encoder.tool_call(choice, u32::try_from(number).unwrap_or(u32::MAX), call));
        }
        bytes
    }

    /// The bytes to send, and whether they are the last.
    fn tell(&mut self, choice: u32, update: Update) -> (Vec<u8>, bool) {
        match update {
            Update::Started(provider) => {
                (self.encoder.start(choice, &self.frame.assay(choice, vec![provider], None)), false)
            }
            Update::Piece(text, logprobs) => {
                let mut nowhere = 0;
                let offset = self.offsets.get_mut(choice as usize).unwrap_or(&mut nowhere);
                let logprobs = self.frame.logprobs(logprobs, offset);
                let found = match self.finder(choice) {
                    None => Found { text, calls: Vec::new() },
                    Some(finder) => finder.push(&text),
                };
                (self.tell_found(choice, &found, logprobs.as_ref()), false)
            }
            Update::Finished(finished) => {
                let assay = self.frame.assay(choice, finished.providers.clone(), Some(finished.cost));
                let last = self.finder(choice).map(Finder::end).unwrap_or_default();
                let mut bytes = self.tell_found(choice, &last, None);
                let reason = reason(&finished, self.finder(choice).map_or(0, |finder| finder.calls()));
                bytes.extend(self.encoder.finish(choice, reason, &assay, &self.frame.warnings));
                self.finished.push(*finished);
                let is_last = self.finished.len() == self.frame.choices.len();
                if is_last {
                    bytes.extend(self.encoder.done(&self.frame.usage(&self.finished)));
                }
                (bytes, is_last)
            }
            Update::Failed(error) => (error_event(&rescue::error_body(&error)), true),
        }
    }
}

/// Waits for the first token, so that what fails before it is an HTTP error and not a broken stream.
async fn streamed(
    frame: Frame,
    finders: Vec<Option<Finder>>,
    mut updates: mpsc::Receiver<(u32, Update)>,
    include_usage: bool,
) -> Reply {
    let (choice, provider) = match updates.recv().await {
        Some((choice, Update::Started(provider))) => (choice, provider),
        Some((_, Update::Failed(error))) => return Err(error),
        // A flight says `Started` before anything else; without a word it was cut at shutdown.
        Some((_, Update::Piece(..) | Update::Finished(_))) | None => return Err(GatewayError::ShuttingDown),
    };
    let encoder = StreamEncoder::new(frame.kind, &frame.head, include_usage);
    let offsets = vec![0; frame.choices.len()];
    let mut teller = Teller { frame, encoder, finders, offsets, finished: Vec::new() };
    let first = Bytes::from(teller.tell(choice, Update::Started(provider)).0);
    let rest = stream::unfold(Some((updates, teller)), async |state| {
        let (mut updates, mut teller) = state?;
        let (bytes, is_last) = match updates.recv().await {
            Some((choice, update)) => teller.tell(choice, update),
            None => (error_event(&rescue::error_body(&GatewayError::ShuttingDown)), true),
        };
        let next = (!is_last).then_some((updates, teller));
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), next))
    });
    let events = stream::StreamExt::chain(stream::once(async { Ok(first) }), rest);
    let mut response = typed("text/event-stream; charset=utf-8", Body::from_stream(events));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}
