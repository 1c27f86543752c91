//! Who attacks with money pays for it: payers that do not pay on, repeat vouchers or spend a deposit twice, and providers
//! that take a payment and send nothing. Each attacker plays against the processes of a running network; the numbers are
//! those of docs/THREATS.md.

use crate::support::{Network, signal};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use assay_chain::{ChainClient, ClientOptions, DepositRequest, Network as Contracts, NetworkAddresses};
use assay_net::{ClientFrame, Connection, Open, Pay, ProviderFrame, RefusedCode, Sockets, connect};
use assay_types::{
    Address, Amount, B256, ChannelConfig, Job, MICRO, Prices, ProviderId, Sampling, Signature, SignedVoucher, Voucher,
    settlement_domain,
};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// Questions in a row until something is seen.
const LOOKS_MAX: usize = 100_000;

const LONG: Duration = Duration::from_secs(60);
/// One unit a token, above what anybody asks: two for an input token, one for an output token.
const PRICES: Prices = Prices { input_per_million: Amount(2_000_000), output_per_million: Amount(1_000_000) };
const DEPOSIT: Amount = Amount(500);

/// A payer of its own, with one deposit in a channel to one provider.
struct Payer {
    key: PrivateKeySigner,
    addresses: NetworkAddresses,
    contracts: Contracts,
}

fn addresses(dir: &Path) -> NetworkAddresses {
    let file = std::fs::read(dir.join("network.json")).expect("a file");
    let file: Value = serde_json::from_slice(&file).expect("JSON");
    serde_json::from_value(file["addresses"].clone()).expect("addresses")
}

/// What stands behind a provider on chain.
pub fn stake_of(network: &Network, dir: &Path, provider: &str) -> Amount {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let nobody = PrivateKeySigner::from_bytes(&B256::repeat_byte(1)).expect("a key");
        let client = ChainClient::connect(network.chain().as_str(), nobody, ClientOptions::default()).await;
        let contracts = Contracts::new(client.expect("the chain"), addresses(dir)).expect("contracts");
        contracts.registry.stake_of(ProviderId(provider.parse().expect("an id"))).await.expect("a stake")
    })
}

impl Payer {
    async fn new(network: &Network, dir: &Path) -> Self {
        let addresses = addresses(dir);
        let key = |name: &str| -> PrivateKeySigner {
            std::fs::read_to_string(dir.join(name)).expect("a key").trim().parse().expect("a key")
        };
        let client = async |key: PrivateKeySigner| {
            let client = ChainClient::connect(network.chain().as_str(), key, ClientOptions::default()).await;
            Contracts::new(client.expect("the chain"), addresses).expect("contracts")
        };
        let own = PrivateKeySigner::from_bytes(&B256::repeat_byte(0x77)).expect("a key");
        let operator = client(key("deployer.key")).await;
        operator.token.mint(own.address(), DEPOSIT).await.expect("test money");
        Self { contracts: client(own.clone()).await, key: own, addresses }
    }

    fn channel(&self, provider: Address) -> ChannelConfig {
        ChannelConfig {
            payer: self.key.address(),
            payer_authorizer: self.key.address(),
            receiver: provider,
            receiver_authorizer: provider,
            token: self.addresses.token,
            withdraw_delay: 86_400,
            salt: B256::repeat_byte(9),
        }
    }

    async fn deposit(&self, config: ChannelConfig) {
        let now = self.contracts.client.block_timestamp().await.expect("the chain's clock");
        let request = DepositRequest { config, amount: DEPOSIT, valid_before: now + 3_600, salt: B256::ZERO };
        self.contracts.settlement.deposit(&request, &self.key).await.expect("a deposit");
    }

    fn voucher(&self, config: &ChannelConfig, ceiling: Amount, chain_id: u64) -> SignedVoucher {
        let domain = settlement_domain(self.addresses.chain_id, self.addresses.settlement);
        let voucher = Voucher { channel_id: config.id(&domain), max_claimable_amount: ceiling };
        let digest = voucher.digest(&settlement_domain(chain_id, self.addresses.settlement));
        let signature = self.key.sign_hash_sync(&digest).expect("a signature");
        SignedVoucher { voucher, signature: Signature::new(&signature) }
    }

    fn open(&self, job: &Job, config: ChannelConfig, ceiling: Amount, grant: Amount) -> Open {
        let voucher = self.voucher(&config, ceiling, self.addresses.chain_id);
        Open { job: job.clone(), channel: config, prices: PRICES, voucher, grant }
    }
}

