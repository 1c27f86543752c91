//! JSON-RPC as tools see it: bad input, nonces, reverts, logs, blocks.

mod setup;

use alloy_consensus::{SignableTransaction, TxEip1559, TxEip2930, TxEip7702, TxEnvelope, TxLegacy};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Signature, TxKind};
use alloy_signer::SignerSync;
use assay_chain::{
    Address, B256, Bytes, ChainClient, ChainError, ClientOptions, EmbeddedChain, LOCAL_CHAIN_ID, PrivateKeySigner,
    U256, bindings::token::TestUSD,
};
use assay_types::Amount;
use serde_json::{Value, json};
use setup::{NOW, World, key, open};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

/// A chain served on a free port until it is dropped.
struct Server {
    address: std::net::SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Server {
    async fn start(chain: &EmbeddedChain) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let chain = chain.clone();
        tokio::spawn(async move {
            let stopped = async move {
                stopped.await.ok();
            };
            chain.serve(listener, stopped).await.unwrap();
        });
        Self { address, _stop: stop }
    }

    /// Status and body of one raw exchange.
    async fn exchange(&self, request: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // The server may answer and close before it has read everything.
        stream.write_all(request).await.ok();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        let text = String::from_utf8_lossy(&answer);
        let status = text.split(' ').nth(1).expect("a status line").parse().unwrap();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.as_bytes().to_vec())
    }

    async fn post(&self, body: &[u8]) -> (u16, Vec<u8>) {
        let mut request = format!(
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.exchange(&request).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_get_json_rpc_errors() {
    let dir = tempfile::tempdir().unwrap();
    let chain = open(dir.path());
    let server = Server::start(&chain).await;
    let call =
        |method: &str, params: &str| format!(r#"{{"jsonrpc":"2.0","id":7,"method":"{method}","params":{params}}}"#);
    let deep = format!("{}1{}", "[".repeat(4000), "]".repeat(4000));
    let cases: Vec<(String, i64)> = vec![
        (String::new(), -32700),
        ("{".into(), -32700),
        ("\u{fffd}".into(), -32700),
        (deep.clone(), -32700),
        ("[]".into(), -32600),
        ("1".into(), -32600),
        ("null".into(), -32600),
        (r#"{"jsonrpc":"2.0","id":7}"#.into(), -32600),
        (r#"{"jsonrpc":"2.0","id":7,"method":5}"#.into(), -32600),
        (r#"{"jsonrpc":"1.0","id":7,"method":"eth_chainId"}"#.into(), -32600),
        (r#"{"id":7,"method":"eth_chainId"}"#.into(), -32600),
        (r#"{"jsonrpc":"2.0","id":{},"method":"eth_chainId"}"#.into(), -32600),
        (format!("[{}1]", "1,".repeat(100)), -32600),
        (call("eth_unknown", "[]"), -32601),
        (call(&"x".repeat(10_000), "[]"), -32601),
        (call("eth_sendTransaction", "[{}]"), -32601),
        (call("eth_getBalance", "{}"), -32602),
        (call("eth_getBalance", "[]"), -32602),
        (call("eth_getBalance", r#"["0x12"]"#), -32602),
        (call("eth_getBalance", r#"["0x0000000000000000000000000000000000000000","latestest"]"#), -32602),
        (call("eth_getBalance", r#"["0x0000000000000000000000000000000000000000","0xfffffffffffffffff"]"#), -32602),
        (call("eth_getBalance", r#"["0x0000000000000000000000000000000000000000","0xffffff"]"#), -32000),
        (call("eth_getStorageAt", r#"["0x0000000000000000000000000000000000000000","0xzz"]"#), -32602),
        (call("eth_call", r#"["0x"]"#), -32602),
        (call("eth_call", r#"[{"to":"0x01"}]"#), -32602),
        (call("eth_call", r#"[{"data":"0x1"}]"#), -32602),
        (call("eth_call", r#"[{},"latest",{}]"#), -32602),
        (call("eth_call", r#"[{"gas":"0x1"}]"#), -32000),
        (call("eth_call", r#"[{"gasPrice":"0xffffffff"}]"#), -32000),
        (call("eth_call", r#"[{"maxFeePerGas":"0x0","maxPriorityFeePerGas":"0x1"}]"#), -32000),
        (call("eth_call", r#"[{"data":"0xfe"}]"#), -32000),
        (call("eth_call", r#"[{"chainId":"0x1"}]"#), -32602),
        (
            call(
                "eth_estimateGas",
                r#"[{"value":"0x1","to":"0x0000000000000000000000000000000000000001","from":"0x00000000000000000000000000000000000000aa"}]"#,
            ),
            -32000,
        ),
        (call("eth_sendRawTransaction", "[]"), -32602),
        (call("eth_sendRawTransaction", r#"["0x"]"#), -32602),
        (call("eth_sendRawTransaction", r#"["0x02c0"]"#), -32602),
        (call("eth_sendRawTransaction", &format!(r#"["0x{}"]"#, "f8".repeat(100_000))), -32602),
        (call("eth_sendRawTransaction", &format!(r#"["0x{}"]"#, "00".repeat(200_000))), -32000),
        (call("eth_getTransactionReceipt", r#"["0x12"]"#), -32602),
        (call("eth_getBlockByNumber", r#"["0x1",7]"#), -32602),
        (call("eth_getBlockByNumber", "[7.5]"), -32602),
        (call("eth_feeHistory", r#"["0x1"]"#), -32602),
        (call("eth_feeHistory", r#"["0xffffffffffffffffff","latest"]"#), -32602),
        (call("eth_feeHistory", r#"["0x1","0x77",[]]"#), -32000),
        (call("eth_getLogs", r#"[{"fromBlock":"0x5","toBlock":"0x2"}]"#), -32602),
        (call("eth_getLogs", r#"[{"topics":[[[]]]}]"#), -32602),
        (
            call(
                "eth_getLogs",
                r#"[{"blockHash":"0x0000000000000000000000000000000000000000000000000000000000000001"}]"#,
            ),
            -32000,
        ),
    ];
    for (body, code) in cases {
        let shown: String = body.chars().take(120).collect();
        let (status, answer) = server.post(body.as_bytes()).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|error| panic!("{shown}: {error}"));
        assert_eq!((status, answer["error"]["code"].as_i64()), (200, Some(code)), "{shown}: {answer}");
        assert_eq!(answer["jsonrpc"], "2.0", "{shown}");
        let id = if body.contains(r#""id":7"#) { json!(7) } else { Value::Null };
        assert_eq!(answer["id"], id, "{shown}");
        assert!(answer["error"]["message"].as_str().unwrap().len() < 600, "{shown}: the message repeats the input");
    }
    assert_eq!(chain.head().unwrap().0, 0, "nothing of this became a block");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_and_notifications_follow_the_specification() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&open(dir.path())).await;
    let batch = r#"[{"jsonrpc":"2.0","id":"a","method":"eth_chainId"},{"jsonrpc":"2.0","method":"eth_chainId"},
        7,{"jsonrpc":"2.0","id":null,"method":"nope"}]"#;
    let (status, body) = server.post(batch.as_bytes()).await;
    let answer: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, answer.as_array().unwrap().len()), (200, 3));
    assert_eq!(answer[0], json!({"jsonrpc":"2.0","id":"a","result":format!("{LOCAL_CHAIN_ID:#x}")}));
    assert_eq!(answer[1]["error"]["code"], -32600);
    assert_eq!(answer[2]["error"]["code"], -32601);
    let (status, body) = server.post(br#"[{"jsonrpc":"2.0","method":"eth_chainId"}]"#).await;
    assert_eq!((status, body.len()), (204, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&open(dir.path())).await;
    let large = vec![b' '; (1 << 20) + 1];
    assert_eq!(server.post(&large).await.0, 413);
    assert_eq!(server.post(&large[1..]).await.0, 200, "one MiB of nothing is a parse error");
    let announced = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 99999999999\r\n\r\n";
    assert_eq!(server.exchange(announced).await.0, 413);
    let get = |method: &str| format!("{method} / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes();
    assert_eq!(server.exchange(&get("GET")).await.0, 400, "GET is for WebSocket");
    assert_eq!(server.exchange(&get("PUT")).await.0, 405);
    assert_eq!(
        server.exchange(b"POST /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").await.0,
        404
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_nothing_moves_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = setup::options();
    options.idle_timeout = std::time::Duration::from_millis(20);
    let chain = EmbeddedChain::open(dir.path(), &setup::genesis(), options).unwrap();
    let server = Server::start(&chain).await;
    for half in ["", "POST / HTTP/1.1\r\nhost:", "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(half.as_bytes()).await.unwrap();
        // Returns only when the server has closed.
        stream.read_to_end(&mut Vec::new()).await.ok();
    }
    assert_eq!(server.post(br#"{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}"#).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_works_over_http_and_in_process_alike() {
    let world = World::start().await;
    let server = Server::start(&world.chain).await;
    let url = format!("http://{}", server.address);
    let client = ChainClient::connect(url, key(1), ClientOptions::default()).await.unwrap();
    let remote = assay_chain::Network::new(client, world.addresses()).unwrap();
    remote.token.mint(key(2).address(), Amount(5)).await.unwrap();
    world.faucet.token.mint(key(2).address(), Amount(6)).await.unwrap();
    assert_eq!(remote.token.balance_of(key(2).address()).await.unwrap(), Amount(11));
    let error = remote.registry.stake(Amount(1)).await.unwrap_err();
    assert_eq!(error.revert().unwrap().name, "NotRegistered");

    for url in ["ftp://x", "127.0.0.1:1", "", "http://", "http://user@host/"] {
        let error = ChainClient::connect(url, key(1), ClientOptions::default()).await.err().unwrap();
        assert!(matches!(error, ChainError::BadUrl { .. }), "{url}: {error}");
    }
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let options = ClientOptions { attempts: 2, retry_pause: std::time::Duration::ZERO, ..ClientOptions::default() };
    for scheme in ["http", "https"] {
        let error = ChainClient::connect(format!("{scheme}://{gone}"), key(1), options).await.err().unwrap();
        assert!(matches!(error, ChainError::Transport { method: "eth_chainId", .. }), "{error}");
    }
}

// ---------------------------------------------------------------- transactions

fn transfer(nonce: u64) -> TxEip1559 {
    TxEip1559 {
        chain_id: LOCAL_CHAIN_ID,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: 0,
        max_priority_fee_per_gas: 0,
        to: TxKind::Call(key(7).address()),
        value: U256::ONE,
        access_list: Default::default(),
        input: Bytes::new(),
    }
}

fn signed<T: SignableTransaction<Signature>>(transaction: T, signer: &PrivateKeySigner) -> Bytes
where
    TxEnvelope: From<alloy_consensus::Signed<T>>,
{
    let signature = signer.sign_hash_sync(&transaction.signature_hash()).unwrap();
    TxEnvelope::from(transaction.into_signed(signature)).encoded_2718().into()
}

fn send(chain: &EmbeddedChain, raw: &Bytes) -> Result<B256, String> {
    match chain.dispatch("eth_sendRawTransaction", json!([raw])) {
        Ok(hash) => Ok(serde_json::from_value(hash).unwrap()),
        Err(error) => Err(error.message),
    }
}

/// Looks until the transaction is in a block.
async fn receipt(chain: &EmbeddedChain, hash: B256) -> Value {
    for _ in 0..1_000_000 {
        let receipt = chain.dispatch("eth_getTransactionReceipt", json!([hash])).unwrap();
        if !receipt.is_null() {
            return receipt;
        }
        tokio::task::yield_now().await;
    }
    panic!("{hash} never got a receipt");
}

fn count(chain: &EmbeddedChain, who: Address, tag: &str) -> Value {
    chain.dispatch("eth_getTransactionCount", json!([who, tag])).unwrap()
}

#[tokio::test]
async fn nonces_are_used_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let chain = open(dir.path());
    let me = key(1);
    let first = signed(transfer(0), &me);
    let hash = send(&chain, &first).unwrap();
    receipt(&chain, hash).await;
    assert!(send(&chain, &first).unwrap_err().starts_with("nonce too low: next nonce 1"));

    // Early ones wait for the missing one, whatever the order.
    let third = send(&chain, &signed(transfer(3), &me)).unwrap();
    let second = send(&chain, &signed(transfer(2), &me)).unwrap();
    assert_eq!(send(&chain, &signed(transfer(2), &me)).unwrap_err(), "already known");
    let other = TxEip1559 { value: U256::ZERO, ..transfer(2) };
    assert!(send(&chain, &signed(other, &me)).unwrap_err().starts_with("replacement transaction underpriced"));
    assert!(send(&chain, &signed(transfer(66), &me)).unwrap_err().starts_with("nonce too high: next nonce 1"));
    assert_eq!(chain.head().unwrap().0, 1, "nothing can run yet");
    let waiting = chain.dispatch("eth_getTransactionByHash", json!([third])).unwrap();
    assert_eq!((&waiting["hash"], &waiting["blockNumber"]), (&json!(third), &Value::Null));
    assert_eq!(count(&chain, me.address(), "pending"), "0x1");
    send(&chain, &signed(transfer(1), &me)).unwrap();
    assert_eq!(count(&chain, me.address(), "pending"), "0x4");
    assert_eq!(receipt(&chain, third).await["status"], "0x1");
    assert_eq!(receipt(&chain, second).await["status"], "0x1");
    assert_eq!(count(&chain, me.address(), "latest"), "0x4");
    assert_eq!(chain.dispatch("eth_getBalance", json!([key(7).address()])).unwrap(), "0x4");
}

#[tokio::test]
async fn a_closed_chain_has_sealed_what_it_took_and_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let chain = open(dir.path());
    let hash = send(&chain, &signed(transfer(0), &key(1))).unwrap();
    chain.close();
    let receipt = chain.dispatch("eth_getTransactionReceipt", json!([hash])).unwrap();
    assert_eq!(receipt["status"], "0x1");
    assert_eq!(send(&chain, &signed(transfer(1), &key(1))).unwrap_err(), "the chain is closed");
    chain.close();
}

#[tokio::test]
async fn every_type_of_transaction_is_sealed_or_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let chain = open(dir.path());
    let me = key(1);
    let legacy = TxLegacy {
        chain_id: Some(LOCAL_CHAIN_ID),
        nonce: 0,
        gas_price: 3,
        gas_limit: 21_000,
        to: TxKind::Call(key(7).address()),
        value: U256::ONE,
        input: Bytes::new(),
    };
    let access = TxEip2930 {
        chain_id: LOCAL_CHAIN_ID,
        nonce: 1,
        gas_price: 0,
        gas_limit: 30_000,
        to: TxKind::Call(key(7).address()),
        value: U256::ZERO,
        access_list: vec![alloy_eips::eip2930::AccessListItem {
            address: key(8).address(),
            storage_keys: vec![B256::ZERO],
        }]
        .into(),
        input: Bytes::new(),
    };
    let fees = TxEip1559 { nonce: 2, max_fee_per_gas: 9, max_priority_fee_per_gas: 2, ..transfer(2) };
    let accepted = [
        (signed(legacy.clone(), &me), "0x0", "0x3"),
        (signed(access, &me), "0x1", "0x0"),
        (signed(fees, &me), "0x2", "0x2"),
    ];
    for (raw, kind, price) in accepted {
        let receipt = receipt(&chain, send(&chain, &raw).unwrap()).await;
        assert_eq!((&receipt["type"], &receipt["effectiveGasPrice"]), (&json!(kind), &json!(price)), "{receipt}");
        assert_eq!((&receipt["from"], &receipt["status"]), (&json!(me.address()), &json!("0x1")));
    }

    let delegation = TxEip7702 { chain_id: LOCAL_CHAIN_ID, nonce: 3, gas_limit: 100_000, ..TxEip7702::default() };
    let create = |size: usize| TxEip1559 {
        to: TxKind::Create,
        input: vec![0; size].into(),
        gas_limit: 50_000_000,
        value: U256::ZERO,
        ..transfer(3)
    };
    let refused = [
        (signed(delegation, &me), "transaction type not supported"),
        (signed(TxLegacy { chain_id: None, nonce: 3, ..legacy }, &me), "only replay-protected"),
        (signed(TxEip1559 { chain_id: 1, ..transfer(3) }, &me), "invalid chain id: have 1, want 42330"),
        (
            signed(TxEip1559 { gas_limit: 20_999, ..transfer(3) }, &me),
            "intrinsic gas too low: gas 20999, minimum needed 21000",
        ),
        (
            signed(TxEip1559 { input: vec![1; 100].into(), ..transfer(3) }, &me),
            "intrinsic gas too low: gas 21000, minimum needed 25000",
        ),
        (signed(TxEip1559 { gas_limit: 60_000_001, ..transfer(3) }, &me), "exceeds block gas limit"),
        (signed(TxEip1559 { max_priority_fee_per_gas: 1, ..transfer(3) }, &me), "max priority fee per gas higher"),
        (signed(TxEip1559 { value: U256::MAX, ..transfer(3) }, &me), "insufficient funds"),
        (signed(transfer(0), &key(50)), "insufficient funds"),
        (signed(create(49_153), &me), "max initcode size exceeded"),
    ];
    for (raw, message) in refused {
        let error = send(&chain, &raw).unwrap_err();
        assert!(error.starts_with(message), "{error} is not {message}");
    }
    receipt(&chain, send(&chain, &signed(create(49_152), &me)).unwrap()).await;
}

#[tokio::test]
async fn what_becomes_invalid_is_dropped_and_the_sender_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = setup::options();
    // Wide enough that all three are in one block.
    options.seal_window = std::time::Duration::from_secs(5);
    options.block_transactions_max = 4;
    let chain = EmbeddedChain::open(dir.path(), &setup::genesis(), options).unwrap();
    let (faucet, me) = (key(1), key(9));
    let fund = |nonce| TxEip1559 { to: TxKind::Call(me.address()), value: U256::from(10), ..transfer(nonce) };
    for nonce in 0..4 {
        send(&chain, &signed(fund(nonce), &faucet)).unwrap();
    }
    receipt(&chain, B256::from_slice(&alloy_primitives::keccak256(signed(fund(3), &faucet)).0)).await;
    // Each is affordable alone; after the first one the second is not, and the third has lost its nonce.
    let spend = |nonce| signed(TxEip1559 { value: U256::from(30), ..transfer(nonce) }, &me);
    let spent: Vec<_> = (0..3).map(|nonce| send(&chain, &spend(nonce)).unwrap()).collect();
    send(&chain, &signed(transfer(4), &faucet)).unwrap();
    assert_eq!(receipt(&chain, spent[0]).await["status"], "0x1");
    for hash in &spent[1..] {
        // The receipt above is there when the block is, a moment before the pool forgets.
        while !chain.dispatch("eth_getTransactionByHash", json!([hash])).unwrap().is_null() {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(count(&chain, me.address(), "pending"), "0x1");
    assert_eq!(chain.dispatch("eth_getBalance", json!([me.address()])).unwrap(), "0xa");
    for nonce in 1..5 {
        send(&chain, &signed(TxEip1559 { value: U256::ZERO, ..transfer(nonce) }, &me)).unwrap();
    }
    while count(&chain, me.address(), "latest") != "0x5" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reverts_carry_their_data_and_their_name() {
    let world = World::start().await;
    let stranger = world.network(2).await;
    let error = stranger.token.mint(key(2).address(), Amount(1)).await.unwrap_err();
    let revert = error.revert().unwrap();
    assert_eq!(revert.name, "OwnableUnauthorizedAccount");
    assert!(error.to_string().contains(&format!("{:#x}", key(2).address())[2..]), "{error}");

    use alloy_sol_types::{SolCall, SolError};
    let call = TestUSD::mintCall { to: key(2).address(), amount: U256::ONE };
    let request =
        json!({ "from": key(2).address(), "to": world.addresses().token, "data": Bytes::from(call.abi_encode()) });
    for method in ["eth_call", "eth_estimateGas"] {
        let error = world.chain.dispatch(method, json!([request])).unwrap_err();
        let expected = TestUSD::OwnableUnauthorizedAccount { account: key(2).address() }.abi_encode();
        assert_eq!((error.code, error.data), (3, Some(json!(Bytes::from(expected)))), "{method}");
        assert!(error.message.starts_with("execution reverted"), "{}", error.message);
    }
    // Sent all the same, it is in a block with status zero and no log.
    let raw = TxEip1559 {
        to: TxKind::Call(world.addresses().token),
        input: call.abi_encode().into(),
        gas_limit: 100_000,
        value: U256::ZERO,
        ..transfer(0)
    };
    let receipt = receipt(&world.chain, send(&world.chain, &signed(raw, &key(2))).unwrap()).await;
    assert_eq!((&receipt["status"], &receipt["logs"]), (&json!("0x0"), &json!([])));
    assert_eq!(count(&world.chain, key(2).address(), "latest"), "0x1");
    let no_code = stranger.client.call(key(60).address(), &TestUSD::decimalsCall {}).await.unwrap_err();
    assert!(matches!(no_code, ChainError::NoContract { .. }), "{no_code}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_found_by_address_topic_and_block() {
    let world = World::start().await;
    let (token, registry) = (world.addresses().token, world.addresses().registry);
    let start = world.chain.head().unwrap().0;
    for n in 2..5 {
        world.faucet.token.mint(key(n).address(), Amount(u128::from(n))).await.unwrap();
    }
    world.network(2).await.registry.register("h:1", B256::repeat_byte(1), B256::ZERO).await.unwrap();
    let logs = |filter: Value| {
        let found = world.chain.dispatch("eth_getLogs", json!([filter])).unwrap();
        found.as_array().unwrap().clone()
    };
    use alloy_sol_types::SolEvent;
    let transfer = TestUSD::Transfer::SIGNATURE_HASH;
    let to = |n: u64| B256::left_padding_from(key(n).address().as_slice());
    let range = |filter: Value| {
        let mut filter = filter;
        filter["fromBlock"] = json!(format!("{:#x}", start + 1));
        logs(filter)
    };
    assert_eq!(range(json!({})).len(), 4);
    assert_eq!(range(json!({ "address": token })).len(), 3);
    assert_eq!(range(json!({ "address": [token, registry] })).len(), 4);
    assert_eq!(range(json!({ "topics": [transfer] })).len(), 3);
    assert_eq!(range(json!({ "topics": [null, null, to(3)] })).len(), 1);
    assert_eq!(range(json!({ "topics": [transfer, null, [to(3), to(4)]] })).len(), 2);
    assert_eq!(range(json!({ "topics": [to(3)] })).len(), 0);
    assert_eq!(
        logs(json!({ "fromBlock": format!("{:#x}", start + 2), "toBlock": format!("{:#x}", start + 3) })).len(),
        2
    );
    assert_eq!(logs(json!({ "fromBlock": "0xffff" })).len(), 0);
    assert_eq!(logs(json!({ "address": token })).len(), 0, "the default is the latest block");
    let one = &range(json!({ "address": token }))[1];
    assert_eq!(one["data"], json!(B256::from(U256::from(3))));
    assert_eq!(
        (&one["blockNumber"], &one["logIndex"], &one["removed"]),
        (&json!(format!("{:#x}", start + 2)), &json!("0x0"), &json!(false))
    );
    assert_eq!(logs(json!({ "blockHash": one["blockHash"] })), std::slice::from_ref(one));
    let receipts = world.chain.dispatch("eth_getBlockReceipts", json!([one["blockHash"]])).unwrap();
    assert_eq!(receipts[0]["logs"][0], *one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_tell_the_latest_state_and_nothing_older() {
    let world = World::start().await;
    let get = |method: &str, params: Value| world.chain.dispatch(method, params).unwrap();
    let head = world.chain.head().unwrap();
    let latest = get("eth_getBlockByNumber", json!(["latest", false]));
    assert_eq!((&latest["hash"], &latest["number"]), (&json!(head.1), &json!(format!("{:#x}", head.0))));
    assert_eq!(get("eth_getBlockByHash", json!([head.1, false])), latest);
    assert_eq!((&latest["timestamp"], &latest["baseFeePerGas"]), (&json!(format!("{NOW:#x}")), &json!("0x0")));
    assert_eq!(get("eth_getBlockByNumber", json!(["0xffff"])), Value::Null);
    assert_eq!(get("eth_getTransactionByHash", json!([B256::ZERO])), Value::Null);
    assert_eq!(get("eth_getTransactionReceipt", json!([B256::ZERO])), Value::Null);
    let token = world.addresses().token;
    assert_eq!(
        get("eth_getCode", json!([token, { "blockHash": head.1 }])),
        get("eth_getCode", json!([token, "latest"]))
    );
    assert_eq!(get("eth_getStorageAt", json!([token, "0x2", "latest"])), json!(B256::ZERO), "no supply yet");
    world.faucet.token.mint(key(2).address(), Amount(300)).await.unwrap();
    assert_eq!(get("eth_getStorageAt", json!([token, "0x2", "latest"])), json!(B256::from(U256::from(300))));
    let error = world.chain.dispatch("eth_getCode", json!([token, { "blockHash": head.1 }])).unwrap_err();
    assert_eq!(error.code, -32000, "{error}");

    let history = get("eth_feeHistory", json!(["0x2", "latest", [50.0]]));
    assert_eq!(history["oldestBlock"], json!(format!("{:#x}", head.0)));
    assert_eq!(history["baseFeePerGas"], json!(["0x0", "0x0", "0x0"]));
    assert_eq!(history["reward"], json!([["0x0"], ["0x0"]]));
    assert_eq!(history["gasUsedRatio"].as_array().unwrap().len(), 2);
    for (method, expected) in [
        ("eth_syncing", json!(false)),
        ("eth_accounts", json!([])),
        ("net_version", json!(LOCAL_CHAIN_ID.to_string())),
        ("eth_gasPrice", json!("0x0")),
        ("eth_maxPriorityFeePerGas", json!("0x0")),
    ] {
        assert_eq!(get(method, Value::Null), expected, "{method}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_estimate_is_enough_and_not_much_more() {
    let world = World::start().await;
    let me = key(2);
    world.faucet.token.mint(me.address(), Amount(1_000)).await.unwrap();
    use alloy_sol_types::SolCall;
    let calls = [
        (world.addresses().token, TestUSD::transferCall { to: key(3).address(), value: U256::ONE }.abi_encode()),
        // Gives storage back: what is charged is less than what is needed on the way.
        (world.addresses().token, TestUSD::transferCall { to: key(3).address(), value: U256::from(999) }.abi_encode()),
        (key(3).address(), Vec::new()),
    ];
    for (nonce, (to, data)) in (0..).zip(calls) {
        let data = Bytes::from(data);
        let estimate =
            world.chain.dispatch("eth_estimateGas", json!([{ "from": me.address(), "to": to, "data": data }])).unwrap();
        let gas: u64 = serde_json::from_value::<U256>(estimate).unwrap().to();
        let tx = TxEip1559 {
            to: TxKind::Call(to),
            input: data.clone(),
            gas_limit: gas,
            value: U256::ZERO,
            ..transfer(nonce)
        };
        let receipt = receipt(&world.chain, send(&world.chain, &signed(tx, &me)).unwrap()).await;
        assert_eq!(receipt["status"], "0x1", "call {nonce} with {gas} gas");
        let used: u64 = serde_json::from_value::<U256>(receipt["gasUsed"].clone()).unwrap().to();
        assert!(gas <= used * 5 / 4 + 3_000, "call {nonce}: {gas} for {used}");
    }
    let plain = world.chain.dispatch("eth_estimateGas", json!([{ "to": key(3).address() }])).unwrap();
    assert_eq!(plain, "0x5208");
}
