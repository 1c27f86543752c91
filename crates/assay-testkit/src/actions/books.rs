//! What the two sides keep, behind traits: plain values here; in the tests of a provider and of a gateway their own
//! ledgers over their own databases.

use crate::settlement::Channel;
use assay_protocol::{
    OnChain, PayerRow, ReceiverChannel, ReceiverState, ReceiverWatch, VerifiedVoucher, claimable_down,
    lasting_balance_down,
};
use assay_types::{
    Amount, ChannelId, Done, Finish, ModelId, Receipt, RequestHash, Signature, SignedReceipt, TokenId, response_hash,
};
use std::any::Any;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Unclaimed on a channel, from which on it is claimed.
pub const CLAIM_FROM: u128 = 300;
/// A channel is left alone when the chain has said for so long that all of it is claimed.
pub const SETTLED_AFTER: Duration = Duration::from_secs(600);
/// A suspect channel is looked at again at most this often.
pub const LOOKUP_PAUSE: Duration = Duration::from_secs(1);

/// What a disk holds, to go back to it later.
pub type Image = Rc<dyn Any>;

/// A channel as the chain shows it to its receiver.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: u64,
    /// By the latest block.
    pub head: Channel,
    /// By the latest one that no reorganization undoes.
    pub settled: Channel,
    pub withdraw_delay: u64,
}

impl Moment {
    /// What no reorganization takes back.
    #[must_use]
    pub fn lasting_balance(&self) -> Amount {
        let withdrawal = self.settled.withdrawal.map_or(0, |(amount, _)| amount);
        lasting_balance_down(Amount(self.head.balance), Amount(self.settled.balance), Amount(withdrawal))
    }
}

/// What a receipt says.
#[derive(Clone, Copy, Debug)]
pub struct Draft<'a> {
    pub request: RequestHash,
    pub prompt_tokens: u64,
    pub output: &'a [TokenId],
    pub charged: Amount,
    pub finish: Finish,
}

/// Why a stream is not served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The request has a receipt or runs.
    Duplicate,
    Unpaid,
}

/// What a receiver shows.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub latest: Option<Done>,
    pub ceiling: Option<Amount>,
    pub open_streams: usize,
}

/// A claim to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Claim {
    pub ceiling: u128,
    pub total: u128,
}

/// A receiver's books of one channel, and the disk below them. While it is down, `start`, `image` and `go_back` alone are
/// called.
pub trait Receiver {
    fn start(&mut self, at: &Moment);
    /// Nothing is written any more; the disk is what it is at this moment.
    fn crash(&mut self);
    fn image(&mut self) -> Image;
    fn go_back(&mut self, image: &Image);
    /// # Errors
    /// The stream is not served.
    fn open(
        &mut self,
        at: &Moment,
        request: RequestHash,
        voucher: &VerifiedVoucher,
        grant: Amount,
    ) -> Result<(), Refusal>;
    /// Returns what is granted in total.
    ///
    /// # Errors
    /// The payment does not count.
    fn pay(&mut self, request: RequestHash, voucher: &VerifiedVoucher, granted: Amount) -> Result<Amount, Refusal>;
    /// Books, signs and stores.
    fn sign(&mut self, draft: &Draft<'_>) -> Done;
    fn close(&mut self, request: RequestHash);
    /// Takes over what is shown, then shows.
    fn report(&mut self, at: &Moment, latest: Option<&Done>, voucher: &VerifiedVoucher) -> Report;
    fn last(&mut self, request: RequestHash) -> Option<Done>;
    /// Asks the chain, if there is something to lose.
    fn look(&mut self, at: &Moment);
    /// What is due by now.
    fn claim(&mut self, at: &Moment) -> Option<Claim>;
}

/// The payer's disk: a row for each channel.
pub trait PayerDisk {
    fn load(&mut self, channel: usize) -> PayerRow;
    fn store(&mut self, channel: usize, row: PayerRow);
    fn image(&mut self) -> Image;
    /// As a process finds it that starts on this image.
    fn go_back(&mut self, image: &Image);
}

#[derive(Clone, Default)]
struct Database {
    state: ReceiverState,
    latest: Option<Done>,
    receipts: BTreeMap<RequestHash, Done>,
}

#[derive(Default)]
struct Live {
    money: ReceiverChannel,
    watch: ReceiverWatch,
}

/// Books without a file and without signatures.
pub struct PlainReceiver {
    channel: ChannelId,
    disk: Database,
    live: Option<Live>,
}

impl PlainReceiver {
    #[must_use]
    pub fn new(channel: ChannelId) -> Self {
        Self { channel, disk: Database::default(), live: None }
    }

    fn live(&mut self) -> &mut Live {
        self.live.as_mut().expect("it is up")
    }

    fn ask(&mut self, at: &Moment) {
        let found = OnChain {
            balance: at.lasting_balance(),
            claimed: Amount(at.head.claimed),
            is_withdrawing: at.head.withdrawal.is_some(),
        };
        let live = self.live();
        live.money.on_deposit(found.balance);
        live.watch.on_chain(Duration::from_secs(at.now), &found);
    }

    fn is_in_use(&mut self, at: &Moment) -> bool {
        let charged = self.disk.state.charged_total;
        let live = self.live();
        live.money.open_streams() > 0 || !live.watch.is_settled(Duration::from_secs(at.now), charged, SETTLED_AFTER)
    }
}

impl Receiver for PlainReceiver {
    fn start(&mut self, _: &Moment) {
        let money = ReceiverChannel::new(Amount::ZERO, self.disk.state);
        self.live = Some(Live { money, watch: ReceiverWatch::default() });
    }

