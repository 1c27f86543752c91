//! Somebody's own engine on the network: class tolerant, from `assay provide --upstream` to the loss of its reputation.
//!
//! The engine here is a second build in the ways that matter: it computes one token at a time, its logits are off by a
//! little noise as another order of batches makes them, and its random numbers are its own. `cargo xtask bench tolerant`
//! does the same with llama.cpp's server.

use crate::attacks::stake_of;
use crate::support::{Network, assay, shipped, signal};
use assay_engine::{KvPool, Model, Runner, Slice};
use assay_gguf::Gguf;
use assay_types::Amount;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Of the logits, to both sides.
const NOISE: f32 = 0.05;

/// An OpenAI-compatible server in this process.
struct Engine {
    url: String,
    inner: Arc<Inner>,
}

struct Inner {
    model: Mutex<Arc<Model>>,
    draws: AtomicU64,
    /// Breaks streams off after a hundred tokens.
    is_breaking: AtomicBool,
}

impl Engine {
    fn start(model: Arc<Model>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("an address"));
        let inner =
            Arc::new(Inner { model: Mutex::new(model), draws: AtomicU64::new(1), is_breaking: AtomicBool::new(false) });
        let shared = Arc::clone(&inner);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let inner = Arc::clone(&shared);
                // A provider that hangs up is one that has what it wants.
                std::thread::spawn(move || inner.serve(stream).is_ok());
            }
        });
        Self { url, inner }
    }

    /// From now on it runs another model.
    fn swap(&self, model: Arc<Model>) {
        *self.inner.model.lock().expect("a model") = model;
    }
}

