//! Tools: what a request offers and asks for, and the calls in its messages.

use crate::RequestError;
use crate::json::{Field, Fields};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most tools of one request (OpenAI's bound).
const TOOLS_MAX: usize = 128;
/// Longest name of a function, in bytes (OpenAI's bound).
const NAME_LEN_MAX: usize = 64;
/// Most calls in one message.
const CALLS_MAX: usize = 128;

/// A function that the model may call.
#[derive(Clone, PartialEq, Debug)]
pub struct Tool {
    /// 1 to 64 letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// JSON Schema of the arguments, as it was sent; `None`: there are none.
    pub parameters: Option<String>,
    /// The whole object, as templates want it.
    pub json: Value,
}

/// Whether the model has to call.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ToolChoice {
    /// It may not.
    None,
    /// It may.
    #[default]
    Auto,
    /// It has to call one or more.
    Required,
    /// It has to call this one.
    Named(String),
}

/// Tools and what to do with them.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Tooling {
    /// In the order that they were sent; empty: no tools.
    pub tools: Vec<Tool>,
    /// Not `Required` or `Named` without tools.
    pub choice: ToolChoice,
    /// Whether several calls may come at once.
    pub is_parallel: bool,
}

/// A call of a function, in messages and replies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ToolCall {
    /// Names the call; its result names it, too.
    pub id: String,
    /// `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Which, with what.
    pub function: FunctionCall,
}

/// Which function, with what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FunctionCall {
    /// Its name.
    pub name: String,
    /// JSON, as text.
    pub arguments: String,
}

impl ToolCall {
    /// Of a function.
    #[must_use]
    pub fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, kind: "function".into(), function: FunctionCall { name, arguments } }
    }
}

/// `tools`, `tool_choice` and `parallel_tool_calls`.
pub(crate) fn tooling(fields: &mut Fields<'_>) -> Result<Tooling, RequestError> {
    let tools: Vec<Tool> = match fields.take("tools") {
        None => Vec::new(),
        Some(field) => {
            let items = field.array("an array of tools")?;
            if items.len() > TOOLS_MAX {
                return Err(field.refuse(format!("at most {TOOLS_MAX} tools, got {}", items.len())));
            }
            items.iter().map(tool).collect::<Result<_, _>>()?
        }
    };
    distinct(&tools, ".function.name")?;
    let choice = fields.take("tool_choice").map(|field| choice(&field, &tools)).transpose()?.unwrap_or_default();
    let parallel = fields.take("parallel_tool_calls").map(|field| field.bool()).transpose()?;
    Ok(Tooling { tools, choice, is_parallel: parallel.unwrap_or(true) })
}

/// No two functions of one name; `path` leads from a tool to its name.
fn distinct(tools: &[Tool], path: &str) -> Result<(), RequestError> {
    for (index, tool) in tools.iter().enumerate() {
        if tools.iter().take(index).any(|other| other.name == tool.name) {
            let reason = format!("there is another function '{}'", tool.name);
            return Err(RequestError::invalid(format!("tools[{index}]{path}"), reason));
        }
    }
    Ok(())
}

/// The tools of an API that has name and schema in the tool itself; the schema's field is `schema`. Other kinds of
/// tools than functions are refused.
pub(crate) fn flat_tools(field: Option<Field<'_>>, kinds: &[&str], schema: &str) -> Result<Vec<Tool>, RequestError> {
    let Some(field) = field else { return Ok(Vec::new()) };
    let items = field.array("an array of tools")?;
    if items.len() > TOOLS_MAX {
        return Err(field.refuse(format!("at most {TOOLS_MAX} tools, got {}", items.len())));
    }
    let tool = |item: &Field<'_>| {
        let mut fields = item.object()?;
        if let Some(kind) = fields.take("type")
            && !kinds.contains(&kind.string()?.as_str())
        {
            return Err(kind.unsupported("only functions are supported, which the client runs"));
        }
        let name = tool_name(&fields.require("name")?)?;
        let parameters = fields.take(schema).map(|field| crate::constraint::schema(&field)).transpose()?;
        let parameters = parameters.map(|grammar| grammar.text);
        let mut function = serde_json::Map::new();
        function.insert("name".into(), name.clone().into());
        if let Some(description) = fields.take("description") {
            function.insert("description".into(), description.string()?.into());
        }
        if let Some(text) = &parameters {
            let value = serde_json::from_str(text).map_err(|error| item.refuse(error.to_string()))?;
            function.insert("parameters".into(), value);
        }
        Ok(Tool { name, parameters, json: serde_json::json!({"type": "function", "function": function}) })
    };
    let tools: Vec<Tool> = items.iter().map(tool).collect::<Result<_, _>>()?;
    distinct(&tools, ".name")?;
    Ok(tools)
}

