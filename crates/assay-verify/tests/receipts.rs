//! Genuine receipts pass, each forgery is named: statements alone, then against a model.

use alloy_primitives::U256;
use alloy_signer::SignerSync;
use alloy_signer_local::PrivateKeySigner;
use assay_engine::{Engine, EngineEvent, EngineOptions, Model, Runner, SinkState, TokenSink};
use assay_gguf::Gguf;
use assay_testkit::models::{TinyLlama, tiny_llama};
use assay_types::{
    Address, Amount, AuditTask, AuditVerdict, B256, CANONICAL_PROFILE, ChannelConfig, Finish, Job, MICRO, Manifest,
    PROOF_POSITIONS, Prices, ProviderId, RECEIPT_FILE_VERSION, Receipt, ReceiptFile, ReceiptPart, Sampling, Signature,
    SignedReceipt, is_in_proof, proof_positions, receipt_domain, response_hash, settlement_domain,
};
use assay_verify::audit::examine;
use assay_verify::replay::{Unchecked, Verdict, replay};
use assay_verify::statements::{self, check};
use std::sync::{Arc, mpsc};

const CHAIN_ID: u64 = 31_337;
const REGISTRY: Address = Address::repeat_byte(0x11);
const SETTLEMENT: Address = Address::repeat_byte(0x22);

fn signer(byte: u8) -> PrivateKeySigner {
    PrivateKeySigner::from_slice(&[byte; 32]).expect("32 bytes below the order are a key")
}

fn manifest() -> Manifest {
    Manifest {
        profile: CANONICAL_PROFILE.into(),
        file_sha256: B256::repeat_byte(1),
        file_len: 10,
        weights_root: B256::repeat_byte(2),
        tokenizer_hash: B256::repeat_byte(3),
        rope_hash: B256::repeat_byte(4),
        graph_hash: B256::repeat_byte(4),
        name: "tiny".into(),
        license: String::new(),
    }
}

fn job() -> Job {
    Job {
        model_id: manifest().model_id(),
        prompt: vec![70, 71, 72],
        prefix: vec![],
        max_tokens: 40,
        sampling: Sampling { temperature_micro: MICRO, seed: 3, ..Sampling::GREEDY },
        logit_bias: Vec::new(),
        grammar: None,
        stop: vec![],
        ignore_eos: true,
        logprobs: None,
        embed: None,
        nonce: B256::repeat_byte(9),
    }
}

/// What a provider with key `key` signs for `output` after `so_far`.
fn part(key: u8, so_far: &[u32], output: &[u32], finish: Finish) -> ReceiptPart {
    let signer = signer(key);
    let provider = ProviderId(signer.address());
    let channel = ChannelConfig {
        payer: Address::repeat_byte(5),
        payer_authorizer: Address::repeat_byte(5),
        receiver: provider.0,
        receiver_authorizer: provider.0,
        token: Address::repeat_byte(6),
        withdraw_delay: 86_400,
        salt: B256::ZERO,
    };
    let job = job().resumed_after(so_far);
    let prices = Prices { input_per_million: Amount(50_000), output_per_million: Amount(100_000) };
    let charged = prices.charge_up(job.input_tokens(), output.len() as u64).expect("small");
    let receipt = Receipt {
        channel_id: channel.id(&settlement_domain(CHAIN_ID, SETTLEMENT)),
        request_hash: job.request_hash(),
        response_hash: response_hash(output, finish),
        model_id: job.model_id,
        prompt_tokens: job.input_tokens(),
        output_tokens: output.len() as u64,
        charged,
        charged_total: charged,
        issued_at: 1_790_000_000,
    };
    ReceiptPart { provider, channel, output: output.to_vec(), finish, signed: sign(&signer, receipt) }
}

fn sign(signer: &PrivateKeySigner, receipt: Receipt) -> SignedReceipt {
    let digest = receipt.digest(&receipt_domain(CHAIN_ID, REGISTRY));
    SignedReceipt { receipt, signature: Signature::new(&signer.sign_hash_sync(&digest).expect("a key signs")) }
}

fn file(parts: Vec<ReceiptPart>) -> ReceiptFile {
    ReceiptFile {
        version: RECEIPT_FILE_VERSION,
        id: job().request_hash(),
        chain_id: CHAIN_ID,
        registry: REGISTRY,
        settlement: SETTLEMENT,
        manifest: manifest(),
        job: job(),
        parts,
    }
}

