//! Scores from events, and the sums of providers that cheat and come back.

use super::*;
use crate::{AuditPolicy, is_drawn};

const DAY: u64 = 86_400;

fn proven(at: u64, fees: u128) -> Event {
    Event { at, deed: Deed::Proven { tokens: 1_000_000, fees: Amount(fees) } }
}

fn event(at: u64, deed: Deed) -> Event {
    Event { at, deed }
}

fn score(events: &[Event], now: u64) -> u32 {
    Reputation::replay(ReputationPolicy::default(), events.iter().copied()).components(now).score_ppm
}

#[test]
fn scores_follow_from_events() {
    let convicted = event(50, Deed::Convicted);
    let (abandoned, withheld) = (event(50, Deed::Abandoned), event(50, Deed::Withheld));
    let check = |events: &[Event], expect| assert_eq!(score(events, 100), expect, "{events:?}");
    check(&[], 100_000);
    check(&[event(50, Deed::Accused)], 100_000);
    check(&[proven(100, 2_000)], 550_000);
    check(&[proven(100, 6_000)], 775_000);
    check(&[proven(100, 2_000), event(100, Deed::Withheld)], 400_000);
    check(&[proven(100, 2_000), event(100, Deed::Abandoned)], 500_000);
    check(&[withheld, abandoned], 100_000);
    check(&[convicted], 0);
    check(&[proven(60, 1 << 60), convicted], 0);
}

#[test]
fn components_add_up_to_the_score() {
    let events = [proven(1, 5_000), event(2, Deed::Withheld), proven(3, 700)];
    let all = Reputation::replay(ReputationPolicy::default(), events).components(DAY);
    assert_eq!(all.score_ppm, all.floor_ppm + all.earned_ppm - all.offences_ppm);
    assert!(all.earned_ppm > 0 && all.offences_ppm > 0);
    assert!(all.proven_fees < Amount(5_700) && all.proven_fees > Amount(5_000));
}

#[test]
fn a_dear_price_buys_nothing() {
    let deed = |fees| event(0, Deed::Proven { tokens: 1_000, fees: Amount(fees) });
    assert_eq!(
        score(&[deed(1_000)], 0),
        score(&[deed(u128::MAX)], 0),
        "more than a dollar a million counts as a dollar"
    );
    assert!(score(&[deed(100)], 0) < score(&[deed(1_000)], 0));
}

#[test]
fn work_and_offences_fade_and_convictions_do_not() {
    let work = [proven(0, 4_000)];
    let at = |days: u64| score(&work, days * DAY);
    assert_eq!(at(14), score(&[proven(0, 2_000)], 0), "a half-life later half of it is left");
    let over_time: Vec<u32> = (0..200).map(at).collect();
    assert!(over_time.is_sorted_by(|a, b| a >= b), "{over_time:?}");
    assert_eq!(at(100_000), 100_000);
    assert_eq!(score(&[event(0, Deed::Convicted)], 100_000 * DAY), 0);
    let offence = [event(0, Deed::Withheld), proven(140 * DAY, 2_000)];
    assert!(score(&offence, 140 * DAY) > 549_000, "ten half-lives later hardly anything is left of an offence");
}

#[test]
fn the_order_in_which_events_are_read_back_changes_nothing_and_few_are_kept_to_show() {
    let events: Vec<Event> = (0..200).map(|i| proven(i * 1000, u128::from(i) * 7)).collect();
    let forth = Reputation::replay(ReputationPolicy::default(), events.iter().copied());
    let back = Reputation::replay(ReputationPolicy::default(), events.iter().rev().copied());
    assert_eq!(forth, back);
    let shown: Vec<Event> = forth.recent().copied().collect();
    assert_eq!(shown, events[200 - EVENTS_MAX..]);
}

#[test]
fn extremes_do_not_overflow() {
    let policy = ReputationPolicy {
        price_max: Amount(u128::MAX),
        half_fees: Amount(0),
        half_offences: 0,
        half_life_s: 0,
        floor_ppm: u32::MAX,
    };
    let huge = event(u64::MAX, Deed::Proven { tokens: u64::MAX, fees: Amount(u128::MAX) });
    for policy in [policy, ReputationPolicy::default()] {
        let mut reputation = Reputation::new(policy);
        for _ in 0..1000 {
            reputation.on(huge);
            reputation.on(event(0, Deed::Withheld));
        }
        assert!(reputation.components(u64::MAX).score_ppm <= SCORE_MAX);
        assert!(reputation.components(0).score_ppm <= SCORE_MAX);
    }
}

/// A market in which each answer goes to a provider by its score, costs it 58 % of the price if it is right and nothing
/// if it is not, and is audited at the rate that its proven work gives.
struct Market {
    draws: u64,
    now: u64,
    honest: Vec<Reputation>,
    /// The one that is looked at.
    other: Reputation,
}

const ANSWERS: u32 = 12_000;
const PRICE: u128 = 400;
const TOKENS: u64 = 4_000;
const COST: i128 = 58 * PRICE as i128 / 100;
/// A hundred answers' worth, as small as a stake may be.
const STAKE: i128 = 100 * PRICE as i128;

