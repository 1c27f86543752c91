//! Who has KV memory: which jobs enter the batch, which of them are parked when it is short, and who gets it back.
//!
//! A job is admitted when there is memory for its input and a little more, not for the longest output it may have.
//! If that was too hopeful, the youngest job of the batch is parked: its memory goes to older ones, what it computed
//! stays in the prefix cache as long as possible, and later it is prefilled again with prompt and output so far, which
//! gives the same bits. Nothing is lost but time.
//!
//! Why everything ends. Memory goes to the oldest first: only younger jobs, and jobs whose consumer has been behind
//! for a while, are parked for a job; parked jobs come back in order of age, and before them nobody new is admitted. The
//! oldest job alone always fits, because a job that does not fit the whole memory was refused.

use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use crate::drive::Driver;
use crate::engine::Inbox;
use crate::prefix::Payer;
use crate::scheduler::{self, Ready, Work};
use crate::sequence::{Pending, Sequence, promise};

/// Rounds of the engine after which a job whose consumer is behind may lose its memory to anybody. A round is a step,
/// or 2 ms if there is nothing to compute.
const ROUNDS_BEHIND: u32 = 64;

impl Driver<'_> {
    /// Gives parked jobs their memory back, oldest first. `false` if one is left that could go on.
    pub fn seat_parked(&mut self) -> bool {
        for i in 0..self.sequences.len() {
            while self.sequences[i].wants_memory() && !self.seat(i) {
                if !self.park_one_behind(i) {
                    return false;
                }
            }
        }
        true
    }

    /// The waiting job whose turn it is, if there is place and memory for it. If it has to wait for memory, it holds back
    /// the others, so that it cannot be starved by small ones.
    pub fn next_job(&mut self, inbox: &mut MutexGuard<'_, Inbox>) -> Option<Pending> {
        if self.sequences.len() >= self.options.sequences_max {
            return None;
        }
        let running: Vec<Payer> = self.sequences.iter().map(|sequence| sequence.payer).collect();
        let turn = scheduler::next_waiting(inbox.waiting.iter().map(|job| (job.payer, job.overtaken)), &running)?;
        let next = &inbox.waiting[turn];
        while !self.pool.fits(next.payer, &next.input, promise(next.input.len(), next.positions)) {
            if !self.park_one_behind(usize::MAX) {
                return None;
            }
        }
        inbox.waiting.iter_mut().take(turn).for_each(|job| job.overtaken += 1);
        inbox.waiting.remove(turn)
    }

    /// Takes a job that fits into the batch.
    pub fn admit(&mut self, pending: Pending) {
        self.sequences.push(Sequence::new(pending));
        let is_seated = self.seat(self.sequences.len() - 1);
        debug_assert!(is_seated, "it was admitted because it fits");
    }

    fn seat(&mut self, i: usize) -> bool {
        let known = self.sequences[i].seat(&mut self.pool);
        if let Some(known) = known {
            self.shared.count_known(known);
        }
        known.is_some()
    }

    /// Counts how long consumers have been behind, and lets prompts go on from what others computed meanwhile.
    pub fn begin_round(&mut self) {
        for sequence in &mut self.sequences {
            sequence.rounds_behind = if sequence.is_behind() { sequence.rounds_behind.saturating_add(1) } else { 0 };
            if let (Ready::Prefill(_), Some(kv)) = (sequence.ready(), &mut sequence.kv) {
                let known = self.pool.attach(kv, &sequence.tokens);
                self.shared.prefix_tokens.fetch_add(known as u64, Ordering::Relaxed);
            }
        }
    }

    /// Whether a job should wait because an older one is computing the very block that it needs next.
    pub fn follows(&self, i: usize) -> bool {
        let follower = &self.sequences[i];
        let Some(kv) = &follower.kv else { return false };
        let end = kv.len() + assay_num::KV_CHUNK;
        if !self.pool.is_caching() || !kv.len().is_multiple_of(assay_num::KV_CHUNK) || end >= follower.tokens.len() {
            return false;
        }
        self.sequences[..i].iter().any(|leader| {
            let at = leader.kv.as_ref().map_or(0, |kv| kv.len());
            matches!(leader.ready(), Ready::Prefill(_))
                && leader.payer == follower.payer
                && (kv.len()..end).contains(&at)
                && leader.tokens.starts_with(&follower.tokens[..end])
        })
    }

    /// Promises the memory of the planned step, oldest job first; whoever is parked for it leaves the plan.
    pub fn promise_memory(&mut self) {
        let mut plan = std::mem::take(&mut self.plan);
        plan.retain(|work| self.promise_work(work));
        self.plan = plan;
    }

    fn promise_work(&mut self, work: &Work) -> bool {
        loop {
            let Some(kv) = &mut self.sequences[work.sequence].kv else { return false };
            let n_positions = kv.len() + work.n_tokens;
            if self.pool.extend(kv, n_positions) {
                return true;
            }
            if !self.park_one_behind(work.sequence) {
                let youngest = self.sequences.iter().rposition(|sequence| sequence.kv.is_some());
                self.park(youngest.expect("the one that asks has some"));
            }
        }
    }

    /// Parks the youngest job, other than `but`, whose consumer has been behind for a while.
    fn park_one_behind(&mut self, but: usize) -> bool {
        let behind = |(i, sequence): (usize, &Sequence)| {
            i != but && sequence.kv.is_some() && sequence.rounds_behind >= ROUNDS_BEHIND
        };
        let found = self.sequences.iter().enumerate().rev().find(|it| behind(*it)).map(|(i, _)| i);
        if let Some(i) = found {
            self.park(i);
        }
        found.is_some()
    }

    fn park(&mut self, i: usize) {
        self.sequences[i].park(&mut self.pool);
        self.shared.preemptions.fetch_add(1, Ordering::Relaxed);
    }
}
