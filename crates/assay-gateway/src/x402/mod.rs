//! Payment by request (x402 version 2) for callers without an API key.
//!
//! A layer around the API's paths. Who has a key passes; who has none is told a price (402) and pays by `exact`, one
//! signed transfer, or by `batch-settlement`, a voucher on a channel to this gateway.
//!
//! ```text
//!  caller                      this layer                           the API            chain
//!    | POST, no key                |                                   |                  |
//!    |<-- 402, price, ways to pay -|                                   |                  |
//!    | POST, signed payment ------>| check: terms, signature, funds    |                  |
//!    |                             |------------- request ------------>|                  |
//!    |                             |<------------ answer --------------|                  |
//!    |                             |-- transfer or deposit, if any ---------------------->|
//!    |                             | a voucher's charge: on disk       |                  |
//!    |<-- answer, what was paid ---|                                   |                  |
//! ```
//!
//! Invariants: no byte of an answer leaves before it is paid (the transfer is in a block, or the voucher that covers
//! the charge is on disk); a request that fails costs its caller nothing; a payment pays once, whatever runs at the
//! same time; no more is charged than was quoted.
//!
//! Left out: payments of version 1, Permit2, and payers that are contracts.

mod batch;
mod books;
mod claims;
mod exact;
mod holds;
mod quote;

use crate::body;
use crate::error::GatewayError;
use crate::gateway::{Inner, StartError};
use crate::rescue;
use crate::voice::Shape;
use assay_api::x402::{
    ChannelState, Extra, PAYMENT_HEADER, PaymentPayload, PaymentRequired, REQUIRED_HEADER, RESPONSE_HEADER,
    Requirements, Resource, Scheme, SettleResponse, VERSION, VoucherState, encode,
};
use assay_chain::{ChainError, Eip712Domain, Network};
use assay_types::{Address, Amount, Prices};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, HOST};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use axum::middleware::{Next, from_fn_with_state};
use books::Books;
use holds::Holds;
use quote::Quote;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use claims::run as run_claims;

/// What can be paid for.
const PAID_PATHS: [Paid; 4] = [
    Paid { path: "/v1/chat/completions", bounds: &["max_tokens", "max_completion_tokens"], shape: Shape::OpenAi },
    Paid { path: "/v1/completions", bounds: &["max_tokens"], shape: Shape::OpenAi },
    Paid { path: "/v1/messages", bounds: &["max_tokens"], shape: Shape::Anthropic },
    Paid { path: "/v1/responses", bounds: &["max_output_tokens"], shape: Shape::OpenAi },
];
/// Receipts of paid answers: whoever knows the name of one, which is a hash over a random nonce, may have it.
const RECEIPTS_PATH: &str = "/v1/receipts/";
/// How long a signed transfer is to be valid.
const VALID_S: u64 = 3600;
/// A signed transfer that ends sooner is not taken: the answer may take as long as that.
const VALID_S_MIN: u64 = 600;

/// A path that can be paid for.
#[derive(Clone, Copy)]
struct Paid {
    path: &'static str,
    /// Fields of a request that bound the output.
    bounds: &'static [&'static str],
    /// Of errors.
    shape: Shape,
}

/// How callers without a key pay.
#[derive(Clone)]
pub struct X402Config {
    /// The contracts, by the gateway's own key: it is paid, delivers transfers and claims.
    pub network: Network,
    /// What is asked. To be no lower than what the dearest provider asks.
    pub prices: Prices,
    /// Seconds between a payer's wish to withdraw from a channel and the withdrawal; the scheme allows 900 to 2 592 000.
    pub withdraw_delay: u64,
    /// Between two claims of what channels owe; a quarter of `withdraw_delay` if that is shorter.
    pub claim_interval: Duration,
}

impl fmt::Debug for X402Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X402Config").field("prices", &self.prices).finish_non_exhaustive()
    }
}

/// The layer's state.
pub(crate) struct Toll {
    inner: Arc<Inner>,
    network: Network,
    prices: Prices,
    withdraw_delay: u64,
    /// `eip155:CHAIN_ID`.
    caip2: String,
    payee: Address,
    token: Eip712Domain,
    /// What the API sees instead of a key.
    bearer: HeaderValue,
    books: Books,
    holds: Arc<Holds>,
}

/// Why a request is not answered.
#[derive(Debug)]
enum Refusal {
    /// Not paid, or not rightly; the code says what is wrong.
    Unpaid(String),
    /// The caller's books of the channel stand elsewhere: here is where they should.
    Corrective(Box<ChannelState>, Option<VoucherState>),
    /// The payment's transaction failed.
    Failed(String, Address),
    /// It has nothing to do with the payment.
    Gateway(GatewayError),
}

