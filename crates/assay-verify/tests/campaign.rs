//! Cheats with a single fault and honest answers, by the thousand, on the shipped model: every cheat is convicted at the
//! first wrong position, no honest answer is accused, whatever kernels and threads answered and audited.
//!
//! `ASSAY_CAMPAIGN=10000,100000 cargo test --release -p assay-verify --test campaign -- --nocapture` runs so many cheats
//! and honest answers; without it a few.

use assay_engine::{Engine, EngineEvent, EngineOptions, Model, Runner, SinkState, TokenSink};
use assay_gguf::Gguf;
use assay_num::{Isa, Kernels};
use assay_types::{AuditTask, AuditVerdict, B256, Finish, Job, MICRO, ModelId, Sampling};
use assay_verify::audit::examine;
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

const TINY: &[u8] = include_bytes!("../../../models/assay-tiny/assay-tiny-q8_0.gguf");
/// Jobs that are answered together.
const BATCH: usize = 48;

/// splitmix64.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn load(bytes: &[u8]) -> Arc<Model> {
    Model::load(&Gguf::parse(bytes).expect("the shipped model"), bytes).expect("it loads")
}

/// What somebody says the answer is.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Claim {
    output: Vec<u32>,
    finish: Finish,
}

struct Collect(usize, mpsc::Sender<(usize, EngineEvent)>);

impl TokenSink for Collect {
    fn push(&mut self, event: EngineEvent) -> SinkState {
        if self.1.send((self.0, event)).is_ok() { SinkState::Ready } else { SinkState::Closed }
    }
}

fn answers(model: &Arc<Model>, isa: Isa, threads: usize, jobs: &[Job]) -> Vec<Claim> {
    let options = EngineOptions { threads, isa: Some(isa), ..EngineOptions::default() };
    let engine = Engine::start(Arc::clone(model), options).expect("an engine starts");
    let (sender, events) = mpsc::channel();
    let mut handles = vec![];
    for (index, job) in jobs.iter().enumerate() {
        handles.push(engine.submit(job, Box::new(Collect(index, sender.clone()))).expect("the job is taken"));
    }
    drop(sender);
    let mut claims = vec![Claim { output: vec![], finish: Finish::Open }; jobs.len()];
    let mut open = jobs.len();
    while open > 0 {
        match events.recv().expect("every job ends") {
            (index, EngineEvent::Token { id }) => claims[index].output.push(id),
            (index, EngineEvent::Done { finish }) => {
                claims[index].finish = finish;
                open -= 1;
            }
            (_, other) => panic!("{other:?}"),
        }
    }
    claims
}

fn job(draws: &mut Draws, vocab: u32) -> Job {
    let prompt = (0..2 + draws.below(30)).map(|_| draws.next() as u32 % vocab).collect();
    let temperature_micro = [0, 700_000, MICRO, 1_500_000][draws.below(4)];
    let top_k = [0, 40][draws.below(2)];
    let sampling = Sampling { temperature_micro, top_k, seed: draws.next() >> 11, ..Sampling::GREEDY };
    Job {
        model_id: ModelId::default(),
        prompt,
        prefix: vec![],
        max_tokens: 4 + draws.below(28) as u32,
        sampling,
        logit_bias: vec![],
        grammar: None,
        stop: vec![],
        ignore_eos: draws.below(3) == 0,
        logprobs: None,
        embed: None,
        nonce: B256::ZERO,
    }
}

