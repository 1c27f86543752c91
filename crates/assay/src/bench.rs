//! `assay bench`: prefill and decode speed of a model on this machine.

use std::io::{BufRead as _, Read as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use assay_engine::latency::{self, Crowd, Latency};
use assay_engine::throughput::{Timing, Workload, measure, measure_memory, measure_replay};
use assay_engine::{Engine, EngineOptions, LOGIT_ROWS, Model, Runner, threads_for};
use assay_num::{Isa, Kernels};
use serde::Deserialize;
use serde_json::json;

use crate::load::{CacheArgs, load};
use crate::print;

/// Arguments of `assay bench`.
#[derive(Debug, clap::Args)]
pub struct BenchArgs {
    /// GGUF file, or the name of a shipped model (assay-tiny)
    pub model: String,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub json: bool,
    /// Threads [default: as many as pay off for the model]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Prompt tokens of each sequence
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub prompt: usize,
    /// Tokens each sequence decodes
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub r#gen: usize,
    /// Repetitions; the median counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub reps: usize,
    /// Sequences at once
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub concurrency: usize,
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
    let model = load(&args.model, args.isa, &args.cache)?;
    if args.turns {
        return take_turns(&args, &model);
    }
    let mut runner = runner(&model, args.threads, args.isa)?;
    let workload = workload(args.prompt, args.r#gen, args.concurrency)?;
    // The first repetition pays for page faults and buffers; it is checked but not counted.
    let first = measure(&model, &mut runner, &workload)?;
    let timings = (0..args.reps).map(|_| measure(&model, &mut runner, &workload)).collect::<Result<Vec<_>, _>>()?;
    let same = timings.iter().all(|timing| timing.logits_hash == first.logits_hash);
    ensure!(same, "two repetitions computed different logits: this is a bug");

    let prefill = rates(&timings, args.prompt * args.concurrency, |timing| timing.prefill);
    let decode = rates(&timings, args.r#gen * args.concurrency, |timing| timing.decode);
    if args.json {
        let report = json!({
            "model": args.model,
            "isa": runner.isa().to_string(),
            "threads": runner.threads(),
            "prompt": args.prompt,
            "gen": args.r#gen,
            "concurrency": args.concurrency,
            "weight_bytes": model.weight_bytes(),
            "logits_hash": format!("{:016x}", first.logits_hash),
            "prefill_tokens_per_s": median(&prefill),
            "decode_tokens_per_s": median(&decode),
            "prefill_tokens_per_s_reps": prefill,
            "decode_tokens_per_s_reps": decode,
        });
        print(&report.to_string())?;
    } else {
        let (isa, threads) = (runner.isa(), runner.threads());
        print(&format!("{}: {isa} on {threads} threads, {} sequences", args.model, args.concurrency))?;
        print(&format!("{:<10}{:>12}{:>14}{:>14}{:>14}", "", "tokens", "median tok/s", "min", "max"))?;
        for (name, n, rates) in [("prefill", args.prompt, &prefill), ("decode", args.r#gen, &decode)] {
            let (min, max) =
                rates.iter().fold((f64::MAX, 0.0_f64), |(min, max), rate| (min.min(*rate), max.max(*rate)));
            let n_all = n * args.concurrency;
            print(&format!("{name:<10}{n_all:>12}{:>14.1}{min:>14.1}{max:>14.1}", median(rates)))?;
        }
    }
    Ok(())
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
    let mut runner = runner(model, turn.threads.or(args.threads), isa)?;
    let (n_prompt, n_decode) = (turn.prompt.unwrap_or(args.prompt), turn.r#gen.unwrap_or(args.r#gen));
    let n_sequences = turn.concurrency.unwrap_or(args.concurrency);
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
