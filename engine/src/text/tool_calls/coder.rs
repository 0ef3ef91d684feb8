//! Qwen3-Coder's calls:
//!
//! ```text
//! <tool_call>
//! <function=NAME>
//! <parameter=KEY>
//! value
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//!
//! The arguments become JSON while they are written: texts as they come, other values when they are
//! complete, typed by the tool's schema. The outer tag may be missing, as it sometimes is. Anything
//! else is content.

use std::sync::Arc;

use serde_json::Value;

use super::coder_value::ValueKind;
use super::hermes::{CLOSE, OPEN};
use super::{Tool, ToolEvent, push_content};
use crate::text::held::held_bytes;

const FUNCTION: &str = "<function=";
const END_FUNCTION: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const END_PARAMETER: &str = "</parameter>";
/// What ends a parameter: its tag, or what can only follow it.
const ENDS: [&str; 3] = [END_PARAMETER, PARAMETER, END_FUNCTION];
/// The longest name of a function or parameter.
const MAX_NAME_BYTES: usize = 256;

#[derive(Debug, Default)]
pub struct CoderParser {
    tools: Arc<[Tool]>,
    /// Calls of other tools are content.
    is_restricted: bool,
    held: String,
    place: Place,
    has_calls: bool,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Content,
    /// After the outer tag; the text so far is content if no call follows.
    Opened(String),
    /// In the function's name, likewise.
    Name(String),
    /// Between the parameters of a function.
    Function(Function),
    Value(Function, Parameter),
    /// After a function.
    Closing,
}

#[derive(Debug, Default)]
struct Function {
    /// Index in the tools, if it is one of them.
    tool: Option<usize>,
    has_parameters: bool,
}

#[derive(Debug)]
struct Parameter {
    kind: ValueKind,
    /// Whether its first line break has been dropped, and its quote been given.
    is_begun: bool,
}

impl CoderParser {
    pub(super) fn new(tools: Arc<[Tool]>, is_restricted: bool) -> Self {
        Self {
            tools,
            is_restricted,
            ..Self::default()
        }
    }

    pub fn push(&mut self, text: &str, events: &mut Vec<ToolEvent>) {
        self.held.push_str(text);
        while self.step(events) {}
    }

    pub fn finish(&mut self, events: &mut Vec<ToolEvent>) {
        let held = std::mem::take(&mut self.held);
        match std::mem::take(&mut self.place) {
            Place::Content => self.give_content(held, events),
            Place::Opened(before) | Place::Name(before) => push_content(events, before + &held),
            Place::Closing if CLOSE.starts_with(held.trim()) => {}
            Place::Closing => push_content(events, held),
            // Cut off: what was emitted stays.
            Place::Function(_) => {}
            Place::Value(_, parameter) => {
                if parameter.is_begun && parameter.kind == ValueKind::Text {
                    give_arguments(events, escaped(&held));
                }
            }
        }
    }

    /// Returns true if there may be more to parse.
    fn step(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        match std::mem::take(&mut self.place) {
            Place::Content => self.content(events),
            Place::Opened(before) => self.opened(before, events),
            Place::Name(before) => self.name(before, events),
            Place::Function(function) => self.function(function, events),
            Place::Value(function, parameter) => self.value(function, parameter, events),
            Place::Closing => self.closing(),
        }
    }

    fn content(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let tags = [OPEN, FUNCTION];
        let found = tags
            .iter()
            .filter_map(|tag| Some((self.held.find(tag)?, *tag)));
        let found = found.min();
        let waiting = tags.iter().map(|tag| held_bytes(&self.held, tag)).max();
        let n_shown = found.map_or(self.held.len() - waiting.unwrap_or(0), |(at, _)| at);
        // White space before a call separates it from the content.
        let n_kept = self.held[..n_shown].trim_end().len();
        let mut before = self.held.split_off(n_kept);
        let content = std::mem::take(&mut self.held);
        self.give_content(content, events);
        let Some((_, tag)) = found else {
            self.held = before;
            return false;
        };
        self.held = before.split_off(n_shown - n_kept + tag.len());
        self.place = if tag == OPEN {
            Place::Opened(before)
        } else {
            Place::Name(before)
        };
        true
    }

    fn opened(&mut self, mut before: String, events: &mut Vec<ToolEvent>) -> bool {
        let begun = self.held.trim_start();
        if begun.starts_with(FUNCTION) {
            let n_tag = self.held.len() - begun.len() + FUNCTION.len();
            let rest = self.held.split_off(n_tag);
            before.push_str(&std::mem::replace(&mut self.held, rest));
            self.place = Place::Name(before);
            return true;
        }
        if FUNCTION.starts_with(begun) {
            self.place = Place::Opened(before);
            return false;
        }
        push_content(events, before);
        true
    }

    fn name(&mut self, before: String, events: &mut Vec<ToolEvent>) -> bool {
        match name_in(&self.held) {
            Name::Open => {
                self.place = Place::Name(before);
                false
            }
            Name::Whole(name) if self.may_call(name, before.contains(OPEN)) => {
                let tool = self.tools.iter().position(|tool| tool.name == name);
                let n_read = name.len() + 1;
                events.push(ToolEvent::Call {
                    name: name.to_owned(),
                });
                give_arguments(events, "{".to_owned());
                self.held.drain(..n_read);
                self.has_calls = true;
                self.place = Place::Function(Function {
                    tool,
                    has_parameters: false,
                });
                true
            }
            Name::Whole(_) | Name::Wrong => {
                push_content(events, before);
                true
            }
        }
    }

