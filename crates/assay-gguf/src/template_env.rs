//! What a chat template can use: filters, tests and functions, none of which makes more than a few times its charged
//! operands, and the budget that charges go to.

use minijinja::{
    Environment, Error, ErrorKind, Output, State, Value, filters, functions, tests,
    value::{Kwargs, Rest, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Name of the function that charges its argument's size and returns it.
pub(crate) const CHARGE: &str = "__charge";
/// Name of the function that lets only numbers pass.
pub(crate) const NUMBER: &str = "__number";
/// Name of the function that reverses a text or list.
pub(crate) const REVERSED: &str = "__reversed";
/// Global that holds the budget of a rendering.
pub(crate) const MEMORY: &str = "__memory";
/// Filters that do the work of `join` and `replace` once it is charged.
const JOIN: &str = "__join";
const REPLACE: &str = "__replace";
/// A template that contains one of these is refused.
pub(crate) const RESERVED: [&str; 6] = [CHARGE, NUMBER, REVERSED, MEMORY, JOIN, REPLACE];

/// Deepest nesting of a value.
const DEPTH_MAX: u32 = 32;
/// Bytes that a value takes besides its text.
const VALUE_LEN: u64 = 32;
/// Widest indentation of one level in JSON.
const INDENT_MAX: usize = 8;
/// Macro calls and recursive loops inside each other.
const RECURSION_MAX: usize = 32;

/// The budget of a rendering is used up.
#[derive(Debug, thiserror::Error)]
#[error("the limit on memory is exceeded")]
pub(crate) struct OutOfMemory;

/// Adds the filters, tests and functions of chat templates.
pub(crate) fn install(env: &mut Environment<'static>) {
    env.set_recursion_limit(RECURSION_MAX);
    env.add_function(CHARGE, |state: &mut State, value: Value| -> Result<Value, Error> {
        charge(state, &value)?;
        Ok(value)
    });
    env.add_function(NUMBER, |value: Value| match value.is_number() {
        true => Ok(value),
        false => Err(Error::new(ErrorKind::InvalidOperation, "only numbers can be multiplied")),
    });
    env.add_function(REVERSED, |value: Value| match value.is_undefined() || value.is_none() {
        // As a slice of nothing is.
        true => Ok(Value::from(Vec::<Value>::new())),
        false => filters::reverse(&value),
    });
    env.set_formatter(|out: &mut Output, state: &mut State, value: &Value| {
        charge(state, value)?;
        if !value.is_undefined() {
            write!(out, "{value}").map_err(|_| Error::from(ErrorKind::WriteFailure))?;
        }
        Ok(())
    });
    env.set_unknown_method_callback(|state, value, method, args| {
        charge(state, value)?;
        args.iter().try_for_each(|arg| charge(state, arg))?;
        match method {
            "replace" => charge_replace(state, value, args)?,
            "join" => charge_join(state, args.first(), Some(value))?,
            "format" => charge_format(state, value, args)?,
            _ => (),
        }
        unknown_method_callback(state, value, method, args)
    });
    add_filters(env);
    env.add_filter("tojson", to_json);
    add_tests(env);
    env.add_function("range", functions::range);
    env.add_function("namespace", functions::namespace);
    env.add_function("dict", functions::dict);
}

fn add_filters(env: &mut Environment<'static>) {
    env.add_filter("lower", filters::lower);
    env.add_filter("upper", filters::upper);
    env.add_filter("title", filters::title);
    env.add_filter("capitalize", filters::capitalize);
    env.add_filter("length", filters::length);
    env.add_filter("count", filters::length);
    env.add_filter("dictsort", filters::dictsort);
    env.add_filter("items", filters::items);
    env.add_filter("reverse", filters::reverse);
    env.add_filter("trim", filters::trim);
    env.add_filter("split", filters::split);
    env.add_filter("default", filters::default);
    env.add_filter("d", filters::default);
    env.add_filter("round", filters::round);
    env.add_filter("abs", filters::abs);
    env.add_filter("int", filters::int);
    env.add_filter("float", filters::float);
    env.add_filter("first", filters::first);
    env.add_filter("last", filters::last);
    env.add_filter("min", filters::min);
    env.add_filter("max", filters::max);
    env.add_filter("list", filters::list);
    env.add_filter("string", filters::string);
    env.add_filter("bool", filters::bool);
    env.add_filter("safe", filters::safe);
    env.add_filter("select", filters::select);
    env.add_filter("reject", filters::reject);
    env.add_filter("selectattr", filters::selectattr);
    env.add_filter("rejectattr", filters::rejectattr);
    env.add_filter("unique", filters::unique);
    env.add_filter("join", |state: &mut State, value: Value, args: Rest<Value>| -> Result<Value, Error> {
        charge_join(state, Some(&value), args.first())?;
        state.apply_filter(JOIN, &[&[value], &args[..]].concat())
    });
    env.add_filter(JOIN, filters::join);
    env.add_filter("replace", |state: &mut State, value: Value, args: Rest<Value>| -> Result<Value, Error> {
        charge_replace(state, &value, &args)?;
        state.apply_filter(REPLACE, &[&[value], &args[..]].concat())
    });
    env.add_filter(REPLACE, filters::replace);
}

fn add_tests(env: &mut Environment<'static>) {
    env.add_test("defined", tests::is_defined);
    env.add_test("undefined", tests::is_undefined);
    env.add_test("none", tests::is_none);
    env.add_test("boolean", tests::is_boolean);
    env.add_test("odd", tests::is_odd);
    env.add_test("even", tests::is_even);
    env.add_test("divisibleby", tests::is_divisibleby);
    env.add_test("number", tests::is_number);
    env.add_test("integer", tests::is_integer);
    env.add_test("float", tests::is_float);
    env.add_test("string", tests::is_string);
    env.add_test("sequence", tests::is_sequence);
    // As in Jinja: none is not.
    env.add_test("iterable", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::String)
    });
    env.add_test("mapping", tests::is_mapping);
    env.add_test("startingwith", tests::is_startingwith);
    env.add_test("endingwith", tests::is_endingwith);
    env.add_test("eq", tests::is_eq);
    env.add_test("equalto", tests::is_eq);
    env.add_test("==", tests::is_eq);
    env.add_test("ne", tests::is_ne);
    env.add_test("!=", tests::is_ne);
    env.add_test("lt", tests::is_lt);
    env.add_test("le", tests::is_le);
    env.add_test("gt", tests::is_gt);
    env.add_test("ge", tests::is_ge);
    env.add_test("in", tests::is_in);
    env.add_test("true", tests::is_true);
    env.add_test("false", tests::is_false);
}

