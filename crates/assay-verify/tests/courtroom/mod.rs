//! An embedded chain with a court, a staked provider that answers, and a challenger.

use alloy_signer::SignerSync;
use alloy_sol_types::{SolCall, SolInterface};
use assay_chain::{
    Bytes, ChainClient, ChainOptions, ClientOptions, DeployParams, EmbeddedChain, Genesis, LOCAL_CHAIN_ID, Network,
    PrivateKeySigner, U256,
    bindings::trial::Trial,
    client::{Case, Court, Dispute, Phase},
    deploy_local,
};
use assay_gguf::Gguf;
use assay_graph::{Lie, Trace, TraceOptions, TracedModel, greedy};
use assay_testkit::models::{TinyLlama, tiny_llama};
use assay_types::{
    Amount, B256, CANONICAL_PROFILE, ChannelId, Finish, Job, Manifest, ProviderId, Receipt, Sampling, Signature,
    SignedReceipt, receipt_domain, response_bytes, response_hash,
};
use assay_verify::dispute::watch::{Role, Turn, Watch};
use assay_verify::dispute::{Documents, provider};
use std::sync::Arc;

pub const STAKE: u128 = 20_000_000_000;
pub const BOND: u128 = 25_000_000;
pub const PENALTY: u128 = 100_000_000;
pub const REWARD: u128 = 40_000_000;
const NOW: u64 = 1_800_000_000;
const PROVIDER: u64 = 3;
const CHALLENGER: u64 = 4;
const SINK: u64 = 9;

fn key(n: u64) -> PrivateKeySigner {
    PrivateKeySigner::from_bytes(&U256::from(n).into()).unwrap()
}

/// A model with its graph.
pub struct Model {
    pub traced: Arc<TracedModel>,
    pub manifest: Manifest,
}

impl Model {
    pub fn new(shape: TinyLlama) -> Self {
        let bytes = tiny_llama(shape);
        let gguf = Gguf::parse(&bytes).unwrap();
        let traced = Arc::new(TracedModel::new(&gguf, Arc::new(bytes)).unwrap());
        let manifest = Manifest {
            profile: CANONICAL_PROFILE.into(),
            file_sha256: B256::repeat_byte(1),
            file_len: 2,
            weights_root: traced.weights_root(),
            tokenizer_hash: B256::repeat_byte(3),
            rope_hash: B256::repeat_byte(4),
            graph_hash: traced.graph().head().hash(),
            name: "tiny".into(),
            license: String::new(),
        };
        Self { traced, manifest }
    }

    pub fn trace(&self, request: &Request, lie: Option<Lie>) -> Trace {
        let tokens = [&request.input[..], &request.output].concat();
        let options = TraceOptions { threads: 1, lie };
        let input = request.input.len() as u32;
        Trace::compute(Arc::clone(&self.traced), tokens, input, options, &mut greedy, &mut |_, _| ()).unwrap()
    }
}

/// A request with its answer.
#[derive(Clone)]
pub struct Request {
    pub input: Vec<u32>,
    pub output: Vec<u32>,
    pub finish: Finish,
    pub nonce: u64,
}

impl Request {
    /// Five greedy tokens after seven of a prompt.
    pub fn answered(model: &Model, nonce: u64) -> Self {
        let input: Vec<u32> = (0..7).map(|i| (10 + 31 * i + nonce as u32) % 380).collect();
        let mut request = Self { input, output: vec![0], finish: Finish::Length, nonce };
        while request.output.len() < 6 {
            let chosen = model.trace(&request, None).chosen().to_vec();
            *request.output.last_mut().unwrap() = *chosen.last().unwrap();
            request.output.push(0);
        }
        request.output.pop();
        request
    }

    pub fn positions(&self) -> u32 {
        (self.input.len() + self.output.len() - 1) as u32
    }

    fn job(&self, model: &Model) -> Job {
        Job {
            model_id: model.manifest.model_id(),
            prompt: self.input[..6].to_vec(),
            // The court reads prompt and prefix as one input.
            prefix: self.input[6..].to_vec(),
            max_tokens: 50,
            sampling: Sampling::GREEDY,
            logit_bias: vec![],
            grammar: None,
            stop: vec![],
            ignore_eos: true,
            logprobs: None,
            embed: None,
            nonce: U256::from(self.nonce).into(),
        }
    }
}

pub struct World {
    pub chain: EmbeddedChain,
    _dir: tempfile::TempDir,
}

pub struct Courtroom {
    pub world: World,
    pub provider: Network,
    pub challenger: Network,
}

