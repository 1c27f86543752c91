//! Chat and completion requests: which fields are understood, refused, or reported as ignored.
//!
//! Three groups. Understood fields are here as typed values. Fields that would change the answer and are not
//! implemented are refused by name unless they hold the value that changes nothing. Everything else goes into
//! `warnings`, which the reply carries: nothing is dropped in silence.

use crate::RequestError;
use crate::constraint::Constraint;
use crate::json::{Field, Fields};
use crate::tools::{ToolCall, ToolChoice, Tooling, calls, tooling};
use crate::verify::{Verify, verify};
use assay_types::{
    Amount, B256, Job, LOGIT_BIAS_MAX, LogitBias, MICRO, ModelId, ProviderId, Sampling, TOP_LOGPROBS_MAX, TokenId,
};

/// Bounds on a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body in bytes.
    pub body_bytes_max: usize,
    /// Most chat messages.
    pub messages_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { body_bytes_max: 1 << 20, messages_max: 1024 }
    }
}

/// Longest model name in bytes.
pub const MODEL_NAME_LEN_MAX: usize = 256;
/// Most warnings in one reply; further ones are counted.
pub const WARNINGS_MAX: usize = 16;
/// Output bound of `/v1/completions` where the request has none: the API's documented default.
const COMPLETION_MAX_TOKENS: u32 = 16;
/// Most choices of one request.
pub const CHOICES_MAX: u32 = 16;
/// Most providers in one filter.
const PROVIDERS_MAX: usize = 64;
/// Stop strings: a job's own bounds (`Job::validate`), checked here for an error with the field's path.
const STOP_COUNT_MAX: usize = 16;
const STOP_LEN_MAX: usize = 256;

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions, by the name newer clients use.
    Developer,
    /// The person.
    User,
    /// The model.
    Assistant,
    /// The result of a call.
    Tool,
}

impl Role {
    /// The name chat templates know: `developer` is `system` there.
    #[must_use]
    pub fn template_name(self) -> &'static str {
        match self {
            Self::System | Self::Developer => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

/// One chat message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// Text; several text parts are joined by a newline. Empty where the message only calls.
    pub content: String,
    /// What the assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// Which call this is the result of.
    pub tool_call_id: Option<String>,
}

/// `POST /v1/chat/completions`.
#[derive(Clone, PartialEq, Debug)]
pub struct ChatRequest {
    /// The model's name.
    pub model: String,
    /// At least one.
    pub messages: Vec<Message>,
    /// Functions that the model may call.
    pub tooling: Tooling,
    /// Everything else.
    pub options: Options,
}

/// What a completion goes on from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Prompt {
    /// Text, yet to be tokenized.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<TokenId>),
}

/// `POST /v1/completions`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CompletionRequest {
    /// The model's name.
    pub model: String,
    /// One prompt.
    pub prompt: Prompt,
    /// Everything else.
    pub options: Options,
}

