//! The court of a running network, and networks on a chain that others run.

use crate::support::{Network, assay};
use serde_json::Value;
use std::path::Path;

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
    assert_eq!(contracts.len(), 8, "{out}");
    assert!(contracts.iter().all(|contract| contract["hasCode"] == true), "{out}");
    assert_eq!((&report["court"]["canSlash"], &report["finalityDepth"]), (&Value::Bool(true), &0.into()));
    assert_eq!(report["providers"][0]["stake"], "500000000", "{out}");
    let token = contracts[0]["address"].as_str().expect("an address");

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
