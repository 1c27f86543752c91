//! Somebody else's engine behind an OpenAI-compatible API, as a source of tokens: class tolerant.
//!
//! The engine is the operator's own, but nothing that it sends is trusted to end: lines, bytes, pauses and tokens are
//! bounded, and the output ends by the rule that all parties share ([`OutputText`]), not where the engine says.

mod lines;
mod tokens;
mod wire;

use crate::backend::{Event, Failure};
use assay_gguf::{FinishReason, OutputLimits, OutputText, Tokenizer};
use assay_types::{Finish, Job, JobLimits, ModelId, Prices, TokenId};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
    header,
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use lines::{LineError, Lines};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokens::Printed;
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, timeout},
};
use wire::{Dialect, End};

/// Longest line of a stream; one has a token's text and some names.
const LINE_BYTES_MAX: usize = 256 << 10;
/// Bytes of a stream for each token that was asked for, and besides.
const TOKEN_BYTES_MAX: u64 = 16 << 10;
const SPARE_BYTES: u64 = 64 << 10;
/// Ollama takes memory for as much context as a request asks for, and loads the model again where that changes.
const OLLAMA_CONTEXT: u32 = 8192;
/// Largest answer that is read whole.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Where the engine is, and how patient the provider is with it.
#[derive(Clone)]
pub struct UpstreamOptions {
    /// `http://HOST:PORT/v1`, as OpenAI's clients take it.
    pub url: String,
    /// The engine's name for the model; not needed where it has one.
    pub model: Option<String>,
    /// Sent as a bearer token.
    pub key: Option<String>,
    /// Longest prompt and output that it keeps, if it keeps less than the model has.
    pub context: Option<u32>,
    /// Answers at a time.
    pub streams_max: u32,
    /// From a request to its first token.
    pub first_token: Duration,
    /// Between two tokens.
    pub next_token: Duration,
}

impl UpstreamOptions {
    /// With the usual patience.
    #[must_use]
    pub fn new(url: String) -> Self {
        let (first_token, next_token) = (Duration::from_secs(50), Duration::from_secs(8));
        // Below the gateway's own deadlines, so that it is told why.
        Self { url, model: None, key: None, context: None, streams_max: 16, first_token, next_token }
    }
}

impl std::fmt::Debug for UpstreamOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamOptions").field("url", &self.url).field("model", &self.model).finish_non_exhaustive()
    }
}

/// A model that an upstream runs.
#[derive(Clone, Debug)]
pub struct UpstreamModel {
    /// Of the tolerant manifest.
    pub id: ModelId,
    /// Name that clients ask for.
    pub name: String,
    /// The model's.
    pub tokenizer: Arc<Tokenizer>,
    /// Longest prompt and output; less if the engine says so.
    pub context_length: u32,
    /// What it costs.
    pub prices: Prices,
    /// Who runs it.
    pub upstream: UpstreamOptions,
}

/// Why an engine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No URL of a server.
    #[error("{url:?} is no URL of an engine: {reason}; it looks like http://127.0.0.1:11434/v1")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It does not answer.
    #[error("the engine at {url} does not answer: {reason}; is it running?")]
    Silent {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// It has several models.
    #[error("the engine has these models: {0}; name one of them (--upstream-model)")]
    Which(String),
    /// It refuses to write.
    #[error("the engine does not complete a text: {0}")]
    Refuses(String),
}

type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// A connected engine.
pub(crate) struct Upstream {
    http: Http,
    /// Without a slash at its end.
    base: String,
    key: Option<String>,
    model: String,
    dialect: Dialect,
    tokenizer: Arc<Tokenizer>,
    printed: Printed,
    context_length: u32,
    streams_max: u32,
    first_token: Duration,
    next_token: Duration,
    running: Arc<AtomicU32>,
}

/// A running exchange; it ends when this is dropped.
pub(crate) struct Stream(AbortHandle);

