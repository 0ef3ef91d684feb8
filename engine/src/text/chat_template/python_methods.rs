//! Methods of Python's strings and lists that templates call, beyond minijinja's `pycompat`.
//!
//! Deliberately absent: methods that mutate a value, and those of bytes.

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::MAX_OUTPUT_BYTES;
use super::builtins::centered;

/// Methods that pycompat lacks or implements differently; otherwise pycompat's.
pub(super) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        if let Some(found) = text_method(text, name, args) {
            return found;
        }
    } else if value.kind() == ValueKind::Seq && name == "index" {
        let (wanted,): (Value,) = from_args(args)?;
        let found = value.try_iter()?.position(|item| item == wanted);
        return found.map(Value::from).ok_or_else(|| not_found("list"));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// `None` if the method is pycompat's.
fn text_method(text: &str, name: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    let is_named = args.last().is_some_and(Value::is_kwargs);
    Some(match name {
        "removeprefix" | "removesuffix" | "partition" | "rpartition" => of_a_part(text, name, args),
        "index" | "rindex" => search(text, name, args),
        "find" | "rfind" | "startswith" | "endswith" if args.len() > 1 => search(text, name, args),
        "split" if is_named => split(text, args).map(Value::from),
        "rsplit" => rsplit(text, args).map(Value::from),
        "zfill" | "ljust" | "rjust" | "center" => padded(text, name, args),
        "expandtabs" => expandtabs(text, args),
        "title" => Ok(Value::from(titled(text))),
        "swapcase" => {
            let swapped = text.chars().map(|c| {
                if c.is_uppercase() {
                    c.to_lowercase().collect::<String>()
                } else {
                    c.to_uppercase().collect()
                }
            });
            Ok(Value::from(swapped.collect::<String>()))
        }
        "casefold" => Ok(Value::from(text.to_lowercase().replace('ß', "ss"))),
        "isdecimal" => {
            let is_decimal = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
            Ok(Value::from(is_decimal))
        }
        "isidentifier" => {
            let is_of_name = |c: char| c.is_alphanumeric() || c == '_';
            let starts = text.starts_with(|c: char| c.is_alphabetic() || c == '_');
            Ok(Value::from(starts && text.chars().all(is_of_name)))
        }
        "istitle" => {
            let has_letters = text.chars().any(|c| c.is_uppercase() || c.is_lowercase());
            Ok(Value::from(has_letters && titled(text) == text))
        }
        _ => return None,
    })
}

fn not_found(kind: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("it is not in the {kind}"),
    )
}

