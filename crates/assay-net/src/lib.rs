//! What a gateway and a provider say to each other, and the bytes it travels in.
//!
//! Owns the frames ([`ClientFrame`], [`ProviderFrame`]), their encoding ([`encode`], [`decode`]), a [`Connection`] over
//! any byte stream, the TCP [`Listener`] and the client's [`Pool`]. Knows nothing of money, models or chains: a frame
//! that decodes is well-formed, not true.
//!
//! The transport of this release is plain TCP: no encryption, and the provider id in a Hello is a claim. What matters
//! is signed inside the frames (vouchers, receipts, offers), so somebody in between can read and cut a stream but not
//! change or charge it. [`Connection::over`] takes any pair of byte streams; TLS and other transports come in there.
//!
//! ```text
//! client                               provider
//!   Hello ---------------------------------->
//!   <---------------------------------- Hello      or Refused(Version), and the end
//!   Open (job, voucher for one chunk) ------>
//!   <------------------------------- Accepted      or Refused, and the connection is free again
//!   <----------------------------- Tokens ...
//!   <----------------------------- Checkpoint      every 64 tokens
//!   Pay (voucher for one chunk more) ------->
//!   <----------------------------- Tokens ...
//!   <----------------------------------- Done      the connection is free again
//! ```

mod codec;
mod connection;
mod endpoint;
mod frame;
mod listener;
mod pool;

#[cfg(test)]
mod frame_tests;

pub use assay_types::Done;
pub use codec::{CodecError, FRAME_LEN_MAX, decode, encode};
pub use connection::{Connection, FrameReceiver, FrameSender, NetError, Peer, connect};
pub use endpoint::{AddressPolicy, Endpoint, EndpointError};
pub use frame::{
    ChannelReport, ChannelRequest, ClientFrame, Hello, MESSAGE_LEN_MAX, Open, PROTOCOL_VERSION, Pay, ProviderFrame,
    ProviderHello, ReceiptReport, Refused, RefusedCode,
};
pub use listener::Listener;
pub use pool::{Pool, PoolOptions, Pooled};
