//! The provider's books: every channel it is paid from, who runs on it, and the receipts it signs.
//!
//! A channel's state is behind a mutex that is held for the few lines between booking a charge, signing its receipt
//! and queueing both for the disk: so receipts reach the disk in the order of their totals. Nothing leaves the
//! provider before it is there.

use crate::{
    chain::{Chain, ChannelOnChain},
    store::{ChannelRow, ReceiptRow, Spoken, Store, StoreError, Write},
};
use assay_chain::{DigestSigner, PrivateKeySigner};
use assay_net::{ChannelReport, ChannelRequest, Done, ReceiptReport, Refused, RefusedCode};
use assay_protocol::{
    ChannelTerms, OnChain, ReceiverChannel, ReceiverError, ReceiverState, ReceiverWatch, VerifiedVoucher,
};
use assay_types::{
    Address, Amount, B256, ChannelConfig, ChannelId, Finish, ModelId, ProviderId, Receipt, RequestHash, ResponseHash,
    Signature, SignedReceipt, SignedVoucher, SigningDomain,
};
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::Instant,
};

/// Channels that are kept in memory; a further one is refused.
const CHANNELS_MAX: usize = 65_536;
/// Questions about channels that the chain is asked at a time on behalf of requests.
const LOOKUPS_MAX: usize = 8;

/// What a channel has to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelPolicy {
    pub token: Address,
    pub withdraw_delay_min_s: u64,
    /// Unclaimed on one channel, from which on a claim is due.
    pub claim_threshold: Amount,
    /// A request makes the provider ask about the same channel again at most this often.
    pub lookup_pause: Duration,
    /// A channel is left alone when the chain has said for so long that all of it is claimed.
    pub settled_after: Duration,
}

pub(crate) struct Ledger {
    pub provider: ProviderId,
    signer: DigestSigner,
    receipts: SigningDomain,
    settlement: SigningDomain,
    policy: ChannelPolicy,
    pub store: Store,
    pub chain: Arc<dyn Chain>,
    channels: Mutex<HashMap<ChannelId, Arc<Channel>>>,
    /// Requests that are served at this moment, over all channels.
    running: Mutex<HashSet<RequestHash>>,
    lookups: Semaphore,
    /// By what times of looks at the chain are counted.
    pub clock: Clock,
    /// Told when a channel reached the claim threshold.
    pub claim_due: Notify,
    /// A write failed: nothing is signed any more.
    is_broken: AtomicBool,
}

/// A clock that never goes back.
#[derive(Debug)]
pub(crate) enum Clock {
    /// The machine's.
    SinceStart(Instant),
    /// A test's, in seconds.
    #[cfg(test)]
    Set(Arc<std::sync::atomic::AtomicU64>),
}

impl Clock {
    fn now(&self) -> Duration {
        match self {
            Self::SinceStart(start) => start.elapsed(),
            #[cfg(test)]
            Self::Set(seconds) => Duration::from_secs(seconds.load(Ordering::Relaxed)),
        }
    }
}

/// One payment channel.
pub(crate) struct Channel {
    pub terms: ChannelTerms,
    book: Mutex<Book>,
}

struct Book {
    money: ReceiverChannel,
    watch: ReceiverWatch,
}

/// A request that runs; dropping it ends its stream and frees what was not charged.
pub(crate) struct OpenStream {
    ledger: Arc<Ledger>,
    channel: Arc<Channel>,
    pub request: RequestHash,
}

/// What a receipt says besides what the ledger adds: channel, total and time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft {
    pub response_hash: ResponseHash,
    pub model_id: ModelId,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    pub charged: Amount,
    pub finish: Finish,
}

/// Why there is no receipt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Books(#[from] ReceiverError),
}

/// Keys and domains of a ledger.
pub(crate) struct LedgerKeys {
    pub signer: PrivateKeySigner,
    pub receipts: SigningDomain,
    pub settlement: SigningDomain,
}

