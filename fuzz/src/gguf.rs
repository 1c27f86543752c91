//! A GGUF file: header, metadata, tensor directory, rotation tables.

use crate::limit::{bounded, printable};
use assay_gguf::{Array, GgmlType, Gguf, StrArray, Value, rope_tables, write::GgufWriter};

/// Positions of the rotation tables that are made.
const POSITIONS: u32 = 4;
/// A table has at most this many values per position, as f32, for each of two tables.
const ROPE_BYTES_MAX: usize = 1 << 20;

pub fn run(data: &[u8]) {
    let file = bounded("parsing", 2 * data.len() + (1 << 20), || Gguf::parse(data));
    let gguf = match file {
        Ok(gguf) => gguf,
        Err(error) => return printable(&error),
    };
    let mut ranges = Vec::new();
    for tensor in gguf.tensors() {
        assert_eq!(gguf.tensor(&tensor.name), Some(tensor));
        assert!(tensor.dims.iter().all(|&dim| dim > 0) && tensor.offset % u64::from(gguf.alignment()) == 0);
        match gguf.tensor_bytes(data, tensor) {
            Ok(bytes) => {
                assert_eq!(bytes.len() as u64, tensor.len);
                ranges.push((tensor.offset, tensor.offset + tensor.len));
            }
            Err(_) => assert!(tensor.ty.name().is_none()),
        }
    }
    ranges.sort_unstable();
    assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "tensors overlap");
    for (key, value) in gguf.metadata() {
        // Not compared by value: a number may be NaN.
        assert!(gguf.value(key).is_some_and(|found| std::ptr::eq(found, value)));
        let _ = (gguf.u32(key), gguf.f32(key), gguf.bool(key), gguf.str(key).is_ok(), gguf.array_str(key).is_ok());
        if let Value::Array(Array::Str(strings)) = value {
            assert_eq!(strings.iter().count(), strings.len());
        }
    }
    let _ = (gguf.context_length(), gguf.name(), gguf.license());
    let _ = bounded("rotation tables", ROPE_BYTES_MAX, || rope_tables(&gguf, data, POSITIONS).map(|_| ()));
}

/// A file written byte by byte, without any check.
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

    fn data(mut self, len: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + len, 0);
        self.0
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let entry = || Raw::new(3, 0, 1).str("k");
    let one = |dims: &[u64], ty, offset| Raw::new(3, 1, 0).tensor("w", dims, ty, offset).data(128);
    let aligned = |value: u32| Raw::new(3, 0, 1).str("general.alignment").u32(4).u32(value).data(0);
    let nested = |depth: usize| (0..depth).fold(entry().u32(9), |raw, _| raw.u32(9).u64(1)).u32(0).u64(1).data(8);
    let mut seeds = vec![
        valid(),
        Raw::new(2, 0, 0).0,
        // Counts whose products overflow: elements (CVE-2025-53630), the data's end (CVE-2026-27940), padding
        // (CVE-2026-33298).
        one(&[1 << 32, 1 << 32], 0, 0),
        one(&[u64::MAX, u64::MAX, u64::MAX, u64::MAX], 0, 0),
        one(&[1 << 62], 0, 0),
        one(&[(1 << 63) - 32], 8, 0),
        one(&[32], 0, u64::MAX - 31),
        one(&[32], 0, 1 << 63),
        one(&[0], 0, 0),
        one(&[4, 0], 0, 0),
        one(&[], 0, 0),
        one(&[1; 5], 0, 0),
        one(&[33], 8, 0),
        one(&[4], 4, 0),
        one(&[4], u32::MAX, 0),
        Raw::new(3, 2, 0).tensor("w", &[8], 0, 0).tensor("w", &[8], 0, 32).data(128),
        Raw::new(3, 2, 0).tensor("a", &[16], 0, 0).tensor("b", &[8], 0, 32).data(128),
        Raw::new(3, u64::MAX, 0).data(64),
        Raw::new(3, 0, u64::MAX).data(64),
        Raw::new(3, 0, 2).str("k").u32(0).bytes(&[1]).str("k").u32(0).bytes(&[1]).data(0),
        Raw::new(3, 0, 1).u64(u64::MAX).data(32),
        entry().u32(8).u64(u64::MAX).data(32),
        entry().u32(9).u32(8).u64(1 << 60).data(32),
        entry().u32(9).u32(10).u64((u64::MAX / 8) + 2).data(32),
        entry().u32(9).u32(7).u64(2).bytes(&[1, 2]).data(0),
        entry().u32(8).u64(2).bytes(b"\xff\xfe").data(0),
    ];
    seeds.extend([0, 8, 24, 1 << 30, u32::MAX].map(aligned));
    seeds.extend([1, 3, 5].map(nested));
    seeds
}

/// A file with every kind of value and tensors of every format.
fn valid() -> Vec<u8> {
    let mut writer = GgufWriter::new();
    writer
        .set("general.architecture", "llama")
        .set("general.alignment", 32_u32)
        .set("llama.context_length", 16_u32)
        .set("llama.embedding_length", 8_u32)
        .set("llama.attention.head_count", 2_u32)
        .set("llama.rope.dimension_count", 4_u32)
        .set("llama.rope.freq_base", 10_000.0_f32)
        .set("llama.rope.scaling.type", "linear")
        .set("llama.rope.scaling.factor", 2.0_f32)
        .set("a", Value::U8(1))
        .set("b", Value::I8(-1))
        .set("c", Value::U16(1))
        .set("d", Value::I16(-1))
        .set("e", -1_i32)
        .set("f", 1_u64)
        .set("g", Value::I64(-1))
        .set("h", Value::F64(0.5))
        .set("i", true)
        .set("j", Value::Array(Array::Bool(vec![true, false])))
        .set("k", ["x", "", "yz"].iter().collect::<StrArray>())
        .set("l", vec![0.5_f32])
        .set("m", Value::Array(Array::U8(vec![1, 2, 3])));
    writer.tensor("rope_freqs.weight", &[2], GgmlType::F32).expect("a shape");
    for (name, dims, ty) in [
        ("f16", &[3, 2][..], GgmlType::F16),
        ("bf16", &[3], GgmlType::BF16),
        ("q8_0", &[32, 2], GgmlType::Q8_0),
        ("q4_0", &[32, 1, 1, 2], GgmlType::Q4_0),
        ("q4_k", &[256], GgmlType::Q4_K),
    ] {
        writer.tensor(name, dims, ty).expect("a shape");
    }
    writer.to_bytes(|tensor| vec![1.0; tensor.count() as usize]).expect("every format has an encoder")
}
