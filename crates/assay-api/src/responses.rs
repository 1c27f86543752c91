//! OpenAI's Responses API: `POST /v1/responses`, its replies and its events.
//!
//! A request becomes the same [`ChatRequest`] that the chat API has. Nothing is stored: a conversation is sent whole
//! each time, and what would need a store (`previous_response_id`, `background`) is refused.

use crate::constraint::{Constraint, schema};
use crate::json::{Field, Fields};
use crate::messages::event;
use crate::request::{check_forced, model_name, options};
use crate::tools::{ToolCall, ToolChoice, Tooling, flat_tools, named, required};
use crate::{AssayInfo, ChatRequest, ErrorBody, FinishReason, Head, Limits, Message, RequestError, Role, Usage};
use assay_types::{Grammar, GrammarKind};
use serde_json::{Map, Value, json};

/// Fields that a reply repeats as they were sent, and what it says where they were not.
const ECHOED: &[(&str, &str)] = &[
    ("instructions", "null"),
    ("max_output_tokens", "null"),
    ("metadata", "{}"),
    ("parallel_tool_calls", "true"),
    ("temperature", "1.0"),
    ("text", r#"{"format":{"type":"text"}}"#),
    ("tool_choice", "\"auto\""),
    ("tools", "[]"),
    ("top_p", "1.0"),
    ("user", "null"),
];
/// Fields that would change the answer, the values (as JSON) that do not, and what to say.
const UNSUPPORTED: &[(&str, &[&str], &str)] = &[
    ("previous_response_id", &[], "nothing is stored; send the conversation as 'input'"),
    ("conversation", &[], "nothing is stored; send the conversation as 'input'"),
    ("background", &["false"], "answers are not stored"),
    ("truncation", &["\"disabled\""], "an input that is too long is refused, not cut"),
    ("prompt", &[], "stored prompts are not supported"),
    ("max_tool_calls", &[], "the client runs the tools"),
    ("top_logprobs", &["0"], "use /v1/chat/completions for log probabilities"),
    ("max_tokens", &[], "use 'max_output_tokens'"),
    ("response_format", &[], "use 'text.format'"),
];

/// `POST /v1/responses`.
#[derive(Clone, PartialEq, Debug)]
pub struct ResponsesRequest {
    /// What is asked.
    pub chat: ChatRequest,
    /// What the reply repeats.
    pub echo: Map<String, Value>,
}

impl ResponsesRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(body: &[u8], limits: &Limits) -> Result<Self, RequestError> {
        let mut fields = Fields::parse_body(body)?;
        let model = model_name(&mut fields)?;
        for (name, harmless, reason) in UNSUPPORTED {
            if let Some(field) = fields.take(name)
                && !harmless.iter().any(|value| field.equals(value))
            {
                return Err(field.unsupported(*reason));
            }
        }
        let mut echo = Map::new();
        for (name, default) in ECHOED {
            let text = fields.peek(name).unwrap_or(default);
            echo.insert((*name).into(), serde_json::from_str(text).unwrap_or(Value::Null));
        }
        let mut ignored = Vec::new();
        let mut messages = Vec::new();
        if let Some(field) = fields.take("instructions") {
            messages.push(said(Role::System, field.string()?));
        }
        input(&fields.require("input")?, limits, &mut messages, &mut ignored)?;
        let max_tokens = fields.take("max_output_tokens").map(|field| max_output(&field)).transpose()?;
        let constraint = match fields.take("text") {
            Some(field) => text_format(&field, &mut ignored)?,
            None => None,
        };
        let tooling = tooling(&mut fields)?;
        if let Some(field) = fields.take("reasoning") {
            let mut inner = field.object()?;
            if let Some(effort) = inner.take("effort").filter(|effort| !effort.equals("\"none\"")) {
                return Err(effort.unsupported("reasoning is not supported"));
            }
            ignored.extend(inner.rest());
        }
        // What it is asked to do is done: nothing is stored.
        for name in ["store", "metadata", "user", "include"] {
            fields.take(name);
        }
        let mut options = options(fields, ignored)?;
        if options.n != 1 {
            return Err(RequestError::unsupported("n", "one answer per request"));
        }
        if let (Some(new), Some(old)) = (&constraint, &options.constraint) {
            let reason = format!("'{}' constrains the output already", old.param);
            return Err(RequestError::invalid(new.param, reason));
        }
        options.constraint = constraint.or(options.constraint);
        options.max_tokens = max_tokens;
        check_forced(&tooling, &options)?;
        Ok(Self { chat: ChatRequest { model, messages, tooling, options }, echo })
    }
}

