//! `GET /r/{id}`: a page that shows a receipt to people and checks it in their browser.
//!
//! The page is the same for every id and holds nothing of any receipt: it asks for the key and fetches the receipt with
//! it, or takes a file. So it needs no key itself.

use crate::gateway::Inner;
use crate::http::typed;
use axum::Router;
use axum::body::Body;
use axum::http::header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY};
use axum::http::{HeaderValue, Response};
use axum::routing::get;
use std::sync::Arc;

/// Only our own scripts, and no other place to send anything to.
const POLICY: &str = "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; \
                      form-action 'none'; base-uri 'none'; frame-ancestors 'none'";

pub(crate) fn paths() -> Router<Arc<Inner>> {
    Router::new()
        .route("/r/{id}", get(async || page("text/html; charset=utf-8", include_str!("page/receipt.html"))))
        .route("/r/page.js", get(async || page("text/javascript; charset=utf-8", include_str!("page/page.js"))))
        .route("/r/verify.js", get(async || page("text/javascript; charset=utf-8", include_str!("page/verify.js"))))
}

fn page(content_type: &'static str, text: &'static str) -> Response<Body> {
    let mut response = typed(content_type, text);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
