//! The court of a running network, and networks on a chain that others run.

use crate::support::{Network, assay, signal};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

fn chain(args: &[&str]) -> (i32, String, String) {
    let output = assay().arg("chain").args(args).output().expect("assay runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
    (output.status.code().expect("a status"), text(output.stdout), text(output.stderr))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn shown(path: &Path) -> &str {
    path.to_str().expect("a path")
}

#[test]
fn a_network_has_a_court_that_can_slash_and_another_can_be_deployed_beside_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "1"]);
    let file = dir.path().join("network.json");
    let rpc = network.chain();
    let (status, out, err) = chain(&["status", "--rpc", &rpc, "--network", shown(&file), "--json"]);
    assert_eq!(status, 0, "{err}");
    let report = json(&out);
    let contracts = report["contracts"].as_array().expect("a list");
    assert_eq!(contracts.len(), 9, "{out}");
    assert!(contracts.iter().all(|contract| contract["hasCode"] == true), "{out}");
    assert_eq!((&report["court"]["canSlash"], &report["finalityDepth"]), (&Value::Bool(true), &0.into()));
    assert_eq!(report["providers"][0]["stake"], "500000000", "{out}");
    let token = contracts[0]["address"].as_str().expect("an address");

    // Cheating does not pay under the parameters that hold, and would if all auditors could be bought.
    let doctor = ["doctor", "--economics", "--json", "--rpc", &rpc, "--dir", shown(dir.path())];
    let output = assay().args(doctor).output().expect("assay runs");
    let found = json(&String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success() && found["ok"] == true, "{found}");
    assert_eq!((&found["terms"]["penalty"], &found["policy"]["auditFloorPpm"]), (&"100000000".into(), &20_000.into()));
    assert_eq!(found["checks"].as_array().map(Vec::len), Some(7), "{found}");
    let output = assay().args(doctor).args(["--collusion", "1000000"]).output().expect("assay runs");
    let found = json(&String::from_utf8_lossy(&output.stdout));
    assert!(!output.status.success() && found["ok"] == false, "{found}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cheating may pay"), "{output:?}");

    // A second network on the same chain with the same coin.
    let (key, second) = (dir.path().join("deployer.key"), dir.path().join("second.json"));
    let deploy = ["deploy", "--rpc", &rpc, "--key-file", shown(&key), "--network", shown(&second), "--token", token];
    let (status, out, err) = chain(&[&deploy[..], &["--bond", "7", "--move-window", "600"]].concat());
    assert_eq!(status, 0, "{err}");
    assert!(err.contains("about") && err.contains("bond 7") && err.contains("trial"), "{err}");
    let (status, out_2, err) = chain(&["status", "--rpc", &rpc, "--network", shown(&second)]);
    assert_eq!(status, 0, "{err}");
    assert!(out_2.contains("court: bond 7000000") && out_2.contains("600 s a move"), "{out_2}");
    assert!(!out_2.contains("provider 0x"), "nobody is registered there: {out_2}");

    let (status, _, err) = chain(&deploy);
    assert_ne!(status, 0, "{out}");
    assert!(err.contains("names a network") && err.contains("--network"), "{err}");
    let (status, _, err) = chain(&["status", "--rpc", &rpc, "--network", "nowhere.json"]);
    assert_ne!(status, 0);
    assert!(err.contains("nowhere.json is not there"), "{err}");
    let third = dir.path().join("third.json");
    let (status, _, err) = chain(&[&deploy[..5], &["--network", shown(&third), "--move-window", "99999"]].concat());
    assert_ne!(status, 0);
    assert!(err.contains("--move-window is 1 to 12342"), "{err}");
    assert!(!third.exists(), "nothing was deployed");
    network.stop();
}

/// The lines of a command that says what it does in JSON, and its status. `on` may act on each line as it comes.
fn narrated(args: &[&str], mut on: impl FnMut(&Value)) -> (i32, Vec<Value>) {
    let mut child = assay().args(args).stdout(Stdio::piped()).spawn().expect("assay starts");
    let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut lines = vec![];
    for line in stdout.lines() {
        let line = json(&line.expect("a line"));
        on(&line);
        lines.push(line);
    }
    (child.wait().expect("the child can be reaped").code().expect("a status"), lines)
}

