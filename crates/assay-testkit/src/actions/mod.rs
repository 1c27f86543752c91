//! Random lives of a gateway, its providers and their chain: one byte is one action.
//!
//! Real: the books of both sides ([`assay_protocol::PayerBook`], `ReceiverChannel`, `ReceiverWatch`), the streams
//! (`ServedStream`), the check of receipts (`ReceiptExpectation`), vouchers with signatures. Faked: the chain
//! ([`crate::settlement`]), the engine (any number of tokens at any moment), the network (messages of one connection arrive
//! in order or not at all, those of several in any order). What lies below the books is behind [`Receiver`] and
//! [`PayerDisk`]: plain values here; the tests of `assay-provider` put its ledger and its database there, those of
//! `assay-gateway` its database.
//!
//! What a provider promised to watch within a time it does within that time (`World::pass`); everything else happens
//! when a byte says so. After each action and after everything is settled it is checked that
//! - every token is somewhere, and the contract holds what it owes;
//! - a payer pays no more than it signed, and signs no more than what was charged and one chunk for each running stream;
//! - a provider claims no more than its receipts prove, and these no more than one charge for each request;
//! - nobody lost more than one chunk by a request: a payer that paid for tokens which did not arrive, a provider whose
//!   tokens arrived and are not paid or that sent tokens and has no charge for them;
//! - a channel that was emptied pays nobody.
//!
//! Three faults cost more than a chunk, whatever the two sides do; see [`Faults`].

#![allow(missing_docs, reason = "fields and variants that their names explain")]

mod books;
mod gateway;
mod provider;

pub use books::{
    CLAIM_FROM, Claim, Draft, Image, LOOKUP_PAUSE, Moment, PayerDisk, PlainPayerDisk, PlainReceiver, Receiver, Refusal,
    Report, SETTLED_AFTER,
};

use crate::settlement::{Call, Chain, FINALITY, Settlement};
use alloy_primitives::{Address, B256};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use assay_protocol::{ChannelTerms, StreamTerms, VerifiedVoucher};
use assay_types::{
    Amount, ChannelConfig, Done, Prices, RequestHash, SETTLEMENT_ADDRESS, Signature, SignedVoucher, TokenId, Voucher,
    settlement_domain,
};
use gateway::Gateway;
use provider::Provider;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Providers; each has one channel, by the same number.
pub const PROVIDERS: usize = 2;
/// Of the vouchers.
pub const CHAIN_ID: u64 = 1;
/// What is paid in.
pub const TOKEN: Address = Address::repeat_byte(9);
/// All tokens there are; the payer has them in the beginning.
const SUPPLY: u128 = 12_000;
/// In each channel in the beginning, and added by a deposit.
const DEPOSIT: u128 = 500;
/// Seconds.
pub const WITHDRAW_DELAY: u64 = 3_600;
/// Seconds between two looks of a provider at the chain.
const POLL: u64 = 60;
/// Seconds between two blocks.
const BLOCK: u64 = 10;
/// A provider that is down is started again after this many seconds: half of the delay is left for claiming.
const DOWN_MAX: u64 = WITHDRAW_DELAY / 2;
/// Streams at a time; with many of them none would get far.
const STREAMS_MAX: usize = 6;
/// Output tokens that both sides may lose on one stream, and the input.
const CHUNK: u64 = 64;

/// What may happen to whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Faults {
    /// All but the three that cost more than a chunk.
    Survivable,
    /// Also these: both sides go back to older databases before they have talked again, so that nobody has the receipts
    /// in between; a provider goes back to a database that it had given up for an older one, so that it has two pasts of
    /// which it can claim the larger total alone; a provider stays down until its payer has everything back. Then a
    /// provider's loss has no bound but what it charged, and its payer may refuse a total that it can not explain;
    /// everything else is checked as before.
    All,
}

/// What lies below the books of the two sides.
pub struct Parties {
    pub receivers: Vec<Box<dyn Receiver>>,
    pub payer: Box<dyn PayerDisk>,
}

impl Parties {
    /// Values in memory.
    #[must_use]
    pub fn plain(keys: &Keys) -> Self {
        let receiver = |number| Box::new(PlainReceiver::new(keys.terms(number).id())) as Box<dyn Receiver>;
        Self { receivers: (0..PROVIDERS).map(receiver).collect(), payer: Box::new(PlainPayerDisk::default()) }
    }
}

