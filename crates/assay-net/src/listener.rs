//! The provider's TCP socket.

use crate::{
    ClientFrame, Connection, Hello, NetError, PROTOCOL_VERSION, ProviderFrame, ProviderHello, Refused, RefusedCode,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{net::TcpListener, time::timeout};

/// Accepts connections.
pub struct Listener {
    socket: TcpListener,
    write_timeout: Duration,
}

impl Listener {
    /// Listens on `address`; port 0 takes a free one.
    ///
    /// # Errors
    /// The address can not be bound: it is in use or not ours.
    pub async fn bind(address: SocketAddr, write_timeout: Duration) -> Result<Self, NetError> {
        Ok(Self { socket: TcpListener::bind(address).await?, write_timeout })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The operating system does not say.
    pub fn address(&self) -> Result<SocketAddr, NetError> {
        Ok(self.socket.local_addr()?)
    }

    /// The next connection; greet it with [`Connection::welcome`] in a task of its own.
    ///
    /// # Errors
    /// The process is out of file descriptors, or the peer was gone at once: wait a little and go on.
    pub async fn accept(&self) -> Result<(Connection, SocketAddr), NetError> {
        let (stream, peer) = self.socket.accept().await?;
        Ok((Connection::tcp(stream, self.write_timeout)?, peer))
    }
}

impl Connection {
    /// The provider's part of the greeting, within `limit`.
    ///
    /// # Errors
    /// The client is too slow, or (it is told so) on another version or chain.
    pub async fn welcome(&mut self, hello: ProviderHello, limit: Duration) -> Result<Hello, NetError> {
        let exchange = async {
            let client = match self.receiver.recv::<ClientFrame>().await? {
                ClientFrame::Hello(client) => client,
                _ => return Err(NetError::WrongPeer("the client's first frame is no greeting".into())),
            };
            let refused = if client.version != PROTOCOL_VERSION {
                Refused::new(RefusedCode::Version, format!("this provider speaks version {PROTOCOL_VERSION}"))
            } else if client.chain_id != hello.chain_id {
                Refused::new(RefusedCode::Network, format!("this provider is on chain {}", hello.chain_id))
            } else {
                self.sender.send(&ProviderFrame::Hello(hello)).await?;
                return Ok(client);
            };
            self.sender.send(&ProviderFrame::Refused(refused.clone())).await?;
            Err(NetError::WrongPeer(refused.message))
        };
        timeout(limit, exchange).await.unwrap_or(Err(NetError::Timeout { what: "the greeting", limit }))
    }
}
