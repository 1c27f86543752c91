//! Writes GGUF version 3, for generated models. Tensor data is streamed: a file larger than memory can be written.

use crate::{
    ggml::GgmlType,
    quant,
    value::{Array, Value, tag},
};
use std::io::{self, Write};

/// Alignment of tensor data, the format's default.
const ALIGNMENT: u64 = 32;

/// Metadata and tensor directory of a file to be written.
#[derive(Clone, Default, Debug)]
pub struct GgufWriter {
    metadata: Vec<(String, Value)>,
    tensors: Vec<TensorSpec>,
}

/// A tensor to be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorSpec {
    /// Name, unique in the file.
    pub name: String,
    /// 1 to 4 sizes, fastest-varying first.
    pub dims: Vec<u64>,
    /// Format of the data.
    pub ty: GgmlType,
    /// Bytes of data.
    pub len: u64,
}

impl TensorSpec {
    /// Number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.dims.iter().product()
    }
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A tensor's shape does not go with its format, or the format is unknown.
    #[error("tensor {name}: {dims:?} is no shape of {ty}")]
    BadShape {
        /// Name of the tensor.
        name: String,
        /// Its sizes.
        dims: Vec<u64>,
        /// Its format.
        ty: GgmlType,
    },
    /// The data given for a tensor has another length than its shape says.
    #[error("tensor {name} has {expected} bytes, {got} were given")]
    DataLength {
        /// Name of the tensor.
        name: String,
        /// By its shape.
        expected: u64,
        /// Given.
        got: u64,
    },
    /// Arrays of arrays are not written.
    #[error("metadata key {key} is an array of arrays")]
    NestedArray {
        /// The key.
        key: String,
    },
}

impl GgufWriter {
    /// A file without metadata or tensors.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key`, replacing an earlier value.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        let value = value.into();
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
        self
    }

    /// Adds a tensor after those added before.
    ///
    /// # Errors
    /// [`WriteError::BadShape`].
    pub fn tensor(&mut self, name: &str, dims: &[u64], ty: GgmlType) -> Result<&mut Self, WriteError> {
        let len = tensor_len(dims, ty);
        let len = len.ok_or_else(|| WriteError::BadShape { name: name.to_owned(), dims: dims.to_vec(), ty })?;
        self.tensors.push(TensorSpec { name: name.to_owned(), dims: dims.to_vec(), ty, len });
        Ok(self)
    }

    /// Tensors in the order in which their data is asked for.
    #[must_use]
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// Writes the file to `out`; `data` is called once per tensor, in order, and writes its bytes to the sink it is
    /// given, in as many parts as it likes.
    ///
    /// # Errors
    /// [`WriteError`], also what `data` returns.
    pub fn write<W: Write>(
        &self,
        out: &mut W,
        mut data: impl FnMut(&TensorSpec, &mut TensorSink<'_, W>) -> io::Result<()>,
    ) -> Result<(), WriteError> {
        let header = self.header()?;
        out.write_all(&header)?;
        out.write_all(padding(header.len() as u64))?;
        for tensor in &self.tensors {
            let mut sink = TensorSink { out, written: 0, len: tensor.len };
            data(tensor, &mut sink)?;
            if sink.written != tensor.len {
                return Err(WriteError::DataLength {
                    name: tensor.name.clone(),
                    expected: tensor.len,
                    got: sink.written,
                });
            }
            out.write_all(padding(tensor.len))?;
        }
        Ok(())
    }

    /// The whole file in memory, with tensor values from `values`, encoded by [`quant::encode`].
    ///
    /// # Errors
    /// [`WriteError`]; a format without encoder gives [`WriteError::DataLength`].
    pub fn to_bytes(&self, mut values: impl FnMut(&TensorSpec) -> Vec<f32>) -> Result<Vec<u8>, WriteError> {
        let mut out = Vec::new();
        self.write(&mut out, |tensor, sink| sink.write_values(tensor.ty, &values(tensor)))?;
        Ok(out)
    }

    fn header(&self) -> Result<Vec<u8>, WriteError> {
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&3_u32.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            if let Value::Array(Array::Nested { .. }) = value {
                return Err(WriteError::NestedArray { key: key.clone() });
            }
            put_entry(&mut out, key, value);
        }
        let mut offset = 0_u64;
        for tensor in &self.tensors {
            put_str(&mut out, &tensor.name);
            out.extend_from_slice(&(tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                out.extend_from_slice(&dim.to_le_bytes());
            }
            out.extend_from_slice(&tensor.ty.0.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            offset += tensor.len.next_multiple_of(ALIGNMENT);
        }
        Ok(out)
    }
}

/// Where the data of one tensor goes.
pub struct TensorSink<'a, W> {
    out: &'a mut W,
    written: u64,
    len: u64,
}

