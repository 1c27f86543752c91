//! Anthropic's Messages API: `POST /v1/messages`, its replies, its events and its errors.
//!
//! A request becomes the same [`ChatRequest`] that the chat API has; what follows from it is the same. Fields that
//! only other APIs of this server know (`seed`, `min_p`, `guided_json`, `provider`, ..) work here, too.

use crate::json::{Field, Fields};
use crate::request::{check_forced, model_name, options, stop};
use crate::tools::{ToolCall, ToolChoice, Tooling, flat_tools, named, required};
use crate::{AssayInfo, ChatRequest, ErrorBody, Head, Limits, Message, RequestError, Role, Usage};
use serde::Serialize;
use serde_json::{Value, json};

impl ChatRequest {
    /// Reads the body of `POST /v1/messages`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse_messages(body: &[u8], limits: &Limits) -> Result<Self, RequestError> {
        let mut fields = Fields::parse_body(body)?;
        let model = model_name(&mut fields)?;
        let mut ignored = Vec::new();
        let mut messages = Vec::new();
        if let Some(field) = fields.take("system") {
            messages.push(spoken(Role::System, texts(&field, &mut ignored)?));
        }
        let items = fields.require("messages")?;
        let list = items.array("an array of messages")?;
        if list.is_empty() || list.len() > limits.messages_max {
            let reason = format!("expected 1 to {} messages, got {}", limits.messages_max, list.len());
            return Err(items.refuse(reason));
        }
        for item in &list {
            message(item, &mut messages, &mut ignored)?;
            // Each result of a call is a message.
            if messages.len() > limits.messages_max {
                return Err(items.refuse(format!("more than {} messages and results", limits.messages_max)));
            }
        }
        let stop = fields.take("stop_sequences").map(|field| stop(&field)).transpose()?;
        let tooling = tooling(&mut fields)?;
        if let Some(field) = fields.take("thinking")
            && field.object()?.require("type")?.string()? != "disabled"
        {
            return Err(field.unsupported("thinking is not supported"));
        }
        if fields.take("max_completion_tokens").is_some() {
            return Err(RequestError::unsupported("max_completion_tokens", "use 'max_tokens'"));
        }
        let mut options = options(fields, ignored)?;
        if options.max_tokens.is_none() {
            return Err(RequestError::Missing { param: "max_tokens".into() });
        }
        if options.n != 1 {
            return Err(RequestError::unsupported("n", "one answer per request"));
        }
        options.stop = stop.unwrap_or(options.stop);
        check_forced(&tooling, &options)?;
        Ok(Self { model, messages, tooling, options })
    }
}

fn spoken(role: Role, content: String) -> Message {
    Message { role, content, tool_calls: Vec::new(), tool_call_id: None }
}

