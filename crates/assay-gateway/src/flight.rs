//! One request on its way: providers in turn until the answer is whole, then its record, then the last word to the
//! client.
//!
//! Runs in a tracked task of its own. The HTTP handler only listens: if it is dropped because the client left, the
//! flight cancels the work, waits for the last receipt and stores what was paid for.

use crate::account::Hold;
use crate::channel::PayError;
use crate::clock;
use crate::directory::{Listing, Nobody, Picked, Wish};
use crate::error::GatewayError;
use crate::gateway::Inner;
use crate::model::GatewayModel;
use crate::peer::SentAt;
use crate::rescue;
use crate::running::Entry;
use crate::sealed::Sealed;
use crate::segment::{Answer, Fault, News, Reading, Segment};
use crate::store::{NewReceipt, PartRow};
use assay_api::{OutputLogprob, Wishes};
use assay_gguf::{OutputLimits, OutputText};
use assay_net::{ClientFrame, Done, NetError, Open, Pay, Pooled, ProviderFrame, RefusedCode};
use assay_protocol::{Deed, RoundError, StreamTerms};
use assay_types::{Amount, B256, Class, Embed, Finish, Job, Prices, ProviderId, RequestHash, TokenId, TokenLogprobs};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Pieces that may wait for a slow client before the provider is slowed down.
pub(crate) const UPDATES_MAX: usize = 64;

/// A sealed answer may take so long for each token of it, at most.
const SEALED_TOKEN: Duration = Duration::from_millis(200);
/// No round takes longer.
const ROUND_MAX: Duration = Duration::from_secs(3600);

/// What the handler hears.
#[derive(Debug)]
pub(crate) enum Update {
    /// The receipts of the answer, the first of which names it; before anything else is said of it.
    Receipts(Vec<RequestHash>),
    /// The first token is there; nothing can be refused any more. With the route so far.
    Started(ProviderId, String),
    /// Text, and the log probabilities of the tokens that came with it; not both empty.
    Piece(String, Vec<OutputLogprob>),
    /// The answer is whole and its record is stored.
    Finished(Box<Finished>),
    /// There is no (whole) answer.
    Failed(GatewayError),
}

/// Where one of the answers to a request is heard.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    /// Which answer.
    pub(crate) choice: u32,
    pub(crate) sender: mpsc::Sender<(u32, Update)>,
}

impl Out {
    /// `false`: nobody listens, or not fast enough.
    pub(crate) async fn send(&self, update: Update, limit: Duration) -> bool {
        self.sender.send_timeout((self.choice, update), limit).await.is_ok()
    }
}

/// The end of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Finished {
    pub(crate) finish: Finish,
    pub(crate) output_tokens: u64,
    pub(crate) providers: Vec<ProviderId>,
    pub(crate) cost: Amount,
    /// The stop string that ended it.
    pub(crate) stopped_by: Option<String>,
    /// Of a job for vectors: the bits of their values.
    pub(crate) values: Vec<TokenId>,
    /// Who was asked and why.
    pub(crate) route: String,
}

/// A request to fly.
pub(crate) struct Ticket {
    pub(crate) id: RequestHash,
    pub(crate) job: Job,
    pub(crate) model: Arc<GatewayModel>,
    /// What of the key's money and tokens it may use.
    pub(crate) hold: Hold,
    /// Its place in the list of what is running, for as long as the flight lasts.
    pub(crate) entry: Entry,
    pub(crate) only: Vec<ProviderId>,
    pub(crate) ignore: Vec<ProviderId>,
    pub(crate) wishes: Wishes,
    /// Whether auditors may see it.
    pub(crate) is_audited: bool,
    /// The round that it takes part in: one provider, and nothing is shown before all have committed.
    pub(crate) seal: Option<Arc<Sealed>>,
}

/// A line of the journal.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: u64,
    receipt: RequestHash,
    key_id: i64,
    model: &'a str,
    /// `stop`, `length`, `abandoned`, or the code of an error.
    end: &'static str,
    providers: Vec<ProviderId>,
    prompt_tokens: usize,
    output_tokens: usize,
    charged: Amount,
    first_token_millis: Option<u64>,
    millis: u64,
}

/// How a flight ended.
enum Landing {
    /// The output ended by itself.
    Whole(Finish),
    /// The client left; the last provider signed what there was.
    Abandoned,
    /// No provider could (go on to) answer.
    Failed(GatewayError),
}

