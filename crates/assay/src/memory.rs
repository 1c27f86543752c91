//! How much memory a model may take: what is asked for, what it comes to, and what is refused before it is taken.

use anyhow::ensure;
use assay_engine::{CONTEXT_MAX_DEFAULT, EngineOptions, LoadOptions, MemoryNeed};
use assay_gguf::Gguf;
use clap::Args;
use serde::{Deserialize, Serialize};

/// Fewest positions that are worth serving when memory is short and nobody asked for a number.
const KV_TOKENS_MIN: usize = 1024;

/// The most memory that this process has had at once, in bytes, where the system says so.
pub fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// Arguments of every command that serves a model.
#[derive(Clone, Debug, Default, Args, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryArgs {
    /// Positions of prompt and output that a job may use [default: the model's own limit, at most 16384]
    #[arg(long, value_name = "N")]
    #[serde(default)]
    pub context: Option<usize>,
    /// Positions of keys and values that all jobs share [default: 32768 or the context, less if memory is short]
    #[arg(long, value_name = "N")]
    #[serde(default)]
    pub kv_tokens: Option<usize>,
    /// Most memory to take, in GB; more is refused at the start [default: what this machine has available]
    #[arg(long, value_name = "GB")]
    #[serde(default)]
    pub memory_max: Option<f64>,
}

/// What a model gets.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// How to load it.
    pub load: LoadOptions,
    /// Positions of keys and values.
    pub kv_tokens: usize,
    /// What that comes to.
    pub need: MemoryNeed,
    /// Bytes it had to fit, if they are known.
    pub limit: Option<u64>,
    /// Whether somebody asked for a number.
    asked: bool,
}

/// What is taken beside the weights without a word, unless somebody asked.
const SILENT_BYTES: u64 = 256 << 20;

impl MemoryArgs {
    /// The share of the model with header `gguf` on an engine with `options`, one of `n_alike` of which each needs as much
    /// (mapped weights once). `kv_tokens` is the default for jobs that use the whole context.
    ///
    /// # Errors
    /// A context beyond the model's own, or more memory than there may be, with the numbers.
    pub fn share(&self, gguf: &Gguf, options: &EngineOptions, n_alike: usize) -> anyhow::Result<Share> {
        let limit = match self.memory_max {
            Some(gb) => {
                ensure!(gb.is_finite() && gb > 0.0, "--memory-max is {gb}, allowed is a number above 0");
                Some((gb * 1e9) as u64)
            }
            None => available(),
        };
        share(self, gguf, options, n_alike.max(1) as u64, limit)
    }

    /// The arguments of one of several processes that get `share` each.
    pub fn as_shared(&self, share: &Share) -> Self {
        Self { context: Some(share.need.context), kv_tokens: Some(share.kv_tokens), memory_max: self.memory_max }
    }
}

fn share(
    args: &MemoryArgs,
    gguf: &Gguf,
    options: &EngineOptions,
    n_alike: u64,
    limit: Option<u64>,
) -> anyhow::Result<Share> {
    let asked = args.context.unwrap_or(CONTEXT_MAX_DEFAULT);
    let need_of = |context, kv_tokens| MemoryNeed::of(gguf, context, &EngineOptions { kv_tokens, ..*options });
    let context = need_of(asked, 0)?.context;
    ensure!(asked > 0 && args.kv_tokens != Some(0), "--context and --kv-tokens are at least 1");
    if let Some(asked) = args.context {
        ensure!(asked <= context, "--context is {asked}; the model's own limit is {context}");
    }
    // A single sequence can not use more than the context.
    let all = options.sequences_max.saturating_mul(context);
    let kv_tokens = args.kv_tokens.unwrap_or(options.kv_tokens.max(context).min(all));
    let need = need_of(context, kv_tokens)?;
    let total = |need: &MemoryNeed| need.weights.saturating_add((need.total() - need.weights).saturating_mul(n_alike));
    let share = |need: MemoryNeed| Share {
        load: LoadOptions { context_max: need.context },
        kv_tokens: need.kv_tokens,
        need,
        limit,
        asked: args.context.is_some() || args.kv_tokens.is_some() || args.memory_max.is_some(),
    };
    let Some(limit) = limit.filter(|limit| total(&need) > *limit) else { return Ok(share(need)) };
    if args.context.is_none() && args.kv_tokens.is_none() {
        // Nobody asked for a number, so it is what there is room for.
        let rest = limit.saturating_sub(total(&need_of(context, 0)?)) / n_alike;
        let fits = usize::try_from(rest / need.kv_per_token.max(1)).unwrap_or(usize::MAX) / 256 * 256;
        if fits >= KV_TOKENS_MIN.min(kv_tokens) {
            return Ok(share(need_of(context.min(fits), fits)?));
        }
    }
    let each = if n_alike > 1 { format!(", the last three for each of {n_alike}") } else { String::new() };
    anyhow::bail!(
        "this would take {} ({}{each}), and {} may be taken; a smaller --context or --kv-tokens takes less, --memory-max \
         allows more",
        gb(total(&need)),
        parts(&need),
        gb(limit)
    )
}

