//! How long a trace takes: `trace_speed FILE INPUT OUTPUT [THREADS]`, tokens without meaning.

use std::io::Error;
use std::sync::Arc;
use std::time::Instant;

use assay_gguf::Gguf;
use assay_graph::{Revealed, Site, Trace, TraceOptions, TracedModel, Tree, greedy};

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default| args.get(i).map_or(Ok(default), |text| text.parse().map_err(Error::other));
    let file = args.first().ok_or_else(|| Error::other("usage: trace_speed FILE INPUT OUTPUT [THREADS]"))?;
    let (input, output, threads) = (number(1, 100)?, number(2, 20)?, number(3, 2)?);
    let bytes = Arc::new(std::fs::read(file)?);
    let gguf = Gguf::parse(&bytes).map_err(Error::other)?;

    let start = Instant::now();
    let model = Arc::new(TracedModel::new(&gguf, bytes).map_err(Error::other)?);
    println!("graph of {} operations: {:.2?}", model.graph().ops().len(), start.elapsed());
    let vocab = model.graph().ops()[usize::from(model.graph().choose_op())].cols;
    let tokens = (0..(input + output) as u32).map(|i| i.wrapping_mul(2_654_435_761) % vocab).collect();
    let start = Instant::now();
    let options = TraceOptions { threads, lie: None };
    let trace = Trace::compute(Arc::clone(&model), tokens, input as u32, options, &mut greedy, &mut |_, _| {});
    let trace = trace.map_err(Error::other)?;
    println!("trace of {} positions: {:.2?}, root {}", trace.positions(), start.elapsed(), trace.root());
    println!("memory at most: {}", peak());

    let position = trace.positions() - 1;
    let start = Instant::now();
    trace.nodes(Tree::Ops { position }, 0, 0, 32).map_err(Error::other)?;
    println!("one position again: {:.2?}", start.elapsed());
    let op = model.graph().ops()[usize::from(model.graph().choose_op())].a;
    let site = Site { position, op, leaf: 1, slot: 1 };
    let start = Instant::now();
    let steps = trace.steps(site).map_err(Error::other)?;
    trace.states(site, 0, steps, 128).map_err(Error::other)?;
    println!("a chain of {steps} steps: {:.2?}", start.elapsed());
    let start = Instant::now();
    trace.open(position, op, 0, &Revealed::default()).map_err(Error::other)?;
    println!("an opening in the trace: {:.2?}", start.elapsed());
    for what in ["first", "second"] {
        let start = Instant::now();
        model.open_weights(0);
        println!("the {what} opening of weights: {:.2?}", start.elapsed());
    }
    println!("memory at most: {}", peak());
    Ok(())
}

/// The most memory that this process had so far, where the system says it.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or_else(|| "unknown".to_owned(), |line| line.trim().to_owned())
}
