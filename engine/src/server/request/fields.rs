//! A request body as a JSON object whose fields are taken out one by one, each with its type
//! and range checked, so that every refusal names the field, the value and the limit.
//!
//! `null` is treated as absent, as in OpenAI's API. Fields that are not taken are ignored.

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use serde_json::{Map, Value, json};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Instant;
use tokio_stream::StreamExt;

use crate::model::json_fields::kind_of;
use crate::request::ranges::Range;
use crate::server::error::ApiError;
use crate::server::kept_streams::{CONVERSATION_ID, KeepStream};
use crate::server::request::description::Description;
use crate::server::response::cached::BodyDigest;
use crate::server::running::check_id;
use crate::server::state::AppState;
use crate::server::transport::auth::SentKeys;
use crate::traces::RequestTrace;

/// Maximum length of a client's value that an error message repeats, in characters.
const MAX_SHOWN_CHARS: usize = 80;

/// The fields not taken yet.
#[derive(Debug, Clone, Default)]
pub struct Fields {
    map: Map<String, Value>,
    /// Path of this object within the body, with its dot: `stream_options.`
    prefix: String,
    digest: Option<BodyDigest>,
    /// When the whole body had been received.
    received: Option<Instant>,
    /// The request's spans, if they are sent.
    trace: Option<Arc<RequestTrace>>,
    /// How the request's stream is kept, if it asks for that; its keys in any case.
    keeping: (bool, KeepStream),
    /// Where what is read is noted.
    description: Option<Description>,
}

