//! Server-sent events of a streamed reply.
//!
//! What all chunks of one stream share is encoded once; a piece of text costs one allocation and one escape pass.

use crate::{AssayInfo, Ending, ErrorBody, Head};
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

    /// The first chunk: a chat announces its role; both name receipt and provider.
    #[must_use]
    pub fn start(&self, assay: &AssayInfo) -> Vec<u8> {
        let choice = match self.kind {
            StreamKind::Chat => {
                "{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null,\"finish_reason\":null}],"
            }
            StreamKind::Completion => "{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":null}],",
        };
        let mut out = Vec::with_capacity(self.open.len() + choice.len() + 256);
        out.extend_from_slice(self.open.as_bytes());
        out.extend_from_slice(choice.as_bytes());
        put_tail(&mut out, assay, &[]);
        out
    }

    /// A piece of text.
    #[must_use]
    pub fn text(&self, text: &str) -> Vec<u8> {
        let (before, after) = match self.kind {
            StreamKind::Chat => {
                ("{\"index\":0,\"delta\":{\"content\":", "},\"logprobs\":null,\"finish_reason\":null}]}\n\n")
            }
            StreamKind::Completion => ("{\"index\":0,\"text\":", ",\"logprobs\":null,\"finish_reason\":null}]}\n\n"),
        };
        let mut out =
            Vec::with_capacity(self.open.len() + before.len() + text.len() + text.len() / 8 + after.len() + 8);
        out.extend_from_slice(self.open.as_bytes());
        out.extend_from_slice(before.as_bytes());
        put_json(&mut out, text);
        out.extend_from_slice(after.as_bytes());
        out
    }

    /// Everything after the last text of a stream that went well: the chunk with the finish reason, receipt and
    /// warnings, the usage chunk if asked for, and [`DONE`].
    #[must_use]
    pub fn finish(&self, ending: &Ending) -> Vec<u8> {
        let mut out = Vec::with_capacity(2 * self.open.len() + 512);
        out.extend_from_slice(self.open.as_bytes());
        out.extend_from_slice(match self.kind {
            StreamKind::Chat => b"{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":".as_slice(),
            StreamKind::Completion => b"{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":".as_slice(),
        });
        put_json(&mut out, &ending.finish_reason);
        out.extend_from_slice(b"}],");
        put_tail(&mut out, &ending.assay, &ending.warnings);
        if self.include_usage {
            out.extend_from_slice(self.open_usage.as_bytes());
            put_json(&mut out, &ending.usage);
            out.extend_from_slice(b"}\n\n");
        }
        out.extend_from_slice(DONE);
        out
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
    use crate::{FinishReason, Usage};
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
            providers: vec![ProviderId::default()],
            cost: Some(Amount(12)),
            seed: 3,
        }
    }

    fn ending(finish_reason: FinishReason, warnings: &[&str]) -> Ending {
        let warnings = warnings.iter().map(ToString::to_string).collect();
        Ending { finish_reason, usage: Usage::new(2, 3), assay: assay(), warnings }
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
        let start = events(&encoder.start(&AssayInfo { cost: None, ..assay() }));
        assert_eq!(
            start,
            [json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 17, "model": "tiny \"q\"",
                "system_fingerprint": "canonical-1:0x01", "choices": [{"index": 0, "logprobs": null,
                "delta": {"role": "assistant", "content": ""}, "finish_reason": null}],
                "assay": {"receipt": format!("0x{}", "01".repeat(32)), "seed": 3,
                    "providers": ["0x0000000000000000000000000000000000000000"]}})]
        );
        let text = events(&encoder.text("a\n\n\"\u{1}é"));
        assert_eq!(text[0]["choices"][0]["delta"], json!({"content": "a\n\n\"\u{1}é"}));
        let end = events(&encoder.finish(&ending(FinishReason::Length, &[])));
        assert_eq!(end.len(), 2);
        assert_eq!(end[0]["choices"][0], json!({"index": 0, "delta": {}, "logprobs": null, "finish_reason": "length"}));
        assert_eq!(end[0]["assay"]["cost"], "12");
        assert_eq!(end[0].get("usage"), None);
        assert_eq!(end[0].get("warnings"), None);
        assert_eq!(end[1], "[DONE]");
    }

    #[test]
    fn completion_chunks_with_usage_and_warnings() {
        let encoder = StreamEncoder::new(StreamKind::Completion, &head(), true);
        let start = events(&encoder.start(&assay()));
        assert_eq!(start[0]["choices"][0], json!({"index": 0, "text": "", "logprobs": null, "finish_reason": null}));
        let text = events(&encoder.text("x"));
        assert_eq!(text[0]["choices"][0], json!({"index": 0, "text": "x", "logprobs": null, "finish_reason": null}));
        assert_eq!(text[0]["usage"], Value::Null);
        assert!(text[0].as_object().unwrap().contains_key("usage"));
        let end = events(&encoder.finish(&ending(FinishReason::Stop, &["w"])));
        assert_eq!(end.len(), 3);
        assert_eq!(end[0]["warnings"], json!(["w"]));
        assert_eq!(end[1]["choices"], json!([]));
        assert_eq!(end[1]["usage"], json!({"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}));
        assert_eq!(end[2], "[DONE]");
    }
}
