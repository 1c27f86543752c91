//! How each API says an answer: as one body, or as the events of a stream.

use crate::error::GatewayError;
use crate::flight::Finished;
use crate::http::json;
use crate::rescue;
use assay_api::{
    AssayInfo, ChatCompletion, Choice, Completion, Ending, FinishReason, Head, Logprobs, MessageEnd, MessageStream,
    ResponseEnd, ResponseStream, StopReason, StreamEncoder, StreamKind, ToolCall, Usage, error_event,
    message_error_event, message_reply,
};
use assay_types::Finish;
use axum::body::Body;
use axum::http::Response;
use serde_json::{Map, Value};

/// Which API a request came by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// `/v1/chat/completions`.
    Chat,
    /// `/v1/completions`.
    Completion,
    /// `/v1/messages`.
    Messages,
    /// `/v1/responses`, and what its reply repeats of the request.
    Responses(Map<String, Value>),
}

/// What errors look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    OpenAi,
    Anthropic,
}

impl Dialect {
    pub(crate) fn shape(&self) -> Shape {
        if *self == Self::Messages { Shape::Anthropic } else { Shape::OpenAi }
    }

    /// The id of a reply, from the hex digits of its first job.
    pub(crate) fn reply_id(&self, digits: &str) -> String {
        let prefix = match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
            Self::Messages => "msg_",
            Self::Responses(_) => "resp_",
        };
        format!("{prefix}{digits}")
    }

    /// The reply that is one body.
    pub(crate) fn whole(self, head: Head, choices: Vec<Choice>, ends: &[Finished], ending: Ending) -> Response<Body> {
        match self {
            Self::Chat => json(&ChatCompletion::new(head, choices, ending)),
            Self::Completion => json(&Completion::new(head, choices, ending)),
            Self::Messages => {
                let choice = choices.into_iter().next();
                let (text, calls) = choice.map(|choice| (choice.text, choice.tool_calls)).unwrap_or_default();
                let reason = ends.first().map_or(StopReason::EndTurn, |end| stop_reason(end, calls.len()));
                let Ending { usage, assay, warnings } = ending;
                json(&message_reply(&head, &text, &calls, &MessageEnd { reason, usage, assay, warnings }))
            }
            Self::Responses(echo) => {
                let mut reply = ResponseStream::new(head, echo);
                let mut reason = FinishReason::Stop;
                for choice in choices {
                    reason = choice.finish_reason;
                    // The events are of no use to anybody.
                    if !choice.text.is_empty() || choice.tool_calls.is_empty() {
                        let _ = reply.text(&choice.text);
                    }
                    for call in &choice.tool_calls {
                        let _ = reply.tool_call(call);
                    }
                }
                let Ending { usage, assay, warnings } = ending;
                json(&reply.reply(&ResponseEnd { reason, usage, assay, warnings }))
            }
        }
    }

    /// The events of a stream.
    pub(crate) fn voice(self, head: Head, prompt_tokens: u64, include_usage: bool) -> Voice {
        match self {
            Self::Chat => Voice::Choices(StreamEncoder::new(StreamKind::Chat, &head, include_usage)),
            Self::Completion => Voice::Choices(StreamEncoder::new(StreamKind::Completion, &head, include_usage)),
            Self::Messages => Voice::Messages(MessageStream::new(head, prompt_tokens)),
            Self::Responses(echo) => Voice::Responses(Box::new(ResponseStream::new(head, echo))),
        }
    }
}

/// The events of one stream, in the words of its API.
pub(crate) enum Voice {
    Choices(StreamEncoder),
    Messages(MessageStream),
    Responses(Box<ResponseStream>),
}

impl Voice {
    pub(crate) fn start(&mut self, choice: u32, assay: &AssayInfo) -> Vec<u8> {
        match self {
            Self::Choices(encoder) => encoder.start(choice, assay),
            Self::Messages(stream) => stream.start(assay),
            Self::Responses(stream) => stream.start(assay),
        }
    }

    pub(crate) fn text(&mut self, choice: u32, text: &str, logprobs: Option<&Logprobs>) -> Vec<u8> {
        match self {
            Self::Choices(encoder) => encoder.text(choice, text, logprobs),
            Self::Messages(stream) => stream.text(text),
            Self::Responses(stream) => stream.text(text),
        }
    }

    /// The `number`th call of its choice.
    pub(crate) fn tool_call(&mut self, choice: u32, number: u32, call: &ToolCall) -> Vec<u8> {
        match self {
            Self::Choices(encoder) => encoder.tool_call(choice, number, call),
            Self::Messages(stream) => stream.tool_call(call),
            Self::Responses(stream) => stream.tool_call(call),
        }
    }

    /// The end of a choice.
    pub(crate) fn finish(
        &mut self,
        choice: u32,
        finished: &Finished,
        calls: usize,
        usage: Usage,
        assay: AssayInfo,
        warnings: &[String],
    ) -> Vec<u8> {
        let warnings_owned = || warnings.to_vec();
        match self {
            Self::Choices(encoder) => encoder.finish(choice, finish_reason(finished, calls), &assay, warnings),
            Self::Messages(stream) => {
                let reason = stop_reason(finished, calls);
                stream.finish(&MessageEnd { reason, usage, assay, warnings: warnings_owned() })
            }
            Self::Responses(stream) => {
                let reason = finish_reason(finished, calls);
                stream.finish(&ResponseEnd { reason, usage, assay, warnings: warnings_owned() })
            }
        }
    }

    /// Everything behind the last choice's end.
    pub(crate) fn done(&self, usage: &Usage) -> Vec<u8> {
        match self {
            Self::Choices(encoder) => encoder.done(usage),
            Self::Messages(_) | Self::Responses(_) => Vec::new(),
        }
    }

    /// The end of a stream that broke.
    pub(crate) fn fail(&mut self, error: &GatewayError) -> Vec<u8> {
        let body = rescue::error_body(error);
        match self {
            Self::Choices(_) => error_event(&body),
            Self::Messages(_) => message_error_event(rescue::status(error), &body),
            Self::Responses(stream) => stream.fail(&body),
        }
    }
}

/// Only an output that ended by itself is finished.
pub(crate) fn finish_reason(finished: &Finished, calls: usize) -> FinishReason {
    match FinishReason::from_finish(finished.finish).unwrap_or(FinishReason::Length) {
        FinishReason::Stop if calls > 0 => FinishReason::ToolCalls,
        other => other,
    }
}

fn stop_reason(finished: &Finished, calls: usize) -> StopReason {
    match (finished.finish, &finished.stopped_by) {
        (Finish::Stop, _) if calls > 0 => StopReason::ToolUse,
        (Finish::Stop, Some(stop)) => StopReason::StopSequence(stop.clone()),
        (Finish::Stop, None) => StopReason::EndTurn,
        _ => StopReason::MaxTokens,
    }
}
