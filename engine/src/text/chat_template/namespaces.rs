//! Refuses, before compilation, templates that could put a namespace into itself.
//!
//! A namespace is the only mutable value in a template, so it is the only one that can come to
//! contain itself: `{% set ns.a = [ns] %}`. Traversing such a value (printing, `tojson`, a
//! comparison) never ends and overflows the process's stack, which fuel does not count. So a
//! namespace must be created by `{% set name = namespace(…) %}`, and only its attributes may be
//! used; the templates of published models do no more than that. The tokens are minijinja's own: a
//! separate lexer that misread a string or the end of a tag could be tricked. Deliberately absent:
//! data-flow analysis.

use minijinja::machinery::Token;

/// The name of a namespace that the template uses in a forbidden way, if any.
pub fn shared_namespace(tokens: &[Token<'_>]) -> Option<String> {
    let at = |i: usize| tokens.get(i);
    let before = |i: usize, back: usize| i.checked_sub(back).and_then(at);
    let is_word = |token: Option<&Token<'_>>, text: &str| matches!(token, Some(Token::Ident(word)) if *word == text);
    let is_attribute = |i: usize| matches!(before(i, 1), Some(Token::Dot));
    // `name=`: a target or an argument's label, not a value.
    let is_label = |i: usize| matches!(at(i + 1), Some(Token::Assign));
    let mut names: Vec<&str> = Vec::new();
    for i in 0..tokens.len() {
        if !is_word(at(i), "namespace") || is_attribute(i) || is_label(i) {
            continue;
        }
        match before(i, 2) {
            Some(Token::Ident(name))
                if matches!(before(i, 1), Some(Token::Assign))
                    && is_word(before(i, 3), "set")
                    && matches!(at(i + 1), Some(Token::ParenOpen)) =>
            {
                names.push(name);
            }
            _ => return Some("namespace".to_owned()),
        }
    }
    tokens.iter().enumerate().find_map(|(i, token)| {
        let Token::Ident(word) = token else {
            return None;
        };
        let is_value = names.contains(word)
            && !is_attribute(i)
            && !is_label(i)
            && !matches!(at(i + 1), Some(Token::Dot | Token::BracketOpen));
        is_value.then(|| (*word).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use minijinja::machinery::tokenize;
    use minijinja::syntax::SyntaxConfig;

    use super::*;

    fn shared(source: &str) -> Option<String> {
        let tokens = tokenize(source, false, SyntaxConfig::default());
        let tokens: Result<Vec<_>, _> = tokens.map(|token| token.map(|(token, _)| token)).collect();
        shared_namespace(&tokens.expect("tokens"))
    }

    #[test]
    fn attributes_of_a_namespace_are_free() {
        for source in [
            "{% set ns = namespace(a=0, b='ns') %}{% set ns.a = ns.a + 1 %}{{ ns['b'] }} ns {# ns #}",
            "{%- set ns=namespace(found=false)-%}{% if not ns.found %}{{ f(ns=1) }}{{ x.ns }}{% endif %}",
            "namespace {{ 'namespace(' ~ \"it's ns\" }}{% set namespace = 3 %}",
            "{% set ns = namespace() %}{{ 'a\\'ns' }}{ ns }",
            "{% set ns = namespace() %}{% raw %}{{ ns }}{% endraw %}",
        ] {
            assert_eq!(shared(source), None, "{source}");
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
            // Text that resembles an unterminated string or the end of a tag.
            (
                "{% raw %}{{ '{% endraw %}{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns.a }}",
                "ns",
            ),
            (
                "{% set ns = namespace() %}{% set ns.a = [{'b': {}}, ns] %}{{ {'c': {'d': 1}} }}",
                "ns",
            ),
            (
                "{% set ns = namespace() %}{{ [{'b': {'c': 1}}, ns] }}",
                "ns",
            ),
        ] {
            assert_eq!(shared(source).as_deref(), Some(name), "{source}");
        }
    }
}
