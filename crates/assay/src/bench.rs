//! `assay bench`: prefill and decode speed of a model on this machine.

use std::io::{BufRead as _, Read as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use assay_engine::latency::{self, Crowd, Latency};
use assay_engine::throughput::{Timing, Workload, measure, measure_memory, measure_replay};
use assay_engine::{Engine, EngineOptions, LOGIT_ROWS, Model, Runner, threads_for};
use assay_num::{Isa, Kernels};
use serde::Deserialize;
use serde_json::json;

use crate::inventory::size;
use crate::load::{CacheArgs, load};
use crate::print;

/// Arguments of `assay bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// GGUF file, or the name of a shipped model (assay-tiny)
    pub model: String,
    /// Print a line with a JSON object for each combination instead of a table
    #[arg(long)]
    pub json: bool,
    /// Threads; as of the next three, several values are measured in all combinations [default: as many as pay off for
    /// the model]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Prompt tokens of each sequence
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "256")]
    pub prompt: Vec<usize>,
    /// Tokens each sequence decodes
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "64")]
    pub r#gen: Vec<usize>,
    /// Repetitions; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub reps: usize,
    /// Sequences at once
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1")]
    pub concurrency: Vec<usize>,
    /// Instruction set: scalar, avx2, avx-vnni, avx512, neon, dotprod, i8mm [default: the best]
    #[arg(long, value_name = "ISA")]
    pub isa: Option<Isa>,
    /// Take turns with another program: for each line of standard input, a JSON object of what to run ("threads",
    /// "prompt", "gen", "concurrency", "isa", "measure": "speed", "memory", "replay" or "latency"), run it once and print a line of
    /// JSON; the other options are the defaults, --reps is not used
    #[arg(long)]
    pub turns: bool,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Prompt tokens per step.
const PREFILL_CHUNK: usize = 256;

/// Most combinations.
const CASES_MAX: usize = 1000;

/// Longest line of `--turns` in bytes.
const TURN_BYTES: u64 = 4096;

/// A line of `--turns`; what is missing is as in the arguments.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Turn {
    threads: Option<usize>,
    prompt: Option<usize>,
    r#gen: Option<usize>,
    concurrency: Option<usize>,
    isa: Option<String>,
    #[serde(default)]
    measure: Measure,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Measure {
    /// Prefill and decode.
    #[default]
    Speed,
    /// Plain reads of as much memory as a token takes.
    Memory,
    /// A reply and its replay.
    Replay,
    /// Times between tokens of running streams, alone and beside a prefill of the prompt.
    Latency,
}

/// Runs `assay bench`.
///
/// # Errors
/// A model that does not load, a workload that does not fit it, or repetitions that computed different logits.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    ensure!((1..=1000).contains(&args.reps), "--reps is {}, allowed is 1 to 1000", args.reps);
    let cases = cases(&args)?;
    let started = Instant::now();
    let model = load(&args.model, args.isa, &args.cache)?;
    let load_time = started.elapsed();
    if args.turns {
        return take_turns(&args, &model);
    }
    if !args.json {
        let (load_ms, weights) = (load_time.as_millis(), size(model.weight_bytes() as u64));
        print(&format!("{}: {weights} of weights a token, loaded in {load_ms} ms", args.model))?;
        let rates = "tokens/s: median, min, max";
        print(&format!("{:<9}{:>8}{:>5}{:>8}{:>6}  {:>26}  {:>26}", "", "", "", "", "", "prefill", "decode"))?;
        print(&format!(
            "{:<9}{:>8}{:>5}{:>8}{:>6}  {rates:>26}  {rates:>26}",
            "isa", "threads", "seqs", "prompt", "gen"
        ))?;
    }
    // Each line is printed when it is known.
    cases.iter().try_for_each(|case| run_case(&args, &model, case, load_time))
}

/// One line of the table.
struct Case {
    threads: Option<usize>,
    prompt: usize,
    r#gen: usize,
    concurrency: usize,
}

