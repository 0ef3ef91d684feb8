//! Renders a conversation and handles what templates do not specify: unknown roles, and a last
//! message that is to be continued.
//!
//! `developer` is OpenAI's newer name of `system`; if a template does not mention it, the message
//! is rendered as a system message. Any other message that a template drops is refused: an
//! instruction or a tool result that disappears silently changes the response.
//! Deliberately absent: the same check for `user`, `assistant` and the first `system` message,
//! which every template supports.

use std::borrow::Cow;

use serde_json::Value as Json;

use super::{ChatInput, ChatTemplate};
use crate::text::TextError;

const DEVELOPER: &str = "developer";
const SYSTEM: &str = "system";

impl ChatTemplate {
    /// The prompt's text with every message in it. With `continues` the text ends with the last
    /// message's content, as if the model had just written it.
    ///
    /// # Errors
    ///
    /// [`TextError::NoChatTemplate`] if the model has none; [`TextError::Template`],
    /// [`TextError::TemplateRefused`] or [`TextError::TemplateLimit`] if it fails, refuses the
    /// messages or runs too long; [`TextError::RoleLeftOut`] or [`TextError::NotContinued`] if
    /// it leaves a message out or does not end with the last one.
    pub fn render_conversation(
        &self,
        input: &ChatInput<'_>,
        continues: bool,
    ) -> Result<String, TextError> {
        let messages = self.with_known_roles(input.messages);
        let input = ChatInput {
            messages: &messages,
            ..input.clone()
        };
        let text = if continues {
            self.render_open_ended(&input)?
        } else {
            self.render(&input)?
        };
        self.check_roles(&input)?;
        Ok(text)
    }

    fn with_known_roles<'a>(&self, messages: &'a [Json]) -> Cow<'a, [Json]> {
        let is_developer = |message: &Json| message["role"] == DEVELOPER;
        if self.mentions(DEVELOPER) || !messages.iter().any(is_developer) {
            return Cow::Borrowed(messages);
        }
        let mut messages = messages.to_vec();
        for message in messages.iter_mut().filter(|message| is_developer(message)) {
            message["role"] = Json::from(SYSTEM);
        }
        Cow::Owned(messages)
    }

    /// Like transformers: a marker is appended to the last content, and the text is cut there. If
    /// the template trims contents, trailing white space of the content is trimmed too.
    fn render_open_ended(&self, input: &ChatInput<'_>) -> Result<String, TextError> {
        let mut messages = input.messages.to_vec();
        // The space shows whether the template keeps trailing white space of a content.
        let mark = format!("{} ", unlikely_word());
        if let Some(last) = messages.last_mut() {
            let content = last["content"].as_str().unwrap_or_default();
            last["content"] = Json::from(format!("{content}{mark}"));
        }
        let mut text = self.render(&ChatInput {
            messages: &messages,
            ..input.clone()
        })?;
        let Some(end) = text.rfind(mark.trim_end()) else {
            return Err(TextError::NotContinued);
        };
        let keeps_space = text[end..].starts_with(&mark);
        text.truncate(end);
        if !keeps_space {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }

    /// Renders the conversation once more with contents that can be searched for.
    fn check_roles(&self, input: &ChatInput<'_>) -> Result<(), TextError> {
        let is_usual = |i: usize, message: &Json| match message["role"].as_str() {
            Some("user" | "assistant") => true,
            Some(SYSTEM) => i == 0,
            _ => false,
        };
        let messages = input.messages.iter().enumerate();
        let unusual: Vec<(usize, String)> = messages
            .filter(|(i, message)| !is_usual(*i, message))
            .map(|(i, _)| (i, unlikely_word()))
            .collect();
        if unusual.is_empty() {
            return Ok(());
        }
        let mut messages = input.messages.to_vec();
        for (i, word) in &unusual {
            messages[*i]["content"] = Json::from(word.as_str());
        }
        let marked = ChatInput {
            messages: &messages,
            ..input.clone()
        };
        // The conversation itself was rendered; a template that fails with other contents has read
        // them.
        let Ok(text) = self.render(&marked) else {
            return Ok(());
        };
        match unusual.iter().find(|(_, word)| !text.contains(word)) {
            Some((index, _)) => Err(TextError::RoleLeftOut {
                index: *index,
                role: messages[*index]["role"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// A word that clients cannot know, so none can put it into a message.
pub(super) fn unlikely_word() -> String {
    format!("mark{:032x}", rand::random::<u128>())
}
