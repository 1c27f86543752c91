//! The ways to the same logits. Each gives a hash per position.

use assay_engine::{KvPool, KvSeq, Model, Payer, Runner, Slice};
use assay_num::Kernels;

use crate::models::{Random, Subject};
use crate::plan::{Run, Way};

/// FNV-1a over 64-bit pieces.
pub fn hash_of(pieces: &[u64]) -> u64 {
    pieces.iter().fold(0xcbf2_9ce4_8422_2325, |hash, piece| (hash ^ piece).wrapping_mul(0x0100_0000_01b3))
}

fn hash_row(logits: &[f32]) -> u64 {
    logits.iter().fold(0xcbf2_9ce4_8422_2325, |hash, x| (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3))
}

/// Hashes of the logits from a position on, which is returned too.
pub fn rows(subject: &Subject, kernels: Kernels, run: Run) -> (usize, Vec<u64>) {
    let model = &*subject.model;
    let tokens = if run.is_short { &subject.tokens[..subject.head] } else { &subject.tokens[..] };
    let mut runner = Runner::with_kernels(kernels, run.threads);
    let n = tokens.len();
    match run.way {
        Way::OnePiece => (0, alone(model, &mut runner, tokens, &[n])),
        Way::Chunks => (0, alone(model, &mut runner, tokens, &[n / 3, 1, n / 2])),
        Way::TokenByToken => (0, alone(model, &mut runner, tokens, &[1])),
        Way::CacheMiss => {
            let mut pool = KvPool::new(model.kv_shape(), 2 * n);
            let (from, rows) = cached(model, &mut runner, &mut pool, tokens);
            assert_eq!(from, 0, "an empty cache knows nothing");
            (from, rows)
        }
        Way::CacheHit => {
            let mut pool = KvPool::new(model.kv_shape(), 4 * n);
            let stem = n - n / 10;
            cached(model, &mut runner, &mut pool, &tokens[..stem]);
            let (from, rows) = cached(model, &mut runner, &mut pool, tokens);
            assert!(from > 0 && from <= stem && from < n, "{from} positions of {stem} were known");
            (from, rows)
        }
        Way::Batch(n_sequences) => (0, among(model, &mut runner, &subject.tokens[..subject.head], n_sequences)),
    }
}

fn step(model: &Model, runner: &mut Runner, kv: &mut KvSeq, tokens: &[u32], rows: &mut Vec<u64>) {
    let finite = runner.step(model, &mut [Slice { kv, tokens, logits_from: 0 }]);
    assert_eq!(finite, [true]);
    collect(model, runner, rows);
}

/// Hashes of all logits that the last step was asked for.
fn collect(model: &Model, runner: &mut Runner, rows: &mut Vec<u64>) {
    let (n, mut first) = (runner.n_asked(model), 0);
    while first < n {
        let part = assay_engine::LOGIT_ROWS.min(n - first);
        rows.extend(runner.logits(model, first, part).chunks(model.config().vocab).map(hash_row));
        first += part;
    }
}

/// In steps of the given sizes, the last of which repeats.
fn alone(model: &Model, runner: &mut Runner, tokens: &[u32], steps: &[usize]) -> Vec<u64> {
    let mut pool = KvPool::new(model.kv_shape(), tokens.len());
    let mut kv = pool.reserve(tokens.len()).expect("room for one sequence");
    let mut rows = Vec::new();
    let mut steps = steps.iter().copied();
    let (mut rest, mut size) = (tokens, 1);
    while !rest.is_empty() {
        size = steps.next().unwrap_or(size).max(1);
        let (now, after) = rest.split_at(size.min(rest.len()));
        rest = after;
        pool.grow(&mut kv, now.len());
        step(model, runner, &mut kv, now, &mut rows);
    }
    rows
}

/// What the cache of `pool` does not know, in one piece; it knows all afterwards.
fn cached(model: &Model, runner: &mut Runner, pool: &mut KvPool, tokens: &[u32]) -> (usize, Vec<u64>) {
    let mut kv = pool.reserve_cached(Payer::default(), tokens, tokens.len()).expect("room");
    let from = kv.len();
    let rest = &tokens[from..];
    pool.grow(&mut kv, rest.len());
    let mut rows = Vec::new();
    step(model, runner, &mut kv, rest, &mut rows);
    pool.retire(kv, tokens);
    (from, rows)
}

/// In the middle of `n - 1` other sequences, all in steps of random sizes.
fn among(model: &Model, runner: &mut Runner, tokens: &[u32], n: usize) -> Vec<u64> {
    let mut random = Random(n as u64);
    let own = n / 2;
    let texts: Vec<Vec<u32>> = (0..n)
        .map(|i| {
            let length = tokens.len() / 2 + random.below(tokens.len());
            if i == own { tokens.to_vec() } else { random.tokens(length) }
        })
        .collect();
    let block = assay_num::KV_CHUNK;
    let mut pool = KvPool::new(model.kv_shape(), texts.iter().map(|t| t.len().next_multiple_of(block)).sum());
    let mut states: Vec<KvSeq> = texts.iter().map(|text| pool.reserve(text.len()).expect("room for all")).collect();
    let mut rows = Vec::new();
    while rows.len() < tokens.len() {
        let (mut slices, mut before) = (Vec::new(), None);
        let mut n_asked = 0;
        for (i, (kv, text)) in states.iter_mut().zip(&texts).enumerate() {
            let left = text.len() - kv.len();
            let size = if random.below(2) == 0 { 1 } else { 1 + random.below(9) }.min(left);
            if size == 0 {
                continue;
            }
            if i == own {
                before = Some((n_asked, size));
            }
            n_asked += size;
            let start = kv.len();
            pool.grow(kv, size);
            slices.push(Slice { kv, tokens: &text[start..start + size], logits_from: 0 });
        }
        let finite = runner.step(model, &mut slices);
        assert!(finite.iter().all(|finite| *finite));
        let mut all = Vec::new();
        collect(model, runner, &mut all);
        let (first, size) = before.expect("its text is not at its end");
        rows.extend(&all[first..first + size]);
    }
    rows
}