    fn crash(&mut self) {
        self.live = None;
    }

    fn image(&mut self) -> Image {
        Rc::new(self.disk.clone())
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
        let (now, delay) = (Duration::from_secs(at.now), Duration::from_secs(at.withdraw_delay));
        let live = self.live();
        if live.watch.needs_lookup(now, voucher.ceiling(), live.money.deposit(), delay, LOOKUP_PAUSE) {
            self.ask(at);
        }
        if self.disk.receipts.contains_key(&request) {
            return Err(Refusal::Duplicate);
        }
        let live = self.live();
        if live.watch.is_withdrawing() {
            return Err(Refusal::Unpaid);
        }
        live.money.open(request, voucher, grant).map_err(|error| match error {
            assay_protocol::ReceiverError::AlreadyOpen(_) => Refusal::Duplicate,
            _ => Refusal::Unpaid,
        })
    }

    fn pay(&mut self, request: RequestHash, voucher: &VerifiedVoucher, granted: Amount) -> Result<Amount, Refusal> {
        let live = self.live();
        if live.watch.is_withdrawing() {
            return Err(Refusal::Unpaid);
        }
        live.money.pay(request, voucher, granted).map_err(|_| Refusal::Unpaid)
    }

    fn sign(&mut self, draft: &Draft<'_>) -> Done {
        let channel_id = self.channel;
        let charged_total = self.live().money.charge(draft.request, draft.charged).expect("within the grant");
        let receipt = Receipt {
            channel_id,
            request_hash: draft.request,
            response_hash: response_hash(draft.output, draft.finish),
            model_id: ModelId::default(),
            prompt_tokens: draft.prompt_tokens,
            output_tokens: draft.output.len() as u64,
            charged: draft.charged,
            charged_total,
            issued_at: 0,
        };
        let done = Done { receipt: SignedReceipt { receipt, signature: Signature([0; 65]) }, finish: draft.finish };
        let before = self.disk.receipts.insert(draft.request, done);
        let follows =
            |known: Done| known.finish == Finish::Open && known.receipt.receipt.output_tokens < receipt.output_tokens;
        assert!(before.is_none_or(follows), "two receipts for one request: {before:?} {receipt:?}");
        self.disk.latest = Some(done);
        self.disk.state = self.live().money.state();
        done
    }

    fn close(&mut self, request: RequestHash) {
        self.live().money.close(request).expect("it was open");
    }

    fn report(&mut self, _: &Moment, latest: Option<&Done>, voucher: &VerifiedVoucher) -> Report {
        let total = |done: &Done| done.receipt.receipt.charged_total;
        self.live().money.adopt_voucher(voucher);
        if let Some(done) = latest {
            let receipt = &done.receipt.receipt;
            let known = self.disk.receipts.get(&receipt.request_hash);
            if known.is_none_or(|known| known.receipt.receipt.output_tokens < receipt.output_tokens) {
                self.live().money.adopt_total(receipt.charged_total);
                self.disk.receipts.insert(receipt.request_hash, *done);
                if self.disk.latest.as_ref().is_none_or(|known| total(known) < total(done)) {
                    self.disk.latest = Some(*done);
                }
            }
        }
        let proven = self.disk.latest.as_ref().map_or(Amount::ZERO, total);
        self.disk.state = ReceiverState { charged_total: proven, ..self.live().money.state() };
        let latest = self.disk.latest;
        let money = &self.live().money;
        let ceiling = money.state().voucher.map(|signed| signed.voucher.max_claimable_amount);
        Report { latest, ceiling, open_streams: money.open_streams() }
    }

    fn last(&mut self, request: RequestHash) -> Option<Done> {
        self.disk.receipts.get(&request).copied()
    }

    fn look(&mut self, at: &Moment) {
        if self.is_in_use(at) {
            self.ask(at);
        }
    }

    fn claim(&mut self, at: &Moment) -> Option<Claim> {
        if !self.is_in_use(at) {
            return None;
        }
        let state = self.disk.state;
        let ceiling = state.voucher.map_or(Amount::ZERO, |signed| signed.voucher.max_claimable_amount);
        let total = claimable_down(state.charged_total, ceiling, Amount(at.head.balance));
        let live = self.live();
        let unclaimed = total.saturating_sub(live.watch.claimed()).0;
        let is_due = unclaimed >= CLAIM_FROM || live.watch.is_withdrawing() || live.money.open_streams() == 0;
        (unclaimed > 0 && is_due).then_some(Claim { ceiling: ceiling.0, total: total.0 })
    }
}

/// Rows without a file.
#[derive(Clone, Default)]
pub struct PlainPayerDisk(BTreeMap<usize, PayerRow>);

impl PayerDisk for PlainPayerDisk {
    fn load(&mut self, channel: usize) -> PayerRow {
        self.0.get(&channel).copied().unwrap_or_default()
    }

    fn store(&mut self, channel: usize, row: PayerRow) {
        self.0.insert(channel, row);
    }

    fn image(&mut self) -> Image {
        Rc::new(self.clone())
    }

    fn go_back(&mut self, image: &Image) {
        self.clone_from(image.downcast_ref().expect("an image of its own"));
    }
}
