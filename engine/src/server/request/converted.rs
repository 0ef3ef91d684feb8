//! Requests of other APIs as those of a chat: its fields, and which of the client's fields an error
//! about one of them concerns.

use serde_json::{Map, Value, json};

use crate::server::error::ApiError;
use crate::server::request::fields::Fields;

/// Fields of chats that other APIs lack and their endpoints take as well.
pub(super) const SAMPLING: [&str; 10] = [
    "seed",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "chat_template_kwargs",
    "priority",
    "cache_salt",
];

/// The messages of a chat, with the paths that they came from.
#[derive(Debug, Default)]
pub struct Transcript {
    messages: Vec<Value>,
    places: Vec<String>,
}

impl Transcript {
    pub fn push(&mut self, place: &str, message: Value) {
        self.messages.push(message);
        self.places.push(place.to_owned());
    }
}

/// A converted request.
#[derive(Debug)]
pub struct Converted {
    pub fields: Fields,
    places: Vec<String>,
    renamed: &'static [(&'static str, &'static str)],
}

impl Converted {
    /// `body`: the other fields of the chat; `renamed`: ours and theirs, for those that differ.
    pub fn new(
        from: &Fields,
        mut body: Map<String, Value>,
        transcript: Transcript,
        renamed: &'static [(&'static str, &'static str)],
    ) -> Self {
        body.insert("messages".to_owned(), transcript.messages.into());
        Self {
            fields: from.converted(body),
            places: transcript.places,
            renamed,
        }
    }

    /// An error about a field of the chat, as one about the field that the client sent.
    #[must_use]
    pub fn in_their_names(&self, mut error: ApiError) -> ApiError {
        let Some(param) = error.param.take() else {
            return error;
        };
        let Some((ours, theirs)) = self.names_of(&param) else {
            error.param = Some(param);
            return error;
        };
        error.message = error.message.replace(&ours, &theirs);
        for (ours, theirs) in self.renamed {
            for verb in ["is", "has"] {
                let said = format!("{ours} {verb} ");
                error.message = error.message.replace(&said, &format!("{theirs} {verb} "));
            }
        }
        error.param = Some(param.replacen(&ours, &theirs, 1));
        error
    }

    /// The part of a path that has another name, and that name.
    fn names_of(&self, param: &str) -> Option<(String, String)> {
        if let Some(rest) = param.strip_prefix("messages[")
            && let Some((index, _)) = rest.split_once(']')
        {
            let place = self.places.get(index.parse::<usize>().ok()?)?;
            return Some((format!("messages[{index}]"), place.clone()));
        }
        let is_within = |ours: &str| {
            let rest = param.strip_prefix(ours);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        let found = self.renamed.iter().find(|(ours, _)| is_within(ours));
        found.map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned()))
    }
}

/// Moves fields that have the same name and meaning.
pub(super) fn pass(fields: &mut Fields, names: &[&str], body: &mut Map<String, Value>) {
    for name in names {
        fields.shape(
            name,
            || json!({"$ref": format!("#/components/schemas/ChatRequest/properties/{name}")}),
        );
        if let Some(value) = fields.value(name) {
            body.insert((*name).to_owned(), value);
        }
    }
}

/// `stream`; the last events of a stream carry its usage.
pub(super) fn take_stream(
    fields: &mut Fields,
    body: &mut Map<String, Value>,
) -> Result<(), ApiError> {
    if fields.bool("stream")?.unwrap_or(false) {
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    Ok(())
}

/// A tool of the client's, from its name, description and schema.
pub(super) fn function_tool(
    name: String,
    description: Option<String>,
    parameters: Option<Value>,
    strict: Option<bool>,
) -> Value {
    let mut function = json!({"name": name});
    if let Some(description) = description {
        function["description"] = description.into();
    }
    if let Some(parameters) = parameters {
        function["parameters"] = parameters;
    }
    if let Some(strict) = strict {
        function["strict"] = strict.into();
    }
    json!({"type": "function", "function": function})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_field_that_was_sent() {
        let mut transcript = Transcript::default();
        transcript.push("instructions", json!({}));
        transcript.push("input[4]", json!({}));
        let names = &[("max_tokens", "max_output_tokens"), ("messages", "input")];
        let converted = Converted::new(&Fields::default(), Map::new(), transcript, names);
        for (ours, theirs) in [
            ("messages[1].content[0]", "input[4].content[0]"),
            ("messages[0].role", "instructions.role"),
            ("messages", "input"),
            ("max_tokens", "max_output_tokens"),
            ("max_tokens_other", "max_tokens_other"),
            ("top_p", "top_p"),
        ] {
            let error = ApiError::invalid(ours, format!("{ours} is 3"));
            let error = converted.in_their_names(error);
            assert_eq!(error.param.as_deref(), Some(theirs));
            assert_eq!(error.message, format!("{theirs} is 3"));
        }
    }
}
