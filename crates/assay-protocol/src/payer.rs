//! The payer's side of one channel: which ceiling it may sign next.
//!
//! The ceiling covers what was charged plus what open streams may still charge, and nothing else, so a receiver that
//! claims more than it earned gains at most the running reservations: one chunk a stream. A stream that ended below
//! its reservation leaves room under the ceiling, which the next stream uses before the ceiling grows.

use crate::STREAMS_MAX;
use assay_types::{Amount, Receipt, RequestHash};
use std::collections::BTreeMap;

/// What is stored across restarts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PayerState {
    /// What the channel holds on chain; claimed tokens stay counted.
    pub deposit: Amount,
    /// Highest ceiling that was signed.
    pub ceiling: Amount,
    /// Sum over all requests of their latest receipt's `charged`.
    pub charged_total: Amount,
}

/// Why the payer signs or accepts nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PayerError {
    /// The deposit does not cover it.
    #[error("the deposit of {deposit} does not cover a ceiling of {needed}")]
    DepositTooSmall {
        /// On chain.
        deposit: Amount,
        /// Ceiling that would be needed.
        needed: Amount,
    },
    /// The request has a stream on this channel already.
    #[error("request {0} is open on this channel")]
    AlreadyOpen(RequestHash),
    /// The request has no stream on this channel.
    #[error("request {0} is not open on this channel")]
    NotOpen(RequestHash),
    /// [`STREAMS_MAX`] streams are open.
    #[error("the channel carries {STREAMS_MAX} streams already")]
    TooManyStreams,
    /// A receipt charges more for its request than was granted to it.
    #[error("charged {charged}, but {granted} was granted")]
    AboveGrant {
        /// By the receipt.
        charged: Amount,
        /// By the payer.
        granted: Amount,
    },
    /// A receipt's total for the channel is more than everything that was granted on it.
    #[error("the channel's total of {charged_total} is above the {bound} that was granted")]
    TotalAboveGrants {
        /// By the receipt.
        charged_total: Amount,
        /// Charges of ended streams and grants of open ones.
        bound: Amount,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    granted: Amount,
    charged: Amount,
}

/// The payer's side of one channel.
///
/// Invariants: what is signed is at most the deposit; `charged_total + reserved <= ceiling`; a stream's `charged <= granted`.
#[derive(Clone, Debug, Default)]
pub struct PayerChannel {
    state: PayerState,
    /// Sum over open streams of `granted - charged`.
    reserved: Amount,
    /// The highest total of a receipt.
    proven: Amount,
    streams: BTreeMap<RequestHash, Stream>,
}

impl PayerChannel {
    /// A channel as it was stored, or a new one with only a deposit. No stream is open.
    #[must_use]
    pub fn new(state: PayerState) -> Self {
        let ceiling = state.ceiling.max(state.charged_total);
        Self { state: PayerState { ceiling, ..state }, ..Self::default() }
    }

    /// What to store.
    #[must_use]
    pub fn state(&self) -> PayerState {
        self.state
    }

    /// What open streams may still charge.
    #[must_use]
    pub fn reserved(&self) -> Amount {
        self.reserved
    }

    /// Streams that are open, lost ones included.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// What could still be reserved.
    #[must_use]
    pub fn available(&self) -> Amount {
        self.state.deposit.saturating_sub(self.state.charged_total.saturating_add(self.reserved))
    }

    /// The deposit as the chain has it now.
    pub fn on_deposit(&mut self, deposit: Amount) {
        self.state.deposit = deposit;
    }

    /// Opens a stream with its first grant; returns the ceiling to sign, which goes out with the job.
    ///
    /// # Errors
    /// The deposit is too small, the request is open already, or too many streams are. Nothing changes then.
    pub fn open(&mut self, request: RequestHash, grant: Amount) -> Result<Amount, PayerError> {
        if self.streams.contains_key(&request) {
            return Err(PayerError::AlreadyOpen(request));
        }
        if self.streams.len() >= STREAMS_MAX {
            return Err(PayerError::TooManyStreams);
        }
        let ceiling = self.reserve(grant)?;
        self.streams.insert(request, Stream { granted: grant, charged: Amount::ZERO });
        Ok(ceiling)
    }

