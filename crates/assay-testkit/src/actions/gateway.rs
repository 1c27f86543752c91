//! The paying side.

use super::{DEPOSIT, Down, Faults, Image, Link, PROVIDERS, PayerDisk, Request, STREAMS_MAX, Truth, Up, World};
use assay_protocol::{PayerBook, PayerError, ReceiptExpectation, Shown};
use assay_types::{Amount, Done, Finish, ModelId, TokenId};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Copies of a database that are kept.
const COPIES_MAX: usize = 3;

pub(super) struct Gateway {
    disk: Box<dyn PayerDisk>,
    copies: Vec<Image>,
    pub(super) books: Vec<PayerBook>,
    /// Output of the requests that are being answered.
    flights: BTreeMap<Request, Vec<TokenId>>,
}

impl Gateway {
    pub(super) fn new(mut disk: Box<dyn PayerDisk>) -> Self {
        let books = (0..PROVIDERS).map(|channel| PayerBook::new(disk.load(channel))).collect();
        Self { copies: vec![disk.image()], disk, books, flights: BTreeMap::new() }
    }

    pub(super) fn copy_database(&mut self) {
        self.copies.insert(0, self.disk.image());
        self.copies.truncate(COPIES_MAX);
    }

    fn store(&mut self, channel: usize) {
        self.disk.store(channel, self.books[channel].row());
    }
}

