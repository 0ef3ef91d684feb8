//! The response format of `/v1/chat/completions`.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::server::response::answer::{AnswerFormat, FinishedChoice, ResponseEnvelope};
use crate::server::response::chat_reading::ChatReading;
use crate::server::response::choice::{Piece, token_ids};
use crate::server::response::logprobs;
use crate::server::response::logprobs::TokenNames;

pub struct ChatFormat {
    pub envelope: ResponseEnvelope,
    pub reading: ChatReading,
    pub with_logprobs: bool,
    pub names: TokenNames,
    /// The prompt's token ids, until they have been sent.
    pub prompt_ids: Option<Arc<[u32]>>,
    /// Whether choices include their token ids.
    pub with_ids: bool,
}

impl ChatFormat {
    fn choice(&self, index: usize, key: &str, message: Value, piece: &Piece) -> Value {
        let logprobs = if self.with_logprobs {
            logprobs::chat(&self.reading.model.tokenizer, &piece.tokens, self.names)
        } else {
            Value::Null
        };
        let mut choice = json!({"index": index});
        choice[key] = message;
        choice["logprobs"] = logprobs;
        let reader = self.reading.reader(index);
        let end = piece.end.as_ref();
        choice["finish_reason"] = json!(end.map(|end| reader.finish_reason(end.finish_reason)));
        choice["stop_reason"] = json!(end.map(|end| &end.stop_reason));
        if self.with_ids {
            choice["token_ids"] = token_ids(piece);
        }
        choice
    }

    /// The first object of a response carries the prompt's token ids.
    fn object(&mut self, kind: &str, choices: Vec<Value>) -> Value {
        let mut object = self.envelope.object(kind, choices);
        if let Some(ids) = self.prompt_ids.take() {
            object["prompt_token_ids"] = json!(&*ids);
        }
        object
    }
}

impl AnswerFormat for ChatFormat {
    fn id(&self, _index: usize) -> &str {
        &self.envelope.id
    }

    fn record(&mut self, index: usize, piece: &Piece) {
        self.reading.count(index, piece);
    }

    fn n_reasoning_tokens(&self) -> Option<usize> {
        self.reading.n_reasoning_tokens()
    }

    fn opening(&mut self) -> Vec<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        (0..self.reading.n_choices())
            .map(|index| {
                let choice = json!({
                    "index": index,
                    "delta": delta,
                    "logprobs": null,
                    "finish_reason": null,
                });
                self.object("chat.completion.chunk", vec![choice])
            })
            .collect()
    }

    fn chunks(&mut self, index: usize, piece: &Piece) -> Vec<Value> {
        let part = self.reading.push(index, &piece.text, piece.end.is_some());
        let choice = self.choice(index, "delta", part.into_delta(), piece);
        vec![self.envelope.object("chat.completion.chunk", vec![choice])]
    }

    fn closing(&mut self, usage: Value) -> Vec<Value> {
        let mut object = self.envelope.object("chat.completion.chunk", Vec::new());
        object["usage"] = usage;
        vec![object]
    }

    fn whole(&mut self, choices: Vec<FinishedChoice>, usage: Value) -> Value {
        let choices = choices
            .into_iter()
            .enumerate()
            .map(|(index, choice)| {
                let part = self.reading.push(index, &choice.text, true);
                let message = part.into_message(self.reading.reader(index));
                let piece = Piece {
                    text: String::new(),
                    tokens: choice.tokens,
                    end: Some(choice.end),
                };
                self.choice(index, "message", message, &piece)
            })
            .collect();
        let mut object = self.object("chat.completion", choices);
        object["usage"] = usage;
        object
    }
}
