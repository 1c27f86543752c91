//! The side that is paid.

use super::{CHUNK, Call, Claim, Down, Draft, Faults, Image, Moment, POLL, Receiver, Refusal, Request, Up, World};
use assay_protocol::{Bill, ServedStream, Step};
use assay_types::{Amount, Finish};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Copies of a database that are kept.
const COPIES_MAX: usize = 3;

pub(super) struct Provider {
    pub(super) books: Box<dyn Receiver>,
    is_up: bool,
    down_since: u64,
    streams: BTreeMap<Request, ServedStream>,
    /// The latest first.
    copies: Vec<Image>,
    /// It has forgotten what it may still be shown.
    is_older: bool,
    /// The highest voucher that it ever saw, whatever its database has.
    pub(super) ceiling: u128,
}

impl Provider {
    pub(super) fn new(books: Box<dyn Receiver>) -> Self {
        let (streams, copies) = (BTreeMap::new(), vec![]);
        Self { books, is_up: false, down_since: 0, streams, copies, is_older: false, ceiling: 0 }
    }

    pub(super) fn is_up(&self) -> bool {
        self.is_up
    }

    pub(super) fn is_older(&self) -> bool {
        self.is_older
    }

    pub(super) fn on_talked(&mut self) {
        self.is_older = false;
    }

    pub(super) fn is_down_for(&self, now: u64) -> u64 {
        if self.is_up { 0 } else { now - self.down_since }
    }

    pub(super) fn copy_database(&mut self) {
        self.copies.insert(0, self.books.image());
        self.copies.truncate(COPIES_MAX);
    }
}