/// The model with one weight of one matrix turned over, or with one layer that adds nothing.
fn faulty(draws: &mut Draws, skips_layer: bool) -> Arc<Model> {
    let gguf = Gguf::parse(TINY).expect("the shipped model");
    let mut bytes = TINY.to_vec();
    let base = TINY.as_ptr() as usize;
    let place = |name: &str| {
        let tensor = gguf.tensor(name).expect("a Llama has it");
        let data = gguf.tensor_bytes(TINY, tensor).expect("its data");
        let start = data.as_ptr() as usize - base;
        start..start + data.len()
    };
    let layers = gguf.tensors().iter().filter(|t| t.name.ends_with("ffn_down.weight")).count();
    let layer = draws.below(layers);
    if skips_layer {
        for name in ["attn_output", "ffn_down"] {
            bytes[place(&format!("blk.{layer}.{name}.weight"))].fill(0);
        }
    } else {
        let name = ["attn_q", "attn_v", "attn_output", "ffn_up", "ffn_gate", "ffn_down"][draws.below(6)];
        let range = place(&format!("blk.{layer}.{name}.weight"));
        // A block of Q8_0 is two bytes of scale and 32 weights.
        let block = draws.below(range.len() / 34);
        bytes[range.start + 34 * block + 2 + draws.below(32)] ^= 0x80;
    }
    load(&bytes)
}

/// Where a claim parts from the honest answer: what an audit has to say of it. `None`: it does not.
fn expected(honest: &Claim, claim: &Claim) -> Option<AuditVerdict> {
    let shared = honest.output.iter().zip(&claim.output).take_while(|(a, b)| a == b).count();
    if let Some(&got) = claim.output.get(shared) {
        let expected = honest.output.get(shared).copied();
        return Some(AuditVerdict::WrongToken { index: shared as u32, expected, got });
    }
    let stands = if shared < honest.output.len() { Finish::Open } else { honest.finish };
    (stands != claim.finish).then_some(AuditVerdict::WrongFinish { expected: stands, got: claim.finish })
}

const KINDS: [&str; 6] =
    ["one token", "one weight", "one layer skipped", "other sampling", "other prompt", "longer count"];

/// Claims of one kind of cheat for these jobs.
fn cheat(kind: &str, draws: &mut Draws, jobs: &[Job], honest: &[Claim], models: &Models, vocab: u32) -> Vec<Claim> {
    let (isa, threads) = models.machine(draws);
    let changed = |change: &mut dyn FnMut(&mut Job)| {
        let jobs: Vec<Job> = jobs
            .iter()
            .cloned()
            .map(|mut job| {
                change(&mut job);
                job
            })
            .collect();
        answers(&models.right, isa, threads, &jobs)
    };
    match kind {
        "one weight" => answers(&models.weights[draws.below(models.weights.len())], isa, threads, jobs),
        "one layer skipped" => answers(&models.layers[draws.below(models.layers.len())], isa, threads, jobs),
        "other sampling" => changed(&mut |job| match draws.below(2) {
            0 => job.sampling.seed ^= 1,
            _ => job.sampling.temperature_micro = if job.sampling.temperature_micro == 0 { MICRO } else { 0 },
        }),
        "other prompt" => changed(&mut |job| {
            let at = draws.below(job.prompt.len());
            job.prompt[at] = (job.prompt[at] + 1 + draws.next() as u32 % (vocab - 1)) % vocab;
        }),
        "one token" => honest
            .iter()
            .cloned()
            .map(|mut claim| {
                let at = draws.below(claim.output.len());
                claim.output[at] = (claim.output[at] + 1 + draws.next() as u32 % (vocab - 1)) % vocab;
                claim
            })
            .collect(),
        _ => honest
            .iter()
            .cloned()
            .map(|mut claim| {
                claim.output.push(draws.next() as u32 % vocab);
                claim
            })
            .collect(),
    }
}

struct Models {
    right: Arc<Model>,
    weights: Vec<Arc<Model>>,
    layers: Vec<Arc<Model>>,
    isas: Vec<Isa>,
}

impl Models {
    /// Kernels and threads of whoever works next. The scalar kernels are slow by an order of magnitude, so they come only
    /// once in sixteen times: thousands of answers in a campaign.
    fn machine(&self, draws: &mut Draws) -> (Isa, usize) {
        let isa = match draws.below(16) {
            0 => Isa::Scalar,
            _ => self.isas[draws.below(self.isas.len())],
        };
        (isa, 1 + draws.below(2))
    }

