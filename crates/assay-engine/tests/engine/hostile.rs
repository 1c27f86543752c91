//! Files that contradict themselves: an error that names the key or the tensor, no panic.

use assay_gguf::{GgmlType, Value, write::GgufWriter};

use crate::support::{F16, FAMILIES, GEMMA, GEMMA2, GEMMA3, Q8, Tiny, load};

/// Loads `tiny` with one change to its metadata; the error, or "ok".
fn with_key(tiny: Tiny, key: &str, value: impl Into<Value>) -> String {
    let mut writer = tiny.writer();
    writer.set(key, value);
    outcome(&tiny.bytes_of(&writer))
}

fn outcome(bytes: &[u8]) -> String {
    load(bytes).map_or_else(|error| error.to_string(), |_| "ok".to_owned())
}

fn check(got: String, expect: &[&str]) {
    assert!(expect.iter().all(|part| got.contains(part)), "{got:?} does not contain all of {expect:?}");
}

#[test]
fn contradicting_metadata_is_named() {
    let check = |key: &str, value: Value, expect: &[&str]| check(with_key(Q8, key, value), expect);
    let heads = "llama.attention.head_count";
    let kv_heads = "llama.attention.head_count_kv";
    check("general.architecture", Value::Str("mamba".into()), &["general.architecture", "mamba", "llama", "qwen3"]);
    check("general.architecture", Value::U32(3), &["general.architecture"]);
    check("llama.block_count", Value::U32(0), &["llama.block_count", "0", "1 to 512"]);
    check("llama.block_count", Value::U32(3), &["blk.2.", "missing"]);
    check("llama.block_count", Value::U32(1), &["blk.1.", "not part"]);
    check("llama.block_count", Value::U32(u32::MAX), &["llama.block_count", "4294967295"]);
    check("llama.block_count", Value::U64(u64::MAX), &["llama.block_count", "18446744073709551615"]);
    check("llama.block_count", Value::I32(-2), &["llama.block_count"]);
    check("llama.block_count", Value::Str("2".into()), &["llama.block_count"]);
    check("llama.embedding_length", Value::U32(128), &["token_embd.weight", "[64, 285]", "[128, 285]"]);
    check("llama.feed_forward_length", Value::U32(64), &["blk.0.ffn_gate.weight", "[64, 96]", "[64, 64]"]);
    check(heads, Value::U32(8), &["blk.0.attn_q.weight", "[64, 64]", "[64, 128]"]);
    check(heads, Value::U32(0), &[heads, "1 to"]);
    check(kv_heads, Value::U32(3), &[kv_heads, "divide"]);
    check(kv_heads, Value::U32(4), &["blk.0.attn_k.weight"]);
    check("llama.attention.key_length", Value::U32(1000), &["llama.attention.key_length", "1000", "1 to 512"]);
    check("llama.attention.key_length", Value::U32(32), &["llama.attention.value_length", "16", "32"]);
    check("llama.attention.value_length", Value::U32(8), &["llama.attention.value_length", "8"]);
    check("llama.rope.dimension_count", Value::U32(18), &["llama.rope.dimension_count", "16"]);
    check("llama.rope.dimension_count", Value::U32(7), &["llama.rope.dimension_count", "even"]);
    check("llama.rope.freq_base", Value::F32(f32::NAN), &["rope", "NaN"]);
    check("llama.rope.freq_base", Value::F32(0.0), &["rope", "base 0"]);
    check("llama.attention.layer_norm_rms_epsilon", Value::F32(-1.0), &["rms_epsilon", "-1"]);
    check("llama.attention.layer_norm_rms_epsilon", Value::F32(f32::INFINITY), &["rms_epsilon", "inf"]);
    check("llama.context_length", Value::U32(0), &["llama.context_length", "0"]);
    check("llama.vocab_size", Value::U32(300), &["llama.vocab_size", "300", "285"]);
    check("llama.expert_count", Value::U32(8), &["llama.expert_count", "8"]);
    check("llama.rope.scaling.type", Value::Str("yarn".into()), &["llama.rope.scaling.type", "yarn"]);
    check("llama.rope.scaling.type", Value::Str("linear".into()), &["llama.rope.scaling.factor", "missing"]);
    check("llama.attention.sliding_window", Value::Str("128".into()), &["llama.attention.sliding_window"]);
    check("llama.attn_logit_softcapping", Value::F32(50.0), &["llama.attn_logit_softcapping", "50"]);
    check("llama.rope.scaling.attn_factor", Value::F32(1.19), &["llama.rope.scaling.attn_factor", "1.19"]);
    check("llama.rope.scaling.attn_factor", Value::F32(1.0), &["ok"]);
    check("llama.rope.scaling.type", Value::Str("none".into()), &["ok"]);
    check("llama.expert_count", Value::U32(0), &["ok"]);
}

