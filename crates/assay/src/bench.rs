//! `assay bench`: prefill and decode speed of a model on this machine.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use assay_engine::throughput::{Timing, Workload, measure};
use assay_engine::{LOGIT_ROWS, Runner, threads_for};
use assay_num::{Isa, Kernels};
use serde_json::json;

use crate::load::load;
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
}

/// Prompt tokens per step.
const PREFILL_CHUNK: usize = 256;

/// Runs `assay bench`.
///
/// # Errors
/// A model that does not load, a workload that does not fit it, or repetitions that computed different logits.
pub fn run(args: BenchArgs) -> anyhow::Result<()> {
    ensure!((1..=1000).contains(&args.reps), "--reps is {}, allowed is 1 to 1000", args.reps);
    ensure!(
        (1..=LOGIT_ROWS).contains(&args.concurrency),
        "--concurrency is {}, allowed is 1 to {LOGIT_ROWS}",
        args.concurrency
    );
    if let Some(threads) = args.threads {
        ensure!((1..=256).contains(&threads), "--threads is {threads}, allowed is 1 to 256");
    }
    let model = load(&args.model, args.isa)?;
    let kernels = args.isa.map_or(Some(Kernels::detect()), Kernels::with_isa).context("unknown instruction set")?;
    let threads = args.threads.unwrap_or_else(|| threads_for(&model));
    let mut runner = Runner::with_kernels(kernels, threads);
    let workload = Workload {
        n_prompt: args.prompt,
        n_decode: args.r#gen,
        n_sequences: args.concurrency,
        prefill_chunk: PREFILL_CHUNK,
    };
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

fn rates(timings: &[Timing], n_tokens: usize, of: impl Fn(&Timing) -> Duration) -> Vec<f64> {
    timings.iter().map(|timing| (n_tokens as f64 / of(timing).as_secs_f64() * 10.0).round() / 10.0).collect()
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