/// JSON as Python's `json.dumps(value, ensure_ascii=False, indent=indent)` writes it, which is what the templates'
/// models were trained on: a space behind every colon and, on one line, every comma.
fn to_json(state: &mut State, value: Value, indent: Option<usize>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = kwargs.get::<Option<usize>>("indent")?.or(indent).map(|indent| indent.min(INDENT_MAX));
    kwargs.assert_all_used()?;
    // Twice the text for escapes, and the indentation of each line.
    for _ in 0..2 + indent.map_or(0, |indent| indent * DEPTH_MAX as usize / 8) {
        charge(state, &value)?;
    }
    let mut out = String::new();
    put_json(&mut out, &value, indent, 0)?;
    Ok(out)
}

/// Depth and size were checked by [`charge`].
fn put_json(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => put_json_text(out, value.as_str().unwrap_or_default()),
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut is_empty = true;
            for item in value.try_iter()? {
                out.push_str(if is_empty { "" } else { comma });
                is_empty = false;
                line(out, depth + 1);
                put_json(out, &item, indent, depth + 1)?;
            }
            if !is_empty {
                line(out, depth);
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            let mut is_empty = true;
            for key in value.try_iter()? {
                out.push_str(if is_empty { "" } else { comma });
                is_empty = false;
                line(out, depth + 1);
                put_json_text(out, key.as_str().unwrap_or(&key.to_string()));
                out.push_str(": ");
                put_json(out, &value.get_item(&key)?, indent, depth + 1)?;
            }
            if !is_empty {
                line(out, depth);
            }
            out.push('}');
        }
        other => return Err(Error::new(ErrorKind::InvalidOperation, format!("{other} has no JSON form"))),
    }
    Ok(())
}

