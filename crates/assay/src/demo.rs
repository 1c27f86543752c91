//! `assay demo cheat`: a provider serves four-bit weights for an eight-bit model, is caught, judged on chain and slashed.
//!
//! Everything is real but the size: an embedded chain with the contracts, three providers with stakes and channels, a
//! gateway, an answer with its receipt, an auditor, and a dispute that begins by itself and of which every move is a
//! transaction. The cheat plays as well as it can: it shows the trace that it computed, and states honestly what each
//! step should have read.

use crate::children::Supervised;
use crate::dispute::{self, Narrator, Subject};
use crate::prosecutor::{self, Listener, Prosecutor, Record, Stage as Standing};
use crate::referee::EngineReferee;
use crate::{load, shipped, start_logging, state::State, up};
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, bail, ensure};
use assay_chain::client::{Court, Phase};
use assay_chain::{
    B256, ChainClient, ChainOptions, ClientOptions, DeployParams, EmbeddedChain, Genesis, LOCAL_CHAIN_ID, Network,
    deploy_local,
};
use assay_engine::{EngineOptions, LoadOptions, Model, Runner};
use assay_gateway::{AuditConfig, GatewayHandle, GatewayModel};
use assay_gguf::{GgmlType, Gguf, write::GgufWriter};
use assay_graph::Trace;
use assay_net::Sockets;
use assay_provider::{ClaimPolicy, Limits, Provider, ProviderConfig, ServedModel, Work};
use assay_types::{Amount, Manifest, Prices, ProviderId, ReceiptFile};
use assay_verify::dispute::provider;
use assay_verify::replay::{Verdict, replay};
use assay_verify::statements;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Each provider's stake.
const STAKE: Amount = Amount(500_000_000);
/// What gateway and challenger have at the start.
const FUNDS: Amount = Amount(1_000_000_000);
/// Providers: the first cheats and is the cheapest.
const PROVIDERS: usize = 3;
/// Most tokens of an answer; if more are asked for, the answer goes on after its end.
const TOKENS: u32 = 48;
/// Prompts, until the cheat's weights give another answer.
const PROMPTS: [&str; 5] = [
    "What is the capital of France?",
    "Write a poem about winter.",
    "Sing a song about the moon and the stars and the night.",
    "The king said to the queen that the",
    "My name is Bob and I live in Berlin with seven cows and two green frogs.",
];
/// Longest answer of the gateway that is read.
const REPLY_BYTES_MAX: u64 = 16 << 20;
/// How often a receipt is asked for, and the pause between.
const RECEIPT_TRIES: u32 = 100;
const RECEIPT_PAUSE: Duration = Duration::from_millis(20);
/// How long the gateway may take to find and fund all providers.
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// How long the audit and the dispute may take, and how often it is looked whether they are over.
const JUDGED_TIME_MAX: Duration = Duration::from_secs(600);
const JUDGED_PAUSE: Duration = Duration::from_millis(50);

/// Shows on this machine, with a network of its own, what assay is for.
#[derive(Args)]
pub struct DemoArgs {
    #[command(subcommand)]
    command: DemoCommand,
}

#[derive(Subcommand)]
enum DemoCommand {
    /// A provider serves a smaller model than it says: it is caught, disputed, judged on chain and slashed
    Cheat(CheatArgs),
}

#[derive(Args)]
struct CheatArgs {
    /// Folder for everything; must be new or empty [default: one for this run below the temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Most tokens of the answer; from 49 on it goes on after its end, to dispute a long one
    #[arg(long, value_name = "N", default_value_t = TOKENS, value_parser = clap::value_parser!(u32).range(8..=1_000))]
    tokens: u32,
    /// Print one JSON line for each step
    #[arg(long)]
    json: bool,
}

/// Runs `assay demo`.
pub fn run(args: DemoArgs) -> anyhow::Result<()> {
    start_logging();
    let DemoCommand::Cheat(args) = args.command;
    let dir = match &args.dir {
        Some(dir) => dir.clone(),
        None => std::env::temp_dir().join(format!("assay-demo-{}", std::process::id())),
    };
    if std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; the demo needs a folder of its own, choose one with --dir", dir.display());
    }
    let started = Instant::now();
    let narrator = Arc::new(Narrator::new(args.json));
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(cheat(&dir, args.tokens, &narrator))?;
    if args.dir.is_none() {
        std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    narrator.say(&format!("done in {:.0} s", started.elapsed().as_secs_f64()), None);
    Ok(())
}

