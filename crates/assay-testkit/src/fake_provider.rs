//! A provider that follows a script, for tests of what talks to providers.
//!
//! Real: the sockets, the frames, the signatures, the books (`ReceiverChannel`), the rule for where an output ends.
//! Faked: the model (output token `i` is entry `i` of the script, whatever the prompt), the chain (every channel has
//! all the deposit it needs), and the disk (receipts are kept in memory). It misbehaves as its [`Trick`] says.

use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use assay_gguf::{FinishReason, OutputLimits, OutputText, Tokenizer};
use assay_net::{
    ChannelReport, ChannelRequest, ClientFrame, Connection, Done, FRAME_LEN_MAX, Guest, Listener, NetError, Open,
    PROTOCOL_VERSION, ProviderFrame, ProviderHello, ReceiptReport, Refused, RefusedCode, Sockets, TransportSecret,
};
use assay_protocol::{ChannelTerms, ReceiverChannel, ReceiverState, StreamTerms};
use assay_types::{
    Address, Amount, B256, CHUNK_TOKENS, ChannelConfig, ChannelId, Finish, Job, ModelId, ModelOffer, Offer, Prices,
    ProviderId, Receipt, RequestHash, Signature, SignedOffer, SignedReceipt, SignedVoucher, TokenId, TokenLogprobs,
    answer_commitment, receipt_domain, response_hash, settlement_domain,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// Long enough for any machine; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a fake provider is told.
#[derive(Clone)]
pub struct Script {
    /// In receipts, vouchers and offers.
    pub chain_id: u64,
    /// Verifying contract of receipts.
    pub registry: Address,
    /// Verifying contract of vouchers.
    pub settlement: Address,
    /// Offered.
    pub model_id: ModelId,
    /// Offered.
    pub context_length: u32,
    /// An encoder that is offered, too, and its longest text.
    pub encoder: Option<(ModelId, u32)>,
    /// Offered, and charged.
    pub prices: Prices,
    /// Decides where an output ends.
    pub tokenizer: Arc<Tokenizer>,
    /// Output tokens by position; after the last one, always the last one.
    pub output: Vec<TokenId>,
    /// Its key is 32 times this byte; not 0. So is its transport key.
    pub key: u8,
    /// Whether it speaks TLS.
    pub is_sealed: bool,
}

/// How it misbehaves. Positions count output tokens of the whole answer, prefix included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trick {
    /// Not at all.
    #[default]
    Honest,
    /// Refuses every job.
    Refuse(RefusedCode),
    /// Is gone, with all its connections, before it sends the token at this position.
    DieAt(usize),
    /// Sends nothing from this position on until [`FakeProvider::release`].
    HoldAt(usize),
    /// Sends another token than the script's at this position.
    WrongTokenAt(usize),
    /// Sends the token at this position without log probabilities.
    NoLogprobsAt(usize),
    /// Claims that the output stopped by itself before this position.
    EndAt(usize),
    /// Signs checkpoints for other tokens than it sent.
    LieInCheckpoint,
    /// Has somebody else sign its checkpoints.
    ForgeCheckpoint,
    /// Charges one unit too much in the last receipt.
    Overcharge,
    /// Claims a larger total for the channel than it was granted.
    InflateTotal,
    /// Stops the job of its own accord at this position, as a provider does that shuts down.
    QuitAt(usize),
    /// Of a sealed job: commits to what another provider committed to (the commitment that [`FakeProvider::copies`] has).
    CopyCommitment,
    /// Of a sealed job: commits to something, and shows the right answer.
    ShowOther,
    /// Of a sealed job: commits and never shows.
    NeverShow,
    /// Of a sealed job: never commits.
    NeverCommit,
    /// Says in its offer that all its slots and its queue are full.
    ClaimFull,
    /// Has somebody else sign its offers.
    ForgeOffer,
    /// Does not show the payer its vouchers.
    ForgetVouchers,
}

