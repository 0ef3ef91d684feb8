//! Text that others wrote (model names, flags, error messages, a CPU's name) inside the reports.
//!
//! None of it is markup. Two steps see to that, for every value that a template prints:
//!
//! 1. The formatter ([`register`]) puts each value between two marks, and takes out what is no
//!    visible character of one line.
//! 2. [`resolve`] reads the rendered text with its marks, knows for each value whether it stands in
//!    plain text, in a cell of a table, in a code span or in a block of code, and escapes what would
//!    be markup there.
//!
//! Words that the templates themselves write stay as they are. A string that a template makes as
//! markup carries the filter `safe`.

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, Output, State};

/// Around a value. Both are characters for private use, which no value keeps.
const OPEN: char = '\u{e000}';
const CLOSE: char = '\u{e001}';

/// Replaces what cannot be shown.
const REPLACEMENT: char = '\u{fffd}';

/// Sets the formatter, and adds the filters `typed` (what can be typed is code) and `shell` (a flag
/// with its value, or a word, as a shell takes it).
pub fn register(env: &mut Environment<'_>) {
    env.set_auto_escape_callback(|_| AutoEscape::Custom("markdown".into()));
    env.set_formatter(format);
    env.add_filter("typed", |text: String| {
        let marked = marked(&text);
        Value::from_safe_string(if text.starts_with("--") {
            format!("`{marked}`")
        } else {
            marked
        })
    });
    env.add_filter("shell", |text: String| shell_words(&text));
}

fn format(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    let written = match value.as_str() {
        Some(text) if value.is_safe() => out.write_str(text),
        Some(text) => out.write_str(&marked(text)),
        None => match value.kind() {
            ValueKind::Number | ValueKind::Bool | ValueKind::None | ValueKind::Undefined => {
                write!(out, "{value}")
            }
            _ => out.write_str(&marked(&value.to_string())),
        },
    };
    written.map_err(Error::from)
}

fn marked(text: &str) -> String {
    format!("{OPEN}{}{CLOSE}", one_line(text))
}

/// On one line, without characters that steer a terminal, change the direction of writing or cannot
/// be shown.
pub fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if c.is_whitespace() => match c {
                // A space that does not break is a character like any other.
                '\u{a0}' | '\u{202f}' => c,
                _ => ' ',
            },
            c if c.is_control() => REPLACEMENT,
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                REPLACEMENT
            }
            OPEN | CLOSE => REPLACEMENT,
            c => c,
        })
        .collect()
}

/// Text of several lines, for a terminal: each as [`one_line`] has it.
pub fn lines(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| match line.strip_suffix('\n') {
            Some(line) => one_line(line) + "\n",
            None => one_line(line),
        })
        .collect()
}

/// `--flag value` with the value quoted where a shell would read more into it.
fn shell_words(line: &str) -> String {
    let quoted = |word: &str| {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
        if !word.is_empty() && word.chars().all(|c| is_plain(c) || !c.is_ascii()) {
            word.to_owned()
        } else {
            format!("'{}'", one_line(word).replace('\'', r"'\''"))
        }
    };
    match line.split_once(' ') {
        Some((flag, value)) if flag.starts_with("--") => {
            format!("{} {}", quoted(flag), quoted(value))
        }
        _ => quoted(line),
    }
}

/// A character of the rendered text, and whether a value brought it.
#[derive(Debug, Clone, Copy)]
struct Piece {
    c: char,
    outside: bool,
}

impl Piece {
    fn is_own(self, c: char) -> bool {
        !self.outside && self.c == c
    }
}

/// The text without marks, every value escaped for its place. A value never spans lines.
pub fn resolve(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_block = false;
    for line in text.split_inclusive('\n') {
        let pieces = pieces_of(line);
        let n_blanks = pieces.iter().take_while(|p| p.is_own(' ')).count();
        let is_fence = pieces[n_blanks..]
            .iter()
            .take_while(|p| p.is_own('`'))
            .count()
            >= 3;
        if is_fence {
            in_block = !in_block;
        }
        if is_fence || in_block {
            add_code_line(&pieces, &mut out);
        } else {
            let in_table = pieces.first().is_some_and(|p| p.is_own('|'));
            add_text_line(&pieces, in_table, &mut out);
        }
    }
    out
}

