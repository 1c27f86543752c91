//! Answers as models write them, in one piece and cut anywhere.

use super::*;
use assay_api::{ChatRequest, Limits};

fn tooling(choice: Value, is_parallel: bool) -> Tooling {
    let schema = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}},
        "required": ["city"], "additionalProperties": false});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}], "tools": [tool("rain"), tool("sun")],
        "tool_choice": choice, "parallel_tool_calls": is_parallel});
    ChatRequest::parse(body.to_string().as_bytes(), &Limits::default()).unwrap().tooling
}

const STYLES: [ToolStyle; 4] = [ToolStyle::Hermes, ToolStyle::Mistral, ToolStyle::Llama3, ToolStyle::Told];

/// Text and calls (`name arguments`), the same however the answer is cut.
fn check(style: ToolStyle, answer: &str, expect_text: &str, expect_calls: &[&str]) {
    let tooling = tooling(json!("auto"), true);
    for size in [1, 2, 3, 7, 1000] {
        let mut finder = Finder::new(style, &tooling, "0123456789abcdef0123456789abcdef");
        let (mut text, mut calls) = (String::new(), Vec::new());
        let chars: Vec<char> = answer.chars().collect();
        for piece in chars.chunks(size) {
            let found = finder.push(&piece.iter().collect::<String>());
            text.push_str(&found.text);
            calls.extend(found.calls);
        }
        let found = finder.end();
        text.push_str(&found.text);
        calls.extend(found.calls);
        let got: Vec<String> = calls.iter().map(|c| format!("{} {}", c.function.name, c.function.arguments)).collect();
        assert_eq!(
            (text.as_str(), got.as_slice()),
            (expect_text, expect_calls.map_owned().as_slice()),
            "{answer} by {size}"
        );
        assert_eq!(finder.calls(), calls.len());
        for (number, call) in calls.iter().enumerate() {
            let expect = match style {
                ToolStyle::Mistral => format!("0123456{number:02}"),
                _ => format!("call_0123456789abcdef012345{number:02}"),
            };
            assert_eq!(call.id, expect);
        }
    }
}

trait Owned {
    fn map_owned(&self) -> Vec<String>;
}

impl Owned for [&str] {
    fn map_owned(&self) -> Vec<String> {
        self.iter().map(ToString::to_string).collect()
    }
}

#[test]
fn calls_between_tags() {
    for style in [ToolStyle::Hermes, ToolStyle::Told] {
        let one = "<tool_call>\n{\"name\": \"rain\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
        check(style, one, "", &["rain {\"city\": \"Rome\"}"]);
        check(style, &format!("I look.\n{one}"), "I look.\n", &["rain {\"city\": \"Rome\"}"]);
        let two = format!("{one}\n<tool_call>{{\"arguments\": {{}}, \"name\": \"sun\"}}</tool_call>\n");
        check(style, &two, "", &["rain {\"city\": \"Rome\"}", "sun {}"]);
        check(style, "<tool_call>{\"name\": \"sun\"}</tool_call>", "", &["sun {}"]);
        let text = "<tool_call>{\"name\": \"sun\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>";
        check(style, text, "", &["sun {\"a\": 1}"]);
        // No call, or not one of ours, or not whole: text as it is.
        for text in [
            "a < b <tool",
            "<tool_call>{\"name\": \"hail\", \"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": </tool_call> well",
            "<tool_call>{\"name\": \"sun\", \"arguments\": {}}",
            "{\"name\": \"sun\", \"arguments\": {}}",
            "",
        ] {
            check(style, text, text, &[]);
        }
    }
}

#[test]
fn calls_that_are_the_whole_answer() {
    let list = "[{\"name\": \"rain\", \"arguments\": {\"city\": \"Rome\"}}, {\"name\": \"sun\", \"arguments\": {}}]";
    for text in [list.to_owned(), format!("[TOOL_CALLS]{list}"), format!(" [TOOL_CALLS] {list}\n")] {
        check(ToolStyle::Mistral, &text, "", &["rain {\"city\": \"Rome\"}", "sun {}"]);
    }
    for text in ["[1, 2]", "[TOOL_CALLS] what", "hello [", "[{\"name\": \"hail\", \"arguments\": {}}]"] {
        check(ToolStyle::Mistral, text, text, &[]);
    }
    check(ToolStyle::Llama3, "{\"name\": \"sun\", \"parameters\": {\"a\": [1]}}", "", &["sun {\"a\": [1]}"]);
    for text in ["{\"name\": \"hail\", \"parameters\": {}}", "{\"name\": \"sun\"", "The sun {}", "{}"] {
        check(ToolStyle::Llama3, text, text, &[]);
    }
}

