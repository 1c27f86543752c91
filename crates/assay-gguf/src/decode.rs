//! Bytes of tokens to text, one token at a time: a character may be spread over several tokens.

/// Holds back the bytes of an unfinished character; what can never become valid UTF-8 prints U+FFFD.
#[derive(Clone, Default, Debug)]
pub struct TextDecoder {
    /// At most three bytes: the beginning of a character.
    held: Vec<u8>,
}

impl TextDecoder {
    /// Takes the bytes a token prints, returns the text that is complete with them.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.held.len());
        let mut rest = &self.held[..];
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    let Some(bad) = error.error_len() else {
                        self.held = after.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[bad..];
                }
            }
        }
    }

    /// Ends the text: U+FFFD if a character is unfinished, else nothing.
    pub fn finish(&mut self) -> String {
        match std::mem::take(&mut self.held).is_empty() {
            true => String::new(),
            false => char::REPLACEMENT_CHARACTER.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_of_the_bytes_gives_the_same_text() {
        let check = |bytes: &[u8]| {
            let expect = String::from_utf8_lossy(bytes);
            for first in 0..=bytes.len() {
                for second in first..=bytes.len() {
                    let mut decoder = TextDecoder::default();
                    let mut text = String::new();
                    for part in [&bytes[..first], &bytes[first..second], &bytes[second..]] {
                        text += &decoder.push(part);
                    }
                    text += &decoder.finish();
                    assert_eq!(text, expect, "{bytes:02x?} cut at {first} and {second}");
                }
            }
        };
        check(b"");
        check("aé€😀z".as_bytes());
        check(b"\xf0\x9f\x98");
        check(b"\xf0\x9fA\x98\x80\xff\xc3");
        check(b"\xe2\x82\xe2\x82\xac\xed\xa0\x80");
    }

    #[test]
    fn an_unfinished_character_is_held_back() {
        let mut decoder = TextDecoder::default();
        assert_eq!(decoder.push(b"x\xf0\x9f"), "x");
        assert_eq!(decoder.push(b"\x98"), "");
        assert_eq!(decoder.push(b"\x80y"), "😀y");
        assert_eq!(decoder.finish(), "");
    }
}