/// A running fake. Dropping it closes its socket and connections.
pub struct FakeProvider {
    shared: Arc<Shared>,
    address: std::net::SocketAddr,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    script: Script,
    signer: PrivateKeySigner,
    id: ProviderId,
    state: Mutex<State>,
    /// One permit for each hold that may be passed.
    releases: Semaphore,
    /// Becomes true when it dies.
    dead: watch::Sender<bool>,
    /// Counts jobs that were cancelled.
    cancelled: watch::Sender<u32>,
    /// Its last commitment.
    committed: watch::Sender<Option<B256>>,
    /// Whom it copies, if it does.
    copied: watch::Sender<Option<B256>>,
}

#[derive(Default)]
struct State {
    trick: Trick,
    channels: BTreeMap<ChannelId, Books>,
    served: BTreeSet<RequestHash>,
    receipts: BTreeMap<RequestHash, Done>,
    running: BTreeSet<RequestHash>,
    jobs: Vec<Job>,
    shown: Vec<ChannelRequest>,
    /// Jobs it was asked for, refused ones included.
    asked: u32,
}

struct Books {
    config: ChannelConfig,
    receiver: ReceiverChannel,
    latest: Option<Done>,
}

impl FakeProvider {
    /// Listens on a free loopback port.
    ///
    /// # Panics
    /// If it cannot: a test has nothing better to do.
    pub async fn start(script: Script) -> Self {
        let signer = PrivateKeySigner::from_bytes(&B256::repeat_byte(script.key)).expect("a non-zero byte is a key");
        let id = ProviderId(signer.address());
        let loopback = "127.0.0.1:0".parse().expect("a socket address");
        let listener = listen(&script, loopback).await.expect("a free port");
        let address = listener.address().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            script,
            signer,
            id,
            state: Mutex::default(),
            releases: Semaphore::new(0),
            dead: watch::Sender::new(false),
            cancelled: watch::Sender::new(0),
            committed: watch::Sender::new(None),
            copied: watch::Sender::new(None),
        });
        let fake = Self { shared, address, accepting: Mutex::new(None) };
        fake.accept(listener);
        fake
    }

    /// Who it is.
    #[must_use]
    pub fn id(&self) -> ProviderId {
        self.shared.id
    }

    /// `tcp://127.0.0.1:PORT`, or `tls://`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        let scheme = if self.shared.script.is_sealed { "tls" } else { "tcp" };
        format!("{scheme}://{}", self.address)
    }

    /// What it proves to clients, if it speaks TLS.
    ///
    /// # Panics
    /// If the cryptographic library refuses the key.
    #[must_use]
    pub fn transport_key(&self) -> B256 {
        let key = secret(&self.shared.script).public().expect("a usable key");
        B256::from(key.0)
    }

    /// From the next job or offer on.
    pub fn set(&self, trick: Trick) {
        self.shared.state().trick = trick;
    }

    /// With [`Trick::CopyCommitment`]: it sends the next commitment of `victim` as its own, as soon as that is made.
    pub fn copies(&self, victim: &Self) {
        let (copied, mut made) = (self.shared.copied.clone(), victim.shared.committed.subscribe());
        tokio::spawn(async move {
            if let Ok(commitment) = made.wait_for(Option::is_some).await {
                copied.send_replace(*commitment);
            }
        });
    }

    /// Lets one [`Trick::HoldAt`] pass.
    pub fn release(&self) {
        self.shared.releases.add_permits(1);
    }

    /// Jobs it was sent and did not refuse, in order.
    #[must_use]
    pub fn jobs(&self) -> Vec<Job> {
        self.shared.state().jobs.clone()
    }

    /// How many jobs it was asked for, refused ones included.
    #[must_use]
    pub fn asked(&self) -> u32 {
        self.shared.state().asked
    }

    /// What payers have shown, in order.
    #[must_use]
    pub fn shown(&self) -> Vec<ChannelRequest> {
        self.shared.state().shown.clone()
    }

    /// The last receipt of every request it charged for.
    #[must_use]
    pub fn receipts(&self) -> Vec<Done> {
        self.shared.state().receipts.values().copied().collect()
    }

    /// Sum over its channels.
    #[must_use]
    pub fn charged_total(&self) -> Amount {
        let state = self.shared.state();
        let totals = state.channels.values().map(|books| books.receiver.state().charged_total);
        totals.fold(Amount::ZERO, Amount::saturating_add)
    }

    /// For each channel its parties, the highest voucher and what receipts charged: what a claim is made of.
    #[must_use]
    pub fn claims(&self) -> Vec<(ChannelConfig, SignedVoucher, Amount)> {
        let state = self.shared.state();
        let claim = |books: &Books| {
            let ReceiverState { voucher, charged_total } = books.receiver.state();
            Some((books.config, voucher?, charged_total))
        };
        state.channels.values().filter_map(claim).collect()
    }

    /// Highest ceiling that was signed for any of its channels.
    #[must_use]
    pub fn ceiling(&self) -> Amount {
        let state = self.shared.state();
        state.channels.values().map(|books| books.receiver.ceiling()).max().unwrap_or_default()
    }

    /// Waits until `count` jobs were cancelled since the start.
    ///
    /// # Panics
    /// If it takes half a minute.
    pub async fn cancelled(&self, count: u32) {
        let mut watch = self.shared.cancelled.subscribe();
        let waited = tokio::time::timeout(PATIENCE, watch.wait_for(|&cancelled| cancelled >= count)).await;
        let _ = waited.expect("the job is cancelled in time").expect("the sender lives as long as the provider");
    }

    /// Whether it has died, by [`Trick::DieAt`], and was not revived.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        *self.shared.dead.borrow()
    }

    /// Comes back after [`Trick::DieAt`], at the same address, honest, with everything it has signed.
    ///
    /// # Panics
    /// If its port was taken meanwhile.
    pub async fn revive(&self) {
        // Until its old socket is closed, the port is not free.
        let accepting = self.accepting.lock().expect("no panic while held").take();
        if let Some(accepting) = accepting {
            let _ = accepting.await;
        }
        {
            // As after a restart: what ran has ended at its last checkpoint.
            let mut state = self.shared.state();
            let lost = std::mem::take(&mut state.running);
            for books in state.channels.values_mut() {
                for request in &lost {
                    let _ = books.receiver.close(*request);
                }
            }
        }
        self.set(Trick::Honest);
        self.shared.dead.send_replace(false);
        let listener = listen(&self.shared.script, self.address).await.expect("its port is free again");
        self.accept(listener);
    }

    fn accept(&self, listener: Listener) {
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            let mut dead = shared.dead.subscribe();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = dead.wait_for(|dead| *dead) => return,
                };
                let Ok(guest) = accepted else { continue };
                let (shared, mut dead) = (Arc::clone(&shared), shared.dead.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        // The peer's leaving is what ends most connections.
                        _ = shared.converse(guest) => {}
                        _ = dead.wait_for(|dead| *dead) => {}
                    }
                });
            }
        });
        *self.accepting.lock().expect("no panic while held") = Some(task);
    }
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.shared.dead.send_replace(true);
    }
}