/// The network of the demonstration.
struct Stage {
    state: State,
    chain: EmbeddedChain,
    /// With the operator's key, which is the court's sink.
    operator: Network,
    manifest: Manifest,
    honest: PathBuf,
    cheap: PathBuf,
    /// Most tokens of an answer.
    tokens: u32,
}

async fn cheat(dir: &Path, tokens: u32, narrator: &Arc<Narrator>) -> anyhow::Result<()> {
    let stage = Stage::set(dir, tokens).await?;
    let terms = stage.operator.court.as_ref().context("the network has a court")?.terms().await?;
    narrator.say(
        &format!(
            "a network on an embedded chain: bond {}, penalty {}, {} s for each move (base units of a test coin, 6 decimals)",
            terms.bond, terms.penalty, terms.move_window_s
        ),
        None,
    );
    let mut providers = vec![];
    for index in 0..PROVIDERS {
        providers.push(stage.provider(index).await?);
    }
    let cheat = providers[0].id();
    narrator.say(
        &format!(
            "{PROVIDERS} providers, each with {STAKE} at stake, say that they serve {} in Q8_0; {cheat} is the cheapest \
             and runs weights of four bits",
            shipped::NAME
        ),
        None,
    );
    let payer = stage.key("gateway.key").await?;
    let (gguf, listen) = (load::open(stage.shown()?)?, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let served = GatewayModel::from_gguf(shipped::NAME.into(), vec![], stage.manifest.clone(), gguf.gguf())?;
    let prosecutor = stage.prosecutor(narrator).await?;
    let audit = stage.audits(&prosecutor)?;
    let options = up::GatewayOptions { listen, audit, x402: None };
    let gateway =
        up::start_gateway(&stage.state, &stage.chain, &stage.operator, payer.clone(), vec![served], options).await?;
    let key = gateway.keys().create("demo").await?;
    ensure!(gateway.ready(PROVIDERS, READY_TIME_MAX).await, "the gateway did not reach its providers");
    let auditor = stage.auditor(gateway.address()).await?;

    let (loaded, model) = stage.model()?;
    let stake_before = stage.operator.registry.stake_of(cheat).await?;
    let (file, question) = caught(&stage, narrator, gateway.address(), &key, cheat, &model).await?;
    let record = prosecuted(&stage, narrator, &file, &loaded).await?;
    ensure!(record.stage == Standing::Convicted, "the cheat was not convicted: {}", record.says);
    prosecutor.stop().await;
    let stake_after = stage.operator.registry.stake_of(cheat).await?;
    narrator.say(&format!("the cheat's stake: {stake_before} before, {stake_after} now"), None);
    ensure!(stake_after < stake_before, "the stake did not move");

    refunded(&stage, narrator, &file, &gateway, payer.address()).await?;
    // The cheat leaves; the same question goes to an honest provider.
    drop(providers.remove(0).shutdown().await);
    honest_answer(&stage, narrator, gateway.address(), &key, question, &model).await?;
    auditor.stop().await?;
    gateway.shutdown().await?;
    for provider in providers {
        let id = provider.id();
        let earned =
            provider.shutdown().await.settled.map_err(|why| anyhow::anyhow!("the last claim failed: {why}"))?;
        let balance = stage.operator.token.balance_of(id.0).await?;
        narrator.say(&format!("{id} is honest: {earned} settled at the end, balance {balance}"), None);
    }
    drop(stage.operator);
    stage.chain.close();
    Ok(())
}

impl Stage {
    async fn set(dir: &Path, tokens: u32) -> anyhow::Result<Self> {
        let state = State::open(dir)?;
        let operator = crate::state::load_or_create_key(&state.file("operator.key"))?;
        let clock = Arc::new(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
        let genesis = Genesis::local(LOCAL_CHAIN_ID, operator.address());
        let chain = EmbeddedChain::open(&state.dir("chain")?, &genesis, ChainOptions::new(clock))?;
        let client = ChainClient::connect(&chain, operator.clone(), ClientOptions::default()).await?;
        let operator = deploy_local(&client, &DeployParams::local_court(operator.address()), None).await?;
        let honest = shipped::resolve(shipped::NAME, &state)?;
        let bytes = std::fs::read(&honest)?;
        let cheap = state.dir("models")?.join("four-bits.gguf");
        std::fs::write(&cheap, four_bits(&bytes)?)?;
        let manifest = load::open(honest.to_str().context("a path in UTF-8")?)?.manifest()?;
        Ok(Self { state, chain, operator, manifest, honest, cheap, tokens })
    }

    /// The model's path.
    fn shown(&self) -> anyhow::Result<&str> {
        self.honest.to_str().context("a path in UTF-8")
    }

    /// A new key with test coins.
    async fn key(&self, name: &str) -> anyhow::Result<PrivateKeySigner> {
        let key = crate::state::load_or_create_key(&self.state.file(name))?;
        self.operator.token.mint(key.address(), FUNDS).await?;
        Ok(key)
    }

    async fn network(&self, key: PrivateKeySigner) -> anyhow::Result<Network> {
        let client = ChainClient::connect(&self.chain, key, ClientOptions::default()).await?;
        Ok(Network::new(client, self.operator.addresses)?)
    }

    /// The model that everybody says to serve.
    fn model(&self) -> anyhow::Result<(load::Opened, Arc<Model>)> {
        let loaded = load::open(self.shown()?)?;
        let model = loaded.load(&load::CacheArgs::none(), LoadOptions::default())?;
        Ok((loaded, model))
    }

    /// Takes wrong answers to court, with an account of its own.
    async fn prosecutor(&self, narrator: &Arc<Narrator>) -> anyhow::Result<Prosecutor> {
        let challenger = self.network(self.key("challenger.key").await?).await?;
        let narrator = Arc::clone(narrator);
        let listener: Listener = Arc::new(move |text, sent| narrator.say(text, sent));
        let started =
            up::start_prosecutor(&self.state, challenger.client, &self.operator, &self.honest, FUNDS, Some(listener));
        started.await?.context("the network has a court")
    }

    /// One auditor, and an engine in this process that is asked before anybody is blamed.
    fn audits(&self, prosecutor: &Prosecutor) -> anyhow::Result<AuditConfig> {
        let key = crate::state::load_or_create_key(&self.state.dir("auditor")?.join("auditor.key"))?;
        let (model_id, convictions) = (self.manifest.model_id(), self.state.file("convictions"));
        let referee = EngineReferee::new(&self.honest, model_id, load::CacheArgs::none(), usize::MAX, convictions)
            .with_prosecutor(Some(prosecutor.waker()));
        Ok(AuditConfig { auditors: vec![key.address()], referee: Some(Arc::new(referee)), ..AuditConfig::default() })
    }

    /// The auditor's process.
    async fn auditor(&self, gateway: SocketAddr) -> anyhow::Result<Supervised> {
        let cache = load::CacheArgs::none();
        up::start_auditor(&self.state, &self.honest, &cache, gateway, self.chain.chain_id()).await
    }

    /// Provider number `index`; number 0 runs other weights than it says.
    async fn provider(&self, index: usize) -> anyhow::Result<Provider> {
        let key = self.key(&format!("provider-{}.key", index + 1)).await?;
        let path = if index == 0 { &self.cheap } else { &self.honest };
        let loaded = load::open(path.to_str().context("a path in UTF-8")?)?;
        let engine = EngineOptions { threads: 1, ..EngineOptions::default() };
        let price = 20_000 + 20_000 * index as u128;
        let served = ServedModel {
            id: self.manifest.model_id(),
            name: shipped::NAME.to_owned(),
            work: Work::Writes { model: loaded.load(&load::CacheArgs::none(), LoadOptions::default())?, engine },
            prices: Prices { input_per_million: Amount(price), output_per_million: Amount(2 * price) },
        };
        let config = ProviderConfig {
            database: self.state.dir(&format!("provider-{}", index + 1))?.join("provider.sqlite"),
            accepts_new_database: false,
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            endpoint: None,
            transport: Arc::new(Sockets),
            transport_secret: None,
            signer: key.clone(),
            network: self.operator.addresses,
            stake: STAKE,
            limits: Limits::default(),
            claims: ClaimPolicy::default(),
        };
        let network = self.network(key).await?;
        Ok(Provider::start(config, Arc::new(network), vec![served]).await?)
    }
}

/// Asks until the cheat gives an answer that its model does not give, and shows how that is found.
async fn caught(
    stage: &Stage,
    narrator: &Narrator,
    gateway: SocketAddr,
    key: &str,
    cheat: ProviderId,
    model: &Arc<Model>,
) -> anyhow::Result<(ReceiptFile, &'static str)> {
    for question in PROMPTS {
        let (text, file) = ask(gateway, key, question, stage.tokens, Some(cheat)).await?;
        narrator.say(
            &format!("a user asks the cheapest {question:?} and gets {text:?}, with a receipt signed by {cheat}"),
            None,
        );
        let statements = statements::check(&file)?;
        let mut runner = Runner::new(load::all_cores());
        let verdict = replay(&file, &statements, model, stage.manifest.model_id(), &mut runner)?;
        let Verdict::WrongToken { index, expected, got, .. } = verdict else {
            narrator.say("by chance four bits give the same tokens here", None);
            continue;
        };
        tracing::debug!(index, got, expected, "wrong");
        narrator.say(
            "the provider is new, so all that it answers is audited: an auditor, a process of its own, replays it in one \
             prefill, and the gateway once more",
            None,
        );
        let path = stage.state.file("receipt.json");
        crate::state::write_json(&path, &file)?;
        return Ok((file, question));
    }
    bail!("the cheat's weights gave the right answer to every question")
}

/// Waits until the dispute that begins by itself is over; plays the cheat in it.
async fn prosecuted(
    stage: &Stage,
    narrator: &Narrator,
    file: &ReceiptFile,
    loaded: &load::Opened,
) -> anyhow::Result<Record> {
    let subject = Subject::of(file, 0);
    let traced = Arc::new(loaded.traced()?);
    let case = dispute::case(file, &subject, &traced)?;
    let challenger = crate::state::read_key(&stage.state.file("challenger.key"))?.address();
    let id = Court::dispute_id(challenger, &case);
    let cheap = load::open(stage.cheap.to_str().context("a path in UTF-8")?)?;
    let of_cheat = dispute::compute(&subject, Arc::new(cheap.traced()?), load::all_cores(), &mut |_, _| ())?;
    let right = dispute::compute(&subject, traced, load::all_cores(), &mut |_, _| ())?;
    let cheat = stage.network(crate::state::read_key(&stage.state.file("provider-1.key"))?).await?;
    let gas_of_cheat = Arc::new(AtomicU64::new(0));
    let defending = tokio::spawn(defend_cheat(cheat, id, of_cheat, right, Arc::clone(&gas_of_cheat)));
    let record = judged(&stage.state.file("disputes"), &file.id.to_string()).await;
    defending.abort();
    let record = record?;
    // What comes after the judgement is no part of the game.
    let is_game = |says: &str| !says.starts_with("the challenger takes");
    let gas: u64 = record.transactions.iter().filter(|sent| is_game(&sent.says)).map(|sent| sent.gas).sum();
    let of_cheat = gas_of_cheat.load(Ordering::Relaxed);
    narrator.say(&format!("the dispute took {gas} gas of the challenger and {of_cheat} of the provider"), None);
    Ok(record)
}

/// The record of a dispute that is over.
async fn judged(disputes: &Path, receipt: &str) -> anyhow::Result<Record> {
    let started = Instant::now();
    loop {
        let found = prosecutor::records(disputes)?.into_iter().find(|record| record.receipt == receipt);
        if let Some(record) = found.filter(|record| record.stage.is_final()) {
            return Ok(record);
        }
        ensure!(started.elapsed() < JUDGED_TIME_MAX, "no judgement after {} s", JUDGED_TIME_MAX.as_secs());
        tokio::time::sleep(JUDGED_PAUSE).await;
    }
}

/// The cheat answers with what it computed; what a step reads it states as it is in the model that it should have run,
/// because its own weights would not even have the right length.
async fn defend_cheat(network: Network, id: B256, own: Trace, right: Trace, gas: Arc<AtomicU64>) -> anyhow::Result<()> {
    let court = network.court.as_ref().context("the network has a court")?;
    loop {
        let dispute = court.dispute(id).await?;
        let phase = Phase::from_number(dispute.phase).context("a known phase")?;
        if phase.is_providers() {
            let trace = if phase == Phase::RevealOperands { &right } else { &own };
            let answer = provider::answer(trace, id, &dispute)?;
            gas.fetch_add(court.play(&answer.calls).await?.gas_used, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The court has given the answer's price back to the gateway, which credits it to the user's key.
async fn refunded(
    stage: &Stage,
    narrator: &Narrator,
    file: &ReceiptFile,
    gateway: &GatewayHandle,
    payer: assay_chain::Address,
) -> anyhow::Result<()> {
    let charged = file.parts.iter().fold(Amount::ZERO, |sum, part| sum.saturating_add(part.signed.receipt.charged));
    let started = Instant::now();
    let credited = loop {
        let keys = gateway.keys().list().await?;
        let credited = keys.iter().fold(Amount::ZERO, |sum, key| sum.saturating_add(key.refunded));
        if credited > Amount::ZERO {
            break credited;
        }
        ensure!(started.elapsed() < READY_TIME_MAX, "the gateway was not paid back in {} s", READY_TIME_MAX.as_secs());
        tokio::time::sleep(JUDGED_PAUSE).await;
    };
    ensure!(credited == charged, "the answer had cost {charged}, and {credited} came back");
    narrator.say(
        &format!("the gateway ({payer}) has its {charged} base units back and credits the user's key with them"),
        None,
    );
    let court = stage.operator.court.as_ref().context("the network has a court")?;
    let sent = court.withdraw().await?;
    narrator.say("the operator, who is the court's sink here, takes the rest of the penalty", Some(&sent));
    Ok(())
}

async fn honest_answer(
    stage: &Stage,
    narrator: &Narrator,
    gateway: SocketAddr,
    key: &str,
    question: &str,
    model: &Arc<Model>,
) -> anyhow::Result<()> {
    let (text, file) = ask(gateway, key, question, stage.tokens, None).await?;
    let statements = statements::check(&file)?;
    let mut runner = Runner::new(load::all_cores());
    let verdict = replay(&file, &statements, model, stage.manifest.model_id(), &mut runner)?;
    ensure!(matches!(verdict, Verdict::Exact { .. }), "an honest answer is exact, this is {verdict:?}");
    let by = file.parts.last().map(|part| part.provider.to_string()).unwrap_or_default();
    narrator.say(
        &format!("the cheat is gone; asked again, {by} answers {text:?}: the replay finds every token right"),
        None,
    );
    Ok(())
}

/// One question to the gateway, of this provider if it has to be one: the answer's text and its receipt file.
async fn ask(
    gateway: SocketAddr,
    key: &str,
    question: &str,
    tokens: u32,
    of: Option<ProviderId>,
) -> anyhow::Result<(String, ReceiptFile)> {
    let mut body = json!({
        "model": shipped::NAME, "max_tokens": tokens, "temperature": 0, "ignore_eos": tokens > TOKENS,
        "messages": [{"role": "user", "content": question}],
    });
    if let Some(provider) = of {
        body["provider"] = json!({"only": [provider]});
    }
    let (head, reply) = http(gateway, "POST", "/v1/chat/completions", key, &body.to_string()).await?;
    let reply: Value = serde_json::from_slice(&reply).context("the gateway's answer")?;
    let text = reply["choices"][0]["message"]["content"].as_str().with_context(|| format!("no answer: {reply}"))?;
    let id = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("x-assay-receipt").then(|| value.trim().to_owned())
    });
    let path = format!("/v1/receipts/{}", id.context("an answer names its receipt")?);
    let mut tries = 0;
    let (_, file) = loop {
        match http(gateway, "GET", &path, key, "").await {
            // An answer is out a moment before its receipt can be had.
            Err(_) if tries < RECEIPT_TRIES => tries += 1,
            done => break done?,
        }
        tokio::time::sleep(RECEIPT_PAUSE).await;
    };
    Ok((text.trim().to_owned(), serde_json::from_slice(&file).context("the receipt file")?))
}

/// One HTTP request on a connection of its own: head and body of the response, whose status must be 200.
async fn http(
    address: SocketAddr,
    method: &str,
    path: &str,
    key: &str,
    body: &str,
) -> anyhow::Result<(String, Vec<u8>)> {
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut reply = vec![];
    stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply).await?;
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n").context("a response has a head")?;
    let head = String::from_utf8_lossy(&reply[..end]).into_owned();
    let body = reply.split_off(end + 4);
    ensure!(head.starts_with("HTTP/1.1 200"), "{path}: {head}: {}", String::from_utf8_lossy(&body));
    Ok((head, body))
}

/// The same model with its Q8_0 matrices rounded to Q4_0.
fn four_bits(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let gguf = Gguf::parse(bytes)?;
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        writer.set(key, value.clone());
    }
    for tensor in gguf.tensors() {
        ensure!([GgmlType::Q8_0, GgmlType::F32].contains(&tensor.ty), "{} is {}", tensor.name, tensor.ty);
        let ty = if tensor.ty == GgmlType::Q8_0 { GgmlType::Q4_0 } else { tensor.ty };
        writer.tensor(&tensor.name, &tensor.dims, ty)?;
    }
    let values = |name: &str| -> Vec<f32> {
        let tensor = gguf.tensor(name).expect("every tensor that is written was read");
        let data = gguf.tensor_bytes(bytes, tensor).expect("the shipped model is whole");
        match tensor.ty {
            GgmlType::Q8_0 => data.chunks_exact(34).flat_map(q8_block).collect(),
            _ => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        }
    };
    Ok(writer.to_bytes(|tensor| values(&tensor.name))?)
}

/// A scale in binary16 and 32 signed bytes.
fn q8_block(block: &[u8]) -> impl Iterator<Item = f32> + '_ {
    let d = assay_num::f16::to_f32(u16::from_le_bytes([block[0], block[1]]));
    block[2..].iter().map(move |byte| d * f32::from(byte.cast_signed()))
}
