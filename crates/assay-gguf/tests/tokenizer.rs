//! Tokenizers built from small hand-made vocabularies: merges, special tokens, byte fallback, limits, hostile metadata.

use assay_gguf::{Gguf, StrArray, Tokenizer, TokenizerError, Value, write::GgufWriter};

/// The 256 byte tokens of GPT-2's scheme, then `more`.
fn bpe_tokens(more: &[&str]) -> StrArray {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 0x100;
    let bytes = (0..256).map(|b| {
        let code = if printable(b) { b } else { next };
        next += u32::from(!printable(b));
        char::from_u32(code).unwrap().to_string()
    });
    bytes.chain(more.iter().map(|&t| t.to_owned())).collect()
}

fn bpe(more: &[&str], merges: &[&str], change: impl FnOnce(&mut GgufWriter)) -> Result<Tokenizer, TokenizerError> {
    let mut writer = GgufWriter::new();
    writer
        .set("tokenizer.ggml.model", "gpt2")
        .set("tokenizer.ggml.pre", "gpt-2")
        .set("tokenizer.ggml.tokens", bpe_tokens(more))
        .set("tokenizer.ggml.merges", merges.iter().collect::<StrArray>());
    change(&mut writer);
    build(&writer)
}

/// `<unk>`, `<s>`, `</s>`, the byte tokens, then pieces with scores.
fn spm(pieces: &[(&str, f32)], change: impl FnOnce(&mut GgufWriter)) -> Result<Tokenizer, TokenizerError> {
    let bytes: Vec<String> = (0..=u8::MAX).map(|b| format!("<0x{b:02X}>")).collect();
    let fixed = ["<unk>", "<s>", "</s>"].into_iter().chain(bytes.iter().map(String::as_str));
    let mut writer = GgufWriter::new();
    writer
        .set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.tokens", fixed.chain(pieces.iter().map(|p| p.0)).collect::<StrArray>())
        .set("tokenizer.ggml.scores", [0.0; 259].into_iter().chain(pieces.iter().map(|p| p.1)).collect::<Vec<f32>>())
        .set("tokenizer.ggml.token_type", {
            let types = [2, 3, 3].into_iter().chain([6; 256]).chain(pieces.iter().map(|_| 1));
            types.collect::<Vec<i32>>()
        })
        .set("tokenizer.ggml.bos_token_id", 1_u32)
        .set("tokenizer.ggml.eos_token_id", 2_u32)
        .set("tokenizer.ggml.unknown_token_id", 0_u32);
    change(&mut writer);
    build(&writer)
}

/// Sets one key.
fn put(key: &str, value: impl Into<Value>) -> impl FnOnce(&mut GgufWriter) {
    move |writer| {
        writer.set(key, value);
    }
}

fn build(writer: &GgufWriter) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::from_gguf(&Gguf::parse(&writer.to_bytes(|_| vec![]).unwrap()).unwrap())
}

fn texts(tokenizer: &Tokenizer, text: &str, parse_special: bool) -> Vec<String> {
    tokenizer.encode(text, false, parse_special).iter().map(|&id| tokenizer.token_text(id).to_owned()).collect()
}

#[test]
fn merges_apply_by_rank_then_from_the_left() {
    let tokenizer = bpe(&["ab", "bc", "abc", "aa"], &["b c", "a b", "a bc", "a a"], |_| ()).unwrap();
    let check = |text: &str, expect: &[&str]| assert_eq!(texts(&tokenizer, text, false), expect, "{text}");
    check("abc", &["abc"]);
    check("ab", &["ab"]);
    check("aab", &["a", "ab"]);
    check("aaa", &["aa", "a"]);
    check("a bc", &["a", "\u{120}", "bc"]);
    check("", &[]);
}

#[test]
fn a_merge_without_a_token_falls_back_to_bytes() {
    // "xy" is no token; it is made on the way to "xyz", and written as its bytes if it stays.
    let tokenizer = bpe(&["xyz"], &["x y", "xy z"], |_| ()).unwrap();
    assert_eq!(texts(&tokenizer, "xyz", false), ["xyz"]);
    assert_eq!(texts(&tokenizer, "xyw", false), ["x", "y", "w"]);
}

#[test]
fn special_tokens_are_found_only_when_they_are_asked_for() {
    let types: Vec<i32> = [1; 256].into_iter().chain([3, 3, 4]).collect();
    let tokenizer = bpe(&["<|a|>", "<|a|><|b|>", "<user>"], &[], |w| {
        w.set("tokenizer.ggml.token_type", types);
    })
    .unwrap();
    let check = |text: &str, parse: bool, expect: &[&str]| assert_eq!(texts(&tokenizer, text, parse), expect, "{text}");
    check("x<|a|>y", true, &["x", "<|a|>", "y"]);
    check("<|a|><|b|><|a|>", true, &["<|a|><|b|>", "<|a|>"]);
    check("<|a", true, &["<", "|", "a"]);
    check("<|a|>", false, &["<", "|", "a", "|", ">"]);
    check("é<user>€", false, &["Ã", "©", "<user>", "â", "Ĥ", "¬"]);
    // Control tokens print nothing, user-defined ones themselves.
    assert_eq!(tokenizer.token_bytes(256), b"");
    assert_eq!(tokenizer.token_bytes(258), b"<user>");
    assert_eq!(tokenizer.token_bytes(1_000_000), b"");
}