impl Drop for Stream {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One of the answers that run.
struct Slot(Arc<AtomicU32>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Upstream {
    /// Finds out how the engine is spoken to and lets it write one token.
    pub async fn connect(model: &UpstreamModel) -> Result<Self, UpstreamError> {
        let options = &model.upstream;
        let base = options.url.trim_end_matches('/').to_owned();
        let bad = |reason: String| UpstreamError::Url { url: options.url.clone(), reason };
        let uri: Uri = base.parse().map_err(|error: hyper::http::uri::InvalidUri| bad(error.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.authority().is_none() {
            return Err(bad("it needs http:// or https:// and a host".into()));
        }
        let mut upstream = Self {
            http: client().map_err(bad)?,
            base,
            key: options.key.clone(),
            model: String::new(),
            dialect: Dialect::Ids,
            printed: Printed::new(Arc::clone(&model.tokenizer)),
            tokenizer: Arc::clone(&model.tokenizer),
            context_length: options.context.map_or(model.context_length, |context| context.min(model.context_length)),
            streams_max: options.streams_max.max(1),
            first_token: options.first_token,
            next_token: options.next_token,
            running: Arc::default(),
        };
        upstream.choose_model(options.model.as_deref()).await?;
        upstream.choose_dialect().await?;
        if upstream.dialect == Dialect::Ollama && options.context.is_none() {
            upstream.context_length = upstream.context_length.min(OLLAMA_CONTEXT);
        }
        tracing::info!(engine = upstream.base, model = upstream.model, dialect = ?upstream.dialect, "upstream");
        Ok(upstream)
    }

    pub fn limits(&self) -> JobLimits {
        JobLimits { vocab_size: self.tokenizer.vocab_size(), context_length: self.context_length, dimensions: 0 }
    }

    pub fn capacity(&self) -> u32 {
        self.streams_max
    }

    pub fn running(&self) -> u64 {
        self.running.load(Ordering::Acquire).into()
    }

    /// What an engine over HTTP cannot be held to.
    pub fn check(&self, job: &Job) -> Result<(), &'static str> {
        if !job.prefix.is_empty() {
            return Err("an answer of class tolerant is not continued elsewhere");
        }
        if job.grammar.is_some() {
            return Err("constrained output (JSON schema, grammar, tools) needs a provider of class exact");
        }
        if job.logprobs.is_some() {
            return Err("log probabilities need a provider of class exact");
        }
        if self.dialect == Dialect::Ollama && (job.ignore_eos || !job.logit_bias.is_empty()) {
            return Err("Ollama knows neither logit_bias nor ignore_eos");
        }
        Ok(())
    }

    /// Begins a job; `None` if as many run as may.
    pub fn submit(self: &Arc<Self>, job: Job, sender: mpsc::Sender<Event>) -> Option<Stream> {
        if self.running.fetch_add(1, Ordering::AcqRel) >= self.streams_max {
            self.running.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let (upstream, slot) = (Arc::clone(self), Slot(Arc::clone(&self.running)));
        let task = tokio::spawn(async move {
            let end = match upstream.stream(&job, &sender).await {
                Ok(finish) => Event::Done(finish),
                Err(failure) => Event::Failed(failure),
            };
            drop(slot);
            // Whoever has left does not need it.
            let _ = sender.send(end).await;
        });
        Some(Stream(task.abort_handle()))
    }

    async fn stream(&self, job: &Job, sender: &mpsc::Sender<Event>) -> Result<Finish, Failure> {
        let body = wire::request(self.dialect, &self.model, &self.printed, job, self.context_length);
        let asked = timeout(self.first_token, self.send(Method::POST, self.path(), Some(&body))).await;
        let silent = || Failure::Broken(format!("the engine said nothing for {:?}", self.first_token));
        let response = asked.map_err(|_| silent())?.map_err(Failure::Broken)?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response).await);
        }
        let tokens_max = u64::from(wire::output_tokens_max(job, self.context_length));
        let bytes_max = SPARE_BYTES.saturating_add(TOKEN_BYTES_MAX.saturating_mul(tokens_max));
        let mut lines = Lines::new(response.into_body(), LINE_BYTES_MAX, bytes_max);
        let limits = OutputLimits { max_tokens: job.max_tokens, stop: job.stop.clone(), ignore_eos: job.ignore_eos };
        let mut text = OutputText::new(Arc::clone(&self.tokenizer), limits);
        let mut deadline = Instant::now() + self.first_token;
        loop {
            let line = tokio::time::timeout_at(deadline, lines.next()).await;
            let line = line.map_err(|_| Failure::Broken("the engine stalled".into()))?;
            let line = line.map_err(|error: LineError| Failure::Broken(error.to_string()))?;
            let Some(line) = line else {
                return Err(Failure::Broken("the engine closed its answer without an end".into()));
            };
            let Some(said) = wire::line(self.dialect, &line).map_err(Failure::Broken)? else { continue };
            for token in self.tokens(&said)? {
                let piece = text.push(token);
                if sender.send(Event::Token(token)).await.is_err() {
                    return Err(Failure::Cancelled);
                }
                if let Some(finish) = piece.finish {
                    return Ok(wire_finish(finish));
                }
                // Only tokens count as progress, and a client that is slow to take them is not the engine's fault.
                deadline = Instant::now() + self.next_token;
            }
            match said.end {
                None => {}
                Some(End::Stop) if !job.ignore_eos => return self.end(&mut text, sender).await,
                Some(_) => return Err(Failure::Broken("the engine ended its answer before the job's end".into())),
            }
        }
    }

    /// The model has ended its answer by a token that the engine does not show.
    async fn end(&self, text: &mut OutputText, sender: &mpsc::Sender<Event>) -> Result<Finish, Failure> {
        let end = self.printed.end().ok_or_else(|| Failure::Broken("the model has no token that ends".into()))?;
        let finish = text.push(end).finish.unwrap_or(FinishReason::Stop);
        sender.send(Event::Token(end)).await.map_err(|_| Failure::Cancelled)?;
        Ok(wire_finish(finish))
    }

    fn tokens(&self, said: &wire::Said) -> Result<Vec<TokenId>, Failure> {
        let vocab_size = self.tokenizer.vocab_size();
        match &said.ids {
            Some(ids) => match ids.iter().find(|id| **id >= vocab_size) {
                Some(id) => Err(Failure::Broken(format!("the engine's token {id} is not one of this model"))),
                None => Ok(ids.clone()),
            },
            None => {
                let unknown = || Failure::Broken("the engine's text has a byte that the model cannot print".into());
                self.printed.cut(&said.text).ok_or_else(unknown)
            }
        }
    }

    fn path(&self) -> String {
        match self.dialect {
            Dialect::Ollama => format!("{}/api/generate", self.root()),
            _ => format!("{}/completions", self.base),
        }
    }

    /// The URL without `/v1`.
    fn root(&self) -> &str {
        self.base.strip_suffix("/v1").unwrap_or(&self.base)
    }

    async fn choose_model(&mut self, wanted: Option<&str>) -> Result<(), UpstreamError> {
        let silent = |reason| UpstreamError::Silent { url: self.base.clone(), reason };
        let list = match self.ask(Method::GET, format!("{}/models", self.base), None).await {
            Ok((StatusCode::OK, list)) => list,
            // Not every engine lists its models.
            Ok((_, _)) if wanted.is_some() => Value::Null,
            Ok((status, body)) => return Err(silent(format!("{status} {}", said(&body)))),
            Err(reason) => return Err(silent(reason)),
        };
        let cards: Vec<&Value> = list["data"].as_array().into_iter().flatten().take(1000).collect();
        let names: Vec<&str> = cards.iter().filter_map(|card| card["id"].as_str()).collect();
        self.model = match (wanted, names.as_slice()) {
            (Some(name), []) => name.to_owned(),
            (Some(name), names) if names.contains(&name) => name.to_owned(),
            (None, [only]) => (*only).to_owned(),
            (_, names) => return Err(UpstreamError::Which(names.join(", "))),
        };
        // vLLM says how long a context it keeps.
        let card = cards.iter().find(|card| card["id"] == self.model.as_str());
        let longest = card.and_then(|card| card["max_model_len"].as_u64()).and_then(|len| u32::try_from(len).ok());
        self.context_length = longest.map_or(self.context_length, |longest| self.context_length.min(longest));
        Ok(())
    }

    /// By trying: a server that does not take token ids says so with a status.
    async fn choose_dialect(&mut self) -> Result<(), UpstreamError> {
        let version = self.ask(Method::GET, format!("{}/api/version", self.root()), None).await;
        if version.is_ok_and(|(status, body)| status == StatusCode::OK && body["version"].is_string()) {
            self.dialect = Dialect::Ollama;
            return Ok(());
        }
        let prompt = self.tokenizer.encode("Hello", true, false);
        let body = |prompt: Value| json!({"model": self.model, "prompt": prompt, "max_tokens": 1, "temperature": 0});
        let mut last = String::new();
        for (dialect, prompt) in [(Dialect::Ids, json!(prompt)), (Dialect::Text, json!("Hello"))] {
            match self.ask(Method::POST, format!("{}/completions", self.base), Some(&body(prompt))).await {
                Ok((StatusCode::OK, answer)) if answer["choices"][0]["text"].is_string() => {
                    self.dialect = dialect;
                    return Ok(());
                }
                Ok((status, answer)) => last = format!("{status} {}", said(&answer)),
                Err(reason) => last = reason,
            }
        }
        Err(UpstreamError::Refuses(last))
    }

    /// A whole answer; a body that is no JSON is null.
    async fn ask(&self, method: Method, url: String, body: Option<&Value>) -> Result<(StatusCode, Value), String> {
        let exchange = async {
            let response = self.send(method, url, body).await?;
            let status = response.status();
            Ok((status, whole(response).await?))
        };
        timeout(self.first_token, exchange).await.map_err(|_| format!("no answer in {:?}", self.first_token))?
    }

    async fn send(&self, method: Method, url: String, body: Option<&Value>) -> Result<Response<Incoming>, String> {
        let mut request = Request::builder().method(method).uri(url).header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let bytes = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = request.body(Full::new(bytes)).map_err(|error| error.to_string())?;
        self.http.request(request).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            cause.unwrap_or_else(|| error.to_string())
        })
    }
}

fn client() -> Result<Http, String> {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(Duration::from_secs(5)));
    let tls = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
        .map_err(|error| error.to_string())?
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Ok(Client::builder(TokioExecutor::new()).build(tls))
}

async fn whole(response: Response<Incoming>) -> Result<Value, String> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let bytes = body.map_err(|error| error.to_string())?.to_bytes();
    Ok(serde_json::from_slice(&bytes).unwrap_or_default())
}

/// What an answer that is no success says.
fn said(body: &Value) -> String {
    wire::message(body.get("error").unwrap_or(body))
}

/// What a status says about the job.
async fn refusal(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let body = timeout(Duration::from_secs(2), whole(response)).await.unwrap_or_else(|_| Ok(Value::Null));
    let text = format!("the engine says {status}: {}", said(&body.unwrap_or_default()));
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Failure::Busy(text),
        _ => Failure::Broken(text),
    }
}

fn wire_finish(finish: FinishReason) -> Finish {
    match finish {
        FinishReason::Stop => Finish::Stop,
        FinishReason::Length => Finish::Length,
    }
}
