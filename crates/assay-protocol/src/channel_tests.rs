//! Both sides of one channel under random operations: messages are delayed, reordered over streams, delivered twice
//! or lost; either side restarts from what it stored.

use crate::{
    ChannelTerms, PayerChannel, PayerError, PayerState, ReceiverChannel, ReceiverError, VerifiedVoucher, VoucherError,
};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use assay_types::{
    Address, Amount, B256, ChannelConfig, ChannelId, Finish, ModelId, Receipt, RequestHash, SETTLEMENT_ADDRESS,
    Signature, SignedVoucher, Voucher, response_hash, settlement_domain,
};
use std::{cell::RefCell, collections::BTreeMap, rc::Rc};

/// What one chunk costs in these tests; every grant is a multiple.
const CHUNK: u128 = 64;

struct Keys {
    payer: PrivateKeySigner,
    terms: ChannelTerms,
    /// Signing is most of the time of the random runs, and ceilings repeat over seeds.
    made: RefCell<BTreeMap<Amount, VerifiedVoucher>>,
}

impl Keys {
    fn new() -> Self {
        let payer = PrivateKeySigner::from_bytes(&B256::repeat_byte(3)).unwrap();
        let config = ChannelConfig {
            payer: payer.address(),
            payer_authorizer: Address::ZERO,
            receiver: Address::repeat_byte(2),
            receiver_authorizer: Address::repeat_byte(2),
            token: Address::repeat_byte(9),
            withdraw_delay: 86_400,
            salt: B256::ZERO,
        };
        Self {
            payer,
            terms: ChannelTerms::new(config, settlement_domain(1, SETTLEMENT_ADDRESS)),
            made: RefCell::default(),
        }
    }

    fn sign(&self, ceiling: Amount) -> SignedVoucher {
        let voucher = Voucher { channel_id: self.terms.id(), max_claimable_amount: ceiling };
        let digest = voucher.digest(&settlement_domain(1, SETTLEMENT_ADDRESS));
        let signature = Signature::new(&self.payer.sign_hash_sync(&digest).unwrap());
        SignedVoucher { voucher, signature }
    }

    fn verified(&self, ceiling: Amount) -> VerifiedVoucher {
        let make = || self.terms.verify(&self.sign(ceiling)).unwrap();
        *self.made.borrow_mut().entry(ceiling).or_insert_with(make)
    }
}

fn request(id: u64) -> RequestHash {
    let mut bytes = [0; 32];
    bytes[24..].copy_from_slice(&id.to_be_bytes());
    RequestHash(B256::from(bytes))
}

fn receipt(id: u64, charged: Amount, charged_total: Amount) -> Receipt {
    Receipt {
        channel_id: ChannelId::default(),
        request_hash: request(id),
        response_hash: response_hash(&[], Finish::Open),
        model_id: ModelId::default(),
        prompt_tokens: 0,
        output_tokens: 0,
        charged,
        charged_total,
        issued_at: 0,
    }
}

#[test]
fn a_voucher_counts_only_with_the_payers_signature_for_this_channel() {
    let keys = Keys::new();
    let genuine = keys.sign(Amount(100));
    assert_eq!(keys.terms.verify(&genuine).unwrap().ceiling(), Amount(100));

    let mut other_channel = genuine;
    other_channel.voucher.channel_id.0[0] ^= 1;
    assert!(matches!(keys.terms.verify(&other_channel), Err(VoucherError::WrongChannel { .. })));
    let mut raised = genuine;
    raised.voucher.max_claimable_amount = Amount(101);
    assert!(matches!(keys.terms.verify(&raised), Err(VoucherError::Signature(_))));
    let mut forged = genuine;
    forged.signature.0[5] ^= 1;
    assert!(matches!(keys.terms.verify(&forged), Err(VoucherError::Signature(_))));

    // With an authorizer named, the payer's own signature is not enough: the contract would refuse it.
    let authorized = ChannelConfig { payer_authorizer: Address::repeat_byte(5), ..*keys.terms.config() };
    let terms = ChannelTerms::new(authorized, settlement_domain(1, SETTLEMENT_ADDRESS));
    let voucher = Voucher { channel_id: terms.id(), max_claimable_amount: Amount(1) };
    let digest = voucher.digest(&settlement_domain(1, SETTLEMENT_ADDRESS));
    let signature = Signature::new(&keys.payer.sign_hash_sync(&digest).unwrap());
    assert!(matches!(terms.verify(&SignedVoucher { voucher, signature }), Err(VoucherError::Signature(_))));
}

