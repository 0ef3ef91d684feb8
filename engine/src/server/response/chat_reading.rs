//! Reads a chat's output, choice by choice: its parts, and how many of its tokens are reasoning.

use crate::server::request::tool_fields::ToolUse;
use crate::server::response::answer::SharedModel;
use crate::server::response::choice::Piece;
use crate::server::response::message_reader::{MessagePart, MessageReader};
use crate::server::response::thought_tokens::ThoughtTokens;
use crate::text::reasoning::content_of_prefill;
use crate::text::{ThoughtSplitter, ThoughtStart};

/// A tool call ends reasoning that has not been closed.
const CALL_TAGS: &[&[u8]] = &[b"<tool_call>"];

/// Where the output begins, and what it may contain.
pub struct OutputForm<'a> {
    /// `None` if reasoning is not parsed.
    pub thought_start: Option<ThoughtStart>,
    /// Whether reasoning is separated from the content.
    pub separates: bool,
    pub tool_use: &'a ToolUse,
    /// The text that the prompt has begun the answer with.
    pub prefill: Option<&'a str>,
    pub n_choices: usize,
}

pub struct ChatReading {
    pub model: SharedModel,
    /// One for each choice.
    readers: Vec<MessageReader>,
    /// One for each choice, if reasoning is parsed.
    thought_tokens: Option<Vec<ThoughtTokens>>,
}

impl ChatReading {
    pub fn new(model: SharedModel, form: &OutputForm) -> Self {
        let tags = if form.tool_use.format.is_some() {
            CALL_TAGS
        } else {
            &[]
        };
        let counters = form.thought_start.map(|start| {
            (0..form.n_choices)
                .map(|_| ThoughtTokens::new(start, tags))
                .collect()
        });
        Self {
            model,
            readers: (0..form.n_choices).map(|_| form.reader()).collect(),
            thought_tokens: counters,
        }
    }

    pub fn n_choices(&self) -> usize {
        self.readers.len()
    }

    /// Counts the tokens of a piece.
    pub fn count(&mut self, index: usize, piece: &Piece) {
        let Some(counter) = self.thought_tokens.as_mut().and_then(|c| c.get_mut(index)) else {
            return;
        };
        for sampled in &piece.tokens {
            if !self.model.eos_token_ids.contains(&sampled.token) {
                counter.push(&self.model.tokenizer.token_bytes(sampled.token));
            }
        }
    }

    pub fn n_reasoning_tokens(&self) -> Option<usize> {
        let counters = self.thought_tokens.as_ref()?;
        Some(counters.iter().map(ThoughtTokens::count).sum())
    }

    /// Parses the next text of a choice, the last one if `is_end`.
    pub fn push(&mut self, index: usize, text: &str, is_end: bool) -> MessagePart {
        self.readers[index].push(text, is_end)
    }

    pub fn reader(&self, index: usize) -> &MessageReader {
        &self.readers[index]
    }
}

impl OutputForm<'_> {
    fn reader(&self) -> MessageReader {
        let thoughts = self.thought_start.filter(|_| self.separates);
        let max_calls = if self.tool_use.is_single {
            1
        } else {
            usize::MAX
        };
        let reader = MessageReader::new(
            thoughts.map(|start| ThoughtSplitter::new(start).with_calls(self.tool_use.format)),
            self.tool_use.parser(),
            max_calls,
        );
        match self.prefill {
            None => reader,
            Some(prefill) => reader.after(content_of_prefill(prefill)),
        }
    }
}
