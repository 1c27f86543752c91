//! Files that lie: an error that names field and offset, no panic, and memory within twice the file plus 1 MiB.

use assay_gguf::{Array, ChatTemplate, GgmlType, Gguf, GgufError, Tokenizer, Value, rope_tables, write::GgufWriter};

/// A GGUF file written byte by byte, without any check.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(entries)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn str(self, text: &str) -> Self {
        self.u64(text.len() as u64).bytes(text.as_bytes())
    }

    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let raw = self.str(name).u32(dims.len() as u32);
        dims.iter().fold(raw, |raw, &dim| raw.u64(dim)).u32(ty).u64(offset)
    }

    fn data(mut self, len: usize) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self
    }
}

/// Parses under the allocation bound.
fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let mut result = Err(GgufError::NotGguf { found: vec![] });
    let info = allocation_counter::measure(|| result = Gguf::parse(bytes));
    let bound = 2 * bytes.len() as u64 + (1 << 20);
    assert!(info.bytes_max <= bound, "{} bytes allocated for {} bytes of file", info.bytes_max, bytes.len());
    result
}

/// Parses and, if that works, builds everything that reads metadata.
fn use_all(bytes: &[u8]) {
    let Ok(gguf) = parse(bytes) else { return };
    for tensor in gguf.tensors() {
        if let Ok(data) = gguf.tensor_bytes(bytes, tensor) {
            assert_eq!(data.len() as u64, tensor.len);
        }
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&gguf) {
        let ids = tokenizer.encode("a b\u{e9}<|x|>", true, true);
        assert!(ids.iter().all(|&id| id < tokenizer.vocab_size()));
    }
    let _ = ChatTemplate::from_gguf(&gguf).map(|template| template.is_some());
    let _ = rope_tables(&gguf, bytes, 8).map(|tables| tables.global.n_positions());
}

/// A file with every kind of value, a tokenizer, a template and tensors.
fn valid() -> Vec<u8> {
    let byte_tokens: Vec<String> = (0..=u8::MAX).map(|b| format!("<0x{b:02X}>")).collect();
    let tokens = ["<unk>", "<|x|>", "\u{2581}a", "b"].into_iter().map(str::to_owned).chain(byte_tokens);
    let mut writer = GgufWriter::new();
    writer
        .set("general.architecture", "llama")
        .set("llama.context_length", 16_u32)
        .set("llama.rope.dimension_count", 4_u32)
        .set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.tokens", tokens.collect::<assay_gguf::StrArray>())
        .set("tokenizer.ggml.scores", vec![-1.0_f32; 260])
        .set("tokenizer.ggml.token_type", [2, 3, 1, 1].into_iter().chain([6; 256]).collect::<Vec<i32>>())
        .set("tokenizer.ggml.unknown_token_id", 0_u32)
        .set("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
        .set("x.i8", Value::I8(-1))
        .set("x.u16", Value::U16(1))
        .set("x.i16", Value::I16(-1))
        .set("x.u64", 1_u64)
        .set("x.i64", Value::I64(-1))
        .set("x.f64", Value::F64(0.5))
        .set("x.bool", true)
        .set("x.bools", Value::Array(Array::Bool(vec![true, false])))
        .set("x.u8s", Value::Array(Array::U8(vec![1, 2, 3])))
        .set("x.f64s", Value::Array(Array::F64(vec![0.5])));
    writer.tensor("rope_freqs.weight", &[2], GgmlType::F32).unwrap();
    writer.tensor("w", &[32, 2], GgmlType::Q8_0).unwrap();
    writer.to_bytes(|tensor| vec![1.0; tensor.count() as usize]).unwrap()
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_valid() {
    let bytes = valid();
    let gguf = parse(&bytes).unwrap();
    let end = gguf.tensors().iter().map(|t| t.offset + t.len).max().unwrap() as usize;
    for len in 0..bytes.len() {
        match parse(&bytes[..len]) {
            Ok(_) => assert!(len >= end, "cut at {len} of {end}"),
            Err(_) => assert!(len < end, "cut at {len} of {end}"),
        }
    }
    use_all(&bytes);
    assert!(Tokenizer::from_gguf(&gguf).is_ok());
    assert!(ChatTemplate::from_gguf(&gguf).unwrap().is_some());
    assert!(rope_tables(&gguf, &bytes, 8).is_ok());
}

#[test]
fn a_changed_byte_is_an_error_or_valid() {
    let bytes = valid();
    for at in 0..bytes.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] ^= change;
            use_all(&bytes);
        }
    }
}

