//! Rates, draws, beacons, decoys and proofs; and the sums of an auditor that does not replay.

use super::*;
use assay_types::{AuditFinding, Finish, ShownLeaf, audit_draw, proof_path, proof_root};

/// splitmix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn hash(&mut self) -> B256 {
        keccak256(self.next().to_be_bytes())
    }
}

#[test]
fn a_new_identity_is_always_audited_and_the_rate_falls_to_the_floor() {
    let policy = AuditPolicy::default();
    let check = |proven, expect| assert_eq!(policy.rate_ppm(proven), expect, "{proven}");
    check(0, 1_000_000);
    check(4096, 500_000);
    check(3 * 4096, 250_000);
    check(49 * 4096, 20_000);
    check(u64::MAX, 20_000);
    let rates: Vec<u32> = (0..1000).map(|i| policy.rate_ppm(i * 300)).collect();
    assert!(rates.is_sorted_by(|a, b| a >= b));
    let all = AuditPolicy { floor_ppm: 2_000_000, half_tokens: 0, ..policy };
    assert_eq!(all.rate_ppm(5), 1_000_000);
}

#[test]
fn draws_by_hash_hit_as_often_as_the_rate_says() {
    for seed in 1..=5 {
        let mut draws = Draws(seed);
        for rate in [20_000u32, 250_000, 500_000] {
            let count = 20_000;
            let hits = (0..count)
                .filter(|_| {
                    let draw = audit_draw(draws.hash(), draws.hash(), draws.hash());
                    is_drawn(first_u64(&draw), rate)
                })
                .count();
            let expect = count * rate as usize / 1_000_000;
            // Five standard deviations of the binomial.
            let variance = expect as f64 * (1.0 - f64::from(rate) / 1e6);
            assert!((hits as f64 - expect as f64).abs() < 5.0 * variance.sqrt(), "seed {seed}: {hits} of {expect}");
        }
        assert!(is_drawn(u64::MAX, 1_000_000) && is_drawn(0, 1) && !is_drawn(0, 0) && !is_drawn(u64::MAX, 999_999));
    }
}

/// A provider knows nonce and receipt, and every beacon of the past. What it can choose, the receipt, moves the draw in
/// no way that it sees: guessing with an old beacon tells nothing of the real draw.
#[test]
fn a_provider_cannot_tell_which_of_its_receipts_are_drawn() {
    let mut draws = Draws(7);
    let mut beacons = Beacons::new(draws.hash());
    let (mut both, mut guessed, mut real) = (0u32, 0u32, 0u32);
    for _ in 0..200 {
        let now = beacons.current();
        let past = beacons.advance().unwrap();
        assert_eq!(now, past);
        let now = beacons.current();
        for _ in 0..50 {
            let (nonce, receipt) = (draws.hash(), draws.hash());
            let hit = |beacon| is_drawn(first_u64(&audit_draw(beacon, nonce, receipt)), 500_000);
            (both, guessed, real) =
                (both + u32::from(hit(past) && hit(now)), guessed + u32::from(hit(past)), real + u32::from(hit(now)));
        }
    }
    // Independent: a quarter of 10,000 hit both, within five standard deviations of 43.
    assert!((2285..2715).contains(&both), "{both} with {guessed} guessed and {real} real");
}

#[test]
fn a_chain_of_beacons_is_checked_backwards_and_ends() {
    let mut beacons = Beacons::new(B256::repeat_byte(9));
    let mut before = beacons.anchor();
    for epoch in 0..BEACONS - 1 {
        assert_eq!(beacons.epoch(), epoch);
        let revealed = beacons.advance().unwrap();
        assert!(Beacons::follows(before, revealed), "epoch {epoch}");
        assert!(!Beacons::follows(revealed, before));
        before = revealed;
        // All of them would take a minute; both ends and a stretch over a mark are enough.
        if epoch == 600 {
            break;
        }
    }
    let mut short = Beacons { epoch: BEACONS - 2, ..Beacons::new(B256::repeat_byte(9)) };
    assert!(short.advance().is_some());
    assert_eq!(short.current(), B256::repeat_byte(9), "the seed is the last one");
    assert_eq!(short.advance(), None);
    assert_eq!(short.epoch(), BEACONS - 1);
}

