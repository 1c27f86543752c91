//! One connection: greets, answers questions and serves one job after the other.
//!
//! A job that was accepted ends with a receipt on the disk whatever the client does: if the client is gone, it asks
//! for the receipt later. The engine waits when the client does not take tokens or does not pay.

use crate::{
    backend::{Backend, Event, Failure, Working},
    config::Limits,
    ledger::{Draft, Ledger, LedgerError, OpenStream, unix_now},
    offer::OfferBoard,
    store::Spoken,
};
use assay_net::{
    ClientFrame, CodecError, Connection, Done, Guest, NetError, Open, PROTOCOL_VERSION, ProviderFrame, ProviderHello,
    Refused, RefusedCode,
};
use assay_protocol::{Bill, ServedStream, Step, StreamTerms};
use assay_types::{
    B256, CHUNK_TOKENS, EMBED_TOKENS_MAX, Finish, GRAMMAR_LEN_MAX, Job, ModelId, ModelOffer, TokenLogprobs,
    answer_commitment, response_hash,
};
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::Arc,
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

/// Payments that a client may send besides two for each chunk.
const PAYMENTS_SPARE: u64 = 16;

/// A model that is being served.
pub(crate) struct Served {
    pub backend: Backend,
    pub offer: ModelOffer,
    /// Jobs it runs at once.
    pub capacity: u32,
}

/// What all connections share.
pub(crate) struct Service {
    pub ledger: Arc<Ledger>,
    pub models: HashMap<ModelId, Served>,
    pub offers: OfferBoard,
    pub limits: Limits,
    pub chain_id: u64,
    /// No new jobs.
    pub draining: CancellationToken,
    /// No jobs at all: running ones are cut.
    pub cutting: CancellationToken,
}

/// A job that runs.
struct Running<'a> {
    job: &'a Job,
    terms: StreamTerms,
    money: OpenStream,
    stream: ServedStream,
    working: Working,
    /// Of the tokens that were not sent yet, if the job asks for them; one more where its token is still to come.
    logprobs: VecDeque<TokenLogprobs>,
    last: Option<Done>,
    /// Payments that may still come: each costs a signature check.
    payments_left: u64,
}

/// Whether an output is sent as it is produced, or after a commitment to all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seal {
    Open,
    Sealed,
}

/// Why a job is cut.
enum Cut {
    /// The client said so, did not pay, or the provider shuts down: it is told what is billed.
    Ended,
    /// The connection is of no further use.
    Gone(NetError),
    /// The provider's own fault: only checkpoints count.
    Failed(String),
    /// The job's own fault, which every provider would find: only checkpoints count.
    Hopeless(String),
    /// The engine has no room for it after all.
    Busy(String),
}

impl Service {
    /// Serves a connection until it ends.
    pub async fn connection(self: Arc<Self>, guest: Guest) {
        let result = self.converse(guest).await;
        if let Err(error @ (NetError::Codec(_) | NetError::WrongPeer(_))) = result {
            tracing::debug!(%error, "a connection was closed");
        }
    }

    async fn converse(&self, guest: Guest) -> Result<(), NetError> {
        let provider = self.ledger.provider;
        let hello = ProviderHello { version: PROTOCOL_VERSION, chain_id: self.chain_id, provider };
        let connection = &mut guest.welcome(hello, self.frame_len_max(), self.limits.greeting_timeout).await?;
        loop {
            let frame = tokio::select! {
                frame = connection.receiver.recv_within(self.limits.idle_timeout) => frame,
                () = self.draining.cancelled() => return Ok(()),
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(NetError::Codec(error)) => return self.refuse_bytes(connection, error).await,
                Err(error) => return Err(error),
            };
            match frame {
                ClientFrame::Open(open) => self.serve(connection, *open, Seal::Open).await?,
                ClientFrame::OpenSealed(open) => self.serve(connection, *open, Seal::Sealed).await?,
                // The job they were for has just ended.
                ClientFrame::Pay(_) | ClientFrame::Cancel | ClientFrame::Show => {}
                question => {
                    let answer = self.answer(question).await;
                    connection.sender.send(&answer).await?;
                }
            }
        }
    }

    /// Longest frame that a client needs: a job that fills the longest context, its stop strings, logit bias and grammar.
    fn frame_len_max(&self) -> u32 {
        let context = self.models.values().map(|served| served.offer.context_length).max().unwrap_or(0);
        // However short its texts are, a job for vectors has many of them.
        let tokens = context.max(EMBED_TOKENS_MAX as u32);
        tokens.saturating_mul(5).saturating_add(32 << 10).saturating_add(GRAMMAR_LEN_MAX as u32)
    }

