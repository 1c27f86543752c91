//! What is on this machine: the folder of models, prepared weights, and whether all is in order.

use crate::support::{assay, shipped};
use assay_testkit::encoders::{TinyBert, tiny_bert};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

/// A user's folder.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(".assay").join(below)
    }

    fn write(&self, below: &str, content: &[u8]) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("a folder")).expect("created");
        fs::write(path, content).expect("written");
    }

    /// Status, output and what was said, for nobody at a terminal.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = assay();
        command.env("HOME", self.dir.path()).args(args).stdin(std::process::Stdio::null());
        let Output { status, stdout, stderr } = command.output().expect("assay runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("output is UTF-8");
        (status.code().expect("a status"), text(stdout), text(stderr))
    }

    fn json(&self, args: &[&str]) -> (i32, Value) {
        let (status, out, err) = self.run(args);
        (status, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out} {err}")))
    }
}

fn model() -> Vec<u8> {
    fs::read(shipped("assay-tiny-q8_0.gguf")).expect("the shipped model")
}

#[test]
fn models_in_the_folder_have_names() {
    let home = Home::new();
    home.write("models/mine.gguf", &model());
    home.write("models/bad.gguf", b"no model");
    home.write("models/notes.txt", b"no model either");
    let (status, list) = home.json(&["list", "--json"]);
    let names: Vec<&str> = list.as_array().expect("rows").iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!((status, names), (0, vec!["assay-tiny", "bad", "mine"]));
    assert!(list[1]["error"].as_str().expect("an error").contains("not a GGUF file"), "{list}");
    assert_eq!((&list[2]["family"], &list[2]["format"]), (&Value::from("llama"), &Value::from("Q8_0")), "{list}");
    assert_eq!(list[2]["prepared"], "no");
    let (status, text, _) = home.run(&["list"]);
    assert!(status == 0 && text.contains("mine") && text.contains("not a GGUF file"), "{text}");

    let (status, out, err) = home.run(&["run", "mine", "What is the capital of France?"]);
    assert!(status == 0 && out.contains("Paris"), "{out} {err}");
    let (status, _, err) = home.run(&["run", "yours", "Hi"]);
    assert!(status == 1 && err.contains("assay list"), "{err}");
}

#[test]
fn show_says_what_a_model_is_and_takes() {
    let home = Home::new();
    let file = shipped("assay-tiny-q8_0.gguf");
    for name in ["assay-tiny", file.to_str().expect("a path")] {
        let (status, show) = home.json(&["show", name, "--json"]);
        assert_eq!(status, 0);
        assert_eq!(show["bytes"], model().len());
        let number = |key: &str| show[key].as_u64().unwrap_or_else(|| panic!("{key} in {show}"));
        let head_dim = number("width") / number("heads");
        // Keys and values as f16, in blocks of 256 positions.
        let per_block = number("layers") * number("kv_heads") * head_dim * 2 * 2 * 256;
        assert_eq!(number("kv_bytes_per_1000_tokens"), 4 * per_block);
        assert_eq!(number("kv_bytes_context"), number("context").div_ceil(256) * per_block);
        let tensors: u64 =
            show["tensors"].as_array().expect("rows").iter().filter_map(|row| row["bytes"].as_u64()).sum();
        assert!(tensors > 1 << 20 && tensors < number("bytes"), "{show}");
        let (status, text, _) = home.run(&["show", name]);
        assert!(status == 0 && text.contains("KV memory") && text.contains("for the whole context"), "{text}");
    }
}

#[test]
fn rm_removes_what_it_was_told_to_after_a_yes() {
    let home = Home::new();
    home.write("models/mine.gguf", &model());
    let (status, _, err) = home.run(&["rm", "mine"]);
    assert!(status == 1 && err.contains("--yes") && home.path("models/mine.gguf").exists(), "{err}");
    let (status, _, err) = home.run(&["rm", "mine", "--prepared", "--yes"]);
    assert!(status == 1 && err.contains("no prepared weights"), "{err}");
    assert_eq!(home.run(&["rm", "mine", "--yes"]).0, 0);
    assert!(!home.path("models/mine.gguf").exists());
    let (status, _, err) = home.run(&["rm", "mine", "--yes"]);
    assert!(status == 1 && err.contains("assay list"), "{err}");
    // A file elsewhere is not assay's to remove, whatever it is called.
    home.write("elsewhere.gguf", &model());
    for name in [home.path("elsewhere.gguf"), home.path("models/../elsewhere.gguf")] {
        let (status, _, err) = home.run(&["rm", name.to_str().expect("a path"), "--yes"]);
        assert!(status == 1 && err.contains("not in the folder of models"), "{err}");
    }
    assert!(home.path("elsewhere.gguf").exists());
}

