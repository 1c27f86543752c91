//! What the next step computes: which sequences decode one token, and how many prompt tokens of which others are
//! prefilled. Pure: no clock, no memory, no model.
//!
//! Rules. Every sequence that can decode does, in every step. Prompt tokens share a per-step budget by equal parts
//! (what one does not need goes to the rest), so a long prompt never holds up a short one and none starves. While
//! anything decodes the budget is a quarter, so that running streams keep their pace. The plan never affects the
//! bits of any output, only when they appear.

/// What a sequence could do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Its consumer is behind: it does nothing this step.
    Paused,
    /// It has one token to decode.
    Decode,
    /// It has this many prompt tokens left to prefill, at least 1.
    Prefill(usize),
}

/// One part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Index of the sequence in the list that was planned.
    pub sequence: usize,
    /// Tokens it takes this step, at least 1.
    pub n_tokens: usize,
}

/// Plans one step over `ready`, writing it to `plan` in sequence order. At most `prefill_budget` prompt tokens are
/// planned in total, plus one token for each sequence that decodes. `prefill_budget` is at least 1.
pub fn plan(ready: &[Ready], prefill_budget: usize, plan: &mut Vec<Work>) {
    assert!(prefill_budget > 0, "a budget of nothing would never finish");
    plan.clear();
    let decoding = ready.contains(&Ready::Decode);
    let budget = if decoding { prefill_budget.div_ceil(4) } else { prefill_budget };
    let share = fair_share(ready, budget);
    let mut left = budget;
    for (sequence, state) in ready.iter().enumerate() {
        match *state {
            Ready::Paused => {}
            Ready::Decode => plan.push(Work { sequence, n_tokens: 1 }),
            Ready::Prefill(remaining) => {
                // The rounding rest (share + 1 would exceed the budget) goes to the oldest sequences.
                let n_tokens = remaining.min(share.max(1)).min(left);
                if n_tokens > 0 {
                    plan.push(Work { sequence, n_tokens });
                    left -= n_tokens;
                }
            }
        }
    }
    give_rest_to_oldest(ready, left, plan);
}

/// The largest equal part such that the parts of all prefilling sequences fit the budget.
fn fair_share(ready: &[Ready], budget: usize) -> usize {
    let wants = || {
        ready.iter().filter_map(|state| match state {
            Ready::Prefill(remaining) => Some(*remaining),
            _ => None,
        })
    };
    // Water filling: sequences that want less than an equal part raise the part of the others.
    let mut share = 0;
    loop {
        let (mut unsatisfied, mut spent) = (0, 0);
        for want in wants() {
            spent += want.min(share);
            unsatisfied += usize::from(want > share);
        }
        let rise = (budget - spent).checked_div(unsatisfied).unwrap_or(0);
        if rise == 0 {
            return share;
        }
        share += rise;
    }
}

fn give_rest_to_oldest(ready: &[Ready], mut left: usize, plan: &mut [Work]) {
    for work in plan {
        if let Ready::Prefill(remaining) = ready[work.sequence] {
            let more = left.min(remaining - work.n_tokens);
            work.n_tokens += more;
            left -= more;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ready::{Decode, Paused, Prefill};
    use super::*;

    fn check(ready: &[Ready], budget: usize, expect: &[(usize, usize)]) {
        let mut works = Vec::new();
        plan(ready, budget, &mut works);
        let works: Vec<_> = works.iter().map(|work| (work.sequence, work.n_tokens)).collect();
        assert_eq!(works, expect, "{ready:?} with budget {budget}");
    }

    #[test]
    fn plans() {
        check(&[], 256, &[]);
        check(&[Paused], 256, &[]);
        check(&[Decode, Paused, Decode], 256, &[(0, 1), (2, 1)]);
        check(&[Prefill(1000)], 256, &[(0, 256)]);
        check(&[Prefill(10)], 256, &[(0, 10)]);
        // Decoding streams leave prefill a quarter.
        check(&[Prefill(1000), Decode], 256, &[(0, 64), (1, 1)]);
        // A short prompt is not stuck behind a long one, and what it leaves goes to the long one.
        check(&[Prefill(1000), Prefill(10)], 256, &[(0, 246), (1, 10)]);
        check(&[Prefill(1000), Prefill(1000), Prefill(6)], 256, &[(0, 125), (1, 125), (2, 6)]);
        // The rest of a division goes to the oldest.
        check(&[Prefill(9), Prefill(9), Prefill(9)], 8, &[(0, 4), (1, 2), (2, 2)]);
        // More sequences than budget: the oldest come first; they finish, so the others have their turn.
        check(&[Prefill(5), Prefill(5), Prefill(5)], 2, &[(0, 1), (1, 1)]);
        check(&[Decode, Prefill(5)], 1, &[(0, 1), (1, 1)]);
    }

    #[test]
    fn every_prompt_finishes_and_no_step_exceeds_its_budget() {
        for budget in 1..20 {
            let mut remaining: Vec<usize> = (0..9).map(|i| (i * 37) % 50 + 1).collect();
            let total: usize = remaining.iter().sum();
            let mut works = Vec::new();
            for _ in 0..total {
                let ready: Vec<_> =
                    remaining.iter().map(|left| if *left == 0 { Paused } else { Prefill(*left) }).collect();
                plan(&ready, budget, &mut works);
                let planned: usize = works.iter().map(|work| work.n_tokens).sum();
                assert_eq!(planned, budget.min(remaining.iter().sum()));
                for work in &works {
                    remaining[work.sequence] -= work.n_tokens;
                }
                if remaining.iter().all(|left| *left == 0) {
                    break;
                }
            }
            assert!(remaining.iter().all(|left| *left == 0));
        }
    }
}
