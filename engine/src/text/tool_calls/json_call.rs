//! One call as a JSON object, parsed while it is written.
//!
//! The name is emitted when it is complete, the arguments from then on as they come. If the
//! arguments come first, they wait for the name.

use std::sync::Arc;

use serde_json::Value;

use super::{Tool, ToolEvent};

/// What makes an object a call, besides its name.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// An object without arguments is not a call.
    pub needs_arguments: bool,
    /// Only these tools; `None`: any.
    pub tools: Option<Arc<[Tool]>>,
}

/// The state of the object after the text so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Incomplete.
    Open,
    /// Complete, and a call.
    Call,
    /// Not a call.
    Other,
}

/// A value of the outermost object.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    /// `None` while it is being written.
    end: Option<usize>,
}

#[derive(Debug, Default)]
pub(super) struct JsonCall {
    rules: Rules,
    /// The whole text, which is returned if it is not a call.
    text: String,
    n_read: usize,
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// Start of the string being read at the outermost level.
    string_start: usize,
    key: Option<String>,
    /// After a key's colon.
    awaits_value: bool,
    value_start: Option<usize>,
    name: Option<String>,
    arguments: Option<Span>,
    is_announced: bool,
    n_given: usize,
    reading: Option<Reading>,
}

impl JsonCall {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            ..Self::default()
        }
    }

    /// Reads up to the object's end, and returns the text after it.
    pub fn push(&mut self, text: &str, events: &mut Vec<ToolEvent>) -> (Reading, String) {
        self.text.push_str(text);
        let reading = self.read();
        let n_read = self.n_read;
        let rest = if reading == Reading::Call {
            self.text.split_off(n_read)
        } else {
            String::new()
        };
        if reading != Reading::Other {
            self.give(reading, events);
        }
        (reading, rest)
    }

    /// The name was emitted, so this can no longer become content.
    pub fn is_announced(&self) -> bool {
        self.is_announced
    }

    pub fn into_text(self) -> String {
        self.text
    }

    fn read(&mut self) -> Reading {
        if let Some(reading) = self.reading {
            return reading;
        }
        while let Some(byte) = self.text.as_bytes().get(self.n_read).copied() {
            let at = self.n_read;
            self.n_read += 1;
            if self.in_string {
                self.read_in_string(byte, at);
                if !self.in_string && self.has_foreign_name() {
                    return self.end(Reading::Other);
                }
                continue;
            }
            if self.depth == 0 && !byte.is_ascii_whitespace() && byte != b'{' {
                return self.end(Reading::Other);
            }
            match byte {
                b'"' => {
                    self.in_string = true;
                    if self.depth == 1 {
                        self.string_start = at;
                        self.begin_value(at);
                    }
                }
                b'{' | b'[' => {
                    self.begin_value(at);
                    self.depth += 1;
                }
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 1 {
                        self.end_value(at + 1);
                    } else if self.depth == 0 {
                        self.end_value(at);
                        return self.end(if self.is_call() {
                            Reading::Call
                        } else {
                            Reading::Other
                        });
                    }
                }
                b':' if self.depth == 1 => self.awaits_value = true,
                b',' if self.depth == 1 => {
                    self.end_value(at);
                    self.awaits_value = false;
                }
                // Not JSON: a closing tag comes before the object's end.
                b'<' => {
                    self.n_read = at;
                    return self.break_off(at);
                }
                byte if !byte.is_ascii_whitespace() => self.begin_value(at),
                _ => {}
            }
            if self.has_foreign_name() {
                return self.end(Reading::Other);
            }
        }
        Reading::Open
    }

    fn is_call(&self) -> bool {
        let has_arguments = self.arguments.is_some() || !self.rules.needs_arguments;
        self.name.is_some() && has_arguments && !self.has_foreign_name()
    }

    fn has_foreign_name(&self) -> bool {
        match (&self.name, &self.rules.tools) {
            (Some(name), Some(tools)) => tools.iter().all(|tool| tool.name != *name),
            _ => false,
        }
    }

    fn break_off(&mut self, at: usize) -> Reading {
        if !self.is_call() {
            return self.end(Reading::Other);
        }
        if let Some(span) = self.arguments.as_mut() {
            span.end.get_or_insert(at);
        }
        self.end(Reading::Call)
    }

    fn end(&mut self, reading: Reading) -> Reading {
        self.reading = Some(reading);
        reading
    }

    fn read_in_string(&mut self, byte: u8, at: usize) {
        if self.is_escaped {
            self.is_escaped = false;
        } else if byte == b'\\' {
            self.is_escaped = true;
        } else if byte == b'"' {
            self.in_string = false;
            if self.depth == 1 && !self.awaits_value {
                self.key = serde_json::from_str(&self.text[self.string_start..=at]).ok();
            } else if self.depth == 1 {
                self.end_value(at + 1);
            }
        }
    }

    fn begin_value(&mut self, at: usize) {
        if self.depth != 1 || !self.awaits_value || self.value_start.is_some() {
            return;
        }
        self.value_start = Some(at);
        if self.is_arguments() && self.arguments.is_none() {
            self.arguments = Some(Span {
                start: at,
                end: None,
            });
        }
    }

    fn end_value(&mut self, end: usize) {
        let Some(start) = self.value_start.take() else {
            return;
        };
        let value = self.text[start..end].trim_end();
        if self.is_arguments() {
            if let Some(span) = self.arguments.as_mut().filter(|span| span.start == start) {
                span.end = Some(start + value.len());
            }
        } else if self.key.as_deref() == Some("name") && self.name.is_none() {
            let name = serde_json::from_str::<String>(value).ok();
            self.name = name.filter(|name| !name.is_empty());
        }
        self.key = None;
        self.awaits_value = false;
    }

    fn is_arguments(&self) -> bool {
        matches!(self.key.as_deref(), Some("arguments" | "parameters"))
    }

    fn give(&mut self, reading: Reading, events: &mut Vec<ToolEvent>) {
        let Some(name) = &self.name else { return };
        if self.rules.needs_arguments && self.arguments.is_none() {
            return;
        }
        if !self.is_announced {
            self.is_announced = true;
            events.push(ToolEvent::Call { name: name.clone() });
        }
        let is_done = reading == Reading::Call;
        let text = match self.arguments {
            Some(Span { start, end }) => self.arguments_text(start, end),
            None if is_done => "{}".to_owned(),
            None => return,
        };
        let new = text.get(self.n_given..).unwrap_or_default();
        if !new.is_empty() {
            events.push(ToolEvent::Arguments(new.to_owned()));
        }
        self.n_given = self.n_given.max(text.len());
    }

    /// The part of the arguments that is certain.
    fn arguments_text(&self, start: usize, end: Option<usize>) -> String {
        let written = &self.text[start..end.unwrap_or(self.text.len())];
        if written.starts_with(['{', '[']) {
            return written.to_owned();
        }
        match end {
            // Some models write the object as a string that contains it.
            Some(_) => match serde_json::from_str(written) {
                Ok(Value::String(text)) => text,
                _ => written.to_owned(),
            },
            None => String::new(),
        }
    }
}