    /// Tells a client that its bytes are no frame; after them the stream has no meaning any more.
    async fn refuse_bytes(&self, connection: &mut Connection, error: CodecError) -> Result<(), NetError> {
        let refused = Refused::new(RefusedCode::Protocol, &error);
        connection.sender.send(&ProviderFrame::Refused(refused)).await?;
        Err(error.into())
    }

    async fn answer(&self, question: ClientFrame) -> ProviderFrame {
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, "a question could not be answered");
            ProviderFrame::Refused(Refused::new(RefusedCode::Internal, "the provider's database failed"))
        };
        match question {
            ClientFrame::OfferRequest => ProviderFrame::Offer(self.offers.current(self)),
            ClientFrame::ChannelRequest(config) => match self.ledger.report(&config).await {
                Ok(report) => ProviderFrame::Channel(Box::new(report)),
                Err(error) => failed(&error),
            },
            ClientFrame::ReceiptRequest(request) => match self.ledger.receipt_report(request).await {
                Ok(report) => ProviderFrame::Receipt(Box::new(report)),
                Err(error) => failed(&error),
            },
            ClientFrame::Hello(_)
            | ClientFrame::Open(_)
            | ClientFrame::OpenSealed(_)
            | ClientFrame::Pay(_)
            | ClientFrame::Show
            | ClientFrame::Cancel => {
                ProviderFrame::Refused(Refused::new(RefusedCode::Protocol, "this frame does not belong here"))
            }
        }
    }

    /// Serves one job. An error means that the connection is of no further use.
    async fn serve(&self, connection: &mut Connection, open: Open, seal: Seal) -> Result<(), NetError> {
        let mut running = match self.admit(&open).await {
            Ok(running) => running,
            Err(refused) => {
                let refused = self.ledger.refuse(open.job.request_hash(), refused).await;
                tracing::debug!(code = ?refused.code, message = refused.message, "a job was refused");
                return connection.sender.send(&ProviderFrame::Refused(refused)).await;
            }
        };
        let cut = match connection.sender.send(&ProviderFrame::Accepted).await {
            Ok(()) => match self.seal(connection, &mut running, seal).await {
                Ok(()) => self.run(connection, &mut running).await,
                Err(cut) => Err(cut),
            },
            Err(error) => Err(Cut::Gone(error)),
        };
        // What the engine still computes is for nobody.
        running.working.cancel();
        let end = match cut {
            Ok(done) => Ok(done),
            Err(cut) => running.cut(cut).await,
        };
        // The stream is closed before the client hears of the end, so that its next job finds the money free.
        drop(running);
        match end {
            Ok(frame) => connection.sender.send(&frame).await,
            Err(error) => Err(error),
        }
    }

    /// Everything that is checked before a job costs anything; cheap things first.
    async fn admit<'a>(&self, open: &'a Open) -> Result<Running<'a>, Refused> {
        if self.draining.is_cancelled() {
            return Err(Refused::new(RefusedCode::Draining, "this provider is shutting down"));
        }
        let job = &open.job;
        let unknown = || Refused::new(RefusedCode::UnknownModel, format!("model {} is not served", job.model_id));
        let served = self.models.get(&job.model_id).ok_or_else(unknown)?;
        job.validate(&served.backend.limits()).map_err(|e| Refused::new(RefusedCode::BadJob, e))?;
        let asked = served.offer.prices;
        if open.prices.input_per_million < asked.input_per_million
            || open.prices.output_per_million < asked.output_per_million
        {
            return Err(Refused::new(RefusedCode::Price, "the prices are higher by now; ask for an offer"));
        }
        let terms = StreamTerms::new(job, open.prices);
        if open.grant < terms.grant_after(0) {
            let needed = terms.grant_after(0);
            let message = format!("the first grant has to cover input and one chunk: {needed}, not {}", open.grant);
            return Err(Refused::new(RefusedCode::NotCovered, message));
        }
        let request = job.request_hash();
        let money = self.ledger.admit(request, &open.channel, &open.voucher, open.grant).await?;
        served.backend.check(job).await?;
        let mut running = self.start(served, job, terms, money, open)?;
        // The engine has begun meanwhile; no token leaves before this is known.
        let served_before = self.ledger.store.receipt(request).await;
        let refused = match served_before {
            Ok(None) => return Ok(running),
            Ok(Some(_)) => Refused::new(RefusedCode::Duplicate, "this request has been served"),
            Err(error) => {
                tracing::error!(%error, "receipts can not be read");
                Refused::new(RefusedCode::Internal, "the provider's database failed")
            }
        };
        running.working.cancel();
        Err(refused)
    }

    fn start<'a>(
        &self,
        served: &Served,
        job: &'a Job,
        terms: StreamTerms,
        money: OpenStream,
        open: &Open,
    ) -> Result<Running<'a>, Refused> {
        let working = served.backend.submit(open.channel.payer.into_array(), job)?;
        let stream = ServedStream::new(terms, open.grant, job.chunk_tokens());
        let payments_left = PAYMENTS_SPARE + 2 * terms.output_tokens_max / u64::from(CHUNK_TOKENS);
        Ok(Running { job, terms, money, stream, working, logprobs: VecDeque::new(), last: None, payments_left })
    }

    /// For a sealed job: takes the whole output from the engine, commits to it, and waits until it is asked to show it.
    async fn seal(&self, connection: &mut Connection, running: &mut Running<'_>, seal: Seal) -> Result<(), Cut> {
        if seal == Seal::Open {
            return Ok(());
        }
        let began = Instant::now();
        let finish = loop {
            match running.stream.ended() {
                Some(finish) => break finish,
                None => self.await_tokens(connection, running).await?,
            }
        };
        let mut salt = B256::ZERO;
        getrandom::fill(salt.as_mut_slice()).map_err(|error| Cut::Failed(format!("no random bytes: {error}")))?;
        let response = response_hash(running.stream.output(), finish);
        let commitment = answer_commitment(self.ledger.provider, running.money.request, salt, response);
        connection.sender.send(&ProviderFrame::Committed(commitment)).await.map_err(Cut::Gone)?;
        // The others of the round may be slower.
        let patience = self.limits.idle_timeout + 3 * began.elapsed();
        let frame = tokio::select! {
            biased;
            () = self.cutting.cancelled() => return Err(Cut::Ended),
            frame = timeout(patience, connection.receiver.recv()) => frame,
        };
        match frame {
            Ok(Ok(ClientFrame::Show)) => {}
            Ok(frame) => return running.on_frame(frame).and(Err(Cut::Ended)),
            Err(_) => return Err(Cut::Ended),
        }
        connection.sender.send(&ProviderFrame::Salt(salt)).await.map_err(Cut::Gone)
    }

    /// Streams until the output is complete; returns the last frame.
    async fn run(&self, connection: &mut Connection, running: &mut Running<'_>) -> Result<ProviderFrame, Cut> {
        loop {
            match running.stream.next() {
                Step::Send(tokens) => {
                    let frame = running.frame(tokens.clone());
                    connection.sender.send(&frame).await.map_err(Cut::Gone)?;
                    running.stream.on_sent(&tokens);
                }
                Step::Checkpoint(output_tokens) => {
                    let done = running.receipt(output_tokens, Finish::Open).await?;
                    running.stream.on_checkpoint(output_tokens);
                    running.last = Some(done);
                    let frame = ProviderFrame::Checkpoint(done.receipt);
                    connection.sender.send(&frame).await.map_err(Cut::Gone)?;
                }
                Step::Finish(finish) => {
                    let done = running.receipt(running.stream.output().len(), finish).await?;
                    return Ok(ProviderFrame::Done(done));
                }
                Step::AwaitTokens => self.await_tokens(connection, running).await?,
                Step::AwaitPay => self.await_pay(connection, running).await?,
            }
        }
    }

    async fn await_tokens(&self, connection: &mut Connection, running: &mut Running<'_>) -> Result<(), Cut> {
        tokio::select! {
            // A payment or cancellation that is there goes first.
            biased;
            () = self.cutting.cancelled() => Err(Cut::Ended),
            frame = connection.receiver.recv() => running.on_frame(frame),
            event = running.working.events.recv() => running.on_events(event),
        }
    }

    async fn await_pay(&self, connection: &mut Connection, running: &mut Running<'_>) -> Result<(), Cut> {
        let frame = tokio::select! {
            biased;
            () = self.cutting.cancelled() => return Err(Cut::Ended),
            frame = timeout(self.limits.pay_timeout, connection.receiver.recv()) => frame,
        };
        match frame {
            Ok(frame) => running.on_frame(frame),
            Err(_) => {
                tracing::debug!(request = %running.money.request, "a stream was not paid on and is cut");
                Err(Cut::Ended)
            }
        }
    }
}

