//! One job while it is served: which tokens may be sent, when a receipt is due, what is billed when it is cut.
//!
//! A plain struct; the caller feeds it tokens and payments and does what [`ServedStream::next`] says. Invariants:
//! `signed <= paid`, `signed <= sent <= signed + chunk`: no token beyond one unpaid chunk is ever sent, and a receipt
//! covers only tokens that were sent and paid.

use crate::StreamTerms;
use assay_types::{Amount, Finish, TokenId};
use std::ops::Range;

/// A job on the provider's side. See the module.
#[derive(Clone, Debug)]
pub struct ServedStream {
    terms: StreamTerms,
    /// Output tokens under one receipt at most.
    chunk: usize,
    /// Output tokens that the highest grant pays for.
    paid: usize,
    /// Everything that was taken from the engine.
    output: Vec<TokenId>,
    sent: usize,
    /// Output tokens under the latest checkpoint.
    signed: usize,
    /// How the engine ended the output.
    ended: Option<Finish>,
}

/// What has to be done next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Send these output tokens, then call `on_sent`.
    Send(Range<usize>),
    /// Sign and send a checkpoint for so many output tokens, then call `on_checkpoint`.
    Checkpoint(usize),
    /// Sign and send the final receipt for everything.
    Finish(Finish),
    /// Wait for the engine.
    AwaitTokens,
    /// Wait for a payment; the engine waits, too.
    AwaitPay,
}

/// What is billed for a stream that does not run to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bill {
    /// A final receipt for so many output tokens.
    Tokens(usize),
    /// The last checkpoint covers everything that can be billed. A second receipt for as many tokens with another
    /// finish would look like equivocation.
    LastCheckpoint,
}

impl ServedStream {
    /// A stream with its first grant; see [`assay_types::Job::chunk_tokens`].
    #[must_use]
    pub fn new(terms: StreamTerms, granted: Amount, chunk: u32) -> Self {
        let mut stream =
            Self { terms, chunk: chunk as usize, paid: 0, output: Vec::new(), sent: 0, signed: 0, ended: None };
        stream.on_pay(granted);
        stream
    }

    /// Everything that was taken from the engine.
    #[must_use]
    pub fn output(&self) -> &[TokenId] {
        &self.output
    }

    /// How the engine ended the output, once all of it was taken.
    #[must_use]
    pub fn ended(&self) -> Option<Finish> {
        self.ended
    }

    /// `granted` is the total for this request.
    pub fn on_pay(&mut self, granted: Amount) {
        let paid = self.terms.paid_tokens(granted).unwrap_or(0);
        self.paid = self.paid.max(usize::try_from(paid).unwrap_or(usize::MAX));
    }

    /// A further token of the output.
    ///
    /// # Panics
    /// If the output has ended: the engine sends nothing after that.
    pub fn on_token(&mut self, token: TokenId) {
        assert!(self.ended.is_none(), "the engine sends nothing after the end");
        self.output.push(token);
    }

    /// The whole output of a job for vectors.
    ///
    /// # Panics
    /// If there is some already.
    pub fn on_vectors(&mut self, values: Vec<TokenId>) {
        assert!(self.ended.is_none() && self.output.is_empty(), "vectors come once");
        self.output = values;
        self.ended = Some(Finish::Length);
    }

    /// The engine has ended the output.
    pub fn on_end(&mut self, finish: Finish) {
        self.ended = Some(finish);
    }

    /// What [`Step::Send`] said was done.
    ///
    /// # Panics
    /// If it is another range.
    pub fn on_sent(&mut self, tokens: &Range<usize>) {
        assert!(tokens.start == self.sent && tokens.end <= self.output.len(), "tokens are sent once, in order");
        self.sent = tokens.end;
    }

    /// What [`Step::Checkpoint`] said was done.
    ///
    /// # Panics
    /// If it covers what was not sent or not paid.
    pub fn on_checkpoint(&mut self, output_tokens: usize) {
        assert!(output_tokens <= self.paid && output_tokens <= self.sent, "a receipt covers what was sent and paid");
        self.signed = output_tokens;
    }

    /// What to do now.
    #[must_use]
    pub fn next(&self) -> Step {
        let boundary = self.signed.saturating_add(self.chunk);
        let sendable = self.output.len().min(boundary);
        if self.sent < sendable {
            return Step::Send(self.sent..sendable);
        }
        // Only a further token shows that the output goes on; otherwise the final receipt is the one for this count.
        if self.output.len() > boundary {
            return if self.paid >= boundary { Step::Checkpoint(boundary) } else { Step::AwaitPay };
        }
        match self.ended {
            Some(finish) if self.paid >= self.output.len() => Step::Finish(finish),
            Some(_) => Step::AwaitPay,
            None => Step::AwaitTokens,
        }
    }

