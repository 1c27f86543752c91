//! A gateway with fake providers and a fake chain, and an HTTP client to talk to it.

use alloy_signer_local::PrivateKeySigner;
use assay_gateway::{
    Addresses, AuditConfig, Gateway, GatewayConfig, GatewayHandle, GatewayLimits, GatewayModel, Ledger, LedgerError,
    Registered, Timeouts, Totals, Withdrawal,
};
use assay_gguf::{Gguf, Tokenizer};
use assay_net::{AddressPolicy, Sockets};
use assay_protocol::AuditPolicy;
use assay_testkit::encoders::{TinyBert, tiny_bert};
use assay_testkit::fake_provider::{FakeProvider, Script};
use assay_testkit::models::{TinyLlama, tiny_llama};
use assay_types::{
    Address, Amount, B256, CANONICAL_PROFILE, ChannelConfig, ChannelId, Finish, Manifest, ModelId, Prices, ProviderId,
    ReceiptFile, RequestHash, TokenId, receipt_domain, response_hash, settlement_domain,
};
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Reached only by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const CONTEXT: u32 = 1024;
pub const PRICES: Prices = Prices { input_per_million: Amount(50_000_000), output_per_million: Amount(100_000_000) };
const ADDRESSES: Addresses = Addresses {
    chain_id: 31_337,
    registry: Address::repeat_byte(0xa1),
    settlement: Address::repeat_byte(0xa2),
    token: Address::repeat_byte(0xa3),
};

/// Fakes the chain: a list of providers that the test writes, and deposits that arrive at once and never run out.
#[derive(Default)]
pub struct FakeLedger {
    pub providers: Mutex<Vec<Registered>>,
    deposits: Mutex<BTreeMap<ChannelId, Amount>>,
    /// What the court gave back.
    pub refunds: Mutex<BTreeMap<(ProviderId, RequestHash), Amount>>,
    /// What the network's parameters say.
    pub policy: Mutex<Option<AuditPolicy>>,
}

impl Ledger for FakeLedger {
    fn addresses(&self) -> Addresses {
        ADDRESSES
    }

    async fn providers(&self) -> Result<Vec<Registered>, LedgerError> {
        Ok(self.providers.lock().unwrap().clone())
    }

    async fn channel_deposit(&self, id: ChannelId) -> Result<Amount, LedgerError> {
        Ok(self.deposits.lock().unwrap().get(&id).copied().unwrap_or_default())
    }

    async fn withdrawal(&self, _channel: &ChannelConfig) -> Result<Option<Withdrawal>, LedgerError> {
        Ok(None)
    }

    async fn finalize(&self, _channel: &ChannelConfig) -> Result<(), LedgerError> {
        Ok(())
    }

    async fn refunded(&self, provider: ProviderId, request: RequestHash) -> Result<Option<Amount>, LedgerError> {
        Ok(self.refunds.lock().unwrap().get(&(provider, request)).copied())
    }

    async fn audit_policy(&self) -> Result<Option<AuditPolicy>, LedgerError> {
        Ok(*self.policy.lock().unwrap())
    }

    async fn deposit(&self, channel: &ChannelConfig, amount: Amount) -> Result<(), LedgerError> {
        let id = channel.id(&settlement_domain(ADDRESSES.chain_id, ADDRESSES.settlement));
        let mut deposits = self.deposits.lock().unwrap();
        let deposit = deposits.entry(id).or_default();
        *deposit = deposit.saturating_add(amount);
        Ok(())
    }
}

/// Everything a test needs. Providers are numbered as they were started.
pub struct World {
    pub providers: Vec<FakeProvider>,
    pub ledger: Arc<FakeLedger>,
    pub gateway: GatewayHandle,
    pub key: String,
    pub dir: TempDir,
    pub model: GatewayModel,
    pub encoder: GatewayModel,
    pub tokenizer: Arc<Tokenizer>,
    pub change: fn(&mut GatewayConfig),
    pub audit: AuditConfig,
}

/// What the scripted model says: `words` numbered words, then the end.
pub fn story(words: usize) -> String {
    (0..words).map(|i| format!("w{i} ")).collect()
}

/// A model whose weights nobody needs.
pub fn tiny_model() -> (GatewayModel, Arc<Tokenizer>) {
    let file = tiny_llama(TinyLlama { context: CONTEXT, ..TinyLlama::default() });
    let gguf = Gguf::parse(&file).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    let manifest = Manifest {
        profile: CANONICAL_PROFILE.into(),
        file_sha256: B256::repeat_byte(1),
        file_len: file.len() as u64,
        weights_root: B256::repeat_byte(2),
        tokenizer_hash: B256::from(tokenizer.hash()),
        rope_hash: B256::repeat_byte(3),
        graph_hash: B256::repeat_byte(3),
        name: "fake".into(),
        license: String::new(),
    };
    let model = GatewayModel::from_gguf("fake".into(), vec!["alias".into()], manifest, &gguf).unwrap();
    (model, tokenizer)
}

