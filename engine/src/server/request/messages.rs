//! Validates a conversation and converts it to the form that chat templates expect.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;

use crate::served_model::ServedModel;
use crate::server::error::ApiError;
use crate::server::request::fields::{Fields, show};
use crate::server::request::message_content::{check_message, message_schema};
use crate::server::transport::blocking::run_blocking_limited;
use crate::text::{ChatInput, ChatTemplate, TextError};

const MAX_MESSAGES: usize = 4096;

/// The fields of a conversation beside its messages.
pub(crate) const BESIDE_MESSAGES: [&str; 11] = [
    "tools",
    "tool_choice",
    "chat_template_kwargs",
    THINKING,
    EFFORT,
    "chat_template",
    "documents",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "continue_final_message",
    "add_generation_prompt",
];

/// Template variables that can also be request fields.
const THINKING: &str = "enable_thinking";
const EFFORT: &str = "reasoning_effort";

/// The input of the chat template.
#[derive(Debug, Clone)]
pub struct Conversation {
    messages: Vec<Value>,
    tools: Option<Vec<Value>>,
    add_generation_prompt: bool,
    /// Whether the last message is the beginning of the response.
    continues: bool,
    /// Reasoning effort, in OpenAI's terms.
    effort: Option<String>,
    template_kwargs: Map<String, Value>,
}

impl Conversation {
    /// Takes the fields of a chat.
    ///
    /// # Errors
    ///
    /// The first field that is missing, of the wrong type, out of its range or not supported,
    /// with its place in `messages` or `tools`.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        fields.shape("messages", || {
            let message = message_schema();
            json!({"type": "array", "items": message, "minItems": 1, "maxItems": MAX_MESSAGES})
        });
        let messages = fields.array("messages")?;
        let messages = fields.required("messages", messages, "an array of messages")?;
        if messages.is_empty() || messages.len() > MAX_MESSAGES {
            let n = messages.len();
            let message =
                format!("messages has {n} messages, but must have from 1 to {MAX_MESSAGES}");
            return Err(ApiError::invalid("messages", message));
        }
        let messages = messages
            .into_iter()
            .enumerate()
            .map(|(i, message)| check_message(i, message))
            .collect::<Result<_, _>>()?;
        fields.shape("tools", || {
            let name = json!({"type": "string", "minLength": 1});
            let function = json!({
                "type": "object", "properties": {"name": name}, "required": ["name"],
            });
            let tool = json!({
                "type": "object", "properties": {"function": function}, "required": ["function"],
            });
            json!({"type": "array", "items": tool})
        });
        let tools = fields.array("tools")?.filter(|tools| !tools.is_empty());
        for (i, tool) in tools.iter().flatten().enumerate() {
            check_tool(i, tool)?;
        }
        // `none` hides the tools from the model, as in vLLM.
        let tools = tools.filter(|_| !is_none_choice(fields));
        let mut template_kwargs = fields
            .object("chat_template_kwargs")?
            .map(Fields::into_map)
            .unwrap_or_default();
        if let Some(thinks) = fields.bool(THINKING)? {
            template_kwargs.insert(THINKING.to_owned(), Value::Bool(thinks));
        }
        let effort = fields.string(EFFORT)?;
        refuse_of_template(fields)?;
        let continues = fields.bool("continue_final_message")?.unwrap_or(false);
        let asks_for_prompt = fields.bool("add_generation_prompt")?;
        let conversation = Self {
            messages,
            tools,
            add_generation_prompt: asks_for_prompt.unwrap_or(!continues),
            continues,
            effort,
            template_kwargs,
        };
        conversation.check_prefill()?;
        Ok(conversation)
    }

    fn check_prefill(&self) -> Result<(), ApiError> {
        const NAME: &str = "continue_final_message";
        if !self.continues {
            return Ok(());
        }
        if self.add_generation_prompt {
            let message = "continue_final_message and add_generation_prompt are both true; the \
                           answer can go on with a message or begin one, not both";
            return Err(ApiError::invalid(NAME, message));
        }
        let last = self.messages.last();
        let has = |name: &str| last.is_some_and(|m| m.get(name).is_some_and(|v| !v.is_null()));
        let problem = if last.is_none_or(|message| message["role"] != "assistant") {
            "needs a last message of the role \"assistant\""
        } else if has("tool_calls") {
            "cannot go on with a message that has tool_calls, which are complete"
        } else {
            return Ok(());
        };
        Err(ApiError::invalid(NAME, format!("{NAME} {problem}")))
    }

    /// Passes the effort to a template that reads it. For other templates reasoning can be turned
    /// on or off if they support that; "medium" is the models' default.
    fn apply_effort(&mut self, template: &ChatTemplate) -> Result<(), ApiError> {
        let Some(effort) = self.effort.take() else {
            return Ok(());
        };
        if template.mentions(EFFORT) {
            self.template_kwargs
                .entry(EFFORT)
                .or_insert(Value::String(effort));
            return Ok(());
        }
        match effort.as_str() {
            "medium" => Ok(()),
            "none" if template.mentions(THINKING) => {
                self.template_kwargs
                    .entry(THINKING)
                    .or_insert(Value::Bool(false));
                Ok(())
            }
            _ => {
                let message = format!(
                    "{EFFORT} is {effort:?}, but this model's chat template knows no such effort; \
                     leave it out, or send \"none\" to a model whose thinking can be turned off"
                );
                Err(ApiError::unsupported(EFFORT, message))
            }
        }
    }

    /// The beginning of the response, if the last message is one.
    pub fn prefill(&self) -> Option<&str> {
        let last = self.messages.last().filter(|_| self.continues);
        last.and_then(|message| message["content"].as_str())
    }
    /// The tools that the model sees.
    pub fn tools(&self) -> &[Value] {
        self.tools.as_deref().unwrap_or_default()
    }
}

