//! The gateway's side of one payment channel: books, vouchers, and what must be on disk before a voucher leaves.
//!
//! Before a voucher is sent, a *mark* at or above its ceiling is durable. Marks run ahead, so that most vouchers need
//! no write. After a start of either side each shows the other what it has signed (`assay_protocol::PayerBook`): receipts
//! of the last moment may not have been stored here, and either database may be an older copy.

use crate::ledger::Addresses;
use crate::store::{ChannelRow, Store, StoreError};
use alloy_signer_local::PrivateKeySigner;
use assay_chain::DigestSigner;
use assay_net::{ChannelReport, ChannelRequest, ReceiptReport};
use assay_protocol::{PayerBook, PayerError, PayerRow, PayerState, Shown, StandingFault};
use assay_types::{
    Address, Amount, B256, ChannelConfig, ChannelId, Done, ProviderId, RequestHash, SignatureError, SignedVoucher,
    SigningDomain, Voucher, receipt_domain, settlement_domain,
};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::timeout;

/// A mark runs ahead of the ceiling by the deposit divided by this.
const MARK_AHEAD_DIVISOR: u128 = 256;

/// Signs and knows the domains of one network.
#[derive(Debug)]
pub(crate) struct Purse {
    pub(crate) network: Addresses,
    pub(crate) settlement: SigningDomain,
    pub(crate) receipts: SigningDomain,
    payer: Address,
    signer: DigestSigner,
    withdraw_delay: u64,
}

/// Why a channel pays nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PayError {
    #[error(transparent)]
    Books(#[from] PayerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a provider shows of a channel is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReportFault {
    #[error("its receipt: {0}")]
    Receipt(SignatureError),
    #[error("its receipt is for another channel or request")]
    ReceiptSubject,
    #[error("the voucher that it shows is not this gateway's: {0}")]
    Voucher(SignatureError),
    #[error(transparent)]
    Standing(#[from] StandingFault),
    #[error("its receipt: {0}")]
    Books(PayerError),
}

/// One channel, shared by all requests that it pays for.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) config: ChannelConfig,
    pub(crate) id: ChannelId,
    provider: ProviderId,
    purse: Arc<Purse>,
    store: Store,
    book: Mutex<Book>,
    /// A deposit has arrived.
    funded: Notify,
}

#[derive(Debug)]
struct Book {
    payer: PayerBook,
    /// What was signed last: while streams fit under its ceiling, it is what would be signed again.
    voucher: Option<SignedVoucher>,
}

/// A channel's figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChannelTotal {
    /// Which.
    pub channel_id: ChannelId,
    /// Who is paid.
    pub provider: ProviderId,
    /// On chain.
    pub deposit: Amount,
    /// Highest voucher.
    pub ceiling: Amount,
    /// Sum of what receipts charged.
    pub charged_total: Amount,
    /// Granted to streams whose last receipt is not known.
    pub reserved: Amount,
}

impl Purse {
    pub(crate) fn new(network: Addresses, signer: &PrivateKeySigner, withdraw_delay: u64) -> Self {
        let settlement = settlement_domain(network.chain_id, network.settlement);
        let receipts = receipt_domain(network.chain_id, network.registry);
        let (payer, signer) = (signer.address(), DigestSigner::new(signer));
        Self { network, settlement, receipts, payer, signer, withdraw_delay }
    }

    /// The one channel between this gateway and `provider`.
    pub(crate) fn channel_to(&self, provider: ProviderId) -> ChannelConfig {
        ChannelConfig {
            payer: self.payer,
            payer_authorizer: self.payer,
            receiver: provider.0,
            receiver_authorizer: provider.0,
            token: self.network.token,
            withdraw_delay: self.withdraw_delay,
            salt: B256::ZERO,
        }
    }

    fn sign(&self, voucher: Voucher) -> SignedVoucher {
        SignedVoucher { voucher, signature: self.signer.sign(&voucher.digest(&self.settlement)) }
    }
}

impl Channel {
    /// The channel to `provider` as it was stored, with nothing on chain until [`Self::on_deposit`].
    pub(crate) async fn load(provider: ProviderId, purse: Arc<Purse>, store: Store) -> Result<Self, StoreError> {
        let config = purse.channel_to(provider);
        let id = config.id(&purse.settlement);
        let row = store.channel(id).await?;
        let row = row.map_or_else(PayerRow::default, |row| row.books);
        let book = Book { payer: PayerBook::new(row), voucher: None };
        Ok(Self { config, id, provider, purse, store, book: Mutex::new(book), funded: Notify::new() })
    }

    /// Whether the chain has a withdrawal from it that was begun and not ended.
    pub(crate) fn on_withdrawal(&self, is_withdrawing: bool) {
        self.book().payer.on_withdrawal(is_withdrawing);
    }

    pub(crate) fn is_withdrawing(&self) -> bool {
        self.book().payer.is_withdrawing()
    }

    /// Whether requests can be sent: funded, reconciled, and not too many loose ends.
    pub(crate) fn is_ready(&self) -> bool {
        self.book().payer.is_ready()
    }

    /// Whether less than half of `deposit` is free.
    pub(crate) fn is_low(&self, deposit: Amount) -> bool {
        self.book().payer.channel().available().0 < deposit.0.div_ceil(2)
    }

    pub(crate) fn on_deposit(&self, deposit: Amount) {
        self.book().payer.on_deposit(deposit);
        self.funded.notify_waiters();
    }

