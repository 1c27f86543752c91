//! The background task that keeps the [`Directory`] fresh: reads the registry, asks every provider for its offer,
//! funds channels, and asks about streams that broke.
//!
//! One round asks all providers at the same time, each with a deadline, so that one that hangs delays nobody.

use crate::channel::{Channel, Purse};
use crate::clock;
use crate::config::{GatewayConfig, Timeouts};
use crate::directory::{Directory, Listing};
use crate::ledger::{Ledger, LedgerError, Registered, Withdrawal};
use crate::metrics::Metrics;
use crate::peer::Peer;
use crate::store::{Store, StoreError};
use assay_net::{AddressPolicy, ClientFrame, Endpoint, NetError, Pool, Pooled, ProviderFrame, Route, TransportKey};
use assay_types::{Amount, Offer, ProviderId, SignedOffer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// An offer's answer may take this long.
const OFFER_DEADLINE: Duration = Duration::from_secs(1);
/// Lost streams asked about in one round with one provider.
const SETTLE_PER_ROUND: usize = 16;

/// Everything the task works with.
pub(crate) struct Scout<L> {
    pub(crate) ledger: Arc<L>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) purse: Arc<Purse>,
    pub(crate) store: Store,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) tasks: TaskTracker,
    pub(crate) settings: Settings,
}

/// What of the configuration concerns the scout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    timeouts: Timeouts,
    providers_max: usize,
    deposit: Amount,
    addresses: AddressPolicy,
    chain_id: u64,
}

impl Settings {
    pub(crate) fn of(config: &GatewayConfig, chain_id: u64) -> Self {
        Self {
            timeouts: config.timeouts,
            providers_max: config.limits.providers_max,
            deposit: config.deposit,
            addresses: config.addresses,
            chain_id,
        }
    }
}

/// Every provider met since the start; their channels are what the totals are made of.
#[derive(Debug, Default)]
pub(crate) struct Roster(Mutex<BTreeMap<ProviderId, Arc<Peer>>>);

impl Roster {
    pub(crate) fn all(&self) -> Vec<Arc<Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn get(&self, id: ProviderId) -> Option<Arc<Peer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn insert(&self, peer: Arc<Peer>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(peer.id, peer);
    }
}

/// One provider between rounds.
struct Watched {
    peer: Arc<Peer>,
    endpoint: String,
    transport_key: TransportKey,
    route: Option<Route>,
    latest: Option<Listing>,
    /// What went wrong last, so that an outage is logged once.
    trouble: Option<String>,
}

