//! Rewrites JSON schemas from common libraries into the keywords that llguidance supports.
//!
//! Annotations in the sense of the standard are dropped, and so is a `format` without a grammar
//! here (JSON Schema 2020-12, validation, 7.2). Keywords with an equivalent are rewritten. Keywords
//! that affect validity and cannot be enforced token by token are refused by name. Only
//! `uniqueItems` is dropped although it is an assertion: sets are too common to refuse.

use serde_json::{Map, Value, json};

use super::property_names::rewrite_property_names;
use super::{references, resolve, schemas_mut};
use crate::structured::constraint::StructuredError;

/// Formats with a grammar of their own.
const FORMATS: [&str; 11] = [
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "unknown",
];

pub(super) const ANNOTATIONS: [&str; 15] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$vocabulary",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "discriminator",
    "uniqueItems",
];

/// Assertions that cannot be enforced while a text is written.
const REFUSED: [&str; 10] = [
    "not",
    "if",
    "contains",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "unevaluatedProperties",
    "unevaluatedItems",
    "$dynamicRef",
    "$recursiveRef",
];

/// An equivalent schema for the compiler. The input comes from clients; its nesting as JSON is
/// bounded.
pub fn usable(mut schema: Value) -> Result<Value, StructuredError> {
    references::make_plain(&mut schema);
    let definitions = ["$defs", "definitions"].into_iter();
    let definitions = definitions
        .filter_map(|name| Some((name.to_owned(), schema.get(name)?.clone())))
        .collect::<Map<String, Value>>();
    let names = Names {
        root: definitions.into(),
    };
    rewrite(&mut schema, &names, "#")?;
    Ok(schema)
}

/// Resolves `$ref`s while the schema is being changed: its definitions in their original form.
pub(super) struct Names {
    root: Value,
}

fn rewrite(schema: &mut Value, names: &Names, path: &str) -> Result<(), StructuredError> {
    let Some(object) = schema.as_object_mut() else {
        return Ok(());
    };
    object.retain(|name, _| !ANNOTATIONS.contains(&name.as_str()));
    if object
        .get("format")
        .and_then(Value::as_str)
        .is_some_and(|format| !FORMATS.contains(&format))
    {
        object.remove("format");
    }
    leave_out_what_says_nothing(object);
    close_unevaluated(object);
    if let Some(allowed) = object.remove("propertyNames") {
        rewrite_property_names(object, &allowed, names, path)?;
    }
    if let Some(keyword) = REFUSED.iter().find(|name| object.contains_key(**name)) {
        return Err(refused(
            keyword,
            path,
            "it cannot be enforced while the text is written",
        ));
    }
    if object
        .get("pattern")
        .and_then(Value::as_str)
        .is_some_and(looks_around)
    {
        let reason = "look-ahead and look-behind cannot be enforced while the text is written";
        return Err(refused("pattern", path, reason));
    }
    for (part_path, part) in schemas_mut(object) {
        rewrite(part, names, &format!("{path}{part_path}"))?;
    }
    Ok(())
}

/// Whether a regular expression contains look-ahead or look-behind.
fn looks_around(pattern: &str) -> bool {
    let mut is_in_class = false;
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        let is_group = first == '(' && !is_in_class;
        if is_group
            && ["(?=", "(?!", "(?<=", "(?<!"]
                .iter()
                .any(|open| rest.starts_with(open))
        {
            return true;
        }
        match first {
            '[' => is_in_class = true,
            ']' => is_in_class = false,
            _ => {}
        }
        let mut chars = rest.chars();
        chars.next();
        if first == '\\' {
            chars.next();
        }
        rest = chars.as_str();
    }
    false
}