/// What happened in a run; a test wants to see that interesting things did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    pub actions: u64,
    pub opened: u64,
    pub refused: u64,
    pub checkpoints: u64,
    /// Streams that ended with all their tokens.
    pub whole: u64,
    /// Streams whose connection broke.
    pub broken: u64,
    pub provider_restarts: u64,
    pub provider_older: u64,
    pub gateway_restarts: u64,
    pub gateway_older: u64,
    /// Claims that were undone by a reorganization.
    pub claims_undone: u64,
    pub deposits_undone: u64,
    pub withdrawals: u64,
    pub overclaims: u64,
    /// An honest provider's word was refused: only with [`Faults::All`].
    pub accused: u64,
    /// Base units.
    pub claimed: u128,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        self.actions += other.actions;
        self.opened += other.opened;
        self.refused += other.refused;
        self.checkpoints += other.checkpoints;
        self.whole += other.whole;
        self.broken += other.broken;
        self.provider_restarts += other.provider_restarts;
        self.provider_older += other.provider_older;
        self.gateway_restarts += other.gateway_restarts;
        self.gateway_older += other.gateway_older;
        self.claims_undone += other.claims_undone;
        self.deposits_undone += other.deposits_undone;
        self.withdrawals += other.withdrawals;
        self.overclaims += other.overclaims;
        self.accused += other.accused;
        self.claimed += other.claimed;
    }
}

/// Keys and the vouchers that were signed with them: signing is most of the time of a run, and ceilings repeat.
pub struct Keys {
    payer: PrivateKeySigner,
    receivers: Vec<PrivateKeySigner>,
    channels: Vec<ChannelTerms>,
    made: HashMap<(usize, Amount), VerifiedVoucher>,
}

impl Default for Keys {
    fn default() -> Self {
        let payer = PrivateKeySigner::from_bytes(&B256::repeat_byte(3)).expect("a non-zero byte is a key");
        let receiver = |number: usize| {
            let byte = 0x20 + u8::try_from(number).expect("few providers");
            PrivateKeySigner::from_bytes(&B256::repeat_byte(byte)).expect("a non-zero byte is a key")
        };
        let receivers: Vec<_> = (0..PROVIDERS).map(receiver).collect();
        let terms = |receiver: &PrivateKeySigner| {
            let config = ChannelConfig {
                payer: payer.address(),
                payer_authorizer: payer.address(),
                receiver: receiver.address(),
                receiver_authorizer: receiver.address(),
                token: TOKEN,
                withdraw_delay: WITHDRAW_DELAY,
                salt: B256::ZERO,
            };
            ChannelTerms::new(config, settlement_domain(CHAIN_ID, SETTLEMENT_ADDRESS))
        };
        Self { channels: receivers.iter().map(terms).collect(), payer, receivers, made: HashMap::new() }
    }
}

impl Keys {
    /// The channel of a provider.
    #[must_use]
    pub fn terms(&self, channel: usize) -> &ChannelTerms {
        &self.channels[channel]
    }

    /// The key of a provider.
    #[must_use]
    pub fn receiver(&self, channel: usize) -> &PrivateKeySigner {
        &self.receivers[channel]
    }

    /// What the payer signs for `ceiling`, as the receiver has checked it.
    fn voucher(&mut self, channel: usize, ceiling: Amount) -> VerifiedVoucher {
        let (payer, terms) = (&self.payer, &self.channels[channel]);
        *self.made.entry((channel, ceiling)).or_insert_with(|| {
            let voucher = Voucher { channel_id: terms.id(), max_claimable_amount: ceiling };
            let digest = voucher.digest(&settlement_domain(CHAIN_ID, SETTLEMENT_ADDRESS));
            let signature = Signature::new(&payer.sign_hash_sync(&digest).expect("a local key signs"));
            terms.verify(&SignedVoucher { voucher, signature }).expect("the payer's own")
        })
    }
}

/// A request: its number says everything about it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Request(u64);

impl Request {
    fn hash(self) -> RequestHash {
        let mut bytes = [0; 32];
        bytes[24..].copy_from_slice(&self.0.to_be_bytes());
        RequestHash(B256::from(bytes))
    }

