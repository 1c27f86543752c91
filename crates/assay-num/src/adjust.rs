//! What changes logits before a token is chosen: bias and penalties.
//!
//! Each token is changed by itself, so no order over tokens can matter; the order of the steps on one token is fixed.

use std::collections::BTreeMap;

use crate::sample::MICRO;

/// Penalties on tokens that occurred. Fields as in the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Penalties {
    /// Divides positive logits and multiplies the others, in millionths; above 0, 1,000,000 changes nothing.
    pub repetition_micro: u32,
    /// Subtracted once for each time the token is in the output, in millionths.
    pub frequency_micro: i32,
    /// Subtracted once if the token is in the output, in millionths.
    pub presence_micro: i32,
}

impl Penalties {
    /// Changes nothing.
    pub const NONE: Self = Self { repetition_micro: MICRO, frequency_micro: 0, presence_micro: 0 };
}

/// Bias, penalties, and the tokens that occurred, of one job.
#[derive(Debug, Clone)]
pub struct Adjustments {
    /// Token and bias in millionths.
    bias: Vec<(u32, i32)>,
    penalties: Penalties,
    /// Tokens of prompt and output, and how often each is in the output; empty without penalties.
    seen: BTreeMap<u32, u32>,
}

impl Adjustments {
    /// For a job with this prompt, before its first output token. Each token has at most one `bias`.
    pub fn new(bias: Vec<(u32, i32)>, penalties: Penalties, prompt: &[u32]) -> Self {
        let in_use = penalties.repetition_micro != MICRO;
        let seen = prompt.iter().filter(|_| in_use).map(|&token| (token, 0)).collect();
        Self { bias, penalties, seen }
    }

    /// Changes nothing.
    pub fn none() -> Self {
        Self::new(Vec::new(), Penalties::NONE, &[])
    }

    /// Whether nothing is changed, whatever comes.
    pub fn is_none(&self) -> bool {
        self.bias.is_empty() && self.penalties == Penalties::NONE
    }

    /// Takes the next output token.
    pub fn push(&mut self, token: u32) {
        if self.penalties != Penalties::NONE {
            *self.seen.entry(token).or_default() += 1;
        }
    }

    /// Changes `logits`; tokens outside of it are skipped.
    ///
    /// Definition. A parameter in millionths is `p = f32(micro / 10^6)` (f64 division, rounded once); each operation
    /// is rounded. Of a token's logit `l`, in this order:
    /// 1. `l = l + bias`, if the token has one.
    /// 2. If the token is in prompt or output and the repetition penalty `r` is not 1: `l = l / r` if `l > 0`, else
    ///    `l = l * r`.
    /// 3. If the token is `n > 0` times in the output: `l = l - f32(n) * frequency`, then `l = l - presence`.
    pub fn apply(&self, logits: &mut [f32]) {
        for &(token, bias) in &self.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += unit(bias.into());
            }
        }
        let repetition = unit(self.penalties.repetition_micro.into());
        let (frequency, presence) =
            (unit(self.penalties.frequency_micro.into()), unit(self.penalties.presence_micro.into()));
        for (&token, &n) in &self.seen {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            if self.penalties.repetition_micro != MICRO {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
            if n > 0 {
                *logit -= n as f32 * frequency;
                *logit -= presence;
            }
        }
    }
}

/// Millionths as f32.
fn unit(micro: i64) -> f32 {
    // Below 2^53: exact in f64.
    (micro as f64 / f64::from(MICRO)) as f32
}