#[test]
fn random_changes_are_errors_or_valid() {
    let bytes = valid();
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for _ in 0..3_000 {
        let mut bytes = bytes.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = random(256) as u8,
                // A length or count becomes small, large or negative.
                1 => {
                    let value = [0, 1, u64::MAX, 1 << 62, random(300) as u64][random(5)];
                    let at = at.min(bytes.len() - 8);
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
                }
                _ => drop(bytes.drain(at..(at + random(64)).min(bytes.len()))),
            }
        }
        use_all(&bytes);
    }
}

fn check(raw: Raw, expect: &str) {
    let error = parse(&raw.0).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains(expect), "{error:?} does not contain {expect:?}");
}

#[test]
fn headers_that_lie_are_named() {
    check(Raw(vec![]), "not a GGUF file");
    check(Raw(b"GGML\x03\0\0\0".to_vec()), "not a GGUF file");
    check(Raw::new(1, 0, 0), "version 1 is not supported");
    check(Raw::new(4, 0, 0), "version 4 is not supported");
    check(Raw::new(3_u32.swap_bytes(), 0, 0), "big endian");
    check(Raw::new(3, u64::MAX, 0), "number of tensors at byte 8: 18446744073709551615 is more than 32768");
    check(Raw::new(3, 32_768, 0), "number of tensors at byte 16: needs 1081344 bytes, 8 are left");
    check(Raw::new(3, 0, u64::MAX), "number of metadata entries at byte 16: 18446744073709551615 is more than 4096");
    check(Raw::new(3, 0, 4_096), "number of metadata entries at byte 24: needs 53248 bytes, 0 are left");
    check(Raw::new(3, 0, 2).data(64), "at byte 49: this key is there twice");
    assert!(parse(&Raw::new(2, 0, 0).0).is_ok());
    assert!(parse(&Raw::new(3, 0, 0).0).is_ok());
}

#[test]
fn metadata_that_lies_is_named() {
    let entry = || Raw::new(3, 0, 1);
    check(entry().u64(u64::MAX).bytes(&[0; 9]), "metadata entry 0 key at byte 32: needs 18446744073709551615 bytes");
    check(entry().u64(70_000).bytes(&[b'k'; 70_100]), "metadata entry 0 key at byte 24: 70000 bytes, at most 65535");
    check(entry().u64(2).bytes(b"\xff\xfe").bytes(&[0; 8]), "metadata entry 0 key at byte 24: it is not UTF-8");
    check(entry().str("k").u32(13).bytes(&[0; 8]), "k type at byte 33: 13 is no value type");
    check(entry().str("k").u32(7).bytes(&[2]), "k value at byte 37: 2 is neither 0 nor 1");
    check(entry().str("k").u32(10).bytes(&[0; 7]), "k value at byte 37: needs 8 bytes, 7 are left");
    check(entry().str("k").u32(8).u64(u64::MAX), "k value at byte 45: needs 18446744073709551615 bytes, 0 are left");
    check(entry().str("k").u32(8).u64(1).bytes(b"\xff"), "k value at byte 37: it is not UTF-8");
    check(entry().str("k").u32(9).u32(4).u64(u64::MAX), "k elements at byte 49: needs 18446744073709551615 bytes");
    check(entry().str("k").u32(9).u32(10).u64((u64::MAX / 8) + 2), "k elements at byte 49: needs");
    check(entry().str("k").u32(9).u32(8).u64(u64::MAX), "k length at byte 49: needs 18446744073709551615 bytes");
    check(entry().str("k").u32(9).u32(8).u64(2).str("a").u64(5), "k element at byte 66: needs 5 bytes, 0 are left");
    check(entry().str("k").u32(9).u32(77).u64(0), "k element type at byte 37: 77 is no value type");
    check(entry().str("k").u32(9).u32(7).u64(1).bytes(&[9]), "k elements at byte 49: a boolean is neither 0 nor 1");
    let twice = Raw::new(3, 0, 2).str("k").u32(0).bytes(&[1]).str("k").u32(0).bytes(&[1]);
    check(twice, "k at byte 51: this key is there twice");
}