/// A string or text blocks.
fn texts(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<String, RequestError> {
    if field.is_string() {
        return field.string();
    }
    let mut parts = Vec::new();
    for block in field.array("a string or an array of text blocks")? {
        let mut fields = block.object()?;
        let kind = fields.require("type")?;
        if kind.string()? != "text" {
            return Err(kind.unsupported("only blocks of type 'text' are supported here"));
        }
        parts.push(fields.require("text")?.string()?);
        ignored.extend(fields.rest());
    }
    Ok(parts.join("\n"))
}

/// One message may stand for several: the results of calls are messages of their own in a chat.
fn message(item: &Field<'_>, messages: &mut Vec<Message>, ignored: &mut Vec<String>) -> Result<(), RequestError> {
    let mut fields = item.object()?;
    let role_field = fields.require("role")?;
    let role = match role_field.string()?.as_str() {
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(role_field.refuse("expected user or assistant; the system prompt is the field 'system'")),
    };
    let content = fields.require("content")?;
    ignored.extend(fields.rest());
    if content.is_string() {
        messages.push(spoken(role, content.string()?));
        return Ok(());
    }
    let mut spoken = spoken(role, String::new());
    let mut has_results = false;
    for block in content.array("a string or an array of blocks")? {
        let mut fields = block.object()?;
        let kind = fields.require("type")?;
        match (kind.string()?.as_str(), role) {
            ("text", _) => {
                let text = fields.require("text")?.string()?;
                if !spoken.content.is_empty() {
                    spoken.content.push('\n');
                }
                spoken.content.push_str(&text);
            }
            ("tool_use", Role::Assistant) => {
                let (id, name) = (fields.require("id")?.string()?, fields.require("name")?.string()?);
                let input = fields.require("input")?;
                input.object()?;
                spoken.tool_calls.push(ToolCall::new(id, name, input.json().to_owned()));
            }
            ("tool_result", Role::User) => {
                let id = fields.require("tool_use_id")?.string()?;
                let content = fields.take("content").map_or(Ok(String::new()), |field| texts(&field, ignored))?;
                fields.take("is_error").map(|field| field.bool()).transpose()?;
                has_results = true;
                messages.push(Message { role: Role::Tool, content, tool_calls: Vec::new(), tool_call_id: Some(id) });
            }
            ("thinking" | "redacted_thinking", Role::Assistant) => {
                ignored.push(block.path.clone());
                continue;
            }
            (_, _) => return Err(kind.unsupported("only text, calls of tools and their results are supported")),
        }
        ignored.extend(fields.rest());
    }
    if !spoken.content.is_empty() || !spoken.tool_calls.is_empty() || !has_results {
        messages.push(spoken);
    }
    Ok(())
}

fn tooling(fields: &mut Fields<'_>) -> Result<Tooling, RequestError> {
    let tools = flat_tools(fields.take("tools"), &["custom"], "input_schema")?;
    let Some(field) = fields.take("tool_choice") else {
        return Ok(Tooling { tools, choice: ToolChoice::Auto, is_parallel: true });
    };
    let mut inner = field.object()?;
    let kind = inner.require("type")?;
    let choice = match kind.string()?.as_str() {
        "auto" => ToolChoice::Auto,
        "none" => ToolChoice::None,
        "any" => required(&kind, &tools)?,
        "tool" => named(&inner.require("name")?, &tools)?,
        _ => return Err(kind.refuse("expected auto, any, tool or none")),
    };
    let is_serial = inner.take("disable_parallel_tool_use").map(|field| field.bool()).transpose()?.unwrap_or(false);
    Ok(Tooling { tools, choice, is_parallel: !is_serial })
}

/// How an answer ended, in Anthropic's words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// The model ended it.
    EndTurn,
    /// `max_tokens` reached.
    MaxTokens,
    /// This stop sequence came.
    StopSequence(String),
    /// The answer calls tools.
    ToolUse,
}

impl StopReason {
    fn name(&self) -> &'static str {
        match self {
            Self::EndTurn => "end_turn",
            Self::MaxTokens => "max_tokens",
            Self::StopSequence(_) => "stop_sequence",
            Self::ToolUse => "tool_use",
        }
    }

    fn sequence(&self) -> Option<&str> {
        if let Self::StopSequence(text) = self { Some(text) } else { None }
    }
}

/// The end of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MessageEnd {
    /// How it ended.
    pub reason: StopReason,
    /// Token counts.
    pub usage: Usage,
    /// Receipt and cost.
    pub assay: AssayInfo,
    /// What was ignored in the request.
    pub warnings: Vec<String>,
}

#[derive(Serialize)]
struct InOut {
    input_tokens: u64,
    output_tokens: u64,
}

impl InOut {
    fn new(usage: &Usage) -> Self {
        Self { input_tokens: usage.prompt_tokens, output_tokens: usage.completion_tokens }
    }
}

/// The reply that is one body.
#[must_use]
pub fn message_reply(head: &Head, text: &str, calls: &[ToolCall], end: &MessageEnd) -> Value {
    let mut content = Vec::new();
    if !text.is_empty() || calls.is_empty() {
        content.push(json!({"type": "text", "text": text}));
    }
    content.extend(calls.iter().map(|call| {
        let input: Value = serde_json::from_str(&call.function.arguments).unwrap_or_else(|_| json!({}));
        json!({"type": "tool_use", "id": call.id, "name": call.function.name, "input": input})
    }));
    let mut reply = json!({
        "id": head.id,
        "type": "message",
        "role": "assistant",
        "model": head.model,
        "content": content,
        "stop_reason": end.reason.name(),
        "stop_sequence": end.reason.sequence(),
        "usage": InOut::new(&end.usage),
        "assay": end.assay,
    });
    add_warnings(&mut reply, &end.warnings);
    reply
}

fn add_warnings(reply: &mut Value, warnings: &[String]) {
    if let Some(object) = reply.as_object_mut().filter(|_| !warnings.is_empty()) {
        object.insert("warnings".into(), warnings.into());
    }
}

