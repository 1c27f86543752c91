//! Sampling: order, truncation, and the distribution of the draws.

mod support;

use assay_num::sample::{MICRO, NonFinite, PickError, SampleParams, SampleScratch, pick, pick_with, random};
use assay_num::{Adjustments, Penalties, check_finite, logprobs, scalar};
use support::Rng;

const GREEDY: SampleParams =
    SampleParams { temperature_micro: 0, top_p_micro: MICRO, top_k: 0, min_p_micro: 0, seed: 1 };
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
    pick_among(logits, (0..logits.len()).collect(), params, position)
}

fn pick_among(logits: &[f32], mut order: Vec<usize>, params: &SampleParams, position: u64) -> u32 {
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
    order.retain(|&id| weight(id) * 1_000_000 >= u128::from(params.min_p_micro) << 40);
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
                        for min_p_micro in [0, 1, 50_000, MICRO] {
                            let seed = rng.next();
                            let params = SampleParams { temperature_micro, top_p_micro, top_k, min_p_micro, seed };
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

/// The steps on one logit as the definition says them.
fn adjusted_by_definition(logit: f32, bias: f64, penalties: &Penalties, is_seen: bool, n_output: u32) -> f32 {
    let mut l = logit;
    if bias != 0.0 {
        l += bias as f32;
    }
    let repetition = (f64::from(penalties.repetition_micro) / 1e6) as f32;
    if is_seen && repetition != 1.0 {
        l = if l > 0.0 { l / repetition } else { l * repetition };
    }
    if n_output > 0 {
        l -= n_output as f32 * (f64::from(penalties.frequency_micro) / 1e6) as f32;
        l -= (f64::from(penalties.presence_micro) / 1e6) as f32;
    }
    l
}

#[test]
fn adjusted_logits_and_choices_under_a_mask_equal_the_definition() {
    let mut rng = Rng(23);
    let mut scratch = SampleScratch::new();
    for n in [1usize, 31, 32, 33, 64, 700] {
        for (repetition_micro, frequency_micro, presence_micro) in
            [(MICRO, 0, 0), (1_300_000, 0, 0), (800_000, -700_000, 2_000_000), (MICRO, 333_333, 0), (MICRO, 0, -1)]
        {
            let penalties = Penalties { repetition_micro, frequency_micro, presence_micro };
            let logits: Vec<f32> = rng.floats(n, 4.0).iter().map(|v| (v * 16.0).round() / 16.0).collect();
            let any = |rng: &mut Rng| (rng.next() % (n as u64 + 3)) as u32;
            let prompt: Vec<u32> = (0..n / 4).map(|_| any(&mut rng)).collect();
            let output: Vec<u32> = (0..n / 3).map(|_| any(&mut rng)).collect();
            let bias: Vec<(u32, i32)> = (0..n.min(9)).map(|i| (3 * i as u32, rng.next() as i32 % 5_000_000)).collect();
            let mut adjustments = Adjustments::new(bias.clone(), penalties, &prompt);
            output.iter().for_each(|&token| adjustments.push(token));
            let count = |token: u32| output.iter().filter(|&&t| t == token).count() as u32;
            let expect: Vec<f32> = (0..n as u32)
                .map(|id| {
                    let bias = bias.iter().find(|(token, _)| *token == id).map_or(0.0, |(_, b)| f64::from(*b) / 1e6);
                    let is_seen = prompt.contains(&id) || output.contains(&id);
                    adjusted_by_definition(logits[id as usize], bias, &penalties, is_seen, count(id))
                })
                .collect();
            let mut got = logits.clone();
            adjustments.apply(&mut got);
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&got), bits(&expect), "{n} tokens, {penalties:?}");

            let mask: Vec<u32> = (0..n.div_ceil(32)).map(|_| rng.next() as u32 | 1).collect();
            let allowed: Vec<usize> = (0..n).filter(|id| mask[id / 32] >> (id % 32) & 1 == 1).collect();
            for temperature_micro in [0, 700_000, MICRO] {
                for top_k in [0, 5] {
                    let seed = rng.next();
                    let params = SampleParams { temperature_micro, top_k, min_p_micro: 20_000, seed, ..PLAIN };
                    let position = rng.next();
                    let got = pick_with(&logits, &params, position, &adjustments, Some(&mask), &mut scratch);
                    assert_eq!(got, Ok(pick_among(&expect, allowed.clone(), &params, position)), "{n} {params:?}");
                    let got = pick_with(&logits, &params, position, &adjustments, None, &mut scratch);
                    assert_eq!(got, Ok(pick_by_definition(&expect, &params, position)), "{n} {params:?}");
                }
            }
        }
    }
}

