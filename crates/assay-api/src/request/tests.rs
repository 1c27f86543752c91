//! Requests as clients send them, right and wrong.

use super::*;
use assay_types::GrammarKind;
use serde_json::{Value, json};

fn chat_with(extra: &Value) -> Value {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn said(role: Role, content: &str) -> Message {
    Message { role, content: content.into(), tool_calls: vec![], tool_call_id: None }
}

fn parse_chat(body: &Value) -> Result<ChatRequest, RequestError> {
    ChatRequest::parse(body.to_string().as_bytes(), &Limits::default())
}

fn parse_prompt(prompt: &Value) -> Result<CompletionRequest, RequestError> {
    CompletionRequest::parse(json!({"model": "m", "prompt": prompt}).to_string().as_bytes())
}

#[test]
fn plain_request_has_the_documented_defaults() {
    let request = parse_chat(&chat_with(&json!({}))).unwrap();
    assert_eq!(request.model, "m");
    assert_eq!(request.messages, [said(Role::User, "hi")]);
    assert_eq!(
        request.options,
        Options {
            stream: false,
            include_usage: false,
            seed: None,
            constraint: None,
            stop: vec![],
            max_tokens: None,
            temperature_micro: 1_000_000,
            top_p_micro: 1_000_000,
            top_k: 0,
            min_p_micro: 0,
            repetition_penalty_micro: 1_000_000,
            frequency_penalty_micro: 0,
            presence_penalty_micro: 0,
            logit_bias: vec![],
            ignore_eos: false,
            logprobs: None,
            n: 1,
            only: vec![],
            ignore: vec![],
            wishes: Wishes::default(),
            verify: Verify::Exact,
            warnings: vec![],
        }
    );
    assert_eq!(parse_prompt(&json!("x")).unwrap().options.max_tokens, Some(16));
    let logprobs = |value: Value| {
        let body = json!({"model": "m", "prompt": "x", "logprobs": value});
        CompletionRequest::parse(body.to_string().as_bytes()).map(|request| request.options.logprobs)
    };
    assert_eq!(logprobs(json!(null)).unwrap(), None);
    assert_eq!(logprobs(json!(0)).unwrap(), Some(0));
    assert_eq!(logprobs(json!(5)).unwrap(), Some(5));
    assert_eq!(logprobs(json!(21)).unwrap_err().param(), Some("logprobs"));
    assert_eq!(logprobs(json!(true)).unwrap_err().param(), Some("logprobs"));
}

fn grammar(options: &Options) -> Option<(GrammarKind, String, &'static str)> {
    options.constraint.as_ref().map(|c| (c.grammar.kind, c.grammar.text.clone(), c.param))
}

#[test]
fn understood_fields_arrive() {
    let check = |extra: Value, expect: fn(&Options) -> bool| {
        let options = parse_chat(&chat_with(&extra)).unwrap_or_else(|e| panic!("{extra}: {e}")).options;
        assert!(expect(&options), "{extra} gave {options:?}");
        assert!(options.warnings.is_empty(), "{extra} gave {options:?}");
    };
    check(json!({"stream": true}), |o| o.stream && !o.include_usage);
    check(json!({"stream": true, "stream_options": {"include_usage": true}}), |o| o.include_usage);
    check(json!({"stream_options": null}), |o| !o.include_usage);
    check(json!({"seed": 0}), |o| o.seed == Some(0));
    check(json!({"seed": u64::MAX}), |o| o.seed == Some(u64::MAX));
    check(json!({"seed": -1}), |o| o.seed == Some(u64::MAX));
    check(json!({"stop": "x"}), |o| o.stop == ["x"]);
    check(json!({"stop": ["x", "\n\n"]}), |o| o.stop == ["x", "\n\n"]);
    check(json!({"stop": []}), |o| o.stop.is_empty());
    check(json!({"max_tokens": 7}), |o| o.max_tokens == Some(7));
    check(json!({"max_completion_tokens": 7}), |o| o.max_tokens == Some(7));
    check(json!({"max_completion_tokens": 7, "max_tokens": 7}), |o| o.max_tokens == Some(7));
    check(json!({"temperature": 0}), |o| o.temperature_micro == 0);
    check(json!({"temperature": 0.7}), |o| o.temperature_micro == 700_000);
    check(json!({"temperature": 2}), |o| o.temperature_micro == 2_000_000);
    check(json!({"temperature": 0.000_000_4}), |o| o.temperature_micro == 0);
    check(json!({"temperature": 0.000_000_5}), |o| o.temperature_micro == 1);
    check(json!({"top_p": 0.95}), |o| o.top_p_micro == 950_000);
    check(json!({"top_p": 0}), |o| o.top_p_micro == 1);
    check(json!({"top_k": 40}), |o| o.top_k == 40);
    check(json!({"top_k": -1}), |o| o.top_k == 0);
    check(json!({"min_p": 0.05}), |o| o.min_p_micro == 50_000);
    check(json!({"repetition_penalty": 1.1}), |o| o.repetition_penalty_micro == 1_100_000);
    check(json!({"frequency_penalty": -2}), |o| o.frequency_penalty_micro == -2_000_000);
    check(json!({"presence_penalty": 0.000_000_5}), |o| o.presence_penalty_micro == 1);
    check(json!({"logit_bias": {"50256": -100, "7": 0.5}}), |o| {
        let pairs: Vec<_> = o.logit_bias.iter().map(|b| (b.token, b.bias_micro)).collect();
        pairs == [(7, 500_000), (50_256, -100_000_000)]
    });
    check(json!({"response_format": {"type": "json_object"}}), |o| {
        grammar(o) == Some((GrammarKind::JsonSchema, r#"{"type":"object"}"#.into(), "response_format.type"))
    });
    let schema = json!({"name": "x", "strict": true, "schema": {"b": 1, "a": 2}});
    check(json!({"response_format": {"type": "json_schema", "json_schema": schema}}), |o| {
        let schema: Value = serde_json::from_str(&grammar(o).unwrap().1).unwrap();
        schema == json!({"b": 1, "a": 2}) && grammar(o).unwrap().2 == "response_format.json_schema.schema"
    });
    check(json!({"guided_json": "{}"}), |o| grammar(o).unwrap().1 == "{}");
    check(json!({"guided_json": {}}), |o| grammar(o).unwrap().1 == "{}");
    check(json!({"guided_grammar": "start: \"a\""}), |o| grammar(o).unwrap().0 == GrammarKind::Lark);
    check(json!({"guided_choice": ["a.b", "c/d"]}), |o| grammar(o).unwrap().1 == r"a\.b|c\/d");
    check(json!({"logprobs": true}), |o| o.logprobs == Some(0));
    check(json!({"logprobs": true, "top_logprobs": 20}), |o| o.logprobs == Some(20));
    check(json!({"logprobs": false, "top_logprobs": 0}), |o| o.logprobs.is_none());
    check(json!({"n": 16}), |o| o.n == 16);
    check(json!({"ignore_eos": true}), |o| o.ignore_eos);
    let id = "0x00000000000000000000000000000000000000AA";
    check(json!({"provider": {"only": [id]}}), |o| o.only.len() == 1 && o.only[0].0[19] == 0xaa && o.ignore.is_empty());
    check(json!({"provider": {"ignore": [id, id]}}), |o| o.ignore.len() == 2 && o.only.is_empty());
    check(json!({"provider": {"order": [id], "allow_fallbacks": false, "data_collection": "allow"}}), |o| {
        o.wishes.order.len() == 1 && !o.wishes.allow_fallbacks
    });
    check(json!({"provider": {"sort": "throughput"}}), |o| o.wishes.sort == Some(Sort::Throughput));
    check(json!({"provider": {"max_price": {"prompt": 0.05, "completion": 1}}}), |o| {
        o.wishes.max_price == MaxPrice { prompt: Some(Amount(50_000)), completion: Some(Amount(1_000_000)) }
    });
    check(json!({"tools": [], "n": 1, "logprobs": false, "presence_penalty": 0.0}), |_| true);
    check(json!({"response_format": {"type": "text"}, "logit_bias": {}, "best_of": null}), |_| true);
}

#[test]
fn messages_of_every_kind() {
    let check = |message: Value, expect: Message| {
        let body = json!({"model": "m", "messages": [message]});
        assert_eq!(parse_chat(&body).unwrap().messages, [expect], "{message}");
    };
    for (name, role, template) in [
        ("system", Role::System, "system"),
        ("developer", Role::Developer, "system"),
        ("user", Role::User, "user"),
        ("assistant", Role::Assistant, "assistant"),
    ] {
        check(json!({"role": name, "content": "x"}), said(role, "x"));
        assert_eq!(role.template_name(), template);
    }
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "é"}]);
    check(json!({"role": "user", "content": parts}), said(Role::User, "a\né"));
    check(json!({"role": "user", "content": ""}), said(Role::User, ""));
    let assistant = json!({"role": "assistant", "content": "x", "tool_calls": [], "refusal": null});
    check(assistant, said(Role::Assistant, "x"));
}

