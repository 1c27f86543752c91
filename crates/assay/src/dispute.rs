//! `assay dispute`: takes a wrong answer to court and plays until it is judged.
//!
//! The answer is replayed first: whoever challenges a right one loses the bond. Run again after an interruption, the
//! command goes on where the dispute stands: its id follows from the key and the receipt.

use crate::{load, start_logging, state, tell, verify};
use anyhow::{Context, bail, ensure};
use assay_chain::client::{Case, Court, CourtTerms, Outcome, Phase, Token, TransactionReceipt, finality_depth};
use assay_chain::{B256, ChainClient, ClientOptions};
use assay_engine::{LoadOptions, Runner};
use assay_graph::{Trace, TraceOptions, TracedModel, greedy};
use assay_types::{Amount, Job, ProviderId, ReceiptFile, ReceiptPart, response_bytes};
use assay_verify::dispute::watch::{Role, Turn, Watch, WatchError};
use assay_verify::dispute::{Documents, PlayError, is_choice_judged};
use assay_verify::replay::{Unchecked, Verdict, replay};
use assay_verify::statements;
use clap::Args;
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Gas of a challenger's side of a long dispute, punishment included.
const GAS_MAX: u64 = 1_000_000;
/// Pauses between looks at the chain: one whose blocks are seen at once, and others.
const LOOK_FAST: Duration = Duration::from_millis(200);
const LOOK_SLOW: Duration = Duration::from_secs(3);
/// Failures in a row after which the endpoint is given up; the command can be run again.
const FAILURES_MAX: u32 = 200;

/// Takes the provider of a wrong answer to court.
///
/// Exit status: 0 the provider was convicted, 1 it was not or there is nothing to dispute, 2 the dispute could not be
/// played on (run the command again).
#[derive(Args)]
pub struct DisputeArgs {
    /// Receipt file, as `GET /v1/receipts/ID` returns it or `assay up` keeps it in DIR/convictions
    file: PathBuf,
    /// The model that the receipt names: a GGUF file, or the name of the shipped model
    #[arg(long, value_name = "GGUF", required_unless_present = "against")]
    model: Option<String>,
    /// JSON-RPC of the chain
    #[arg(long, value_name = "URL")]
    rpc: String,
    /// File with the challenger's key, in hex; its account pays bond and gas
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// Another receipt file: convicts a provider that signed two answers to one request, without a game
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    against: Option<PathBuf>,
    /// Challenge all the same if the replay finds nothing, or what it finds is not judged: the bond is lost then
    #[arg(long)]
    force: bool,
    /// Leave what is won in the court
    #[arg(long)]
    no_withdraw: bool,
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    cache: load::CacheArgs,
    /// Print one JSON line for each step
    #[arg(long)]
    json: bool,
}

/// How it came out.
pub enum Ending {
    /// So much was taken of the stake.
    Convicted(Amount),
    /// The bond is the provider's.
    Lost,
    /// It was not disputed, for this reason.
    Refused(String),
}

/// Runs `assay dispute`.
pub fn run(args: &DisputeArgs) -> ExitCode {
    start_logging();
    let narrator = Narrator::new(args.json);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ending = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(dispute(args, &narrator)));
    let (word, text, status) = match ending {
        Ok(Ending::Convicted(slashed)) => ("convicted", format!("{slashed} base units of its stake were taken"), 0),
        Ok(Ending::Lost) => ("lost", "the bond is the provider's".into(), 1),
        Ok(Ending::Refused(why)) => ("not disputed", why, 1),
        Err(error) => ("not decided", crate::one_line(&error), 2),
    };
    narrator.end(word, &text);
    ExitCode::from(status)
}

/// Says what happens.
pub struct Narrator {
    voice: Voice,
}

enum Voice {
    /// To a person, or as JSON lines.
    Printed {
        json: bool,
    },
    Told(Tell),
}

/// Is told of a step and its transaction.
type Tell = Box<dyn Fn(&str, Option<&TransactionReceipt>) + Send + Sync>;

impl Narrator {
    /// As JSON lines or for a person.
    pub fn new(json: bool) -> Self {
        Self { voice: Voice::Printed { json } }
    }

