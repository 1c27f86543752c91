//! What a key may do: money that is held before it is spent, rates, expiry, and revocation by another process.

use crate::world::{PATIENCE, PRICES, Reply, World, chat_body, story, text_of};
use assay_gateway::{KeyId, KeyLimits, Keys, Store};
use assay_testkit::fake_provider::Trick;
use assay_types::Amount;
use axum::http::Method;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

const CHAT: &str = "/v1/chat/completions";

async fn key(world: &World, limits: KeyLimits) -> String {
    world.gateway.keys().create_limited("limited", limits).await.unwrap()
}

async fn ask(world: &World, key: &str, extra: Value) -> Reply {
    world.send(Method::POST, CHAT, Some(key), chat_body(extra).to_string()).await
}

fn code(reply: &Reply) -> (u16, String) {
    (reply.status.as_u16(), reply.json()["error"]["code"].as_str().unwrap().to_owned())
}

async fn spent(world: &World) -> Amount {
    world.gateway.keys().list().await.unwrap().into_iter().find(|row| row.name == "limited").unwrap().spent
}

/// What a request costs that is cut by its own `max_tokens`: exactly what is held for it.
async fn cost_of(world: &World, max_tokens: u32) -> Amount {
    let reply = world.chat(json!({"max_tokens": max_tokens})).await;
    assert_eq!(reply.json()["choices"][0]["finish_reason"], "length");
    Amount(reply.json()["assay"]["cost"].as_str().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_200_parallel_requests_exactly_those_succeed_that_the_budget_covers() {
    let world = World::start(3, &story(50)).await;
    let cost = cost_of(&world, 8).await;
    // Money for 50, and all but one unit of another.
    let budget = Amount(cost.0 * 51 - 1);
    let key = key(&world, KeyLimits { budget: Some(budget), ..KeyLimits::default() }).await;
    let replies = join_all((0..200).map(|_| ask(&world, &key, json!({"max_tokens": 8})))).await;
    let (served, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 200);
    assert_eq!(served.len(), 50);
    for reply in refused {
        match code(reply) {
            (429, code) if code == "rate_limit_exceeded" => assert_eq!(reply.headers["retry-after"], "1"),
            other => assert_eq!(other, (429, "insufficient_quota".into())),
        }
    }
    let jobs: usize = world.providers.iter().map(|provider| provider.jobs().len()).sum();
    assert_eq!(jobs, 51, "what cannot be paid is not sent");
    assert_eq!(spent(&world).await, Amount(cost.0 * 50));
    // Nothing is held any more, and the rest does not cover another one.
    let late = ask(&world, &key, json!({"max_tokens": 8})).await;
    assert_eq!(code(&late), (429, "insufficient_quota".into()));
    assert_eq!(late.headers["x-should-retry"], "false");
    assert!(!late.headers.contains_key("retry-after"));
    assert_eq!(ask(&world, &key, json!({"max_tokens": 1})).await.status, 200);

    let before = spent(&world).await;
    let (world, _) = world.restart().await;
    assert_eq!(spent(&world).await, before, "a restart forgets nothing");
    assert_eq!(code(&ask(&world, &key, json!({"max_tokens": 8})).await), (429, "insufficient_quota".into()));
    let row = world.gateway.keys().list().await.unwrap().pop().unwrap();
    let more = KeyLimits { budget: Some(Amount(cost.0 * 60)), ..row.limits };
    assert!(world.gateway.keys().change(KeyId(row.key_id), more).await.unwrap());
    assert_eq!(ask(&world, &key, json!({"max_tokens": 8})).await.status, 200);

    let store = Store::open(&world.dir.path().join("gateway.db")).await.unwrap().0;
    let (usage, _) = store.usage(0).await.unwrap();
    let of_key: Vec<_> = usage.iter().filter(|row| row.key_name == "limited").collect();
    assert_eq!(of_key.len(), 52);
    assert_eq!(of_key.iter().map(|row| row.charged.0).sum::<u128>(), spent(&world).await.0);
    assert!(of_key.iter().all(|row| row.output_tokens <= 8 && row.prompt_tokens > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_left_is_billed_what_was_signed() {
    let world = World::start(1, &story(200)).await;
    let key = key(&world, KeyLimits { budget: Some(Amount(1 << 60)), ..KeyLimits::default() }).await;
    world.providers[0].set(Trick::HoldAt(70));
    let body = chat_body(json!({"stream": true})).to_string();
    let response = world.open(Method::POST, CHAT, Some(&key), body).await;
    let id = response.headers()["x-assay-receipt"].to_str().unwrap().to_owned();
    crate::money::read_events(response, 71).await;
    world.providers[0].cancelled(1).await;
    let mut reply = world.send(Method::GET, &format!("/v1/receipts/{id}"), Some(&key), "").await;
    while reply.status == 409 {
        reply = world.send(Method::GET, &format!("/v1/receipts/{id}"), Some(&key), "").await;
    }
    let receipt = &reply.json()["parts"][0]["receipt"];
    assert_eq!(receipt["outputTokens"], 70);
    assert_eq!(spent(&world).await.0.to_string(), receipt["charged"].as_str().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn going_on_elsewhere_needs_money_too() {
    let world = World::start(2, &story(200)).await;
    let cost = cost_of(&world, 150).await;
    let prompt = world.providers.iter().flat_map(|provider| provider.jobs()).next().unwrap().prompt.len() as u64;
    for provider in &world.providers {
        provider.set(Trick::DieAt(100));
    }
    // Enough if nothing happens; the next provider would have the prompt and 64 tokens to read once more.
    let key = key(&world, KeyLimits { budget: Some(cost), ..KeyLimits::default() }).await;
    let events = ask(&world, &key, json!({"max_tokens": 150, "stream": true})).await.events();
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "stream_broken");
    assert!(last["error"]["message"].as_str().unwrap().contains("budget"), "{last}");
    assert!(story(200).starts_with(&text_of(&events)));
    assert_eq!(spent(&world).await, PRICES.charge_up(prompt, 64).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn rates_are_limited_and_told() {
    let world = World::start(1, &story(50)).await;
    let limits = KeyLimits { requests_per_minute: Some(2), tokens_per_minute: Some(500), ..KeyLimits::default() };
    let key = key(&world, limits).await;
    let first = ask(&world, &key, json!({"max_tokens": 10})).await;
    assert_eq!(first.status, 200);
    let header = |reply: &Reply, name: &str| reply.headers[name].to_str().unwrap().to_owned();
    assert_eq!(header(&first, "x-ratelimit-limit-requests"), "2");
    assert_eq!(header(&first, "x-ratelimit-remaining-requests"), "1");
    assert_eq!(header(&first, "x-ratelimit-limit-tokens"), "500");
    assert!(header(&first, "x-ratelimit-reset-tokens").ends_with('s'));
    // More than a minute's tokens will never do.
    let large = ask(&world, &key, json!({"max_tokens": 600})).await;
    assert_eq!(code(&large), (429, "rate_limit_exceeded".into()));
    assert_eq!(header(&large, "x-should-retry"), "false");
    let third = ask(&world, &key, json!({"max_tokens": 10})).await;
    assert_eq!(code(&third), (429, "rate_limit_exceeded".into()));
    let wait: u32 = header(&third, "retry-after").parse().unwrap();
    assert!((1..=30).contains(&wait), "{wait}");
    assert_eq!(header(&third, "x-ratelimit-remaining-requests"), "0");
    // Other keys have limits of their own, or none.
    let free = world.chat(json!({"max_tokens": 10})).await;
    assert!(free.status == 200 && !free.headers.contains_key("x-ratelimit-limit-requests"));
    assert_eq!(world.send(Method::GET, "/v1/models", Some(&key), "").await.status, 200, "looking costs nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_expired_does_not_work() {
    let world = World::start(1, "x").await;
    let limited = |expires_at| KeyLimits { expires_at: Some(expires_at), ..KeyLimits::default() };
    let over = key(&world, limited(1_700_000_000)).await;
    let reply = ask(&world, &over, json!({})).await;
    assert_eq!(code(&reply), (401, "invalid_api_key".into()));
    let later = key(&world, limited(u64::from(u32::MAX))).await;
    assert_eq!(ask(&world, &later, json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_revoked_by_another_process_stops_working_when_the_gateway_is_told() {
    let world = World::start_with(1, "x", |config| {
        config.control = Some(config.database.with_file_name("control.sock"));
    })
    .await;
    let key = key(&world, KeyLimits::default()).await;
    assert_eq!(ask(&world, &key, json!({})).await.status, 200);
    // What a command does in its own process.
    let (store, _writer) = Store::open(&world.dir.path().join("gateway.db")).await.unwrap();
    let keys = Keys::open(store).await.unwrap();
    let row = keys.list().await.unwrap().into_iter().find(|row| row.name == "limited").unwrap();
    assert!(keys.revoke(KeyId(row.key_id)).await.unwrap());
    let socket = world.dir.path().join("control.sock");
    let mut control = UnixStream::connect(&socket).await.unwrap();
    control.write_all(b"POST /keys/reload HTTP/1.0\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, control.read_to_string(&mut answer)).await.expect("in time").unwrap();
    assert!(answer.contains("200 OK") && answer.ends_with("{\"reloaded\":true}"), "{answer}");
    assert_eq!(code(&ask(&world, &key, json!({})).await), (401, "invalid_api_key".into()));
    world.gateway.shutdown().await.unwrap();
    assert!(!socket.exists(), "nothing is left behind");
}
