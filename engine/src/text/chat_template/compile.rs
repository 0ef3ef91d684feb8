//! Compiles a template's text to an environment with transformers' scope, and refuses what exceeds
//! the limits before anything is parsed.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value, escape_formatter};

use super::namespaces::shared_namespace;
use super::{FUEL, MAX_OUTPUT_BYTES, OverLimit, Refusal, builtins, python_methods};
use crate::text::python_format::{JsonStyle, float_text, json_dumps, strftime};

/// Limit for one template.
pub(super) const MAX_SOURCE_BYTES: usize = 128 << 10;
/// Limit for one tag: operators, brackets, names and texts. The compiler's time is quadratic in it.
pub(super) const MAX_TAG_TOKENS: usize = 4096;

/// An environment with these templates, by name.
pub(super) fn compile(sources: &[(&'static str, &str)]) -> Result<Environment<'static>, Error> {
    let mut environment = environment()?;
    for (name, source) in sources {
        check_limit(source.len(), "it has", "bytes", MAX_SOURCE_BYTES)?;
        let source = without_generation_tags(source);
        // Text that cannot be tokenized is not compiled either, so tokens after it do not count.
        let tokens: Vec<Token<'_>> = tokenize(&source, false, environment.syntax().clone())
            .map_while(Result::ok)
            .map(|(token, _)| token)
            .collect();
        let is_end = |token: &Token<'_>| matches!(token, Token::VariableEnd | Token::BlockEnd);
        let longest = tokens.split(is_end).map(<[_]>::len).max().unwrap_or(0);
        check_limit(longest, "one of its tags has", "tokens", MAX_TAG_TOKENS)?;
        if let Some(shared) = shared_namespace(&tokens) {
            let message = format!(
                "{shared} is used as a value; a namespace's name must be followed by an attribute, \
                 since one that contains itself could never be printed"
            );
            return Err(Error::new(ErrorKind::SyntaxError, message));
        }
        environment.add_template_owned(*name, source)?;
    }
    Ok(environment)
}

fn check_limit(n: usize, what: &str, unit: &str, limit: usize) -> Result<(), Error> {
    if n <= limit {
        return Ok(());
    }
    let message = format!("{what} {n} {unit}, the limit is {limit}");
    Err(Error::new(ErrorKind::SyntaxError, message))
}

fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()?,
    );
    environment.remove_global("debug");
    environment.remove_filter("pprint");
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_debug(false);
    environment.set_fuel(Some(FUEL));
    builtins::add_to(&mut environment);
    environment.set_unknown_method_callback(python_methods::method);
    environment.add_function("cycler", |items: Rest<Value>| {
        minijinja_contrib::globals::cycler(items.to_vec())
    });
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    // Also called for text captured by `{% set %}` blocks and macros, which is not part of the
    // output.
    environment.set_formatter(|out, state, value| {
        if value
            .as_str()
            .is_some_and(|text| text.len() > MAX_OUTPUT_BYTES)
        {
            return Err(Error::from(ErrorKind::WriteFailure).with_source(OverLimit));
        }
        if value.kind() == ValueKind::Number
            && !value.is_integer()
            && let Ok(number) = f64::try_from(value.clone())
        {
            return out.write_str(&float_text(number)).map_err(Error::from);
        }
        escape_formatter(out, state, value)
    });
    environment.add_filter("tojson", tojson);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message.clone())
                .with_source(Refusal(message)))
        },
    );
    environment.add_function("strftime_now", |format: &str| -> String {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        strftime(format, since.as_secs() as i64)
    });
    Ok(environment)
}

/// transformers' `tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    separators: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let pick = |positional: Option<Value>, name: &str| match positional {
        Some(value) => Ok(Some(value)),
        None => named.get::<Option<Value>>(name),
    };
    let ensure_ascii = pick(ensure_ascii, "ensure_ascii")?;
    let indent = pick(indent, "indent")?;
    let separators = pick(separators, "separators")?;
    let sort_keys = named.get::<Option<Value>>("sort_keys")?;
    named.assert_all_used()?;

    let mut style = JsonStyle {
        ensure_ascii: ensure_ascii.is_some_and(|v| v.is_true()),
        sort_keys: sort_keys.is_some_and(|v| v.is_true()),
        ..JsonStyle::default()
    };
    if let Some(indent) = indent.filter(|v| !v.is_none()) {
        style.indent = Some(match indent.kind() {
            ValueKind::String => indent.to_string(),
            ValueKind::Bool => " ".repeat(usize::from(indent.is_true())),
            _ => " ".repeat(i64::try_from(indent)?.clamp(0, 64) as usize),
        });
        ",".clone_into(&mut style.item_separator);
    }
    if let Some(separators) = separators.filter(|v| !v.is_none()) {
        style.item_separator = separators.get_item_by_index(0)?.to_string();
        style.key_separator = separators.get_item_by_index(1)?.to_string();
    }
    json_dumps(value, &style).map(Value::from)
}

/// `{% generation %}` … `{% endgeneration %}` become a condition that holds, with the same
/// whitespace control.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let n_tag = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(n_tag);
        let inner = tag.trim_start_matches("{%").trim_end_matches("%}");
        let name = inner.trim_matches(['-', '+']).trim();
        match name {
            "generation" => out.push_str(&tag.replacen(name, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(name, "endif", 1)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