impl Refusal {
    fn unpaid(reason: &str) -> Self {
        Self::Unpaid(reason.into())
    }

    /// A check on chain said no with `reason`, or was not possible.
    fn checked(error: ChainError, reason: &str) -> Self {
        match error {
            ChainError::Reverted(revert) if revert.name == "ERC20InsufficientBalance" => {
                Self::unpaid("insufficient_funds")
            }
            ChainError::Reverted(_) | ChainError::BadArgument(_) => Self::unpaid(reason),
            other => Self::chain(other),
        }
    }

    fn chain(error: ChainError) -> Self {
        Self::Gateway(GatewayError::Chain(error.to_string()))
    }
}

impl From<GatewayError> for Refusal {
    fn from(error: GatewayError) -> Self {
        Self::Gateway(error)
    }
}

/// A request that waits to be paid.
struct Visit {
    request: Request<Body>,
    next: Next,
    quote: Quote,
}

impl Toll {
    /// Opens the books beside the gateway's database and asks the token for its name.
    pub(crate) async fn open(inner: Arc<Inner>, config: X402Config, database: &Path) -> Result<Arc<Self>, StartError> {
        let X402Config { network, prices, withdraw_delay, .. } = config;
        let token = network.token.domain().await.map_err(|e| StartError::X402(e.to_string()))?;
        let secret = inner.keys.guest().map_err(|e| StartError::X402(e.to_string()))?;
        let bearer = HeaderValue::from_str(&format!("Bearer {secret}")).map_err(|e| StartError::X402(e.to_string()))?;
        let books = Books::open(&database.with_extension("x402.sqlite")).await?;
        Ok(Arc::new(Self {
            inner,
            prices,
            withdraw_delay,
            caip2: format!("eip155:{}", network.addresses.chain_id),
            payee: network.client.address(),
            token,
            bearer,
            books,
            holds: Arc::default(),
            network,
        }))
    }

    async fn pass(State(toll): State<Arc<Self>>, request: Request<Body>, next: Next) -> Response<Body> {
        let path = request.uri().path();
        if has_key(request.headers()) {
            return next.run(request).await;
        }
        if request.method() == Method::GET && path.starts_with(RECEIPTS_PATH) {
            return next.run(toll.admit(request)).await;
        }
        let Some(paid) = PAID_PATHS.into_iter().find(|paid| paid.path == path) else {
            return next.run(request).await;
        };
        toll.serve(request, next, paid).await
    }

    /// The request as the API's own handlers take it.
    fn admit(&self, mut request: Request<Body>) -> Request<Body> {
        request.headers_mut().insert(AUTHORIZATION, self.bearer.clone());
        request.headers_mut().remove(PAYMENT_HEADER);
        request
    }