/// How one attempt ended.
enum Ending {
    /// With the output's own end.
    Whole(Finish),
    /// By our `Cancel`, receipted or not.
    Cancelled,
    /// Another provider may go on.
    Lost(Loss),
}

/// Why an attempt gave no (whole) answer.
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("no token for {0:?}")]
    Stalled(Duration),
    #[error("refused: {1}")]
    Refused(RefusedCode, String),
    #[error("it ended the job")]
    Ended,
    #[error("payment: {0}")]
    Pay(PayError),
    #[error(transparent)]
    Fault(Fault),
    #[error("books: {0}")]
    Books(assay_protocol::PayerError),
    #[error(transparent)]
    Round(#[from] RoundError),
    #[error("an unexpected frame")]
    Unexpected,
}

impl Loss {
    /// The provider broke off what it had begun.
    fn is_abandonment(&self) -> bool {
        matches!(self, Self::Net(_) | Self::Stalled(_))
    }
}

impl Ending {
    /// In one word, for the route.
    fn lost(&self) -> Option<&'static str> {
        Some(match self {
            Self::Whole(_) => return None,
            Self::Cancelled => "cancelled",
            Self::Lost(loss) => match loss {
                Loss::Net(_) => "connection",
                Loss::Stalled(_) => "stalled",
                Loss::Refused(RefusedCode::Busy | RefusedCode::Draining, _) => "busy",
                Loss::Refused(..) => "refused",
                Loss::Ended => "ended",
                Loss::Pay(_) => "payment",
                Loss::Fault(_) | Loss::Books(_) | Loss::Round(_) | Loss::Unexpected => "fault",
            },
        })
    }
}

/// Why we stop a stream that could go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stop {
    ClientGone,
    ShuttingDown,
    /// The deposit does not cover the next chunk.
    OutOfFunds,
}

pub(crate) struct Flight {
    inner: Arc<Inner>,
    ticket: Ticket,
    answer: Answer,
    out: Out,
    /// Receipts that were paid for and are not in the answer.
    strays: Vec<PartRow>,
    /// Channels that were used.
    used: Vec<Listing>,
    has_started: bool,
    /// From the request to its first token.
    first_token: Option<Duration>,
    /// Each attempt: who, why, and what became of it.
    route: Vec<Step>,
    /// Once set, nothing more is sent to the client but the last word.
    stop: Option<Stop>,
    /// It began, its provider was lost, and nobody goes on.
    is_forsaken: bool,
}

/// One attempt as it is told to the client.
#[derive(Debug)]
struct Step {
    provider: ProviderId,
    among: usize,
    by: &'static str,
    /// Why another one had to go on.
    lost: Option<&'static str>,
}

/// One attempt's bookkeeping.
struct Attempt {
    listing: Listing,
    segment: Segment,
    sent_at: Instant,
    first_token_at: Option<Instant>,
    last_token_at: Instant,
    /// Cancel was sent; the deadline for the last receipt.
    cancel_by: Option<Instant>,
    seal: SealState,
    /// Of its commitment.
    salt: B256,
}

/// How far a sealed answer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SealState {
    /// Tokens come as they are produced, or the answer is being shown.
    Open,
    /// The provider produces all of it.
    Computing,
    /// It has committed; the others have not.
    Committed,
    /// It was told to show; the salt comes first.
    Showing,
}

impl Flight {
    pub(crate) fn new(inner: Arc<Inner>, ticket: Ticket, out: Out) -> Self {
        let job = &ticket.job;
        let reading = if job.embed.is_some() {
            Reading::Values
        } else {
            let (stop, ignore_eos) = (job.stop.clone(), job.ignore_eos);
            let limits = OutputLimits { max_tokens: job.max_tokens, stop, ignore_eos };
            Reading::Text(Box::new(OutputText::new(Arc::clone(&ticket.model.tokenizer), limits)))
        };
        let answer = Answer::new(job.clone(), reading, ticket.model.tokenizer.vocab_size());
        Self {
            inner,
            ticket,
            answer,
            out,
            strays: Vec::new(),
            used: Vec::new(),
            has_started: false,
            first_token: None,
            route: Vec::new(),
            stop: None,
            is_forsaken: false,
        }
    }