/// Three input tokens; runs to its bound.
fn job(network: &Network, max_tokens: u32, number: u8) -> Job {
    let (_, list) = network.http().get("/v1/models");
    let job = json!({
        "modelId": list["data"][0]["model_id"], "prompt": [10, 11, 12], "maxTokens": max_tokens,
        "sampling": Sampling { temperature_micro: MICRO, ..Sampling::GREEDY }, "ignoreEos": true,
        "nonce": B256::repeat_byte(number),
    });
    serde_json::from_value(job).expect("a job")
}

async fn provider(network: &Network, payer: &Payer, index: usize) -> (Address, Connection) {
    let entry = &network.ready["providers"][index];
    let endpoint = entry["endpoint"].as_str().expect("an endpoint");
    let address: SocketAddr = endpoint.rsplit("//").next().expect("an address").parse().expect("an address");
    let (connection, hello) =
        connect(&Sockets, address, payer.addresses.chain_id, LONG).await.expect("the provider listens");
    let ProviderId(id) = hello.provider;
    assert_eq!(entry["id"].as_str().map(str::to_lowercase), Some(format!("{id:#x}")));
    (id, connection)
}

async fn refused(connection: &mut Connection, open: Open) -> RefusedCode {
    connection.sender.send(&ClientFrame::Open(Box::new(open))).await.expect("it listens");
    match connection.receiver.recv_within(LONG).await.expect("an answer") {
        ProviderFrame::Refused(refused) => refused.code,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_payer_that_does_not_pay_on_repeats_vouchers_or_spends_a_deposit_twice_gets_one_chunk_at_most() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "2", "--threads", "1", "--no-audit"]);
    let payer = Payer::new(&network, dir.path()).await;
    let (first, mut connection) = provider(&network, &payer, 0).await;
    let channel = payer.channel(first);
    payer.deposit(channel).await;

    // Threat 8: pays for a chunk, takes what comes, says that it paid (the same voucher again), and never pays more.
    let (owed, paid) = (job(&network, 400, 1), Amount(6 + 64));
    let open = payer.open(&owed, channel, paid, paid);
    let first_voucher = open.voucher;
    connection.sender.send(&ClientFrame::Open(Box::new(open))).await.expect("it listens");
    let mut tokens = 0;
    while tokens < 128 {
        match connection.receiver.recv_within(LONG).await.expect("tokens") {
            ProviderFrame::Tokens(some) => tokens += some.len(),
            ProviderFrame::Accepted | ProviderFrame::Checkpoint(_) => {}
            other => panic!("{other:?}"),
        }
    }
    let stale = Pay { voucher: first_voucher, grant: paid };
    connection.sender.send(&ClientFrame::Pay(stale)).await.expect("it listens");
    connection.sender.send(&ClientFrame::Cancel).await.expect("it listens");
    let done = loop {
        match connection.receiver.recv_within(LONG).await.expect("the end") {
            ProviderFrame::Tokens(some) => tokens += some.len(),
            ProviderFrame::Done(done) => break done,
            other => panic!("{other:?}"),
        }
    };
    let receipt = done.receipt.receipt;
    assert_eq!((tokens, receipt.output_tokens, receipt.charged), (128, 64, paid), "one chunk is all that was not paid");

    // Threat 9: the voucher once more, for another request; at another provider; for another chain.
    let mut next = job(&network, 100, 2);
    assert_eq!(refused(&mut connection, payer.open(&next, channel, paid, paid)).await, RefusedCode::NotCovered);
    let foreign = payer.voucher(&channel, Amount(2 * paid.0), payer.addresses.chain_id + 1);
    let open = Open { voucher: foreign, ..payer.open(&next, channel, Amount(2 * paid.0), paid) };
    assert_eq!(refused(&mut connection, open).await, RefusedCode::Voucher);
    let (second, mut elsewhere) = provider(&network, &payer, 1).await;
    let open = payer.open(&next, channel, Amount(2 * paid.0), paid);
    assert_eq!(refused(&mut elsewhere, open).await, RefusedCode::Channel);

    // Threat 10: the deposit with the first provider, promised to the second; and more than the deposit to the first.
    let open = payer.open(&next, payer.channel(second), paid, paid);
    assert_eq!(refused(&mut elsewhere, open).await, RefusedCode::Channel, "it has no deposit there");
    let much = Amount(DEPOSIT.0 + 1);
    next.max_tokens = 400;
    let open = payer.open(&next, channel, much, Amount(much.0 - paid.0));
    assert_eq!(refused(&mut connection, open).await, RefusedCode::NotCovered);
    drop((connection, elsewhere));

    // The payer pays what the receipt says, the first provider gets it, and the second lost nothing.
    let domain = settlement_domain(payer.addresses.chain_id, payer.addresses.settlement);
    let id = channel.id(&domain);
    assert_eq!(payer.contracts.settlement.channel(id).await.expect("a channel").balance, DEPOSIT);
    let closing = network.stop();
    let earned = |index: usize| closing["providers"][index]["earned"].clone();
    assert_eq!((earned(0), earned(1)), (json!(paid), json!(Amount(0))), "{closing}");
}

