//! Random lives of a network with this provider's ledger and database in it. See `assay_testkit::actions`.

use crate::chain::{Answer, Chain, ChannelOnChain, Entry, Registered};
use crate::claims::{self, Scope};
use crate::ledger::{self, ChannelPolicy, Clock, Ledger, LedgerKeys, OpenStream};
use crate::store::{Identity, Spoken, Store};
use assay_chain::client::{ChannelState, ClaimReport};
use assay_chain::{ClaimRow, PrivateKeySigner};
use assay_net::{ChannelRequest, RefusedCode};
use assay_protocol::{ChannelTerms, VerifiedVoucher};
use assay_testkit::actions::{
    CHAIN_ID, CLAIM_FROM, Claim, Draft, Faults, Image, Keys, LOOKUP_PAUSE, Moment, PROVIDERS, Parties, PlainPayerDisk,
    Receiver, Refusal, Report, SETTLED_AFTER, TOKEN, Tally, WITHDRAW_DELAY, actions, run_on,
};
use assay_types::{
    Address, Amount, ChannelId, Done, ModelId, ProviderId, RequestHash, SETTLEMENT_ADDRESS, receipt_domain,
    response_hash, settlement_domain,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

const REGISTRY: Address = Address::repeat_byte(0x31);

/// Lives in every run of the tests; `ASSAY_LIVES` makes them more.
const LIVES: u64 = 12;
const ACTIONS: usize = 1_000;

/// The chain as the simulation shows it; claims that are sent wait there.
#[derive(Default)]
struct ShownChain {
    moment: Mutex<Option<Moment>>,
    sent: Mutex<Vec<ClaimRow>>,
}

impl Chain for ShownChain {
    fn channel(&self, _: ChannelId) -> Answer<'_, ChannelOnChain> {
        let moment = self.moment.lock().unwrap().expect("it was shown");
        let head = moment.head;
        let state = ChannelState { balance: Amount(head.balance), total_claimed: Amount(head.claimed) };
        let found = ChannelOnChain {
            state,
            settled_balance: moment.lasting_balance(),
            is_withdrawing: head.withdrawal.is_some(),
        };
        Box::pin(std::future::ready(Ok(found)))
    }

    fn claim(&self, rows: Vec<ClaimRow>) -> Answer<'_, ClaimReport> {
        let claimed = rows.iter().map(|row| row.voucher.voucher.channel_id).collect();
        self.sent.lock().unwrap().extend(rows);
        Box::pin(std::future::ready(Ok(ClaimReport { claimed, refused: vec![] })))
    }

    fn settle(&self) -> Answer<'_, Amount> {
        Box::pin(std::future::ready(Ok(Amount::ZERO)))
    }

    fn claimed(&self) -> Answer<'_, Amount> {
        unreachable!("asked when a provider starts, which is not simulated")
    }

    fn registered(&self) -> Answer<'_, Registered> {
        unreachable!("asked when a provider starts, which is not simulated")
    }

    fn register(&self, _: Entry) -> Answer<'_, ()> {
        unreachable!("asked when a provider starts, which is not simulated")
    }

    fn update(&self, _: Entry) -> Answer<'_, ()> {
        unreachable!("asked when a provider starts, which is not simulated")
    }

    fn stake(&self, _: Amount) -> Answer<'_, ()> {
        unreachable!("asked when a provider starts, which is not simulated")
    }
}

/// What `kill -9` leaves: the database and its log, byte by byte.
#[derive(Clone, Default)]
struct Files {
    database: Vec<u8>,
    log: Vec<u8>,
}

impl Files {
    fn of(path: &Path) -> Self {
        let read = |path: &Path| std::fs::read(path).unwrap_or_default();
        Self { database: read(path), log: read(&path.with_extension("sqlite-wal")) }
    }

    fn put(&self, path: &Path) {
        if !self.database.is_empty() {
            std::fs::write(path, &self.database).unwrap();
            std::fs::write(path.with_extension("sqlite-wal"), &self.log).unwrap();
        }
    }
}

