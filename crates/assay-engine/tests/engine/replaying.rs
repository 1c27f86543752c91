//! Replay accepts what the engine produced and names the first thing that it did not.

use assay_engine::{Replay, ReplayError, Runner, SubmitError, replay, score};
use assay_types::{Finish, Grammar, GrammarKind, Job, JobError, LogitBias};

use crate::support::{
    BF16, F16, FAMILIES, Outcome, Q4_K_M, Q5_K, Q8, VOCAB, engine, greedy, job, letter, options, penalized, run_alone,
    run_scored, submit,
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

#[test]
fn log_probabilities_come_with_each_token_and_are_derived_again() {
    for tiny in [Q8, Q4_K_M] {
        let model = tiny.model();
        for job in [job(30, 20, 1), penalized(job(40, 20, 5))] {
            let plain = run_alone(&model, &job);
            for top in [0, 5, 20] {
                let asked = Job { logprobs: Some(top), ..job.clone() };
                let (outcome, scores) = run_scored(&model, &asked);
                // Asking changes no token.
                assert_eq!(outcome, plain);
                assert_eq!(scores.len(), plain.tokens.len());
                assert!(scores.iter().all(|score| score.top.len() == usize::from(top) && score.token_micro <= 0));
                let mut runner = Runner::new(2);
                assert_eq!(score(&model, &mut runner, &asked, &plain.tokens, top), Ok(scores.clone()));
                assert_eq!(replay(&model, &mut runner, &asked, &plain.tokens, Finish::Length), Ok(Replay::Exact));
                let resumed = asked.resumed_after(&plain.tokens[..7]);
                assert_eq!(score(&model, &mut runner, &resumed, &plain.tokens[7..], top), Ok(scores[7..].to_vec()));
            }
        }
    }
    let error = score(&Q8.model(), &mut Runner::new(1), &job(3, 3, 1), &[VOCAB], 0);
    assert!(matches!(error, Err(ReplayError::Job(JobError::TokenOutOfRange { .. }))), "{error:?}");
}

/// A job whose output is a sentence of a grammar, and ends where it does.
fn constrained(kind: GrammarKind, text: &str, job: Job) -> Job {
    Job { grammar: Some(Grammar::new(kind, text)), ignore_eos: false, ..job }
}

fn text_of(model: &assay_engine::Model, tokens: &[u32]) -> String {
    let bytes: Vec<u8> = tokens.iter().flat_map(|t| model.tokenizer().token_bytes(*t)).copied().collect();
    String::from_utf8(bytes).expect("a grammar's output is text")
}

#[test]
fn an_output_under_a_grammar_is_a_sentence_of_it_and_exact() {
    const SCHEMA: &str = r#"{"type": "object", "properties": {"a": {"type": "string", "maxLength": 4},
        "b": {"enum": [true, null]}}, "required": ["a", "b"], "additionalProperties": false}"#;
    for tiny in [Q8, F16, Q4_K_M] {
        let model = tiny.model();
        for (n, job) in [job(30, 60, 1), greedy(job(9, 60, 2)), penalized(job(40, 60, 5))].into_iter().enumerate() {
            for job in [
                constrained(GrammarKind::JsonSchema, SCHEMA, job.clone()),
                constrained(GrammarKind::Regex, "[a-e]{3,9}!", job.clone()),
                constrained(GrammarKind::Lark, "start: \"x\" (\"y\" | \"(\" start \")\")", job.clone()),
            ] {
                let Outcome { tokens, end } = run_alone(&model, &job);
                if end == Ok(Finish::Stop) {
                    let text = text_of(&model, &tokens);
                    let kind = job.grammar.as_ref().map(|grammar| grammar.kind);
                    let is_right = match kind {
                        Some(GrammarKind::JsonSchema) => {
                            let value: serde_json::Value = serde_json::from_str(&text).expect(&text);
                            value["a"].as_str().is_some_and(|a| a.chars().count() <= 4) && value.get("b").is_some()
                        }
                        Some(GrammarKind::Regex) => text.ends_with('!') && (4..=10).contains(&text.len()),
                        _ => text.starts_with('x') && text.matches('(').count() == text.matches(')').count(),
                    };
                    assert!(is_right, "{n}: {text}");
                } else {
                    assert_eq!(end, Ok(Finish::Length), "{n}");
                }
                let finish = end.unwrap();
                let mut runner = Runner::new(1);
                assert_eq!(replay(&model, &mut runner, &job, &tokens, finish), Ok(Replay::Exact));
                // Resumed anywhere, it goes on with the same tokens, also in a batch of all of them.
                let engine = engine(&model, options());
                let running: Vec<_> = (0..tokens.len().min(15))
                    .map(|n| submit(&engine, &job.resumed_after(&tokens[..n]), 4096).expect("accepted"))
                    .collect();
                for (n, running) in running.into_iter().enumerate() {
                    assert_eq!(running.outcome(), Outcome { tokens: tokens[n..].to_vec(), end: Ok(finish) }, "{n}");
                }
                // Another token than the grammar allows is named, whatever the model would have liked.
                let mut wrong = tokens.clone();
                wrong[0] = letter(25);
                let got = replay(&model, &mut runner, &job, &wrong, finish);
                assert!(matches!(got, Ok(Replay::FirstWrong { index: 0, .. })), "{got:?}");
            }
        }
    }
}

#[test]
fn grammars_that_cannot_be_followed_are_errors() {
    let model = Q8.model();
    let engine = engine(&model, options());
    let bad = constrained(GrammarKind::JsonSchema, "{", job(3, 9, 1));
    assert!(matches!(submit(&engine, &bad, 9).err(), Some(SubmitError::Constraint(_))));
    let error = replay(&model, &mut Runner::new(1), &bad, &[1], Finish::Open);
    assert!(matches!(error, Err(ReplayError::Constraint(_))), "{error:?}");
    // A prefix that no engine under this grammar produced.
    let digits = constrained(GrammarKind::Regex, "[0-9]+", job(3, 9, 1));
    let broken = digits.resumed_after(&[letter(0)]);
    assert!(matches!(submit(&engine, &broken, 9).err(), Some(SubmitError::Constraint(_))));
}