fn spliced() -> ReceiptFile {
    let first = part(1, &[], &[5, 6, 7], Finish::Open);
    let second = part(2, &[5, 6, 7], &[8, 9], Finish::Length);
    file(vec![first, second])
}

#[test]
fn genuine_statements_add_up() {
    let statements = check(&spliced()).expect("a genuine file");
    assert_eq!(statements.output, [5, 6, 7, 8, 9]);
    assert_eq!(statements.finish, Finish::Length);
    assert_eq!(statements.providers, [ProviderId(signer(1).address()), ProviderId(signer(2).address())]);
    assert_eq!(statements.charged, 2);
    let text = serde_json::to_string(&spliced()).expect("a file is JSON");
    assert_eq!(serde_json::from_str::<ReceiptFile>(&text).expect("its own text"), spliced());
}

#[test]
fn every_change_of_a_genuine_file_is_named() {
    let expect = |change: fn(&mut ReceiptFile), word: &str| {
        let mut forged = spliced();
        change(&mut forged);
        assert_ne!(forged, spliced());
        let fault = check(&forged).expect_err(word).to_string();
        assert!(fault.contains(word), "{fault:?} does not contain {word:?}");
    };
    expect(|f| f.version = 2, "version 2");
    expect(|f| f.manifest.profile = "canonical-9".into(), "canonical-9");
    expect(|f| f.parts.clear(), "0 parts");
    expect(|f| f.job.sampling.seed = 4, "not the hash of the job");
    expect(|f| f.job.prompt[0] = 1, "not the hash of the job");
    expect(|f| f.job.prefix = vec![1], "prefix");
    expect(|f| f.manifest.name = "other".into(), "modelId");
    expect(|f| f.parts[0].output[1] = 60, "responseHash");
    expect(|f| f.parts[1].output[0] = 60, "responseHash");
    expect(|f| f.parts[1].finish = Finish::Stop, "responseHash");
    expect(|f| f.parts[0].finish = Finish::Stop, "only the last part");
    expect(|f| f.parts.swap(0, 1), "only the last part");
    expect(|f| drop(f.parts.remove(0)), "requestHash");
    expect(|f| f.parts[0].signed.receipt.charged = Amount(0), "signed by");
    expect(|f| f.parts[0].signed.receipt.charged_total = Amount(0), "chargedTotal");
    expect(|f| f.parts[0].signed.receipt.issued_at += 1, "signed by");
    expect(|f| f.parts[0].signed.receipt.prompt_tokens += 1, "promptTokens");
    expect(|f| f.parts[0].signed.receipt.output_tokens += 1, "outputTokens");
    expect(|f| f.parts[0].channel.token = Address::ZERO, "channelId");
    expect(|f| f.parts[0].channel.withdraw_delay += 1 << 40, "channelId");
    expect(|f| f.parts[0].provider = ProviderId(Address::ZERO), "provider");
    expect(|f| f.parts[0].signed.signature = f.parts[1].signed.signature, "part 0");
    expect(|f| f.parts[0].signed.signature.0[64] = 5, "malformed");
    expect(|f| f.chain_id = 1, "channelId");
    expect(|f| f.registry = Address::ZERO, "signed by");
}

#[test]
fn an_answer_longer_than_asked_for_is_refused() {
    let long = file(vec![part(1, &[], &[0; 41], Finish::Length)]);
    assert!(check(&long).expect_err("too long").to_string().contains("longer than max_tokens"));
}

