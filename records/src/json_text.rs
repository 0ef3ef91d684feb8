//! Removes and restores white space in JSON; numbers are kept as written.
//!
//! A record's digests cover its bytes. Parsing and rewriting a float may change its last digit;
//! moving white space does not.

/// `text` on one line. Expects valid JSON.
///
/// ```
/// use records::json_text::{indented, minified};
///
/// let written = "{\n  \"ttft_ms\": 1.10,\n  \"note\": \"a b\"\n}\n";
/// assert_eq!(minified(written), r#"{"ttft_ms":1.10,"note":"a b"}"#);
/// assert_eq!(indented(&minified(written)), written);
/// ```
pub fn minified(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut strings = Strings::default();
    for c in text.chars() {
        if strings.is_inside(c) || !c.is_ascii_whitespace() {
            out.push(c);
        }
    }
    out
}

/// Formatted like `serde_json::to_string_pretty`, with a line break at the end.
pub fn indented(text: &str) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut strings = Strings::default();
    let mut depth = 0;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        if strings.is_inside(c) {
            out.push(c);
            continue;
        }
        match c {
            '{' | '[' => {
                out.push(c);
                if let Some(close) = characters.next_if(|next| matches!(*next, '}' | ']')) {
                    out.push(close);
                } else {
                    depth += 1;
                    break_line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                break_line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                break_line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            _ => out.push(c),
        }
    }
    out.push('\n');
    out
}

fn break_line(out: &mut String, depth: usize) {
    out.push('\n');
    out.extend(std::iter::repeat_n("  ", depth));
}

/// Distinguishes characters inside strings from those between them.
#[derive(Default)]
struct Strings {
    inside: bool,
    escaped: bool,
}

impl Strings {
    /// Whether the next character, `c`, belongs to a string, its quotes included.
    fn is_inside(&mut self, c: char) -> bool {
        if !self.inside {
            self.inside = c == '"';
            return self.inside;
        }
        if self.escaped {
            self.escaped = false;
        } else if c == '\\' {
            self.escaped = true;
        } else if c == '"' {
            self.inside = false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serde_writes_comes_back_byte_by_byte() {
        let value = serde_json::json!({
            "a": [1, 2.5e-300, {"b\"{,": null}], "empty": {}, "none": [], "text": "x: \\\" [1, 2]\n",
            "nested": [[], [[]], {"k": [{}]}],
        });
        let pretty = serde_json::to_string_pretty(&value).expect("written") + "\n";
        let line = minified(&pretty);
        assert_eq!(line, value.to_string());
        assert_eq!(indented(&line), pretty);
        // One digit more than a float has.
        let long = "{\n  \"t\": 0.12345678901234567890\n}\n";
        assert_eq!(indented(&minified(long)), long);
    }
}
