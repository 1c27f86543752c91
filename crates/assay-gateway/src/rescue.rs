//! The one place that turns errors into HTTP: status, error object, `Retry-After`.

use crate::auditing::AuditError;
use crate::error::GatewayError;
use crate::model::PromptError;
use crate::voice::Shape;
use assay_api::{ErrorBody, ErrorObject, RequestError, message_error};
use assay_types::JobError;
use axum::body::Body;
use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use std::time::Duration;

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const RATE: &str = "rate_limit_error";
const QUOTA: &str = "insufficient_quota";
/// Stock clients repeat every 429 unless this says `false`.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// What an error looks like from outside.
struct Look {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<String>,
    retry_after_s: Option<u32>,
}

/// The reply to a request that failed before its first byte was sent.
#[must_use]
pub(crate) fn response(error: &GatewayError, shape: Shape) -> Response<Body> {
    let look = look(error);
    let body = error_body(error);
    let body = match shape {
        Shape::OpenAi => serde_json::to_vec(&body),
        Shape::Anthropic => serde_json::to_vec(&message_error(look.status.as_u16(), &body)),
    }
    .unwrap_or_default();
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = look.status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(seconds) = look.retry_after_s {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if look.status == StatusCode::TOO_MANY_REQUESTS && look.retry_after_s.is_none() {
        headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
    if matches!(error, GatewayError::MethodNotAllowed { .. }) {
        headers.insert(ALLOW, HeaderValue::from_static("GET, POST"));
    }
    response
}

/// The status that goes with an error.
#[must_use]
pub(crate) fn status(error: &GatewayError) -> u16 {
    look(error).status.as_u16()
}

/// The code that goes with an error: unlike its message it repeats nothing of a request.
#[must_use]
pub(crate) fn code(error: &GatewayError) -> &'static str {
    look(error).code
}

/// The error object, which also ends a broken stream.
#[must_use]
pub(crate) fn error_body(error: &GatewayError) -> ErrorBody {
    let look = look(error);
    let error = ErrorObject {
        message: error.to_string(),
        kind: look.kind.into(),
        param: look.param,
        code: Some(look.code.into()),
    };
    ErrorBody { error }
}

fn look(error: &GatewayError) -> Look {
    let plain = |status, kind, code| Look { status, kind, code, param: None, retry_after_s: None };
    let invalid = |code, param: Option<&str>| Look {
        param: param.map(Into::into),
        ..plain(StatusCode::BAD_REQUEST, INVALID, code)
    };
    let retry = |status, kind, code, seconds| Look { retry_after_s: Some(seconds), ..plain(status, kind, code) };
    match error {
        GatewayError::Request(request) => request_look(request),
        GatewayError::Prompt(PromptError::UnknownTools) => invalid("unsupported_parameter", Some("tools")),
        GatewayError::Prompt(_) => invalid("invalid_messages", Some("messages")),
        GatewayError::Job(job) => job_look(job),
        GatewayError::OtherUse { .. } => invalid("model_not_supported", Some("model")),
        GatewayError::TextTooLong { param, .. } => invalid("context_length_exceeded", Some(param)),
        GatewayError::ContextLength { .. } => invalid("context_length_exceeded", Some("max_tokens")),
        GatewayError::MissingKey | GatewayError::BadKey => plain(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key"),
        GatewayError::RateLimit { limit, needed, .. } if needed > &u64::from(*limit) => {
            plain(StatusCode::TOO_MANY_REQUESTS, RATE, "rate_limit_exceeded")
        }
        GatewayError::RateLimit { wait, .. } | GatewayError::BudgetHeld { wait, .. } => {
            retry(StatusCode::TOO_MANY_REQUESTS, RATE, "rate_limit_exceeded", seconds_up(*wait))
        }
        GatewayError::Budget { .. } => plain(StatusCode::TOO_MANY_REQUESTS, QUOTA, QUOTA),
        GatewayError::PaymentRequired(_) => plain(StatusCode::PAYMENT_REQUIRED, INVALID, "payment_required"),
        GatewayError::Chain(_) => retry(StatusCode::SERVICE_UNAVAILABLE, SERVER, "chain_unavailable", 2),
        GatewayError::ModelNotFound(_) => {
            Look { param: Some("model".into()), ..plain(StatusCode::NOT_FOUND, INVALID, "model_not_found") }
        }
        GatewayError::BodyTooLarge { .. } => plain(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "body_too_large"),
        GatewayError::BodyTimeout => plain(StatusCode::REQUEST_TIMEOUT, INVALID, "body_timeout"),
        GatewayError::BodyBroken => invalid("body_broken", None),
        GatewayError::Busy => retry(StatusCode::TOO_MANY_REQUESTS, RATE, "no_capacity", 1),
        GatewayError::NoneWanted => {
            Look { param: Some("provider".into()), ..plain(StatusCode::NOT_FOUND, INVALID, "no_provider_allowed") }
        }
        GatewayError::NoProvider => retry(StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_provider", 2),
        GatewayError::OnlyTolerant => retry(StatusCode::SERVICE_UNAVAILABLE, SERVER, "only_tolerant_providers", 2),
        GatewayError::Providers(_) => retry(StatusCode::SERVICE_UNAVAILABLE, SERVER, "provider_failed", 1),
        GatewayError::JobRefused(_) => invalid("job_refused", None),
        GatewayError::Grammar { param, .. } => invalid("invalid_value", Some(param)),
        GatewayError::BrokenOff(_) => plain(StatusCode::BAD_GATEWAY, SERVER, "stream_broken"),
        GatewayError::TooFewAgree { .. } => retry(StatusCode::SERVICE_UNAVAILABLE, SERVER, "too_few_agree", 2),
        GatewayError::Disagreement => plain(StatusCode::BAD_GATEWAY, SERVER, "providers_disagree"),
        GatewayError::ShuttingDown => retry(StatusCode::SERVICE_UNAVAILABLE, SERVER, "shutting_down", 5),
        GatewayError::UnknownUrl { .. } => plain(StatusCode::NOT_FOUND, INVALID, "unknown_url"),
        GatewayError::MethodNotAllowed { .. } => plain(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed"),
        GatewayError::ReceiptNotFound(_) => plain(StatusCode::NOT_FOUND, INVALID, "receipt_not_found"),
        GatewayError::ReceiptPending => retry(StatusCode::CONFLICT, INVALID, "receipt_pending", 1),
        GatewayError::ReceiptEmpty => plain(StatusCode::NOT_FOUND, INVALID, "receipt_empty"),
        GatewayError::Audit(error) => audit_look(error),
        GatewayError::BadAudit(_) => invalid("invalid_value", None),
        GatewayError::Store(_) | GatewayError::Random => {
            plain(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error")
        }
    }
}

/// Whole seconds after which it works.
fn seconds_up(wait: Duration) -> u32 {
    u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1)
}

fn audit_look(error: &AuditError) -> Look {
    let (status, kind, code) = match error {
        AuditError::NotAnAuditor(_) | AuditError::Dismissed(_) => (StatusCode::FORBIDDEN, INVALID, "not_an_auditor"),
        AuditError::Signature(_) | AuditError::Clock(_) => (StatusCode::UNAUTHORIZED, INVALID, "invalid_signature"),
        AuditError::NoTask(_) => (StatusCode::NOT_FOUND, INVALID, "task_not_found"),
        AuditError::Committed | AuditError::NotCommitted => (StatusCode::CONFLICT, INVALID, "task_out_of_turn"),
        AuditError::Random | AuditError::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error"),
    };
    Look { status, kind, code, param: None, retry_after_s: None }
}

fn request_look(error: &RequestError) -> Look {
    Look {
        status: StatusCode::BAD_REQUEST,
        kind: INVALID,
        code: error.code(),
        param: error.param().map(Into::into),
        retry_after_s: None,
    }
}

fn job_look(error: &JobError) -> Look {
    let (code, param) = match error {
        JobError::EmptyPrompt => ("empty_prompt", "prompt"),
        JobError::ContextOverflow { .. } => ("context_length_exceeded", "max_tokens"),
        JobError::TextTooLong { .. } => ("context_length_exceeded", "input"),
        JobError::TokenOutOfRange { .. } => ("invalid_value", "prompt"),
        JobError::BadField { field, .. } => ("invalid_value", *field),
    };
    Look { status: StatusCode::BAD_REQUEST, kind: INVALID, code, param: Some(param.into()), retry_after_s: None }
}