impl<W: Write> TensorSink<'_, W> {
    /// Encodes `values`, whole blocks of `ty`, and writes them.
    ///
    /// # Errors
    /// Those of the output, and `InvalidInput` if [`quant::encode`] refuses.
    pub fn write_values(&mut self, ty: GgmlType, values: &[f32]) -> io::Result<()> {
        let mut encoded = Vec::new();
        if !quant::encode(ty, values, &mut encoded) {
            let reason = format!("{} values cannot be written as {ty}", values.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        self.write_all(&encoded)
    }
}

impl<W: Write> Write for TensorSink<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.written + data.len() as u64 > self.len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more data than the tensor's shape holds"));
        }
        let written = self.out.write(data)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn padding(len: u64) -> &'static [u8] {
    const ZEROS: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];
    &ZEROS[..(len.next_multiple_of(ALIGNMENT) - len) as usize]
}

fn tensor_len(dims: &[u64], ty: GgmlType) -> Option<u64> {
    let count = dims.iter().try_fold(1_u64, |count, &dim| count.checked_mul(dim))?;
    if !(1..=4).contains(&dims.len()) || count == 0 || !dims[0].is_multiple_of(ty.block_len()?) {
        return None;
    }
    (count / ty.block_len()?).checked_mul(ty.block_bytes()?)
}

