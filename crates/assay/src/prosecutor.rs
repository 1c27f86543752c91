//! Disputes that begin by themselves: every wrong answer that a gateway's referee has kept goes to court.
//!
//! ```text
//! referee --convictions/ID.json, wake--> task --one thread each, few at a time--> challenge .. judged .. withdraw
//!                                         |                                        |
//!                                         +------------- disputes/ID.json ---------+
//! ```
//! What was done is only noted in `disputes/ID.json`; where a dispute stands is on the chain, and its id follows from key
//! and receipt, so a restart goes on where it was, also without that file. A dispute is played on a thread of its own,
//! because a move may cost a part of a forward pass. What is lost of bonds, or may be, never exceeds the limit.

use crate::dispute::{self, Chain, Ending, Narrator, Subject};
use crate::referee::Conviction;
use crate::{load, state};
use anyhow::Context;
use assay_chain::B256;
use assay_chain::client::{Court, Phase, TransactionReceipt};
use assay_graph::{Trace, TracedModel};
use assay_types::{Amount, ProviderId, ReceiptFile};
use assay_verify::dispute::is_choice_judged;
use assay_verify::statements;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Disputes that are played at a time: each holds a trace.
const AT_ONCE: usize = 4;
/// Between two looks at the folder when nobody wakes the task.
const LOOK: Duration = Duration::from_secs(30);
/// Files of the folder that are looked at.
const FILES_MAX: usize = 10_000;
/// Pause after a failure; doubles up to the second.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(600);
/// Failures of one dispute, some three days of them, after which it is left to a person.
const TRIES_MAX: u32 = 500;
/// Transactions of one dispute that are noted; a game has fewer.
const SENT_MAX: usize = 128;
/// How long the end waits for the disputes that run.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// Where a dispute stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// Not opened yet, or to be tried again.
    Waiting,
    /// The bond is in the court, or on its way there.
    Open,
    /// The provider was convicted.
    Convicted,
    /// The bond is the provider's.
    Lost,
    /// It is not disputed.
    Refused,
}

impl Stage {
    /// Nothing follows any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Convicted | Self::Lost | Self::Refused)
    }
}

/// A transaction of a dispute.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sent {
    /// What it says.
    pub says: String,
    pub hash: B256,
    pub block: u64,
    pub gas: u64,
}

/// What is kept of a dispute.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Format of this file.
    pub version: u32,
    /// Name of the answer's receipt.
    pub receipt: String,
    /// Who signed what is wrong.
    pub provider: Option<ProviderId>,
    pub stage: Stage,
    /// Id on the chain.
    pub dispute: Option<B256>,
    /// The last step, or why there is none.
    pub says: String,
    /// Base units that are in the court for it, or lost there.
    pub bond: Amount,
    /// What the provider lost.
    pub slashed: Option<Amount>,
    /// What of it went back to who had paid for the answer.
    #[serde(default)]
    pub refunded: Option<Amount>,
    /// Of the challenger's transactions.
    pub gas: u64,
    pub transactions: Vec<Sent>,
    /// Unix seconds.
    pub updated_at: u64,
}

impl Record {
    const VERSION: u32 = 1;

    fn new(receipt: &str) -> Self {
        Self {
            version: Self::VERSION,
            receipt: receipt.to_owned(),
            provider: None,
            stage: Stage::Waiting,
            dispute: None,
            says: "waits".into(),
            bond: Amount::ZERO,
            slashed: None,
            refunded: None,
            gas: 0,
            transactions: vec![],
            updated_at: now(),
        }
    }

    fn end(&mut self, stage: Stage, says: String) {
        // A bond that was lost stays in the sum that the limit is for.
        if stage != Stage::Lost {
            self.bond = Amount::ZERO;
        }
        (self.stage, self.says) = (stage, says);
    }
}

/// Told of each step: for whoever shows them as they come.
pub type Listener = Arc<dyn Fn(&str, Option<&TransactionReceipt>) + Send + Sync>;

/// How disputes are played.
pub struct Settings {
    /// Where the referee puts wrong answers.
    pub convictions: PathBuf,
    /// Where records go.
    pub disputes: PathBuf,
    /// The model of the answers.
    pub model: PathBuf,
    /// The most that may be in bonds, those included that were lost.
    pub bonds_max: Amount,
    /// For a trace.
    pub threads: usize,
    pub listener: Option<Listener>,
}

