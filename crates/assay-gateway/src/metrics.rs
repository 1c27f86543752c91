//! Counters for operators, in the Prometheus text format. Labels have few values: no key, model or provider names.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The gateway's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    responses: Family<Vec<(&'static str, String)>, Counter>,
    faults: Family<Vec<(&'static str, &'static str)>, Counter>,
    pub(crate) requests_running: Gauge,
    pub(crate) providers: Gauge,
    pub(crate) tokens_prompt: Counter,
    pub(crate) tokens_output: Counter,
    /// Streams that went on with another provider.
    pub(crate) failovers: Counter,
    /// Attempts that failed before a token.
    pub(crate) retries: Counter,
    /// Clients that left before the end.
    pub(crate) abandoned: Counter,
    /// Base units of the settlement token, by receipts of finished requests.
    pub(crate) charged: Counter,
    pub(crate) first_token_seconds: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("assay_gateway");
        let metrics = Self {
            responses: Family::default(),
            faults: Family::default(),
            requests_running: Gauge::default(),
            providers: Gauge::default(),
            tokens_prompt: Counter::default(),
            tokens_output: Counter::default(),
            failovers: Counter::default(),
            retries: Counter::default(),
            abandoned: Counter::default(),
            charged: Counter::default(),
            first_token_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            registry: Registry::default(),
        };
        registry.register("responses", "HTTP responses by status", metrics.responses.clone());
        registry.register("provider_faults", "Statements of providers that were refused", metrics.faults.clone());
        registry.register("requests_running", "Requests being answered", metrics.requests_running.clone());
        registry.register("providers_ready", "Providers that take requests", metrics.providers.clone());
        registry.register("prompt_tokens", "Prompt tokens accepted", metrics.tokens_prompt.clone());
        registry.register("output_tokens", "Output tokens received", metrics.tokens_output.clone());
        registry.register("failovers", "Streams resumed with another provider", metrics.failovers.clone());
        registry.register("retries", "Attempts repeated before the first token", metrics.retries.clone());
        registry.register("abandoned", "Requests whose client left", metrics.abandoned.clone());
        registry.register("charged_base_units", "Charged by receipts", metrics.charged.clone());
        let ttft = metrics.first_token_seconds.clone();
        registry.register("first_token_seconds", "From a job to its first token", ttft);
        Self { registry, ..metrics }
    }

    pub(crate) fn response(&self, status: u16) {
        self.responses.get_or_create(&vec![("status", status.to_string())]).inc();
    }

    /// `kind` is one of a few constants.
    pub(crate) fn fault(&self, kind: &'static str) {
        self.faults.get_or_create(&vec![("kind", kind)]).inc();
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
