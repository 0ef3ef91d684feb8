//! A parameter's value as JSON: Qwen3-Coder writes bare text, and the tool's schema says what it is.

use serde_json::Value;

/// What a parameter's schema allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ValueKind {
    /// Text and nothing else, so that it can be passed on while it is written. Also a parameter
    /// that the schema does not describe.
    Text,
    /// Text, or a value of these types if it reads as one.
    Mixed(Types),
    /// A value of these types; text if it reads as none of them.
    Json(Types),
}

/// The types besides text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Types {
    is_null: bool,
    is_bool: bool,
    is_number: bool,
    is_object: bool,
    is_array: bool,
}

/// Schemas that refer to each other in a ring end here.
const MAX_DEPTH: usize = 8;

/// Whether a parameter may be any text.
pub(crate) fn is_text(parameters: Option<&Value>, name: &str) -> bool {
    !matches!(ValueKind::of(parameters, name), ValueKind::Json(_))
}

impl ValueKind {
    pub fn of(parameters: Option<&Value>, name: &str) -> Self {
        let Some(root) = parameters else {
            return Self::Text;
        };
        let (mut types, mut is_text) = (Types::default(), false);
        if let Some(schema) = root.get("properties").and_then(|all| all.get(name)) {
            collect(root, schema, MAX_DEPTH, &mut types, &mut is_text);
        }
        match (is_text, types == Types::default()) {
            (_, true) => Self::Text,
            (true, false) => Self::Mixed(types),
            (false, false) => Self::Json(types),
        }
    }

    /// The JSON of a whole value.
    pub fn json_of(self, text: &str) -> String {
        let read = match self {
            Self::Text => None,
            // A number in a text is text.
            Self::Mixed(types) => {
                let is_other = text.starts_with(['{', '[']) || text == "null";
                types.read(text).filter(|_| is_other)
            }
            Self::Json(types) => types.read(text),
        };
        read.unwrap_or_else(|| Value::from(text).to_string())
    }
}

impl Types {
    /// The text as JSON of one of these types. Numbers keep their digits.
    fn read(self, text: &str) -> Option<String> {
        let text = text.trim();
        // Python's words.
        let word = match text {
            "True" => "true",
            "False" => "false",
            "None" => "null",
            other => other,
        };
        let has_type = match serde_json::from_str::<Value>(word).ok()? {
            Value::Null => self.is_null,
            Value::Bool(_) => self.is_bool,
            Value::Number(_) => self.is_number,
            Value::Object(_) => self.is_object,
            Value::Array(_) => self.is_array,
            Value::String(_) => false,
        };
        has_type.then(|| word.to_owned())
    }

    fn add(&mut self, name: &str, is_text: &mut bool) {
        match name {
            "null" => self.is_null = true,
            "boolean" => self.is_bool = true,
            "number" | "integer" => self.is_number = true,
            "object" => self.is_object = true,
            "array" => self.is_array = true,
            _ => *is_text = true,
        }
    }
}

fn collect(root: &Value, schema: &Value, depth: usize, types: &mut Types, is_text: &mut bool) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    match schema.get("type") {
        Some(Value::String(name)) => types.add(name, is_text),
        Some(Value::Array(names)) => {
            let names = names.iter().filter_map(Value::as_str);
            names.for_each(|name| types.add(name, is_text));
        }
        _ => {}
    }
    if schema.get("type").is_some() {
        return;
    }
    let reference = schema.get("$ref").and_then(Value::as_str);
    let target = reference.and_then(|path| root.pointer(path.strip_prefix('#')?));
    let mut parts: Vec<&Value> = target.into_iter().collect();
    for word in ["anyOf", "oneOf", "allOf"] {
        parts.extend(
            schema
                .get(word)
                .and_then(Value::as_array)
                .into_iter()
                .flatten(),
        );
    }
    for part in parts {
        collect(root, part, depth, types, is_text);
    }
    let listed = schema.get("enum").and_then(Value::as_array);
    for value in listed.into_iter().flatten().chain(schema.get("const")) {
        let name = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        types.add(name, is_text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_value_is_what_its_schema_says() {
        let parameters = json!({
            "properties": {
                "text": {"type": "string"}, "n": {"type": "integer"}, "x": {"type": "number"},
                "on": {"type": "boolean"}, "list": {"type": "array"},
                "maybe": {"type": ["string", "null"]}, "either": {"anyOf": [{"type": "string"},
                {"type": "object"}]}, "linked": {"$ref": "#/$defs/n"}, "one": {"enum": ["1", "2"]},
                "some": {"enum": [1, 2]}, "ring": {"$ref": "#/properties/ring"}, "any": {},
            },
            "$defs": {"n": {"type": "integer"}},
        });
        for (name, text, json) in [
            ("text", "5", "\"5\""),
            ("text", "a \"b\"\n", "\"a \\\"b\\\"\\n\""),
            ("n", "5", "5"),
            (
                "n",
                "123456789012345678901234567890",
                "123456789012345678901234567890",
            ),
            ("n", "five", "\"five\""),
            ("x", " 1e3 ", "1e3"),
            ("on", "True", "true"),
            ("on", "false", "false"),
            ("list", "[1, \"a\"]", "[1, \"a\"]"),
            ("list", "[1", "\"[1\""),
            ("maybe", "null", "null"),
            ("maybe", "5", "\"5\""),
            ("either", "{\"a\": 1}", "{\"a\": 1}"),
            ("either", "{a}", "\"{a}\""),
            ("linked", "7", "7"),
            ("one", "1", "\"1\""),
            ("some", "1", "1"),
            ("ring", "1", "\"1\""),
            ("any", "1", "\"1\""),
            ("unknown", "1", "\"1\""),
        ] {
            let kind = ValueKind::of(Some(&parameters), name);
            assert_eq!(kind.json_of(text), json, "{name}: {text}");
        }
        assert_eq!(ValueKind::of(None, "a"), ValueKind::Text);
    }
}