impl Ledger {
    /// The books as they are on the disk.
    pub async fn open(
        keys: LedgerKeys,
        policy: ChannelPolicy,
        store: Store,
        chain: Arc<dyn Chain>,
    ) -> Result<Self, StoreError> {
        let LedgerKeys { signer, receipts, settlement } = keys;
        let mut channels = HashMap::new();
        for row in store.channels().await? {
            let terms = ChannelTerms::new(row.config, settlement);
            let state = ReceiverState { voucher: Some(row.voucher), charged_total: row.charged_total };
            let money = ReceiverChannel::new(Amount::ZERO, state);
            let book = Book { money, watch: ReceiverWatch::new(row.claimed) };
            channels.insert(terms.id(), Arc::new(Channel { terms, book: Mutex::new(book) }));
        }
        Ok(Self {
            provider: ProviderId(signer.address()),
            signer: DigestSigner::new(&signer),
            receipts,
            settlement,
            policy,
            store,
            chain,
            channels: Mutex::new(channels),
            running: Mutex::new(HashSet::new()),
            lookups: Semaphore::new(LOOKUPS_MAX),
            clock: Clock::SinceStart(Instant::now()),
            claim_due: Notify::new(),
            is_broken: AtomicBool::new(false),
        })
    }

    /// Opens a stream for `request` on the channel `config`, paid by `voucher`.
    pub async fn admit(
        self: &Arc<Self>,
        request: RequestHash,
        config: &ChannelConfig,
        voucher: &SignedVoucher,
        grant: Amount,
    ) -> Result<OpenStream, Refused> {
        if self.is_broken() {
            return Err(Refused::new(RefusedCode::Internal, "this provider can not store receipts"));
        }
        self.check_config(config)?;
        let terms = ChannelTerms::new(*config, self.settlement);
        let voucher = self.verify(&terms, voucher)?;
        let channel = self.channel(terms, voucher.ceiling()).await?;
        if !lock(&self.running).insert(request) {
            return Err(Refused::new(RefusedCode::Duplicate, "this request is being served"));
        }
        // From here on the guard takes the request out again.
        let stream = OpenStream { ledger: Arc::clone(self), channel: Arc::clone(&channel), request };
        let mut book = lock(&channel.book);
        if book.watch.is_withdrawing() {
            return Err(Refused::new(RefusedCode::Channel, "the payer is withdrawing from this channel"));
        }
        let opened = book.money.open(request, &voucher, grant);
        drop(book);
        opened.map_err(|e| Refused::new(RefusedCode::NotCovered, e))?;
        Ok(stream)
    }

    /// What is said about a job that is not served for `why`. One that was sent twice, because its first connection broke,
    /// may have been charged for the first time: then that is said, whatever is wrong with it by now, so that its payer
    /// asks for the receipt before it frees what it held back.
    pub async fn refuse(&self, request: RequestHash, why: Refused) -> Refused {
        match self.receipt_report(request).await {
            Ok(ReceiptReport { is_running: false, last: None }) => why,
            Ok(_) => Refused::new(RefusedCode::Duplicate, "this request is being served, or was"),
            Err(error) => {
                tracing::error!(%error, "receipts can not be read");
                // The payer closes the connection and asks later.
                Refused::new(RefusedCode::Duplicate, "the provider's database failed")
            }
        }
    }

    /// What a payer may know; takes over first what the payer shows and this provider has forgotten.
    pub async fn report(&self, request: &ChannelRequest) -> Result<ChannelReport, StoreError> {
        let terms = ChannelTerms::new(request.config, self.settlement);
        let id = terms.id();
        let shown = request.voucher.and_then(|voucher| terms.verify(&voucher).ok());
        if let Some(voucher) = &shown {
            self.remember(terms, voucher, request.latest.as_ref()).await?;
        }
        let latest = self.store.latest(id).await?;
        let charged_total = latest.map_or(Amount::ZERO, |done| done.receipt.receipt.charged_total);
        let channel = lock(&self.channels).get(&id).cloned();
        let (open_streams, voucher) = channel.map_or((0, None), |channel| {
            let book = lock(&channel.book);
            (book.money.open_streams(), book.money.state().voucher)
        });
        let open_streams = u32::try_from(open_streams).unwrap_or(u32::MAX);
        Ok(ChannelReport { charged_total, latest, open_streams, voucher: shown.and(voucher) })
    }

