//! `assay: {"verify": ..}`: what is done so that the answer can be relied on.

use crate::RequestError;
use crate::json::Fields;

/// Most providers for one answer.
const REDUNDANT_MAX: u32 = 8;

/// What is done with an answer besides signing it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    /// It may be audited: a share of all answers is replayed by somebody else who sees prompt and answer.
    #[default]
    Exact,
    /// Nobody else sees it.
    None,
    /// Providers of class tolerant may answer, too: with engines of their own, whose tokens nobody can re-derive.
    Tolerant,
    /// So many providers answer, and have to agree in every token.
    Redundant(u32),
}

/// Reads the object; what it does not know goes to `ignored`.
pub(crate) fn verify(fields: &mut Fields<'_>, ignored: &mut Vec<String>) -> Result<Verify, RequestError> {
    const EXPECTED: &str = "expected \"exact\", \"tolerant\", \"none\" or {\"redundant\": a number from 2 to 8}";
    let Some(field) = fields.take("assay") else { return Ok(Verify::default()) };
    let mut inner = field.object()?;
    let verify = match inner.take("verify") {
        None => Verify::default(),
        Some(field) if field.is_string() => match field.string()?.as_str() {
            "exact" => Verify::Exact,
            "none" => Verify::None,
            "tolerant" => Verify::Tolerant,
            _ => return Err(field.refuse(EXPECTED)),
        },
        Some(field) => {
            let mut which = field.object()?;
            let count = which.require("redundant")?;
            let providers = count.integer::<u32>("a number from 2 to 8")?;
            if !(2..=REDUNDANT_MAX).contains(&providers) {
                return Err(count.refuse("expected a number from 2 to 8"));
            }
            ignored.extend(which.rest());
            Verify::Redundant(providers)
        }
    };
    ignored.extend(inner.rest());
    Ok(verify)
}
