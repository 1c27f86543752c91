//! Disputes that begin by themselves: of a network whose referee has kept a wrong answer.

use crate::support::{Network, assay};
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
fn forged(mut file: ReceiptFile, key: &PrivateKeySigner) -> ReceiptFile {
    let domain = receipt_domain(file.chain_id, file.registry);
    let part = &mut file.parts[0];
    part.output[RIGHT_TOKENS] ^= 1;
    part.signed.receipt.response_hash = response_hash(&part.output, part.finish);
    let digest = part.signed.receipt.digest(&domain);
    part.signed.signature = Signature::new(&key.sign_hash_sync(&digest).expect("a key signs"));
    file
}

fn keep(dir: &Path, name: &str, file: &ReceiptFile, first_wrong: usize) {
    let folder = dir.join("convictions");
    std::fs::create_dir_all(&folder).expect("a folder");
    let kept = json!({"firstWrong": first_wrong, "file": file});
    std::fs::write(folder.join(format!("{name}.json")), kept.to_string()).expect("a file is written");
}

fn answer(network: &Network, change: &Value) -> ReceiptFile {
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
    let key = std::fs::read_to_string(dir.join("provider-1/provider.key")).expect("the provider's key");
    let key: PrivateKeySigner = key.trim().parse().expect("a key");
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
    let is_open = |record: &Value| record["transactions"].as_array().is_some_and(|sent| !sent.is_empty());
    let opened = (0..LOOKS_MAX).find(|_| records(dir, &[&id]).first().is_some_and(is_open));
    assert!(opened.is_some(), "the dispute was never opened: {:?}", records(dir, &[]));
    network.kill();
    let network = Network::start(dir, &["--providers", "1"]);
    let judged = records(dir, &[&id, "--wait"]).remove(0);
    assert_eq!(judged["stage"], "convicted", "{judged}");
    assert_eq!((&judged["bond"], &judged["slashed"]), (&json!("0"), &json!("100000000")), "{judged}");
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
    let key = std::fs::read_to_string(dir.join("provider-1/provider.key")).expect("the provider's key");
    let wrong = forged(honest, &key.trim().parse().expect("a key"));
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