#[test]
fn tools_choices_and_calls() {
    let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
    let tooling = |extra: Value| parse_chat(&chat_with(&extra)).unwrap().tooling;
    assert_eq!(tooling(json!({})), Tooling { is_parallel: true, ..Tooling::default() });
    let two = tooling(json!({"tools": [tool("f"), tool("g-1.x")], "parallel_tool_calls": false}));
    assert_eq!((two.tools.len(), two.choice, two.is_parallel), (2, ToolChoice::Auto, false));
    assert_eq!((two.tools[1].name.as_str(), &two.tools[0].json), ("g-1.x", &tool("f")));
    assert_eq!(two.tools[0].parameters, Some(schema.to_string()));
    for (choice, expect) in [
        (json!("none"), ToolChoice::None),
        (json!("auto"), ToolChoice::Auto),
        (json!("required"), ToolChoice::Required),
        (json!({"type": "function", "function": {"name": "f"}}), ToolChoice::Named("f".into())),
    ] {
        assert_eq!(tooling(json!({"tools": [tool("f")], "tool_choice": choice})).choice, expect);
    }
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let messages = json!({"messages": [
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
    ]});
    let messages = parse_chat(&chat_with(&messages)).unwrap().messages;
    assert_eq!(messages[0].tool_calls, [ToolCall::new("c1".into(), "f".into(), "{}".into())]);
    assert_eq!((messages[1].role.template_name(), messages[1].tool_call_id.as_deref()), ("tool", Some("c1")));

    let check = |extra: Value, param: &str, expect: &str| {
        let error = parse_chat(&chat_with(&extra)).expect_err(&extra.to_string());
        assert_eq!(error.param(), Some(param), "{extra}: {error}");
        assert!(error.to_string().contains(expect), "{extra}: {error} does not contain {expect}");
    };
    check(json!({"tools": {}}), "tools", "an array of tools");
    check(json!({"tools": [{"type": "web"}]}), "tools[0].type", "'function'");
    check(json!({"tools": [{"type": "function"}]}), "tools[0].function", "missing");
    check(json!({"tools": [tool("a b")]}), "tools[0].function.name", "letters");
    check(json!({"tools": [tool("f"), tool("f")]}), "tools[1].function.name", "another function 'f'");
    check(json!({"tools": vec![tool("f"); 129]}), "tools", "at most 128");
    let no_schema = json!({"type": "function", "function": {"name": "f", "parameters": 5}});
    check(json!({"tools": [no_schema]}), "tools[0].function.parameters", "an object");
    check(json!({"tool_choice": "required"}), "tool_choice", "no tools");
    check(json!({"tools": [tool("f")], "tool_choice": "maybe"}), "tool_choice", "'required'");
    check(json!({"tools": [tool("f")], "tool_choice": 5}), "tool_choice", "'required'");
    let named = json!({"type": "function", "function": {"name": "h"}});
    check(json!({"tools": [tool("f")], "tool_choice": named}), "tool_choice.function.name", "no tool");
    check(
        json!({"tools": [tool("f")], "tool_choice": "required", "guided_regex": "a"}),
        "tool_choice",
        "'guided_regex'",
    );
}

