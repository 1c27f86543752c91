//! How the tokens of one stream become money.

use assay_types::{Amount, CHUNK_TOKENS, Job, Prices};

/// What both sides of one stream agreed on when it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamTerms {
    /// Prices that hold for the whole stream.
    pub prices: Prices,
    /// Tokens billed as input: prompt and prefix.
    pub input_tokens: u64,
    /// Most tokens this stream can produce: the job's `max_tokens` without its prefix.
    pub output_tokens_max: u64,
}

impl StreamTerms {
    /// The terms of `job` at `prices`. Vectors are paid for by the tokens that were read, whatever they have of values.
    #[must_use]
    pub fn new(job: &Job, prices: Prices) -> Self {
        let output_per_million = if job.embed.is_some() { Amount::ZERO } else { prices.output_per_million };
        let prices = Prices { output_per_million, ..prices };
        let prefix = job.prefix.len() as u64;
        let output_tokens_max = u64::from(job.max_tokens).saturating_sub(prefix);
        Self { prices, input_tokens: job.input_tokens(), output_tokens_max }
    }

    /// What the stream costs once it has `output_tokens`, rounded up; `u128::MAX`, which nobody can pay, where the
    /// sum is larger.
    #[must_use]
    pub fn charge_up(&self, output_tokens: u64) -> Amount {
        self.prices.charge_up(self.input_tokens, output_tokens).unwrap_or(Amount(u128::MAX))
    }

    /// What has to be granted so that the chunk after `output_tokens` is paid for.
    ///
    /// The first grant is `grant_after(0)`; the answer to a checkpoint at `n` is `grant_after(n)`.
    #[must_use]
    pub fn grant_after(&self, output_tokens: u64) -> Amount {
        let paid_to = output_tokens.saturating_add(u64::from(CHUNK_TOKENS)).min(self.output_tokens_max);
        self.charge_up(paid_to)
    }

    /// Output tokens that `granted` pays for: the largest `n <= output_tokens_max` with `charge_up(n) <= granted`,
    /// or `None` if it does not even pay for the input. Binary search: `charge_up` is monotonic.
    #[must_use]
    pub fn paid_tokens(&self, granted: Amount) -> Option<u64> {
        if self.charge_up(0) > granted {
            return None;
        }
        let (mut paid, mut unpaid) = (0u64, self.output_tokens_max.saturating_add(1));
        // Invariant: charge_up(paid) <= granted; everything from `unpaid` on is not known to be paid.
        while unpaid.saturating_sub(paid) > 1 {
            let middle = paid.midpoint(unpaid);
            if self.charge_up(middle) <= granted {
                paid = middle;
            } else {
                unpaid = middle;
            }
        }
        Some(paid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(input: u128, output: u128, input_tokens: u64, output_tokens_max: u64) -> StreamTerms {
        let prices = Prices { input_per_million: Amount(input), output_per_million: Amount(output) };
        StreamTerms { prices, input_tokens, output_tokens_max }
    }

    #[test]
    fn a_grant_pays_for_exactly_the_tokens_it_was_made_for() {
        for (input, output) in [(0, 0), (1, 1), (50_000, 100_000), (3_000_000, 7_000_001), (u128::MAX >> 40, 1 << 80)] {
            let terms = terms(input, output, 10, 200);
            for n in 0..=200 {
                let paid = terms.paid_tokens(terms.charge_up(n)).unwrap();
                // Cheap tokens round up to the same charge; then the grant pays for more of them.
                assert!(paid >= n && terms.charge_up(paid) == terms.charge_up(n), "{input} {output} {n} {paid}");
                assert!(paid == 200 || terms.charge_up(paid + 1) > terms.charge_up(n));
            }
        }
    }

    #[test]
    fn a_grant_below_the_input_pays_for_nothing() {
        let terms = terms(1_000_000, 1_000_000, 10, 5);
        assert_eq!(terms.paid_tokens(Amount(9)), None);
        assert_eq!(terms.paid_tokens(Amount(10)), Some(0));
        assert_eq!(terms.paid_tokens(Amount(13)), Some(3));
        assert_eq!(terms.paid_tokens(Amount(u128::MAX)), Some(5));
    }

    #[test]
    fn the_last_grant_stops_at_max_tokens() {
        let terms = terms(0, 1_000_000, 1, 100);
        assert_eq!(terms.grant_after(0), Amount(64));
        assert_eq!(terms.grant_after(64), Amount(100));
        assert_eq!(terms.grant_after(u64::MAX), Amount(100));
    }

    #[test]
    fn a_price_above_u128_can_not_be_paid() {
        let terms = terms(u128::MAX, u128::MAX, u64::MAX, u64::MAX);
        assert_eq!(terms.charge_up(1), Amount(u128::MAX));
        assert_eq!(terms.paid_tokens(Amount(1 << 100)), None);
    }
}