/// What both kinds of request share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// Server-sent events instead of one body.
    pub stream: bool,
    /// A usage chunk at the end of a stream.
    pub include_usage: bool,
    /// Seed; a negative one counts modulo 2^64. `None`: the gateway draws one.
    pub seed: Option<u64>,
    /// What the output has to look like.
    pub constraint: Option<Constraint>,
    /// Stop strings: at most 16 of 1 to 256 bytes.
    pub stop: Vec<String>,
    /// Bound on output tokens, at least 1. `None`: what fits the context.
    pub max_tokens: Option<u32>,
    /// Temperature in millionths, to the nearest, halves away from zero; 0 to 2_000_000, 1_000_000 if not given.
    pub temperature_micro: u32,
    /// Nucleus in millionths, to the nearest, halves away from zero, at least 1 (so 0 means the most likely token).
    pub top_p_micro: u32,
    /// Only this many most likely tokens; 0 is all (so is -1, which other servers use).
    pub top_k: u32,
    /// Only tokens at least this many millionths as likely as the most likely one; to the nearest.
    pub min_p_micro: u32,
    /// Of tokens in prompt or output, in millionths, to the nearest; 10_000 to 100_000_000.
    pub repetition_penalty_micro: u32,
    /// For each time in the output, in millionths, to the nearest; within ±2_000_000.
    pub frequency_penalty_micro: i32,
    /// For being in the output, in millionths, to the nearest; within ±2_000_000.
    pub presence_penalty_micro: i32,
    /// Ascending by token, each token once; at most [`LOGIT_BIAS_MAX`].
    pub logit_bias: Vec<LogitBias>,
    /// Go on after an end-of-generation token.
    pub ignore_eos: bool,
    /// Log probabilities of output tokens, and of how many most likely ones; as in the job.
    pub logprobs: Option<u8>,
    /// Answers to give, 1 to [`CHOICES_MAX`].
    pub n: u32,
    /// Only these providers may answer; empty: all.
    pub only: Vec<ProviderId>,
    /// These providers may not.
    pub ignore: Vec<ProviderId>,
    /// How one of them is chosen.
    pub wishes: Wishes,
    /// What is done so that the answer can be relied on.
    pub verify: Verify,
    /// What was ignored, for the reply; at most [`WARNINGS_MAX`] and one that counts the others.
    pub warnings: Vec<String>,
}

/// What requests share that are not about text that goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// Only these providers may answer; empty: all.
    pub only: Vec<ProviderId>,
    /// These providers may not.
    pub ignore: Vec<ProviderId>,
    /// How one of them is chosen.
    pub wishes: Wishes,
    /// What is done so that the answer can be relied on.
    pub verify: Verify,
    /// What was ignored, for the reply.
    pub warnings: Vec<String>,
}

/// How a provider is chosen: OpenRouter's `provider` object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wishes {
    /// These first, in this order.
    pub order: Vec<ProviderId>,
    /// Whether others than the first one (with `order`: than those) may answer.
    pub allow_fallbacks: bool,
    /// The best by this; `None`: the gateway weighs everything.
    pub sort: Option<Sort>,
    /// Nobody dearer, in base units per million tokens.
    pub max_price: MaxPrice,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { order: Vec::new(), allow_fallbacks: true, sort: None, max_price: MaxPrice::default() }
    }
}

/// By what providers are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sort {
    /// What the request costs at most.
    Price,
    /// Time per token.
    Throughput,
    /// Time to the first token.
    Latency,
}

/// Highest prices, in base units per million tokens; `None`: any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MaxPrice {
    /// Of the prompt.
    pub prompt: Option<Amount>,
    /// Of the output.
    pub completion: Option<Amount>,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, RequestError> {
        let mut fields = Fields::parse_body(body)?;
        let model = model_name(&mut fields)?;
        let items = fields.require("messages")?;
        let list = items.array("an array of messages")?;
        if list.is_empty() || list.len() > limits.messages_max {
            let reason = format!("expected 1 to {} messages, got {}", limits.messages_max, list.len());
            return Err(items.refuse(reason));
        }
        let mut ignored = Vec::new();
        let messages = list.iter().map(|item| message(item, &mut ignored)).collect::<Result<_, _>>()?;
        let logprobs = chat_logprobs(&mut fields)?;
        let tooling = tooling(&mut fields)?;
        let options = Options { logprobs, ..options(fields, ignored)? };
        check_forced(&tooling, &options)?;
        Ok(Self { model, messages, tooling, options })
    }
}

