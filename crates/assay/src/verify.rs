//! `assay verify`: is this receipt genuine, and is the answer the one that the model gives?

use crate::referee::Conviction;
use crate::{load, one_line, say, start_logging, state, tell};
use anyhow::{Context, bail};
use assay_chain::client::Registry;
use assay_chain::{ChainClient, ClientOptions};
use assay_engine::encoder::Embedder;
use assay_engine::{LoadOptions, Runner, score};
use assay_types::{Address, Amount, Class, Job, ModelId, ProviderId, ReceiptFile};
use assay_verify::likeness::compare;
use assay_verify::replay::{Unchecked, Verdict, replay, replay_vectors};
use assay_verify::statements::{self, Statements};
use clap::Args;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Largest receipt file that is read.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Checks a receipt file.
///
/// Exit status: 0 valid, 1 invalid, 2 cannot check.
#[derive(Args)]
pub struct VerifyArgs {
    /// Receipt file, as `GET /v1/receipts/ID` returns it
    file: PathBuf,
    /// Also re-derive the answer with this model: a GGUF file, or the name of the shipped model
    #[arg(long, value_name = "GGUF")]
    model: Option<String>,
    /// Also ask this chain for the providers' stakes
    #[arg(long, value_name = "URL")]
    rpc: Option<String>,
    /// The registry that is trusted, if the one that the receipt names is not
    #[arg(long, value_name = "ADDRESS")]
    registry: Option<Address>,
    /// Also derive the log probability of each output token, which nobody signs; needs --model
    #[arg(long, requires = "model")]
    logprobs: bool,
    /// Threads for the model [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    cache: load::CacheArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How a check came out.
enum Outcome {
    Valid(Vec<String>),
    Invalid(String),
}

/// Runs `assay verify` and says the result on standard output, the reason for no result on standard error.
pub fn run(args: &VerifyArgs) -> ExitCode {
    start_logging();
    let (word, lines, status) = match check(args) {
        Ok(Outcome::Valid(lines)) => ("valid", lines, 0),
        Ok(Outcome::Invalid(why)) => ("invalid", vec![why], 1),
        Err(error) => ("cannot check", vec![one_line(&error)], 2),
    };
    if args.json {
        say(&json!({"result": word, "status": status, "findings": lines}).to_string());
    } else if status == 2 {
        tell(format_args!("assay: {word}: {}\n", lines.join("; ")));
    } else {
        say(word);
        for line in lines {
            say(&format!("  {line}"));
        }
    }
    ExitCode::from(status)
}

fn check(args: &VerifyArgs) -> anyhow::Result<Outcome> {
    let file = read(&args.file)?;
    let statements = match statements::check(&file) {
        Ok(statements) => statements,
        Err(fault) => return Ok(Outcome::Invalid(fault.to_string())),
    };
    let mut lines = vec![format!(
        "statements: {} part(s), {} output tokens, {} base units charged; hashes and signatures hold",
        file.parts.len(),
        statements.output.len(),
        statements.charged
    )];
    for provider in &statements.providers {
        lines.push(format!("signed by {provider}"));
    }
    if statements.class == Class::Tolerant {
        lines.push(
            "class tolerant: the provider runs an engine of its own. This receipt proves who answered which request with \
             which tokens, and what was charged; it does not prove that the model gave them. No replay can, and no stake \
             answers for it: only the provider's reputation does"
                .into(),
        );
    }
    for step in [check_stake, check_answer] {
        match step(args, &file, &statements)? {
            Outcome::Valid(more) => lines.extend(more),
            invalid @ Outcome::Invalid(_) => return Ok(invalid),
        }
    }
    Ok(Outcome::Valid(lines))
}

/// Reads a receipt file, or the one in a file of `DIR/convictions`.
///
/// # Errors
/// It is neither, or cannot be read.
pub fn read(path: &Path) -> anyhow::Result<ReceiptFile> {
    let shown = || format!("cannot read {}", path.display());
    let size = std::fs::metadata(path).with_context(shown)?.len();
    if size > FILE_BYTES_MAX {
        bail!("{} has {size} bytes; a receipt file has at most {FILE_BYTES_MAX}", path.display());
    }
    let bytes = std::fs::read(path).with_context(shown)?;
    serde_json::from_slice(&bytes).or_else(|error| match serde_json::from_slice::<Conviction>(&bytes) {
        Ok(conviction) => Ok(conviction.file),
        Err(_) => Err(error).with_context(|| format!("{} is no receipt file", path.display())),
    })
}

fn check_stake(args: &VerifyArgs, file: &ReceiptFile, statements: &Statements) -> anyhow::Result<Outcome> {
    let Some(url) = &args.rpc else {
        return Ok(Outcome::Valid(vec!["stake: not checked (give the chain with --rpc)".into()]));
    };
    if let Some(trusted) = args.registry
        && trusted != file.registry
    {
        return Ok(Outcome::Invalid(format!(
            "the receipt is bound to registry {:#x}, not {trusted:#x}",
            file.registry
        )));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut lines = vec![];
    for provider in &statements.providers {
        let stake = runtime
            .block_on(read_stake(url, file, *provider))
            .with_context(|| format!("cannot ask {url} for stakes"))?;
        match stake {
            Some((true, amount)) => lines.push(format!("stake: {provider} has {amount} base units at stake")),
            Some((false, amount)) => {
                return Ok(Outcome::Invalid(format!("{provider} has no sufficient stake: {amount} base units")));
            }
            None => {
                return Ok(Outcome::Invalid(format!(
                    "{provider} has no stake: there is no registry at {:#x} on this chain",
                    file.registry
                )));
            }
        }
    }
    lines.dedup();
    Ok(Outcome::Valid(lines))
}

/// Whether the provider is registered with enough stake, and how much it has; `None` if there is no registry.
async fn read_stake(url: &str, file: &ReceiptFile, provider: ProviderId) -> anyhow::Result<Option<(bool, Amount)>> {
    let options = ClientOptions { chain_id: Some(file.chain_id), attempts: 2, ..ClientOptions::default() };
    let client = ChainClient::connect(url, state::nobody()?, options).await?;
    if !client.has_code(file.registry).await? {
        return Ok(None);
    }
    let registry = Registry::new(client, file.registry);
    Ok(Some((registry.is_active(provider).await?, registry.stake_of(provider).await?)))
}

fn check_answer(args: &VerifyArgs, file: &ReceiptFile, statements: &Statements) -> anyhow::Result<Outcome> {
    let Some(name) = &args.model else {
        return Ok(Outcome::Valid(vec!["answer: not checked (give the model with --model)".into()]));
    };
    let loaded = load::open(name)?;
    let found = loaded.manifest()?.model_id();
    if file.job.embed.is_some() {
        return check_vectors(args, file, statements, name, found);
    }
    // However long it is, if the model allows it; the engine's default would refuse what others serve.
    let context_max = file.job.prompt.len().saturating_add(file.job.max_tokens as usize);
    let model = loaded.load(&args.cache, LoadOptions { context_max })?;
    let threads = args.threads.unwrap_or_else(load::all_cores);
    let mut runner = Runner::new(threads);
    if statements.class == Class::Tolerant {
        let canonical = loaded.manifest()?;
        if canonical.tolerant().model_id() != file.job.model_id {
            let error = Unchecked::OtherModel { expected: file.job.model_id, found: canonical.tolerant().model_id() };
            return Ok(Outcome::Invalid(error.to_string()));
        }
        let job = Job { model_id: found, ..file.job.clone() };
        let signs = compare(&job, &statements.output, &model, found, &mut runner)?;
        let odd = signs.iter().filter(|sign| sign.is_odd).count();
        return Ok(Outcome::Valid(vec![format!(
            "answer: {odd} of {} tokens are not what the canonical engine would have taken (an honest engine has at most \
             2 % of such where the temperature is 0, else 6.5 %); one answer says little, many are what gateways count",
            signs.len()
        )]));
    }
    match replay(file, statements, &model, found, &mut runner) {
        Ok(Verdict::Exact { tokens }) => {
            let mut lines = vec![format!(
                "answer: exact, all {tokens} tokens re-derived in one prefill ({}, {threads} threads)",
                runner.isa()
            )];
            if args.logprobs {
                let scores = score(&model, &mut runner, &file.job, &statements.output, 0)?;
                for (index, (token, score)) in statements.output.iter().zip(scores).enumerate() {
                    let logprob = f64::from(score.token_micro) / 1e6;
                    lines.push(format!("output token {index}: {token}, log probability {logprob:.6}"));
                }
            }
            Ok(Outcome::Valid(lines))
        }
        Ok(Verdict::WrongToken { provider, index, expected, got }) => {
            let expected = expected.map_or_else(|| "the end".into(), |t| format!("token {t}"));
            Ok(Outcome::Invalid(format!(
                "output token {index} is {got}; the model gives {expected}: {provider} signed a wrong answer"
            )))
        }
        Ok(Verdict::WrongFinish { provider, expected, got }) => Ok(Outcome::Invalid(format!(
            "the answer ends with {got:?}; the model gives {expected:?}: {provider} signed a wrong answer"
        ))),
        Err(other @ Unchecked::OtherModel { .. }) => Ok(Outcome::Invalid(other.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// [`check_answer`] where the answer is vectors.
fn check_vectors(
    args: &VerifyArgs,
    file: &ReceiptFile,
    statements: &Statements,
    name: &str,
    found: ModelId,
) -> anyhow::Result<Outcome> {
    let encoder = load::load_encoder(name, &args.cache)?;
    let threads = args.threads.unwrap_or_else(load::all_cores);
    let mut embedder = Embedder::new(threads);
    match replay_vectors(file, statements, &encoder, found, &mut embedder) {
        Ok(Verdict::Exact { tokens }) => {
            let (vectors, isa) = (tokens / encoder.dimensions().max(1), embedder.isa());
            Ok(Outcome::Valid(vec![format!(
                "answer: exact, all {tokens} values of {vectors} vectors re-derived ({isa}, {threads} threads)"
            )]))
        }
        Ok(Verdict::WrongToken { provider, index, expected, got }) => {
            let (got, expected) = (f32::from_bits(got), expected.map(f32::from_bits).unwrap_or_default());
            Ok(Outcome::Invalid(format!(
                "value {index} of the vectors is {got:e}; the model gives {expected:e}: {provider} signed wrong vectors"
            )))
        }
        Ok(Verdict::WrongFinish { .. }) => Ok(Outcome::Invalid("the vectors do not end where they have to".into())),
        Err(other @ Unchecked::OtherModel { .. }) => Ok(Outcome::Invalid(other.to_string())),
        Err(error) => Err(error.into()),
    }
}
