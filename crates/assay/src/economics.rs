//! `assay doctor --economics`: whether cheating pays under the parameters that hold on the chain now.
//!
//! A cheat gains G per answer, is audited with probability p, found with probability d (1: a replay is exact), by an
//! auditor that is in league with it with probability r, and loses the price P and what a conviction takes, S. It does
//! not pay if `p * d * (1 - r) * (P + S) > G`. All numbers are integers, shares in millionths.

use crate::state::{self, NetworkFile};
use crate::{print, when};
use anyhow::{Context, ensure};
use assay_chain::client::{Caps, NetworkPolicy, Terms};
use assay_chain::{ChainClient, ClientOptions, Network};
use assay_types::Amount;
use clap::Args;
use serde::Serialize;
use serde_json::json;
use std::path::Path;

const MILLION: u128 = 1_000_000;
/// Most moves of a dispute, and the one that ends it.
const MOVES: u64 = 49;

/// What is assumed of cheats.
#[derive(Args, Clone, Copy, Debug)]
pub struct EconomicsArgs {
    /// Check whether cheating pays under the network's parameters on chain, and nothing else
    #[arg(long)]
    pub economics: bool,
    /// Price of an answer in base units of the coin: 400 is 0.0004 dollars
    #[arg(long, value_name = "UNITS", default_value_t = 400, requires = "economics")]
    answer_price: u128,
    /// What a cheat saves of the price, in millionths
    #[arg(long, value_name = "PPM", default_value_t = 420_000, requires = "economics", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    gain: u32,
    /// Share of auditors in league with it, in millionths
    #[arg(long, value_name = "PPM", default_value_t = 300_000, requires = "economics", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    collusion: u32,
}

/// What holds on the chain.
struct Found {
    terms: Terms,
    policy: NetworkPolicy,
    caps: Caps,
    min_stake: Amount,
    max_slash_bps: u16,
    unbonding_s: u64,
}

/// One thing that has to hold.
#[derive(Serialize, PartialEq, Eq, Debug)]
struct Term {
    what: &'static str,
    holds: bool,
    /// The numbers that were compared.
    text: String,
    /// What to change if it does not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'static str>,
}

/// Runs `assay doctor --economics`.
pub fn run(root: &Path, rpc: &str, args: EconomicsArgs, as_json: bool) -> anyhow::Result<()> {
    let path = root.join("network.json");
    let file: NetworkFile =
        state::read_json(&path)?.with_context(|| format!("{} is not there; start a network first", path.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let addresses = file.addresses;
        let options = ClientOptions { chain_id: Some(addresses.chain_id), attempts: 2, ..ClientOptions::default() };
        let client = ChainClient::connect(rpc, state::nobody()?, options).await;
        let client = client.with_context(|| format!("cannot ask the chain at {rpc}; is the network running?"))?;
        let network = Network::new(client, addresses)?;
        let parameters = network.parameters.as_ref().context("this network has no parameters on chain")?;
        let found = Found {
            terms: parameters.current().await?,
            policy: parameters.policy().await?,
            caps: parameters.caps().await?,
            min_stake: network.registry.min_stake().await?,
            max_slash_bps: network.registry.max_slash_bps().await?,
            unbonding_s: network.registry.unbonding_delay_s().await?,
        };
        let proposal = parameters.proposal().await?;
        let terms = check(&found, args);
        let wrong = terms.iter().filter(|term| !term.holds).count();
        if as_json {
            let next = proposal
                .map(|(terms, policy, from)| json!({"terms": terms, "policy": policy, "from": when::rfc3339(from)}));
            print(
                &json!({
                    "ok": wrong == 0, "parameters": parameters.address, "owner": parameters.owner().await?,
                    "terms": found.terms, "policy": found.policy, "caps": found.caps, "proposal": next, "checks": terms,
                })
                .to_string(),
            )?;
        } else {
            print(&format!("parameters {} version {}", parameters.address, found.terms.version))?;
            for Term { what, holds, text, next } in &terms {
                print(&format!("{:<6} {what}: {text}", if *holds { "ok" } else { "WRONG" }))?;
                if let Some(next) = next {
                    print(&format!("{:<6} -> {next}", ""))?;
                }
            }
            if let Some((_, _, from)) = proposal {
                print(&format!("note   other parameters are proposed and can hold from {}", when::rfc3339(from)))?;
            }
        }
        ensure!(
            wrong == 0,
            "{wrong} of {} conditions do not hold: under these parameters cheating may pay",
            terms.len()
        );
        Ok(())
    })
}

