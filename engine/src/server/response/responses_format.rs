//! The response format of OpenAI's `/v1/responses`: items of output, and its typed events.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::request::SampledToken;
use crate::server::error::ApiError;
use crate::server::response::answer::{AnswerFormat, FinishedChoice, now_s};
use crate::server::response::blocks::{Block, BlockEvent, BlockKind, Blocks};
use crate::server::response::chat_reading::ChatReading;
use crate::server::response::choice::Piece;
use crate::server::response::logprobs::{self, TokenNames};
use crate::server::state::AppState;
use crate::server::stored_responses::Stored;

/// Where the response will be kept.
pub struct Keeping {
    pub state: Arc<AppState>,
    pub input: Vec<Value>,
    pub previous: Option<String>,
}

pub struct ResponsesFormat {
    /// The response without its output.
    response: Value,
    reading: ChatReading,
    blocks: Blocks,
    /// One for each block.
    items: Vec<Item>,
    /// Events that have not been sent.
    queued: Vec<Value>,
    n_events: u64,
    with_logprobs: bool,
    /// Tokens whose text has not been seen yet.
    unseen: Vec<SampledToken>,
    /// Why the output ended early.
    incomplete: Option<&'static str>,
    keeping: Option<Keeping>,
}

/// What a block has besides its text.
struct Item {
    id: String,
    call_id: String,
    logprobs: Vec<Value>,
}

impl ResponsesFormat {
    /// `echoed`: what the response repeats of the request.
    pub fn new(
        reading: ChatReading,
        echoed: Map<String, Value>,
        with_logprobs: bool,
        keeping: Option<Keeping>,
    ) -> Self {
        let mut response = json!({
            "id": format!("resp_{:032x}", rand::random::<u128>()),
            "object": "response",
            "created_at": now_s(),
            "status": "in_progress",
            "error": null,
            "incomplete_details": null,
            "model": reading.model.name(),
            "output": [],
            "service_tier": "default",
            "truncation": "disabled",
            "usage": null,
        });
        for (name, value) in echoed {
            response[name] = value;
        }
        Self {
            response,
            reading,
            blocks: Blocks::default(),
            items: Vec::new(),
            queued: Vec::new(),
            n_events: 0,
            with_logprobs,
            unseen: Vec::new(),
            incomplete: None,
            keeping,
        }
    }

    fn event(&mut self, kind: &str, fields: Value) -> Value {
        let mut event = json!({"type": kind, "sequence_number": self.n_events});
        self.n_events += 1;
        if let (Some(event), Value::Object(fields)) = (event.as_object_mut(), fields) {
            event.extend(fields);
        }
        event
    }

    fn queue(&mut self, kind: &str, fields: Value) {
        let event = self.event(kind, fields);
        self.queued.push(event);
    }

    fn read(&mut self, event: BlockEvent) {
        match event {
            BlockEvent::Begin(index) => self.begin(index),
            BlockEvent::Delta(index, text) => self.extend(index, &text),
            BlockEvent::End(index) => self.end(index),
        }
    }

    fn begin(&mut self, index: usize) {
        let block = Block {
            kind: self.blocks.all()[index].kind.clone(),
            text: String::new(),
        };
        let prefix = match block.kind {
            BlockKind::Thought => "rs",
            BlockKind::Text => "msg",
            BlockKind::Call(_) => "fc",
        };
        self.items.push(Item {
            id: format!("{prefix}_{:032x}", rand::random::<u128>()),
            call_id: format!("call_{:024x}", rand::random::<u128>() >> 32),
            logprobs: Vec::new(),
        });
        let mut item = self.item(index, &block, "in_progress");
        let content = item.get_mut("content").and_then(Value::as_array_mut);
        let part = content.and_then(Vec::pop);
        let fields = json!({"output_index": index, "item": item});
        self.queue("response.output_item.added", fields);
        if let Some(part) = part {
            self.queue_at(index, "response.content_part.added", json!({"part": part}));
        }
    }