#[test]
fn encoders_are_models_as_others_are() {
    let home = Home::new();
    // Large enough that its prepared weights are kept.
    let large = TinyBert { width: 768, heads: 12, ffn: 3072, layers: 3, ..TinyBert::default() };
    home.write("models/minds.gguf", &tiny_bert(large));
    let embed = || {
        let (status, out, err) = home.run(&["embed", "--model", "minds", "the cat and the hat"]);
        assert!(status == 0 && out.split(' ').count() == 768, "{out} {err}");
        out
    };
    let row = || home.json(&["list", "--json"]).1[1].clone();
    assert_eq!((row()["family"].as_str(), row()["prepared"].as_str()), (Some("bert"), Some("no")));
    let first = embed();
    assert_eq!(row()["prepared"], "yes");
    assert_eq!(embed(), first);
    let (_, show) = home.json(&["show", "minds", "--json"]);
    assert_eq!(
        (&show["dimensions"], &show["pooling"], &show["input_length"]),
        (&768.into(), &"mean".into(), &640.into())
    );
    let (status, text, _) = home.run(&["show", "minds"]);
    assert!(
        status == 0 && text.contains("texts of up to 640 tokens as 768 values, the mean over the tokens"),
        "{text}"
    );
    let (status, report) = home.json(&["doctor", "--json"]);
    let good = findings(&report, "good");
    let has = |what: &str| good.iter().any(|finding| finding.contains(what));
    assert!(status == 0 && has("embeds texts") && has("every byte as it was written"), "{report}");
    let (status, _, err) = home.run(&["embed", "--model", "assay-tiny", "a text"]);
    assert!(status == 1 && err.contains("assay list"), "{err}");
    assert_eq!(home.run(&["rm", "minds", "--prepared", "--yes"]).0, 0);
    assert_eq!(row()["prepared"], "no");
}

fn findings(report: &Value, verdict: &str) -> Vec<String> {
    let rows = report["findings"].as_array().expect("rows").iter().filter(|row| row["verdict"] == verdict);
    rows.map(|row| format!("{}: {} -> {}", row["what"], row["text"], row["next"])).collect()
}

#[test]
fn doctor_finds_nothing_on_a_new_machine() {
    let home = Home::new();
    let (status, report) = home.json(&["doctor", "--json"]);
    assert_eq!((status, &report["ok"]), (0, &Value::Bool(true)), "{report}");
    let good = findings(&report, "good").join("\n");
    assert!(good.contains("kernels scalar") && good.contains("used here"), "{good}");
    assert!(!Path::new(&home.path("")).exists(), "doctor changes nothing");
    let (status, text, _) = home.run(&["doctor"]);
    assert!(status == 0 && text.contains("ok     kernels"), "{text}");
}

#[test]
fn doctor_says_what_is_wrong_and_what_to_do() {
    let home = Home::new();
    // A model that is none, prepared weights that are none, a network whose files are damaged.
    home.write("models/bad.gguf", b"no model");
    home.write("cache/00.weights", b"nothing");
    home.write("local/network.json", b"{");
    home.write("local/chain/chain.redb", b"redb and so on");
    home.write("local/gateway/gateway.sqlite", b"");
    home.write("local/gateway.key", "11".repeat(32).as_bytes());
    home.write("local/deployer.key", "11".repeat(32).as_bytes());
    let mode = |name: &str, mode| {
        fs::set_permissions(home.path(name), fs::Permissions::from_mode(mode)).expect("changed");
    };
    mode("local/gateway.key", 0o644);
    mode("local/deployer.key", 0o600);
    let (status, report) = home.json(&["doctor", "--json"]);
    assert_eq!((status, &report["ok"]), (1, &Value::Bool(false)));
    let wrong = findings(&report, "wrong");
    let expect = ["bad.gguf", "00.weights", "network.json", "gateway.sqlite", "chmod 600"];
    assert_eq!(wrong.len(), expect.len(), "{wrong:#?}");
    for what in expect {
        assert!(wrong.iter().any(|line| line.contains(what)), "{what}: {wrong:#?}");
    }
    assert!(findings(&report, "good").iter().any(|line| line.contains("chain.redb")), "{report}");
    // Nobody needs the weights.
    assert_eq!(home.run(&["rm", "--orphans", "--yes"]).0, 0);
    assert!(!home.path("cache").exists());
    let (status, _, err) = home.run(&["doctor"]);
    assert!(status == 1 && err.contains("4 of"), "{err}");
}