    /// To whoever wants to know.
    pub fn into(tell: Tell) -> Self {
        Self { voice: Voice::Told(tell) }
    }

    /// A step, with its transaction if it has one.
    pub fn say(&self, text: &str, sent: Option<&TransactionReceipt>) {
        match (&self.voice, sent) {
            (Voice::Told(tell), _) => tell(text, sent),
            (Voice::Printed { json: true }, _) => {
                let of = |sent: &TransactionReceipt| json!({"hash": sent.transaction_hash, "block": sent.block_number, "gas": sent.gas_used});
                crate::say(&json!({"says": text, "transaction": sent.map(of)}).to_string());
            }
            (_, Some(sent)) => {
                crate::say(&format!("{text}\n    transaction {}, {} gas", sent.transaction_hash, sent.gas_used));
            }
            (_, None) => crate::say(text),
        }
    }

    fn end(&self, word: &str, text: &str) {
        match &self.voice {
            Voice::Told(tell) => tell(&format!("{word}: {text}"), None),
            Voice::Printed { json: true } => {
                crate::say(&json!({"result": word, "says": text, "peakBytes": crate::memory::peak()}).to_string());
            }
            _ if word == "not decided" => tell(format_args!("assay: {word}: {text}\n")),
            _ => crate::say(&format!("{word}: {text}")),
        }
    }
}

async fn dispute(args: &DisputeArgs, narrator: &Narrator) -> anyhow::Result<Ending> {
    let file = verify::read(&args.file)?;
    let statements = statements::check(&file).with_context(|| format!("{} proves nothing", args.file.display()))?;
    let chain = connect(args, &file).await?;
    if let Some(other) = &args.against {
        return equivocation(args, narrator, &chain, &file, &verify::read(other)?).await;
    }
    let name = args.model.as_deref().context("--model is missing")?;
    let loaded = load::open(name)?;
    let found = loaded.manifest()?.model_id();
    let context_max = file.job.prompt.len().saturating_add(file.job.max_tokens as usize);
    let threads = args.threads.unwrap_or_else(load::all_cores);
    let part = {
        let model = loaded.load(&args.cache, LoadOptions { context_max })?;
        let mut runner = Runner::new(threads);
        match find_fault(&file, replay(&file, &statements, &model, found, &mut runner), narrator)? {
            Fault::In(part) => part,
            Fault::None(why) if args.force => {
                narrator.say(&format!("{why}; challenged all the same (--force)"), None);
                file.parts.len() - 1
            }
            Fault::None(why) => return Ok(Ending::Refused(format!("{why} (--force challenges all the same)"))),
        }
    };
    let subject = Subject::of(&file, part);
    if !is_choice_judged(&subject.job) && !args.force {
        return Ok(Ending::Refused(
            "the job draws its tokens by chance or adjusts the logits: the court judges only the first token of the \
             order, so that a provider can show a right trace with another choice (--force challenges all the same)"
                .into(),
        ));
    }
    let traced = Arc::new(loaded.traced()?);
    let case = case(&file, &subject, &traced)?;
    let id = Court::dispute_id(chain.client.address(), &case);
    let mut progress = load::Progress::new("computing the trace");
    let trace = compute(&subject, traced, threads, &mut |done, total| progress.show(done, total))?;
    let since = open(narrator, &chain, &file, &subject, &case, id).await?;
    let documents = subject.documents(case);
    let ending = play(narrator, &chain, id, since, &trace, &documents).await?;
    if matches!(ending, Ending::Convicted(_)) {
        pay_back(narrator, &chain, &file.parts[part], since).await?;
    }
    if !args.no_withdraw && chain.court.owed(chain.client.address()).await? > Amount::ZERO {
        let sent = chain.court.withdraw().await?;
        narrator.say("takes what the court owes: bond and reward", Some(&sent));
    }
    Ok(ending)
}

/// The chain with the court of the receipt's registry.
pub struct Chain {
    /// With the challenger's key.
    pub client: ChainClient,
    /// Its court.
    pub court: Court,
    /// What the court was deployed with.
    pub terms: CourtTerms,
}