/// A call that is forced leaves no room for other wishes about the output.
pub(crate) fn check_forced(tooling: &Tooling, options: &Options) -> Result<(), RequestError> {
    let forces = matches!(tooling.choice, ToolChoice::Required | ToolChoice::Named(_));
    if let Some(constraint) = options.constraint.as_ref().filter(|_| forces) {
        let reason = format!("'{}' constrains the output already", constraint.param);
        return Err(RequestError::invalid("tool_choice", reason));
    }
    if forces && options.ignore_eos {
        return Err(RequestError::invalid("ignore_eos", "cannot be true with a 'tool_choice' that forces a call"));
    }
    Ok(())
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse_body(body)?;
        let model = model_name(&mut fields)?;
        let prompt = prompt(&fields.require("prompt")?)?;
        let logprobs = completion_logprobs(&mut fields)?;
        let mut options = Options { logprobs, ..options(fields, Vec::new())? };
        options.max_tokens.get_or_insert(COMPLETION_MAX_TOKENS);
        Ok(Self { model, prompt, options })
    }
}

impl Options {
    /// The job. `max_tokens` and `seed` are the caller's where the request has none.
    #[must_use]
    pub fn job(&self, model_id: ModelId, prompt: Vec<TokenId>, max_tokens: u32, seed: u64, nonce: B256) -> Job {
        Job {
            model_id,
            prompt,
            prefix: Vec::new(),
            max_tokens: self.max_tokens.unwrap_or(max_tokens),
            sampling: Sampling {
                temperature_micro: self.temperature_micro,
                top_p_micro: self.top_p_micro,
                top_k: self.top_k,
                min_p_micro: self.min_p_micro,
                repetition_penalty_micro: self.repetition_penalty_micro,
                frequency_penalty_micro: self.frequency_penalty_micro,
                presence_penalty_micro: self.presence_penalty_micro,
                seed: self.seed.unwrap_or(seed),
            },
            logit_bias: self.logit_bias.clone(),
            grammar: self.constraint.as_ref().map(|constraint| constraint.grammar.clone()),
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
            embed: None,
            nonce,
        }
    }
}

pub(crate) fn model_name(fields: &mut Fields<'_>) -> Result<String, RequestError> {
    let field = fields.require("model")?;
    let name = field.string()?;
    if name.is_empty() || name.len() > MODEL_NAME_LEN_MAX {
        return Err(field.refuse(format!("expected a name of 1 to {MODEL_NAME_LEN_MAX} bytes")));
    }
    Ok(name)
}

fn message(item: &Field<'_>, ignored: &mut Vec<String>) -> Result<Message, RequestError> {
    let mut fields = item.object()?;
    let role_field = fields.require("role")?;
    let role = match role_field.string()?.as_str() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" => Role::Tool,
        "function" => return Err(role_field.unsupported("the role is 'tool' by now")),
        _ => return Err(role_field.refuse("expected one of system, developer, user, assistant, tool")),
    };
    let tool_calls = match fields.take("tool_calls").filter(|_| role == Role::Assistant) {
        None => Vec::new(),
        Some(field) => calls(&field)?,
    };
    let tool_call_id = match role {
        Role::Tool => Some(fields.require("tool_call_id")?.string()?),
        _ => None,
    };
    for name in ["function_call", "audio"] {
        if let Some(field) = fields.take(name)
            && !field.equals("[]")
        {
            return Err(field.unsupported("only text messages are supported"));
        }
    }
    let content = match fields.take("content") {
        // Who calls needs to say nothing.
        None if !tool_calls.is_empty() => String::new(),
        None => return Err(fields.missing("content")),
        Some(field) => content(&field)?,
    };
    ignored.extend(fields.rest());
    Ok(Message { role, content, tool_calls, tool_call_id })
}

pub(crate) fn content(field: &Field<'_>) -> Result<String, RequestError> {
    if !field.is_array() {
        return if field.is_string() { field.string() } else { Err(field.wrong("a string or an array of text parts")) };
    }
    let mut text = String::new();
    for (index, part) in field.array("an array of text parts")?.iter().enumerate() {
        let mut fields = part.object()?;
        let kind = fields.require("type")?;
        if kind.string()? != "text" {
            return Err(kind.unsupported("only parts of type 'text' are supported"));
        }
        if index > 0 {
            text.push('\n');
        }
        text.push_str(&fields.require("text")?.string()?);
    }
    Ok(text)
}

