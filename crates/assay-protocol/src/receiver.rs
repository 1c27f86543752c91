//! The receiver's side of one channel: what it has been promised, and what it has signed for.
//!
//! A stream runs on what was granted to it out of the highest voucher. The receiver never signs a receipt above a
//! grant, and never accepts grants above the voucher or the deposit, so every receipt can be claimed.

use crate::STREAMS_MAX;
use assay_types::{
    Address, Amount, ChannelConfig, ChannelId, RequestHash, SignatureError, SignedVoucher, SigningDomain,
};
use std::collections::BTreeMap;

/// What does not change about a channel, and who may sign for it.
#[derive(Clone, Debug)]
pub struct ChannelTerms {
    id: ChannelId,
    config: ChannelConfig,
    domain: SigningDomain,
}

/// A voucher whose signature and channel were checked: by [`ChannelTerms::verify`], now or when [`ReceiverChannel`] took it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifiedVoucher(SignedVoucher);

/// Why a voucher promises nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VoucherError {
    /// It is for another channel.
    #[error("the voucher is for channel {found}, not for {expected}")]
    WrongChannel {
        /// This one.
        expected: ChannelId,
        /// In the voucher.
        found: ChannelId,
    },
    /// The payer's side did not sign it.
    #[error("the voucher's {0}")]
    Signature(#[from] SignatureError),
}

impl ChannelTerms {
    /// The channel `config` under the settlement contract of `domain` (`assay_types::settlement_domain`).
    #[must_use]
    pub fn new(config: ChannelConfig, domain: SigningDomain) -> Self {
        Self { id: config.id(&domain), config, domain }
    }

    /// The channel's id.
    #[must_use]
    pub fn id(&self) -> ChannelId {
        self.id
    }

    /// The channel's parties.
    #[must_use]
    pub fn config(&self) -> &ChannelConfig {
        &self.config
    }

    /// Checks that the payer's side signed `voucher` for this channel. As in the contract, `payer` signs where no
    /// `payerAuthorizer` is named. One public-key recovery: about 30 us.
    ///
    /// # Errors
    /// Another channel or another signer.
    pub fn verify(&self, voucher: &SignedVoucher) -> Result<VerifiedVoucher, VoucherError> {
        let found = voucher.voucher.channel_id;
        if found != self.id {
            return Err(VoucherError::WrongChannel { expected: self.id, found });
        }
        let authorizer = self.config.payer_authorizer;
        let signer = if authorizer == Address::ZERO { self.config.payer } else { authorizer };
        voucher.verify(&self.domain, signer)?;
        Ok(VerifiedVoucher(*voucher))
    }
}

impl VerifiedVoucher {
    /// As it was signed.
    #[must_use]
    pub fn signed(&self) -> &SignedVoucher {
        &self.0
    }

    /// Its ceiling.
    #[must_use]
    pub fn ceiling(&self) -> Amount {
        self.0.voucher.max_claimable_amount
    }
}

/// What is stored across restarts, together with the receipts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReceiverState {
    /// The highest voucher, as it was signed.
    pub voucher: Option<SignedVoucher>,
    /// Sum over all requests of their latest receipt's `charged`.
    pub charged_total: Amount,
}

/// Why a stream is not served, or not further.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReceiverError {
    /// The voucher promises more than the channel holds.
    #[error("the voucher's {ceiling} is above the deposit of {deposit}")]
    AboveDeposit {
        /// In the voucher.
        ceiling: Amount,
        /// On chain.
        deposit: Amount,
    },
    /// The vouchers do not cover what streams were granted.
    #[error("the channel needs a ceiling of {needed}, but {covered} is covered")]
    NotCovered {
        /// Charged, reserved and asked for.
        needed: Amount,
        /// The lower one of ceiling and deposit.
        covered: Amount,
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
    /// A receipt would charge more than was granted.
    #[error("{charged} can not be charged: {granted} was granted")]
    AboveGrant {
        /// For the request.
        charged: Amount,
        /// To the request.
        granted: Amount,
    },
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    granted: Amount,
    charged: Amount,
}

/// The receiver's side of one channel.
///
/// Invariants: `charged_total + reserved <= ceiling` and, unless the deposit fell, `<= deposit`; a stream's
/// `charged <= granted`; `charged_total` never falls.
#[derive(Clone, Debug, Default)]
pub struct ReceiverChannel {
    deposit: Amount,
    state: ReceiverState,
    /// Of `charged_total`, what was there when this value was made or was taken over since.
    restored: Amount,
    /// Sum over open streams of `granted - charged`.
    reserved: Amount,
    streams: BTreeMap<RequestHash, Stream>,
}

impl ReceiverChannel {
    /// A channel as it was stored, or a new one ([`ReceiverState::default`]). No stream is open: after a restart
    /// every stream ended at its last checkpoint.
    #[must_use]
    pub fn new(deposit: Amount, state: ReceiverState) -> Self {
        Self { deposit, state, restored: state.charged_total, ..Self::default() }
    }

    /// What to store.
    #[must_use]
    pub fn state(&self) -> ReceiverState {
        self.state
    }

