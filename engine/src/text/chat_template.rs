//! Renders a checkpoint's chat template like Hugging Face transformers.
//!
//! Same names in scope (`messages`, `tools`, `documents`, `add_generation_prompt`, the special
//! tokens, anything the request adds), same functions (`raise_exception`, `strftime_now`), same
//! `tojson` (Python's `json.dumps`), same whitespace rules (`trim_blocks`, `lstrip_blocks`).
//! Behaviour: `apply_chat_template` in transformers' `chat_template_utils.py`.
//!
//! A template is code from the checkpoint, compiled and run under limits: its size, the tokens of a
//! tag, instructions (fuel), output size, and the size of any text it emits. A namespace that might
//! contain itself is refused. The stack is large enough for the nesting possible within these
//! limits (`deep_stack`). The memory of a single `~` or `+` expression is not limited; templates
//! come from the checkpoint that the operator chose, never from a request.
//!
//! Deliberately absent: `documents` (always empty), the assistant-token mask of `{% generation %}`
//! (the tags are accepted without effect), local time (UTC is used), Python's escapes for
//! unprintable characters in printed lists, and `debug` and `pprint`, which take time and memory
//! that no limit counts.

mod builtins;
mod compile;
mod conversation;
mod exact_numbers;
mod namespaces;
mod python_methods;

use std::io;
use std::path::Path;

use minijinja::{Environment, Error, ErrorKind, Value};
use serde_json::{Map, Value as Json};

use self::compile::compile;
pub use self::exact_numbers::has_large_integers;
use self::exact_numbers::message_value;
use super::TextError;
use super::gguf_metadata::GgufMetadata;
use super::gguf_vocabulary;
use super::tokenizer::{read_json, special_texts};
use super::tool_calls::ToolCallFormat;
use crate::deep_stack::with_deep_stack;

/// Maximum instructions of one rendering; Qwen3's template takes about a hundred for each message.
const FUEL: u64 = 1_000_000;
const MAX_OUTPUT_BYTES: usize = 16 << 20;
const THREAD: &str = "chat template";
/// One level takes about 1.2 kB for an `elif`, which has eleven bytes, and half a kilobyte
/// otherwise, so this is more than twice what [`FUEL`] levels need, and far more than
/// [`compile::MAX_SOURCE_BYTES`] do. Printing, comparing and dropping nested lists is recursive
/// too.
const STACK_BYTES: usize = 1 << 30;

const DEFAULT: &str = "default";
/// The template that transformers prefers for requests with tools.
const TOOL_USE: &str = "tool_use";

/// The input of one rendering.
#[derive(Debug, Clone)]
pub struct ChatInput<'a> {
    pub messages: &'a [Json],
    pub tools: Option<&'a [Json]>,
    pub add_generation_prompt: bool,
    /// Further variables, for example `enable_thinking`.
    pub extra: Map<String, Json>,
}

/// A compiled template, or the reason why there is none. Loading never fails on a missing or broken
/// template, since plain completions need none; rendering does.
#[derive(Debug)]
pub struct ChatTemplate {
    state: State,
    tool_calls: Option<ToolCallFormat>,
    special_texts: Vec<(String, String)>,
    /// The templates' texts, the default one first.
    sources: Vec<String>,
}

#[derive(Debug)]
enum State {
    Absent,
    Broken {
        message: String,
    },
    Ready {
        environment: Box<Environment<'static>>,
        has_tool_use: bool,
    },
}

