//! WordPiece: normalisation, words, pieces, and vocabularies that lack something. Expected values are those of Hugging
//! Face `tokenizers` on the same vocabulary.

use assay_gguf::{Gguf, StrArray, Tokenizer, TokenizerError, write::GgufWriter};

const SPECIALS: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A tokenizer of the special tokens and `pieces`, as a vocabulary file writes them: `##` continues a word.
fn wordpiece(pieces: &[&str], change: impl FnOnce(&mut GgufWriter)) -> Result<Tokenizer, TokenizerError> {
    let pieces = pieces.iter().map(|piece| match piece.strip_prefix("##") {
        Some(rest) => rest.to_owned(),
        None => format!("\u{2581}{piece}"),
    });
    let tokens: StrArray = SPECIALS.iter().map(|&text| text.to_owned()).chain(pieces).collect();
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id < SPECIALS.len() { 3 } else { 1 }).collect();
    let mut writer = GgufWriter::new();
    writer
        .set("tokenizer.ggml.model", "bert")
        .set("tokenizer.ggml.tokens", tokens)
        .set("tokenizer.ggml.token_type", types);
    change(&mut writer);
    Tokenizer::from_gguf(&Gguf::parse(&writer.to_bytes(|_| vec![]).unwrap()).unwrap())
}

fn texts(tokenizer: &Tokenizer, text: &str, parse_special: bool) -> String {
    let ids = tokenizer.encode(text, false, parse_special);
    let texts: Vec<String> = ids.iter().map(|&id| tokenizer.token_text(id).replace('\u{2581}', "_")).collect();
    texts.join(" ")
}

const PIECES: &[&str] = &[
    "un", "##aff", "##able", "able", "ab", "abl", "##la", "!", ".", ",", "[", "]", "mask", "cafe", "café", "i", "ß",
    "σ", "##σ", "中", "国", "か", "##な", "x", "##x", "ᄒ", "##ᅡ", "##ᆫ", ";",
];

#[test]
fn words_are_covered_by_the_longest_pieces() {
    let tokenizer = wordpiece(PIECES, |_| ()).unwrap();
    let check = |text: &str, expect: &str| assert_eq!(texts(&tokenizer, text, false), expect, "{text:?}");
    check("unaffable", "_un aff able");
    check("able", "_able");
    // "ab" and "la" would cover it, but "abl" is longer, and there is no way back.
    check("abla", "[UNK]");
    check("ablable abx", "_abl able _ab x");
    check("unable able", "_un able _able");
    check("", "");
    check(" \t\n ", "");
}

#[test]
fn text_is_normalised_before_it_is_cut() {
    let tokenizer = wordpiece(PIECES, |_| ()).unwrap();
    let check = |text: &str, expect: &str| assert_eq!(texts(&tokenizer, text, false), expect, "{text:?}");
    check("CAFÉ Cafe\u{301} café", "_cafe _cafe _cafe");
    check("\u{130} ẞ ΣΣ", "_i _ß _σ σ");
    check("able!able..", "_able _! _able _. _.");
    check("中国x", "_中 _国 _x");
    check("かな", "_か な");
    // Hangul syllables fall into letters.
    check("한", "_ᄒ ᅡ ᆫ");
    // The Greek question mark is a semicolon once it is normalised.
    check("x\u{37e}x", "_x _; _x");
    // Controls, format characters and U+FFFD vanish; every white space ends a word.
    check("a\u{b}b\u{c}le un\u{200b}\u{fffd}\0able", "_able _un able");
    check("x\u{a0}x\u{3000}x\u{2028}x\u{85}x", "_x _x _x _x x");
}

#[test]
fn case_and_accents_are_kept_where_the_file_says_so() {
    let cased = |keep_accents: bool| {
        wordpiece(&["Café", "Cafe", "café", "x"], |writer| {
            writer.set("tokenizer.ggml.normalizer.lowercase", false);
            if !keep_accents {
                writer.set("tokenizer.ggml.normalizer.strip_accents", true);
            }
        })
        .unwrap()
    };
    assert_eq!(texts(&cased(true), "Café café X", false), "_Café _café [UNK]");
    assert_eq!(texts(&cased(false), "Café x", false), "_Cafe _x");
}

#[test]
fn a_word_above_the_limit_is_unknown() {
    let tokenizer = wordpiece(PIECES, |_| ()).unwrap();
    let ids = |n| tokenizer.encode(&"x".repeat(n), false, false);
    assert_eq!(ids(100).len(), 100);
    assert_eq!(ids(101), [1]);
    assert_eq!(ids(1_000_000), [1]);
    assert_eq!(texts(&tokenizer, &format!("{} able", "x".repeat(101)), false), "[UNK] _able");
}

#[test]
fn both_ends_are_marked_and_no_text_forges_a_control_token() {
    let tokenizer = wordpiece(PIECES, |_| ()).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(2), Some(3)));
    assert_eq!(tokenizer.encode("", true, false), [2, 3]);
    assert_eq!(texts(&tokenizer, "x [MASK]", false), "_x _[ _mask _]");
    assert_eq!(texts(&tokenizer, "x[MASK]x", true), "_x [MASK] _x");
    let text: Vec<u8> = [2, 5, 7, 3].iter().flat_map(|&id| tokenizer.token_bytes(id).to_vec()).collect();
    assert_eq!(text, b" unable");
}

#[test]
fn special_tokens_are_found_by_key_or_by_text() {
    let tokenizer = wordpiece(&["x", "<s>", "</s>", "<unk>"], |writer| {
        writer
            .set("tokenizer.ggml.cls_token_id", 6_u32)
            .set("tokenizer.ggml.seperator_token_id", 7_u32)
            .set("tokenizer.ggml.unknown_token_id", 8_u32);
    })
    .unwrap();
    assert_eq!(tokenizer.encode("x y", true, false), [6, 5, 8, 7]);
    let without = |text: &'static str| {
        wordpiece(&["x"], |writer| {
            let tokens: StrArray =
                SPECIALS.iter().map(|t| if *t == text { "?" } else { t }).chain(["\u{2581}x"]).collect();
            writer.set("tokenizer.ggml.tokens", tokens);
        })
    };
    for (text, expect) in [
        ("[UNK]", "the vocabulary has no token [UNK], and tokenizer.ggml.unknown_token_id names none"),
        ("[CLS]", "the vocabulary has no token [CLS], and tokenizer.ggml.cls_token_id names none"),
        ("[SEP]", "the vocabulary has no token [SEP], and tokenizer.ggml.seperator_token_id names none"),
    ] {
        assert_eq!(without(text).unwrap_err().to_string(), expect);
    }
    let error = wordpiece(&["x"], |writer| {
        writer.set("tokenizer.ggml.cls_token_id", 77_u32);
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "tokenizer.ggml.cls_token_id is 77, the vocabulary has 6 tokens");
}

/// A word costs at most its length times that of the longest piece, however the vocabulary is made.
#[test]
fn hostile_vocabularies_are_no_trouble() {
    let long = "y".repeat(10_000);
    let tokenizer = wordpiece(&["", "##", "x", &long, &format!("##{long}"), "\u{2581}"], |_| ()).unwrap();
    assert_eq!(texts(&tokenizer, "x xx \u{2581}", false), "_x [UNK] __");
    let text = "xy".repeat(50) + " " + &"z".repeat(100_000) + &" z".repeat(10_000);
    assert_eq!(tokenizer.encode(&text, false, false).len(), 10_002);
}
