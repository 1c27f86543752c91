//! The tokens of an engine that is not canonical beside the canonical engine's logits, one prefill for an answer.
//!
//! Greedy: a token is odd if its logit is more than [`MARGIN`] below the greatest; other arithmetic turns near ties
//! around, and nothing else. Drawn: engines behind HTTP have random numbers of their own, which nobody can repeat, so a
//! token is odd if it lies in the tail of [`TAIL`] of the distribution that it was to be drawn from, where an honest
//! engine's land with just that probability whatever the text. One that the inverse-CDF draw of the job's seed gives
//! (docs/PROTOCOL.md, "Choice of a token") is never odd: who shares the seed is excused, and nobody is accused for not
//! sharing it. Cutting by top-p, top-k and min-p makes the tail of an honest engine lighter, so it is left out.

use crate::replay::Unchecked;
use assay_engine::{Model, Runner, chooser, watch};
use assay_protocol::{Choice, Sign};
use assay_types::{Job, ModelId, TokenId};
use std::collections::BTreeMap;

/// Logits by which an honest engine's greedy choice may be below the canonical one's.
pub const MARGIN: f64 = 0.5;
/// Probability of the least likely tokens that are called odd.
pub const TAIL: f64 = 0.05;

/// What each token of `output` is a sign of. `job` names the canonical model, whose id is `found`.
///
/// The last token is left out if it ends the generation: engines do not say by which token they end.
///
/// # Errors
/// [`Unchecked`] says why they cannot be compared.
pub fn compare(
    job: &Job,
    output: &[TokenId],
    model: &Model,
    found: ModelId,
    runner: &mut Runner,
) -> Result<Vec<Sign>, Unchecked> {
    if found != job.model_id {
        return Err(Unchecked::OtherModel { expected: job.model_id, found });
    }
    let output = match output.split_last() {
        Some((last, before)) if model.tokenizer().is_eog(*last) => before,
        _ => output,
    };
    let mut signs = Vec::with_capacity(output.len());
    let mut shared = chooser(model, job, output).map_err(assay_engine::ReplayError::from)?;
    let tokenizer = model.tokenizer();
    let ends: Vec<TokenId> = (0..tokenizer.vocab_size()).filter(|id| job.ignore_eos && tokenizer.is_eog(*id)).collect();
    let (mut adjusted, mut counts) = (Vec::new(), BTreeMap::new());
    watch(model, runner, job, output, &mut |index, logits| {
        let picked = shared(index, logits);
        adjusted.clear();
        adjusted.extend(logits.iter().map(|&logit| f64::from(logit)));
        adjust(&mut adjusted, job, &counts);
        let token = output[index];
        // Told to go on, engines differ in whether they take a token that ends, or the next best.
        ends.iter().for_each(|&end| adjusted[end as usize] = f64::NEG_INFINITY);
        if !ends.contains(&token) {
            signs.push(sign(&adjusted, token, job.sampling.temperature_micro, picked == Some(token)));
        }
        *counts.entry(token).or_insert(0u32) += 1;
    })?;
    Ok(signs)
}

fn sign(logits: &[f64], token: TokenId, temperature_micro: u32, is_shared: bool) -> Sign {
    let own = logits.get(token as usize).copied().unwrap_or(f64::NEG_INFINITY);
    let greatest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if temperature_micro == 0 {
        return Sign { choice: Choice::Greedy, is_odd: own < greatest - MARGIN && !is_shared };
    }
    let temperature = f64::from(temperature_micro) / 1e6;
    let weight = |logit: f64| ((logit - greatest) / temperature).exp();
    let (mut whole, mut tail) = (0.0, 0.0);
    for &logit in logits {
        whole += weight(logit);
        if logit <= own {
            tail += weight(logit);
        }
    }
    Sign { choice: Choice::Drawn, is_odd: tail <= TAIL * whole && !is_shared }
}

/// Bias and penalties, as the job asks for them.
fn adjust(logits: &mut [f64], job: &Job, counts: &BTreeMap<TokenId, u32>) {
    let (sampling, micro) = (&job.sampling, 1e6);
    for entry in &job.logit_bias {
        if let Some(logit) = logits.get_mut(entry.token as usize) {
            *logit += f64::from(entry.bias_micro) / micro;
        }
    }
    let repetition = f64::from(sampling.repetition_penalty_micro) / micro;
    if sampling.repetition_penalty_micro != assay_types::MICRO {
        let seen: std::collections::BTreeSet<TokenId> = job.prompt.iter().chain(counts.keys()).copied().collect();
        for token in seen {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            }
        }
    }
    for (&token, &count) in counts {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit -= f64::from(count) * f64::from(sampling.frequency_penalty_micro) / micro;
            *logit -= f64::from(sampling.presence_penalty_micro) / micro;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_is_what_is_clearly_below_the_greatest_or_in_the_tail() {
        let greedy = |logits: &[f64], token| sign(logits, token, 0, false).is_odd;
        assert!(!greedy(&[1.0, 1.4, 0.0], 0), "a near tie");
        assert!(greedy(&[1.0, 1.6, 0.0], 0));
        assert!(greedy(&[1.0, 1.4, 0.0], 9), "outside the vocabulary");
        // Probabilities 0.9, 0.06 and 0.04.
        let logits = [0.9f64.ln(), 0.06f64.ln(), 0.04f64.ln()];
        let drawn = |token, is_shared| sign(&logits, token, 1_000_000, is_shared).is_odd;
        assert_eq!([0, 1, 2].map(|token| drawn(token, false)), [false, false, true]);
        assert!(!drawn(2, true), "the shared draw is no accident");
        assert!(!sign(&logits, 2, 3_000_000, false).is_odd, "a high temperature flattens");
    }
}