#[test]
fn the_receiver_grants_nothing_above_voucher_or_deposit() {
    let keys = Keys::new();
    let mut channel = ReceiverChannel::new(Amount(100), Default::default());
    let above = ReceiverError::AboveDeposit { ceiling: Amount(101), deposit: Amount(100) };
    assert_eq!(channel.open(request(1), &keys.verified(Amount(101)), Amount(1)), Err(above));
    let uncovered = ReceiverError::NotCovered { needed: Amount(51), covered: Amount(50) };
    assert_eq!(channel.open(request(1), &keys.verified(Amount(50)), Amount(51)), Err(uncovered));
    assert_eq!(channel.open(request(1), &keys.verified(Amount(50)), Amount(50)), Ok(()));
    assert_eq!(
        channel.open(request(1), &keys.verified(Amount(100)), Amount(0)),
        Err(ReceiverError::AlreadyOpen(request(1)))
    );
    let uncovered = ReceiverError::NotCovered { needed: Amount(101), covered: Amount(100) };
    assert_eq!(channel.open(request(2), &keys.verified(Amount(100)), Amount(51)), Err(uncovered));
    assert_eq!(channel.open(request(2), &keys.verified(Amount(100)), Amount(50)), Ok(()));
    // The very voucher it rests on needs no second check; the same promise under another signature does.
    assert_eq!(channel.recognize(&keys.sign(Amount(100))), Some(keys.verified(Amount(100))));
    let mut forged = keys.sign(Amount(100));
    forged.signature.0[5] ^= 1;
    assert_eq!(channel.recognize(&forged), None);
    assert_eq!(channel.recognize(&keys.sign(Amount(50))), None);
    // An older voucher is no reason to forget the higher one.
    assert_eq!(channel.pay(request(1), &keys.verified(Amount(50)), Amount(50)), Ok(Amount(50)));
    assert_eq!(channel.ceiling(), Amount(100));

    let above = ReceiverError::AboveGrant { charged: Amount(51), granted: Amount(50) };
    assert_eq!(channel.charge(request(1), Amount(51)), Err(above));
    assert_eq!(channel.charge(request(1), Amount(20)), Ok(Amount(20)));
    assert_eq!(channel.charge(request(2), Amount(5)), Ok(Amount(25)));
    assert_eq!(channel.charge(request(1), Amount(10)), Ok(Amount(25)));
    assert_eq!(channel.close(request(1)), Ok(Amount(20)));
    assert_eq!(channel.charge(request(1), Amount(21)), Err(ReceiverError::NotOpen(request(1))));
    assert_eq!((channel.reserved(), channel.state().charged_total), (Amount(45), Amount(25)));

    // A withdrawal takes from what was not claimed: nothing new is granted on it.
    channel.on_deposit(Amount(80));
    let uncovered = ReceiverError::NotCovered { needed: Amount(81), covered: Amount(80) };
    assert_eq!(channel.open(request(3), &keys.verified(Amount(80)), Amount(11)), Err(uncovered));
    assert_eq!(channel.open(request(3), &keys.verified(Amount(80)), Amount(10)), Ok(()));
}

