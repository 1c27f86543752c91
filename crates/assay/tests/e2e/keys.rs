//! `assay key`, `usage`, `ps` and `logs` beside a running network: what they say has happened when they return.

use crate::support::{Http, Network, assay};
use serde_json::{Value, json};
use std::path::Path;

/// Status, standard output and standard error of a command on the network's folder.
fn run(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let output = assay().args(args).arg("--dir").arg(dir).output().expect("assay runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    (output.status.code().expect("a status"), text(output.stdout), text(output.stderr))
}

fn json_of(dir: &Path, args: &[&str]) -> Value {
    let (status, out, err) = run(dir, &[args, &["--json"]].concat());
    assert_eq!(status, 0, "{err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

#[test]
fn keys_are_made_used_counted_and_revoked() {
    let dir = tempfile::tempdir().expect("a folder");
    let dir = dir.path();
    let (status, _, err) = run(dir, &["key", "list"]);
    assert!(status == 1 && err.contains("no gateway has run in") && err.contains("assay up"), "{err}");

    let network = Network::start(dir, &["--providers", "1"]);
    let made = json_of(dir, &["key", "create", "ci", "--rpm", "3", "--budget", "1000000", "--expires-in", "30d"]);
    assert_eq!((&made["state"], &made["budget"]), (&json!("works"), &json!("1000000")));
    let (status, _, err) = run(dir, &["key", "create", "ci"]);
    assert!(status == 1 && err.contains("there is a key named \"ci\""), "{err}");

    let key = made["key"].as_str().expect("the key");
    let mut http = Http::connect(&network.gateway(), Some(key));
    let body = json!({"model": "assay-tiny", "messages": [{"role": "user", "content": "Secret capital of France?"}],
        "max_tokens": 20});
    let (_, reply) = http.chat(&body);
    let receipt = reply["assay"]["receipt"].as_str().expect("a receipt");
    let cost = reply["assay"]["cost"].as_str().expect("a cost");
    let listed = json_of(dir, &["key", "list"]);
    assert_eq!((&listed[1]["name"], &listed[1]["spent"]), (&json!("ci"), &json!(cost)));

    let (status, csv, err) = run(dir, &["usage", "--csv", "--key", "ci"]);
    assert_eq!(status, 0, "{err}");
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "time,receipt,key_id,key,model_id,prompt_tokens,output_tokens,charged_base_units");
    assert_eq!(lines.len(), 2, "{csv}");
    let fields: Vec<&str> = lines[1].split(',').collect();
    assert_eq!((fields[1], fields[3], fields[7]), (receipt, "\"ci\"", cost));
    let tokens = reply["usage"]["prompt_tokens"].to_string();
    assert_eq!(fields[5], tokens);
    assert_eq!(json_of(dir, &["usage"])[0]["charged"], cost);

    let (status, log, err) = run(dir, &["logs", "-n", "5"]);
    assert_eq!(status, 0, "{err}");
    assert!(log.contains(receipt) && !log.contains("Secret"), "{log}");
    assert_eq!(json_of(dir, &["ps"]), json!([]));

    // A key that may do less does less at once, and one that is revoked nothing.
    json_of(dir, &["key", "set", "ci", "--budget", "1", "--without", "rpm,expiry"]);
    let (status, refused) = http.post("/v1/chat/completions", &body);
    assert_eq!((status, &refused["error"]["code"]), (429, &json!("insufficient_quota")), "{refused}");
    let (status, out, err) = run(dir, &["key", "revoke", "ci"]);
    assert!(status == 0 && out.contains("does not work any more"), "{out}{err}");
    assert_eq!(http.post("/v1/chat/completions", &body).0, 401);
    let (status, _, err) = run(dir, &["key", "revoke", "ci"]);
    assert!(status == 1 && err.contains("no key \"ci\" works"), "{err}");
    network.stop();
    assert_eq!(json_of(dir, &["key", "list"])[1]["state"], "revoked");
    let (status, _, err) = run(dir, &["ps"]);
    assert!(status == 1 && err.contains("no gateway runs"), "{err}");
}