    /// Without the outer tag, only a known tool's name makes a call.
    fn may_call(&self, name: &str, is_tagged: bool) -> bool {
        is_tagged && !self.is_restricted || self.tools.iter().any(|tool| tool.name == name)
    }

    fn function(&mut self, mut function: Function, events: &mut Vec<ToolEvent>) -> bool {
        let begun = self.held.trim_start();
        if let Some(rest) = begun.strip_prefix(END_FUNCTION) {
            self.held = rest.to_owned();
            give_arguments(events, "}".to_owned());
            self.place = Place::Closing;
            return true;
        }
        if begun.starts_with(CLOSE) {
            self.held = begun.to_owned();
            give_arguments(events, "}".to_owned());
            self.place = Place::Closing;
            return true;
        }
        if let Some(rest) = begun.strip_prefix(PARAMETER) {
            match name_in(rest) {
                Name::Whole(name) => {
                    let kind = self.kind_of(&function, name);
                    let separator = if function.has_parameters { ", " } else { "" };
                    give_arguments(events, format!("{separator}{}: ", Value::from(name)));
                    self.held = rest[name.len() + 1..].to_owned();
                    function.has_parameters = true;
                    let parameter = Parameter {
                        kind,
                        is_begun: false,
                    };
                    self.place = Place::Value(function, parameter);
                    return true;
                }
                Name::Open => {
                    self.place = Place::Function(function);
                    return false;
                }
                Name::Wrong => {}
            }
        } else if [END_FUNCTION, CLOSE, PARAMETER]
            .iter()
            .any(|tag| tag.starts_with(begun))
        {
            self.place = Place::Function(function);
            return false;
        }
        // Text between parameters is content, except white space before a tag.
        let n_blank = self.held.len() - begun.len();
        let next_tag = begun.char_indices().skip(1).find(|(_, c)| *c == '<');
        let n_stray = next_tag.map_or(begun.len(), |(at, _)| at);
        let n_kept = n_blank + begun[..n_stray].trim_end().len();
        push_content(events, self.held.drain(..n_kept).collect());
        self.place = Place::Function(function);
        true
    }

    fn kind_of(&self, function: &Function, name: &str) -> ValueKind {
        let tool = function.tool.and_then(|index| self.tools.get(index));
        ValueKind::of(tool.and_then(|tool| tool.parameters.as_ref()), name)
    }

    fn value(
        &mut self,
        function: Function,
        mut parameter: Parameter,
        events: &mut Vec<ToolEvent>,
    ) -> bool {
        if !parameter.is_begun {
            if self.held.is_empty() {
                self.place = Place::Value(function, parameter);
                return false;
            }
            if self.held.starts_with('\n') {
                self.held.drain(..1);
            }
            parameter.is_begun = true;
            if parameter.kind == ValueKind::Text {
                give_arguments(events, "\"".to_owned());
            }
        }
        let end = ENDS
            .iter()
            .filter_map(|tag| Some((self.held.find(tag)?, *tag)))
            .min();
        let Some((at, tag)) = end else {
            if parameter.kind == ValueKind::Text {
                let text = self.certain_text();
                give_arguments(events, escaped(&text));
            }
            self.place = Place::Value(function, parameter);
            return false;
        };
        let value = self.held[..at]
            .strip_suffix('\n')
            .unwrap_or(&self.held[..at]);
        let json = match parameter.kind {
            ValueKind::Text => escaped(value) + "\"",
            kind => kind.json_of(value),
        };
        give_arguments(events, json);
        let n_read = if tag == END_PARAMETER {
            at + tag.len()
        } else {
            at
        };
        self.held.drain(..n_read);
        self.place = Place::Function(function);
        true
    }

    /// Removes the text that belongs to the value whatever follows.
    fn certain_text(&mut self) -> String {
        let waiting = ENDS.iter().map(|tag| held_bytes(&self.held, tag)).max();
        let mut n_certain = self.held.len() - waiting.unwrap_or(0);
        if self.held[..n_certain].ends_with('\n') {
            n_certain -= 1;
        }
        self.held.drain(..n_certain).collect()
    }

    fn closing(&mut self) -> bool {
        let rest = self.held.trim_start();
        if let Some(rest) = rest.strip_prefix(CLOSE) {
            self.held = rest.to_owned();
        } else if [CLOSE, OPEN, FUNCTION]
            .iter()
            .any(|tag| tag.starts_with(rest))
        {
            self.place = Place::Closing;
            return false;
        }
        true
    }

    fn give_content(&self, text: String, events: &mut Vec<ToolEvent>) {
        if !(self.has_calls && text.trim().is_empty()) {
            push_content(events, text);
        }
    }
}

enum Name<'a> {
    /// Not ended yet.
    Open,
    Whole(&'a str),
    Wrong,
}

/// The name before a `>`.
fn name_in(text: &str) -> Name<'_> {
    let name = text.split('>').next().unwrap_or_default();
    let is_wrong = name.len() > MAX_NAME_BYTES || name.contains(['\n', '<']);
    let is_ended = name.len() < text.len();
    if is_wrong || (is_ended && name.is_empty()) {
        Name::Wrong
    } else if is_ended {
        Name::Whole(name)
    } else {
        Name::Open
    }
}

fn give_arguments(events: &mut Vec<ToolEvent>, text: String) {
    if !text.is_empty() {
        events.push(ToolEvent::Arguments(text));
    }
}

/// The inside of a JSON string.
fn escaped(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}
