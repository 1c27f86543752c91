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
use assay_net::{ChannelReport, Done, ReceiptReport, Refused, RefusedCode};
use assay_protocol::{ChannelTerms, ReceiverChannel, ReceiverError, ReceiverState, VerifiedVoucher};
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
    /// Told when a channel reached the claim threshold.
    pub claim_due: Notify,
    /// A write failed: nothing is signed any more.
    is_broken: AtomicBool,
}

/// One payment channel.
pub(crate) struct Channel {
    pub terms: ChannelTerms,
    book: Mutex<Book>,
}

struct Book {
    money: ReceiverChannel,
    claimed: Amount,
    is_withdrawing: bool,
    /// When the chain was asked last; never for a channel that was only read from the disk.
    seen_at: Option<Instant>,
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
            let book = Book { money, claimed: row.claimed, is_withdrawing: false, seen_at: None };
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
        if book.is_withdrawing {
            return Err(Refused::new(RefusedCode::Channel, "the payer is withdrawing from this channel"));
        }
        let opened = book.money.open(request, &voucher, grant);
        drop(book);
        opened.map_err(|e| Refused::new(RefusedCode::NotCovered, e))?;
        Ok(stream)
    }

    /// What a payer that lost its state may know.
    pub async fn report(&self, config: &ChannelConfig) -> Result<ChannelReport, StoreError> {
        let id = config.id(&self.settlement);
        let latest = self.store.latest(id).await?;
        let charged_total = latest.map_or(Amount::ZERO, |signed| signed.receipt.charged_total);
        let channel = lock(&self.channels).get(&id).cloned();
        let open_streams = channel.map_or(0, |channel| lock(&channel.book).money.open_streams());
        let open_streams = u32::try_from(open_streams).unwrap_or(u32::MAX);
        Ok(ChannelReport { charged_total, latest, open_streams })
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

    /// Channels that have to be watched: something runs on them or is not claimed.
    pub fn channels_in_use(&self) -> Vec<Arc<Channel>> {
        let channels: Vec<_> = lock(&self.channels).values().cloned().collect();
        channels.into_iter().filter(|channel| channel.is_in_use()).collect()
    }

    /// Asks the chain about a channel and notes the answer; `true` if its payer is withdrawing.
    pub async fn refresh(&self, channel: &Channel) -> Result<bool, assay_chain::ChainError> {
        let found = self.chain.channel(channel.terms.id()).await?;
        channel.on_chain(&found);
        Ok(found.is_withdrawing)
    }

    /// Notes that `claimed` of a channel is claimed.
    pub async fn on_claimed(&self, channel_id: ChannelId, claimed: Amount) -> Result<(), StoreError> {
        self.store.mark_claimed(channel_id, claimed).await?;
        let channel = lock(&self.channels).get(&channel_id).cloned();
        if let Some(channel) = channel {
            let mut book = lock(&channel.book);
            book.claimed = book.claimed.max(claimed);
        }
        Ok(())
    }

    /// Whether the payer of a channel was withdrawing when the chain was asked last.
    pub fn is_withdrawing(&self, channel_id: ChannelId) -> bool {
        let channel = lock(&self.channels).get(&channel_id).cloned();
        channel.is_some_and(|channel| lock(&channel.book).is_withdrawing)
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
            && !channel.needs_lookup(ceiling, self.policy.lookup_pause)
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
            let book = Book { money, claimed: Amount::ZERO, is_withdrawing: false, seen_at: None };
            Arc::new(Channel { terms, book: Mutex::new(book) })
        });
        channel.on_chain(&found);
        Ok(Arc::clone(channel))
    }
}

impl Channel {
    fn is_in_use(&self) -> bool {
        let book = lock(&self.book);
        book.money.open_streams() > 0 || book.money.state().charged_total > book.claimed
    }

    fn needs_lookup(&self, ceiling: Amount, pause: Duration) -> bool {
        let book = lock(&self.book);
        match book.seen_at {
            None => true,
            Some(seen_at) => {
                let age = seen_at.elapsed();
                // A payer that was not withdrawing then can have its deposit back after the whole delay at the
                // earliest; the other half is left for claiming.
                let is_old = age >= Duration::from_secs(self.terms.config().withdraw_delay / 2);
                let is_suspect = ceiling > book.money.deposit() || book.is_withdrawing;
                is_old || (is_suspect && age >= pause)
            }
        }
    }

    fn on_chain(&self, found: &ChannelOnChain) {
        let mut book = lock(&self.book);
        book.money.on_deposit(found.state.balance);
        book.claimed = book.claimed.max(found.state.total_claimed);
        book.is_withdrawing = found.is_withdrawing;
        book.seen_at = Some(Instant::now());
    }
}

impl OpenStream {
    /// Takes a further payment; returns what the request is granted in total.
    pub fn pay(&self, voucher: &SignedVoucher, grant: Amount) -> Result<Amount, Refused> {
        let voucher = self.ledger.verify(&self.channel.terms, voucher)?;
        let granted = lock(&self.channel.book).money.pay(self.request, &voucher, grant);
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
            let (config, claimed) = (*self.channel.terms.config(), book.claimed);
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
