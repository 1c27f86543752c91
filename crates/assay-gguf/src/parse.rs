//! Reading of the GGUF header: the only place that meets raw bytes.
//!
//! Invariant: a count or length from the file is compared with the bytes that are left, at the smallest size its items
//! can have, before memory is taken for it. Memory stays within twice the file plus 1 MiB because
//! every item is kept in at most the space it has in the file, except directory entries, whose number is bounded.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

use crate::{
    ggml::GgmlType,
    gguf::{Gguf, GgufError, TensorInfo},
    value::{Array, StrArray, Value, tag},
};

/// Metadata entries of a file; real files have about 50. An entry takes more memory than its 13 bytes in the file.
const METADATA_COUNT_MAX: u64 = 4096;
/// Tensors of a file; the largest published models have several thousand.
const TENSOR_COUNT_MAX: u64 = 32_768;
/// The GGUF specification allows keys of 2^16 - 1 bytes.
const KEY_LEN_MAX: u64 = 65_535;
/// The GGUF specification allows tensor names of 64 bytes.
const TENSOR_NAME_LEN_MAX: u64 = 64;
const DIMS_MAX: u32 = 4;
const NESTING_MAX: u32 = 4;
const ALIGNMENT_DEFAULT: u32 = 32;
const ALIGNMENT_MAX: u32 = 65_536;
/// Bytes of the smallest entry: key length, type, a one-byte value.
const METADATA_LEN_MIN: u64 = 13;
/// Bytes of the smallest entry: name length, one name byte, number of dimensions, one dimension, type, offset.
const TENSOR_LEN_MIN: u64 = 33;

pub(crate) fn parse(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let mut reader = Reader { bytes, at: 0, item: String::new() };
    let (version, tensor_count, metadata_count) = reader.header()?;

    let mut metadata = Vec::with_capacity(metadata_count);
    for index in 0..metadata_count {
        metadata.push(reader.metadata_entry(index)?);
    }
    metadata.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
    if let Some(pair) = metadata.windows(2).find(|w| matches!(w, [(a, ..), (b, ..)] if a == b)) {
        let at = pair.iter().map(|(.., at)| *at).max().unwrap_or_default();
        let key = pair.first().map_or("", |(key, ..)| key.as_str());
        return Err(invalid(key, at, "this key is there twice"));
    }
    let alignment = alignment(&metadata)?;
    let metadata: Vec<(String, Value)> = metadata.into_iter().map(|(key, value, _)| (key, value)).collect();

    let mut tensors = Vec::with_capacity(tensor_count);
    let mut places = Vec::with_capacity(tensor_count);
    for index in 0..tensor_count {
        let (tensor, at) = reader.tensor_entry(index)?;
        tensors.push(tensor);
        places.push(at);
    }
    let directory_end = reader.at;
    let data_start = align_up(directory_end, u64::from(alignment))
        .ok_or_else(|| invalid("tensor data", directory_end, "its start does not fit 64 bits"))?;
    let file_len = bytes.len() as u64;
    place_tensors(&mut tensors, &places, data_start, u64::from(alignment), file_len)?;
    let by_name = index_by_name(&tensors, &places)?;
    Ok(Gguf { version, alignment, data_start, file_len, metadata, tensors, by_name })
}

fn alignment(metadata: &[(String, Value, u64)]) -> Result<u32, GgufError> {
    let key = "general.alignment";
    let Ok(at) = metadata.binary_search_by(|(k, ..)| k.as_str().cmp(key)) else { return Ok(ALIGNMENT_DEFAULT) };
    match metadata.get(at) {
        Some(&(_, Value::U32(value), _)) if value.is_power_of_two() && (8..=ALIGNMENT_MAX).contains(&value) => {
            Ok(value)
        }
        Some((_, Value::U32(value), at)) => {
            Err(invalid(key, *at, &format!("{value} is not a power of two from 8 to {ALIGNMENT_MAX}")))
        }
        Some((_, value, at)) => Err(invalid(key, *at, &format!("it is {}, expected u32", value.type_name()))),
        None => Ok(ALIGNMENT_DEFAULT),
    }
}