/// An encoder whose weights nobody needs.
pub fn tiny_encoder() -> GatewayModel {
    let file = tiny_bert(TinyBert::default());
    let manifest =
        Manifest { file_sha256: B256::repeat_byte(8), name: "fake-encoder".into(), ..tiny_model().0.manifest };
    GatewayModel::from_gguf("encoder".into(), vec![], manifest, &Gguf::parse(&file).unwrap()).unwrap()
}

impl World {
    /// `n` providers that all say `text` and then stop.
    pub async fn start(n: u8, text: &str) -> Self {
        Self::start_with(n, text, |_| ()).await
    }

    pub async fn start_with(n: u8, text: &str, change: fn(&mut GatewayConfig)) -> Self {
        Self::start_all(n, text, change, AuditConfig::default()).await
    }

    pub async fn start_audited(n: u8, text: &str, audit: AuditConfig) -> Self {
        Self::start_all(n, text, |_| (), audit).await
    }

    pub async fn start_all(n: u8, text: &str, change: fn(&mut GatewayConfig), audit: AuditConfig) -> Self {
        let ((model, tokenizer), encoder) = (tiny_model(), tiny_encoder());
        let mut output: Vec<TokenId> = tokenizer.encode(text, false, false);
        output.push(tokenizer.eos().unwrap());
        let ledger = Arc::new(FakeLedger::default());
        let mut providers = Vec::new();
        for key in 1..=n {
            let provider = FakeProvider::start(Script {
                chain_id: ADDRESSES.chain_id,
                registry: ADDRESSES.registry,
                settlement: ADDRESSES.settlement,
                model_id: model.model_id,
                context_length: CONTEXT,
                encoder: Some((encoder.model_id, encoder.context_length)),
                prices: PRICES,
                tokenizer: Arc::clone(&tokenizer),
                output: output.clone(),
                key,
                // Every other one, so that whatever is tested is tested with both.
                is_sealed: key % 2 == 1,
            })
            .await;
            let (id, endpoint, transport_key) = (provider.id(), provider.endpoint(), provider.transport_key());
            ledger.providers.lock().unwrap().push(Registered { id, endpoint, transport_key, is_active: true });
            providers.push(provider);
        }
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::start_with(
            serving(&encoder, GatewayConfig { audit: audit.clone(), ..config(&model, dir.path(), change) }),
            Arc::clone(&ledger),
        )
        .await
        .unwrap();
        let key = gateway.keys().create("test").await.unwrap();
        assert!(gateway.ready(usize::from(n), PATIENCE).await, "providers are routable in time");
        Self { providers, ledger, gateway, key, dir, model, encoder, tokenizer, change, audit }
    }

    /// Stops the gateway and starts it again on the same directory.
    pub async fn restart(self) -> (Self, Totals) {
        let totals = self.gateway.shutdown().await.unwrap();
        let config = GatewayConfig { audit: self.audit.clone(), ..config(&self.model, self.dir.path(), self.change) };
        let gateway = Gateway::start_with(serving(&self.encoder, config), Arc::clone(&self.ledger)).await.unwrap();
        assert!(gateway.ready(self.providers.len(), PATIENCE).await, "providers are routable in time");
        (Self { gateway, ..self }, totals)
    }