    /// Flies, stores the record, tells the client.
    pub(crate) async fn run(mut self) {
        let landing = self.fly().await;
        let stored = self.store().await;
        let (is_stored, id, nonce) = (stored.is_ok(), self.ticket.id, self.ticket.job.nonce);
        if matches!(landing, Landing::Abandoned) {
            self.inner.metrics.abandoned.inc();
        }
        self.inner.journal.note(&self.line(&landing));
        let last = match (landing, stored) {
            (Landing::Whole(finish), Ok(())) => Update::Finished(Box::new(self.finished(finish))),
            (Landing::Failed(error), _) => Update::Failed(error),
            (Landing::Abandoned, _) => Update::Failed(GatewayError::ShuttingDown),
            (Landing::Whole(_), Err(error)) => Update::Failed(error.into()),
        };
        // A client that has left does not need it.
        let _ = self.out.send(last, self.inner.timeouts.client_write).await;
        if is_stored && self.ticket.is_audited {
            match self.ticket.model.class() {
                Class::Exact => self.inner.auditing.on_answer(id, nonce, self.answer.parts()).await,
                Class::Tolerant => self.inner.comparing.on_answer(id, self.answer.parts()),
            }
        }
    }

    /// `provider=0x..; among=3; by=draw`, for each provider that was asked; `lost=..` where another one had to go on.
    fn route(&self) -> String {
        let step = |step: &Step| {
            let lost = step.lost.map(|lost| format!("; lost={lost}")).unwrap_or_default();
            format!("provider={}; among={}; by={}{lost}", step.provider, step.among, step.by)
        };
        self.route.iter().map(step).collect::<Vec<_>>().join(", ")
    }

    /// What an operator gets to know of it.
    fn line(&self, landing: &Landing) -> Line<'_> {
        let end = match landing {
            Landing::Whole(Finish::Length) => "length",
            Landing::Whole(_) => "stop",
            Landing::Abandoned => "abandoned",
            Landing::Failed(error) => rescue::code(error),
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Line {
            time: clock::unix_seconds(),
            receipt: self.ticket.id,
            key_id: self.ticket.hold.key().0,
            model: self.ticket.entry.model(),
            end,
            providers: self.answer.parts().iter().map(|part| part.provider).collect(),
            prompt_tokens: self.ticket.job.prompt.len(),
            output_tokens: if self.ticket.job.embed.is_some() { 0 } else { self.answer.tokens_count() },
            charged: self.due(),
            first_token_millis: self.first_token.map(millis),
            millis: millis(self.ticket.entry.since().elapsed()),
        }
    }

    async fn fly(&mut self) -> Landing {
        let mut tried = self.ticket.ignore.clone();
        let mut last_loss: Option<String> = None;
        let mut only_busy = true;
        let wishes = &self.ticket.wishes;
        let is_bound = !wishes.allow_fallbacks && wishes.order.is_empty() || self.ticket.seal.is_some();
        let attempts_max = if is_bound { 1 } else { self.inner.limits.attempts_max };
        for _ in 0..attempts_max {
            let Picked { listing, prices, among, by } = match self.pick(&tried) {
                Ok(picked) => picked,
                Err(nobody) => {
                    self.is_forsaken = true;
                    return Landing::Failed(self.nobody(nobody, last_loss, only_busy));
                }
            };
            tried.push(listing.peer.id);
            self.route.push(Step { provider: listing.peer.id, among, by, lost: None });
            // Held before it can be spent. Another provider than the last one may be dearer, or cost the prompt again.
            if let Err(error) = self.ticket.hold.raise(self.cost_at_most(prices)) {
                return Landing::Failed(match self.has_started {
                    true => GatewayError::BrokenOff(error.to_string()),
                    false => error,
                });
            }
            let ending = self.attempt(listing, prices).await;
            if let Some(step) = self.route.last_mut() {
                step.lost = ending.lost();
            }
            match ending {
                Ending::Whole(finish) => return Landing::Whole(finish),
                Ending::Cancelled if self.stop == Some(Stop::ClientGone) => return Landing::Abandoned,
                Ending::Cancelled if self.stop == Some(Stop::ShuttingDown) => {
                    return Landing::Failed(GatewayError::ShuttingDown);
                }
                Ending::Cancelled => {
                    // Out of funds there: somebody else goes on.
                    self.stop = None;
                    (last_loss, only_busy) = (Some("its payment channel is empty".into()), false);
                }
                Ending::Lost(Loss::Refused(RefusedCode::BadJob, message)) => {
                    return Landing::Failed(match self.has_started {
                        true => GatewayError::BrokenOff(message),
                        false => GatewayError::JobRefused(message),
                    });
                }
                Ending::Lost(loss) => {
                    only_busy &= matches!(loss, Loss::Refused(RefusedCode::Busy | RefusedCode::Draining, _));
                    last_loss = Some(loss.to_string());
                }
            }
            if let Some(stop) = self.stopped() {
                return if stop == Stop::ClientGone {
                    Landing::Abandoned
                } else {
                    Landing::Failed(GatewayError::ShuttingDown)
                };
            }
            // Another engine that is not canonical would go on with another text.
            if self.has_started && self.ticket.model.class() == Class::Tolerant {
                let loss = last_loss.unwrap_or_else(|| "its provider was lost".into());
                return Landing::Failed(GatewayError::BrokenOff(loss));
            }
            let metrics = &self.inner.metrics;
            if self.has_started {
                metrics.failovers.inc()
            } else {
                metrics.retries.inc()
            };
        }
        self.is_forsaken = true;
        Landing::Failed(self.nobody(Nobody::Offers, last_loss, only_busy))
    }

