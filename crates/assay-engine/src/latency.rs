//! How long running streams wait for a token, alone and while a long prompt is prefilled beside them.
//!
//! Times a whole engine from outside: queue, scheduler, sampler and sinks included.

use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use assay_types::{B256, Job, ModelId, Sampling};

use crate::engine::{Engine, JobHandle, SubmitError};
use crate::sequence::{EngineEvent, JobFailure, SinkState};

/// What to time.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Streams that run.
    pub n_streams: usize,
    /// Tokens of the long prompt.
    pub n_prompt: usize,
}

/// What was seen.
#[derive(Clone, Debug)]
pub struct Latency {
    /// Times between two tokens of a stream with nothing beside it but the other streams, sorted.
    pub undisturbed: Vec<Duration>,
    /// The same while the long prompt was prefilled, sorted.
    pub beside_prefill: Vec<Duration>,
    /// From the long prompt's submission to its first token.
    pub first_token: Duration,
}

/// Why it can not be timed.
#[derive(Debug, thiserror::Error)]
pub enum LatencyError {
    /// The engine did not take a job.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A job failed.
    #[error(transparent)]
    Job(#[from] JobFailure),
    /// The engine died, or a stream reached the end of the context while it was timed.
    #[error("a stream ended while it was timed (a longer context is needed)")]
    Ended,
}

/// Tokens of each stream's prompt.
const STREAM_PROMPT: usize = 32;

/// Tokens of each stream before anything counts, and in the undisturbed time.
const WARM_UP: usize = 32;
const UNDISTURBED: usize = 160;

impl Latency {
    /// The time that `percent` of 100 of `sorted` do not exceed; zero if there are none.
    pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
        let at = (sorted.len() * percent).div_ceil(100).max(1) - 1;
        sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Times `crowd` on an engine that does nothing else. `seed` makes its prompts other ones than those of earlier calls,
/// so that the prefix cache knows none of them.
///
/// # Errors
/// See [`LatencyError`].
pub fn measure(engine: &Engine, crowd: &Crowd, seed: u64) -> Result<Latency, LatencyError> {
    let room = engine.limits().context_length.saturating_sub(STREAM_PROMPT as u32 + 1).max(1);
    let per_stream = (engine.kv_tokens() / (crowd.n_streams + 1)).saturating_sub(STREAM_PROMPT).max(1);
    let n_output = room.min(u32::try_from(per_stream).unwrap_or(u32::MAX));
    let mut streams = Vec::new();
    for i in 0..crowd.n_streams {
        streams.push(Stream::start(engine, STREAM_PROMPT, n_output, seed * 1000 + i as u64)?);
    }
    for stream in &mut streams {
        stream.read(WARM_UP)?;
    }
    // From here on every stream runs. When its token was made counts, not when it was read.
    let warm = streams.iter().filter_map(|stream| stream.times.last().copied()).max();
    for stream in &mut streams {
        stream.read(UNDISTURBED)?;
    }
    let between = Instant::now();
    let mut long = Stream::start(engine, crowd.n_prompt, 1, seed * 1000 + 999)?;
    long.read(1)?;
    let end = long.times[0];
    for stream in &mut streams {
        stream.handle.cancel();
        stream.drain(end)?;
    }
    let gaps = |from: Instant, to: Instant| {
        let mut gaps: Vec<Duration> = streams.iter().flat_map(|stream| stream.gaps(from, to)).collect();
        gaps.sort_unstable();
        gaps
    };
    Ok(Latency {
        undisturbed: gaps(warm.unwrap_or(between), between),
        beside_prefill: gaps(between, end),
        first_token: end - between,
    })
}

/// A running job, and when its tokens came.
struct Stream {
    handle: JobHandle,
    events: Receiver<(Instant, EngineEvent)>,
    times: Vec<Instant>,
}

impl Stream {
    fn start(engine: &Engine, n_prompt: usize, n_output: u32, seed: u64) -> Result<Stream, SubmitError> {
        // Room for every event: timing must not stop the engine.
        let (sender, events) = mpsc::sync_channel(n_output as usize + 1);
        let sink = move |event| match sender.try_send((Instant::now(), event)) {
            Ok(()) => SinkState::Ready,
            Err(_) => SinkState::Closed,
        };
        let vocab = engine.model().config().vocab as u64;
        let token = |i: u64| ((i * 7919 + seed * 104_729 + i * i * (seed + 1) + 13) % vocab) as u32;
        let job = Job {
            model_id: ModelId::default(),
            prompt: (0..n_prompt as u64).map(token).collect(),
            prefix: Vec::new(),
            max_tokens: n_output,
            sampling: Sampling { temperature_micro: 1_000_000, top_k: 40, seed, ..Sampling::GREEDY },
            logit_bias: Vec::new(),
            grammar: None,
            stop: Vec::new(),
            ignore_eos: true,
            logprobs: None,
            embed: None,
            nonce: B256::ZERO,
        };
        let handle = engine.submit(&job, Box::new(sink))?;
        Ok(Stream { handle, events, times: Vec::new() })
    }

    /// Waits for `n` more tokens.
    fn read(&mut self, n: usize) -> Result<(), LatencyError> {
        for _ in 0..n {
            match self.events.recv().map_err(|_| LatencyError::Ended)? {
                (time, EngineEvent::Token { .. }) => self.times.push(time),
                (_, EngineEvent::Logprobs(_)) => {}
                (_, EngineEvent::Failed { error }) => return Err(error.into()),
                (_, EngineEvent::Done { .. }) => return Err(LatencyError::Ended),
            }
        }
        Ok(())
    }

    /// Takes what came; it must have gone on beyond `end`.
    fn drain(&mut self, end: Instant) -> Result<(), LatencyError> {
        while let Ok((time, event)) = self.events.recv() {
            match event {
                EngineEvent::Token { .. } => self.times.push(time),
                EngineEvent::Done { .. } if time < end => return Err(LatencyError::Ended),
                EngineEvent::Failed { error } if error != JobFailure::Cancelled => return Err(error.into()),
                EngineEvent::Logprobs(_) | EngineEvent::Done { .. } | EngineEvent::Failed { .. } => {}
            }
        }
        Ok(())
    }

    /// Times between tokens, of which the second came in `from..=to`.
    fn gaps(&self, from: Instant, to: Instant) -> impl Iterator<Item = Duration> {
        let pairs = self.times.windows(2).filter(move |pair| pair[1] >= from && pair[1] <= to);
        pairs.map(|pair| pair[1] - pair[0])
    }
}