fn of_a_part(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (part,): (&str,) = from_args(args)?;
    let found = match name {
        "removeprefix" => return Ok(Value::from(text.strip_prefix(part).unwrap_or(text))),
        "removesuffix" => return Ok(Value::from(text.strip_suffix(part).unwrap_or(text))),
        "rpartition" => text.rfind(part),
        _ => text.find(part),
    };
    let parts = match found {
        Some(at) => [&text[..at], part, &text[at + part.len()..]],
        None if name == "rpartition" => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// Methods that search within a range, counted in characters.
fn search(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (part, start, end): (Value, Option<i64>, Option<i64>) = from_args(args)?;
    let n_chars = text.chars().count() as i64;
    let place = |at: i64| {
        at.saturating_add(if at < 0 { n_chars } else { 0 })
            .clamp(0, n_chars)
    };
    let (start, end) = (place(start.unwrap_or(0)), place(end.unwrap_or(n_chars)));
    let within: String = text
        .chars()
        .skip(start as usize)
        .take((end - start).max(0) as usize)
        .collect();
    let parts: Vec<String> = match part.kind() {
        ValueKind::Seq => part.try_iter()?.map(|part| part.to_string()).collect(),
        _ => vec![part.to_string()],
    };
    let any = |holds: &dyn Fn(&str) -> bool| Ok(Value::from(parts.iter().any(|p| holds(p))));
    let found = match name {
        "startswith" => return any(&|part| within.starts_with(part)),
        "endswith" => return any(&|part| within.ends_with(part)),
        "find" | "index" => parts.first().and_then(|part| within.find(part.as_str())),
        _ => parts.first().and_then(|part| within.rfind(part.as_str())),
    };
    match found {
        Some(at) => Ok(Value::from(start + within[..at].chars().count() as i64)),
        None if name.ends_with("index") => Err(not_found("text")),
        None => Ok(Value::from(-1)),
    }
}

/// `sep` and `maxsplit` of `split` and `rsplit`; `None` splits at white space, without limit.
fn split_arguments(args: &[Value]) -> Result<(Option<String>, usize), Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let separator = match separator {
        Some(separator) => Some(separator),
        None => named.get::<Option<Value>>("sep")?,
    };
    let most = most.or(named.get("maxsplit")?).unwrap_or(-1);
    named.assert_all_used()?;
    let separator = separator.filter(|separator| !separator.is_none());
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    Ok((separator.map(|separator| separator.to_string()), most))
}

fn split(text: &str, args: &[Value]) -> Result<Vec<String>, Error> {
    let (separator, most) = split_arguments(args)?;
    if let Some(separator) = separator {
        let parts = text.splitn(most.saturating_add(1), separator.as_str());
        return Ok(parts.map(str::to_owned).collect());
    }
    let mut rest = text.trim_start();
    let mut parts = Vec::new();
    while !rest.is_empty() && parts.len() < most {
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        parts.push(rest[..end].to_owned());
        rest = rest[end..].trim_start();
    }
    if !rest.is_empty() {
        parts.push(rest.to_owned());
    }
    Ok(parts)
}

fn rsplit(text: &str, args: &[Value]) -> Result<Vec<String>, Error> {
    let (separator, most) = split_arguments(args)?;
    let mut parts: Vec<String> = Vec::new();
    if let Some(separator) = separator {
        let from_the_end = text.rsplitn(most.saturating_add(1), separator.as_str());
        parts.extend(from_the_end.map(str::to_owned));
    } else {
        let mut rest = text.trim_end();
        while !rest.is_empty() && parts.len() < most {
            let last = rest.rsplit(char::is_whitespace).next().unwrap_or(rest);
            parts.push(last.to_owned());
            rest = rest[..rest.len() - last.len()].trim_end();
        }
        if !rest.is_empty() {
            parts.push(rest.to_owned());
        }
    }
    parts.reverse();
    Ok(parts)
}

/// The output of one method is bounded like that of a template.
fn check_width(width: usize) -> Result<(), Error> {
    if width <= MAX_OUTPUT_BYTES {
        return Ok(());
    }
    let message = format!("a width of {width}, the limit is {MAX_OUTPUT_BYTES}");
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn padded(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (usize, Option<char>) = from_args(args)?;
    check_width(width)?;
    let fill = fill.unwrap_or(if name == "zfill" { '0' } else { ' ' });
    let n = width.saturating_sub(text.chars().count());
    let fills: String = std::iter::repeat_n(fill, n).collect();
    Ok(Value::from(match name {
        "ljust" => text.to_owned() + &fills,
        "rjust" => fills + text,
        "center" => centered(text, width, fill),
        _ => {
            let n_sign = usize::from(text.starts_with(['-', '+']));
            let (sign, digits) = text.split_at(n_sign);
            format!("{sign}{fills}{digits}")
        }
    }))
}

fn expandtabs(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (width,): (Option<usize>,) = from_args(args)?;
    let width = width.unwrap_or(8);
    check_width(width.saturating_mul(1 + text.matches('\t').count()))?;
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        if c == '\t' {
            let n = if width == 0 {
                0
            } else {
                width - column % width
            };
            out.extend(std::iter::repeat_n(' ', n));
            column += n;
        } else {
            out.push(c);
            column = if c == '\n' || c == '\r' {
                0
            } else {
                column + 1
            };
        }
    }
    Ok(Value::from(out))
}

/// Capitalises each letter that follows a non-letter.
fn titled(text: &str) -> String {
    let mut follows_letter = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if follows_letter {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        follows_letter = c.is_alphabetic();
    }
    out
}