#[test]
fn the_payer_signs_only_what_it_reserved_and_believes_no_total_above_it() {
    let mut channel = PayerChannel::new(PayerState { deposit: Amount(100), ..Default::default() });
    assert_eq!(channel.open(request(1), Amount(60)), Ok(Amount(60)));
    let too_small = PayerError::DepositTooSmall { deposit: Amount(100), needed: Amount(101) };
    assert_eq!(channel.open(request(2), Amount(41)), Err(too_small));
    assert_eq!(channel.open(request(2), Amount(40)), Ok(Amount(100)));
    assert_eq!(channel.available(), Amount::ZERO);
    let above = PayerError::AboveGrant { charged: Amount(61), granted: Amount(60) };
    assert_eq!(channel.on_receipt(&receipt(1, Amount(61), Amount(61))), Err(above));
    let above = PayerError::TotalAboveGrants { charged_total: Amount(101), bound: Amount(100) };
    assert_eq!(channel.on_receipt(&receipt(1, Amount(30), Amount(101))), Err(above));
    assert_eq!(channel.on_receipt(&receipt(1, Amount(30), Amount(70))), Ok(()));
    assert_eq!(channel.close(request(1)), Ok(Amount(30)));
    // What the first left under the ceiling serves the third: the ceiling stays.
    assert_eq!(channel.open(request(3), Amount(30)), Ok(Amount(100)));
    assert_eq!(channel.adopt_total(Amount(70)), Err(PayerError::AlreadyOpen(request(2))));

    let mut restarted = PayerChannel::new(channel.state());
    let above = PayerError::TotalAboveGrants { charged_total: Amount(101), bound: Amount(100) };
    assert_eq!(restarted.adopt_total(Amount(101)), Err(above));
    assert_eq!(restarted.adopt_total(Amount(70)), Ok(()));
    assert_eq!(restarted.open(request(4), Amount(30)), Ok(Amount(100)));
    restarted.on_deposit(Amount(100));
    let too_small = PayerError::DepositTooSmall { deposit: Amount(100), needed: Amount(101) };
    assert_eq!(restarted.open(request(5), Amount(1)), Err(too_small));
}

/// splitmix64.
struct Draws(u64);

impl Draws {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[derive(Clone, Copy)]
enum Message {
    Open { id: u64, ceiling: Amount, grant: Amount },
    Pay { id: u64, ceiling: Amount, granted: Amount },
    Receipt { id: u64, charged: Amount, total: Amount, is_final: bool },
}

/// What the payer knows of one stream.
#[derive(Clone, Copy, Default)]
struct Sent {
    granted: u128,
}

/// The two sides, what is stored, and what is on the way.
struct Pair {
    keys: Rc<Keys>,
    deposit: Amount,
    payer: PayerChannel,
    receiver: ReceiverChannel,
    /// The receiver's disk: latest charge of each request.
    stored: BTreeMap<u64, Amount>,
    wire: Vec<Message>,
    open: BTreeMap<u64, Sent>,
    next_id: u64,
    peak_reserved: u128,
    served: u64,
}

impl Pair {
    fn new(keys: Rc<Keys>, deposit: Amount) -> Self {
        Self {
            keys,
            deposit,
            payer: PayerChannel::new(PayerState { deposit, ..Default::default() }),
            receiver: ReceiverChannel::new(deposit, Default::default()),
            stored: BTreeMap::new(),
            wire: Vec::new(),
            open: BTreeMap::new(),
            next_id: 0,
            peak_reserved: 0,
            served: 0,
        }
    }

    fn step(&mut self, draws: &mut Draws) {
        match draws.below(400) {
            0..60 => self.payer_opens(),
            60..350 if !self.wire.is_empty() => {
                let index = draws.below(self.wire.len() as u64) as usize;
                // One in eight messages is delivered again later.
                let message = if draws.below(8) == 0 { self.wire[index] } else { self.wire.swap_remove(index) };
                self.deliver(message, draws);
            }
            350..390 => self.receiver_ends_a_stream(draws),
            390..398 if !self.open.is_empty() => self.connection_breaks(draws),
            398 => self.receiver_restarts(),
            399 => self.payer_restarts(),
            _ => {}
        }
        self.check();
    }