fn says(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{}\n", line["says"].as_str().unwrap_or_default())).collect()
}

#[test]
fn a_right_answer_is_not_disputed_and_is_defended_by_a_provider_that_was_killed() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &["--providers", "1"]);
    let mut http = network.http();
    let body = serde_json::json!({
        "model": "assay-tiny", "temperature": 0, "max_tokens": 20,
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
    });
    let mut reply = http.send("POST", "/v1/chat/completions", body.to_string().as_bytes());
    assert_eq!(reply.status, 200);
    let id = reply.header("x-assay-receipt").expect("a receipt id").to_owned();
    reply.text();
    // The answer may be out a moment before its receipt can be had; each try is a request of its own.
    let receipt = (0..10_000).map(|_| http.get(&format!("/v1/receipts/{id}"))).find(|(status, _)| *status == 200);
    let (_, receipt) = receipt.expect("the receipt of an answer that is complete");
    let path = dir.path().join("receipt.json");
    std::fs::write(&path, receipt.to_string()).expect("the receipt is written");

    // The gateway's key has test coins.
    let key = dir.path().join("gateway.key");
    let rpc = network.chain();
    let model = ["--model", "assay-tiny", "--rpc", &rpc, "--key-file", shown(&key), "--json"];
    let dispute = [&["dispute", shown(&path)], &model[..]].concat();
    let (status, lines) = narrated(&dispute, |_| ());
    assert_eq!((status, &lines.last().expect("an end")["result"]), (1, &Value::from("not disputed")), "{lines:?}");
    assert!(says(&lines).contains("the answer is right: all"), "{lines:?}");

    let provider = network.providers().remove(0);
    let pid = network.pid(&provider);
    let (status, lines) = narrated(&[&dispute[..], &["--force"]].concat(), |line| {
        if line["says"].as_str().is_some_and(|says| says.starts_with("challenges")) {
            signal("KILL", pid);
        }
    });
    assert_eq!((status, &lines.last().expect("an end")["result"]), (1, &Value::from("lost")), "{lines:?}");
    assert!(says(&lines).contains("finds nothing wrong"), "{lines:?}");
    let (_, out, _) = chain(&["status", "--rpc", &rpc, "--network", shown(&dir.path().join("network.json")), "--json"]);
    assert_eq!(json(&out)["providers"][0]["stake"], "500000000", "an honest provider keeps its stake");
    network.stop();
}

#[test]
fn a_provider_of_four_bits_for_eight_is_caught_judged_and_slashed() {
    let dir = tempfile::tempdir().expect("a folder");
    let (status, lines) = narrated(&["demo", "cheat", "--json", "--dir", shown(&dir.path().join("demo"))], |_| ());
    let text = says(&lines);
    assert_eq!(status, 0, "{text}");
    for part in [
        "runs weights of four bits",
        "signed a wrong answer",
        "challenges",
        "convicts: from these operands",
        "the dispute took",
        "the cheat's stake: 500000000 before, 400000000 now",
        "has the court pay",
        "base units back and credits the user's key",
        "the replay finds every token right",
        "done in",
    ] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    let transactions: Vec<&Value> = lines.iter().filter(|line| line["transaction"]["hash"].is_string()).collect();
    assert!(transactions.len() >= 8, "each step has its transaction:\n{text}");
    assert!(!text.contains("took 0 gas"), "{text}");
    // The proof that is left, also in the form in which a gateway's referee keeps one.
    let proof = json(&std::fs::read_to_string(dir.path().join("demo/receipt.json")).expect("the receipt is kept"));
    let kept = dir.path().join("kept.json");
    std::fs::write(&kept, serde_json::json!({"firstWrong": 0, "file": proof}).to_string()).expect("a file is written");
    let output = assay().args(["verify", shown(&kept), "--model", "assay-tiny"]).output().expect("assay runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(1) && text.contains("signed a wrong answer"), "{text}");
    let (status, _, err) = {
        let output = assay().args(["demo", "cheat", "--dir", shown(dir.path())]).output().expect("assay runs");
        (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(status, Some(1));
    assert!(err.contains("is not empty") && err.contains("--dir"), "{err}");
}
