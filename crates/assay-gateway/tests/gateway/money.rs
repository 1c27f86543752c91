//! Books, vouchers and receipts, also across disconnects and restarts.

use crate::world::{PATIENCE, World, story};
use assay_testkit::fake_provider::Trick;
use assay_types::{Amount, Finish};
use axum::http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

/// Reads a stream up to this many events, then drops the connection.
pub async fn read_events(response: hyper::Response<Incoming>, events: usize) {
    let mut body = response.into_body();
    let mut seen = Vec::new();
    while seen.windows(2).filter(|pair| pair == b"\n\n").count() < events {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("in time");
        seen.extend_from_slice(frame.expect("more of the stream").unwrap().data_ref().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_cancels_the_work_and_the_receipt_is_stored() {
    let world = World::start(1, &story(200)).await;
    for at in [3, 100, 130] {
        world.providers[0].set(Trick::HoldAt(at));
        let cancelled = u32::try_from(world.providers[0].jobs().len()).unwrap() + 1;
        let body = crate::world::chat_body(json!({"stream": true})).to_string();
        let response = world.open(Method::POST, "/v1/chat/completions", Some(&world.key), body).await;
        let id = response.headers()["x-assay-receipt"].to_str().unwrap().to_owned();
        let pending = world.get(&format!("/v1/receipts/{id}")).await;
        assert_eq!(pending.status, 409);
        assert_eq!(pending.json()["error"]["code"], "receipt_pending");
        // The first chunk, then one for each token: the provider is at its hold.
        read_events(response, 1 + at).await;
        world.providers[0].cancelled(cancelled).await;
        let file = world.receipt(&id).await;
        assert_eq!(file.parts.len(), 1);
        let part = &file.parts[0];
        assert_eq!((part.finish, part.output.len()), (Finish::Cancelled, at), "held at {at}");
        assert!(story(200).starts_with(&world.text_of(&file)));
        assert_eq!(world.settled().await, world.providers[0].charged_total().0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_the_first_token_pays_for_the_prompt() {
    let world = World::start(1, &story(10)).await;
    world.providers[0].set(Trick::HoldAt(0));
    let body = crate::world::chat_body(json!({"stream": true})).to_string();
    let mut stream = tokio::net::TcpStream::connect(world.gateway.address()).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
        world.key,
        body.len()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    let sent = async {
        while world.providers[0].jobs().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, sent).await.expect("the job is sent in time");
    drop(stream);
    world.providers[0].cancelled(1).await;
    let job = world.providers[0].jobs().pop().unwrap();
    let file = world.receipt(&job.request_hash().to_string()).await;
    assert_eq!((file.parts[0].finish, file.parts[0].output.len()), (Finish::Cancelled, 0));
    assert!(file.parts[0].signed.receipt.charged > Amount::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_receipts_keys_and_books() {
    let world = World::start(2, &story(60)).await;
    let mut ids = Vec::new();
    for number in [0, 1, 0] {
        ids.push(world.chat(json!({"provider": world.only(number)})).await.receipt_id());
    }
    let before: Vec<_> =
        [world.receipt(&ids[0]).await, world.receipt(&ids[1]).await, world.receipt(&ids[2]).await].into();
    let paid = world.settled().await;
    let (world, totals) = world.restart().await;
    assert_eq!(totals.receipts, 3);
    assert_eq!(totals.charged().0, paid);
    assert!(totals.channels.iter().all(|c| c.charged_total <= c.ceiling && c.ceiling <= c.deposit));
    for (id, before) in ids.iter().zip(&before) {
        assert_eq!(&world.receipt(id).await, before);
    }
    assert_eq!(world.settled().await, paid);
    // The books go on where they were: totals on the channel only rise.
    let reply = world.chat(json!({"provider": world.only(0)})).await;
    assert_eq!(reply.content(), story(60));
    let last = world.receipt(&reply.receipt_id()).await.parts[0].signed.receipt;
    assert_eq!(last.charged_total, Amount(before[2].parts[0].signed.receipt.charged_total.0 + last.charged.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_voucher_was_ever_above_the_stored_mark() {
    let world = World::start(1, &story(120)).await;
    for _ in 0..3 {
        world.chat(json!({})).await;
    }
    let ceiling = world.providers[0].ceiling();
    let store = assay_gateway::Store::open(&world.dir.path().join("gateway.db")).await.unwrap().0;
    // Read beside the running gateway, as it would be after a kill at this moment.
    let rows = store.channels().await.unwrap();
    assert_eq!(rows.len(), 1);
    assert!(ceiling > Amount::ZERO && ceiling <= rows[0].books.mark, "{ceiling} {rows:?}");
    let deposit = world.gateway.totals().await.unwrap().channels[0].deposit;
    assert!(rows[0].books.mark <= deposit);
}

/// Stops the gateway, removes its database and starts it again.
async fn lose_database(world: World) -> World {
    let World { gateway, dir, ledger, model, .. } = world;
    gateway.shutdown().await.unwrap();
    for name in ["gateway.db", "gateway.db-wal", "gateway.db-shm"] {
        let _ = std::fs::remove_file(dir.path().join(name));
    }
    let config = crate::world::config(&model, dir.path(), |_| ());
    let gateway = assay_gateway::Gateway::start_with(config, ledger.clone()).await.unwrap();
    let key = gateway.keys().create("again").await.unwrap();
    World { gateway, dir, ledger, model, key, ..world }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_is_made_up_for_by_what_the_provider_shows() {
    let world = World::start(1, &story(60)).await;
    world.chat(json!({})).await;
    let paid = world.settled().await;
    let world = lose_database(world).await;
    assert!(world.gateway.ready(1, PATIENCE).await);
    assert_eq!(world.chat(json!({})).await.content(), story(60));
    assert_eq!(world.settled().await, 2 * paid);
    let totals = world.gateway.totals().await.unwrap();
    assert_eq!(totals.charged().0, 2 * paid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_does_not_let_a_provider_invent_a_total() {
    let world = World::start(1, &story(60)).await;
    world.chat(json!({})).await;
    world.providers[0].set(Trick::ForgetVouchers);
    let world = lose_database(world).await;
    assert!(!world.gateway.ready(1, std::time::Duration::from_millis(300)).await);
    assert!(world.providers[0].charged_total() > Amount::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_comes_back_is_shown_what_it_signed() {
    let world = World::start(1, &story(60)).await;
    let id = world.chat(json!({})).await.receipt_id();
    let last = world.receipt(&id).await.parts[0].signed;
    world.providers[0].set(Trick::DieAt(0));
    world.chat(json!({})).await;
    world.providers[0].revive().await;
    let shown = async {
        loop {
            let shown = world.providers[0].shown().pop().filter(|shown| shown.latest.is_some());
            match shown {
                Some(shown) => return shown,
                None => tokio::task::yield_now().await,
            }
        }
    };
    let shown = tokio::time::timeout(PATIENCE, shown).await.expect("shown in time");
    assert_eq!(shown.latest.unwrap().receipt, last);
    let ceiling = shown.voucher.unwrap().voucher.max_claimable_amount;
    assert!(ceiling >= last.receipt.charged_total && ceiling == world.providers[0].ceiling());
    // It survives a restart of the gateway.
    let (world, _) = world.restart().await;
    assert_eq!(world.providers[0].shown().pop().unwrap().latest.unwrap().receipt, last);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_are_topped_up_before_they_are_empty() {
    // A story costs about 20,000 units: each deposit is soon used up, in the middle of a stream if need be.
    let world = World::start_with(1, &story(60), |config| config.deposit = Amount(30_000)).await;
    for _ in 0..6 {
        let served = async {
            loop {
                let reply = world.chat(json!({})).await;
                if reply.status == 200 {
                    return reply.content();
                }
                // Not even the first chunk was covered: the top-up is on its way.
                assert!(reply.text().contains("payment: the deposit of"), "{}", reply.text());
            }
        };
        let text = tokio::time::timeout(PATIENCE, served).await.expect("topped up in time");
        assert_eq!(text, story(60));
    }
    let totals = world.gateway.totals().await.unwrap();
    let channel = totals.channels[0];
    assert!(channel.deposit.0 >= 4 * 30_000, "{channel:?}");
    assert!(channel.ceiling <= channel.deposit);
}
