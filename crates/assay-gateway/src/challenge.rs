//! Challenges: requests of the gateway's own, at random times, to a random provider, about random words. To the provider
//! one looks like any user's: it is routed, paid and receipted the same way. What it shows:
//!
//! - liveness: who says that it takes requests and does not answer is noted as silent;
//! - capability: the time to the first token and for the rest, on a prompt that nobody can have prepared;
//! - possession of the model: every answer is replayed (class exact) or compared (class tolerant), whatever the rate is
//!   by then, so a provider that dropped its model when its rate had fallen is found.

use crate::account::{Account, KeyLimits};
use crate::error::GatewayError;
use crate::flight::{Flight, Out, Ticket, UPDATES_MAX, Update};
use crate::gateway::Inner;
use crate::keys::GUEST;
use crate::model::GatewayModel;
use assay_api::{ChatRequest, Wishes};
use assay_protocol::Deed;
use assay_types::{Amount, B256, Class, Job, ProviderId, RequestHash, first_u64, keccak256};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How a challenge asks; the words are drawn from the model's vocabulary.
const FORMS: [&str; 6] = [
    "Tell me about {} and {}.",
    "What is {}?",
    "Write a short story with {} and {}.",
    "Explain the difference between {} and {}.",
    "{} or {}?",
    "Continue: {} {}",
];
/// Tokens that are looked at to find a word.
const WORD_TRIES: u32 = 64;
/// Output tokens: so many, and up to so many more.
const TOKENS: (u64, u64) = (16, 64);
/// Temperatures in millionths; half of them greedy, where one token says most.
const TEMPERATURES: [u32; 4] = [0, 0, 700_000, 1_000_000];

/// 64-bit numbers from 32 random bytes.
struct Draws(B256);

impl Draws {
    fn new() -> Option<Self> {
        let mut seed = B256::ZERO;
        getrandom::fill(seed.as_mut_slice()).ok()?;
        Some(Self(seed))
    }

    fn next(&mut self) -> u64 {
        self.0 = keccak256(self.0);
        first_u64(&self.0)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        u64::try_from((u128::from(self.next()) * u128::from(bound)) >> 64).unwrap_or(0)
    }

    fn one_of<'a, T>(&mut self, list: &'a [T]) -> Option<&'a T> {
        let index = self.below((list.len() as u64).max(1));
        list.get(usize::try_from(index).unwrap_or(usize::MAX))
    }
}

