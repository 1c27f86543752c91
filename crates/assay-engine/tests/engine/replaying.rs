//! Replay accepts what the engine produced and names the first thing that it did not.

use assay_engine::{Replay, ReplayError, Runner, replay};
use assay_types::{Finish, Job, JobError, LogitBias};

use crate::support::{
    BF16, F16, FAMILIES, Outcome, Q4_K_M, Q5_K, Q8, VOCAB, greedy, job, letter, penalized, run_alone,
};

fn jobs() -> Vec<Job> {
    vec![job(30, 40, 1), greedy(job(300, 30, 2)), job(1, 1, 3), job(250, 12, 4), penalized(job(40, 30, 5))]
}

#[test]
fn an_honest_output_is_exact() {
    for tiny in [Q8, F16, Q4_K_M, Q5_K, BF16].into_iter().chain(FAMILIES) {
        let model = tiny.model();
        let mut runner = Runner::new(2);
        for job in jobs() {
            let Outcome { tokens, end } = run_alone(&model, &job);
            assert_eq!(end, Ok(Finish::Length));
            let check = |job: &Job, output: &[u32], finish| replay(&model, &mut Runner::new(1), job, output, finish);
            assert_eq!(replay(&model, &mut runner, &job, &tokens, Finish::Length), Ok(Replay::Exact));
            // What was produced before a cut is as right as the whole.
            for n in 0..tokens.len() {
                assert_eq!(check(&job, &tokens[..n], Finish::Cancelled), Ok(Replay::Exact));
                let resumed = job.resumed_after(&tokens[..n]);
                assert_eq!(check(&resumed, &tokens[n..], Finish::Length), Ok(Replay::Exact));
            }
        }
    }
}

#[test]
fn the_first_wrong_token_is_named() {
    let model = Q8.model();
    let mut runner = Runner::new(1);
    for job in jobs() {
        let honest = run_alone(&model, &job).tokens;
        for (index, right) in honest.iter().enumerate() {
            for wrong in [(right + 1) % VOCAB, VOCAB, u32::MAX] {
                let mut output = honest.clone();
                output[index] = wrong;
                // Whatever follows a wrong token does not change the verdict.
                output[index + 1..].iter_mut().for_each(|token| *token = letter(*token));
                let expect = Replay::FirstWrong { index, expected: Some(*right), got: wrong };
                assert_eq!(replay(&model, &mut runner, &job, &output, Finish::Length), Ok(expect));
            }
        }
    }
}

#[test]
fn another_request_gives_another_output() {
    let model = Q8.model();
    let mut runner = Runner::new(1);
    let job = job(30, 40, 1);
    let honest = run_alone(&model, &job).tokens;
    let changes: [fn(&mut Job); 9] = [
        |job| job.sampling.seed += 1,
        |job| job.prompt[0] = letter(job.prompt[0]),
        |job| job.sampling.temperature_micro = 2_000_000,
        |job| job.prefix = vec![letter(0)],
        |job| job.sampling.min_p_micro = 900_000,
        |job| job.sampling.repetition_penalty_micro = 3_000_000,
        |job| job.sampling.frequency_penalty_micro = 2_000_000,
        |job| job.sampling.presence_penalty_micro = 2_000_000,
        |job| job.logit_bias = vec![LogitBias { token: letter(3), bias_micro: 100_000_000 }],
    ];
    for change in changes {
        let mut other = Job { max_tokens: 60, ..job.clone() };
        change(&mut other);
        let got = replay(&model, &mut runner, &other, &honest, Finish::Open);
        assert!(matches!(got, Ok(Replay::FirstWrong { expected: Some(_), .. })), "{got:?}");
    }
    let other_model = crate::support::Tiny { seed: 99, ..Q8 }.model();
    let got = replay(&other_model, &mut runner, &job, &honest, Finish::Length);
    assert!(matches!(got, Ok(Replay::FirstWrong { .. })), "{got:?}");
}

