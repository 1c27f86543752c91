//! How bytes get from one machine to another. A [`Transport`] opens streams and is opened to; what travels in them is
//! the same whichever it is. [`Sockets`] is TCP, in the clear or under TLS; a simulated one is in assay-testkit.

use crate::{NetError, TransportKey, TransportSecret, tls};
use std::{fmt, future::Future, net::SocketAddr, pin::Pin};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

/// What a transport does ends with this.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = Result<T, NetError>> + Send + 'a>>;

/// Where a provider is, and what it has to prove there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Route {
    /// Resolved, and allowed by the caller's policy.
    pub address: SocketAddr,
    /// The key of whoever answers there; `None` is a stream in the clear, where anybody may answer.
    pub key: Option<TransportKey>,
}

impl From<SocketAddr> for Route {
    /// In the clear.
    fn from(address: SocketAddr) -> Self {
        Self { address, key: None }
    }
}

/// Both directions of one stream of bytes.
pub struct ByteStream {
    /// From the peer.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// To the peer.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl ByteStream {
    /// Of two halves.
    #[must_use]
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { reader: Box::new(reader), writer: Box::new(writer) }
    }
}

/// A stream that a peer has opened. Its handshake, if there is one, is still to be made: with a deadline, and not in
/// the loop that accepts, which one slow peer would hold up.
pub struct Incoming {
    /// Who opened it, as far as the network says.
    pub peer: SocketAddr,
    /// Ends with the stream.
    pub handshake: Doing<'static, ByteStream>,
}

/// Opens streams to providers and accepts them.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// A stream to who is at `route` and has its key. No deadline: that is the caller's.
    fn open(&self, route: Route) -> Doing<'_, ByteStream>;

    /// Listens on `address` (port 0 takes a free one), as the owner of `secret` or in the clear.
    fn listen(&self, address: SocketAddr, secret: Option<TransportSecret>) -> Doing<'_, Box<dyn Acceptor>>;
}

/// What listening gives.
pub trait Acceptor: Send + Sync {
    /// Where it listens.
    ///
    /// # Errors
    /// The operating system does not say.
    fn address(&self) -> Result<SocketAddr, NetError>;

    /// The next stream. Safe to drop before it ends: no stream is lost.
    fn accept(&self) -> Doing<'_, Incoming>;
}

/// TCP, in the clear or under TLS 1.3.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sockets;

impl Transport for Sockets {
    fn open(&self, route: Route) -> Doing<'_, ByteStream> {
        Box::pin(async move {
            let stream = immediate(TcpStream::connect(route.address).await?)?;
            match route.key {
                None => Ok(in_the_clear(stream)),
                Some(key) => tls::connect(stream, route.address, key).await,
            }
        })
    }

    fn listen(&self, address: SocketAddr, secret: Option<TransportSecret>) -> Doing<'_, Box<dyn Acceptor>> {
        Box::pin(async move {
            let tls = secret.map(|secret| tls::acceptor(&secret)).transpose()?;
            let socket = TcpListener::bind(address).await?;
            Ok(Box::new(SocketAcceptor { socket, tls }) as Box<dyn Acceptor>)
        })
    }
}

struct SocketAcceptor {
    socket: TcpListener,
    tls: Option<tokio_rustls::TlsAcceptor>,
}

impl Acceptor for SocketAcceptor {
    fn address(&self) -> Result<SocketAddr, NetError> {
        Ok(self.socket.local_addr()?)
    }

    fn accept(&self) -> Doing<'_, Incoming> {
        Box::pin(async move {
            let (stream, peer) = self.socket.accept().await?;
            let stream = immediate(stream)?;
            let handshake: Doing<'static, ByteStream> = match self.tls.clone() {
                None => Box::pin(async move { Ok(in_the_clear(stream)) }),
                Some(tls) => Box::pin(async move {
                    let (reader, writer) = tokio::io::split(tls.accept(stream).await?);
                    Ok(ByteStream::new(reader, writer))
                }),
            };
            Ok(Incoming { peer, handshake })
        })
    }
}

/// Each write is sent at once: Nagle's algorithm would hold a token back for 40 ms.
fn immediate(stream: TcpStream) -> Result<TcpStream, NetError> {
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn in_the_clear(stream: TcpStream) -> ByteStream {
    let (reader, writer) = stream.into_split();
    ByteStream::new(reader, writer)
}
