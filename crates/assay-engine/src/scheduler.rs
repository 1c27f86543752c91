//! What the next step computes: which sequences decode one token, and how many prompt tokens of which others are
//! prefilled; and which waiting job is the next. Pure: no clock, no memory, no model.
//!
//! Rules. Every sequence that can decode does, in every step. Prompt tokens share a budget (how large it may be while
//! others decode is `pace.rs`): equal parts for every payer, of these equal parts for each of its jobs, and what one
//! does not need goes to the rest. So a long prompt never holds up a short one, a payer with many jobs never holds up
//! one with a single job, and none starves. The plan never affects the bits of any output, only when they appear.

use crate::prefix::Payer;

/// What a sequence could do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Its consumer is behind, or it waits for memory: it does nothing this step.
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

/// Times a waiting job is overtaken by later ones of payers that have fewer jobs in the batch.
const OVERTAKEN_MAX: u32 = 64;

/// Plans one step over `ready`, writing it to `plan` in sequence order: one token for each sequence that decodes, and
/// at most `prefill_budget` prompt tokens in total.
pub fn plan(ready: &[(Payer, Ready)], prefill_budget: usize, plan: &mut Vec<Work>) {
    plan.clear();
    let mut parts = prefill_parts(ready, prefill_budget).into_iter();
    for (sequence, (_, state)) in ready.iter().enumerate() {
        let n_tokens = match state {
            Ready::Paused => 0,
            Ready::Decode => 1,
            Ready::Prefill(_) => parts.next().unwrap_or(0),
        };
        if n_tokens > 0 {
            plan.push(Work { sequence, n_tokens });
        }
    }
}

/// The prompt tokens of each sequence that prefills, in order.
fn prefill_parts(ready: &[(Payer, Ready)], budget: usize) -> Vec<usize> {
    // Payers in order of their oldest job; at most as many as sequences.
    let mut payers: Vec<(Payer, Vec<usize>)> = Vec::new();
    let mut of_payer = Vec::new();
    for (payer, state) in ready {
        let Ready::Prefill(want) = state else { continue };
        let at = payers.iter().position(|(known, _)| known == payer).unwrap_or_else(|| {
            payers.push((*payer, Vec::new()));
            payers.len() - 1
        });
        of_payer.push((at, payers[at].1.len()));
        payers[at].1.push(*want);
    }
    let wants: Vec<usize> = payers.iter().map(|(_, wants)| wants.iter().sum()).collect();
    let parts: Vec<Vec<usize>> =
        split(budget, &wants).into_iter().zip(&payers).map(|(part, (_, wants))| split(part, wants)).collect();
    of_payer.into_iter().map(|(payer, job)| parts[payer][job]).collect()
}

/// Parts of `budget`, equal as far as they are wanted; what division leaves goes to the first ones.
fn split(budget: usize, wants: &[usize]) -> Vec<usize> {
    // Water filling: whoever wants less than an equal part raises the part of the others.
    let mut share = 0;
    loop {
        let (mut unsatisfied, mut spent) = (0, 0);
        for want in wants {
            spent += want.min(&share);
            unsatisfied += usize::from(*want > share);
        }
        match (budget - spent).checked_div(unsatisfied) {
            None | Some(0) => break,
            Some(rise) => share += rise,
        }
    }
    let mut parts: Vec<usize> = wants.iter().map(|want| *want.min(&share)).collect();
    let mut left = budget - parts.iter().sum::<usize>();
    for (part, want) in parts.iter_mut().zip(wants) {
        let more = usize::from(left > 0 && *want > *part);
        *part += more;
        left -= more;
    }
    parts
}

/// Which of `waiting` (each with how often it was overtaken) enters a batch in which jobs of `running` are: the first of
/// the payer with the fewest jobs there, or one that was overtaken often.
pub fn next_waiting(waiting: impl Iterator<Item = (Payer, u32)>, running: &[Payer]) -> Option<usize> {
    let rank = |(_, (payer, overtaken)): &(usize, (Payer, u32))| {
        let n_running = running.iter().filter(|running| *running == payer).count();
        (*overtaken < OVERTAKEN_MAX, if *overtaken < OVERTAKEN_MAX { n_running } else { 0 })
    };
    // The first of equals.
    waiting.enumerate().min_by_key(rank).map(|(i, _)| i)
}

