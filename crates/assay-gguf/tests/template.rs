//! Chat templates: what they render, what they may not do, and that hostile ones are stopped.

use assay_gguf::{ChatMessage, ChatTemplate, Limits, TemplateError};

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into() }
}

fn render(source: &str, messages: &[ChatMessage], limits: &Limits) -> Result<String, TemplateError> {
    ChatTemplate::new(source, "<s>".into(), "</s>".into())?.render(messages, true, limits)
}

/// Renders with a small memory limit and checks that little more than that was ever allocated.
fn stopped(source: &str, expect: &str) {
    let limits = Limits { fuel: 200_000, memory: 1 << 20, output_len: 1 << 16 };
    let mut result = Ok(String::new());
    let info = allocation_counter::measure(|| {
        result = render(source, &[message("user", &"x".repeat(1000))], &limits);
    });
    let shown: String = source.chars().take(80).collect();
    match result {
        Ok(text) => panic!("{shown}: {} bytes of output", text.len()),
        Err(error) => assert!(error.to_string().contains(expect), "{shown}: {error}"),
    }
    assert!(info.bytes_max < 16 << 20, "{shown}: {} bytes were allocated", info.bytes_max);
}

/// The library panics on a field's name that is not ASCII.
#[test]
fn only_plain_fields_are_formatted() {
    let check = |source: &str, expect: Result<&str, &str>| {
        let text = render(source, &[], &Limits::default());
        match (text, expect) {
            (Ok(text), Ok(expect)) => assert_eq!(text, expect, "{source}"),
            (Err(error), Err(expect)) => assert!(error.to_string().contains(expect), "{source}: {error}"),
            (text, _) => panic!("{source}: {text:?}"),
        }
    };
    check("{{ 'a{}b{}'.format(1, 'c') }}", Ok("a1bc"));
    check("{{ '{1}{0}'.format(1, 2) }}", Ok("21"));
    check("{{ '{{\u{e9}}}{}'.format(1) }}", Ok("{\u{e9}}1"));
    for field in ["{\u{e9}}", "{ mes\u{fffd},n y}", "{a.\u{e9}}", "{0[\u{e9}]}", "{\u{e9}", "{0:>9}", "{0!r}"] {
        check(&format!("{{{{ '{field}'.format(1) }}}}"), Err("only plain fields"));
    }
}

/// The library's own slices with a step panic on an empty text, and where the end is behind the start.
#[test]
fn slices_with_a_step_are_safe_or_refused() {
    let turns = [message("user", ""), message("user", "b")];
    let check = |source: &str, expect: &str| {
        assert_eq!(render(source, &turns, &Limits::default()).unwrap(), expect, "{source}");
    };
    check("{{ messages[0].content[::-1] }}|{{ ''[::-1] }}|{{ 'a\u{e9}b'[::-1] }}", "||b\u{e9}a");
    check("{% for m in messages[::-1] %}{{ m.content }},{% endfor %}{{ [][::-1] | list | length }}", "b,,0");
    check("{{ nothing[::-1] | length }}{{ (('abc'))[ :: -1 ][::-1] ~ 'x'[::-1] }}", "0abcx");
    check("{{ 'abcdef'[1:5:2] }}{{ 'abc'[::1] }}{{ 'ab'[:-9] }}{{ messages[9:] | list | length }}", "bdabc0");
    for slice in ["[1:2:-1]", "[::-2]", "[::n]", "[::0]", "[::-9223372036854775808]", "[5::-1]", "[:5:-1]"] {
        let refused = render(&format!("{{% set n = -1 %}}{{{{ 'abc'{slice} }}}}"), &turns, &Limits::default());
        assert!(matches!(refused, Err(TemplateError::Invalid { .. })), "{slice}: {refused:?}");
    }
}

