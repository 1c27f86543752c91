//! Sampling: order, truncation, and the distribution of the draws.

mod support;

use assay_num::sample::{MICRO, NonFinite, SampleParams, SampleScratch, pick, random};
use assay_num::{check_finite, scalar};
use support::Rng;

const GREEDY: SampleParams = SampleParams { temperature_micro: 0, top_p_micro: MICRO, top_k: 0, seed: 1 };
const PLAIN: SampleParams = SampleParams { temperature_micro: MICRO, ..GREEDY };

fn pick_at(logits: &[f32], params: &SampleParams, position: u64) -> u32 {
    pick(logits, params, position, &mut SampleScratch::new()).unwrap()
}

#[test]
fn greedy_takes_the_greatest_logit_and_the_lowest_id_among_equals() {
    for (logits, expect) in [
        (&[1.0][..], 0),
        (&[1.0, 3.0, 2.0], 1),
        (&[3.0, 1.0, 3.0], 0),
        (&[-0.0, 0.0, -0.0], 1),
        (&[-5.0, -4.0, -4.0], 1),
        (&[f32::MIN, f32::MAX], 1),
    ] {
        assert_eq!(pick_at(logits, &GREEDY, 0), expect, "{logits:?}");
        // A single kept token is the first in the same order, at any temperature and position.
        for position in 0..20 {
            assert_eq!(pick_at(logits, &SampleParams { top_k: 1, ..PLAIN }, position), expect, "top_k 1 of {logits:?}");
            assert_eq!(pick_at(logits, &SampleParams { top_p_micro: 0, ..PLAIN }, position), expect);
        }
    }
}

#[test]
fn logits_that_are_not_finite_are_an_error() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = vec![0.5; 40];
        logits[33] = bad;
        for params in [GREEDY, PLAIN] {
            assert_eq!(pick(&logits, &params, 0, &mut SampleScratch::new()), Err(NonFinite { index: 33 }));
        }
        assert_eq!(check_finite(&logits), Err(NonFinite { index: 33 }));
        assert_eq!(check_finite(&logits[..33]), Ok(()));
    }
}

/// The definition spelled out with a full sort, without any of the shortcuts.
fn pick_by_definition(logits: &[f32], params: &SampleParams, position: u64) -> u32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if params.temperature_micro == 0 {
        return order[0] as u32;
    }
    let temperature = (f64::from(params.temperature_micro) / 1e6) as f32;
    let max = logits[order[0]];
    let weight = |id: usize| (scalar::exp((logits[id] - max) / temperature) as f64 * (1u64 << 40) as f64) as u128;
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let total: u128 = order.iter().map(|&id| weight(id)).sum();
    if params.top_p_micro < MICRO {
        let mut sum = 0;
        let enough = |&id: &usize| {
            sum += weight(id);
            sum * 1_000_000 >= total * u128::from(params.top_p_micro)
        };
        let kept = order.iter().position(enough).unwrap() + 1;
        order.truncate(kept);
    }
    let sum: u128 = order.iter().map(|&id| weight(id)).sum();
    let target = (u128::from(random(params.seed, position)) * sum) >> 64;
    order.sort_unstable();
    let mut running = 0;
    for id in order {
        running += weight(id);
        if running > target {
            return id as u32;
        }
    }
    panic!("no token");
}

#[test]
fn every_combination_equals_the_definition() {
    let mut rng = Rng(17);
    let mut scratch = SampleScratch::new();
    for n in [1, 2, 3, 63, 64, 65, 700, 5000] {
        for spread in [0.0, 0.5, 4.0, 40.0] {
            let logits: Vec<f32> = rng.floats(n, spread).iter().map(|v| (v * 16.0).round() / 16.0).collect();
            for temperature_micro in [0, 1, 300_000, MICRO, 100 * MICRO] {
                for top_k in [0, 1, 2, 40, 64, 600, u32::MAX] {
                    for top_p_micro in [1, 100_000, 500_000, 950_000, 999_999, MICRO] {
                        let params = SampleParams { temperature_micro, top_p_micro, top_k, seed: rng.next() };
                        let position = rng.next();
                        let got = pick(&logits, &params, position, &mut scratch).unwrap();
                        assert_eq!(
                            got,
                            pick_by_definition(&logits, &params, position),
                            "{n} tokens, {params:?} at {position}"
                        );
                    }
                }
            }
        }
    }
}

/// 20,000 draws of a known distribution: chi-squared with 4 degrees of freedom below 18.5 (p = 0.001).
#[test]
fn draws_follow_the_distribution() {
    let shares = [0.4f32, 0.3, 0.2, 0.07, 0.03];
    let logits = shares.map(|p| libm::log(f64::from(p)) as f32);
    let n = 20_000;
    let mut counts = [0u32; 5];
    for position in 0..n {
        counts[pick_at(&logits, &PLAIN, position) as usize] += 1;
    }
    let chi: f64 = counts
        .iter()
        .zip(shares)
        .map(|(&c, p)| (f64::from(c), f64::from(p) * n as f64))
        .map(|(c, expected)| (c - expected) * (c - expected) / expected)
        .sum();
    assert!(chi < 18.5, "{counts:?}: chi-squared {chi}");
}

#[test]
fn top_p_keeps_the_shortest_sufficient_prefix() {
    let logits = [0.2f32, 0.5, 0.3].map(|p| libm::log(f64::from(p)) as f32);
    let seen = |top_p_micro| {
        let params = SampleParams { top_p_micro, ..PLAIN };
        (0..300).fold([false; 3], |mut seen, position| {
            seen[pick_at(&logits, &params, position) as usize] = true;
            seen
        })
    };
    assert_eq!(seen(1), [false, true, false]);
    assert_eq!(seen(490_000), [false, true, false]);
    assert_eq!(seen(510_000), [false, true, true]);
    assert_eq!(seen(790_000), [false, true, true]);
    assert_eq!(seen(810_000), [true, true, true]);
}

#[test]
fn random_numbers_are_fixed_and_depend_on_both_inputs() {
    let numbers = [random(0, 0), random(0, 1), random(1, 0), random(u64::MAX, u64::MAX)];
    assert_eq!(numbers, [0xa706_dd2f_4d19_7e6f, 0xb382_a305_f441_4f5e, 0x5e41_ab08_7439_611e, 0x4450_18e3_0581_0b78]);
}
