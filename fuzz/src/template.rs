//! A chat template from a stranger, run on messages from another.

use crate::limit::bounded;
use assay_gguf::{ChatMessage, ChatTemplate, Limits};

/// Small, so that the fuzzer meets them.
const LIMITS: Limits = Limits { fuel: 5_000, memory: 1 << 16, output_len: 1 << 14 };
/// Memory of a compiled template and an environment, per byte of source and besides.
const COMPILED_BYTES_MAX: usize = 1 << 20;
const GROWTH_MAX: usize = 1024;
/// A charged byte may be held this often at one time.
const COPIES_MAX: usize = 16;

/// Source, role and content are separated by this.
const SEPARATOR: u8 = 0;

pub fn run(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == SEPARATOR).map(String::from_utf8_lossy);
    let mut part = || parts.next().unwrap_or_default().into_owned();
    let (source, role, content) = (part(), part(), part());
    let compiled_max = GROWTH_MAX * source.len() + COMPILED_BYTES_MAX;
    let made = bounded("a template", compiled_max, || ChatTemplate::new(&source, "<s>".into(), "</s>".into()));
    let Ok(template) = made else { return };
    let first = ChatMessage { role: "system".into(), content: role.clone() };
    let messages = [first, ChatMessage { role, content }];
    let bytes_max = compiled_max + COPIES_MAX * (LIMITS.memory as usize + LIMITS.output_len);
    if let Ok(text) = bounded("rendering", bytes_max, || template.render(&messages, true, &LIMITS)) {
        assert!(text.len() <= LIMITS.output_len);
        if text.len() % 4 != 0 {
            return;
        }
        let again = template.render(&messages, true, &LIMITS);
        assert_eq!(again.ok(), Some(text), "a prompt depends on nothing but its messages");
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message.content | trim + eos_token }}{% endfor %}{% if add_generation_prompt %}a{% endif %}\0user\0hello",
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}{% for m in loop_messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}{{ m['content'].strip().split('a')[-1] }}{% endfor %}\0user\0a b",
        "{%- set ns = namespace(found=false) -%}{%- macro f(x, d=1) -%}{{ x ~ d }}{%- endmacro -%}{%- for m in messages | reverse -%}{%- set ns.found = true -%}{{ f(m.content) | upper | replace('A', 'bb') }}{%- endfor -%}\0user\0a",
        "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
        "{% set x = 'a' %}{% for i in range(60) %}{% set x = x ~ x %}{{ x | length }}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 'a' * 1000000000 }}",
        "{{ ['a'] * 100000000 | join('b') }}",
        "{{ range(1000000000) | list | join(',') }}",
        "{{ 'aaaa'.replace('a', 'aaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaa') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{{ '%999999999s' | format('a') }}{{ '%s' % 'a' }}{{ '{:>999999}'.format(1) }}",
        "{{ messages | tojson(indent=1000000) }}{{ 'a' | indent(100000000) }}{{ 'a' | center(1000000) }}",
        "{% set x = [] %}{% for i in range(1000) %}{% set x = [x, x] %}{% endfor %}{{ x }}",
        "{% filter upper %}{% filter upper %}a{% endfilter %}{% endfilter %}{% set x %}b{% endset %}{{ x }}",
        "{{ ((((((((((((((((((((((((((((((((1)))))))))))))))))))))))))))))))) }}{{ [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]] }}",
        "{{ 9223372036854775807 + 1 }}{{ 2 ** 999 }}{{ 1 // 0 }}{{ -9223372036854775808 // -1 }}{{ 5 % 0 }}{{ 1e308 * 10 }}",
        "{{ messages[-1].content[::-1] }}{{ messages[0:9999999999:2] }}{{ 'a'[:-99] }}",
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | unique | dictsort }}",
        "{{ strftime_now('%Y') }}{{ x.y.z }}{% include 'a' %}{% import 'a' as b %}{% extends 'a' %}",
        "{% raw %}{{ a }}{% endraw %}{# c #}{% break %}{% generation %}x{% endgeneration %}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
