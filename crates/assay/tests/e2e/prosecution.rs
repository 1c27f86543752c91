//! Disputes that begin by themselves: of a network whose referee has kept a wrong answer.

use crate::support::{Http, Network, assay, shipped};
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use assay_types::{ReceiptFile, Signature, receipt_domain, response_hash};
use serde_json::{Value, json};
use std::path::Path;

/// Looks at the records while nothing blocks until something is there.
const LOOKS_MAX: usize = 20_000;
const RIGHT_TOKENS: usize = 3;

fn disputes(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = assay().args(["disputes", "--dir"]).arg(dir).args(args).output().expect("assay runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    (output.status.code().expect("a status"), text(output.stdout), text(output.stderr))
}

fn records(dir: &Path, args: &[&str]) -> Vec<Value> {
    let (status, out, err) = disputes(dir, &[args, &["--json"]].concat());
    assert_eq!(status, 0, "{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

/// What a provider would sign whose weights give another token: the honest answer with one changed.
fn forged(file: ReceiptFile, key: &PrivateKeySigner) -> ReceiptFile {
    forged_at(file, key, RIGHT_TOKENS)
}

fn forged_at(mut file: ReceiptFile, key: &PrivateKeySigner, at: usize) -> ReceiptFile {
    let part = &mut file.parts[0];
    part.output[at] ^= 1;
    part.signed.receipt.response_hash = response_hash(&part.output, part.finish);
    signed(file, key)
}

/// The file with its first receipt signed as it is now.
pub fn signed(mut file: ReceiptFile, key: &PrivateKeySigner) -> ReceiptFile {
    let domain = receipt_domain(file.chain_id, file.registry);
    let part = &mut file.parts[0];
    let digest = part.signed.receipt.digest(&domain);
    part.signed.signature = Signature::new(&key.sign_hash_sync(&digest).expect("a key signs"));
    file
}

/// The first provider's key.
pub fn provider_key(dir: &Path) -> PrivateKeySigner {
    let key = std::fs::read_to_string(dir.join("provider-1/provider.key")).expect("the provider's key");
    key.trim().parse().expect("a key")
}

fn keep(dir: &Path, name: &str, file: &ReceiptFile, first_wrong: usize) {
    let folder = dir.join("convictions");
    std::fs::create_dir_all(&folder).expect("a folder");
    let kept = json!({"firstWrong": first_wrong, "file": file});
    std::fs::write(folder.join(format!("{name}.json")), kept.to_string()).expect("a file is written");
}

pub fn answer(network: &Network, change: &Value) -> ReceiptFile {
    let mut body = json!({
        "model": "assay-tiny", "temperature": 0, "max_tokens": 12, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Tell me a long story."}],
    });
    for (key, value) in change.as_object().expect("a change is an object") {
        body[key] = value.clone();
    }
    let mut http = network.http();
    let (_, reply) = http.chat(&body);
    let id = reply["assay"]["receipt"].as_str().expect("a receipt id").to_owned();
    let (status, file) = http.get(&format!("/v1/receipts/{id}"));
    assert_eq!(status, 200, "{file}");
    serde_json::from_value(file).expect("a receipt file")
}

#[test]
fn a_dispute_begins_by_itself_survives_a_kill_and_is_judged() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let network = Network::start(dir, &["--providers", "1"]);
    let honest = answer(&network, &json!({}));
    let right = answer(&network, &json!({"max_tokens": 5}));
    let by_chance = answer(&network, &json!({"temperature": 1, "seed": 5}));
    network.stop();
    let key = provider_key(dir);
    let wrong = forged(honest.clone(), &key);
    let id = wrong.id.to_string();
    keep(dir, &id, &wrong, RIGHT_TOKENS);
    // What no court judges, what is right after all, and what is no receipt.
    keep(dir, &by_chance.id.to_string(), &forged(by_chance.clone(), &key), RIGHT_TOKENS);
    keep(dir, "right", &right, RIGHT_TOKENS);
    keep(dir, "changed", &ReceiptFile { chain_id: 1, ..wrong.clone() }, RIGHT_TOKENS);
    keep(dir, "ending", &wrong, wrong.parts[0].output.len());
    std::fs::write(dir.join("convictions/damaged.json"), "{").expect("a file is written");

    let network = Network::start(dir, &["--providers", "1"]);
    let is_open = |record: &Value| {
        record["receipt"] == json!(id) && record["transactions"].as_array().is_some_and(|sent| !sent.is_empty())
    };
    let opened = (0..LOOKS_MAX).find(|_| records(dir, &[]).iter().any(is_open));
    assert!(opened.is_some(), "the dispute was never opened: {:?}", records(dir, &[]));
    network.kill();
    let network = Network::start(dir, &["--providers", "1"]);
    let judged = records(dir, &[&id, "--wait"]).remove(0);
    assert_eq!(judged["stage"], "convicted", "{judged}");
    assert_eq!((&judged["bond"], &judged["slashed"]), (&json!("0"), &json!("100000000")), "{judged}");
    assert_eq!(judged["refunded"], json!(wrong.parts[0].signed.receipt.charged), "the payer got the price back");
    let sent: Vec<&str> = judged["transactions"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|s| s["says"].as_str().expect("a step"))
        .collect();
    assert!(sent.iter().filter(|says| says.starts_with("challenges")).count() <= 1, "one bond: {sent:?}");
    assert!(sent.last().is_some_and(|says| says.starts_with("the challenger takes its bond")), "{sent:?}");

    for (name, why) in [
        (by_chance.id.to_string().as_str(), "by chance"),
        ("right", "re-derives every token"),
        ("changed", "proves nothing"),
        ("ending", "no court judges that"),
    ] {
        let record = records(dir, &[name, "--wait"]).remove(0);
        assert_eq!((&record["stage"], &record["bond"]), (&json!("refused"), &json!("0")), "{record}");
        assert!(record["says"].as_str().is_some_and(|says| says.contains(why)), "{record}");
    }
    let (status, out, _) = disputes(dir, &[]);
    assert!(status == 0 && out.contains("convicted") && out.contains("not disputed"), "{out}");
    let (status, out, _) = disputes(dir, &[&id]);
    assert!(status == 0 && out.contains("dispute 0x") && out.contains(" gas in "), "{out}");
    let (status, _, err) = disputes(dir, &["0xnobody"]);
    assert!(status == 1 && err.contains("0xnobody"), "{err}");
    let rpc = network.chain();
    let chain = ["chain", "status", "--json", "--rpc", &rpc, "--network"];
    let output = assay().args(chain).arg(dir.join("network.json")).output().expect("assay runs");
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(status["providers"][0]["stake"], "400000000", "{status}");
    network.stop();
}

#[test]
fn bonds_stay_within_their_limit_and_disputes_can_be_off() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let network = Network::start(dir, &["--providers", "1", "--no-dispute"]);
    let honest = answer(&network, &json!({}));
    network.stop();
    let wrong = forged(honest, &provider_key(dir));
    let id = wrong.id.to_string();
    keep(dir, &id, &wrong, RIGHT_TOKENS);
    let mut command = assay();
    command.stderr(std::fs::File::create(dir.join("log")).expect("a file"));
    let network = Network::start_as(command, dir, &["--providers", "1", "--bond-limit", "24999999"]);
    let waits = |record: &Value| record["says"].as_str().is_some_and(|says| says.contains("the limit is 24999999"));
    let found = (0..LOOKS_MAX).find(|_| records(dir, &[]).first().is_some_and(waits));
    assert!(found.is_some(), "{:?}", records(dir, &[]));
    let record = records(dir, &[&id]).remove(0);
    assert_eq!((&record["stage"], &record["bond"], &record["dispute"]), (&json!("waiting"), &json!("0"), &Value::Null));
    network.stop();
    let log = std::fs::read_to_string(dir.join("log")).expect("a log");
    assert!(log.contains("the limit is 24999999"), "{log}");

    let (status, _, err) = disputes(&dir.join("nowhere"), &[]);
    assert!(status == 1 && err.contains("no network has run in"), "{err}");
    // A person takes the kept proof to court, as before.
    let output = assay().args(["verify"]).arg(dir.join("convictions").join(format!("{id}.json"))).output();
    assert!(output.expect("assay runs").status.success(), "the statements hold");
}

/// JSON-RPC over the test's HTTP client.
fn rpc(chain: &str, method: &str, params: Value) -> Value {
    let mut http = Http::connect(chain.trim_start_matches("http://"), None);
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
    let (status, reply) = http.post("/", &body);
    assert_eq!(status, 200, "{reply}");
    reply["result"].clone()
}

fn number(hex: &Value) -> u64 {
    u64::from_str_radix(hex.as_str().expect("a number").trim_start_matches("0x"), 16).expect("hex")
}

/// The whole game over a long answer, both sides by their programs, with what it costs in gas and memory.
#[test]
fn a_dispute_over_a_thousand_tokens_stays_within_its_gas_and_memory() {
    const TOKENS: usize = 1_000;
    const GAS_MAX: u64 = 1_300_000;
    const MEMORY_MAX: u64 = 200_000_000;
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let network = Network::start(dir, &["--providers", "1", "--no-audit"]);
    let honest = answer(&network, &json!({"max_tokens": TOKENS}));
    assert_eq!(honest.parts[0].output.len(), TOKENS);
    let wrong = forged_at(honest, &provider_key(dir), TOKENS - 100);
    let file = dir.join("wrong.json");
    std::fs::write(&file, serde_json::to_string(&wrong).expect("JSON")).expect("a file is written");
    let url = network.chain();
    let output = assay()
        .args([
            "dispute",
            "--json",
            "--no-withdraw",
            "--no-cache",
            "--model",
            "assay-tiny",
            "--rpc",
            &url,
            "--key-file",
        ])
        .arg(dir.join("gateway.key"))
        .arg(&file)
        .output()
        .expect("assay runs");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let end = lines.last().expect("an end");
    assert_eq!(end["result"], "convicted", "{text}{}", String::from_utf8_lossy(&output.stderr));

    // Every transaction of both sides, from the challenge to the punishment: what the trial was called with.
    let sent: Vec<&Value> =
        lines.iter().map(|line| &line["transaction"]).filter(|sent| sent["hash"].is_string()).collect();
    let opened = lines.iter().position(|line| line["says"].as_str().is_some_and(|says| says.starts_with("challenges")));
    let first = &lines[opened.expect("a challenge")]["transaction"];
    let trial = rpc(&url, "eth_getTransactionByHash", json!([first["hash"]]))["to"].clone();
    let last = sent.iter().filter_map(|sent| sent["block"].as_u64()).max().expect("blocks");
    let mut gas = 0;
    for block in first["block"].as_u64().expect("a block")..=last {
        let receipts = rpc(&url, "eth_getBlockReceipts", json!([format!("{block:#x}")]));
        gas += receipts
            .as_array()
            .expect("receipts")
            .iter()
            .filter(|r| r["to"] == trial)
            .map(|r| number(&r["gasUsed"]))
            .sum::<u64>();
    }
    let model = std::fs::metadata(shipped("assay-tiny-q8_0.gguf")).expect("the model").len();
    let peak = end["peakBytes"].as_u64().expect("this system says it");
    println!(
        "1,000 tokens: {gas} gas of both sides; the challenger took {} MB over the model",
        (peak - model) / 1_000_000
    );
    assert!(gas > 0 && gas <= GAS_MAX, "{gas} gas:\n{text}");
    assert!(peak - model <= MEMORY_MAX, "{peak} bytes");
    network.stop();
}