    /// `voucher` if it is, signature included, the one that this channel rests on: it was checked when it was taken.
    #[must_use]
    pub fn recognize(&self, voucher: &SignedVoucher) -> Option<VerifiedVoucher> {
        self.state.voucher.filter(|known| known == voucher).map(VerifiedVoucher)
    }

    /// Highest amount the payer's side has signed.
    #[must_use]
    pub fn ceiling(&self) -> Amount {
        self.state.voucher.map_or(Amount::ZERO, |v| v.voucher.max_claimable_amount)
    }

    /// What open streams may still charge.
    #[must_use]
    pub fn reserved(&self) -> Amount {
        self.reserved
    }

    /// What the chain held when it was last asked.
    #[must_use]
    pub fn deposit(&self) -> Amount {
        self.deposit
    }

    /// Streams that are open.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// The deposit as the chain has it now. A fall leaves running grants as they are and stops further ones.
    pub fn on_deposit(&mut self, deposit: Amount) {
        self.deposit = deposit;
    }

    /// Takes over a total that this receiver signed before it went on from an older state; what it charged since
    /// comes on top. The caller has checked its own signature, and that its receipts do not have this one.
    pub fn adopt_total(&mut self, signed_total: Amount) {
        let more = signed_total.saturating_sub(self.restored);
        self.restored = self.restored.max(signed_total);
        self.state.charged_total = self.state.charged_total.saturating_add(more);
    }

    /// Keeps a voucher that was shown and pays for nothing new.
    pub fn adopt_voucher(&mut self, voucher: &VerifiedVoucher) {
        if self.state.voucher.is_none() || voucher.ceiling() > self.ceiling() {
            self.state.voucher = Some(*voucher.signed());
        }
    }

    /// Opens a stream that may charge up to `grant`.
    ///
    /// # Errors
    /// [`ReceiverError`]; nothing changes then.
    pub fn open(
        &mut self,
        request: RequestHash,
        voucher: &VerifiedVoucher,
        grant: Amount,
    ) -> Result<(), ReceiverError> {
        if self.streams.contains_key(&request) {
            return Err(ReceiverError::AlreadyOpen(request));
        }
        if self.streams.len() >= STREAMS_MAX {
            return Err(ReceiverError::TooManyStreams);
        }
        self.reserve(voucher, grant)?;
        self.streams.insert(request, Stream { granted: grant, charged: Amount::ZERO });
        Ok(())
    }

    /// Raises what a stream may charge in total; returns the total. A smaller one changes nothing, so a payment may
    /// arrive twice or late.
    ///
    /// # Errors
    /// [`ReceiverError`]; nothing changes then.
    pub fn pay(
        &mut self,
        request: RequestHash,
        voucher: &VerifiedVoucher,
        granted_total: Amount,
    ) -> Result<Amount, ReceiverError> {
        let stream = *self.streams.get(&request).ok_or(ReceiverError::NotOpen(request))?;
        self.reserve(voucher, granted_total.saturating_sub(stream.granted))?;
        let granted = stream.granted.max(granted_total);
        if let Some(stream) = self.streams.get_mut(&request) {
            stream.granted = granted;
        }
        Ok(granted)
    }

    /// Books what a receipt charges for its request so far; returns `chargedTotal` for that receipt. A smaller
    /// charge than before changes nothing.
    ///
    /// # Errors
    /// [`ReceiverError`]; nothing changes then.
    pub fn charge(&mut self, request: RequestHash, charged: Amount) -> Result<Amount, ReceiverError> {
        let stream = self.streams.get_mut(&request).ok_or(ReceiverError::NotOpen(request))?;
        if charged > stream.granted {
            return Err(ReceiverError::AboveGrant { charged, granted: stream.granted });
        }
        let more = charged.saturating_sub(stream.charged);
        stream.charged = stream.charged.max(charged);
        self.reserved = self.reserved.saturating_sub(more);
        self.state.charged_total = self.state.charged_total.saturating_add(more);
        Ok(self.state.charged_total)
    }

    /// Ends a stream; returns what it charged.
    ///
    /// # Errors
    /// The stream is not open.
    pub fn close(&mut self, request: RequestHash) -> Result<Amount, ReceiverError> {
        let stream = self.streams.remove(&request).ok_or(ReceiverError::NotOpen(request))?;
        self.reserved = self.reserved.saturating_sub(stream.granted.saturating_sub(stream.charged));
        Ok(stream.charged)
    }

    fn reserve(&mut self, voucher: &VerifiedVoucher, more: Amount) -> Result<(), ReceiverError> {
        if voucher.ceiling() > self.deposit {
            return Err(ReceiverError::AboveDeposit { ceiling: voucher.ceiling(), deposit: self.deposit });
        }
        let ceiling = self.ceiling().max(voucher.ceiling());
        let covered = ceiling.min(self.deposit);
        let needed = self.state.charged_total.saturating_add(self.reserved).saturating_add(more);
        if needed > covered {
            return Err(ReceiverError::NotCovered { needed, covered });
        }
        self.adopt_voucher(voucher);
        self.reserved = self.reserved.saturating_add(more);
        Ok(())
    }
}
