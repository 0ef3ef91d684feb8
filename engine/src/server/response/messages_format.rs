//! The response format of Anthropic's `/v1/messages`: blocks of content, and its events.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::server::error::ApiError;
use crate::server::response::answer::{AnswerFormat, FinishedChoice};
use crate::server::response::blocks::{Block, BlockEvent, BlockKind, Blocks};
use crate::server::response::chat_reading::ChatReading;
use crate::server::response::choice::{ChoiceEnd, Piece};
use crate::text::has_large_integers;

pub struct MessagesFormat {
    id: String,
    reading: ChatReading,
    n_prompt: usize,
    blocks: Blocks,
    /// Ids of the blocks that are calls.
    call_ids: Vec<String>,
    /// Events that have not been sent.
    queued: Vec<Value>,
    /// `stop_reason` and `stop_sequence`.
    stop: (Value, Value),
}

impl MessagesFormat {
    pub fn new(reading: ChatReading, n_prompt: usize) -> Self {
        Self {
            id: format!("msg_{:032x}", rand::random::<u128>()),
            reading,
            n_prompt,
            blocks: Blocks::default(),
            call_ids: Vec::new(),
            queued: Vec::new(),
            stop: (Value::Null, Value::Null),
        }
    }

    fn message(&self, content: Value, usage: Value) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.reading.model.name(),
            "content": content,
            "stop_reason": self.stop.0,
            "stop_sequence": self.stop.1,
            "usage": usage,
        })
    }

    fn queue(&mut self, event: BlockEvent) {
        match event {
            BlockEvent::Begin(index) => {
                let id = match self.blocks.all()[index].kind {
                    BlockKind::Call(_) => format!("toolu_{:024x}", rand::random::<u128>() >> 32),
                    _ => String::new(),
                };
                self.call_ids.push(id);
                let empty = self.empty_block(index);
                self.queued.push(json!({
                    "type": "content_block_start", "index": index, "content_block": empty,
                }));
            }
            BlockEvent::Delta(index, text) => {
                let delta = match self.blocks.all()[index].kind {
                    BlockKind::Thought => json!({"type": "thinking_delta", "thinking": text}),
                    BlockKind::Text => json!({"type": "text_delta", "text": text}),
                    BlockKind::Call(_) => json!({"type": "input_json_delta", "partial_json": text}),
                };
                self.queue_delta(index, delta);
            }
            BlockEvent::End(index) => {
                let block = &self.blocks.all()[index];
                if block.kind == BlockKind::Thought {
                    let signature = signature(&block.text);
                    let delta = json!({"type": "signature_delta", "signature": signature});
                    self.queue_delta(index, delta);
                }
                let stop = json!({"type": "content_block_stop", "index": index});
                self.queued.push(stop);
            }
        }
    }

    fn queue_delta(&mut self, index: usize, delta: Value) {
        let event = json!({"type": "content_block_delta", "index": index, "delta": delta});
        self.queued.push(event);
    }

    fn empty_block(&self, index: usize) -> Value {
        match &self.blocks.all()[index].kind {
            BlockKind::Thought => json!({"type": "thinking", "thinking": "", "signature": ""}),
            BlockKind::Text => json!({"type": "text", "text": ""}),
            BlockKind::Call(name) => {
                json!({"type": "tool_use", "id": self.call_ids[index], "name": name, "input": {}})
            }
        }
    }

    fn block(&self, index: usize, block: &Block) -> Value {
        let mut value = self.empty_block(index);
        match block.kind {
            BlockKind::Thought => {
                value["thinking"] = json!(block.text);
                value["signature"] = json!(signature(&block.text));
            }
            BlockKind::Text => value["text"] = json!(block.text),
            BlockKind::Call(_) => value["input"] = input(&block.text),
        }
        value
    }

    fn set_stop(&mut self, end: &ChoiceEnd) {
        let reason = self.reading.reader(0).finish_reason(end.finish_reason);
        self.stop = match (reason, &end.stop_reason) {
            ("tool_calls", _) => (json!("tool_use"), Value::Null),
            ("length", _) => (json!("max_tokens"), Value::Null),
            ("stop", Value::String(text)) => (json!("stop_sequence"), json!(text)),
            ("stop", _) => (json!("end_turn"), Value::Null),
            // Aborted by the operator.
            (other, _) => (json!(other), Value::Null),
        };
    }
}

/// Clients send a thought back with its signature; it is not checked then.
fn signature(thought: &str) -> String {
    format!("{:x}", Sha256::digest(thought))
}

/// A call's input. What is no JSON object, or would lose digits as one, stays text.
fn input(arguments: &str) -> Value {
    match serde_json::from_str::<Value>(arguments) {
        Ok(object @ Value::Object(_)) if has_large_integers(arguments) == Ok(false) => object,
        _ => json!(arguments),
    }
}

/// Token counts in Anthropic's terms, where the input is what was not cached.
fn usage_of(usage: &Value) -> Value {
    let cached = &usage["prompt_tokens_details"]["cached_tokens"];
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    json!({
        "input_tokens": count(&usage["prompt_tokens"]).saturating_sub(count(cached)),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": count(cached),
        "output_tokens": count(&usage["completion_tokens"]),
    })
}

impl AnswerFormat for MessagesFormat {
    const IS_TYPED: bool = true;

    fn id(&self, _index: usize) -> &str {
        &self.id
    }

    fn n_reasoning_tokens(&self) -> Option<usize> {
        self.reading.n_reasoning_tokens()
    }

    fn record(&mut self, index: usize, piece: &Piece) {
        self.reading.count(index, piece);
        let part = self.reading.push(index, &piece.text, piece.end.is_some());
        let mut events = self.blocks.push(part);
        if let Some(end) = &piece.end {
            events.extend(self.blocks.close());
            self.set_stop(end);
        }
        for event in events {
            self.queue(event);
        }
    }

    fn opening(&mut self) -> Vec<Value> {
        // What of the prompt is cached is known at the end.
        let usage = usage_of(&json!({"prompt_tokens": self.n_prompt}));
        let message = self.message(json!([]), usage);
        vec![
            json!({"type": "message_start", "message": message}),
            json!({"type": "ping"}),
        ]
    }

    fn chunks(&mut self, _index: usize, _piece: &Piece) -> Vec<Value> {
        std::mem::take(&mut self.queued)
    }

    fn closing(&mut self, usage: Value) -> Vec<Value> {
        let (reason, sequence) = &self.stop;
        let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
        let usage = usage_of(&usage);
        vec![
            json!({"type": "message_delta", "delta": delta, "usage": usage}),
            json!({"type": "message_stop"}),
        ]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Value> {
        vec![error.anthropic_body()]
    }

    fn whole(&mut self, _choices: Vec<FinishedChoice>, usage: Value) -> Value {
        let blocks = self.blocks.all().iter().enumerate();
        let content = blocks.map(|(i, block)| self.block(i, block)).collect();
        self.message(content, usage_of(&usage))
    }
}
