//! Callers without a key pay by request on a real (embedded) chain: what they pay is what was quoted or used, once, and
//! nothing unpaid is answered.

use crate::chain::{deploy, key, network};
use crate::world::{CONTEXT, PATIENCE, PRICES, chat_body, config, story, tiny_model};
use assay_api::x402::{decode, encode};
use assay_chain::{
    B256, DigestSigner, EmbeddedChain, LOCAL_CHAIN_ID, Network, PrivateKeySigner, SignedDeposit, TransferAuthorization,
};
use assay_gateway::{Gateway, GatewayHandle, GatewayModel, X402Config};
use assay_testkit::fake_provider::{FakeProvider, Script};
use assay_types::{Amount, ChannelConfig, ChannelId, Prices, Signature, TokenId, Voucher};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const RETAIL: Prices = Prices { input_per_million: Amount(60_000_000), output_per_million: Amount(120_000_000) };
const FUNDS: Amount = Amount(10_000_000);
const DELAY: u64 = 86_400;
const CHAT: &str = "/v1/chat/completions";

/// One provider, one gateway that takes payment by request, and a payer with some test dollars and no key.
struct Shop {
    dir: tempfile::TempDir,
    chain: EmbeddedChain,
    deployed: Network,
    provider: FakeProvider,
    model: GatewayModel,
    gateway: GatewayHandle,
    payer: PrivateKeySigner,
}

