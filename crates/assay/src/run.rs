//! `assay run`: one prompt through a model on this machine, without any network.

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, TrySendError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail, ensure};
use assay_engine::{Engine, EngineEvent, EngineOptions, Model, Shutdown, SinkState};
use assay_gguf::{ChatMessage, OutputLimits, OutputText, chat_tokens};
use assay_num::Isa;
use assay_types::{B256, Finish, Job, MICRO, ModelId, Sampling, TokenId};
use serde_json::json;

use crate::load::{self, CacheArgs};
use crate::memory::MemoryArgs;
use crate::{print, tell};

/// Arguments of `assay run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// GGUF file, or the name of a shipped model (assay-tiny)
    pub model: String,
    /// What to say to it
    pub prompt: String,
    /// Continue the prompt as it is, without the model's chat template
    #[arg(long)]
    pub raw: bool,
    /// Most tokens to produce [default: what the context holds, at most 512]
    #[arg(long, value_name = "N")]
    pub max_tokens: Option<u32>,
    /// 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Choose among the most likely tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Choose among this many most likely tokens; 0 is all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: u32,
    /// Choose among tokens at least this many times as likely as the most likely one
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    pub min_p: f64,
    /// Makes tokens of prompt and output less likely: 0.01 to 100; 1 changes nothing
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f64,
    /// Same seed, same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Threads [default: as many as pay off for the model]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Instruction set: scalar, avx2, avx-vnni, avx512, neon, dotprod, i8mm [default: the best]
    #[arg(long, value_name = "ISA")]
    pub isa: Option<Isa>,
    #[command(flatten)]
    pub cache: CacheArgs,
    #[command(flatten)]
    pub memory: MemoryArgs,
    /// Print one JSON object at the end instead of the text as it comes
    #[arg(long)]
    pub json: bool,
}

/// Tokens between the engine and the terminal: one slow write does not stop the engine.
const TOKENS_AHEAD: usize = 64;

/// Default bound on the output.
const MAX_TOKENS_DEFAULT: u32 = 512;

/// Runs `assay run`.
///
/// # Errors
/// Anything that keeps the text from being produced, in one line.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    load::ensure_isa(args.isa)?;
    let opened = load::open(&args.model)?;
    let mut options = EngineOptions { isa: args.isa, sequences_max: 1, queue_depth: 1, ..EngineOptions::default() };
    let share = args.memory.share(opened.gguf(), &options, 1).with_context(|| format!("cannot run {}", args.model))?;
    if let Some(statement) = share.statement() {
        tell(format_args!("{statement}\n"));
    }
    let model = opened.load(&args.cache, share.load)?;
    let load_time = started.elapsed();
    let job = job(&args, &model)?;
    if let Some(threads) = args.threads {
        ensure!((1..=256).contains(&threads), "--threads is {threads}, allowed is 1 to 256");
        options.threads = threads;
    }
    options.kv_tokens = job.prompt.len() + job.max_tokens as usize;
    let engine = Engine::start(Arc::clone(&model), options)?;

    let started = Instant::now();
    let (sender, events) = mpsc::sync_channel(TOKENS_AHEAD);
    let sink = move |event| match sender.try_send(event) {
        Ok(()) => SinkState::Ready,
        Err(TrySendError::Full(_)) => SinkState::Full,
        Err(TrySendError::Disconnected(_)) => SinkState::Closed,
    };
    engine.submit(&job, Box::new(sink))?;
    let output = print_output(&model, &job, &events, args.json, started)?;
    let (isa, threads) = (engine.isa(), engine.threads());
    engine.shutdown(Shutdown::Now);

    if args.json {
        let decode_time = output.total.saturating_sub(output.first_token);
        let report = json!({
            "text": output.text,
            "tokens": output.tokens,
            "finish": output.finish,
            "prompt_tokens": job.prompt.len(),
            "isa": isa.to_string(),
            "threads": threads,
            "timings": {
                "load_ms": millis(load_time),
                "prefill_ms": millis(output.first_token),
                "decode_ms": millis(decode_time),
                "prefill_tokens_per_s": rate(job.prompt.len(), output.first_token),
                "decode_tokens_per_s": rate(output.tokens.len().saturating_sub(1), decode_time),
            },
        });
        print(&report.to_string())?;
    }
    Ok(())
}

