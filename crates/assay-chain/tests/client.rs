//! The client against endpoints that lose requests, answers and transactions.

mod setup;

use assay_chain::{ChainClient, ChainError, ClientOptions, EmbeddedChain, Network};
use assay_types::Amount;
use serde_json::{Value, json};
use setup::{World, key};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What an endpoint does with a request.
enum Fault {
    /// Answers as it should.
    None,
    /// Hangs up before it does anything.
    LoseRequest,
    /// Does it and hangs up.
    LoseAnswer,
    /// Answers this body with this status, and does nothing.
    Say(u16, String),
}

type Behaviour = Arc<Mutex<dyn FnMut(&Value) -> Fault + Send>>;

/// Serves `chain` over HTTP, one request a connection, as `behaviour` says; returns its URL.
async fn serve(chain: &EmbeddedChain, behaviour: impl FnMut(&Value) -> Fault + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (chain, behaviour): (_, Behaviour) = (chain.clone(), Arc::new(Mutex::new(behaviour)));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(exchange(stream, chain.clone(), Arc::clone(&behaviour)));
        }
    });
    url
}

async fn exchange(mut stream: TcpStream, chain: EmbeddedChain, behaviour: Behaviour) -> Option<()> {
    let request = read_request(&mut stream).await?;
    let fault = (behaviour.lock().unwrap())(&request);
    let answer = || {
        let result = chain.dispatch(request["method"].as_str().unwrap(), request["params"].clone());
        match result {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": request["id"], "result": result }),
            Err(error) => json!({ "jsonrpc": "2.0", "id": request["id"], "error": error }),
        }
    };
    let (status, body) = match fault {
        Fault::LoseRequest => return None,
        Fault::LoseAnswer => {
            answer();
            return None;
        }
        Fault::None => (200, answer().to_string()),
        Fault::Say(status, body) => (status, body),
    };
    let head = format!("HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.ok()
}

/// The JSON of one request, `None` if the client went away.
async fn read_request(stream: &mut TcpStream) -> Option<Value> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && let Ok(request) = serde_json::from_str(body)
        {
            return Some(request);
        }
    }
}

fn options() -> ClientOptions {
    ClientOptions {
        retry_pause: Duration::ZERO,
        resend_after: Duration::from_millis(5),
        receipt_timeout: Duration::from_secs(20),
        ..ClientOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_requests_and_answers_change_nothing() {
    let world = World::start().await;
    let mut count = 0;
    // Every request is lost once, done unheard once, and heard the third time.
    let url = serve(&world.chain, move |_| {
        count += 1;
        match count % 3 {
            1 => Fault::LoseRequest,
            2 => Fault::LoseAnswer,
            _ => Fault::None,
        }
    })
    .await;
    let before = world.chain.dispatch("eth_getTransactionCount", json!([key(1).address()])).unwrap();
    let client = ChainClient::connect(url, key(1), options()).await.unwrap();
    let network = Network::new(client, world.addresses()).unwrap();
    for _ in 0..5 {
        network.token.mint(key(2).address(), Amount(10)).await.unwrap();
    }
    assert_eq!(network.token.balance_of(key(2).address()).await.unwrap(), Amount(50), "each mint happened once");
    let after = world.chain.dispatch("eth_getTransactionCount", json!([key(1).address()])).unwrap();
    assert_eq!((before, after), (json!("0x3"), json!("0x8")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_the_endpoint_forgot_is_sent_again() {
    let world = World::start().await;
    let mut swallowed = 0;
    // Says yes to the first three transactions and forgets them, as a restarted node would.
    let url = serve(&world.chain, move |request| {
        if request["method"] == "eth_sendRawTransaction" && swallowed < 3 {
            swallowed += 1;
            let hash = assay_chain::B256::repeat_byte(swallowed);
            return Fault::Say(200, json!({ "jsonrpc": "2.0", "id": request["id"], "result": hash }).to_string());
        }
        Fault::None
    })
    .await;
    let client = ChainClient::connect(url, key(1), options()).await.unwrap();
    let network = Network::new(client, world.addresses()).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for amount in 1..=6 {
        let token = network.token.clone();
        tasks.spawn(async move { token.mint(key(2).address(), Amount(amount)).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap().unwrap();
    }
    assert_eq!(network.token.balance_of(key(2).address()).await.unwrap(), Amount(21));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_cannot_come_back_is_reported_and_the_next_one_works() {
    let world = World::start().await;
    let mut swallowed = false;
    let chain = world.chain.clone();
    let rival = world.faucet.token.clone();
    let runtime = tokio::runtime::Handle::current();
    // Forgets the first transaction and lets the key's other client take its nonce.
    let url = serve(&chain, move |request| {
        if request["method"] == "eth_sendRawTransaction" && !swallowed {
            swallowed = true;
            let rival = rival.clone();
            tokio::task::block_in_place(|| runtime.block_on(rival.mint(key(3).address(), Amount(1)))).unwrap();
            let hash = assay_chain::B256::ZERO;
            return Fault::Say(200, json!({ "jsonrpc": "2.0", "id": request["id"], "result": hash }).to_string());
        }
        Fault::None
    })
    .await;
    let client = ChainClient::connect(url, key(1), options()).await.unwrap();
    let network = Network::new(client, world.addresses()).unwrap();
    let error = network.token.mint(key(2).address(), Amount(1)).await.unwrap_err();
    assert!(matches!(&error, ChainError::Dropped { detail, .. } if detail.starts_with("nonce too low")), "{error}");
    network.token.mint(key(2).address(), Amount(2)).await.unwrap();
    assert_eq!(network.token.balance_of(key(2).address()).await.unwrap(), Amount(2));
    assert_eq!(network.token.balance_of(key(3).address()).await.unwrap(), Amount(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_talks_nonsense_is_an_error_after_the_last_try() {
    let world = World::start().await;
    let cases = [
        (503, "busy".to_owned(), 4),
        (200, "<html>".to_owned(), 1),
        (200, json!({ "jsonrpc": "2.0", "id": 0, "result": "x" }).to_string(), 1),
        (
            200,
            json!({ "jsonrpc": "2.0", "id": 0, "error": { "code": -32005, "message": "limit exceeded" } }).to_string(),
            4,
        ),
    ];
    for (status, body, tries_expected) in cases {
        let tries = Arc::new(Mutex::new(0));
        let (seen, say) = (Arc::clone(&tries), body.clone());
        let url = serve(&world.chain, move |_| {
            *seen.lock().unwrap() += 1;
            Fault::Say(status, say.clone())
        })
        .await;
        let error = ChainClient::connect(url, key(1), options()).await.err().unwrap();
        let named = matches!(
            error,
            ChainError::Transport { method: "eth_chainId", .. } | ChainError::Refused { method: "eth_chainId", .. }
        );
        assert!(named, "{body}: {error:?}");
        assert_eq!(*tries.lock().unwrap(), tries_expected, "{body}: {error}");
    }
}
