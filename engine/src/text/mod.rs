//! Text to tokens and back: tokenizers, chat templates, the stream that converts generated tokens
//! to text, and the parts of that text: reasoning and tool calls.
//!
//! Everything here works on whole strings and ids; the server interprets requests, and the sampler
//! chooses ids.
//!
//! Deliberately absent: training tokenizers, WordPiece and Unigram vocabularies (no decoder
//! family served here uses them), and `clean_up_tokenization_spaces` (it cannot be streamed).

pub mod chat_template;
pub mod gguf_metadata;
mod gguf_vocabulary;
mod held;
mod length_bound;
mod python_format;
pub mod reasoning;
mod sentencepiece;
pub mod stop;
pub mod stream;
mod token_table;
pub mod tokenizer;
pub mod tool_calls;

pub(crate) use chat_template::has_large_integers;
pub use chat_template::{ChatInput, ChatTemplate};
pub use reasoning::{ThoughtSplitter, ThoughtStart};
pub use stop::{StopMatch, StopMatcher};
pub use stream::{TextOrigin, TokenStream};
pub use tokenizer::Tokenizer;
pub use tool_calls::{Tool, ToolCallFormat, ToolCallParser, ToolEvent};

use crate::errors::Code;
/// Errors between text and tokens. `File`, `Metadata` and `Unsupported` concern the checkpoint and
/// occur at start-up; the others concern one request.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    #[error("{file}: {message}")]
    File { file: String, message: String },
    #[error("GGUF metadata {key}: {message}")]
    Metadata { key: String, message: String },
    #[error("{what} {found:?} is not supported; supported: {supported}")]
    Unsupported {
        what: &'static str,
        found: String,
        supported: &'static str,
    },
    #[error("text could not be tokenized: {message}")]
    Encode { message: String },
    #[error("token id {id} is outside the vocabulary of {vocab_size} tokens")]
    UnknownToken { id: u32, vocab_size: usize },
    #[error(
        "this model has no chat template; use the completions endpoint with a plain prompt, or as \
         operator set --chat-template"
    )]
    NoChatTemplate,
    /// The template itself called `raise_exception`: the messages break one of its rules.
    #[error("the chat template refuses these messages: {message}")]
    TemplateRefused { message: String },
    #[error("the chat template failed: {message}")]
    Template { message: String },
    #[error(
        "messages[{index}].role is {role:?}, and this model's chat template drops messages of \
         that role; use \"system\", \"user\" or \"assistant\""
    )]
    RoleLeftOut { index: usize, role: String },
    #[error(
        "the chat template does not show the last message's content, so it cannot be continued"
    )]
    NotContinued,
    #[error("the chat template exceeds the limit of {limit} {unit}")]
    TemplateLimit { limit: u64, unit: &'static str },
    #[error("a stop string is empty; each needs at least one character")]
    EmptyStop,
}

impl TextError {
    pub fn code(&self) -> Code {
        Code::Tokenizer
    }
}