    fn audit(
        &self,
        draws: &mut Draws,
        job: &Job,
        claim: &Claim,
        runners: &mut BTreeMap<String, Runner>,
    ) -> AuditVerdict {
        let (isa, threads) = self.machine(draws);
        let fresh = || Runner::with_kernels(Kernels::with_isa(isa).expect("this machine has it"), threads);
        let runner = runners.entry(format!("{isa} {threads}")).or_insert_with(fresh);
        let task = AuditTask { id: B256::ZERO, job: job.clone(), output: claim.output.clone(), finish: claim.finish };
        examine(&task, &self.right, job.model_id, runner).expect("a finding").verdict
    }
}

/// The kernels of this machine besides the scalar ones, or those.
fn vectorized() -> Vec<Isa> {
    let fast: Vec<Isa> = Isa::available().iter().copied().filter(|isa| *isa != Isa::Scalar).collect();
    if fast.is_empty() { vec![Isa::Scalar] } else { fast }
}

fn size() -> (usize, usize) {
    let asked = std::env::var("ASSAY_CAMPAIGN").ok();
    let read = |text: &str| {
        let (cheats, honest) = text.split_once(',')?;
        Some((cheats.trim().parse().ok()?, honest.trim().parse().ok()?))
    };
    asked.map_or((120, 240), |text| read(&text).expect("ASSAY_CAMPAIGN is CHEATS,HONEST"))
}

#[test]
fn cheats_are_convicted_at_the_first_wrong_position_and_honest_answers_never() {
    let (cheats_wanted, honest_wanted) = size();
    let mut draws = Draws(20_261_120);
    let right = load(TINY);
    let vocab = right.tokenizer().vocab_size();
    let count = if cheats_wanted > 1000 { 24 } else { 2 };
    let models = Models {
        right,
        weights: (0..count).map(|_| faulty(&mut draws, false)).collect(),
        layers: (0..count.min(6)).map(|_| faulty(&mut draws, true)).collect(),
        isas: vectorized(),
    };
    let mut runners = BTreeMap::new();
    let (mut audited, mut convicted, mut same) = (0usize, 0usize, 0usize);
    let mut by_kind: BTreeMap<&str, usize> = BTreeMap::new();
    let mut round = 0usize;
    while audited < honest_wanted || convicted < cheats_wanted {
        let left = (honest_wanted.saturating_sub(audited)).max(cheats_wanted.saturating_sub(convicted));
        let jobs: Vec<Job> = (0..BATCH.min(left)).map(|_| job(&mut draws, vocab)).collect();
        let (isa, threads) = models.machine(&mut draws);
        let honest = answers(&models.right, isa, threads, &jobs);
        for (job, claim) in jobs.iter().zip(&honest) {
            if audited >= honest_wanted {
                break;
            }
            let verdict = models.audit(&mut draws, job, claim, &mut runners);
            assert_eq!(verdict, AuditVerdict::Exact, "an honest answer is accused: {job:?} {claim:?}");
            audited += 1;
        }
        if convicted < cheats_wanted {
            let kind = KINDS[round % KINDS.len()];
            let claims = cheat(kind, &mut draws, &jobs, &honest, &models, vocab);
            for ((job, honest), claim) in jobs.iter().zip(&honest).zip(&claims) {
                // A fault that changes no token is no cheat that anybody could see.
                let Some(expected) = expected(honest, claim) else {
                    same += 1;
                    continue;
                };
                if convicted >= cheats_wanted {
                    break;
                }
                let verdict = models.audit(&mut draws, job, claim, &mut runners);
                assert_eq!(verdict, expected, "{kind}: {job:?} {honest:?} {claim:?}");
                convicted += 1;
                *by_kind.entry(kind).or_default() += 1;
            }
        }
        round += 1;
    }
    let kernels = models.isas.iter().map(Isa::to_string).collect::<Vec<_>>().join(", ");
    println!("{audited} honest answers, 0 accused; {convicted} cheats, all convicted at the first wrong token");
    println!("by kind: {by_kind:?}; {same} faults changed no token; kernels {kernels} and scalar, 1 and 2 threads");
    // A round is of one kind: the usual test has a few, a campaign all.
    assert!(by_kind.len() >= (cheats_wanted / BATCH).clamp(1, KINDS.len()), "{by_kind:?}");
}