/// Threat 7: a provider that takes the payment for a chunk and sends nothing more, at each of four chunks.
#[test]
fn a_provider_that_withholds_after_payment_is_paid_for_what_arrived() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "3", "--threads", "1", "--no-audit"]);
    let body = json!({
        "model": "assay-tiny", "messages": [{"role": "user", "content": "Tell me a long story."}], "temperature": 1,
        "seed": 3, "max_tokens": 280, "ignore_eos": true,
    });
    let (whole, _) = network.http().chat(&body);
    for chunk in 0..4 {
        let stream = {
            let mut body = body.clone();
            body["stream"] = json!(true);
            body.to_string()
        };
        let mut http = network.http();
        let mut reply = http.send("POST", "/v1/chat/completions", stream.as_bytes());
        let id = reply.header("x-assay-receipt").expect("a receipt").to_owned();
        let (mut text, mut events, mut cheat) = (String::new(), 0, None);
        while let Some(event) = reply.event() {
            let Ok(chunk_of) = serde_json::from_str::<Value>(&event) else { continue };
            assert!(chunk_of["error"].is_null(), "{chunk_of}");
            if let Some(serving) = chunk_of["assay"]["providers"][0].as_str().filter(|_| cheat.is_none()) {
                cheat = Some(serving.to_owned());
            }
            if let Some(piece) = chunk_of["choices"][0]["delta"]["content"].as_str() {
                text.push_str(piece);
                events += 1;
                // Some way into the chunk, which is paid for by then.
                if events == chunk * 64 + 20 {
                    signal("KILL", pid(&network, dir.path(), cheat.as_ref().expect("somebody serves")));
                }
            }
        }
        assert_eq!(text, whole, "the user has all of the answer, whoever withheld");
        let (_, receipt) = network.http().get(&format!("/v1/receipts/{id}"));
        let parts = receipt["parts"].as_array().expect("parts");
        let of_cheat = parts.iter().find(|part| part["provider"].as_str() == cheat.as_deref());
        // Events carry one token or several, so the cheat may have come further than its events say, never less far.
        if let Some(part) = of_cheat.filter(|_| parts.len() > 1) {
            let tokens = part["receipt"]["outputTokens"].as_u64().expect("a count");
            assert!(tokens.is_multiple_of(64) && tokens > 0, "{part}");
            assert_eq!(tokens, part["output"].as_array().expect("tokens").len() as u64, "paid is what arrived");
        }
        let total: u64 = parts.iter().map(|part| part["receipt"]["outputTokens"].as_u64().expect("a count")).sum();
        assert_eq!(total, 280, "no token is paid twice: {receipt}");
        // Or all three are gone before the first is back.
        answers(&network, &cheat.expect("somebody served"));
    }
    network.stop();
}

/// Asks one provider until it answers.
fn answers(network: &Network, provider: &str) {
    let mut http = network.http();
    let body = json!({
        "model": "assay-tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1,
        "provider": {"only": [provider]},
    });
    let has_answered = (0..LOOKS_MAX).any(|_| http.post("/v1/chat/completions", &body).0 == 200);
    assert!(has_answered, "{provider} does not come back");
}

/// Of a provider that may have been started again since.
fn pid(network: &Network, dir: &Path, provider: &str) -> u64 {
    // A supervised process keeps its parent and its configuration file; its id changes.
    let list = network.ready["providers"].as_array().expect("providers");
    let index = list.iter().position(|entry| entry["id"] == provider).expect("a provider of this network");
    let config = dir.join(format!("provider-{}/config.json", index + 1)).display().to_string();
    let found = std::fs::read_dir("/proc").expect("/proc").flatten().find_map(|entry| {
        let pid: u64 = entry.file_name().to_str()?.parse().ok()?;
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).into_owned();
        words.contains(&config).then_some(pid)
    });
    found.expect("the provider runs")
}