#[test]
fn a_decoy_changes_one_token_to_one_that_the_text_has() {
    let mut draws = Draws(3);
    let mut seen = [0u32; 8];
    for _ in 0..400 {
        let original: Vec<TokenId> = vec![10, 11, 12, 10, 13, 14, 10, 15];
        let mut output = original.clone();
        let decoy = Decoy::plant(draws.hash(), &mut output).unwrap();
        let differing: Vec<usize> = (0..8).filter(|&i| original[i] != output[i]).collect();
        assert_eq!(differing, [decoy.index as usize]);
        assert_eq!((original[differing[0]], output[differing[0]]), (decoy.was, decoy.is));
        assert!(original.contains(&decoy.is));
        seen[differing[0]] += 1;
    }
    assert!(seen.iter().all(|&count| count > 20), "every position comes: {seen:?}");
    for (only, expect) in [(5, 4), (0, 1)] {
        let mut output = vec![only; 3];
        assert_eq!(Decoy::plant(draws.hash(), &mut output).unwrap().is, expect);
    }
    assert_eq!(Decoy::plant(B256::ZERO, &mut []), None);
}

#[test]
fn verdicts_are_judged_by_what_was_planted() {
    let decoy = Some(Decoy { index: 5, was: 50, is: 51 });
    let wrong = |index, expected, got| AuditVerdict::WrongToken { index, expected, got };
    let finish = AuditVerdict::WrongFinish { expected: Finish::Open, got: Finish::Stop };
    let check = |verdict, decoy, expect| assert_eq!(judge(verdict, decoy, 9), expect, "{verdict:?}");
    check(AuditVerdict::Exact, None, Report::Plausible);
    check(wrong(4, Some(1), 2), None, Report::Accuses { first_wrong: 4 });
    check(finish, None, Report::Accuses { first_wrong: 9 });
    check(wrong(5, Some(50), 51), decoy, Report::FoundDecoy);
    check(wrong(5, Some(52), 51), decoy, Report::Doubts);
    check(wrong(5, None, 51), decoy, Report::Doubts);
    check(wrong(2, Some(1), 0), decoy, Report::Doubts);
    check(wrong(6, Some(1), 0), decoy, Report::Lazy);
    check(wrong(5, Some(50), 49), decoy, Report::Lazy);
    check(finish, decoy, Report::Lazy);
    check(AuditVerdict::Exact, decoy, Report::Lazy);
}

#[test]
fn a_proof_opens_its_commitment_and_nothing_else() {
    let (task, auditor, beacon, chain_id) = (B256::repeat_byte(1), Address::repeat_byte(2), B256::repeat_byte(3), 5);
    let leaves: Vec<B256> = (0..7u8).map(|i| B256::repeat_byte(0x40 + i)).collect();
    let finding = AuditFinding { verdict: AuditVerdict::Exact, positions: 7, root: proof_root(&leaves) };
    let show = |beacon| {
        proof_positions(beacon, task, auditor, 7)
            .into_iter()
            .map(|p| ShownLeaf { leaf: leaves[p as usize], path: proof_path(&leaves, p as usize) })
            .collect()
    };
    let commitment = finding.commitment(chain_id, task, auditor);
    let check = |proof: &AuditProof, tokens| check_proof(proof, commitment, chain_id, (task, auditor, beacon), tokens);
    let proof = AuditProof { finding, shown: show(beacon) };
    let drawn = proof.shown.iter().map(|shown| shown.leaf);
    assert_eq!(check(&proof, 7), Ok(proof_digest(beacon, auditor, drawn)));
    assert_eq!(check(&proof, 8), Err(ProofFault::Positions { expected: 8, found: 7 }));

    let other = AuditFinding { verdict: AuditVerdict::WrongToken { index: 6, expected: Some(1), got: 2 }, ..finding };
    assert_eq!(check(&AuditProof { finding: other, ..proof.clone() }, 7), Err(ProofFault::Commitment));
    let fewer = AuditProof { shown: proof.shown[1..].to_vec(), ..proof.clone() };
    assert_eq!(check(&fewer, 7), Err(ProofFault::Positions { expected: 4, found: 3 }));
    let elsewhere = AuditProof { shown: show(B256::repeat_byte(4)), ..proof };
    assert!(matches!(check(&elsewhere, 7), Err(ProofFault::Leaf(_))));
}