#[cfg(test)]
mod tests {
    use super::Ready::{Decode, Paused, Prefill};
    use super::*;

    const A: Payer = Payer([1; 20]);
    const B: Payer = Payer([2; 20]);

    fn check_payers(ready: &[(Payer, Ready)], budget: usize, expect: &[(usize, usize)]) {
        let mut works = Vec::new();
        plan(ready, budget, &mut works);
        let works: Vec<_> = works.iter().map(|work| (work.sequence, work.n_tokens)).collect();
        assert_eq!(works, expect, "{ready:?} with budget {budget}");
    }

    fn check(ready: &[Ready], budget: usize, expect: &[(usize, usize)]) {
        let ready: Vec<_> = ready.iter().map(|ready| (A, *ready)).collect();
        check_payers(&ready, budget, expect);
    }

    #[test]
    fn plans() {
        check(&[], 256, &[]);
        check(&[Paused], 256, &[]);
        check(&[Decode, Paused, Decode], 256, &[(0, 1), (2, 1)]);
        check(&[Prefill(1000)], 256, &[(0, 256)]);
        check(&[Prefill(10)], 256, &[(0, 10)]);
        check(&[Prefill(1000), Decode], 64, &[(0, 64), (1, 1)]);
        check(&[Prefill(1000), Decode], 0, &[(1, 1)]);
        // A short prompt is not stuck behind a long one, and what it leaves goes to the long one.
        check(&[Prefill(1000), Prefill(10)], 256, &[(0, 246), (1, 10)]);
        check(&[Prefill(1000), Prefill(1000), Prefill(6)], 256, &[(0, 125), (1, 125), (2, 6)]);
        // The rest of a division goes to the oldest.
        check(&[Prefill(9), Prefill(9), Prefill(9)], 8, &[(0, 3), (1, 3), (2, 2)]);
        // More sequences than budget: the oldest come first; they finish, so the others have their turn.
        check(&[Prefill(5), Prefill(5), Prefill(5)], 2, &[(0, 1), (1, 1)]);
        check(&[Decode, Prefill(5)], 1, &[(0, 1), (1, 1)]);
    }

    #[test]
    fn payers_share_equally_however_many_jobs_they_have() {
        let ready = [(A, Prefill(900)), (A, Prefill(900)), (B, Prefill(900)), (A, Prefill(900))];
        check_payers(&ready, 120, &[(0, 20), (1, 20), (2, 60), (3, 20)]);
        let ready = [(A, Prefill(900)), (B, Prefill(10)), (A, Decode), (A, Prefill(900))];
        check_payers(&ready, 120, &[(0, 55), (1, 10), (2, 1), (3, 55)]);
    }

    #[test]
    fn every_prompt_finishes_and_no_step_exceeds_its_budget() {
        for budget in 1..20 {
            let mut remaining: Vec<usize> = (0..9).map(|i| (i * 37) % 50 + 1).collect();
            let total: usize = remaining.iter().sum();
            let mut works = Vec::new();
            for _ in 0..total {
                let state = |left: &usize| if *left == 0 { Paused } else { Prefill(*left) };
                let ready: Vec<_> =
                    remaining.iter().enumerate().map(|(i, left)| ([A, B][i % 2], state(left))).collect();
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

    #[test]
    fn the_payer_with_the_fewest_jobs_is_next_unless_somebody_waited_long() {
        let check = |waiting: &[(Payer, u32)], running: &[Payer], expect| {
            assert_eq!(next_waiting(waiting.iter().copied(), running), expect, "{waiting:?} beside {running:?}");
        };
        check(&[], &[A], None);
        check(&[(A, 0), (A, 0)], &[], Some(0));
        check(&[(A, 0), (B, 0)], &[A], Some(1));
        check(&[(A, 0), (B, 0)], &[A, B], Some(0));
        check(&[(A, 63), (B, 0)], &[A], Some(1));
        check(&[(A, 0), (A, 64), (B, 0)], &[A], Some(1));
        check(&[(A, 64), (B, 64)], &[A], Some(0));
    }
}