fn secret(script: &Script) -> TransportSecret {
    TransportSecret::from_seed([script.key; 32])
}

async fn listen(script: &Script, address: std::net::SocketAddr) -> Result<Listener, NetError> {
    Listener::bind(&Sockets, address, script.is_sealed.then(|| secret(script)), PATIENCE).await
}

/// One job on its way.
struct Running {
    job: Job,
    request: RequestHash,
    channel: ChannelId,
    channel_terms: ChannelTerms,
    terms: StreamTerms,
    text: OutputText,
    output: Vec<TokenId>,
    /// Output tokens that are paid for.
    paid: u64,
    checkpoint: u64,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    async fn converse(self: &Arc<Self>, guest: Guest) -> Result<(), NetError> {
        let hello = ProviderHello { version: PROTOCOL_VERSION, chain_id: self.script.chain_id, provider: self.id };
        let mut connection = guest.welcome(hello, FRAME_LEN_MAX, PATIENCE).await?;
        loop {
            let answer = match connection.receiver.recv::<ClientFrame>().await? {
                ClientFrame::OfferRequest => ProviderFrame::Offer(self.offer()),
                ClientFrame::ChannelRequest(request) => ProviderFrame::Channel(Box::new(self.channel_report(&request))),
                ClientFrame::ReceiptRequest(request) => {
                    let state = self.state();
                    let is_running = state.running.contains(&request);
                    let last = state.receipts.get(&request).copied();
                    ProviderFrame::Receipt(Box::new(ReceiptReport { is_running, last }))
                }
                frame @ (ClientFrame::Open(_) | ClientFrame::OpenSealed(_)) => match self.admit(&frame) {
                    Ok(running) => {
                        connection.sender.send(&ProviderFrame::Accepted).await?;
                        let request = running.request;
                        let is_sealed = matches!(frame, ClientFrame::OpenSealed(_));
                        let sealed = if is_sealed { self.seal(&mut connection, &running).await } else { Ok(()) };
                        let ended = match sealed {
                            Ok(()) => self.run(&mut connection, running).await,
                            Err(error) => Err(error),
                        };
                        self.state().running.remove(&request);
                        ended?
                    }
                    Err(refused) => ProviderFrame::Refused(refused),
                },
                ClientFrame::Pay(_) | ClientFrame::Cancel | ClientFrame::Show => continue,
                ClientFrame::Hello(_) => ProviderFrame::Refused(Refused::new(RefusedCode::Protocol, "hello again")),
            };
            connection.sender.send(&answer).await?;
        }
    }

