//! `assay audit`: replays answers that a gateway's providers gave, on any machine that has the model.
//!
//! For each task: replay with one prefill, commit to what was found, learn which positions to show, show them. What was
//! found is on disk before the next task. A task that cannot be replayed is left to time out.

use crate::load;
use crate::stop::StopSignals;
use crate::{say, start_logging, state};
use alloy_signer_local::PrivateKeySigner;
use anyhow::{Context, bail, ensure};
use assay_chain::DigestSigner;
use assay_engine::{LoadOptions, Model, Runner};
use assay_types::{AuditBeacon, AuditCommit, AuditEnd, AuditLease, AuditReply, AuditTask, AuditVerdict, B256, ModelId};
use assay_verify::audit::examine;
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Between two questions for a task when there was none.
const POLL: Duration = Duration::from_millis(500);
/// Longest wait after a gateway that does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A gateway replays what an auditor accuses somebody of, before it replies.
const REPLY_TIME_MAX: Duration = Duration::from_secs(120);
/// Largest reply: a task with a long prompt, or a receipt file.
const REPLY_BYTES_MAX: u64 = 64 << 20;

/// Arguments of `assay audit`.
#[derive(Args, Clone, Debug)]
pub struct AuditArgs {
    /// The gateway whose answers are audited
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:7411")]
    gateway: String,
    /// The model that they are from: a GGUF file, a name that `assay list` shows, or assay-tiny
    #[arg(long, value_name = "FILE_OR_NAME", default_value = crate::shipped::NAME)]
    model: String,
    /// Folder for the auditor's key and records [default: ~/.assay/auditor]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Chain on which the gateway's receipts are good
    #[arg(long, value_name = "ID", default_value_t = assay_chain::LOCAL_CHAIN_ID)]
    chain_id: u64,
    /// Threads for the model
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    #[command(flatten)]
    cache: load::CacheArgs,
    /// Stop when standard input ends: for whoever starts this as a part of something
    #[arg(long, hide = true)]
    child: bool,
}

/// Runs until TERM or Ctrl-C; one JSON line when it is ready, one for each audit, one at the end.
pub fn run(args: AuditArgs) -> anyhow::Result<()> {
    start_logging();
    ensure!((1..=256).contains(&args.threads), "--threads is 1 to 256");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(audit(args));
    // A replay or a read of standard input that is under way is not waited for: its task times out at the gateway.
    runtime.shutdown_background();
    result
}

async fn audit(args: AuditArgs) -> anyhow::Result<()> {
    let mut signals = StopSignals::install()?;
    let is_child = args.child;
    let mut auditor = tokio::task::spawn_blocking(move || Auditor::open(&args)).await??;
    let id = format!("{:#x}", auditor.key.address());
    say(&json!({"ready": true, "id": id, "endpoint": ""}).to_string());
    let (running, stop) = channel();
    let work = tokio::task::spawn_blocking(move || {
        auditor.work(&stop);
        auditor.done
    });
    if is_child {
        signals.wait_as_child().await
    } else {
        signals.wait().await
    }
    drop(running);
    // What is nearly done is done.
    let done = tokio::time::timeout(Duration::from_secs(2), work).await;
    let done = done.ok().and_then(Result::ok);
    say(&json!({"stopped": true, "audits": done}).to_string());
    Ok(())
}

struct Auditor {
    gateway: Gateway,
    chain_id: u64,
    key: PrivateKeySigner,
    signer: DigestSigner,
    model: Arc<Model>,
    model_id: ModelId,
    runner: Runner,
    records: File,
    records_path: PathBuf,
    done: u64,
}

impl Auditor {
    fn open(args: &AuditArgs) -> anyhow::Result<Self> {
        let gateway = Gateway::new(&args.gateway)?;
        let dir = match &args.dir {
            Some(dir) => dir.clone(),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set; say where with --dir")?)
                .join(".assay/auditor"),
        };
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let key = state::load_or_create_key(&dir.join("auditor.key"))?;
        let records_path = dir.join("audits.jsonl");
        let records = File::options().create(true).append(true).open(&records_path);
        let records = records.with_context(|| format!("cannot write {}", records_path.display()))?;
        let opened = load::open(&args.model)?;
        let model_id = opened.manifest()?.model_id();
        let model = opened.load(&args.cache, LoadOptions { context_max: usize::MAX })?;
        Ok(Self {
            gateway,
            chain_id: args.chain_id,
            signer: DigestSigner::new(&key),
            key,
            model,
            model_id,
            runner: Runner::new(args.threads),
            records,
            records_path,
            done: 0,
        })
    }

