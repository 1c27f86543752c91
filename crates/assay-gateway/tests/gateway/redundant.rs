//! Redundant jobs: several providers commit, then show; who copies, keeps back, is late or wrong gets nothing from it.

use crate::audits::{STORY, Script, audits, score, world_with};
use crate::world::{World, story};
use assay_gateway::GatewayConfig;
use assay_testkit::fake_provider::Trick;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Deadlines that a test can wait for.
fn soon(config: &mut GatewayConfig) {
    config.timeouts.next_token = Duration::from_millis(300);
}

async fn world(n: u8) -> (World, Arc<Script>) {
    world_with(n, 0, 0, soon).await
}

fn redundant(providers: u32) -> Value {
    json!({"assay": {"verify": {"redundant": providers}}})
}

/// Events of a provider, the latest first.
async fn deeds(world: &World, number: usize) -> Vec<String> {
    let reply = world.get("/v1/providers").await.json();
    let id = world.providers[number].id().to_string();
    let all = reply["data"].as_array().unwrap();
    let found = all.iter().find(|p| p["id"] == json!(id)).unwrap();
    found["events"].as_array().unwrap().iter().map(|e| e["deed"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_all_gave_has_a_receipt_from_each() {
    let (world, script) = world(3).await;
    let reply = world.chat(redundant(3)).await;
    assert_eq!(reply.content(), story(STORY));
    let assay = reply.json()["assay"].clone();
    let receipts: Vec<String> = serde_json::from_value(assay["receipts"].clone()).unwrap();
    assert_eq!((receipts.len(), &receipts[0]), (3, &reply.receipt_id()));
    let mut providers = BTreeSet::new();
    let (mut nonces, mut jobs) = (BTreeSet::new(), vec![]);
    for id in &receipts {
        let file = world.receipt(id).await;
        providers.insert(file.parts[0].provider);
        nonces.insert(file.job.nonce);
        jobs.push(assay_types::Job { nonce: Default::default(), ..file.job });
    }
    assert_eq!((providers.len(), nonces.len()), (3, 3));
    assert!(jobs.iter().all(|job| *job == jobs[0]), "they differ in nothing but the nonce");
    assert_eq!(assay["providers"].as_array().unwrap().len(), 3);
    assert!(script.convictions.lock().unwrap().is_empty());
    world.settled().await;

    let mut body = redundant(2);
    body["stream"] = json!(true);
    let reply = world.chat(body).await;
    assert_eq!(reply.streamed_text(), story(STORY));
    world.receipt(&reply.receipt_id()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_are_convicted_and_the_right_answer_is_returned_whoever_is_in_the_majority() {
    for liars in [1usize, 2] {
        let (world, script) = world(3).await;
        for liar in &world.providers[..liars] {
            liar.set(Trick::WrongTokenAt(7));
        }
        let reply = world.chat(redundant(3)).await;
        assert_eq!(reply.content(), story(STORY), "{liars} of 3 lie");
        let convictions = script.convictions.lock().unwrap().clone();
        assert!(convictions.iter().all(|(_, first_wrong)| *first_wrong == 7));
        let convicted: BTreeSet<_> = convictions.iter().map(|(file, _)| file.parts[0].provider).collect();
        let expected: BTreeSet<_> = world.providers[..liars].iter().map(|p| p.id()).collect();
        assert_eq!(convicted, expected);
        assert_eq!(score(&world, 0).await, 0);
        assert!(score(&world, 2).await > 0);
        let honest = world.receipt(&reply.receipt_id()).await;
        assert!(!expected.contains(&honest.parts[0].provider), "the receipt is one of the right answer");
        assert_eq!(reply.json()["assay"]["receipts"].as_array().unwrap().len(), 3 - liars);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_replay_a_majority_proves_nothing() {
    let world = World::start_audited(3, &story(STORY), audits(0, 0, None)).await;
    world.providers[0].set(Trick::WrongTokenAt(7));
    let reply = world.chat(redundant(3)).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (502, &json!("providers_disagree")));
    assert!(score(&world, 0).await > 0, "nobody is blamed");
}

/// Threat rows 3 and 15 over real sockets.
#[tokio::test(flavor = "multi_thread")]
async fn a_copied_commitment_cannot_be_opened_and_its_victim_is_not_hurt() {
    let (world, _) = world(3).await;
    let (victim, copier) = (&world.providers[0], &world.providers[1]);
    copier.set(Trick::CopyCommitment);
    copier.copies(victim);
    let only = json!({"only": [victim.id().to_string(), copier.id().to_string()]});
    let mut body = redundant(2);
    body["provider"] = only;
    let reply = world.chat(body).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (503, &json!("too_few_agree")));
    assert_eq!(deeds(&world, 1).await, ["withheld"]);
    assert!(deeds(&world, 0).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_commits_and_does_not_show_it_is_remembered() {
    for trick in [Trick::ShowOther, Trick::NeverShow] {
        let (world, _) = world(2).await;
        world.providers[1].set(trick);
        let reply = world.chat(redundant(2)).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json()["error"]["code"]),
            (503, &json!("too_few_agree")),
            "{trick:?}"
        );
        assert_eq!(deeds(&world, 1).await, ["withheld"], "{trick:?}");
        assert!(deeds(&world, 0).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_and_the_lost_are_replaced_before_anything_is_shown() {
    for trick in [Trick::NeverCommit, Trick::Refuse(assay_net::RefusedCode::Busy)] {
        let (world, _) = world(3).await;
        world.providers[0].set(trick);
        for _ in 0..4 {
            let reply = world.chat(redundant(2)).await;
            assert_eq!(reply.content(), story(STORY), "{trick:?}");
            let providers = reply.json()["assay"]["providers"].clone();
            assert!(!providers.as_array().unwrap().contains(&json!(world.providers[0].id().to_string())), "{trick:?}");
        }
        assert!(deeds(&world, 0).await.is_empty(), "it owed nothing yet");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_there_are_and_what_makes_no_sense_is_refused() {
    let (world, _) = world(2).await;
    let reply = world.chat(redundant(3)).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]["code"]), (503, &json!("too_few_agree")));
    for bad in [json!({"redundant": 1}), json!({"redundant": 9}), json!({}), json!(3), json!("twice")] {
        let reply = world.chat(json!({"assay": {"verify": bad}})).await;
        assert_eq!(reply.status, 400, "{bad}");
        assert!(reply.json()["error"]["param"].as_str().unwrap().starts_with("assay.verify"), "{}", reply.text());
    }
    let mut body = redundant(2);
    body["n"] = json!(2);
    assert_eq!(world.chat(body).await.json()["error"]["param"], "n");
}