/// Challenges until `stop`: each provider once in `every` on average.
pub(crate) async fn run(inner: Arc<Inner>, every: Duration, stop: CancellationToken) {
    loop {
        let Some(mut draws) = Draws::new() else { return };
        let providers = inner.directory.ready();
        // Exponential: the time since the last challenge says nothing of the next one.
        #[expect(clippy::cast_precision_loss, reason = "53 bits are random enough")]
        let uniform = ((draws.next() >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
        let pause = every.div_f64(providers.len().max(1) as f64).mul_f64(-uniform.ln());
        tokio::select! {
            () = tokio::time::sleep(pause.min(every.saturating_mul(8))) => {}
            () = stop.cancelled() => return,
        }
        // Who is there by now.
        let Some(provider) = draws.one_of(&inner.directory.ready()).copied() else { continue };
        if let Err(error) = challenge(&inner, provider, &mut draws).await {
            tracing::error!(%provider, %error, "a provider was not challenged");
        }
    }
}

/// Asks, and notes what came of it.
async fn challenge(inner: &Arc<Inner>, provider: ProviderId, draws: &mut Draws) -> Result<(), GatewayError> {
    let offered = inner.directory.offer(provider).map(|offer| offer.models.clone()).unwrap_or_default();
    // A challenge is a question, and vectors answer none.
    let known = inner.models.iter().chain(&inner.tolerant).filter(|model| model.dimensions.is_none());
    let models: Vec<_> = known.filter(|known| offered.iter().any(|model| model.model_id == known.model_id)).collect();
    let Some(model) = draws.one_of(&models).map(|model| Arc::clone(model)) else { return Ok(()) };
    let job = job(inner, &model, draws)?;
    let (id, class) = (job.request_hash(), model.class());
    match answer(inner, provider, model, job).await? {
        Some(deed @ Deed::Answered { .. }) => {
            inner.auditing.standings.note(provider, deed, Some(id)).await?;
            match class {
                Class::Exact => inner.auditing.demand(id).await,
                Class::Tolerant => inner.comparing.demand(id),
            }
        }
        Some(deed) => inner.auditing.standings.note(provider, deed, None).await?,
        None => {}
    }
    Ok(())
}

fn job(inner: &Inner, model: &GatewayModel, draws: &mut Draws) -> Result<Job, GatewayError> {
    let mut text = String::new();
    for (index, piece) in draws.one_of(&FORMS).copied().unwrap_or("{}").split("{}").enumerate() {
        if index > 0 {
            text.push_str(&word(model, draws));
        }
        text.push_str(piece);
    }
    let (least, more) = TOKENS;
    let body = json!({
        "model": model.name, "messages": [{"role": "user", "content": text}], "max_tokens": least + draws.below(more),
        "temperature": f64::from(draws.one_of(&TEMPERATURES).copied().unwrap_or(0)) / 1e6,
    });
    let chat = ChatRequest::parse(body.to_string().as_bytes(), &inner.limits.request)?;
    let prompt = match model.chat_prompt(&chat.messages, &chat.tooling) {
        Ok(prompt) => prompt,
        // A model without a template, or one that wants more than a user's message.
        Err(_) => model.text_prompt(&text),
    };
    // 53 bits, as for users: a receipt file writes the seed as a JSON number.
    let (seed, nonce) = (draws.next() >> 11, keccak256(draws.0));
    let job = chat.options.job(model.model_id, prompt, 16, seed, nonce);
    job.validate(&model.job_limits())?;
    Ok(job)
}

/// A word that is one token, so that no two challenges are alike and none is listed anywhere.
fn word(model: &GatewayModel, draws: &mut Draws) -> String {
    for _ in 0..WORD_TRIES {
        let id = draws.below(u64::from(model.tokenizer.vocab_size()).max(1));
        let bytes = model.tokenizer.token_bytes(u32::try_from(id).unwrap_or(0));
        let text = std::str::from_utf8(bytes).unwrap_or_default().trim();
        if text.chars().count() > 2 && text.chars().all(char::is_alphabetic) {
            return text.to_owned();
        }
    }
    "it".into()
}

/// `None`: there is nothing to say of the provider, which was full, or the gateway is ending.
async fn answer(
    inner: &Arc<Inner>,
    provider: ProviderId,
    model: Arc<GatewayModel>,
    job: Job,
) -> Result<Option<Deed>, GatewayError> {
    let now = Instant::now();
    // What it costs is the gateway's own.
    let account = Arc::new(Account::new(GUEST, KeyLimits::default(), Amount::ZERO, now));
    let id: RequestHash = job.request_hash();
    let prompt_tokens = job.prompt.len() as u64;
    let (sender, mut updates) = mpsc::channel(UPDATES_MAX);
    let ticket = Ticket {
        id,
        hold: account.hold(prompt_tokens.saturating_add(u64::from(job.max_tokens)), now)?,
        entry: inner.running.enter(id, GUEST, &model.name, prompt_tokens),
        job,
        model,
        only: vec![provider],
        ignore: Vec::new(),
        wishes: Wishes::default(),
        // It is looked at whatever is drawn.
        is_audited: false,
        seal: None,
    };
    let flight = Flight::new(Arc::clone(inner), ticket, Out { choice: 0, sender });
    inner.tasks.spawn(flight.run());
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut first = None;
    while let Some((_, update)) = updates.recv().await {
        match update {
            Update::Started(..) => first = Some(Instant::now()),
            Update::Finished(finished) => {
                let began = first.unwrap_or_else(Instant::now);
                return Ok(Some(Deed::Answered {
                    tokens: finished.output_tokens,
                    first_millis: millis(began - now),
                    millis: millis(began.elapsed()),
                }));
            }
            // The flight has noted that an answer broke off.
            Update::Failed(GatewayError::Providers(loss)) => {
                // That our channel is empty is not the provider's silence.
                let is_ours = loss.starts_with("payment: ") || loss.starts_with("its payment channel");
                return Ok((!is_ours).then_some(Deed::Silent));
            }
            Update::Failed(_) => return Ok(None),
            Update::Receipts(_) | Update::Piece(..) => {}
        }
    }
    Ok(None)
}