impl World<'_> {
    pub(super) fn open(&mut self, channel: usize) {
        if !self.have_talked[channel] {
            self.talk(channel);
        }
        let request = Request(self.next);
        let grant = request.terms().grant_after(0);
        if self.links.len() >= STREAMS_MAX
            || !self.providers[channel].is_up()
            || !self.gateway.books[channel].is_ready()
        {
            return;
        }
        let Ok(ceiling) = self.gateway.books[channel].open(request.hash(), grant) else { return };
        let ceiling = self.stinted(channel, ceiling);
        self.next += 1;
        self.tally.opened += 1;
        self.truth.insert(request, Truth { channel, is_reserved: true, ..Truth::default() });
        self.mark(channel, ceiling);
        self.gateway.flights.insert(request, vec![]);
        let mut link = Link::default();
        link.up.push_back(Up::Open { ceiling, grant });
        self.links.insert(request, link);
    }

    /// What a crook signs instead, now and then: no more than before.
    fn stinted(&self, channel: usize, ceiling: Amount) -> Amount {
        let is_stinted = self.is_crook && self.tally.actions.is_multiple_of(4);
        if is_stinted { ceiling.min(Amount(self.ceilings[channel])) } else { ceiling }
    }

    /// What has to be durable before a voucher leaves, and what the voucher may promise.
    fn mark(&mut self, channel: usize, ceiling: Amount) {
        let book = &mut self.gateway.books[channel];
        let state = book.channel().state();
        if let Some(mark) = book.mark_for(ceiling, Amount(state.deposit.0 / 16)) {
            book.on_marked(mark);
            self.gateway.store(channel);
        }
        let mark = self.gateway.disk.load(channel).mark;
        assert!(ceiling <= mark, "a voucher of {ceiling} leaves, and {mark} is stored");
        let reserved = self.gateway.books[channel].channel().reserved();
        let running = self.truth.iter().filter(|(_, truth)| truth.channel == channel && truth.is_reserved);
        let chunks: u128 = running.map(|(request, _)| request.loss_max()).sum();
        assert!(reserved.0 <= chunks, "{reserved} is promised to streams that may have {chunks}");
        let needed = state.charged_total.0 + reserved.0;
        let signed = &mut self.ceilings[channel];
        let is_needed = ceiling.0 <= needed.max(*signed) || self.is_crook;
        assert!(is_needed, "{ceiling} is signed, {needed} needed, {signed} was signed before");
        *signed = ceiling.0.max(*signed);
    }

    pub(super) fn gateway_gets(&mut self, request: Request, message: Down) {
        let channel = self.channel_of(request);
        match message {
            Down::Tokens(count) => {
                let Some(output) = self.gateway.flights.get_mut(&request) else { return };
                for _ in 0..count {
                    output.push(request.token(output.len()));
                }
                self.truth.get_mut(&request).expect("opened").arrived += count as u64;
            }
            Down::Checkpoint(done) => {
                if !self.book(request, &done) {
                    return self.break_off(request);
                }
                let grant = request.terms().grant_after(done.receipt.receipt.output_tokens);
                let message = match self.gateway.books[channel].pay(request.hash(), grant) {
                    Ok(ceiling) => {
                        let ceiling = self.stinted(channel, ceiling);
                        self.mark(channel, ceiling);
                        Up::Pay { ceiling, granted: grant }
                    }
                    Err(_) => Up::Cancel,
                };
                self.links.get_mut(&request).expect("it brought this").up.push_back(message);
            }
            Down::Done(done) => {
                self.tally.whole += u64::from(matches!(done.finish, Finish::Stop | Finish::Length));
                if !self.book(request, &done) {
                    return self.break_off(request);
                }
                self.end_flight(request);
            }
            Down::Refused { is_duplicate: true } => {
                self.break_off(request);
            }
            Down::Refused { is_duplicate: false } => self.end_flight(request),
        }
    }

    /// What a payer does with a receipt; `false` if the books refuse it.
    fn book(&mut self, request: Request, done: &Done) -> bool {
        let channel = self.channel_of(request);
        let terms = request.terms();
        let expectation = ReceiptExpectation {
            channel_id: self.keys.terms(channel).id(),
            request_hash: request.hash(),
            model_id: ModelId::default(),
            terms: &terms,
            output: &self.gateway.flights[&request],
            finish: done.finish,
        };
        let receipt = &done.receipt.receipt;
        expectation.check(receipt).expect("an honest receipt");
        let booked = self.gateway.books[channel].on_receipt(done);
        if !self.accept(booked) {
            return false;
        }
        let truth = self.truth.get_mut(&request).expect("opened");
        truth.known = truth.known.max(receipt.charged.0);
        true
    }

    /// An honest provider's word is refused only after what nobody survives.
    fn accept<E: std::fmt::Debug>(&mut self, said: Result<(), E>) -> bool {
        let Err(error) = said else { return true };
        assert!(self.faults == Faults::All, "an honest provider is accused: {error:?}");
        self.tally.accused += 1;
        false
    }

    fn break_off(&mut self, request: Request) {
        self.links.remove(&request);
        self.provider_loses_peer(request);
        self.gateway_loses_peer(request);
    }

    fn end_flight(&mut self, request: Request) {
        let channel = self.channel_of(request);
        self.gateway.books[channel].close(request.hash()).expect("it was open");
        self.truth.get_mut(&request).expect("opened").is_reserved = false;
        self.gateway.flights.remove(&request);
        self.gateway.store(channel);
        self.links.remove(&request);
        self.provider_loses_peer(request);
    }

    pub(super) fn gateway_loses_peer(&mut self, request: Request) {
        let channel = self.channel_of(request);
        if self.gateway.flights.remove(&request).is_some() {
            self.gateway.books[channel].lose(request.hash());
        }
    }

    /// The client is gone.
    pub(super) fn leave(&mut self, which: usize) {
        if let Some(request) = self.pick(which) {
            self.links.get_mut(&request).expect("picked").up.push_back(Up::Cancel);
        }
    }

    /// From the database as it is, or from one of its older copies.
    pub(super) fn restart_gateway(&mut self, copy: Option<usize>) {
        for channel in 0..PROVIDERS {
            // Both sides must not forget at once.
            if self.providers[channel].is_older() && self.faults == Faults::Survivable {
                self.start_provider(channel);
                self.talk(channel);
            }
        }
        while let Some(request) = self.pick(0) {
            self.links.remove(&request);
            self.provider_loses_peer(request);
        }
        let older = copy.and_then(|copy| self.gateway.copies.get(copy)).map(Rc::clone);
        self.tally.gateway_older += u64::from(older.is_some());
        self.tally.gateway_restarts += 1;
        let image = older.unwrap_or_else(|| self.gateway.disk.image());
        self.gateway.disk.go_back(&image);
        self.gateway.flights.clear();
        let disk = &mut self.gateway.disk;
        self.gateway.books = (0..PROVIDERS).map(|channel| PayerBook::new(disk.load(channel))).collect();
        self.truth.values_mut().for_each(|truth| truth.is_reserved = false);
        self.have_talked = [false; PROVIDERS];
        self.gateway_looks();
    }

    /// Deposits as the chain has them; tops up what is low, and takes back what it may.
    pub(super) fn gateway_looks(&mut self) {
        for channel in 0..PROVIDERS {
            let state = self.chain.head().channels[channel];
            let book = &mut self.gateway.books[channel];
            let known = book.channel().state().deposit.0;
            book.on_deposit(Amount(if self.is_crook { state.balance.max(known) } else { state.balance }));
            let is_low = book.channel().available().0 < DEPOSIT / 2;
            let waits = self.chain.waiting.iter().any(|call| matches!(call, super::Call::Deposit { .. }));
            if is_low && !waits && !self.is_closing && state.withdrawal.is_none() {
                self.chain.waiting.push(super::Call::Deposit { channel, amount: DEPOSIT / 2 });
            }
        }
    }

    /// Each side shows the other what it has signed; then the lost streams are asked for.
    pub(super) fn talk(&mut self, channel: usize) {
        if !self.providers[channel].is_up() {
            return;
        }
        let book = &self.gateway.books[channel];
        let (latest, ceiling) = (book.latest().copied(), book.ceiling_to_show());
        let signed = &mut self.ceilings[channel];
        assert!(ceiling.0 <= *signed || self.is_crook, "{ceiling} is shown, {signed} was signed");
        *signed = ceiling.0.max(*signed);
        let voucher = self.keys.voucher(channel, ceiling);
        let moment = self.moment(channel);
        let report = self.providers[channel].books.report(&moment, latest.as_ref(), &voucher);
        self.providers[channel].on_talked();
        if report.open_streams == 0 && !self.gateway.books[channel].is_reconciled() {
            let shown = Shown { latest: report.latest, ceiling: report.ceiling };
            let reconciled = self.gateway.books[channel].reconcile(&shown);
            if !self.accept(reconciled) {
                return;
            }
            // Whatever was charged is in the total that was taken over.
            let of_channel = self.truth.values_mut().filter(|truth| truth.channel == channel);
            of_channel.for_each(|truth| truth.known = truth.charged);
            self.gateway.store(channel);
        }
        self.have_talked[channel] = true;
        while let Some(hash) = self.gateway.books[channel].next_lost() {
            let last = self.providers[channel].books.last(hash);
            let settled: Result<(), PayerError> = self.gateway.books[channel].settle_lost(hash, last.as_ref());
            let is_booked = self.accept(settled);
            let request = Request(u64::from_be_bytes(hash.0[24..].try_into().expect("eight bytes")));
            let truth = self.truth.get_mut(&request).expect("opened");
            truth.is_reserved = false;
            if is_booked {
                truth.known = truth.known.max(last.map_or(0, |done| done.receipt.receipt.charged.0));
            }
            self.gateway.store(channel);
        }
    }
}
