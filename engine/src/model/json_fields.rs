//! Typed access to the fields of a JSON object, with errors that name the key and the value.

use serde_json::{Map, Value};

use super::config::ConfigError;

/// Typed access to a JSON object; `null` counts as absent, as in Hugging Face's code.
pub(crate) struct Fields<'a> {
    pub map: &'a Map<String, Value>,
    prefix: String,
}

impl<'a> Fields<'a> {
    pub fn of(value: &'a Value, prefix: &str) -> Result<Self, ConfigError> {
        match value {
            Value::Object(map) => Ok(Self {
                map,
                prefix: prefix.to_owned(),
            }),
            _ => Err(ConfigError::invalid(
                "the configuration",
                kind_of(value),
                "a JSON object",
            )),
        }
    }

    pub fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn present(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong(&self, key: &str, value: &Value, limit: &str) -> ConfigError {
        let mut shown = value.to_string();
        if shown.chars().count() > 80 {
            shown = format!("{}…", shown.chars().take(80).collect::<String>());
        }
        ConfigError::invalid(self.key(key), shown, limit)
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        // Some tools write whole numbers as `512.0`.
        let whole = |v: f64| (v.fract() == 0.0 && (0.0..9e15).contains(&v)).then_some(v as u64);
        let size = value.as_u64().or_else(|| value.as_f64().and_then(whole));
        match size.and_then(|v| usize::try_from(v).ok()) {
            Some(size) => Ok(Some(size)),
            None => Err(self.wrong(key, value, "a whole number of at least 0")),
        }
    }

    pub fn required_size(&self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?
            .ok_or_else(|| ConfigError::Missing { key: self.key(key) })
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        value
            .as_f64()
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "a number"))
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        value
            .as_str()
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "a string"))
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.present(key) else {
            return Ok(None);
        };
        value
            .as_bool()
            .map(Some)
            .ok_or_else(|| self.wrong(key, value, "true or false"))
    }

    pub fn object(&self, key: &str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.present(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields {
                map,
                prefix: format!("{}.", self.key(key)),
            })),
            Some(other) => Err(self.wrong(key, other, "an object")),
        }
    }

    /// One id or a list of ids.
    pub fn ids(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.present(key) else {
            return Ok(Vec::new());
        };
        let one = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(list) => list.iter().map(one).collect(),
            other => one(other).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(key, value, "a token id or a list of token ids"))
    }
}

/// For error messages: what a value is, with its article.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