fn prompt(field: &Field<'_>) -> Result<Prompt, RequestError> {
    const EXPECTED: &str = "a string, an array of one string, or an array of token ids";
    if field.is_string() {
        return field.string().map(Prompt::Text);
    }
    if !field.is_array() {
        return Err(field.wrong(EXPECTED));
    }
    // Token ids first: a list of them may be long, and needs no per-item bookkeeping.
    if let Ok(tokens) = field.token_ids() {
        return if tokens.is_empty() { Err(field.refuse("the prompt is empty")) } else { Ok(Prompt::Tokens(tokens)) };
    }
    let items = field.array(EXPECTED)?;
    match items.as_slice() {
        [one] if one.is_string() => one.string().map(Prompt::Text),
        [one] if one.is_array() => one.token_ids().map(Prompt::Tokens),
        [first, ..] if first.is_integer() => field.token_ids().map(Prompt::Tokens),
        [_] => Err(field.refuse(format!("expected {EXPECTED}"))),
        _ => Err(field.unsupported("one prompt per request")),
    }
}

pub(crate) fn options(mut fields: Fields<'_>, mut ignored: Vec<String>) -> Result<Options, RequestError> {
    let stream = fields.take("stream").map(|f| f.bool()).transpose()?.unwrap_or(false);
    let include_usage = stream_options(&mut fields, stream, &mut ignored)?;
    let Provider { only, ignore, wishes, requires_parameters } = provider(&mut fields, &mut ignored)?;
    let verify = verify(&mut fields, &mut ignored)?;
    let options = Options {
        stream,
        include_usage,
        seed: fields.take("seed").map(|f| seed(&f)).transpose()?,
        constraint: crate::constraint::constraint(&mut fields)?,
        stop: fields.take("stop").map(|f| stop(&f)).transpose()?.unwrap_or_default(),
        max_tokens: max_tokens(&mut fields)?,
        temperature_micro: micro(&mut fields, "temperature", 0.0, 2.0)?.unwrap_or(MICRO),
        top_p_micro: micro(&mut fields, "top_p", 0.0, 1.0)?.unwrap_or(MICRO).max(1),
        top_k: top_k(&mut fields)?,
        min_p_micro: micro(&mut fields, "min_p", 0.0, 1.0)?.unwrap_or(0),
        repetition_penalty_micro: micro(&mut fields, "repetition_penalty", 0.01, 100.0)?.unwrap_or(MICRO),
        frequency_penalty_micro: micro(&mut fields, "frequency_penalty", -2.0, 2.0)?.unwrap_or(0),
        presence_penalty_micro: micro(&mut fields, "presence_penalty", -2.0, 2.0)?.unwrap_or(0),
        logit_bias: fields.take("logit_bias").map(|f| logit_bias(&f)).transpose()?.unwrap_or_default(),
        ignore_eos: fields.take("ignore_eos").map(|f| f.bool()).transpose()?.unwrap_or(false),
        logprobs: None,
        n: choices(&mut fields)?,
        only,
        ignore,
        wishes,
        verify,
        warnings: Vec::new(),
    };
    if let Some(constraint) = options.constraint.as_ref().filter(|_| options.ignore_eos) {
        let reason = format!("cannot be true with '{}', which decides where the output ends", constraint.param);
        return Err(RequestError::invalid("ignore_eos", reason));
    }
    if options.n > 1 && matches!(options.verify, Verify::Redundant(_)) {
        return Err(RequestError::invalid("n", "is 1 where several providers have to agree"));
    }
    refuse_unsupported(&mut fields)?;
    ignored.extend(fields.rest());
    Ok(Options { warnings: reported(ignored, requires_parameters)?, ..options })
}