    fn offer(&self) -> SignedOffer {
        let trick = self.state().trick;
        let script = &self.script;
        let model = ModelOffer {
            model_id: script.model_id,
            name: "fake".into(),
            context_length: script.context_length,
            prices: script.prices,
        };
        let encoder = script.encoder.map(|(model_id, context_length)| ModelOffer {
            model_id,
            name: "fake-encoder".into(),
            context_length,
            prices: script.prices,
        });
        let queued = if trick == Trick::ClaimFull { 1 << 20 } else { 0 };
        let offer = Offer {
            provider: self.id,
            models: std::iter::once(model).chain(encoder).collect(),
            capacity: 64,
            running: 0,
            queued,
            draining: false,
            issued_at: unix_seconds(),
        };
        let digest = offer.digest(script.chain_id);
        SignedOffer { signature: self.sign(&digest, trick == Trick::ForgeOffer), offer }
    }

    fn channel_report(&self, request: &ChannelRequest) -> ChannelReport {
        let mut state = self.state();
        let domain = settlement_domain(self.script.chain_id, self.script.settlement);
        let terms = ChannelTerms::new(request.config, domain);
        let is_payer = request.voucher.is_some_and(|voucher| terms.verify(&voucher).is_ok());
        let has_forgotten = state.trick == Trick::ForgetVouchers;
        state.shown.push(request.clone());
        let books = state.channels.get(&terms.id());
        let voucher = books.and_then(|books| books.receiver.state().voucher);
        ChannelReport {
            charged_total: books.map_or(Amount::ZERO, |books| books.receiver.state().charged_total),
            latest: books.and_then(|books| books.latest),
            open_streams: u32::try_from(books.map_or(0, |books| books.receiver.open_streams())).unwrap_or(u32::MAX),
            voucher: voucher.filter(|_| is_payer && !has_forgotten),
        }
    }