impl Running<'_> {
    /// These tokens of the output, which follow those that were sent before.
    fn frame(&mut self, tokens: Range<usize>) -> ProviderFrame {
        let ids = &self.stream.output()[tokens];
        if self.job.logprobs.is_none() {
            return ProviderFrame::Tokens(ids.to_vec());
        }
        // The engine says a token's log probabilities before the token.
        let logprobs = self.logprobs.drain(..ids.len());
        ProviderFrame::Scored(ids.iter().copied().zip(logprobs).collect())
    }

    fn on_frame(&mut self, frame: Result<ClientFrame, NetError>) -> Result<(), Cut> {
        match frame {
            Ok(ClientFrame::Pay(_)) if self.payments_left == 0 => {
                tracing::debug!("a client sends payments without end; its stream is cut");
                Err(Cut::Ended)
            }
            Ok(ClientFrame::Pay(pay)) => match self.money.pay(&pay.voucher, pay.grant) {
                Ok(granted) => {
                    self.payments_left -= 1;
                    self.stream.on_pay(granted);
                    Ok(())
                }
                Err(refused) => {
                    tracing::debug!(message = refused.message, "a payment does not count; its stream is cut");
                    Err(Cut::Ended)
                }
            },
            Ok(ClientFrame::Cancel) => Err(Cut::Ended),
            Ok(_) => Err(Cut::Gone(NetError::WrongPeer("a frame that does not belong into a running job".into()))),
            Err(error) => Err(Cut::Gone(error)),
        }
    }

    /// Takes everything that is there, so that it travels in one frame.
    fn on_events(&mut self, first: Option<Event>) -> Result<(), Cut> {
        let mut next = first;
        while let Some(event) = next {
            match event {
                Event::Logprobs(logprobs) => self.logprobs.push_back(*logprobs),
                Event::Token(id) => self.stream.on_token(id),
                Event::Vectors(values) => {
                    self.stream.on_vectors(values);
                    return Ok(());
                }
                Event::Done(finish) => {
                    self.stream.on_end(finish);
                    return Ok(());
                }
                Event::Failed(Failure::Cancelled) => return Err(Cut::Ended),
                Event::Failed(Failure::Busy(reason)) => return Err(Cut::Busy(reason)),
                Event::Failed(Failure::Hopeless(reason)) => return Err(Cut::Hopeless(reason)),
                Event::Failed(Failure::Broken(reason)) => return Err(Cut::Failed(reason)),
            }
            next = match self.working.events.try_recv() {
                Ok(event) => Some(event),
                Err(mpsc::error::TryRecvError::Empty) => {
                    self.working.on_taken();
                    return Ok(());
                }
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            };
        }
        Err(Cut::Failed("the engine died".into()))
    }

    /// Signs for the first `output_tokens` of the output; returns when that is on the disk.
    async fn receipt(&self, output_tokens: usize, finish: Finish) -> Result<Done, Cut> {
        let draft = Draft {
            response_hash: response_hash(&self.stream.output()[..output_tokens], finish),
            model_id: self.job.model_id,
            prompt_tokens: self.terms.input_tokens,
            output_tokens: output_tokens as u64,
            charged: self.terms.charge_up(output_tokens as u64),
            finish,
        };
        // No court judges vectors, and whoever has the receipt file has their texts.
        if self.job.embed.is_some() {
            return self.store(&draft, Spoken::default()).await;
        }
        let first = self.last.map_or(0, |last| last.receipt.receipt.output_tokens as usize);
        let input = if self.last.is_some() { vec![] } else { [&self.job.prompt[..], &self.job.prefix].concat() };
        let output = self.stream.output()[first.min(output_tokens)..output_tokens].to_vec();
        let spoken = Spoken { input, first: first as u32, output };
        self.store(&draft, spoken).await
    }

    async fn store(&self, draft: &Draft, spoken: Spoken) -> Result<Done, Cut> {
        self.money.receipt(draft, spoken).await.map_err(|error: LedgerError| {
            tracing::error!(%error, at = unix_now(), "there is no receipt for what was served");
            Cut::Failed("the receipt could not be stored".into())
        })
    }

    /// The end of a job that did not run to its end.
    async fn cut(&mut self, cut: Cut) -> Result<ProviderFrame, NetError> {
        if let Cut::Failed(reason) = &cut {
            tracing::error!(request = %self.money.request, reason, "a job failed");
            return Ok(ProviderFrame::Refused(Refused::new(RefusedCode::Internal, "the provider failed")));
        }
        if let Cut::Hopeless(reason) = &cut {
            return Ok(ProviderFrame::Refused(Refused::new(RefusedCode::BadJob, reason)));
        }
        if let Cut::Busy(reason) = &cut {
            return Ok(ProviderFrame::Refused(Refused::new(RefusedCode::Busy, reason)));
        }
        let done = match (self.stream.bill(), self.last) {
            (Bill::LastCheckpoint, Some(last)) => Ok(last),
            (Bill::Tokens(output_tokens), _) => self.receipt(output_tokens, Finish::Cancelled).await,
            (Bill::LastCheckpoint, None) => unreachable!("a checkpoint was signed before it is the bill"),
        };
        match (cut, done) {
            (Cut::Gone(error), _) => Err(error),
            (_, Ok(done)) => Ok(ProviderFrame::Done(done)),
            (_, Err(_)) => Ok(ProviderFrame::Refused(Refused::new(RefusedCode::Internal, "the provider failed"))),
        }
    }
}