impl Inner {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut length) = (String::new(), 0);
            if stream.read_line(&mut line)? == 0 {
                return Ok(());
            }
            loop {
                let mut header = String::new();
                stream.read_line(&mut header)?;
                let Some((name, value)) = header.trim_end().split_once(':') else { break };
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body)?;
            let whole = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            if line.starts_with("GET /v1/models") {
                stream.get_mut().write_all(whole(r#"{"data":[{"id":"tiny-elsewhere"}]}"#).as_bytes())?;
                continue;
            }
            if line.starts_with("GET") {
                stream.get_mut().write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")?;
                continue;
            }
            let body: Value = serde_json::from_slice(&body).expect("a request");
            if body["stream"].is_null() {
                stream.get_mut().write_all(whole(r#"{"choices":[{"text":"x"}]}"#).as_bytes())?;
                continue;
            }
            return self.generate(stream.get_mut(), &body);
        }
    }

    fn generate(&self, out: &mut TcpStream, body: &Value) -> std::io::Result<()> {
        out.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
        let model = Arc::clone(&self.model.lock().expect("a model"));
        let numbers = body["prompt"].as_array().expect("the prompt's tokens");
        let mut tokens: Vec<u32> = numbers.iter().map(|token| token.as_u64().expect("a token") as u32).collect();
        let max_tokens = body["max_tokens"].as_u64().expect("a bound") as usize;
        let temperature = body["temperature"].as_f64().expect("a temperature");
        let banned: Vec<usize> = body["logit_bias"]
            .as_object()
            .map_or_else(Vec::new, |bias| bias.keys().map(|id| id.parse().expect("an id")).collect());
        let (mut runner, mut pool) = (Runner::new(1), KvPool::new(model.kv_shape(), tokens.len() + max_tokens));
        let mut kv = pool.reserve(tokens.len() + max_tokens).expect("the pool is large enough");
        for count in 0..max_tokens {
            if self.is_breaking.load(Ordering::Acquire) && count == 100 {
                return Ok(());
            }
            pool.grow(&mut kv, tokens.len());
            let slice = Slice { kv: &mut kv, tokens: &tokens, logits_from: tokens.len() - 1 };
            assert_eq!(runner.step(&model, &mut [slice]), [true]);
            let mut logits: Vec<f64> = runner.logits(&model, 0, 1)[..model.config().vocab]
                .iter()
                .map(|l| f64::from(l + self.noise()))
                .collect();
            banned.iter().for_each(|&id| logits[id] -= 100.0);
            let next = self.choose(&logits, temperature);
            if model.tokenizer().is_eog(next) {
                let end = json!({"choices": [{"text": "", "finish_reason": "stop"}]});
                return write!(out, "data: {end}\n\ndata: [DONE]\n\n");
            }
            let text = String::from_utf8_lossy(model.tokenizer().token_bytes(next)).into_owned();
            let chunk = json!({"choices": [{"text": text, "token_ids": [next], "finish_reason": null}]});
            write!(out, "data: {chunk}\n\n")?;
            tokens = vec![next];
        }
        write!(out, "data: {}\n\ndata: [DONE]\n\n", json!({"choices": [{"text": "", "finish_reason": "length"}]}))
    }

    fn choose(&self, logits: &[f64], temperature: f64) -> u32 {
        let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if temperature == 0.0 {
            return logits.iter().position(|l| *l == greatest).expect("a greatest") as u32;
        }
        let weights: Vec<f64> = logits.iter().map(|l| ((l - greatest) / temperature).exp()).collect();
        let mut left = self.uniform() * weights.iter().sum::<f64>();
        let place = weights.iter().position(|w| {
            left -= w;
            left < 0.0
        });
        place.unwrap_or(0) as u32
    }

    fn noise(&self) -> f32 {
        (self.uniform() as f32 * 2.0 - 1.0) * NOISE
    }

    /// splitmix64
    fn uniform(&self) -> f64 {
        let mut z = self.draws.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The shipped model, of whose four layers only so many do anything: what the others would add is zero.
fn model(layers: u32) -> Arc<Model> {
    let mut bytes = std::fs::read(shipped("assay-tiny-q8_0.gguf")).expect("the shipped model");
    let gguf = Gguf::parse(&bytes).expect("a GGUF file");
    for layer in layers..4 {
        for name in ["attn_output", "ffn_down"] {
            let tensor = gguf.tensor(&format!("blk.{layer}.{name}.weight")).expect("a tensor");
            let start = usize::try_from(gguf.data_start() + tensor.offset).expect("an offset");
            bytes[start..][..usize::try_from(tensor.len).expect("a length")].fill(0);
        }
    }
    Model::load(&gguf, &bytes).expect("a model")
}

/// `assay provide --upstream` and what it said when it was ready.
struct Provider {
    child: Child,
    id: String,
    _stdout: BufReader<ChildStdout>,
}

impl Provider {
    fn start(dir: &Path, url: &str, name: &str) -> Self {
        let mut child = assay()
            .args(["provide", "--upstream", url, "--name", name, "--dir"])
            .arg(dir)
            .stdout(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("assay starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("assay provide prints");
        let ready: Value = serde_json::from_str(&line).expect("a ready line");
        Self { child, id: ready["id"].as_str().expect("an id").to_owned(), _stdout: stdout }
    }

    /// TERM, and the end in order.
    fn stop(mut self) {
        signal("TERM", u64::from(self.child.id()));
        assert!(self.child.wait().expect("it ends").success());
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `assay up` has every provider put up, in base units.
const STAKE: Amount = Amount(500_000_000);
const NAME: &str = "assay-tiny:tolerant";
const QUESTIONS: [&str; 4] =
    ["What is the capital of France?", "Tell me a long story.", "What is the opposite of hot?", "Count to ten."];

fn chat(number: usize, change: &Value) -> Value {
    let mut body = json!({
        "model": NAME, "messages": [{"role": "user", "content": QUESTIONS[number % QUESTIONS.len()]}],
        "temperature": if number.is_multiple_of(2) { 0 } else { 1 }, "seed": number, "max_tokens": 60, "ignore_eos": true,
    });
    for (key, value) in change.as_object().expect("a change is an object") {
        body[key] = value.clone();
    }
    body
}

/// What `assay providers --json` says of one.
fn standing(dir: &Path, id: &str) -> Value {
    let output = assay().args(["providers", "--json", "--dir"]).arg(dir).output().expect("assay providers runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let list: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text} {output:?}"));
    let providers = list.as_array().expect("a list");
    // Who has only just registered is in no list yet.
    providers.iter().find(|provider| provider["id"] == id).cloned().unwrap_or_default()
}

/// Asks again until it is so.
fn until(dir: &Path, id: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..2_000 {
        let standing = standing(dir, id);
        if is_so(&standing) {
            return standing;
        }
        std::thread::yield_now();
    }
    panic!("it does not come to be: {}", standing(dir, id));
}

#[test]
fn an_engine_of_ones_own_serves_as_class_tolerant_and_loses_its_reputation_with_its_model() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "1", "--threads", "1"]);
    let refused = network.http().post("/v1/chat/completions", &chat(0, &json!({})));
    assert_eq!((refused.0, &refused.1["error"]["code"]), (503, &json!("no_provider")), "{refused:?}");
    let engine = Engine::start(model(4));
    let provider = Provider::start(dir.path(), &engine.url, "1");
    until(dir.path(), &provider.id, |standing| standing["ready"] == true);

    // Listed with its class, and never mixed into the exact model unless that is allowed.
    let (_, list) = network.http().get("/v1/models");
    let cards = list["data"].as_array().expect("a list");
    let class = |name: &str| cards.iter().find(|card| card["id"] == name).map(|card| card["class"].clone());
    assert_eq!((class(NAME), class("assay-tiny")), (Some(json!("tolerant")), Some(json!("exact"))), "{list}");
    let only = json!([provider.id]);
    let answered = |change: Value| network.http().chat(&chat(0, &change)).1["assay"].clone();
    let exact = answered(json!({"model": "assay-tiny"}));
    assert_eq!((&exact["class"], exact["providers"] == only), (&json!("exact"), false), "{exact}");
    for change in [json!({}), json!({"model": "assay-tiny", "assay": {"verify": "tolerant"}})] {
        let tolerant = answered(change);
        assert_eq!((&tolerant["class"], &tolerant["providers"]), (&json!("tolerant"), &only), "{tolerant}");
    }
    // What only an exact provider can do is done by one, and what nobody can is refused.
    let schema = json!({"model": "assay-tiny", "assay": {"verify": "tolerant"}, "ignore_eos": false, "guided_choice": ["yes", "no"]});
    assert_eq!(answered(schema)["class"], "exact");
    let redundant =
        network.http().post("/v1/chat/completions", &chat(0, &json!({"assay": {"verify": {"redundant": 2}}})));
    assert_eq!(redundant.0, 400, "{redundant:?}");

    receipt_says_what_it_proves(&network, dir.path());
    broken_streams_end_with_an_error(&network, &engine);
    until(dir.path(), &provider.id, |standing| standing["ready"] == true);

    // Two thousand honest tokens, greedy and drawn, in company: its reputation only grows.
    let before = compared(&standing(dir.path(), &provider.id));
    ask(&network, 0..34);
    let honest = until(dir.path(), &provider.id, |standing| compared(standing) >= before + 1_500);
    assert_eq!(honest["deviations_ppm"], 0, "{honest}");
    assert!(honest["score_ppm"].as_u64() > Some(100_000), "{honest}");

    // Three of four layers: below the floor within a thousand tokens, and nothing is sent there any more.
    engine.swap(model(3));
    ask(&network, 100..116);
    let swapped = until(dir.path(), &provider.id, |standing| standing["score_ppm"] == 0);
    let deviated = &swapped["events"][0];
    assert_eq!(deviated["deed"], "deviated", "{swapped}");
    assert!(deviated["tokens"].as_u64() <= Some(1_000), "{deviated}");
    let (status, reply) = network.http().post("/v1/chat/completions", &chat(0, &json!({})));
    assert_eq!(status, 503, "{reply}");
    // Its stake is as it was, and nobody was convicted.
    assert_eq!((&swapped["convictions"], stake_of(&network, dir.path(), &provider.id)), (&json!(0), STAKE));

    // Threat 6: it comes back under another name. That takes another stake, begins at the floor, and ends the same way.
    let again = Provider::start(dir.path(), &engine.url, "2");
    let fresh = until(dir.path(), &again.id, |standing| standing["ready"] == true);
    assert_eq!((&fresh["score_ppm"], &fresh["audit_rate_ppm"]), (&json!(100_000), &json!(1_000_000)), "{fresh}");
    assert_eq!(stake_of(&network, dir.path(), &again.id), STAKE);
    ask(&network, 200..216);
    let fallen = until(dir.path(), &again.id, |standing| standing["score_ppm"] == 0);
    assert!(fallen["events"][0]["tokens"].as_u64() <= Some(1_000), "{fallen}");
    assert_eq!(standing(dir.path(), &provider.id)["score_ppm"], 0, "the old name is no better for it");
    again.stop();
    provider.stop();
    network.stop();
}

/// Tokens that were compared; those of a test that has ended against the provider are in none.
fn compared(standing: &Value) -> u64 {
    standing["matched_tokens"].as_u64().unwrap_or(0) + standing["comparing"]["tokens"].as_u64().unwrap_or(0)
}

/// Requests of 60 tokens, four at a time; those that come when the provider is shut out already are refused.
fn ask(network: &Network, numbers: std::ops::Range<usize>) {
    let next = AtomicU64::new(numbers.start as u64);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut http = network.http();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed) as usize;
                    if number >= numbers.end {
                        return;
                    }
                    let (status, reply) = http.post("/v1/chat/completions", &chat(number, &json!({})));
                    assert!(matches!(status, 200 | 503), "{reply}");
                }
            });
        }
    });
}

