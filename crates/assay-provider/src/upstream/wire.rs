//! What is said to an engine and what it says, in the two dialects that engines speak: OpenAI's completions, and
//! Ollama's own, which alone takes a prompt as it is (its OpenAI paths put the model's template around every prompt).

use super::tokens::Printed;
use assay_types::{Job, MICRO, TokenId};
use serde_json::{Map, Value, json};

/// How an engine is spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Dialect {
    /// `POST /v1/completions` with the prompt's token ids (vLLM, SGLang, llama-server).
    Ids,
    /// `POST /v1/completions` with the prompt as text (llama-cpp-python and others).
    Text,
    /// `POST /api/generate` with `raw`.
    Ollama,
}

/// What one line of an answer says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Said {
    pub text: String,
    /// Of the text, if the engine reports them.
    pub ids: Option<Vec<TokenId>>,
    pub end: Option<End>,
}

/// How the engine ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The model ended its answer.
    Stop,
    /// The limit that was asked for, or the engine's own.
    Length,
    /// The stream is over, whatever was said before.
    Closed,
}

/// Tokens to ask for: more than the job's, which are counted here, as an engine whose pieces are cut differently would
/// end too early.
pub(super) fn output_tokens_max(job: &Job, context_length: u32) -> u32 {
    let spare = (job.max_tokens / 4).max(16);
    let room = context_length.saturating_sub(u32::try_from(job.prompt.len()).unwrap_or(u32::MAX));
    job.max_tokens.saturating_add(spare).min(room.max(job.max_tokens))
}

/// The body of a request for a job. Stop strings are not in it: they are found here, by the same rule as everywhere.
pub(super) fn request(dialect: Dialect, model: &str, printed: &Printed, job: &Job, context_length: u32) -> Value {
    let sampling = &job.sampling;
    let micro = |value: u32| f64::from(value) / f64::from(MICRO);
    let signed = |value: i32| f64::from(value) / f64::from(MICRO);
    // llama.cpp's have 32 bits, and not every server takes the upper half of them.
    let seed = (sampling.seed ^ (sampling.seed >> 32)) & 0x7fff_ffff;
    let max_tokens = output_tokens_max(job, context_length);
    // 0 is all here. Engines have different words for that, but all of them know how many tokens there are.
    let top_k = if sampling.top_k == 0 { printed.vocab_size() } else { sampling.top_k };
    if dialect == Dialect::Ollama {
        return json!({
            "model": model, "prompt": printed.prompt(&job.prompt), "raw": true, "stream": true,
            "options": {
                "num_predict": max_tokens, "num_ctx": context_length, "seed": seed,
                "temperature": micro(sampling.temperature_micro), "top_p": micro(sampling.top_p_micro),
                "top_k": top_k, "min_p": micro(sampling.min_p_micro),
                "repeat_penalty": micro(sampling.repetition_penalty_micro), "repeat_last_n": -1,
                "frequency_penalty": signed(sampling.frequency_penalty_micro),
                "presence_penalty": signed(sampling.presence_penalty_micro),
            },
        });
    }
    let prompt = match dialect {
        Dialect::Ids => json!(job.prompt),
        _ => json!(printed.prompt(&job.prompt)),
    };
    let mut bias: Map<String, Value> =
        job.logit_bias.iter().map(|entry| (entry.token.to_string(), json!(signed(entry.bias_micro)))).collect();
    if job.ignore_eos
        && let Some(end) = printed.end()
    {
        bias.insert(end.to_string(), json!(-100));
    }
    let mut body = json!({
        "model": model, "prompt": prompt, "stream": true, "max_tokens": max_tokens, "seed": seed,
        "temperature": micro(sampling.temperature_micro), "top_p": micro(sampling.top_p_micro),
        "min_p": micro(sampling.min_p_micro),
        "top_k": top_k,
        "frequency_penalty": signed(sampling.frequency_penalty_micro),
        "presence_penalty": signed(sampling.presence_penalty_micro),
        "repetition_penalty": micro(sampling.repetition_penalty_micro),
        "repeat_penalty": micro(sampling.repetition_penalty_micro),
        "ignore_eos": job.ignore_eos, "return_token_ids": true,
    });
    if !bias.is_empty() {
        body["logit_bias"] = bias.into();
    }
    body
}