#[test]
fn messages_show_no_control_characters_and_no_long_values() {
    let long = "x".repeat(5_000);
    for text in ["\u{1b}[31m", &long] {
        for key in ["general.architecture", "llama.rope.scaling.type", "tokenizer.ggml.model"] {
            let message = with_key(Q8, key, text);
            assert!(message.len() < 400 && !message.contains(char::is_control), "{message:?}");
        }
    }
    let mut writer = Q8.writer();
    writer.tensor("\u{1b}x", &[32], GgmlType::F32).expect("a valid shape");
    check(outcome(&Q8.bytes_of(&writer)), &["tensor \\u{1b}x is not part"]);
}

#[test]
fn the_keys_of_a_family_begin_with_its_name() {
    for tiny in FAMILIES {
        let name = tiny.family.name();
        for key in ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length"]
        {
            let key = format!("{name}.{key}");
            check(with_key(tiny, &key, 0_u32), &[&key, "0"]);
        }
        let key = format!("{name}.rope.scaling.type");
        check(with_key(tiny, &key, "yarn"), &[&key, "yarn"]);
        // Another architecture's key says nothing.
        check(with_key(tiny, "llama.block_count", 7_u32), &["ok"]);
        let mut writer = tiny.writer();
        writer.tensor("rope_factors_long.weight", &[8], GgmlType::F32).expect("a valid shape");
        check(outcome(&tiny.bytes_of(&writer)), &["rope_factors_long.weight", "not part", name]);
    }
}

/// As far as the window reaches, a model with one and without it are the same.
#[test]
fn the_context_ends_where_a_sliding_window_would_begin_to_hide() {
    let context = |window: u32| {
        let mut writer = Q8.writer();
        writer.set("llama.attention.sliding_window", window);
        load(&Q8.bytes_of(&writer)).expect("it loads").context()
    };
    assert_eq!([0, 100, 1024, 1 << 20].map(context), [1024, 100, 1024, 1024]);
}

#[test]
fn keys_of_gemma_alone_are_checked_and_refused_elsewhere() {
    let check = |tiny: Tiny, name: &str, value: Value, expect: &str| {
        let key = format!("{}.{name}", tiny.family.name());
        let named = if expect == "ok" { "ok" } else { key.as_str() };
        check(with_key(tiny, &key, value), &[named, expect]);
    };
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        check(GEMMA2, cap, Value::F32(f32::NAN), "NaN");
        check(GEMMA2, cap, Value::F32(-30.0), "-30");
        check(GEMMA2, cap, Value::F32(0.0), "ok");
        check(GEMMA, cap, Value::F32(30.0), "not supported");
    }
    check(GEMMA3, "attn_logit_softcapping", Value::F32(50.0), "not supported");
    check(GEMMA3, "final_logit_softcapping", Value::F32(30.0), "ok");
    check(GEMMA2, "rope.freq_base_swa", Value::F32(1e4), "not supported");
    for tiny in [GEMMA2, GEMMA3] {
        check(tiny, "attention.sliding_window", Value::U32(u32::MAX), "4294967295");
        check(tiny, "attention.sliding_window", Value::U32(0), "ok");
        check(tiny, "attention.sliding_window_pattern", Value::U32(0), "1 to 512");
    }
    let config = GEMMA2.model().config().clone();
    assert_eq!([0, 1, 2, 3].map(|layer| config.is_local(layer)), [true, false, true, false]);
}

