//! JSON objects taken apart field by field, so that each error names the field it is about.
//!
//! A field's value stays unparsed text until it is asked for: an ignored field costs one scan, and a wrong type is
//! reported with the field's own path instead of a byte offset.

use crate::RequestError;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// Most fields in one object that is not a table.
const FIELDS_MAX: usize = 256;
/// Most entries of any object.
const ENTRIES_MAX: usize = 1024;

/// The fields of one object, and where it stands in the body.
pub(crate) struct Fields<'a> {
    /// Prefix of the fields' paths: empty, or as in `messages[2].`.
    path: String,
    /// Not yet taken.
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
}

/// One field's value and its path.
#[derive(Clone)]
pub(crate) struct Field<'a> {
    pub(crate) path: String,
    raw: &'a RawValue,
}

impl<'a> Fields<'a> {
    /// Takes the whole body apart.
    pub(crate) fn parse_body(body: &'a [u8]) -> Result<Self, RequestError> {
        let raw: &RawValue =
            serde_json::from_slice(body).map_err(|e| RequestError::Syntax { reason: e.to_string() })?;
        let found = kind_of(raw);
        if found != "an object" {
            return Err(RequestError::NotAnObject { found });
        }
        let entries: Entries<'a> =
            serde_json::from_str(raw.get()).map_err(|e| RequestError::Syntax { reason: e.to_string() })?;
        Ok(Self { path: String::new(), entries: entries.0 })
    }

    /// Removes the field; `None` where it is missing or `null`, which mean the same in this API.
    pub(crate) fn take(&mut self, name: &str) -> Option<Field<'a>> {
        let index = self.entries.iter().position(|(key, _)| key == name)?;
        let (_, raw) = self.entries.swap_remove(index);
        (raw.get() != "null").then(|| Field { path: format!("{}{name}", self.path), raw })
    }

    /// The value as it was written, which stays; `None` as in [`Self::take`].
    pub(crate) fn peek(&self, name: &str) -> Option<&'a str> {
        let found = self.entries.iter().find(|(key, raw)| key == name && raw.get() != "null");
        found.map(|(_, raw)| raw.get())
    }

    /// Like [`Self::take`], for a field that has to be there.
    pub(crate) fn require(&mut self, name: &str) -> Result<Field<'a>, RequestError> {
        self.take(name).ok_or_else(|| self.missing(name))
    }

    /// The error for a field that has to be there.
    pub(crate) fn missing(&self, name: &str) -> RequestError {
        RequestError::Missing { param: format!("{}{name}", self.path) }
    }

    /// Paths of the fields that nobody took and that are not `null`, sorted.
    pub(crate) fn rest(self) -> Vec<String> {
        let mut names: Vec<String> = self
            .entries
            .into_iter()
            .filter(|(_, raw)| raw.get() != "null")
            .map(|(name, _)| format!("{}{name}", self.path))
            .collect();
        names.sort();
        names
    }
}

impl<'a> Field<'a> {
    pub(crate) fn wrong(&self, expected: &str) -> RequestError {
        RequestError::invalid(&self.path, format!("expected {expected}, got {}", kind_of(self.raw)))
    }

    /// An error about the value rather than its type.
    pub(crate) fn refuse(&self, reason: impl Into<String>) -> RequestError {
        RequestError::invalid(&self.path, reason)
    }

    pub(crate) fn unsupported(&self, reason: impl Into<String>) -> RequestError {
        RequestError::unsupported(&self.path, reason)
    }

    pub(crate) fn is_array(&self) -> bool {
        kind_of(self.raw) == "an array"
    }

    pub(crate) fn is_string(&self) -> bool {
        kind_of(self.raw) == "a string"
    }

    pub(crate) fn is_integer(&self) -> bool {
        serde_json::from_str::<i64>(self.raw.get()).is_ok()
    }

    /// Whether the value is the one that `json` writes, whatever the spacing and order of keys.
    pub(crate) fn equals(&self, json: &str) -> bool {
        let parse = |text| serde_json::from_str::<serde_json::Value>(text).ok();
        parse(self.raw.get()).is_some_and(|value| Some(value) == parse(json))
    }

