//! Messages to the token ids of a prompt. What the template writes may be special tokens; what a message says may not:
//! a user who types `<|end|>` has typed seven characters, and neither ends a turn nor begins one.
//!
//! How: before rendering, a mark is put where a special token could be read in a message. The template passes it on with
//! the text around it. No special token starts behind a mark, and marks are taken out before text becomes tokens. The
//! mark is a Unicode noncharacter that occurs in no message, so no text changes.

use crate::{ChatMessage, ChatTemplate, Limits, TemplateError, Tokenizer};

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
    let texts = || messages.iter().flat_map(|m| [&m.role, &m.content]);
    let mark = MARKS.into_iter().find(|&mark| texts().all(|text| !text.contains(mark)));
    let shielded = |text: &String| {
        // Whichever mark: the question is only whether there is anything to shield.
        match tokenizer.shield(text, mark.unwrap_or(*MARKS.start())) {
            None => Ok(text.clone()),
            Some(shielded) if mark.is_some() => Ok(shielded),
            Some(_) => Err(TemplateError::Refused {
                message: "they contain a special token's text and every noncharacter from U+FDD0 to U+FDEF".to_owned(),
            }),
        }
    };
    let messages: Vec<ChatMessage> = messages
        .iter()
        .map(|m| Ok(ChatMessage { role: shielded(&m.role)?, content: shielded(&m.content)? }))
        .collect::<Result<_, TemplateError>>()?;
    let text = template.render(&messages, true, limits)?;
    let ids = match mark {
        Some(mark) => tokenizer.encode_shielded(&text, mark),
        // Nothing was shielded.
        None => tokenizer.encode(&text, false, true),
    };
    let bos = tokenizer.bos().filter(|bos| tokenizer.add_bos() && ids.first() != Some(bos));
    Ok(bos.into_iter().chain(ids).collect())
}
