//! Subscriptions over WebSocket, spoken by hand: frames as RFC 6455 has them.

mod setup;

use alloy_primitives::keccak256;
use assay_chain::EmbeddedChain;
use assay_types::Amount;
use serde_json::{Value, json};
use setup::{World, key};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// Reached only by a test that fails.
const PATIENCE: Duration = Duration::from_secs(30);

async fn serve(chain: &EmbeddedChain) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let chain = chain.clone();
    tokio::spawn(async move { chain.serve(listener, std::future::pending()).await });
    address
}

struct Client {
    stream: TcpStream,
    /// What came while an answer was waited for.
    heard: VecDeque<Value>,
    last_id: u64,
}

impl Client {
    async fn connect(address: std::net::SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        // The key's answer in the RFC.
        assert!(head.starts_with("HTTP/1.1 101") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        Self { stream, heard: VecDeque::new(), last_id: 0 }
    }

    async fn send_frame(&mut self, opcode: u8, payload: &[u8]) {
        let mask = [1u8, 2, 3, 4];
        let mut frame = vec![0x80 | opcode, 0x80 | 126];
        frame.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.write_all(&frame).await.unwrap();
    }

    /// The next text; pings are answered on the way.
    async fn next(&mut self) -> Value {
        loop {
            let (first, second) = (self.stream.read_u8().await.unwrap(), self.stream.read_u8().await.unwrap());
            let length = match second {
                126 => self.stream.read_u16().await.unwrap().into(),
                127 => usize::try_from(self.stream.read_u64().await.unwrap()).unwrap(),
                short => usize::from(short),
            };
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload).await.unwrap();
            match first {
                0x81 => return serde_json::from_slice(&payload).unwrap(),
                0x89 => self.send_frame(10, &payload).await,
                other => panic!("frame {other:#x}"),
            }
        }
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params});
        self.send_frame(1, request.to_string().as_bytes()).await;
        loop {
            let value = tokio::time::timeout(PATIENCE, self.next()).await.expect("an answer in time");
            if value["id"] == json!(self.last_id) {
                return value;
            }
            self.heard.push_back(value);
        }
    }

    /// The next notification: subscription and result.
    async fn news(&mut self) -> (Value, Value) {
        let value = match self.heard.pop_front() {
            Some(value) => value,
            None => tokio::time::timeout(PATIENCE, self.next()).await.expect("news in time"),
        };
        assert_eq!(value["method"], "eth_subscription", "{value}");
        (value["params"]["subscription"].clone(), value["params"]["result"].clone())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_hear_of_each_block_log_and_pending_transaction_once() {
    let world = World::start().await;
    let mut client = Client::connect(serve(&world.chain).await).await;
    assert_eq!(client.ask("eth_chainId", json!([])).await["result"], json!("0xa55a"));
    let heads = client.ask("eth_subscribe", json!(["newHeads"])).await["result"].clone();
    let transfer = keccak256("Transfer(address,address,uint256)");
    let filter = json!({"address": world.addresses().token, "topics": [transfer]});
    let logs = client.ask("eth_subscribe", json!(["logs", filter])).await["result"].clone();
    let pending = client.ask("eth_subscribe", json!(["newPendingTransactions"])).await["result"].clone();

    let (mut seen_heads, mut seen_logs, mut seen_pending) = (Vec::new(), Vec::new(), Vec::new());
    let mut receipts = Vec::new();
    for amount in 1..=3 {
        receipts.push(world.faucet.token.mint(key(2).address(), Amount(amount)).await.unwrap());
    }
    while seen_heads.len() + seen_logs.len() + seen_pending.len() < 9 {
        let (id, result) = client.news().await;
        match id {
            id if id == heads => seen_heads.push(result["hash"].clone()),
            id if id == logs => seen_logs.push(result["transactionHash"].clone()),
            id if id == pending => seen_pending.push(result),
            other => panic!("nobody asked for {other}"),
        }
    }
    assert_eq!(seen_heads, receipts.iter().map(|receipt| json!(receipt.block_hash)).collect::<Vec<_>>());
    let hashes: Vec<_> = receipts.iter().map(|receipt| json!(receipt.transaction_hash)).collect();
    assert_eq!((seen_logs, seen_pending), (hashes.clone(), hashes));

    // One subscription ends, the others go on.
    assert_eq!(client.ask("eth_unsubscribe", json!([logs])).await["result"], json!(true));
    assert_eq!(client.ask("eth_unsubscribe", json!([logs])).await["result"], json!(false));
    assert_eq!(client.ask("eth_unsubscribe", json!([pending])).await["result"], json!(true));
    let last = world.faucet.token.mint(key(2).address(), Amount(9)).await.unwrap();
    let (id, head) = client.news().await;
    assert_eq!((id, head["hash"].clone()), (heads, json!(last.block_hash)));
    assert!(head["logsBloom"].is_string() && head.get("transactions").is_none(), "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_subscription_is_an_error_and_subscriptions_are_bounded() {
    let world = World::start().await;
    let address = serve(&world.chain).await;
    let mut client = Client::connect(address).await;
    let code = |answer: Value| answer["error"]["code"].as_i64().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(code(client.ask("eth_subscribe", json!(["syncing"])).await), -32602);
    assert_eq!(code(client.ask("eth_subscribe", json!([])).await), -32602);
    assert_eq!(code(client.ask("eth_subscribe", json!(["logs", {"topics": 5}])).await), -32602);
    assert_eq!(code(client.ask("eth_unknown", json!([])).await), -32601);
    client.send_frame(1, b"{").await;
    assert_eq!(code(client.next().await), -32700);
    for _ in 0..64 {
        assert!(client.ask("eth_subscribe", json!(["newHeads"])).await["result"].is_string());
    }
    assert_eq!(code(client.ask("eth_subscribe", json!(["newHeads"])).await), -32005);
    // A frame larger than allowed ends this connection and no other.
    let mut frame = vec![0x81, 0x80 | 127];
    frame.extend((1u64 << 40).to_be_bytes());
    frame.extend([0; 4]);
    let mut hostile = Client::connect(address).await;
    hostile.stream.write_all(&frame).await.unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, hostile.stream.read_to_end(&mut rest)).await.expect("cut off").ok();
    assert!(client.ask("eth_chainId", json!([])).await["result"].is_string());
}
