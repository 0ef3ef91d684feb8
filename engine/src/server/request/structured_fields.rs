//! The fields that constrain the output: OpenAI's `response_format`, vLLM's `structured_outputs`
//! and `guided_*`, SGLang's `json_schema` and `regex`.
//!
//! Grammars are written in llguidance's Lark. Deliberately absent: GBNF (`ebnf`, llama.cpp's
//! `grammar`), structural tags, and vLLM's choice of a backend, which is ignored.

use serde_json::{Value, json};

use crate::model::json_fields::kind_of;
use crate::server::error::ApiError;
use crate::server::request::fields::{Fields, show};
use crate::structured::Constraint;

/// Maximum number of texts in a list of choices.
const MAX_TEXTS: usize = 1024;

/// A constraint and the field that asked for it.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestedFormat {
    pub constraint: Constraint,
    /// The constraint's name in error messages.
    pub param: String,
}

impl RequestedFormat {
    /// The schema of the response, if `response_format` gave one.
    pub fn response_format(&self) -> Option<Value> {
        let schema = match &self.constraint {
            Constraint::JsonObject => json!({"type": "object"}),
            Constraint::JsonSchema(schema) => schema.clone(),
            _ => return None,
        };
        self.param.starts_with(RESPONSE_FORMAT).then_some(schema)
    }
}

const RESPONSE_FORMAT: &str = "response_format";

/// Takes the fields; at most one of them may be set.
pub fn take_constraint(fields: &mut Fields) -> Result<Option<RequestedFormat>, ApiError> {
    let mut asked = Vec::new();
    asked.extend(take_response_format(fields)?);
    if let Some(mut inner) = fields.object("structured_outputs")? {
        asked.extend(take_kinds(&mut inner, &STRUCTURED_OUTPUTS)?);
        inner.refuse("structural_tag", &[])?;
        // They change what the format allows.
        for name in [
            "whitespace_pattern",
            "disable_any_whitespace",
            "disable_additional_properties",
        ] {
            inner.refuse(name, &[json!(false), json!("")])?;
        }
    }
    asked.extend(take_kinds(fields, &TOP_LEVEL)?);
    for name in ["ebnf", "structural_tag", "guided_structural_tag"] {
        fields.refuse(name, &[])?;
    }
    fields.shape(
        "grammar",
        || json!({"enum": [""], "description": "not supported"}),
    );
    if let Some(grammar) = fields.value("grammar").filter(|value| *value != json!("")) {
        let message = format!(
            "grammar is {}; grammars in GBNF are not read here, guided_grammar takes one in Lark",
            show(&grammar)
        );
        return Err(ApiError::unsupported("grammar", message));
    }
    if let [first, second, ..] = &asked[..] {
        let message = format!(
            "{} and {} both constrain the output; only one may",
            first.param, second.param
        );
        return Err(ApiError::invalid(second.param.clone(), message));
    }
    Ok(asked.pop())
}

#[derive(Clone, Copy)]
enum Kind {
    Json,
    JsonObject,
    Regex,
    Choice,
    Grammar,
}

const STRUCTURED_OUTPUTS: [(&str, Kind); 5] = [
    ("json", Kind::Json),
    ("json_object", Kind::JsonObject),
    ("regex", Kind::Regex),
    ("choice", Kind::Choice),
    ("grammar", Kind::Grammar),
];

const TOP_LEVEL: [(&str, Kind); 6] = [
    ("guided_json", Kind::Json),
    ("guided_regex", Kind::Regex),
    ("guided_choice", Kind::Choice),
    ("guided_grammar", Kind::Grammar),
    ("json_schema", Kind::Json),
    ("regex", Kind::Regex),
];

fn take_kinds(
    fields: &mut Fields,
    kinds: &[(&str, Kind)],
) -> Result<Vec<RequestedFormat>, ApiError> {
    let mut asked = Vec::new();
    for (name, kind) in kinds {
        let constraint = match kind {
            Kind::Json => {
                fields.shape(name, any_schema);
                match fields.value(name) {
                    Some(value) => Some(Constraint::JsonSchema(schema(fields.path(name), value)?)),
                    None => None,
                }
            }
            Kind::JsonObject => fields
                .bool(name)?
                .unwrap_or(false)
                .then_some(Constraint::JsonObject),
            Kind::Regex => fields.string(name)?.map(Constraint::Regex),
            Kind::Choice => take_choice(fields, name)?,
            Kind::Grammar => fields.string(name)?.map(Constraint::Lark),
        };
        let param = fields.path(name);
        asked.extend(constraint.map(|constraint| RequestedFormat { constraint, param }));
    }
    Ok(asked)
}

/// The schema of a JSON schema.
pub(super) fn any_schema() -> Value {
    json!({"type": ["object", "boolean", "string"], "description": "a JSON schema"})
}

/// A schema, or a string that contains one.
fn schema(path: String, value: Value) -> Result<Value, ApiError> {
    let value = match value {
        Value::String(text) => serde_json::from_str(&text).map_err(|error| {
            let message = format!("{path} is a string that is not valid JSON: {error}");
            ApiError::invalid(path.clone(), message)
        })?,
        other => other,
    };
    if value.is_object() || value.is_boolean() {
        return Ok(value);
    }
    let message = format!(
        "{path} is {} ({}), but must be a JSON schema",
        show(&value),
        kind_of(&value)
    );
    Err(ApiError::invalid(path, message))
}