struct Process {
    path: PathBuf,
    ledger: Arc<Ledger>,
    writer: JoinHandle<()>,
    streams: HashMap<RequestHash, OpenStream>,
}

/// A provider's books as they are, in place of the plain ones.
struct RealReceiver {
    runtime: Rc<Runtime>,
    /// Each process has a folder of its own.
    directory: tempfile::TempDir,
    processes: u32,
    signer: PrivateKeySigner,
    terms: ChannelTerms,
    disk: Files,
    chain: Arc<ShownChain>,
    clock: Arc<AtomicU64>,
    live: Option<Process>,
}

impl RealReceiver {
    fn new(runtime: Rc<Runtime>, keys: &Keys, number: usize) -> Self {
        Self {
            runtime,
            directory: tempfile::tempdir().unwrap(),
            processes: 0,
            signer: keys.receiver(number).clone(),
            terms: keys.terms(number).clone(),
            disk: Files::default(),
            chain: Arc::default(),
            clock: Arc::default(),
            live: None,
        }
    }

    fn show(&self, at: &Moment) {
        *self.chain.moment.lock().unwrap() = Some(*at);
        self.clock.store(at.now, Ordering::Relaxed);
    }

    fn live(&mut self) -> &mut Process {
        self.live.as_mut().expect("it is up")
    }
}

impl Receiver for RealReceiver {
    fn start(&mut self, at: &Moment) {
        self.show(at);
        self.processes += 1;
        let path = self.directory.path().join(self.processes.to_string());
        std::fs::create_dir(&path).unwrap();
        let path = path.join("provider.sqlite");
        self.disk.put(&path);
        let provider = ProviderId(self.signer.address());
        let identity = Identity { chain_id: CHAIN_ID, provider, registry: REGISTRY, settlement: SETTLEMENT_ADDRESS };
        let keys = LedgerKeys {
            signer: self.signer.clone(),
            receipts: receipt_domain(CHAIN_ID, REGISTRY),
            settlement: settlement_domain(CHAIN_ID, SETTLEMENT_ADDRESS),
        };
        let policy = ChannelPolicy {
            token: TOKEN,
            withdraw_delay_min_s: WITHDRAW_DELAY,
            claim_threshold: Amount(CLAIM_FROM),
            lookup_pause: LOOKUP_PAUSE,
            settled_after: SETTLED_AFTER,
        };
        let (mut ledger, writer) = self.runtime.block_on(async {
            let (store, writer) = Store::open(&path, &identity).await.unwrap();
            let chain: Arc<dyn Chain> = Arc::<ShownChain>::clone(&self.chain);
            (Ledger::open(keys, policy, store, chain).await.unwrap(), writer)
        });
        ledger.clock = Clock::Set(Arc::clone(&self.clock));
        self.live = Some(Process { path, ledger: Arc::new(ledger), writer, streams: HashMap::new() });
    }

    fn crash(&mut self) {
        let Process { path, writer, .. } = self.live.take().expect("it is up");
        self.disk = Files::of(&path);
        writer.abort();
    }

    fn image(&mut self) -> Image {
        Rc::new(self.live.as_ref().map_or_else(|| self.disk.clone(), |live| Files::of(&live.path)))
    }

    fn go_back(&mut self, image: &Image) {
        self.disk.clone_from(image.downcast_ref().expect("an image of its own"));
    }

    fn open(
        &mut self,
        at: &Moment,
        request: RequestHash,
        voucher: &VerifiedVoucher,
        grant: Amount,
    ) -> Result<(), Refusal> {
        self.show(at);
        let (runtime, config) = (Rc::clone(&self.runtime), *self.terms.config());
        let live = self.live();
        let opened = runtime.block_on(async {
            match live.ledger.admit(request, &config, voucher.signed(), grant).await {
                Ok(stream) => Ok(stream),
                Err(refused) => Err(live.ledger.refuse(request, refused).await),
            }
        });
        let stream = opened.map_err(|refused| match refused.code {
            RefusedCode::Duplicate => Refusal::Duplicate,
            _ => Refusal::Unpaid,
        })?;
        // As `serve` does it: the stream is dropped again.
        if runtime.block_on(live.ledger.store.receipt(request)).unwrap().is_some() {
            return Err(Refusal::Duplicate);
        }
        live.streams.insert(request, stream);
        Ok(())
    }

