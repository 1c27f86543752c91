//! Cuts text into the words within which byte-pair merges happen, as the published tokenizers do with regular
//! expressions: one after the other, each cutting the pieces that the one before it left.
//!
//! The expressions are in [`stages`]; here is which tokenizer uses which, by the name in `tokenizer.ggml.pre`.

mod stages;

use stages::Stage;

/// Which expressions cut the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PreTokenizer {
    Gpt2,
    /// GPT-2 with each digit by itself.
    Starcoder,
    Falcon,
    Llama3,
    /// Llama 3's expression for a vocabulary that does not put whole words first.
    Llama3Merged,
    Qwen2,
    Qwen35,
    DeepSeekLlm,
    DeepSeekCoder,
    DeepSeekV3,
    Tekken,
    Gpt4o,
}

/// Value of `tokenizer.ggml.pre` and what it means. Names as the converters of llama.cpp write them.
const NAMES: &[(&str, PreTokenizer)] = &[
    ("default", PreTokenizer::Gpt2),
    ("gpt-2", PreTokenizer::Gpt2),
    ("gpt2", PreTokenizer::Gpt2),
    ("exaone4", PreTokenizer::Gpt2),
    ("gigachat", PreTokenizer::Gpt2),
    ("granite-docling", PreTokenizer::Gpt2),
    ("jais", PreTokenizer::Gpt2),
    ("mellum", PreTokenizer::Gpt2),
    ("modern-bert", PreTokenizer::Gpt2),
    ("mpt", PreTokenizer::Gpt2),
    ("olmo", PreTokenizer::Gpt2),
    ("phi-2", PreTokenizer::Gpt2),
    ("trillion", PreTokenizer::Gpt2),
    ("starcoder", PreTokenizer::Starcoder),
    ("codeshell", PreTokenizer::Starcoder),
    ("command-r", PreTokenizer::Starcoder),
    ("exaone", PreTokenizer::Starcoder),
    ("minerva-7b", PreTokenizer::Starcoder),
    ("refact", PreTokenizer::Starcoder),
    ("smollm", PreTokenizer::Starcoder),
    ("falcon", PreTokenizer::Falcon),
    ("llama-bpe", PreTokenizer::Llama3),
    ("llama-v3", PreTokenizer::Llama3),
    ("llama3", PreTokenizer::Llama3),
    ("falcon-h1", PreTokenizer::Llama3),
    ("falcon3", PreTokenizer::Llama3),
    ("lfm2", PreTokenizer::Llama3),
    ("midm-2.0", PreTokenizer::Llama3),
    ("pixtral", PreTokenizer::Llama3),
    ("dbrx", PreTokenizer::Llama3Merged),
    ("smaug-bpe", PreTokenizer::Llama3Merged),
    ("qwen2", PreTokenizer::Qwen2),
    ("deepseek-r1-qwen", PreTokenizer::Qwen2),
    ("hunyuan", PreTokenizer::Qwen2),
    ("megrez", PreTokenizer::Qwen2),
    ("stablelm2", PreTokenizer::Qwen2),
    ("qwen35", PreTokenizer::Qwen35),
    ("deepseek-llm", PreTokenizer::DeepSeekLlm),
    ("deepseek-coder", PreTokenizer::DeepSeekCoder),
    ("deepseek-v3", PreTokenizer::DeepSeekV3),
    ("hunyuan-dense", PreTokenizer::DeepSeekV3),
    ("tekken", PreTokenizer::Tekken),
    ("gpt-4o", PreTokenizer::Gpt4o),
    ("llama4", PreTokenizer::Gpt4o),
];

/// Most expressions of a tokenizer.
const STAGES_MAX: usize = 6;