    fn pick(&self, tried: &[ProviderId]) -> Result<Picked, Nobody> {
        let max_tokens = self.answer.max_tokens_left();
        let signed = u64::from(self.ticket.job.max_tokens) - max_tokens;
        let (input_tokens, max_tokens) = match &self.ticket.job.embed {
            Some(embed) => longest(embed),
            None => (self.ticket.job.prompt.len() as u64 + signed, max_tokens),
        };
        let wish = Wish {
            model: self.ticket.model.model_id,
            input_tokens,
            max_tokens,
            only: &self.ticket.only,
            exclude: tried,
            wishes: &self.ticket.wishes,
        };
        self.inner.directory.pick(&wish, draw(self.ticket.id, tried.len()))
    }

    /// What was signed so far, and all that one more attempt at these prices may add.
    fn cost_at_most(&self, prices: Prices) -> Amount {
        let more = self.answer.max_tokens_left();
        let signed = u64::from(self.ticket.job.max_tokens) - more;
        let terms = StreamTerms::new(&self.ticket.job, prices);
        let terms = StreamTerms { input_tokens: terms.input_tokens.saturating_add(signed), ..terms };
        // A price that is beyond all numbers is beyond all budgets.
        self.charged().saturating_add(terms.charge_up(more))
    }

    /// What the key is charged. An answer that was broken off because nobody went on with it costs nothing: what its
    /// providers signed for is the gateway's loss.
    fn due(&self) -> Amount {
        if self.is_forsaken { Amount::ZERO } else { self.charged() }
    }

    /// What the parts of the answer cost.
    fn charged(&self) -> Amount {
        self.answer.parts().iter().fold(Amount::ZERO, |sum, part| sum.saturating_add(part.signed.receipt.charged))
    }

    fn nobody(&self, nobody: Nobody, last_loss: Option<String>, only_busy: bool) -> GatewayError {
        if self.has_started {
            return GatewayError::BrokenOff(last_loss.unwrap_or_else(|| "no other provider has room".into()));
        }
        match (nobody, last_loss) {
            (_, Some(_)) if only_busy => GatewayError::Busy,
            (_, Some(loss)) => GatewayError::Providers(loss),
            (Nobody::Offers, None) if self.is_served_tolerantly() => GatewayError::OnlyTolerant,
            (Nobody::Offers, None) => GatewayError::NoProvider,
            (Nobody::IsWanted, None) => GatewayError::NoneWanted,
            (Nobody::HasRoom, None) => GatewayError::Busy,
            (Nobody::HasContext { longest }, None) => {
                let job = &self.ticket.job;
                let needed = job.prompt.len() as u64 + u64::from(job.max_tokens);
                let needed = job.embed.as_ref().map_or(needed, |embed| self::longest(embed).0);
                GatewayError::ContextLength { needed, longest }
            }
        }
    }

    /// Whether somebody would answer if engines of any kind were allowed.
    fn is_served_tolerantly(&self) -> bool {
        let mut pairs = self.inner.models.iter().zip(&self.inner.tolerant);
        pairs.any(|(exact, tolerant)| {
            exact.model_id == self.ticket.model.model_id && self.inner.directory.serves(tolerant.model_id)
        })
    }