impl World<'_> {
    pub(super) fn moment(&self, channel: usize) -> Moment {
        let (head, settled) = (self.chain.head(), self.chain.settled());
        Moment {
            now: self.chain.now,
            head: head.channels[channel],
            settled: settled.channels[channel],
            withdraw_delay: head.withdraw_delay,
        }
    }

    pub(super) fn provider_gets(&mut self, request: Request, message: Up) {
        let channel = self.channel_of(request);
        if !self.providers[channel].is_up {
            return;
        }
        match message {
            Up::Open { ceiling, grant } => self.admit(request, ceiling, grant),
            Up::Pay { ceiling, granted } => {
                let voucher = self.keys.voucher(channel, ceiling);
                let provider = &mut self.providers[channel];
                let Some(stream) = provider.streams.get_mut(&request) else { return };
                provider.ceiling = provider.ceiling.max(ceiling.0);
                match provider.books.pay(request.hash(), &voucher, granted) {
                    Ok(granted) => stream.on_pay(granted),
                    Err(_) => return self.cut(request),
                }
                self.serve(request);
            }
            Up::Cancel => self.cut(request),
        }
    }

    fn admit(&mut self, request: Request, ceiling: Amount, grant: Amount) {
        let channel = self.channel_of(request);
        let moment = self.moment(channel);
        let voucher = self.keys.voucher(channel, ceiling);
        let provider = &mut self.providers[channel];
        provider.ceiling = provider.ceiling.max(ceiling.0);
        match provider.books.open(&moment, request.hash(), &voucher, grant) {
            Ok(()) => {
                let stream = ServedStream::new(request.terms(), grant, assay_types::CHUNK_TOKENS);
                provider.streams.insert(request, stream);
            }
            Err(refusal) => {
                self.tally.refused += 1;
                self.send(request, Down::Refused { is_duplicate: refusal == Refusal::Duplicate });
            }
        }
    }

    /// The engine gives tokens to one of the streams.
    pub(super) fn produce(&mut self, which: usize, count: usize) {
        if let Some(request) = self.pick(which) {
            self.compute(request, count);
        }
    }

    fn compute(&mut self, request: Request, count: usize) {
        let Some(stream) = self.served(request) else { return };
        // As many as the connection takes from the engine at a time.
        let most = request.terms().output_tokens_max as usize;
        if stream.next() == Step::AwaitTokens {
            for _ in 0..count.min(most - stream.output().len()) {
                stream.on_token(request.token(stream.output().len()));
            }
            if stream.output().len() == most {
                stream.on_end(Finish::Length);
            }
        }
        self.serve(request);
    }

    pub(super) fn end_output(&mut self, which: usize) {
        let Some(request) = self.pick(which) else { return };
        let Some(stream) = self.served(request) else { return };
        if stream.next() == Step::AwaitTokens && !stream.output().is_empty() {
            stream.on_end(Finish::Stop);
            self.serve(request);
        }
    }

    fn served(&mut self, request: Request) -> Option<&mut ServedStream> {
        let channel = self.channel_of(request);
        self.providers[channel].streams.get_mut(&request)
    }

    /// Does what the stream says until it waits or ends.
    fn serve(&mut self, request: Request) {
        loop {
            let Some(stream) = self.served(request) else { return };
            match stream.next() {
                Step::Send(range) => {
                    stream.on_sent(&range);
                    self.truth.get_mut(&request).expect("opened").sent += range.len() as u64;
                    self.send(request, Down::Tokens(range.len()));
                }
                Step::Checkpoint(count) => {
                    stream.on_checkpoint(count);
                    self.tally.checkpoints += 1;
                    let done = self.sign(request, count, Finish::Open);
                    self.send(request, Down::Checkpoint(done));
                }
                Step::Finish(finish) => {
                    let count = stream.output().len();
                    let done = self.sign(request, count, finish);
                    self.close(request);
                    self.send(request, Down::Done(done));
                }
                Step::AwaitTokens | Step::AwaitPay => return,
            }
        }
    }

    fn send(&mut self, request: Request, message: Down) {
        if let Some(link) = self.links.get_mut(&request) {
            link.down.push_back(message);
        }
    }

    /// Ends a stream that could go on: what was sent and paid is billed.
    fn cut(&mut self, request: Request) {
        let Some(stream) = self.served(request) else { return };
        let done = match stream.bill() {
            Bill::Tokens(count) => self.sign(request, count, Finish::Cancelled),
            Bill::LastCheckpoint => {
                let channel = self.channel_of(request);
                self.providers[channel].books.last(request.hash()).expect("it was signed")
            }
        };
        self.close(request);
        self.send(request, Down::Done(done));
    }

    pub(super) fn provider_loses_peer(&mut self, request: Request) {
        self.cut(request);
    }

    fn close(&mut self, request: Request) {
        let channel = self.channel_of(request);
        let provider = &mut self.providers[channel];
        provider.streams.remove(&request);
        provider.books.close(request.hash());
        self.check_request(request);
    }

    fn sign(&mut self, request: Request, output_tokens: usize, finish: Finish) -> assay_types::Done {
        let channel = self.channel_of(request);
        let terms = request.terms();
        let provider = &mut self.providers[channel];
        let done = provider.books.sign(&Draft {
            request: request.hash(),
            prompt_tokens: terms.input_tokens,
            output: &provider.streams[&request].output()[..output_tokens],
            charged: terms.charge_up(output_tokens as u64),
            finish,
        });
        let receipt = &done.receipt.receipt;
        let truth = self.truth.get_mut(&request).expect("opened");
        assert!(output_tokens as u64 <= truth.sent, "{output_tokens} tokens are billed: {truth:?}");
        assert!(receipt.charged.0 >= truth.charged, "a charge falls: {truth:?} {receipt:?}");
        self.charged[channel] += receipt.charged.0 - truth.charged;
        truth.charged = receipt.charged.0;
        let charged = self.charged[channel];
        assert!(receipt.charged_total.0 <= charged, "a total of {receipt:?}, but all charges are {charged}");
        self.totals[channel] = self.totals[channel].max(receipt.charged_total.0);
        done
    }

    /// Between two polls an engine fills any chunk, and a stream that is not paid on is cut.
    fn run_on(&mut self, request: Request) {
        self.compute(request, CHUNK as usize + 1);
        if self.served(request).is_some_and(|stream| stream.next() == Step::AwaitPay) {
            self.cut(request);
        }
    }

    // ------------------------------------------------------------------ the chain

    /// Looks at the channel while there is something to lose, and claims what is due.
    pub(super) fn provider_looks(&mut self, channel: usize) {
        if !self.providers[channel].is_up {
            return;
        }
        let moment = self.moment(channel);
        self.providers[channel].books.look(&moment);
        for request in self.providers[channel].streams.keys().copied().collect::<Vec<_>>() {
            self.run_on(request);
        }
        if let Some(Claim { ceiling, total }) = self.providers[channel].books.claim(&moment) {
            self.chain.waiting.push(Call::Claim { channel, ceiling, total });
            self.chain.waiting.push(Call::Settle { channel });
        }
    }

    // ------------------------------------------------------------------ crashes

    /// Nothing is told to anybody: connections break.
    pub(super) fn crash_provider(&mut self, channel: usize) {
        if !self.providers[channel].is_up {
            return;
        }
        let provider = &mut self.providers[channel];
        (provider.is_up, provider.down_since) = (false, self.chain.now);
        let streams = std::mem::take(&mut provider.streams);
        provider.books.crash();
        for request in streams.into_keys() {
            self.check_request(request);
        }
        let of_channel: Vec<Request> =
            self.links.keys().copied().filter(|request| self.truth[request].channel == channel).collect();
        for request in of_channel {
            self.links.remove(&request);
            self.gateway_loses_peer(request);
        }
        self.have_talked[channel] = false;
    }

    pub(super) fn crash_and_start(&mut self, channel: usize) {
        self.crash_provider(channel);
        self.start_provider(channel);
    }

    /// It goes on from an older copy of its database.
    pub(super) fn restart_provider_older(&mut self, channel: usize, copy: usize) {
        let Some(image) = self.providers[channel].copies.get(copy).map(Rc::clone) else { return };
        if self.faults == Faults::Survivable {
            // Both sides must not forget at once: the gateway has to know what this provider forgets.
            if !self.have_talked[channel] {
                self.start_provider(channel);
                self.talk(channel);
            }
            // A life that was given up is not taken up again.
            self.providers[channel].copies.drain(..copy);
        }
        self.tally.provider_older += 1;
        self.crash_provider(channel);
        let provider = &mut self.providers[channel];
        provider.books.go_back(&image);
        provider.is_older = true;
        self.start_provider(channel);
        for (request, truth) in self.truth.iter_mut().filter(|(_, truth)| truth.channel == channel) {
            let kept = self.providers[channel].books.last(request.hash());
            let kept = kept.map_or(0, |done| done.receipt.receipt.charged.0);
            let provable = kept.max(truth.known).min(truth.charged);
            truth.forgotten = truth.forgotten.max(truth.charged - provable);
            truth.known = truth.charged;
        }
    }

    pub(super) fn start_provider(&mut self, channel: usize) {
        if self.providers[channel].is_up {
            return;
        }
        self.tally.provider_restarts += 1;
        let moment = self.moment(channel);
        self.providers[channel].books.start(&moment);
        self.providers[channel].is_up = true;
        // What an earlier run left is claimed at once.
        self.provider_looks(channel);
    }

    /// A provider that has its promises from long ago; the poll starts it again at the latest when half of the delay is over.
    pub(super) fn is_down_too_long(&self, channel: usize) -> bool {
        let provider = &self.providers[channel];
        self.faults == Faults::Survivable && provider.is_down_for(self.chain.now) >= super::DOWN_MAX.max(POLL)
    }
}
