//! Requests of the gateway's own, at random times: who answers them, and who does not.

use crate::world::{PATIENCE, World, story};
use assay_gateway::AuditConfig;
use assay_net::RefusedCode;
use assay_testkit::fake_provider::Trick;
use serde_json::Value;
use std::time::Duration;

/// Deeds that a provider is known for.
async fn deeds(world: &World, number: usize) -> Vec<String> {
    let list = world.get("/v1/providers").await.json();
    let id = world.only(number)["only"][0].as_str().unwrap().to_lowercase();
    let providers = list["data"].as_array().unwrap();
    let one = providers.iter().find(|one| one["id"].as_str().unwrap().to_lowercase() == id).unwrap();
    let events = one["events"].as_array().unwrap();
    events.iter().map(|event: &Value| event["deed"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn who_takes_requests_and_does_not_answer_a_challenge_is_noted_as_silent() {
    let audit = AuditConfig { challenge: Duration::from_millis(20), ..AuditConfig::default() };
    let world = World::start_audited(2, &story(20), audit).await;
    world.providers[1].set(Trick::Refuse(RefusedCode::Internal));
    let wait = async {
        loop {
            let (first, second) = (deeds(&world, 0).await, deeds(&world, 1).await);
            let (answered, silent) = (|deed: &String| deed == "answered", |deed: &String| deed == "silent");
            assert!(!first.iter().any(silent), "{first:?}");
            if first.iter().any(answered) && second.iter().any(silent) {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("both in time");
}
