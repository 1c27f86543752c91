//! JSON-RPC 2.0: envelopes, batches, error codes and parameters. Knows no method.

use super::{EmbeddedChain, EmbeddedError, state::StateError};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Most requests in one batch.
const BATCH_MAX: usize = 100;
/// A batch stops answering beyond this many bytes.
const BATCH_RESPONSE_BYTES_MAX: usize = 32 << 20;

/// An error as a client sees it.
#[derive(Clone, PartialEq, Debug, Serialize, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// JSON-RPC or EIP-1474 code; 3 is a revert.
    pub code: i64,
    /// One line.
    pub message: String,
    /// Revert data as a hex string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl RpcError {
    pub(super) fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    pub(super) fn parse(message: impl Into<String>) -> Self {
        Self::new(-32700, message)
    }

    pub(super) fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(-32600, message)
    }

    pub(super) fn unknown_method(method: &str) -> Self {
        let shown: String = method.chars().take(64).collect();
        Self::new(-32601, format!("the method {shown} does not exist/is not available"))
    }

    pub(super) fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(-32602, message)
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self::new(-32603, message)
    }

    /// Valid, but refused: what nodes answer for a bad transaction or a state that is not kept.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self::new(-32000, message)
    }

    pub(super) fn limit(message: impl Into<String>) -> Self {
        Self::new(-32005, message)
    }
}

impl From<StateError> for RpcError {
    fn from(error: StateError) -> Self {
        tracing::error!(%error, "chain state could not be read");
        Self::internal(error.to_string())
    }
}

impl From<EmbeddedError> for RpcError {
    fn from(error: EmbeddedError) -> Self {
        Self::internal(error.to_string())
    }
}

/// Positional parameters.
pub(super) struct Params(Vec<Value>);

impl Params {
    pub fn new(params: Value) -> Result<Self, RpcError> {
        match params {
            Value::Null => Ok(Self(Vec::new())),
            Value::Array(values) => Ok(Self(values)),
            _ => Err(RpcError::invalid_params("params must be an array")),
        }
    }

    /// The parameter at `index`; `name` is for the error.
    pub fn get<T: DeserializeOwned>(&self, index: usize, name: &str) -> Result<T, RpcError> {
        self.opt(index, name)?
            .ok_or_else(|| RpcError::invalid_params(format!("missing value for required argument {index} ({name})")))
    }

    /// As [`Self::get`], `None` where it is absent or null.
    pub fn opt<T: DeserializeOwned>(&self, index: usize, name: &str) -> Result<Option<T>, RpcError> {
        match self.0.get(index) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|error| RpcError::invalid_params(format!("invalid argument {index} ({name}): {error}"))),
        }
    }
}

/// Answers a request body, or `None` if it held only notifications. Never fails: what is wrong is in the answer.
pub(super) fn answer_body(chain: &EmbeddedChain, body: &[u8]) -> Option<Vec<u8>> {
    let answer = match serde_json::from_slice::<Value>(body) {
        Err(error) => Some(failure(Value::Null, &RpcError::parse(format!("parse error: {error}")))),
        Ok(Value::Array(requests)) if requests.is_empty() => {
            Some(failure(Value::Null, &RpcError::invalid_request("empty batch")))
        }
        Ok(Value::Array(requests)) if requests.len() > BATCH_MAX => {
            Some(failure(Value::Null, &RpcError::invalid_request(format!("more than {BATCH_MAX} requests in a batch"))))
        }
        Ok(Value::Array(requests)) => return answer_batch(chain, requests),
        Ok(request) => answer_one(chain, request),
    };
    answer.map(|answer| answer.to_string().into_bytes())
}

fn answer_batch(chain: &EmbeddedChain, requests: Vec<Value>) -> Option<Vec<u8>> {
    let mut out = b"[".to_vec();
    for request in requests {
        let answer = if out.len() > BATCH_RESPONSE_BYTES_MAX {
            let id = request.get("id").cloned().unwrap_or(Value::Null);
            Some(failure(id, &RpcError::limit("the batch's answer is too large")))
        } else {
            answer_one(chain, request)
        };
        if let Some(answer) = answer {
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(answer.to_string().as_bytes());
        }
    }
    (out.len() > 1).then(|| {
        out.push(b']');
        out
    })
}

fn answer_one(chain: &EmbeddedChain, mut request: Value) -> Option<Value> {
    let id = match request.get("id") {
        None => None,
        Some(id @ (Value::Null | Value::String(_) | Value::Number(_))) => Some(id.clone()),
        Some(_) => return Some(failure(Value::Null, &RpcError::invalid_request("id must be a string or a number"))),
    };
    let invalid = |message| Some(failure(id.clone().unwrap_or(Value::Null), &RpcError::invalid_request(message)));
    if !request.is_object() {
        return invalid("a request must be an object");
    }
    if request.get("jsonrpc") != Some(&json!("2.0")) {
        return invalid("jsonrpc must be \"2.0\"");
    }
    let Some(Value::String(method)) = request.get_mut("method").map(Value::take) else {
        return invalid("method must be a string");
    };
    let params = request.get_mut("params").map_or(Value::Null, Value::take);
    let result = chain.dispatch(&method, params);
    // A request without an id is a notification: it is carried out and not answered.
    Some(envelope(id?, result))
}

/// The answer to the request with this id.
pub(super) fn envelope(id: Value, result: Result<Value, RpcError>) -> Value {
    match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
        Err(error) => failure(id, &error),
    }
}

fn failure(id: Value, error: &RpcError) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "error": error })
}
