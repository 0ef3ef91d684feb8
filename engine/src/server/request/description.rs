//! What the parsers read of a body, as a JSON schema.
//!
//! The document of the API is made by the parsers themselves: they read samples, and
//! [`Fields`](super::fields::Fields) notes every field that they ask for with the type, the range or
//! the values that they accept. So it cannot lack a field or name another limit. What a parser
//! checks by itself it says with [`Fields::shape`](super::fields::Fields::shape).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

/// Shared by the fields of a body and the objects in it.
#[derive(Debug, Clone, Default)]
pub struct Description(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    /// Schemas by path: `stream_options.include_usage`, `messages[].role`.
    fields: Map<String, Value>,
    required: Vec<String>,
    /// One field of each group is required.
    one_of: Vec<Vec<String>>,
    /// Objects whose unknown fields are refused; the body itself is the empty path.
    closed: Vec<String>,
}

impl Description {
    /// The first note on a field holds, unless it says nothing.
    pub fn note(&self, path: &str, schema: Value) {
        let mut noted = self.lock();
        let known = noted
            .fields
            .entry(without_indices(path))
            .or_insert(json!({}));
        if known.as_object().is_some_and(Map::is_empty) {
            *known = schema;
        }
    }

    pub fn note_required(&self, path: &str) {
        self.lock().required.push(without_indices(path));
    }

    pub fn note_one_of(&self, names: &[&str]) {
        let names = names.iter().map(|name| (*name).to_owned());
        self.lock().one_of.push(names.collect());
    }

    pub fn note_closed(&self, path: &str) {
        self.lock().closed.push(without_indices(path));
    }

    /// The schema of the whole body.
    pub fn schema(&self) -> Value {
        let noted = self.lock();
        let mut body = json!({"type": "object"});
        for (path, schema) in &noted.fields {
            let place = place_of(&mut body, path);
            let is_required = noted.required.contains(path)
                && !noted.one_of.iter().flatten().any(|name| name == path);
            let schema = if is_required {
                schema.clone()
            } else {
                or_null(schema.clone())
            };
            if let (Some(place), Value::Object(schema)) = (place.as_object_mut(), schema) {
                place.extend(schema);
            }
        }
        for path in &noted.closed {
            // A field that is null counts as absent.
            place_of(&mut body, path)["additionalProperties"] = json!({"type": "null"});
        }
        // What an element must have depends on its type.
        let is_one_of = |path: &&String| noted.one_of.iter().flatten().any(|name| name == *path);
        let mut required = noted
            .required
            .iter()
            .filter(|path| !path.contains("[]") && !is_one_of(path))
            .collect::<Vec<_>>();
        required.dedup();
        for path in required {
            let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
            let parent = place_of(&mut body, parent);
            let names = parent
                .as_object_mut()
                .map(|parent| parent.entry("required").or_insert(json!([])));
            if let Some(Value::Array(names)) = names
                && !names.contains(&json!(name))
            {
                names.push(json!(name));
            }
        }
        if let Some(names) = noted.one_of.first() {
            let one = |name: &String| json!({"required": [name], "properties": {name: {"not": {"type": "null"}}}});
            body["anyOf"] = names.iter().map(one).collect();
        }
        body
    }

    /// No method panics between two related changes.
    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `messages[3].role` as `messages[].role`.
fn without_indices(path: &str) -> String {
    let mut parts = path.split('[');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.split_once(']').map_or("", |(_, rest)| rest);
        text.push_str("[]");
        text.push_str(rest);
    }
    text
}

/// The schema at a path, made if it is not there.
fn place_of<'a>(mut schema: &'a mut Value, path: &str) -> &'a mut Value {
    for name in path.split('.').filter(|name| !name.is_empty()) {
        let n_lists = name.matches("[]").count();
        schema = &mut schema["properties"][name.trim_end_matches("[]")];
        if schema.is_null() {
            *schema = json!({});
        }
        for _ in 0..n_lists {
            schema = &mut list_in(schema)["items"];
            if schema.is_null() {
                *schema = json!({"type": "object"});
            }
        }
    }
    schema
}

/// The branch of a schema that is an array.
fn list_in(schema: &mut Value) -> &mut Value {
    let branches = schema["anyOf"].as_array();
    let is_list = |branch: &Value| branch["type"] == "array";
    match branches.and_then(|branches| branches.iter().position(is_list)) {
        Some(place) => &mut schema["anyOf"][place],
        None => schema,
    }
}

/// `null` is treated as absent.
fn or_null(mut schema: Value) -> Value {
    let null = json!({"type": "null"});
    if let Some(kind) = schema.get("type").cloned() {
        let mut kinds = match kind {
            Value::Array(kinds) => kinds,
            kind => vec![kind],
        };
        kinds.push(json!("null"));
        schema["type"] = kinds.into();
        if let Some(Value::Array(values)) = schema.get_mut("enum") {
            values.push(Value::Null);
        }
    } else if let Some(Value::Array(branches)) = schema.get_mut("anyOf") {
        branches.push(null);
    } else if let Some(Value::Array(values)) = schema.get_mut("enum") {
        values.push(Value::Null);
    } else if schema.get("$ref").is_some() {
        return schema;
    }
    schema
}
