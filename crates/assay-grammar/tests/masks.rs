//! Which tokens grammars allow, and that hostile ones are errors.

use assay_grammar::{GrammarError, Matcher, MatcherError, Vocabulary, VocabularyError};
use assay_types::{Grammar, GrammarKind, keccak256};

const END: u32 = 256;
/// A second token that ends answers, and one of several bytes.
const END_2: u32 = 257;
const QUOTED: u32 = 258;

/// Every byte, two ends, and some longer tokens.
fn vocabulary() -> Vocabulary {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    tokens.extend([b"</s>".to_vec(), vec![]]);
    tokens.extend([b"\"name\"".to_vec(), b"\": \"".to_vec(), b"true".to_vec(), b"tr".to_vec(), b"  ".to_vec()]);
    tokens.extend([b"\xc3\xa9".to_vec(), b"a".to_vec(), vec![b'x'; 300], vec![]]);
    Vocabulary::new(tokens.iter().map(Vec::as_slice), &[END_2, END, 90_000]).unwrap()
}

fn compile(vocabulary: &Vocabulary, kind: GrammarKind, text: &str) -> Matcher {
    vocabulary.compile(&Grammar::new(kind, text)).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn allowed(matcher: &mut Matcher) -> Vec<u32> {
    let mask = matcher.mask().unwrap();
    (0..32 * mask.len() as u32).filter(|id| mask[*id as usize / 32] >> (id % 32) & 1 == 1).collect()
}

/// Feeds the bytes of `text` one by one; whether the grammar took all of them and may end there.
fn accepts(vocabulary: &Vocabulary, kind: GrammarKind, grammar: &str, text: &str) -> bool {
    let mut matcher = compile(vocabulary, kind, grammar);
    for byte in text.bytes() {
        match matcher.push(byte.into()) {
            Ok(()) => {}
            Err(MatcherError::NotAllowed(_)) => return false,
            Err(other) => panic!("{grammar} on {text}: {other}"),
        }
    }
    matcher.may_end().unwrap()
}

const PERSON: &str = r##"{"type": "object", "properties": {
    "name": {"type": "string", "maxLength": 5}, "age": {"type": "integer", "minimum": 0, "maximum": 120},
    "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2}},
    "required": ["name", "age"], "additionalProperties": false, "$defs": {"tag": {"enum": ["a", "é"]}}}"##;