#[test]
fn nested_arrays_are_checked_to_a_depth() {
    // An array of one array of one array ..: each level is a type and a length.
    let nested = |depth: usize| {
        let raw = Raw::new(3, 0, 1).str("k").u32(9);
        (0..depth).fold(raw, |raw, _| raw.u32(9).u64(1)).u32(0).u64(2).bytes(&[1, 2])
    };
    for depth in 1..=3 {
        let gguf = parse(&nested(depth).0).unwrap();
        assert_eq!(gguf.value("k"), Some(&Value::Array(Array::Nested { len: 1 })), "depth {depth}");
    }
    check(nested(5), "arrays nest deeper than 4");
    check(nested(100_000), "arrays nest deeper than 4");
    check(Raw::new(3, 0, 1).str("k").u32(9).u32(9).u64(u64::MAX), "k element type at byte 49");
    let inner = Raw::new(3, 0, 1).str("k").u32(9).u32(9).u64(1).u32(8).u64(1).u64(99);
    check(inner, "k element at byte 69: needs 99 bytes, 0 are left");
}

#[test]
fn alignments_that_make_no_sense_are_named() {
    let aligned = |value: u32| Raw::new(3, 0, 1).str("general.alignment").u32(4).u32(value);
    for bad in [0, 1, 3, 24, 1 << 30, u32::MAX] {
        check(aligned(bad), &format!("general.alignment at byte 53: {bad} is not a power of two from 8 to 65536"));
    }
    for good in [8, 32, 65_536] {
        assert_eq!(parse(&aligned(good).0).unwrap().alignment(), good);
    }
    check(Raw::new(3, 0, 1).str("general.alignment").u32(10).u64(32), "general.alignment at byte 53: it is u64");
}

#[test]
fn tensors_that_lie_are_named() {
    let one = |dims: &[u64], ty, offset| Raw::new(3, 1, 0).tensor("w", dims, ty, offset).data(4096);
    let at_33 = |what: &str| format!("tensor w {what}");
    check(one(&[], 0, 0), "tensor w number of dimensions at byte 33: 0 is not 1 to 4");
    check(one(&[1; 5], 0, 0), "tensor w number of dimensions at byte 33: 5 is not 1 to 4");
    check(one(&[4, 0], 0, 0), "tensor w dimensions at byte 37: [4, 0] has a zero");
    check(
        one(&[1 << 40, 1 << 40], 0, 0),
        &at_33("dimensions at byte 37: [1099511627776, 1099511627776] overflows 63 bits"),
    );
    check(one(&[u64::MAX, u64::MAX, u64::MAX, u64::MAX], 0, 0), "overflows 63 bits");
    check(one(&[1 << 62], 0, 0), "overflow 64 bits of bytes");
    check(one(&[(1 << 63) - 32], 8, 0), "its data is at bytes 64..9799832789158199326, the file has 4160");
    check(one(&[33], 8, 0), "33 is not a multiple of the 32 values in a Q8_0 block");
    check(one(&[8], 0, 16), "offset of tensor w at byte 24: 16 is not a multiple of the alignment 32");
    check(one(&[8], 0, 4096), "offset of tensor w at byte 24: its data is at bytes 4160..4192, the file has 4160");
    check(one(&[8], 0, u64::MAX - 31), "does not fit 64 bits");
    check(one(&[8], 0, (1 << 63) - 32), "the file has 4160");
    check(one(&[2048], 0, 0), "its data is at bytes 64..8256, the file has 4160");
    check(Raw::new(3, 1, 0).tensor("", &[1], 0, 0).data(64), "tensor 0 name at byte 24: it is empty");
    check(Raw::new(3, 1, 0).tensor(&"n".repeat(65), &[1], 0, 0).data(64), "65 bytes, at most 64");
    let two = |second, offset| Raw::new(3, 2, 0).tensor("w", &[16], 0, 0).tensor(second, &[16], 0, offset).data(4096);
    check(two("w", 64), "tensor w at byte 57: this name is there twice");
    check(two("v", 32), "tensor v at byte 57: its data overlaps w");
    check(two("v", 0), "its data overlaps");
    let control = Raw::new(3, 2, 0).tensor("\u{1b}[2J", &[16], 0, 0).tensor("v", &[16], 0, 32).data(4096);
    check(control, "its data overlaps \\u{1b}[2J");
    assert!(parse(&two("v", 64).0).is_ok());
    assert!(parse(&one(&[1024], 0, 0).0).is_ok());
}

