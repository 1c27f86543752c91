//! The payer's books of one channel: what has to be durable, and how they are put right after a restart.
//!
//! Before a voucher is sent, a *mark* at or above its ceiling is durable. Receipts are stored later, with the answers
//! that they are for, so a stored state may lack the last moments; a copy from a backup lacks more. What is missing is
//! shown by the other side, signed: the receiver shows its latest receipt, and to the payer alone the payer's own highest
//! voucher; the payer shows the receiver the latest receipt that it has. Each takes over what it has signed itself, so
//! nobody has to be believed.

use crate::{PayerChannel, PayerError, PayerState};
use assay_types::{Amount, Done, RequestHash};

/// Streams whose last receipt is still to be asked for; beyond it the channel takes nothing new.
const LOST_MAX: usize = 256;

/// What is stored of a channel by its payer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PayerRow {
    /// No voucher above this was ever sent.
    pub mark: Amount,
    /// Sum over all requests of their latest receipt's `charged`.
    pub charged_total: Amount,
    /// The receipt with the highest total for the channel.
    pub latest: Option<Done>,
}

/// What a receiver shows of a channel. The caller has checked the signatures: the receiver's on the receipt, the payer's
/// own on the voucher.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    /// Its latest receipt; none if it knows of no charge.
    pub latest: Option<Done>,
    /// The ceiling of the highest voucher that it has; none if it shows none.
    pub ceiling: Option<Amount>,
}

/// What a receiver shows cannot be true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StandingFault {
    /// It charges more than it was ever promised.
    #[error("it charges {found}, but no voucher above {mark} was sent; is this the right database?")]
    AboveMark {
        /// By its receipt.
        found: Amount,
        /// Durable bound of what was sent, or the voucher that it shows.
        mark: Amount,
    },
    /// The books do not take it.
    #[error(transparent)]
    Books(#[from] PayerError),
}

/// The payer's books of one channel.
///
/// Invariants: no voucher above `mark` leaves; nothing is opened before the receiver has shown what it holds.
#[derive(Clone, Debug, Default)]
pub struct PayerBook {
    /// What may be signed.
    channel: PayerChannel,
    mark: Amount,
    latest: Option<Done>,
    is_reconciled: bool,
    /// The deposit is on its way back: receivers take nothing more from it.
    is_withdrawing: bool,
    /// Streams whose connection broke: they may have been charged for.
    lost: Vec<RequestHash>,
}

impl PayerBook {
    /// The books as they were stored; nothing is deposited until [`Self::on_deposit`].
    #[must_use]
    pub fn new(row: PayerRow) -> Self {
        let PayerRow { mark, charged_total, latest } = row;
        let state = PayerState { deposit: Amount::ZERO, ceiling: charged_total, charged_total };
        Self { channel: PayerChannel::new(state), mark, latest, ..Self::default() }
    }

    /// What to store.
    #[must_use]
    pub fn row(&self) -> PayerRow {
        PayerRow { mark: self.mark, charged_total: self.channel.state().charged_total, latest: self.latest }
    }

    /// The channel below the books.
    #[must_use]
    pub fn channel(&self) -> &PayerChannel {
        &self.channel
    }

    /// The deposit as the chain has it now.
    pub fn on_deposit(&mut self, deposit: Amount) {
        self.channel.on_deposit(deposit);
    }

    /// Whether the chain has a withdrawal of the deposit that was begun and not ended.
    pub fn on_withdrawal(&mut self, is_withdrawing: bool) {
        self.is_withdrawing = is_withdrawing;
    }

    /// Whether the payer has begun to take the deposit back.
    #[must_use]
    pub fn is_withdrawing(&self) -> bool {
        self.is_withdrawing
    }

