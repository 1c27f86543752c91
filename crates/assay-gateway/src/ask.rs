//! A request that was read and tokenized, to its answer: jobs, flights, and what is heard of them as one body or a
//! stream of events.

use crate::account::{Account, Hold, tokens_at_most};
use crate::clock;
use crate::error::GatewayError;
use crate::flight::{Finished, Flight, Out, Ticket, UPDATES_MAX, Update};
use crate::gateway::Inner;
use crate::http::{Reply, typed};
use crate::model::GatewayModel;
use crate::redundant::{self, Plan};
use crate::rescue;
use crate::tools::{Finder, Found};
use crate::voice::{Dialect, Voice, finish_reason};
use assay_api::{
    AssayInfo, ChatLogprobs, Choice, CompletionLogprobs, Constraint, Ending, Head, Logprobs, Options, OutputLogprob,
    ToolCall, Tooling, Usage, Verify,
};
use assay_gguf::ToolStyle;
use assay_types::{Amount, B256, Class, Job, ProviderId, RequestHash, TokenId, choice_seed};
use axum::body::{Body, Bytes};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderName, HeaderValue, Response};
use futures_util::stream;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Name of the receipt on every reply.
const RECEIPT_HEADER: HeaderName = HeaderName::from_static("x-assay-receipt");

/// Who was asked, and why.
const ROUTE_HEADER: HeaderName = HeaderName::from_static("x-assay-route");

/// A request that was read and tokenized.
pub(crate) struct Ask {
    pub(crate) dialect: Dialect,
    /// Who pays.
    pub(crate) account: Arc<Account>,
    /// The model's name as it was asked for.
    pub(crate) name: String,
    pub(crate) model: Arc<GatewayModel>,
    pub(crate) prompt: Vec<TokenId>,
    pub(crate) options: Options,
    /// What the answer may call.
    pub(crate) tools: Option<(ToolStyle, Tooling)>,
}

/// What a reply repeats.
struct Frame {
    head: Head,
    /// Of one job.
    prompt_tokens: u64,
    /// Receipt and seed of each choice.
    choices: Vec<(RequestHash, u64)>,
    has_logprobs: bool,
    class: Class,
    /// Receipts of all who gave a redundant answer; else empty.
    agreed: Vec<RequestHash>,
    /// Completions have them in another form than chats.
    is_completion: bool,
    warnings: Vec<String>,
}

/// Sends the jobs on their way and replies with what comes of them.
///
/// # Errors
/// Whatever is wrong before the first job is sent, or before the first token.
pub(crate) async fn answer(inner: &Arc<Inner>, ask: Ask) -> Reply {
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
    let holds = holds(&ask.account, &jobs)?;
    let Some((first, job)) = jobs.first().map(|job| (job.request_hash(), job)) else { return Err(GatewayError::Busy) };
    let shape = ask.dialect.shape();
    let dialect = ask.dialect;
    let mut frame = Frame {
        head: Head {
            id: dialect.reply_id(&first.to_string()[2..26]),
            created: clock::unix_seconds(),
            model: ask.name,
            system_fingerprint: ask.model.fingerprint(),
        },
        prompt_tokens: job.prompt.len() as u64,
        choices: Vec::with_capacity(jobs.len()),
        has_logprobs: job.logprobs.is_some(),
        class: ask.model.class(),
        agreed: Vec::new(),
        is_completion: dialect == Dialect::Completion,
        warnings: ask.options.warnings,
    };
    let tools = ask.tools;
    let finder = |id: &RequestHash| {
        tools.as_ref().map(|(style, tooling)| Finder::new(*style, tooling, id.to_string().trim_start_matches("0x")))
    };
    let (sender, updates) = mpsc::channel(UPDATES_MAX);
    let mut finders = Vec::with_capacity(jobs.len());
    for ((choice, job), hold) in (0..).zip(jobs).zip(holds) {
        let id = job.request_hash();
        frame.choices.push((id, job.sampling.seed));
        finders.push(finder(&id));
        inner.metrics.tokens_prompt.inc_by(frame.prompt_tokens);
        // An operator sees the class, however it was asked for.
        let shown = if frame.class == Class::Tolerant { &ask.model.name } else { &frame.head.model };
        let entry = inner.running.enter(id, ask.account.id, shown, frame.prompt_tokens);
        let (only, ignore) = (ask.options.only.clone(), ask.options.ignore.clone());
        let wishes = ask.options.wishes.clone();
        let is_audited = ask.options.verify != Verify::None;
        let (model, out) = (Arc::clone(&ask.model), Out { choice, sender: sender.clone() });
        let work = match ask.options.verify {
            Verify::Redundant(providers) => {
                let (needed, account) = (providers as usize, Arc::clone(&ask.account));
                let first = Some((hold, entry));
                Work::Redundant(Box::new(Plan { needed, job, model, account, first, only, ignore, wishes }), out)
            }
            Verify::Exact | Verify::Tolerant | Verify::None => {
                let ticket = Ticket { id, job, model, hold, entry, only, ignore, wishes, is_audited, seal: None };
                Work::Flight(Box::new(Flight::new(Arc::clone(inner), ticket, out)))
            }
        };
        let gauge = Arc::clone(inner);
        let permit = permits.split(1);
        inner.tasks.spawn(async move {
            gauge.metrics.requests_running.inc();
            match work {
                Work::Flight(flight) => flight.run().await,
                Work::Redundant(plan, out) => redundant::run(Arc::clone(&gauge), *plan, out).await,
            }
            gauge.metrics.requests_running.dec();
            drop(permit);
        });
    }
    drop(sender);
    let reply = if ask.options.stream {
        streamed(dialect, frame, finders, updates, ask.options.include_usage).await
    } else {
        whole(dialect, frame, finders, updates).await
    };
    // The receipt's name is known from the start, whatever comes of the request; but that of a redundant one.
    let mut response = reply.unwrap_or_else(|error| rescue::response(&error, shape));
    if !response.headers().contains_key(RECEIPT_HEADER) {
        name_receipt(&mut response, first);
    }
    Ok(response)
}