/// Turns offsets within the data section into offsets within the file; checks bounds, alignment and overlap.
fn place_tensors(
    tensors: &mut [TensorInfo],
    places: &[u64],
    data_start: u64,
    alignment: u64,
    file_len: u64,
) -> Result<(), GgufError> {
    for (tensor, &place) in tensors.iter_mut().zip(places) {
        let field = || format!("offset of tensor {}", tensor.name);
        if tensor.offset.checked_rem(alignment) != Some(0) {
            let reason = format!("{} is not a multiple of the alignment {alignment}", tensor.offset);
            return Err(invalid(&field(), place, &reason));
        }
        let start = tensor.offset.checked_add(data_start);
        let Some((start, end)) = start.and_then(|s| Some((s, s.checked_add(tensor.len)?))) else {
            return Err(invalid(&field(), place, &format!("{} does not fit 64 bits", tensor.offset)));
        };
        if end > file_len {
            let reason = format!("its data is at bytes {start}..{end}, the file has {file_len}");
            return Err(invalid(&field(), place, &reason));
        }
        tensor.offset = start;
    }
    let mut order: Vec<u32> = (0..).take(tensors.len()).collect();
    let get = |i: &u32| tensors.get(*i as usize);
    order.sort_unstable_by_key(|i| get(i).map(|t| t.offset));
    for pair in order.windows(2) {
        let [first, second] = pair else { continue };
        let (Some(a), Some(b)) = (get(first), get(second)) else { continue };
        if a.offset.saturating_add(a.len) > b.offset {
            let place = places.get(*second as usize).copied().unwrap_or_default();
            return Err(invalid(
                &format!("tensor {}", b.name),
                place,
                &format!("its data overlaps {}", shown(&a.name)),
            ));
        }
    }
    Ok(())
}

fn index_by_name(tensors: &[TensorInfo], places: &[u64]) -> Result<Vec<u32>, GgufError> {
    let mut order: Vec<u32> = (0..).take(tensors.len()).collect();
    let name = |i: &u32| tensors.get(*i as usize).map_or("", |t| t.name.as_str());
    order.sort_unstable_by(|a, b| name(a).cmp(name(b)));
    match order.windows(2).find(|w| matches!(w, [a, b] if name(a) == name(b))) {
        None => Ok(order),
        Some(pair) => {
            let last = pair.iter().max().copied().unwrap_or_default();
            let place = places.get(last as usize).copied().unwrap_or_default();
            Err(invalid(&format!("tensor {}", name(&last)), place, "this name is there twice"))
        }
    }
}

fn align_up(value: u64, alignment: u64) -> Option<u64> {
    value.checked_next_multiple_of(alignment)
}

/// Longest piece of a name from the file that goes into a message.
const SHOWN_LEN_MAX: usize = 80;

/// A name or value from a file as a message may show it: no control characters, and not all of a long one.
#[must_use]
pub fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(SHOWN_LEN_MAX).flat_map(char::escape_debug).collect();
    if name.chars().nth(SHOWN_LEN_MAX).is_some() {
        shown.push_str("..");
    }
    shown
}

fn invalid(field: &str, offset: u64, reason: &str) -> GgufError {
    GgufError::Invalid { field: shown(field), offset, reason: reason.to_owned() }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: u64,
    /// Entry being read, for messages.
    item: String,
}

impl<'a> Reader<'a> {
    fn header(&mut self) -> Result<(u32, usize, usize), GgufError> {
        let magic = self.bytes.get(..4).unwrap_or(self.bytes);
        if magic != b"GGUF" {
            return Err(GgufError::NotGguf { found: magic.to_vec() });
        }
        self.at = 4;
        let version = self.u32("version")?;
        if version != 2 && version != 3 {
            let big_endian = matches!(version.swap_bytes(), 1..=3);
            return Err(GgufError::Version { version, big_endian });
        }
        let tensor_count = self.count("number of tensors", TENSOR_COUNT_MAX, TENSOR_LEN_MIN)?;
        let metadata_count = self.count("number of metadata entries", METADATA_COUNT_MAX, METADATA_LEN_MIN)?;
        Ok((version, tensor_count, metadata_count))
    }

    /// A key, its value and where the value starts.
    fn metadata_entry(&mut self, index: usize) -> Result<(String, Value, u64), GgufError> {
        self.item = format!("metadata entry {index}");
        let key = self.short_str("key", KEY_LEN_MAX)?.to_owned();
        self.item = shown(&key);
        let ty = self.u32("type")?;
        let at = self.at;
        let value = match ty {
            tag::U8 => Value::U8(self.u8("value")?),
            tag::I8 => Value::I8(i8::from_le_bytes(self.fixed("value")?)),
            tag::U16 => Value::U16(u16::from_le_bytes(self.fixed("value")?)),
            tag::I16 => Value::I16(i16::from_le_bytes(self.fixed("value")?)),
            tag::U32 => Value::U32(self.u32("value")?),
            tag::I32 => Value::I32(i32::from_le_bytes(self.fixed("value")?)),
            tag::U64 => Value::U64(self.u64("value")?),
            tag::I64 => Value::I64(i64::from_le_bytes(self.fixed("value")?)),
            tag::F32 => Value::F32(f32::from_le_bytes(self.fixed("value")?)),
            tag::F64 => Value::F64(f64::from_le_bytes(self.fixed("value")?)),
            tag::BOOL => Value::Bool(self.bool()?),
            tag::STR => Value::Str(self.str("value")?.to_owned()),
            tag::ARRAY => Value::Array(self.array()?),
            other => return Err(self.invalid("type", at.saturating_sub(4), &format!("{other} is no value type"))),
        };
        Ok((key, value, at))
    }