    /// Takes over a receipt of its own that its database does not have: this provider went on from an older one.
    async fn remember(
        &self,
        terms: ChannelTerms,
        voucher: &VerifiedVoucher,
        latest: Option<&Done>,
    ) -> Result<(), StoreError> {
        let id = terms.id();
        let known = lock(&self.channels).get(&id).cloned();
        if let Some(channel) = &known {
            lock(&channel.book).money.adopt_voucher(voucher);
        }
        let Some(done) = latest else { return Ok(()) };
        let receipt = &done.receipt.receipt;
        let stored = self.store.receipt(receipt.request_hash).await?;
        if receipt.channel_id != id
            || self.check_config(terms.config()).is_err()
            || stored.is_some_and(|stored| stored.receipt.receipt.output_tokens >= receipt.output_tokens)
            || done.receipt.verify(&self.receipts, self.provider).is_err()
        {
            return Ok(());
        }
        // What it is worth is asked for when it is claimed or a stream is opened.
        let Ok(channel) = self.channel(terms, voucher.ceiling()).await else { return Ok(()) };
        tracing::warn!(
            channel = %id, total = %receipt.charged_total,
            "a payer shows a receipt that this provider's database does not have: is it an older copy?"
        );
        let permit = self.store.reserve().await?;
        let (sender, committed) = oneshot::channel();
        {
            let mut book = lock(&channel.book);
            book.money.adopt_voucher(voucher);
            book.money.adopt_total(receipt.charged_total);
            let voucher = book.money.state().voucher.unwrap_or(*voucher.signed());
            let (config, claimed) = (*channel.terms.config(), book.watch.claimed());
            let row = ChannelRow { config, voucher, charged_total: receipt.charged_total, claimed };
            permit.send(Write::Restored { row: Box::new((ReceiptRow { done: *done }, row)), done: sender });
        }
        committed.await.map_err(|_| StoreError::Closed)?
    }

    /// The latest receipt of a request.
    pub async fn receipt_report(&self, request: RequestHash) -> Result<ReceiptReport, StoreError> {
        // In this order: a request that ended in between has its last receipt on the disk by now.
        let is_running = lock(&self.running).contains(&request);
        Ok(ReceiptReport { is_running, last: self.store.receipt(request).await? })
    }

    /// Signs as the provider.
    pub fn sign(&self, digest: &B256) -> Signature {
        self.signer.sign(digest)
    }

    /// Channels that have to be watched: something runs on them, or is not claimed for good.
    pub fn channels_in_use(&self) -> Vec<Arc<Channel>> {
        let channels: Vec<_> = lock(&self.channels).values().cloned().collect();
        let (now, settled_after) = (self.clock.now(), self.policy.settled_after);
        channels.into_iter().filter(|channel| channel.is_in_use(now, settled_after)).collect()
    }

    /// Asks the chain about a channel and notes the answer; `true` if its payer is withdrawing.
    pub async fn refresh(&self, channel: &Channel) -> Result<bool, assay_chain::ChainError> {
        let found = self.chain.channel(channel.terms.id()).await?;
        channel.on_chain(self.clock.now(), &found);
        Ok(found.is_withdrawing)
    }

    /// Notes what the chain says of a channel that is claimed from.
    pub async fn on_chain(&self, channel_id: ChannelId, found: &ChannelOnChain) -> Result<(), StoreError> {
        self.store.mark_claimed(channel_id, found.state.total_claimed).await?;
        let channel = lock(&self.channels).get(&channel_id).cloned();
        if let Some(channel) = channel {
            channel.on_chain(self.clock.now(), found);
        }
        Ok(())
    }

