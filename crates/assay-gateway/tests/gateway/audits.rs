//! Audits over HTTP: who is drawn, who may audit, what a finding leads to, and what it does not.

use crate::world::{World, story};
use alloy_signer_local::PrivateKeySigner;
use assay_chain::DigestSigner;
use assay_gateway::{AuditConfig, GatewayConfig, Referee, Refereed};
use assay_protocol::AuditPolicy;
use assay_testkit::fake_provider::Trick;
use assay_types::{
    AuditBeacon, AuditCommit, AuditEnd, AuditFinding, AuditLease, AuditProof, AuditReply, AuditTask, AuditVerdict,
    B256, Finish, ReceiptFile, ShownLeaf, TokenId, logits_leaf, proof_path, proof_positions, proof_root,
};
use axum::http::Method;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

const CHAIN_ID: u64 = 31_337;
pub const STORY: usize = 20;

/// Fakes a replay: the right output is the script that all honest fakes follow, and the logits at a position are its
/// right token.
#[derive(Debug)]
pub struct Script {
    output: Vec<TokenId>,
    pub convictions: Mutex<Vec<(ReceiptFile, u32)>>,
}

impl Script {
    fn examine(&self, task: &AuditTask) -> (AuditVerdict, Vec<B256>) {
        let wrong = (0..task.output.len()).find(|&i| self.output.get(i) != Some(&task.output[i]));
        let seen = wrong.map_or(task.output.len(), |i| i + 1).min(self.output.len());
        let leaves = (0..seen).map(|i| logits_leaf(i as u32, &[self.output[i] as f32])).collect();
        let verdict = match wrong {
            Some(i) => {
                AuditVerdict::WrongToken { index: i as u32, expected: self.output.get(i).copied(), got: task.output[i] }
            }
            None => AuditVerdict::Exact,
        };
        (verdict, leaves)
    }
}

impl Referee for Script {
    fn replay(&self, task: &AuditTask) -> Result<Refereed, String> {
        let (verdict, leaves) = self.examine(task);
        Ok(Refereed { verdict, leaves })
    }

    fn on_conviction(&self, file: &ReceiptFile, first_wrong: u32) {
        self.convictions.lock().unwrap().push((file.clone(), first_wrong));
    }
}

fn key(byte: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&B256::repeat_byte(byte)).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// All audited, as many decoys and second replays as the test says.
pub fn audits(decoy_ppm: u32, recheck_ppm: u32, referee: Option<Arc<dyn Referee>>) -> AuditConfig {
    AuditConfig {
        policy: AuditPolicy { floor_ppm: 1_000_000, decoy_ppm, recheck_ppm, ..AuditPolicy::default() },
        auditors: vec![key(0xa1).address(), key(0xa2).address()],
        referee,
        ..AuditConfig::default()
    }
}

/// Providers that follow a script, and a referee that knows it.
async fn world(n: u8, decoy_ppm: u32, recheck_ppm: u32) -> (World, Arc<Script>) {
    world_with(n, decoy_ppm, recheck_ppm, |_| ()).await
}

pub async fn world_with(
    n: u8,
    decoy_ppm: u32,
    recheck_ppm: u32,
    change: fn(&mut GatewayConfig),
) -> (World, Arc<Script>) {
    let (_, tokenizer) = crate::world::tiny_model();
    let mut output = tokenizer.encode(&story(STORY), false, false);
    output.push(tokenizer.eos().unwrap());
    let script = Arc::new(Script { output, convictions: Mutex::default() });
    let referee: Arc<dyn Referee> = script.clone();
    let audit = audits(decoy_ppm, recheck_ppm, Some(referee));
    (World::start_all(n, &story(STORY), change, audit).await, script)
}

/// An auditor's side of the conversation.
struct Auditor<'a> {
    world: &'a World,
    key: PrivateKeySigner,
}

