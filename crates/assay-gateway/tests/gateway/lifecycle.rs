//! Starting, stopping, and clients that hold things up.

use crate::world::{PATIENCE, World, chat_body, config, story};
use assay_gateway::{Gateway, GatewayConfig};
use assay_testkit::fake_provider::Trick;
use axum::http::Method;
use http_body_util::BodyExt;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_streams_finish_and_cuts_what_does_not() {
    let world = World::start_with(1, &story(60), |config| config.timeouts.drain = Duration::from_millis(300)).await;
    world.providers[0].set(Trick::HoldAt(100));
    let body = chat_body(json!({"stream": true})).to_string();
    let response = world.open(Method::POST, "/v1/chat/completions", Some(&world.key), body).await;
    let World { gateway, providers, .. } = world;
    let address = gateway.address();
    let stopping = tokio::spawn(gateway.shutdown());
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("\"code\":\"shutting_down\"") && !text.contains("[DONE]"), "{text}");
    providers[0].cancelled(1).await;
    let totals = stopping.await.unwrap().unwrap();
    assert_eq!(totals.charged(), providers[0].charged_total());
    assert_eq!(totals.receipts, 1);
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_in_time_is_not_cut() {
    let world = World::start(1, &story(60)).await;
    world.providers[0].set(Trick::HoldAt(100));
    let body = chat_body(json!({"stream": true})).to_string();
    let response = world.open(Method::POST, "/v1/chat/completions", Some(&world.key), body).await;
    let World { gateway, providers, .. } = world;
    let stopping = tokio::spawn(gateway.shutdown());
    providers[0].release();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).ends_with("data: [DONE]\n\n"));
    let totals = stopping.await.unwrap().unwrap();
    assert_eq!(totals.charged(), providers[0].charged_total());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_is_cut_and_others_are_served() {
    fn short(config: &mut GatewayConfig) {
        config.timeouts.client_write = Duration::from_millis(200);
    }
    // Every piece of text is a chunk of some 200 bytes: far more than socket buffers hold.
    let world = World::start_with(1, &story(60), short).await;
    let body = chat_body(json!({"stream": true, "ignore_eos": true})).to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        world.key,
        body.len()
    );
    let mut clients = Vec::new();
    for _ in 0..3 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        // Small, so that little fits on the way.
        socket.set_recv_buffer_size(1024).unwrap();
        let mut stream = socket.connect(world.gateway.address()).await.unwrap();
        // Pipelined: one answer after the other on one connection that is never read.
        for _ in 0..40 {
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(body.as_bytes()).await.unwrap();
        }
        clients.push(stream);
    }
    assert_eq!(world.chat(json!({})).await.content(), story(60));
    for mut client in clients {
        // Cut: the stream ends although not everything was answered. What was in flight is still there to read.
        let mut bytes = Vec::new();
        let end = tokio::time::timeout(PATIENCE, async {
            client.readable().await.unwrap();
            wait_for_cut(&world).await;
            client.read_to_end(&mut bytes).await
        });
        let _ = end.await.expect("the connection is cut in time");
        let answers = String::from_utf8_lossy(&bytes).matches("HTTP/1.1 200").count();
        assert!(answers < 40, "all {answers} answers fit into the buffers");
    }
}

/// Until the gateway counts an abandoned request for each of the three clients.
async fn wait_for_cut(world: &World) {
    loop {
        let metrics = world.send(Method::GET, "/metrics", None, "").await.text();
        let line = metrics.lines().find(|line| line.starts_with("assay_gateway_abandoned_total")).unwrap().to_owned();
        if line.rsplit(' ').next().unwrap().parse::<u32>().unwrap() >= 3 {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_headers_and_bodies_are_cut() {
    fn short(config: &mut GatewayConfig) {
        config.timeouts.header = Duration::from_millis(200);
        config.timeouts.body = Duration::from_millis(200);
    }
    let world = World::start_with(1, "x", short).await;
    let mut head = TcpStream::connect(world.gateway.address()).await.unwrap();
    head.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost:").await.unwrap();
    let mut bytes = Vec::new();
    tokio::time::timeout(PATIENCE, head.read_to_end(&mut bytes)).await.expect("cut in time").unwrap();
    let mut body = TcpStream::connect(world.gateway.address()).await.unwrap();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 50\r\n\r\n{{",
        world.key
    );
    body.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    tokio::time::timeout(PATIENCE, body.read_to_end(&mut bytes)).await.expect("cut in time").unwrap();
    assert!(String::from_utf8_lossy(&bytes).starts_with("HTTP/1.1 408"), "{}", String::from_utf8_lossy(&bytes));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_what_to_do_and_changes_nothing() {
    let world = World::start(1, "x").await;
    let check = async |change: &dyn Fn(&mut GatewayConfig), expect: &str| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&world.model, dir.path(), |_| ());
        change(&mut config);
        let Err(error) = Gateway::start_with(config, Arc::clone(&world.ledger)).await else {
            panic!("started although: {expect}");
        };
        let text = error.to_string();
        assert!(text.contains(expect) && !text.contains('\n'), "{text} does not contain {expect}");
    };
    let address = world.gateway.address();
    check(&|config| config.listen = address, "choose another port").await;
    check(&|config| config.database = "/nonexistent/gateway.db".into(), "/nonexistent/gateway.db").await;
    check(&|config| config.models.clear(), "at least one model").await;
    check(&|config| config.models.push(config.models[0].clone()), "two models answer to the name").await;

    let broken = world.dir.path().join("broken.db");
    let good = std::fs::read(world.dir.path().join("gateway.db")).unwrap();
    let mut foreign = good.clone();
    foreign[68..72].copy_from_slice(b"else");
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&9u32.to_be_bytes());
    let damaged: Vec<u8> = good.iter().enumerate().map(|(i, &b)| if i < 4096 { b } else { b ^ 0x5a }).collect();
    let cases: [(&[u8], &str); 6] = [
        (b"this is no database at all", "not an SQLite file"),
        (b"SQL", "too short"),
        (&good[..5000], "was not changed"),
        (&foreign, "another program's database"),
        (&newer, "schema version 9"),
        (&damaged, "was not changed"),
    ];
    for (bytes, expect) in cases {
        std::fs::write(&broken, bytes).unwrap();
        let path = broken.clone();
        check(&move |config| config.database.clone_from(&path), expect).await;
        assert_eq!(std::fs::read(&broken).unwrap(), bytes, "{expect}");
    }
}
