//! The depth of a Lark grammar: rules that name rules, terminals that name terminals, brackets.
//!
//! A separate scanner that recognises names, brackets and text to skip. Text that is not a grammar
//! is measured too, and then refused by the compiler.

use std::collections::HashMap;

use serde_json::Value;

use super::chain::longest;
use super::schema;

/// The JSON schemas in the grammar (`%json`).
pub(in crate::structured) fn schemas(text: &str) -> Vec<Value> {
    Scanner::new(text).read().schemas
}

/// A definition: the nesting of its own brackets and schemas, and the names in it.
#[derive(Default)]
struct Definition {
    nesting: usize,
    names: Vec<String>,
}

/// Each definition is a node; an additional node refers to all, since any may be the start.
pub(super) fn depth(text: &str) -> usize {
    let definitions = Scanner::new(text).read().definitions;
    let mut indexes: HashMap<&str, Vec<usize>> = HashMap::new();
    for (i, (name, _)) in definitions.iter().enumerate() {
        indexes.entry(name).or_default().push(i + 1);
    }
    let mut weights = vec![0];
    let mut references = vec![(1..=definitions.len()).collect::<Vec<_>>()];
    for (_, definition) in &definitions {
        weights.push(1 + definition.nesting);
        let names = definition.names.iter();
        references.push(
            names
                .filter_map(|name| indexes.get(name.as_str()))
                .flatten()
                .copied()
                .collect(),
        );
    }
    longest(&weights, &references)
}

struct Scanner<'a> {
    rest: &'a str,
    /// Only white space since the last line break.
    begins_line: bool,
    level: usize,
    definitions: Vec<(String, Definition)>,
    schemas: Vec<Value>,
}

impl<'a> Scanner<'a> {
    fn new(rest: &'a str) -> Self {
        Self {
            rest,
            begins_line: true,
            level: 0,
            definitions: Vec::new(),
            schemas: Vec::new(),
        }
    }

    fn read(mut self) -> Self {
        while let Some(first) = self.rest.chars().next() {
            let was_beginning = self.begins_line;
            self.begins_line &= first.is_whitespace();
            match first {
                '\n' => {
                    self.skip(1);
                    self.begins_line = true;
                }
                '#' => self.skip_line(),
                '/' if self.rest.starts_with("//") => self.skip_line(),
                '"' => self.skip_quoted('"'),
                '/' => self.skip_quoted('/'),
                '<' => self.skip_special(),
                '(' | '[' | '{' => {
                    self.skip(1);
                    self.level += 1;
                    self.note_nesting(self.level);
                }
                ')' | ']' | '}' => {
                    self.skip(1);
                    self.level = self.level.saturating_sub(1);
                }
                '%' => self.directive(),
                // Names of other grammars.
                '@' => {
                    self.skip(1);
                    self.name();
                }
                _ if is_name_char(first) || first == '?' || first == '!' => {
                    self.name_or_definition(was_beginning);
                }
                _ => self.skip(first.len_utf8()),
            }
        }
        self
    }

    fn skip(&mut self, n_bytes: usize) {
        self.rest = self.rest.get(n_bytes..).unwrap_or("");
    }

    fn skip_line(&mut self) {
        let end = self.rest.find('\n').unwrap_or(self.rest.len());
        self.skip(end);
    }

    /// A string or regular expression, to its end. A string ends with its line; an unclosed one is
    /// read as if the quote were absent.
    fn skip_quoted(&mut self, quote: char) {
        let mut is_escaped = false;
        for (i, c) in self.rest.char_indices().skip(1) {
            match c {
                _ if is_escaped => is_escaped = false,
                '\\' => is_escaped = true,
                '\n' if quote == '"' => break,
                _ if c == quote => return self.skip(i + 1),
                _ => {}
            }
        }
        self.skip(1);
    }

    fn skip_special(&mut self) {
        let end = self
            .rest
            .find(|c: char| c == '>' || c.is_whitespace())
            .unwrap_or(0);
        self.skip(end.max(1));
    }

    /// `%json` and similar contain a JSON value, `%lark` a grammar in brackets.
    fn directive(&mut self) {
        self.skip(1);
        let word = self.name();
        if !["json", "llguidance", "regex"].contains(&word.as_str()) {
            return;
        }
        let mut values = serde_json::Deserializer::from_str(self.rest).into_iter::<Value>();
        if let Some(Ok(value)) = values.next() {
            let n_bytes = values.byte_offset();
            self.note_nesting(self.level + schema::depth(&value));
            self.skip(n_bytes);
            if word == "json" {
                self.schemas.push(value);
            }
        }
    }

    fn name(&mut self) -> String {
        let end = self
            .rest
            .find(|c| !is_name_char(c))
            .unwrap_or(self.rest.len());
        let name = self.rest.get(..end).unwrap_or("").to_owned();
        self.skip(end);
        name
    }

    fn name_or_definition(&mut self, begins_line: bool) {
        while self.rest.starts_with(['?', '!']) {
            self.skip(1);
        }
        let name = self.name();
        let is_followed_by_colon = self.rest.starts_with(':') && !self.rest.starts_with("::");
        if name.is_empty() {
        } else if begins_line || is_followed_by_colon {
            self.definitions.push((name, Definition::default()));
        } else if let Some((_, definition)) = self.definitions.last_mut() {
            definition.names.push(name);
        }
    }

    fn note_nesting(&mut self, level: usize) {
        if let Some((_, definition)) = self.definitions.last_mut() {
            definition.nesting = definition.nesting.max(level);
        }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_brackets_count_and_texts_do_not() {
        for (text, expected) in [
            ("", 0),
            ("start: \"a\"", 1),
            ("start: a\na: b\n | \"x\"\nb: /c/", 3),
            ("start: (a | [b])\na: \"a b\"\nb: A\nA: \"x\"", 5),
            ("start: a // a: b\na: \"b: c\" # c", 2),
            ("?start: !a?\n!a: B\nB.2: /a\\/[/]b/", 3),
            ("start: a\na: \"x\" a | b\nb: a", 3),
            (
                "start: @other a\na: <tool> %json {\"items\": {\"items\": {}}}",
                5,
            ),
            ("start[capture=\"x\"]: a\n a: \"x\"", 3),
            ("%llguidance {\"no_forcing\": true} start: a\na: \"x\"", 2),
            ("start: %lark { start: b\nb: c\nc: \"x\" }", 3),
            ("start: \"unclosed a\na: \"b", 2),
        ] {
            assert_eq!(depth(text), expected, "{text}");
        }
    }
}
