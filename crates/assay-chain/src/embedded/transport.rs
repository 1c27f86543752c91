//! The chain as an alloy transport: the same dispatcher as over HTTP, without a socket.

use super::{EmbeddedChain, RpcError};
use alloy_json_rpc::{ErrorPayload, RequestPacket, Response, ResponsePacket, ResponsePayload, SerializedRequest};
use alloy_transport::{TransportError, TransportErrorKind, TransportFut};
use serde_json::Value;
use std::task::{Context, Poll};

/// See [`EmbeddedChain::transport`].
#[derive(Clone)]
pub struct InProcess {
    chain: EmbeddedChain,
}

impl InProcess {
    pub(super) fn new(chain: EmbeddedChain) -> Self {
        Self { chain }
    }

    async fn answer(&self, request: &SerializedRequest) -> Result<Response, TransportError> {
        let params = match request.params() {
            Some(raw) => serde_json::from_str(raw.get()).map_err(TransportErrorKind::custom)?,
            None => Value::Null,
        };
        let payload = match self.chain.request(request.method().to_owned(), params).await {
            Ok(result) => {
                ResponsePayload::Success(serde_json::value::to_raw_value(&result).map_err(TransportErrorKind::custom)?)
            }
            Err(error) => ResponsePayload::Failure(error_payload(error)?),
        };
        Ok(Response { id: request.id().clone(), payload })
    }
}

fn error_payload(error: RpcError) -> Result<ErrorPayload, TransportError> {
    let data = error.data.map(|data| serde_json::value::to_raw_value(&data)).transpose();
    Ok(ErrorPayload {
        code: error.code,
        message: error.message.into(),
        data: data.map_err(TransportErrorKind::custom)?,
    })
}

impl tower::Service<RequestPacket> for InProcess {
    type Response = ResponsePacket;
    type Error = TransportError;
    type Future = TransportFut<'static>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, packet: RequestPacket) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            match packet {
                RequestPacket::Single(request) => this.answer(&request).await.map(ResponsePacket::Single),
                RequestPacket::Batch(requests) => {
                    let mut answers = Vec::with_capacity(requests.len());
                    for request in &requests {
                        answers.push(this.answer(request).await?);
                    }
                    Ok(ResponsePacket::Batch(answers))
                }
            }
        })
    }
}