#[test]
fn templates_render_as_transformers_does() {
    let turns = [message("system", " Be brief. "), message("user", "Hi"), message("assistant", "Hello!")];
    let check = |source: &str, expect: &str| {
        assert_eq!(render(source, &turns, &Limits::default()).unwrap(), expect, "{source}");
    };
    check("{{ bos_token }}{{ eos_token }}", "<s></s>");
    check(
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' ~ m.content | trim }}\n{% endfor %}{% if add_generation_prompt %}go{% endif %}",
        "<|system|>Be brief.\n<|user|>Hi\n<|assistant|>Hello!\ngo",
    );
    // Blocks on their own lines leave nothing.
    check("a\n  {% if true %}\nb\n  {% endif %}\nc\n", "a\nb\nc");
    check("{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "3");
    check(
        "{{ messages[1:] | length }} {{ messages[0].content.strip() }} {{ messages[-1]['role'].upper() }}",
        "2 Be brief. ASSISTANT",
    );
    check(
        "{{ 'a,b'.split(',')[1] }}{{ 'abc'.startswith('a') }}{{ 'x' in 'xyz' }}{{ 'q' not in ['r'] }}",
        "bTrueTrueTrue",
    );
    check(
        "{% macro turn(m) %}[{{ m.role }}]{% endmacro %}{{ turn(messages[0]) + turn(messages[1]) }}",
        "[system][user]",
    );
    check("{% set x %}1{{ 2 }}{% endset %}{{ x ~ x }}", "1212");
    check(
        "{{ tools is none }}{{ tools is defined }}{{ nothing is defined }}{{ strftime_now is defined }}",
        "TrueTrueFalseFalse",
    );
    check("{% for m in messages if m.role != 'user' %}{{ loop.index }}{{ loop.last }}{% endfor %}", "1False2True");
    check("{{ (messages | selectattr('role', 'equalto', 'user') | list | first).content }}", "Hi");
    check("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v * 2 }}{% endfor %}{% set a, b = (1, 2) %}{{ b }}", "a22");
    check("{{ '{}-{}'.format('a', 1) }}{{ none is iterable }}{{ 'x' is iterable }}", "a-1FalseTrue");
    check("{{ ('é' + 'ü') ~ '中' + ('€' ~ bos_token) | upper }}", "éü中€<S>");
    check("{{ messages | map(attribute='role') | join('-') if false else ['a', 'b'] | join(', ') }}", "a, b");
    check("{{ 'a-b-c'.replace('-', '+') }}{{ 'aa' | replace('a', 'b') }}", "a+b+cbb");
}

#[test]
fn a_template_can_refuse_messages() {
    let source =
        "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no ' + m.role) }}{% endif %}{% endfor %}";
    let error = render(source, &[message("tool", "x")], &Limits::default()).unwrap_err();
    assert!(matches!(&error, TemplateError::Refused { message } if message == "no tool"), "{error}");
    assert_eq!(render(source, &[message("user", "x")], &Limits::default()).unwrap(), "");
}

#[test]
fn text_of_messages_is_data() {
    let text = "{{ 1 + 1 }}{% raw %}<b>&\"'";
    assert_eq!(render("{{ messages[0].content }}", &[message("user", text)], &Limits::default()).unwrap(), text);
}

#[test]
fn what_a_template_has_no_business_with_is_refused() {
    let check = |source: &str, expect: &str| {
        let error = render(source, &[message("user", "x")], &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(expect), "{source}: {error}");
    };
    check("{{ strftime_now('%Y') }}", "do not depend on the clock");
    check("{% include '/etc/passwd' %}", "not allowed");
    check("{% extends 'x' %}", "not allowed");
    check("{% import 'x' as y %}", "not allowed");
    check("{{ __charge(1) }}", "reserved");
    check("{% set __number = 1 %}", "reserved");
    check("{{ 'a' | __replace('a', 'b') }}", "reserved");
    check("{{ 'a' * 3 }}", "only numbers");
    check("{{ [1] * 3 }}", "only numbers");
    check("{{ range(*[1]) }}", "not allowed");
    check("{{ '%s' | format('x') }}", "format");
    check("{{ '{:>9}'.format('x') }}", "only plain fields");
    check("{{ 1", "chat template");
    check("{% for %}", "chat template");
    check("{{ nothing.field.more }}", "undefined");
    check(&"x".repeat(70_000), "at most 65536");
}

#[test]
fn bombs_are_stopped_within_memory() {
    let forever = "{% for i in range(100000) %}";
    let memory = "memory exceeded";
    stopped(&format!("{{% set ns = namespace(s='x') %}}{forever}{{% set ns.s = ns.s ~ ns.s %}}{{% endfor %}}"), memory);
    stopped(&format!("{{% set ns = namespace(s='x') %}}{forever}{{% set ns.s = ns.s + ns.s %}}{{% endfor %}}"), memory);
    stopped(
        &"{% set a = bos_token %}{% set a = a ~ a %}".replace("{% set a = a ~ a %}", &"{% set a = a ~ a %}".repeat(60)),
        memory,
    );
    stopped(&format!("{{% set a = 'x' %}}{}", "{% set a %}{{ a }}{{ a }}{% endset %}".repeat(60)), memory);
    stopped(
        &format!("{{% set a = 'x' %}}{}", "{% macro m(b) %}{{ b }}{{ b }}{% endmacro %}{% set a = m(a) %}".repeat(60)),
        memory,
    );
    stopped(&format!("{{% set ns = namespace(l=[1]) %}}{forever}{{% set ns.l = ns.l + ns.l %}}{{% endfor %}}"), memory);
    stopped(
        &format!(
            "{{% set ns = namespace(l=[]) %}}{forever}{{% set ns.l = ns.l + [messages[0].content[1:]] %}}{{% endfor %}}"
        ),
        memory,
    );
    stopped(
        &format!(
            "{{% set ns = namespace(s=messages[0].content) %}}{forever}{{% set ns.s = ns.s.replace('x', ns.s) %}}{{% endfor %}}"
        ),
        memory,
    );
    stopped(
        &format!(
            "{{% set ns = namespace(s=messages[0].content) %}}{forever}{{% set ns.s = ns.s | replace('x', ns.s) %}}{{% endfor %}}"
        ),
        memory,
    );
    stopped(
        &format!(
            "{{% set ns = namespace(s=messages[0].content) %}}{forever}{{% set ns.s = range(1000) | join(ns.s) %}}{{% endfor %}}"
        ),
        memory,
    );
    stopped(
        &format!(
            "{{% set ns = namespace(s=messages[0].content) %}}{forever}{{% set ns.s = ns.s.join(range(1000)) %}}{{% endfor %}}"
        ),
        memory,
    );
    stopped("{% set a = range(100000) | list %}{% set b = range(100000) | list %}", memory);
    stopped(&format!("{forever}{{{{ messages[0].content }}}}{{% endfor %}}"), "length limit");
    stopped(&format!("{}{}", forever.repeat(3), "{% endfor %}".repeat(3)), "instructions exceeded");
    // Literal text in a capture is bounded by the number of instructions.
    let text = "y".repeat(40_000);
    stopped(&format!("{{% set x %}}{forever}{text}{{% endfor %}}{{% endset %}}"), "exceeded");
}

#[test]
fn deep_structures_do_not_overflow_the_stack() {
    let forever = "{% for i in range(100000) %}";
    stopped(
        &format!("{{% set ns = namespace(l=[]) %}}{forever}{{% set ns.l = [ns.l] %}}{{% endfor %}}"),
        "nest too deep",
    );
    stopped(
        &format!("{{% set ns = namespace(l={{}}) %}}{forever}{{% set ns.l = {{'a': ns.l}} %}}{{% endfor %}}"),
        "nest too deep",
    );
    stopped("{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}", "nest too deep");
    stopped(
        &format!(
            "{{% set top = namespace(p=none) %}}{forever}{{% set n = namespace(p=top.p) %}}{{% set top.p = n %}}{{% endfor %}}"
        ),
        "nest too deep",
    );
    stopped("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion");
    stopped("{% for m in [[[]]] recursive %}{{ loop([m, m]) }}{% endfor %}", "recursion");
    stopped(&format!("{{{{ {}a }}}}", "a + ".repeat(10_000)), "tokens in one block");
    stopped(&format!("{{{{ a{} }}}}", ".b".repeat(10_000)), "tokens in one block");
    stopped(&format!("{{{{ {}1{} }}}}", "(".repeat(400), ")".repeat(400)), "recursion");
    stopped(&format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(4_000)), "branches");
    stopped(&"{% if a %}".repeat(5_000), "chat template");
}

#[test]
fn limits_do_not_hinder_long_conversations() {
    let template = "{{ bos_token }}{% set ns = namespace(text='') %}{% for m in messages %}\
        {% set ns.text = ns.text + '<|' + m.role + '|>' + m.content | trim + eos_token %}{% endfor %}{{ ns.text }}";
    let messages: Vec<_> = (0..100).map(|i| message("user", &format!("{i} {}", "word ".repeat(100)))).collect();
    let text = render(template, &messages, &Limits::default()).unwrap();
    assert_eq!(text.matches("<|user|>").count(), 100);
}