impl Auditor<'_> {
    async fn call(&self, path: &str, body: &Value) -> (u16, Value) {
        let reply = self.world.send(Method::POST, path, None, body.to_string()).await;
        let value = if reply.body.is_empty() { Value::Null } else { reply.json() };
        (reply.status.as_u16(), value)
    }

    fn request(&self, issued_at: u64) -> Value {
        let auditor = self.key.address();
        let signature = DigestSigner::new(&self.key).sign(&AuditLease::digest(CHAIN_ID, auditor, issued_at));
        json!(AuditLease { auditor, issued_at, signature })
    }

    async fn lease(&self) -> Option<AuditTask> {
        let (status, body) = self.call("/v1/audits/lease", &self.request(now())).await;
        match status {
            204 => None,
            200 => Some(serde_json::from_value(body).unwrap()),
            _ => panic!("{status} {body}"),
        }
    }

    /// A task that is sure to come: an answer is drawn when its flight is over, a moment after the client has it.
    async fn task(&self) -> AuditTask {
        let wait = async {
            loop {
                if let Some(task) = self.lease().await {
                    return task;
                }
            }
        };
        tokio::time::timeout(crate::world::PATIENCE, wait).await.expect("a task in time")
    }

    async fn report(&self, task: &AuditTask, verdict: AuditVerdict, leaves: &[B256]) -> AuditReply {
        let finding = AuditFinding { verdict, positions: leaves.len() as u32, root: proof_root(leaves) };
        let auditor = self.key.address();
        let commitment = finding.commitment(CHAIN_ID, task.id, auditor);
        let signature = DigestSigner::new(&self.key).sign(&commitment);
        let commit = AuditCommit { auditor, commitment, signature };
        let (status, body) = self.call(&format!("/v1/audits/{}/commit", task.id), &json!(commit)).await;
        assert_eq!(status, 200, "{body}");
        let AuditBeacon { beacon } = serde_json::from_value(body).unwrap();
        let drawn = proof_positions(beacon, task.id, auditor, finding.positions);
        let show = |at: u32| ShownLeaf { leaf: leaves[at as usize], path: proof_path(leaves, at as usize) };
        let proof = AuditProof { finding, shown: drawn.into_iter().map(show).collect() };
        let (status, body) = self.call(&format!("/v1/audits/{}/proof", task.id), &json!(proof)).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_value(body).unwrap()
    }

    async fn honest(&self, script: &Script) -> (AuditTask, AuditReply) {
        let task = self.task().await;
        let (verdict, leaves) = script.examine(&task);
        let reply = self.report(&task, verdict, &leaves).await;
        (task, reply)
    }
}

fn auditor(world: &World, byte: u8) -> Auditor<'_> {
    Auditor { world, key: key(byte) }
}