    /// Until the other end of `stop` is gone.
    fn work(&mut self, stop: &Receiver<()>) {
        let (mut pause, mut trouble) = (POLL, String::new());
        loop {
            let wait = match self.turn() {
                Ok(was_busy) => {
                    (pause, trouble) = (POLL, String::new());
                    if was_busy { Duration::ZERO } else { POLL }
                }
                Err(error) => {
                    let now = crate::one_line(&error);
                    if now != trouble {
                        tracing::warn!(error = now, "an audit could not be made");
                    }
                    trouble = now;
                    pause = (pause * 2).min(PAUSE_MAX);
                    pause
                }
            };
            if stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    /// One task; `false` if there was none.
    fn turn(&mut self) -> anyhow::Result<bool> {
        let auditor = self.key.address();
        let issued_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let signature = self.signer.sign(&AuditLease::digest(self.chain_id, auditor, issued_at));
        let lease = AuditLease { auditor, issued_at, signature };
        let Some(task) = self.gateway.post::<AuditTask>("/v1/audits/lease", &lease)? else { return Ok(false) };
        let examined = examine(&task, &self.model, self.model_id, &mut self.runner)
            .with_context(|| format!("task {}", task.id))?;
        let finding = examined.finding();
        let commitment = finding.commitment(self.chain_id, task.id, auditor);
        let commit = AuditCommit { auditor, commitment, signature: self.signer.sign(&commitment) };
        let path = format!("/v1/audits/{}/commit", task.id);
        let AuditBeacon { beacon } = self.gateway.post(&path, &commit)?.context("the gateway gives no beacon")?;
        let proof = examined.proof(task.id, auditor, beacon);
        let path = format!("/v1/audits/{}/proof", task.id);
        let reply: AuditReply = self.gateway.post(&path, &proof)?.context("the gateway gives no reply")?;
        self.record(&task, &proof.finding.verdict, commitment, beacon, &reply)?;
        Ok(true)
    }

    fn record(
        &mut self,
        task: &AuditTask,
        verdict: &AuditVerdict,
        commitment: B256,
        beacon: B256,
        reply: &AuditReply,
    ) -> anyhow::Result<()> {
        self.done += 1;
        let receipt = reply.file.as_ref().map(|file| file.id);
        let providers: Vec<String> =
            reply.file.iter().flat_map(|file| &file.parts).map(|part| part.provider.to_string()).collect();
        let line = json!({
            "task": task.id, "receipt": receipt, "providers": providers, "tokens": task.output.len(),
            "verdict": verdict, "commitment": commitment, "beacon": beacon, "digest": reply.digest, "end": reply.end,
        });
        let failed = || format!("cannot write {}", self.records_path.display());
        writeln!(self.records, "{line}").and_then(|()| self.records.sync_data()).with_context(failed)?;
        if reply.end == AuditEnd::Caught {
            // The receipt proves it to anyone.
            let file = reply.file.as_ref().context("a caught answer has a receipt")?;
            let path = self.records_path.with_file_name(format!("wrong-{}.json", file.id));
            state::write_json(&path, file)?;
        }
        Ok(())
    }
}

/// The gateway's HTTP, as much of it as an auditor needs.
struct Gateway {
    /// `HOST:PORT`.
    address: String,
}

impl Gateway {
    fn new(url: &str) -> anyhow::Result<Self> {
        let rest =
            url.strip_prefix("http://").with_context(|| format!("--gateway is {url:?}, expected http://HOST:PORT"))?;
        let address = rest.trim_end_matches('/').trim_end_matches("/v1");
        ensure!(address.contains(':') && !address.contains('/'), "--gateway is {url:?}, expected http://HOST:PORT");
        Ok(Self { address: address.to_owned() })
    }

    /// `None`: the gateway has nothing.
    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Option<T>> {
        let body = serde_json::to_vec(body)?;
        let unreachable = || format!("cannot reach the gateway at {}", self.address);
        let mut stream = TcpStream::connect(&self.address).with_context(unreachable)?;
        stream.set_read_timeout(Some(REPLY_TIME_MAX))?;
        stream.set_write_timeout(Some(REPLY_TIME_MAX))?;
        let (host, len) = (&self.address, body.len());
        // HTTP/1.0: the reply ends with the connection, and comes as it is.
        let head = format!(
            "POST {path} HTTP/1.0\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).with_context(unreachable)?;
        let mut reply = Vec::new();
        stream.take(REPLY_BYTES_MAX).read_to_end(&mut reply).context("the gateway's reply broke off")?;
        let end = reply.windows(4).position(|w| w == b"\r\n\r\n").context("the gateway's reply has no head")?;
        let (head, body) = (String::from_utf8_lossy(&reply[..end]), &reply[end + 4..]);
        match head.split(' ').nth(1).unwrap_or_default() {
            "200" => Ok(Some(serde_json::from_slice(body).context("the gateway's reply is not understood")?)),
            "204" => Ok(None),
            status => {
                let said: Value = serde_json::from_slice(body).unwrap_or_default();
                let why = said["error"]["message"].as_str().unwrap_or("no reason given").to_owned();
                bail!("the gateway refused {path}: {status} {why}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Gateway;

    #[test]
    fn a_gateway_is_named_by_its_url() {
        let address = |url: &str| Gateway::new(url).map(|gateway| gateway.address);
        assert_eq!(address("http://127.0.0.1:7411").expect("an address"), "127.0.0.1:7411");
        assert_eq!(address("http://host:1/v1/").expect("an address"), "host:1");
        for bad in ["127.0.0.1:7411", "https://host:1", "http://host", "http://host:1/other"] {
            assert!(address(bad).expect_err(bad).to_string().contains("expected http://HOST:PORT"));
        }
    }
}