/// Encodes the events of one stream.
#[derive(Clone, Debug)]
pub struct MessageStream {
    head: Head,
    prompt_tokens: u64,
    /// Number of the block that is open or comes next.
    block: u32,
    /// Text is being said in `block`.
    is_open: bool,
}

impl MessageStream {
    /// For a reply with this head.
    #[must_use]
    pub fn new(head: Head, prompt_tokens: u64) -> Self {
        Self { head, prompt_tokens, block: 0, is_open: false }
    }

    /// The first event; names receipt and provider.
    #[must_use]
    pub fn start(&self, assay: &AssayInfo) -> Vec<u8> {
        let message = json!({
            "id": self.head.id,
            "type": "message",
            "role": "assistant",
            "model": self.head.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": InOut { input_tokens: self.prompt_tokens, output_tokens: 0 },
            "assay": assay,
        });
        event("message_start", json!({"message": message}))
    }

    /// A piece of text.
    #[must_use]
    pub fn text(&mut self, text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.is_open {
            self.is_open = true;
            let block = json!({"type": "text", "text": ""});
            out = event("content_block_start", json!({"index": self.block, "content_block": block}));
        }
        let delta = json!({"type": "text_delta", "text": text});
        out.extend(event("content_block_delta", json!({"index": self.block, "delta": delta})));
        out
    }

    /// A call of a tool, which is a block of its own.
    #[must_use]
    pub fn tool_call(&mut self, call: &ToolCall) -> Vec<u8> {
        let mut out = self.close();
        let index = self.block;
        let block = json!({"type": "tool_use", "id": call.id, "name": call.function.name, "input": {}});
        out.extend(event("content_block_start", json!({"index": index, "content_block": block})));
        let delta = json!({"type": "input_json_delta", "partial_json": call.function.arguments});
        out.extend(event("content_block_delta", json!({"index": index, "delta": delta})));
        self.is_open = true;
        out.extend(self.close());
        out
    }

    /// The last events.
    #[must_use]
    pub fn finish(&mut self, end: &MessageEnd) -> Vec<u8> {
        let mut out = self.close();
        let delta = json!({"stop_reason": end.reason.name(), "stop_sequence": end.reason.sequence()});
        let mut last = json!({"delta": delta, "usage": InOut::new(&end.usage), "assay": end.assay});
        add_warnings(&mut last, &end.warnings);
        out.extend(event("message_delta", last));
        out.extend(event("message_stop", json!({})));
        out
    }

    fn close(&mut self) -> Vec<u8> {
        if !self.is_open {
            return Vec::new();
        }
        self.is_open = false;
        self.block += 1;
        event("content_block_stop", json!({"index": self.block - 1}))
    }
}

/// An error as Anthropic's API gives it.
#[must_use]
pub fn message_error(status: u16, body: &ErrorBody) -> Value {
    let kind = match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    };
    // The code and the field are of use to a program, whatever the API.
    let ErrorBody { error } = body;
    json!({
        "type": "error",
        "error": {"type": kind, "message": error.message, "code": error.code, "param": error.param},
    })
}

/// The event that ends a broken stream.
#[must_use]
pub fn message_error_event(status: u16, body: &ErrorBody) -> Vec<u8> {
    format!("event: error\ndata: {}\n\n", message_error(status, body)).into_bytes()
}

