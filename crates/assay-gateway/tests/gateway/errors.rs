//! Every bad request, and what comes back.

use crate::world::{CONTEXT, PATIENCE, World, chat_body};
use assay_net::RefusedCode;
use assay_testkit::fake_provider::Trick;
use axum::http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Status, code and param of an error reply; every one has OpenAI's shape.
fn look(reply: &crate::world::Reply) -> (u16, String, Option<String>) {
    let body = reply.json();
    let error = &body["error"];
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert!(error["type"].as_str().unwrap().ends_with("_error"));
    assert_eq!(reply.headers["content-type"], "application/json");
    let param = error["param"].as_str().map(str::to_owned);
    (reply.status.as_u16(), error["code"].as_str().unwrap().to_owned(), param)
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_requests() {
    let world = World::start(1, "x").await;
    let check = async |path: &str, body: Vec<u8>, status: u16, code: &str, param: Option<&str>| {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let reply = world.send(Method::POST, path, Some(&world.key), body).await;
        assert_eq!(look(&reply), (status, code.to_owned(), param.map(str::to_owned)), "{shown}: {}", reply.text());
    };
    let chat = "/v1/chat/completions";
    let with = |extra: Value| chat_body(extra).to_string().into_bytes();
    check(chat, b"".to_vec(), 400, "invalid_json", None).await;
    check(chat, b"{\"model\":".to_vec(), 400, "invalid_json", None).await;
    check(chat, b"\xff\xfe".to_vec(), 400, "invalid_json", None).await;
    check(chat, b"[1]".to_vec(), 400, "invalid_type", None).await;
    check(chat, "[".repeat(200_000).into_bytes(), 400, "invalid_json", None).await;
    check(chat, with(json!({"model": null})), 400, "missing_required_parameter", Some("model")).await;
    check(chat, with(json!({"model": 7})), 400, "invalid_value", Some("model")).await;
    check(chat, with(json!({"messages": []})), 400, "invalid_value", Some("messages")).await;
    check(
        chat,
        with(json!({"messages": [{"role": "x", "content": ""}]})),
        400,
        "invalid_value",
        Some("messages[0].role"),
    )
    .await;
    check(chat, with(json!({"temperature": 3})), 400, "invalid_value", Some("temperature")).await;
    check(chat, with(json!({"max_tokens": "1"})), 400, "invalid_value", Some("max_tokens")).await;
    check(chat, with(json!({"tools": [{}]})), 400, "missing_required_parameter", Some("tools[0].type")).await;
    check(chat, with(json!({"n": 17})), 400, "invalid_value", Some("n")).await;
    check(chat, with(json!({"model": "gpt-4"})), 404, "model_not_found", Some("model")).await;
    check(chat, with(json!({"max_tokens": CONTEXT})), 400, "context_length_exceeded", Some("max_tokens")).await;
    let long = json!({"messages": [{"role": "user", "content": "x".repeat(CONTEXT as usize)}]});
    check(chat, with(long), 400, "context_length_exceeded", Some("max_tokens")).await;
    let completions = "/v1/completions";
    let prompt = |prompt: Value| json!({"model": "fake", "prompt": prompt}).to_string().into_bytes();
    check(completions, prompt(json!(null)), 400, "missing_required_parameter", Some("prompt")).await;
    check(completions, prompt(json!([])), 400, "invalid_value", Some("prompt")).await;
    check(completions, prompt(json!(["a", "b"])), 400, "unsupported_parameter", Some("prompt")).await;
    check(completions, prompt(json!([4_000_000])), 400, "invalid_value", Some("prompt")).await;
    let too_large = with(json!({"messages": [{"role": "user", "content": "x".repeat(10 << 20)}]}));
    check(chat, too_large, 413, "body_too_large", None).await;
    // After all that, the next request is served.
    assert_eq!(world.chat(json!({})).await.content(), "x");
    assert_eq!(world.providers[0].jobs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_unknown_length_is_cut_at_the_limit() {
    let world = World::start(1, "x").await;
    let mut stream = TcpStream::connect(world.gateway.address()).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n",
        world.key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
    for _ in 0..32 {
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_of_large_bodies_hold_up_nobody() {
    let world = World::start_with(1, "x", |config| {
        // Room for one large body, for longer than anybody here waits.
        config.limits.bodies_bytes_max = 1 << 20;
        config.timeouts.body = 10 * PATIENCE;
    })
    .await;
    let mut slow = vec![];
    for _ in 0..4 {
        let mut stream = TcpStream::connect(world.gateway.address()).await.unwrap();
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 1000000\r\n\
             expect: 100-continue\r\n\r\n",
            world.key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // The gateway says this when it begins to read.
        let mut leave = [0; 12];
        tokio::time::timeout(PATIENCE, stream.read_exact(&mut leave)).await.expect("in time").unwrap();
        assert_eq!(&leave, b"HTTP/1.1 100");
        stream.write_all(&[b' '; 100_000]).await.unwrap();
        slow.push(stream);
    }
    assert_eq!(world.chat(json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_ask() {
    let world = World::start(1, "x").await;
    let (start, last) = world.key.split_at(world.key.len() - 1);
    let wrong = format!("{start}{}", if last == "0" { "1" } else { "0" });
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for key in [None, Some(""), Some("sk-assay-"), Some(&*wrong), Some(&*"x".repeat(4000))] {
            let reply = world.send(Method::POST, path, key, chat_body(json!({})).to_string()).await;
            assert_eq!(look(&reply), (401, "invalid_api_key".into(), None), "{path} {key:?}");
        }
    }
    for path in ["/v1/models", "/v1/receipts/0x00"] {
        assert_eq!(look(&world.send(Method::GET, path, Some(&wrong), "").await).0, 401, "{path}");
    }
    assert_eq!(world.providers[0].jobs().len(), 0);
    let keys = world.gateway.keys();
    let second = keys.create("second").await.unwrap();
    assert_eq!(world.send(Method::GET, "/v1/models", Some(&second), "").await.status, 200);
    let row = keys.list().await.unwrap().into_iter().find(|row| row.name == "second").unwrap();
    assert!(second.starts_with("sk-assay-") && !row.hint.contains(&second));
    let id = assay_gateway::KeyId(row.key_id);
    assert!(keys.revoke(id).await.unwrap());
    assert!(!keys.revoke(id).await.unwrap());
    assert_eq!(world.send(Method::GET, "/v1/models", Some(&second), "").await.status, 401);
    assert_eq!(world.get("/v1/models").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods() {
    let world = World::start(1, "x").await;
    let check = async |method: Method, path: &str, status: u16, code: &str| {
        let reply = world.send(method, path, Some(&world.key), "").await;
        assert_eq!(look(&reply), (status, code.to_owned(), None), "{path}");
    };
    check(Method::GET, "/", 404, "unknown_url").await;
    check(Method::POST, "/v1/images/generations", 404, "unknown_url").await;
    check(Method::GET, "/v1/chat/completions", 405, "method_not_allowed").await;
    check(Method::POST, "/v1/models", 405, "method_not_allowed").await;
    check(Method::DELETE, "/v1/receipts/0x00", 405, "method_not_allowed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receipts_are_only_for_the_key_that_asked() {
    let world = World::start(1, "x").await;
    let id = world.chat(json!({})).await.receipt_id();
    let path = format!("/v1/receipts/{id}");
    assert_eq!(world.get(&path).await.status, 200);
    let other = world.gateway.keys().create("other").await.unwrap();
    let not_found = (404, "receipt_not_found".to_owned(), None);
    assert_eq!(look(&world.send(Method::GET, &path, Some(&other), "").await), not_found);
    for bad in ["0x00", "x", &id[2..], &format!("{id}0"), &format!("0x{}", "0".repeat(64)), "%00"] {
        assert_eq!(look(&world.get(&format!("/v1/receipts/{bad}")).await), not_found, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_to_answer() {
    let world = World::start(2, "x").await;
    for provider in &world.providers {
        provider.set(Trick::Refuse(RefusedCode::Busy));
    }
    let busy = world.chat(json!({})).await;
    assert_eq!(look(&busy), (429, "no_capacity".into(), None));
    assert_eq!(busy.headers["retry-after"], "1");
    for provider in &world.providers {
        provider.set(Trick::Refuse(RefusedCode::Internal));
    }
    let failed = world.chat(json!({"stream": true})).await;
    assert_eq!(look(&failed), (503, "provider_failed".into(), None));
    assert!(failed.headers.contains_key("retry-after"));
    assert!(failed.headers.contains_key("x-assay-receipt"));
    let missing = world.get(&format!("/v1/receipts/{}", failed.receipt_id())).await;
    assert_eq!(look(&missing), (404, "receipt_empty".into(), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn providers_that_say_they_are_full_are_not_asked() {
    let world = World::start(1, "x").await;
    world.providers[0].set(Trick::ClaimFull);
    let full = async {
        loop {
            let reply = world.chat(json!({})).await;
            if reply.status == 429 {
                return reply;
            }
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    };
    let reply = tokio::time::timeout(crate::world::PATIENCE, full).await.expect("the offer is heard in time");
    assert_eq!(look(&reply).1, "no_capacity");
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_offers_are_ignored() {
    let world = World::start(1, "x").await;
    assert_eq!(world.gateway.routable(), [world.providers[0].id()]);
    world.providers[0].set(Trick::ForgeOffer);
    let gone = async {
        while !world.gateway.routable().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::world::PATIENCE, gone).await.expect("the forged offer is seen in time");
    let reply = world.chat(json!({})).await;
    assert_eq!(look(&reply), (503, "no_provider".into(), None));
    assert_eq!(world.send(Method::GET, "/readyz", None, "").await.status, 503);
}

/// Somebody who took over its address, or it lost its key and has not registered the new one.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_the_registered_transport_key_gets_nothing() {
    let world = World::start(1, "x").await;
    let other = World::start(3, "x").await.providers[2].transport_key();
    let registered = std::mem::replace(&mut world.ledger.providers.lock().unwrap()[0].transport_key, other);
    let until = async |count: usize| {
        let seen = async {
            while world.gateway.routable().len() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::world::PATIENCE, seen).await.expect("the change is seen in time");
    };
    until(0).await;
    let asked = world.providers[0].asked();
    assert_eq!(look(&world.chat(json!({})).await), (503, "no_provider".into(), None));
    assert_eq!(world.providers[0].asked(), asked);
    world.ledger.providers.lock().unwrap()[0].transport_key = registered;
    until(1).await;
    assert_eq!(world.chat(json!({})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_description_says_is_there() {
    let world = World::start(1, "x").await;
    let document = world.send(Method::GET, "/openapi.json", None, "").await;
    assert_eq!(document.headers["content-type"], "application/json");
    let document = document.json();
    assert_eq!(document["components"]["schemas"]["ModelName"]["enum"], json!(["fake", "alias"]));
    assert_eq!(document["components"]["schemas"]["EncoderName"]["enum"], json!(["encoder"]));
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 17);
    for (path, methods) in paths {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let asked: Method = method.parse().unwrap();
            let reply = world.send(asked, &path.replace("{id}", "0x00"), Some(&world.key), "{}").await;
            let is_there = methods.get(method.to_ascii_lowercase()).is_some();
            let is_refused = reply.status == 405 || reply.text().contains("unknown_url");
            assert_eq!(is_there, !is_refused, "{method} {path}: {}", reply.text());
            if is_there {
                let known = &methods[method.to_ascii_lowercase()]["responses"];
                assert!(
                    known.get(reply.status.as_str()).is_some(),
                    "{method} {path}: {} is not described",
                    reply.status
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_not_for_those_behind_a_proxy() {
    let world = World::start(1, "x").await;
    assert_eq!(world.send(Method::GET, "/metrics", None, "").await.status, 200);
    let mut stream = TcpStream::connect(world.gateway.address()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: x\r\nx-forwarded-for: 203.0.113.9\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 404") && answer.contains("unknown_url"), "{answer}");
}