fn said(role: Role, content: String) -> Message {
    Message { role, content, tool_calls: Vec::new(), tool_call_id: None }
}

fn max_output(field: &Field<'_>) -> Result<u32, RequestError> {
    const EXPECTED: &str = "an integer from 1 to 4294967295";
    match field.integer::<u32>(EXPECTED)? {
        0 => Err(field.refuse(format!("expected {EXPECTED}, got 0"))),
        tokens => Ok(tokens),
    }
}

fn input(
    field: &Field<'_>,
    limits: &Limits,
    messages: &mut Vec<Message>,
    ignored: &mut Vec<String>,
) -> Result<(), RequestError> {
    if field.is_string() {
        messages.push(said(Role::User, field.string()?));
        return Ok(());
    }
    let items = field.array("a string or an array of items")?;
    if items.is_empty() || items.len() + messages.len() > limits.messages_max {
        return Err(field.refuse(format!("expected 1 to {} items, got {}", limits.messages_max, items.len())));
    }
    for item in &items {
        let mut fields = item.object()?;
        let kind = fields.take("type");
        let name = kind.as_ref().map_or(Ok("message".to_owned()), Field::string)?;
        match name.as_str() {
            "message" => messages.push(message(&mut fields)?),
            "function_call" => {
                let id = fields.require("call_id")?.string()?;
                let name = fields.require("name")?.string()?;
                let call = ToolCall::new(id, name, fields.require("arguments")?.string()?);
                match messages.last_mut() {
                    // Calls that follow what the assistant said, or another call, are one turn.
                    Some(last) if last.role == Role::Assistant => last.tool_calls.push(call),
                    _ => messages.push(Message { tool_calls: vec![call], ..said(Role::Assistant, String::new()) }),
                }
            }
            "function_call_output" => {
                let id = fields.require("call_id")?.string()?;
                let content = texts(&fields.require("output")?)?;
                messages.push(Message { tool_call_id: Some(id), ..said(Role::Tool, content) });
            }
            "reasoning" => {
                ignored.push(item.path.clone());
                continue;
            }
            _ => {
                let reason = "only messages, calls of functions and their outputs are supported";
                return Err(kind.map_or_else(|| item.unsupported(reason), |kind| kind.unsupported(reason)));
            }
        }
        for name in ["id", "status", "phase"] {
            fields.take(name);
        }
        ignored.extend(fields.rest());
    }
    match messages.is_empty() {
        true => Err(field.refuse("there is no message")),
        false => Ok(()),
    }
}

fn message(fields: &mut Fields<'_>) -> Result<Message, RequestError> {
    let field = fields.require("role")?;
    let role = match field.string()?.as_str() {
        "system" => Role::System,
        "developer" => Role::Developer,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        _ => return Err(field.refuse("expected one of system, developer, user, assistant")),
    };
    Ok(said(role, texts(&fields.require("content")?)?))
}

/// A string or text parts.
fn texts(field: &Field<'_>) -> Result<String, RequestError> {
    if field.is_string() {
        return field.string();
    }
    let mut texts = Vec::new();
    for part in field.array("a string or an array of text parts")? {
        let mut fields = part.object()?;
        let kind = fields.require("type")?;
        match kind.string()?.as_str() {
            "input_text" | "output_text" | "text" => texts.push(fields.require("text")?.string()?),
            "refusal" => texts.push(fields.require("refusal")?.string()?),
            _ => return Err(kind.unsupported("only text is supported")),
        }
    }
    Ok(texts.join("\n"))
}