fn check(found: &Found, args: EconomicsArgs) -> Vec<Term> {
    let Found { terms, policy, caps, min_stake, max_slash_bps, unbonding_s } = *found;
    let of = |amount: u128, bps: u16| amount.saturating_mul(u128::from(bps)) / 10_000;
    // The least that a provider with the least stake loses.
    let slash = terms.penalty.0.min(of(min_stake.0, max_slash_bps));
    let (price, gain) = (args.answer_price, args.answer_price.saturating_mul(u128::from(args.gain)) / MILLION);
    let honest = MILLION - u128::from(args.collusion);
    let lost = |p: u128, stake: u128| {
        p.saturating_mul(honest).saturating_mul(price.saturating_add(stake)) / (MILLION * MILLION)
    };
    let floor = u128::from(policy.audit_floor_ppm);
    let share = |ppm: u128| format!("{}.{:04} %", ppm / 10_000, ppm % 10_000);
    let term = |what, holds, text, next| Term { what, holds, text, next: (!holds).then_some(next) };
    let (established, fresh) = (lost(floor, slash), lost(MILLION, 0));
    // So many cheats are seen on average before one is caught: what was gained by then is lost at once.
    let needed = gain.saturating_mul(MILLION * MILLION) / honest.saturating_mul(price.saturating_add(slash)).max(1);
    vec![
        term(
            "a provider with a past",
            established > gain,
            format!(
                "p {} x d 1 x (1-r) {} x (P {price} + S {slash}) = {established} > G {gain}; p from {} is enough",
                share(floor),
                share(honest),
                share(needed)
            ),
            "audit more (auditFloorPpm), or raise the penalty, the least stake or the slash cap",
        ),
        term(
            "a new provider",
            fresh > gain,
            format!("all is audited, p 100 %, and nothing but the price is at risk: {fresh} > G {gain}"),
            "no parameter helps: too many auditors are in league with it",
        ),
        term(
            "the stake that is lost",
            slash >= price.saturating_mul(100),
            format!(
                "S {slash} = min(penalty {}, {max_slash_bps} bps of the least stake {min_stake}), {} x P",
                terms.penalty,
                slash / price.max(1)
            ),
            "raise the penalty or the least stake",
        ),
        term(
            "convicting oneself",
            u32::from(terms.reward_bps) + u32::from(terms.refund_bps) < 10_000,
            format!("reward {} bps and refund {} bps are less than all of it", terms.reward_bps, terms.refund_bps),
            "lower rewardBps or refundBps",
        ),
        term(
            "money back",
            of(slash, terms.refund_bps) >= price,
            format!("{} bps of S are {}, an answer costs {price}", terms.refund_bps, of(slash, terms.refund_bps)),
            "raise refundBps or the penalty",
        ),
        term(
            "whoever challenges",
            of(slash, terms.reward_bps) > 0 && terms.bond.0 > 0,
            format!("puts up {} and earns {} if right", terms.bond, of(slash, terms.reward_bps)),
            "raise rewardBps: nobody audits for nothing",
        ),
        term(
            "clocks",
            caps.move_window_s.saturating_mul(MOVES) <= unbonding_s,
            format!("{MOVES} moves of {} s are over before a stake can leave, {unbonding_s} s", caps.move_window_s),
            "deploy with shorter moves or a longer unbonding delay",
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(penalty: u128, floor: u32, refund_bps: u16) -> Found {
        Found {
            terms: Terms { bond: Amount(25), penalty: Amount(penalty), reward_bps: 4_000, refund_bps, version: 1 },
            policy: NetworkPolicy { audit_floor_ppm: floor, ..NetworkPolicy::default() },
            caps: Caps { bond_max: Amount(1), penalty_max: Amount(1), move_window_s: 10_800, delay_s: 1 },
            min_stake: Amount(100_000_000),
            max_slash_bps: 5_000,
            unbonding_s: 7 * 86_400,
        }
    }

    const USUAL: EconomicsArgs =
        EconomicsArgs { economics: true, answer_price: 400, gain: 420_000, collusion: 300_000 };

    fn wrong(found: &Found, args: EconomicsArgs) -> Vec<&'static str> {
        check(found, args).into_iter().filter(|term| !term.holds).map(|term| term.what).collect()
    }

    /// The rows of the page that the formula is from: P = 400, G = 0.42 P, r = 0.3.
    #[test]
    fn the_inequality_holds_from_the_rates_on_that_the_page_says() {
        for (stake_in_prices, needed_ppm) in [(0u128, 600_000u32), (100, 5_940), (1_000, 599)] {
            // An answer dear enough that rounding does not matter.
            let price = 400_000_000u128;
            let args = EconomicsArgs { answer_price: price, ..USUAL };
            let mut rich = found(stake_in_prices * price, needed_ppm + 2, 1_000);
            rich.min_stake = Amount(u128::MAX >> 20);
            let first = |found: &Found| check(found, args).remove(0).holds;
            assert!(first(&rich), "S = {stake_in_prices} P at {needed_ppm} ppm");
            rich.policy.audit_floor_ppm = needed_ppm - 2;
            assert!(!first(&rich), "S = {stake_in_prices} P just below {needed_ppm} ppm");
        }
    }

    #[test]
    fn each_condition_can_fail_by_itself() {
        assert_eq!(wrong(&found(100_000_000, 20_000, 1_000), USUAL), [""; 0]);
        assert_eq!(wrong(&found(100_000_000, 1, 1_000), USUAL), ["a provider with a past"]);
        assert_eq!(wrong(&found(100_000_000, 20_000, 0), USUAL), ["money back"]);
        assert_eq!(wrong(&found(100_000_000, 20_000, 6_000), USUAL), ["convicting oneself"]);
        let all_bought = EconomicsArgs { collusion: 1_000_000, ..USUAL };
        assert_eq!(wrong(&found(100_000_000, 20_000, 1_000), all_bought), ["a provider with a past", "a new provider"]);
        let mut slow = found(100_000_000, 20_000, 1_000);
        slow.caps.move_window_s += 2_000;
        assert_eq!(wrong(&slow, USUAL), ["clocks"]);
    }
}
