//! Constraints on the output, in the API's terms and as grammars.

use std::borrow::Cow;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde::Serialize;
use serde_json::{Value, json};

use super::nesting::schemas_in_lark;
use super::schema::usable;

/// Why a constraint is refused; the message has the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StructuredError {
    #[error("{what} has {n_bytes} bytes, the limit is {limit} (--max-schema-bytes)")]
    TooLarge {
        what: &'static str,
        n_bytes: usize,
        limit: usize,
    },
    #[error(
        "{what} cannot be used: it nests {depth} levels deep (rules that name rules, $refs, schemas \
         in schemas, brackets), the limit is {limit}; nest it less deep"
    )]
    TooDeep {
        what: &'static str,
        depth: usize,
        limit: usize,
    },
    #[error(
        "the JSON schema cannot be used: a number would have to be a multiple of {numbers} at once, \
         and their least common multiple, without its decimal point, is above the limit of {limit}; \
         leave multipleOf out and check the number yourself"
    )]
    Multiple { numbers: String, limit: u64 },
    #[error(
        "{what} cannot be used: at some position more than {limit} rules could continue (alternatives, \
         optional properties), which is the limit; have fewer of them, or make properties required"
    )]
    TooWide { what: &'static str, limit: usize },
    #[error(
        "{what} cannot be used: it becomes {n} rules, the limit is {limit}; schemas that are \
         combined (allOf, $ref beside other keywords) are copied into each other"
    )]
    TooManySymbols {
        what: &'static str,
        n: usize,
        limit: usize,
    },
    #[error(
        "the JSON schema cannot be used: {keyword:?} at {path}: {reason}; leave it out and check \
         the answer yourself"
    )]
    Keyword {
        keyword: String,
        path: String,
        reason: String,
    },
    #[error("{what} cannot be used: {message}")]
    Invalid { what: &'static str, message: String },
    #[error("{what} cannot be used: it allows no finite text")]
    Endless { what: &'static str },
    #[error("this model's tokenizer has no end-of-text token, so constrained output cannot end")]
    NoEndToken,
    #[error("this model's vocabulary cannot be indexed: {0}")]
    Vocabulary(String),
    #[error("there is no thread to compile it: {0}")]
    NoThread(String),
}

/// The required output format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    JsonSchema(Value),
    /// The whole output matches.
    Regex(String),
    /// One of these.
    Choice(Vec<String>),
    /// In llguidance's form of Lark.
    Lark(String),
    /// A Lark grammar that refers to JSON schemas as `@json_0`, `@json_1`, ….
    LarkWithJson {
        lark: String,
        schemas: Vec<Value>,
    },
}

/// What may precede the constrained part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum Preamble {
    #[default]
    Nothing,
    /// The prompt has begun reasoning, which the output must end first.
    RestOfThought,
    /// The model may reason first.
    MaybeThought,
}

/// White space between two JSON tokens: a space, or up to two line breaks and an indentation of up
/// to 20 characters, as in llama.cpp. Models that may write endless white space sometimes do.
const WHITE_SPACE: &str = r"[ ]|(\r?\n){1,2}[ \t]{0,20}";
const ANSWER: &str = "answer";

impl Constraint {
    /// The constraint's name in error messages.
    pub fn what(&self) -> &'static str {
        match self {
            Self::JsonObject => "the JSON object",
            Self::JsonSchema(_) => "the JSON schema",
            Self::Regex(_) => "the regular expression",
            Self::Choice(_) => "the list of choices",
            Self::Lark(_) => "the grammar",
            Self::LarkWithJson { .. } => "the schema of a tool or of the response",
        }
    }

    /// Size of the client's specification.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => schema.to_string().len(),
            Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
            Self::LarkWithJson { lark, schemas } => {
                let schemas = schemas.iter().map(|schema| schema.to_string().len());
                lark.len() + schemas.sum::<usize>()
            }
        }
    }

    /// The schemas in it.
    pub(super) fn schemas(&self) -> Cow<'_, [Value]> {
        match self {
            Self::JsonSchema(schema) => std::slice::from_ref(schema).into(),
            Self::LarkWithJson { schemas, .. } => schemas.into(),
            Self::Lark(text) => schemas_in_lark(text).into(),
            Self::JsonObject | Self::Regex(_) | Self::Choice(_) => Cow::default(),
        }
    }

    /// Rewrites its schemas with the keywords that the compiler supports.
    pub(super) fn usable(self) -> Result<Self, StructuredError> {
        Ok(match self {
            Self::JsonSchema(schema) => Self::JsonSchema(usable(schema)?),
            Self::LarkWithJson { lark, schemas } => {
                let schemas = schemas.into_iter().map(usable).collect::<Result<_, _>>()?;
                Self::LarkWithJson { lark, schemas }
            }
            other => other,
        })
    }

    pub(super) fn grammar(&self, preamble: Preamble) -> TopLevelGrammar {
        let mut grammars = Vec::new();
        if let Some(lark) = preamble.lark() {
            grammars.push(GrammarWithLexer::from_lark(lark.to_owned()));
        }
        grammars.push(GrammarWithLexer {
            name: Some(ANSWER.to_owned()),
            ..self.answer()
        });
        if let Self::LarkWithJson { schemas, .. } = self {
            grammars.extend(
                schemas
                    .iter()
                    .enumerate()
                    .map(|(i, schema)| GrammarWithLexer {
                        name: Some(format!("json_{i}")),
                        ..json_grammar(schema.clone())
                    }),
            );
        }
        TopLevelGrammar {
            grammars,
            max_tokens: None,
        }
    }

    fn answer(&self) -> GrammarWithLexer {
        match self {
            Self::JsonObject => json_grammar(json!({"type": "object"})),
            Self::JsonSchema(schema) => json_grammar(schema.clone()),
            Self::Regex(regex) => GrammarWithLexer::from_regex(regex),
            Self::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
                GrammarWithLexer::from_lark(format!("start: {}", texts.join(" | ")))
            }
            Self::Lark(lark) | Self::LarkWithJson { lark, .. } => {
                GrammarWithLexer::from_lark(lark.clone())
            }
        }
    }
}

impl Preamble {
    /// The grammar around the constrained part; `None` if there is none.
    fn lark(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::RestOfThought => Some(
                "start: thought BREAK? @answer\n\
                 thought[suffix=\"</think>\"]: /(.|\\n)*/\n\
                 BREAK: /\\n{1,2}/",
            ),
            Self::MaybeThought => Some(
                "start: (\"<think>\" thought BREAK?)? @answer\n\
                 thought[suffix=\"</think>\"]: /(.|\\n)*/\n\
                 BREAK: /\\n{1,2}/",
            ),
        }
    }
}

/// JSON with bounded white space, and with `oneOf` treated as `anyOf`, unless the schema overrides
/// it (`x-guidance`, as in llguidance).
fn json_grammar(schema: Value) -> GrammarWithLexer {
    const OPTIONS: &str = "x-guidance";
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        other => other,
    };
    if let Some(schema) = schema.as_object_mut() {
        let options = schema.entry(OPTIONS).or_insert_with(|| json!({}));
        if let Some(options) = options.as_object_mut() {
            options.entry("coerce_one_of").or_insert(json!(true));
            if !options.contains_key("whitespace_flexible") {
                let white_space = || json!(WHITE_SPACE);
                options
                    .entry("whitespace_pattern")
                    .or_insert_with(white_space);
            }
        }
    }
    GrammarWithLexer::from_json_schema(schema)
}

/// A text as a literal of a Lark grammar.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}
