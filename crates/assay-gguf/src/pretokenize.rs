//! Cuts text into the words within which byte-pair merges happen. Hand-written matchers for the regular expressions of
//! the published tokenizers: linear time, no backtracking.
//!
//! The expressions, first alternative that matches wins:
//! - GPT-2: `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
//! - Llama 3: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
//! - Qwen 2: Llama 3 with `\p{N}` in place of `\p{N}{1,3}`

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// Which expression cuts the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PreTokenizer {
    Gpt2,
    Llama3,
    Qwen2,
}

impl PreTokenizer {
    /// By the value of `tokenizer.ggml.pre`.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        match name {
            "gpt-2" | "gpt2" | "default" => Some(Self::Gpt2),
            "llama3" | "llama-v3" | "llama-bpe" => Some(Self::Llama3),
            "qwen2" | "deepseek-r1-qwen" => Some(Self::Qwen2),
            _ => None,
        }
    }

    /// Words of `text`, in order, none empty; together they are `text`.
    pub(crate) fn words(self, text: &str) -> impl Iterator<Item = &str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let len = match self {
                Self::Gpt2 => gpt2_word(rest),
                Self::Llama3 => llama3_word(rest, 3),
                Self::Qwen2 => llama3_word(rest, 1),
            };
            let (word, after) = rest.split_at(len);
            rest = after;
            Some(word)
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    if c.is_ascii() {
        return match c {
            'a'..='z' | 'A'..='Z' => Class::Letter,
            '0'..='9' => Class::Number,
            '\t'..='\r' | ' ' => Class::Space,
            _ => Class::Other,
        };
    }
    if c.is_whitespace() {
        return Class::Space;
    }
    match c.general_category_group() {
        GeneralCategoryGroup::Letter => Class::Letter,
        GeneralCategoryGroup::Number => Class::Number,
        _ => Class::Other,
    }
}

/// Bytes of the longest prefix of `text` in `want`.
fn run(text: &str, want: Class) -> usize {
    text.find(|c| class(c) != want).unwrap_or(text.len())
}

fn gpt2_word(text: &str) -> usize {
    if let Some(len) = contraction(text, false) {
        return len;
    }
    let (space, rest) = optional_space(text);
    match rest.chars().next().map(class) {
        Some(want) if want != Class::Space => space + run(rest, want),
        _ => space_word(text),
    }
}

fn llama3_word(text: &str, digits_max: usize) -> usize {
    if let Some(len) = contraction(text, true) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    let after = chars.as_str();
    match class(first) {
        Class::Letter => return run(text, Class::Letter),
        Class::Number => {
            let digits = text.chars().take(digits_max).take_while(|&c| class(c) == Class::Number);
            return digits.map(char::len_utf8).sum();
        }
        Class::Space | Class::Other => {
            let letters = if matches!(first, '\r' | '\n') { 0 } else { run(after, Class::Letter) };
            if letters > 0 {
                return first.len_utf8() + letters;
            }
        }
    }
    let (space, rest) = optional_space(text);
    let marks = run(rest, Class::Other);
    if marks > 0 {
        let tail = &rest[marks..];
        return space + marks + tail.find(|c| !matches!(c, '\r' | '\n')).unwrap_or(tail.len());
    }
    let spaces = &text[..run(text, Class::Space)];
    match spaces.rfind(['\r', '\n']) {
        Some(last) => last + 1,
        None => space_word(text),
    }
}

/// `\s+(?!\S)|\s+`: the whole run at the end of the text, else all but the last character of it, which the next word
/// takes.
fn space_word(text: &str) -> usize {
    let len = run(text, Class::Space);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || len == last { len } else { len - last }
}

fn optional_space(text: &str) -> (usize, &str) {
    text.strip_prefix(' ').map_or((0, text), |rest| (1, rest))
}

fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let bytes = text.as_bytes();
    if *bytes.first()? != b'\'' {
        return None;
    }
    let letter = |i: usize| bytes.get(i).map(|b| if any_case { b.to_ascii_lowercase() } else { *b });
    match (letter(1)?, letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::PreTokenizer::{Gpt2, Llama3, Qwen2};
    use super::*;

    #[test]
    fn text_is_cut_as_the_expressions_say() {
        let check = |pre: PreTokenizer, text: &str, expect: &[&str]| {
            assert_eq!(pre.words(text).collect::<Vec<_>>(), expect, "{pre:?} {text:?}");
        };
        check(Gpt2, "", &[]);
        check(Gpt2, "Hello world", &["Hello", " world"]);
        check(Gpt2, "I'll've WE'LL", &["I", "'ll", "'ve", " WE", "'", "LL"]);
        check(Gpt2, "a  b   ", &["a", " ", " b", "   "]);
        check(Gpt2, "x\n\n\ny", &["x", "\n\n", "\n", "y"]);
        check(Gpt2, "\ty", &["\t", "y"]);
        check(Gpt2, "12345 67", &["12345", " 67"]);
        check(Gpt2, "ok... \u{1f600}!", &["ok", "...", " \u{1f600}!"]);
        check(Gpt2, "é\u{301}x", &["é", "\u{301}", "x"]);
        check(Gpt2, "½ Ⅷ", &["½", " Ⅷ"]);
        check(Llama3, "I'll WE'LL 's", &["I", "'ll", " WE", "'LL", " '", "s"]);
        check(Llama3, "12345 67", &["123", "45", " ", "67"]);
        check(Llama3, "\ty(z)", &["\ty", "(z", ")"]);
        check(Llama3, "x \n\n  y", &["x", " \n\n", " ", " y"]);
        check(Llama3, "end.\r\n\nNext", &["end", ".\r\n\n", "Next"]);
        check(Llama3, "\nx", &["\n", "x"]);
        check(Llama3, " !!\n", &[" !!\n"]);
        check(Llama3, "a\u{a0}\u{a0}b", &["a", "\u{a0}", "\u{a0}b"]);
        check(Qwen2, "123 4", &["1", "2", "3", " ", "4"]);
    }
}