/// The task that begins disputes, and how to wake and stop it.
pub struct Prosecutor {
    wake: Arc<Notify>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Prosecutor {
    /// Starts it. `chain` has the key whose account pays bonds and gas.
    ///
    /// # Errors
    /// The folder for records cannot be made.
    pub fn start(settings: Settings, chain: Chain) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&settings.disputes)
            .with_context(|| format!("cannot create {}", settings.disputes.display()))?;
        let (wake, (stop, stopped)) = (Arc::new(Notify::new()), watch::channel(false));
        let (reports, reported) = mpsc::channel(AT_ONCE);
        let shared =
            Arc::new(Shared { settings, chain, opening: tokio::sync::Mutex::default(), traced: Mutex::default() });
        let docket = Docket {
            shared,
            open: BTreeMap::new(),
            done: BTreeSet::new(),
            lost: Amount::ZERO,
            running: 0,
            reports,
            stopped: stopped.clone(),
        };
        let task = tokio::spawn(docket.run(Arc::clone(&wake), reported, stopped));
        Ok(Self { wake, stop, task })
    }

    /// Has it look for new answers at once.
    pub fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Ends; what is open goes on with the next start.
    pub async fn stop(self) {
        // Nobody listens only if the task is gone already.
        let _ = self.stop.send(true);
        if tokio::time::timeout(STOP_TIME_MAX, self.task).await.is_err() {
            tracing::warn!("a dispute was cut in the middle of a step; it goes on with the next start");
        }
    }
}

/// A dispute that is not over.
struct Pending {
    record: Record,
    is_running: bool,
    tries: u32,
    due: Instant,
}

/// Which disputes there are: the task's own.
struct Docket {
    shared: Arc<Shared>,
    open: BTreeMap<String, Pending>,
    done: BTreeSet<String>,
    /// Sum of bonds that were lost.
    lost: Amount,
    running: usize,
    reports: mpsc::Sender<(Record, Result<(), String>)>,
    stopped: watch::Receiver<bool>,
}

