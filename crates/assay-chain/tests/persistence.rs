//! What is on disk survives: clean ends, kills at any moment, damage.

mod setup;

use alloy_consensus::TxEnvelope;
use alloy_rpc_types_eth::{Block, Transaction, TransactionReceipt};
use assay_chain::{B256, Bytes, EmbeddedChain, EmbeddedError, Genesis, U256};
use assay_types::Amount;
use serde_json::{Value, json};
use setup::{World, connect, genesis, key, open, options};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

fn get<T: serde::de::DeserializeOwned>(chain: &EmbeddedChain, method: &str, params: Value) -> T {
    serde_json::from_value(chain.dispatch(method, params).unwrap()).unwrap()
}

fn block(chain: &EmbeddedChain, number: u64) -> Block<Transaction<TxEnvelope>> {
    get(chain, "eth_getBlockByNumber", json!([format!("{number:#x}"), true]))
}

/// Every header hashes to its hash, names its parent and commits to its transactions and receipts.
fn assert_linked(chain: &EmbeddedChain) -> u64 {
    let (head, head_hash) = chain.head().unwrap();
    let mut parent: Option<Block<Transaction<TxEnvelope>>> = None;
    for number in 0..=head {
        let block = block(chain, number);
        let header = &block.header.inner;
        assert_eq!(header.hash_slow(), block.header.hash, "hash of block {number}");
        assert_eq!(header.number, number);
        let before = parent.as_ref().map_or(B256::ZERO, |parent| parent.header.hash);
        assert_eq!(header.parent_hash, before, "parent of block {number}");
        assert!(header.timestamp >= parent.as_ref().map_or(0, |parent| parent.header.inner.timestamp));
        let transactions: Vec<_> =
            block.transactions.as_transactions().unwrap().iter().map(|t| t.inner.inner().clone()).collect();
        let root = alloy_consensus::proofs::calculate_transaction_root(&transactions);
        assert_eq!(header.transactions_root, root, "transactions of block {number}");
        let receipts: Vec<TransactionReceipt> = get(chain, "eth_getBlockReceipts", json!([format!("{number:#x}")]));
        let gas: u64 = receipts.iter().map(|receipt| receipt.gas_used).sum();
        assert_eq!(header.gas_used, gas);
        let envelopes: Vec<_> = receipts.into_iter().map(|receipt| receipt.inner.map_logs(|log| log.inner)).collect();
        let root = alloy_consensus::proofs::calculate_receipt_root(&envelopes);
        assert_eq!(header.receipts_root, root, "receipts of block {number}");
        parent = Some(block);
    }
    assert_eq!(parent.unwrap().header.hash, head_hash);
    head
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reopened_chain_is_the_same_and_goes_on() {
    let world = World::start().await;
    world.faucet.token.mint(key(2).address(), Amount(77)).await.unwrap();
    let head = world.chain.head().unwrap();
    let addresses = world.addresses();
    let World { dir, chain, faucet } = world;
    // The client's queue holds the chain until its task has seen that the client is gone.
    drop((chain, faucet));
    let chain = reopen(dir.path()).await;
    assert_eq!(chain.head().unwrap(), head);
    assert_linked(&chain);

    let client = connect(&chain, 1).await;
    let network = assay_chain::Network::new(client, addresses).unwrap();
    assert_eq!(network.token.balance_of(key(2).address()).await.unwrap(), Amount(77));
    network.token.mint(key(2).address(), Amount(1)).await.unwrap();
    assert_eq!(network.token.balance_of(key(2).address()).await.unwrap(), Amount(78));
    assert_eq!(assert_linked(&chain), head.0 + 1);
}

/// Opens a directory whose last user is just going away.
async fn reopen(dir: &Path) -> EmbeddedChain {
    for _ in 0..10_000 {
        match EmbeddedChain::open(dir, &genesis(), options()) {
            Ok(chain) => return chain,
            Err(EmbeddedError::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the directory stays in use");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_without_a_clean_end_opens_with_every_block() {
    let world = World::start().await;
    for i in 1..=5 {
        world.faucet.token.mint(key(2).address(), Amount(i)).await.unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    fs::copy(world.dir.path().join("chain.redb"), copy.path().join("chain.redb")).unwrap();
    let copied = open(copy.path());
    assert_eq!(copied.head().unwrap(), world.chain.head().unwrap());
    assert_linked(&copied);
    let network = assay_chain::Network::new(connect(&copied, 1).await, world.addresses()).unwrap();
    assert_eq!(network.token.balance_of(key(2).address()).await.unwrap(), Amount(15));
}

const CHILD_DIR: &str = "ASSAY_TEST_CHAIN_DIR";

/// The test runs itself as a child that sends transactions and prints each hash once it has a receipt; the parent kills
/// it after some lines and looks for all of them, five times in the same directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_moment_loses_no_sealed_block() {
    if let Some(dir) = std::env::var_os(CHILD_DIR) {
        return print_receipts_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for lines in [1usize, 3, 8, 21, 2] {
        acknowledged.extend(run_child_and_kill(dir.path(), lines));
        let chain = open(dir.path());
        for hash in &acknowledged {
            let receipt: Option<TransactionReceipt> = get(&chain, "eth_getTransactionReceipt", json!([hash]));
            assert!(receipt.is_some_and(|receipt| receipt.inner.status()), "{hash} was acknowledged");
        }
        let head = assert_linked(&chain);
        // One account sends everything, so the state is behind the blocks exactly if its nonce is not their count.
        let sent: usize = (0..=head).map(|number| block(&chain, number).transactions.len()).sum();
        let nonce: U256 = get(&chain, "eth_getTransactionCount", json!([key(1).address(), "latest"]));
        assert_eq!(nonce, U256::from(sent));
        assert!(sent >= acknowledged.len());
    }
    assert!(acknowledged.len() >= 35);
}

async fn print_receipts_until_killed(dir: &Path) {
    let chain = open(dir);
    let client = connect(&chain, 1).await;
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        // Several at once: blocks of more than one transaction, and always one being written.
        while tasks.len() < 8 {
            let client = client.clone();
            tasks.spawn(async move { client.send_ether(key(2).address(), U256::ONE).await });
        }
        let receipt = tasks.join_next().await.unwrap().unwrap().unwrap();
        println!("\nacknowledged {}", receipt.transaction_hash);
    }
}

fn run_child_and_kill(dir: &Path, lines: usize) -> Vec<B256> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_kill_at_any_moment_loses_no_sealed_block", "--nocapture"])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let mut hashes = Vec::new();
    for line in stdout.lines() {
        if let Some(hash) = line.unwrap().strip_prefix("acknowledged ") {
            hashes.push(hash.parse().unwrap());
        }
        if hashes.len() == lines {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(hashes.len(), lines, "the child ended by itself");
    hashes
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let path = dir.path().join("chain.redb");
    let good = fs::read(&path).unwrap();
    let check = |what: &str, bytes: Vec<u8>| {
        fs::write(&path, &bytes).unwrap();
        let error = EmbeddedChain::open(dir.path(), &genesis(), options()).err().unwrap_or_else(|| panic!("{what}"));
        assert!(matches!(error, EmbeddedError::Damaged { .. }), "{what}: {error:?}");
        let text = error.to_string();
        assert!(text.contains("chain.redb is damaged") && !text.contains('\n'), "{text}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{what}: the file was changed");
    };
    check("empty", Vec::new());
    check("garbage", b"not a database".repeat(1000));
    check("only the magic number", good[..64].to_vec());
    check("cut in half", good[..good.len() / 2].to_vec());
    check("zeroed after the header", [&good[..4096], &vec![0; good.len() - 4096]].concat());
    check("header flipped", [&[!good[0]], &good[1..]].concat());
    fs::write(&path, &good).unwrap();
    assert_linked(&open(dir.path()));
}

#[test]
fn a_flipped_page_is_never_taken_for_good() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let path = dir.path().join("chain.redb");
    let good = fs::read(&path).unwrap();
    let expected = {
        let chain = open(dir.path());
        visible_state(&chain)
    };
    let mut refused = 0;
    let pages = good.len() / 4096;
    for page in 0..pages {
        let mut bytes = good.clone();
        for byte in bytes.iter_mut().skip(page * 4096 + 4).step_by(97).take(40) {
            *byte ^= 0x5a;
        }
        fs::write(&path, &bytes).unwrap();
        match EmbeddedChain::open(dir.path(), &genesis(), options()) {
            Err(error) => {
                refused += 1;
                assert!(matches!(error, EmbeddedError::Damaged { .. }), "page {page}: {error:?}");
            }
            Ok(chain) => assert_eq!(visible_state(&chain), expected, "page {page}"),
        }
    }
    assert!(refused > 0, "none of {pages} pages mattered");
}

/// Everything that genesis put there.
fn visible_state(chain: &EmbeddedChain) -> Vec<Value> {
    let mut seen = vec![json!(chain.head().unwrap())];
    for account in genesis().accounts {
        for method in ["eth_getBalance", "eth_getCode", "eth_getTransactionCount"] {
            seen.push(chain.dispatch(method, json!([account.address, "latest"])).unwrap());
        }
    }
    seen
}

#[test]
fn an_interrupted_creation_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("chain.redb.new"), b"half a file").unwrap();
    assert_eq!(assert_linked(&open(dir.path())), 0);
}

#[test]
fn a_directory_has_one_user_and_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let chain = open(dir.path());
    let error = EmbeddedChain::open(dir.path(), &genesis(), options()).err().unwrap();
    assert!(matches!(error, EmbeddedError::InUse { .. }), "{error:?}");
    drop(chain);
    let other = Genesis { chain_id: 1, ..genesis() };
    let error = EmbeddedChain::open(dir.path(), &other, options()).err().unwrap();
    assert!(matches!(error, EmbeddedError::OtherChain { found: 42_330, expected: 1, .. }), "{error:?}");
    let file = dir.path().join("chain.redb");
    let error = EmbeddedChain::open(&file, &genesis(), options()).err().unwrap();
    assert!(matches!(error, EmbeddedError::Io { .. }), "{error:?}");
    drop(open(dir.path()));
}

#[test]
fn the_first_block_commits_to_its_accounts() {
    let hash = |genesis: &Genesis| {
        let dir = tempfile::tempdir().unwrap();
        EmbeddedChain::open(dir.path(), genesis, options()).unwrap().head().unwrap().1
    };
    let mut other = genesis();
    assert_eq!(hash(&genesis()), hash(&other));
    other.accounts[2].balance += U256::ONE;
    assert_ne!(hash(&genesis()), hash(&other));
    let mut other = genesis();
    other.accounts[0].code = Bytes::from_static(&[0]);
    assert_ne!(hash(&genesis()), hash(&other));
}
