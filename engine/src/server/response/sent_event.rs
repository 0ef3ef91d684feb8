//! One server-sent event of an answer, before it is written.

use axum::response::sse::Event;
use serde_json::Value;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SentEvent {
    name: Option<String>,
    data: String,
}

impl SentEvent {
    /// A chunk; `is_typed`: whether its event is named by its `type`.
    pub fn of_chunk(chunk: &Value, is_typed: bool) -> Self {
        let name = chunk["type"].as_str().filter(|_| is_typed);
        Self {
            name: name.map(str::to_owned),
            data: chunk.to_string(),
        }
    }

    /// What ends a stream whose events have no names.
    pub fn done() -> Self {
        Self {
            name: None,
            data: "[DONE]".to_owned(),
        }
    }

    pub fn data(&self) -> &str {
        &self.data
    }

    /// What keeping it takes.
    pub fn n_bytes(&self) -> usize {
        let name = self.name.as_ref().map_or(0, String::len);
        size_of::<Self>() + name + self.data.len()
    }

    pub fn to_sse(&self) -> Event {
        let event = match &self.name {
            Some(name) => Event::default().event(name),
            None => Event::default(),
        };
        event.data(&self.data)
    }
}