impl Docket {
    async fn run(
        mut self,
        wake: Arc<Notify>,
        mut reported: mpsc::Receiver<(Record, Result<(), String>)>,
        mut stopped: watch::Receiver<bool>,
    ) {
        loop {
            if let Err(error) = self.look() {
                tracing::error!(
                    error = format!("{error:#}"),
                    "wrong answers cannot be read: they are not disputed yet"
                );
            }
            self.begin();
            let now = Instant::now();
            let due = self.open.values().filter(|case| !case.is_running && case.due > now).map(|case| case.due).min();
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => break,
                () = wake.notified() => {}
                Some((record, result)) = reported.recv() => self.on_report(record, result),
                () = tokio::time::sleep_until(due.unwrap_or(now + LOOK).min(now + LOOK)) => {}
            }
        }
        while self.running > 0 {
            let Some((record, result)) = reported.recv().await else { return };
            self.on_report(record, result);
        }
    }

    /// Takes up answers that were kept since the last look.
    fn look(&mut self) -> anyhow::Result<()> {
        let settings = &self.shared.settings;
        let entries = match std::fs::read_dir(&settings.convictions) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| settings.convictions.display().to_string()),
        };
        for entry in entries.take(FILES_MAX) {
            let name = entry?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.strip_suffix(".json")).map(str::to_owned) else {
                continue;
            };
            if self.done.contains(&id) || self.open.contains_key(&id) {
                continue;
            }
            let path = settings.disputes.join(format!("{id}.json"));
            let found = state::read_json::<Record>(&path).unwrap_or_else(|error| {
                // The chain knows what the file knew.
                tracing::warn!(error = crate::one_line(&error), "the record of a dispute is made anew");
                None
            });
            let record = found.filter(|found| found.version == Record::VERSION).unwrap_or_else(|| Record::new(&id));
            if record.stage.is_final() {
                self.lost = self.lost.saturating_add(record.bond);
                self.done.insert(id);
            } else {
                self.open.insert(id, Pending { record, is_running: false, tries: 0, due: Instant::now() });
            }
        }
        Ok(())
    }

    /// Starts what is due, as far as threads and bonds go. What is open on the chain comes first: its clock runs.
    fn begin(&mut self) {
        let (now, bond, max) = (Instant::now(), self.shared.chain.terms.bond, self.shared.settings.bonds_max);
        let mut due: Vec<(bool, String)> = self
            .open
            .iter()
            .filter(|(_, case)| !case.is_running && case.due <= now)
            .map(|(id, case)| (case.record.bond == Amount::ZERO, id.clone()))
            .collect();
        due.sort();
        for (is_new, id) in due {
            if self.running >= AT_ONCE {
                return;
            }
            let out = self.open.values().fold(self.lost, |sum, case| sum.saturating_add(case.record.bond));
            let Some(case) = self.open.get_mut(&id) else { continue };
            if is_new && out.saturating_add(bond) > max {
                let says =
                    format!("waits: {out} base units are in bonds or lost, the limit is {max}, a bond is {bond}");
                if case.record.says != says {
                    tracing::warn!(receipt = id, "{says}");
                    case.record.says = says;
                    self.shared.keep(&case.record);
                }
                case.due = now + LOOK;
                continue;
            }
            case.record.bond = bond;
            case.is_running = true;
            self.running += 1;
            let (shared, record) = (Arc::clone(&self.shared), case.record.clone());
            let (reports, stopped) = (self.reports.clone(), self.stopped.clone());
            let handle = tokio::runtime::Handle::current();
            let thread = std::thread::Builder::new().name("dispute".into()).spawn(move || {
                let report = handle.block_on(shared.conduct(record, stopped));
                // The task is gone only if the process ends.
                let _ = handle.block_on(reports.send(report));
            });
            if let Err(error) = thread {
                tracing::error!(%error, "no thread for a dispute; trying again");
                self.running -= 1;
                (case.is_running, case.record.bond, case.due) = (false, Amount::ZERO, now + LOOK);
            }
        }
    }

    fn on_report(&mut self, record: Record, result: Result<(), String>) {
        self.running = self.running.saturating_sub(1);
        let id = record.receipt.clone();
        let Some(case) = self.open.get_mut(&id) else { return };
        (case.record, case.is_running) = (record, false);
        match result {
            Ok(()) if case.record.stage.is_final() => {}
            // Cut by the end of the process.
            Ok(()) => return,
            Err(error) if case.tries < TRIES_MAX => {
                let pause = PAUSE_MIN.saturating_mul(1 << case.tries.min(16)).min(PAUSE_MAX);
                case.tries += 1;
                case.due = Instant::now() + pause;
                // Each failure that repeats itself is said once.
                if case.record.says != error {
                    tracing::warn!(receipt = id, error, "a dispute does not go on; it is tried again");
                    case.record.says = error;
                    self.shared.keep(&case.record);
                }
                return;
            }
            Err(error) => case.record.end(Stage::Refused, format!("given up after {TRIES_MAX} tries: {error}")),
        }
        self.shared.keep(&case.record);
        tracing::warn!(receipt = id, result = ?case.record.stage, "a dispute is over: {}", case.record.says);
        if case.record.stage == Stage::Lost {
            self.lost = self.lost.saturating_add(case.record.bond);
        }
        self.open.remove(&id);
        self.done.insert(id);
    }
}

/// What all disputes use.
struct Shared {
    settings: Settings,
    chain: Chain,
    /// A bond is allowed and taken in two transactions: one dispute at a time does that.
    opening: tokio::sync::Mutex<()>,
    traced: Mutex<Option<Arc<TracedModel>>>,
}

/// Why a dispute ends here without a judgement.
enum Settled {
    Refused(String),
    Ended(Ending),
}

impl Shared {
    fn keep(&self, record: &Record) {
        let path = self.settings.disputes.join(format!("{}.json", record.receipt));
        if let Err(error) = state::write_json(&path, record) {
            tracing::error!(error = crate::one_line(&error), "the record of a dispute could not be written");
        }
    }