fn text_format(field: &Field<'_>, ignored: &mut Vec<String>) -> Result<Option<Constraint>, RequestError> {
    let mut fields = field.object()?;
    let format = fields.take("format");
    ignored.extend(fields.rest());
    let Some(format) = format else { return Ok(None) };
    let mut inner = format.object()?;
    let kind = inner.require("type")?;
    match kind.string()?.as_str() {
        "text" => Ok(None),
        "json_object" => {
            let grammar = Grammar::new(GrammarKind::JsonSchema, r#"{"type":"object"}"#);
            Ok(Some(Constraint { grammar, param: "text.format.type" }))
        }
        "json_schema" => {
            inner.require("name")?.string()?;
            let grammar = schema(&inner.require("schema")?)?;
            Ok(Some(Constraint { grammar, param: "text.format.schema" }))
        }
        _ => Err(kind.refuse("expected one of text, json_object, json_schema")),
    }
}

fn tooling(fields: &mut Fields<'_>) -> Result<Tooling, RequestError> {
    const EXPECTED: &str = "'none', 'auto', 'required' or {\"type\": \"function\", \"name\": ..}";
    let tools = flat_tools(fields.take("tools"), &["function"], "parameters")?;
    let parallel = fields.take("parallel_tool_calls").map(|field| field.bool()).transpose()?;
    let choice = match fields.take("tool_choice") {
        None => ToolChoice::Auto,
        Some(field) if field.is_string() => match field.string()?.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => required(&field, &tools)?,
            _ => return Err(field.refuse(format!("expected {EXPECTED}"))),
        },
        Some(field) => {
            let mut inner = field.object().map_err(|_| field.wrong(EXPECTED))?;
            let kind = inner.require("type")?;
            if kind.string()? != "function" {
                return Err(kind.unsupported("only functions are supported, which the client runs"));
            }
            named(&inner.require("name")?, &tools)?
        }
    };
    Ok(Tooling { tools, choice, is_parallel: parallel.unwrap_or(true) })
}

/// The end of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResponseEnd {
    /// How it ended.
    pub reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Receipt and cost.
    pub assay: AssayInfo,
    /// What was ignored in the request.
    pub warnings: Vec<String>,
}

/// One reply in the making: gives out its events, and itself at the end.
#[derive(Clone, Debug)]
pub struct ResponseStream {
    head: Head,
    echo: Map<String, Value>,
    /// Items that are complete.
    items: Vec<Value>,
    /// Text of the message that is open.
    open: Option<String>,
    sequence: u64,
}

impl ResponseStream {
    /// For a reply with this head, which repeats `echo`.
    #[must_use]
    pub fn new(head: Head, echo: Map<String, Value>) -> Self {
        Self { head, echo, items: Vec::new(), open: None, sequence: 0 }
    }

    /// The first events; they name receipt and provider.
    #[must_use]
    pub fn start(&mut self, assay: &AssayInfo) -> Vec<u8> {
        let mut out = Vec::new();
        for name in ["response.created", "response.in_progress"] {
            let response = self.object("in_progress", json!({"assay": assay}));
            out.extend(self.event(name, json!({"response": response})));
        }
        out
    }

    /// A piece of text.
    #[must_use]
    pub fn text(&mut self, text: &str) -> Vec<u8> {
        let mut out = Vec::new();
        let (index, id) = (self.items.len(), self.item_id("msg"));
        if self.open.is_none() {
            self.open = Some(String::new());
            let item =
                json!({"id": id, "type": "message", "status": "in_progress", "role": "assistant", "content": []});
            out = self.event("response.output_item.added", json!({"output_index": index, "item": item}));
            let place = json!({"item_id": id, "output_index": index, "content_index": 0, "part": text_part("")});
            out.extend(self.event("response.content_part.added", place));
        }
        if let Some(open) = &mut self.open {
            open.push_str(text);
        }
        let delta = json!({
            "item_id": id, "output_index": index, "content_index": 0, "delta": text, "logprobs": [],
        });
        out.extend(self.event("response.output_text.delta", delta));
        out
    }

    /// A call of a function, which is an item of its own.
    #[must_use]
    pub fn tool_call(&mut self, call: &ToolCall) -> Vec<u8> {
        let mut out = self.close();
        let (index, id) = (self.items.len(), self.item_id("fc"));
        let arguments = &call.function.arguments;
        let item = |status: &str, arguments: &str| {
            json!({
                "id": id, "type": "function_call", "status": status, "call_id": call.id,
                "name": call.function.name, "arguments": arguments,
            })
        };
        let added = json!({"output_index": index, "item": item("in_progress", "")});
        out.extend(self.event("response.output_item.added", added));
        let delta = json!({"item_id": id, "output_index": index, "delta": arguments});
        out.extend(self.event("response.function_call_arguments.delta", delta));
        let name = &call.function.name;
        let done = json!({"item_id": id, "output_index": index, "name": name, "arguments": arguments});
        out.extend(self.event("response.function_call_arguments.done", done));
        let item = item("completed", arguments);
        out.extend(self.event("response.output_item.done", json!({"output_index": index, "item": item})));
        self.items.push(item);
        out
    }

