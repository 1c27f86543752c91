//! How long steps take here, learned while they run, so that prefill beside running streams does not slow them down
//! too much. Owns the model of a step's time; it decides when something is computed, never what. Pure: the caller
//! measures.
//!
//! Model: a step in which n sequences decode takes `undisturbed[n]`, about one read of the weights; each prompt token in
//! it adds its arithmetic, which grows with the position, so the newest steps count most. Of every
//! [`STEPS_BETWEEN`] steps beside a prefill one is without it, so that the comparison stays fresh as contexts grow.

use std::time::Duration;

/// What a running stream may wait for a token beside a prefill, in percent of what it waits without. Below 200, so
/// that a step that takes a little longer than the last ones is still within twice the undisturbed time.
const SLOWDOWN_PERCENT: u64 = 165;

/// Prompt tokens of the first step beside streams, when nothing is known about their cost.
const FIRST_TOKENS: usize = 8;

/// Steps with prompt tokens between two without.
const STEPS_BETWEEN: u32 = 32;

/// Undisturbed steps of which the fastest counts: others on the machine make a step slow, nothing makes it fast.
const UNDISTURBED: usize = 4;

/// What is known of the time of steps.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// By the number of sequences that decode: the newest undisturbed steps, in ns; 0 is none.
    undisturbed: Vec<[u64; UNDISTURBED]>,
    /// What a prompt token added in the newest steps with both, in ns; 0 is none. The middle one counts: a step that
    /// others on the machine held up says nothing about the next.
    per_token: [u64; 3],
    /// Prompt tokens of the newest step with both.
    newest_tokens: usize,
    /// Steps with prompt tokens since the last undisturbed one.
    since_undisturbed: u32,
}

impl Pace {
    /// A step in which `n_decode` sequences decoded and `n_prefill` prompt tokens were computed took `time`.
    pub fn observe(&mut self, n_decode: usize, n_prefill: usize, time: Duration) {
        if n_decode == 0 {
            return;
        }
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
        if n_prefill == 0 {
            if self.undisturbed.len() <= n_decode {
                self.undisturbed.resize(n_decode + 1, [0; UNDISTURBED]);
            }
            let times = &mut self.undisturbed[n_decode];
            times.rotate_right(1);
            times[0] = time;
            self.since_undisturbed = 0;
            return;
        }
        self.since_undisturbed += 1;
        self.newest_tokens = n_prefill;
        let Some(undisturbed) = self.undisturbed(n_decode) else { return };
        let cost = (time.saturating_sub(undisturbed) / n_prefill as u64).max(1);
        self.per_token.rotate_right(1);
        self.per_token[0] = cost;
    }

    /// Prompt tokens of the next step, at most `max`, beside `n_decode` sequences that decode. 0 for a step that shows
    /// how long they take undisturbed.
    pub fn prefill_budget(&self, n_decode: usize, max: usize) -> usize {
        if n_decode == 0 {
            return max;
        }
        let Some(undisturbed) = self.undisturbed(n_decode).filter(|_| self.since_undisturbed < STEPS_BETWEEN) else {
            return 0;
        };
        let Some(per_token) = self.per_token() else { return FIRST_TOKENS.min(max) };
        let spare = undisturbed.saturating_mul(SLOWDOWN_PERCENT - 100) / 100;
        let tokens = usize::try_from(spare / per_token).unwrap_or(usize::MAX);
        // The first tokens beside a decode are cheaper than the next ones: their cost is learned on the way up.
        let step_up = (self.newest_tokens + self.newest_tokens / 2).max(FIRST_TOKENS);
        tokens.clamp(1, step_up).min(max)
    }

    /// The middle of what is known; the dearer one of two.
    fn per_token(&self) -> Option<u64> {
        let mut known: Vec<u64> = self.per_token.into_iter().filter(|cost| *cost > 0).collect();
        known.sort_unstable();
        known.get(known.len() / 2).copied()
    }