    fn admit(&self, frame: &ClientFrame) -> Result<Running, Refused> {
        let (ClientFrame::Open(open) | ClientFrame::OpenSealed(open)) = frame else {
            return Err(Refused::new(RefusedCode::Protocol, "no job"));
        };
        let open: &Open = open;
        let mut state = self.state();
        state.asked += 1;
        if let Trick::Refuse(code) = state.trick {
            return Err(Refused::new(code, "as the script says"));
        }
        let request = open.job.request_hash();
        if !state.served.insert(request) {
            return Err(Refused::new(RefusedCode::Duplicate, "served before"));
        }
        let domain = settlement_domain(self.script.chain_id, self.script.settlement);
        let terms = ChannelTerms::new(open.channel, domain);
        if open.channel.receiver != self.id.0 || open.channel.receiver_authorizer != self.id.0 {
            return Err(Refused::new(RefusedCode::Channel, "not a channel to this provider"));
        }
        let voucher = terms.verify(&open.voucher).map_err(|e| Refused::new(RefusedCode::Voucher, e))?;
        let config = open.channel;
        let receiver = || ReceiverChannel::new(Amount(1 << 100), ReceiverState::default());
        let rich = || Books { config, receiver: receiver(), latest: None };
        let books = state.channels.entry(terms.id()).or_insert_with(rich);
        let opened = books.receiver.open(request, &voucher, open.grant);
        opened.map_err(|e| Refused::new(RefusedCode::NotCovered, e))?;
        state.jobs.push(open.job.clone());
        state.running.insert(request);
        let limits = OutputLimits {
            max_tokens: open.job.max_tokens,
            stop: open.job.stop.clone(),
            ignore_eos: open.job.ignore_eos,
        };
        let mut text = OutputText::new(Arc::clone(&self.script.tokenizer), limits);
        text.resume(&open.job.prefix);
        let stream = StreamTerms::new(&open.job, open.prices);
        let paid = stream.paid_tokens(open.grant).unwrap_or(0);
        Ok(Running {
            job: open.job.clone(),
            request,
            channel: terms.id(),
            channel_terms: terms,
            terms: stream,
            text,
            output: Vec::new(),
            paid,
            checkpoint: 0,
        })
    }

    /// Commits to the whole output, as far as a trick lets it, and waits until it has to show it.
    async fn seal(&self, connection: &mut Connection, running: &Running) -> Result<(), NetError> {
        let trick = self.state().trick;
        let limits = OutputLimits {
            max_tokens: running.job.max_tokens,
            stop: running.job.stop.clone(),
            ignore_eos: running.job.ignore_eos,
        };
        let mut text = OutputText::new(Arc::clone(&self.script.tokenizer), limits);
        let mut output = Vec::new();
        let finish = loop {
            if running.job.embed.is_some() {
                output = fake_values(&running.job);
                break Finish::Length;
            }
            let token = self.token_at(output.len(), trick);
            output.push(token);
            match text.push(token).finish {
                Some(FinishReason::Stop) => break Finish::Stop,
                Some(FinishReason::Length) => break Finish::Length,
                None => {}
            }
        };
        let salt = B256::repeat_byte(self.script.key);
        let own = answer_commitment(self.id, running.request, salt, response_hash(&output, finish));
        let commitment = match trick {
            Trick::CopyCommitment => {
                let mut seen = self.copied.subscribe();
                let copied = seen.wait_for(Option::is_some).await;
                copied.ok().and_then(|copied| *copied).unwrap_or(own)
            }
            Trick::ShowOther => B256::repeat_byte(0xab),
            _ => own,
        };
        if trick == Trick::NeverCommit {
            // Until it is sent away.
            let _ = connection.receiver.recv::<ClientFrame>().await?;
            return Err(NetError::Closed);
        }
        self.committed.send_replace(Some(own));
        connection.sender.send(&ProviderFrame::Committed(commitment)).await?;
        match connection.receiver.recv::<ClientFrame>().await? {
            ClientFrame::Show if trick == Trick::NeverShow => std::future::pending().await,
            ClientFrame::Show => connection.sender.send(&ProviderFrame::Salt(salt)).await,
            ClientFrame::Cancel => Err(NetError::Closed),
            _ => Err(NetError::WrongPeer("a job is sealed".into())),
        }
    }

    /// The script, as far as a trick lets it.
    fn token_at(&self, position: usize, trick: Trick) -> TokenId {
        let scripted = self.script.output.get(position).or(self.script.output.last());
        let token = scripted.copied().expect("a script has at least one token");
        if trick == Trick::WrongTokenAt(position) { token ^ 1 } else { token }
    }