/// All combinations, the leftmost argument changing slowest.
fn cases(args: &BenchArgs) -> anyhow::Result<Vec<Case>> {
    let threads: Vec<Option<usize>> =
        if args.threads.is_empty() { vec![None] } else { args.threads.iter().copied().map(Some).collect() };
    let mut cases = vec![];
    for threads in threads {
        for &concurrency in &args.concurrency {
            for &prompt in &args.prompt {
                cases.extend(args.r#gen.iter().map(|&r#gen| Case { threads, prompt, r#gen, concurrency }));
            }
        }
    }
    ensure!((1..=CASES_MAX).contains(&cases.len()), "{} combinations, allowed are {CASES_MAX}", cases.len());
    Ok(cases)
}

fn run_case(args: &BenchArgs, model: &Model, case: &Case, load_time: Duration) -> anyhow::Result<()> {
    let Case { threads, prompt, r#gen, concurrency } = *case;
    let mut runner = runner(model, threads, args.isa)?;
    let workload = workload(prompt, r#gen, concurrency)?;
    // The first repetition pays for page faults and buffers; it is checked but not counted.
    let first = measure(model, &mut runner, &workload)?;
    let timings = (0..args.reps).map(|_| measure(model, &mut runner, &workload)).collect::<Result<Vec<_>, _>>()?;
    let same = timings.iter().all(|timing| timing.logits_hash == first.logits_hash);
    ensure!(same, "two repetitions computed different logits: this is a bug");

    let prefill = rates(&timings, prompt * concurrency, |timing| timing.prefill);
    let decode = rates(&timings, r#gen * concurrency, |timing| timing.decode);
    let (isa, threads) = (runner.isa().to_string(), runner.threads());
    if args.json {
        let report = json!({
            "model": args.model,
            "isa": isa,
            "threads": threads,
            "prompt": prompt,
            "gen": r#gen,
            "concurrency": concurrency,
            "load_ms": load_time.as_millis() as u64,
            "weight_bytes": model.weight_bytes(),
            "logits_hash": format!("{:016x}", first.logits_hash),
            "prefill_tokens_per_s": median(&prefill),
            "decode_tokens_per_s": median(&decode),
            "prefill_tokens_per_s_reps": prefill,
            "decode_tokens_per_s_reps": decode,
        });
        return print(&report.to_string());
    }
    let (prefill, decode) = (spread(&prefill), spread(&decode));
    print(&format!("{isa:<9}{threads:>8}{concurrency:>5}{prompt:>8}{gen:>6}  {prefill:>26}  {decode:>26}", gen = r#gen))
}

/// Median, least and most.
fn spread(rates: &[f64]) -> String {
    let (min, max) = rates.iter().fold((f64::MAX, 0.0_f64), |(min, max), rate| (min.min(*rate), max.max(*rate)));
    format!("{:.1} {min:>8.1} {max:>8.1}", median(rates))
}

fn runner(model: &Model, threads: Option<usize>, isa: Option<Isa>) -> anyhow::Result<Runner> {
    if let Some(threads) = threads {
        ensure!((1..=256).contains(&threads), "{threads} threads, allowed is 1 to 256");
    }
    let kernels =
        isa.map_or(Some(Kernels::detect()), Kernels::with_isa).context("this CPU lacks the instruction set")?;
    Ok(Runner::with_kernels(kernels, threads.unwrap_or_else(|| threads_for(model))))
}

fn workload(n_prompt: usize, n_decode: usize, n_sequences: usize) -> anyhow::Result<Workload> {
    ensure!((1..=LOGIT_ROWS).contains(&n_sequences), "{n_sequences} sequences, allowed is 1 to {LOGIT_ROWS}");
    Ok(Workload { n_prompt, n_decode, n_sequences, prefill_chunk: PREFILL_CHUNK })
}

/// Answers lines until the input ends.
fn take_turns(args: &BenchArgs, model: &Arc<Model>) -> anyhow::Result<()> {
    let mut input = std::io::stdin().lock();
    let mut line = String::new();
    loop {
        line.clear();
        if input.by_ref().take(TURN_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let turn: Turn = serde_json::from_str(&line).with_context(|| format!("a turn must be JSON, not {line:?}"))?;
        print(&take_turn(args, model, &turn)?.to_string())?;
    }
}

fn take_turn(args: &BenchArgs, model: &Arc<Model>, turn: &Turn) -> anyhow::Result<serde_json::Value> {
    let isa = turn.isa.as_ref().map(|name| name.parse::<Isa>()).transpose()?.or(args.isa);
    let mut runner = runner(model, turn.threads.or(args.threads.first().copied()), isa)?;
    // There is a first one: `cases` has seen to it.
    let (n_prompt, n_decode) = (turn.prompt.unwrap_or(args.prompt[0]), turn.r#gen.unwrap_or(args.r#gen[0]));
    let n_sequences = turn.concurrency.unwrap_or(args.concurrency[0]);
    let rate = |n: usize, time: Duration| (n * n_sequences) as f64 / time.as_secs_f64();
    Ok(match turn.measure {
        Measure::Speed => {
            let timing = measure(model, &mut runner, &workload(n_prompt, n_decode, n_sequences)?)?;
            json!({
                "isa": runner.isa().to_string(),
                "prefill_tokens_per_s": rate(n_prompt, timing.prefill),
                "decode_tokens_per_s": rate(n_decode, timing.decode),
                "weight_bytes": model.weight_bytes(),
                "logits_hash": format!("{:016x}", timing.logits_hash),
            })
        }
        Measure::Memory => json!({ "memory_bytes_per_s": measure_memory(model, &runner) }),
        Measure::Replay => {
            let timing = measure_replay(model, &mut runner, n_prompt, n_decode)?;
            json!({ "generate_s": timing.generate.as_secs_f64(), "replay_s": timing.replay.as_secs_f64() })
        }
        Measure::Latency => {
            let options = EngineOptions { threads: runner.threads(), isa, ..EngineOptions::default() };
            drop(runner);
            latency_of(model, options, Crowd { n_streams: n_sequences, n_prompt })?
        }
    })
}

fn latency_of(model: &Arc<Model>, options: EngineOptions, crowd: Crowd) -> anyhow::Result<serde_json::Value> {
    let engine = Engine::start(Arc::clone(model), options)?;
    let seen = latency::measure(&engine, &crowd, 1)?;
    let ms = |times: &[Duration], percent| Latency::percentile(times, percent).as_secs_f64() * 1e3;
    let both = |times: &[Duration]| json!({ "p50": ms(times, 50), "p99": ms(times, 99), "n": times.len() });
    Ok(json!({
        "isa": engine.isa().to_string(),
        "undisturbed_ms": both(&seen.undisturbed),
        "beside_prefill_ms": both(&seen.beside_prefill),
        "first_token_ms": seen.first_token.as_secs_f64() * 1e3,
    }))
}

fn rates(timings: &[Timing], n_tokens: usize, of: impl Fn(&Timing) -> Duration) -> Vec<f64> {
    timings.iter().map(|timing| (n_tokens as f64 / of(timing).as_secs_f64() * 10.0).round() / 10.0).collect()
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