    /// Opens a stream; the voucher goes out with the job.
    pub(crate) async fn open(&self, request: RequestHash, grant: Amount) -> Result<SignedVoucher, PayError> {
        let ceiling = self.book().payer.open(request, grant)?;
        let voucher = self.voucher(ceiling).await;
        if voucher.is_err() {
            // Nothing was sent: the stream never was.
            self.close(request);
        }
        voucher
    }

    /// Pays a running stream up to `granted_total`. If the deposit does not cover it, the top-up that is on its way
    /// is waited for, up to `patience`.
    pub(crate) async fn pay(
        &self,
        request: RequestHash,
        granted_total: Amount,
        patience: Duration,
    ) -> Result<SignedVoucher, PayError> {
        // Listens before it looks, so that a deposit in between is not missed.
        let mut funded = pin!(self.funded.notified());
        funded.as_mut().enable();
        let mut ceiling = self.book().payer.pay(request, granted_total);
        if matches!(ceiling, Err(PayerError::DepositTooSmall { .. })) && timeout(patience, funded).await.is_ok() {
            ceiling = self.book().payer.pay(request, granted_total);
        }
        self.voucher(ceiling?).await
    }

    /// Books a receipt whose signature and content were checked.
    pub(crate) fn on_receipt(&self, done: &Done) -> Result<(), PayerError> {
        self.book().payer.on_receipt(done)
    }

    /// Ends a stream whose last receipt is booked, or that never began.
    pub(crate) fn close(&self, request: RequestHash) {
        // A stream that is not open has nothing to free.
        let _ = self.book().payer.close(request);
    }

    /// Keeps a stream's reservation until the provider says what it charged.
    pub(crate) fn lose(&self, request: RequestHash) {
        self.book().payer.lose(request);
    }

    /// A stream to ask about, if any.
    pub(crate) fn next_lost(&self) -> Option<RequestHash> {
        self.book().payer.next_lost()
    }

    pub(crate) fn is_reconciled(&self) -> bool {
        self.book().payer.is_reconciled()
    }

    /// What this gateway shows of the channel: a provider that lost something takes it from there.
    pub(crate) fn show(&self) -> ChannelRequest {
        let (ceiling, latest) = {
            let book = self.book();
            (book.payer.ceiling_to_show(), book.payer.latest().copied())
        };
        ChannelRequest { config: self.config, voucher: Some(self.signed(ceiling)), latest }
    }

    /// Takes over what the provider holds, once after each start, while nothing runs.
    pub(crate) fn reconcile(&self, report: &ChannelReport) -> Result<(), ReportFault> {
        if let Some(latest) = &report.latest {
            self.check(latest)?;
        }
        let ceiling = match &report.voucher {
            Some(signed) if signed.voucher.channel_id != self.id => return Err(ReportFault::ReceiptSubject),
            Some(signed) => {
                signed.verify(&self.purse.settlement, self.purse.payer).map_err(ReportFault::Voucher)?;
                Some(signed.voucher.max_claimable_amount)
            }
            None => None,
        };
        Ok(self.book().payer.reconcile(&Shown { latest: report.latest, ceiling })?)
    }

    /// Takes over what the provider says about a lost stream; `false` while it still runs there.
    pub(crate) fn settle_lost(&self, request: RequestHash, report: &ReceiptReport) -> Result<bool, ReportFault> {
        if report.is_running {
            return Ok(false);
        }
        let checked = report.last.map_or(Ok(()), |done| match done.receipt.receipt.request_hash == request {
            true => self.check(&done),
            false => Err(ReportFault::ReceiptSubject),
        });
        // Right or wrong, it is the provider's last word.
        let last = report.last.filter(|_| checked.is_ok());
        self.book().payer.settle_lost(request, last.as_ref()).map_err(ReportFault::Books)?;
        checked.map(|()| true)
    }

    fn check(&self, done: &Done) -> Result<(), ReportFault> {
        if done.receipt.receipt.channel_id != self.id {
            return Err(ReportFault::ReceiptSubject);
        }
        done.receipt.verify(&self.purse.receipts, self.provider).map_err(ReportFault::Receipt)
    }

    /// What to store.
    pub(crate) fn row(&self) -> ChannelRow {
        ChannelRow { channel_id: self.id, provider: self.provider, books: self.book().payer.row() }
    }

    pub(crate) fn total(&self) -> ChannelTotal {
        let book = self.book();
        let PayerState { deposit, ceiling, charged_total } = book.payer.channel().state();
        let reserved = book.payer.channel().reserved();
        ChannelTotal { channel_id: self.id, provider: self.provider, deposit, ceiling, charged_total, reserved }
    }

    async fn voucher(&self, ceiling: Amount) -> Result<SignedVoucher, PayError> {
        let mark = {
            let book = self.book();
            let ahead = Amount(book.payer.channel().state().deposit.0 / MARK_AHEAD_DIVISOR);
            book.payer.mark_for(ceiling, ahead)
        };
        if let Some(mark) = mark {
            let row = self.row();
            self.store.put_channel(ChannelRow { books: PayerRow { mark, ..row.books }, ..row }).await?;
            self.book().payer.on_marked(mark);
        }
        Ok(self.signed(ceiling))
    }

    fn signed(&self, ceiling: Amount) -> SignedVoucher {
        let voucher = Voucher { channel_id: self.id, max_claimable_amount: ceiling };
        let last = self.book().voucher.filter(|last| last.voucher == voucher);
        last.unwrap_or_else(|| {
            let signed = self.purse.sign(voucher);
            self.book().voucher = Some(signed);
            signed
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Held for a few lines that do not panic; if one did, the books would still add up.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
