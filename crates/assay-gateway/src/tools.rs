//! Tool calls in text: how they are asked for, forced and found, for each way that models write them.
//!
//! Pure: text in, text and calls out. What looks like a call and is none is text. A call is given out once it is
//! complete: half of one is of no use to anybody.

use assay_api::{Message, Role, ToolCall, ToolChoice, Tooling};
use assay_gguf::{Chat, ToolStyle};
use assay_types::{Grammar, GrammarKind};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const MISTRAL: &str = "[TOOL_CALLS]";
/// Longest text that is held back for a call that may still become complete, in bytes.
const HELD_MAX: usize = 256 << 10;

/// The conversation as templates want it.
pub(crate) fn chat(messages: &[Message], tooling: &Tooling, style: ToolStyle) -> Chat {
    let has_tools = tooling.choice != ToolChoice::None && !tooling.tools.is_empty();
    if style == ToolStyle::Told {
        return told(messages, tooling, has_tools);
    }
    let call = |call: &ToolCall| {
        // Templates write the arguments as JSON, so they get them as a value.
        let arguments = serde_json::from_str(&call.function.arguments)
            .unwrap_or_else(|_| Value::from(call.function.arguments.clone()));
        json!({"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}})
    };
    let message = |message: &Message| {
        let mut value = json!({"role": message.role.template_name(), "content": message.content});
        if !message.tool_calls.is_empty() {
            value["tool_calls"] = message.tool_calls.iter().map(call).collect();
        }
        if let Some(id) = &message.tool_call_id {
            value["tool_call_id"] = id.as_str().into();
        }
        value
    };
    let tools = if has_tools { tooling.tools.iter().map(|tool| tool.json.clone()).collect() } else { Vec::new() };
    Chat { messages: messages.iter().map(message).collect(), tools }
}

/// For a template that knows no tools: they are told in the system message, calls and results are text.
fn told(messages: &[Message], tooling: &Tooling, has_tools: bool) -> Chat {
    let mut told = Vec::new();
    let mut words = String::new();
    if has_tools {
        words = format!("Tools. Call: {OPEN}{{\"name\": .., \"arguments\": {{..}}}}{CLOSE}");
        for tool in &tooling.tools {
            words.push('\n');
            words.push_str(&tool.json["function"].to_string());
        }
    }
    for message in messages {
        let mut content = message.content.clone();
        if message.role == Role::System || message.role == Role::Developer {
            content = join(&content, &std::mem::take(&mut words));
        } else if !words.is_empty() {
            told.push(json!({"role": "system", "content": std::mem::take(&mut words)}));
        }
        for call in &message.tool_calls {
            let name = Value::from(call.function.name.clone());
            content = join(
                &content,
                &format!("{OPEN}{{\"name\": {name}, \"arguments\": {}}}{CLOSE}", call.function.arguments),
            );
        }
        let role = if message.role == Role::Tool { "user" } else { message.role.template_name() };
        told.push(json!({"role": role, "content": content}));
    }
    Chat { messages: told, tools: Vec::new() }
}

fn join(first: &str, second: &str) -> String {
    if first.is_empty() || second.is_empty() { format!("{first}{second}") } else { format!("{first}\n{second}") }
}

/// The grammar of an answer that has to call; `None` if it does not have to.
pub(crate) fn grammar(tooling: &Tooling, style: ToolStyle) -> Option<Grammar> {
    let tools: Vec<_> = match &tooling.choice {
        ToolChoice::None | ToolChoice::Auto => return None,
        ToolChoice::Required => tooling.tools.iter().collect(),
        ToolChoice::Named(name) => tooling.tools.iter().filter(|tool| tool.name == *name).collect(),
    };
    let arguments_key = if style == ToolStyle::Llama3 { "parameters" } else { "arguments" };
    // Each schema keeps its own definitions: it is the root of its own part of the grammar.
    let mut text = String::new();
    let mut names = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let mut schema: Value = tool
            .parameters
            .as_ref()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_else(|| json!({"type": "object", "properties": {}, "additionalProperties": false}));
        if let Some(object) = schema.as_object_mut() {
            object.entry("type").or_insert_with(|| "object".into());
            let style = json!({"item_separator": ", ?", "key_separator": ": ?", "whitespace_flexible": false});
            object.insert("x-guidance".into(), style);
        }
        let head = Value::from(format!("{{\"name\": {}, \"{arguments_key}\": ", Value::from(tool.name.as_str())));
        text.push_str(&format!("call{index}: {head} args{index} \"}}\"\nargs{index}: %json {schema}\n"));
        names.push(format!("call{index}"));
    }
    let call = names.join(" | ");
    // Several calls only where nobody asked for one.
    let is_many = tooling.is_parallel && tooling.choice == ToolChoice::Required;
    let start = match style {
        ToolStyle::Hermes | ToolStyle::Told => {
            let block = format!("\"{OPEN}\\n\" call \"\\n{CLOSE}\"");
            if is_many { format!("{block} (\"\\n\" {block})*") } else { block }
        }
        ToolStyle::Mistral if is_many => "\"[\" call (\", \" call)* \"]\"".to_owned(),
        ToolStyle::Mistral => "\"[\" call \"]\"".to_owned(),
        ToolStyle::Llama3 => "call".to_owned(),
    };
    Some(Grammar::new(GrammarKind::Lark, format!("start: {start}\ncall: {call}\n{text}")))
}

/// What was found in a piece of text.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Found {
    pub(crate) text: String,
    pub(crate) calls: Vec<ToolCall>,
}