    /// Produces tokens until an end; returns the last frame. If the peer leaves, what was produced is receipted.
    async fn run(&self, connection: &mut Connection, mut running: Running) -> Result<ProviderFrame, NetError> {
        if running.job.embed.is_some() {
            return self.vectors(connection, &mut running).await;
        }
        let trick = self.state().trick;
        let mut held = false;
        loop {
            let position = running.job.prefix.len() + running.output.len();
            if trick == Trick::DieAt(position) {
                // As after a restart: the stream ended at its last checkpoint.
                if let Some(books) = self.state().channels.get_mut(&running.channel) {
                    let _ = books.receiver.close(running.request);
                }
                self.state().running.remove(&running.request);
                self.dead.send_replace(true);
                return Err(NetError::Closed);
            }
            if trick == Trick::EndAt(position) {
                return Ok(self.done(&mut running, Finish::Stop));
            }
            if trick == Trick::QuitAt(position) {
                return Ok(self.done(&mut running, Finish::Cancelled));
            }
            self.checkpoint(connection, &mut running, trick).await?;
            let must_wait = running.output.len() as u64 >= running.paid;
            let must_hold = trick == Trick::HoldAt(position) && !held;
            tokio::select! {
                biased;
                frame = connection.receiver.recv::<ClientFrame>() => match frame {
                    Ok(ClientFrame::Pay(pay)) => self.on_pay(&mut running, &pay),
                    Ok(ClientFrame::Cancel) => {
                        self.cancelled.send_modify(|count| *count += 1);
                        return Ok(self.done(&mut running, Finish::Cancelled));
                    }
                    Ok(_) => return Ok(ProviderFrame::Refused(Refused::new(RefusedCode::Protocol, "a job runs"))),
                    Err(error) => {
                        let _ = self.done(&mut running, Finish::Cancelled);
                        return Err(error);
                    }
                },
                permit = self.releases.acquire(), if must_hold => {
                    permit.expect("never closed").forget();
                    held = true;
                }
                () = std::future::ready(()), if !must_wait && !must_hold => {
                    if let Some(finish) = self.step(connection, &mut running, trick).await? {
                        return Ok(self.done(&mut running, finish));
                    }
                }
            }
        }
    }

    /// A receipt for every full chunk; the script always has a further token.
    async fn checkpoint(
        &self,
        connection: &mut Connection,
        running: &mut Running,
        trick: Trick,
    ) -> Result<(), NetError> {
        let produced = running.output.len() as u64;
        if produced > running.checkpoint && produced.is_multiple_of(u64::from(CHUNK_TOKENS)) {
            running.checkpoint = produced;
            let mut output = running.output.clone();
            if trick == Trick::LieInCheckpoint {
                output[0] ^= 1;
            }
            let signed = self.sign_receipt(running, &output, Finish::Open, trick);
            connection.sender.send(&ProviderFrame::Checkpoint(signed)).await?;
        }
        Ok(())
    }

    /// All vectors at once: value `j` of a text is the sum of its token ids and `j`, so that tests can tell them apart.
    async fn vectors(&self, connection: &mut Connection, running: &mut Running) -> Result<ProviderFrame, NetError> {
        running.output = fake_values(&running.job);
        let trick = self.state().trick;
        if trick == Trick::DieAt(0) {
            self.dead.send_replace(true);
            return Err(NetError::Closed);
        }
        let mut sent = running.output.clone();
        match trick {
            Trick::WrongTokenAt(position) => sent[position] = f32::NAN.to_bits(),
            Trick::EndAt(position) => sent.truncate(position),
            _ => {}
        }
        connection.sender.send(&ProviderFrame::Tokens(sent)).await?;
        Ok(self.done(running, Finish::Length))
    }

    /// One token.
    async fn step(
        &self,
        connection: &mut Connection,
        running: &mut Running,
        trick: Trick,
    ) -> Result<Option<Finish>, NetError> {
        let position = running.job.prefix.len() + running.output.len();
        let token = self.token_at(position, trick);
        running.output.push(token);
        let piece = running.text.push(token);
        let frame = match running.job.logprobs {
            None => ProviderFrame::Tokens(vec![token]),
            // The scripted token is certain; the others follow by id.
            Some(top) => {
                let top = (0..TokenId::from(top)).map(|id| (id, -1_000_000 - id.cast_signed())).collect();
                ProviderFrame::Scored(vec![(token, TokenLogprobs { token_micro: -500_000, top })])
            }
        };
        let frame = if trick == Trick::NoLogprobsAt(position) { ProviderFrame::Tokens(vec![token]) } else { frame };
        connection.sender.send(&frame).await?;
        Ok(piece.finish.map(|finish| match finish {
            FinishReason::Stop => Finish::Stop,
            FinishReason::Length => Finish::Length,
        }))
    }