    fn undisturbed(&self, n_decode: usize) -> Option<u64> {
        self.undisturbed.get(n_decode)?.iter().copied().filter(|time| *time > 0).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 256;

    /// Runs `n_steps` steps of a machine on which a step takes `time(n_prefill)` microseconds beside one stream.
    fn run(pace: &mut Pace, n_steps: usize, time: impl Fn(usize) -> u64) -> Vec<usize> {
        let mut budgets = Vec::new();
        for _ in 0..n_steps {
            let n_prefill = pace.prefill_budget(1, MAX);
            pace.observe(1, n_prefill, Duration::from_micros(time(n_prefill)));
            budgets.push(n_prefill);
        }
        budgets
    }

    #[test]
    fn nobody_decodes_so_nobody_waits() {
        assert_eq!(Pace::default().prefill_budget(0, MAX), MAX);
    }

    #[test]
    fn the_first_step_beside_a_stream_is_undisturbed_and_the_next_one_careful() {
        let mut pace = Pace::default();
        assert_eq!(run(&mut pace, 2, |n| 10_000 + 500 * n as u64), [0, FIRST_TOKENS]);
        // Another number of streams has another time.
        assert_eq!(pace.prefill_budget(2, MAX), 0);
    }

    #[test]
    fn steps_stay_within_the_slowdown_whatever_a_token_costs() {
        // Linear; free up to 16 tokens; dearer with every step.
        let costs: [fn(usize) -> u64; 3] = [
            |n| 10_000 + 300 * n as u64,
            |n| 10_000 + 200 * n.saturating_sub(16) as u64,
            |n| 10_000 + 40 * (n as u64) * (n as u64),
        ];
        for cost in costs {
            let mut pace = Pace::default();
            let budgets = run(&mut pace, 400, cost);
            let times: Vec<u64> = budgets.iter().map(|n| cost(*n)).collect();
            assert!(times.iter().all(|time| *time <= 20_000), "{budgets:?}");
            let mean = times.iter().sum::<u64>() / times.len() as u64;
            assert!(mean > 14_000, "the room there is is used: {budgets:?}");
            let looks = budgets.iter().filter(|n| **n == 0).count();
            assert_eq!(looks, 1 + 400 / (STEPS_BETWEEN as usize + 1), "now and then a step is undisturbed");
        }
    }

    #[test]
    fn a_cost_that_grows_slowly_is_followed() {
        let mut pace = Pace::default();
        for position in 0..1000_u64 {
            let n = pace.prefill_budget(1, MAX);
            let time = 10_000 + n as u64 * (200 + position);
            assert!(time <= 20_000, "{n} tokens at step {position}");
            pace.observe(1, n, Duration::from_micros(time));
        }
    }

    #[test]
    fn a_slow_step_changes_nothing() {
        let mut pace = Pace::default();
        let cost = |n| 10_000 + 300 * n as u64;
        run(&mut pace, 100, cost);
        let before = pace.prefill_budget(1, MAX);
        for n_prefill in [0, before] {
            pace.observe(1, n_prefill, Duration::from_millis(500));
            assert_eq!(pace.prefill_budget(1, MAX), before);
        }
        // Nor does every fourth one.
        for i in 0..100 {
            let n = pace.prefill_budget(1, MAX);
            pace.observe(1, n, Duration::from_micros(if i % 4 == 3 { 400_000 } else { cost(n) }));
            assert!(n == 0 || n >= before - 1, "{n} of {before} tokens at step {i}");
        }
    }

    #[test]
    fn a_prompt_gets_on_however_dear_its_tokens_are() {
        let mut pace = Pace::default();
        let budgets = run(&mut pace, 100, |n| 10 + 1_000_000 * n as u64);
        assert!(budgets[2..].iter().all(|n| [0, 1].contains(n)), "{budgets:?}");
    }
}