    /// One provider: pays, sends, listens, and leaves books and breaker as they have to be.
    async fn attempt(&mut self, listing: Listing, prices: Prices) -> Ending {
        let peer = Arc::clone(&listing.peer);
        let channel = &peer.channel;
        let segment = self.answer.segment(peer.id, channel.config, channel.id, prices);
        let grant = segment.terms.grant_after(0);
        let voucher = match channel.open(segment.request, grant).await {
            Ok(voucher) => voucher,
            Err(error) => return Ending::Lost(Loss::Pay(error)),
        };
        let open = Open { job: segment.job.clone(), channel: channel.config, prices, voucher, grant };
        self.used.push(listing.clone());
        self.ticket.entry.at(peer.id);
        let sent: SentAt = peer.on_sent();
        let mut attempt = Attempt {
            listing,
            segment,
            sent_at: Instant::now(),
            first_token_at: None,
            last_token_at: Instant::now(),
            cancel_by: None,
            seal: if self.ticket.seal.is_some() { SealState::Computing } else { SealState::Open },
            salt: B256::ZERO,
        };
        let open = match &self.ticket.seal {
            Some(seal) if seal.ask(peer.id, attempt.segment.request) => ClientFrame::OpenSealed(Box::new(open)),
            Some(_) => {
                channel.close(attempt.segment.request);
                peer.on_ended(sent);
                return Ending::Lost(RoundError::TooLate.into());
            }
            None => ClientFrame::Open(Box::new(open)),
        };
        let ending = self.with_link(&mut attempt, &open).await;
        peer.on_ended(sent);
        self.book_end(&attempt, &ending);
        if let Some(deed) = self.deed(&attempt, &ending) {
            let noted = self.inner.auditing.standings.note(peer.id, deed, Some(self.ticket.id)).await;
            if let Err(error) = noted {
                tracing::error!(provider = %peer.id, %error, "a broken answer was not noted");
            }
        }
        ending
    }

    /// What the provider did that its reputation remembers.
    fn deed(&self, attempt: &Attempt, ending: &Ending) -> Option<Deed> {
        let Some(seal) = &self.ticket.seal else {
            let is_abandoned = matches!(ending, Ending::Lost(loss) if loss.is_abandonment());
            return (is_abandoned && attempt.segment.has_output()).then_some(Deed::Abandoned);
        };
        let has_committed = match ending {
            Ending::Whole(_) => return None,
            _ => seal.lost(attempt.listing.peer.id),
        };
        let is_mismatch = matches!(ending, Ending::Lost(Loss::Round(RoundError::Mismatch)));
        // Whom we sent away owes nothing.
        let owes = has_committed && seal.is_shown() && self.stop.is_none();
        (owes || is_mismatch).then_some(Deed::Withheld)
    }

    /// Gets a connection and converses; once more with a fresh one if an idle one turns out to be dead.
    async fn with_link(&mut self, attempt: &mut Attempt, open: &ClientFrame) -> Ending {
        let (provider, request) = (attempt.listing.peer.id, attempt.segment.request);
        loop {
            let mut link = match self.inner.pool.get(provider, attempt.listing.route).await {
                Ok(link) => link,
                Err(error) => {
                    attempt.listing.peer.channel.close(request);
                    return Ending::Lost(error.into());
                }
            };
            let mut was_answered = false;
            match self.converse(attempt, &mut link, open, &mut was_answered).await {
                Ok((ending, is_in_order)) => {
                    attempt.listing.peer.channel.close(request);
                    if is_in_order {
                        self.inner.pool.give_back(link);
                    }
                    return ending;
                }
                Err(Loss::Net(_)) if link.is_reused && !was_answered && self.stop.is_none() => {}
                Err(loss) => {
                    // The provider may have charged for it: the books keep the reservation until it has said so.
                    attempt.listing.peer.channel.lose(request);
                    return Ending::Lost(loss);
                }
            }
        }
    }