    async fn serve(self: Arc<Self>, request: Request<Body>, next: Next, paid: Paid) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        // The price depends on the body.
        let bytes = match body::read(&self.inner, Request::from_parts(parts.clone(), body)).await {
            Ok(bytes) => bytes,
            Err(error) => return self.counted(rescue::response(&error, paid.shape)),
        };
        let quote = self.quote(&bytes, paid.bounds);
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
        let url = format!("http://{host}{}", paid.path);
        let payment = parts.headers.remove(PAYMENT_HEADER);
        let answered = match payment {
            None => Err(Refusal::unpaid("PAYMENT-SIGNATURE header is required")),
            Some(payment) => {
                parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(bytes.len()));
                let request = self.admit(Request::from_parts(parts, Body::from(bytes)));
                self.paid(&payment, Visit { request, next, quote }).await
            }
        };
        answered.unwrap_or_else(|refusal| self.counted(self.refusal(url, paid.shape, quote, refusal)))
    }

    fn counted(&self, response: Response<Body>) -> Response<Body> {
        self.inner.metrics.response(response.status().as_u16());
        response
    }

    fn quote(&self, body: &Bytes, bounds: &[&str]) -> Quote {
        let longest = self.inner.models.iter().map(|model| model.context_length).max().unwrap_or_default();
        Quote::of(body, bounds, &self.prices, self.inner.limits.max_tokens_default, longest)
    }

    /// Takes a payment of either scheme and answers.
    async fn paid(self: &Arc<Self>, payment: &HeaderValue, visit: Visit) -> Result<Response<Body>, Refusal> {
        let text = payment.to_str().map_err(|_| Refusal::unpaid("invalid_payload"))?;
        let payload = PaymentPayload::decode(text).map_err(|error| Refusal::Unpaid(error.to_string()))?;
        if payload.x402_version != VERSION {
            return Err(Refusal::unpaid("invalid_x402_version"));
        }
        let accepted = &payload.accepted;
        if accepted.network != self.caip2 {
            return Err(Refusal::unpaid("invalid_network"));
        }
        let wanted = (self.network.addresses.token, self.payee, visit.quote.amount);
        if (accepted.asset, accepted.pay_to, accepted.amount) != wanted {
            return Err(Refusal::unpaid("invalid_payment_requirements"));
        }
        let misread = |error: assay_api::x402::PayloadError| Refusal::Unpaid(error.to_string());
        match accepted.scheme.as_str() {
            scheme if scheme == Scheme::Exact.name() => self.exact(payload.exact().map_err(misread)?, visit).await,
            scheme if scheme == Scheme::BatchSettlement.name() => {
                self.batch(payload.channel().map_err(misread)?, visit).await
            }
            _ => Err(Refusal::unpaid("unsupported_scheme")),
        }
    }

    /// What a caller reads who is not answered.
    fn refusal(&self, url: String, shape: Shape, quote: Quote, refusal: Refusal) -> Response<Body> {
        let (reason, state) = match refusal {
            Refusal::Gateway(error) => return rescue::response(&error, shape),
            Refusal::Failed(reason, payer) => {
                let mut response = rescue::response(&GatewayError::PaymentRequired(reason.clone()), shape);
                let settled = SettleResponse { error_reason: Some(reason), ..self.settled(payer) };
                put(&mut response, RESPONSE_HEADER, &encode(&SettleResponse { success: false, ..settled }));
                return response;
            }
            Refusal::Unpaid(reason) => (reason, None),
            Refusal::Corrective(state, voucher) => (batch::CUMULATIVE_MISMATCH.into(), Some((*state, voucher))),
        };
        let (channel_state, voucher_state) = state.map_or((None, None), |(state, voucher)| (Some(state), voucher));
        let plain = Extra {
            name: self.token.name.as_deref().unwrap_or_default().into(),
            version: self.token.version.as_deref().unwrap_or_default().into(),
            receiver_authorizer: None,
            withdraw_delay: None,
            channel_state: None,
            voucher_state: None,
        };
        let channel = Extra {
            receiver_authorizer: Some(self.payee),
            withdraw_delay: Some(self.withdraw_delay),
            channel_state,
            voucher_state,
            ..plain.clone()
        };
        let requirements = |scheme, extra| Requirements {
            scheme,
            network: self.caip2.clone(),
            amount: quote.amount,
            asset: self.network.addresses.token,
            pay_to: self.payee,
            max_timeout_seconds: VALID_S,
            extra,
        };
        let required = PaymentRequired {
            x402_version: VERSION,
            error: reason.clone(),
            resource: Resource {
                url,
                description: "an answer of a language model, with a receipt".into(),
                mime_type: "application/json".into(),
            },
            // A voucher costs no gas.
            accepts: vec![requirements(Scheme::BatchSettlement, channel), requirements(Scheme::Exact, plain)],
        };
        let mut response = rescue::response(&GatewayError::PaymentRequired(reason), shape);
        put(&mut response, REQUIRED_HEADER, &encode(&required));
        response
    }

    /// A settled payment that moved nothing.
    fn settled(&self, payer: Address) -> SettleResponse {
        SettleResponse {
            success: true,
            error_reason: None,
            payer: Some(payer),
            transaction: String::new(),
            network: self.caip2.clone(),
            amount: String::new(),
            extra: None,
        }
    }

    /// Whether `payer` has the tokens for all that it has promised to running requests.
    async fn check_funds(&self, payer: Address, held: Amount, reason: &str) -> Result<(), Refusal> {
        let balance = self.network.token.balance_of(payer).await.map_err(Refusal::chain)?;
        if balance < held { Err(Refusal::unpaid(reason)) } else { Ok(()) }
    }

    /// Puts what channels owe into the gateway's account.
    pub(crate) async fn claim_all(&self) -> Result<(), ChainError> {
        claims::claim_all(&self.network, &self.books).await
    }

    /// Nothing is written any more.
    pub(crate) async fn close(&self) {
        self.books.close().await;
    }
}

/// `router` behind `toll`.
pub(crate) fn guard(router: Router, toll: Arc<Toll>) -> Router {
    router.layer(from_fn_with_state(toll, Toll::pass))
}

/// Whoever shows a key, right or wrong, does not pay here.
fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key(AUTHORIZATION) || headers.contains_key("x-api-key")
}

/// `value` is base64.
fn put(response: &mut Response<Body>, header: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(HeaderName::from_static(header), value);
    }
}