    fn terms(self) -> StreamTerms {
        // Two units for a token of input, one for one of output.
        let prices = Prices { input_per_million: Amount(2_000_000), output_per_million: Amount(1_000_000) };
        let output_tokens_max = [40, 64, 65, 130, 200][(self.0 % 5) as usize];
        StreamTerms { prices, input_tokens: 1 + self.0 % 3, output_tokens_max }
    }

    fn token(self, index: usize) -> TokenId {
        (self.0 as u32).wrapping_mul(31).wrapping_add(index as u32)
    }

    /// What so many output tokens are worth, the input included.
    fn value(self, tokens: u64) -> u128 {
        if tokens == 0 { 0 } else { self.terms().charge_up(tokens).0 }
    }

    /// What either side may lose by it: one chunk.
    fn loss_max(self) -> u128 {
        let terms = self.terms();
        terms.charge_up(CHUNK.min(terms.output_tokens_max)).0
    }
}

/// What really happened to a request, which no party knows in full.
#[derive(Clone, Copy, Debug, Default)]
struct Truth {
    channel: usize,
    /// Output tokens that left the provider, and of these, what arrived.
    sent: u64,
    arrived: u64,
    /// The highest charge that was ever signed, and of that, what the payer's side knows or has adopted.
    charged: u128,
    known: u128,
    /// Of the charge, what neither side has a receipt for any more.
    forgotten: u128,
    /// The payer holds back money for it.
    is_reserved: bool,
}

/// One connection that carries one job: what is on its way, in order.
#[derive(Debug, Default)]
struct Link {
    up: VecDeque<Up>,
    down: VecDeque<Down>,
}

#[derive(Clone, Copy, Debug)]
enum Up {
    Open { ceiling: Amount, grant: Amount },
    Pay { ceiling: Amount, granted: Amount },
    Cancel,
}

#[derive(Clone, Copy, Debug)]
enum Down {
    Tokens(usize),
    Checkpoint(Done),
    Done(Done),
    Refused { is_duplicate: bool },
}

struct World<'a> {
    faults: Faults,
    keys: &'a mut Keys,
    chain: Chain,
    gateway: Gateway,
    providers: Vec<Provider>,
    links: BTreeMap<Request, Link>,
    truth: BTreeMap<Request, Truth>,
    /// The gateway and this provider have talked since either of them was started.
    have_talked: [bool; PROVIDERS],
    /// Highest ceiling that was ever signed, highest total that was ever in a receipt, and the sum of all charges.
    ceilings: [u128; PROVIDERS],
    totals: [u128; PROVIDERS],
    charged: [u128; PROVIDERS],
    /// The provider has claimed without receipts.
    is_cheat: [bool; PROVIDERS],
    next: u64,
    polled_at: u64,
    /// The payer deposits nothing more.
    is_closing: bool,
    /// The payer spends what it has taken back, and sends vouchers that do not cover what it grants: half of all payers.
    is_crook: bool,
    tally: Tally,
}

/// Runs the actions on plain books, then settles everything and checks who has what.
///
/// # Panics
/// If somebody lost more than the protocol allows, or a token was made.
pub fn run(keys: &mut Keys, actions: &[u8], faults: Faults) -> Tally {
    let parties = Parties::plain(keys);
    run_on(keys, parties, actions, faults)
}

/// As [`run`], on other books.
///
/// # Panics
/// As there.
pub fn run_on(keys: &mut Keys, parties: Parties, actions: &[u8], faults: Faults) -> Tally {
    let mut world = World::new(keys, parties, faults);
    world.is_crook = actions.first().is_some_and(|first| first % 2 == 1);
    for &action in actions {
        world.act(action);
        world.check();
    }
    world.settle();
    world.tally
}

/// Actions of a life by its number: splitmix64, eight at a time.
#[must_use]
pub fn actions(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    (0..count.div_ceil(8)).flat_map(|_| draw()).take(count).collect()
}

