//! What a provider has earned, and how its operator gets it.

use crate::support::{Network, assay};
use serde_json::{Value, json};
use std::path::Path;

fn run(dir: &Path, args: &[&str]) -> Value {
    let output = assay().args(args).args(["--json", "--dir"]).arg(dir).output().expect("assay runs");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one line of JSON")
}

fn number(value: &Value) -> u128 {
    value.as_str().unwrap_or_else(|| panic!("{value} is no amount")).parse().expect("an amount")
}

/// Charged, claimed and claimable, over all channels of all providers.
fn sums(earnings: &Value) -> [u128; 3] {
    let channels = earnings.as_array().unwrap().iter().flat_map(|provider| provider["channels"].as_array().unwrap());
    let mut sums = [0; 3];
    for channel in channels {
        let models: u128 = channel["models"].as_array().unwrap().iter().map(|model| number(&model["charged"])).sum();
        assert_eq!(models, number(&channel["charged"]), "{channel}");
        for (sum, name) in sums.iter_mut().zip(["charged", "claimed", "claimable"]) {
            *sum += number(&channel[name]);
        }
    }
    sums
}

/// The four receipts, as files that can be verified and as a table.
fn check_export(dir: &Path) {
    let export = |args: &[&str]| {
        let output = assay().args(["receipts", "export", "--dir"]).arg(dir).args(args).output().expect("assay runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let files = export(&["--from", "2020-01-01"]);
    assert_eq!(files.lines().count(), 4);
    for line in files.lines() {
        let path = dir.join("exported.json");
        std::fs::write(&path, line).expect("a file");
        let verified = assay().arg("verify").arg(&path).output().expect("assay runs");
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    }
    let table = export(&["--format", "csv"]);
    let (head, lines) = table.split_once('\n').expect("a head");
    assert_eq!(lines.lines().count(), 4);
    assert!(lines.lines().all(|line| line.split(',').count() == head.split(',').count()), "{table}");
    assert_eq!(export(&["--to", "2020-01-01T00:00:00Z"]), "");
}

#[test]
fn what_was_earned_is_shown_and_withdrawn_beside_the_running_providers() {
    let dir = tempfile::tempdir().expect("a folder");
    let network = Network::start(dir.path(), &[]);
    for seed in 0..4 {
        let body = json!({
            "model": "assay-tiny", "messages": [{"role": "user", "content": "Count."}], "seed": seed,
            "max_tokens": 70, "ignore_eos": true,
        });
        assert!(!network.http().chat(&body).0.is_empty());
    }
    check_export(dir.path());
    let [charged, claimed, claimable] = sums(&run(dir.path(), &["earnings"]));
    assert!(charged > 0 && claimed + claimable == charged, "{charged} {claimed} {claimable}");

    let to = "0x00000000000000000000000000000000000000fe";
    let sent = run(dir.path(), &["withdraw", "--to", to]);
    let of = |name: &str| sent.as_array().unwrap().iter().map(|row| number(&row[name])).sum::<u128>();
    assert_eq!(of("claimed"), claimable);
    // The keys may hold more than what was earned.
    assert!(of("sent") >= charged, "{sent}");
    let again = run(dir.path(), &["earnings"]);
    assert_eq!(sums(&again), [charged, charged, 0]);
    assert!(again.as_array().unwrap().iter().all(|provider| number(&provider["wallet"]) == 0), "{again}");

    // The network goes on, and without it there is what was noted.
    let body = json!({"model": "assay-tiny", "messages": [{"role": "user", "content": "Again."}], "max_tokens": 8});
    assert!(network.http().chat(&body).1["usage"].is_object());
    network.stop();
    let noted = run(dir.path(), &["earnings"]);
    assert!(noted.as_array().unwrap().iter().all(|provider| provider["fromChain"] == false), "{noted}");
    let [after, claimed, _] = sums(&noted);
    assert!(after > charged && claimed == after, "{noted}");
}