pub(super) fn refused(keyword: &str, path: &str, reason: &str) -> StructuredError {
    StructuredError::Keyword {
        keyword: keyword.to_owned(),
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Drops assertions that hold for every value.
fn leave_out_what_says_nothing(object: &mut Map<String, Value>) {
    let is_true = |value: &Value| *value == json!(true) || *value == json!({});
    if object
        .get("not")
        .is_some_and(|value| *value == json!(false))
    {
        object.remove("not");
    }
    let branches = ["then", "else"];
    if !object.contains_key("if")
        || branches
            .iter()
            .all(|name| object.get(*name).is_none_or(is_true))
    {
        for name in ["if", "then", "else"] {
            object.remove(name);
        }
    }
    if !object.contains_key("contains") {
        object.remove("minContains");
        object.remove("maxContains");
    } else if object.get("minContains").and_then(Value::as_u64) == Some(0)
        && !object.contains_key("maxContains")
    {
        object.remove("contains");
        object.remove("minContains");
    }
    for name in ["dependentRequired", "dependentSchemas", "dependencies"] {
        if object.get(name).is_some_and(|value| *value == json!({})) {
            object.remove(name);
        }
    }
    for name in ["unevaluatedProperties", "unevaluatedItems", "propertyNames"] {
        if object.get(name).is_some_and(is_true) {
            object.remove(name);
        }
    }
}

/// Without other schemas next to it, unevaluated properties are the additional ones.
fn close_unevaluated(object: &mut Map<String, Value>) {
    let others = ["allOf", "anyOf", "oneOf", "$ref", "if", "dependentSchemas"];
    if others.iter().any(|name| object.contains_key(*name)) {
        return;
    }
    for (name, plain) in [
        ("unevaluatedProperties", "additionalProperties"),
        ("unevaluatedItems", "items"),
    ] {
        if object.contains_key(plain) {
            // Everything is evaluated.
            object.remove(name);
        } else if let Some(value) = object.remove(name) {
            object.insert(plain.to_owned(), value);
        }
    }
}

impl Names {
    /// The schema itself, or the target of its only keyword, a `$ref`.
    pub(super) fn followed(&self, schema: &Value) -> Option<Value> {
        const MAX_STEPS: usize = 8;
        let mut schema = schema;
        for _ in 0..MAX_STEPS {
            let Some(reference) = schema.get("$ref").and_then(Value::as_str) else {
                return Some(schema.clone());
            };
            schema = resolve(&self.root, reference)?;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(schema: Value) -> Value {
        usable(schema).expect("usable")
    }

    #[test]
    fn annotations_and_unknown_formats_say_nothing() {
        for format in [
            "path",
            "file-path",
            "password",
            "binary",
            "base64",
            "uuid4",
            "ipvanyaddress",
            "json-string",
            "starts_with",
            "cuid",
            "cuid2",
            "ulid",
            "nanoid",
            "emoji",
            "base64url",
            "jwt",
            "cidrv4",
            "cidrv6",
            "e164",
            "xid",
            "ksuid",
            "hex",
            "int32",
            "float",
        ] {
            let schema = json!({"type": "string", "format": format, "maxLength": 3});
            assert_eq!(written(schema), json!({"type": "string", "maxLength": 3}));
        }
        for format in FORMATS {
            let schema = json!({"type": "string", "format": format});
            assert_eq!(written(schema.clone()), schema);
        }
        let schema = json!({
            "title": "T", "description": "d", "deprecated": true, "default": 1, "uniqueItems": true,
            "propertyNames": {"type": "string"}, "minContains": 3, "if": {}, "else": true,
            "properties": {"title": {"type": "null", "title": "x"}}, "dependentRequired": {},
        });
        // A property may have the name of a keyword.
        assert_eq!(
            written(schema),
            json!({"properties": {"title": {"type": "null"}}})
        );
        // Groups, and text that only resembles look-around.
        let schema = json!({"pattern": "(?:a)(?<n>b)\\\\\\(?=[(?=]"});
        assert_eq!(usable(schema.clone()), Ok(schema));
        // Data is not changed.
        let schema = json!({"enum": [{"title": "x", "not": 1}], "const": {"format": "path"}});
        assert_eq!(usable(schema.clone()), Ok(schema));
    }

    #[test]
    fn what_means_the_same_is_written_in_other_words() {
        for (schema, expected) in [
            (
                json!({"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "null"}}),
                json!({"properties": {"a": {"type": "null"}, "b": {"type": "null"}},
                       "additionalProperties": false}),
            ),
            (
                json!({"propertyNames": {"$ref": "#/$defs/c"}, "$defs": {"c": {"const": "a", "title": "C"}}}),
                json!({"properties": {"a": true}, "additionalProperties": false,
                       "$defs": {"c": {"const": "a"}}}),
            ),
            (
                json!({"propertyNames": {"enum": ["a"]}, "properties": {"a": {"type": "null"}, "b": true}}),
                json!({"properties": {"a": {"type": "null"}, "b": false}, "additionalProperties": false}),
            ),
            (
                json!({"propertyNames": {"type": "string", "format": "uuid", "pattern": "^x"}}),
                json!({"patternProperties": {"^x": true}, "additionalProperties": false}),
            ),
            (
                json!({"propertyNames": {"minLength": 2}, "additionalProperties": {"type": "null"}}),
                json!({"patternProperties": {"^[\\s\\S]{2,}$": {"type": "null"}},
                       "additionalProperties": false}),
            ),
            (
                json!({"properties": {"a": true}, "unevaluatedProperties": false}),
                json!({"properties": {"a": true}, "additionalProperties": false}),
            ),
            (
                json!({"contains": {}, "minContains": 0, "not": false}),
                json!({}),
            ),
        ] {
            assert_eq!(written(schema.clone()), expected, "{schema}");
        }
    }

    #[test]
    fn what_cannot_be_enforced_is_refused_by_name_and_place() {
        let inner = |schema: Value| json!({"properties": {"a": {"items": schema}}});
        for (schema, keyword) in [
            (json!({"not": {"type": "null"}}), "not"),
            (json!({"if": {"required": ["a"]}, "then": false}), "if"),
            (json!({"contains": {"type": "null"}}), "contains"),
            (
                json!({"dependentRequired": {"a": ["b"]}}),
                "dependentRequired",
            ),
            (
                json!({"dependentSchemas": {"a": false}}),
                "dependentSchemas",
            ),
            (json!({"dependencies": {"a": ["b"]}}), "dependencies"),
            // pydantic's Decimal.
            (
                json!({"pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}),
                "pattern",
            ),
            (json!({"pattern": "a(?<=b)"}), "pattern"),
            (
                json!({"allOf": [{}], "unevaluatedProperties": false}),
                "unevaluatedProperties",
            ),
            (json!({"propertyNames": {"not": {}}}), "propertyNames"),
            (json!({"propertyNames": false}), "propertyNames"),
            (json!({"propertyNames": {"enum": [1]}}), "propertyNames"),
            (
                json!({"propertyNames": {"pattern": "x"}, "properties": {"a": true}}),
                "propertyNames",
            ),
        ] {
            let error = usable(inner(schema.clone()))
                .expect_err("refused")
                .to_string();
            assert!(error.contains(&format!("{keyword:?}")), "{error}");
            assert!(error.contains("#/properties/a/items"), "{error}");
            assert!(error.contains("leave it out"), "{error}");
        }
    }
}