    fn array(&mut self) -> Result<Array, GgufError> {
        let at = self.at;
        let ty = self.u32("element type")?;
        Ok(match ty {
            tag::U8 => Array::U8(self.elements(u8::from_le_bytes)?),
            tag::I8 => Array::I8(self.elements(i8::from_le_bytes)?),
            tag::U16 => Array::U16(self.elements(u16::from_le_bytes)?),
            tag::I16 => Array::I16(self.elements(i16::from_le_bytes)?),
            tag::U32 => Array::U32(self.elements(u32::from_le_bytes)?),
            tag::I32 => Array::I32(self.elements(i32::from_le_bytes)?),
            tag::U64 => Array::U64(self.elements(u64::from_le_bytes)?),
            tag::I64 => Array::I64(self.elements(i64::from_le_bytes)?),
            tag::F32 => Array::F32(self.elements(f32::from_le_bytes)?),
            tag::F64 => Array::F64(self.elements(f64::from_le_bytes)?),
            tag::BOOL => Array::Bool(self.bools()?),
            tag::STR => Array::Str(self.strings()?),
            tag::ARRAY => {
                let len = self.u64("length")?;
                self.skip_elements(tag::ARRAY, len, 1)?;
                Array::Nested { len }
            }
            other => return Err(self.invalid("element type", at, &format!("{other} is no value type"))),
        })
    }

    fn elements<const N: usize, T>(&mut self, from: fn([u8; N]) -> T) -> Result<Vec<T>, GgufError> {
        let len = self.u64("length")?;
        let data = self.take("elements", len.saturating_mul(N as u64))?;
        Ok(data.as_chunks::<N>().0.iter().map(|&chunk| from(chunk)).collect())
    }

    fn bools(&mut self) -> Result<Vec<bool>, GgufError> {
        let len = self.u64("length")?;
        let at = self.at;
        let data = self.take("elements", len)?;
        if data.iter().any(|&b| b > 1) {
            return Err(self.invalid("elements", at, "a boolean is neither 0 nor 1"));
        }
        Ok(data.iter().map(|&b| b == 1).collect())
    }

    /// Two passes: the first learns the sizes, so that the second allocates exactly.
    fn strings(&mut self) -> Result<StrArray, GgufError> {
        let count = self.count("length", u64::MAX, 8)?;
        let start = self.at;
        let mut text_len = 0_usize;
        for _ in 0..count {
            text_len = text_len.saturating_add(self.sized("element")?.len());
        }
        self.at = start;
        let mut array = StrArray::with_capacity(count, text_len);
        for _ in 0..count {
            array.push(self.str("element")?);
        }
        Ok(array)
    }

    /// Passes over an array's elements, checking them as if they were kept.
    fn skip_elements(&mut self, ty: u32, len: u64, depth: u32) -> Result<(), GgufError> {
        let size = match ty {
            tag::U8 | tag::I8 | tag::BOOL => 1,
            tag::U16 | tag::I16 => 2,
            tag::U32 | tag::I32 | tag::F32 => 4,
            tag::U64 | tag::I64 | tag::F64 => 8,
            tag::STR => {
                for _ in 0..len {
                    self.str("element")?;
                }
                return Ok(());
            }
            tag::ARRAY if depth >= NESTING_MAX => {
                return Err(self.invalid("elements", self.at, &format!("arrays nest deeper than {NESTING_MAX}")));
            }
            tag::ARRAY => {
                for _ in 0..len {
                    let inner = self.u32("element type")?;
                    let len = self.u64("length")?;
                    self.skip_elements(inner, len, depth.saturating_add(1))?;
                }
                return Ok(());
            }
            other => return Err(self.invalid("element type", self.at, &format!("{other} is no value type"))),
        };
        self.take("elements", len.saturating_mul(size)).map(|_| ())
    }

    /// A tensor whose offset is still relative to the data section, and where its entry starts.
    fn tensor_entry(&mut self, index: usize) -> Result<(TensorInfo, u64), GgufError> {
        self.item = format!("tensor {index}");
        let start = self.at;
        let name = self.short_str("name", TENSOR_NAME_LEN_MAX)?.to_owned();
        if name.is_empty() {
            return Err(self.invalid("name", start, "it is empty"));
        }
        self.item = format!("tensor {}", shown(&name));
        let at = self.at;
        let n_dims = self.u32("number of dimensions")?;
        if !(1..=DIMS_MAX).contains(&n_dims) {
            return Err(self.invalid("number of dimensions", at, &format!("{n_dims} is not 1 to {DIMS_MAX}")));
        }
        let dims_at = self.at;
        let mut dims = Vec::with_capacity(n_dims as usize);
        for _ in 0..n_dims {
            dims.push(self.u64("dimensions")?);
        }
        let ty = GgmlType(self.u32("type")?);
        let len = self.data_len(&dims, ty, dims_at)?;
        let offset = self.u64("offset")?;
        Ok((TensorInfo { name, dims, ty, offset, len }, start))
    }