struct Output {
    text: String,
    tokens: Vec<TokenId>,
    finish: Finish,
    first_token: Duration,
    total: Duration,
}

/// Receives the output; writes it as it comes unless `quiet`.
fn print_output(
    model: &Model,
    job: &Job,
    events: &Receiver<EngineEvent>,
    quiet: bool,
    started: Instant,
) -> anyhow::Result<Output> {
    let limits = OutputLimits { max_tokens: job.max_tokens, stop: job.stop.clone(), ignore_eos: job.ignore_eos };
    let mut decoder = OutputText::new(Arc::clone(model.tokenizer()), limits);
    let mut output = Output {
        text: String::new(),
        tokens: Vec::new(),
        finish: Finish::Open,
        first_token: Duration::ZERO,
        total: Duration::ZERO,
    };
    let mut stdout = io::stdout().lock();
    let mut show = |output: &mut Output, text: &str| -> io::Result<()> {
        output.text.push_str(text);
        if quiet || text.is_empty() {
            return Ok(());
        }
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    };
    loop {
        match events.recv().context("the engine stopped unexpectedly")? {
            EngineEvent::Token { id } => {
                if output.tokens.is_empty() {
                    output.first_token = started.elapsed();
                }
                output.tokens.push(id);
                let piece = decoder.push(id);
                show(&mut output, &piece.text)?;
            }
            EngineEvent::Logprobs(_) => {}
            EngineEvent::Done { finish } => {
                output.finish = finish;
                break;
            }
            EngineEvent::Failed { error } => bail!(error),
        }
    }
    output.total = started.elapsed();
    show(&mut output, &decoder.flush())?;
    if !quiet && !output.text.ends_with('\n') {
        writeln!(stdout)?;
    }
    Ok(output)
}

fn job(args: &RunArgs, model: &Model) -> anyhow::Result<Job> {
    let prompt = prompt_tokens(args, model)?;
    let room = model.context().saturating_sub(prompt.len());
    ensure!(room > 0, "the prompt has {} tokens; the model's context holds {}", prompt.len(), model.context());
    let max_tokens = args.max_tokens.unwrap_or_else(|| MAX_TOKENS_DEFAULT.min(u32::try_from(room).unwrap_or(u32::MAX)));
    Ok(Job {
        // Nothing leaves this process: no other party has to agree on the model's or the request's identity.
        model_id: ModelId::default(),
        embed: None,
        nonce: B256::ZERO,
        prompt,
        prefix: Vec::new(),
        max_tokens,
        sampling: Sampling {
            temperature_micro: micro("temperature", args.temperature, 100.0)?,
            top_p_micro: micro("top-p", args.top_p, 1.0)?,
            top_k: args.top_k,
            min_p_micro: micro("min-p", args.min_p, 1.0)?,
            repetition_penalty_micro: micro("repetition-penalty", args.repetition_penalty, 100.0)?,
            seed: args.seed,
            ..Sampling::GREEDY
        },
        logit_bias: Vec::new(),
        grammar: None,
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
    })
}

fn prompt_tokens(args: &RunArgs, model: &Model) -> anyhow::Result<Vec<TokenId>> {
    let tokenizer = model.tokenizer();
    if args.raw {
        return Ok(tokenizer.encode(&args.prompt, true, false));
    }
    match model.template().map_err(|error| anyhow!("{error} (--raw continues the prompt without it)"))? {
        None => Ok(tokenizer.encode(&args.prompt, true, false)),
        Some(template) => {
            let message = ChatMessage { role: "user".to_owned(), content: args.prompt.clone() };
            Ok(chat_tokens(tokenizer, template, &[message], &assay_gguf::Limits::default())?)
        }
    }
}

/// A parameter in millionths, rounded to nearest.
fn micro(name: &str, value: f64, max: f64) -> anyhow::Result<u32> {
    ensure!((0.0..=max).contains(&value), "--{name} is {value}, allowed is 0 to {max}");
    Ok((value * f64::from(MICRO)).round() as u32)
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn rate(n: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { (n as f64 / time.as_secs_f64() * 10.0).round() / 10.0 }
}