impl<'a> World<'a> {
    fn new(keys: &'a mut Keys, parties: Parties, faults: Faults) -> Self {
        let mut state = Settlement::new(PROVIDERS, SUPPLY, WITHDRAW_DELAY);
        for channel in 0..PROVIDERS {
            state.apply(0, Call::Deposit { channel, amount: DEPOSIT }).expect("the payer has it");
        }
        let chain = Chain::new(state);
        let mut world = Self {
            faults,
            keys,
            gateway: Gateway::new(parties.payer),
            providers: parties.receivers.into_iter().map(Provider::new).collect(),
            links: BTreeMap::new(),
            truth: BTreeMap::new(),
            have_talked: [false; PROVIDERS],
            ceilings: [0; PROVIDERS],
            totals: [0; PROVIDERS],
            charged: [0; PROVIDERS],
            is_cheat: [false; PROVIDERS],
            next: 0,
            polled_at: chain.now,
            chain,
            is_closing: false,
            is_crook: false,
            tally: Tally::default(),
        };
        world.gateway_looks();
        (0..PROVIDERS).for_each(|channel| world.start_provider(channel));
        world
    }

    /// One byte: what happens, and to whom.
    fn act(&mut self, action: u8) {
        self.tally.actions += 1;
        let (kind, which) = (action % 20, usize::from(action / 20));
        let side = which % PROVIDERS;
        // What is rare has few bytes: whom it concerns depends on when it happens.
        let turn = self.tally.actions as usize;
        match kind {
            0 => self.open(side),
            1 => self.produce(which, 90),
            2..=5 => self.deliver_down(which),
            6..=8 => self.deliver_up(which, false),
            9 => self.produce(which, 1 + which * 7),
            10 | 11 => self.produce(which, 70),
            12 if which < 4 => self.end_output(turn),
            12 => self.deliver_down(which),
            13 if which < 2 => self.break_link(turn),
            13 if which < 4 => self.deliver_up(turn, true),
            13 if which < 5 => self.leave(turn),
            13 => self.deliver_up(which, false),
            14 => self.deliver_down(which),
            15 => self.produce(which, 40),
            16 if which < 1 => self.crash_and_start(turn % PROVIDERS),
            16 if which < 2 && turn.is_multiple_of(3) => self.crash_provider(turn % PROVIDERS),
            16 if which < 3 => self.restart_provider_older(turn % PROVIDERS, turn / 2 % 2),
            16 => self.deliver_down(which),
            17 if which < 1 && turn.is_multiple_of(2) => self.restart_gateway(None),
            17 if which < 1 => self.restart_gateway(Some(turn % 3)),
            17 => self.deliver_up(which, false),
            18 if which < 3 => self.copy_databases(which),
            18 if which < 4 => self.withdraw(turn % PROVIDERS, turn.is_multiple_of(3)),
            18 if which < 6 => self.chain.waiting.push(Call::FinalizeWithdraw { channel: side }),
            18 if which < 11 && !self.is_closing => {
                self.chain.waiting.push(Call::Deposit { channel: side, amount: DEPOSIT / 2 })
            }
            // From now on the payer only takes.
            18 if turn.is_multiple_of(4) => self.is_closing = true,
            18 => self.overclaim(turn % PROVIDERS),
            _ if which < 5 => self.pass(BLOCK),
            _ if which < 8 => self.reorganize(1 + turn % FINALITY, which),
            _ if which < 10 => self.pass(POLL),
            _ => self.pass(WITHDRAW_DELAY / 4),
        }
    }

    /// A link by number; there may be none.
    fn pick(&self, which: usize) -> Option<Request> {
        let count = self.links.len();
        (count > 0).then(|| *self.links.keys().nth(which % count).expect("below the count"))
    }

    fn channel_of(&self, request: Request) -> usize {
        self.truth[&request].channel
    }

    fn deliver_up(&mut self, which: usize, is_twice: bool) {
        let Some(request) = self.pick(which) else { return };
        let link = self.links.get_mut(&request).expect("picked");
        let message = if is_twice { link.up.front().copied() } else { link.up.pop_front() };
        let Some(message) = message else { return };
        self.provider_gets(request, message);
        if is_twice && matches!(message, Up::Open { .. }) {
            // The connection was dead before an answer came: the job is sent again on a fresh one.
            self.provider_loses_peer(request);
            self.links.get_mut(&request).expect("nothing was answered").down.clear();
        }
    }

