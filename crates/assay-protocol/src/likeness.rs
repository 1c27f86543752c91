//! Whether a provider whose engine is not canonical runs the model that it says: its tokens, over many answers, against
//! what the canonical engine gives at each position (Token-DiFR, arXiv 2511.20621), by a sequential test.
//!
//! A single token proves nothing: other arithmetic and other batches move logits a little. So each token is only called
//! odd or not ([`Sign`]), and Wald's sequential probability ratio test asks whether odd ones are as rare as an honest
//! engine's or as frequent as another model's. A test that ends for the provider starts again from nothing.
//!
//! ```text
//!          odd tokens of an honest engine   of another model      a test ends wrongly
//! greedy   at most  2 %                     at least  8 %         against the honest: at most 1 in 10^6
//! drawn    at most  6.5 %                   at least 15 %         for the cheat: at most 1 in 10^3
//! ```
//! The rates hold for tokens that are odd independently given the text before them. That is exact for drawn tokens, whose
//! random numbers are fresh; greedy ones at places that resemble one another are odd together, for which the bound of
//! 2 % leaves room: engines that differ in batching alone stay far below it.

/// A token of an answer beside the canonical engine's logits at its position.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sign {
    /// How the token was to be chosen.
    pub choice: Choice,
    /// It is not one that an honest engine would have taken, or hardly ever.
    pub is_odd: bool,
}

/// How tokens are chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Choice {
    /// The most likely one.
    Greedy,
    /// By random numbers.
    Drawn,
}

/// How a test ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Likeness {
    /// The tokens are those of the model.
    Alike {
        /// Compared in this test.
        tokens: u64,
        /// Of these.
        odd: u64,
    },
    /// They are another's.
    Different {
        /// Compared in this test.
        tokens: u64,
        /// Of these.
        odd: u64,
    },
}

/// A running test of one provider.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LikenessTest {
    /// Of "another model" to "honest", in millionths of a nat.
    log_ratio: i64,
    tokens: u64,
    odd: u64,
}

/// `ln((1 - 10^-3) / 10^-6)` and `ln(10^-3 / (1 - 10^-6))`.
const DIFFERENT: i64 = 13_814_510;
const ALIKE: i64 = -6_907_755;

impl Choice {
    /// What an odd token and one that is not add: `ln(p1 / p0)`, `ln((1 - p1) / (1 - p0))`.
    fn steps(self) -> (i64, i64) {
        match self {
            Self::Greedy => (1_386_294, -63_179),
            Self::Drawn => (836_248, -95_310),
        }
    }
}

impl LikenessTest {
    /// Takes the next token; says something where the test ends, and starts again.
    pub fn on(&mut self, sign: Sign) -> Option<Likeness> {
        let (odd, even) = sign.choice.steps();
        self.log_ratio = self.log_ratio.saturating_add(if sign.is_odd { odd } else { even });
        self.tokens = self.tokens.saturating_add(1);
        self.odd = self.odd.saturating_add(u64::from(sign.is_odd));
        let Self { log_ratio, tokens, odd } = *self;
        if log_ratio < DIFFERENT && log_ratio > ALIKE {
            return None;
        }
        *self = Self::default();
        Some(if log_ratio >= DIFFERENT { Likeness::Different { tokens, odd } } else { Likeness::Alike { tokens, odd } })
    }

    /// Tokens of the running test, and how many of them were odd.
    #[must_use]
    pub fn so_far(&self) -> (u64, u64) {
        (self.tokens, self.odd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tests of tokens that are odd with `odd_ppm`: ends for and against the provider, and the mean length.
    fn run(choice: Choice, odd_ppm: u64, tokens: u64, seed: u64) -> (u64, u64, u64) {
        let (mut test, mut alike, mut different) = (LikenessTest::default(), 0, 0);
        let mut state = seed;
        for _ in 0..tokens {
            // splitmix64
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let is_odd = (z ^ (z >> 31)) % 1_000_000 < odd_ppm;
            match test.on(Sign { choice, is_odd }) {
                Some(Likeness::Alike { .. }) => alike += 1,
                Some(Likeness::Different { .. }) => different += 1,
                None => {}
            }
        }
        (alike, different, tokens / (alike + different).max(1))
    }

    #[test]
    fn honest_engines_pass_a_hundred_thousand_tokens_and_cheats_fall_within_a_thousand() {
        for (choice, honest, cheat) in [(Choice::Greedy, 20_000, 80_000), (Choice::Drawn, 65_000, 150_000)] {
            for seed in 0..20 {
                let (alike, different, _) = run(choice, honest, 100_000, seed);
                assert!(alike > 50 && different == 0, "{choice:?} {seed}: {alike} {different}");
                // On average; a single one is bounded below.
                let (alike, different, mean) = run(choice, cheat, 100_000, seed);
                assert!(different > 50 && alike <= 2 && mean < 1_000, "{choice:?} {seed}: {alike} {different} {mean}");
            }
        }
    }

    #[test]
    fn the_least_run_of_odd_tokens_that_ends_a_test_is_long() {
        let mut test = LikenessTest::default();
        let ends: Vec<_> = (0..10).map(|_| test.on(Sign { choice: Choice::Greedy, is_odd: true })).collect();
        assert_eq!(ends[9], Some(Likeness::Different { tokens: 10, odd: 10 }));
        assert!(ends[..9].iter().all(Option::is_none));
        assert_eq!(test, LikenessTest::default(), "it starts again");
        let mut test = LikenessTest::default();
        let mut even = (1..).map(|n| (n, test.on(Sign { choice: Choice::Greedy, is_odd: false })));
        let first = even.find_map(|(n, end)| end.map(|end| (n, end)));
        assert_eq!(first, Some((110, Likeness::Alike { tokens: 110, odd: 0 })));
    }
}
