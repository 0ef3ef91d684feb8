//! `<tool_call>{"name": …, "arguments": …}</tool_call>`, as Hermes and Qwen write it.
//!
//! Several objects within one tag are several calls. Anything else, and a tag without a call, is
//! content to the last character; only white space around calls is dropped.

use super::json_call::{JsonCall, Reading, Rules};
use super::{ToolEvent, push_content};
use crate::text::held::held_bytes;

pub(in crate::text) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

#[derive(Debug, Default)]
pub struct HermesParser {
    rules: Rules,
    held: String,
    place: Place,
    /// A call was found: white space between calls is not content.
    has_calls: bool,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Content,
    /// An object, and the text before it, which belongs to the content if this is not a call.
    Call { call: Box<JsonCall>, before: String },
    /// After a call's object, before its closing tag.
    Closing,
    /// After anything else within a tag.
    Other,
}

impl HermesParser {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            rules,
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
            // Cut off: what was emitted stays.
            Place::Call { call, .. } if call.is_announced() => {}
            Place::Call { call, before } => push_content(events, before + &call.into_text()),
            Place::Closing if CLOSE.starts_with(held.trim()) => {}
            Place::Closing | Place::Other => push_content(events, held),
        }
    }

    /// Returns true if there may be more to parse.
    fn step(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        match &mut self.place {
            Place::Content => self.content(events),
            Place::Call { .. } => self.call(events),
            Place::Closing => self.closing(),
            Place::Other => self.other(events),
        }
    }

    fn content(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let at = self.held.find(OPEN);
        let n_shown = at.unwrap_or(self.held.len() - held_bytes(&self.held, OPEN));
        // White space before a call separates it from the content.
        let n_kept = self.held[..n_shown].trim_end().len();
        let mut before = self.held.split_off(n_kept);
        let content = std::mem::take(&mut self.held);
        self.give_content(content, events);
        if at.is_none() {
            self.held = before;
            return false;
        }
        self.held = before.split_off(n_shown - n_kept + OPEN.len());
        self.place = self.begin_call(before);
        true
    }

    fn begin_call(&self, before: String) -> Place {
        let call = Box::new(JsonCall::new(self.rules.clone()));
        Place::Call { call, before }
    }

    fn call(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let Place::Call { call, before } = &mut self.place else {
            return false;
        };
        let text = std::mem::take(&mut self.held);
        let (reading, rest) = call.push(&text, events);
        match reading {
            Reading::Open => false,
            Reading::Call => {
                self.held = rest;
                self.has_calls = true;
                self.place = Place::Closing;
                true
            }
            Reading::Other => {
                let (is_within, before) = (!before.ends_with(OPEN), std::mem::take(before));
                push_content(events, before);
                let place = if is_within {
                    Place::Other
                } else {
                    Place::Content
                };
                // The text after the tag may contain another one.
                if let Place::Call { call, .. } = std::mem::replace(&mut self.place, place) {
                    self.held = call.into_text();
                }
                true
            }
        }
    }

    fn closing(&mut self) -> bool {
        let rest = self.held.trim_start();
        if let Some(rest) = rest.strip_prefix(CLOSE) {
            self.held = rest.to_owned();
            self.place = Place::Content;
        } else if rest.starts_with(OPEN) {
            self.place = Place::Content;
        } else if CLOSE.starts_with(rest) || OPEN.starts_with(rest) {
            return false;
        } else if rest.starts_with('{') {
            let before = self.held[..self.held.len() - rest.len()].to_owned();
            self.held = rest.to_owned();
            self.place = self.begin_call(before);
        } else {
            self.place = Place::Other;
        }
        true
    }

    fn other(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        let close = self.held.find(CLOSE);
        let open = self.held.find(OPEN);
        let n_waiting = held_bytes(&self.held, CLOSE).max(held_bytes(&self.held, OPEN));
        let ends = [close, open].into_iter().flatten().min();
        let n_content = ends.unwrap_or(self.held.len() - n_waiting);
        let rest = self.held.split_off(n_content);
        push_content(events, std::mem::replace(&mut self.held, rest));
        if ends.is_none() {
            return false;
        }
        if ends == close {
            self.held.drain(..CLOSE.len());
        }
        self.place = Place::Content;
        true
    }

    fn give_content(&self, text: String, events: &mut Vec<ToolEvent>) {
        if !(self.has_calls && text.trim().is_empty()) {
            push_content(events, text);
        }
    }
}