fn receipt_says_what_it_proves(network: &Network, dir: &Path) {
    let (_, reply) = network.http().chat(&chat(1, &json!({})));
    let id = reply["assay"]["receipt"].as_str().expect("a receipt");
    let (status, receipt) = network.http().get(&format!("/v1/receipts/{id}"));
    assert_eq!((status, &receipt["manifest"]["profile"]), (200, &json!("tolerant-1")), "{receipt}");
    let path = dir.join("receipt.json");
    std::fs::write(&path, receipt.to_string()).expect("a file");
    let output = assay().arg("verify").arg(&path).arg("--model").arg(shipped("assay-tiny-q8_0.gguf")).output();
    let output = output.expect("assay verify runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    for expect in ["valid", "class tolerant", "does not prove that the model gave them", "of 60 tokens"] {
        assert!(text.contains(expect), "{expect:?} in {text}");
    }
    // Another model's file is another model, of whatever class.
    let other = assay().arg("verify").arg(&path).arg("--model").arg(shipped("assay-tiny-f16.gguf")).output();
    assert_eq!(other.expect("assay verify runs").status.code(), Some(1));
}

fn broken_streams_end_with_an_error(network: &Network, engine: &Engine) {
    engine.inner.is_breaking.store(true, Ordering::Release);
    let mut http = network.http();
    // More than a provider holds back, so that some of it has come when it breaks.
    let body = chat(1, &json!({"stream": true, "max_tokens": 200})).to_string();
    let mut reply = http.send("POST", "/v1/chat/completions", body.as_bytes());
    let mut events = vec![];
    while let Some(event) = reply.event() {
        events.push(event);
    }
    engine.inner.is_breaking.store(false, Ordering::Release);
    let last = events.last().expect("an event");
    assert!(last.contains("error") && events.iter().all(|event| event != "[DONE]"), "{events:?}");
    assert!(events.len() > 2, "some of it had come: {events:?}");
}