impl ChatTemplate {
    /// `chat_template.jinja` with the named ones of `additional_chat_templates/`, or the
    /// `chat_template` of `chat_template.json` or `tokenizer_config.json`: one text, or a list of
    /// named ones.
    ///
    /// # Errors
    ///
    /// [`TextError::File`] if one of the files is there but cannot be read or parsed. A template
    /// that does not compile is an error only when it is rendered.
    pub fn from_folder(dir: &Path) -> Result<Self, TextError> {
        let config = read_json(&dir.join("tokenizer_config.json"))?;
        let special_texts = special_texts(&config);
        let path = dir.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(source) => {
                let mut sources = vec![(DEFAULT.to_owned(), source)];
                sources.extend(additional_sources(dir)?);
                return Ok(Self::new(&sources, special_texts));
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                let file = path.display().to_string();
                return Err(TextError::File {
                    file,
                    message: e.to_string(),
                });
            }
        }
        let mut sources = named_sources(&read_json(&dir.join("chat_template.json"))?);
        if sources.is_empty() {
            sources = named_sources(&config);
        }
        Ok(Self::new(&sources, special_texts))
    }

    /// `tokenizer.chat_template` and its named variants in a GGUF header.
    ///
    /// # Errors
    ///
    /// [`TextError::File`] if the file is no readable GGUF file, and as [`Self::from_metadata`].
    pub fn from_gguf(path: &Path) -> Result<Self, TextError> {
        Self::from_metadata(&GgufMetadata::read(path)?)
    }

    /// From parsed GGUF metadata.
    ///
    /// # Errors
    ///
    /// [`TextError::Metadata`] if the template or a special token is not of its type.
    pub fn from_metadata(metadata: &GgufMetadata) -> Result<Self, TextError> {
        let mut sources = Vec::new();
        for (name, key) in [
            (DEFAULT, "tokenizer.chat_template"),
            (TOOL_USE, "tokenizer.chat_template.tool_use"),
        ] {
            if let Some(source) = metadata.text(key)? {
                sources.push((name.to_owned(), source.to_owned()));
            }
        }
        Ok(Self::new(
            &sources,
            gguf_vocabulary::special_texts(metadata)?,
        ))
    }

    /// `sources`: templates by name; `special_texts`: `bos_token` and the like.
    pub fn new(sources: &[(String, String)], special_texts: Vec<(String, String)>) -> Self {
        let find = |name: &str| {
            sources
                .iter()
                .find(|(n, _)| n == name)
                .map(|(_, source)| source)
        };
        let Some(default) = find(DEFAULT).or(sources.first().map(|(_, source)| source)) else {
            return Self {
                state: State::Absent,
                tool_calls: None,
                special_texts,
                sources: Vec::new(),
            };
        };
        let tool_use = find(TOOL_USE);
        let mut named = vec![(DEFAULT, default.as_str())];
        named.extend(tool_use.map(|source| (TOOL_USE, source.as_str())));
        let compiled = with_deep_stack(THREAD, STACK_BYTES, || {
            compile(&named).map_err(|error| describe(&error))
        });
        let compiled = compiled
            .unwrap_or_else(|error| Err(format!("there is no thread to compile it: {error}")));
        let state = match compiled {
            Ok(environment) => State::Ready {
                environment: Box::new(environment),
                has_tool_use: tool_use.is_some(),
            },
            Err(message) => State::Broken { message },
        };
        Self {
            state,
            tool_calls: ToolCallFormat::of_template(tool_use.unwrap_or(default)),
            special_texts,
            sources: named
                .iter()
                .map(|(_, source)| (*source).to_owned())
                .collect(),
        }
    }

    /// The same special tokens with another template: Jinja, or a JSON object with Jinja in its
    /// `chat_template`, as in checkpoints. A template that does not compile is an error here.
    ///
    /// # Errors
    ///
    /// What the template's compiler says, with the line.
    pub fn with_source(self, text: &str) -> Result<Self, TextError> {
        let sources = match serde_json::from_str::<Json>(text) {
            Ok(config @ Json::Object(_)) => named_sources(&config),
            _ => vec![(DEFAULT.to_owned(), text.to_owned())],
        };
        let template = Self::new(&sources, self.special_texts);
        match template.problem() {
            Some(problem) => Err(problem),
            None => Ok(template),
        }
    }

    /// The source of the template for requests without tools.
    pub fn source(&self) -> Option<&str> {
        self.sources.first().map(String::as_str)
    }

    /// Whether a template contains this word: it cannot use a variable without naming it.
    pub fn mentions(&self, word: &str) -> bool {
        self.sources.iter().any(|source| source.contains(word))
    }

    /// `bos_token` and the like with their texts.
    pub fn special_texts(&self) -> &[(String, String)] {
        &self.special_texts
    }

    /// The tool-call format that the template describes, if any.
    pub fn tool_calls(&self) -> Option<ToolCallFormat> {
        self.tool_calls
    }

    /// Why [`Self::render`] would fail for every request; for the log at start-up.
    pub fn problem(&self) -> Option<TextError> {
        match &self.state {
            State::Absent => Some(TextError::NoChatTemplate),
            State::Broken { message } => Some(TextError::Template {
                message: message.clone(),
            }),
            State::Ready { .. } => None,
        }
    }

    /// The prompt's text. Its special tokens are written out: encode it without adding any.
    ///
    /// ```
    /// use engine::text::{ChatInput, ChatTemplate};
    /// use serde_json::json;
    ///
    /// let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>";
    /// let template = ChatTemplate::new(&[("default".to_owned(), source.to_owned())], Vec::new());
    /// let messages = [json!({"role": "user", "content": "Hello"})];
    /// let input = ChatInput {
    ///     messages: &messages,
    ///     tools: None,
    ///     add_generation_prompt: true,
    ///     extra: serde_json::Map::new(),
    /// };
    /// assert_eq!(template.render(&input)?, "<user>Hello<assistant>");
    /// # Ok::<(), engine::text::TextError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no template, it does not compile, or it refuses the messages or leaves one out.
    pub fn render(&self, input: &ChatInput<'_>) -> Result<String, TextError> {
        let State::Ready {
            environment,
            has_tool_use,
        } = &self.state
        else {
            return Err(self.problem().unwrap_or(TextError::NoChatTemplate));
        };
        let name = if *has_tool_use && input.tools.is_some() {
            TOOL_USE
        } else {
            DEFAULT
        };
        // All values are dropped on that stack too.
        let rendered = with_deep_stack(THREAD, STACK_BYTES, || {
            self.render_named(environment, name, input)
        });
        rendered.unwrap_or_else(|error| {
            Err(TextError::Template {
                message: format!("there is no thread to render it: {error}"),
            })
        })
    }

    fn render_named(
        &self,
        environment: &Environment<'_>,
        name: &str,
        input: &ChatInput<'_>,
    ) -> Result<String, TextError> {
        let template = environment
            .get_template(name)
            .map_err(|e| template_error(&e))?;
        let mut output = BoundedOutput::default();
        let rendered = template
            .render_captured_to(self.scope(input)?, &mut output)
            .map(|_| ());
        if output.is_over {
            return Err(output_limit());
        }
        rendered.map_err(|e| template_error(&e))?;
        String::from_utf8(output.bytes).map_err(|e| TextError::Template {
            message: e.to_string(),
        })
    }

    fn scope(&self, input: &ChatInput<'_>) -> Result<Value, TextError> {
        let list = |items: &[Json]| Value::from(items.iter().map(to_value).collect::<Vec<_>>());
        let own = [
            (
                "messages",
                Value::from(input.messages.iter().map(message_value).collect::<Vec<_>>()),
            ),
            ("tools", input.tools.map_or(Value::from(()), list)),
            ("documents", Value::from(())),
            (
                "add_generation_prompt",
                Value::from(input.add_generation_prompt),
            ),
        ];
        if let Some((name, _)) = own.iter().find(|(name, _)| input.extra.contains_key(*name)) {
            let message = format!("{name} cannot be set through template variables");
            return Err(TextError::TemplateRefused { message });
        }
        let special = self
            .special_texts
            .iter()
            .map(|(name, text)| (name.clone(), Value::from(text)));
        let extra = input
            .extra
            .iter()
            .map(|(name, json)| (name.clone(), to_value(json)));
        let own = own
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Ok(Value::from_pairs(special.chain(extra).chain(own)))
    }
}

