//! Templates that could put a namespace into itself are refused before they are compiled.
//!
//! A namespace is the only thing in a template that can be changed after it was made, so it is the
//! only one that can come to contain itself: `{% set ns.a = [ns] %}`. Whatever walks over such a
//! value (printing, `tojson`, a comparison) never ends and takes the process's stack with it,
//! which no fuel counts. So a namespace must be made by `{% set name = namespace(…) %}`, and its
//! name used for its attributes alone; that is all that the templates of published models do.
//! Deliberately absent: following where a value goes.

/// What a template may not do with a namespace, if it does: the name at fault.
pub fn shared_namespace(source: &str) -> Option<String> {
    let tokens = tokens(source);
    let at = |i: usize| tokens.get(i);
    let before = |i: usize, back: usize| i.checked_sub(back).and_then(|i| tokens.get(i));
    let is_word = |token: Option<&Token>, text: &str| matches!(token, Some(Token::Word(word)) if word == text);
    let is_mark = |token: Option<&Token>, mark: char| matches!(token, Some(Token::Mark(found)) if *found == mark);
    // `name=`: a target or an argument's label, not a value.
    let is_label = |i: usize| is_mark(at(i + 1), '=') && !is_mark(at(i + 2), '=');
    let mut names: Vec<&str> = Vec::new();
    for i in 0..tokens.len() {
        if !is_word(at(i), "namespace") || is_mark(before(i, 1), '.') || is_label(i) {
            continue;
        }
        match before(i, 2) {
            Some(Token::Word(name))
                if is_mark(before(i, 1), '=')
                    && is_word(before(i, 3), "set")
                    && is_mark(at(i + 1), '(') =>
            {
                names.push(name);
            }
            _ => return Some("namespace".to_owned()),
        }
    }
    tokens.iter().enumerate().find_map(|(i, token)| {
        let Token::Word(word) = token else {
            return None;
        };
        let is_value = names.contains(&word.as_str())
            && !is_mark(before(i, 1), '.')
            && !is_mark(at(i + 1), '.')
            && !is_mark(at(i + 1), '[')
            && !is_label(i);
        is_value.then(|| word.clone())
    })
}

#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    /// Any other character but white space; a quotation mark for a whole string, and a line feed
    /// where a tag ends.
    Mark(char),
}

/// What is between `{{` or `{%` and its end.
fn tokens(source: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(start) = rest.find('{') {
        let tag = &rest[start..];
        let end = match tag.as_bytes().get(1) {
            Some(b'{') => "}}",
            Some(b'%') => "%}",
            Some(b'#') => {
                rest = tag.find("#}").map_or("", |end| &tag[end + 2..]);
                continue;
            }
            _ => {
                rest = &tag[1..];
                continue;
            }
        };
        rest = code(&tag[2..], end, &mut tokens);
        tokens.push(Token::Mark('\n'));
    }
    tokens
}

/// Reads one tag; returns what is behind it.
fn code<'a>(source: &'a str, end: &str, tokens: &mut Vec<Token>) -> &'a str {
    let mut rest = source;
    loop {
        let Some(first) = rest.chars().next() else {
            return rest;
        };
        if let Some(behind) = rest.strip_prefix(end) {
            return behind;
        }
        let n_word = rest
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let n_taken = if n_word > 0 {
            tokens.push(Token::Word(rest[..n_word].to_owned()));
            n_word
        } else if first == '"' || first == '\'' {
            tokens.push(Token::Mark(first));
            n_string(rest, first)
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Mark(first));
            }
            first.len_utf8()
        };
        rest = &rest[n_taken..];
    }
}

/// Bytes of the string at the start, its quotation marks included.
fn n_string(source: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (i, character) in source.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if character == '\\' {
            is_escaped = true;
        } else if character == quote {
            return i + 1;
        }
    }
    source.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_of_a_namespace_are_free() {
        for source in [
            "{% set ns = namespace(a=0, b='ns') %}{% set ns.a = ns.a + 1 %}{{ ns['b'] }} ns {# ns #}",
            "{%- set ns=namespace(found=false)-%}{% if not ns.found %}{{ f(ns=1) }}{{ x.ns }}{% endif %}",
            "namespace {{ 'namespace(' ~ \"it's ns\" }}{% set namespace = 3 %}",
            "{% set ns = namespace() %}{{ 'a\\'ns' }}{ ns }",
        ] {
            assert_eq!(shared_namespace(source), None, "{source}");
        }
    }

    #[test]
    fn a_namespace_is_no_value() {
        for (source, name) in [
            (
                "{% set ns = namespace(a=0) %}{% set ns.a = [ns] %}{{ ns.a }}",
                "ns",
            ),
            (
                "{% set ns = namespace() %}{% set x = ns %}{% set ns.a = x %}",
                "ns",
            ),
            ("{% set ns = namespace() %}{{ ns == ns }}", "ns"),
            ("{% set x = [namespace()] %}", "namespace"),
            ("{% set ns = namespace(a=namespace()) %}", "namespace"),
            (
                "{% set make = namespace %}{% set ns = make() %}",
                "namespace",
            ),
            ("{{ namespace() }}", "namespace"),
        ] {
            assert_eq!(shared_namespace(source).as_deref(), Some(name), "{source}");
        }
    }
}