fn put_json_text(out: &mut String, text: &str) {
    // Escapes as Python does: quotes, backslashes and control characters, nothing else.
    out.push_str(&serde_json::Value::from(text).to_string());
}

/// Bytes that a rendering may still use.
struct Budget(u64);

impl Budget {
    fn take(&mut self, len: u64) -> Result<(), Error> {
        match self.0.checked_sub(len) {
            Some(left) => self.0 = left,
            None => return Err(Error::new(ErrorKind::InvalidOperation, "out of memory").with_source(OutOfMemory)),
        }
        Ok(())
    }

    /// Walks `value`, stopping as soon as the budget is used up.
    fn take_value(&mut self, value: &Value, depth: u32) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "values nest too deep"));
        }
        self.take(VALUE_LEN + value.as_str().map_or(0, |text| text.len() as u64))?;
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.take_value(&item, depth + 1)?;
                }
            }
            ValueKind::Map => {
                for key in value.try_iter()? {
                    self.take_value(&value.get_item(&key)?, depth + 1)?;
                    self.take_value(&key, depth + 1)?;
                }
            }
            _ => (),
        }
        Ok(())
    }
}

fn budget<'a>(state: &'a mut State) -> &'a mut Budget {
    let memory = state.lookup(MEMORY).and_then(|v| u64::try_from(v).ok()).unwrap_or_default();
    state.get_or_insert_extension_with(|| Budget(memory))
}

fn charge(state: &mut State, value: &Value) -> Result<(), Error> {
    budget(state).take_value(value, 0)
}

/// The result of replacing: every place may become the new text.
fn charge_replace(state: &mut State, text: &Value, args: &[Value]) -> Result<(), Error> {
    let (Some(text), [Some(old), Some(new)]) = (text.as_str(), [0, 1].map(|i| args.get(i).and_then(Value::as_str)))
    else {
        return Ok(());
    };
    let places = text.matches(old).count() as u64;
    budget(state).take(places.saturating_mul(new.len() as u64))
}

/// The result of joining: a separator between any two.
fn charge_join(state: &mut State, items: Option<&Value>, separator: Option<&Value>) -> Result<(), Error> {
    let separator = separator.and_then(Value::as_str).map_or(0, |s| s.len() as u64);
    let count = items.and_then(Value::len).unwrap_or_default() as u64;
    budget(state).take(count.saturating_mul(separator))
}

/// The result of `format` with plain `{}` and `{0}`: every place may become all arguments.
fn charge_format(state: &mut State, text: &Value, args: &[Value]) -> Result<(), Error> {
    let text = text.as_str().unwrap_or_default();
    // A specification may pad to any width, and the library panics on names that are not ASCII.
    if text.contains([':', '!']) || !has_plain_fields(text) {
        return Err(Error::new(ErrorKind::InvalidOperation, "only plain fields like {} and {0} can be formatted"));
    }
    for _ in text.matches('{') {
        args.iter().try_for_each(|arg| charge(state, arg))?;
    }
    Ok(())
}

/// Whether every field of a text to be formatted has a plain name, or none.
fn has_plain_fields(text: &str) -> bool {
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('{') {
        if let Some(escaped) = after.strip_prefix('{') {
            rest = escaped;
            continue;
        }
        let Some((name, behind)) = after.split_once('}') else { return false };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return false;
        }
        rest = behind;
    }
    true
}
