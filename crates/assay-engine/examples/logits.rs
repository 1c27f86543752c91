//! The engine's logits, for comparisons with other engines: `logits MODEL OUT`.
//!
//! Standard input: `{"windows": [[token, ..], ..], "prompts": [[token, ..], ..], "n_greedy": N}`. Writes the logits of
//! every token of every window, each window from an empty context, to OUT as little-endian `f32`; prints the N most
//! likely tokens after each prompt, one by one, as JSON.

use assay_engine::{KvPool, LOGIT_ROWS, Model, Runner, Slice};
use assay_gguf::Gguf;
use std::error::Error;
use std::io::{BufWriter, Write};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [file, out] = words.as_slice() else { return Err("usage: logits MODEL OUT".into()) };
    let asked: serde_json::Value = serde_json::from_reader(std::io::stdin())?;
    let lists = |name: &str| -> Result<Vec<Vec<u32>>, _> { serde_json::from_value(asked[name].clone()) };
    let n_greedy: usize = serde_json::from_value(asked["n_greedy"].clone())?;
    let bytes = std::fs::read(file)?;
    let model = Model::load(&Gguf::parse(&bytes)?, &bytes)?;
    let mut runner = Runner::new(1);
    let mut sink = BufWriter::new(std::fs::File::create(out)?);
    for window in lists("windows")? {
        run(&model, &mut runner, &window, &mut |rows| {
            rows.iter().try_for_each(|value| sink.write_all(&value.to_le_bytes()))
        })?;
    }
    sink.flush()?;
    let prompts = lists("prompts")?;
    let greedy = prompts.iter().map(|prompt| greedy(&model, &mut runner, prompt, n_greedy));
    println!("{}", serde_json::json!({ "greedy": greedy.collect::<Result<Vec<_>, _>>()? }));
    Ok(())
}

/// Computes `tokens` in an empty context; `each` gets the logits of all of them, in order.
fn run(
    model: &Model,
    runner: &mut Runner,
    tokens: &[u32],
    each: &mut dyn FnMut(&[f32]) -> std::io::Result<()>,
) -> Result<(), Box<dyn Error>> {
    let mut pool = KvPool::new(model.kv_shape(), tokens.len());
    let mut kv = pool.reserve(tokens.len()).ok_or("the pool is as large as the sequence")?;
    pool.grow(&mut kv, tokens.len());
    if runner.step(model, &mut [Slice { kv: &mut kv, tokens, logits_from: 0 }]) != [true] {
        return Err("a value is not finite".into());
    }
    for first in (0..tokens.len()).step_by(LOGIT_ROWS) {
        each(runner.logits(model, first, LOGIT_ROWS.min(tokens.len() - first)))?;
    }
    Ok(())
}

fn greedy(model: &Model, runner: &mut Runner, prompt: &[u32], n: usize) -> Result<Vec<u32>, Box<dyn Error>> {
    let vocab = model.config().vocab;
    let mut pool = KvPool::new(model.kv_shape(), prompt.len() + n);
    let mut kv = pool.reserve(prompt.len() + n).ok_or("the pool is as large as the sequence")?;
    let mut output: Vec<u32> = vec![];
    while output.len() < n {
        let next = output.last().copied();
        let tokens = next.as_ref().map_or(prompt, std::slice::from_ref);
        pool.grow(&mut kv, tokens.len());
        if runner.step(model, &mut [Slice { kv: &mut kv, tokens, logits_from: tokens.len() - 1 }]) != [true] {
            return Err("a value is not finite".into());
        }
        let logits = &runner.logits(model, 0, 1)[..vocab];
        let first_max = (0..vocab).reduce(|best, i| if logits[i] > logits[best] { i } else { best });
        output.push(first_max.unwrap_or_default() as u32);
    }
    Ok(output)
}
