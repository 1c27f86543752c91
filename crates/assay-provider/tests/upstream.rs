//! A provider whose tokens come from somebody else's engine, here a script behind a socket that may say anything.

mod support;

use assay_net::{ClientFrame, ProviderFrame, RefusedCode};
use assay_provider::{Provider, StartError, UpstreamError, UpstreamOptions};
use assay_types::{Finish, TokenId};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use support::{Setup, World, job, tokenizer};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

/// What the engine does with a request for a stream.
#[derive(Clone)]
enum Script {
    /// Sends these bytes, then closes.
    Says(Vec<u8>),
    /// Sends these bytes over and over.
    Repeats(Vec<u8>),
    /// Sends these bytes, then nothing.
    Stalls(Vec<u8>),
    /// Refuses with this status.
    Refuses(u16),
}

/// An engine at a port of its own.
struct Engine {
    url: String,
    script: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<serde_json::Value>>>,
}

impl Engine {
    async fn start(takes_ids: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let script = Arc::new(Mutex::new(Script::Says(vec![])));
        let asked: Arc<Mutex<Vec<serde_json::Value>>> = Arc::default();
        let engine = Self { url, script: Arc::clone(&script), asked: Arc::clone(&asked) };
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, asked) = (Arc::clone(&script), Arc::clone(&asked));
                tokio::spawn(async move {
                    // An error is a provider that hung up, which is what some tests want.
                    let _ = answer(stream, takes_ids, &script, &asked).await;
                });
            }
        });
        engine
    }

    fn does(&self, script: Script) {
        *self.script.lock().unwrap() = script;
    }

    fn last_asked(&self) -> serde_json::Value {
        self.asked.lock().unwrap().last().cloned().unwrap()
    }

    async fn provider(&self, world: &World) -> Provider {
        let patience = Duration::from_millis(300);
        let options =
            UpstreamOptions { first_token: patience, next_token: patience, ..UpstreamOptions::new(self.url.clone()) };
        world.setup.start_upstream(world.directory.path(), world.chain.clone(), options).await.unwrap()
    }
}

