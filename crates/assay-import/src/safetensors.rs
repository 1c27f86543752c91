//! The header of a safetensors file: names, types, shapes and places of tensors. Holds no tensor data.
//!
//! ```text
//! u64 n, little endian | n bytes of JSON, an object of {name: {dtype, shape, data_offsets: [begin, end]}} | data
//! ```
//! Like the format's own library, this refuses data that no tensor owns and data that two own. Memory: at most about
//! three times the header, whose length is bounded.

use std::fmt;

use crate::json::shown;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Longest header in bytes. Published ones have 100 bytes a tensor.
const HEADER_LEN_MAX: u64 = 16 << 20;
/// Tensors of a file; the largest published models have several thousand.
const TENSORS_MAX: usize = 32_768;
/// Sizes of a shape.
const DIMS_MAX: usize = 8;
/// Bytes of a tensor's name.
const NAME_LEN_MAX: usize = 256;
/// What the header says about the whole file.
const METADATA: &str = "__metadata__";

/// The tensors of one file, sorted by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Safetensors {
    tensors: Vec<SafeTensor>,
}

/// One tensor's type, shape and place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SafeTensor {
    /// Name, unique in the file.
    pub name: String,
    /// Type of its values.
    pub dtype: Dtype,
    /// Sizes, slowest-varying first: a weight matrix is `[rows, k]`. None for a single value.
    pub shape: Vec<u64>,
    /// First byte of the data, counted from the start of the file.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

/// Type of a tensor's values.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the format's names")]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// A type that this release does not read; its tensors have a place but no checked size.
    Other,
}

/// What is wrong with a safetensors file.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// It ends before its header does.
    #[error("not a safetensors file: a header of {header} bytes is announced, the file has {file} in all")]
    Truncated {
        /// Bytes the header needs, its length field aside.
        header: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// A header above the limit.
    #[error("the header has {header} bytes, at most {max} are allowed", max = HEADER_LEN_MAX)]
    HeaderLength {
        /// Bytes announced.
        header: u64,
    },
    /// A header that is not the JSON it should be.
    #[error("header: {reason}")]
    Header {
        /// What the parser said.
        reason: String,
    },
    /// A tensor that contradicts itself, the file or another one.
    #[error("tensor {name:?}: {reason}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Data that belongs to no tensor.
    #[error("bytes {from} to {to} of the data belong to no tensor")]
    Hole {
        /// First of them, counted from the end of the header.
        from: u64,
        /// One past the last.
        to: u64,
    },
}

impl Safetensors {
    /// Parses the header of `bytes`, a whole file.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Safetensors, SafetensorsError> {
        let file = bytes.len() as u64;
        let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(SafetensorsError::Truncated { header: 0, file });
        };
        let header = u64::from_le_bytes(*length);
        if header > rest.len() as u64 {
            return Err(SafetensorsError::Truncated { header, file });
        }
        if header > HEADER_LEN_MAX {
            return Err(SafetensorsError::HeaderLength { header });
        }
        // Bounded by the file, so both fit.
        let (json, data) = rest.split_at(header as usize);
        let parsed: Header = serde_json::from_slice(json)
            .map_err(|error| SafetensorsError::Header { reason: shown(&error.to_string()) })?;
        let mut tensors = Vec::with_capacity(parsed.0.len());
        for (name, entry) in parsed.0 {
            tensors.push(entry.check(name, data.len() as u64)?);
        }
        check_places(&mut tensors, data.len() as u64)?;
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        if let Some([first, _]) = tensors.array_windows().find(|[a, b]| a.name == b.name) {
            return Err(SafetensorsError::Tensor { name: first.name.clone(), reason: "it is there twice".to_owned() });
        }
        for tensor in &mut tensors {
            (tensor.start, tensor.end) = (tensor.start + 8 + header, tensor.end + 8 + header);
        }
        Ok(Safetensors { tensors })
    }

    /// Every tensor, sorted by name.
    #[must_use]
    pub fn tensors(&self) -> &[SafeTensor] {
        &self.tensors
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&SafeTensor> {
        let at = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()?;
        self.tensors.get(at)
    }
}

impl SafeTensor {
    /// Its data in `bytes`, the file that was parsed; `None` if that is another, shorter one.
    #[must_use]
    pub fn data<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        bytes.get(usize::try_from(self.start).ok()?..usize::try_from(self.end).ok()?)
    }
}