    /// Whether requests can be sent: funded, for longer, reconciled, and not too many loose ends.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.is_reconciled
            && !self.is_withdrawing
            && self.channel.available() > Amount::ZERO
            && self.lost.len() < LOST_MAX
    }

    /// Whether the receiver has shown what it holds since this value was made.
    #[must_use]
    pub fn is_reconciled(&self) -> bool {
        self.is_reconciled
    }

    /// See [`PayerChannel::open`].
    ///
    /// # Errors
    /// As there.
    pub fn open(&mut self, request: RequestHash, grant: Amount) -> Result<Amount, PayerError> {
        self.channel.open(request, grant)
    }

    /// See [`PayerChannel::pay`].
    ///
    /// # Errors
    /// As there.
    pub fn pay(&mut self, request: RequestHash, granted_total: Amount) -> Result<Amount, PayerError> {
        self.channel.pay(request, granted_total)
    }

    /// The mark that has to be durable before a voucher of `ceiling` is sent; none if it is. It is higher by `ahead`,
    /// so that most vouchers need no write, and by no more than the deposit.
    #[must_use]
    pub fn mark_for(&self, ceiling: Amount, ahead: Amount) -> Option<Amount> {
        let deposit = self.channel.state().deposit;
        (ceiling > self.mark).then(|| ceiling.saturating_add(ahead).min(deposit).max(ceiling))
    }

    /// `mark` is durable.
    pub fn on_marked(&mut self, mark: Amount) {
        self.mark = self.mark.max(mark);
    }

    /// Books a receipt whose signature and content were checked.
    ///
    /// # Errors
    /// [`PayerError`]; nothing changes then.
    pub fn on_receipt(&mut self, done: &Done) -> Result<(), PayerError> {
        self.channel.on_receipt(&done.receipt.receipt)?;
        self.keep(done);
        Ok(())
    }

    /// See [`PayerChannel::close`].
    ///
    /// # Errors
    /// As there.
    pub fn close(&mut self, request: RequestHash) -> Result<Amount, PayerError> {
        self.channel.close(request)
    }

    /// Keeps a stream's reservation until the receiver says what it charged.
    pub fn lose(&mut self, request: RequestHash) {
        self.lost.push(request);
    }

    /// A stream to ask about, if any.
    #[must_use]
    pub fn next_lost(&self) -> Option<RequestHash> {
        self.lost.first().copied()
    }

    /// Takes over the receiver's last word about a stream that was lost, a checked receipt or none. Right or wrong, the
    /// stream is over then: asking again changes nothing, and nobody can claim more than was signed for.
    ///
    /// # Errors
    /// The receipt charges what was not granted. The stream is over nevertheless.
    pub fn settle_lost(&mut self, request: RequestHash, last: Option<&Done>) -> Result<(), PayerError> {
        let booked = last.map_or(Ok(()), |done| self.on_receipt(done));
        self.lost.retain(|&lost| lost != request);
        let _ = self.channel.close(request);
        booked
    }

    /// The ceiling of the voucher to show the receiver, which may have forgotten it: the highest that was signed, as
    /// far as is known.
    #[must_use]
    pub fn ceiling_to_show(&self) -> Amount {
        self.channel.state().ceiling
    }

    /// The receipt to show the receiver, which may have forgotten it.
    #[must_use]
    pub fn latest(&self) -> Option<&Done> {
        self.latest.as_ref()
    }

    /// Takes over what the receiver shows. The first time, while nothing runs, also what these books lack: a total up to
    /// what was promised, by the mark or by a voucher that is shown.
    ///
    /// # Errors
    /// [`StandingFault`]; the books are not ready then.
    pub fn reconcile(&mut self, shown: &Shown) -> Result<(), StandingFault> {
        if self.is_reconciled {
            return Ok(());
        }
        let mark = self.mark.max(shown.ceiling.unwrap_or_default());
        if let Some(latest) = &shown.latest {
            let found = latest.receipt.receipt.charged_total;
            if found > mark {
                return Err(StandingFault::AboveMark { found, mark });
            }
            self.channel.adopt_ceiling(found);
            self.channel.adopt_total(found)?;
            self.keep(latest);
        }
        self.channel.adopt_ceiling(shown.ceiling.unwrap_or_default());
        self.mark = mark;
        self.is_reconciled = true;
        Ok(())
    }

    fn keep(&mut self, done: &Done) {
        let total = |done: &Done| done.receipt.receipt.charged_total;
        if self.latest.as_ref().is_none_or(|latest| total(done) > total(latest)) {
            self.latest = Some(*done);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use assay_types::{ChannelId, Finish, ModelId, Receipt, Signature, SignedReceipt, response_hash};

    fn receipt(request: u8, charged: u128, charged_total: u128) -> Done {
        let receipt = Receipt {
            channel_id: ChannelId::default(),
            request_hash: RequestHash([request; 32].into()),
            response_hash: response_hash(&[], Finish::Open),
            model_id: ModelId::default(),
            prompt_tokens: 0,
            output_tokens: 0,
            charged: Amount(charged),
            charged_total: Amount(charged_total),
            issued_at: 0,
        };
        Done { receipt: SignedReceipt { receipt, signature: Signature([0; 65]) }, finish: Finish::Open }
    }

    fn book(mark: u128, charged_total: u128) -> PayerBook {
        let mut book =
            PayerBook::new(PayerRow { mark: Amount(mark), charged_total: Amount(charged_total), latest: None });
        book.on_deposit(Amount(1_000));
        book
    }

    #[test]
    fn a_total_is_taken_over_up_to_the_mark_or_the_voucher_that_is_shown() {
        let check = |mark, ceiling: Option<u128>, total, expect: Result<u128, StandingFault>| {
            let mut book = book(mark, 10);
            let shown = Shown { latest: Some(receipt(1, 5, total)), ceiling: ceiling.map(Amount) };
            let reconciled = book.reconcile(&shown);
            assert_eq!(reconciled.map(|()| book.row().charged_total.0), expect, "{mark} {ceiling:?} {total}");
            assert_eq!((book.is_ready(), book.is_reconciled()), (expect.is_ok(), expect.is_ok()));
        };
        let above = |found, mark| Err(StandingFault::AboveMark { found: Amount(found), mark: Amount(mark) });
        check(60, None, 60, Ok(60));
        check(60, None, 61, above(61, 60));
        check(60, Some(80), 80, Ok(80));
        check(60, Some(80), 81, above(81, 80));
        // The receiver forgot more than the payer.
        check(60, None, 3, Ok(10));
    }

    #[test]
    fn vouchers_go_on_from_what_was_shown_and_marks_run_ahead() {
        let mut book = book(0, 0);
        book.reconcile(&Shown { latest: Some(receipt(1, 5, 70)), ceiling: Some(Amount(100)) }).unwrap();
        assert_eq!((book.ceiling_to_show(), book.latest()), (Amount(100), Some(&receipt(1, 5, 70))));
        let request = RequestHash([2; 32].into());
        assert_eq!(book.open(request, Amount(20)), Ok(Amount(100)));
        assert_eq!(book.mark_for(Amount(100), Amount(50)), None);
        assert_eq!(book.mark_for(Amount(101), Amount(50)), Some(Amount(151)));
        assert_eq!(book.mark_for(Amount(990), Amount(50)), Some(Amount(1_000)));
        assert_eq!(book.mark_for(Amount(1_001), Amount(50)), Some(Amount(1_001)));
        book.on_marked(Amount(151));
        assert_eq!(book.row().mark, Amount(151));
        // A second look changes nothing any more: the books are right while this process runs.
        book.reconcile(&Shown { latest: Some(receipt(9, 5, 500)), ceiling: None }).unwrap();
        assert_eq!(book.row().charged_total, Amount(70));
    }

    #[test]
    fn a_lost_stream_is_reserved_until_the_last_word_about_it() {
        let mut book = book(1_000, 0);
        book.reconcile(&Shown::default()).unwrap();
        for (n, last, charged) in [(1, None, 0), (2, Some(receipt(2, 30, 30)), 30), (3, Some(receipt(3, 65, 95)), 30)] {
            let request = RequestHash([n; 32].into());
            book.open(request, Amount(64)).unwrap();
            book.lose(request);
            assert_eq!((book.next_lost(), book.channel().reserved()), (Some(request), Amount(64)));
            assert_eq!(book.settle_lost(request, last.as_ref()).is_ok(), n != 3);
            assert_eq!((book.next_lost(), book.channel().reserved()), (None, Amount::ZERO));
            assert_eq!(book.row().charged_total, Amount(charged));
        }
    }
}