    fn pay(&mut self, request: RequestHash, voucher: &VerifiedVoucher, granted: Amount) -> Result<Amount, Refusal> {
        self.live().streams[&request].pay(voucher.signed(), granted).map_err(|_| Refusal::Unpaid)
    }

    fn sign(&mut self, draft: &Draft<'_>) -> Done {
        let runtime = Rc::clone(&self.runtime);
        let signed = ledger::Draft {
            response_hash: response_hash(draft.output, draft.finish),
            model_id: ModelId::default(),
            prompt_tokens: draft.prompt_tokens,
            output_tokens: draft.output.len() as u64,
            charged: draft.charged,
            finish: draft.finish,
        };
        runtime.block_on(self.live().streams[&draft.request].receipt(&signed, Spoken::default())).unwrap()
    }

    fn close(&mut self, request: RequestHash) {
        self.live().streams.remove(&request).expect("it was open");
    }

    fn report(&mut self, at: &Moment, latest: Option<&Done>, voucher: &VerifiedVoucher) -> Report {
        self.show(at);
        let request =
            ChannelRequest { config: *self.terms.config(), voucher: Some(*voucher.signed()), latest: latest.copied() };
        let runtime = Rc::clone(&self.runtime);
        let report = runtime.block_on(self.live().ledger.report(&request)).unwrap();
        let ceiling = report.voucher.map(|signed| signed.voucher.max_claimable_amount);
        Report { latest: report.latest, ceiling, open_streams: report.open_streams as usize }
    }

    fn last(&mut self, request: RequestHash) -> Option<Done> {
        let runtime = Rc::clone(&self.runtime);
        runtime.block_on(self.live().ledger.receipt_report(request)).unwrap().last
    }

    fn look(&mut self, at: &Moment) {
        self.show(at);
        let runtime = Rc::clone(&self.runtime);
        runtime.block_on(claims::watch(&self.live().ledger));
    }

    fn claim(&mut self, at: &Moment) -> Option<Claim> {
        self.show(at);
        let runtime = Rc::clone(&self.runtime);
        let live = self.live();
        let is_idle = live.streams.is_empty();
        let scope = if is_idle { Scope::Unclaimed } else { Scope::Urgent { threshold: Amount(CLAIM_FROM) } };
        runtime.block_on(claims::claim(&live.ledger, scope)).unwrap();
        let sent = self.chain.sent.lock().unwrap().drain(..).next_back();
        sent.map(|row| Claim { ceiling: row.voucher.voucher.max_claimable_amount.0, total: row.total_claimed.0 })
    }
}

#[test]
fn the_ledger_and_its_database_cost_nobody_more_than_a_chunk() {
    let lives = std::env::var("ASSAY_LIVES").map_or(LIVES, |text| text.parse().expect("ASSAY_LIVES is a number"));
    let runtime = Rc::new(tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());
    let (mut keys, mut all) = (Keys::default(), Tally::default());
    for seed in 0..lives {
        let faults = if seed % 4 == 3 { Faults::All } else { Faults::Survivable };
        let receiver = |number| {
            let real = RealReceiver::new(Rc::clone(&runtime), &keys, number);
            Box::new(real) as Box<dyn Receiver>
        };
        let parties =
            Parties { receivers: (0..PROVIDERS).map(receiver).collect(), payer: Box::new(PlainPayerDisk::default()) };
        println!("seed {seed}, {faults:?}");
        all.add(&run_on(&mut keys, parties, &actions(seed, ACTIONS), faults));
    }
    assert!(all.checkpoints > 0 && all.provider_older > 0 && all.claimed > 0, "{all:?}");
}
