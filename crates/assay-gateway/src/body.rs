//! Request bodies: bounded in size, in time, and in sum over all connections.

use crate::error::GatewayError;
use crate::gateway::Inner;
use axum::body::{Body, Bytes};
use axum::http::Request;
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use http_body_util::BodyExt;

/// Unit in which body memory is counted.
pub(crate) const BODY_UNIT: usize = 4096;
/// Bytes of each body that are not counted: what connections hold anyway. Most requests are smaller, so they never wait
/// for memory that slow senders of large bodies have reserved.
const FREE_BYTES: usize = 4 * BODY_UNIT;
/// A body that is too large is read and thrown away up to this much, so that the client gets to read the reply
/// instead of a reset connection.
const DISCARD_BYTES_MAX: usize = 16 << 20;

/// The whole body.
///
/// # Errors
/// Too large, too slow, or broken off.
pub(crate) async fn read(inner: &Inner, request: Request<Body>) -> Result<Bytes, GatewayError> {
    let work = tokio::time::timeout(inner.timeouts.body, read_now(inner, request));
    work.await.unwrap_or(Err(GatewayError::BodyTimeout))
}

async fn read_now(inner: &Inner, request: Request<Body>) -> Result<Bytes, GatewayError> {
    let max = inner.limits.request.body_bytes_max;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    // A client that asked first is told before it sends anything.
    let waits_for_leave = request.headers().contains_key(EXPECT);
    let mut body = request.into_body();
    if announced.is_some_and(|len: u64| len > max as u64) {
        if !waits_for_leave {
            discard(&mut body).await;
        }
        return Err(GatewayError::BodyTooLarge { max });
    }
    let len = announced.and_then(|len| usize::try_from(len).ok()).unwrap_or(max);
    // Never more than there is in all: one body can always be read.
    let units = len.div_ceil(BODY_UNIT).min(inner.limits.bodies_bytes_max / BODY_UNIT);
    let units = u32::try_from(units).unwrap_or(u32::MAX);
    let mut memory = None;
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| GatewayError::BodyBroken)?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > max {
            drop(bytes);
            discard(&mut body).await;
            return Err(GatewayError::BodyTooLarge { max });
        }
        if memory.is_none() && bytes.len() + data.len() > FREE_BYTES {
            memory = Some(inner.bodies.acquire_many(units).await.map_err(|_| GatewayError::ShuttingDown)?);
            bytes.reserve_exact(announced.map_or(0, |_| len - bytes.len()));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes.into())
}

async fn discard(body: &mut Body) {
    let mut discarded = 0;
    while let Some(Ok(frame)) = body.frame().await {
        discarded += frame.data_ref().map_or(0, Bytes::len);
        if discarded > DISCARD_BYTES_MAX {
            return;
        }
    }
}