    fn payer_opens(&mut self) {
        let (id, grant) = (self.next_id, Amount(CHUNK));
        if let Ok(ceiling) = self.payer.open(request(id), grant) {
            self.next_id += 1;
            self.open.insert(id, Sent { granted: CHUNK });
            self.wire.push(Message::Open { id, ceiling, grant });
        }
    }

    fn deliver(&mut self, message: Message, draws: &mut Draws) {
        match message {
            Message::Open { id, ceiling, grant } => {
                // A request that was served before is a replay; the receiver knows it from its receipts.
                if !self.stored.contains_key(&id) {
                    match self.receiver.open(request(id), &self.keys.verified(ceiling), grant) {
                        Ok(()) | Err(ReceiverError::AlreadyOpen(_)) => {}
                        Err(error) => assert!(!self.open.contains_key(&id), "an honest payer was refused: {error}"),
                    }
                }
            }
            Message::Pay { id, ceiling, granted } => {
                let result = self.receiver.pay(request(id), &self.keys.verified(ceiling), granted);
                match result {
                    Ok(_) | Err(ReceiverError::NotOpen(_)) => {}
                    Err(error) => assert!(!self.open.contains_key(&id), "an honest payer was refused: {error}"),
                }
            }
            Message::Receipt { id, charged, total, is_final } => self.payer_gets(id, charged, total, is_final),
        }
        // Streams run on: one of them reaches a checkpoint within its grant.
        let running: Vec<u64> = self.open.keys().copied().collect();
        if !running.is_empty() {
            let id = running[draws.below(running.len() as u64) as usize];
            let charged = self.stored.get(&id).map_or(CHUNK, |c| c.0 + CHUNK);
            self.receiver_charges(id, Amount(charged), false);
        }
    }

    fn receiver_charges(&mut self, id: u64, charged: Amount, is_final: bool) {
        if let Ok(total) = self.receiver.charge(request(id), charged) {
            self.stored.insert(id, charged);
            if is_final {
                self.receiver.close(request(id)).unwrap();
            }
            self.wire.push(Message::Receipt { id, charged, total, is_final });
        }
    }

    fn receiver_ends_a_stream(&mut self, draws: &mut Draws) {
        let running: Vec<u64> = self.open.keys().copied().collect();
        if running.is_empty() {
            return;
        }
        let id = running[draws.below(running.len() as u64) as usize];
        let before = self.stored.get(&id).map_or(0, |c| c.0);
        self.receiver_charges(id, Amount(before + 16 * u128::from(draws.below(4))), true);
    }

    fn payer_gets(&mut self, id: u64, charged: Amount, total: Amount, is_final: bool) {
        match self.payer.on_receipt(&receipt(id, charged, total)) {
            Ok(()) => {}
            Err(PayerError::NotOpen(_)) => return,
            Err(error) => panic!("an honest receiver was accused: {error}"),
        }
        if is_final {
            self.payer.close(request(id)).unwrap();
            self.open.remove(&id);
            self.served += 1;
            return;
        }
        let granted = charged.0 + CHUNK;
        if let Ok(ceiling) = self.payer.pay(request(id), Amount(granted)) {
            let sent = self.open.get_mut(&id).unwrap();
            sent.granted = sent.granted.max(granted);
            self.wire.push(Message::Pay { id, ceiling, granted: Amount(granted) });
        }
    }

    /// Everything of one stream on the wire is lost; the receiver ends it, and the payer asks for its last receipt.
    fn connection_breaks(&mut self, draws: &mut Draws) {
        let running: Vec<u64> = self.open.keys().copied().collect();
        let id = running[draws.below(running.len() as u64) as usize];
        self.wire.retain(|m| match *m {
            Message::Open { id: of, .. } | Message::Pay { id: of, .. } | Message::Receipt { id: of, .. } => of != id,
        });
        let _ = self.receiver.close(request(id));
        self.payer_asks_for(id);
    }