async fn connect(args: &DisputeArgs, file: &ReceiptFile) -> anyhow::Result<Chain> {
    let key = state::read_key(&args.key_file)?;
    let options = ClientOptions { chain_id: Some(file.chain_id), ..ClientOptions::default() };
    let client = ChainClient::connect(args.rpc.as_str(), key, options)
        .await
        .with_context(|| format!("cannot use the chain at {}", args.rpc))?;
    let court = Court::of_registry(client.clone(), file.registry).await?;
    let court = court.with_context(|| format!("the registry {} of this receipt has no court", file.registry))?;
    let terms = court.terms().await?;
    Ok(Chain { client, court, terms })
}

/// Whether there is something to dispute.
pub enum Fault {
    /// In this part of the file.
    In(usize),
    /// Why not.
    None(String),
}

/// What a replay's verdict means for a dispute.
///
/// # Errors
/// There is no verdict.
pub fn find_fault(
    file: &ReceiptFile,
    verdict: Result<Verdict, Unchecked>,
    narrator: &Narrator,
) -> anyhow::Result<Fault> {
    match verdict {
        Ok(Verdict::Exact { tokens }) => {
            Ok(Fault::None(format!("the answer is right: all {tokens} tokens were re-derived")))
        }
        Ok(Verdict::WrongFinish { expected, got, .. }) => Ok(Fault::None(format!(
            "all tokens are right, only the answer ends with {got:?} where the model gives {expected:?}: no court judges that"
        ))),
        Ok(Verdict::WrongToken { provider, index, expected, got }) => {
            let expected = expected.map_or_else(|| "the end".into(), |token| format!("token {token}"));
            narrator.say(
                &format!("output token {index} is {got}, the model gives {expected}: {provider} signed a wrong answer"),
                None,
            );
            let mut end = 0;
            let part = file.parts.iter().position(|part| {
                end += part.output.len();
                index < end
            });
            Ok(Fault::In(part.context("the wrong token is in some part")?))
        }
        Err(other @ Unchecked::OtherModel { .. }) => bail!("{other}; give the model of the receipt with --model"),
        Err(error) => Err(error.into()),
    }
}

/// What the dispute is about: one provider's part of a receipt file.
pub struct Subject<'a> {
    part: &'a ReceiptPart,
    job: Job,
}

impl<'a> Subject<'a> {
    pub fn of(file: &'a ReceiptFile, part: usize) -> Self {
        let before: Vec<u32> = file.parts[..part].iter().flat_map(|part| part.output.iter().copied()).collect();
        Self { part: &file.parts[part], job: file.job.resumed_after(&before) }
    }

    /// What was asked of that provider.
    pub fn job(&self) -> &Job {
        &self.job
    }

    pub fn documents(&self, case: Case) -> Documents {
        Documents {
            case,
            job: self.job.canonical_bytes(),
            response: response_bytes(&self.part.output, self.part.finish),
            output: self.part.output.clone(),
        }
    }
}

pub fn case(file: &ReceiptFile, subject: &Subject<'_>, traced: &TracedModel) -> anyhow::Result<Case> {
    let head = traced.graph().head();
    ensure!(
        file.manifest.graph_hash == head.hash(),
        "the receipt's model was hashed without its graph, or with another: it cannot be taken to court"
    );
    let receipt = &subject.part.signed.receipt;
    Ok(Case {
        receiptHash: receipt.struct_hash(),
        requestHash: receipt.request_hash.0,
        responseHash: receipt.response_hash.0,
        weightsRoot: file.manifest.weights_root,
        rotationRoot: head.rotation_root,
        opsRoot: head.ops_root,
        ops: head.ops,
        weightLeaves: head.weight_leaves,
        rotationLeaves: head.rotation_leaves,
    })
}

/// The trace of what was asked and answered. `progress(done, total)` counts positions.
pub fn compute(
    subject: &Subject<'_>,
    traced: Arc<TracedModel>,
    threads: usize,
    progress: &mut dyn FnMut(u64, u64),
) -> anyhow::Result<Trace> {
    let output = subject.part.output.clone();
    let tokens = [&subject.job.prompt[..], &subject.job.prefix, &output].concat();
    let input = u32::try_from(subject.job.input_tokens()).context("the request is too long for a dispute")?;
    let is_judged = is_choice_judged(&subject.job);
    // A choice that is not judged is taken as it was made.
    let mut choose = |index: usize, logits: &[f32]| {
        if is_judged { greedy(index, logits) } else { output.get(index).copied() }
    };
    let options = TraceOptions { threads, lie: None };
    Ok(Trace::compute(traced, tokens, input, options, &mut choose, progress)?)
}

