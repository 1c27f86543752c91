//! `assay embed`: vectors of texts from an encoder on this machine, without any network.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use assay_engine::encoder::{Embedder, Embedding, Encoder, TooLong};
use assay_num::{Isa, Kernels};
use serde_json::json;

use crate::load::{CacheArgs, all_cores, ensure_isa, load_encoder};
use crate::{print, tell};

/// Texts whose vectors are computed together, when they come from standard input.
const BATCH: usize = 256;

/// Longest line that is read.
const LINE_LEN_MAX: usize = 1 << 20;

/// Arguments of `assay embed`.
#[derive(Debug, clap::Args)]
pub struct EmbedArgs {
    /// GGUF file of an encoder (`assay import` makes one), or a name that `assay list` shows
    #[arg(long, value_name = "FILE|NAME")]
    pub model: String,
    /// The texts; without any, each line of standard input is one
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Print one JSON object a text, with token counts
    #[arg(long)]
    pub json: bool,
    /// Print the ids of all the tokens of a text instead of its vector
    #[arg(long, conflicts_with = "json")]
    pub tokens: bool,
    /// Fail on a text that has more tokens than the model takes, instead of leaving out its end
    #[arg(long)]
    pub no_cut: bool,
    /// Threads [default: one for each core]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Instruction set: scalar, avx2, avx-vnni, avx512 [default: the best]
    #[arg(long, value_name = "ISA")]
    pub isa: Option<Isa>,
    /// Compute all vectors this often, print none, and say how long each time took, as JSON
    #[arg(long, value_name = "N")]
    pub bench: Option<usize>,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Runs `assay embed`.
///
/// # Errors
/// A model that is no encoder, a text without a vector, or output that cannot be written.
pub fn run(args: &EmbedArgs) -> anyhow::Result<()> {
    let threads = args.threads.unwrap_or_else(all_cores);
    ensure!((1..=256).contains(&threads), "--threads is {threads}, allowed is 1 to 256");
    ensure_isa(args.isa)?;
    let encoder = load_encoder(&args.model, &args.cache)?;
    let kernels = args.isa.map_or(Some(Kernels::detect()), Kernels::with_isa).context("unknown instruction set")?;
    let mut session = Session { encoder: &encoder, embedder: Embedder::with_kernels(kernels, threads), args, n: 0 };
    if let Some(reps) = args.bench {
        ensure!((1..=1000).contains(&reps), "--bench is {reps}, allowed is 1 to 1000");
        let texts = if args.texts.is_empty() { read_lines(usize::MAX)? } else { args.texts.clone() };
        return session.bench(&texts, reps);
    }
    if !args.texts.is_empty() {
        return session.embed(&args.texts);
    }
    if io::stdin().is_terminal() {
        tell(format_args!("one text a line, end with Ctrl-D\n"));
    }
    let batch = if io::stdin().is_terminal() { 1 } else { BATCH };
    loop {
        let texts = read_lines(batch)?;
        if texts.is_empty() {
            return Ok(());
        }
        session.embed(&texts)?;
    }
}

/// At most `n` lines of standard input, without their ends; fewer only at its end.
fn read_lines(n: usize) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut stdin = io::stdin().lock();
    while lines.len() < n {
        let mut line = Vec::new();
        let read = io::Read::take(&mut stdin, LINE_LEN_MAX as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            break;
        }
        ensure!(read <= LINE_LEN_MAX, "a line has more than {LINE_LEN_MAX} bytes");
        let line = String::from_utf8(line).context("a line is not UTF-8")?;
        lines.push(line.strip_suffix('\n').unwrap_or(&line).trim_end_matches('\r').to_owned());
    }
    Ok(lines)
}

struct Session<'a> {
    encoder: &'a Encoder,
    embedder: Embedder,
    args: &'a EmbedArgs,
    /// Texts so far.
    n: usize,
}

impl Session<'_> {
    fn embed(&mut self, texts: &[String]) -> anyhow::Result<()> {
        if self.args.tokens {
            for text in texts {
                let ids: Vec<String> =
                    self.encoder.tokenizer().encode(text, true, false).iter().map(u32::to_string).collect();
                print(&ids.join(" "))?;
            }
            return Ok(());
        }
        for embedding in self.compute(texts)? {
            if self.args.json {
                print(
                    &json!({
                        "index": self.n,
                        "tokens": embedding.n_tokens,
                        "tokens_cut": embedding.n_cut,
                        "embedding": embedding.values,
                    })
                    .to_string(),
                )?;
            } else {
                if embedding.n_cut > 0 {
                    tell(format_args!(
                        "text {}: {} tokens at its end did not fit and were left out\n",
                        self.n, embedding.n_cut
                    ));
                }
                let values: Vec<String> = embedding.values.iter().map(f32::to_string).collect();
                print(&values.join(" "))?;
            }
            self.n += 1;
        }
        Ok(())
    }

    fn compute(&mut self, texts: &[String]) -> anyhow::Result<Vec<Embedding>> {
        let too_long = if self.args.no_cut { TooLong::Refuse } else { TooLong::Cut };
        Ok(self.embedder.embed_texts(self.encoder, texts, too_long)?)
    }

    /// Times `reps` passes over all texts after one that is not counted.
    fn bench(&mut self, texts: &[String], reps: usize) -> anyhow::Result<()> {
        let first = self.compute(texts)?;
        let mut seconds = Vec::with_capacity(reps);
        for _ in 0..reps {
            let started = Instant::now();
            let again = self.compute(texts)?;
            seconds.push(started.elapsed().as_secs_f64());
            ensure!(again == first, "two passes computed different vectors: this is a bug");
        }
        print(
            &json!({
                "isa": self.embedder.isa().to_string(),
                "threads": self.embedder.threads(),
                "texts": texts.len(),
                "tokens": first.iter().map(|embedding| embedding.n_tokens).sum::<usize>(),
                "seconds": seconds,
            })
            .to_string(),
        )
    }
}
