//! `assay: {"verify": ..}`: what is done so that the answer can be relied on.

use crate::RequestError;
use crate::json::Fields;

/// What is done with an answer besides signing it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// It may be audited: a share of all answers is replayed by somebody else who sees prompt and answer.
    #[default]
    Exact,
    /// Nobody else sees it.
    None,
}

/// Reads the object; what it does not know goes to `ignored`.
pub(crate) fn verify(fields: &mut Fields<'_>, ignored: &mut Vec<String>) -> Result<Verify, RequestError> {
    const EXPECTED: &str = "expected \"exact\" or \"none\"";
    let Some(field) = fields.take("assay") else { return Ok(Verify::default()) };
    let mut inner = field.object()?;
    let verify = match inner.take("verify") {
        None => Verify::default(),
        Some(field) if field.is_string() => match field.string()?.as_str() {
            "exact" => Verify::Exact,
            "none" => Verify::None,
            _ => return Err(field.refuse(EXPECTED)),
        },
        Some(field) => return Err(field.refuse(EXPECTED)),
    };
    ignored.extend(inner.rest());
    Ok(verify)
}
