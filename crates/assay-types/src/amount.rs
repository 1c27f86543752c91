//! Money: unsigned base units of one ERC-20 token, never a float. Rounding is in the name of each function.

use alloy_primitives::U256;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// An amount in base units of the settlement token (a stablecoin has 6 decimals: 1_000_000 is one dollar).
///
/// In text formats it is a decimal string (JSON numbers lose precision above 2^53), in binary formats a `u128`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Amount(pub u128);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Sum, or `None` above `u128::MAX`.
    #[must_use]
    pub fn checked_add(self, other: Self) -> Option<Self> {
        self.0.checked_add(other.0).map(Self)
    }

    /// Difference, or `None` below zero.
    #[must_use]
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.0.checked_sub(other.0).map(Self)
    }

    /// Difference, zero where `other` is larger.
    #[must_use]
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// Sum, `u128::MAX` where it would be larger: for limits, never for balances.
    #[must_use]
    pub fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(&self.0) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            text.parse().map(Self).map_err(serde::de::Error::custom)
        } else {
            u128::deserialize(deserializer).map(Self)
        }
    }
}

/// What a provider asks, in base units per million tokens.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Prices {
    /// Per million prompt tokens (for a resumed job the tokens so far are prompt, too).
    pub input_per_million: Amount,
    /// Per million output tokens.
    pub output_per_million: Amount,
}

impl Prices {
    /// `ceil((input_tokens * input + output_tokens * output) / 1_000_000)`, or `None` above `u128::MAX`.
    ///
    /// One rounding for the whole request, against the payer by less than one base unit. Monotonic in both counts,
    /// so the charge of a longer prefix of the same output is never smaller.
    #[must_use]
    pub fn charge_up(&self, input_tokens: u64, output_tokens: u64) -> Option<Amount> {
        let input = U256::from(self.input_per_million.0) * U256::from(input_tokens);
        let output = U256::from(self.output_per_million.0) * U256::from(output_tokens);
        let units = (input + output).div_ceil(U256::from(1_000_000u64));
        u128::try_from(units).ok().map(Amount)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charge_rounds_up_once_and_never_overflows() {
        let check = |input: u128, output: u128, n_in: u64, n_out: u64, expect: Option<u128>| {
            let prices = Prices { input_per_million: Amount(input), output_per_million: Amount(output) };
            assert_eq!(prices.charge_up(n_in, n_out), expect.map(Amount), "{input} {output} {n_in} {n_out}");
        };
        check(50_000, 100_000, 0, 0, Some(0));
        check(50_000, 100_000, 1, 0, Some(1));
        check(50_000, 100_000, 20, 0, Some(1));
        check(50_000, 100_000, 20, 1, Some(2));
        check(500_000, 500_000, 1, 1, Some(1));
        check(u128::MAX, 0, 1_000_000, 0, Some(u128::MAX));
        check(u128::MAX, u128::MAX, u64::MAX, u64::MAX, None);
    }

    #[test]
    fn text_form_is_a_decimal_string() {
        assert_eq!(serde_json::to_string(&Amount(u128::MAX)).unwrap(), "\"340282366920938463463374607431768211455\"");
        assert_eq!(serde_json::from_str::<Amount>("\"17\"").unwrap(), Amount(17));
        assert!(serde_json::from_str::<Amount>("\"-1\"").is_err());
        assert!(serde_json::from_str::<Amount>("17").is_err());
    }
}