impl Courtroom {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let genesis = Genesis::local(LOCAL_CHAIN_ID, key(1).address());
        let chain = EmbeddedChain::open(dir.path(), &genesis, ChainOptions::new(Arc::new(|| NOW))).unwrap();
        let connect = async |n| ChainClient::connect(&chain, key(n), ClientOptions::default()).await.unwrap();
        let params = DeployParams::local_court(key(SINK).address());
        let faucet = deploy_local(&connect(1).await, &params, None).await.unwrap();
        let mut networks = vec![];
        for n in [PROVIDER, CHALLENGER] {
            faucet.token.mint(key(n).address(), Amount(STAKE)).await.unwrap();
            networks.push(Network::new(connect(n).await, faucet.addresses).unwrap());
        }
        let (challenger, provider) = (networks.pop().unwrap(), networks.pop().unwrap());
        provider.registry.register("provider.example:7443", B256::repeat_byte(1), B256::ZERO).await.unwrap();
        provider.registry.stake(Amount(STAKE)).await.unwrap();
        // Once for all disputes of a test.
        challenger.token.approve(challenger.addresses.court.unwrap().court, Amount(u128::MAX)).await.unwrap();
        Self { world: World { chain, _dir: dir }, provider, challenger }
    }

    pub fn provider_court(&self) -> &Court {
        self.provider.court.as_ref().unwrap()
    }

    pub fn challenger_court(&self) -> &Court {
        self.challenger.court.as_ref().unwrap()
    }

    pub async fn stake(&self) -> u128 {
        self.provider.registry.stake_of(ProviderId(key(PROVIDER).address())).await.unwrap().0
    }

    async fn owed(&self, n: u64) -> u128 {
        self.challenger_court().owed(key(n).address()).await.unwrap().0
    }

    pub async fn owed_provider(&self) -> u128 {
        self.owed(PROVIDER).await
    }

    pub async fn owed_challenger(&self) -> u128 {
        self.owed(CHALLENGER).await
    }

    pub async fn owed_sink(&self) -> u128 {
        self.owed(SINK).await
    }

    /// What the provider signed, and the case over it.
    pub fn case(&self, model: &Model, request: &Request) -> (SignedReceipt, Case) {
        let receipt = Receipt {
            channel_id: ChannelId(B256::repeat_byte(7)),
            request_hash: request.job(model).request_hash(),
            response_hash: response_hash(&request.output, request.finish),
            model_id: model.manifest.model_id(),
            prompt_tokens: request.input.len() as u64,
            output_tokens: request.output.len() as u64,
            charged: Amount(5),
            charged_total: Amount(9),
            issued_at: NOW,
        };
        let addresses = self.provider.addresses;
        let digest = receipt.digest(&receipt_domain(addresses.chain_id, addresses.registry));
        let signature = Signature::new(&key(PROVIDER).sign_hash_sync(&digest).unwrap());
        let head = model.traced.graph().head();
        let case = Case {
            receiptHash: receipt.struct_hash(),
            requestHash: receipt.request_hash.0,
            responseHash: receipt.response_hash.0,
            weightsRoot: model.manifest.weights_root,
            rotationRoot: head.rotation_root,
            opsRoot: head.ops_root,
            ops: head.ops,
            weightLeaves: head.weight_leaves,
            rotationLeaves: head.rotation_leaves,
        };
        (SignedReceipt { receipt, signature }, case)
    }

    pub async fn challenge(&self, model: &Model, request: &Request) -> Game<'_> {
        let (signed, case) = self.case(model, request);
        let court = self.challenger_court();
        let sent = court.challenge(&signed, model.manifest.canonical_bytes(), case.clone()).await.unwrap();
        let id = Court::dispute_id(self.challenger.client.address(), &case);
        let since = sent.block_number.unwrap();
        let watch = Watch::new(self.challenger.client.clone(), court.clone(), id, since);
        let documents = Documents {
            case,
            job: request.job(model).canonical_bytes(),
            response: response_bytes(&request.output, request.finish),
            output: request.output.clone(),
        };
        Game { room: self, id, since, watch, documents }
    }

    /// The challenger's client sends a move that the provider only signed, inside of a batch.
    pub async fn relay_for_provider(&self, id: B256, turn: u16, call: &Bytes) {
        let client = &self.challenger.client;
        let trial = self.challenger_court().trial;
        let digest = Trial::getMoveDigestCall { id, turn, call: call.clone() };
        let digest = client.call(trial, &digest).await.unwrap();
        let signature = Signature::new(&key(PROVIDER).sign_hash_sync(&digest).unwrap()).0.to_vec().into();
        let relay = Trial::relayCall { call: call.clone(), signature }.abi_encode().into();
        client.send(trial, &Trial::batchCall { calls: vec![relay] }).await.unwrap();
    }
}