impl Dtype {
    fn from_name(name: &str) -> Dtype {
        match name {
            "F64" => Dtype::F64,
            "F32" => Dtype::F32,
            "F16" => Dtype::F16,
            "BF16" => Dtype::BF16,
            "I64" => Dtype::I64,
            "I32" => Dtype::I32,
            "I16" => Dtype::I16,
            "I8" => Dtype::I8,
            "U64" => Dtype::U64,
            "U32" => Dtype::U32,
            "U16" => Dtype::U16,
            "U8" => Dtype::U8,
            "BOOL" => Dtype::Bool,
            _ => Dtype::Other,
        }
    }

    /// Bytes of a value, if the type is known.
    #[must_use]
    pub fn bytes(self) -> Option<u64> {
        match self {
            Dtype::F64 | Dtype::I64 | Dtype::U64 => Some(8),
            Dtype::F32 | Dtype::I32 | Dtype::U32 => Some(4),
            Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::U16 => Some(2),
            Dtype::I8 | Dtype::U8 | Dtype::Bool => Some(1),
            Dtype::Other => None,
        }
    }
}

/// Every byte of the data belongs to exactly one tensor.
fn check_places(tensors: &mut [SafeTensor], data_len: u64) -> Result<(), SafetensorsError> {
    tensors.sort_unstable_by_key(|tensor| (tensor.start, tensor.end));
    let mut at = 0;
    for tensor in tensors.iter() {
        if tensor.start < at {
            let reason = format!("its data starts at {}, where another one's still goes on", tensor.start);
            return Err(SafetensorsError::Tensor { name: tensor.name.clone(), reason });
        }
        if tensor.start > at {
            return Err(SafetensorsError::Hole { from: at, to: tensor.start });
        }
        at = tensor.end;
    }
    if at < data_len {
        return Err(SafetensorsError::Hole { from: at, to: data_len });
    }
    Ok(())
}

/// The header's tensors in its order; a name may still be there twice.
struct Header(Vec<(String, Entry)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(deserialize_with = "dtype")]
    dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Entry {
    fn check(self, name: String, data_len: u64) -> Result<SafeTensor, SafetensorsError> {
        let Entry { dtype, shape, data_offsets: (start, end) } = self;
        let fail = |reason: String| Err(SafetensorsError::Tensor { name: name.clone(), reason });
        if start > end || end > data_len {
            return fail(format!("its data is at {start} to {end}, the file has {data_len} bytes of data"));
        }
        let count = shape.iter().try_fold(1_u64, |count, &dim| count.checked_mul(dim));
        if let Some(bytes) = dtype.bytes() {
            match count.and_then(|count| count.checked_mul(bytes)) {
                Some(expected) if expected == end - start => {}
                Some(expected) => {
                    return fail(format!("its shape {shape:?} needs {expected} bytes, it has {}", end - start));
                }
                None => return fail(format!("its shape {shape:?} is too large")),
            }
        }
        Ok(SafeTensor { name, dtype, shape, start, end })
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if name.len() > NAME_LEN_MAX || tensors.len() == TENSORS_MAX {
                return Err(de::Error::custom(format_args!(
                    "at most {TENSORS_MAX} tensors with names of {NAME_LEN_MAX} bytes are allowed"
                )));
            }
            tensors.push((name, map.next_value()?));
        }
        Ok(Header(tensors))
    }
}

fn dtype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dtype, D::Error> {
    struct Name;
    impl Visitor<'_> for Name {
        type Value = Dtype;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the name of a type")
        }

        fn visit_str<E: de::Error>(self, name: &str) -> Result<Dtype, E> {
            Ok(Dtype::from_name(name))
        }
    }
    deserializer.deserialize_str(Name)
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
    struct Dims;
    impl<'de> Visitor<'de> for Dims {
        type Value = Vec<u64>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {DIMS_MAX} sizes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<u64>, A::Error> {
            let mut dims = Vec::new();
            while let Some(dim) = seq.next_element()? {
                if dims.len() == DIMS_MAX {
                    return Err(de::Error::custom(format_args!("a shape has at most {DIMS_MAX} sizes")));
                }
                dims.push(dim);
            }
            Ok(dims)
        }
    }
    deserializer.deserialize_seq(Dims)
}