impl Fields {
    /// Takes a request's body.
    ///
    /// # Errors
    ///
    /// If the body is not UTF-8, no JSON, or no object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Self {
                map,
                ..Self::default()
            }),
            Ok(other) => Err(ApiError::invalid_body(format!(
                "the request body must be a JSON object, not {}",
                kind_of(&other)
            ))),
            Err(error) => Err(ApiError::invalid_body(match unreadable_start(body) {
                Some(what) => format!("the request body begins with {what}; send JSON in UTF-8"),
                None => format!("the request body is not valid JSON: {error}"),
            })),
        }
    }

    /// An object within the body; `prefix` is its path with a dot.
    pub fn nested(map: Map<String, Value>, prefix: &str) -> Self {
        Self {
            map,
            prefix: prefix.to_owned(),
            ..Self::default()
        }
    }

    /// These fields instead, of the same request.
    pub(crate) fn converted(&self, map: Map<String, Value>) -> Self {
        Self {
            digest: self.digest.is_some().then(|| BodyDigest::of(&map)),
            map,
            received: self.received,
            trace: self.trace.clone(),
            keeping: self.keeping.clone(),
            ..Self::default()
        }
    }

    pub(crate) fn trace(&self) -> Option<&Arc<RequestTrace>> {
        self.trace.as_ref()
    }

    /// A sample, which is read in order to describe what is read.
    pub(crate) fn sample(map: Map<String, Value>, description: &Description) -> Self {
        Self {
            map,
            description: Some(description.clone()),
            ..Self::default()
        }
    }

    /// An object within the body, at a path of its own, that is described with it.
    pub(crate) fn within(&self, map: Map<String, Value>, prefix: &str) -> Self {
        Self {
            map,
            prefix: prefix.to_owned(),
            received: self.received,
            trace: self.trace.clone(),
            description: self.description.clone(),
            ..Self::default()
        }
    }

    /// Describes a field that its parser checks by itself.
    pub(crate) fn shape(&self, name: &str, schema: impl FnOnce() -> Value) {
        if let Some(description) = &self.description {
            description.note(&self.path(name), schema());
        }
    }

    /// Describes fields of which one must be there.
    pub(crate) fn shape_one_of(&self, names: &[&str]) {
        if let Some(description) = &self.description {
            description.note_one_of(names);
        }
    }

    /// The stream of this request is to be kept under its answer's id.
    pub(crate) fn keep_stream(&mut self) {
        self.keeping.0 = true;
        self.keeping.1.id = None;
    }

    /// How the stream of this request is to be kept.
    pub(crate) fn stream_keeping(&self) -> Option<KeepStream> {
        let (is_asked, keeping) = &self.keeping;
        is_asked.then(|| keeping.clone())
    }

    /// The field's full path, for errors.
    pub fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The digest of the body as received, if results are cached.
    pub fn digest(&self) -> Option<&BodyDigest> {
        self.digest.as_ref()
    }

    /// When the whole body had been received; now, if it did not come over a connection.
    pub fn received(&self) -> Instant {
        self.received.unwrap_or_else(Instant::now)
    }

    /// Takes the field out, whatever it holds.
    pub fn value(&mut self, name: &str) -> Option<Value> {
        self.shape(name, || json!({}));
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Puts a field back that belongs to another parser.
    pub fn put_back(&mut self, name: &str, value: Value) {
        self.map.insert(name.to_owned(), value);
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        self.shape(name, || json!({"type": "string"}));
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(name, &other, "a string")),
        }
    }

    pub(crate) fn bool(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.shape(name, || json!({"type": "boolean"}));
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.wrong_type(name, &other, "true or false")),
        }
    }

    /// A sampling parameter, converted to the sampler's type.
    pub(crate) fn parameter(&mut self, range: Range) -> Result<Option<f32>, ApiError> {
        let name = range.name;
        self.shape(name, || range.schema());
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        let number = value
            .as_f64()
            .ok_or_else(|| self.wrong_type(name, &value, "a number"))?;
        let taken = range.take(number);
        let outside = || {
            let path = self.path(name);
            let message = format!("{path} is {}, but must be from {range}", show(&value));
            ApiError::invalid(path, message)
        };
        taken.ok_or_else(outside).map(Some)
    }

    pub(crate) fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<i64>,
    ) -> Result<Option<i64>, ApiError> {
        self.shape(name, || integers(&range));
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        match as_integer(&value) {
            Some(number) if range.contains(&number) => Ok(Some(number)),
            Some(_) => Err(self.out_of_range(name, &value, range.start(), range.end())),
            // It is too large for an i64, but an integer.
            None if value.as_u64().is_some() => {
                Err(self.out_of_range(name, &value, range.start(), range.end()))
            }
            None => Err(self.wrong_type(name, &value, "an integer")),
        }
    }

    pub(crate) fn array(&mut self, name: &str) -> Result<Option<Vec<Value>>, ApiError> {
        self.shape(name, || json!({"type": "array"}));
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(self.wrong_type(name, &other, "an array")),
        }
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, ApiError> {
        self.shape(name, || json!({"type": "object"}));
        match self.value(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(self.within(map, &format!("{}.", self.path(name)))))
            }
            Some(other) => Err(self.wrong_type(name, &other, "an object")),
        }
    }

    /// All remaining fields.
    pub fn into_map(self) -> Map<String, Value> {
        self.map
    }

    /// Refuses a field that is known but not supported, unless its value has no effect.
    pub(crate) fn refuse(
        &mut self,
        name: &str,
        asks_for_nothing: &[Value],
    ) -> Result<(), ApiError> {
        self.shape(
            name,
            || json!({"enum": asks_for_nothing, "description": "not supported"}),
        );
        match self.value(name) {
            Some(value) if !asks_for_nothing.contains(&value) => {
                let path = self.path(name);
                let message = format!(
                    "{path} is {}, which this server does not support",
                    show(&value)
                );
                Err(ApiError::unsupported(path, message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses whatever has not been taken.
    pub(crate) fn refuse_rest(&self) -> Result<(), ApiError> {
        if let Some(description) = &self.description {
            description.note_closed(self.prefix.trim_end_matches('.'));
        }
        match self.map.iter().find(|(_, value)| !value.is_null()) {
            None => Ok(()),
            Some((name, value)) => {
                let path = self.path(name);
                let message = format!(
                    "{path} is {}; this endpoint does not know {name:?}",
                    show(value)
                );
                Err(ApiError::unsupported(path, message))
            }
        }
    }

    /// An element of an array in the body, as an object.
    pub(crate) fn element(&self, path: &str, value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(self.within(map, &format!("{path}."))),
            other => {
                let message = format!(
                    "{path} is {} ({}), but must be an object",
                    show(&other),
                    kind_of(&other)
                );
                Err(ApiError::invalid(path, message))
            }
        }
    }

    /// Takes a field that must be there.
    pub(crate) fn required<T>(
        &self,
        name: &str,
        value: Option<T>,
        what: &str,
    ) -> Result<T, ApiError> {
        if let Some(description) = &self.description {
            description.note_required(&self.path(name));
        }
        value.ok_or_else(|| {
            let path = self.path(name);
            let message = format!("{path} is missing; it is {what}");
            ApiError::invalid(path, message)
        })
    }

    pub fn wrong_type(&self, name: &str, value: &Value, wanted: &str) -> ApiError {
        let path = self.path(name);
        let message = format!(
            "{path} is {} ({}), but must be {wanted}",
            show(value),
            kind_of(value)
        );
        ApiError::invalid(path, message)
    }

    fn out_of_range<T: std::fmt::Display>(
        &self,
        name: &str,
        value: &Value,
        least: T,
        most: T,
    ) -> ApiError {
        let path = self.path(name);
        let message = format!(
            "{path} is {}, but must be from {least} to {most}",
            show(value)
        );
        ApiError::invalid(path, message)
    }
}

/// The schema of integers in a range.
pub(crate) fn integers(range: &RangeInclusive<i64>) -> Value {
    json!({"type": "integer", "minimum": range.start(), "maximum": range.end()})
}

/// The schema of a text or a list of elements, which their own parser describes.
pub(crate) fn text_or_list(least: usize) -> Value {
    json!({"anyOf": [{"type": "string"}, {"type": "array", "minItems": least}]})
}

/// Starts of bodies that are not JSON and occur in practice.
fn unreadable_start(body: &[u8]) -> Option<&'static str> {
    let starts: [(&[u8], &str); 5] = [
        (b"\xef\xbb\xbf", "a byte order mark (BOM)"),
        (b"\xff\xfe", "a byte order mark of UTF-16"),
        (b"\xfe\xff", "a byte order mark of UTF-16"),
        (b"\x1f\x8b", "gzip's magic number"),
        (b"\x28\xb5\x2f\xfd", "zstd's magic number"),
    ];
    let found = starts.iter().find(|(start, _)| body.starts_with(start));
    found.map(|(_, what)| *what)
}

/// `3` and `3.0` are both the integer 3, as in JavaScript.
pub fn as_integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let number = value.as_f64()?;
        (value.is_f64() && number.fract() == 0.0 && number.abs() < 9e15).then_some(number as i64)
    })
}

