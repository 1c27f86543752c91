//! The whole network as a user runs it: processes, sockets, files, the shipped model.

use crate::support::{Network, assay, shipped, signal};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use assay_num::Isa;
use assay_types::{ProviderId, ReceiptFile, Signature, receipt_domain, settlement_domain};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn chat(prompt: &str, change: &Value) -> Value {
    let mut body = json!({
        "model": "assay-tiny",
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 1,
        "seed": 42,
        "max_tokens": 200,
        "ignore_eos": true,
    });
    for (key, value) in change.as_object().expect("a change is an object") {
        body[key] = value.clone();
    }
    body
}

const STORY: &str = "Tell me a long story.";

#[test]
fn one_request_has_the_same_bytes_on_every_provider_kernel_thread_count_and_in_company() {
    let isas = [Isa::Scalar, Isa::Avx2, Isa::Avx512];
    let (here, missing): (Vec<Isa>, Vec<Isa>) = isas.into_iter().partition(|isa| Isa::available().contains(isa));
    if !missing.is_empty() {
        eprintln!("this processor lacks {missing:?}: not compared here");
    }
    let list = here.iter().map(Isa::to_string).collect::<Vec<_>>().join(",");
    let mut texts = vec![];
    for threads in ["1", "2"] {
        let dir = tempfile::tempdir().expect("a folder");
        let network = Network::start(dir.path(), &["--isa", &list, "--threads", threads]);
        for provider in network.providers() {
            let body = chat(STORY, &json!({"provider": {"only": [provider]}}));
            let (text, reply) = network.http().chat(&body);
            assert_eq!(reply["assay"]["providers"], json!([provider]), "routing filter");
            texts.push(text);
            texts.push(in_company(&network, &provider, &body));
        }
        network.stop();
    }
    assert_eq!(texts.len(), 12);
    assert!(texts[0].len() > 100, "{:?}", texts[0]);
    assert!(texts.iter().all(|t| *t == texts[0]), "{texts:#?}");
}

/// The answer to `body` while this provider also answers 15 other requests.
fn in_company(network: &Network, provider: &str, body: &Value) -> String {
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..15)
            .map(|i| {
                let change = json!({"seed": i, "max_tokens": 40 + i * 3, "provider": {"only": [provider]}});
                let other = chat("What is the capital of Italy?", &change);
                scope.spawn(move || network.http().chat(&other).0)
            })
            .collect();
        let text = network.http().chat(body).0;
        for other in others {
            assert!(!other.join().expect("a request among others").is_empty());
        }
        text
    })
}

/// Streams `body`; after `kill_after` text events ends the serving provider. Returns the text and the receipt's id.
fn stream(network: &Network, body: &Value, kill_after: Option<usize>) -> (String, String) {
    let mut http = network.http();
    let mut reply = http.send("POST", "/v1/chat/completions", body.to_string().as_bytes());
    let status = reply.status;
    assert_eq!(status, 200, "{}", reply.text());
    let id = reply.header("x-assay-receipt").expect("a receipt id").to_owned();
    let (mut text, mut events, mut ended, mut serving) = (String::new(), 0, false, None);
    while let Some(event) = reply.event() {
        if event == "[DONE]" {
            ended = true;
            continue;
        }
        let chunk: Value = serde_json::from_str(&event).expect("an event is JSON");
        assert!(chunk["error"].is_null(), "{chunk}");
        // The first chunk says who serves.
        let named = chunk["assay"]["providers"][0].as_str().map(str::to_owned);
        serving = serving.or(named);
        if let Some(piece) = chunk["choices"][0]["delta"]["content"].as_str() {
            text.push_str(piece);
            events += 1;
            if Some(events) == kill_after {
                signal("KILL", network.pid(serving.as_ref().expect("somebody serves")));
            }
        }
    }
    assert!(ended, "no [DONE] after {text:?}");
    (text, id)
}

fn save_receipt(network: &Network, id: &str, dir: &Path) -> (PathBuf, Value) {
    let mut http = network.http();
    let (status, receipt) = http.get(&format!("/v1/receipts/{id}"));
    assert_eq!(status, 200, "{receipt}");
    let path = dir.join("receipt.json");
    std::fs::write(&path, receipt.to_string()).expect("the receipt is written");
    (path, receipt)
}