impl Share {
    /// One line for people; none if it is little and nobody asked.
    pub fn statement(&self) -> Option<String> {
        if !self.asked && self.need.total() - self.need.weights < SILENT_BYTES {
            return None;
        }
        let limit = self.limit.map_or_else(String::new, |limit| format!(" of {}", gb(limit)));
        let (total, parts) = (gb(self.need.total()), parts(&self.need));
        Some(format!("memory: at most {total}{limit} ({parts}); context {}", self.need.context))
    }
}

fn parts(need: &MemoryNeed) -> String {
    format!(
        "weights {}, keys and values of {} positions {}, rotation tables {}, a step {}",
        gb(need.weights),
        need.kv_tokens,
        gb(need.kv),
        gb(need.tables),
        gb(need.step)
    )
}

fn gb(bytes: u64) -> String {
    if bytes < 100_000_000 { format!("{:.1} MB", bytes as f64 / 1e6) } else { format!("{:.2} GB", bytes as f64 / 1e9) }
}

/// Bytes that this process could take without swapping, if the system says so: what the kernel estimates, and the limit
/// of the control group.
fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|max| max.trim().parse().ok());
    Some((kib * 1024).min(group.unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shipped model: context 512, some MB.
    fn check(args: MemoryArgs, n_alike: u64, limit: Option<u64>) -> Result<(usize, usize), String> {
        let bytes = crate::shipped::bytes(crate::shipped::NAME).expect("it is part of the program");
        let gguf = Gguf::parse(bytes).expect("valid");
        let share = share(&args, &gguf, &EngineOptions::default(), n_alike, limit);
        share.map(|share| (share.need.context, share.kv_tokens)).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused_with_numbers() {
        let args = |context, kv_tokens| MemoryArgs { context, kv_tokens, memory_max: None };
        let (own, default) = check(args(None, None), 1, None).expect("no limit");
        assert_eq!(default, 32_768.min(64 * own));
        assert_eq!(check(args(Some(300), Some(4096)), 1, Some(1 << 40)), Ok((300, 4096)));
        let refused = check(args(Some(own + 1), None), 1, None).expect_err("beyond the model");
        assert_eq!(refused, format!("--context is {}; the model's own limit is {own}", own + 1));
        let refused = check(args(None, Some(1 << 30)), 1, Some(1 << 30)).expect_err("too much");
        assert!(refused.contains("keys and values of 1073741824 positions"), "{refused}");
        assert!(refused.contains("1.07 GB may be taken"), "{refused}");
        assert!(check(args(Some(0), None), 1, None).is_err());
    }

    #[test]
    fn without_a_number_it_is_what_fits() {
        let args = MemoryArgs::default();
        let bytes = crate::shipped::bytes(crate::shipped::NAME).expect("it is part of the program");
        let gguf = Gguf::parse(bytes).expect("valid");
        let need = MemoryNeed::of(&gguf, usize::MAX, &EngineOptions::default()).expect("valid");
        let fixed = need.total() - need.kv;
        for blocks in [4, 5, 9] {
            let limit = fixed + blocks * 256 * need.kv_per_token;
            let (context, kv_tokens) = check(args.clone(), 1, Some(limit)).expect("it fits");
            assert_eq!(kv_tokens as u64, blocks * 256);
            assert_eq!(context, need.context.min(kv_tokens));
            let twice = need.weights + 2 * (limit - need.weights);
            assert_eq!(check(args.clone(), 2, Some(twice)).expect("it fits").1, kv_tokens);
        }
        let refused = check(args, 1, Some(fixed)).expect_err("nothing is left for keys and values");
        assert!(refused.contains("this would take"), "{refused}");
    }
}