struct Reply {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }

    /// What a 402 asks, by scheme; and why.
    fn required(&self, scheme: &str) -> (Value, String) {
        assert_eq!(self.status, 402, "{}", self.body);
        let required: Value = decode(&self.headers["payment-required"]).unwrap();
        assert_eq!(required["x402Version"], 2);
        let ways = required["accepts"].as_array().unwrap();
        let way = ways.iter().find(|way| way["scheme"] == scheme).unwrap().clone();
        (way, required["error"].as_str().unwrap().to_owned())
    }

    fn settled(&self) -> Value {
        decode(&self.headers["payment-response"]).unwrap()
    }

    fn price(&self, scheme: &str) -> Amount {
        Amount(self.required(scheme).0["amount"].as_str().unwrap().parse().unwrap())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn gateway(shop: (&tempfile::TempDir, &EmbeddedChain, &Network, &GatewayModel)) -> GatewayHandle {
    let (dir, chain, deployed, model) = shop;
    let mut config = config(model, dir.path(), |_| ());
    let network = network(chain, deployed, config.signer.clone()).await;
    let claim_interval = Duration::from_secs(3600);
    let x402 = X402Config { network: network.clone(), prices: RETAIL, withdraw_delay: DELAY, claim_interval };
    config.x402 = Some(x402);
    let gateway = Gateway::start(config, network).await.unwrap();
    assert!(gateway.ready(1, PATIENCE).await, "the provider is funded in time");
    gateway
}

impl Shop {
    async fn open() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (chain, deployed) = deploy(dir.path()).await;
        let (model, tokenizer) = tiny_model();
        let mut output: Vec<TokenId> = tokenizer.encode(&story(50), false, false);
        output.push(tokenizer.eos().unwrap());
        let provider = FakeProvider::start(Script {
            chain_id: LOCAL_CHAIN_ID,
            registry: deployed.addresses.registry,
            settlement: deployed.addresses.settlement,
            model_id: model.model_id,
            context_length: CONTEXT,
            encoder: None,
            prices: PRICES,
            tokenizer,
            output,
            key: 1,
            is_sealed: true,
        })
        .await;
        let on_chain = network(&chain, &deployed, key(1)).await;
        on_chain.registry.register(&provider.endpoint(), provider.transport_key(), B256::ZERO).await.unwrap();
        deployed.token.mint(provider.id().0, Amount(100_000_000)).await.unwrap();
        on_chain.registry.stake(Amount(100_000_000)).await.unwrap();
        let payer = key(0x66);
        deployed.token.mint(payer.address(), FUNDS).await.unwrap();
        deployed.token.mint(key(0x77).address(), Amount(1_000_000_000)).await.unwrap();
        let gateway = gateway((&dir, &chain, &deployed, &model)).await;
        Self { dir, chain, deployed, provider, model, gateway, payer }
    }

    /// Stops the gateway and starts it again on what it left.
    async fn reopen(self) -> Self {
        self.gateway.shutdown().await.unwrap();
        let gateway = gateway((&self.dir, &self.chain, &self.deployed, &self.model)).await;
        Self { gateway, ..self }
    }

    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        let mut stream = TcpStream::connect(self.gateway.address()).await.unwrap();
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        for (name, value) in headers {
            request += &format!("{name}: {value}\r\n");
        }
        request += &format!("content-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(PATIENCE, read).await.expect("in time").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap()).map(|(k, v)| (k.to_owned(), v.to_owned()));
        Reply { status, headers: headers.collect(), body: body.to_owned() }
    }

    async fn ask(&self, body: &Value) -> Reply {
        self.send("POST", CHAT, &[], &body.to_string()).await
    }

    async fn pay(&self, body: &Value, payment: &Value) -> Reply {
        self.send("POST", CHAT, &[("PAYMENT-SIGNATURE", &encode(payment))], &body.to_string()).await
    }

    /// A transfer that fulfils `way`, changed by `change` before it is signed.
    async fn transfer(&self, way: &Value, change: impl FnOnce(&mut TransferAuthorization)) -> Value {
        let mut nonce = B256::ZERO;
        nonce[..4].copy_from_slice(&self.provider.asked().to_be_bytes());
        let mut transfer = TransferAuthorization {
            from: self.payer.address(),
            to: way["payTo"].as_str().unwrap().parse().unwrap(),
            value: Amount(way["amount"].as_str().unwrap().parse().unwrap()),
            valid_after: 0,
            valid_before: now() + 3600,
            nonce,
        };
        change(&mut transfer);
        let domain = self.deployed.token.domain().await.unwrap();
        let signature = DigestSigner::new(&self.payer).sign(&transfer.digest(&domain));
        json!({"x402Version": 2, "accepted": way, "payload": {"signature": signature, "authorization": {
            "from": transfer.from, "to": transfer.to, "value": transfer.value, "nonce": transfer.nonce,
            "validAfter": transfer.valid_after.to_string(), "validBefore": transfer.valid_before.to_string(),
        }}})
    }

    fn channel(&self, way: &Value) -> ChannelConfig {
        ChannelConfig {
            payer: self.payer.address(),
            payer_authorizer: self.payer.address(),
            receiver: way["payTo"].as_str().unwrap().parse().unwrap(),
            receiver_authorizer: way["extra"]["receiverAuthorizer"].as_str().unwrap().parse().unwrap(),
            token: way["asset"].as_str().unwrap().parse().unwrap(),
            withdraw_delay: way["extra"]["withdrawDelay"].as_u64().unwrap(),
            salt: B256::ZERO,
        }
    }

    fn channel_id(&self, way: &Value) -> ChannelId {
        self.channel(way).id(&self.deployed.settlement.domain())
    }

    fn voucher(&self, way: &Value, kind: &str, ceiling: Amount) -> Value {
        let voucher = Voucher { channel_id: self.channel_id(way), max_claimable_amount: ceiling };
        let signature = DigestSigner::new(&self.payer).sign(&voucher.digest(&self.deployed.settlement.domain()));
        json!({"x402Version": 2, "accepted": way, "payload": {"type": kind, "channelConfig": self.channel(way),
            "voucher": {"channelId": voucher.channel_id, "maxClaimableAmount": ceiling, "signature": signature}}})
    }

    async fn deposit(&self, way: &Value, ceiling: Amount, amount: Amount, salt: u8) -> Value {
        let mut deposit = SignedDeposit {
            config: self.channel(way),
            amount,
            valid_after: 0,
            valid_before: now() + 3600,
            salt: B256::repeat_byte(salt),
            signature: Signature([0; 65]),
        };
        let domain = self.deployed.token.domain().await.unwrap();
        let consent = self.deployed.settlement.authorization(&deposit);
        deposit.signature = consent.sign(&domain, &self.payer).unwrap();
        let mut payment = self.voucher(way, "deposit", ceiling);
        payment["payload"]["deposit"] = json!({"amount": amount, "authorization": {"erc3009Authorization": {
            "validAfter": "0", "validBefore": deposit.valid_before.to_string(), "salt": deposit.salt,
            "signature": deposit.signature}}});
        payment
    }

    async fn balance(&self) -> Amount {
        self.deployed.token.balance_of(self.payer.address()).await.unwrap()
    }

    fn earned(&self, spent: Amount) -> Amount {
        FUNDS.checked_sub(spent).unwrap()
    }
}