/// Templates in transformers' folder for additional ones, by file name: `tool_use` is in
/// `tool_use.jinja`.
fn additional_sources(dir: &Path) -> Result<Vec<(String, String)>, TextError> {
    const MOST: usize = 64;
    let folder = dir.join("additional_chat_templates");
    let in_folder = |message: String| TextError::File {
        file: folder.display().to_string(),
        message,
    };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(in_folder(e.to_string())),
    };
    let mut sources = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| in_folder(e.to_string()))?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(name) = name.filter(|_| path.extension().is_some_and(|e| e == "jinja")) else {
            continue;
        };
        if sources.len() == MOST {
            return Err(in_folder(format!("has more than {MOST} templates")));
        }
        let source = std::fs::read_to_string(&path).map_err(|e| TextError::File {
            file: path.display().to_string(),
            message: e.to_string(),
        })?;
        sources.push((name.to_owned(), source));
    }
    sources.sort();
    Ok(sources)
}

fn named_sources(config: &Json) -> Vec<(String, String)> {
    let template = &config["chat_template"];
    if let Some(source) = template.as_str() {
        return vec![(DEFAULT.to_owned(), source.to_owned())];
    }
    let listed = template.as_array().into_iter().flatten();
    listed
        .filter_map(|entry| {
            Some((
                entry["name"].as_str()?.to_owned(),
                entry["template"].as_str()?.to_owned(),
            ))
        })
        .collect()
}