/// One dispute.
pub struct Game<'a> {
    pub room: &'a Courtroom,
    pub id: B256,
    pub since: u64,
    pub watch: Watch,
    pub documents: Documents,
}

/// Changes a call of the provider, or leaves it.
type Mutate<'a> = &'a mut dyn FnMut(&Bytes, Phase) -> Option<Bytes>;

impl Game<'_> {
    pub async fn dispute(&self) -> Dispute {
        self.room.challenger_court().dispute(self.id).await.unwrap()
    }

    pub async fn is_convicted(&self) -> bool {
        let provider = ProviderId(key(PROVIDER).address());
        let request = assay_types::RequestHash(self.documents.case.requestHash);
        self.room.challenger_court().is_convicted(provider, request).await.unwrap()
    }

    /// Plays to the end; returns how often someone moved.
    pub async fn play(&mut self, of_provider: &Trace, of_challenger: &Trace) -> u32 {
        self.play_with(of_provider, of_challenger, &mut |_, _| None, &mut 0).await
    }

    /// As [`Self::play`], but each move of the provider is tried in its mutated form first, which must be refused.
    pub async fn play_with(
        &mut self,
        of_provider: &Trace,
        of_challenger: &Trace,
        mutate: Mutate<'_>,
        refused: &mut u32,
    ) -> u32 {
        for moves in 0..100 {
            match self.turn(of_challenger).await {
                Turn::Over => return moves,
                Turn::Ours(step) => {
                    self.room.challenger_court().play(&step.calls).await.unwrap();
                }
                Turn::Theirs { .. } => {
                    let dispute = self.dispute().await;
                    let answer = provider::answer(of_provider, self.id, &dispute).unwrap();
                    let phase = Phase::from_number(dispute.phase).unwrap();
                    if let Some(mutated) = mutate(&answer.calls[0], phase) {
                        let error = self.room.provider_court().play(&[mutated]).await.unwrap_err();
                        assert_eq!(error.revert().unwrap().name, "WrongHash", "{phase:?}");
                        *refused += 1;
                    }
                    self.room.provider_court().play(&answer.calls).await.unwrap();
                }
            }
        }
        panic!("the game does not end");
    }

    /// Plays until a move of the challenger is refused; returns why.
    pub async fn play_until_refused(&mut self, of_provider: &Trace, of_challenger: &Trace) -> &'static str {
        for _ in 0..100 {
            match self.turn(of_challenger).await {
                Turn::Over => return "over",
                Turn::Ours(step) => {
                    if let Err(error) = self.room.challenger_court().play(&step.calls).await {
                        return error.revert().expect("a revert").name;
                    }
                }
                Turn::Theirs { .. } => {
                    let answer = provider::answer(of_provider, self.id, &self.dispute().await).unwrap();
                    self.room.provider_court().play(&answer.calls).await.unwrap();
                }
            }
        }
        panic!("the game does not end");
    }

    /// As [`Self::play`] with a provider that states byte `byte` (or the last) of the operands wrongly.
    pub async fn state_wrongly(&mut self, of_provider: &Trace, of_challenger: &Trace, byte: usize) {
        for _ in 0..100 {
            match self.turn(of_challenger).await {
                Turn::Over => return,
                Turn::Ours(step) => {
                    self.room.challenger_court().play(&step.calls).await.unwrap();
                }
                Turn::Theirs { .. } => {
                    let mut answer = provider::answer(of_provider, self.id, &self.dispute().await).unwrap();
                    if let Ok(Trial::TrialCalls::revealOperands(mut call)) =
                        Trial::TrialCalls::abi_decode(&answer.calls[0])
                    {
                        let mut stated = call.stated.to_vec();
                        let at = byte.min(stated.len() - 1);
                        stated[at] ^= 0x10;
                        call.stated = stated.into();
                        answer.calls = vec![call.abi_encode().into()];
                    }
                    self.room.provider_court().play(&answer.calls).await.unwrap();
                }
            }
        }
        panic!("the game does not end");
    }

    async fn turn(&mut self, of_challenger: &Trace) -> Turn {
        self.watch.turn(Role::Challenger(&self.documents), of_challenger).await.unwrap()
    }
}
