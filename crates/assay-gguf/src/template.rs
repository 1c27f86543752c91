//! The chat template in a model's file: messages to the text of a prompt.
//!
//! A template is a program from a stranger. It runs with fuel, a bound on the bytes it may make, and a bound on its
//! output; it sees the messages and the names of two tokens, and has no file, clock or network.

use crate::{
    gguf::{Gguf, GgufError},
    template_env as bounds, template_guard as guard,
};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context, syntax::SyntaxConfig};
use std::io;

/// Longest template source in bytes; the longest published ones have about 20,000.
const SOURCE_LEN_MAX: usize = 64 * 1024;
const NAME: &str = "chat_template";

/// The chat template of one model.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    /// Bytes that one instruction can write without a charge.
    uncharged_len_max: u64,
    tool_style: Option<ToolStyle>,
    bos_token: String,
    eos_token: String,
}

/// One turn of a conversation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`; what else is allowed is the template's matter.
    pub role: String,
    /// Text of the turn.
    pub content: String,
}

/// A conversation as the API has it.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Chat {
    /// Objects with `role`, `content`, and where they apply `tool_calls` and `tool_call_id`.
    pub messages: Vec<serde_json::Value>,
    /// Objects `{"type": "function", "function": {..}}`.
    pub tools: Vec<serde_json::Value>,
}

/// How a model writes that it calls a tool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ToolStyle {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, as Hermes and Qwen do.
    Hermes,
    /// `[TOOL_CALLS][{"name": .., "arguments": {..}}, ..]`.
    Mistral,
    /// The whole answer is `{"name": .., "parameters": {..}}`, as Llama 3 does.
    Llama3,
    /// The template knows no tools: they are told in words, and called as in [`Self::Hermes`].
    Told,
}

impl ToolStyle {
    /// By what the template's source says; `None` for a way to call tools that is not one of ours.
    fn of(source: &str) -> Option<Self> {
        let has = |text: &str| source.contains(text);
        if has("[TOOL_CALLS]") {
            // Later templates of Mistral put the arguments behind the name in another way.
            return (!has("[ARGS]")).then_some(Self::Mistral);
        }
        if has("<tool_call>") {
            // Some write the call as tags in tags.
            return (!has("<function=") && !has("<arg_key>")).then_some(Self::Hermes);
        }
        if has("tools") || has("tool_calls") {
            return (has("\"parameters\": ") && has("<|start_header_id|>")).then_some(Self::Llama3);
        }
        Some(Self::Told)
    }
}

/// What one rendering may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Instructions.
    pub fuel: u64,
    /// Bytes of all values that operations make or read, the output included.
    pub memory: u64,
    /// Bytes of output.
    pub output_len: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { fuel: 1_000_000, memory: 64 << 20, output_len: 8 << 20 }
    }
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A key has the wrong type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The file's template is not one, or uses what is not allowed here.
    #[error("chat template: {reason}")]
    Invalid {
        /// What is wrong.
        reason: String,
    },
    /// The template refused the messages (its `raise_exception`).
    #[error("the model's chat template refuses these messages: {message}")]
    Refused {
        /// Its words.
        message: String,
    },
    /// A limit was reached.
    #[error("chat template: {what} exceeded")]
    Limit {
        /// Which.
        what: &'static str,
    },
    /// The template failed on these messages.
    #[error("chat template: {reason}")]
    Failed {
        /// What happened.
        reason: String,
    },
}

impl ChatTemplate {
    /// The template at `tokenizer.chat_template`, `None` if the file has none.
    ///
    /// # Errors
    /// [`TemplateError::Invalid`] if it does not compile.
    pub fn from_gguf(gguf: &Gguf) -> Result<Option<Self>, TemplateError> {
        let Some(source) = gguf.str("tokenizer.chat_template")? else { return Ok(None) };
        let token = |key| -> Result<String, GgufError> {
            let Some(id) = gguf.get::<u32>(key).ok().flatten() else { return Ok(String::new()) };
            let tokens = gguf.array_str("tokenizer.ggml.tokens")?;
            Ok(tokens.and_then(|t| t.get(id as usize)).unwrap_or_default().to_owned())
        };
        let bos_token = token("tokenizer.ggml.bos_token_id")?;
        let eos_token = token("tokenizer.ggml.eos_token_id")?;
        Self::new(source, bos_token, eos_token).map(Some)
    }