    /// Sends the job and listens until its end. `Ok` says that the provider has had its last word on the request,
    /// and whether the connection can carry another job.
    async fn converse(
        &mut self,
        attempt: &mut Attempt,
        link: &mut Pooled,
        open: &ClientFrame,
        was_answered: &mut bool,
    ) -> Result<(Ending, bool), Loss> {
        link.connection.sender.send(open).await?;
        loop {
            let limit = self.patience(attempt);
            let frame = tokio::select! {
                frame = link.connection.receiver.recv_within::<ProviderFrame>(limit) => frame,
                () = shown(self.ticket.seal.as_ref()), if attempt.seal == SealState::Committed && attempt.cancel_by.is_none() => {
                    attempt.seal = SealState::Showing;
                    link.connection.sender.send(&ClientFrame::Show).await?;
                    continue;
                }
                stop = stop_signal(&self.out.sender, &self.inner, self.ticket.seal.as_ref(), attempt.listing.peer.id), if attempt.cancel_by.is_none() => {
                    self.cancel(attempt, link, stop).await?;
                    continue;
                }
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(NetError::Timeout { limit, .. }) => return Err(Loss::Stalled(limit)),
                Err(error) => return Err(error.into()),
            };
            *was_answered = true;
            match frame {
                ProviderFrame::Accepted => {}
                ProviderFrame::Committed(commitment) if attempt.seal == SealState::Computing => {
                    if let Some(seal) = &self.ticket.seal {
                        seal.commit(attempt.listing.peer.id, commitment)?;
                    }
                    attempt.seal = SealState::Committed;
                }
                ProviderFrame::Salt(salt) if attempt.seal == SealState::Showing => {
                    attempt.salt = salt;
                    attempt.seal = SealState::Open;
                }
                ProviderFrame::Tokens(_) | ProviderFrame::Scored(_) | ProviderFrame::Checkpoint(_)
                    if attempt.seal != SealState::Open =>
                {
                    return Err(Loss::Unexpected);
                }
                ProviderFrame::Tokens(tokens) => {
                    self.on_tokens(attempt, link, tokens.into_iter().map(|token| (token, None)).collect()).await?;
                }
                ProviderFrame::Scored(tokens) => {
                    let tokens = tokens.into_iter().map(|(token, logprobs)| (token, Some(logprobs))).collect();
                    self.on_tokens(attempt, link, tokens).await?;
                }
                ProviderFrame::Checkpoint(signed) => {
                    attempt
                        .segment
                        .on_checkpoint(&self.answer, &signed, &self.inner.purse.receipts)
                        .map_err(Loss::Fault)?;
                    let done = Done { receipt: signed, finish: Finish::Open };
                    attempt.listing.peer.channel.on_receipt(&done).map_err(Loss::Books)?;
                    if attempt.cancel_by.is_none() {
                        self.pay(attempt, link, signed.receipt.output_tokens).await?;
                    }
                }
                ProviderFrame::Done(done) => {
                    let ending = self.on_done(attempt, &done)?;
                    if let (Some(seal), Ending::Whole(_)) = (&self.ticket.seal, &ending) {
                        // The receipt is over the answer that was shown.
                        let response = done.receipt.receipt.response_hash;
                        if let Err(error) = seal.answer(attempt.listing.peer.id, attempt.salt, response) {
                            return Ok((Ending::Lost(error.into()), true));
                        }
                    }
                    return Ok((ending, true));
                }
                // It has run this request before, on a connection that broke: what it charged is to be asked for.
                ProviderFrame::Refused(refused) if refused.code == RefusedCode::Duplicate => {
                    return Err(Loss::Refused(refused.code, refused.message));
                }
                ProviderFrame::Refused(refused) => {
                    self.answer.keep_signed(&attempt.segment);
                    let is_in_order = refused.code != RefusedCode::Protocol;
                    return Ok((Ending::Lost(Loss::Refused(refused.code, refused.message)), is_in_order));
                }
                _ => return Err(Loss::Unexpected),
            }
        }
    }

    /// How long the next frame may take.
    fn patience(&self, attempt: &Attempt) -> Duration {
        let timeouts = &self.inner.timeouts;
        match attempt.cancel_by {
            Some(by) => by.saturating_duration_since(Instant::now()),
            None if attempt.seal == SealState::Computing => {
                let job = &attempt.segment.job;
                let steps = job.embed.as_ref().map_or(job.max_tokens, |embed| embed.lengths.len() as u32);
                timeouts.first_token + SEALED_TOKEN * steps
            }
            // The others of its round are waited for, by whoever holds the round.
            None if attempt.seal == SealState::Committed => ROUND_MAX,
            None if attempt.segment.has_output() || attempt.seal == SealState::Showing => timeouts.next_token,
            None => timeouts.first_token,
        }
    }