/// Fields that would change the prompt and that neither chat nor `/tokenize` supports.
fn refuse_of_template(fields: &mut Fields) -> Result<(), ApiError> {
    for name in [
        "chat_template",
        "documents",
        "mm_processor_kwargs",
        "media_io_kwargs",
    ] {
        fields.refuse(name, &[json!([]), json!({})])?;
    }
    Ok(())
}

fn is_none_choice(fields: &mut Fields) -> bool {
    match fields.value("tool_choice") {
        Some(Value::String(choice)) if choice == "none" => true,
        Some(other) => {
            fields.put_back("tool_choice", other);
            false
        }
        None => false,
    }
}

fn check_tool(i: usize, tool: &Value) -> Result<(), ApiError> {
    let path = format!("tools[{i}].function.name");
    match tool.pointer("/function/name") {
        Some(Value::String(name)) if !name.is_empty() => Ok(()),
        other => {
            let shown = other.map_or_else(|| "missing".to_owned(), show);
            let message = format!("{path} is {shown}, but must be the function's name");
            Err(ApiError::invalid(path, message))
        }
    }
}

/// Templates rendered concurrently.
static RENDERING: Semaphore = Semaphore::const_new(2);

/// The prompt's text. Rendering executes the checkpoint's template, so it does not run on an async
/// thread.
pub(crate) async fn render(
    model: &ServedModel,
    mut conversation: Conversation,
) -> Result<String, ApiError> {
    let template = Arc::clone(&model.chat_template);
    conversation.apply_effort(&template)?;
    let rendered = run_blocking_limited(&RENDERING, "the chat template", move || {
        let input = ChatInput {
            messages: &conversation.messages,
            tools: conversation.tools.as_deref(),
            add_generation_prompt: conversation.add_generation_prompt,
            extra: conversation.template_kwargs,
        };
        template.render_conversation(&input, conversation.continues)
    })
    .await?;
    rendered.map_err(|error| {
        let param = match &error {
            TextError::RoleLeftOut { index, .. } => format!("messages[{index}].role"),
            TextError::NotContinued => "continue_final_message".to_owned(),
            _ => "messages".to_owned(),
        };
        ApiError::invalid(param, error.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(body: &Value) -> Result<Conversation, ApiError> {
        Conversation::take(&mut Fields::parse(body.to_string().as_bytes())?)
    }

    #[test]
    fn a_last_message_is_continued_or_a_new_one_begun() {
        let prefilled = |fields: Value| {
            let mut body = json!({"messages": [
                {"role": "user", "content": "x"}, {"role": "assistant", "content": "Sure, "},
            ]});
            for (name, value) in fields.as_object().into_iter().flatten() {
                body[name] = value.clone();
            }
            take(&body)
        };
        let continued = prefilled(json!({"continue_final_message": true})).expect("a prefill");
        assert_eq!(continued.prefill(), Some("Sure, "));
        assert!(!continued.add_generation_prompt);
        let begun = prefilled(json!({})).expect("no prefill");
        assert_eq!((begun.prefill(), begun.add_generation_prompt), (None, true));
        let call = json!([{"function": {"name": "f", "arguments": "{}"}}]);
        for fields in [
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            json!({"continue_final_message": true, "messages": [{"role": "user", "content": "x"}]}),
            json!({"continue_final_message": true,
                "messages": [{"role": "assistant", "content": null, "tool_calls": call}]}),
        ] {
            let error = prefilled(fields).expect_err("refused");
            assert_eq!(
                error.param.as_deref(),
                Some("continue_final_message"),
                "{error}"
            );
        }
    }

    #[test]
    fn every_refusal_names_its_place() {
        for (body, param) in [
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": ["hello"]}), "messages[0]"),
            (json!({"messages": [{"content": "x"}]}), "messages[0].role"),
            (
                json!({"messages": [{"role": "user", "content": 3}]}),
                "messages[0].content",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "messages[0].content[0]",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}], "tools": [{}]}),
                "tools[0].function.name",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}], "chat_template": "x"}),
                "chat_template",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x"}], "documents": [{"text": "x"}]}),
                "documents",
            ),
        ] {
            let error = take(&body).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
        }
    }
}