#[test]
fn a_mask_without_tokens_and_adjustments_that_overflow_are_errors() {
    let pick = |logits: &[f32], bias, mask: Option<&[u32]>| {
        let adjustments = Adjustments::new(bias, Penalties { repetition_micro: 1, ..Penalties::NONE }, &[1]);
        pick_with(logits, &PLAIN, 0, &adjustments, mask, &mut SampleScratch::new())
    };
    assert_eq!(pick(&[1.0, 2.0], vec![], Some(&[0])), Err(PickError::NothingAllowed));
    assert_eq!(pick(&[1.0, 2.0], vec![], Some(&[])), Err(PickError::NothingAllowed));
    assert_eq!(pick(&[1.0, 2.0], vec![], Some(&[0b1100])), Err(PickError::NothingAllowed));
    // 3e38 divided by a millionth is infinite.
    assert_eq!(pick(&[1.0, 3e38], vec![], None), Err(PickError::NonFinite(NonFinite { index: 1 })));
    assert_eq!(pick(&[f32::NAN, 1.0], vec![], Some(&[2])), Err(PickError::NonFinite(NonFinite { index: 0 })));
    // A bias far above the spread of logits forces its token; one outside the vocabulary does nothing.
    assert_eq!(pick(&[1.0, -0.5, -3.0], vec![(2, 100_000_000), (9, 100_000_000)], None), Ok(2));
}

#[test]
fn log_probabilities_are_those_of_a_softmax() {
    let mut rng = Rng(31);
    let mut scratch = SampleScratch::new();
    for n in [1usize, 2, 20, 700, 5000] {
        for spread in [0.5f32, 4.0, 40.0] {
            let logits: Vec<f32> = rng.floats(n, spread).iter().map(|v| (v * 16.0).round() / 16.0).collect();
            let max = logits.iter().fold(f64::MIN, |m, &l| m.max(f64::from(l)));
            let z = libm::log(logits.iter().map(|&l| libm::exp(f64::from(l) - max)).sum::<f64>());
            let mut order: Vec<usize> = (0..n).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            for n_top in [0, 1, 5, 20] {
                let token = rng.next() as usize % n;
                let got = logprobs(&logits, token as u32, n_top, &mut scratch).unwrap();
                let close = |micro: i32, id: usize| {
                    let exact = (f64::from(logits[id]) - max - z) * 1e6;
                    assert!((f64::from(micro) - exact).abs() < 3.0, "{n} tokens: {micro} for {exact}");
                };
                close(got.token_micro, token);
                assert_eq!(got.top.len(), n_top.min(n));
                for (&(id, micro), &expect) in got.top.iter().zip(&order) {
                    assert_eq!(id as usize, expect);
                    close(micro, expect);
                }
            }
        }
    }
    assert_eq!(logprobs(&[f32::NAN], 0, 0, &mut scratch), Err(NonFinite { index: 0 }));
    // Bits that every platform has to give.
    let got = logprobs(&[1.5, -2.25, 0.0, 1.5], 1, 2, &mut scratch).unwrap();
    assert_eq!((got.token_micro, got.top), (-4_559_439, vec![(0, -809_439), (3, -809_439)]));
    // A difference that no i32 holds.
    assert_eq!(logprobs(&[3e38, -3e38], 1, 0, &mut scratch).unwrap().token_micro, i32::MIN);
}