#[test]
fn a_template_that_does_not_compile_is_no_reason_not_to_load() {
    let mut writer = Q8.writer();
    writer.set("tokenizer.chat_template", "{% for %}");
    let model = load(&Q8.bytes_of(&writer)).expect("it loads");
    check(model.template().err().map(ToString::to_string).unwrap_or_default(), &["chat template"]);
    assert!(matches!(Q8.model().template(), Ok(None)));
}

#[test]
fn odd_heads_are_refused() {
    let odd = Tiny { head_dim: 15, rope_dims: 14, ..F16 };
    check(outcome(&odd.bytes()), &["llama.attention.key_length", "15", "even"]);
}

/// `tiny` with its tensors changed by `change`, which gets (name, dims, type) and returns what to write, if at all.
fn with_tensors(tiny: Tiny, change: impl Fn(&str, Vec<u64>, GgmlType) -> Option<(Vec<u64>, GgmlType)>) -> String {
    let original = tiny.writer();
    let bytes = tiny.bytes();
    let gguf = assay_gguf::Gguf::parse(&bytes).expect("valid");
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        writer.set(key, value.clone());
    }
    for tensor in original.tensors() {
        if let Some((dims, ty)) = change(&tensor.name, tensor.dims.clone(), tensor.ty) {
            writer.tensor(&tensor.name, &dims, ty).expect("a valid shape");
        }
    }
    outcome(&tiny.bytes_of(&writer))
}

#[test]
fn missing_misshapen_and_unknown_tensors_are_named() {
    for tiny in [Q8].into_iter().chain(FAMILIES) {
        check_tensors(tiny);
    }
    let mut writer = Q8.writer();
    writer.tensor("blk.0.attn_q.bias", &[64], GgmlType::F32).expect("a valid shape");
    check(outcome(&Q8.bytes_of(&writer)), &["blk.0.attn_q.bias", "not part"]);
    // Shapes that differ only by trailing ones are the same.
    let padded = with_tensors(Q8, |_, mut dims, ty| {
        dims.push(1);
        Some((dims, ty))
    });
    check(padded, &["ok"]);
}

fn check_tensors(tiny: Tiny) {
    // A model without its own output matrix is a tied one.
    let writer = tiny.writer();
    let names = writer.tensors().iter().map(|tensor| tensor.name.clone()).filter(|name| name != "output.weight");
    for name in names {
        let missing = with_tensors(tiny, |n, dims, ty| (n != name).then_some((dims, ty)));
        check(missing, &[&name, "missing"]);
        let misshapen = with_tensors(tiny, |n, mut dims, ty| {
            if n == name {
                // Keeps whole blocks of 32 in the first dimension.
                let last = dims.len() - 1;
                dims[last] += 32;
            }
            Some((dims, ty))
        });
        check(misshapen, &[&name]);
        let mistyped = with_tensors(tiny, |n, dims, ty| Some((dims, if n == name { GgmlType(28) } else { ty })));
        check(mistyped, &[&name]);
    }
}

#[test]
fn frequency_factors_outside_reason_are_refused() {
    let bytes = F16.bytes();
    let gguf = assay_gguf::Gguf::parse(&bytes).expect("valid");
    let offset = gguf.tensor("rope_freqs.weight").expect("there").offset as usize;
    for factor in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let mut bytes = bytes.clone();
        bytes[offset + 4..offset + 8].copy_from_slice(&factor.to_le_bytes());
        check(outcome(&bytes), &["factor"]);
    }
}

#[test]
fn one_changed_metadata_byte_never_panics() {
    let bytes = Q8.bytes();
    let gguf = assay_gguf::Gguf::parse(&bytes).expect("valid");
    let data_start = gguf.data_start() as usize;
    for i in 0..data_start {
        let mut changed = bytes.clone();
        changed[i] ^= 1 << (i % 8);
        // Either error is right; a changed name or value may also still be a model.
        if let Ok(gguf) = assay_gguf::Gguf::parse(&changed) {
            let _ = assay_engine::Model::load(&gguf, &changed);
        }
    }
}
