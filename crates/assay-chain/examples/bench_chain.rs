//! Measures the embedded chain: ERC-20 transfers over JSON-RPC until they are durable, and opening a long chain.
//!
//! Usage: `bench_chain TRANSFERS BLOCKS`. Prints one JSON object. Every transfer is signed beforehand and sent in a
//! request of its own; the clock stops when the last one can be read from a block, which is after its block was
//! flushed to disk. Then balances are checked.

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Bytes, TxKind};
use alloy_signer::SignerSync;
use alloy_sol_types::SolCall;
use assay_chain::{
    Address, B256, ChainClient, ChainOptions, ClientOptions, DeployParams, EmbeddedChain, Genesis, LOCAL_CHAIN_ID,
    PrivateKeySigner, U256, bindings::token::TestUSD, deploy_local,
};
use assay_types::Amount;
use serde_json::{Value, json};
use std::{
    error::Error,
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Accounts that send, each over a connection of its own.
const SENDERS: u64 = 16;

fn key(n: u64) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&U256::from(n).into()).expect("a small number is a key")
}

fn options(seal_window: Duration) -> ChainOptions {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    ChainOptions { seal_window, ..ChainOptions::new(Arc::new(clock)) }
}

fn open(dir: &Path, seal_window: Duration) -> Outcome<EmbeddedChain> {
    let genesis = Genesis::local(LOCAL_CHAIN_ID, key(1).address());
    Ok(EmbeddedChain::open(dir, &genesis, options(seal_window))?)
}

fn transaction(signer: &PrivateKeySigner, nonce: u64, gas: u64, to: Address, input: Bytes) -> Outcome<(B256, Bytes)> {
    let transaction = TxEip1559 {
        chain_id: LOCAL_CHAIN_ID,
        nonce,
        gas_limit: gas,
        to: TxKind::Call(to),
        input,
        ..TxEip1559::default()
    };
    let signature = signer.sign_hash_sync(&transaction.signature_hash())?;
    let envelope = TxEnvelope::from(transaction.into_signed(signature));
    Ok((*envelope.tx_hash(), envelope.encoded_2718().into()))
}

/// One connection that is kept.
struct Rpc(BufReader<TcpStream>);

impl Rpc {
    async fn connect(address: &str) -> Outcome<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::new(stream)))
    }

    async fn request(&mut self, method: &str, params: Value) -> Outcome<Value> {
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let head = format!(
            "POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.0.get_mut().write_all((head + &body).as_bytes()).await?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).await?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await?;
        let mut answer: Value = serde_json::from_slice(&body)?;
        match answer.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(answer.to_string().into()),
        }
    }
}

/// Sends everything in order; returns when the last transaction is in a block.
async fn send(address: String, transactions: Vec<(B256, Bytes)>) -> Outcome<()> {
    let mut rpc = Rpc::connect(&address).await?;
    let Some((last, _)) = transactions.last().cloned() else { return Ok(()) };
    for (_, raw) in transactions {
        rpc.request("eth_sendRawTransaction", json!([raw])).await?;
    }
    while rpc.request("eth_getTransactionReceipt", json!([last])).await?.is_null() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Transfers a second over RPC, and how many blocks they took.
async fn transfers(count: u64) -> Outcome<Value> {
    let dir = tempfile::tempdir()?;
    let chain = open(dir.path(), Duration::from_millis(5))?;
    let client = ChainClient::connect(&chain, key(1), ClientOptions::default()).await?;
    let network = deploy_local(&client, &DeployParams::local(key(99).address()), None).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let server = chain.clone();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });

    let each = count.div_ceil(SENDERS);
    let receiver = Address::repeat_byte(0x77);
    let mut signed = Vec::new();
    for n in 0..SENDERS {
        let signer = key(1000 + n);
        network.token.mint(signer.address(), Amount(u128::from(each))).await?;
        let call = TestUSD::transferCall { to: receiver, value: U256::ONE };
        let input: Bytes = call.abi_encode().into();
        let own: Outcome<Vec<_>> =
            (0..each).map(|nonce| transaction(&signer, nonce, 80_000, network.token.address, input.clone())).collect();
        signed.push(own?);
    }
    let (before, _) = chain.head()?;
    let began = Instant::now();
    let mut senders = JoinSet::new();
    for own in signed {
        senders.spawn(send(address.clone(), own));
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    let seconds = began.elapsed().as_secs_f64();
    let (after, _) = chain.head()?;
    let moved = network.token.balance_of(receiver).await?;
    if moved != Amount(u128::from(each * SENDERS)) {
        return Err(format!("{moved} of {} transfers arrived", each * SENDERS).into());
    }
    let sent = each * SENDERS;
    Ok(json!({
        "transfers": sent, "senders": SENDERS, "seconds": seconds, "per_second": sent as f64 / seconds,
        "blocks": after - before, "transfers_per_block": sent as f64 / (after - before).max(1) as f64,
    }))
}

/// Seconds to open a chain of so many blocks, three times.
fn reopening(blocks: u64) -> Outcome<Value> {
    let dir = tempfile::tempdir()?;
    let chain = open(dir.path(), Duration::ZERO)?;
    let signer = key(1);
    let wanted = chain.head()?.0 + blocks;
    let mut nonce = 0;
    let began = Instant::now();
    while chain.head()?.0 < wanted {
        let (hash, raw) = transaction(&signer, nonce, 21_000, Address::repeat_byte(0x77), Bytes::new())?;
        nonce += 1;
        chain.dispatch("eth_sendRawTransaction", json!([raw]))?;
        // One transaction a block: the next one is sent when this one is sealed.
        while chain.dispatch("eth_getTransactionReceipt", json!([hash]))?.is_null() {
            std::thread::yield_now();
        }
    }
    let writing = began.elapsed().as_secs_f64();
    let head = chain.head()?;
    drop(chain);
    let bytes = std::fs::metadata(dir.path().join("chain.redb"))?.len();
    let mut seconds = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        let chain = open(dir.path(), Duration::ZERO)?;
        seconds.push(began.elapsed().as_secs_f64());
        if chain.head()? != head {
            return Err("the reopened chain is another".into());
        }
    }
    Ok(json!({
        "blocks": head.0, "bytes": bytes, "open_seconds": seconds,
        "durable_blocks_per_second": blocks as f64 / writing,
    }))
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let numbers: Vec<u64> = std::env::args().skip(1).map(|n| n.parse()).collect::<Result<_, _>>()?;
    let [count, blocks] = numbers.as_slice() else { return Err("usage: bench_chain TRANSFERS BLOCKS".into()) };
    let transfers = transfers(*count).await?;
    let blocks = *blocks;
    let reopening = tokio::task::spawn_blocking(move || reopening(blocks)).await??;
    println!("{}", json!({"erc20_transfers_over_rpc": transfers, "reopening": reopening}));
    Ok(())
}