    async fn on_tokens(
        &mut self,
        attempt: &mut Attempt,
        link: &mut Pooled,
        tokens: Vec<(TokenId, Option<TokenLogprobs>)>,
    ) -> Result<(), Loss> {
        let now = Instant::now();
        if attempt.first_token_at.is_none() {
            let after = now - attempt.sent_at;
            attempt.first_token_at = Some(now);
            attempt.listing.peer.on_first_token(after);
            self.inner.metrics.first_token_seconds.observe(after.as_secs_f64());
        }
        attempt.last_token_at = now;
        if self.ticket.job.embed.is_none() {
            self.inner.metrics.tokens_output.inc_by(tokens.len() as u64);
        }
        let News { text, scored } = attempt.segment.on_tokens(&mut self.answer, tokens).map_err(Loss::Fault)?;
        if attempt.cancel_by.is_some() {
            return Ok(());
        }
        self.ticket.entry.has(self.answer.tokens_count() as u64);
        self.first_token.get_or_insert_with(|| self.ticket.entry.since().elapsed());
        let started = (!self.has_started).then(|| Update::Started(attempt.listing.peer.id, self.route()));
        self.has_started = true;
        let scored = self.ticket.model.logprobs(scored, self.ticket.job.ignore_eos);
        let piece = (!text.is_empty() || !scored.is_empty()).then_some(Update::Piece(text, scored));
        for update in started.into_iter().chain(piece) {
            if !self.out.send(update, self.inner.timeouts.client_write).await {
                return self.cancel(attempt, link, Stop::ClientGone).await;
            }
        }
        Ok(())
    }

    async fn pay(&mut self, attempt: &mut Attempt, link: &mut Pooled, at: u64) -> Result<(), Loss> {
        let grant = attempt.segment.terms.grant_after(at);
        match attempt.listing.peer.channel.pay(attempt.segment.request, grant, self.inner.timeouts.fund).await {
            Ok(voucher) => Ok(link.connection.sender.send(&ClientFrame::Pay(Pay { voucher, grant })).await?),
            Err(PayError::Books(_)) => self.cancel(attempt, link, Stop::OutOfFunds).await,
            Err(error) => Err(Loss::Pay(error)),
        }
    }

    async fn cancel(&mut self, attempt: &mut Attempt, link: &mut Pooled, stop: Stop) -> Result<(), Loss> {
        self.stop = Some(stop);
        attempt.cancel_by = Some(Instant::now() + self.inner.timeouts.cancel);
        Ok(link.connection.sender.send(&ClientFrame::Cancel).await?)
    }

    /// The provider's last receipt.
    fn on_done(&mut self, attempt: &mut Attempt, done: &Done) -> Result<Ending, Loss> {
        let (signed, finish) = (done.receipt, done.finish);
        let checked = attempt.segment.on_done(&self.answer, &signed, finish, &self.inner.purse.receipts);
        checked.map_err(Loss::Fault)?;
        attempt.listing.peer.channel.on_receipt(done).map_err(Loss::Books)?;
        match finish {
            Finish::Stop | Finish::Length => {
                self.answer.end(&attempt.segment, signed, finish);
                Ok(Ending::Whole(finish))
            }
            Finish::Cancelled if attempt.cancel_by.is_some() && self.stop != Some(Stop::OutOfFunds) => {
                self.answer.end(&attempt.segment, signed, finish);
                Ok(Ending::Cancelled)
            }
            Finish::Cancelled | Finish::Open => {
                // Cut on one side's own account: the answer goes on from what was signed, so that nothing is paid twice.
                if finish == Finish::Open {
                    self.answer.keep_signed(&attempt.segment);
                } else if !self.answer.go_on_after(&attempt.segment, signed, finish) {
                    self.answer.keep_signed(&attempt.segment);
                    self.strays.push(PartRow { part: attempt.segment.part(signed, finish), in_answer: false });
                }
                Ok(if attempt.cancel_by.is_some() { Ending::Cancelled } else { Ending::Lost(Loss::Ended) })
            }
        }
    }

    /// What the attempt says about the provider.
    fn book_end(&mut self, attempt: &Attempt, ending: &Ending) {
        let peer = &attempt.listing.peer;
        let loss = match ending {
            Ending::Whole(_) | Ending::Cancelled => {
                if let Some(first) = attempt.first_token_at {
                    let further = attempt.segment.output_count().saturating_sub(1);
                    // Values come all at once, which says nothing of the time for a token.
                    let further = if self.ticket.job.embed.is_some() { 0 } else { further };
                    peer.on_success(further, attempt.last_token_at - first);
                }
                return;
            }
            Ending::Lost(loss) => loss,
        };
        tracing::warn!(
            provider = %peer.id, request = %attempt.segment.request, tokens = attempt.segment.output_count(),
            reason = %loss, "an attempt was lost"
        );
        match loss {
            Loss::Fault(fault) => {
                self.inner.metrics.fault(fault.kind());
                peer.on_fault();
            }
            Loss::Books(_) => {
                self.inner.metrics.fault("books");
                peer.on_fault();
            }
            Loss::Unexpected => {
                self.inner.metrics.fault("frame");
                peer.on_fault();
            }
            // Full, draining or dearer is no failure; neither is our own empty channel.
            Loss::Refused(RefusedCode::Busy | RefusedCode::Draining | RefusedCode::Price, _) => {}
            Loss::Pay(_) => {}
            Loss::Round(_) => peer.on_failure(),
            // A grammar that nobody can follow is the client's doing; a client must not be able to make providers look bad.
            Loss::Refused(RefusedCode::BadJob, _) if self.ticket.job.grammar.is_some() => {}
            Loss::Refused(..) | Loss::Net(_) | Loss::Stalled(_) | Loss::Ended => peer.on_failure(),
        }
        if !matches!(loss, Loss::Refused(..) | Loss::Ended) {
            self.answer.keep_signed(&attempt.segment);
        }
    }