    /// What the chain said last is claimed of a channel, or was noted by an earlier run.
    pub fn claimed(&self, channel_id: ChannelId) -> Amount {
        let channel = lock(&self.channels).get(&channel_id).cloned();
        channel.map_or(Amount::ZERO, |channel| lock(&channel.book).watch.claimed())
    }

    /// Whether the payer of a channel was withdrawing when the chain was asked last.
    pub fn is_withdrawing(&self, channel_id: ChannelId) -> bool {
        let channel = lock(&self.channels).get(&channel_id).cloned();
        channel.is_some_and(|channel| lock(&channel.book).watch.is_withdrawing())
    }

    pub fn is_broken(&self) -> bool {
        self.is_broken.load(Ordering::Relaxed)
    }

    /// Checks a voucher's signature, unless it is the very voucher that the channel rests on.
    fn verify(&self, terms: &ChannelTerms, voucher: &SignedVoucher) -> Result<VerifiedVoucher, Refused> {
        let known = lock(&self.channels).get(&terms.id()).cloned();
        let known = known.and_then(|channel| lock(&channel.book).money.recognize(voucher));
        known.map_or_else(|| terms.verify(voucher), Ok).map_err(|e| Refused::new(RefusedCode::Voucher, e))
    }

    /// What is wrong with a channel whatever is in it.
    fn check_config(&self, config: &ChannelConfig) -> Result<(), Refused> {
        let me = self.provider.0;
        let wrong = if config.receiver != me {
            "this provider is not its receiver"
        } else if config.receiver_authorizer != me {
            // Another one could refund the deposit to the payer at any moment.
            "this provider is not its receiver authorizer"
        } else if config.token != self.policy.token {
            "its token is not the network's"
        } else if config.withdraw_delay < self.policy.withdraw_delay_min_s || !config.is_well_formed() {
            "its withdraw delay is out of this provider's range"
        } else {
            return Ok(());
        };
        Err(Refused::new(RefusedCode::Channel, wrong))
    }

    /// The channel of `terms`, from memory unless it is new, was not looked at for long, or `ceiling` is above the
    /// deposit that is known.
    async fn channel(&self, terms: ChannelTerms, ceiling: Amount) -> Result<Arc<Channel>, Refused> {
        let known = lock(&self.channels).get(&terms.id()).cloned();
        if let Some(channel) = &known
            && !channel.needs_lookup(self.clock.now(), ceiling, self.policy.lookup_pause)
        {
            return Ok(Arc::clone(channel));
        }
        let internal = |e: &dyn std::fmt::Display| Refused::new(RefusedCode::Internal, e);
        let _permit = self.lookups.acquire().await.map_err(|e| internal(&e))?;
        let found = self.chain.channel(terms.id()).await.map_err(|error| {
            tracing::warn!(%error, channel = %terms.id(), "the chain does not say what a channel holds");
            internal(&"the chain can not be asked about the channel")
        })?;
        if found.state.balance == Amount::ZERO && known.is_none() {
            return Err(Refused::new(RefusedCode::Channel, "nothing is deposited in the channel"));
        }
        let mut channels = lock(&self.channels);
        if channels.len() >= CHANNELS_MAX && !channels.contains_key(&terms.id()) {
            return Err(Refused::new(RefusedCode::Busy, "this provider keeps no further channel"));
        }
        let channel = channels.entry(terms.id()).or_insert_with(|| {
            let money = ReceiverChannel::new(Amount::ZERO, ReceiverState::default());
            let book = Book { money, watch: ReceiverWatch::default() };
            Arc::new(Channel { terms, book: Mutex::new(book) })
        });
        channel.on_chain(self.clock.now(), &found);
        Ok(Arc::clone(channel))
    }
}

impl Channel {
    fn is_in_use(&self, now: Duration, settled_after: Duration) -> bool {
        let book = lock(&self.book);
        book.money.open_streams() > 0 || !book.watch.is_settled(now, book.money.state().charged_total, settled_after)
    }

