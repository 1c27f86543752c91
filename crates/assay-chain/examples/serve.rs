//! An embedded chain for programs in other languages: tests and benchmarks.
//!
//! Usage: `serve DIR FAUCET_KEY START`. The chain is made in DIR (or continued), its clock stands at START (Unix seconds);
//! the faucet's account has a billion ether. Prints one JSON line with the URL and the accounts of the first block, then
//! reads lines: `advance SECONDS` moves the clock on and is answered by `ok`. Ends when its input does.

use assay_chain::{ChainOptions, EmbeddedChain, Genesis, LOCAL_CHAIN_ID, PrivateKeySigner};
use serde_json::json;
use std::{error::Error, io::BufRead, path::Path, sync::Arc};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, key, start] = arguments.as_slice() else { return Err("usage: serve DIR FAUCET_KEY START".into()) };
    let faucet: PrivateKeySigner = key.parse()?;
    let start: u64 = start.parse()?;
    let genesis = Genesis::local(LOCAL_CHAIN_ID, faucet.address());
    let chain = EmbeddedChain::open(Path::new(dir), &genesis, ChainOptions::new(Arc::new(move || start)))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let server = chain.clone();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });

    let accounts = genesis.accounts.iter();
    let accounts: Vec<_> = accounts
        .map(|account| json!({"address": account.address, "balance": account.balance, "code": account.code}))
        .collect();
    println!("{}", json!({"url": url, "chainId": chain.chain_id(), "accounts": accounts}));
    // This thread has nothing else to do; the server's threads go on.
    tokio::task::block_in_place(|| -> Result<(), Box<dyn Error>> {
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let seconds = line.strip_prefix("advance ").ok_or_else(|| format!("unknown command {line:?}"))?;
            chain.advance_time(seconds.parse()?);
            println!("ok");
        }
        Ok(())
    })?;
    chain.close();
    Ok(())
}
