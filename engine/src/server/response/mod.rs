//! From an engine's stream to JSON: choices, their text and tokens, whole or as events.

pub mod answer;
pub(super) mod blocks;
pub mod cached;
pub(super) mod chat_format;
pub(super) mod chat_reading;
pub mod choice;
pub(super) mod generate_format;
pub(super) mod logprobs;
pub(super) mod message_reader;
pub(super) mod messages_format;
pub(super) mod responses_format;
pub(super) mod sent_event;
pub(super) mod thought_tokens;
pub(super) mod usage;
