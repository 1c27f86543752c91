//! Log probabilities as the two APIs write them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;

/// A log probability in millionths, written as a decimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Logprob(pub i32);

impl Serialize for Logprob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 1e6)
    }
}

impl<'de> Deserialize<'de> for Logprob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The cast clamps.
        Ok(Self((f64::deserialize(deserializer)? * 1e6).round() as i32))
    }
}

/// A token with its log probability.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ScoredToken {
    /// Its text; what is no UTF-8 by itself is U+FFFD.
    pub token: String,
    /// Of the model, before temperature, penalties and bias.
    pub logprob: Logprob,
    /// Its bytes, exactly.
    pub bytes: Vec<u8>,
}

/// An output token with its log probability and those of the most likely tokens.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OutputLogprob {
    /// The token.
    #[serde(flatten)]
    pub token: ScoredToken,
    /// Most likely first.
    pub top_logprobs: Vec<ScoredToken>,
}

/// `choices[].logprobs` of a chat.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChatLogprobs {
    /// One for each output token; an end-of-generation token has none.
    pub content: Vec<OutputLogprob>,
    /// Always `null`; clients expect the field.
    pub refusal: Option<()>,
}

/// `choices[].logprobs` of a completion.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// Texts.
    pub tokens: Vec<String>,
    /// Of the tokens.
    pub token_logprobs: Vec<Logprob>,
    /// By text, the most likely tokens and the output token; `null` if none were asked for.
    pub top_logprobs: Option<Vec<BTreeMap<String, Logprob>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<u64>,
}

impl ChatLogprobs {
    /// Of these tokens.
    #[must_use]
    pub fn new(content: Vec<OutputLogprob>) -> Self {
        Self { content, refusal: None }
    }
}

impl CompletionLogprobs {
    /// Of these tokens, the first of which begins at character `offset` of the text.
    #[must_use]
    pub fn new(tokens: Vec<OutputLogprob>, mut offset: u64) -> Self {
        let mut out = Self::default();
        for OutputLogprob { token, top_logprobs } in tokens {
            out.text_offset.push(offset);
            offset += token.token.chars().count() as u64;
            if !top_logprobs.is_empty() {
                let mut map: BTreeMap<String, Logprob> = BTreeMap::new();
                // Several tokens can have one text: the most likely one counts.
                for scored in top_logprobs.into_iter().chain([token.clone()]) {
                    map.entry(scored.token).or_insert(scored.logprob);
                }
                out.top_logprobs.get_or_insert_default().push(map);
            }
            out.tokens.push(token.token);
            out.token_logprobs.push(token.logprob);
        }
        out
    }

    /// Characters behind the last token.
    #[must_use]
    pub fn end_offset(&self) -> u64 {
        let last = self.text_offset.last().copied().unwrap_or(0);
        last + self.tokens.last().map_or(0, |token| token.chars().count() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scored(text: &str, micro: i32) -> ScoredToken {
        ScoredToken { token: text.into(), logprob: Logprob(micro), bytes: text.into() }
    }

    #[test]
    fn both_shapes_are_the_documented_ones() {
        let tokens = vec![
            OutputLogprob {
                token: scored("é", -500_000), top_logprobs: vec![scored("a", -1), scored("é", -500_000)]
            },
            OutputLogprob { token: scored("b", i32::MIN), top_logprobs: vec![scored("c", 0)] },
        ];
        let chat = serde_json::to_value(ChatLogprobs::new(tokens.clone())).unwrap();
        let first = json!({"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
            {"token": "a", "logprob": -0.000001, "bytes": [97]}, {"token": "é", "logprob": -0.5, "bytes": [195, 169]}]});
        assert_eq!(chat["content"][0], first);
        assert_eq!(chat["refusal"], json!(null));
        assert_eq!(serde_json::from_value::<ChatLogprobs>(chat).unwrap().content, tokens);
        let completion = CompletionLogprobs::new(tokens.clone(), 7);
        assert_eq!(completion.end_offset(), 9);
        let expect = json!({"tokens": ["é", "b"], "token_logprobs": [-0.5, -2147.483648], "text_offset": [7, 8],
            "top_logprobs": [{"a": -0.000001, "é": -0.5}, {"c": 0.0, "b": -2147.483648}]});
        assert_eq!(serde_json::to_value(completion).unwrap(), expect);
        let bare = tokens.into_iter().map(|token| OutputLogprob { top_logprobs: vec![], ..token }).collect();
        assert_eq!(serde_json::to_value(CompletionLogprobs::new(bare, 0)).unwrap()["top_logprobs"], json!(null));
    }
}
