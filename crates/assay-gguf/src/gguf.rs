//! A parsed GGUF file: typed metadata and where each tensor lies. Holds no tensor data.

use crate::{
    ggml::GgmlType,
    parse,
    value::{Array, StrArray, Value},
};

/// Metadata and tensor directory of one file.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub(crate) version: u32,
    pub(crate) alignment: u32,
    pub(crate) data_start: u64,
    pub(crate) file_len: u64,
    /// Sorted by key, keys unique.
    pub(crate) metadata: Vec<(String, Value)>,
    /// In the file's order.
    pub(crate) tensors: Vec<TensorInfo>,
    /// Indexes into `tensors`, sorted by name.
    pub(crate) by_name: Vec<u32>,
}

/// One tensor's place and shape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TensorInfo {
    /// Name, unique in the file, 1 to 64 bytes.
    pub name: String,
    /// 1 to 4 sizes, none zero, fastest-varying first: a weight matrix `[rows, k]` has `dims == [k, rows]`.
    pub dims: Vec<u64>,
    /// Format of the data.
    pub ty: GgmlType,
    /// First byte of the data, counted from the start of the file.
    pub offset: u64,
    /// Bytes of data; 0 if the format is unknown.
    pub len: u64,
}

/// What is wrong with a GGUF file.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum GgufError {
    /// The first four bytes are not `GGUF`.
    #[error("not a GGUF file: it starts with {found:02x?}")]
    NotGguf {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// Only versions 2 and 3, little endian, are read.
    #[error("GGUF version {version} is not supported (2 and 3 are{})", if *.big_endian { "; this file is big endian" } else { "" })]
    Version {
        /// The version as read.
        version: u32,
        /// Whether it would be a known version with its bytes swapped.
        big_endian: bool,
    },
    /// A size in the file reaches past its end.
    #[error("{field} at byte {offset}: needs {needed} bytes, {available} are left")]
    Truncated {
        /// What was being read.
        field: String,
        /// Where it starts.
        offset: u64,
        /// Bytes that it needs at least.
        needed: u64,
        /// Bytes between `offset` and the end of the file.
        available: u64,
    },
    /// A field holds what the format does not allow.
    #[error("{field} at byte {offset}: {reason}")]
    Invalid {
        /// What was being read.
        field: String,
        /// Where it starts.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A key that must be there is not.
    #[error("metadata key {key} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key's value has another type than needed, or does not fit it.
    #[error("metadata key {key} is {found}, expected {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// Type in the file.
        found: &'static str,
        /// Type needed.
        expected: &'static str,
    },
    /// A tensor of a format that has no known size.
    #[error("tensor {tensor} has {ty}, which this release does not know")]
    UnknownTensorType {
        /// Name of the tensor.
        tensor: String,
        /// The number in the file.
        ty: GgmlType,
    },
    /// The bytes given are not those that were parsed.
    #[error("tensor {tensor} ends at byte {end}, the data given has {len}")]
    WrongBytes {
        /// Name of the tensor.
        tensor: String,
        /// Where it should end.
        end: u64,
        /// Bytes given.
        len: u64,
    },
}

impl Gguf {
    /// Parses the header, metadata and tensor directory of `bytes`, a whole file, versions 2 and 3, little endian.
    ///
    /// Allocates at most twice the bytes of the file and 1 MiB, whatever the file declares.
    ///
    /// # Errors
    /// The first thing that is wrong, with field and offset.
    pub fn parse(bytes: &[u8]) -> Result<Self, GgufError> {
        parse::parse(bytes)
    }

    /// Value of `key` as it is in the file.
    #[must_use]
    pub fn value(&self, key: &str) -> Option<&Value> {
        let at = self.metadata.binary_search_by(|(k, _)| k.as_str().cmp(key)).ok()?;
        self.metadata.get(at).map(|(_, value)| value)
    }

