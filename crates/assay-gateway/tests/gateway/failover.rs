//! Providers that are lost, stall or lie: the client gets the same bytes, or an honest error.

use crate::world::{Reply, World, story};
use assay_gateway::GatewayConfig;
use assay_net::RefusedCode;
use assay_testkit::fake_provider::{FakeProvider, Trick};
use assay_types::Finish;
use serde_json::{Value, json};
use std::time::Duration;

/// Long enough for two checkpoints.
const WORDS: usize = 50;

/// A world of `n` providers and a chat in it that met provider 0, with its trick, first. Which of equal providers is
/// asked first is a draw, so worlds are made until the draw is the wanted one: within 100 with all but certainty.
async fn meets_first(n: u8, change: fn(&mut GatewayConfig), trick: Trick, stream: bool) -> (World, Reply) {
    for _ in 0..100 {
        let world = World::start_with(n, &story(WORDS), change).await;
        world.providers[0].set(trick);
        let reply = world.chat(json!({"stream": stream, "seed": 1})).await;
        if world.providers[0].asked() > 0 {
            return (world, reply);
        }
        assert_eq!(world.providers[1..].iter().map(FakeProvider::asked).sum::<u32>(), 1);
    }
    panic!("provider 0 was never asked first");
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_or_lost_before_the_first_token_is_retried_elsewhere() {
    let refusals = [RefusedCode::Busy, RefusedCode::Draining, RefusedCode::Price, RefusedCode::Internal];
    for trick in refusals.map(Trick::Refuse).into_iter().chain([Trick::DieAt(0)]) {
        for stream in [false, true] {
            let (world, reply) = meets_first(2, |_| (), trick, stream).await;
            let text = if stream { reply.streamed_text() } else { reply.content() };
            assert_eq!(text, story(WORDS), "{trick:?}");
            let file = world.receipt(&reply.receipt_id()).await;
            assert_eq!(file.parts.len(), 1, "{trick:?}");
            assert_eq!(file.parts[0].provider, world.providers[1].id(), "{trick:?}");
            let metrics = world.get("/metrics").await.text();
            assert!(metrics.contains("assay_gateway_retries_total 1"), "{trick:?}: {metrics}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_mid_stream_is_resumed_with_the_same_bytes() {
    // Before, at and after checkpoints; the story has about 190 tokens.
    for (at, parts) in [(1, 1), (63, 1), (64, 1), (65, 2), (100, 2), (128, 2), (150, 2)] {
        let (world, reply) = meets_first(2, |_| (), Trick::DieAt(at), true).await;
        assert_eq!(reply.streamed_text(), story(WORDS), "lost at {at}");
        let file = world.receipt(&reply.receipt_id()).await;
        assert_eq!(file.parts.len(), parts, "lost at {at}");
        let last = file.parts.last().unwrap();
        assert_eq!((last.provider, last.finish), (world.providers[1].id(), Finish::Stop));
        assert_eq!(world.text_of(&file), story(WORDS));
        if parts == 2 {
            assert_eq!(file.parts[0].provider, world.providers[0].id());
            assert_eq!(file.parts[0].output.len() % 64, 0);
            let job = world.providers[1].jobs().pop().unwrap();
            assert_eq!(job.prefix, file.parts[0].output);
        }
        let events = reply.events();
        let cost: u128 = file.parts.iter().map(|part| part.signed.receipt.charged.0).sum();
        assert_eq!(events[events.len() - 2]["assay"]["cost"], cost.to_string());
        assert_eq!(events[events.len() - 2]["assay"]["providers"].as_array().unwrap().len(), parts);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_provider_is_left() {
    fn impatient(config: &mut GatewayConfig) {
        config.timeouts.next_token = Duration::from_millis(100);
        config.timeouts.first_token = Duration::from_millis(100);
    }
    for at in [0, 70] {
        let (world, reply) = meets_first(2, impatient, Trick::HoldAt(at), true).await;
        assert_eq!(reply.streamed_text(), story(WORDS), "stalled at {at}");
        // What the stalled one had produced is known and paid, once it has said so.
        assert!(world.settled().await > 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_is_not_paid_for_and_somebody_else_goes_on() {
    for trick in
        [Trick::LieInCheckpoint, Trick::ForgeCheckpoint, Trick::InflateTotal, Trick::Overcharge, Trick::EndAt(80)]
    {
        let (world, reply) = meets_first(2, |_| (), trick, true).await;
        assert_eq!(reply.streamed_text(), story(WORDS), "{trick:?}");
        let file = world.receipt(&reply.receipt_id()).await;
        assert_eq!(file.parts.last().unwrap().provider, world.providers[1].id(), "{trick:?}");
        assert_eq!(world.text_of(&file), story(WORDS), "{trick:?}");
        // It is left alone from now on.
        assert_eq!(world.gateway.routable(), [world.providers[1].id()], "{trick:?}");
        let metrics = world.get("/metrics").await.text();
        assert!(metrics.contains("assay_gateway_provider_faults_total{kind="), "{trick:?}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_on_resume_is_noticed_and_never_sent() {
    // Provider 0 dies at 100: tokens 64 to 99 were sent and have to be produced again. Provider 1 gets one of them
    // wrong, provider 2 is honest. One draw in six has them in this order.
    for _ in 0..200 {
        let world = World::start(3, &story(WORDS)).await;
        world.providers[0].set(Trick::DieAt(100));
        world.providers[1].set(Trick::WrongTokenAt(90));
        let reply = world.chat(json!({"stream": true})).await;
        if !world.providers[1].jobs().iter().any(|job| job.prefix.len() == 64) {
            continue;
        }
        assert_eq!(reply.streamed_text(), story(WORDS));
        let file = world.receipt(&reply.receipt_id()).await;
        let providers: Vec<_> = file.parts.iter().map(|part| part.provider).collect();
        assert_eq!(providers, [world.providers[0].id(), world.providers[2].id()]);
        let metrics = world.get("/metrics").await.text();
        assert!(metrics.contains("provider_faults_total{kind=\"diverged\"} 1"), "{metrics}");
        return;
    }
    panic!("no stream met provider 0 and then provider 1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_quits_is_resumed_from_the_last_token_that_it_is_paid_for() {
    let (world, reply) = meets_first(2, |_| (), Trick::QuitAt(100), true).await;
    assert_eq!(reply.streamed_text(), story(WORDS));
    let file = world.receipt(&reply.receipt_id()).await;
    assert_eq!(file.parts.len(), 2);
    // All 100 that it signed for are in the answer: nobody else is paid for them again.
    assert_eq!((file.parts[0].output.len(), file.parts[0].finish), (100, Finish::Cancelled));
    let signed = world.providers[0].receipts().pop().unwrap().receipt.receipt;
    assert_eq!(signed.output_tokens, 100);
    let charged = file.parts.iter().map(|part| part.signed.receipt.charged.0).sum::<u128>();
    assert_eq!(world.settled().await, charged);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_quits_without_a_token_is_paid_its_input_and_the_next_one_begins() {
    let (world, reply) = meets_first(2, |_| (), Trick::QuitAt(0), true).await;
    assert_eq!(reply.streamed_text(), story(WORDS));
    let file = world.receipt(&reply.receipt_id()).await;
    assert_eq!((file.parts.len(), file.parts[0].provider), (1, world.providers[1].id()));
    assert!(world.settled().await > file.parts[0].signed.receipt.charged.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_nobody_can_go_on_the_stream_ends_with_an_error_and_no_done() {
    let world = World::start(1, &story(WORDS)).await;
    world.providers[0].set(Trick::DieAt(100));
    let reply = world.chat(json!({"stream": true})).await;
    let events = reply.events();
    let last = events.last().unwrap();
    assert_eq!(last["error"]["code"], "stream_broken", "{}", reply.text());
    assert!(!events.contains(&Value::from("[DONE]")));
    assert!(story(WORDS).starts_with(&crate::world::text_of(&events)));
    let whole = World::start(1, &story(WORDS)).await;
    whole.providers[0].set(Trick::DieAt(100));
    let reply = whole.chat(json!({})).await;
    assert_eq!(reply.status, 502);
    assert_eq!(reply.json()["error"]["code"], "stream_broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_provider_is_forgotten_and_welcomed_back() {
    let (world, reply) = meets_first(2, |_| (), Trick::DieAt(70), true).await;
    assert_eq!(reply.streamed_text(), story(WORDS));
    for _ in 0..8 {
        assert_eq!(world.chat(json!({})).await.content(), story(WORDS));
    }
    world.providers[0].revive().await;
    assert!(world.gateway.ready(2, crate::world::PATIENCE).await);
    // The checkpoint it had signed is in both books; nothing stays reserved.
    assert!(world.settled().await > 0);
    let reply = world.chat(json!({"provider": world.only(0)})).await;
    assert_eq!(reply.content(), story(WORDS));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_keeps_log_probabilities_back_is_left() {
    let world = World::start(2, &story(WORDS)).await;
    for provider in &world.providers {
        provider.set(Trick::NoLogprobsAt(70));
    }
    // Nobody who asked gets them: the attempt is lost, and so is the next.
    assert_eq!(world.chat(json!({"logprobs": true, "max_tokens": 80})).await.status, 502);
    let metrics = world.get("/metrics").await.text();
    assert!(metrics.contains("provider_faults_total{kind=\"token\"} 2"), "{metrics}");
    // Who did not ask does not miss them.
    let (_, reply) = meets_first(2, |_| (), Trick::NoLogprobsAt(70), false).await;
    assert_eq!(reply.content(), story(WORDS));
}