#[test]
fn begin_and_end_tokens_follow_the_metadata() {
    let with = |change: fn(&mut GgufWriter)| {
        let tokenizer = bpe(&["<b>", "<e>"], &[], |w| {
            w.set("tokenizer.ggml.bos_token_id", 256_u32).set("tokenizer.ggml.eos_token_id", 257_u32);
            change(w);
        });
        let tokenizer = tokenizer.unwrap();
        (tokenizer.encode("x", true, false), tokenizer.add_bos(), tokenizer.encode("x", false, false))
    };
    let x = u32::from(b'x') - 0x21;
    let plain = bpe(&[], &[], |_| ()).unwrap().encode("x", true, false);
    assert_eq!(plain.len(), 1);
    assert_ne!(plain, [x + 1_000]);
    assert_eq!(with(|_| ()), (plain.clone(), false, plain.clone()));
    let both = |w: &mut GgufWriter| {
        w.set("tokenizer.ggml.add_bos_token", true).set("tokenizer.ggml.add_eos_token", true);
    };
    assert_eq!(with(both), ([&[256], &plain[..], &[257]].concat(), true, plain.clone()));
    let llama3 = |w: &mut GgufWriter| {
        w.set("tokenizer.ggml.pre", "llama-bpe");
    };
    assert_eq!(with(llama3), ([&[256], &plain[..]].concat(), true, plain));
}

#[test]
fn tokens_that_end_a_generation_are_known_by_key_or_text() {
    let tokenizer = bpe(&["<|im_end|>", "x1", "x2", "x3"], &[], |w| {
        w.set("tokenizer.ggml.eos_token_id", 257_u32)
            .set("tokenizer.ggml.eot_token_id", 258_u32)
            .set("tokenizer.ggml.eom_token_id", -1_i32);
    })
    .unwrap();
    let ends: Vec<u32> = (0..tokenizer.vocab_size()).filter(|&id| tokenizer.is_eog(id)).collect();
    assert_eq!(ends, [256, 257, 258]);
    assert_eq!((tokenizer.eos(), tokenizer.bos()), (Some(257), None));
}

#[test]
fn sentencepiece_merges_by_score_and_falls_back_to_bytes() {
    let pieces = [
        ("\u{2581}", -9.0),
        ("a", -9.0),
        ("b", -9.0),
        ("ab", -2.0),
        ("\u{2581}a", -1.0),
        ("\u{2581}ab", -3.0),
        ("bb", -5.0),
    ];
    let tokenizer = spm(&pieces, |_| ()).unwrap();
    let check = |text: &str, expect: &[&str]| assert_eq!(texts(&tokenizer, text, true), expect, "{text}");
    check("ab", &["\u{2581}ab"]);
    check("abb", &["\u{2581}ab", "b"]);
    check("bbb", &["\u{2581}", "bb", "b"]);
    check("aé", &["\u{2581}a", "<0xC3>", "<0xA9>"]);
    check("a  b", &["\u{2581}a", "\u{2581}", "\u{2581}", "b"]);
    // A prefix space at the start and after a special token.
    check("<s>b</s>b", &["<s>", "\u{2581}", "b", "</s>", "\u{2581}", "b"]);
    assert_eq!(tokenizer.encode("ab", true, false)[0], 1);
    let id = |text: &str| tokenizer.token_id(text).unwrap();
    assert_eq!(tokenizer.token_bytes(id("\u{2581}ab")), b" ab");
    assert_eq!(tokenizer.token_bytes(id("<0xC3>")), [0xc3]);
    assert_eq!(tokenizer.token_bytes(id("<unk>")), b"");
    let bare = spm(&pieces, |w| {
        w.set("tokenizer.ggml.add_space_prefix", false);
    });
    assert_eq!(texts(&bare.unwrap(), "ab", false), ["ab"]);
}

#[test]
fn text_never_becomes_a_control_token_by_merging() {
    let pieces = [("<", -1.0), ("s", -1.0), (">", -1.0), ("<s", -1.0), ("s>", -1.0), ("/", -1.0), ("</", -1.0)];
    let tokenizer = spm(&pieces, |_| ()).unwrap();
    let shown = texts(&tokenizer, "<s></s>", false);
    assert!(!shown.iter().any(|t| t == "<s>" || t == "</s>"), "{shown:?}");
}

#[test]
fn merges_that_spell_a_control_token_stay_text() {
    let types: Vec<i32> = [1; 256].into_iter().chain([1, 3]).collect();
    let tokenizer = bpe(&["<|", "<|>"], &["< |", "<| >"], put("tokenizer.ggml.token_type", types)).unwrap();
    assert_eq!(texts(&tokenizer, "a<|>", false), ["a", "<", "|", ">"]);
    assert_eq!(texts(&tokenizer, "a<|>", true), ["a", "<|>"]);
    assert_eq!(texts(&tokenizer, "<|", false), ["<|"]);
}