    /// Value of `key` as `T`, `None` if the key is absent. Integers of another width are converted if they fit.
    ///
    /// # Errors
    /// [`GgufError::WrongType`] if it is there and is no `T`.
    pub fn get<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<Option<T>, GgufError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match T::from_value(value) {
            Some(value) => Ok(Some(value)),
            None => Err(GgufError::WrongType { key: key.to_owned(), found: value.type_name(), expected: T::NAME }),
        }
    }

    /// Value of `key` as `T`.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`] or [`GgufError::WrongType`].
    pub fn require<'a, T: FromValue<'a>>(&'a self, key: &str) -> Result<T, GgufError> {
        self.get(key)?.ok_or_else(|| GgufError::MissingKey { key: key.to_owned() })
    }

    /// [`Self::get`] for a string.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.get(key)
    }

    /// [`Self::get`] for a `u32`.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.get(key)
    }

    /// [`Self::get`] for an `f32`; an `f64` is rounded to the nearest.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.get(key)
    }

    /// [`Self::get`] for a `bool`.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.get(key)
    }

    /// [`Self::get`] for an array of strings.
    ///
    /// # Errors
    /// [`GgufError::WrongType`].
    pub fn array_str(&self, key: &str) -> Result<Option<&StrArray>, GgufError> {
        self.get(key)
    }

    /// Every key and value, sorted by key.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Every tensor, in the file's order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let named = |&i: &u32| self.tensors.get(i as usize);
        let at = self.by_name.binary_search_by(|i| named(i).map_or("", |t| t.name.as_str()).cmp(name)).ok()?;
        self.by_name.get(at).and_then(named)
    }

    /// Data of `tensor` in `bytes`, the same file that was parsed.
    ///
    /// # Errors
    /// [`GgufError::UnknownTensorType`], or [`GgufError::WrongBytes`] if `bytes` is shorter than the parsed file.
    pub fn tensor_bytes<'a>(&self, bytes: &'a [u8], tensor: &TensorInfo) -> Result<&'a [u8], GgufError> {
        if tensor.ty.name().is_none() {
            return Err(GgufError::UnknownTensorType { tensor: tensor.name.clone(), ty: tensor.ty });
        }
        let end = tensor.offset.saturating_add(tensor.len);
        let range = usize::try_from(tensor.offset).ok().zip(usize::try_from(end).ok());
        range.and_then(|(start, end)| bytes.get(start..end)).ok_or_else(|| GgufError::WrongBytes {
            tensor: tensor.name.clone(),
            end,
            len: bytes.len() as u64,
        })
    }

    /// GGUF version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Alignment of tensor data in bytes, a power of two.
    #[must_use]
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// First byte after the tensor directory and its padding.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Bytes of the file that was parsed.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// `general.architecture`: the prefix of the model's own keys.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`] or [`GgufError::WrongType`].
    pub fn architecture(&self) -> Result<&str, GgufError> {
        self.require("general.architecture")
    }

    /// `{architecture}.context_length`: positions the model was made for.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`] or [`GgufError::WrongType`].
    pub fn context_length(&self) -> Result<u32, GgufError> {
        self.require(&format!("{}.context_length", self.architecture()?))
    }

    /// `general.name`, if it is there and a string.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.get("general.name").ok().flatten()
    }

    /// `general.license`, if it is there and a string.
    #[must_use]
    pub fn license(&self) -> Option<&str> {
        self.get("general.license").ok().flatten()
    }
}

/// Types that a metadata value can be read as.
pub trait FromValue<'a>: Sized {
    /// Name in messages.
    const NAME: &'static str;

    /// The value, or `None` if it has another type or does not fit.
    fn from_value(value: &'a Value) -> Option<Self>;
}

macro_rules! from_integer {
    ($($ty:ident),*) => {$(
        impl FromValue<'_> for $ty {
            const NAME: &'static str = stringify!($ty);

            fn from_value(value: &Value) -> Option<Self> {
                match *value {
                    Value::U8(v) => v.try_into().ok(),
                    Value::I8(v) => v.try_into().ok(),
                    Value::U16(v) => v.try_into().ok(),
                    Value::I16(v) => v.try_into().ok(),
                    Value::U32(v) => v.try_into().ok(),
                    Value::I32(v) => v.try_into().ok(),
                    Value::U64(v) => v.try_into().ok(),
                    Value::I64(v) => v.try_into().ok(),
                    _ => None,
                }
            }
        }
    )*};
}
from_integer!(u32, u64, i32);

impl FromValue<'_> for f32 {
    const NAME: &'static str = "f32";

    #[expect(clippy::cast_possible_truncation, reason = "f64 metadata is rounded to the nearest f32, as documented")]
    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as Self),
            _ => None,
        }
    }
}

impl FromValue<'_> for bool {
    const NAME: &'static str = "bool";

    fn from_value(value: &Value) -> Option<Self> {
        match *value {
            Value::Bool(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a str {
    const NAME: &'static str = "string";

    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Str(v) => Some(v),
            _ => None,
        }
    }
}

impl<'a> FromValue<'a> for &'a Array {
    const NAME: &'static str = "array";

    fn from_value(value: &'a Value) -> Option<Self> {
        match value {
            Value::Array(v) => Some(v),
            _ => None,
        }
    }
}

macro_rules! from_array {
    ($($ty:ty, $variant:ident, $name:literal;)*) => {$(
        impl<'a> FromValue<'a> for $ty {
            const NAME: &'static str = $name;

            fn from_value(value: &'a Value) -> Option<Self> {
                match value {
                    Value::Array(Array::$variant(v)) => Some(v),
                    _ => None,
                }
            }
        }
    )*};
}
from_array! {
    &'a StrArray, Str, "array of strings";
    &'a [f32], F32, "array of f32";
    &'a [i32], I32, "array of i32";
    &'a [u32], U32, "array of u32";
}