/// Appends key, type and value as GGUF encodes them; of an array of arrays only the length.
pub(crate) fn put_entry(out: &mut Vec<u8>, key: &str, value: &Value) {
    put_str(out, key);
    let ty = match value {
        Value::U8(_) => tag::U8,
        Value::I8(_) => tag::I8,
        Value::U16(_) => tag::U16,
        Value::I16(_) => tag::I16,
        Value::U32(_) => tag::U32,
        Value::I32(_) => tag::I32,
        Value::U64(_) => tag::U64,
        Value::I64(_) => tag::I64,
        Value::F32(_) => tag::F32,
        Value::F64(_) => tag::F64,
        Value::Bool(_) => tag::BOOL,
        Value::Str(_) => tag::STR,
        Value::Array(_) => tag::ARRAY,
    };
    out.extend_from_slice(&ty.to_le_bytes());
    match value {
        Value::U8(v) => out.push(*v),
        Value::I8(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::U64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => out.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => out.push(u8::from(*v)),
        Value::Str(v) => put_str(out, v),
        Value::Array(v) => put_array(out, v),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let ty = match array {
        Array::U8(_) => tag::U8,
        Array::I8(_) => tag::I8,
        Array::U16(_) => tag::U16,
        Array::I16(_) => tag::I16,
        Array::U32(_) => tag::U32,
        Array::I32(_) => tag::I32,
        Array::U64(_) => tag::U64,
        Array::I64(_) => tag::I64,
        Array::F32(_) => tag::F32,
        Array::F64(_) => tag::F64,
        Array::Bool(_) => tag::BOOL,
        Array::Str(_) => tag::STR,
        Array::Nested { .. } => tag::ARRAY,
    };
    out.extend_from_slice(&ty.to_le_bytes());
    out.extend_from_slice(&array.len().to_le_bytes());
    match array {
        Array::U8(v) => out.extend_from_slice(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::U64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|v| v.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|&v| u8::from(v))),
        Array::Str(v) => v.iter().for_each(|v| put_str(out, v)),
        Array::Nested { .. } => (),
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{gguf::Gguf, value::StrArray};

    #[test]
    fn golden_bytes() {
        let mut writer = GgufWriter::new();
        writer.set("k", 7_u32).set("s", ["ab"].iter().collect::<StrArray>());
        writer.tensor("w", &[2], GgmlType::F32).unwrap();
        let bytes = writer.to_bytes(|_| vec![1.0, -2.0]).unwrap();
        let expect = [
            &b"GGUF\x03\0\0\0"[..],
            b"\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0",
            b"\x01\0\0\0\0\0\0\0k\x04\0\0\0\x07\0\0\0",
            b"\x01\0\0\0\0\0\0\0s\x09\0\0\0\x08\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0ab",
            b"\x01\0\0\0\0\0\0\0w\x01\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            &[0; 19],
            &1.0_f32.to_le_bytes(),
            &(-2.0_f32).to_le_bytes(),
            &[0; 24],
        ];
        assert_eq!(bytes, expect.concat());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let values = [
            Value::U8(1),
            Value::I8(-1),
            Value::U16(1),
            Value::I16(-1),
            Value::U32(1),
            Value::I32(-1),
            Value::U64(1),
            Value::I64(-1),
            Value::F32(0.5),
            Value::F64(0.25),
            Value::Bool(true),
            Value::Str("é".to_owned()),
            Value::Array(Array::U8(vec![1, 2])),
            Value::Array(Array::I8(vec![-1, 2])),
            Value::Array(Array::U16(vec![1, 2])),
            Value::Array(Array::I16(vec![-1, 2])),
            Value::Array(Array::U32(vec![1, 2])),
            Value::Array(Array::I32(vec![-1, 2])),
            Value::Array(Array::U64(vec![1, 2])),
            Value::Array(Array::I64(vec![-1, 2])),
            Value::Array(Array::F32(vec![0.5])),
            Value::Array(Array::F64(vec![0.5, 1.5, 2.5])),
            Value::Array(Array::Bool(vec![true, false])),
            Value::Array(Array::Str(["", "a", "bc"].iter().collect())),
            Value::Array(Array::U32(vec![])),
        ];
        let mut writer = GgufWriter::new();
        for (i, value) in values.iter().enumerate() {
            writer.set(&format!("k{i:02}"), value.clone());
        }
        writer.set("k00", values[0].clone());
        writer.tensor("a", &[3, 5], GgmlType::F16).unwrap().tensor("b", &[64, 2, 2], GgmlType::Q8_0).unwrap();
        let bytes = writer.to_bytes(|tensor| vec![0.5; tensor.count() as usize]).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        assert!(gguf.metadata().map(|(_, value)| value).eq(&values));
        let shapes: Vec<_> = gguf.tensors().iter().map(|t| (t.name.as_str(), &t.dims[..], t.ty, t.len)).collect();
        assert_eq!(shapes, [("a", &[3, 5][..], GgmlType::F16, 30), ("b", &[64, 2, 2], GgmlType::Q8_0, 272)]);
        assert_eq!(gguf.tensor_bytes(&bytes, gguf.tensor("a").unwrap()).unwrap(), [0, 0x38].repeat(15));
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let check = |result: Result<(), WriteError>, expect: &str| {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expect), "{error:?} does not contain {expect:?}");
        };
        let shape = |dims: &[u64], ty| GgufWriter::new().tensor("w", dims, ty).map(|_| ());
        check(shape(&[], GgmlType::F32), "[] is no shape of F32");
        check(shape(&[1, 0], GgmlType::F32), "[1, 0] is no shape");
        check(shape(&[33], GgmlType::Q8_0), "[33] is no shape of Q8_0");
        check(shape(&[32], GgmlType(999)), "unknown type 999");
        check(shape(&[u64::MAX, 2], GgmlType::F32), "is no shape");
        let mut writer = GgufWriter::new();
        writer.tensor("w", &[4], GgmlType::F32).unwrap();
        check(writer.to_bytes(|_| vec![0.0; 3]).map(|_| ()), "w has 16 bytes, 12 were given");
        check(writer.to_bytes(|_| vec![0.0; 5]).map(|_| ()), "more data than");
        let mut writer = GgufWriter::new();
        writer.set("k", Value::Array(Array::Nested { len: 1 }));
        check(writer.to_bytes(|_| vec![]).map(|_| ()), "k is an array of arrays");
    }
}
