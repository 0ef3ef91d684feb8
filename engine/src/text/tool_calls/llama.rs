//! `{"name": …, "parameters": …}`, as Llama 3 writes it: the whole output is calls separated by
//! `;`, or it is content. Any JSON may be an answer, so a call must have arguments.

use super::json_call::{JsonCall, Reading, Rules};
use super::{ToolEvent, push_content};

const TAG: &str = "<|python_tag|>";

#[derive(Debug, Default)]
pub struct LlamaParser {
    rules: Rules,
    held: String,
    place: Place,
    has_calls: bool,
}

#[derive(Debug, Default)]
enum Place {
    /// Before an optional call.
    #[default]
    Start,
    /// An object, and the text before it, which belongs to the content if this is not a call.
    Call {
        call: Box<JsonCall>,
        before: String,
    },
    Content,
}

impl LlamaParser {
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
            Place::Call { call, .. } if call.is_announced() => {}
            Place::Call { call, before } => push_content(events, before + &call.into_text()),
            Place::Start if self.has_calls && held.trim().is_empty() => {}
            Place::Start | Place::Content => push_content(events, held),
        }
    }

    /// Returns true if there may be more to parse.
    fn step(&mut self, events: &mut Vec<ToolEvent>) -> bool {
        match &mut self.place {
            Place::Start => {
                let mut begun = self.held.trim_start();
                if self.has_calls {
                    begun = begun.strip_prefix(';').unwrap_or(begun).trim_start();
                }
                begun = begun.strip_prefix(TAG).unwrap_or(begun).trim_start();
                if begun.starts_with('{') {
                    let object = begun.to_owned();
                    self.held.truncate(self.held.len() - object.len());
                    let before = std::mem::replace(&mut self.held, object);
                    let call = Box::new(JsonCall::new(self.rules.clone()));
                    self.place = Place::Call { call, before };
                    return true;
                }
                if TAG.starts_with(begun) {
                    return false;
                }
                self.place = Place::Content;
                true
            }
            Place::Call { call, before } => {
                let text = std::mem::take(&mut self.held);
                let (reading, rest) = call.push(&text, events);
                match reading {
                    Reading::Open => false,
                    Reading::Call => {
                        self.held = rest;
                        self.has_calls = true;
                        self.place = Place::Start;
                        true
                    }
                    Reading::Other => {
                        let before = std::mem::take(before);
                        let place = std::mem::replace(&mut self.place, Place::Content);
                        if let Place::Call { call, .. } = place {
                            self.held = before + &call.into_text();
                        }
                        true
                    }
                }
            }
            Place::Content => {
                push_content(events, std::mem::take(&mut self.held));
                false
            }
        }
    }
}