    fn needs_lookup(&self, now: Duration, ceiling: Amount, pause: Duration) -> bool {
        let book = lock(&self.book);
        let withdraw_delay = Duration::from_secs(self.terms.config().withdraw_delay);
        book.watch.needs_lookup(now, ceiling, book.money.deposit(), withdraw_delay, pause)
    }

    fn on_chain(&self, now: Duration, found: &ChannelOnChain) {
        let mut book = lock(&self.book);
        book.money.on_deposit(found.settled_balance);
        let found = OnChain {
            balance: found.settled_balance,
            claimed: found.state.total_claimed,
            is_withdrawing: found.is_withdrawing,
        };
        book.watch.on_chain(now, &found);
    }
}

impl OpenStream {
    /// Takes a further payment; returns what the request is granted in total.
    pub fn pay(&self, voucher: &SignedVoucher, grant: Amount) -> Result<Amount, Refused> {
        let voucher = self.ledger.verify(&self.channel.terms, voucher)?;
        let mut book = lock(&self.channel.book);
        if book.watch.is_withdrawing() {
            // What runs has to be claimed before the delay is over: it ends with what it was paid.
            return Err(Refused::new(RefusedCode::Channel, "the payer is withdrawing from this channel"));
        }
        let granted = book.money.pay(self.request, &voucher, grant);
        drop(book);
        granted.map_err(|e| Refused::new(RefusedCode::NotCovered, e))
    }

    /// Books a charge, signs its receipt and returns it when it is on the disk with the tokens that it adds.
    pub async fn receipt(&self, draft: &Draft, spoken: Spoken) -> Result<Done, LedgerError> {
        let ledger = &self.ledger;
        let result = self.sign_and_store(draft, spoken).await;
        // A charge that the books refuse changed nothing; one that is not on the disk leaves a hole in the total.
        if matches!(result, Err(LedgerError::Store(_))) {
            ledger.is_broken.store(true, Ordering::Relaxed);
        }
        let (done, unclaimed) = result?;
        if unclaimed >= ledger.policy.claim_threshold {
            ledger.claim_due.notify_one();
        }
        Ok(done)
    }

    async fn sign_and_store(&self, draft: &Draft, spoken: Spoken) -> Result<(Done, Amount), LedgerError> {
        let ledger = &self.ledger;
        let permit = ledger.store.reserve().await?;
        let (done, committed) = oneshot::channel();
        let (signed, unclaimed) = {
            let mut book = lock(&self.channel.book);
            let charged_total = book.money.charge(self.request, draft.charged)?;
            let receipt = self.complete(draft, charged_total);
            let signature = ledger.sign(&receipt.digest(&ledger.receipts));
            let signed = Done { receipt: SignedReceipt { receipt, signature }, finish: draft.finish };
            let voucher = book.money.state().voucher;
            // A stream is only opened with a voucher.
            let voucher = voucher.ok_or(ReceiverError::NotOpen(self.request))?;
            let (config, claimed) = (*self.channel.terms.config(), book.watch.claimed());
            let channel = ChannelRow { config, voucher, charged_total, claimed };
            permit.send(Write::Receipt { row: Box::new((ReceiptRow { done: signed }, channel, spoken)), done });
            (signed, charged_total.saturating_sub(claimed))
        };
        committed.await.map_err(|_| StoreError::Closed)??;
        Ok((signed, unclaimed))
    }

    fn complete(&self, draft: &Draft, charged_total: Amount) -> Receipt {
        Receipt {
            channel_id: self.channel.terms.id(),
            request_hash: self.request,
            response_hash: draft.response_hash,
            model_id: draft.model_id,
            prompt_tokens: draft.prompt_tokens,
            output_tokens: draft.output_tokens,
            charged: draft.charged,
            charged_total,
            issued_at: unix_now(),
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        // Not open if its grant was refused.
        let _ = lock(&self.channel.book).money.close(self.request);
        lock(&self.ledger.running).remove(&self.request);
    }
}

/// Seconds since the Unix epoch by this machine's clock; 0 for a clock before it.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every section leaves the books adding up at each step, so a poisoned lock is still good.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