    fn extend(&mut self, index: usize, text: &str) {
        match self.blocks.all()[index].kind {
            BlockKind::Thought => {
                self.queue_at(
                    index,
                    "response.reasoning_text.delta",
                    json!({"delta": text}),
                );
            }
            BlockKind::Text => {
                let logprobs = self.logprobs_of(text);
                let fields = json!({"delta": text, "logprobs": logprobs});
                self.items[index].logprobs.extend(logprobs);
                self.queue_at(index, "response.output_text.delta", fields);
            }
            BlockKind::Call(_) => {
                let kind = "response.function_call_arguments.delta";
                self.queue_at(index, kind, json!({"delta": text}));
            }
        }
        self.unseen.clear();
    }

    fn end(&mut self, index: usize) {
        let block = self.blocks.all()[index].clone();
        let is_last = index + 1 == self.blocks.all().len();
        let status = match self.incomplete {
            Some(_) if is_last => "incomplete",
            _ => "completed",
        };
        let item = self.item(index, &block, status);
        let part = &item["content"][0];
        let text = &block.text;
        match &block.kind {
            BlockKind::Thought => {
                self.queue_at(index, "response.reasoning_text.done", json!({"text": text}));
            }
            BlockKind::Text => {
                let fields = json!({"text": text, "logprobs": part["logprobs"]});
                self.queue_at(index, "response.output_text.done", fields);
            }
            BlockKind::Call(name) => {
                let fields = json!({"name": name, "arguments": text});
                self.queue_at(index, "response.function_call_arguments.done", fields);
            }
        }
        if !part.is_null() {
            self.queue_at(index, "response.content_part.done", json!({"part": part}));
        }
        let fields = json!({"output_index": index, "item": item});
        self.queue("response.output_item.done", fields);
    }

    /// Queues an event about an item, or the only part of its content.
    fn queue_at(&mut self, index: usize, kind: &str, mut fields: Value) {
        fields["output_index"] = json!(index);
        fields["item_id"] = json!(self.items[index].id);
        if !matches!(self.blocks.all()[index].kind, BlockKind::Call(_)) {
            fields["content_index"] = json!(0);
        }
        self.queue(kind, fields);
    }

    fn item(&self, index: usize, block: &Block, status: &str) -> Value {
        let Item {
            id,
            call_id,
            logprobs,
        } = &self.items[index];
        let text = &block.text;
        match &block.kind {
            BlockKind::Thought => json!({
                "type": "reasoning", "id": id, "summary": [], "encrypted_content": null,
                "content": [{"type": "reasoning_text", "text": text}], "status": status,
            }),
            BlockKind::Text => json!({
                "type": "message", "id": id, "role": "assistant", "status": status,
                "content": [{
                    "type": "output_text", "text": text, "annotations": [], "logprobs": logprobs,
                }],
            }),
            BlockKind::Call(name) => json!({
                "type": "function_call", "id": id, "call_id": call_id, "name": name,
                "arguments": text, "status": status,
            }),
        }
    }

    /// Log-probabilities of the tokens that a text ends with: the last ones whose bytes cover it.
    fn logprobs_of(&self, text: &str) -> Vec<Value> {
        if !self.with_logprobs {
            return Vec::new();
        }
        let tokenizer = &self.reading.model.tokenizer;
        let mut n_left = text.len();
        let mut first = self.unseen.len();
        while n_left > 0 && first > 0 {
            first -= 1;
            let n_bytes = tokenizer.token_bytes(self.unseen[first].token).len();
            n_left = n_left.saturating_sub(n_bytes);
        }
        let mut shown = logprobs::chat(tokenizer, &self.unseen[first..], TokenNames::Text);
        match shown["content"].take() {
            Value::Array(tokens) => tokens,
            _ => Vec::new(),
        }
    }