async fn answer(
    stream: TcpStream,
    takes_ids: bool,
    script: &Mutex<Script>,
    asked: &Mutex<Vec<serde_json::Value>>,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut length) = (String::new(), 0);
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            let Some((name, value)) = header.trim_end().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        if line.starts_with("GET /v1/models") {
            whole(&mut stream, 200, r#"{"data":[{"id":"its-name","max_model_len":400}]}"#).await?;
            continue;
        }
        if line.starts_with("GET") {
            whole(&mut stream, 404, "{}").await?;
            continue;
        }
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if body["prompt"].is_array() && !takes_ids {
            whole(&mut stream, 422, r#"{"error":{"message":"a string, please"}}"#).await?;
            continue;
        }
        if body["stream"].is_null() {
            whole(&mut stream, 200, r#"{"choices":[{"text":"x"}]}"#).await?;
            continue;
        }
        asked.lock().unwrap().push(body);
        let script = script.lock().unwrap().clone();
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        match script {
            Script::Refuses(status) => whole(&mut stream, status, r#"{"error":{"message":"no"}}"#).await?,
            Script::Says(bytes) => {
                stream.write_all(head).await?;
                return stream.write_all(&bytes).await;
            }
            Script::Repeats(bytes) => {
                stream.write_all(head).await?;
                loop {
                    stream.write_all(&bytes).await?;
                }
            }
            Script::Stalls(bytes) => {
                stream.write_all(head).await?;
                stream.write_all(&bytes).await?;
                stream.flush().await?;
                // Until the provider hangs up.
                stream.read_u8().await?;
            }
        }
    }
}

async fn whole(stream: &mut BufReader<TcpStream>, status: u16, body: &str) -> std::io::Result<()> {
    let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await
}

/// Tokens that print something, each something of its own.
fn printing(count: usize) -> Vec<TokenId> {
    let tokenizer = tokenizer();
    let mut prints: HashMap<&[u8], TokenId> = HashMap::new();
    for id in 0..tokenizer.vocab_size() {
        let bytes = tokenizer.token_bytes(id);
        if std::str::from_utf8(bytes).is_ok_and(|text| !text.is_empty()) && !tokenizer.is_eog(id) {
            prints.entry(bytes).or_insert(id);
        }
    }
    let mut ids: Vec<TokenId> =
        prints.into_values().filter(|id| !tokenizer.token_text(*id).starts_with("<0x")).collect();
    ids.sort_unstable();
    assert!(ids.len() >= 3, "{ids:?}");
    ids.into_iter().cycle().take(count).collect()
}

fn text_of(token: TokenId) -> String {
    String::from_utf8(tokenizer().token_bytes(token).to_vec()).unwrap()
}

/// One event for each token, then the engine's word for the end.
fn stream_of(tokens: &[TokenId], with_ids: bool, end: &str) -> Vec<u8> {
    let mut out = String::new();
    for &token in tokens {
        let mut choice = serde_json::json!({"text": text_of(token), "index": 0, "finish_reason": null});
        if with_ids {
            choice["token_ids"] = serde_json::json!([token]);
        }
        out += &format!("data: {}\n\n", serde_json::json!({"choices": [choice]}));
    }
    out += &format!("data: {}\n\n", serde_json::json!({"choices": [{"text": "", "finish_reason": end}]}));
    out += "data: [DONE]\n\n";
    out.into_bytes()
}

#[tokio::test]
async fn an_engines_stream_is_checkpointed_paid_and_receipted_like_any_other() {
    for takes_ids in [true, false] {
        let (engine, world) = (Engine::start(takes_ids).await, World::new(Setup::default()));
        let provider = engine.provider(&world).await;
        let mut client = world.client(&provider).await;
        let tokens = printing(200);
        engine.does(Script::Says(stream_of(&tokens, takes_ids, "length")));
        let job = job(150);
        let outcome = client.run(&job).await;
        assert_eq!((&outcome.output[..], outcome.done.finish), (&tokens[..150], Finish::Length), "ids: {takes_ids}");
        assert_eq!(outcome.checkpoints, [64, 128]);
        // Five input tokens at two units, 150 output tokens at one.
        assert_eq!(outcome.done.receipt.receipt.charged.0, 160);

        let asked = engine.last_asked();
        assert_eq!(asked["prompt"].is_array(), takes_ids, "{asked}");
        assert_eq!((&asked["model"], &asked["stream"]), (&"its-name".into(), &true.into()));
        assert_eq!((&asked["seed"], &asked["temperature"]), (&42.into(), &0.9.into()));
        // Some more than the job's, which are counted here.
        assert_eq!(asked["max_tokens"], 187);
        // The context is what the engine says, not what the model could do.
        let offer = client.offer().await.offer;
        assert_eq!((offer.models[0].context_length, offer.capacity, offer.running), (400, 16, 0));
    }
}

#[tokio::test]
async fn an_output_ends_by_the_rule_that_all_parties_share() {
    let (engine, world) = (Engine::start(false).await, World::new(Setup::default()));
    let provider = engine.provider(&world).await;
    let mut client = world.client(&provider).await;
    let tokens = printing(40);

    // The model's own end, which engines do not show, is the token that ends.
    engine.does(Script::Says(stream_of(&tokens[..7], false, "stop")));
    let outcome = client.run(&assay_types::Job { ignore_eos: false, ..job(100) }).await;
    assert_eq!((outcome.output.len(), outcome.done.finish), (8, Finish::Stop));
    assert_eq!(outcome.output[..7], tokens[..7]);
    assert!(tokenizer().is_eog(outcome.output[7]));

    // A stop string is found here; the engine, which was not told of it, would go on for ever.
    let stop = text_of(tokens[0]) + &text_of(tokens[1]);
    engine.does(Script::Stalls(stream_of(&tokens, false, "length")));
    let outcome = client.run(&assay_types::Job { stop: vec![stop], ..job(100) }).await;
    assert_eq!((outcome.output.len(), outcome.done.finish), (2, Finish::Stop));
}

/// The first frame of another kind than tokens and checkpoints.
async fn end_of(client: &mut support::Client, max_tokens: u32) -> (usize, ProviderFrame) {
    let job = job(max_tokens);
    let open = client.open_frame(&job);
    client.send(ClientFrame::Open(Box::new(open))).await;
    let mut tokens = 0;
    loop {
        match client.next().await.unwrap() {
            ProviderFrame::Tokens(some) => tokens += some.len(),
            ProviderFrame::Accepted | ProviderFrame::Checkpoint(_) => {}
            other => return (tokens, other),
        }
    }
}

#[tokio::test]
async fn an_engine_that_lies_stalls_or_never_ends_is_cut_off_and_nothing_is_charged() {
    let (engine, world) = (Engine::start(true).await, World::new(Setup::default()));
    let provider = engine.provider(&world).await;
    let tokens = printing(30);
    let begun = stream_of(&tokens, false, "length");
    // Without the two last events, which end it.
    let begun = begun[..begun.len() - stream_of(&[], false, "length").len()].to_vec();
    let then = |more: &[u8]| [&begun[..], more].concat();
    let foreign = br#"data: {"choices":[{"text":"x","token_ids":[4000000]}]}"#;
    let cases: Vec<(&str, Script, usize, RefusedCode)> = vec![
        ("full", Script::Refuses(429), 0, RefusedCode::Busy),
        ("loading", Script::Refuses(503), 0, RefusedCode::Busy),
        ("no such path", Script::Refuses(404), 0, RefusedCode::Internal),
        ("wrong key", Script::Refuses(401), 0, RefusedCode::Internal),
        ("stalls at once", Script::Stalls(vec![]), 0, RefusedCode::Internal),
        ("stalls later", Script::Stalls(begun.clone()), 30, RefusedCode::Internal),
        ("only comments", Script::Repeats(b": still here\n\n".to_vec()), 0, RefusedCode::Internal),
        (
            "empty events",
            Script::Repeats(b"data: {\"choices\":[{\"text\":\"\"}]}\n\n".to_vec()),
            0,
            RefusedCode::Internal,
        ),
        ("a line without end", Script::Repeats(vec![b'x'; 4096]), 0, RefusedCode::Internal),
        ("no JSON", Script::Says(then(b"data: {]\n\n")), 30, RefusedCode::Internal),
        ("an error", Script::Says(then(b"data: {\"error\":{\"message\":\"oom\"}}\n\n")), 30, RefusedCode::Internal),
        ("a foreign token", Script::Says(then(&[&foreign[..], b"\n\n"].concat())), 30, RefusedCode::Internal),
        ("ends early", Script::Says(stream_of(&tokens, false, "length")), 30, RefusedCode::Internal),
        ("hangs up", Script::Says(begun.clone()), 30, RefusedCode::Internal),
    ];
    for (name, script, expect_tokens, expect_code) in cases {
        // Each on a connection of its own: what is not settled stays reserved.
        let mut client = world.client(&provider).await;
        engine.does(script);
        let (count, end) = end_of(&mut client, 100).await;
        let ProviderFrame::Refused(refused) = end else { panic!("{name}: {end:?}") };
        assert_eq!(refused.code, expect_code, "{name}: {}", refused.message);
        // Tokens that came together with the end may not have been sent any more.
        assert!(count <= expect_tokens, "{name}: {count}");
        let offer = client.offer().await.offer;
        assert_eq!(offer.running, 0, "{name}: the place is free again");
    }
    assert_eq!(provider.stats().await.unwrap().receipts, 0);
}

#[tokio::test]
async fn what_an_engine_over_http_cannot_be_held_to_is_refused() {
    let (engine, world) = (Engine::start(true).await, World::new(Setup::default()));
    let provider = engine.provider(&world).await;
    let mut client = world.client(&provider).await;
    let jobs = [
        ("continued", assay_types::Job { prefix: vec![70], ..job(9) }),
        ("log probabilities", assay_types::Job { logprobs: Some(1), ..job(9) }),
    ];
    for (word, job) in jobs {
        let open = client.open_frame(&job);
        let refused = client.refused(open).await;
        assert!(refused.code == RefusedCode::BadJob && refused.message.contains(word), "{refused:?}");
    }
    let elsewhere = UpstreamOptions::new("http://127.0.0.1:1/v1".into());
    let error = world.setup.start_upstream(world.directory.path(), world.chain.clone(), elsewhere).await.err();
    assert!(matches!(error, Some(StartError::Upstream(UpstreamError::Silent { .. }))), "{error:?}");
    let unnamed = UpstreamOptions { model: Some("another".into()), ..UpstreamOptions::new(engine.url.clone()) };
    let error = world.setup.start_upstream(world.directory.path(), world.chain.clone(), unnamed).await.err();
    assert!(error.unwrap().to_string().contains("its-name"));
}
