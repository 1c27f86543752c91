//! A JSON file of a model folder, and values in it by their path; every error names file and key.

use serde_json::Value;

use crate::ImportError;

/// Longest piece of a file's text in a message.
const SHOWN_LEN_MAX: usize = 160;

/// What a message may repeat of a text that a file decides: not all of a long one, and no control characters.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(SHOWN_LEN_MAX)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect();
    if text.chars().nth(SHOWN_LEN_MAX).is_some() {
        shown.push_str("..");
    }
    shown
}

/// One parsed file.
#[derive(Debug)]
pub(crate) struct Json {
    file: String,
    root: Value,
}

impl Json {
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Json, ImportError> {
        match serde_json::from_slice(bytes) {
            Ok(root) => Ok(Json { file: file.to_owned(), root }),
            Err(error) => Err(ImportError::Json { file: file.to_owned(), reason: shown(&error.to_string()) }),
        }
    }

    /// The value at `path`, keys with dots between; `None` also for `null`.
    pub fn get(&self, path: &str) -> Option<&Value> {
        let value = path.split('.').try_fold(&self.root, |value, key| value.get(key))?;
        (!value.is_null()).then_some(value)
    }

    pub fn root(&self) -> &Value {
        &self.root
    }

    pub fn require(&self, path: &str) -> Result<&Value, ImportError> {
        self.get(path).ok_or_else(|| ImportError::MissingKey { file: self.file.clone(), key: path.to_owned() })
    }

    pub fn str(&self, path: &str) -> Result<Option<&str>, ImportError> {
        self.read(path, "a text is expected", Value::as_str)
    }

    pub fn bool(&self, path: &str) -> Result<Option<bool>, ImportError> {
        self.read(path, "true or false is expected", Value::as_bool)
    }

    pub fn f64(&self, path: &str) -> Result<Option<f64>, ImportError> {
        self.read(path, "a number is expected", Value::as_f64)
    }

    /// A count from 0 to 2^31 - 1.
    pub fn count(&self, path: &str) -> Result<Option<u32>, ImportError> {
        let read = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= i32::MAX as u32);
        self.read(path, "a whole number from 0 to 2147483647 is expected", read)
    }

    pub fn require_count(&self, path: &str) -> Result<u32, ImportError> {
        self.require(path)?;
        Ok(self.count(path)?.unwrap_or_default())
    }

    /// Fails unless the value at `path` is absent or `expected`.
    pub fn only(&self, path: &str, expected: &Value) -> Result<(), ImportError> {
        match self.get(path) {
            Some(found) if found != expected => Err(self.unexpected(path, format!("only {expected} is supported"))),
            _ => Ok(()),
        }
    }

    /// Fails unless the value at `path` is absent or the number 1.
    pub fn only_one(&self, path: &str) -> Result<(), ImportError> {
        match self.f64(path)? {
            None | Some(1.0) => Ok(()),
            Some(_) => Err(self.unexpected(path, "only 1 is supported")),
        }
    }

    /// The error that the value at `path` is not what was `expected`.
    pub fn unexpected(&self, path: &str, expected: impl Into<String>) -> ImportError {
        let found = shown(&self.get(path).map_or("missing".to_owned(), Value::to_string));
        ImportError::Value { file: self.file.clone(), key: shown(path), found, expected: expected.into() }
    }

    fn read<'a, T>(
        &'a self,
        path: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ImportError> {
        match self.get(path) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.unexpected(path, expected)),
        }
    }
}
