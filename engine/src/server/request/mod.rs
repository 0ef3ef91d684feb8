//! From JSON to a request that can be run: fields, messages, prompts that fit, and forms.
//!
//! Whatever is not understood is refused by its name.

pub(super) mod anthropic_messages;
pub mod anthropic_request;
pub(super) mod cache_salt;
pub(super) mod chat_request;
pub(super) mod completion_request;
pub mod converted;
pub(super) mod description;
pub mod exclusion_fields;
pub mod fields;
pub(super) mod foreign_fields;
pub mod generate_request;
pub(super) mod grammar_compiling;
pub(super) mod message_content;
pub mod messages;
pub(super) mod parts;
pub mod prompt;
pub(super) mod responses_items;
pub mod responses_request;
pub mod sampling_fields;
pub(super) mod structured_fields;
pub mod tool_fields;