/// Challenges come by themselves, are answered like any request, and their answers are looked at: here replayed, as the
/// provider is of class exact.
#[test]
fn providers_are_challenged_at_random_times_and_what_they_answer_is_replayed() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "1", "--threads", "1", "--challenge-every", "1"]);
    let id = &network.providers()[0];
    let receipts_of = |standing: &Value, deed: &str| -> Vec<Value> {
        let events = standing["events"].as_array().cloned().unwrap_or_default();
        events.iter().filter(|event| event["deed"] == deed).map(|event| event["receipt"].clone()).collect()
    };
    let both = |standing: &Value| {
        let proven = receipts_of(standing, "proven");
        receipts_of(standing, "answered").iter().any(|receipt| proven.contains(receipt))
    };
    let standing = until(dir.path(), id, both);
    let events = standing["events"].as_array().expect("events");
    let answered = events.iter().find(|event| event["deed"] == "answered").expect("an answer");
    assert!(answered["tokens"].as_u64() > Some(0) && answered["first_millis"].is_u64(), "{answered}");
    // A challenge is nobody's answer: no key is charged for it, and no key can fetch it.
    let receipt = answered["receipt"].as_str().expect("a receipt");
    assert_eq!(network.http().get(&format!("/v1/receipts/{receipt}")).0, 404);
    let usage = assay().args(["usage", "--json", "--dir"]).arg(dir.path()).output().expect("assay usage runs");
    assert!(!String::from_utf8_lossy(&usage.stdout).contains(receipt), "{usage:?}");
    // What a person reads has every component.
    let shown = assay().args(["providers", &id[..10], "--dir"]).arg(dir.path()).output().expect("assay providers runs");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    for expect in ["exact", "floor 10.0 %", "proven", "answered", receipt] {
        assert!(shown.contains(expect), "{expect:?} in {shown}");
    }
    network.stop();
}