    /// One dispute to its end, to a failure, or until `stopped`.
    async fn conduct(
        self: Arc<Self>,
        record: Record,
        mut stopped: watch::Receiver<bool>,
    ) -> (Record, Result<(), String>) {
        let journal = Arc::new(Journal { shared: Arc::clone(&self), record: Mutex::new(record) });
        let end = tokio::select! {
            end = self.prosecute(&journal) => end,
            _ = stopped.wait_for(|stop| *stop) => return (journal.record().clone(), Ok(())),
        };
        let mut record = journal.record().clone();
        let result = match end {
            Ok(Settled::Refused(why)) => {
                record.end(Stage::Refused, why);
                Ok(())
            }
            Ok(Settled::Ended(Ending::Convicted(slashed))) => {
                record.slashed = Some(slashed);
                record.end(Stage::Convicted, format!("{slashed} base units of the provider's stake were taken"));
                Ok(())
            }
            Ok(Settled::Ended(Ending::Lost)) => {
                record.end(Stage::Lost, "the bond is the provider's".into());
                Ok(())
            }
            Ok(Settled::Ended(Ending::Refused(why))) => {
                record.end(Stage::Refused, why);
                Ok(())
            }
            Err(error) => {
                // Until a challenge is sent no bond is out.
                if record.stage == Stage::Waiting {
                    record.bond = Amount::ZERO;
                }
                Err(crate::one_line(&error))
            }
        };
        (record, result)
    }

    async fn prosecute(&self, journal: &Arc<Journal>) -> anyhow::Result<Settled> {
        let refused = |why: &str| Ok(Settled::Refused(why.to_owned()));
        let path = self.settings.convictions.join(format!("{}.json", journal.record().receipt));
        let Some(Conviction { first_wrong, file }) = state::read_json(&path)? else {
            return refused("the wrong answer was taken away");
        };
        if let Err(fault) = statements::check(&file) {
            return refused(&format!("the receipt proves nothing: {fault}"));
        }
        if (file.chain_id, file.registry) != (self.chain.client.chain_id(), self.chain.terms.registry) {
            return refused("the receipt is of another network");
        }
        let Some(part) = part_of(&file, first_wrong) else {
            return refused("only the end of the answer is wrong: no court judges that");
        };
        let subject = Subject::of(&file, part);
        journal.record().provider = Some(file.parts[part].provider);
        if !is_choice_judged(subject.job()) {
            return refused("the job draws its tokens by chance or adjusts the logits: the court does not judge that");
        }
        let traced = self.traced()?;
        let case = match dispute::case(&file, &subject, &traced) {
            Ok(case) => case,
            Err(error) => return refused(&crate::one_line(&error)),
        };
        let id = Court::dispute_id(self.chain.client.address(), &case);
        journal.record().dispute = Some(id);
        let is_open = self.chain.court.dispute(id).await?.phase != Phase::None as u8;
        if !is_open && let Some(settled) = self.is_settled(&file, part).await? {
            return Ok(settled);
        }
        let trace = dispute::compute(&subject, traced, self.settings.threads, &mut |_, _| ())?;
        let narrator = journal.narrator();
        match first_difference(&trace, &file.parts[part].output) {
            Some((at, right, wrong)) => narrator.say(
                &format!(
                    "output token {at} is {wrong}, the model gives {right}: {} signed a wrong answer",
                    file.parts[part].provider
                ),
                None,
            ),
            // A mistake of the replay: whoever challenges a right answer loses the bond.
            None if !is_open => return refused("the trace re-derives every token: nothing is challenged"),
            None => {}
        }
        let since = {
            let _turn = self.opening.lock().await;
            if !is_open {
                dispute::can_pay(&self.chain).await?;
            }
            journal.record().stage = Stage::Open;
            dispute::open(&narrator, &self.chain, &file, &subject, &case, id).await?
        };
        let ending = dispute::play(&narrator, &self.chain, id, since, &trace, &subject.documents(case)).await?;
        if matches!(ending, Ending::Convicted(_)) {
            let refunded = dispute::pay_back(&narrator, &self.chain, &file.parts[part], since).await?;
            journal.record().refunded = refunded;
        }
        self.collect(&narrator).await;
        Ok(Settled::Ended(ending))
    }