/// Why an offer is not used.
#[derive(Debug, thiserror::Error)]
enum OfferFault {
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("answered with another frame")]
    Unexpected,
    #[error("the offer is another provider's")]
    WrongProvider,
    #[error("the offer's {0}")]
    Signature(#[from] assay_types::SignatureError),
    #[error("the offer lists {0} models")]
    TooManyModels(usize),
    #[error("the offer was issued {0} s away from now")]
    Stale(u64),
    #[error("{0}")]
    Report(#[from] crate::channel::ReportFault),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl<L: Ledger> Scout<L> {
    /// Runs until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let scout = Arc::new(self);
        let mut watched: BTreeMap<ProviderId, Watched> = BTreeMap::new();
        let mut ticks = tokio::time::interval(scout.settings.timeouts.offers);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut registry_due = Instant::now();
        let mut watch_due = Instant::now();
        let mut watching = scout.tasks.spawn(std::future::ready(()));
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let round = async {
                if Instant::now() >= registry_due {
                    scout.read_registry(&mut watched).await;
                    registry_due = Instant::now() + scout.settings.timeouts.registry;
                }
                if Instant::now() >= watch_due && watching.is_finished() {
                    let scout = Arc::clone(&scout);
                    watch_due = Instant::now() + scout.settings.timeouts.channels;
                    watching = scout.tasks.clone().spawn(async move { scout.watch().await });
                }
                scout.ask_all(&mut watched).await;
                scout.fund(&watched);
            };
            tokio::select! {
                () = round => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Registers who is new and forgets who is gone. If the chain does not answer, the list stays as it is.
    async fn read_registry(&self, watched: &mut BTreeMap<ProviderId, Watched>) {
        let listed = match self.ledger.providers().await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(%error, "the provider registry was not read");
                return;
            }
        };
        let active: Vec<Registered> =
            listed.into_iter().filter(|p| p.is_active).take(self.settings.providers_max).collect();
        let ids: BTreeSet<ProviderId> = active.iter().map(|p| p.id).collect();
        watched.retain(|id, _| {
            let stays = ids.contains(id);
            if !stays {
                self.pool.forget(*id);
            }
            stays
        });
        for provider in active {
            let transport_key = TransportKey(provider.transport_key.0);
            if let Some(known) = watched.get_mut(&provider.id) {
                if known.endpoint != provider.endpoint || known.transport_key != transport_key {
                    known.endpoint = provider.endpoint;
                    known.transport_key = transport_key;
                    known.route = None;
                    known.latest = None;
                }
                continue;
            }
            match self.peer(provider.id).await {
                Ok(peer) => {
                    let endpoint = provider.endpoint;
                    let new = Watched { peer, endpoint, transport_key, route: None, latest: None, trouble: None };
                    watched.insert(provider.id, new);
                }
                Err(error) => tracing::warn!(provider = %provider.id, %error, "a provider was not taken up"),
            }
        }
    }

    async fn peer(&self, id: ProviderId) -> Result<Arc<Peer>, StoreError> {
        if let Some(peer) = self.roster.get(id) {
            return Ok(peer);
        }
        let channel = Channel::load(id, Arc::clone(&self.purse), self.store.clone()).await?;
        match self.ledger.channel_deposit(channel.id).await {
            Ok(deposit) => channel.on_deposit(deposit),
            Err(error) => return Err(StoreError::Failed(error.to_string())),
        }
        let peer = Arc::new(Peer::new(id, channel));
        self.roster.insert(Arc::clone(&peer));
        Ok(peer)
    }

    /// One round of offers; publishes what came.
    async fn ask_all(self: &Arc<Self>, watched: &mut BTreeMap<ProviderId, Watched>) {
        let mut round = JoinSet::new();
        for (&id, provider) in watched.iter() {
            let (scout, peer) = (Arc::clone(self), Arc::clone(&provider.peer));
            let (endpoint, key, route) = (provider.endpoint.clone(), provider.transport_key, provider.route);
            round.spawn(async move {
                let Some(route) = scout.route(&endpoint, key, route).await else { return (id, None, None) };
                let asked = tokio::time::timeout(OFFER_DEADLINE, scout.ask(&peer, route)).await;
                let limit = OFFER_DEADLINE;
                let offer = asked.unwrap_or(Err(NetError::Timeout { what: "an offer", limit }.into()));
                (id, Some(route), Some(offer))
            });
        }
        while let Some(result) = round.join_next().await {
            let Ok((id, route, offer)) = result else { continue };
            let Some(provider) = watched.get_mut(&id) else { continue };
            provider.route = route;
            match offer {
                Some(Ok(offer)) => {
                    let peer = Arc::clone(&provider.peer);
                    provider.trouble = None;
                    provider.latest =
                        route.map(|route| Listing { peer, route, offer: Arc::new(offer), heard: Instant::now() });
                }
                Some(Err(error)) => {
                    let trouble = error.to_string();
                    if provider.trouble.as_ref() != Some(&trouble) {
                        tracing::warn!(provider = %id, %error, "a provider gives no offer");
                    }
                    provider.trouble = Some(trouble);
                    provider.latest = None;
                    provider.route = None;
                }
                None => provider.latest = None,
            }
        }
        let listings: Vec<Listing> = watched.values().filter_map(|provider| provider.latest.clone()).collect();
        self.directory.publish(listings);
    }

    async fn route(&self, endpoint: &str, key: TransportKey, known: Option<Route>) -> Option<Route> {
        if known.is_some() {
            return known;
        }
        let parsed: Endpoint = endpoint.parse().ok()?;
        tokio::time::timeout(OFFER_DEADLINE, parsed.route(self.settings.addresses, key)).await.ok()?.ok()
    }

    /// Offer, then whatever is open between the two on the same connection.
    async fn ask(&self, peer: &Peer, route: Route) -> Result<Offer, OfferFault> {
        let mut link = self.pool.get(peer.id, route).await?;
        peer.on_offer_asked();
        link.connection.sender.send(&ClientFrame::OfferRequest).await?;
        let offer = match link.connection.receiver.recv::<ProviderFrame>().await? {
            ProviderFrame::Offer(signed) => self.check(peer.id, &signed).map(|()| signed.offer)?,
            _ => return Err(OfferFault::Unexpected),
        };
        peer.on_offer();
        // A fresh connection may lead to a provider that was restarted, from an older database perhaps.
        if !link.is_reused || !peer.channel.is_reconciled() {
            self.reconcile(peer, &mut link).await?;
        }
        self.settle(peer, &mut link).await?;
        self.pool.give_back(link);
        Ok(offer)
    }

    fn check(&self, expected: ProviderId, signed: &SignedOffer) -> Result<(), OfferFault> {
        let offer = &signed.offer;
        if offer.provider != expected {
            return Err(OfferFault::WrongProvider);
        }
        if offer.models.len() > Offer::MODELS_MAX {
            return Err(OfferFault::TooManyModels(offer.models.len()));
        }
        signed.verify(self.settings.chain_id)?;
        let distance = clock::unix_seconds().abs_diff(offer.issued_at);
        if distance > self.settings.timeouts.offer_age_max.as_secs() {
            return Err(OfferFault::Stale(distance));
        }
        Ok(())
    }

    async fn reconcile(&self, peer: &Peer, link: &mut Pooled) -> Result<(), OfferFault> {
        link.connection.sender.send(&ClientFrame::ChannelRequest(Box::new(peer.channel.show()))).await?;
        match link.connection.receiver.recv::<ProviderFrame>().await? {
            ProviderFrame::Channel(_) if peer.channel.is_reconciled() => Ok(()),
            // A stream of a former life still runs: its receipt is yet to come. Ask again next round.
            ProviderFrame::Channel(report) if report.open_streams > 0 => Ok(()),
            ProviderFrame::Channel(report) => {
                peer.channel.reconcile(&report)?;
                Ok(self.store.put_channel(peer.channel.row()).await?)
            }
            _ => Err(OfferFault::Unexpected),
        }
    }

    async fn settle(&self, peer: &Peer, link: &mut Pooled) -> Result<(), OfferFault> {
        let mut settled = false;
        for _ in 0..SETTLE_PER_ROUND {
            let Some(request) = peer.channel.next_lost() else { break };
            link.connection.sender.send(&ClientFrame::ReceiptRequest(request)).await?;
            match link.connection.receiver.recv::<ProviderFrame>().await? {
                ProviderFrame::Receipt(report) => match peer.channel.settle_lost(request, &report) {
                    Ok(true) => settled = true,
                    Ok(false) => break,
                    Err(error) => {
                        tracing::warn!(provider = %peer.id, %request, %error, "a lost stream's receipt is wrong");
                        self.metrics.fault("receipt");
                        peer.on_fault();
                    }
                },
                _ => return Err(OfferFault::Unexpected),
            }
        }
        if settled {
            self.store.put_channel(peer.channel.row()).await?;
        }
        Ok(())
    }

    /// The channels as the chain has them: a deposit may be less after a reorganization or a withdrawal, and a withdrawal
    /// that was begun is ended when its delay is over, also one from before a restart.
    async fn watch(&self) {
        for peer in self.roster.all() {
            if let Err(error) = self.watch_one(&peer).await {
                tracing::warn!(provider = %peer.id, %error, "the chain does not say what a channel holds");
                return;
            }
        }
    }

    async fn watch_one(&self, peer: &Peer) -> Result<(), LedgerError> {
        let channel = &peer.channel;
        let withdrawal = self.ledger.withdrawal(&channel.config).await?;
        channel.on_withdrawal(withdrawal.is_some());
        if let Some(Withdrawal { amount, is_due: true }) = withdrawal {
            self.ledger.finalize(&channel.config).await?;
            channel.on_withdrawal(false);
            tracing::info!(provider = %peer.id, channel = %channel.id, %amount, "a withdrawal is through");
        }
        channel.on_deposit(self.ledger.channel_deposit(channel.id).await?);
        Ok(())
    }

    /// Starts a deposit for every channel that is low, one at a time for each.
    fn fund(self: &Arc<Self>, watched: &BTreeMap<ProviderId, Watched>) {
        for provider in watched.values().filter(|provider| provider.latest.is_some()) {
            let channel = &provider.peer.channel;
            // What goes back to the gateway is not put in again.
            if !channel.is_low(self.settings.deposit) || channel.is_withdrawing() || !provider.peer.may_fund() {
                continue;
            }
            let (scout, peer) = (Arc::clone(self), Arc::clone(&provider.peer));
            peer.on_funding();
            self.tasks.spawn(async move {
                let has_failed = !scout.deposit(&peer).await;
                peer.on_funded(has_failed);
            });
        }
    }

    /// Whether it worked.
    async fn deposit(&self, peer: &Peer) -> bool {
        let channel = &peer.channel;
        let paid = self.ledger.deposit(&channel.config, self.settings.deposit).await;
        // Read whatever happened: a deposit whose answer was lost may still be there.
        let deposit = self.ledger.channel_deposit(channel.id).await;
        if let Ok(deposit) = deposit {
            channel.on_deposit(deposit);
        }
        match paid.and(deposit) {
            Ok(deposit) => {
                tracing::info!(provider = %peer.id, channel = %channel.id, %deposit, "channel funded");
                true
            }
            Err(error) => {
                tracing::warn!(provider = %peer.id, %error, "a channel was not funded");
                false
            }
        }
    }
}