/// Reads what is left in `fields` as [`Asked`].
pub(crate) fn asked(mut fields: Fields<'_>) -> Result<Asked, RequestError> {
    let mut ignored = Vec::new();
    let Provider { only, ignore, wishes, requires_parameters } = provider(&mut fields, &mut ignored)?;
    let verify = verify(&mut fields, &mut ignored)?;
    ignored.extend(fields.rest());
    Ok(Asked { only, ignore, wishes, verify, warnings: reported(ignored, requires_parameters)? })
}

/// Warnings about what was ignored, unless nothing may be.
fn reported(ignored: Vec<String>, requires_parameters: bool) -> Result<Vec<String>, RequestError> {
    if let Some(path) = ignored.first().filter(|_| requires_parameters) {
        let path: String = path.chars().take(80).collect();
        return Err(RequestError::unsupported(path, "it is not known here, and 'provider.require_parameters' is true"));
    }
    Ok(warnings(ignored))
}

/// `logprobs` switches them on, `top_logprobs` says how many most likely tokens come with each.
fn chat_logprobs(fields: &mut Fields<'_>) -> Result<Option<u8>, RequestError> {
    let is_on = fields.take("logprobs").map(|f| f.bool()).transpose()?.unwrap_or(false);
    let Some(field) = fields.take("top_logprobs") else { return Ok(is_on.then_some(0)) };
    match top_logprobs(&field)? {
        0 => Ok(is_on.then_some(0)),
        _ if !is_on => Err(field.refuse("only allowed when 'logprobs' is true")),
        top => Ok(Some(top)),
    }
}

/// The older API has one number for both.
fn completion_logprobs(fields: &mut Fields<'_>) -> Result<Option<u8>, RequestError> {
    match fields.take("logprobs") {
        Some(field) if !field.equals("false") => top_logprobs(&field).map(Some),
        _ => Ok(None),
    }
}

fn top_logprobs(field: &Field<'_>) -> Result<u8, RequestError> {
    let expected = format!("an integer from 0 to {TOP_LOGPROBS_MAX}");
    let top = field.integer::<u8>(&expected)?;
    if top > TOP_LOGPROBS_MAX {
        return Err(field.refuse(format!("expected {expected}, got {top}")));
    }
    Ok(top)
}

fn choices(fields: &mut Fields<'_>) -> Result<u32, RequestError> {
    let Some(field) = fields.take("n") else { return Ok(1) };
    let expected = format!("an integer from 1 to {CHOICES_MAX}");
    match field.integer::<u32>(&expected)? {
        n @ 1..=CHOICES_MAX => Ok(n),
        n => Err(field.refuse(format!("expected {expected}, got {n}"))),
    }
}

fn stream_options(fields: &mut Fields<'_>, stream: bool, ignored: &mut Vec<String>) -> Result<bool, RequestError> {
    let Some(field) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        return Err(field.refuse("only allowed when 'stream' is true"));
    }
    let mut inner = field.object()?;
    let include = inner.take("include_usage").map(|f| f.bool()).transpose()?.unwrap_or(false);
    ignored.extend(inner.rest());
    Ok(include)
}

/// The `provider` object.
#[derive(Default)]
struct Provider {
    only: Vec<ProviderId>,
    ignore: Vec<ProviderId>,
    wishes: Wishes,
    requires_parameters: bool,
}