#[test]
fn an_unknown_format_is_an_error_when_the_tensor_is_used() {
    let raw = Raw::new(3, 2, 0).tensor("known", &[8], 0, 0).tensor("odd", &[8], 4_000, 32).data(4096);
    let gguf = parse(&raw.0).unwrap();
    assert!(gguf.tensor_bytes(&raw.0, gguf.tensor("known").unwrap()).is_ok());
    let error = gguf.tensor_bytes(&raw.0, gguf.tensor("odd").unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "tensor odd has unknown type 4000, which this release does not know");
}

#[test]
fn other_bytes_than_those_parsed_are_refused() {
    let raw = Raw::new(3, 1, 0).tensor("w", &[8], 0, 0).data(32);
    let gguf = parse(&raw.0).unwrap();
    let error = gguf.tensor_bytes(&raw.0[..70], gguf.tensor("w").unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "tensor w ends at byte 96, the data given has 70");
}

#[test]
fn memory_stays_within_the_bound_for_the_most_that_a_file_can_declare() {
    let strings = |count: usize| {
        let raw = Raw::new(3, 0, 1).str("k").u32(9).u32(8).u64(count as u64);
        raw.bytes(&vec![0; 8 * count])
    };
    assert!(parse(&strings(500_000).0).is_ok(), "empty strings");
    assert!(parse(&Raw::new(3, 0, 1).str("k").u32(8).str(&"x".repeat(4 << 20)).0).is_ok(), "one long string");
    let raw = Raw::new(3, 0, 1).str("k").u32(9).u32(7).u64(4 << 20).bytes(&vec![1; 4 << 20]);
    assert!(parse(&raw.0).is_ok(), "booleans");
    let nested = (0..300_000).fold(Raw::new(3, 0, 1).str("k").u32(9).u32(9).u64(300_000), |raw, _| raw.u32(0).u64(0));
    assert!(parse(&nested.0).is_ok(), "empty arrays");
    let entries = (0..4_096).fold(Raw::new(3, 0, 4_096), |raw, i| raw.str(&format!("{i:x}")).u32(0).bytes(&[0]));
    assert!(parse(&entries.0).is_ok(), "short entries");
    let tensors = (0..32_768_u64).fold(Raw::new(3, 32_768, 0), |raw, i| raw.tensor(&format!("{i:x}"), &[1], 0, i * 32));
    assert!(parse(&tensors.data(32_768 * 32).0).is_ok(), "short tensors");
    let mut same = Raw::new(3, 0, 2).str(&"k".repeat(60_000)).u32(8).str(&"v".repeat(3 << 20));
    same = same.str(&"k".repeat(60_000)).u32(8).str(&"v".repeat(3 << 20));
    check(same, "this key is there twice");
}

#[test]
fn wrong_types_and_missing_keys_are_named() {
    let bytes = valid();
    let gguf = parse(&bytes).unwrap();
    assert_eq!(gguf.u32("x.u64").unwrap(), Some(1));
    assert_eq!(gguf.u32("absent").unwrap(), None);
    assert_eq!(gguf.f32("x.f64").unwrap(), Some(0.5));
    assert_eq!(gguf.u32("x.i64").unwrap_err().to_string(), "metadata key x.i64 is i64, expected u32");
    assert_eq!(gguf.str("x.bool").unwrap_err().to_string(), "metadata key x.bool is bool, expected string");
    assert_eq!(gguf.require::<u32>("absent").unwrap_err().to_string(), "metadata key absent is missing");
    assert_eq!(
        gguf.array_str("x.u8s").unwrap_err().to_string(),
        "metadata key x.u8s is array of u8, expected array of strings"
    );
}