#[test]
fn the_claimed_end_is_checked() {
    let model = Q8.model();
    let mut runner = Runner::new(1);
    let mut check = |job: &Job, output: &[u32], finish, expect| {
        assert_eq!(replay(&model, &mut runner, job, output, finish), Ok(expect), "{finish:?} of {}", output.len());
    };
    let long = job(30, 40, 1);
    let honest = run_alone(&model, &long).tokens;
    // The text goes on, or ends otherwise than was said.
    check(&long, &honest[..7], Finish::Length, Replay::WrongFinish { expected: Finish::Open, got: Finish::Length });
    check(&long, &honest[..7], Finish::Stop, Replay::WrongFinish { expected: Finish::Open, got: Finish::Stop });
    check(&long, &honest, Finish::Stop, Replay::WrongFinish { expected: Finish::Length, got: Finish::Stop });
    check(&long, &[], Finish::Stop, Replay::WrongFinish { expected: Finish::Open, got: Finish::Stop });
    // More tokens than were asked for, each right in itself.
    let short = Job { max_tokens: 10, ..long.clone() };
    let extra = Replay::FirstWrong { index: 10, expected: None, got: honest[10] };
    check(&short, &honest[..11], Finish::Length, extra);
    check(&short, &honest[..10], Finish::Length, Replay::Exact);
    // A stop string that the output contains.
    let text: String = honest.iter().filter(|t| **t >= 259).map(|t| (b'a' + (t - 259) as u8) as char).collect();
    let stop = Job { stop: vec![text[1..2].to_owned()], ..long };
    let stopped = run_alone(&model, &stop);
    assert_eq!(stopped.end, Ok(Finish::Stop));
    check(&stop, &stopped.tokens, Finish::Stop, Replay::Exact);
    let n = stopped.tokens.len();
    let extra = Replay::FirstWrong { index: n, expected: None, got: honest[n] };
    check(&stop, &honest[..=n], Finish::Open, extra);
}

#[test]
fn a_job_that_does_not_fit_is_an_error() {
    let model = Q8.model();
    let mut runner = Runner::new(1);
    let mut bad = job(5, 5, 1);
    bad.prompt[2] = VOCAB;
    let error = ReplayError::Job(JobError::TokenOutOfRange { token: VOCAB, vocab_size: VOCAB });
    assert_eq!(replay(&model, &mut runner, &bad, &[letter(0)], Finish::Open), Err(error));
    let long = replay(&model, &mut runner, &job(1000, 500, 1), &[], Finish::Open);
    assert!(matches!(long, Err(ReplayError::Job(JobError::ContextOverflow { .. }))), "{long:?}");
    let ended = Job { prefix: vec![crate::support::EOS], ignore_eos: false, ..job(5, 5, 1) };
    let got = replay(&model, &mut runner, &ended, &[letter(0)], Finish::Open);
    assert_eq!(got, Err(ReplayError::PrefixComplete { finish: Finish::Stop }));
}

#[test]
fn bias_forbids_and_forces_and_penalties_end_repetition() {
    let model = Q8.model();
    let plain = greedy(job(30, 40, 1));
    let first = run_alone(&model, &plain).tokens[0];
    let biased = |bias_micro| Job { logit_bias: vec![LogitBias { token: first, bias_micro }], ..plain.clone() };
    assert!(!run_alone(&model, &biased(-100_000_000)).tokens.contains(&first));
    assert_eq!(run_alone(&model, &biased(100_000_000)).tokens, [first; 40]);
    // Every token loses more for each use than its bias gives, so the forced token gives way.
    let mut penalized = biased(100_000_000);
    penalized.logit_bias.push(LogitBias { token: first + 1, bias_micro: 99_000_000 });
    penalized.sampling.frequency_penalty_micro = 2_000_000;
    let tokens = run_alone(&model, &penalized).tokens;
    let count = |token| tokens.iter().filter(|t| **t == token).count();
    assert_eq!(count(first) + count(first + 1), 40, "{tokens:?}");
    assert!(count(first).abs_diff(count(first + 1)) <= 20 && count(first + 1) > 0, "{tokens:?}");
}