/// What an answer's own count of tokens costs.
fn cost(reply: &Reply) -> Amount {
    let usage = &reply.json()["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    RETAIL.charge_up(count("prompt_tokens"), count("completion_tokens")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exact_transfer_pays_for_one_answer() {
    let shop = Shop::open().await;
    let body = chat_body(json!({"max_tokens": 100}));
    let reply = shop.ask(&body).await;
    assert_eq!(reply.json()["error"]["code"], "payment_required");
    let (way, reason) = reply.required("exact");
    assert_eq!(reason, "PAYMENT-SIGNATURE header is required");
    let price = reply.price("exact");
    assert_eq!(price, reply.price("batch-settlement"));
    // 1024 tokens of context at most in, 100 out.
    assert_eq!(Some(price), RETAIL.charge_up(u64::from(CONTEXT), 100));

    let payment = shop.transfer(&way, |_| ()).await;
    let paid = shop.pay(&body, &payment).await;
    assert_eq!(paid.status, 200, "{}", paid.body);
    assert!(paid.json()["choices"][0]["message"]["content"].as_str().unwrap().starts_with("w0 w1"));
    let settled = paid.settled();
    assert_eq!((&settled["success"], &settled["network"]), (&json!(true), &way["network"]));
    assert_eq!(settled["transaction"].as_str().unwrap().len(), 66);
    assert_eq!(shop.balance().await, shop.earned(price));
    assert_eq!(shop.provider.asked(), 1);

    // The same payment again, at once and after a restart.
    let shop = {
        let again = shop.pay(&body, &payment).await;
        assert_eq!(again.required("exact").1, "invalid_exact_evm_transaction_simulation_failed");
        shop.reopen().await
    };
    let again = shop.pay(&body, &payment).await;
    assert_eq!(again.required("exact").1, "invalid_exact_evm_transaction_simulation_failed");

    // A request that cannot be answered costs nothing.
    let refused = chat_body(json!({"max_tokens": 100, "temperature": -1}));
    let (way, _) = shop.ask(&refused).await.required("exact");
    let fresh = shop.transfer(&way, |t| t.nonce = B256::repeat_byte(9)).await;
    assert_eq!(shop.pay(&refused, &fresh).await.status, 400);

    // One transfer for two requests at the same time: one of them is answered.
    let two = shop.transfer(&shop.ask(&body).await.required("exact").0, |t| t.nonce = B256::repeat_byte(8)).await;
    let (a, b) = tokio::join!(shop.pay(&body, &two), shop.pay(&body, &two));
    let mut statuses = [a.status, b.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 402]);
    assert_eq!(shop.balance().await, shop.earned(Amount(2 * price.0)));
    assert_eq!(shop.provider.asked(), 2);
    shop.gateway.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_that_do_not_fit_are_refused_before_anybody_works() {
    let shop = Shop::open().await;
    let body = chat_body(json!({"max_tokens": 100}));
    let (way, _) = shop.ask(&body).await.required("exact");
    type Change = fn(&mut TransferAuthorization);
    let rows: [(Change, &str); 5] = [
        (|t| t.to = t.from, "invalid_exact_evm_payload_recipient_mismatch"),
        (|t| t.value.0 -= 1, "invalid_exact_evm_payload_authorization_value"),
        (|t| t.valid_after = now() + 60, "invalid_exact_evm_payload_authorization_valid_after"),
        (|t| t.valid_before = now() + 60, "invalid_exact_evm_payload_authorization_valid_before"),
        (|t| t.from = t.to, "invalid_exact_evm_payload_signature"),
    ];
    for (change, reason) in rows {
        let payment = shop.transfer(&way, change).await;
        assert_eq!(shop.pay(&body, &payment).await.required("exact").1, reason);
    }
    type Bend = fn(&mut Value);
    let rows: [(Bend, &str); 7] = [
        (
            |p| p["payload"]["authorization"]["nonce"] = json!(B256::repeat_byte(1)),
            "invalid_exact_evm_payload_signature",
        ),
        (|p| p["accepted"]["network"] = json!("eip155:1"), "invalid_network"),
        (|p| p["accepted"]["amount"] = json!("1"), "invalid_payment_requirements"),
        (|p| p["accepted"]["payTo"] = p["accepted"]["asset"].clone(), "invalid_payment_requirements"),
        (|p| p["accepted"]["asset"] = p["accepted"]["payTo"].clone(), "invalid_payment_requirements"),
        (|p| p["accepted"]["scheme"] = json!("upto"), "unsupported_scheme"),
        (|p| p["x402Version"] = json!(1), "invalid_x402_version"),
    ];
    for (bend, reason) in rows {
        let mut payment = shop.transfer(&way, |_| ()).await;
        bend(&mut payment);
        assert_eq!(shop.pay(&body, &payment).await.required("exact").1, reason);
    }
    // A longer request has another price.
    let payment = shop.transfer(&way, |_| ()).await;
    let longer = chat_body(json!({"max_tokens": 101}));
    assert_eq!(shop.pay(&longer, &payment).await.required("exact").1, "invalid_payment_requirements");
    // All tokens are elsewhere.
    let rich = network(&shop.chain, &shop.deployed, shop.payer.clone()).await;
    rich.token.transfer(key(0x51).address(), FUNDS).await.unwrap();
    assert_eq!(shop.pay(&body, &payment).await.required("exact").1, "insufficient_funds");
    let garbage = shop.send("POST", CHAT, &[("payment-signature", "%")], &body.to_string()).await;
    assert_eq!(garbage.required("exact").1, "the payment is not base64");
    assert_eq!(shop.provider.asked(), 0);
    shop.gateway.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn vouchers_pay_what_was_used_and_the_rest_goes_back() {
    let shop = Shop::open().await;
    let body = chat_body(json!({"max_tokens": 100}));
    let (way, _) = shop.ask(&body).await.required("batch-settlement");
    let price = Amount(way["amount"].as_str().unwrap().parse().unwrap());
    let deposit = Amount(5 * price.0);

    let first = shop.pay(&body, &shop.deposit(&way, price, deposit, 1).await).await;
    assert_eq!(first.status, 200, "{}", first.body);
    let mut charged = cost(&first);
    assert!(charged > Amount::ZERO && charged < price);
    let settled = first.settled();
    assert_eq!(settled["amount"], json!(deposit));
    assert_eq!(settled["extra"]["chargedAmount"], json!(charged));
    assert_eq!(settled["extra"]["channelState"]["balance"], json!(deposit));
    assert_eq!(shop.balance().await, shop.earned(deposit));

    // From the books of the payer and not from the price of a whole request.
    let wrong = shop.pay(&body, &shop.voucher(&way, "voucher", Amount(2 * price.0))).await;
    let (corrected, reason) = wrong.required("batch-settlement");
    assert_eq!(reason, "invalid_batch_settlement_evm_cumulative_amount_mismatch");
    assert_eq!(corrected["extra"]["channelState"]["chargedCumulativeAmount"], json!(charged));
    assert_eq!(corrected["extra"]["voucherState"]["signedMaxClaimable"], json!(price));

    // Not on disk, not acknowledged: a restart, which claims, loses nothing.
    let shop = shop.reopen().await;
    let state = shop.deployed.settlement.channel(shop.channel_id(&way)).await.unwrap();
    assert_eq!((state.balance, state.total_claimed), (deposit, charged));
    let second = shop.voucher(&way, "voucher", Amount(charged.0 + price.0));
    let (a, b) = tokio::join!(shop.pay(&body, &second), shop.pay(&body, &second));
    let (answered, refused) = if a.status == 200 { (a, b) } else { (b, a) };
    assert_eq!(refused.status, 402, "one voucher pays for one of two requests");
    assert_eq!(answered.settled()["transaction"], "");
    charged = charged.saturating_add(cost(&answered));

    // A stream is charged what was quoted: nobody knows its length when its head goes out.
    let stream = chat_body(json!({"max_tokens": 100, "stream": true}));
    let (way, _) = shop.ask(&stream).await.required("batch-settlement");
    let streamed_price = Amount(way["amount"].as_str().unwrap().parse().unwrap());
    let ceiling = Amount(charged.0 + streamed_price.0);
    let streamed = shop.pay(&stream, &shop.voucher(&way, "voucher", ceiling)).await;
    assert_eq!(streamed.status, 200);
    assert!(streamed.body.contains("[DONE]"), "{}", streamed.body);
    assert_eq!(streamed.settled()["extra"]["chargedAmount"], json!(streamed_price));
    charged = ceiling;

    // A refused request, and a voucher above what is in the channel.
    let refused = chat_body(json!({"max_tokens": 100, "temperature": -1}));
    let (way, _) = shop.ask(&refused).await.required("batch-settlement");
    let quote = Amount(way["amount"].as_str().unwrap().parse().unwrap());
    let voucher = shop.voucher(&way, "voucher", charged.saturating_add(quote));
    assert_eq!(shop.pay(&refused, &voucher).await.status, 400);
    let dear = chat_body(json!({"max_tokens": 1000, "n": 16}));
    let (way, _) = shop.ask(&dear).await.required("batch-settlement");
    let quote = Amount(way["amount"].as_str().unwrap().parse().unwrap());
    assert!(quote > deposit);
    let voucher = shop.voucher(&way, "voucher", charged.saturating_add(quote));
    let (_, reason) = shop.pay(&dear, &voucher).await.required("batch-settlement");
    assert_eq!(reason, "invalid_batch_settlement_evm_cumulative_exceeds_balance");

    // The way back, as the stock client goes it: a probe and a message, both without a body.
    let probe = shop.send("GET", CHAT, &[], "").await;
    let (way, _) = probe.required("batch-settlement");
    let refund = async |payment: &Value| shop.send("GET", CHAT, &[("PAYMENT-SIGNATURE", &encode(payment))], "").await;
    let stale = refund(&shop.voucher(&way, "refund", price)).await;
    assert_eq!(stale.required("batch-settlement").1, "invalid_batch_settlement_evm_cumulative_amount_mismatch");
    let done = refund(&shop.voucher(&way, "refund", charged)).await;
    assert_eq!(done.status, 200, "{}", done.body);
    let left = deposit.checked_sub(charged).unwrap();
    assert_eq!(done.settled()["amount"], json!(left));
    assert_eq!(shop.balance().await, shop.earned(charged));
    let empty = refund(&shop.voucher(&way, "refund", charged)).await;
    assert_eq!((empty.status, &empty.settled()["success"]), (402, &json!(false)));
    assert_eq!(shop.provider.asked(), 3);

    let payee = key(0x77).address();
    shop.gateway.shutdown().await.unwrap();
    let sums = shop.deployed.settlement.receiver(payee, shop.deployed.addresses.token).await.unwrap();
    assert_eq!((sums.total_claimed, sums.total_settled), (charged, charged));
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_not_to_this_gateway_are_refused() {
    let shop = Shop::open().await;
    let body = chat_body(json!({"max_tokens": 100}));
    let (way, _) = shop.ask(&body).await.required("batch-settlement");
    let price = Amount(way["amount"].as_str().unwrap().parse().unwrap());
    type Bend = fn(&mut Value);
    let rows: [(Bend, &str); 9] = [
        (|p| p["channelConfig"]["receiver"] = p["channelConfig"]["payer"].clone(), "receiver_mismatch"),
        (
            |p| p["channelConfig"]["receiverAuthorizer"] = p["channelConfig"]["payer"].clone(),
            "receiver_authorizer_mismatch",
        ),
        (|p| p["channelConfig"]["token"] = p["channelConfig"]["payer"].clone(), "token_mismatch"),
        (|p| p["channelConfig"]["withdrawDelay"] = json!(900), "withdraw_delay_mismatch"),
        (|p| p["channelConfig"]["salt"] = json!(B256::repeat_byte(1)), "channel_id_mismatch"),
        (|p| p["voucher"]["maxClaimableAmount"] = json!("1"), "voucher_signature"),
        (|p| p["deposit"] = Value::Null, "deposit_payload"),
        (|p| p["deposit"]["authorization"] = json!({}), "erc3009_authorization_required"),
        (|p| p["deposit"]["amount"] = json!("1000000"), "receive_authorization_signature"),
    ];
    for (bend, reason) in rows {
        let mut payment = shop.deposit(&way, price, Amount(5 * price.0), 1).await;
        bend(&mut payment["payload"]);
        let (_, found) = shop.pay(&body, &payment).await.required("batch-settlement");
        assert_eq!(found, format!("invalid_batch_settlement_evm_{reason}"));
    }
    // More than the payer has.
    let payment = shop.deposit(&way, price, Amount(FUNDS.0 + 1), 1).await;
    let (_, found) = shop.pay(&body, &payment).await.required("batch-settlement");
    assert_eq!(found, "invalid_batch_settlement_evm_insufficient_balance");
    // Nothing is in the channel.
    let (_, found) = shop.pay(&body, &shop.voucher(&way, "voucher", price)).await.required("batch-settlement");
    assert_eq!(found, "invalid_batch_settlement_evm_cumulative_exceeds_balance");
    // A payer who is taking the deposit back has nothing to promise.
    let paid = shop.pay(&body, &shop.deposit(&way, price, Amount(5 * price.0), 2).await).await;
    assert_eq!(paid.status, 200);
    let charged = cost(&paid);
    let on_chain = network(&shop.chain, &shop.deployed, shop.payer.clone()).await;
    on_chain.settlement.initiate_withdraw(&shop.channel(&way), Amount(5 * price.0)).await.unwrap();
    let shop = shop.reopen().await;
    let voucher = shop.voucher(&way, "voucher", charged.saturating_add(price));
    let (_, found) = shop.pay(&body, &voucher).await.required("batch-settlement");
    assert_eq!(found, "invalid_batch_settlement_evm_cumulative_exceeds_balance");
    assert_eq!(shop.provider.asked(), 1);
    shop.gateway.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_key_does_not_pay_and_receipts_of_paid_answers_need_none() {
    let shop = Shop::open().await;
    let body = chat_body(json!({"max_tokens": 100}));
    let own = format!("Bearer {}", shop.gateway.keys().create("own").await.unwrap());
    let with_key = shop.send("POST", CHAT, &[("authorization", &own)], &body.to_string()).await;
    assert_eq!(with_key.status, 200);
    let wrong = shop.send("POST", CHAT, &[("authorization", "Bearer sk-assay-wrong")], &body.to_string()).await;
    assert_eq!(wrong.status, 401);
    assert_eq!(shop.send("GET", "/v1/models", &[], "").await.status, 401);

    let (way, _) = shop.ask(&body).await.required("exact");
    let paid = shop.pay(&body, &shop.transfer(&way, |_| ()).await).await;
    let path = |reply: &Reply| format!("/v1/receipts/{}", reply.headers["x-assay-receipt"]);
    let receipt = shop.send("GET", &path(&paid), &[], "").await;
    assert_eq!(receipt.status, 200, "{}", receipt.body);
    assert!(receipt.json()["parts"][0]["receipt"].is_object());
    assert_eq!(shop.send("GET", &path(&with_key), &[], "").await.status, 404, "another's receipt");
    assert_eq!(shop.send("GET", &path(&paid), &[("authorization", &own)], "").await.status, 404);
    shop.gateway.shutdown().await.unwrap();
}