    /// Whether the client or the gateway wants an end, between two attempts.
    fn stopped(&mut self) -> Option<Stop> {
        if self.stop.is_none() && self.out.sender.is_closed() {
            self.stop = Some(Stop::ClientGone);
        }
        if self.stop.is_none() && self.inner.cut.is_cancelled() {
            self.stop = Some(Stop::ShuttingDown);
        }
        self.stop
    }

    fn finished(&self, finish: Finish) -> Finished {
        let parts = self.answer.parts();
        Finished {
            finish,
            output_tokens: self.answer.tokens_count() as u64,
            providers: parts.iter().map(|part| part.provider).collect(),
            cost: self.charged(),
            stopped_by: self.answer.stopped_by().map(str::to_owned),
            values: self.answer.values(),
            route: self.route(),
        }
    }

    /// Everything that was signed, what the key is charged for it, and the books of the channels that paid, in one
    /// transaction. The key is charged for the parts of its answer: what was signed for tokens that are in none is the
    /// gateway's loss.
    async fn store(&mut self) -> Result<(), crate::store::StoreError> {
        if self.used.is_empty() {
            return Ok(());
        }
        let charged = self.due();
        let output_tokens: u64 = match &self.ticket.job.embed {
            Some(_) => 0,
            None => self.answer.parts().iter().map(|part| part.signed.receipt.output_tokens).sum(),
        };
        let prompt_tokens = if self.answer.parts().is_empty() { 0 } else { self.ticket.job.prompt.len() as u64 };
        let spent = self.ticket.hold.settle(charged, prompt_tokens.saturating_add(output_tokens), Instant::now());
        let in_answer = self.answer.parts().iter().map(|part| PartRow { part: part.clone(), in_answer: true });
        let receipt = NewReceipt {
            id: self.ticket.id,
            key_id: self.ticket.hold.key().0,
            created_at: clock::unix_seconds(),
            job: self.ticket.job.clone(),
            parts: in_answer.chain(self.strays.drain(..)).collect(),
            channels: self.used.iter().map(|listing| listing.peer.channel.row()).collect(),
            prompt_tokens,
            output_tokens,
            charged,
            spent,
        };
        let charged =
            receipt.parts.iter().fold(0u128, |sum, row| sum.saturating_add(row.part.signed.receipt.charged.0));
        self.inner.metrics.charged.inc_by(u64::try_from(charged).unwrap_or(u64::MAX));
        self.inner.store.put_receipt(receipt).await
    }
}

/// Random bits for the routing of one attempt: the hash covers the nonce that was drawn for the job, and nobody outside
/// knows it before.
fn draw(id: RequestHash, attempt: usize) -> u64 {
    let words = id.0.as_chunks::<8>().0;
    u64::from_be_bytes(words[attempt % words.len()])
}

/// What a provider has to have room for: each text by itself, and nothing is written.
pub(crate) fn longest(embed: &Embed) -> (u64, u64) {
    (embed.lengths.iter().copied().max().unwrap_or(0).into(), 0)
}

/// Waits until all of a round have committed.
async fn shown(seal: Option<&Arc<Sealed>>) {
    match seal {
        Some(seal) => seal.shown().await,
        None => std::future::pending().await,
    }
}

/// Waits until the client has left, the provider's time in its round is up, or running streams are to be cut.
async fn stop_signal(
    out: &mpsc::Sender<(u32, Update)>,
    inner: &Inner,
    seal: Option<&Arc<Sealed>>,
    provider: ProviderId,
) -> Stop {
    let dropped = async {
        match seal {
            Some(seal) => seal.dropped(provider).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = out.closed() => Stop::ClientGone,
        () = dropped => Stop::ClientGone,
        () = inner.cut.cancelled() => Stop::ShuttingDown,
    }
}
