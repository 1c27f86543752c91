//! Why a request gets no answer. How that looks over HTTP is decided in `rescue` alone.

use crate::account::Rate;
use crate::auditing::AuditError;
use crate::model::PromptError;
use crate::store::StoreError;
use assay_api::RequestError;
use assay_types::{Amount, JobError};
use std::time::Duration;

/// Everything that can go wrong with a request.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GatewayError {
    /// The body is not a request.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The messages are no prompt.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The job is not valid.
    #[error(transparent)]
    Job(#[from] JobError),
    /// No key was sent.
    #[error("missing API key: send it as 'Authorization: Bearer sk-assay-..'")]
    MissingKey,
    /// The key is not known, or was revoked.
    #[error("incorrect API key")]
    BadKey,
    /// The key's requests or tokens of this minute are used up.
    #[error(
        "rate limit reached: {} a minute (limit {limit}, this request counts {needed}); {}",
        rate_name(*rate), rate_advice(*needed, *limit, *wait)
    )]
    RateLimit {
        /// Which.
        rate: Rate,
        /// What the key may do a minute.
        limit: u32,
        /// What this request counts.
        needed: u64,
        /// Until there is enough.
        wait: Duration,
    },
    /// The key's budget does not cover what the request may cost.
    #[error(
        "this key's budget is used up: the request may cost up to {needed} base units, {left} are left; ask for fewer \
         tokens (max_tokens) or have the budget raised"
    )]
    Budget {
        /// At most.
        needed: Amount,
        /// Budget less what was charged.
        left: Amount,
    },
    /// Running requests of the key may use up the rest of its budget.
    #[error(
        "this request may cost up to {needed} base units, which other running requests of this key hold; try again"
    )]
    BudgetHeld {
        /// At most.
        needed: Amount,
        /// A guess.
        wait: Duration,
    },
    /// No key, and no payment that is taken.
    #[error(
        "this request is not paid ({0}): send an API key as 'Authorization: Bearer sk-assay-..', or pay by x402 as the \
         header PAYMENT-REQUIRED says"
    )]
    PaymentRequired(String),
    /// The chain, which a payment needs, does not answer.
    #[error("the payment cannot be checked now: {0}")]
    Chain(String),
    /// Nobody knows the model.
    #[error("the model '{0}' does not exist")]
    ModelNotFound(String),
    /// It writes text, or it makes vectors, and the other was asked for.
    #[error("the model '{name}' {}", if *makes_vectors { "makes vectors and writes no text: use /v1/embeddings or /v1/rerank" } else { "writes text and makes no vectors" })]
    OtherUse {
        /// As it was asked for.
        name: String,
        /// What it does.
        makes_vectors: bool,
    },
    /// A text is longer than the encoder takes.
    #[error("this text has {tokens} tokens, the model takes {max}; nothing is cut off")]
    TextTooLong {
        /// Which.
        param: String,
        /// What it has.
        tokens: usize,
        /// What the model takes.
        max: u32,
    },
    /// Prompt and output are longer than any provider's context.
    #[error("this request needs {needed} tokens of context; the longest on offer is {longest}")]
    ContextLength {
        /// Prompt and `max_tokens`.
        needed: u64,
        /// On offer.
        longest: u32,
    },
    /// The body is larger than allowed.
    #[error("the request body is larger than {max} bytes")]
    BodyTooLarge {
        /// The limit.
        max: usize,
    },
    /// The body did not arrive in time.
    #[error("the request body did not arrive in time")]
    BodyTimeout,
    /// The body broke off.
    #[error("the request body broke off")]
    BodyBroken,
    /// As many requests are being answered as are allowed, or all providers are full.
    #[error("no provider has room for this request now; try again shortly")]
    Busy,
    /// Nobody offers the model at the moment.
    #[error("no provider offers this model at the moment; try again shortly")]
    NoProvider,
    /// Whoever offers the model runs an engine of its own, which the caller did not allow.
    #[error(
        "only providers of class tolerant, whose answers cannot be re-derived, serve this model; allow them with \
         \"assay\": {{\"verify\": \"tolerant\"}} or with :tolerant behind the model's name"
    )]
    OnlyTolerant,
    /// The request's own wishes leave nobody of those who offer the model.
    #[error("of the providers of this model the request's 'provider' object allows none; see GET /v1/providers")]
    NoneWanted,
    /// Every provider that was tried failed before the first token.
    #[error("every provider that was tried failed; the last one: {0}")]
    Providers(String),
    /// A provider finds that the job cannot be done by anyone.
    #[error("this request cannot be answered: {0}")]
    JobRefused(String),
    /// The grammar or schema is none.
    #[error("invalid value for '{param}': {reason}")]
    Grammar {
        /// The field it came from.
        param: &'static str,
        /// What is wrong, and where.
        reason: String,
    },
    /// A stream could not be completed.
    #[error("the answer broke off and no provider could go on: {0}")]
    BrokenOff(String),
    /// Fewer providers gave an answer than were asked for.
    #[error("{needed} providers were asked for, and {answered} gave an answer; nothing of it was used")]
    TooFewAgree {
        /// By the request.
        needed: usize,
        /// Equal answers.
        answered: usize,
    },
    /// Providers gave different answers, and no replay could say which one is right.
    #[error("the providers gave different answers, and none of them could be shown to be right")]
    Disagreement,
    /// The gateway is being stopped.
    #[error("the gateway is shutting down")]
    ShuttingDown,
    /// No such path.
    #[error("unknown URL: {method} {path}")]
    UnknownUrl {
        /// Of the request.
        method: String,
        /// Of the request.
        path: String,
    },
    /// The path exists, but not with this method.
    #[error("{method} is not allowed here")]
    MethodNotAllowed {
        /// Of the request.
        method: String,
    },
    /// No receipt with this id that this key may see.
    #[error("no receipt '{0}'")]
    ReceiptNotFound(String),
    /// The answer is still being produced.
    #[error("this answer is still being produced; its receipt follows at the end")]
    ReceiptPending,
    /// Nobody signed any part of the answer.
    #[error("no provider signed anything for this answer; it has no receipt and cost nothing")]
    ReceiptEmpty,
    /// The database failed.
    #[error("the gateway could not store or read: {0}")]
    Store(#[from] StoreError),
    /// An auditor is turned away.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// An auditor's request is not one.
    #[error("the body is not what an auditor sends here: {0}")]
    BadAudit(String),
    /// The machine has no random bytes.
    #[error("the gateway has no random bytes")]
    Random,
}

fn rate_name(rate: Rate) -> &'static str {
    match rate {
        Rate::Requests => "requests",
        Rate::Tokens => "tokens",
    }
}

fn rate_advice(needed: u64, limit: u32, wait: Duration) -> String {
    if needed > u64::from(limit) {
        return "ask for fewer tokens (max_tokens)".into();
    }
    format!("try again in {:.1} s", wait.as_secs_f64())
}
