//! Random lives of gateways, providers and a chain. See `assay_testkit::actions`.

use assay_testkit::actions::{Faults, Keys, Tally, actions, run};

/// Actions in a life.
const ACTIONS: usize = 1_000;

/// Lives of each kind in every run of the tests: a million actions. `ASSAY_LIVES` makes them more.
const LIVES: u64 = 1_000;

fn live(faults: Faults) -> Tally {
    let lives = std::env::var("ASSAY_LIVES").map_or(LIVES, |text| text.parse().expect("ASSAY_LIVES is a number"));
    let mut keys = Keys::default();
    let mut tally = Tally::default();
    for seed in 0..lives {
        // Each life has its own seed, so that a failure names the life that failed.
        let actions = actions(seed, ACTIONS);
        let life = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut keys, &actions, faults)));
        tally.add(&life.unwrap_or_else(|_| panic!("the life of seed {seed} fails")));
    }
    assert_eq!(tally.actions, lives * ACTIONS as u64);
    println!("{faults:?}: {tally:?}");
    tally
}

/// Everything happened that can happen, and not once or twice.
fn check_variety(tally: &Tally) {
    let Tally { opened, refused, checkpoints, whole, broken, provider_restarts, provider_older, .. } = *tally;
    let Tally { gateway_restarts, gateway_older, claims_undone, deposits_undone, withdrawals, overclaims, .. } = *tally;
    let counts = [opened, refused, checkpoints, whole, broken, provider_restarts, provider_older, gateway_restarts];
    let counts = counts.into_iter().chain([gateway_older, claims_undone, deposits_undone, withdrawals, overclaims]);
    assert!(counts.into_iter().all(|count| count >= 100) && tally.claimed > 0, "{tally:?}");
}

#[test]
fn a_million_actions_cost_nobody_more_than_a_chunk() {
    let tally = live(Faults::Survivable);
    check_variety(&tally);
    assert_eq!(tally.accused, 0);
}

#[test]
fn whatever_is_forgotten_no_token_is_lost_and_nobody_is_paid_twice() {
    check_variety(&live(Faults::All));
}