    /// The finished response, after it has been kept.
    fn finished(&mut self, usage: &Value) -> Value {
        let blocks = self.blocks.all().iter().enumerate();
        let n_blocks = self.blocks.all().len();
        let output: Vec<Value> = blocks
            .map(|(i, block)| {
                let is_cut = self.incomplete.is_some() && i + 1 == n_blocks;
                self.item(i, block, if is_cut { "incomplete" } else { "completed" })
            })
            .collect();
        let mut response = self.response.clone();
        response["output"] = output.into();
        response["usage"] = usage_of(usage);
        match self.incomplete {
            None => {
                response["status"] = json!("completed");
                response["completed_at"] = json!(now_s());
            }
            Some(reason) => {
                response["status"] = json!("incomplete");
                response["incomplete_details"] = json!({"reason": reason});
            }
        }
        if let Some(keeping) = self.keeping.take() {
            let id = self.id(0).to_owned();
            let stored = Stored {
                response: response.clone(),
                input: keeping.input,
                previous: keeping.previous,
            };
            let is_kept = keeping.state.stored_responses.put(&id, stored);
            response["store"] = json!(is_kept);
        }
        response
    }
}

fn usage_of(usage: &Value) -> Value {
    let count = |path: &str| usage.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    json!({
        "input_tokens": count("/prompt_tokens"),
        "input_tokens_details": {"cached_tokens": count("/prompt_tokens_details/cached_tokens")},
        "output_tokens": count("/completion_tokens"),
        "output_tokens_details": {
            "reasoning_tokens": count("/completion_tokens_details/reasoning_tokens"),
        },
        "total_tokens": count("/total_tokens"),
    })
}

impl AnswerFormat for ResponsesFormat {
    const IS_TYPED: bool = true;

    fn id(&self, _index: usize) -> &str {
        self.response["id"].as_str().unwrap_or_default()
    }

    fn largest_piece(&self) -> usize {
        // A piece of several tokens does not say which of them are a text's.
        if self.with_logprobs { 1 } else { usize::MAX }
    }

    fn n_reasoning_tokens(&self) -> Option<usize> {
        self.reading.n_reasoning_tokens()
    }

    fn record(&mut self, index: usize, piece: &Piece) {
        self.reading.count(index, piece);
        if self.with_logprobs {
            let ends = &self.reading.model.eos_token_ids;
            let tokens = piece
                .tokens
                .iter()
                .filter(|sampled| !ends.contains(&sampled.token));
            self.unseen.extend(tokens.cloned());
        }
        let part = self.reading.push(index, &piece.text, piece.end.is_some());
        let mut events = self.blocks.push(part);
        if let Some(end) = &piece.end {
            self.incomplete = match end.finish_reason {
                "stop" => None,
                "length" => Some("max_output_tokens"),
                // Aborted by the operator.
                other => Some(other),
            };
            events.extend(self.blocks.close());
        }
        for event in events {
            self.read(event);
        }
    }

    fn opening(&mut self) -> Vec<Value> {
        let fields = json!({"response": self.response});
        vec![
            self.event("response.created", fields.clone()),
            self.event("response.in_progress", fields),
        ]
    }

    fn chunks(&mut self, _index: usize, _piece: &Piece) -> Vec<Value> {
        std::mem::take(&mut self.queued)
    }

    fn closing(&mut self, usage: Value) -> Vec<Value> {
        let response = self.finished(&usage);
        let kind = match self.incomplete {
            None => "response.completed",
            Some(_) => "response.incomplete",
        };
        vec![self.event(kind, json!({"response": response}))]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Value> {
        let mut response = self.response.clone();
        response["status"] = json!("failed");
        response["error"] = json!({"code": error.code.word(), "message": error.message});
        vec![self.event("response.failed", json!({"response": response}))]
    }

    fn whole(&mut self, _choices: Vec<FinishedChoice>, usage: Value) -> Value {
        self.finished(&usage)
    }
}