#[test]
fn a_forced_call_is_one_that_is_found() {
    let bytes: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).chain([vec![]]).collect();
    let vocabulary = assay_grammar::Vocabulary::new(bytes.iter().map(Vec::as_slice), &[256]).unwrap();
    let takes = |grammar: &Grammar, text: &str| {
        let mut matcher = vocabulary.compile(grammar).unwrap();
        text.bytes().all(|byte| matcher.push(byte.into()).is_ok()) && matcher.may_end().unwrap()
    };
    let named = json!({"type": "function", "function": {"name": "sun"}});
    for style in STYLES {
        assert_eq!(grammar(&tooling(json!("auto"), true), style), None);
        assert_eq!(grammar(&tooling(json!("none"), true), style), None);
        let key = if style == ToolStyle::Llama3 { "parameters" } else { "arguments" };
        let call = |name: &str| format!("{{\"name\": \"{name}\", \"{key}\": {{\"city\": \"Rome\"}}}}");
        let answer = |names: &[&str]| match style {
            ToolStyle::Hermes | ToolStyle::Told => {
                names.iter().map(|n| format!("<tool_call>\n{}\n</tool_call>", call(n))).collect::<Vec<_>>().join("\n")
            }
            ToolStyle::Mistral => format!("[{}]", names.iter().map(|n| call(n)).collect::<Vec<_>>().join(", ")),
            ToolStyle::Llama3 => call(names[0]),
        };
        let any = grammar(&tooling(json!("required"), true), style).unwrap();
        let one = grammar(&tooling(json!("required"), false), style).unwrap();
        let sun = grammar(&tooling(named.clone(), true), style).unwrap();
        for (names, expect) in [(vec!["rain"], [true, true, false]), (vec!["sun"], [true, true, true])] {
            let text = answer(&names);
            assert_eq!([&any, &one, &sun].map(|g| takes(g, &text)), expect, "{style:?}: {text}");
            check(style, &text, "", &[&format!("{} {{\"city\": \"Rome\"}}", names[0])]);
        }
        if style != ToolStyle::Llama3 {
            let text = answer(&["sun", "rain"]);
            assert_eq!([&any, &one, &sun].map(|g| takes(g, &text)), [true, false, false], "{style:?}: {text}");
        }
        assert!(!takes(&any, &answer(&["sun"]).replace("city", "town")));
        assert!(!takes(&any, "Hello"));
    }
}

#[test]
fn conversations_as_templates_want_them() {
    let call = |name: &str| ToolCall::new("c1".into(), name.into(), "{\"city\": \"Rome\"}".into());
    let said = |role, content: &str| Message { role, content: content.into(), tool_calls: vec![], tool_call_id: None };
    let messages = [
        said(Role::User, "Rain?"),
        Message { tool_calls: vec![call("rain")], ..said(Role::Assistant, "") },
        Message { tool_call_id: Some("c1".into()), ..said(Role::Tool, "no") },
    ];
    let tooling_auto = tooling(json!("auto"), true);
    let native = chat(&messages, &tooling_auto, ToolStyle::Hermes);
    assert_eq!(native.tools.len(), 2);
    assert_eq!(native.messages[1]["tool_calls"][0]["function"]["arguments"], json!({"city": "Rome"}));
    assert_eq!(native.messages[2], json!({"role": "tool", "content": "no", "tool_call_id": "c1"}));
    assert!(chat(&messages, &tooling(json!("none"), true), ToolStyle::Hermes).tools.is_empty());

    let told = chat(&messages, &tooling_auto, ToolStyle::Told);
    assert!(told.tools.is_empty());
    let roles: Vec<_> = told.messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);
    assert!(told.messages[0]["content"].as_str().unwrap().contains("\"name\":\"rain\""));
    let written = told.messages[2]["content"].as_str().unwrap();
    check(ToolStyle::Told, written, "", &["rain {\"city\": \"Rome\"}"]);
    // There is one system message.
    let with_system = chat(&[said(Role::System, "Be kind."), said(Role::User, "x")], &tooling_auto, ToolStyle::Told);
    assert_eq!(with_system.messages.len(), 2);
    assert!(with_system.messages[0]["content"].as_str().unwrap().starts_with("Be kind.\nTools."));
    assert_eq!(
        chat(&messages[..1], &Tooling::default(), ToolStyle::Told).messages,
        [json!({"role": "user", "content": "Rain?"})]
    );
}
