//! The provider's end: listening, and the greeting of who comes.

use crate::{
    Acceptor, ClientFrame, Connection, Hello, Incoming, NetError, PROTOCOL_VERSION, ProviderFrame, ProviderHello,
    Refused, RefusedCode, Transport, TransportSecret,
};
use std::{net::SocketAddr, time::Duration};
use tokio::time::timeout;

/// Accepts connections.
pub struct Listener {
    acceptor: Box<dyn Acceptor>,
    write_timeout: Duration,
}

/// Somebody at the door, who has said nothing yet.
pub struct Guest {
    /// Where it comes from.
    pub peer: SocketAddr,
    incoming: Incoming,
    write_timeout: Duration,
}

impl Listener {
    /// Listens on `address`; port 0 takes a free one. With a `secret` only clients that speak TLS are served.
    ///
    /// # Errors
    /// The address can not be bound (it is in use or not ours), or the secret is unusable.
    pub async fn bind(
        transport: &dyn Transport,
        address: SocketAddr,
        secret: Option<TransportSecret>,
        write_timeout: Duration,
    ) -> Result<Self, NetError> {
        Ok(Self { acceptor: transport.listen(address, secret).await?, write_timeout })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The operating system does not say.
    pub fn address(&self) -> Result<SocketAddr, NetError> {
        self.acceptor.address()
    }

    /// The next one who connects; let it in with [`Guest::welcome`], in a task of its own.
    ///
    /// # Errors
    /// The process is out of file descriptors, or the peer was gone at once: wait a little and go on.
    pub async fn accept(&self) -> Result<Guest, NetError> {
        let incoming = self.acceptor.accept().await?;
        Ok(Guest { peer: incoming.peer, incoming, write_timeout: self.write_timeout })
    }
}

impl Guest {
    /// Handshake and greeting, all within `limit`. No frame longer than `frame_len_max` is read.
    ///
    /// # Errors
    /// The client is too slow, or (it is told so) on another version or chain.
    pub async fn welcome(
        self,
        hello: ProviderHello,
        frame_len_max: u32,
        limit: Duration,
    ) -> Result<Connection, NetError> {
        let exchange = async {
            let mut connection = Connection::over(self.incoming.handshake.await?, self.write_timeout);
            connection.receiver.limit_frames(frame_len_max);
            connection.welcome(hello).await?;
            Ok(connection)
        };
        timeout(limit, exchange).await.unwrap_or(Err(NetError::Timeout { what: "the greeting", limit }))
    }
}

impl Connection {
    /// The provider's part of the greeting.
    async fn welcome(&mut self, hello: ProviderHello) -> Result<Hello, NetError> {
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
    }
}
