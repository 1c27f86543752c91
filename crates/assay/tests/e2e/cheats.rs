//! Attackers against a running network, and who pays (docs/THREATS.md): cached replies, bogus challenges, counts.

use crate::prosecution::{answer, provider_key, signed};
use crate::support::{Network, assay};
use alloy_signer_local::PrivateKeySigner;
use assay_chain::client::{Court, Outcome};
use assay_chain::{ChainClient, ClientOptions};
use assay_types::{Amount, ReceiptFile, response_bytes, response_hash};
use serde_json::{Value, json};
use std::path::Path;

const BOND: u128 = 25_000_000;
const PENALTY: u128 = 100_000_000;
const STAKE: u128 = 500_000_000;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// The court of a running network, with the key in a file.
async fn court(network: &Network, file: &ReceiptFile, key: &Path) -> (ChainClient, Court) {
    let key = std::fs::read_to_string(key).expect("a key file");
    let key: PrivateKeySigner = key.trim().parse().expect("a key");
    let client = ChainClient::connect(network.chain(), key, ClientOptions::default()).await.expect("the chain answers");
    let court = Court::of_registry(client.clone(), file.registry).await.expect("the chain answers").expect("a court");
    (client, court)
}

async fn stake(client: &ChainClient, file: &ReceiptFile) -> u128 {
    let registry = assay_chain::client::Registry::new(client.clone(), file.registry);
    registry.stake_of(file.parts[0].provider).await.expect("the chain answers").0
}

/// Row 2: an answer is kept and given to whoever asks the same, though the seed is another.
#[test]
fn a_cached_reply_is_convicted_of_the_first_token_that_is_another() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "1"]);
    let first = answer(&network, &json!({"temperature": 1, "seed": 1, "max_tokens": 30}));
    let mut second = answer(&network, &json!({"temperature": 1, "seed": 2, "max_tokens": 30}));
    network.stop();
    assert_ne!(first.job.sampling.seed, second.job.sampling.seed);
    assert_ne!(first.job.nonce, second.job.nonce, "and without a seed the nonce is another");
    let (cached, honest) = (first.parts[0].output.clone(), second.parts[0].output.clone());
    let at = cached.iter().zip(&honest).position(|(a, b)| a != b).expect("two seeds give two answers");
    second.parts[0].output = cached;
    second.parts[0].finish = first.parts[0].finish;
    second.parts[0].signed.receipt.response_hash = response_hash(&second.parts[0].output, second.parts[0].finish);
    let cheat = signed(second, &provider_key(dir.path()));
    let path = dir.path().join("cached.json");
    std::fs::write(&path, serde_json::to_string(&cheat).expect("JSON")).expect("a file is written");
    let verified = assay().args(["verify", "--model", "assay-tiny", "--json"]).arg(&path).output().expect("assay runs");
    let text = String::from_utf8_lossy(&verified.stdout);
    assert_eq!(verified.status.code(), Some(1), "{text}");
    let said: Value = serde_json::from_str(&text).expect("JSON");
    assert!(said.to_string().contains(&format!("{at}")), "token {at} is the first that is another: {said}");
    // Another nonce, with the same tokens: what was signed is for another request and proves nothing here.
    let mut moved = first;
    moved.job.nonce.0[0] ^= 1;
    std::fs::write(&path, serde_json::to_string(&moved).expect("JSON")).expect("a file is written");
    let verified = assay().args(["verify"]).arg(&path).output().expect("assay runs");
    assert!(!verified.status.success(), "a receipt is good for one request");
}

/// Row 12: somebody challenges what is right.
#[test]
fn a_bogus_challenge_costs_its_challenger_more_than_the_provider() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "1"]);
    let honest = answer(&network, &json!({}));
    let path = dir.path().join("honest.json");
    std::fs::write(&path, serde_json::to_string(&honest).expect("JSON")).expect("a file is written");
    let key = dir.path().join("gateway.key");
    let balance = async || {
        let (client, court) = court(&network, &honest, &key).await;
        let token = assay_chain::client::Token::new(client.clone(), court.terms().await.expect("terms").token);
        token.balance_of(client.address()).await.expect("the chain answers").0
    };
    let before = block_on(balance());
    let url = network.chain();
    let output = assay()
        .args(["dispute", "--force", "--json", "--model", "assay-tiny", "--rpc", &url, "--key-file"])
        .arg(&key)
        .arg(&path)
        .output()
        .expect("assay runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && text.contains("\"result\":\"lost\""), "{text}");
    block_on(async {
        assert_eq!(before - balance().await, BOND, "the challenger has lost its bond");
        let (client, court) = court(&network, &honest, &key).await;
        let provider = honest.parts[0].provider;
        assert_eq!(court.owed(provider.0).await.expect("the chain answers"), Amount(BOND), "and the provider has it");
        assert_eq!(stake(&client, &honest).await, STAKE);
        assert!(!court.is_convicted(provider, honest.parts[0].signed.receipt.request_hash).await.expect("an answer"));
    });
    network.stop();
}

/// Row 23: the bill counts a token more than the answer has.
#[test]
fn one_token_more_on_the_bill_is_convicted_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "1"]);
    let honest = answer(&network, &json!({}));
    let mut inflated = honest.clone();
    inflated.parts[0].signed.receipt.output_tokens += 1;
    let inflated = signed(inflated, &provider_key(dir.path()));
    let key = dir.path().join("gateway.key");
    block_on(async {
        let (client, court) = court(&network, &honest, &key).await;
        let part = &inflated.parts[0];
        let response = response_bytes(&part.output, part.finish);
        let right = court.convict_output(&honest.parts[0].signed, response.clone()).await.expect_err("it is right");
        assert_eq!(right.revert().expect("a reason").name, "NoFault");
        let sent = court.convict_output(&part.signed, response).await.expect("it is wrong");
        assert_eq!(court.outcome(&sent), Some(Outcome::Convicted { slashed: Amount(PENALTY), version: 1 }));
        assert_eq!(stake(&client, &honest).await, STAKE - PENALTY, "the provider pays");
        let receipt = &part.signed.receipt;
        court.refund(part.provider, receipt, &part.channel, (Amount(PENALTY), 1)).await.expect("it is paid back");
        // The payer is the gateway, whose key this is: the reward for the proof and the price of the answer.
        let reward = PENALTY * 4 / 10;
        assert_eq!(court.owed(client.address()).await.expect("an answer"), Amount(reward + receipt.charged.0));
    });
    network.stop();
}