    /// Raises what a stream is granted in total; returns the ceiling to sign. A smaller or equal total changes
    /// nothing, so an answer to the same checkpoint may be sent twice.
    ///
    /// # Errors
    /// The deposit is too small or the stream is not open. Nothing changes then.
    pub fn pay(&mut self, request: RequestHash, granted_total: Amount) -> Result<Amount, PayerError> {
        let stream = *self.streams.get(&request).ok_or(PayerError::NotOpen(request))?;
        let more = granted_total.saturating_sub(stream.granted);
        let ceiling = self.reserve(more)?;
        if let Some(stream) = self.streams.get_mut(&request) {
            stream.granted = stream.granted.max(granted_total);
        }
        Ok(ceiling)
    }

    /// Books a receipt of an open stream, whose signature and content the caller has checked. An older receipt of
    /// the same stream changes nothing.
    ///
    /// # Errors
    /// The stream is not open, or the receipt charges more than was granted: the provider lies. Nothing changes then.
    pub fn on_receipt(&mut self, receipt: &Receipt) -> Result<(), PayerError> {
        let request = receipt.request_hash;
        let stream = *self.streams.get(&request).ok_or(PayerError::NotOpen(request))?;
        if receipt.charged > stream.granted {
            return Err(PayerError::AboveGrant { charged: receipt.charged, granted: stream.granted });
        }
        let bound = self.state.charged_total.saturating_add(self.reserved);
        if receipt.charged_total > bound {
            return Err(PayerError::TotalAboveGrants { charged_total: receipt.charged_total, bound });
        }
        self.proven = self.proven.max(receipt.charged_total);
        let more = receipt.charged.saturating_sub(stream.charged);
        self.state.charged_total = self.state.charged_total.saturating_add(more);
        self.reserved = self.reserved.saturating_sub(more);
        if let Some(stream) = self.streams.get_mut(&request) {
            stream.charged = stream.charged.max(receipt.charged);
        }
        Ok(())
    }

    /// Ends a stream: what it was granted and not charged is free again.
    ///
    /// Call it when the provider has said what the stream's last receipt is (or that there is none). A stream whose
    /// connection broke stays open until then: the provider may have charged for it.
    ///
    /// # Errors
    /// The stream is not open.
    pub fn close(&mut self, request: RequestHash) -> Result<Amount, PayerError> {
        let stream = self.streams.remove(&request).ok_or(PayerError::NotOpen(request))?;
        self.reserved = self.reserved.saturating_sub(stream.granted.saturating_sub(stream.charged));
        // A receiver that went on from an older database has no receipt for this stream, but its total may have it.
        let unexplained = self.proven.saturating_sub(self.reserved);
        self.state.charged_total = self.state.charged_total.max(unexplained);
        Ok(stream.charged)
    }

    /// Takes over a total that the provider has signed, after a restart in which receipts may have been lost. Only
    /// with no stream open; never more than the ceiling, which is all that the provider can claim.
    ///
    /// # Errors
    /// A stream is open, or the total is above the ceiling. Nothing changes then.
    pub fn adopt_total(&mut self, charged_total: Amount) -> Result<(), PayerError> {
        if let Some((request, _)) = self.streams.first_key_value() {
            return Err(PayerError::AlreadyOpen(*request));
        }
        if charged_total > self.state.ceiling {
            return Err(PayerError::TotalAboveGrants { charged_total, bound: self.state.ceiling });
        }
        self.state.charged_total = self.state.charged_total.max(charged_total);
        self.proven = self.proven.max(charged_total);
        Ok(())
    }

    /// Takes over a ceiling that this payer has signed and forgotten (the caller has checked its own signature).
    pub fn adopt_ceiling(&mut self, ceiling: Amount) {
        self.state.ceiling = self.state.ceiling.max(ceiling);
    }

    fn reserve(&mut self, more: Amount) -> Result<Amount, PayerError> {
        let deposit = self.state.deposit;
        let too_small = |needed| PayerError::DepositTooSmall { deposit, needed };
        let reserved = self.reserved.checked_add(more).ok_or(too_small(Amount(u128::MAX)))?;
        let needed = self.state.charged_total.checked_add(reserved).ok_or(too_small(Amount(u128::MAX)))?;
        if needed > deposit {
            return Err(too_small(needed));
        }
        self.reserved = reserved;
        self.state.ceiling = self.state.ceiling.max(needed);
        // A ceiling that was signed before a withdrawal may be above the deposit; it is not signed again.
        Ok(self.state.ceiling.min(deposit))
    }
}
