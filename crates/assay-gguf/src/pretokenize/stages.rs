//! Matchers for the regular expressions of the published tokenizers: written by hand, linear time, no backtracking
//! beyond one word.
//!
//! A stage gets a text that is not empty and returns the bytes of its first piece: what the expression matches there,
//! or else what lies before its next match. First alternative that matches wins.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// Bytes of the first piece of a text; from 1 to all of them.
pub(super) type Stage = fn(&str) -> usize;

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
pub(super) fn gpt2(text: &str) -> usize {
    if let Some(len) = contraction(text, false) {
        return len;
    }
    let (space, rest) = optional_space(text);
    match rest.chars().next().map(class) {
        Some(Class::Letter) => space + run(rest, |c| class(c) == Class::Letter),
        Some(Class::Number) => space + run(rest, |c| class(c) == Class::Number),
        Some(Class::Mark | Class::Other) => space + run(rest, is_other),
        Some(Class::Space) | None => space_word(text),
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub(super) fn llama3(text: &str) -> usize {
    llama3_word(text, 3, |c| class(c) == Class::Letter)
}

/// [`llama3`] with `\p{N}` in place of `\p{N}{1,3}`
pub(super) fn qwen2(text: &str) -> usize {
    llama3_word(text, 1, |c| class(c) == Class::Letter)
}

/// [`qwen2`] with `[\p{L}\p{M}]` in place of `\p{L}` where letters are wanted, and not in what ` ?[^..]+` takes
pub(super) fn qwen35(text: &str) -> usize {
    llama3_word(text, 1, |c| matches!(class(c), Class::Letter | Class::Mark))
}

fn llama3_word(text: &str, digits_max: usize, is_letter: fn(char) -> bool) -> usize {
    if let Some(len) = contraction(text, true) {
        return len;
    }
    let mut chars = text.chars();
    let Some(first) = chars.next() else { return 0 };
    if is_letter(first) {
        return run(text, is_letter);
    }
    if class(first) == Class::Number {
        return digits(text, digits_max);
    }
    if !is_line_end(first) {
        let letters = run(chars.as_str(), is_letter);
        if letters > 0 {
            return first.len_utf8() + letters;
        }
    }
    let (space, rest) = optional_space(text);
    let marks = run(rest, |c| is_other(c) && !is_letter(c));
    if marks > 0 {
        return space + marks + run(&rest[marks..], is_line_end);
    }
    space_or_lines(text)
}

/// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|`
/// `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|`
/// `\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub(super) fn tekken(text: &str) -> usize {
    case_word(text).unwrap_or_else(|| caseless_word(text, 1))
}

/// [`tekken`] with `(?i:'s|'t|'re|'ve|'m|'ll|'d)?` after the letters and `\p{N}{1,3}` for numbers
pub(super) fn gpt4o(text: &str) -> usize {
    match case_word(text) {
        Some(len) => len + contraction(&text[len..], true).unwrap_or_default(),
        None => caseless_word(text, 3),
    }
}

/// The first two alternatives of [`tekken`].
fn case_word(text: &str) -> Option<usize> {
    let first = text.chars().next()?;
    let prefix = match class(first) {
        Class::Letter | Class::Number => 0,
        _ if is_line_end(first) => 0,
        _ => first.len_utf8(),
    };
    // A mark may be the optional first character or the first letter.
    let starts = if prefix == 0 { &[0][..] } else { &[prefix, 0] };
    let ending_small = |&start: &usize| Some(start + upper_then_lower(&text[start..])?);
    let ending_large = |&start: &usize| Some(start + run(&text[start..], is_upper)).filter(|&len| len > start);
    starts.iter().find_map(ending_small).or_else(|| starts.iter().find_map(ending_large))
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`, whose two classes share some letters.
fn upper_then_lower(text: &str) -> Option<usize> {
    let upper = run(text, is_upper);
    let lower = run(&text[upper..], is_lower);
    if lower > 0 {
        return Some(upper + lower);
    }
    // Nothing small follows: the last of the first class that is also of the second takes that place.
    text[..upper].char_indices().rfind(|&(_, c)| is_lower(c)).map(|(at, c)| at + c.len_utf8())
}

/// The other alternatives of [`tekken`].
fn caseless_word(text: &str, digits_max: usize) -> usize {
    if text.chars().next().map(class) == Some(Class::Number) {
        return digits(text, digits_max);
    }
    let (space, rest) = optional_space(text);
    let marks = run(rest, is_other);
    if marks > 0 {
        return space + marks + run(&rest[marks..], |c| is_line_end(c) || c == '/');
    }
    space_or_lines(text)
}

/// `[!-/:-@\[-\x60{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
pub(super) fn deepseek_v3(text: &str) -> usize {
    first_match(text, |text| {
        let mut chars = text.chars();
        let first = chars.next()?;
        let after = chars.as_str();
        let is_letter = |c| matches!(class(c), Class::Letter | Class::Mark);
        if first.is_ascii_punctuation() {
            let letters = run(after, |c| c.is_ascii_alphabetic());
            if letters > 0 {
                return Some(first.len_utf8() + letters);
            }
        }
        if is_letter(first) {
            return Some(run(text, is_letter));
        }
        let is_sign = |c| is_punctuation(c) || is_symbol(c);
        if !is_line_end(first) && !is_sign(first) {
            let letters = run(after, is_letter);
            if letters > 0 {
                return Some(first.len_utf8() + letters);
            }
        }
        let (space, rest) = optional_space(text);
        let signs = run(rest, is_sign);
        if signs > 0 {
            return Some(space + signs + run(&rest[signs..], is_line_end));
        }
        (class(first) == Class::Space).then(|| space_or_lines(text))
    })
}

/// `\p{N}`
pub(super) fn number(text: &str) -> usize {
    first_match(text, |text| Some(digits(text, 1)).filter(|&len| len > 0))
}

/// `\p{N}{1,3}`
pub(super) fn number_triples(text: &str) -> usize {
    first_match(text, |text| Some(digits(text, 3)).filter(|&len| len > 0))
}

/// `\p{N}+`
pub(super) fn numbers(text: &str) -> usize {
    run_or_gap(text, |c| class(c) == Class::Number)
}

/// `[0-9][0-9][0-9]`
pub(super) fn three_digits(text: &str) -> usize {
    first_match(text, |text| {
        let head = text.as_bytes().first_chunk::<3>()?;
        head.iter().all(u8::is_ascii_digit).then_some(3)
    })
}

/// `[\r\n]`
pub(super) fn line_end(text: &str) -> usize {
    first_match(text, |text| text.starts_with(is_line_end).then_some(1))
}

/// `[\p{P}$+<=>^~|\x60]+`
pub(super) fn falcon_marks(text: &str) -> usize {
    run_or_gap(text, |c| matches!(c, '$' | '+' | '<' | '=' | '>' | '^' | '~' | '|' | '`') || is_punctuation(c))
}

/// `\s?\p{L}+`
pub(super) fn letters(text: &str) -> usize {
    spaced_run_or_gap(text, |c| class(c) == Class::Letter)
}

/// `\s?\p{P}+`
pub(super) fn punctuation(text: &str) -> usize {
    spaced_run_or_gap(text, is_punctuation)
}

/// `\s?[..]+` with the letters that have a case as DeepSeek's tokenizer lists them
pub(super) fn cased_letters(text: &str) -> usize {
    spaced_run_or_gap(text, |c| {
        let at = CASED.partition_point(|&(_, last)| last < c);
        CASED.get(at).is_some_and(|&(first, _)| first <= c)
    })
}

/// `\s?[!-/:-~！-／：-～‘-‟\u3000-。]+`
pub(super) fn wide_marks(text: &str) -> usize {
    spaced_run_or_gap(text, |c| {
        matches!(c, '!'..='/' | ':'..='~' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff5e}'
            | '\u{2018}'..='\u{201f}' | '\u{3000}'..='\u{3002}')
    })
}

/// `\s+$`
pub(super) fn spaces_at_end(text: &str) -> usize {
    match text.trim_end_matches(|c| class(c) == Class::Space).len() {
        0 => text.len(),
        len => len,
    }
}

/// `[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+`
pub(super) fn east_asian(text: &str) -> usize {
    run_or_gap(text, |c| matches!(c, '\u{800}'..='\u{9fa5}' | '\u{ac00}'..='\u{d7ff}'))
}

/// `[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+`
pub(super) fn han_kana(text: &str) -> usize {
    run_or_gap(text, |c| matches!(c, '\u{4e00}'..='\u{9fa5}' | '\u{3040}'..='\u{30ff}'))
}

/// The match at the start, or what lies before the first match. `matcher` takes constant time where it does not match.
fn first_match(text: &str, matcher: impl Fn(&str) -> Option<usize>) -> usize {
    if let Some(len) = matcher(text) {
        return len;
    }
    let later = text.char_indices().skip(1).find(|&(at, _)| matcher(&text[at..]).is_some());
    later.map_or(text.len(), |(at, _)| at)
}

/// `[..]+`
fn run_or_gap(text: &str, want: impl Fn(char) -> bool) -> usize {
    match run(text, &want) {
        0 => run(text, |c| !want(c)),
        len => len,
    }
}

/// `\s?[..]+`
fn spaced_run_or_gap(text: &str, want: impl Fn(char) -> bool) -> usize {
    first_match(text, |text| {
        let first = text.chars().next()?;
        let space = if class(first) == Class::Space { first.len_utf8() } else { 0 };
        match run(&text[space..], &want) {
            0 if want(first) => Some(run(text, &want)),
            0 => None,
            len => Some(space + len),
        }
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Letter,
    Mark,
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
        GeneralCategoryGroup::Mark => Class::Mark,
        GeneralCategoryGroup::Number => Class::Number,
        _ => Class::Other,
    }
}

/// `[^\s\p{L}\p{N}]`
fn is_other(c: char) -> bool {
    matches!(class(c), Class::Mark | Class::Other)
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\r' | '\n')
}

fn is_punctuation(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Punctuation
}

fn is_symbol(c: char) -> bool {
    c.general_category_group() == GeneralCategoryGroup::Symbol
}

/// `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]`
fn is_upper(c: char) -> bool {
    match c {
        'A'..='Z' => true,
        c if c.is_ascii() => false,
        c => {
            matches!(class(c), Class::Letter | Class::Mark) && c.general_category() != GeneralCategory::LowercaseLetter
        }
    }
}

/// `[\p{Ll}\p{Lm}\p{Lo}\p{M}]`
fn is_lower(c: char) -> bool {
    use GeneralCategory::{TitlecaseLetter, UppercaseLetter};
    match c {
        'a'..='z' => true,
        c if c.is_ascii() => false,
        c => {
            matches!(class(c), Class::Letter | Class::Mark)
                && !matches!(c.general_category(), UppercaseLetter | TitlecaseLetter)
        }
    }
}

/// Bytes of the longest prefix of `text` in `want`.
fn run(text: &str, want: impl Fn(char) -> bool) -> usize {
    text.find(|c| !want(c)).unwrap_or(text.len())
}

/// `\p{N}{1,max}`, 0 if there is none.
fn digits(text: &str, max: usize) -> usize {
    text.chars().take(max).take_while(|&c| class(c) == Class::Number).map(char::len_utf8).sum()
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+`
fn space_or_lines(text: &str) -> usize {
    let spaces = &text[..run(text, |c| class(c) == Class::Space)];
    match spaces.rfind(is_line_end) {
        Some(last) => last + 1,
        None => space_word(text),
    }
}

/// `\s+(?!\S)|\s+`: the whole run at the end of the text, else all but the last character of it, which the next word
/// takes.
fn space_word(text: &str) -> usize {
    let len = run(text, |c| class(c) == Class::Space);
    let last = text[..len].chars().next_back().map_or(0, char::len_utf8);
    if len == text.len() || len == last { len } else { len - last }
}

fn optional_space(text: &str) -> (usize, &str) {
    text.strip_prefix(' ').map_or((0, text), |rest| (1, rest))
}

/// `'s|'t|'re|'ve|'m|'ll|'d`
fn contraction(text: &str, any_case: bool) -> Option<usize> {
    let after = text.strip_prefix('\'')?;
    // The long s is another case of s.
    if any_case && after.starts_with('\u{17f}') {
        return Some(3);
    }
    let letter = |i: usize| after.as_bytes().get(i).map(|b| if any_case { b.to_ascii_lowercase() } else { *b });
    match (letter(0)?, letter(1)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', Some(b'e')) | (b'l', Some(b'l')) => Some(3),
        _ => None,
    }
}

/// Ascending, from DeepSeek's published tokenizer: fewer letters than Unicode has by now.
#[rustfmt::skip]
const CASED: &[(char, char)] = &[
    ('\u{41}', '\u{5a}'), ('\u{61}', '\u{7a}'), ('\u{b5}', '\u{b5}'), ('\u{c0}', '\u{d6}'), ('\u{d8}', '\u{f6}'),
    ('\u{f8}', '\u{1ba}'), ('\u{1bc}', '\u{1bf}'), ('\u{1c4}', '\u{293}'), ('\u{295}', '\u{2af}'),
    ('\u{370}', '\u{373}'), ('\u{376}', '\u{376}'), ('\u{377}', '\u{377}'), ('\u{37b}', '\u{37d}'),
    ('\u{37f}', '\u{37f}'), ('\u{386}', '\u{386}'), ('\u{388}', '\u{38a}'), ('\u{38c}', '\u{38c}'),
    ('\u{38e}', '\u{3a1}'), ('\u{3a3}', '\u{3f5}'), ('\u{3f7}', '\u{481}'), ('\u{48a}', '\u{52f}'),
    ('\u{531}', '\u{556}'), ('\u{10a0}', '\u{10c5}'), ('\u{13a0}', '\u{13f5}'), ('\u{13f8}', '\u{13fd}'),
    ('\u{1c90}', '\u{1cba}'), ('\u{1cbd}', '\u{1cbf}'), ('\u{1d00}', '\u{1d2b}'), ('\u{1d6b}', '\u{1d77}'),
    ('\u{1d79}', '\u{1d9a}'), ('\u{1e00}', '\u{1f15}'), ('\u{1f18}', '\u{1f1d}'), ('\u{1f20}', '\u{1f45}'),
    ('\u{1f48}', '\u{1f4d}'), ('\u{1f50}', '\u{1f57}'), ('\u{1f59}', '\u{1f59}'), ('\u{1f5b}', '\u{1f5b}'),
    ('\u{1f5d}', '\u{1f5d}'), ('\u{1f5f}', '\u{1f7d}'), ('\u{1f80}', '\u{1fb4}'), ('\u{1fb6}', '\u{1fbc}'),
    ('\u{1fbe}', '\u{1fbe}'), ('\u{1fc2}', '\u{1fc4}'), ('\u{1fc6}', '\u{1fcc}'), ('\u{1fd0}', '\u{1fd3}'),
    ('\u{1fd6}', '\u{1fdb}'), ('\u{1fe0}', '\u{1fec}'), ('\u{1ff2}', '\u{1ff4}'), ('\u{1ff6}', '\u{1ffc}'),
    ('\u{2102}', '\u{2102}'), ('\u{2107}', '\u{2107}'), ('\u{210a}', '\u{2113}'), ('\u{2115}', '\u{2115}'),
    ('\u{2119}', '\u{211d}'), ('\u{2124}', '\u{2124}'), ('\u{2126}', '\u{2126}'), ('\u{2128}', '\u{2128}'),
    ('\u{212a}', '\u{212d}'), ('\u{212f}', '\u{2134}'), ('\u{2139}', '\u{2139}'), ('\u{213c}', '\u{213f}'),
    ('\u{2145}', '\u{2149}'), ('\u{214e}', '\u{214e}'), ('\u{2183}', '\u{2183}'), ('\u{2184}', '\u{2184}'),
    ('\u{2c00}', '\u{2c7b}'), ('\u{2c7e}', '\u{2ce4}'), ('\u{2ceb}', '\u{2cee}'), ('\u{2cf2}', '\u{2cf2}'),
    ('\u{2cf3}', '\u{2cf3}'), ('\u{a640}', '\u{a66d}'), ('\u{a680}', '\u{a69b}'), ('\u{a722}', '\u{a76f}'),
    ('\u{a771}', '\u{a787}'), ('\u{a78b}', '\u{a78e}'), ('\u{ab70}', '\u{abbf}'), ('\u{fb00}', '\u{fb06}'),
    ('\u{fb13}', '\u{fb17}'), ('\u{ff21}', '\u{ff3a}'), ('\u{ff41}', '\u{ff5a}'), ('\u{10400}', '\u{1044f}'),
    ('\u{104b0}', '\u{104d3}'), ('\u{104d8}', '\u{104fb}'), ('\u{10c80}', '\u{10cb2}'), ('\u{10cc0}', '\u{10cf2}'),
    ('\u{118a0}', '\u{118df}'), ('\u{1e900}', '\u{1e943}'),
];