    /// What makes a challenge useless, if anything does.
    async fn is_settled(&self, file: &ReceiptFile, part: usize) -> anyhow::Result<Option<Settled>> {
        let (provider, receipt) = (file.parts[part].provider, &file.parts[part].signed.receipt);
        if self.chain.court.is_convicted(provider, receipt.request_hash).await? {
            return Ok(Some(Settled::Refused(format!("{provider} was convicted for this request by somebody else"))));
        }
        let has_stake = self.chain.court.slashable(provider).await? > Amount::ZERO;
        Ok((!has_stake).then(|| Settled::Refused(format!("{provider} has no stake that could be taken"))))
    }

    /// Bond and reward go back to the account. What is left in the court is taken the next time.
    async fn collect(&self, narrator: &Narrator) {
        let _turn = self.opening.lock().await;
        let taken = async {
            if self.chain.court.owed(self.chain.client.address()).await? > Amount::ZERO {
                let sent = self.chain.court.withdraw().await?;
                narrator.say("the challenger takes its bond and its reward out of the court", Some(&sent));
            }
            anyhow::Ok(())
        };
        if let Err(error) = taken.await {
            tracing::warn!(error = crate::one_line(&error), "what the court owes was not taken out; it is safe there");
        }
    }

    fn traced(&self) -> anyhow::Result<Arc<TracedModel>> {
        let mut traced = self.traced.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(traced) = &*traced {
            return Ok(Arc::clone(traced));
        }
        let name = self.settings.model.to_str().context("the model's path is no text")?;
        Ok(Arc::clone(traced.insert(Arc::new(load::open(name)?.traced()?))))
    }
}

/// The part of a file that has this output token.
fn part_of(file: &ReceiptFile, index: u32) -> Option<usize> {
    let mut end = 0usize;
    file.parts.iter().position(|part| {
        end = end.saturating_add(part.output.len());
        (index as usize) < end
    })
}

/// Index of the first token that the trace has otherwise, the right token and the wrong one.
fn first_difference(trace: &Trace, output: &[u32]) -> Option<(usize, u32, u32)> {
    let pairs = trace.chosen().iter().zip(output).enumerate();
    pairs.map(|(at, (right, wrong))| (at, *right, *wrong)).find(|(_, right, wrong)| right != wrong)
}

/// One dispute's record while it is played.
struct Journal {
    shared: Arc<Shared>,
    record: Mutex<Record>,
}

impl Journal {
    fn record(&self) -> MutexGuard<'_, Record> {
        // Fields are assigned whole.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn narrator(self: &Arc<Self>) -> Narrator {
        let journal = Arc::clone(self);
        Narrator::into(Box::new(move |text, sent| journal.note(text, sent)))
    }

    fn note(&self, text: &str, sent: Option<&TransactionReceipt>) {
        let record = {
            let mut record = self.record();
            record.says = text.trim().to_owned();
            record.updated_at = now();
            if let Some(sent) = sent {
                record.gas = record.gas.saturating_add(sent.gas_used);
                if record.transactions.len() < SENT_MAX {
                    let (hash, block) = (sent.transaction_hash, sent.block_number.unwrap_or(0));
                    let says = record.says.clone();
                    record.transactions.push(Sent { says, hash, block, gas: sent.gas_used });
                }
            }
            record.clone()
        };
        self.shared.keep(&record);
        match sent {
            Some(sent) => {
                tracing::info!(receipt = record.receipt, transaction = %sent.transaction_hash, gas = sent.gas_used, "{text}")
            }
            None => tracing::info!(receipt = record.receipt, "{text}"),
        }
        if let Some(listener) = &self.shared.settings.listener {
            listener(text, sent);
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}

/// All records in a folder, the latest change first.
///
/// # Errors
/// The folder or a file in it cannot be read.
pub fn records(dir: &Path) -> anyhow::Result<Vec<Record>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", dir.display())),
    };
    let mut all = vec![];
    for entry in entries.take(FILES_MAX) {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "json") {
            all.extend(state::read_json::<Record>(&path)?);
        }
    }
    all.sort_by(|a, b| (b.updated_at, &b.receipt).cmp(&(a.updated_at, &a.receipt)));
    Ok(all)
}