/// The choice of one tool by name.
pub(crate) fn named(field: &Field<'_>, tools: &[Tool]) -> Result<ToolChoice, RequestError> {
    let name = field.string()?;
    match tools.iter().any(|tool| tool.name == name) {
        true => Ok(ToolChoice::Named(name)),
        false => Err(field.refuse("there is no tool of this name")),
    }
}

/// The choice of any tool.
pub(crate) fn required(field: &Field<'_>, tools: &[Tool]) -> Result<ToolChoice, RequestError> {
    if tools.is_empty() { Err(field.refuse("there are no tools")) } else { Ok(ToolChoice::Required) }
}

fn tool_name(field: &Field<'_>) -> Result<String, RequestError> {
    let name = field.string()?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !(1..=NAME_LEN_MAX).contains(&name.len()) || !name.chars().all(is_allowed) {
        return Err(field.refuse(format!("expected 1 to {NAME_LEN_MAX} letters, digits, '_', '-' or '.'")));
    }
    Ok(name)
}

fn tool(item: &Field<'_>) -> Result<Tool, RequestError> {
    let mut fields = item.object()?;
    let kind = fields.require("type")?;
    if kind.string()? != "function" {
        return Err(kind.unsupported("only tools of type 'function' are supported"));
    }
    let mut function = fields.require("function")?.object()?;
    let name = tool_name(&function.require("name")?)?;
    let parameters = match function.take("parameters") {
        None => None,
        Some(field) => Some(crate::constraint::schema(&field)?.text),
    };
    let json = serde_json::from_str(item.json()).map_err(|error| item.refuse(error.to_string()))?;
    Ok(Tool { name, parameters, json })
}

fn choice(field: &Field<'_>, tools: &[Tool]) -> Result<ToolChoice, RequestError> {
    const EXPECTED: &str = "'none', 'auto', 'required' or {\"type\": \"function\", \"function\": {\"name\": ..}}";
    if field.is_string() {
        return match field.string()?.as_str() {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" => required(field, tools),
            _ => Err(field.refuse(format!("expected {EXPECTED}"))),
        };
    }
    let mut fields = field.object().map_err(|_| field.wrong(EXPECTED))?;
    let kind = fields.require("type")?;
    if kind.string()? != "function" {
        return Err(kind.refuse("expected 'function'"));
    }
    named(&fields.require("function")?.object()?.require("name")?, tools)
}

/// The calls in an assistant's message.
pub(crate) fn calls(field: &Field<'_>) -> Result<Vec<ToolCall>, RequestError> {
    let items = field.array("an array of tool calls")?;
    if items.len() > CALLS_MAX {
        return Err(field.refuse(format!("at most {CALLS_MAX} calls, got {}", items.len())));
    }
    let call = |item: &Field<'_>| {
        let mut fields = item.object()?;
        let id = fields.require("id")?.string()?;
        let mut function = fields.require("function")?.object()?;
        let name = function.require("name")?.string()?;
        let arguments = function.require("arguments")?.string()?;
        Ok(ToolCall::new(id, name, arguments))
    };
    items.iter().map(call).collect()
}