pub async fn score(world: &World, number: usize) -> u64 {
    let reply = world.get("/v1/providers").await.json();
    let id = world.providers[number].id().to_string();
    let all = reply["data"].as_array().unwrap();
    all.iter().find(|p| p["id"] == json!(id)).unwrap()["score_ppm"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_answer_is_proven_and_lifts_its_provider() {
    let (world, script) = world(1, 0, 1_000_000).await;
    assert_eq!(score(&world, 0).await, 100_000);
    let id = world.chat(json!({})).await.receipt_id();
    let honest = auditor(&world, 0xa1);
    let (task, reply) = honest.honest(&script).await;
    assert_eq!(task.output, script.output);
    assert_eq!(reply.end, AuditEnd::Proven);
    assert_eq!(reply.file.unwrap().id.to_string(), id);
    assert!(reply.digest.is_some());
    assert!(score(&world, 0).await > 100_000);
    assert_eq!(honest.lease().await, None, "it is audited once");

    let shown = world.get("/v1/providers").await.json();
    assert_eq!(shown["data"][0]["events"][0]["deed"], "proven");
    assert_eq!(shown["data"][0]["events"][0]["receipt"], json!(id));
    let audits = world.get("/v1/audits").await.json();
    assert_eq!(audits["data"][0]["end"], "proven");
    assert_eq!(audits["auditors"][0]["proven"], 1);
    let (world, _) = world.restart().await;
    assert!(score(&world, 0).await > 100_000, "a past outlives a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_answer_is_caught_and_its_provider_gets_nothing_any_more() {
    let (world, script) = world(2, 0, 0).await;
    world.providers[0].set(Trick::WrongTokenAt(7));
    let id = world.chat(json!({"provider": world.only(0)})).await.receipt_id();
    let (_, reply) = auditor(&world, 0xa1).honest(&script).await;
    assert_eq!(reply.end, AuditEnd::Caught);
    let convictions = script.convictions.lock().unwrap().clone();
    assert_eq!(convictions.len(), 1);
    assert_eq!((convictions[0].0.id.to_string(), convictions[0].1), (id, 7));
    world.check_receipt(&convictions[0].0);
    assert_eq!(score(&world, 0).await, 0);
    assert_eq!(world.chat(json!({"provider": world.only(0)})).await.status, 503, "nothing is sent there");
    for _ in 0..4 {
        let reply = world.chat(json!({})).await.json();
        assert_eq!(reply["assay"]["providers"], json!([world.providers[1].id().to_string()]));
    }
    let (world, _) = world.restart().await;
    assert_eq!(score(&world, 0).await, 0, "for ever");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoy_looks_like_any_task_and_tells_who_did_not_replay() {
    let (world, script) = world(1, 1_000_000, 0).await;
    world.chat(json!({})).await;
    let honest = auditor(&world, 0xa1);
    for _ in 0..3 {
        let (task, reply) = honest.honest(&script).await;
        assert_eq!(task.output.iter().zip(&script.output).filter(|(a, b)| a != b).count(), 1);
        assert_eq!((reply.end, reply.file), (AuditEnd::Proven, None));
    }
    let lazy = auditor(&world, 0xa2);
    let task = lazy.task().await;
    let leaves: Vec<B256> = (0..task.output.len() as u8).map(B256::repeat_byte).collect();
    assert_eq!(lazy.report(&task, AuditVerdict::Exact, &leaves).await.end, AuditEnd::Failed);
    let (status, body) = lazy.call("/v1/audits/lease", &lazy.request(now())).await;
    assert_eq!((status, &body["error"]["code"]), (403, &json!("not_an_auditor")));
    assert_eq!(script.convictions.lock().unwrap().len(), 0, "a decoy accuses nobody");
    assert_eq!(score(&world, 0).await, 100_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_leaves_do_not_stand_a_second_replay_and_the_task_goes_to_somebody_else() {
    let (world, script) = world(1, 0, 1_000_000).await;
    world.chat(json!({})).await;
    let lazy = auditor(&world, 0xa2);
    let task = lazy.task().await;
    let leaves: Vec<B256> = (0..task.output.len() as u8).map(B256::repeat_byte).collect();
    assert_eq!(lazy.report(&task, AuditVerdict::Exact, &leaves).await.end, AuditEnd::Failed);
    assert_eq!(score(&world, 0).await, 100_000, "what was not replayed lifts nobody");
    let (_, reply) = auditor(&world, 0xa1).honest(&script).await;
    assert_eq!(reply.end, AuditEnd::Proven);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_false_accusation_falls_back_on_the_auditor() {
    let (world, script) = world(1, 0, 0).await;
    world.chat(json!({})).await;
    let liar = auditor(&world, 0xa2);
    let task = liar.task().await;
    let (_, leaves) = script.examine(&task);
    let verdict = AuditVerdict::WrongToken { index: 3, expected: Some(1), got: task.output[3] };
    assert_eq!(liar.report(&task, verdict, &leaves[..4]).await.end, AuditEnd::Failed);
    assert_eq!(score(&world, 0).await, 100_000);
    assert!(script.convictions.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_second_replay_an_accusation_is_noted_and_nothing_follows() {
    let world = World::start_audited(1, &story(STORY), audits(0, 0, None)).await;
    world.chat(json!({})).await;
    let liar = auditor(&world, 0xa2);
    let task = liar.task().await;
    let leaves: Vec<B256> = (0..task.output.len() as u8).map(B256::repeat_byte).collect();
    let verdict = AuditVerdict::WrongFinish { expected: Finish::Open, got: Finish::Stop };
    assert_eq!(liar.report(&task, verdict, &leaves).await.end, AuditEnd::Void);
    assert_eq!(score(&world, 0).await, 100_000);
    let shown = world.get("/v1/providers").await.json();
    assert_eq!(shown["data"][0]["events"][0]["deed"], "accused");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_want_it_is_not_audited() {
    let (world, script) = world(1, 0, 0).await;
    world.chat(json!({"assay": {"verify": "none"}})).await;
    let second = world.chat(json!({"assay": {"verify": "exact"}})).await.receipt_id();
    let (_, reply) = auditor(&world, 0xa1).honest(&script).await;
    assert_eq!(reply.file.unwrap().id.to_string(), second);
    assert_eq!(auditor(&world, 0xa1).lease().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_requests_out_of_turn_are_refused() {
    let (world, script) = world(1, 0, 0).await;
    world.chat(json!({})).await;
    let honest = auditor(&world, 0xa1);
    let task = honest.task().await;
    world.chat(json!({})).await;
    let check = async |auditor: &Auditor<'_>, path: &str, body: Value, status: u16, code: &str| {
        let (found, reply) = auditor.call(path, &body).await;
        assert_eq!((found, reply["error"]["code"].as_str()), (status, Some(code)), "{path} {reply}");
    };
    // The second answer waits by the time it is leased.
    let second = honest.task().await;
    world.chat(json!({})).await;
    let stranger = auditor(&world, 0xa9);
    check(&stranger, "/v1/audits/lease", stranger.request(now()), 403, "not_an_auditor").await;
    let mut forged = stranger.request(now());
    forged["auditor"] = json!(honest.key.address());
    check(&honest, "/v1/audits/lease", forged, 401, "invalid_signature").await;
    check(&honest, "/v1/audits/lease", honest.request(now() - 1000), 401, "invalid_signature").await;
    check(&honest, "/v1/audits/lease", json!({"auditor": 1}), 400, "invalid_value").await;
    check(&honest, "/v1/audits/x/commit", json!({}), 404, "task_not_found").await;

    let (verdict, leaves) = script.examine(&task);
    let finding = AuditFinding { verdict, positions: leaves.len() as u32, root: proof_root(&leaves) };
    let proof = json!(AuditProof { finding, shown: vec![] });
    let (commit_path, proof_path) = (format!("/v1/audits/{}/commit", task.id), format!("/v1/audits/{}/proof", task.id));
    check(&honest, &proof_path, proof.clone(), 409, "task_out_of_turn").await;
    let commit_by = |by: &PrivateKeySigner| {
        let commitment = finding.commitment(CHAIN_ID, task.id, by.address());
        let signature = DigestSigner::new(by).sign(&commitment);
        json!(AuditCommit { auditor: by.address(), commitment, signature })
    };
    check(&honest, &commit_path, commit_by(&key(0xa2)), 404, "task_not_found").await;
    assert_eq!(honest.call(&commit_path, &commit_by(&honest.key)).await.0, 200);
    check(&honest, &commit_path, commit_by(&honest.key), 409, "task_out_of_turn").await;
    // A proof that opens nothing is a failure, and ends the auditor's work here.
    let (status, reply) = honest.call(&proof_path, &proof).await;
    assert_eq!((status, &reply["end"]), (200, &json!("failed")));
    check(&honest, &proof_path, proof, 404, "task_not_found").await;
    check(&honest, "/v1/audits/lease", honest.request(now()), 403, "not_an_auditor").await;
    assert_ne!(second.id, task.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_networks_parameters_say_how_much_is_audited() {
    let (world, script) = world(1, 0, 0).await;
    *world.ledger.policy.lock().unwrap() = Some(AuditPolicy { decoy_ppm: 1_000_000, ..AuditPolicy::default() });
    let (world, _) = world.restart().await;
    world.chat(json!({})).await;
    // Without the parameters this gateway gives out no decoys; with them nothing else.
    for _ in 0..3 {
        let task = auditor(&world, 0xa1).task().await;
        assert_ne!(script.examine(&task).0, AuditVerdict::Exact);
    }
}