    /// A template from its source; the tokens' texts are its variables `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// [`TemplateError::Invalid`] if it does not compile.
    pub fn new(source: &str, bos_token: String, eos_token: String) -> Result<Self, TemplateError> {
        let invalid = |reason: String| TemplateError::Invalid { reason };
        if source.len() > SOURCE_LEN_MAX {
            return Err(invalid(format!("{} bytes, at most {SOURCE_LEN_MAX} are allowed", source.len())));
        }
        // As transformers renders chat templates.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| invalid(error.to_string()))?;
        let guarded = guard::rewrite(source, &syntax).map_err(invalid)?;
        let mut env = Environment::empty();
        env.set_syntax(syntax);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        bounds::install(&mut env);
        env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, "refused").with_source(Refusal(message)))
        });
        env.add_template_owned(NAME, guarded.source).map_err(|error| invalid(error.to_string()))?;
        let (uncharged_len_max, tool_style) = (guarded.captured_raw_len_max, ToolStyle::of(source));
        Ok(Self { env, uncharged_len_max, tool_style, bos_token, eos_token })
    }

    /// The prompt for `messages`. With `add_generation_prompt` it ends where the assistant's words begin. [`crate::chat_tokens`]
    /// makes tokens of it.
    ///
    /// # Errors
    /// [`TemplateError`]: refused by the template, a limit reached, or a template that fails.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
        limits: &Limits,
    ) -> Result<String, TemplateError> {
        let turns = messages.iter().map(|m| context! { role => m.role.as_str(), content => m.content.as_str() });
        self.render_values(turns.collect(), (), add_generation_prompt, limits)
    }

    /// The prompt for messages as the API has them, where `tools` can be called.
    ///
    /// # Errors
    /// As [`Self::render`].
    pub fn render_chat(&self, chat: &Chat, limits: &Limits) -> Result<String, TemplateError> {
        let messages = chat.messages.iter().map(value_of).collect();
        let tools = if chat.tools.is_empty() { Value::from(()) } else { chat.tools.iter().map(value_of).collect() };
        self.render_values(messages, tools, true, limits)
    }

    /// How the template's model calls tools; `None` if that is not known.
    #[must_use]
    pub fn tool_style(&self) -> Option<ToolStyle> {
        self.tool_style
    }

    fn render_values(
        &self,
        messages: Vec<Value>,
        tools: impl Into<Value>,
        add_generation_prompt: bool,
        limits: &Limits,
    ) -> Result<String, TemplateError> {
        let mut env = self.env.clone();
        env.set_fuel(Some(limits.fuel.min(limits.memory / self.uncharged_len_max.max(1))));
        env.add_global(bounds::MEMORY, limits.memory);
        let mut output = Capped { text: Vec::new(), len_max: limits.output_len, full: false };
        let values = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            // Absent things that templates compare with none.
            tools => tools.into(),
            documents => (),
        };
        let template = env.get_template(NAME).map_err(|error| failed(&error))?;
        let result = template.render_captured_to(values, &mut output);
        match result {
            _ if output.full => Err(TemplateError::Limit { what: "the output's length limit" }),
            Err(error) => Err(failed(&error)),
            Ok(_) => String::from_utf8(output.text)
                .map_err(|_| TemplateError::Failed { reason: "the output is not UTF-8".to_owned() }),
        }
    }
}

/// JSON as templates see it. Its depth is bounded by the parser that made it.
fn value_of(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::from(value),
            (None, Some(value)) => Value::from(value),
            (None, None) => Value::from(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value_of).collect(),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), value_of(value)))),
    }
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn failed(error: &Error) -> TemplateError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return TemplateError::Refused { message: message.clone() };
        }
        if cause.downcast_ref::<bounds::OutOfMemory>().is_some() {
            return TemplateError::Limit { what: "the limit on memory" };
        }
        if cause.downcast_ref::<Error>().is_some_and(|e| e.kind() == ErrorKind::OutOfFuel) {
            return TemplateError::Limit { what: "the limit on instructions" };
        }
        source = cause.source();
    }
    let mut reason = error.to_string();
    if reason.contains("strftime_now") {
        reason += "; prompts do not depend on the clock here";
    }
    TemplateError::Failed { reason }
}

/// Collects output up to a length.
struct Capped {
    text: Vec<u8>,
    len_max: usize,
    full: bool,
}

impl io::Write for Capped {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.text.len() + data.len() > self.len_max {
            self.full = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.text.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