    /// Bytes of data of a tensor, 0 for an unknown format.
    fn data_len(&self, dims: &[u64], ty: GgmlType, at: u64) -> Result<u64, GgufError> {
        let count = dims.iter().try_fold(1_u64, |count, &dim| count.checked_mul(dim));
        let count = match count {
            Some(0) => return Err(self.invalid("dimensions", at, &format!("{dims:?} has a zero"))),
            Some(count) if i64::try_from(count).is_ok() => count,
            _ => return Err(self.invalid("dimensions", at, &format!("{dims:?} overflows 63 bits"))),
        };
        let (Some(block_len), Some(block_bytes)) = (ty.block_len(), ty.block_bytes()) else { return Ok(0) };
        let row = dims.first().copied().unwrap_or_default();
        if row.checked_rem(block_len) != Some(0) {
            let reason = format!("{row} is not a multiple of the {block_len} values in a {ty} block");
            return Err(self.invalid("dimensions", at, &reason));
        }
        let blocks = count.checked_div(block_len).unwrap_or_default();
        let len = blocks.checked_mul(block_bytes);
        len.ok_or_else(|| self.invalid("dimensions", at, &format!("{dims:?} of {ty} overflow 64 bits of bytes")))
    }

    /// A number of items of at least `item_len_min` bytes each.
    fn count(&mut self, field: &str, max: u64, item_len_min: u64) -> Result<usize, GgufError> {
        let at = self.at;
        let count = self.u64(field)?;
        if count > max {
            return Err(self.invalid(field, at, &format!("{count} is more than {max}")));
        }
        let needed = count.saturating_mul(item_len_min);
        if needed > self.left() {
            return Err(self.truncated(field, needed));
        }
        usize::try_from(count).map_err(|_| self.invalid(field, at, "it does not fit this machine's addresses"))
    }

    fn short_str(&mut self, field: &str, len_max: u64) -> Result<&'a str, GgufError> {
        let at = self.at;
        let text = self.str(field)?;
        if text.len() as u64 > len_max {
            return Err(self.invalid(field, at, &format!("{} bytes, at most {len_max} are allowed", text.len())));
        }
        Ok(text)
    }

    fn str(&mut self, field: &str) -> Result<&'a str, GgufError> {
        let at = self.at;
        let data = self.sized(field)?;
        std::str::from_utf8(data).map_err(|_| self.invalid(field, at, "it is not UTF-8"))
    }

    fn sized(&mut self, field: &str) -> Result<&'a [u8], GgufError> {
        let len = self.u64(field)?;
        self.take(field, len)
    }

    fn bool(&mut self) -> Result<bool, GgufError> {
        let at = self.at;
        match self.u8("value")? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.invalid("value", at, &format!("{other} is neither 0 nor 1"))),
        }
    }

    fn u8(&mut self, field: &str) -> Result<u8, GgufError> {
        self.fixed(field).map(u8::from_le_bytes)
    }

    fn u32(&mut self, field: &str) -> Result<u32, GgufError> {
        self.fixed(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &str) -> Result<u64, GgufError> {
        self.fixed(field).map(u64::from_le_bytes)
    }

    fn fixed<const N: usize>(&mut self, field: &str) -> Result<[u8; N], GgufError> {
        let data = self.take(field, N as u64)?;
        data.first_chunk().copied().ok_or_else(|| self.truncated(field, N as u64))
    }

    fn take(&mut self, field: &str, len: u64) -> Result<&'a [u8], GgufError> {
        let end = self.at.checked_add(len);
        let range = end.and_then(|end| Some(usize::try_from(self.at).ok()?..usize::try_from(end).ok()?));
        match (end, range.and_then(|range| self.bytes.get(range))) {
            (Some(end), Some(data)) => {
                self.at = end;
                Ok(data)
            }
            _ => Err(self.truncated(field, len)),
        }
    }

    fn left(&self) -> u64 {
        (self.bytes.len() as u64).saturating_sub(self.at)
    }

    fn field(&self, field: &str) -> String {
        if self.item.is_empty() { field.to_owned() } else { format!("{} {field}", self.item) }
    }

    fn truncated(&self, field: &str, needed: u64) -> GgufError {
        GgufError::Truncated { field: self.field(field), offset: self.at, needed, available: self.left() }
    }

    fn invalid(&self, field: &str, offset: u64, reason: &str) -> GgufError {
        GgufError::Invalid { field: self.field(field), offset, reason: reason.to_owned() }
    }
}
