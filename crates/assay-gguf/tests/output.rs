//! Where outputs end, and that their text does not depend on how it is cut into tokens.

use assay_gguf::{FinishReason, Gguf, OutputLimits, OutputText, Tokenizer};
use assay_testkit::models::{BOS, EOS, TinyLlama, tiny_llama};
use std::sync::Arc;

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_gguf(&Gguf::parse(&tiny_llama(TinyLlama::default())).unwrap()).unwrap())
}

fn limits(max_tokens: u32, stop: &[&str]) -> OutputLimits {
    OutputLimits { max_tokens, stop: stop.iter().map(|&s| s.to_owned()).collect(), ignore_eos: false }
}

/// The token of one byte.
fn byte(tokenizer: &Tokenizer, byte: u8) -> u32 {
    (0..tokenizer.vocab_size()).find(|&id| tokenizer.token_bytes(id) == [byte]).unwrap()
}

/// Pieces of an output whose tokens are the bytes of `text`.
fn pieces(text: &[u8], limits: OutputLimits) -> (Vec<String>, Option<FinishReason>) {
    let tokenizer = tokenizer();
    let mut output = OutputText::new(tokenizer.clone(), limits);
    let mut pieces = vec![];
    for &b in text {
        let piece = output.push(byte(&tokenizer, b));
        pieces.push(piece.text);
        if piece.finish.is_some() {
            return (pieces, piece.finish);
        }
    }
    (pieces, None)
}

#[test]
fn an_output_ends_at_stop_strings_end_tokens_or_its_length() {
    use FinishReason::{Length, Stop};
    let check = |text: &str, limits: OutputLimits, expect: &[&str], finish| {
        assert_eq!(pieces(text.as_bytes(), limits), (expect.iter().map(|&s| s.to_owned()).collect(), finish), "{text}");
    };
    check("abc", limits(10, &[]), &["a", "b", "c"], None);
    check("abcd", limits(3, &[]), &["a", "b", "c"], Some(Length));
    check("abcd", limits(1, &[]), &["a"], Some(Length));
    check("abcd", limits(10, &["c"]), &["a", "b", ""], Some(Stop));
    check("aXYb", limits(10, &["XY"]), &["a", "", ""], Some(Stop));
    // The held-back beginning of a stop string comes out when it does not go on.
    check("aXXYb", limits(10, &["XY"]), &["a", "", "X", ""], Some(Stop));
    check("aXb", limits(10, &["XY"]), &["a", "", "Xb"], None);
    // And at the end.
    check("aX", limits(2, &["XY"]), &["a", "X"], Some(Length));
    // A stop string beats the length.
    check("aXY", limits(3, &["XY"]), &["a", "", ""], Some(Stop));
    // The first to be complete; then the longest.
    check("abc", limits(10, &["abc", "b"]), &["", "a"], Some(Stop));
    check("xabc", limits(10, &["bc", "abc"]), &["x", "", "", ""], Some(Stop));
    check("aaab", limits(10, &["aab"]), &["", "", "a", ""], Some(Stop));
    // An empty stop string is none.
    check("ab", limits(10, &[""]), &["a", "b"], None);
    // A character of several tokens.
    check("é€", limits(10, &[]), &["", "é", "", "", "€"], None);
    check("é€", limits(4, &[]), &["", "é", "", "\u{fffd}"], Some(Length));
    check("aé", limits(10, &["é"]), &["a", "", ""], Some(Stop));
}

#[test]
fn an_end_token_counts_and_prints_nothing() {
    let tokenizer = tokenizer();
    let a = byte(&tokenizer, b'a');
    let mut output = OutputText::new(tokenizer.clone(), limits(2, &[]));
    assert_eq!(output.push(a).text, "a");
    let last = output.push(EOS);
    assert_eq!((last.text.as_str(), last.finish), ("", Some(FinishReason::Stop)));
    assert_eq!(output.tokens(), 2);
    // Nothing after the end.
    let after = output.push(a);
    assert_eq!((after.text.as_str(), after.finish, output.tokens()), ("", Some(FinishReason::Stop), 2));
    // Held-back text comes out before the end token.
    let mut output = OutputText::new(tokenizer.clone(), limits(9, &["ab"]));
    assert_eq!(output.push(a).text, "");
    assert_eq!(output.push(EOS).text, "a");
    // Other control tokens are not the end.
    let mut output = OutputText::new(tokenizer.clone(), limits(9, &[]));
    let piece = output.push(BOS);
    assert_eq!((piece.text.as_str(), piece.finish), ("", None));
    // Unless asked to go on.
    let mut output = OutputText::new(tokenizer, OutputLimits { ignore_eos: true, ..limits(3, &[]) });
    assert_eq!(output.push(EOS).finish, None);
    assert_eq!(output.push(a).text, "a");
    assert_eq!(output.push(EOS).finish, Some(FinishReason::Length));
}

#[test]
fn text_does_not_depend_on_how_it_is_cut_into_tokens() {
    let tokenizer = tokenizer();
    let text = "the other theme: naïve 😀, then there";
    for stops in [&[][..], &["he"], &["then"], &["ere", "t the"], &["😀,"], &["zz", "me:"], &["r th", " "]] {
        let run = |ids: &[u32]| {
            let mut output = OutputText::new(tokenizer.clone(), limits(10_000, stops));
            let mut all: String = ids.iter().map(|&id| output.push(id).text).collect();
            all += &output.flush();
            (all, output.finish())
        };
        let merged = tokenizer.encode(text, false, false);
        let bytes: Vec<u32> = text.bytes().map(|b| byte(&tokenizer, b)).collect();
        assert!(merged.len() < bytes.len());
        assert_eq!(run(&merged), run(&bytes), "{stops:?}");
        let cut =
            stops.iter().filter_map(|s| text.find(s).map(|at| (at + s.len(), at))).min().map_or(text.len(), |c| c.1);
        assert_eq!(run(&merged).0, text[..cut], "{stops:?}");
    }
}

#[test]
fn a_resumed_output_continues_with_the_same_text() {
    let tokenizer = tokenizer();
    let ids: Vec<u32> = "caféXYZ end".bytes().map(|b| byte(&tokenizer, b)).collect();
    let limits = || limits(11, &["XYZW", "q"]);
    let mut whole = OutputText::new(tokenizer.clone(), limits());
    let pieces: Vec<_> = ids.iter().map(|&id| whole.push(id)).collect();
    for cut in 0..ids.len() {
        let mut resumed = OutputText::new(tokenizer.clone(), limits());
        assert_eq!(resumed.resume(&ids[..cut]), pieces[..cut].last().and_then(|p| p.finish));
        let rest: Vec<_> = ids[cut..].iter().map(|&id| resumed.push(id)).collect();
        assert_eq!(rest, pieces[cut..], "cut at {cut}");
    }
    let mut ended = OutputText::new(tokenizer, limits());
    assert_eq!(ended.resume(&ids), Some(FinishReason::Length));
}