    fn on_pay(&self, running: &mut Running, pay: &assay_net::Pay) {
        let mut state = self.state();
        let Some(books) = state.channels.get_mut(&running.channel) else { return };
        if let Ok(voucher) = running.channel_terms.verify(&pay.voucher)
            && let Ok(granted) = books.receiver.pay(running.request, &voucher, pay.grant)
        {
            running.paid = running.terms.paid_tokens(granted).unwrap_or(0);
        }
    }

    fn done(&self, running: &mut Running, finish: Finish) -> ProviderFrame {
        let trick = self.state().trick;
        // Nothing is billed that was not paid for.
        let billed = running.output.len().min(usize::try_from(running.paid).unwrap_or(usize::MAX));
        let output = running.output[..billed].to_vec();
        let covered_already = running.checkpoint > 0 && running.checkpoint == billed as u64;
        let previous = self.state().receipts.get(&running.request).copied();
        let done = match previous {
            Some(previous) if finish == Finish::Cancelled && covered_already => previous,
            _ => Done { receipt: self.sign_receipt(running, &output, finish, trick), finish },
        };
        let mut state = self.state();
        state.receipts.insert(running.request, done);
        if let Some(books) = state.channels.get_mut(&running.channel) {
            let _ = books.receiver.close(running.request);
        }
        state.running.remove(&running.request);
        ProviderFrame::Done(done)
    }

    fn sign_receipt(&self, running: &Running, output: &[TokenId], finish: Finish, trick: Trick) -> SignedReceipt {
        let mut state = self.state();
        let charged = running.terms.charge_up(output.len() as u64);
        let books = state.channels.get_mut(&running.channel).expect("admitted on this channel");
        let charged_total = books.receiver.charge(running.request, charged).expect("within the grant");
        let is_last = finish != Finish::Open;
        let receipt = Receipt {
            channel_id: running.channel,
            request_hash: running.request,
            response_hash: response_hash(output, finish),
            model_id: running.job.model_id,
            prompt_tokens: running.job.input_tokens(),
            output_tokens: output.len() as u64,
            charged: if trick == Trick::Overcharge && is_last { Amount(charged.0 + 1) } else { charged },
            charged_total: if trick == Trick::InflateTotal {
                Amount(charged_total.0 + 1_000_000)
            } else {
                charged_total
            },
            issued_at: unix_seconds(),
        };
        let domain = receipt_domain(self.script.chain_id, self.script.registry);
        let is_forged = trick == Trick::ForgeCheckpoint && !is_last;
        let signed = SignedReceipt { receipt, signature: self.sign(&receipt.digest(&domain), is_forged) };
        let done = Done { receipt: signed, finish };
        books.latest = Some(done);
        state.receipts.insert(running.request, done);
        signed
    }

    fn sign(&self, digest: &B256, is_forged: bool) -> Signature {
        let other = PrivateKeySigner::from_bytes(&B256::repeat_byte(0xee)).expect("a non-zero byte is a key");
        let signer = if is_forged { &other } else { &self.signer };
        Signature::new(&signer.sign_hash_sync(digest).expect("a local key signs"))
    }
}

/// The vector of a text, as [`FakeProvider`] makes it up.
#[must_use]
pub fn fake_vector(text: &[TokenId], dimensions: u32) -> Vec<f32> {
    let sum = text.iter().fold(0u32, |sum, token| sum.wrapping_add(*token)) % 1000;
    (0..dimensions).map(|j| (sum + j) as f32 + 1.0).collect()
}

fn fake_values(job: &Job) -> Vec<TokenId> {
    let dimensions = job.embed.as_ref().map_or(0, |embed| embed.dimensions);
    job.texts().iter().flat_map(|text| fake_vector(text, dimensions)).map(f32::to_bits).collect()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}