#[test]
fn a_megabyte_of_one_letter_is_no_attack() {
    let long = "a".repeat(1 << 20);
    let doubled: Vec<String> = (0..6).map(|i| "a".repeat(1 << i)).collect();
    let merges: Vec<String> = doubled[..5].iter().map(|t| format!("{t} {t}")).collect();
    let more: Vec<&str> = doubled[1..].iter().map(String::as_str).collect();
    let tokenizer = bpe(&more, &merges.iter().map(String::as_str).collect::<Vec<_>>(), |_| ()).unwrap();
    assert_eq!(tokenizer.encode(&long, false, false).len(), 1 << 15);
    let pieces: Vec<(&str, f32)> = doubled.iter().zip(1_u8..).map(|(t, i)| (t.as_str(), -f32::from(i))).collect();
    let tokenizer = spm(&pieces, |w| {
        w.set("tokenizer.ggml.add_space_prefix", false);
    });
    assert_eq!(tokenizer.unwrap().encode(&long, false, false).len(), 1 << 15);
    // Every prefix of a special token is a possible match at every place.
    let special = "a".repeat(255) + "b";
    let types: Vec<i32> = [1; 256].into_iter().chain([4]).collect();
    let tokenizer = bpe(&[&special], &[], |w| {
        w.set("tokenizer.ggml.token_type", types);
    });
    assert_eq!(tokenizer.unwrap().encode(&long, false, true).len(), 1 << 20);
}

#[test]
fn metadata_that_contradicts_itself_is_named() {
    let check = |result: Result<Tokenizer, TokenizerError>, expect: &str| {
        let error = result.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} does not contain {expect:?}");
    };
    check(build(&GgufWriter::new()), "tokenizer.ggml.model is missing");
    check(bpe(&[], &[], put("tokenizer.ggml.model", "t5")), "\"t5\" is not supported");
    check(bpe(&[], &[], put("tokenizer.ggml.pre", "bloom")), "\"bloom\" is not supported (there are default, gpt-2");
    check(bpe(&[], &["ab"], |_| ()), "merge 0 is not two texts");
    check(bpe(&[], &["é"], |_| ()), "merge 0 is not two texts");
    check(bpe(&[], &[], put("tokenizer.ggml.merges", 1_u32)), "merges is u32");
    let set = |key, value: Value| bpe(&[], &[], put(key, value));
    check(set("tokenizer.ggml.tokens", StrArray::default().into()), "0 tokens");
    check(set("tokenizer.ggml.tokens", ["a"].iter().collect::<StrArray>().into()), "no token for the byte");
    check(set("tokenizer.ggml.token_type", vec![1_i32].into()), "token_type has 1 elements for 256 tokens");
    check(set("tokenizer.ggml.token_type", vec![1.0_f32].into()), "token_type is array of f32");
    check(set("tokenizer.ggml.scores", vec![1.0_f32; 2].into()), "scores has 2 elements");
    check(set("tokenizer.ggml.eos_token_id", 256_u32.into()), "eos_token_id is 256, the vocabulary has 256");
    check(set("tokenizer.ggml.bos_token_id", true.into()), "bos_token_id is bool");
    let long = "x".repeat(2_000);
    check(spm(&[(&long, 0.0)], |_| ()), "2000 bytes, at most 1024");
    check(spm(&[], put("tokenizer.ggml.scores", Vec::<f32>::new())), "scores is missing");
    let types: Vec<i32> = [1; 256].into_iter().chain([3]).collect();
    check(bpe(&[&long], &[], put("tokenizer.ggml.token_type", types)), "2000 bytes, at most 256");
}

#[test]
fn scores_that_are_no_numbers_do_not_matter() {
    let pieces = [("a", f32::NAN), ("aa", f32::NAN), ("aaa", f32::INFINITY), ("\u{2581}", f32::NEG_INFINITY)];
    let tokenizer = spm(&pieces, |_| ()).unwrap();
    let ids = tokenizer.encode(&"a".repeat(100), false, false);
    assert_eq!(ids.iter().map(|&id| tokenizer.token_bytes(id).len()).sum::<usize>(), 101);
}

#[test]
fn the_hash_covers_every_tokenizer_key_and_nothing_else() {
    let hash = |key, value: Value| bpe(&["ab"], &["a b"], put(key, value)).unwrap().hash();
    let base = bpe(&["ab"], &["a b"], |_| ()).unwrap().hash();
    assert_eq!(hash("general.name", "x".into()), base);
    let changes: [(&str, Value); 4] = [
        ("tokenizer.chat_template", "x".into()),
        ("tokenizer.ggml.pre", "qwen2".into()),
        ("tokenizer.ggml.add_bos_token", false.into()),
        ("tokenizer.ggml.merges", StrArray::default().into()),
    ];
    for (key, value) in changes {
        assert_ne!(hash(key, value), base, "{key}");
    }
}