#[test]
fn prompts_of_every_kind() {
    let check = |prompt: Value, expect: Prompt| assert_eq!(parse_prompt(&prompt).unwrap().prompt, expect, "{prompt}");
    check(json!("a"), Prompt::Text("a".into()));
    check(json!(["a"]), Prompt::Text("a".into()));
    check(json!([1, 2]), Prompt::Tokens(vec![1, 2]));
    check(json!([[1, 2]]), Prompt::Tokens(vec![1, 2]));
}

#[test]
fn ignored_fields_are_reported_once_each_and_bounded() {
    let request = parse_chat(&json!({
        "model": "m", "user": "u", "store": null, "metadata": {},
        "messages": [{"role": "user", "content": "hi", "name": "ann"}],
        "stream": true, "stream_options": {"chunk": 1}, "provider": {"quantizations": ["int8"]},
    }))
    .unwrap();
    assert_eq!(
        request.options.warnings,
        [
            "parameter 'messages[0].name' was ignored",
            "parameter 'stream_options.chunk' was ignored",
            "parameter 'provider.quantizations' was ignored",
            "parameter 'metadata' was ignored",
            "parameter 'user' was ignored",
        ]
    );
    let many: serde_json::Map<String, Value> = (0..40).map(|i| (format!("x{i}"), json!(1))).collect();
    let warnings = parse_chat(&chat_with(&many.into())).unwrap().options.warnings;
    assert_eq!(warnings.len(), WARNINGS_MAX + 1);
    assert_eq!(warnings.last().unwrap(), "24 further parameters were ignored");
}