/// Exit status and output of `assay verify`.
fn verify(receipt: &Path, args: &[&str]) -> (i32, String) {
    let output = assay().arg("verify").arg(receipt).args(args).output().expect("assay verify runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().expect("a status"), text)
}

#[test]
fn a_stream_whose_provider_is_killed_goes_on_with_the_same_bytes() {
    let dir = tempfile::tempdir().expect("a folder");
    // Scalar kernels: slow enough that the stream is far from its end when the blow falls.
    let network = Network::start(dir.path(), &["--isa", "scalar"]);
    let body = chat(STORY, &json!({"stream": true, "max_tokens": 900, "seed": 5}));
    let (undisturbed, _) = stream(&network, &body, None);
    let (text, id) = stream(&network, &body, Some(80));
    assert_eq!(text, undisturbed);
    let (path, receipt) = save_receipt(&network, &id, dir.path());
    let parts = receipt["parts"].as_array().expect("parts");
    assert_eq!(parts.len(), 2, "{receipt}");
    assert_ne!(parts[0]["provider"], parts[1]["provider"]);
    let model = shipped("assay-tiny-q8_0.gguf");
    let (status, said) = verify(&path, &["--model", model.to_str().expect("a path"), "--rpc", &network.chain()]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("exact"), "{said}");
    network.stop();
}

#[test]
fn verify_accepts_a_genuine_receipt_and_rejects_each_forgery() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "1"]);
    let (_, id) = stream(&network, &chat(STORY, &json!({"stream": true, "max_tokens": 90})), None);
    let (path, genuine) = save_receipt(&network, &id, dir.path());
    let (q8, f16) = (shipped("assay-tiny-q8_0.gguf"), shipped("assay-tiny-f16.gguf"));
    let (q8, f16) = (q8.to_str().expect("a path"), f16.to_str().expect("a path"));
    let chain = network.chain();
    let (status, said) = verify(&path, &["--model", q8, "--rpc", &chain]);
    assert_eq!(status, 0, "{said}");

    let changed = |name: &str, change: fn(&mut Value)| {
        let mut forged = genuine.clone();
        change(&mut forged);
        assert_ne!(forged, genuine, "{name} changes nothing");
        let path = dir.path().join(format!("{name}.json"));
        std::fs::write(&path, forged.to_string()).expect("a forgery is written");
        path
    };
    let check = |name: &str, path: &Path, args: &[&str], expect: i32, because: &str| {
        let (status, said) = verify(path, args);
        assert_eq!(status, expect, "{name}: {said}");
        assert!(said.contains(because), "{name}: {said}");
    };
    let token = changed("token", |r| {
        let token = &mut r["parts"][0]["output"][3];
        *token = json!(token.as_u64().expect("a token") ^ 1);
    });
    check("one token changed", &token, &["--model", q8], 1, "responseHash");
    let seed = changed("seed", |r| r["job"]["sampling"]["seed"] = json!(43));
    check("another seed", &seed, &["--model", q8], 1, "not the hash of the job");
    check("another model file", &path, &["--model", f16], 1, "another model");
    let signature = changed("signature", |r| {
        let text = r["parts"][0]["signature"].as_str().expect("a signature").to_owned();
        let flipped = if &text[10..11] == "0" { "1" } else { "0" };
        r["parts"][0]["signature"] = json!(format!("{}{flipped}{}", &text[..10], &text[11..]));
    });
    check("forged signature", &signature, &[], 1, "sign");
    let charge = changed("charge", |r| r["parts"][0]["receipt"]["charged"] = json!("0"));
    check("another charge", &charge, &[], 1, "sign");
    let broken = dir.path().join("broken.json");
    std::fs::write(&broken, &genuine.to_string()[..200]).expect("a file is written");
    check("truncated file", &broken, &[], 2, "broken.json");
    check("no such file", &dir.path().join("none.json"), &[], 2, "none.json");
    check("no chain there", &path, &["--rpc", "http://127.0.0.1:1"], 2, "127.0.0.1:1");

    // A key that nobody registered signs the same statements: flawless, but nothing stands behind them.
    let stranger = dir.path().join("stranger.json");
    std::fs::write(&stranger, signed_by_stranger(&genuine)).expect("a forgery is written");
    check("stranger, offline", &stranger, &["--model", q8], 0, "exact");
    check("stranger, provider without stake", &stranger, &["--rpc", &chain], 1, "no sufficient stake");

    // The genuine receipt on a chain that has another registry.
    let other_dir = tempfile::tempdir().expect("a folder");
    let other = Network::start(other_dir.path(), &["--providers", "1"]);
    check("another network", &path, &["--rpc", &other.chain()], 1, "no stake");
    other.stop();
    network.stop();
}