impl Market {
    fn new(seed: u64) -> Self {
        let reputation = Reputation::new(ReputationPolicy::default());
        Self { draws: seed, now: 0, honest: vec![reputation.clone(); 3], other: reputation }
    }

    fn draw(&mut self) -> u64 {
        self.draws = self.draws.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.draws;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Profit of the one that is looked at over `answers` answers. It cheats in a share of them, throws its name away
    /// when it is convicted, and before that whenever `rejoins` says so.
    fn play(&mut self, answers: u32, cheats_ppm: u32, rejoins: impl Fn(u64) -> bool) -> i128 {
        let mut profit = 0i128;
        let mut age = 0u64;
        for _ in 0..answers {
            self.now += 60;
            let scores: Vec<u64> = self.honest.iter().map(|r| r.components(self.now).score_ppm.into()).collect();
            let own = u64::from(self.other.components(self.now).score_ppm);
            let all = scores.iter().sum::<u64>() + own;
            let mut at = self.draw() % all;
            let index = scores.iter().position(|&score| {
                let is_it = at < score;
                at = at.saturating_sub(score);
                is_it
            });
            let audit = self.draw();
            let rate = |r: &Reputation, now| AuditPolicy::default().rate_ppm(r.components(now).proven_tokens);
            let done = event(self.now, Deed::Proven { tokens: TOKENS, fees: Amount(PRICE) });
            match index {
                Some(index) => {
                    if is_drawn(audit, rate(&self.honest[index], self.now)) {
                        self.honest[index].on(done);
                    }
                }
                None => {
                    age += 1;
                    let cheats = is_drawn(self.draw(), cheats_ppm);
                    let is_audited = is_drawn(audit, rate(&self.other, self.now));
                    profit += PRICE as i128 - if cheats { 0 } else { COST };
                    match (cheats, is_audited) {
                        (true, true) => {
                            // The stake is gone, the answer is refunded, and a new name has to be bought.
                            profit -= STAKE + PRICE as i128;
                            self.other.on(event(self.now, Deed::Convicted));
                            assert_eq!(self.other.components(self.now).score_ppm, 0);
                            self.other = Reputation::new(ReputationPolicy::default());
                            age = 0;
                        }
                        (false, true) => self.other.on(done),
                        _ => {}
                    }
                    if rejoins(age) {
                        self.other = Reputation::new(ReputationPolicy::default());
                        age = 0;
                    }
                }
            }
        }
        profit
    }
}

/// Threat row 6. Whoever cheats and comes back under a new name earns less than who stays honest, however often it
/// cheats; who cheats often even loses money, at the smallest stake.
#[test]
fn coming_back_under_a_new_name_gains_nothing() {
    for seed in 1..=5 {
        let honest = Market::new(seed).play(ANSWERS, 0, |_| false);
        assert!(honest > 0);
        for cheats_ppm in [100_000, 250_000, 1_000_000] {
            let cheat = Market::new(seed).play(ANSWERS, cheats_ppm, |_| false);
            assert!(cheat < honest, "seed {seed}: cheating in {cheats_ppm} ppm earns {cheat}, honesty {honest}");
            assert!(cheats_ppm < 250_000 || cheat < 0, "seed {seed}: cheating in {cheats_ppm} ppm earns {cheat}");
        }
        // A new name every so many answers, without a cheat, only throws the score away.
        for every in [5, 50] {
            let washed = Market::new(seed).play(ANSWERS, 0, |age| age >= every);
            assert!(washed < honest, "seed {seed}: a new name every {every} answers earns {washed}, staying {honest}");
        }
    }
}

#[test]
fn deviation_shuts_out_until_half_of_it_has_faded_and_challenges_show_or_offend() {
    let matched = event(0, Deed::Matched { tokens: 1_000_000, odd: 3, fees: Amount(4_000) });
    assert_eq!(score(&[matched], 0), score(&[proven(0, 2_000)], 0), "half the weight of proven work");
    let deviated = event(10, Deed::Deviated { tokens: 300, odd: 60 });
    let at = |days: u64| score(&[proven(0, 2_000), deviated], 10 + days * DAY);
    assert_eq!([at(0), at(13)], [0, 0]);
    assert!(at(15) >= 100_000);
    let reputation = Reputation::replay(ReputationPolicy::default(), [matched, deviated]);
    assert_eq!(reputation.components(10).matched_tokens, 0, "it is compared from the start again");
    assert_eq!(reputation.components(10).deviations_ppm, 1_000_000);
    let answered = event(0, Deed::Answered { tokens: 20, first_millis: 5, millis: 90 });
    assert_eq!(score(&[proven(0, 2_000), answered], 0), score(&[proven(0, 2_000)], 0));
    assert_eq!(
        score(&[proven(0, 2_000), event(0, Deed::Silent)], 0),
        score(&[proven(0, 2_000), event(0, Deed::Abandoned)], 0)
    );
}
