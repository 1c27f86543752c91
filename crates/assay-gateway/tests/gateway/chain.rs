//! The gateway on a real (embedded) chain: who is staked is found, channels are funded, and what providers claim is
//! what the receipts say.

use crate::world::{CONTEXT, PATIENCE, PRICES, config, story, tiny_model};
use alloy_signer_local::PrivateKeySigner;
use assay_chain::{
    ChainClient, ChainOptions, ClaimRow, ClientOptions, DeployParams, EmbeddedChain, Genesis, LOCAL_CHAIN_ID, Network,
    deploy_local,
};
use assay_gateway::Gateway;
use assay_testkit::fake_provider::{FakeProvider, Script};
use assay_types::{Amount, B256, TokenId};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const STAKE: Amount = Amount(100_000_000);

pub fn key(byte: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(byte)).unwrap()
}

pub async fn network(chain: &EmbeddedChain, deployed: &Network, signer: PrivateKeySigner) -> Network {
    let client = ChainClient::connect(chain, signer, ClientOptions::default()).await.unwrap();
    Network::new(client, deployed.addresses).unwrap()
}

/// A chain with the contracts, deployed by key 0x51.
pub async fn deploy(dir: &Path) -> (EmbeddedChain, Network) {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let genesis = Genesis::local(LOCAL_CHAIN_ID, key(0x51).address());
    let chain = EmbeddedChain::open(&dir.join("chain"), &genesis, ChainOptions::new(Arc::new(clock))).unwrap();
    let faucet = ChainClient::connect(&chain, key(0x51), ClientOptions::default()).await.unwrap();
    let deployed = deploy_local(&faucet, &DeployParams::local(key(0x52).address()), None).await.unwrap();
    (chain, deployed)
}

#[tokio::test(flavor = "multi_thread")]
async fn staked_providers_are_paid_what_their_receipts_say() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, deployed) = deploy(dir.path()).await;
    let (model, tokenizer) = tiny_model();
    let mut output: Vec<TokenId> = tokenizer.encode(&story(50), false, false);
    output.push(tokenizer.eos().unwrap());
    let mut providers = Vec::new();
    for byte in 1..=3 {
        let provider = FakeProvider::start(Script {
            chain_id: LOCAL_CHAIN_ID,
            registry: deployed.addresses.registry,
            settlement: deployed.addresses.settlement,
            model_id: model.model_id,
            context_length: CONTEXT,
            encoder: None,
            prices: PRICES,
            tokenizer: Arc::clone(&tokenizer),
            output: output.clone(),
            key: byte,
            is_sealed: true,
        })
        .await;
        let on_chain = network(&chain, &deployed, key(byte)).await;
        on_chain.registry.register(&provider.endpoint(), provider.transport_key(), B256::ZERO).await.unwrap();
        // The third one registers without a stake.
        if byte < 3 {
            deployed.token.mint(provider.id().0, STAKE).await.unwrap();
            on_chain.registry.stake(STAKE).await.unwrap();
        }
        providers.push((provider, on_chain));
    }

    let config = config(&model, dir.path(), |config| config.timeouts.channels = Duration::from_millis(20));
    let deposit = config.deposit;
    let (payer, again) = (config.signer.clone(), config.clone());
    deployed.token.mint(payer.address(), Amount(1_000_000_000)).await.unwrap();
    let gateway = Gateway::start(config, network(&chain, &deployed, payer.clone()).await).await.unwrap();
    assert!(gateway.ready(2, PATIENCE).await, "both staked providers are funded in time");
    let api_key = gateway.keys().create("test").await.unwrap();
    for _ in 0..12 {
        let body = r#"{"model":"fake","messages":[{"role":"user","content":"hi"}]}"#;
        let mut stream = TcpStream::connect(gateway.address()).await.unwrap();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {api_key}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(story(50).trim_end()), "{answer}");
    }
    // A withdrawal: the channel is left alone, and after its delay the gateway ends it by itself, also after a restart.
    let on_chain = network(&chain, &deployed, payer.clone()).await;
    let totals = gateway.totals().await.unwrap();
    let withdrawn = totals.channels[0];
    let withdrawn_part = Amount(deposit.0 / 4);
    let left = Amount(1_000_000_000 - 2 * deposit.0 + withdrawn_part.0);
    let channel = providers.iter().find(|(provider, _)| provider.id() == withdrawn.provider).unwrap();
    let channel = channel.0.claims()[0].0;
    on_chain.settlement.initiate_withdraw(&channel, withdrawn_part).await.unwrap();
    let noticed = async {
        while gateway.routable().len() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, noticed).await.expect("noticed in time");
    gateway.shutdown().await.unwrap();
    chain.advance_time(channel.withdraw_delay + 1);
    // A block, whose time is what the gateway goes by.
    deployed.token.mint(key(0x52).address(), Amount(1)).await.unwrap();
    let gateway = Gateway::start(again, network(&chain, &deployed, payer.clone()).await).await.unwrap();
    let back = async { while deployed.token.balance_of(payer.address()).await.unwrap() < left {} };
    tokio::time::timeout(PATIENCE, back).await.expect("the deposit is back in time");
    let totals = gateway.shutdown().await.unwrap();
    assert_eq!(totals.receipts, 12);
    assert_eq!(totals.channels.len(), 2);
    assert_eq!(deployed.token.balance_of(payer.address()).await.unwrap(), left);

    let mut paid = Amount::ZERO;
    for (provider, on_chain) in &providers {
        for (config, voucher, total_claimed) in provider.claims() {
            let report = on_chain.settlement.claim(&[ClaimRow { config, voucher, total_claimed }]).await.unwrap();
            assert!(report.refused.is_empty(), "{report:?}");
            on_chain.settlement.settle(provider.id().0, deployed.addresses.token).await.unwrap();
        }
        let balance = deployed.token.balance_of(provider.id().0).await.unwrap();
        assert_eq!(balance, provider.charged_total());
        paid = paid.saturating_add(balance);
    }
    assert_eq!(paid, totals.charged());
    assert!(paid > Amount::ZERO);
    assert_eq!(providers[2].0.asked(), 0, "nothing is sent to a provider without stake");
}
