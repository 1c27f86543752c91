//! The listening socket: accepts, bounds and ends connections.

use crate::deadline::WriteDeadline;
use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Largest request head in bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// After an error of `accept` (out of file descriptors), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the socket needs to know.
pub(crate) struct Door {
    pub(crate) listener: TcpListener,
    pub(crate) connections_max: usize,
    pub(crate) header_timeout: Duration,
    pub(crate) write_timeout: Duration,
    /// No new connections, idle ones end.
    pub(crate) stop: CancellationToken,
    pub(crate) connections: TaskTracker,
}

/// What those on this machine may ask, and what everybody may.
pub(crate) struct Routers {
    pub(crate) local: Router,
    pub(crate) remote: Router,
}

/// Accepts until `stop`.
pub(crate) async fn run(door: Door, routers: Routers) {
    let permits = Arc::new(Semaphore::new(door.connections_max));
    loop {
        let accepted = tokio::select! {
            accepted = accept(&door.listener, &permits) => accepted,
            () = door.stop.cancelled() => return,
        };
        let (stream, peer, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // A stream of tokens is many small writes: Nagle's algorithm would hold each back for 40 ms.
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        let io = TokioIo::new(WriteDeadline::new(stream, door.write_timeout));
        let router = if peer.ip().to_canonical().is_loopback() { &routers.local } else { &routers.remote };
        let service = TowerToHyperService::new(router.clone());
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(door.header_timeout).max_buf_size(HEAD_BYTES_MAX);
        let stop = door.stop.clone();
        door.connections.spawn(async move {
            let mut connection = pin!(http.serve_connection(io, service));
            let ended = tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended with an error");
            }
            drop(permit);
        });
    }
}

type Accepted = (TcpStream, SocketAddr, OwnedSemaphorePermit);

async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> io::Result<Accepted> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, permit))
}