/// Threat row 4: an auditor that answers a share of its tasks without a replay. What it saves is the whole cost of the
/// replay; what it risks are decoys, rechecks of its leaves, and its bond.
#[test]
fn a_lazy_auditor_loses() {
    let (policy, terms) = (AuditPolicy::default(), AuditTerms::default());
    // An honest replay costs the auditor half of the fee.
    const TOKENS: u64 = 400;
    let cost = terms.fee_per_million.0 * u128::from(TOKENS) / 2_000_000;
    let profit = |lazy_ppm: u32, seed: u64| -> i128 {
        let mut draws = Draws(seed);
        let (mut account, mut spent) = (AuditorAccount::default(), 0u128);
        for _ in 0..2_000 {
            if !account.is_trusted() {
                break;
            }
            let is_lazy = is_drawn(draws.next(), lazy_ppm);
            let is_decoy = is_drawn(draws.next(), policy.decoy_ppm);
            let is_rechecked = is_drawn(draws.next(), policy.recheck_ppm);
            if !is_lazy {
                spent += cost;
            }
            // Without a replay the best guess is that the answer is right; its leaves are made up.
            let decoy = is_decoy.then_some(Decoy { index: 3, was: 1, is: 2 });
            let verdict = match decoy.filter(|_| !is_lazy) {
                Some(Decoy { index, was, is }) => AuditVerdict::WrongToken { index, expected: Some(was), got: is },
                None => AuditVerdict::Exact,
            };
            let outcome = match judge(verdict, decoy, 100) {
                Report::Lazy => AuditOutcome::Failed,
                Report::Plausible if is_lazy && is_rechecked => AuditOutcome::Failed,
                _ => AuditOutcome::Proven { tokens: TOKENS },
            };
            account.on_outcome(outcome, &terms);
        }
        account.earned.0 as i128 - spent as i128 - account.lost.0.min(terms.bond.0) as i128
    };
    for seed in 1..=20 {
        let honest = profit(0, seed);
        assert!(honest > 0, "seed {seed}: {honest}");
        assert!(profit(1_000_000, seed) < 0, "seed {seed}: all lazy");
        for lazy_ppm in [100_000, 300_000, 700_000] {
            let lazy = profit(lazy_ppm, seed);
            assert!(lazy < 0 && lazy < honest, "seed {seed}: lazy in {lazy_ppm} ppm earns {lazy}, honest {honest}");
        }
    }
}

#[test]
fn an_account_pays_replays_and_catches_and_forfeits_on_failure() {
    let terms = AuditTerms { fee_per_million: Amount(1_000_000), catch: Amount(500), bond: Amount(10_000) };
    let mut account = AuditorAccount::default();
    account.on_outcome(AuditOutcome::Proven { tokens: 30 }, &terms);
    account.on_outcome(AuditOutcome::Caught { tokens: 20 }, &terms);
    account.on_outcome(AuditOutcome::Void, &terms);
    let expect = AuditorAccount { proven: 1, caught: 1, failed: 0, earned: Amount(550), lost: Amount(0) };
    assert_eq!(account, expect);
    assert!(account.is_trusted());
    account.on_outcome(AuditOutcome::Failed, &terms);
    assert_eq!(account, AuditorAccount { failed: 1, earned: Amount(0), lost: Amount(10_550), ..expect });
    assert!(!account.is_trusted());
}