    pub async fn send(&self, method: Method, path: &str, key: Option<&str>, body: impl Into<Bytes>) -> Reply {
        let response = self.open(method, path, key, body).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("the whole body").to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    /// The response as soon as its head is there.
    pub async fn open(
        &self,
        method: Method,
        path: &str,
        key: Option<&str>,
        body: impl Into<Bytes>,
    ) -> hyper::Response<Incoming> {
        let mut sender = self.connect().await;
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body.into())).unwrap();
        tokio::time::timeout(PATIENCE, sender.send_request(request)).await.expect("in time").expect("a response")
    }

    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.gateway.address()).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        // Ends with the sender or the response body.
        tokio::spawn(connection);
        sender
    }

    pub async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send(Method::POST, path, Some(&self.key), body.to_string()).await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, Some(&self.key), "").await
    }

    /// A chat with these fields added to the least there has to be.
    pub async fn chat(&self, extra: Value) -> Reply {
        self.post("/v1/chat/completions", &chat_body(extra)).await
    }

    /// A chat with one provider only, by number.
    pub fn only(&self, number: usize) -> Value {
        serde_json::json!({"only": [self.providers[number].id().to_string()]})
    }

    /// The receipt file; waits while it is pending.
    pub async fn receipt(&self, id: &str) -> ReceiptFile {
        let wait = async {
            loop {
                let reply = self.get(&format!("/v1/receipts/{id}")).await;
                if reply.status == StatusCode::CONFLICT {
                    continue;
                }
                assert_eq!(reply.status, 200, "{}", reply.text());
                return serde_json::from_slice(&reply.body).unwrap();
            }
        };
        let file: ReceiptFile = tokio::time::timeout(PATIENCE, wait).await.expect("the receipt is there in time");
        self.check_receipt(&file);
        file
    }

    /// Every statement of a receipt file, checked by the protocol's text and not by the gateway's code.
    pub fn check_receipt(&self, file: &ReceiptFile) {
        assert_eq!(file.id, file.job.request_hash());
        assert_eq!(file.job.model_id, ModelId(file.manifest.model_id().0));
        let mut output: Vec<TokenId> = Vec::new();
        for (index, part) in file.parts.iter().enumerate() {
            let receipt = &part.signed.receipt;
            let job = file.job.resumed_after(&output);
            assert_eq!(receipt.request_hash, job.request_hash(), "part {index}");
            assert_eq!(receipt.response_hash, response_hash(&part.output, part.finish), "part {index}");
            assert_eq!(receipt.prompt_tokens, job.input_tokens());
            assert_eq!(receipt.output_tokens, part.output.len() as u64);
            assert_eq!(Some(receipt.charged), PRICES.charge_up(receipt.prompt_tokens, receipt.output_tokens));
            assert!(receipt.charged <= receipt.charged_total);
            assert_eq!(receipt.channel_id, part.channel.id(&settlement_domain(file.chain_id, file.settlement)));
            let is_end = matches!(part.finish, Finish::Stop | Finish::Length);
            let is_last = index + 1 == file.parts.len();
            assert!(is_last || !is_end, "only the last part ends");
            assert!(!is_last || part.finish != Finish::Open, "the last part ends");
            part.signed.verify(&receipt_domain(file.chain_id, file.registry), part.provider).unwrap();
            output.extend(&part.output);
        }
    }

    /// The text of output tokens.
    pub fn text_of(&self, file: &ReceiptFile) -> String {
        let tokens = file.parts.iter().flat_map(|part| &part.output);
        let bytes = tokens.flat_map(|&token| self.tokenizer.token_bytes(token).to_vec()).collect();
        String::from_utf8(bytes).unwrap()
    }

    /// Gateway and providers agree to the last unit; returns the sum.
    pub async fn settled(&self) -> u128 {
        let agree = async {
            loop {
                let totals = self.gateway.totals().await.unwrap();
                let provided = self.providers.iter().fold(0, |sum, p| sum + p.charged_total().0);
                let open = totals.channels.iter().any(|channel| channel.reserved > Amount::ZERO);
                if !open && totals.charged().0 == provided {
                    return provided;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, agree).await.expect("the books agree in time")
    }
}

fn serving(encoder: &GatewayModel, mut config: GatewayConfig) -> GatewayConfig {
    config.models.push(encoder.clone());
    config
}

pub fn config(model: &GatewayModel, dir: &Path, change: fn(&mut GatewayConfig)) -> GatewayConfig {
    let mut config = GatewayConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        database: dir.join("gateway.db"),
        control: None,
        signer: PrivateKeySigner::from_bytes(&B256::repeat_byte(0x77)).unwrap(),
        models: vec![model.clone()],
        deposit: Amount(50_000_000),
        withdraw_delay: 86_400,
        addresses: AddressPolicy::Any,
        transport: Arc::new(Sockets),
        audit: assay_gateway::AuditConfig::default(),
        limits: GatewayLimits::default(),
        timeouts: Timeouts {
            offers: Duration::from_millis(20),
            registry: Duration::from_millis(20),
            next_token: PATIENCE,
            ..Timeouts::default()
        },
        x402: None,
    };
    change(&mut config);
    config
}

pub fn chat_body(extra: Value) -> Value {
    let mut body = serde_json::json!({"model": "fake", "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    pub fn receipt_id(&self) -> String {
        self.headers["x-assay-receipt"].to_str().unwrap().to_owned()
    }

    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert!(self.headers["content-type"].to_str().unwrap().starts_with("text/event-stream"));
        let text = std::str::from_utf8(&self.body).unwrap();
        let event = |event: &str| {
            let data = event.strip_prefix("data: ").unwrap();
            if data == "[DONE]" { Value::from("[DONE]") } else { serde_json::from_str(data).unwrap() }
        };
        text.split_terminator("\n\n").map(event).collect()
    }

    /// Text of a whole stream, which must have gone well.
    pub fn streamed_text(&self) -> String {
        let events = self.events();
        assert_eq!(events.last().unwrap(), "[DONE]", "{}", self.text());
        text_of(&events)
    }

    /// Text of a whole, unstreamed chat.
    pub fn content(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }
}

/// All text in events of a chat or completion.
pub fn text_of(events: &[Value]) -> String {
    let text = |event: &Value| {
        let choice = &event["choices"][0];
        choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default().to_owned()
    };
    events.iter().map(text).collect()
}