impl PreTokenizer {
    /// By the value of `tokenizer.ggml.pre`.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, pre)| *pre)
    }

    /// The values of `tokenizer.ggml.pre` that [`Self::by_name`] knows, for messages.
    pub(crate) fn names() -> String {
        NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }

    /// Whether a word that is a token as it stands is that token, whatever the merges say.
    pub(crate) fn whole_words(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    /// Whether published models with this expression begin with a token of their own when their file does not say.
    pub(crate) fn adds_bos_by_default(self) -> bool {
        matches!(self, Self::Llama3 | Self::Tekken)
    }

    fn stages(self) -> &'static [Stage] {
        match self {
            Self::Gpt2 => &[stages::gpt2],
            Self::Starcoder => &[stages::number, stages::gpt2],
            Self::Falcon => &[stages::falcon_marks, stages::gpt2, stages::three_digits],
            Self::Llama3 | Self::Llama3Merged => &[stages::llama3],
            Self::Qwen2 => &[stages::qwen2],
            Self::Qwen35 => &[stages::qwen35],
            Self::DeepSeekLlm => &[
                stages::line_end,
                stages::cased_letters,
                stages::wide_marks,
                stages::spaces_at_end,
                stages::east_asian,
                stages::numbers,
            ],
            Self::DeepSeekCoder => {
                &[stages::line_end, stages::letters, stages::punctuation, stages::east_asian, stages::number]
            }
            Self::DeepSeekV3 => &[stages::number_triples, stages::han_kana, stages::deepseek_v3],
            Self::Tekken => &[stages::tekken],
            Self::Gpt4o => &[stages::gpt4o],
        }
    }

    /// Words of `text`, in order, none empty; together they are `text`. O(n).
    pub(crate) fn words(self, text: &str) -> impl Iterator<Item = &str> {
        let stages = self.stages();
        // What each stage has still to cut.
        let mut pending = [""; STAGES_MAX + 1];
        pending[0] = text;
        std::iter::from_fn(move || {
            loop {
                let level = (0..stages.len()).rev().find(|&level| !pending[level].is_empty())?;
                let (piece, after) = pending[level].split_at(stages[level](pending[level]));
                pending[level] = after;
                if level + 1 == stages.len() {
                    return Some(piece);
                }
                pending[level + 1] = piece;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::PreTokenizer::*;
    use super::*;

    #[track_caller]
    fn check(pre: PreTokenizer, text: &str, expect: &[&str]) {
        assert_eq!(pre.words(text).collect::<Vec<_>>(), expect, "{pre:?} {text:?}");
    }

    #[test]
    fn text_is_cut_as_the_expressions_say() {
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
        check(Starcoder, "a 12", &["a", " ", "1", "2"]);
        check(Falcon, "a--b 12345'll", &["a", "--", "b", " ", "123", "45", "'", "ll"]);
        check(Falcon, "123456a", &["123", "456", "a"]);
        check(Llama3, "I'll WE'LL 's", &["I", "'ll", " WE", "'LL", " '", "s"]);
        check(Llama3, "12345 67", &["123", "45", " ", "67"]);
        check(Llama3, "\ty(z)", &["\ty", "(z", ")"]);
        check(Llama3, "x \n\n  y", &["x", " \n\n", " ", " y"]);
        check(Llama3, "end.\r\n\nNext", &["end", ".\r\n\n", "Next"]);
        check(Llama3, "\nx", &["\n", "x"]);
        check(Llama3, " !!\n", &[" !!\n"]);
        check(Llama3, "a\u{a0}\u{a0}b", &["a", "\u{a0}", "\u{a0}b"]);
        check(Qwen2, "123 4", &["1", "2", "3", " ", "4"]);
        check(Qwen2, "e\u{301}a", &["e", "\u{301}a"]);
        check(Qwen35, "e\u{301}a \u{301}", &["e\u{301}a", " \u{301}"]);
    }

    #[test]
    fn stages_cut_what_the_one_before_left() {
        check(DeepSeekLlm, "Ab \u{e9}1!?\n", &["Ab", " \u{e9}", "1", "!?", "\n"]);
        check(DeepSeekLlm, "\u{4e00}12  ", &["\u{4e00}", "12", "  "]);
        check(DeepSeekCoder, "ab 12.", &["ab", " ", "1", "2", "."]);
        check(DeepSeekV3, "1234 _ab\u{4e00}c", &["123", "4", " _", "ab", "\u{4e00}", "c"]);
        check(DeepSeekV3, "\u{200b}\u{200b}ab", &["\u{200b}", "\u{200b}ab"]);
        check(Tekken, "HelloWORLD Abc123", &["Hello", "WORLD", " Abc", "1", "2", "3"]);
        check(Tekken, "\u{4e00}AB \u{4e00}", &["\u{4e00}", "AB", " \u{4e00}"]);
        check(Tekken, "a/\n/b", &["a", "/\n/", "b"]);
        check(Tekken, "\u{301}", &["\u{301}"]);
        check(Gpt4o, "We'LL 1234's", &["We'LL", " ", "123", "4", "'s"]);
    }

    #[test]
    fn random_text_is_cut_as_by_the_tokenizers_package() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../tests/vectors/pretokenize.json")).unwrap();
        let texts: Vec<&str> = vectors["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        let cuts = vectors["cuts"].as_object().unwrap();
        for pre in NAMES.iter().map(|(_, pre)| *pre).filter(|&pre| pre != Llama3Merged) {
            let of_pre = |name: &&String| PreTokenizer::by_name(name) == Some(pre);
            assert!(cuts.keys().any(|name| of_pre(&name)), "{pre:?} has no vectors");
        }
        for (name, cuts) in cuts {
            let pre = PreTokenizer::by_name(name).unwrap();
            for (text, ends) in texts.iter().zip(cuts.as_array().unwrap()) {
                let mut end = 0;
                let ours: Vec<u64> = pre
                    .words(text)
                    .map(|word| {
                        end += word.chars().count() as u64;
                        end
                    })
                    .collect();
                let theirs: Vec<u64> = ends.as_array().unwrap().iter().map(|end| end.as_u64().unwrap()).collect();
                assert_eq!(ours, theirs, "{name} {text:?}: {:?}", pre.words(text).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn every_stage_cuts_something_and_no_more_than_there_is() {
        let odd =
            ["a", "A", "1", " ", "\n", "\r", "'", "\u{301}", "\u{4e00}", "\u{200b}", "/", "\u{3000}", "\u{1f600}"];
        let pres = NAMES.iter().map(|(_, pre)| *pre);
        for pre in pres {
            assert!(pre.stages().len() <= STAGES_MAX);
            for n in 0..odd.len().pow(4) {
                let text: String = (0..4).map(|digit| odd[n / odd.len().pow(digit) % odd.len()]).collect();
                let words: Vec<&str> = pre.words(&text).collect();
                assert!(words.iter().all(|word| !word.is_empty()), "{pre:?} {text:?}");
                assert_eq!(words.concat(), text, "{pre:?}");
            }
        }
    }
}