/// Finds the calls in one answer, piece by piece.
#[derive(Debug)]
pub(crate) struct Finder {
    style: ToolStyle,
    names: Vec<String>,
    /// First part of the calls' ids.
    id: String,
    /// Text that may be (the beginning of) a call.
    held: String,
    /// Whether anything but white space came before `held`.
    has_begun: bool,
    calls: usize,
}

impl Finder {
    /// `id` begins the ids of the calls: letters and digits, at least 7.
    pub(crate) fn new(style: ToolStyle, tooling: &Tooling, id: &str) -> Self {
        let names = tooling.tools.iter().map(|tool| tool.name.clone()).collect();
        // Mistral's templates want ids of nine letters and digits.
        let id = if style == ToolStyle::Mistral { id.get(..7) } else { id.get(..22) }.unwrap_or(id).to_owned();
        Self { style, names, id, held: String::new(), has_begun: false, calls: 0 }
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    /// Takes a piece of the answer.
    pub(crate) fn push(&mut self, piece: &str) -> Found {
        self.held.push_str(piece);
        let mut found = Found::default();
        if self.held.len() > HELD_MAX {
            found.text = std::mem::take(&mut self.held);
            self.has_begun = true;
            return found;
        }
        match self.style {
            ToolStyle::Hermes | ToolStyle::Told => self.find_blocks(&mut found),
            ToolStyle::Mistral | ToolStyle::Llama3 => self.find_whole(&mut found, false),
        }
        found
    }

    /// The answer has ended.
    pub(crate) fn end(&mut self) -> Found {
        let mut found = Found::default();
        if self.style == ToolStyle::Mistral || self.style == ToolStyle::Llama3 {
            self.find_whole(&mut found, true);
        }
        found.text.push_str(&std::mem::take(&mut self.held));
        found
    }

    /// Blocks between tags, text around them. White space between a block and what follows is not text.
    fn find_blocks(&mut self, found: &mut Found) {
        loop {
            if self.calls > 0 {
                self.held = self.held.trim_start().to_owned();
            }
            let Some(open) = self.held.find(OPEN) else {
                let keep = self.held.len() - beginning_len(&self.held, OPEN);
                found.text.push_str(&self.held[..keep]);
                self.held.drain(..keep);
                return;
            };
            let Some(close) = self.held[open..].find(CLOSE).map(|at| open + at) else {
                found.text.push_str(&self.held[..open]);
                self.held.drain(..open);
                return;
            };
            let end = close + CLOSE.len();
            match self.call(&self.held[open + OPEN.len()..close]) {
                Some(call) => {
                    found.text.push_str(&self.held[..open]);
                    found.calls.push(call);
                    self.calls += 1;
                }
                None => found.text.push_str(&self.held[..end]),
            }
            self.held.drain(..end);
        }
    }

    /// An answer that is calls from its first character to its last, or none.
    fn find_whole(&mut self, found: &mut Found, is_over: bool) {
        let text = self.held.trim_start();
        let marked = text.strip_prefix(MISTRAL).filter(|_| self.style == ToolStyle::Mistral);
        let first = if self.style == ToolStyle::Mistral { "[" } else { "{" };
        let body = marked.unwrap_or(text).trim_start();
        let is_possible = body.is_empty() || body.starts_with(first) || MISTRAL.starts_with(text);
        if self.has_begun || !is_possible {
            self.has_begun |= !text.is_empty();
            found.text.push_str(&std::mem::take(&mut self.held));
            return;
        }
        if !is_over {
            return;
        }
        let items: Vec<&RawValue> = match self.style {
            ToolStyle::Mistral => serde_json::from_str(body).unwrap_or_default(),
            _ => serde_json::from_str(body).map(|one| vec![one]).unwrap_or_default(),
        };
        let (mut calls, before) = (Vec::new(), self.calls);
        for item in &items {
            calls.extend(self.call(item.get()));
            self.calls = before + calls.len();
        }
        if calls.len() == items.len() && !calls.is_empty() {
            found.calls = calls;
            self.held.clear();
        } else {
            self.calls = before;
        }
    }

    /// A call of one of the tools, from its JSON.
    fn call(&self, text: &str) -> Option<ToolCall> {
        #[derive(Deserialize)]
        struct Written<'a> {
            name: String,
            #[serde(borrow, alias = "parameters")]
            arguments: Option<&'a RawValue>,
        }
        let written: Written<'_> = serde_json::from_str(text.trim()).ok()?;
        if !self.names.contains(&written.name) {
            return None;
        }
        let arguments = written.arguments.map_or("{}", RawValue::get);
        // Some models write the arguments as a string of JSON.
        let arguments = serde_json::from_str::<String>(arguments).unwrap_or_else(|_| arguments.to_owned());
        let id = match self.style {
            ToolStyle::Mistral => format!("{}{:02}", self.id, self.calls % 100),
            _ => format!("call_{}{:02}", self.id, self.calls),
        };
        Some(ToolCall::new(id, written.name, arguments))
    }
}

/// Bytes at the end of `text` that `tag` begins with.
fn beginning_len(text: &str, tag: &str) -> usize {
    (1..tag.len()).rev().find(|&len| text.ends_with(&tag[..len])).unwrap_or(0)
}

#[cfg(test)]
mod tests;