fn to_value(json: &Json) -> Value {
    to_value_with(json, &|text| Value::from(text))
}

/// With a custom conversion of strings.
fn to_value_with(json: &Json, of_text: &dyn Fn(&str) -> Value) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => number
            .as_i64()
            .map(Value::from)
            .or_else(|| number.as_u64().map(Value::from))
            .or_else(|| number.as_f64().map(Value::from))
            .unwrap_or_default(),
        Json::String(text) => of_text(text),
        Json::Array(items) => {
            let items = items.iter().map(|json| to_value_with(json, of_text));
            Value::from(items.collect::<Vec<_>>())
        }
        Json::Object(pairs) => Value::from_pairs(
            pairs
                .iter()
                .map(|(key, json)| (key.as_str(), to_value_with(json, of_text))),
        ),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

#[derive(Debug, thiserror::Error)]
#[error("the output limit is exceeded")]
struct OverLimit;

fn output_limit() -> TextError {
    TextError::TemplateLimit {
        limit: MAX_OUTPUT_BYTES as u64,
        unit: "output bytes",
    }
}

fn template_error(error: &Error) -> TextError {
    if error.kind() == ErrorKind::OutOfFuel {
        return TextError::TemplateLimit {
            limit: FUEL,
            unit: "instructions",
        };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Refusal(message)) = current.downcast_ref() {
            return TextError::TemplateRefused {
                message: message.clone(),
            };
        }
        if current.is::<OverLimit>() {
            return output_limit();
        }
        if let Some(inner) = current.downcast_ref::<Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TextError::TemplateLimit {
                limit: FUEL,
                unit: "instructions",
            };
        }
        cause = current.source();
    }
    TextError::Template {
        message: describe(error),
    }
}

fn describe(error: &Error) -> String {
    use std::error::Error as _;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(current) = cause {
        text.push_str(": ");
        text.push_str(&current.to_string());
        cause = current.source();
    }
    text
}

#[derive(Default)]
struct BoundedOutput {
    bytes: Vec<u8>,
    is_over: bool,
}

impl io::Write for &mut BoundedOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.is_over = true;
            return Err(io::Error::other(OverLimit));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
