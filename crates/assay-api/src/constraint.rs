//! What the output has to look like: `response_format`, and the `guided_*` fields that other servers know.

use crate::RequestError;
use crate::json::{Field, Fields};
use assay_types::{GRAMMAR_LEN_MAX, Grammar, GrammarKind};

/// Most choices of `guided_choice`.
const CHOICES_MAX: usize = 1024;
/// Longest name of a schema, in bytes.
const NAME_LEN_MAX: usize = 64;

/// A grammar, and the field it came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Constraint {
    /// Not compiled yet.
    pub grammar: Grammar,
    /// For errors.
    pub param: &'static str,
}

/// At most one of the fields that constrain.
pub(crate) fn constraint(fields: &mut Fields<'_>) -> Result<Option<Constraint>, RequestError> {
    let mut found: Option<Constraint> = None;
    let readers: [(&'static str, Reader); 5] = [
        ("response_format", response_format),
        ("guided_json", |field| guided_json(field).map(|grammar| Some((grammar, "guided_json")))),
        ("guided_regex", |field| text(field, GrammarKind::Regex).map(|grammar| Some((grammar, "guided_regex")))),
        ("guided_grammar", |field| text(field, GrammarKind::Lark).map(|grammar| Some((grammar, "guided_grammar")))),
        ("guided_choice", |field| guided_choice(field).map(|grammar| Some((grammar, "guided_choice")))),
    ];
    for (name, read) in readers {
        let Some(field) = fields.take(name) else { continue };
        let Some((grammar, param)) = read(&field)? else { continue };
        if let Some(other) = &found {
            return Err(field.refuse(format!("'{}' constrains the output already", other.param)));
        }
        found = Some(Constraint { grammar, param });
    }
    Ok(found)
}

type Reader = fn(&Field<'_>) -> Result<Option<(Grammar, &'static str)>, RequestError>;

/// A schema as it was sent: the order of its properties is that of the output.
pub(crate) fn schema(field: &Field<'_>) -> Result<Grammar, RequestError> {
    field.object()?;
    bounded(field, Grammar::new(GrammarKind::JsonSchema, field.json()))
}

fn response_format(field: &Field<'_>) -> Result<Option<(Grammar, &'static str)>, RequestError> {
    let mut fields = field.object()?;
    let kind = fields.require("type")?;
    match kind.string()?.as_str() {
        "text" => Ok(None),
        "json_object" => {
            Ok(Some((Grammar::new(GrammarKind::JsonSchema, r#"{"type":"object"}"#), "response_format.type")))
        }
        "json_schema" => {
            let mut inner = fields.require("json_schema")?.object()?;
            let name = inner.require("name")?;
            if !(1..=NAME_LEN_MAX).contains(&name.string()?.len()) {
                return Err(name.refuse(format!("expected a name of 1 to {NAME_LEN_MAX} bytes")));
            }
            let grammar = schema(&inner.require("schema")?)?;
            Ok(Some((grammar, "response_format.json_schema.schema")))
        }
        _ => Err(kind.refuse("expected one of text, json_object, json_schema")),
    }
}

/// An object, or its text.
fn guided_json(field: &Field<'_>) -> Result<Grammar, RequestError> {
    if field.is_string() { text(field, GrammarKind::JsonSchema) } else { schema(field) }
}

fn guided_choice(field: &Field<'_>) -> Result<Grammar, RequestError> {
    let items = field.array("an array of strings")?;
    if items.is_empty() || items.len() > CHOICES_MAX {
        return Err(field.refuse(format!("expected 1 to {CHOICES_MAX} strings, got {}", items.len())));
    }
    let mut choices = Vec::with_capacity(items.len());
    for item in &items {
        let choice = item.string()?;
        if choice.is_empty() {
            return Err(item.refuse("the string is empty"));
        }
        choices.push(escaped(&choice));
    }
    bounded(field, Grammar::new(GrammarKind::Regex, choices.join("|")))
}

/// A regular expression of exactly this text.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if r"\.+*?()|[]{}^$#&-~/".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn text(field: &Field<'_>, kind: GrammarKind) -> Result<Grammar, RequestError> {
    bounded(field, Grammar::new(kind, field.string()?))
}

fn bounded(field: &Field<'_>, grammar: Grammar) -> Result<Grammar, RequestError> {
    match grammar.text.len() {
        1..=GRAMMAR_LEN_MAX => Ok(grammar),
        len => Err(field.refuse(format!("expected 1 to {GRAMMAR_LEN_MAX} bytes, got {len}"))),
    }
}
