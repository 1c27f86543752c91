//! Server-sent events of a streamed reply.
//!
//! What all chunks of one stream share is encoded once; a piece of text costs one allocation and one escape pass.

use crate::tools::{FunctionCall, ToolCall};
use crate::{AssayInfo, ChatLogprobs, CompletionLogprobs, ErrorBody, FinishReason, Head, Usage};
use serde::Serialize;

/// The event that ends a stream that went well. A broken stream ends with [`error_event`] and without this.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

/// Whose chunks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StreamKind {
    /// `chat.completion.chunk`.
    Chat,
    /// `text_completion`.
    Completion,
}

/// Log probabilities of one chunk, in the shape of its kind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Logprobs {
    /// Of a chat.
    Chat(ChatLogprobs),
    /// Of a completion.
    Completion(CompletionLogprobs),
}

/// Encodes the events of one stream.
#[derive(Clone, Debug)]
pub struct StreamEncoder {
    kind: StreamKind,
    /// `data: {"id":..,"system_fingerprint":..` and, if usage is wanted, `"usage":null`; then `,"choices":[`.
    open: String,
    /// The same for the usage chunk, which has another `usage`.
    open_usage: String,
    include_usage: bool,
}

/// The last chunk's additions.
#[derive(Serialize)]
struct Tail<'a> {
    assay: &'a AssayInfo,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

impl StreamEncoder {
    /// For a stream with this head; `include_usage` as in `stream_options`.
    #[must_use]
    pub fn new(kind: StreamKind, head: &Head, include_usage: bool) -> Self {
        #[derive(Serialize)]
        struct Common<'a> {
            id: &'a str,
            object: &'static str,
            created: u64,
            model: &'a str,
            system_fingerprint: &'a str,
        }
        let object = match kind {
            StreamKind::Chat => "chat.completion.chunk",
            StreamKind::Completion => "text_completion",
        };
        let common = Common {
            id: &head.id,
            object,
            created: head.created,
            model: &head.model,
            system_fingerprint: &head.system_fingerprint,
        };
        let mut json = to_json(&common);
        json.pop();
        // Every chunk but the last has `usage: null` where a usage chunk follows.
        let usage = if include_usage { ",\"usage\":null" } else { "" };
        Self {
            kind,
            open: format!("data: {json}{usage},\"choices\":["),
            open_usage: format!("data: {json},\"choices\":[],\"usage\":"),
            include_usage,
        }
    }

    /// The first chunk of a choice: a chat announces its role; both name receipt and provider.
    #[must_use]
    pub fn start(&self, index: u32, assay: &AssayInfo) -> Vec<u8> {
        let delta = match self.kind {
            StreamKind::Chat => ",\"delta\":{\"role\":\"assistant\",\"content\":\"\"}",
            StreamKind::Completion => ",\"text\":\"\"",
        };
        let mut out = Vec::with_capacity(self.open.len() + delta.len() + 320);
        self.put_choice(&mut out, index, |out| out.extend_from_slice(delta.as_bytes()), None, None);
        out.push(b',');
        put_tail(&mut out, assay, &[]);
        out
    }

    /// A piece of a choice's text, possibly empty, and the log probabilities of the tokens that came with it.
    #[must_use]
    pub fn text(&self, index: u32, text: &str, logprobs: Option<&Logprobs>) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.open.len() + text.len() + text.len() / 8 + 96);
        let delta = |out: &mut Vec<u8>| match self.kind {
            StreamKind::Chat => {
                out.extend_from_slice(b",\"delta\":{\"content\":");
                put_json(out, text);
                out.push(b'}');
            }
            StreamKind::Completion => {
                out.extend_from_slice(b",\"text\":");
                put_json(out, text);
            }
        };
        self.put_choice(&mut out, index, delta, logprobs, None);
        out.extend_from_slice(b"}\n\n");
        out
    }

    /// A call of a tool, the `number`th of its choice: first what is called, then with what.
    #[must_use]
    pub fn tool_call(&self, index: u32, number: u32, call: &ToolCall) -> Vec<u8> {
        #[derive(Serialize)]
        struct Begin<'a> {
            index: u32,
            id: &'a str,
            #[serde(rename = "type")]
            kind: &'a str,
            function: FunctionCall,
        }
        #[derive(Serialize)]
        struct Arguments<'a> {
            arguments: &'a str,
        }
        #[derive(Serialize)]
        struct Rest<'a> {
            index: u32,
            function: Arguments<'a>,
        }
        let name = call.function.name.clone();
        let function = FunctionCall { name, arguments: String::new() };
        let begin = Begin { index: number, id: &call.id, kind: &call.kind, function };
        let rest = Rest { index: number, function: Arguments { arguments: &call.function.arguments } };
        let mut out = Vec::with_capacity(2 * self.open.len() + 512);
        for json in [to_json(&begin), to_json(&rest)] {
            let delta = |out: &mut Vec<u8>| out.extend(format!(",\"delta\":{{\"tool_calls\":[{json}]}}").into_bytes());
            self.put_choice(&mut out, index, delta, None, None);
            out.extend_from_slice(b"}\n\n");
        }
        out
    }

    /// The end of a choice: its finish reason, receipt and the request's warnings.
    #[must_use]
    pub fn finish(&self, index: u32, reason: FinishReason, assay: &AssayInfo, warnings: &[String]) -> Vec<u8> {
        let delta = match self.kind {
            StreamKind::Chat => ",\"delta\":{}",
            StreamKind::Completion => ",\"text\":\"\"",
        };
        let mut out = Vec::with_capacity(self.open.len() + 512);
        self.put_choice(&mut out, index, |out| out.extend_from_slice(delta.as_bytes()), None, Some(reason));
        out.push(b',');
        put_tail(&mut out, assay, warnings);
        out
    }

    /// Everything behind the last choice's end: the usage chunk if asked for, and [`DONE`].
    #[must_use]
    pub fn done(&self, usage: &Usage) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.open.len() + 128);
        if self.include_usage {
            out.extend_from_slice(self.open_usage.as_bytes());
            put_json(&mut out, usage);
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(DONE);
        out
    }

    /// A chunk up to the end of its list of choices, which has one.
    fn put_choice(
        &self,
        out: &mut Vec<u8>,
        index: u32,
        delta: impl FnOnce(&mut Vec<u8>),
        logprobs: Option<&Logprobs>,
        reason: Option<FinishReason>,
    ) {
        out.extend_from_slice(self.open.as_bytes());
        out.extend_from_slice(b"{\"index\":");
        put_json(out, &index);
        delta(out);
        out.extend_from_slice(b",\"logprobs\":");
        put_json(out, &logprobs);
        out.extend_from_slice(b",\"finish_reason\":");
        put_json(out, &reason);
        out.extend_from_slice(b"}]");
    }
}

