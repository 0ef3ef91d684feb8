//! A conversation through a template, with what templates leave open: roles that a template does
//! not know, and a last message that is to be continued.
//!
//! `developer` is OpenAI's newer name of `system`; where a template does not mention it, the message
//! is rendered as the system's. Any other message that a template leaves out is refused: an
//! instruction or a tool's result that disappears silently changes the answer.
//! Deliberately absent: the same check for `user`, `assistant` and the first `system` message,
//! which every template is written for.

use std::borrow::Cow;

use serde_json::Value as Json;

use super::{ChatInput, ChatTemplate};
use crate::text::TextError;

const DEVELOPER: &str = "developer";
const SYSTEM: &str = "system";

impl ChatTemplate {
    /// The prompt's text, with every message in it. With `continues` the text ends with the last
    /// message's content, as if the model had just written it.
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

    /// As transformers does it: the last content gets a mark, and the text is cut there. Where the
    /// template trims contents, white space at the content's end is trimmed, too.
    fn render_open_ended(&self, input: &ChatInput<'_>) -> Result<String, TextError> {
        let mut messages = input.messages.to_vec();
        // The space shows whether the template keeps white space at the end of a content.
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

    /// Renders the conversation once more with contents that can be looked for.
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
        // The conversation itself was rendered; a template that cannot do without its contents
        // has read them.
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

/// No client can know it, so none can write it into a message.
pub(super) fn unlikely_word() -> String {
    format!("mark{:032x}", rand::random::<u128>())
}