/// A value as JSON, cut where it is long.
pub fn show(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Whether the headers ask for a stream that can be resumed, and how.
fn keeping_of(headers: &HeaderMap) -> Result<(bool, KeepStream), ApiError> {
    let id = headers.get(CONVERSATION_ID).map(|id| {
        let id = String::from_utf8_lossy(id.as_bytes()).into_owned();
        check_id("X-Conversation-Id", &id).map(|()| id)
    });
    let keeping = KeepStream {
        id: id.transpose()?,
        keys: SentKeys::of(headers),
    };
    Ok((keeping.id.is_some(), keeping))
}

/// Reads the body up to `--max-body-bytes`. The content type is ignored: `curl -d` sends the wrong
/// one by default.
impl FromRequest<Arc<AppState>> for Fields {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &Arc<AppState>) -> Result<Self, ApiError> {
        let limit = state.http.max_body_bytes;
        let declared = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
            .unwrap_or(0);
        let encodings = request.headers().get_all(header::CONTENT_ENCODING);
        let encoding = encodings
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .find(|value| !value.eq_ignore_ascii_case("identity"));
        let keeping = keeping_of(request.headers())?;
        let timeout = state.http.client_timeout;
        let deadline = tokio::time::Instant::now() + timeout;
        let trace = request.extensions().get::<Arc<RequestTrace>>().cloned();
        let mut stream = request.into_body().into_data_stream();
        let mut body = Vec::with_capacity(declared.min(limit));
        let mut n_bytes = 0;
        loop {
            let next = tokio::time::timeout_at(deadline, stream.next()).await;
            let Some(chunk) = next.map_err(|_| ApiError::slow_body(n_bytes, timeout))? else {
                break;
            };
            let chunk = chunk.map_err(|error| {
                ApiError::invalid_body(format!("the request body could not be read: {error}"))
            })?;
            n_bytes += chunk.len();
            if n_bytes <= limit {
                body.extend_from_slice(&chunk);
            } else if n_bytes > limit.saturating_mul(8) {
                break;
            }
            // The rest of an oversized body is read and dropped for a while, because closing a
            // connection with unread input makes clients lose the response.
        }
        if n_bytes > limit {
            return Err(ApiError::body_too_large(limit));
        }
        if let Some(encoding) = encoding {
            return Err(ApiError::encoded_body(&encoding));
        }
        let received = Instant::now();
        let mut fields = Self::parse(&body)?;
        fields.received = Some(received);
        fields.trace = trace;
        fields.keeping = keeping;
        if state.result_cache.is_on() {
            fields.digest = Some(BodyDigest::of(&fields.map));
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ranges::TOP_P;

    fn fields(value: &Value) -> Fields {
        Fields::parse(value.to_string().as_bytes()).expect("an object")
    }

    #[test]
    fn an_error_names_field_value_and_limit() {
        let mut body = fields(&json!({"top_p": 1.5, "n": "two", "stream_options": {"x": 3}}));
        let error = body.parameter(TOP_P).expect_err("out of range");
        assert_eq!(error.message, "top_p is 1.5, but must be from 0 to 1");
        assert_eq!(error.param.as_deref(), Some("top_p"));
        let error = body.integer("n", 1..=4).expect_err("a string");
        assert_eq!(
            error.message,
            "n is \"two\" (a string), but must be an integer"
        );
        let mut inner = body
            .object("stream_options")
            .expect("an object")
            .expect("present");
        let error = inner.bool("x").expect_err("a number");
        assert_eq!(error.param.as_deref(), Some("stream_options.x"));
    }

    #[test]
    fn integers_may_be_written_as_floats_but_not_with_fractions() {
        let mut body = fields(&json!({"a": 3.0, "b": 3.5, "c": u64::MAX, "d": null}));
        assert_eq!(body.integer("a", 0..=9), Ok(Some(3)));
        assert!(body.integer("b", 0..=9).is_err());
        let error = body.integer("c", 0..=9).expect_err("too large");
        assert!(error.message.contains("from 0 to 9"), "{}", error.message);
        assert_eq!(body.integer("d", 0..=9), Ok(None));
    }

    #[test]
    fn long_values_are_cut_at_a_character() {
        let shown = show(&Value::String("한".repeat(500)));
        assert_eq!(shown.chars().count(), MAX_SHOWN_CHARS + 1);
    }
}
