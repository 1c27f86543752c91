//! What a request costs at most, before it is tokenized, and what it did cost.

use assay_types::{Amount, Prices};
use axum::body::{Body, Bytes};
use axum::http::Response;
use axum::http::header::CONTENT_TYPE;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::Value;

/// Tokens that a chat template may add around what the messages say.
const TEMPLATE_TOKENS: u64 = 1024;
/// Choices of one request; more are refused by the API.
const CHOICES_MAX: u64 = assay_api::CHOICES_MAX as u64;

/// The most that a request costs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Quote {
    pub(super) amount: Amount,
    prices: Prices,
}

/// What of a request the price depends on. Numbers that are none count as missing: the API refuses them.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Wishes {
    n: Value,
    max_tokens: Value,
    max_completion_tokens: Value,
    max_output_tokens: Value,
}

impl Wishes {
    /// The largest bound on the output that a request of this kind may name.
    fn output(&self, bounds: &[&str]) -> Option<u64> {
        let fields = [
            ("max_tokens", &self.max_tokens),
            ("max_completion_tokens", &self.max_completion_tokens),
            ("max_output_tokens", &self.max_output_tokens),
        ];
        fields.iter().filter(|(name, _)| bounds.contains(name)).filter_map(|(_, value)| value.as_u64()).max()
    }
}

/// What an answer says that it took.
#[derive(Deserialize)]
struct Answer {
    usage: Usage,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(alias = "output_tokens")]
    completion_tokens: u64,
}

impl Quote {
    /// A token of text has at least one byte, so the body's length bounds the prompt; the output is bounded by what the
    /// request says, else by `default_tokens`, and by the longest context there is.
    pub(super) fn of(body: &[u8], bounds: &[&str], prices: &Prices, default_tokens: u32, longest: u32) -> Self {
        let longest = u64::from(longest);
        let wishes = match serde_json::from_slice(body) {
            Ok(wishes) => wishes,
            Err(_) if body.is_empty() => Wishes::default(),
            // Also two fields of one name, of which the API may take the other: as dear as it can be.
            Err(_) => Wishes {
                n: CHOICES_MAX.into(),
                max_tokens: longest.into(),
                max_output_tokens: longest.into(),
                ..Wishes::default()
            },
        };
        let output = wishes.output(bounds).unwrap_or(default_tokens.into()).clamp(1, longest.max(1));
        let input = (body.len() as u64).saturating_add(TEMPLATE_TOKENS).min(longest);
        let choices = wishes.n.as_u64().unwrap_or(1).clamp(1, CHOICES_MAX);
        // Both factors are far below 2^32.
        let amount = prices.charge_up(input.saturating_mul(choices), output.saturating_mul(choices));
        // Nobody pays `u128::MAX`; prices that lead there sell nothing.
        Self { amount: amount.unwrap_or(Amount(u128::MAX)), prices: *prices }
    }

    /// An answer and what it costs: by its tokens if it is whole, all that was quoted if it is a stream, whose length
    /// nobody knows when its head is sent.
    pub(super) async fn measure(&self, answer: Response<Body>) -> Result<(Response<Body>, Amount), axum::Error> {
        let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if kind.starts_with("text/event-stream") {
            return Ok((answer, self.amount));
        }
        let (head, body) = answer.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let cost = self.cost(&bytes);
        Ok((Response::from_parts(head, Body::from(bytes)), cost))
    }

    fn cost(&self, answer: &Bytes) -> Amount {
        let Ok(Answer { usage }) = serde_json::from_slice(answer) else { return self.amount };
        let charge = self.prices.charge_up(usage.prompt_tokens, usage.completion_tokens);
        charge.map_or(self.amount, |charge| charge.min(self.amount))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: Prices = Prices { input_per_million: Amount(1_000_000), output_per_million: Amount(10_000_000) };

    #[test]
    fn the_quote_bounds_input_by_bytes_and_output_by_what_is_asked() {
        let check = |body: &str, output: u64, choices: u64| {
            let input = (body.len() as u64 + TEMPLATE_TOKENS).min(4000);
            let bounds = ["max_tokens", "max_completion_tokens"];
            let amount = Quote::of(body.as_bytes(), &bounds, &PRICES, 100, 4000).amount;
            assert_eq!(amount, Amount(u128::from(choices * (input + 10 * output))), "{body}");
        };
        check("", 100, 1);
        check("not json", 4000, CHOICES_MAX);
        check(r#"{"n":1,"n":16,"max_tokens":1}"#, 4000, CHOICES_MAX);
        check("[]", 100, 1);
        check(r#"{"max_tokens":7}"#, 7, 1);
        check(r#"{"max_tokens":7,"max_completion_tokens":9}"#, 9, 1);
        check(r#"{"max_tokens":9,"max_completion_tokens":7}"#, 9, 1);
        // Of another kind of request: this one is not bound by it.
        check(r#"{"max_output_tokens":1}"#, 100, 1);
        check(r#"{"max_tokens":"7"}"#, 100, 1);
        check(r#"{"max_tokens":0}"#, 1, 1);
        check(r#"{"max_tokens":-1}"#, 100, 1);
        check(r#"{"max_tokens":18446744073709551615,"n":3}"#, 4000, 3);
        check(r#"{"n":18446744073709551615}"#, 100, CHOICES_MAX);
        check(&format!(r#"{{"x":"{}"}}"#, "y".repeat(9000)), 100, 1);
    }

    #[test]
    fn an_answer_costs_its_tokens_and_never_more_than_the_quote() {
        let quote = Quote { amount: Amount(100), prices: PRICES };
        let cost = |answer: &str| quote.cost(&Bytes::copy_from_slice(answer.as_bytes())).0;
        assert_eq!(cost(r#"{"usage":{"prompt_tokens":11,"completion_tokens":3}}"#), 41);
        assert_eq!(cost(r#"{"usage":{"prompt_tokens":11,"completion_tokens":30}}"#), 100);
        assert_eq!(cost(r#"{"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":0}}"#), 100);
        assert_eq!(cost(r#"{"usage":{"input_tokens":11,"output_tokens":3,"total_tokens":14}}"#), 41);
        assert_eq!(cost(r#"{"usage":null}"#), 100);
        assert_eq!(cost("what"), 100);
    }
}