/// Opens the dispute, or finds it open; returns the block in which it was opened.
pub async fn open(
    narrator: &Narrator,
    chain: &Chain,
    file: &ReceiptFile,
    subject: &Subject<'_>,
    case: &Case,
    id: B256,
) -> anyhow::Result<u64> {
    let provider = subject.part.provider;
    let found = Phase::from_number(chain.court.dispute(id).await?.phase).unwrap_or(Phase::None);
    if found != Phase::None {
        let block = chain.court.block_of(id, 0).await?.context("the dispute's first block was not found")?;
        narrator.say(&format!("goes on with dispute {id}, opened in block {block}, now {found:?}"), None);
        return Ok(block);
    }
    stakes(narrator, chain, provider, subject).await?;
    if let Some(sent) = chain.court.prepare_bond(&chain.terms).await? {
        narrator.say("allows the court to take the bond", Some(&sent));
    }
    let manifest = file.manifest.canonical_bytes();
    let sent = chain
        .court
        .challenge(&subject.part.signed, manifest, case.clone())
        .await
        .with_context(|| format!("opening the dispute at the court {}", chain.court.address))?;
    narrator.say(&format!("challenges {provider}: dispute {id}"), Some(&sent));
    Ok(sent.block_number.unwrap_or(0))
}

/// Says what is at stake, and refuses what can bring nothing.
async fn stakes(narrator: &Narrator, chain: &Chain, provider: ProviderId, subject: &Subject<'_>) -> anyhow::Result<()> {
    let Chain { client, court, terms } = chain;
    let request = subject.part.signed.receipt.request_hash;
    ensure!(!court.is_convicted(provider, request).await?, "{provider} was convicted for this request already");
    let slashable = court.slashable(provider).await?;
    ensure!(slashable > Amount::ZERO, "{provider} has no stake that could be taken");
    let price = client.gas_price().await?;
    let ether = price.saturating_mul(u128::from(GAS_MAX)) as f64 / 1e18;
    let penalty = terms.penalty.min(slashable);
    let reward = Amount(penalty.0.saturating_mul(u128::from(terms.reward_bps)) / 10_000);
    narrator.say(
        &format!(
            "at stake: your bond of {} base units and about {ether:.6} ether of gas; if the provider is convicted, {penalty} \
             of its stake, of which {reward} are yours; {} s for each move",
            terms.bond, terms.move_window_s
        ),
        None,
    );
    can_pay(chain).await
}

/// Whether the account has a bond, here or in the court.
pub async fn can_pay(chain: &Chain) -> anyhow::Result<()> {
    let Chain { client, court, terms } = chain;
    let token = Token::new(client.clone(), terms.token);
    let has = court.owed(client.address()).await?.max(token.balance_of(client.address()).await?);
    ensure!(
        has >= terms.bond,
        "{} has {has} base units of {}, the bond is {}",
        client.address(),
        terms.token,
        terms.bond
    );
    Ok(())
}