#[test]
fn schemas_take_what_they_describe() {
    let vocabulary = vocabulary();
    let check = |schema: &str, text: &str, expect: bool| {
        assert_eq!(accepts(&vocabulary, GrammarKind::JsonSchema, schema, text), expect, "{schema} and {text}");
    };
    check(PERSON, r#"{"name":"Ann","age":7}"#, true);
    check(PERSON, r#"{"name": "Ann", "age": 7, "tags": ["a", "é"]}"#, true);
    check(PERSON, r#"{"name":"Ann","age":7"#, false);
    check(PERSON, r#"{"age":7,"name":"Ann"}"#, false);
    check(PERSON, r#"{"name":"Annabell","age":7}"#, false);
    check(PERSON, r#"{"name":"Ann","age":121}"#, false);
    check(PERSON, r#"{"name":"Ann","age":7,"x":1}"#, false);
    // No room for white space without end.
    check(PERSON, r#"{ "name":"Ann","age":7}"#, false);
    check(PERSON, r#"{"name":  "Ann","age":7}"#, false);
    check(r#"{"type":"object"}"#, r#"{"a": [1, {"b": null}], "c": "\u001f\n"}"#, true);
    check(r#"{"type":"object"}"#, "[1]", false);
    check(r#"{"enum": [1, "a", null]}"#, "null", true);
    check(r#"{"enum": [1, "a", null]}"#, "2", false);
    // Options that a schema brings along do not replace ours.
    check(r#"{"type":"array","x-guidance":{"whitespace_flexible":true}}"#, "[ 1]", false);
}

#[test]
fn expressions_and_grammars_take_what_they_describe() {
    let vocabulary = vocabulary();
    for (text, expect) in [("ab", true), ("aab", true), ("b", false), ("abc", false), ("a", false)] {
        assert_eq!(accepts(&vocabulary, GrammarKind::Regex, "a+b", text), expect, "{text}");
        assert_eq!(accepts(&vocabulary, GrammarKind::Lark, "start: \"a\"+ \"b\"", text), expect, "{text}");
    }
    let sum = "start: term (\"+\" term)*\nterm: NUMBER | \"(\" start \")\"\nNUMBER: /[0-9]+/";
    for (text, expect) in [("1+(2+30)", true), ("1+", false), ("(1", false), ("(1)", true)] {
        assert_eq!(accepts(&vocabulary, GrammarKind::Lark, sum, text), expect, "{text}");
    }
}

#[test]
fn masks_hold_every_token_that_fits_and_the_ends_where_it_may_end() {
    let vocabulary = vocabulary();
    assert_eq!(vocabulary.ends(), [END, END_2]);
    let mut matcher = compile(&vocabulary, GrammarKind::JsonSchema, PERSON);
    assert_eq!(allowed(&mut matcher), [u32::from(b'{')]);
    matcher.push(b'{'.into()).unwrap();
    assert_eq!(allowed(&mut matcher), [u32::from(b'"'), QUOTED]);
    matcher.push(QUOTED).unwrap();
    assert_eq!(allowed(&mut matcher), [u32::from(b':')]);
    let mut boolean = compile(&vocabulary, GrammarKind::JsonSchema, r#"{"type":"boolean"}"#);
    assert_eq!(allowed(&mut boolean), [u32::from(b'f'), u32::from(b't'), QUOTED + 2, QUOTED + 3]);
    boolean.push(QUOTED + 2).unwrap();
    // Complete: only the ends are left, and nothing follows one of them.
    assert_eq!(allowed(&mut boolean), [END, END_2]);
    assert_eq!(boolean.push(b'x'.into()), Err(MatcherError::NotAllowed(b'x'.into())));
    boolean.push(END_2).unwrap();
    assert_eq!(boolean.mask(), Err(MatcherError::Ended));
    assert_eq!(boolean.push(END), Err(MatcherError::Ended));
    // One text in two tokens, both allowed; ends do not occur inside, whatever they print.
    let mut text = compile(&vocabulary, GrammarKind::Regex, "[a</s>]+");
    assert_eq!(
        allowed(&mut text),
        [b'/', b'<', b'>', b'a', b's'].map(u32::from).into_iter().chain([264]).collect::<Vec<_>>()
    );
    text.push(264).unwrap();
    assert!(text.may_end().unwrap());
    assert_eq!(text.push(9_999), Err(MatcherError::NotAllowed(9_999)));
}

#[test]
fn a_kept_grammar_and_a_new_one_give_the_same_masks() {
    let vocabulary = vocabulary();
    let run = |vocabulary: &Vocabulary| {
        let mut matcher = compile(vocabulary, GrammarKind::JsonSchema, PERSON);
        let mut masks = Vec::new();
        for byte in br#"{"name": "Ann", "age": 7}"# {
            masks.push(matcher.mask().unwrap().to_vec());
            matcher.push((*byte).into()).unwrap();
        }
        masks
    };
    let first = run(&vocabulary);
    for n in 0..40 {
        assert_eq!(run(&vocabulary), first);
        // Others come between, until it is no longer kept.
        compile(&vocabulary, GrammarKind::Regex, &format!("a{{{n}}}"));
    }
    assert_eq!(run(&self::vocabulary()), first);
}

/// What `GRAMMAR_VERSION` stands for. A change here is a change of what an audit finds: it needs a new version.
#[test]
fn golden_masks() {
    let vocabulary = vocabulary();
    let mut bytes = Vec::new();
    for (kind, grammar, text) in [
        (GrammarKind::JsonSchema, PERSON, r#"{"name": "Ann", "age": 7, "tags": ["a", "é"]}"#),
        (GrammarKind::JsonSchema, r#"{"type":"object"}"#, r#"{"a": [1.5e3, {"b": null}], "c": "\u001f\n"}"#),
        (GrammarKind::Regex, "(ab|a*)c?[^x-z]{2,3}", "aacqq"),
        (GrammarKind::Lark, "start: a+\na: \"x\" /[0-9]+/ | \"(\" start \")\"", "x12(x3)"),
    ] {
        let mut matcher = compile(&vocabulary, kind, grammar);
        for byte in text.bytes() {
            for id in allowed(&mut matcher) {
                bytes.extend_from_slice(&id.to_be_bytes());
            }
            bytes.push(0xff);
            matcher.push(byte.into()).unwrap();
        }
        assert!(matcher.may_end().unwrap(), "{grammar}");
    }
    assert_eq!(keccak256(bytes).to_string(), "0x4c8a7e1e826c18b818312478b492624400155a7fc24cd7f91e5ed341ab52c08b");
}

#[test]
fn what_is_no_grammar_says_why() {
    let vocabulary = vocabulary();
    let check = |kind, text: &str, expect: &str| {
        let error = vocabulary.compile(&Grammar::new(kind, text)).err().unwrap_or_else(|| panic!("{text} compiles"));
        let message = error.to_string();
        assert!(message.contains(expect) && message.len() < 400, "{text}: {message}");
    };
    use GrammarKind::{JsonSchema, Lark, Regex};
    check(JsonSchema, "{", "not JSON");
    check(JsonSchema, "[]", "a JSON object");
    check(JsonSchema, r#"{"type": "strin"}"#, "strin");
    check(JsonSchema, r#"{"properties": {"a": {"type": 5}}}"#, "type");
    check(JsonSchema, r##"{"$ref": "#/nowhere"}"##, "nowhere");
    check(JsonSchema, r#"{"$ref": "http://example.com/x"}"#, "ref");
    check(JsonSchema, r#"{"type": "integer", "minimum": 2, "maximum": 1}"#, "minimum");
    check(Regex, "(", "");
    check(Regex, "[z-a]", "");
    check(Lark, "start: missing", "missing");
    check(Lark, "nothing", "");
    let deep = format!("{}1{}", "[".repeat(65), "]".repeat(65));
    check(JsonSchema, &deep, "nesting: 64");
    check(Regex, &"a".repeat(16_385), "bytes: 16384");
    let version = Grammar { version: 2, ..Grammar::new(Regex, "a") };
    assert_eq!(vocabulary.compile(&version).err(), Some(GrammarError::Version { found: 2, expected: 1 }));
}

/// Grammars that want to be expensive or deep end with an error or a matcher, in bounded work.
#[test]
fn hostile_grammars_are_bounded() {
    let vocabulary = vocabulary();
    let chain: String = (0..1_100).map(|n| format!("r{n}: r{}\n", n + 1)).collect();
    let refs: String = (0..2_000).map(|n| format!("\"d{n}\": {{\"$ref\": \"#/$defs/d{}\"}},", n + 1)).collect();
    let refs = format!("{{\"$ref\": \"#/$defs/d0\", \"$defs\": {{{refs} \"d2000\": {{\"type\": \"null\"}}}}}}");
    let all: String =
        (0..300).map(|n| format!("{{\"anyOf\": [{{\"minLength\": {n}}}, {{\"maxLength\": {n}}}]}},")).collect();
    let nested = format!("{}a{}", "(".repeat(64), ")*".repeat(64));
    let cases = [
        (GrammarKind::Lark, format!("start: r0\n{chain}r1100: \"a\"")),
        (GrammarKind::Lark, "start: start".to_owned()),
        (GrammarKind::Lark, "start: start start | \"a\"".to_owned()),
        (GrammarKind::Lark, format!("start: /a/{}", "?".repeat(2_000))),
        (GrammarKind::JsonSchema, refs),
        (GrammarKind::JsonSchema, r##"{"$ref": "#"}"##.to_owned()),
        (GrammarKind::JsonSchema, format!("{{\"allOf\": [{all} {{\"type\": \"string\"}}]}}")),
        (GrammarKind::JsonSchema, r#"{"type": "string", "maxLength": 4000000000}"#.to_owned()),
        (GrammarKind::JsonSchema, r#"{"type": "array", "minItems": 4000000000}"#.to_owned()),
        (GrammarKind::Regex, "((a{1000}){1000}){1000}".to_owned()),
        (GrammarKind::Regex, "(.*a.{40}|.*b.{41})".to_owned()),
        (GrammarKind::Regex, nested),
        (GrammarKind::Regex, "a|".repeat(8_000)),
        (GrammarKind::Regex, "ab?".repeat(5_000)),
    ];
    for (kind, text) in cases {
        let shown: String = text.chars().take(60).collect();
        let Ok(mut matcher) = vocabulary.compile(&Grammar::new(kind, text)) else { continue };
        // The first token that is allowed, again and again.
        for _ in 0..200 {
            let Ok(mask) = matcher.mask() else { break };
            let first = mask.iter().position(|word| *word != 0).map(|at| 32 * at as u32 + mask[at].trailing_zeros());
            let Some(first) = first else { panic!("{shown}: a mask without tokens is an error") };
            let _ = matcher.push(first);
        }
    }
}

#[test]
fn vocabularies_that_cannot_follow_grammars_are_errors() {
    assert_eq!(Vocabulary::new([b"a".as_slice()], &[]).err(), Some(VocabularyError::NoEnd));
    assert_eq!(Vocabulary::new([b"a".as_slice()], &[1]).err(), Some(VocabularyError::NoEnd));
    let long = [b'x'; 250];
    let many = std::iter::repeat_n(long.as_slice(), 17_000);
    assert!(matches!(Vocabulary::new(many, &[0]), Err(VocabularyError::TooLarge { .. })));
    // Nothing but an end: no grammar can begin.
    let vocabulary = Vocabulary::new([b"".as_slice(), b"\xff\xfe"], &[0]).unwrap();
    let mut matcher = vocabulary.compile(&Grammar::new(GrammarKind::Regex, "a")).unwrap();
    assert!(matches!(matcher.mask(), Err(MatcherError::Stuck(_))));
}
