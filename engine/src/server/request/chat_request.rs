//! The fields of a chat: those of every API whose requests become one ([`ChatRequest`]), and those
//! of `/v1/chat/completions` alone ([`ChatForm`]).

use serde_json::json;

use crate::served_model::{Limits, Seeds};
use crate::server::error::ApiError;
use crate::server::request::fields::Fields;
use crate::server::request::foreign_fields;
use crate::server::request::messages::Conversation;
use crate::server::request::sampling_fields::Generation;
use crate::server::request::structured_fields::RequestedFormat;
use crate::server::request::tool_fields::ToolUse;
use crate::server::response::logprobs::{TokenNames, take_chat_fields};
use crate::server::running::take_id;
use crate::text::ToolCallFormat;

/// A chat, checked except for its length.
pub struct ChatRequest {
    pub conversation: Conversation,
    pub generation: Generation,
    pub tool_use: ToolUse,
    /// The format of the output.
    pub asked: Option<RequestedFormat>,
    /// Whether thoughts are not a part of the content.
    pub separates: bool,
    pub add_special: bool,
}

impl ChatRequest {
    /// Takes a chat's fields, except those that concern only the form of its response.
    ///
    /// # Errors
    ///
    /// The first field that is missing, of the wrong type, out of its range or not supported.
    pub fn take(
        fields: &mut Fields,
        limits: &Limits,
        seeds: &Seeds,
        n_logprobs: Option<usize>,
        format: Option<ToolCallFormat>,
    ) -> Result<Self, ApiError> {
        let conversation = Conversation::take(fields)?;
        refuse_unsupported(fields)?;
        foreign_fields::refuse(fields)?;
        let mut generation = Generation::take(fields, limits, seeds, n_logprobs)?;
        let mut tool_use = ToolUse::take(fields, conversation.tools(), format)?;
        let asked = tool_use.output(generation.asked.take());
        Ok(Self {
            conversation,
            generation,
            tool_use,
            asked,
            separates: fields.bool("separate_reasoning")?.unwrap_or(true),
            add_special: fields.bool("add_special_tokens")?.unwrap_or(false),
        })
    }
}

/// The form of an answer.
pub struct ChatForm {
    pub id: Option<String>,
    /// Whether choices include their token ids.
    pub with_ids: bool,
    pub names: TokenNames,
    pub n_logprobs: Option<usize>,
}

impl ChatForm {
    /// Takes the fields of the form.
    ///
    /// # Errors
    ///
    /// The first field that is of the wrong type or out of its range.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        Ok(Self {
            id: take_id(fields, "chatcmpl")?,
            with_ids: fields.bool("return_token_ids")?.unwrap_or(false),
            names: TokenNames::take(fields)?,
            n_logprobs: take_chat_fields(fields)?,
        })
    }
}

fn refuse_unsupported(fields: &mut Fields) -> Result<(), ApiError> {
    fields.refuse("functions", &[json!([])])?;
    fields.refuse("function_call", &[json!("none"), json!("auto")])?;
    fields.refuse("modalities", &[json!(["text"])])?;
    fields.refuse("audio", &[])?;
    fields.refuse("echo", &[json!(false)])?;
    Ok(())
}
