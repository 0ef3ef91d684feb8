//! `<tool_call>{"name": …, "arguments": …}</tool_call>`, as Hermes and Qwen write it.

use super::json_call::{JsonCall, Reading};
use super::{ToolEvent, push_content};
use crate::text::held::take_before;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

#[derive(Debug, Default)]
pub struct HermesParser {
    held: String,
    place: Place,
    /// A call came: white space between calls is nobody's content.
    has_calls: bool,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Content,
    Call(Box<JsonCall>),
    /// Behind a call's object, before its tag is closed.
    Closing,
}

impl HermesParser {
    pub fn push(&mut self, text: &str, events: &mut Vec<ToolEvent>) {
        self.held.push_str(text);
        while self.step(events) {}
    }

    pub fn finish(&mut self, events: &mut Vec<ToolEvent>) {
        match std::mem::take(&mut self.place) {
            Place::Content => {
                let held = std::mem::take(&mut self.held);
                self.give_content(held, events);
            }
            // Cut off: what was given on stays.
            Place::Call(call) if call.is_announced() => {}
            Place::Call(call) => {
                push_content(events, format!("{OPEN}{}", call.into_text()));
            }
            Place::Closing => {}
        }
    }

    /// True if there may be more to read.
    fn step(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        match &mut self.place {
            Place::Content => {
                let (before, is_opened) = take_before(&mut self.held, OPEN);
                // Line breaks before a call set it off from the content.
                let n_kept = before.trim_end().len();
                if is_opened {
                    self.give_content(before[..n_kept].to_owned(), events);
                    self.place = Place::Call(Box::default());
                } else {
                    self.held.insert_str(0, &before[n_kept..]);
                    self.give_content(before[..n_kept].to_owned(), events);
                }
                is_opened
            }
            Place::Call(call) => {
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
                        let Place::Call(call) = std::mem::take(&mut self.place) else {
                            return false;
                        };
                        // The tag is text; what stands behind it may have another one.
                        push_content(events, OPEN.to_owned());
                        self.held = call.into_text();
                        true
                    }
                }
            }
            Place::Closing => {
                let (_, is_closed) = take_before(&mut self.held, CLOSE);
                if is_closed {
                    self.place = Place::Content;
                }
                is_closed
            }
        }
    }

    fn give_content(&self, text: String, events: &mut Vec<ToolEvent>) {
        if !(self.has_calls && text.trim().is_empty()) {
            push_content(events, text);
        }
    }
}
