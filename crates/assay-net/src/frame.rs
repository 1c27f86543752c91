//! The frames. `Serialize` here is the wire format: a change of any type bumps [`PROTOCOL_VERSION`].

use assay_types::{
    Amount, B256, ChannelConfig, Done, Job, Prices, ProviderId, RequestHash, SignedOffer, SignedReceipt, SignedVoucher,
    TokenId, TokenLogprobs,
};
use serde::{Deserialize, Serialize};

/// Version of everything in this module but the two hellos, which never change.
pub const PROTOCOL_VERSION: u16 = 2;

/// Longest [`Refused::message`] that is sent, in bytes.
pub const MESSAGE_LEN_MAX: usize = 512;

/// From the client's side (a gateway).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ClientFrame {
    /// First frame of a connection.
    Hello(Hello),
    /// Asks for [`ProviderFrame::Offer`].
    OfferRequest,
    /// Shows what the payer holds of a channel and asks for [`ProviderFrame::Channel`], what the provider holds of it.
    /// Answered only between jobs.
    ChannelRequest(Box<ChannelRequest>),
    /// Asks for [`ProviderFrame::Receipt`]: the latest receipt of a request whose stream broke.
    ReceiptRequest(RequestHash),
    /// Asks to run a job; one at a time on a connection.
    Open(Box<Open>),
    /// Pays for the next chunk of the running job.
    Pay(Pay),
    /// Ends the running job; what was produced is receipted and billed, and [`ProviderFrame::Done`] follows.
    /// Ignored when no job runs: the last one may have ended while this was on its way.
    Cancel,
    /// As [`ClientFrame::Open`], but nothing of the output is sent before [`ClientFrame::Show`]: the provider produces all
    /// of it, unpaid but for the first chunk, and says [`ProviderFrame::Committed`].
    OpenSealed(Box<Open>),
    /// The commitment is here: [`ProviderFrame::Salt`], then the output as ever.
    Show,
}

/// From the provider.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ProviderFrame {
    /// Answer to [`ClientFrame::Hello`].
    Hello(ProviderHello),
    /// What it serves, at which price, with its load at this moment.
    Offer(SignedOffer),
    /// Answer to [`ClientFrame::ChannelRequest`].
    Channel(Box<ChannelReport>),
    /// Answer to [`ClientFrame::ReceiptRequest`].
    Receipt(Box<ReceiptReport>),
    /// The job is in the provider's queue.
    Accepted,
    /// Further output tokens, in order; at least one.
    Tokens(Vec<TokenId>),
    /// A receipt for the output so far (`Finish::Open`), signed at each 64 output tokens once a further one exists.
    Checkpoint(SignedReceipt),
    /// The end of the job.
    Done(Done),
    /// Nothing (more) will be done for the last request on this connection. Before [`ProviderFrame::Accepted`] nothing
    /// is charged; after it the checkpoints stand.
    Refused(Refused),
    /// As [`ProviderFrame::Tokens`], with log probabilities: for a job that asks for them.
    Scored(Vec<(TokenId, TokenLogprobs)>),
    /// The output of a sealed job is complete: `answer_commitment` of provider, request, a salt and the response hash.
    Committed(B256),
    /// What the commitment was salted with; the output follows.
    Salt(B256),
}

/// The client's first frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// The chain on which stake and channels stand.
    pub chain_id: u64,
}

/// The provider's first frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProviderHello {
    /// [`PROTOCOL_VERSION`].
    pub version: u16,
    /// The chain on which it is registered.
    pub chain_id: u64,
    /// Who it says it is.
    pub provider: ProviderId,
}

/// A job and the first payment for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Open {
    /// What to run.
    pub job: Job,
    /// Which channel pays.
    pub channel: ChannelConfig,
    /// The prices that the client saw; charged exactly, and refused if the provider asks more by now.
    pub prices: Prices,
    /// Covers this grant and everything else on the channel.
    pub voucher: SignedVoucher,
    /// What this request may charge: input and one chunk of output.
    pub grant: Amount,
}

/// A further payment for the running job.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Pay {
    /// Covers the grant and everything else on the channel.
    pub voucher: SignedVoucher,
    /// What this request may charge in total, earlier grants included.
    pub grant: Amount,
}

/// What a payer holds of a channel. A provider that went on from an older database takes over what it has signed itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelRequest {
    /// Which channel.
    pub config: ChannelConfig,
    /// The highest voucher as far as the payer knows, which may be for nothing: its signature shows who asks.
    pub voucher: Option<SignedVoucher>,
    /// The receipt with the highest total that the payer has.
    pub latest: Option<Done>,
}

/// What a provider holds of a channel. A payer that lost its state takes over what it has signed itself, and what a
/// receipt within that proves.
///
/// Anyone may ask, a channel's configuration being public: only who shows a voucher gets one, with which a stranger
/// could open jobs on what is left below the ceiling.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelReport {
    /// Sum over all requests of their latest receipt's `charged`.
    pub charged_total: Amount,
    /// The receipt with that total, which proves it; none if nothing was charged.
    pub latest: Option<Done>,
    /// Requests that run on the channel at this moment.
    pub open_streams: u32,
    /// The highest voucher, if the request had a genuine one.
    pub voucher: Option<SignedVoucher>,
}

/// The latest receipt of one request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReceiptReport {
    /// It still runs: a later receipt will follow.
    pub is_running: bool,
    /// With how it ended; none if nothing was charged for it.
    pub last: Option<Done>,
}

/// A refusal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// What for.
    pub code: RefusedCode,
    /// For people; at most [`MESSAGE_LEN_MAX`] bytes.
    pub message: String,
}

/// Why a provider refuses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum RefusedCode {
    /// It speaks another protocol version.
    Version,
    /// It is registered on another chain.
    Network,
    /// A frame that does not belong here.
    Protocol,
    /// It does not serve the model.
    UnknownModel,
    /// The job is not valid; it would be refused everywhere.
    BadJob,
    /// The channel is not one it takes payment from.
    Channel,
    /// The voucher's signature or channel is wrong.
    Voucher,
    /// Voucher or deposit do not cover the grant, or the grant does not cover the first chunk.
    NotCovered,
    /// It asks more by now.
    Price,
    /// Its queue is full.
    Busy,
    /// It is shutting down.
    Draining,
    /// It has served this request before.
    Duplicate,
    /// Its own fault: engine, storage or chain.
    Internal,
}

impl RefusedCode {
    /// Whether another provider may well take the same request.
    #[must_use]
    pub fn is_worth_retrying_elsewhere(self) -> bool {
        !matches!(self, Self::BadJob)
    }
}

impl Refused {
    /// A refusal with the message cut to [`MESSAGE_LEN_MAX`] bytes.
    #[must_use]
    pub fn new(code: RefusedCode, message: impl std::fmt::Display) -> Self {
        let mut message = message.to_string();
        message.truncate(message.floor_char_boundary(MESSAGE_LEN_MAX));
        Self { code, message }
    }
}