    fn payer_asks_for(&mut self, id: u64) {
        if let Some(&charged) = self.stored.get(&id) {
            let total = self.receiver.state().charged_total;
            self.payer.on_receipt(&receipt(id, charged, total)).unwrap();
        }
        self.payer.close(request(id)).unwrap();
        self.open.remove(&id);
    }

    /// Streams end at their last checkpoint; connections are gone with what was on them.
    fn receiver_restarts(&mut self) {
        self.wire.clear();
        self.receiver = ReceiverChannel::new(self.deposit, self.receiver.state());
        for id in self.open.keys().copied().collect::<Vec<_>>() {
            self.payer_asks_for(id);
        }
    }

    /// The payer forgets its streams; it takes over the total that the receiver has signed.
    fn payer_restarts(&mut self) {
        self.wire.clear();
        for id in self.open.keys().copied().collect::<Vec<_>>() {
            let _ = self.receiver.close(request(id));
        }
        self.open.clear();
        self.payer = PayerChannel::new(self.payer.state());
        self.payer.adopt_total(self.receiver.state().charged_total).unwrap();
    }

    fn check(&mut self) {
        let payer = self.payer.state();
        let receiver = self.receiver.state();
        self.peak_reserved = self.peak_reserved.max(self.payer.reserved().0);
        // The payer promises no more than it was charged and has reserved at some time; never above the deposit.
        assert!(payer.ceiling.0 <= payer.charged_total.0 + self.peak_reserved);
        assert!(payer.charged_total.0 + self.payer.reserved().0 <= payer.ceiling.0);
        assert!(payer.ceiling <= self.deposit);
        // One chunk a stream: a grant is at most one chunk ahead of what the payer has a receipt for.
        assert!(self.payer.reserved().0 <= CHUNK * self.open.len() as u128);
        // The receiver grants nothing above what is signed, and its total is the sum of its receipts.
        let ceiling = self.receiver.ceiling();
        assert!(receiver.charged_total.0 + self.receiver.reserved().0 <= ceiling.0);
        assert!(ceiling <= payer.ceiling);
        assert_eq!(receiver.charged_total.0, self.stored.values().map(|c| c.0).sum::<u128>());
        // What is charged and not known to the payer yet was granted by it.
        assert!(receiver.charged_total.0 <= payer.charged_total.0 + self.payer.reserved().0);
        assert!(payer.charged_total <= receiver.charged_total);
        assert!(self.open.iter().all(|(id, sent)| self.stored.get(id).is_none_or(|c| c.0 <= sent.granted)));
    }
}

#[test]
fn neither_side_loses_more_than_a_chunk_a_stream_whatever_happens_to_messages() {
    let keys = Rc::new(Keys::new());
    let (mut served, mut exhausted) = (0, 0);
    for seed in 0..24 {
        let mut draws = Draws(seed);
        let mut pair = Pair::new(Rc::clone(&keys), Amount(CHUNK * if seed % 4 == 0 { 40 } else { 4_000 }));
        for _ in 0..800 {
            pair.step(&mut draws);
        }
        served += pair.served;
        exhausted += u32::from(pair.payer.available().0 < CHUNK);
        // In the end everything is settled and both sides agree to the last unit.
        pair.receiver_restarts();
        assert_eq!(pair.payer.state().charged_total, pair.receiver.state().charged_total, "seed {seed}");
        assert_eq!(pair.payer.reserved(), Amount::ZERO, "seed {seed}");
    }
    // The runs reach the interesting states: streams end regularly, deposits run out.
    assert!(served > 400 && exhausted == 6, "{served} {exhausted}");
}
