//! One connection: frames in both directions over a byte stream, each with a deadline.

use crate::{
    ByteStream, ClientFrame, CodecError, FRAME_LEN_MAX, Hello, PROTOCOL_VERSION, ProviderFrame, ProviderHello, Refused,
    Route, Transport, decode, encode,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{io, pin::Pin, task::Poll, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};

/// Read at a time; also what an idle connection keeps.
const READ_BYTES: usize = 16 << 10;
/// A read with less room than this would be too short.
const READ_BYTES_MIN: usize = 4 << 10;

/// Why a connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The operating system says so.
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    /// Bytes that are no frame.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
    /// Nothing arrived, or nothing was taken, in time.
    #[error("{what} took longer than {limit:?}")]
    Timeout {
        /// Which step.
        what: &'static str,
        /// Its deadline.
        limit: Duration,
    },
    /// The peer refused the greeting.
    #[error("refused: {}", .0.message)]
    Refused(Refused),
    /// The peer is not who or what was expected.
    #[error("{0}")]
    WrongPeer(String),
    /// A transport key that cannot be used.
    #[error("transport key: {0}")]
    Key(String),
}

/// What a peer said in its Hello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// A client; this side is the provider.
    Client(Hello),
    /// A provider; this side is the client.
    Provider(ProviderHello),
}

/// A connection that is not shared: one task sends, the same or another one receives.
pub struct Connection {
    /// The way out.
    pub sender: FrameSender,
    /// The way in.
    pub receiver: FrameReceiver,
}

/// Sends frames. A frame that was begun is finished by the next call if the first was dropped.
pub struct FrameSender {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    /// Encoded and not yet taken by the stream, from `sent` on.
    out: Vec<u8>,
    sent: usize,
    write_timeout: Duration,
}

/// Receives frames. Safe to drop at any point of [`Self::recv`]: what arrived is kept for the next call.
pub struct FrameReceiver {
    io: Box<dyn AsyncRead + Send + Unpin>,
    buffer: Vec<u8>,
    frame_len_max: u32,
}

/// Opens a stream to a provider and exchanges greetings, all within `limit`.
///
/// # Errors
/// [`NetError`]: nobody listens, it is too slow, has another key, refuses, or is on another chain or version.
pub async fn connect(
    transport: &dyn Transport,
    route: impl Into<Route>,
    chain_id: u64,
    limit: Duration,
) -> Result<(Connection, ProviderHello), NetError> {
    let route = route.into();
    let attempt = async {
        let mut connection = Connection::over(transport.open(route).await?, limit);
        let hello = connection.greet(chain_id).await?;
        Ok((connection, hello))
    };
    timeout(limit, attempt).await.unwrap_or(Err(NetError::Timeout { what: "connecting", limit }))
}

impl Connection {
    /// Frames over a stream of bytes. `write_timeout` is how long the peer may take for one frame.
    #[must_use]
    pub fn over(stream: ByteStream, write_timeout: Duration) -> Self {
        let sender = FrameSender { io: stream.writer, out: Vec::new(), sent: 0, write_timeout };
        let receiver = FrameReceiver { io: stream.reader, buffer: Vec::new(), frame_len_max: FRAME_LEN_MAX };
        Self { sender, receiver }
    }

    /// The client's part of the greeting.
    ///
    /// # Errors
    /// The provider refuses or is on another version or chain.
    pub async fn greet(&mut self, chain_id: u64) -> Result<ProviderHello, NetError> {
        self.sender.send(&ClientFrame::Hello(Hello { version: PROTOCOL_VERSION, chain_id })).await?;
        match self.receiver.recv::<ProviderFrame>().await? {
            ProviderFrame::Hello(hello) if hello.version == PROTOCOL_VERSION && hello.chain_id == chain_id => Ok(hello),
            ProviderFrame::Hello(hello) => Err(NetError::WrongPeer(format!(
                "the provider speaks version {} on chain {}; this side speaks version {PROTOCOL_VERSION} on chain {chain_id}",
                hello.version, hello.chain_id
            ))),
            ProviderFrame::Refused(refused) => Err(NetError::Refused(refused)),
            _ => Err(NetError::WrongPeer("the provider's first frame is no greeting".into())),
        }
    }
}

impl FrameSender {
    /// Sends one frame; returns when the operating system has all of it.
    ///
    /// # Errors
    /// The frame is too long (nothing was sent), the peer is gone, or it took longer than the write timeout.
    pub async fn send<T: Serialize>(&mut self, frame: &T) -> Result<(), NetError> {
        encode(frame, &mut self.out)?;
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), NetError> {
        let limit = self.write_timeout;
        timeout(limit, self.write_out()).await.unwrap_or(Err(NetError::Timeout { what: "sending", limit }))
    }

    async fn write_out(&mut self) -> Result<(), NetError> {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            let written = self.io.write(rest).await?;
            if written == 0 {
                return Err(NetError::Closed);
            }
            self.sent += written;
        }
        self.out.clear();
        self.out.shrink_to(READ_BYTES);
        self.sent = 0;
        Ok(self.io.flush().await?)
    }
}

impl FrameReceiver {
    /// Refuses longer frames from now on; never above [`FRAME_LEN_MAX`].
    pub fn limit_frames(&mut self, len_max: u32) {
        self.frame_len_max = len_max.min(FRAME_LEN_MAX);
    }

    /// The next frame, however long it takes. Memory grows with what has arrived, not with what a length promises.
    ///
    /// # Errors
    /// The peer is gone, or sent what is no frame; the connection is of no further use then.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T, NetError> {
        loop {
            if let Some(frame) = self.take_frame()? {
                return Ok(frame);
            }
            // Room for a read, and no new block because a few bytes are left from the last one.
            if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
                self.buffer.reserve(READ_BYTES);
            }
            match self.io.read_buf(&mut self.buffer).await {
                Ok(0) => return Err(NetError::Closed),
                // Under TLS the end without a farewell, as a process that was killed leaves it.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(NetError::Closed),
                read => read?,
            };
        }
    }

    /// The next frame if it arrives within `limit`. A frame that is only partly there at the deadline is kept.
    ///
    /// # Errors
    /// As [`Self::recv`], and [`NetError::Timeout`].
    pub async fn recv_within<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, NetError> {
        timeout(limit, self.recv()).await.unwrap_or(Err(NetError::Timeout { what: "receiving", limit }))
    }

    /// Whether the peer is silent and still there, as it has to be between two jobs. Does not wait.
    pub async fn is_quiet(&mut self) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        let io = &mut self.io;
        std::future::poll_fn(|context| {
            let mut byte = [0u8; 1];
            let mut buffer = ReadBuf::new(&mut byte);
            // Ready is the end, an error or an unasked-for byte.
            Poll::Ready(Pin::new(&mut *io).poll_read(context, &mut buffer).is_pending())
        })
        .await
    }

    fn take_frame<T: DeserializeOwned>(&mut self) -> Result<Option<T>, NetError> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*prefix);
        if len > self.frame_len_max {
            return Err(CodecError::TooLong { len: u64::from(len), max: self.frame_len_max }.into());
        }
        let Some(payload) = rest.get(..len as usize) else { return Ok(None) };
        let frame = decode(payload)?;
        self.buffer.drain(..4 + len as usize);
        if self.buffer.is_empty() {
            self.buffer.shrink_to(READ_BYTES);
        }
        Ok(Some(frame))
    }
}