/// The event that ends a broken stream.
#[must_use]
pub fn error_event(body: &ErrorBody) -> Vec<u8> {
    format!("data: {}\n\n", to_json(body)).into_bytes()
}

/// Ends a chunk with the network's part. `Tail` is an object of at least one field: without its opening brace it goes
/// on the chunk's.
fn put_tail(out: &mut Vec<u8>, assay: &AssayInfo, warnings: &[String]) {
    let tail = to_json(&Tail { assay, warnings });
    out.extend_from_slice(tail.get(1..).unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\n\n");
}

fn put_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    out.extend_from_slice(to_json(value).as_bytes());
}

/// Strings, integers and structs of them: none has a map with other keys than strings, which is all that can fail.
fn to_json(value: &(impl Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("own types of strings and integers have a JSON form")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Logprob, OutputLogprob, ScoredToken};
    use assay_types::{Amount, B256, ProviderId, RequestHash};
    use serde_json::{Value, json};

    fn head() -> Head {
        Head {
            id: "chatcmpl-1".into(),
            created: 17,
            model: "tiny \"q\"".into(),
            system_fingerprint: "canonical-1:0x01".into(),
        }
    }

    fn assay() -> AssayInfo {
        AssayInfo {
            receipt: RequestHash(B256::repeat_byte(1)),
            receipts: vec![],
            providers: vec![ProviderId::default()],
            cost: Some(Amount(12)),
            seed: 3,
            class: assay_types::Class::Exact,
        }
    }

    fn events(bytes: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(text.ends_with("\n\n"));
        text.split_terminator("\n\n")
            .map(|event| {
                let data = event.strip_prefix("data: ").expect("each event is one data line");
                if data == "[DONE]" { json!("[DONE]") } else { serde_json::from_str(data).unwrap() }
            })
            .collect()
    }

    #[test]
    fn chat_chunks_have_the_documented_shape() {
        let encoder = StreamEncoder::new(StreamKind::Chat, &head(), false);
        let start = events(&encoder.start(0, &AssayInfo { cost: None, ..assay() }));
        assert_eq!(
            start,
            [json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 17, "model": "tiny \"q\"",
                "system_fingerprint": "canonical-1:0x01", "choices": [{"index": 0, "logprobs": null,
                "delta": {"role": "assistant", "content": ""}, "finish_reason": null}],
                "assay": {"receipt": format!("0x{}", "01".repeat(32)), "seed": 3, "class": "exact",
                    "providers": ["0x0000000000000000000000000000000000000000"]}})]
        );
        let text = events(&encoder.text(3, "a\n\n\"\u{1}é", None));
        assert_eq!(
            text[0]["choices"][0],
            json!({"index": 3, "delta": {"content": "a\n\n\"\u{1}é"}, "logprobs": null, "finish_reason": null})
        );
        let end = events(&encoder.finish(0, FinishReason::Length, &assay(), &[]));
        assert_eq!(end[0]["choices"][0], json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
        assert_eq!(end[0]["assay"]["cost"], "12");
        assert_eq!(end[0].get("usage"), None);
        assert_eq!(end[0].get("warnings"), None);
        assert_eq!(events(&encoder.done(&Usage::new(2, 3))), ["[DONE]"]);
    }

    #[test]
    fn a_call_is_named_before_its_arguments() {
        let encoder = StreamEncoder::new(StreamKind::Chat, &head(), false);
        let call = ToolCall::new("call_1".into(), "f".into(), "{\"a\": 1}".into());
        let deltas: Vec<Value> =
            events(&encoder.tool_call(0, 2, &call)).iter().map(|event| event["choices"][0]["delta"].clone()).collect();
        let function = json!({"name": "f", "arguments": ""});
        assert_eq!(
            deltas,
            [
                json!({"tool_calls": [{"index": 2, "id": "call_1", "type": "function", "function": function}]}),
                json!({"tool_calls": [{"index": 2, "function": {"arguments": "{\"a\": 1}"}}]}),
            ]
        );
    }

    #[test]
    fn log_probabilities_travel_with_their_text() {
        let token = ScoredToken { token: "a".into(), logprob: Logprob(-500_000), bytes: b"a".into() };
        let tokens = vec![OutputLogprob { token, top_logprobs: vec![] }];
        let chat = Logprobs::Chat(ChatLogprobs::new(tokens.clone()));
        let encoder = StreamEncoder::new(StreamKind::Chat, &head(), false);
        let text = events(&encoder.text(0, "a", Some(&chat)));
        let expect = json!({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []});
        assert_eq!(text[0]["choices"][0]["logprobs"], json!({"content": [expect], "refusal": null}));
        let completion = Logprobs::Completion(CompletionLogprobs::new(tokens, 4));
        let encoder = StreamEncoder::new(StreamKind::Completion, &head(), false);
        let text = events(&encoder.text(0, "a", Some(&completion)));
        assert_eq!(text[0]["choices"][0]["logprobs"]["text_offset"], json!([4]));
    }

    #[test]
    fn completion_chunks_with_usage_and_warnings() {
        let encoder = StreamEncoder::new(StreamKind::Completion, &head(), true);
        let start = events(&encoder.start(0, &assay()));
        assert_eq!(start[0]["choices"][0], json!({"index": 0, "text": "", "logprobs": null, "finish_reason": null}));
        let text = events(&encoder.text(0, "x", None));
        assert_eq!(text[0]["choices"][0], json!({"index": 0, "text": "x", "logprobs": null, "finish_reason": null}));
        assert_eq!(text[0]["usage"], Value::Null);
        assert!(text[0].as_object().unwrap().contains_key("usage"));
        let end = events(&encoder.finish(0, FinishReason::Stop, &assay(), &["w".to_owned()]));
        assert_eq!(end.len(), 1);
        assert_eq!(end[0]["warnings"], json!(["w"]));
        let done = events(&encoder.done(&Usage::new(2, 3)));
        assert_eq!(done[0]["choices"], json!([]));
        assert_eq!(done[0]["usage"], json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}));
        assert_eq!(done[1..], ["[DONE]"]);
    }
}