    /// The value as it was written.
    pub(crate) fn json(&self) -> &'a str {
        self.raw.get()
    }

    pub(crate) fn bool(&self) -> Result<bool, RequestError> {
        serde_json::from_str(self.raw.get()).map_err(|_| self.wrong("true or false"))
    }

    pub(crate) fn string(&self) -> Result<String, RequestError> {
        if !self.is_string() {
            return Err(self.wrong("a string"));
        }
        // The text was scanned as JSON already; what can still fail is a lone surrogate in an escape.
        serde_json::from_str(self.raw.get()).map_err(|_| self.refuse("the string is not valid Unicode"))
    }

    /// An integer, with `expected` naming the range for the error.
    pub(crate) fn integer<T: serde::de::DeserializeOwned>(&self, expected: &str) -> Result<T, RequestError> {
        serde_json::from_str(self.raw.get()).map_err(|_| match kind_of(self.raw) {
            "a number" => self.refuse(format!("expected {expected}, got {}", shorten(self.raw.get()))),
            _ => self.wrong(expected),
        })
    }

    /// A finite number.
    pub(crate) fn number(&self, expected: &str) -> Result<f64, RequestError> {
        serde_json::from_str(self.raw.get()).map_err(|_| self.wrong(expected))
    }

    pub(crate) fn object(&self) -> Result<Fields<'a>, RequestError> {
        if kind_of(self.raw) != "an object" {
            return Err(self.wrong("an object"));
        }
        let entries: Entries<'a> = serde_json::from_str(self.raw.get()).map_err(|e| self.refuse(e.to_string()))?;
        Ok(Fields { path: format!("{}.", self.path), entries: entries.0 })
    }

    /// Keys and values of an object that is a table: at most `max`, at most [`ENTRIES_MAX`].
    pub(crate) fn entries(&self, max: usize) -> Result<Vec<(Cow<'a, str>, Field<'a>)>, RequestError> {
        if kind_of(self.raw) != "an object" {
            return Err(self.wrong("an object"));
        }
        let entries: Entries<'a, ENTRIES_MAX> =
            serde_json::from_str(self.raw.get()).map_err(|e| self.refuse(e.to_string()))?;
        if entries.0.len() > max {
            return Err(self.refuse(format!("at most {max} entries, got {}", entries.0.len())));
        }
        let field = |key: &str, raw| Field { path: format!("{}.{}", self.path, shorten(key)), raw };
        Ok(entries.0.into_iter().map(|(key, raw)| (key.clone(), field(&key, raw))).collect())
    }

    /// The items with paths as in `stop[1]`.
    pub(crate) fn array(&self, expected: &str) -> Result<Vec<Field<'a>>, RequestError> {
        if !self.is_array() {
            return Err(self.wrong(expected));
        }
        let items: Vec<&'a RawValue> = serde_json::from_str(self.raw.get()).map_err(|e| self.refuse(e.to_string()))?;
        let item = |(index, raw)| Field { path: format!("{}[{index}]", self.path), raw };
        Ok(items.into_iter().enumerate().map(item).collect())
    }

    /// An array of token ids, without a path for each of what may be a hundred thousand items.
    pub(crate) fn token_ids(&self) -> Result<Vec<u32>, RequestError> {
        serde_json::from_str(self.raw.get())
            .map_err(|_| self.refuse("expected an array of token ids (integers from 0 to 4294967295)"))
    }
}

/// `shorten` of a value that is quoted in a message: at most 32 characters.
fn shorten(text: &str) -> String {
    if text.chars().count() <= 32 { text.into() } else { text.chars().take(31).chain(['…']).collect() }
}

fn kind_of(raw: &RawValue) -> &'static str {
    match raw.get().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

struct Entries<'a, const MAX: usize = FIELDS_MAX>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de, const MAX: usize> Deserialize<'de> for Entries<'de, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor::<MAX>)
    }
}

struct EntriesVisitor<const MAX: usize>;

impl<'de, const MAX: usize> Visitor<'de> for EntriesVisitor<MAX> {
    type Value = Entries<'de, MAX>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::with_capacity(16);
        while let Some(key) = map.next_key::<Key<'de>>()? {
            if entries.len() == MAX {
                return Err(A::Error::custom(format_args!("more than {MAX} fields in one object")));
            }
            // Readers differ in which of two equal keys they take: a request must mean one thing.
            if entries.iter().any(|(other, _)| *other == key.0) {
                return Err(A::Error::custom(format_args!("duplicate field '{}'", shorten(&key.0))));
            }
            entries.push((key.0, map.next_value()?));
        }
        Ok(Entries(entries))
    }
}

/// Borrowed where the key has no escapes; `Cow`'s own implementation always copies.
struct Key<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl<'de> Visitor<'de> for KeyVisitor {
    type Value = Key<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Key(Cow::Owned(text.to_owned())))
    }
}
