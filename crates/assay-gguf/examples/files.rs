//! The other side of `tests/peers/gguf_files.py`: `files write FILE SEED` writes a file with every kind of value and
//! tensor that the writer knows, `files read FILE` prints what the parser finds in one, as JSON.

use anyhow::{Context, bail};
use assay_gguf::{Array, GgmlType, Gguf, StrArray, TensorInfo, Value, quant::can_encode, write::GgufWriter};
use assay_num::Matrix;
use serde_json::json;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["write", file, seed] => Ok(std::fs::write(file, written(seed.parse()?)?)?),
        ["read", file] => {
            let bytes = std::fs::read(file).context((*file).to_owned())?;
            let gguf = Gguf::parse(&bytes)?;
            println!("{}", shown(&gguf, &bytes)?);
            Ok(())
        }
        _ => bail!("usage: files write FILE SEED | files read FILE"),
    }
}

/// Numbers that look random.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.rotate_left(32)
    }

    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u32 << 20) as f32 - 8.0
    }
}

fn written(seed: u64) -> anyhow::Result<Vec<u8>> {
    let mut numbers = Numbers(seed);
    let mut n = || numbers.next();
    let mut writer = GgufWriter::new();
    let texts: StrArray = ["", "a", "\u{e9}\u{4e00}\u{1f600}", &"long ".repeat(50)].iter().collect();
    writer
        .set("general.architecture", "llama")
        .set("u8", Value::U8(n() as u8))
        .set("i8", Value::I8(n() as i8))
        .set("u16", Value::U16(n() as u16))
        .set("i16", Value::I16(n() as i16))
        .set("u32", n() as u32)
        .set("i32", n() as i32)
        .set("u64", n())
        .set("i64", Value::I64(n() as i64))
        .set("f32", 1.0 / 3.0_f32)
        .set("f64", Value::F64(1.0 / 3.0))
        .set("bool", seed.is_multiple_of(2))
        .set("text", "a\u{301}\n\u{0}\u{1f600}")
        .set("texts", texts)
        .set("u8s", Value::Array(Array::U8(vec![0, 255])))
        .set("i8s", Value::Array(Array::I8(vec![-128, 127])))
        .set("u16s", Value::Array(Array::U16(vec![0, u16::MAX])))
        .set("i16s", Value::Array(Array::I16(vec![i16::MIN, i16::MAX])))
        .set("u32s", vec![0, u32::MAX])
        .set("i32s", vec![i32::MIN, i32::MAX])
        .set("u64s", Value::Array(Array::U64(vec![0, u64::MAX])))
        .set("i64s", Value::Array(Array::I64(vec![i64::MIN, i64::MAX])))
        .set("f32s", vec![f32::MIN_POSITIVE, f32::MAX, -0.0, f32::INFINITY])
        .set("f64s", Value::Array(Array::F64(vec![f64::MIN_POSITIVE, f64::MAX])))
        .set("bools", Value::Array(Array::Bool(vec![true, false, true])));
    for ty in (0..64).map(GgmlType).filter(|&ty| can_encode(ty)) {
        for dims in [&[256][..], &[512, 3], &[256, 1, 2], &[256, 2, 1, 3]] {
            writer.tensor(&format!("{ty}.{}", dims.len()), dims, ty)?;
        }
    }
    Ok(writer.to_bytes(|tensor| (0..tensor.count()).map(|_| numbers.float()).collect())?)
}

fn shown(gguf: &Gguf, bytes: &[u8]) -> anyhow::Result<serde_json::Value> {
    let metadata: serde_json::Map<String, serde_json::Value> =
        gguf.metadata().map(|(key, value)| (key.to_owned(), json!([value.type_name(), plain(value)]))).collect();
    let tensors = gguf.tensors().iter().map(|tensor| {
        Ok(json!({
            "name": tensor.name,
            "dims": tensor.dims,
            "type": tensor.ty.to_string(),
            "offset": tensor.offset,
            "len": tensor.len,
            "values": values(tensor, gguf.tensor_bytes(bytes, tensor)?)?,
        }))
    });
    Ok(json!({
        "version": gguf.version(),
        "alignment": gguf.alignment(),
        "metadata": metadata,
        "tensors": tensors.collect::<anyhow::Result<Vec<_>>>()?,
    }))
}

/// A value as JSON; floats by their bits.
fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F32(v) => json!(v.to_bits()),
        Value::F64(v) => json!(v.to_bits()),
        Value::Bool(v) => json!(v),
        Value::Str(v) => json!(v),
        Value::Array(array) => match array {
            Array::U8(v) => json!(v),
            Array::I8(v) => json!(v),
            Array::U16(v) => json!(v),
            Array::I16(v) => json!(v),
            Array::U32(v) => json!(v),
            Array::I32(v) => json!(v),
            Array::U64(v) => json!(v),
            Array::I64(v) => json!(v),
            Array::F32(v) => v.iter().map(|x| x.to_bits()).collect(),
            Array::F64(v) => v.iter().map(|x| x.to_bits()).collect(),
            Array::Bool(v) => json!(v),
            Array::Str(v) => v.iter().collect(),
            Array::Nested { len } => json!(len),
        },
    }
}

/// What the engine computes with, as bits of `f32`; null for a format it does not run.
fn values(tensor: &TensorInfo, data: &[u8]) -> anyhow::Result<serde_json::Value> {
    let k = usize::try_from(tensor.dims[0])?;
    let rows = usize::try_from(tensor.dims[1..].iter().product::<u64>())?;
    let matrix = match tensor.ty {
        GgmlType::F32 => Matrix::from_f32(rows, k, data),
        GgmlType::F16 => Matrix::from_f16(rows, k, data),
        GgmlType::BF16 => Matrix::from_bf16(rows, k, data),
        GgmlType::Q8_0 => Matrix::from_q8_0(rows, k, data),
        GgmlType::Q4_0 => Matrix::from_q4_0(rows, k, data),
        GgmlType::Q4_K => Matrix::from_q4_k(rows, k, data),
        GgmlType::Q5_K => Matrix::from_q5_k(rows, k, data),
        GgmlType::Q6_K => Matrix::from_q6_k(rows, k, data),
        _ => return Ok(serde_json::Value::Null),
    }?;
    let mut out = vec![0.0; k];
    let mut bits = Vec::with_capacity(rows * k);
    for row in 0..rows {
        matrix.row_f32(row, &mut out);
        bits.extend(out.iter().map(|value| value.to_bits()));
    }
    Ok(json!(bits))
}
