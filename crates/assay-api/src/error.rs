//! Why a request body is not a request, and the error object that clients of the OpenAI API expect.

use serde::{Deserialize, Serialize};

/// What is wrong with a request body.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RequestError {
    /// Not JSON.
    #[error("the request body is not valid JSON: {reason}")]
    Syntax {
        /// What the parser found, with line and column.
        reason: String,
    },
    /// JSON, but not an object.
    #[error("the request body must be a JSON object, not {found}")]
    NotAnObject {
        /// What it is.
        found: &'static str,
    },
    /// A field that has to be there is not.
    #[error("missing required parameter: '{param}'")]
    Missing {
        /// Its path.
        param: String,
    },
    /// A field of the wrong type or outside its range.
    #[error("invalid value for '{param}': {reason}")]
    Invalid {
        /// Its path, as in `messages[2].content`.
        param: String,
        /// What is allowed and what was found.
        reason: String,
    },
    /// A field of the OpenAI API that would change the answer and is not implemented.
    #[error("unsupported parameter: '{param}': {reason}")]
    Unsupported {
        /// Its path.
        param: String,
        /// What is possible instead.
        reason: String,
    },
}

impl RequestError {
    /// Path of the field that is wrong, `None` where the body as a whole is.
    #[must_use]
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Syntax { .. } | Self::NotAnObject { .. } => None,
            Self::Missing { param } | Self::Invalid { param, .. } | Self::Unsupported { param, .. } => Some(param),
        }
    }

    /// The `code` of the error object.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "invalid_json",
            Self::NotAnObject { .. } => "invalid_type",
            Self::Missing { .. } => "missing_required_parameter",
            Self::Invalid { .. } => "invalid_value",
            Self::Unsupported { .. } => "unsupported_parameter",
        }
    }

    /// A field has a value that it cannot have.
    #[must_use]
    pub fn invalid(param: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Invalid { param: param.into(), reason: reason.into() }
    }

    pub(crate) fn unsupported(param: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Unsupported { param: param.into(), reason: reason.into() }
    }
}

/// The body of every error reply: `{"error": {..}}`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// An error as the OpenAI API gives it; `param` and `code` are present as `null` where they do not apply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorObject {
    /// For a person.
    pub message: String,
    /// Class: `invalid_request_error`, `server_error`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// The field that is wrong.
    pub param: Option<String>,
    /// For a program.
    pub code: Option<String>,
}