#[test]
fn bad_bodies_say_what_and_where() {
    let check = |body: &[u8], expect: &str| {
        let error = ChatRequest::parse(body, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains(expect), "{error} does not contain {expect}");
        assert_eq!(error.param(), None, "{error}");
    };
    check(b"", "not valid JSON: EOF while parsing");
    check(b"{", "not valid JSON: EOF while parsing");
    check(b"{\"model\": \"m\",}", "line 1 column 15");
    check(b"{\"model\": 1} x", "not valid JSON: trailing characters");
    check(b"\xff", "not valid JSON");
    check(b"{\"model\": \"\xff\"}", "not valid JSON");
    check(b"[]", "must be a JSON object, not an array");
    check(b"null", "must be a JSON object, not null");
    check(b"{\"model\": \"m\", \"model\": \"n\"}", "duplicate field 'model'");
    let deep = "[".repeat(100_000);
    check(deep.as_bytes(), "not valid JSON");
    let many: serde_json::Map<String, Value> = (0..300).map(|i| (format!("x{i}"), json!(1))).collect();
    check(Value::from(many).to_string().as_bytes(), "more than 256 fields");
}

#[test]
fn bad_fields_are_named() {
    let check = |extra: Value, param: &str, expect: &str| {
        let error = parse_chat(&chat_with(&extra)).expect_err(&extra.to_string());
        assert_eq!(error.param(), Some(param), "{extra}: {error}");
        assert!(error.to_string().contains(expect), "{extra}: {error} does not contain {expect}");
    };
    check(json!({"model": null}), "model", "missing required parameter: 'model'");
    check(json!({"model": 5}), "model", "expected a string, got a number");
    check(json!({"model": ""}), "model", "1 to 256 bytes");
    check(json!({"messages": null}), "messages", "missing");
    check(json!({"messages": "hi"}), "messages", "expected an array of messages, got a string");
    check(json!({"messages": []}), "messages", "1 to 1024 messages, got 0");
    check(json!({"messages": vec![json!({"role": "user", "content": "x"}); 1025]}), "messages", "got 1025");
    check(json!({"messages": ["hi"]}), "messages[0]", "expected an object, got a string");
    check(json!({"messages": [{"content": "x"}]}), "messages[0].role", "missing");
    check(json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role", "one of system");
    check(json!({"messages": [{"role": "function", "content": "x"}]}), "messages[0].role", "'tool' by now");
    check(json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].tool_call_id", "missing");
    check(json!({"messages": [{"role": "user"}]}), "messages[0].content", "missing");
    check(json!({"messages": [{"role": "user", "content": 3}]}), "messages[0].content", "a string or an array");
    check(json!({"messages": [{"role": "user", "content": [3]}]}), "messages[0].content[0]", "an object");
    let image = json!([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {}}]);
    check(json!({"messages": [{"role": "user", "content": image}]}), "messages[0].content[1].type", "'text'");
    check(
        json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        "messages[0].content[0].text",
        "miss",
    );
    let call = json!({"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]});
    check(json!({"messages": [call]}), "messages[0].tool_calls[0].function", "missing");
    check(json!({"stream": "yes"}), "stream", "true or false, got a string");
    check(json!({"stream_options": {}}), "stream_options", "only allowed when 'stream' is true");
    check(json!({"stream": true, "stream_options": 1}), "stream_options", "an object");
    check(json!({"stream": true, "stream_options": {"include_usage": 1}}), "stream_options.include_usage", "true or");
    check(json!({"seed": 1.5}), "seed", "an integer from -9223372036854775808");
    check(json!({"seed": "1"}), "seed", "got a string");
    check(json!({"stop": 1}), "stop", "a string or an array of strings, got a number");
    check(json!({"stop": ""}), "stop", "1 to 256 bytes");
    check(json!({"stop": ["a", "x".repeat(257)]}), "stop[1]", "1 to 256 bytes");
    check(json!({"stop": [1]}), "stop[0]", "a string");
    check(json!({"stop": vec!["x"; 17]}), "stop", "at most 16");
    check(json!({"max_tokens": 0}), "max_tokens", "from 1 to");
    check(json!({"max_tokens": -1}), "max_tokens", "from 1 to 4294967295, got -1");
    check(json!({"max_tokens": 1e300}), "max_tokens", "from 1 to");
    check(json!({"max_tokens": "5"}), "max_tokens", "got a string");
    check(json!({"max_completion_tokens": 1.5}), "max_completion_tokens", "got 1.5");
    check(json!({"max_completion_tokens": 5, "max_tokens": 6}), "max_completion_tokens", "another value");
    check(json!({"temperature": 2.1}), "temperature", "from 0 to 2, got 2.1");
    check(json!({"temperature": -0.1}), "temperature", "from 0 to 2, got -0.1");
    check(json!({"temperature": "hot"}), "temperature", "got a string");
    check(json!({"top_p": 1.01}), "top_p", "from 0 to 1");
    check(json!({"top_k": -2}), "top_k", "got -2");
    check(json!({"top_k": 1.5}), "top_k", "got 1.5");
    check(json!({"min_p": 1.5}), "min_p", "from 0 to 1, got 1.5");
    check(json!({"repetition_penalty": 0}), "repetition_penalty", "from 0.01 to 100, got 0");
    check(json!({"frequency_penalty": 2.5}), "frequency_penalty", "from -2 to 2, got 2.5");
    check(json!({"presence_penalty": "1"}), "presence_penalty", "got a string");
    check(json!({"logit_bias": [1]}), "logit_bias", "an object, got an array");
    check(json!({"logit_bias": {"x": 1}}), "logit_bias.x", "a token id as the key");
    check(json!({"logit_bias": {"-1": 1}}), "logit_bias.-1", "a token id as the key");
    check(json!({"logit_bias": {"1": 101}}), "logit_bias.1", "from -100 to 100, got 101");
    check(json!({"logit_bias": {"1": "a"}}), "logit_bias.1", "got a string");
    check(json!({"logit_bias": {"1": 1, "01": 1}}), "logit_bias", "twice");
    let many: serde_json::Map<String, Value> = (0..1025).map(|i| (i.to_string(), json!(1))).collect();
    check(json!({"logit_bias": many}), "logit_bias", "more than 1024 fields");
    check(json!({"logprobs": 5}), "logprobs", "true or false");
    check(json!({"top_logprobs": 5}), "top_logprobs", "only allowed when 'logprobs' is true");
    check(json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", "from 0 to 20, got 21");
    check(json!({"logprobs": true, "top_logprobs": -1}), "top_logprobs", "from 0 to 20, got -1");
    let format = |value: Value| json!({"response_format": value});
    check(format(json!("json")), "response_format", "an object");
    check(format(json!({})), "response_format.type", "missing");
    check(format(json!({"type": "xml"})), "response_format.type", "one of text");
    check(format(json!({"type": "json_schema"})), "response_format.json_schema", "missing");
    check(
        format(json!({"type": "json_schema", "json_schema": {"name": "x"}})),
        "response_format.json_schema.schema",
        "mi",
    );
    check(
        format(json!({"type": "json_schema", "json_schema": {"name": "", "schema": {}}})),
        "response_format.json_schema.name",
        "1 to 64 bytes",
    );
    check(
        format(json!({"type": "json_schema", "json_schema": {"name": "x", "schema": []}})),
        "response_format.json_schema.schema",
        "an object",
    );
    check(json!({"guided_regex": 1}), "guided_regex", "a string");
    check(json!({"guided_grammar": ""}), "guided_grammar", "1 to 65536 bytes");
    check(json!({"guided_regex": "x".repeat(65_537)}), "guided_regex", "1 to 65536 bytes");
    check(json!({"guided_choice": []}), "guided_choice", "1 to 1024");
    check(json!({"guided_choice": ["a", ""]}), "guided_choice[1]", "empty");
    check(json!({"guided_regex": "a", "guided_choice": ["b"]}), "guided_choice", "'guided_regex' constrains");
    check(json!({"guided_regex": "a", "ignore_eos": true}), "ignore_eos", "'guided_regex'");
    check(json!({"n": 0}), "n", "from 1 to 16, got 0");
    check(json!({"n": 17}), "n", "from 1 to 16, got 17");
    check(json!({"n": 1.5}), "n", "got 1.5");
    check(json!({"ignore_eos": 1}), "ignore_eos", "true or false");
    check(json!({"provider": "x"}), "provider", "an object, got a string");
    check(json!({"provider": {"only": "x"}}), "provider.only", "an array of provider ids");
    check(json!({"provider": {"only": ["0x12"]}}), "provider.only[0]", "40 hex digits");
    check(json!({"provider": {"sort": "luck"}}), "provider.sort", "price, throughput, latency");
    check(json!({"provider": {"max_price": {"prompt": -1}}}), "provider.max_price.prompt", "a number from 0");
    check(json!({"provider": {"data_collection": "deny"}}), "provider.data_collection", "keep nothing");
    check(json!({"provider": {"require_parameters": true}, "zzz": 1}), "zzz", "require_parameters");
    check(json!({"provider": {"ignore": vec!["0x"; 65]}}), "provider.ignore", "at most 64");
}

#[test]
fn number_that_no_float_holds_is_an_error() {
    for text in ["1e999", "-1e999", "NaN", "Infinity"] {
        let body = format!(
            "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],\"temperature\":{text}}}"
        );
        assert!(ChatRequest::parse(body.as_bytes(), &Limits::default()).is_err(), "{text}");
    }
}

#[test]
fn lone_surrogate_is_named() {
    let body = br#"{"model": "m", "messages": [{"role": "user", "content": "\ud800"}]}"#;
    let error = ChatRequest::parse(body, &Limits::default()).unwrap_err();
    assert_eq!(error.param(), Some("messages[0].content"));
}

#[test]
fn fields_that_would_change_the_answer_are_refused() {
    let check = |extra: Value, param: &str| {
        let error = parse_chat(&chat_with(&extra)).expect_err(&extra.to_string());
        assert_eq!(
            error,
            RequestError::Unsupported {
                param: param.into(),
                reason: match &error {
                    RequestError::Unsupported { reason, .. } => reason.clone(),
                    other => panic!("{extra}: {other}"),
                },
            }
        );
    };
    check(json!({"functions": [{}]}), "functions");
    check(json!({"best_of": 2}), "best_of");
    check(json!({"echo": true}), "echo");
    check(json!({"suffix": "x"}), "suffix");
    check(json!({"modalities": ["audio"]}), "modalities");
}

#[test]
fn bad_prompts_are_named() {
    for prompt in [
        json!(null),
        json!([]),
        json!({}),
        json!(3),
        json!(true),
        json!([1, -1]),
        json!([1, 4_294_967_296_u64]),
        json!([1.5]),
        json!(["a", "b"]),
        json!([[1], [2]]),
        json!(["a", 1]),
        json!([[1, "a"]]),
        json!([{}]),
    ] {
        let error = parse_prompt(&prompt).expect_err(&prompt.to_string());
        assert_eq!(error.param().map(|p| &p[..6]), Some("prompt"), "{prompt}: {error}");
    }
}

#[test]
fn mutated_bodies_never_panic() {
    let body = chat_with(&json!({"stop": ["a\u{e9}"], "stream": true, "stream_options": {"include_usage": true}}));
    let bytes = body.to_string().into_bytes();
    for index in 0..bytes.len() {
        for value in [0, b'"', b'{', b'\\', b'9', 0xff] {
            let mut mutated = bytes.clone();
            mutated[index] = value;
            let _ = ChatRequest::parse(&mutated, &Limits::default());
            let _ = CompletionRequest::parse(&mutated);
            let _ = ChatRequest::parse(&bytes[..index], &Limits::default());
        }
    }
}

#[test]
fn job_takes_the_requests_values_before_the_defaults() {
    let given = parse_chat(&chat_with(&json!({"seed": 5, "max_tokens": 6, "temperature": 0.5, "stop": "s"}))).unwrap();
    let job = given.options.job(ModelId(B256::repeat_byte(1)), vec![1, 2], 100, 99, B256::repeat_byte(2));
    assert_eq!((job.max_tokens, job.sampling.seed, job.sampling.temperature_micro), (6, 5, 500_000));
    assert_eq!((job.prompt.as_slice(), job.stop.as_slice()), ([1, 2].as_slice(), ["s".to_owned()].as_slice()));
    let bare = parse_chat(&chat_with(&json!({}))).unwrap();
    let job = bare.options.job(ModelId(B256::repeat_byte(1)), vec![1], 100, 99, B256::repeat_byte(2));
    assert_eq!((job.max_tokens, job.sampling.seed, job.nonce), (100, 99, B256::repeat_byte(2)));
}