    /// What to bill if the stream is cut now.
    #[must_use]
    pub fn bill(&self) -> Bill {
        let billed = self.sent.min(self.paid);
        if self.signed > 0 && billed <= self.signed { Bill::LastCheckpoint } else { Bill::Tokens(billed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_types::{CHUNK_TOKENS, Prices};

    fn stream(output_tokens_max: u64) -> ServedStream {
        let prices = Prices { input_per_million: Amount(0), output_per_million: Amount(1_000_000) };
        let terms = StreamTerms { prices, input_tokens: 3, output_tokens_max };
        ServedStream::new(terms, terms.grant_after(0), CHUNK_TOKENS)
    }

    fn produce(stream: &mut ServedStream, count: usize) {
        (0..count).for_each(|i| stream.on_token(i as TokenId));
    }

    /// Does what it says until it waits or ends; returns the last step and the checkpoints on the way.
    fn drive(stream: &mut ServedStream) -> (Step, Vec<usize>) {
        let mut checkpoints = Vec::new();
        loop {
            match stream.next() {
                Step::Send(tokens) => stream.on_sent(&tokens),
                Step::Checkpoint(count) => {
                    stream.on_checkpoint(count);
                    checkpoints.push(count);
                }
                last => return (last, checkpoints),
            }
        }
    }

    #[test]
    fn an_output_of_exactly_one_chunk_has_no_checkpoint() {
        let mut stream = stream(200);
        produce(&mut stream, 64);
        assert_eq!(drive(&mut stream), (Step::AwaitTokens, vec![]));
        stream.on_end(Finish::Stop);
        assert_eq!(drive(&mut stream), (Step::Finish(Finish::Stop), vec![]));
        assert_eq!(stream.bill(), Bill::Tokens(64));
    }

    #[test]
    fn one_chunk_goes_out_unpaid_and_no_token_more() {
        let mut stream = stream(200);
        produce(&mut stream, 65);
        assert_eq!(drive(&mut stream), (Step::AwaitTokens, vec![64]));
        assert_eq!(stream.sent, 65);
        produce(&mut stream, 100);
        assert_eq!(drive(&mut stream), (Step::AwaitPay, vec![]));
        assert_eq!(stream.sent, 128);
        // Not paid on: the checkpoint is the bill, whatever else was sent.
        assert_eq!(stream.bill(), Bill::LastCheckpoint);
        stream.on_pay(Amount(128));
        assert_eq!(drive(&mut stream), (Step::AwaitTokens, vec![128]));
        assert_eq!((stream.sent, stream.bill()), (165, Bill::LastCheckpoint));
        stream.on_end(Finish::Length);
        assert_eq!(drive(&mut stream).0, Step::AwaitPay);
        stream.on_pay(Amount(165));
        assert_eq!(drive(&mut stream), (Step::Finish(Finish::Length), vec![]));
        assert_eq!(stream.bill(), Bill::Tokens(165));
    }

    #[test]
    fn a_cut_bills_what_was_sent_and_paid() {
        let check = |produced: usize, granted: u128, expect: Bill| {
            let mut stream = stream(300);
            stream.on_pay(Amount(granted));
            produce(&mut stream, produced);
            drive(&mut stream);
            assert_eq!(stream.bill(), expect, "{produced} {granted}");
        };
        check(0, 64, Bill::Tokens(0));
        check(1, 64, Bill::Tokens(1));
        check(64, 64, Bill::Tokens(64));
        check(65, 64, Bill::LastCheckpoint);
        check(65, 128, Bill::Tokens(65));
        check(70, 66, Bill::Tokens(66));
        check(128, 128, Bill::Tokens(128));
        check(129, 128, Bill::LastCheckpoint);
    }

    #[test]
    fn vectors_go_out_at_once_under_one_receipt() {
        let prices = Prices { input_per_million: Amount(1_000_000), output_per_million: Amount(0) };
        let terms = StreamTerms { prices, input_tokens: 3, output_tokens_max: 1000 };
        let mut stream = ServedStream::new(terms, Amount(3), u32::MAX);
        assert_eq!(drive(&mut stream), (Step::AwaitTokens, vec![]));
        stream.on_vectors(vec![7; 1000]);
        assert_eq!(stream.next(), Step::Send(0..1000));
        assert_eq!(drive(&mut stream), (Step::Finish(Finish::Length), vec![]));
        assert_eq!(stream.bill(), Bill::Tokens(1000));
    }

    #[test]
    fn a_late_smaller_payment_changes_nothing() {
        let mut stream = stream(300);
        stream.on_pay(Amount(128));
        stream.on_pay(Amount(64));
        produce(&mut stream, 300);
        assert_eq!(drive(&mut stream), (Step::AwaitPay, vec![64, 128]));
    }
}