/// The receipt file as a key without registration would have signed it.
fn signed_by_stranger(genuine: &Value) -> String {
    let mut file: ReceiptFile = serde_json::from_value(genuine.clone()).expect("a receipt file");
    let key = PrivateKeySigner::from_slice(&[7; 32]).expect("a key");
    let settlement = settlement_domain(file.chain_id, file.settlement);
    let domain = receipt_domain(file.chain_id, file.registry);
    for part in &mut file.parts {
        part.provider = ProviderId(key.address());
        part.channel.receiver = key.address();
        part.channel.receiver_authorizer = key.address();
        part.signed.receipt.channel_id = part.channel.id(&settlement);
        let digest = part.signed.receipt.digest(&domain);
        part.signed.signature = Signature::new(&key.sign_hash_sync(&digest).expect("a key signs"));
    }
    serde_json::to_string(&file).expect("a receipt file is JSON")
}

#[test]
fn balances_on_chain_equal_the_sum_of_the_receipts() {
    const REQUESTS: usize = 1000;
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &[]);
    let next = std::sync::atomic::AtomicUsize::new(0);
    let ids = std::sync::Mutex::new(vec![]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut http = network.http();
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if i >= REQUESTS {
                        break;
                    }
                    let body = chat("What is 2 + 3?", &json!({"seed": i, "ignore_eos": false, "max_tokens": 70}));
                    let (_, reply) = http.chat(&body);
                    let id = reply["assay"]["receipt"].as_str().expect("a receipt id").to_owned();
                    ids.lock().expect("no thread panicked").push(id);
                }
            });
        }
    });
    let mut charged = std::collections::BTreeMap::<String, u128>::new();
    let mut http = network.http();
    for id in ids.into_inner().expect("no thread panicked") {
        let (status, receipt) = http.get(&format!("/v1/receipts/{id}"));
        assert_eq!(status, 200, "{receipt}");
        for part in receipt["parts"].as_array().expect("parts") {
            let amount: u128 = part["receipt"]["charged"].as_str().expect("an amount").parse().expect("a number");
            *charged.entry(part["provider"].as_str().expect("a provider").to_owned()).or_default() += amount;
        }
    }
    drop(http);
    let providers = network.providers();
    let closing = network.stop();
    for provider in providers {
        let row = closing["providers"].as_array().expect("providers").iter().find(|p| p["id"] == provider);
        let earned = row.expect("a row for each provider")["earned"].as_str().expect("an amount").to_owned();
        assert_eq!(earned, charged.get(&provider).copied().unwrap_or(0).to_string(), "{closing}");
    }
    assert!(charged.values().sum::<u128>() >= REQUESTS as u128);
}

#[test]
fn twenty_kills_lose_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut known: Vec<String> = vec![];
    // Seeded, so that a failure can be repeated: how many requests are acknowledged before each kill.
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..20 {
        let network = Network::start(dir.path(), &[]);
        for id in &known {
            let (status, receipt) = network.http().get(&format!("/v1/receipts/{id}"));
            assert_eq!(status, 200, "round {round}: {id}: {receipt}");
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let requests = 1 + (random >> 33) % 8;
        let victim = (random >> 40) % 4;
        for i in 0..requests {
            let (_, reply) = network.http().chat(&chat("Hello", &json!({"max_tokens": 80, "seed": i})));
            known.push(reply["assay"]["receipt"].as_str().expect("a receipt id").to_owned());
        }
        // One more is in flight when the blow falls.
        let mut http = network.http();
        let body = chat(STORY, &json!({"stream": true, "max_tokens": 600})).to_string();
        let mut reply = http.send("POST", "/v1/chat/completions", body.as_bytes());
        for _ in 0..=(random >> 50) % 40 {
            assert!(reply.event().is_some());
        }
        if let Some(provider) = network.providers().get(victim as usize) {
            signal("KILL", network.pid(provider));
        }
        network.kill();
    }
    let network = Network::start(dir.path(), &[]);
    let mut http = network.http();
    let mut sum = std::collections::BTreeMap::<String, u128>::new();
    for id in &known {
        let (status, receipt) = http.get(&format!("/v1/receipts/{id}"));
        assert_eq!(status, 200, "{receipt}");
        for part in receipt["parts"].as_array().expect("parts") {
            let amount: u128 = part["receipt"]["charged"].as_str().expect("an amount").parse().expect("a number");
            *sum.entry(part["provider"].as_str().expect("a provider").to_owned()).or_default() += amount;
        }
    }
    drop(http);
    let closing = network.stop();
    for row in closing["providers"].as_array().expect("providers") {
        let amount = |field: &str| row[field].as_str().expect("an amount").parse::<u128>().expect("a number");
        // Every receipt that a client saw is paid; the rest are the streams that the kills cut, and they are paid
        // for exactly what was signed.
        assert!(amount("earned") >= sum.get(row["id"].as_str().expect("an id")).copied().unwrap_or(0), "{closing}");
        assert_eq!(amount("earned"), amount("charged"), "{closing}");
    }
}
