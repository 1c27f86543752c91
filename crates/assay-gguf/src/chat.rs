//! Messages to the token ids of a prompt. What the template writes may be special tokens; what a message says may not:
//! a user who types `<|end|>` has typed seven characters, and neither ends a turn nor begins one.
//!
//! How: before rendering, a mark is put where a special token could be read in a message. The template passes it on with
//! the text around it. No special token starts behind a mark, and marks are taken out before text becomes tokens. The
//! mark is a Unicode noncharacter that occurs in no message, so no text changes.

use crate::{Chat, ChatMessage, ChatTemplate, Limits, TemplateError, Tokenizer};
use serde_json::Value;

/// Code points that are never characters. One that a user sends nevertheless is text like any other.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

/// Token ids of the prompt for `messages`, up to where the assistant's words begin. They start with the
/// begin-of-sequence token if the file asks for one, once, whether or not the template writes it.
///
/// # Errors
/// What [`ChatTemplate::render`] says; and messages that hold a special token's text and every possible mark.
pub fn chat_tokens(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[ChatMessage],
    limits: &Limits,
) -> Result<Vec<u32>, TemplateError> {
    let mut texts: Vec<&str> = Vec::new();
    messages.iter().for_each(|m| texts.extend([m.role.as_str(), &m.content]));
    let shield = Shield::new(tokenizer, &texts);
    let messages: Vec<ChatMessage> = messages
        .iter()
        .map(|m| Ok(ChatMessage { role: shield.text(&m.role)?, content: shield.text(&m.content)? }))
        .collect::<Result<_, TemplateError>>()?;
    Ok(shield.tokens(&template.render(&messages, true, limits)?))
}

/// The same for a conversation with tools: nothing that it says, in messages, descriptions, names or arguments, becomes
/// a special token.
///
/// # Errors
/// As [`chat_tokens`].
pub fn tool_chat_tokens(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    chat: &Chat,
    limits: &Limits,
) -> Result<Vec<u32>, TemplateError> {
    let mut texts = Vec::new();
    chat.messages.iter().chain(&chat.tools).for_each(|value| collect_texts(value, &mut texts));
    let shield = Shield::new(tokenizer, &texts);
    let all = |values: &[Value]| values.iter().map(|value| shield.value(value)).collect::<Result<_, TemplateError>>();
    let shielded = Chat { messages: all(&chat.messages)?, tools: all(&chat.tools)? };
    Ok(shield.tokens(&template.render_chat(&shielded, limits)?))
}

/// Keeps what a conversation says apart from what its template says.
struct Shield<'a> {
    tokenizer: &'a Tokenizer,
    /// In no text; `None` if every one is used.
    mark: Option<char>,
}

impl<'a> Shield<'a> {
    fn new(tokenizer: &'a Tokenizer, texts: &[&str]) -> Self {
        Self { tokenizer, mark: MARKS.into_iter().find(|&mark| texts.iter().all(|text| !text.contains(mark))) }
    }

    fn text(&self, text: &str) -> Result<String, TemplateError> {
        // Whichever mark: the question is only whether there is anything to shield.
        match self.tokenizer.shield(text, self.mark.unwrap_or(*MARKS.start())) {
            None => Ok(text.to_owned()),
            Some(shielded) if self.mark.is_some() => Ok(shielded),
            Some(_) => Err(TemplateError::Refused {
                message: "they contain a special token's text and every noncharacter from U+FDD0 to U+FDEF".to_owned(),
            }),
        }
    }

    /// Depth is bounded by the parser that made the value.
    fn value(&self, value: &Value) -> Result<Value, TemplateError> {
        Ok(match value {
            Value::String(text) => Value::String(self.text(text)?),
            Value::Array(items) => Value::Array(items.iter().map(|item| self.value(item)).collect::<Result<_, _>>()?),
            Value::Object(fields) => {
                let field = |(key, value): (&String, &Value)| Ok((self.text(key)?, self.value(value)?));
                Value::Object(fields.iter().map(field).collect::<Result<_, TemplateError>>()?)
            }
            other => other.clone(),
        })
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        let ids = match self.mark {
            Some(mark) => self.tokenizer.encode_shielded(text, mark),
            // Nothing was shielded.
            None => self.tokenizer.encode(text, false, true),
        };
        let bos = self.tokenizer.bos().filter(|bos| self.tokenizer.add_bos() && ids.first() != Some(bos));
        bos.into_iter().chain(ids).collect()
    }
}

fn collect_texts<'a>(value: &'a Value, texts: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.iter().for_each(|item| collect_texts(item, texts)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            texts.push(key);
            collect_texts(value, texts);
        }),
        _ => {}
    }
}