fn take_choice(fields: &mut Fields, name: &str) -> Result<Option<Constraint>, ApiError> {
    fields.shape(name, || {
        let text = json!({"type": "string", "minLength": 1});
        json!({"type": "array", "items": text, "minItems": 1, "maxItems": MAX_TEXTS})
    });
    let Some(items) = fields.array(name)? else {
        return Ok(None);
    };
    let path = fields.path(name);
    if items.is_empty() || items.len() > MAX_TEXTS {
        let n = items.len();
        let message = format!("{path} has {n} texts, but must have from 1 to {MAX_TEXTS}");
        return Err(ApiError::invalid(path, message));
    }
    let texts = items.into_iter().enumerate().map(|(i, item)| match item {
        Value::String(text) if !text.is_empty() => Ok(text),
        other => {
            let path = format!("{path}[{i}]");
            let message = format!(
                "{path} is {}, but must be a text of at least one character",
                show(&other)
            );
            Err(ApiError::invalid(path, message))
        }
    });
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Constraint::Choice(texts)))
}

fn take_response_format(fields: &mut Fields) -> Result<Option<RequestedFormat>, ApiError> {
    let Some(mut format) = fields.object(RESPONSE_FORMAT)? else {
        return Ok(None);
    };
    format.shape(
        "type",
        || json!({"enum": ["text", "json_object", "json_schema"]}),
    );
    format.shape("schema", any_schema);
    let kind = format.string("type")?;
    let (constraint, param) = match kind.as_deref() {
        Some("text") => return Ok(None),
        // With a schema, as in llama.cpp.
        Some("json_object") => match format.value("schema") {
            None => (Constraint::JsonObject, RESPONSE_FORMAT.to_owned()),
            Some(value) => {
                let path = format.path("schema");
                (Constraint::JsonSchema(schema(path.clone(), value)?), path)
            }
        },
        Some("json_schema") => {
            let missing = |path: &str| {
                ApiError::invalid(path, format!("{path} is missing; it holds the schema"))
            };
            let path = format.path("json_schema");
            let mut inner = format
                .object("json_schema")?
                .ok_or_else(|| missing(&path))?;
            inner.shape("schema", any_schema);
            let path = inner.path("schema");
            let value = inner.value("schema").ok_or_else(|| missing(&path))?;
            (Constraint::JsonSchema(schema(path.clone(), value)?), path)
        }
        other => {
            let path = format.path("type");
            let shown = other.map_or_else(|| "missing".to_owned(), |kind| format!("{kind:?}"));
            let message = format!(
                "{path} is {shown}, but must be \"text\", \"json_object\" or \"json_schema\""
            );
            return Err(ApiError::invalid(path, message));
        }
    };
    Ok(Some(RequestedFormat { constraint, param }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(body: &Value) -> Result<Option<RequestedFormat>, ApiError> {
        take_constraint(&mut Fields::parse(body.to_string().as_bytes())?)
    }

    #[test]
    fn every_way_to_ask_is_read() {
        let schema = json!({"type": "object"});
        let by_schema = Constraint::JsonSchema(schema.clone());
        let regex = Constraint::Regex("a+".to_owned());
        let choice = Constraint::Choice(vec!["a".to_owned(), "b".to_owned()]);
        let lark = Constraint::Lark("start: \"a\"".to_owned());
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        for (body, constraint) in [
            (json!({"response_format": {"type": "text"}}), None),
            (json!({"structured_outputs": {}}), None),
            (
                json!({"response_format": {"type": "json_object"}}),
                Some(&Constraint::JsonObject),
            ),
            (json!({"response_format": format}), Some(&by_schema)),
            (
                json!({"response_format": {"type": "json_object", "schema": schema}}),
                Some(&by_schema),
            ),
            (
                json!({"response_format": {"type": "json_object", "schema": null}}),
                Some(&Constraint::JsonObject),
            ),
            (json!({"grammar": ""}), None),
            (json!({"guided_json": schema}), Some(&by_schema)),
            (json!({"guided_json": schema.to_string()}), Some(&by_schema)),
            (json!({"json_schema": schema.to_string()}), Some(&by_schema)),
            (
                json!({"structured_outputs": {"json": schema}}),
                Some(&by_schema),
            ),
            (json!({"guided_regex": "a+"}), Some(&regex)),
            (json!({"structured_outputs": {"regex": "a+"}}), Some(&regex)),
            (json!({"guided_choice": ["a", "b"]}), Some(&choice)),
            (
                json!({"structured_outputs": {"choice": ["a", "b"]}}),
                Some(&choice),
            ),
            (json!({"guided_grammar": "start: \"a\""}), Some(&lark)),
            (
                json!({"structured_outputs": {"grammar": "start: \"a\""}}),
                Some(&lark),
            ),
        ] {
            let asked = take(&body).expect("readable");
            assert_eq!(
                asked.map(|asked| asked.constraint).as_ref(),
                constraint,
                "{body}"
            );
        }
    }

    #[test]
    fn every_refusal_names_its_place() {
        for (body, param) in [
            (json!({"response_format": "json"}), "response_format"),
            (
                json!({"response_format": {"type": "xml"}}),
                "response_format.type",
            ),
            (
                json!({"response_format": {"type": "json_schema"}}),
                "response_format.json_schema",
            ),
            (
                json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}),
                "response_format.json_schema.schema",
            ),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"guided_json": [1]}), "guided_json"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_choice": ["a", 1]}), "guided_choice[1]"),
            (
                json!({"structured_outputs": {"regex": 1}}),
                "structured_outputs.regex",
            ),
            (
                json!({"guided_regex": "a", "guided_choice": ["a"]}),
                "guided_choice",
            ),
            (json!({"ebnf": "root ::= \"a\""}), "ebnf"),
            (json!({"grammar": "root ::= \"a\""}), "grammar"),
            (
                json!({"response_format": {"type": "json_object", "schema": 1}}),
                "response_format.schema",
            ),
        ] {
            let error = take(&body).expect_err("refused");
            assert_eq!(error.param.as_deref(), Some(param), "{}", error.message);
        }
    }
}