fn pieces_of(line: &str) -> Vec<Piece> {
    let mut outside = false;
    let mut pieces = Vec::with_capacity(line.len());
    for c in line.chars() {
        match c {
            OPEN => outside = true,
            CLOSE => outside = false,
            c => pieces.push(Piece { c, outside }),
        }
    }
    pieces
}

/// A line of a block of code: only three backticks at its start would mean something.
fn add_code_line(pieces: &[Piece], out: &mut String) {
    let start = pieces.iter().take_while(|p| p.c == ' ').count();
    let run = pieces[start..].iter().take_while(|p| p.c == '`').count();
    let ends_block = run >= 3 && pieces[start..start + run].iter().any(|p| p.outside);
    out.extend(pieces.iter().enumerate().map(|(i, piece)| {
        if ends_block && (start..start + run).contains(&i) {
            '\''
        } else {
            piece.c
        }
    }));
}

fn add_text_line(pieces: &[Piece], in_table: bool, out: &mut String) {
    let mut i = 0;
    while i < pieces.len() {
        let piece = pieces[i];
        if piece.is_own('`') {
            let close = pieces[i + 1..].iter().position(|p| p.is_own('`'));
            if let Some(length) = close {
                add_code_span(&pieces[i + 1..i + 1 + length], in_table, out);
                i += length + 2;
                continue;
            }
        }
        if piece.outside {
            add_escaped(pieces, i, out);
        } else {
            out.push(piece.c);
        }
        i += 1;
    }
}

/// Between backticks, more of them than stand together inside.
fn add_code_span(content: &[Piece], in_table: bool, out: &mut String) {
    let mut longest = 0;
    let mut run = 0;
    for piece in content {
        run = if piece.c == '`' { run + 1 } else { 0 };
        longest = longest.max(run);
    }
    let fence = "`".repeat(longest + 1);
    // Without anything inside, two backticks would open a span instead of being one.
    let pad = if longest > 0 { " " } else { "" };
    out.push_str(&fence);
    out.push_str(pad);
    if content.is_empty() {
        out.push(' ');
    }
    let mut before = ' ';
    for piece in content {
        match piece {
            // A table takes a backslash before a bar as the bar, in code too; but not where another
            // backslash stands before it.
            Piece {
                c: '|',
                outside: true,
            } if in_table && before == '\\' => out.push('¦'),
            Piece {
                c: '|',
                outside: true,
            } if in_table => out.push_str("\\|"),
            piece => out.push(piece.c),
        }
        before = piece.c;
    }
    out.push_str(pad);
    out.push_str(&fence);
}

