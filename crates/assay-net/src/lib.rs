//! What a gateway and a provider say to each other, and the bytes it travels in.
//!
//! Owns the frames ([`ClientFrame`], [`ProviderFrame`]), their encoding ([`encode`], [`decode`]), a [`Connection`] over
//! any [`Transport`], the provider's [`Listener`] and the client's [`Pool`]. Knows nothing of money, models or chains: a frame
//! that decodes is well-formed, not true.
//!
//! Streams run over TCP: under TLS, where the provider proves the transport key that the registry has of it, or in the
//! clear, where its id in a Hello is a claim. What matters is signed inside the frames either way (vouchers, receipts,
//! offers): who is in between can cut a stream, and without TLS read it, but not change or charge it.
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
mod tls;
mod transport;

#[cfg(test)]
mod frame_tests;

pub use assay_types::Done;
pub use codec::{CodecError, FRAME_LEN_MAX, decode, encode};
pub use connection::{Connection, FrameReceiver, FrameSender, NetError, Peer, connect};
pub use endpoint::{AddressPolicy, Endpoint, EndpointError, Scheme};
pub use frame::{
    ChannelReport, ChannelRequest, ClientFrame, Hello, MESSAGE_LEN_MAX, Open, PROTOCOL_VERSION, Pay, ProviderFrame,
    ProviderHello, ReceiptReport, Refused, RefusedCode,
};
pub use listener::{Guest, Listener};
pub use pool::{Pool, PoolOptions, Pooled};
pub use tls::{TransportKey, TransportSecret};
pub use transport::{Acceptor, ByteStream, Doing, Incoming, Route, Sockets, Transport};