/// What answers one choice.
enum Work {
    Flight(Box<Flight>),
    Redundant(Box<Plan>, Out),
}

pub(crate) fn name_receipt(response: &mut Response<Body>, receipt: RequestHash) {
    if let Ok(value) = HeaderValue::from_str(&receipt.to_string()) {
        response.headers_mut().insert(RECEIPT_HEADER, value);
    }
}

/// The tokens of each job, all of them or none.
pub(crate) fn holds(account: &Arc<Account>, jobs: &[Job]) -> Result<Vec<Hold>, GatewayError> {
    let now = Instant::now();
    // Those before one that fails are given back as they are dropped.
    jobs.iter().map(|job| account.hold(tokens_at_most(job), now)).collect()
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

impl Frame {
    /// Of one choice.
    fn assay(&self, choice: u32, providers: Vec<ProviderId>, cost: Option<Amount>) -> AssayInfo {
        let (receipt, seed) = self.choices.get(choice as usize).copied().unwrap_or_default();
        AssayInfo { receipt, receipts: self.agreed.clone(), providers, cost, seed, class: self.class }
    }

    /// The answer is another's than that of the job which was sent first.
    fn agree(&mut self, choice: u32, receipts: Vec<RequestHash>) {
        if let (Some(named), Some(first)) = (self.choices.get_mut(choice as usize), receipts.first()) {
            named.0 = *first;
        }
        self.agreed = receipts;
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
        if !self.is_completion {
            return Some(Logprobs::Chat(ChatLogprobs::new(tokens)));
        }
        let logprobs = CompletionLogprobs::new(tokens, *offset);
        *offset = logprobs.end_offset();
        Some(Logprobs::Completion(logprobs))
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

async fn whole(
    dialect: Dialect,
    mut frame: Frame,
    finders: Vec<Option<Finder>>,
    mut updates: mpsc::Receiver<(u32, Update)>,
) -> Reply {
    let mut heard: Vec<Heard> = Vec::new();
    heard.resize_with(frame.choices.len(), Heard::default);
    while heard.iter().any(|one| one.finished.is_none()) {
        let Some((choice, update)) = updates.recv().await else { return Err(GatewayError::ShuttingDown) };
        let Some(one) = heard.get_mut(choice as usize) else { continue };
        match update {
            Update::Receipts(receipts) => frame.agree(choice, receipts),
            Update::Started(..) => {}
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
        let finish_reason = finish_reason(&finished, tool_calls.len());
        choices.push(Choice { text, tool_calls, logprobs, finish_reason });
        ends.push(finished);
    }
    let named = frame.agreed.first().copied();
    let ending = frame.end(&ends);
    let mut response = dialect.whole(frame.head, choices, &ends, ending);
    if let Some(first) = ends.first() {
        tell_route(&mut response, &first.route);
    }
    if let Some(receipt) = named {
        name_receipt(&mut response, receipt);
    }
    Ok(response)
}

/// Of the first choice; of a stream as far as it is known at its beginning.
pub(crate) fn tell_route(response: &mut Response<Body>, route: &str) {
    if let Ok(value) = HeaderValue::from_str(route) {
        response.headers_mut().insert(ROUTE_HEADER, value);
    }
}

/// Turns what is heard of a request into the events of its stream.
struct Teller {
    frame: Frame,
    voice: Voice,
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
            bytes = self.voice.text(choice, &found.text, logprobs);
        }
        let before = self.finder(choice).map_or(0, |finder| finder.calls().saturating_sub(found.calls.len()));
        for (number, call) in (before..).zip(&found.calls) {
            bytes.extend(self.voice.tool_call(choice, u32::try_from(number).unwrap_or(u32::MAX), call));
        }
        bytes
    }

    /// The bytes to send, and whether they are the last.
    fn tell(&mut self, choice: u32, update: Update) -> (Vec<u8>, bool) {
        match update {
            // Said before anything else.
            Update::Receipts(_) => (Vec::new(), false),
            Update::Started(provider, _) => {
                let assay = self.frame.assay(choice, vec![provider], None);
                (self.voice.start(choice, &assay), false)
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
                let calls = self.finder(choice).map_or(0, |finder| finder.calls());
                let usage = self.frame.usage(std::slice::from_ref(&*finished));
                bytes.extend(self.voice.finish(choice, &finished, calls, usage, assay, &self.frame.warnings));
                self.finished.push(*finished);
                let is_last = self.finished.len() == self.frame.choices.len();
                if is_last {
                    bytes.extend(self.voice.done(&self.frame.usage(&self.finished)));
                }
                (bytes, is_last)
            }
            Update::Failed(error) => (self.voice.fail(&error), true),
        }
    }
}

/// Waits for the first token, so that what fails before it is an HTTP error and not a broken stream.
async fn streamed(
    dialect: Dialect,
    mut frame: Frame,
    finders: Vec<Option<Finder>>,
    mut updates: mpsc::Receiver<(u32, Update)>,
    include_usage: bool,
) -> Reply {
    let (mut first, mut named) = (updates.recv().await, None);
    if let Some((choice, Update::Receipts(receipts))) = first {
        named = receipts.first().copied();
        frame.agree(choice, receipts);
        first = updates.recv().await;
    }
    let (choice, provider, route) = match first {
        Some((choice, Update::Started(provider, route))) => (choice, provider, route),
        Some((_, Update::Failed(error))) => return Err(error),
        // A flight says `Started` before anything else; without a word it was cut at shutdown.
        Some((_, Update::Receipts(_) | Update::Piece(..) | Update::Finished(_))) | None => {
            return Err(GatewayError::ShuttingDown);
        }
    };
    let voice = dialect.voice(frame.head.clone(), frame.prompt_tokens, include_usage);
    let offsets = vec![0; frame.choices.len()];
    let mut teller = Teller { frame, voice, finders, offsets, finished: Vec::new() };
    let first = Bytes::from(teller.tell(choice, Update::Started(provider, String::new())).0);
    let rest = stream::unfold(Some((updates, teller)), async |state| {
        let (mut updates, mut teller) = state?;
        let (bytes, is_last) = match updates.recv().await {
            Some((choice, update)) => teller.tell(choice, update),
            None => (teller.voice.fail(&GatewayError::ShuttingDown), true),
        };
        let next = (!is_last).then_some((updates, teller));
        Some((Ok::<_, Infallible>(Bytes::from(bytes)), next))
    });
    let events = stream::StreamExt::chain(stream::once(async { Ok(first) }), rest);
    let mut response = typed("text/event-stream; charset=utf-8", Body::from_stream(events));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    tell_route(&mut response, &route);
    if let Some(receipt) = named {
        name_receipt(&mut response, receipt);
    }
    Ok(response)
}