#[test]
fn a_high_s_twin_of_a_signature_is_refused() {
    let mut forged = spliced();
    let signature = &mut forged.parts[0].signed.signature;
    let order = U256::from_str_radix("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16);
    let s = order.expect("the order of secp256k1") - U256::from_be_slice(&signature.0[32..64]);
    signature.0[32..64].copy_from_slice(&s.to_be_bytes::<32>());
    signature.0[64] = 55 - signature.0[64];
    assert!(check(&forged).expect_err("not canonical").to_string().contains("malformed"));
}

fn model() -> Arc<Model> {
    let bytes = tiny_llama(TinyLlama::default());
    Model::load(&Gguf::parse(&bytes).expect("a generated file"), &bytes).expect("a generated model")
}

struct Collect(mpsc::Sender<EngineEvent>);

impl TokenSink for Collect {
    fn push(&mut self, event: EngineEvent) -> SinkState {
        if self.0.send(event).is_ok() { SinkState::Ready } else { SinkState::Closed }
    }
}

/// What the engine answers to [`job`].
fn honest(model: &Arc<Model>) -> Vec<u32> {
    let engine = Engine::start(model.clone(), EngineOptions::default()).expect("an engine starts");
    let (sender, events) = mpsc::channel();
    engine.submit(&job(), Box::new(Collect(sender))).expect("the job is taken");
    events.iter().filter_map(|e| if let EngineEvent::Token { id } = e { Some(id) } else { None }).collect()
}

#[test]
fn replay_accepts_the_honest_answer_and_names_who_signed_the_wrong_token() {
    let model = model();
    let output = honest(&model);
    assert_eq!(output.len(), 40);
    let mut runner = Runner::new(1);
    let mut judge = |output: &[u32]| {
        let (head, tail) = output.split_at(16);
        let file = file(vec![part(1, &[], head, Finish::Open), part(2, head, tail, Finish::Length)]);
        let statements = check(&file).expect("signed statements");
        replay(&file, &statements, &model, file.job.model_id, &mut runner).expect("a verdict")
    };
    assert_eq!(judge(&output), Verdict::Exact { tokens: 40 });
    for index in [0, 15, 16, 39] {
        let mut wrong = output.clone();
        wrong[index] = (wrong[index] + 1) % 256;
        let provider = ProviderId(signer(if index < 16 { 1 } else { 2 }).address());
        let expected = Some(output[index]);
        assert_eq!(judge(&wrong), Verdict::WrongToken { provider, index, expected, got: wrong[index] });
    }
    assert!(matches!(judge(&output[..39]), Verdict::WrongFinish { got: Finish::Length, expected: Finish::Open, .. }));
}

#[test]
fn another_model_gives_no_verdict() {
    let (model, file) = (model(), spliced());
    let statements: statements::Statements = check(&file).expect("a genuine file");
    let found = assay_types::ModelId(B256::repeat_byte(7));
    let verdict = replay(&file, &statements, &model, found, &mut Runner::new(1));
    assert_eq!(verdict, Err(Unchecked::OtherModel { expected: file.job.model_id, found }));
}

/// What an auditor shows is the same on every machine, and follows from the model up to the first wrong token.
#[test]
fn auditors_agree_in_every_leaf_and_find_what_was_changed() {
    let model = model();
    let output = honest(&model);
    let task =
        |output: &[u32], finish| AuditTask { id: B256::repeat_byte(8), job: job(), output: output.to_vec(), finish };
    let examine = |task: &AuditTask, threads| {
        examine(task, &model, task.job.model_id, &mut Runner::new(threads)).expect("a finding")
    };
    let right = examine(&task(&output, Finish::Length), 1);
    assert_eq!((right.verdict, right.leaves.len()), (AuditVerdict::Exact, 40));
    assert_eq!(examine(&task(&output, Finish::Length), 3), right);

    let (auditor, beacon) = (Address::repeat_byte(4), B256::repeat_byte(5));
    let proof = right.proof(B256::repeat_byte(8), auditor, beacon);
    let drawn = proof_positions(beacon, B256::repeat_byte(8), auditor, 40);
    assert_eq!(proof.shown.len(), PROOF_POSITIONS as usize);
    for (position, shown) in drawn.into_iter().zip(&proof.shown) {
        assert!(is_in_proof(proof.finding.root, 40, position, shown));
    }
    for index in [0usize, 7, 39] {
        let mut wrong = output.clone();
        wrong[index] = (wrong[index] + 1) % 256;
        let found = examine(&task(&wrong, Finish::Length), 2);
        let expected = Some(output[index]);
        assert_eq!(found.verdict, AuditVerdict::WrongToken { index: index as u32, expected, got: wrong[index] });
        assert_eq!(found.leaves, right.leaves[..=index]);
    }
    let early = examine(&task(&output[..9], Finish::Stop), 1);
    assert_eq!(early.verdict, AuditVerdict::WrongFinish { expected: Finish::Open, got: Finish::Stop });
    assert_eq!(early.verdict.first_wrong(9), Some(9));
}