/// An event whose data says its type, too.
pub(crate) fn event(name: &str, mut data: Value) -> Vec<u8> {
    if let Some(object) = data.as_object_mut() {
        // First, where readers expect it.
        object.shift_insert(0, "type".into(), name.into());
    }
    format!("event: {name}\ndata: {data}\n\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<ChatRequest, RequestError> {
        ChatRequest::parse_messages(body.to_string().as_bytes(), &Limits::default())
    }

    #[test]
    fn a_conversation_with_tools_becomes_a_chat() {
        let body = json!({
            "model": "m", "max_tokens": 9, "stop_sequences": ["x"], "temperature": 0.5, "metadata": {"user_id": "1"},
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "..", "signature": "s"},
                    {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}]},
                    {"type": "text", "text": "and?"}]},
            ],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
            "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": true},
        });
        let chat = parse(&body).unwrap();
        let shown: Vec<_> = chat.messages.iter().map(|m| (m.role, m.content.as_str())).collect();
        assert_eq!(
            shown,
            [
                (Role::System, "s"),
                (Role::User, "hi"),
                (Role::Assistant, "a\nb"),
                (Role::Tool, "r"),
                (Role::User, "and?")
            ]
        );
        assert_eq!(chat.messages[2].tool_calls, [ToolCall::new("t1".into(), "f".into(), "{\"x\":1}".into())]);
        assert_eq!(chat.messages[3].tool_call_id.as_deref(), Some("t1"));
        assert_eq!((chat.options.max_tokens, chat.options.temperature_micro), (Some(9), 500_000));
        assert_eq!(chat.options.stop, ["x"]);
        assert_eq!((chat.tooling.choice, chat.tooling.is_parallel), (ToolChoice::Named("f".into()), false));
        assert_eq!(chat.tooling.tools[0].json["function"]["description"], "d");
        let names = chat.options.warnings.join(" ");
        assert!(
            names.contains("'metadata'") && names.contains("cache_control") && names.contains("content[0]"),
            "{names}"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |change: Value, code: &str, param: &str| {
            let mut body = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
            for (key, value) in change.as_object().unwrap() {
                body[key] = value.clone();
            }
            let error = parse(&body).expect_err(param);
            assert_eq!((error.code(), error.param()), (code, Some(param)), "{error}");
        };
        check(json!({"max_tokens": null}), "missing_required_parameter", "max_tokens");
        check(json!({"max_tokens": 0}), "invalid_value", "max_tokens");
        check(json!({"messages": []}), "invalid_value", "messages");
        check(json!({"messages": [{"role": "system", "content": "x"}]}), "invalid_value", "messages[0].role");
        check(json!({"messages": [{"role": "user"}]}), "missing_required_parameter", "messages[0].content");
        let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
        check(json!({"messages": image}), "unsupported_parameter", "messages[0].content[0].type");
        let call = json!([{"role": "user", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}]);
        check(json!({"messages": call}), "unsupported_parameter", "messages[0].content[0].type");
        check(json!({"tools": [{"type": "bash_20250124", "name": "b"}]}), "unsupported_parameter", "tools[0].type");
        check(json!({"tool_choice": {"type": "any"}}), "invalid_value", "tool_choice.type");
        check(json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "unsupported_parameter", "thinking");
        check(json!({"n": 2}), "unsupported_parameter", "n");
    }

    #[test]
    fn blocks_are_opened_and_closed_in_turn() {
        let head = Head { id: "msg_1".into(), created: 0, model: "m".into(), system_fingerprint: "f".into() };
        let (receipt, class) = (Default::default(), assay_types::Class::Exact);
        let assay = AssayInfo { receipt, receipts: vec![], providers: vec![], cost: None, seed: 0, class };
        let mut stream = MessageStream::new(head, 7);
        let mut bytes = stream.start(&assay);
        bytes.extend(stream.text("a"));
        bytes.extend(stream.text("b"));
        bytes.extend(stream.tool_call(&ToolCall::new("t".into(), "f".into(), "{}".into())));
        bytes.extend(stream.text("c"));
        let end =
            MessageEnd { reason: StopReason::ToolUse, usage: Usage::new(7, 3), assay, warnings: vec!["w".into()] };
        bytes.extend(stream.finish(&end));
        let text = String::from_utf8(bytes).unwrap();
        let events: Vec<(String, Value)> = text
            .split_terminator("\n\n")
            .map(|event| {
                let (name, data) = event.split_once('\n').unwrap();
                (name.strip_prefix("event: ").unwrap().into(), serde_json::from_str(&data[6..]).unwrap())
            })
            .collect();
        let names: Vec<_> = events.iter().map(|(name, data)| (name.as_str(), data["index"].as_u64())).collect();
        let (start, delta, stop) = ("content_block_start", "content_block_delta", "content_block_stop");
        assert_eq!(
            names,
            [
                ("message_start", None),
                (start, Some(0)),
                (delta, Some(0)),
                (delta, Some(0)),
                (stop, Some(0)),
                (start, Some(1)),
                (delta, Some(1)),
                (stop, Some(1)),
                (start, Some(2)),
                (delta, Some(2)),
                (stop, Some(2)),
                ("message_delta", None),
                ("message_stop", None),
            ]
        );
        assert!(events.iter().all(|(name, data)| data["type"] == name.as_str()));
        assert_eq!(events[11].1["delta"], json!({"stop_reason": "tool_use", "stop_sequence": null}));
        assert_eq!(events[11].1["usage"], json!({"input_tokens": 7, "output_tokens": 3}));
        assert_eq!(events[11].1["warnings"], json!(["w"]));
    }
}