    fn deliver_down(&mut self, which: usize) {
        let Some(request) = self.pick(which) else { return };
        let message = self.links.get_mut(&request).expect("picked").down.pop_front();
        if let Some(message) = message {
            self.gateway_gets(request, message);
        }
    }

    /// What was on the way is lost. The provider ends the stream; the gateway will ask for its last receipt.
    fn break_link(&mut self, which: usize) {
        if let Some(request) = self.pick(which) {
            self.tally.broken += 1;
            self.links.remove(&request);
            self.provider_loses_peer(request);
            self.gateway_loses_peer(request);
        }
    }

    /// Time passes; blocks are made, and everyone who is up looks at the chain as often as it has to.
    fn pass(&mut self, seconds: u64) {
        let until = self.chain.now + seconds;
        while self.chain.now < until {
            // Long times are not simulated block by block: nothing happens in most of them.
            self.chain.now += BLOCK.max(seconds / 64);
            self.chain.seal();
            if self.chain.now - self.polled_at >= POLL {
                self.poll();
            }
        }
    }

    fn poll(&mut self) {
        self.polled_at = self.chain.now;
        for channel in 0..PROVIDERS {
            if self.is_down_too_long(channel) {
                self.start_provider(channel);
            }
            self.provider_looks(channel);
            self.talk(channel);
        }
        self.gateway_looks();
        self.chain.seal();
    }

    /// Blocks are undone. What was in them waits again; the nodes may forget the receivers' calls, and the payer may get its
    /// own out of the way for good.
    fn reorganize(&mut self, depth: usize, which: usize) {
        let undone = self.chain.reorganize(depth);
        for call in &undone {
            self.tally.claims_undone += u64::from(matches!(call, Call::Claim { .. }));
            self.tally.deposits_undone += u64::from(matches!(call, Call::Deposit { .. }));
        }
        let is_receivers = |call: &Call| matches!(call, Call::Claim { .. } | Call::Settle { .. });
        match which % 3 {
            0 => {}
            1 => self.chain.waiting.retain(|call| !is_receivers(call)),
            _ => self.chain.waiting.retain(is_receivers),
        }
    }

    fn withdraw(&mut self, channel: usize, is_all: bool) {
        let state = self.chain.head().channels[channel];
        let unclaimed = state.balance - state.claimed;
        self.tally.withdrawals += u64::from(unclaimed > 0);
        let amount = if is_all { unclaimed } else { unclaimed / 2 };
        self.chain.waiting.push(Call::InitiateWithdraw { channel, amount });
    }

    /// The provider takes all that it was ever promised: the contract does not know receipts.
    fn overclaim(&mut self, channel: usize) {
        let ceiling = self.providers[channel].ceiling;
        let total = ceiling.min(self.chain.head().channels[channel].balance);
        if total > 0 {
            self.is_cheat[channel] = true;
            self.tally.overclaims += 1;
            self.chain.waiting.push(Call::Claim { channel, ceiling, total });
        }
    }

    fn copy_databases(&mut self, which: usize) {
        match which {
            0 => self.gateway.copy_database(),
            _ => self.providers[which - 1].copy_database(),
        }
    }

    /// What holds at every moment. The sums of the contract are checked with each block.
    fn check(&mut self) {
        for channel in 0..PROVIDERS {
            let claimed = self.chain.head().channels[channel].claimed;
            let (ceiling, total) = (self.ceilings[channel], self.totals[channel]);
            assert!(claimed <= ceiling, "the payer pays {claimed} and signed {ceiling}");
            assert!(claimed <= total || self.is_cheat[channel], "claimed {claimed}, but receipts prove {total}");
            let book = self.gateway.books[channel].channel();
            let (charged, reserved) = (book.state().charged_total.0, book.reserved().0);
            let is_signed = charged + reserved <= ceiling || self.is_crook;
            assert!(is_signed, "{charged} and {reserved} were not signed for: {ceiling}");
            let all = self.charged[channel];
            assert!(charged <= all, "the payer counts {charged}, but all charges are {all}");
        }
    }

    /// Nobody lost more than a chunk by this request.
    fn check_request(&self, request: Request) {
        let truth = self.truth[&request];
        let value = |tokens: u64| request.value(tokens);
        let lost_by_payer = truth.charged.saturating_sub(value(truth.arrived));
        let lost_by_provider = value(truth.sent).saturating_sub(truth.charged);
        let bound = request.loss_max();
        assert!(lost_by_payer <= bound, "the payer lost {lost_by_payer} by {request:?}: {truth:?}");
        assert!(lost_by_provider <= bound, "the provider lost {lost_by_provider} by {request:?}: {truth:?}");
    }