/// Reads a line of a stream; `None` if there is nothing in it.
///
/// # Errors
/// What the engine says went wrong, or why its line is not understood.
pub(super) fn line(dialect: Dialect, line: &[u8]) -> Result<Option<Said>, String> {
    let data = match dialect {
        Dialect::Ollama => line,
        _ => match line.strip_prefix(b"data:") {
            Some(data) => data.trim_ascii(),
            // Comments, names of events, and the empty lines between.
            None => return Ok(None),
        },
    };
    if data.is_empty() {
        return Ok(None);
    }
    if data == b"[DONE]" {
        return Ok(Some(Said { end: Some(End::Closed), ..Said::default() }));
    }
    let value: Value = serde_json::from_slice(data).map_err(|error| format!("the engine sent no JSON: {error}"))?;
    if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
        return Err(format!("the engine failed: {}", message(error)));
    }
    let end = |reason: &Value| match reason.as_str() {
        None => None,
        Some("length") => Some(End::Length),
        Some(_) => Some(End::Stop),
    };
    if dialect == Dialect::Ollama {
        let is_done = value["done"] == true;
        let text = value["response"].as_str().unwrap_or_default().to_owned();
        let end = if is_done { Some(end(&value["done_reason"]).unwrap_or(End::Stop)) } else { None };
        return Ok(Some(Said { text, ids: None, end }));
    }
    // A last event may have the usage and no choice.
    let Some(choice) = value["choices"].get(0) else { return Ok(None) };
    let ids = choice["token_ids"].as_array().map(|list| list.iter().map(id).collect::<Option<Vec<_>>>());
    let ids = match ids {
        Some(None) => return Err("the engine sent token ids that are none".into()),
        Some(Some(ids)) => Some(ids),
        None => None,
    };
    let text = choice["text"].as_str().unwrap_or_default().to_owned();
    Ok(Some(Said { text, ids, end: end(&choice["finish_reason"]) }))
}

fn id(value: &Value) -> Option<TokenId> {
    value.as_u64().and_then(|id| TokenId::try_from(id).ok())
}

/// What an error object says, in a line of bounded length.
pub(super) fn message(error: &Value) -> String {
    let text = error.get("message").unwrap_or(error);
    let text = text.as_str().map_or_else(|| text.to_string(), str::to_owned);
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str, ids: Option<&[TokenId]>, end: Option<End>) -> Result<Option<Said>, String> {
        Ok(Some(Said { text: text.into(), ids: ids.map(<[_]>::to_vec), end }))
    }

    #[test]
    fn lines_of_both_dialects_are_read() {
        let check = |bytes: &str, expect| assert_eq!(line(Dialect::Text, bytes.as_bytes()), expect, "{bytes}");
        check(r#"data: {"choices":[{"text":" a","finish_reason":null}]}"#, said(" a", None, None));
        check(r#"data:{"choices":[{"text":"","finish_reason":"stop"}]}"#, said("", None, Some(End::Stop)));
        check(r#"data: {"choices":[{"text":"b","token_ids":[7,9]}]}"#, said("b", Some(&[7, 9]), None));
        check(r#"data: {"choices":[{"text":"","finish_reason":"length"}]}"#, said("", None, Some(End::Length)));
        check("data: [DONE]", said("", None, Some(End::Closed)));
        check(r#"data: {"choices":[],"usage":{}}"#, Ok(None));
        check(": ping", Ok(None));
        check("", Ok(None));
        check("event: x", Ok(None));
        check(r#"data: {"error":{"message":"out of\nmemory"}}"#, Err("the engine failed: out of memory".into()));
        check(r#"data: {"choices":[{"token_ids":[-1]}]}"#, Err("the engine sent token ids that are none".into()));
        assert!(line(Dialect::Text, b"data: {").is_err() && line(Dialect::Ids, b"data: \xff").is_err());
        let ollama = |bytes: &str| line(Dialect::Ollama, bytes.as_bytes());
        assert_eq!(ollama(r#"{"response":"x","done":false}"#), said("x", None, None));
        assert_eq!(ollama(r#"{"response":"","done":true,"done_reason":"length"}"#), said("", None, Some(End::Length)));
        assert_eq!(ollama(r#"{"response":"","done":true}"#), said("", None, Some(End::Stop)));
        assert_eq!(ollama(r#"{"error":"no model"}"#), Err("the engine failed: no model".into()));
    }
}
