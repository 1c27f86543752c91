//! `cargo xtask`: everything that is done to the workspace rather than by it.
//!
//! No argument parser and no async runtime: this binary is built first on a bare machine and must build in seconds.

mod arm;
mod bench;
mod fuzz;
mod shell;
mod test;
mod tidy;

const HELP: &str = "cargo xtask COMMAND

  test [STEP ...]   every test: tidy, rust, arm, tokenizers, files, fuzz, contracts, embeddings, clients, x402,
                    chains (all without STEP); --without STEP leaves one out
  tidy              the rules of docs/ARCHITECTURE.md that a program can check
  fuzz [TARGET ...] [--runs N | --seconds N]
                    what strangers write, mutated: gguf, safetensors, tokenizer, template, model, wire, request
                    (all of them without TARGET, a minute each without a bound)
  bench [NAME ...]  measurements against peers, interleaved: engine, latency, faithful, gateway, load, embeddings,
                    chain, audit, tolerant (all without NAME); results go to bench/record/; options after one NAME are those of its
                    script (--help)
";

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["test", steps @ ..] => test::run(steps),
        ["tidy"] => tidy::run(),
        ["fuzz", words @ ..] => fuzz::command(words),
        ["bench", args @ ..] => bench::run(args),
        ["help" | "--help" | "-h"] | [] => {
            print!("{HELP}");
            Ok(())
        }
        [other, ..] => anyhow::bail!("unknown command {other:?}\n\n{HELP}"),
    }
}