/// Escapes `pieces[i]`, a character of a value in plain text, where it could be markup.
fn add_escaped(pieces: &[Piece], i: usize, out: &mut String) {
    let c = pieces[i].c;
    let before = i.checked_sub(1).map(|i| pieces[i].c);
    let after = pieces.get(i + 1).map(|p| p.c).filter(|c| *c != '\n');
    let is_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let is_blank = |c: Option<char>| c.is_none_or(char::is_whitespace);
    let starts = || {
        pieces[..i]
            .iter()
            .all(|p| !p.outside && " -*>".contains(p.c))
    };
    // Between brackets of a template, which may be a link's or a picture's.
    let in_link = || {
        let own = |c: char| pieces[..i].iter().filter(|p| p.is_own(c)).count();
        own('[') > own(']')
    };
    let only = |c: char| {
        let rest = pieces[i..].iter().filter(|p| !p.c.is_whitespace());
        rest.clone().all(|p| p.c == c)
    };
    match c {
        '<' => return out.push_str("&lt;"),
        '|' => return out.push_str("&#124;"),
        '&' if is_word(after) || after == Some('#') => return out.push_str("&amp;"),
        _ => {}
    }
    let is_markup = match c {
        '\\' | '`' | '*' => true,
        '_' => !(is_word(before) && is_word(after)),
        '~' => !(is_blank(before) && is_blank(after)),
        '[' => in_link(),
        ']' => in_link() || matches!(after, Some('(' | '[' | ':')),
        // Headings and what closes them, quotations, lists, underlines of headings.
        '#' => is_blank(before),
        '>' | '=' => starts(),
        '+' => starts() && is_blank(after),
        '-' => starts() && (is_blank(after) || only('-')),
        '.' | ')' if is_blank(after) => {
            let is_digit = |p: &Piece| p.outside && p.c.is_ascii_digit();
            let n_digits = pieces[..i].iter().rev().take_while(|p| is_digit(p)).count();
            let lead = &pieces[..i - n_digits];
            n_digits > 0 && lead.iter().all(|p| !p.outside && " -*>".contains(p.c))
        }
        _ => false,
    };
    if is_markup {
        out.push('\\');
    }
    out.push(c);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a template makes of one value.
    fn rendered(template: &str, value: &str) -> String {
        let mut env = Environment::new();
        register(&mut env);
        let context = minijinja::context! { x => value };
        resolve(&env.render_named_str("t", template, context).unwrap())
    }

    #[test]
    fn markup_of_a_value_is_escaped_where_it_would_act() {
        for (template, value, wanted) in [
            ("{{ x }}", "<b>|`*a*`\\", "&lt;b>&#124;\\`\\*a\\*\\`\\\\"),
            ("{{ x }}", "&lt; a&b & c", "&amp;lt; a&amp;b & c"),
            ("{{ x }}", "qwen3_32b __x__", "qwen3_32b \\_\\_x\\_\\_"),
            (
                "{{ x }}",
                "85.2 ms [84.9 ms, 87.2 ms]",
                "85.2 ms [84.9 ms, 87.2 ms]",
            ),
            ("{{ x }}(u)", "![a](b) [c]", "![a\\](b) [c\\](u)"),
            ("![{{ x }}](p)", "a [b", "![a \\[b](p)"),
            ("- {{ x }}", "- # 1. a", "- \\- \\# 1. a"),
            ("- {{ x }}", "--flag: why", "- --flag: why"),
            ("{{ x }}", "12. a 3. b", "12\\. a 3. b"),
            (
                "{{ x }}",
                "a\nb\tc\u{1b}[1m\u{202e}",
                "a b c\u{fffd}[1m\u{fffd}",
            ),
            ("{{ x }}", "\u{e000}a\u{e001}", "\u{fffd}a\u{fffd}"),
            ("`{{ x }}`", "a<b|c*", "`a<b|c*`"),
            ("`{{ x }}`", "a`b``c", "``` a`b``c ```"),
            ("`{{ x }}`", "", "` `"),
            (
                "| `{{ x }}` | {{ x }} |",
                "a|b\\|c",
                "| `a\\|b\\¦c` | a&#124;b\\\\&#124;c |",
            ),
            ("```\n{{ x }}\n```", "```\n<", "```\n''' <\n```"),
            (
                "{{ x|typed }} {{ 'no'|typed }}",
                "--a `b`",
                "`` --a `b` `` no",
            ),
            ("{{ x|shell }}", "--a b'; c", "--a 'b'\\\\''; c'"),
            ("{{ x|shell }}", "--a b/c.gguf", "--a b/c.gguf"),
            ("{{ '<br>'|safe }}{{ x }}", "<br>", "<br>&lt;br>"),
        ] {
            assert_eq!(rendered(template, value), wanted, "{template} {value}");
        }
    }

    #[test]
    fn macros_and_lists_are_escaped_once() {
        let template =
            "{% macro m(y) %}[{{ y }}]{% endmacro %}{{ m(x) }} {{ [x, x]|join(', ') }} {{ 1.5 }}";
        assert_eq!(rendered(template, "<"), "[&lt;] &lt;, &lt; 1.5");
    }
}
