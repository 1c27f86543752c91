//! The safetensors parser: golden bytes, what contradicts itself, cut and changed files, and memory.

mod support;

use assay_import::{Dtype, Safetensors};
use support::{Tensor, safetensors};

fn file(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

#[test]
fn a_file_gives_names_types_shapes_and_places() {
    let bytes = file(
        r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[2,10]},
            "a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},"c":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[10,13]},
            "d":{"dtype":"I64","shape":[0,7],"data_offsets":[13,13]}}   "#,
        &(0..13).collect::<Vec<u8>>(),
    );
    let parsed = Safetensors::parse(&bytes).unwrap();
    let found: Vec<_> =
        parsed.tensors().iter().map(|t| (t.name.as_str(), t.dtype, &t.shape[..], t.data(&bytes).unwrap())).collect();
    let expect: [(_, _, &[u64], &[u8]); 4] = [
        ("a", Dtype::BF16, &[], &[0, 1]),
        ("b", Dtype::F32, &[2, 1], &[2, 3, 4, 5, 6, 7, 8, 9]),
        ("c", Dtype::Other, &[3], &[10, 11, 12]),
        ("d", Dtype::I64, &[0, 7], &[]),
    ];
    assert_eq!(found, expect);
    assert_eq!(parsed.tensor("b").map(|t| t.start), Some(bytes.len() as u64 - 11));
    assert!(parsed.tensor("e").is_none());
}

#[test]
fn messages_show_no_control_characters_and_no_long_names() {
    for key in ["\u{7f}\u{85}", &"x".repeat(5_000)] {
        let header = format!(r#"{{"a":{{"{key}":1}}}}"#);
        let message = Safetensors::parse(&file(&header, &[])).unwrap_err().to_string();
        assert!(message.len() < 400 && !message.contains(char::is_control), "{message:?}");
    }
}

#[test]
fn what_contradicts_itself_is_named() {
    let check = |bytes: &[u8], expect: &str| {
        let error = Safetensors::parse(bytes).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} does not contain {expect:?}");
    };
    let one = |entry: &str, data: &[u8]| file(&format!(r#"{{"x":{entry}}}"#), data);
    check(b"", "not a safetensors file");
    check(&[9, 0, 0, 0, 0, 0, 0, 0], "a header of 9 bytes is announced, the file has 8 in all");
    check(&[0xff; 8], "a header of 18446744073709551615 bytes");
    check(&file("", b""), "EOF while parsing");
    check(&file("[]", b""), "an object of tensors");
    check(&file("{} x", b""), "trailing characters");
    check(&file("{\"\u{1}\":{}}", b""), "control character");
    check(&one("7", b""), "invalid type");
    check(&one(r#"{"dtype":"F32","shape":[1]}"#, b""), "missing field `data_offsets`");
    check(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}"#, b"1234"), "unknown field `x`");
    check(&one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#, b"1234"), "invalid value");
    check(&one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,5]}"#, b"1234"), "header:");
    check(&one(r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}"#, b"1234"), "at most 8 sizes");
    check(&one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#, b"1234"), "shape [2] needs 8 bytes, it has 4");
    check(&one(r#"{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#, b""), "is too large");
    check(&one(r#"{"dtype":"F64","shape":[4611686018427387904],"data_offsets":[0,0]}"#, b""), "is too large");
    check(&one(r#"{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#, b"123"), "is at 0 to 4, the file has 3");
    check(&one(r#"{"dtype":"U8","shape":[0],"data_offsets":[1,0]}"#, b"1"), "is at 1 to 0");
    check(&one(r#"{"dtype":"U8","shape":[1],"data_offsets":[1,2]}"#, b"12"), "bytes 0 to 1 of the data belong to no");
    check(&one(r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#, b"12"), "bytes 1 to 2 of the data belong to no");
    let two = |b: &str| {
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[2],"data_offsets":[0,2]}},"{b}":{{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}}}"#
        );
        file(&header, b"123")
    };
    check(&two("b"), "tensor \"b\": its data starts at 1, where another one's still goes on");
    let empty = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    check(&file(&format!(r#"{{"a":{empty},"a":{empty}}}"#), b""), "tensor \"a\": it is there twice");
    check(&one(&format!("{{\"dtype\":{}", "[".repeat(100_000)), b""), "header:");
    check(&file(&format!("{{\"__metadata__\":{}", "[".repeat(100_000)), b""), "header:");
    check(&file(&format!(r#"{{"{}":{empty}}}"#, "n".repeat(257)), b""), "names of 256 bytes");
}

fn sample() -> Vec<u8> {
    let tensor = |i: usize| Tensor {
        name: format!("layer.{i}.weight"),
        dtype: ["F32", "F16", "I64"][i % 3],
        shape: vec![2, i as u64 + 1],
        data: vec![7; [4, 2, 8][i % 3] * 2 * (i + 1)],
    };
    safetensors(&(0..6).map(tensor).collect::<Vec<_>>())
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = sample();
    assert_eq!(Safetensors::parse(&bytes).unwrap().tensors().len(), 6);
    for len in 0..bytes.len() {
        assert!(Safetensors::parse(&bytes[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn no_changed_byte_makes_it_panic_and_places_stay_inside() {
    let bytes = sample();
    for at in 0..bytes.len() {
        for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            if let Ok(parsed) = Safetensors::parse(&changed) {
                assert!(parsed.tensors().iter().all(|tensor| tensor.data(&changed).is_some()));
            }
        }
    }
}

/// Headers that announce much and hold little, or hold as many entries as fit: memory stays near the header's size.
#[test]
fn memory_is_bounded_by_the_file() {
    let entry = r#"{"dtype":"U8","shape":[0,0,0,0,0,0,0,0],"data_offsets":[0,0]}"#;
    let entries: Vec<String> = (0..40_000).map(|i| format!("\"{i:x}\":{entry}")).collect();
    for bytes in [
        [&u64::MAX.to_le_bytes()[..], &[b'{'; 100]].concat(),
        file(&format!("{{{}}}", entries[..30_000].join(",")), b""),
        file(&format!("{{{}}}", entries.join(",")), b""),
        file(&format!(r#"{{"x":{{"dtype":"U8","shape":[{}0],"data_offsets":[0,0]}}}}"#, "0,".repeat(1_000_000)), b""),
        file(&format!(r#"{{"__metadata__":[{}0]}}"#, "0,".repeat(1_000_000)), b""),
        file(&format!("{{\"{}", "a".repeat(2_000_000)), b""),
    ] {
        let used = allocation_counter::measure(|| drop(Safetensors::parse(&bytes)));
        assert!(used.bytes_max <= 3 * bytes.len() as u64 + (1 << 20), "{} bytes for {}", used.bytes_max, bytes.len());
    }
}