/// `provider`, by OpenRouter's names.
fn provider(fields: &mut Fields<'_>, ignored: &mut Vec<String>) -> Result<Provider, RequestError> {
    let Some(field) = fields.take("provider") else { return Ok(Provider::default()) };
    let mut inner = field.object()?;
    let mut ids = |name| inner.take(name).map_or(Ok(Vec::new()), |list| provider_ids(&list));
    let (only, ignore, order) = (ids("only")?, ids("ignore")?, ids("order")?);
    let mut flag = |name, default| inner.take(name).map_or(Ok(default), |field| field.bool());
    let (allow_fallbacks, requires_parameters) = (flag("allow_fallbacks", true)?, flag("require_parameters", false)?);
    let sort = match inner.take("sort") {
        None => None,
        Some(field) => Some(match field.string()?.as_str() {
            "price" => Sort::Price,
            "throughput" => Sort::Throughput,
            "latency" => Sort::Latency,
            _ => return Err(field.refuse("expected one of price, throughput, latency")),
        }),
    };
    let max_price = inner.take("max_price").map(|field| max_price(&field, ignored)).transpose()?.unwrap_or_default();
    if let Some(field) = inner.take("data_collection")
        && field.string()? != "allow"
    {
        // To report it would be too late: the prompt would have been sent.
        return Err(field.unsupported("no provider of this network is known to keep nothing"));
    }
    ignored.extend(inner.rest());
    Ok(Provider { only, ignore, wishes: Wishes { order, allow_fallbacks, sort, max_price }, requires_parameters })
}

/// `{prompt, completion}` in dollars per million tokens; a dollar is a million base units.
fn max_price(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<MaxPrice, RequestError> {
    let mut inner = field.object()?;
    let mut price = |name| {
        let price =
            |field: Field<'_>| field_micro::<i64>(&field, 0.0, 1e6).map(|micro| Amount(micro.unsigned_abs().into()));
        inner.take(name).map(price).transpose()
    };
    let prices = MaxPrice { prompt: price("prompt")?, completion: price("completion")? };
    ignored.extend(inner.rest());
    Ok(prices)
}

fn provider_ids(list: &Field<'_>) -> Result<Vec<ProviderId>, RequestError> {
    let items = list.array("an array of provider ids")?;
    if items.len() > PROVIDERS_MAX {
        return Err(list.refuse(format!("at most {PROVIDERS_MAX} providers, got {}", items.len())));
    }
    let id = |item: &Field<'_>| {
        item.string()?.parse().map_err(|_| item.refuse("expected a provider id: 0x and 40 hex digits"))
    };
    items.iter().map(id).collect()
}

fn seed(field: &Field<'_>) -> Result<u64, RequestError> {
    const EXPECTED: &str = "an integer from -9223372036854775808 to 18446744073709551615";
    match field.integer::<u64>(EXPECTED) {
        Ok(seed) => Ok(seed),
        Err(_) => field.integer::<i64>(EXPECTED).map(i64::cast_unsigned),
    }
}

pub(crate) fn stop(field: &Field<'_>) -> Result<Vec<String>, RequestError> {
    const EXPECTED: &str = "a string or an array of strings";
    let check = |item: &Field<'_>| {
        let text = item.string()?;
        if text.is_empty() || text.len() > STOP_LEN_MAX {
            return Err(item.refuse(format!("each stop string is 1 to {STOP_LEN_MAX} bytes long")));
        }
        Ok(text)
    };
    if field.is_string() {
        return Ok(vec![check(field)?]);
    }
    let items = field.array(EXPECTED)?;
    if items.len() > STOP_COUNT_MAX {
        return Err(field.refuse(format!("at most {STOP_COUNT_MAX} stop strings, got {}", items.len())));
    }
    items.iter().map(check).collect()
}

fn max_tokens(fields: &mut Fields<'_>) -> Result<Option<u32>, RequestError> {
    const EXPECTED: &str = "an integer from 1 to 4294967295";
    let read = |field: &Field<'_>| match field.integer::<u32>(EXPECTED)? {
        0 => Err(field.refuse(format!("expected {EXPECTED}, got 0"))),
        tokens => Ok(tokens),
    };
    let old = fields.take("max_tokens").map(|f| read(&f)).transpose()?;
    let Some(field) = fields.take("max_completion_tokens") else { return Ok(old) };
    let new = read(&field)?;
    match old {
        Some(other) if other != new => Err(field.refuse("'max_tokens' is given, too, with another value")),
        _ => Ok(Some(new)),
    }
}

