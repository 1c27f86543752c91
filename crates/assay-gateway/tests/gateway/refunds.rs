//! Money back: for answers that were shown to be wrong, and for those that nobody went on with.

use crate::audits::world_with;
use crate::world::{PATIENCE, Reply, World, chat_body, story, text_of};
use assay_gateway::{KeyId, KeyLimits, KeyRow};
use assay_testkit::fake_provider::Trick;
use assay_types::Amount;
use axum::http::Method;
use serde_json::{Value, json};

async fn row(world: &World) -> KeyRow {
    world.gateway.keys().list().await.unwrap().into_iter().find(|row| row.name == "user").unwrap()
}

async fn ask(world: &World, key: &str, extra: Value) -> Reply {
    world.send(Method::POST, "/v1/chat/completions", Some(key), chat_body(extra).to_string()).await
}

/// Waits until the key has got something back.
async fn refunded(world: &World) -> Amount {
    let wait = async {
        loop {
            let found = row(world).await.refunded;
            if found > Amount::ZERO {
                return found;
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it comes back in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_wrong_answer_cost_comes_back_once_the_court_has_paid_and_can_be_spent_again() {
    let (world, script) = world_with(2, 0, 0, |_| ()).await;
    world.providers[0].set(Trick::WrongTokenAt(7));
    let key = world.gateway.keys().create("user").await.unwrap();
    let reply = ask(&world, &key, json!({"max_tokens": 10, "assay": {"verify": {"redundant": 2}}})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let (file, _) = script.convictions.lock().unwrap()[0].clone();
    let (provider, receipt) = (file.parts[0].provider, file.parts[0].signed.receipt);
    assert!(receipt.charged > Amount::ZERO);
    // All that it may spend is spent.
    let limits = KeyLimits { budget: Some(row(&world).await.spent), ..KeyLimits::default() };
    world.gateway.keys().change(KeyId(row(&world).await.key_id), limits).await.unwrap();
    let one = json!({"max_tokens": 10});
    assert_eq!(ask(&world, &key, one.clone()).await.status, 429);
    assert_eq!(row(&world).await.refunded, Amount::ZERO, "nobody was convicted yet");

    // The court gives more than it had cost: the key gets what it had cost.
    world.ledger.refunds.lock().unwrap().insert((provider, receipt.request_hash), Amount(receipt.charged.0 + 9));
    assert_eq!(refunded(&world).await, receipt.charged);
    let again = ask(&world, &key, one.clone()).await;
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(ask(&world, &key, one).await.status, 429, "credited once");
    let (world, _) = world.restart().await;
    assert_eq!(row(&world).await.refunded, receipt.charged, "a restart forgets nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_went_on_with_costs_nothing() {
    let world = World::start(2, &story(200)).await;
    for provider in &world.providers {
        provider.set(Trick::DieAt(100));
    }
    let key = world.gateway.keys().create("user").await.unwrap();
    let events = ask(&world, &key, json!({"max_tokens": 190, "stream": true})).await.events();
    assert_eq!(events.last().unwrap()["error"]["code"], "stream_broken");
    assert!(story(200).starts_with(&text_of(&events)));
    assert_eq!(row(&world).await.spent, Amount::ZERO);
    let totals = world.gateway.totals().await.unwrap();
    assert!(totals.charged() > Amount::ZERO, "what the providers signed for is the gateway's loss");
}