    /// The last events.
    #[must_use]
    pub fn finish(&mut self, end: &ResponseEnd) -> Vec<u8> {
        let mut out = self.close();
        let response = self.reply(end);
        let is_cut = end.reason == FinishReason::Length;
        let name = if is_cut { "response.incomplete" } else { "response.completed" };
        out.extend(self.event(name, json!({"response": response})));
        out
    }

    /// The event that ends a broken stream.
    #[must_use]
    pub fn fail(&mut self, body: &ErrorBody) -> Vec<u8> {
        let mut response = self.object("failed", json!({}));
        response["error"] = json!({"code": body.error.code, "message": body.error.message});
        self.event("response.failed", json!({"response": response}))
    }

    /// The whole reply; what is open is closed before.
    #[must_use]
    pub fn reply(&mut self, end: &ResponseEnd) -> Value {
        let _ = self.close();
        let is_cut = end.reason == FinishReason::Length;
        let status = if is_cut { "incomplete" } else { "completed" };
        let usage = &end.usage;
        let mut more = json!({
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.total_tokens,
            },
            "assay": end.assay,
        });
        if is_cut {
            more["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        if !end.warnings.is_empty() {
            more["warnings"] = end.warnings.clone().into();
        }
        self.object(status, more)
    }

    /// The response as it is now.
    fn object(&self, status: &str, more: Value) -> Value {
        let mut object = json!({
            "id": self.head.id,
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": null,
            "model": self.head.model,
            "output": self.items,
            "previous_response_id": null,
            "reasoning": {"effort": null, "summary": null},
            "service_tier": "default",
            "store": false,
            "truncation": "disabled",
            "usage": null,
        });
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(self.echo.clone());
            object.extend(more);
        }
        object
    }

    fn close(&mut self) -> Vec<u8> {
        let (index, id) = (self.items.len(), self.item_id("msg"));
        let Some(text) = self.open.take() else { return Vec::new() };
        let done = json!({
            "item_id": id, "output_index": index, "content_index": 0, "text": text, "logprobs": [],
        });
        let mut out = self.event("response.output_text.done", done);
        let part = text_part(&text);
        let place = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
        out.extend(self.event("response.content_part.done", place));
        let item = json!({"id": id, "type": "message", "status": "completed", "role": "assistant", "content": [part]});
        out.extend(self.event("response.output_item.done", json!({"output_index": index, "item": item})));
        self.items.push(item);
        out
    }

    /// Of the item that is open or comes next.
    fn item_id(&self, kind: &str) -> String {
        let id = self.head.id.trim_start_matches("resp_");
        format!("{kind}_{id}{:02}", self.items.len())
    }

    fn event(&mut self, name: &str, mut data: Value) -> Vec<u8> {
        data["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        event(name, data)
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(change: Value) -> Result<ResponsesRequest, RequestError> {
        let mut body = json!({"model": "m", "input": "hi"});
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        ResponsesRequest::parse(body.to_string().as_bytes(), &Limits::default())
    }

    #[test]
    fn items_become_a_chat() {
        let input = json!([
            {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                "content": [{"type": "output_text", "text": "let me see", "annotations": []}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "r"},
        ]);
        let tools = json!([{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": true}]);
        let request = parse(json!({
            "input": input, "instructions": "s", "max_output_tokens": 5, "tools": tools, "store": true, "zzz": 1,
            "text": {"format": {"type": "text"}, "verbosity": "low"},
        }))
        .unwrap();
        let chat = request.chat;
        let shown: Vec<_> = chat.messages.iter().map(|m| (m.role, m.content.as_str(), m.tool_calls.len())).collect();
        assert_eq!(
            shown,
            [(Role::System, "s", 0), (Role::User, "a\nb", 0), (Role::Assistant, "let me see", 2), (Role::Tool, "r", 0)]
        );
        assert_eq!(chat.options.max_tokens, Some(5));
        assert_eq!(request.echo["tools"], tools);
        assert_eq!(request.echo["temperature"], json!(1.0));
        let warnings = chat.options.warnings.join(" ");
        assert!(warnings.contains("'zzz'") && warnings.contains("text.verbosity"), "{warnings}");
        assert!(warnings.contains("input[1]") && !warnings.contains("store"), "{warnings}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |change: Value, code: &str, param: &str| {
            let error = parse(change).expect_err(param);
            assert_eq!((error.code(), error.param()), (code, Some(param)), "{error}");
        };
        check(json!({"input": null}), "missing_required_parameter", "input");
        check(json!({"input": []}), "invalid_value", "input");
        check(json!({"input": [{"type": "item_reference", "id": "x"}]}), "unsupported_parameter", "input[0].type");
        let image = json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]);
        check(json!({"input": image}), "unsupported_parameter", "input[0].content[0].type");
        check(json!({"previous_response_id": "resp_1"}), "unsupported_parameter", "previous_response_id");
        check(json!({"tools": [{"type": "web_search"}]}), "unsupported_parameter", "tools[0].type");
        check(json!({"tool_choice": "required"}), "invalid_value", "tool_choice");
        check(json!({"max_output_tokens": 0}), "invalid_value", "max_output_tokens");
        check(json!({"reasoning": {"effort": "high"}}), "unsupported_parameter", "reasoning.effort");
        check(json!({"text": {"format": {"type": "xml"}}}), "invalid_value", "text.format.type");
    }

    #[test]
    fn a_schema_constrains() {
        let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": true});
        let constraint = parse(json!({"text": {"format": format}})).unwrap().chat.options.constraint.unwrap();
        assert_eq!(
            (constraint.param, constraint.grammar.text.as_str()),
            ("text.format.schema", "{\"type\":\"object\"}")
        );
        let both = parse(json!({"text": {"format": format}, "guided_regex": "a"})).unwrap_err();
        assert_eq!(both.param(), Some("text.format.schema"));
    }

    #[test]
    fn events_are_numbered_and_the_last_one_has_everything() {
        let head = Head { id: "resp_1".into(), created: 5, model: "m".into(), system_fingerprint: "f".into() };
        let (receipt, class) = (Default::default(), assay_types::Class::Exact);
        let assay = AssayInfo { receipt, receipts: vec![], providers: vec![], cost: None, seed: 0, class };
        let echo = parse(json!({})).unwrap().echo;
        let mut stream = ResponseStream::new(head, echo);
        let mut bytes = stream.start(&assay);
        bytes.extend(stream.text("a"));
        bytes.extend(stream.text("b"));
        bytes.extend(stream.tool_call(&ToolCall::new("t".into(), "f".into(), "{}".into())));
        let end = ResponseEnd { reason: FinishReason::Length, usage: Usage::new(7, 3), assay, warnings: vec![] };
        bytes.extend(stream.finish(&end));
        let text = String::from_utf8(bytes).unwrap();
        let events: Vec<Value> = text
            .split_terminator("\n\n")
            .map(|event| {
                let (name, data) = event.split_once('\n').unwrap();
                let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
                assert_eq!(name, format!("event: {}", data["type"].as_str().unwrap()));
                data
            })
            .collect();
        let names: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
                "response.output_text.delta",
                "response.output_text.delta",
                "response.output_text.done",
                "response.content_part.done",
                "response.output_item.done",
                "response.output_item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.incomplete",
            ]
        );
        assert!((0..).zip(&events).all(|(n, event): (u64, _)| event["sequence_number"] == n));
        let last = &events[13]["response"];
        assert_eq!(last["output"][0]["content"][0]["text"], "ab");
        assert_eq!(last["output"][0]["id"], events[2]["item"]["id"]);
        assert_eq!(last["output"][1]["call_id"], "t");
        assert_eq!((last["status"].as_str(), last["created_at"].as_u64()), (Some("incomplete"), Some(5)));
        assert_eq!(last["incomplete_details"], json!({"reason": "max_output_tokens"}));
        assert_eq!(last["usage"]["total_tokens"], 10);
    }
}