/// A decimal from `min` to `max` in millionths. Both are within ±1,000,000, so the millionths fit 64 bits.
fn micro<T: TryFrom<i64>>(fields: &mut Fields<'_>, name: &str, min: f64, max: f64) -> Result<Option<T>, RequestError> {
    fields.take(name).map(|field| field_micro(&field, min, max)).transpose()
}

/// Nearest, halves away from zero.
fn field_micro<T: TryFrom<i64>>(field: &Field<'_>, min: f64, max: f64) -> Result<T, RequestError> {
    let expected = format!("a number from {min} to {max}");
    let value = field.number(&expected)?;
    let refuse = || field.refuse(format!("expected {expected}, got {value}"));
    if !(min..=max).contains(&value) {
        return Err(refuse());
    }
    T::try_from((value * f64::from(MICRO)).round() as i64).map_err(|_| refuse())
}

/// `{"<token id>": bias}`.
fn logit_bias(field: &Field<'_>) -> Result<Vec<LogitBias>, RequestError> {
    let mut list = Vec::new();
    for (key, value) in field.entries(LOGIT_BIAS_MAX)? {
        let token = key.parse().map_err(|_| value.refuse("expected a token id as the key"))?;
        list.push(LogitBias { token, bias_micro: field_micro(&value, -100.0, 100.0)? });
    }
    list.sort_unstable_by_key(|entry| entry.token);
    // Keys differ as text; "7" and "07" are one token nevertheless.
    if list.windows(2).any(|pair| matches!(pair, [a, b] if a.token == b.token)) {
        return Err(field.refuse("a token id is there twice"));
    }
    Ok(list)
}

fn top_k(fields: &mut Fields<'_>) -> Result<u32, RequestError> {
    const EXPECTED: &str = "an integer from 0 to 4294967295, or -1 for all";
    let Some(field) = fields.take("top_k") else { return Ok(0) };
    match field.integer::<i64>(EXPECTED)? {
        -1 => Ok(0),
        k => u32::try_from(k).map_err(|_| field.refuse(format!("expected {EXPECTED}, got {k}"))),
    }
}

/// Fields that would change the answer, the values (as JSON) that do not, and what to say.
const UNSUPPORTED: &[(&str, &[&str], &str)] = &[
    ("tools", &["[]"], "only chats have tools"),
    ("functions", &["[]"], "use 'tools'"),
    ("function_call", &["\"none\"", "\"auto\""], "use 'tool_choice'"),
    ("best_of", &["1"], "every choice is returned; see 'n'"),
    ("min_tokens", &["0"], "min_tokens is not supported"),
    ("echo", &["false"], "the prompt is not repeated in the output"),
    ("suffix", &["\"\""], "insertion is not supported"),
    ("modalities", &["[\"text\"]"], "only text"),
    ("audio", &[], "only text"),
    ("web_search_options", &[], "web search is not supported"),
    ("reasoning_effort", &["\"none\""], "reasoning is not supported"),
];

fn refuse_unsupported(fields: &mut Fields<'_>) -> Result<(), RequestError> {
    for (name, harmless, reason) in UNSUPPORTED {
        if let Some(field) = fields.take(name)
            && !harmless.iter().any(|value| field.equals(value))
        {
            return Err(field.unsupported(*reason));
        }
    }
    Ok(())
}

fn warnings(ignored: Vec<String>) -> Vec<String> {
    let extra = ignored.len().saturating_sub(WARNINGS_MAX);
    let mut warnings: Vec<String> = ignored
        .into_iter()
        .take(WARNINGS_MAX)
        .map(|path| format!("parameter '{}' was ignored", path.chars().take(80).collect::<String>()))
        .collect();
    if extra > 0 {
        warnings.push(format!("{extra} further parameters were ignored"));
    }
    warnings
}

#[cfg(test)]
mod tests;