/// Plays to the end.
pub async fn play(
    narrator: &Narrator,
    chain: &Chain,
    id: B256,
    since: u64,
    trace: &Trace,
    documents: &Documents,
) -> anyhow::Result<Ending> {
    let Chain { client, court, .. } = chain;
    let pause = if finality_depth(client.chain_id()) == 0 { LOOK_FAST } else { LOOK_SLOW };
    let mut watch = Watch::new(client.clone(), court.clone(), id, since);
    let (mut failures, mut waiting) = (0, false);
    loop {
        let acted = match watch.turn(Role::Challenger(documents), trace).await {
            Ok(Turn::Ours(step)) => {
                if std::mem::take(&mut waiting) {
                    narrator.say("  the provider has answered", None);
                }
                court.play(&step.calls).await.map(|sent| Some((step.says, sent))).map_err(WatchError::from)
            }
            Ok(Turn::Theirs { deadline }) if is_late(client, deadline).await => {
                let ended = court.timeout(id).await;
                ended.map(|sent| Some(("the provider is silent and has lost".into(), sent))).map_err(WatchError::from)
            }
            Ok(Turn::Theirs { .. }) => {
                waiting = true;
                Ok(None)
            }
            Ok(Turn::Over) => return over(chain, documents, since).await,
            Err(WatchError::Play(PlayError::NothingWrong)) => {
                let sent = court.concede(id).await?;
                narrator.say("finds nothing wrong in the provider's trace and gives up", Some(&sent));
                return Ok(Ending::Lost);
            }
            Err(error) => Err(error),
        };
        match acted {
            Ok(Some((says, sent))) => {
                failures = 0;
                narrator.say(&says, Some(&sent));
                match court.outcome(&sent) {
                    Some(Outcome::Convicted { slashed, .. }) => return Ok(Ending::Convicted(slashed)),
                    Some(Outcome::Acquitted) => return Ok(Ending::Lost),
                    None => {}
                }
            }
            Ok(None) => tokio::time::sleep(pause).await,
            Err(error) if error.may_pass() && failures < FAILURES_MAX => {
                failures += 1;
                tracing::debug!(%error, "looking again");
                tokio::time::sleep(pause).await;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("dispute {id} stands open; run the command again"));
            }
        }
    }
}

/// How a dispute that was opened in block `since` ended.
async fn over(chain: &Chain, documents: &Documents, since: u64) -> anyhow::Result<Ending> {
    let provider = chain.court.dispute(Court::dispute_id(chain.client.address(), &documents.case)).await?.provider;
    let request = assay_types::RequestHash(documents.case.requestHash);
    Ok(match chain.court.conviction(ProviderId(provider), request, since).await? {
        Some(Outcome::Convicted { slashed, .. }) => Ending::Convicted(slashed),
        _ => Ending::Lost,
    })
}

/// Has the payer of a convicted answer paid back; what it got, if anything was taken and nobody had done it before.
pub async fn pay_back(
    narrator: &Narrator,
    chain: &Chain,
    part: &ReceiptPart,
    since: u64,
) -> anyhow::Result<Option<Amount>> {
    let receipt = &part.signed.receipt;
    let conviction = chain.court.conviction(part.provider, receipt.request_hash, since).await?;
    let Some(Outcome::Convicted { slashed, version }) = conviction else { return Ok(None) };
    if chain.court.refunded(part.provider, receipt.request_hash).await?.is_none() {
        let sent = chain.court.refund(part.provider, receipt, &part.channel, (slashed, version)).await?;
        let payer = part.channel.payer;
        narrator
            .say(&format!("has the court pay {payer} back what the answer had cost, out of the stake"), Some(&sent));
    }
    Ok(chain.court.refunded(part.provider, receipt.request_hash).await?)
}

/// By this machine's clock or by the chain's: an idle chain's last block may be old.
async fn is_late(client: &ChainClient, deadline: u64) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    now > deadline || client.block_timestamp().await.is_ok_and(|time| time > deadline)
}

async fn equivocation(
    args: &DisputeArgs,
    narrator: &Narrator,
    chain: &Chain,
    one: &ReceiptFile,
    other: &ReceiptFile,
) -> anyhow::Result<Ending> {
    let pairs = one.parts.iter().flat_map(|a| other.parts.iter().map(move |b| (&a.signed, &b.signed)));
    let mut two = pairs.filter(|(a, b)| {
        let (a, b) = (&a.receipt, &b.receipt);
        (a.request_hash, a.output_tokens) == (b.request_hash, b.output_tokens) && a.response_hash != b.response_hash
    });
    let Some((a, b)) = two.next() else {
        return Ok(Ending::Refused("the files do not have two answers of one length to one request".into()));
    };
    let sent = chain.court.convict_equivocation(a, b).await?;
    narrator.say("shows two answers that were signed for one request", Some(&sent));
    let slashed = match chain.court.outcome(&sent) {
        Some(Outcome::Convicted { slashed, .. }) => slashed,
        _ => Amount::ZERO,
    };
    if !args.no_withdraw && chain.court.owed(chain.client.address()).await? > Amount::ZERO {
        let sent = chain.court.withdraw().await?;
        narrator.say("takes the reward", Some(&sent));
    }
    Ok(Ending::Convicted(slashed))
}