    /// Every connection ends, everyone is started, talks, claims, and the payer takes back the rest.
    fn settle(&mut self) {
        self.is_closing = true;
        while self.pick(0).is_some() {
            self.break_link(0);
        }
        for channel in 0..PROVIDERS {
            self.start_provider(channel);
            self.talk(channel);
        }
        for _ in 0..4 {
            self.pass(POLL + BLOCK);
        }
        self.truth.keys().for_each(|&request| self.check_request(request));
        (0..PROVIDERS).for_each(|channel| self.check_use(channel));
        for channel in 0..PROVIDERS {
            self.check_settled(channel);
            // One that is pending takes what was asked for; the second one takes the rest.
            for _ in 0..2 {
                self.withdraw(channel, true);
                self.pass(WITHDRAW_DELAY + POLL);
                self.chain.waiting.push(Call::FinalizeWithdraw { channel });
                self.pass(BLOCK);
            }
            self.chain.waiting.push(Call::Settle { channel });
        }
        self.pass(BLOCK);
        // Everything is paid out, and the highest vouchers are worth nothing more.
        let end = self.chain.head().clone();
        assert_eq!((end.held, end.payer + end.received()), (0, SUPPLY));
        for channel in 0..PROVIDERS {
            let ceiling = self.ceilings[channel];
            for total in [end.channels[channel].balance + 1, ceiling] {
                self.chain.waiting.push(Call::Claim { channel, ceiling, total });
                self.chain.waiting.push(Call::Settle { channel });
            }
        }
        self.pass(BLOCK);
        assert_eq!(*self.chain.head(), end, "an emptied channel pays nobody");
        self.tally.claimed += end.received();
    }

    /// A channel of two honest sides can be used, whatever has happened: nothing is reserved that nobody needs.
    fn check_use(&mut self, channel: usize) {
        let is_withdrawing = self.chain.head().channels[channel].withdrawal.is_some();
        if self.is_crook || is_withdrawing || self.faults == Faults::All {
            return;
        }
        let (request, refused) = (Request(self.next), self.tally.refused);
        self.open(channel);
        if self.links.contains_key(&request) {
            self.deliver_up(0, false);
            assert_eq!(self.tally.refused, refused, "{request:?} is refused on channel {channel}");
            self.break_link(0);
            self.talk(channel);
        }
        self.pass(POLL + BLOCK);
    }

    fn check_settled(&mut self, channel: usize) {
        let claimed = self.chain.head().channels[channel].claimed;
        let charged = self.charged[channel];
        let of_channel = self.truth.iter().filter(|(_, truth)| truth.channel == channel);
        let mut forgotten = 0;
        for (request, truth) in of_channel.clone() {
            forgotten += truth.forgotten;
            let unpaid = request.value(truth.arrived).saturating_sub(truth.charged - truth.forgotten);
            let is_bounded = unpaid <= request.loss_max() || self.faults == Faults::All;
            assert!(is_bounded, "{unpaid} of {request:?} arrived and is not paid: {truth:?}");
        }
        assert_eq!(of_channel.map(|(_, truth)| truth.charged).sum::<u128>(), charged);
        let book = &self.gateway.books[channel];
        let counted = book.channel().state().charged_total.0;
        if self.faults == Faults::Survivable {
            let least = charged - forgotten;
            assert!(claimed >= least, "the provider claimed {claimed} of {charged}, {least} of it provable");
            // The payer's books end with what it paid, and hold nothing back.
            assert_eq!((book.channel().open_streams(), book.channel().reserved().0), (0, 0));
            assert!(counted >= least, "the payer counts {counted}, but {least} is provable");
            // What was forgotten may have been claimed before.
            let most = counted + forgotten;
            assert!(claimed <= most || self.is_cheat[channel], "{claimed} is claimed, the payer counts {counted}");
        }
        assert!(claimed <= charged || self.is_cheat[channel], "the provider claimed {claimed}, but charged {charged}");
    }
}
