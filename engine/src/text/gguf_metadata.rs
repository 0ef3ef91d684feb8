//! The `tokenizer.*` keys of a GGUF header, by type.
//!
//! [`crate::weights::gguf`] parses the file and enforces its limits; here a key of the wrong type
//! becomes an error that names it.

use std::collections::HashMap;
use std::path::Path;

use super::TextError;
use crate::weights::WeightError;
use crate::weights::gguf::value::Value;
use crate::weights::gguf::{GgufFile, GgufHeader};

const KEPT_PREFIX: &str = "tokenizer.";

/// One metadata value, integers widened.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f32>),
    Texts(Vec<String>),
}

/// The `tokenizer.*` keys of one file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufMetadata {
    values: HashMap<String, MetadataValue>,
}

impl GgufMetadata {
    /// Reads the header of the GGUF file at `path`.
    ///
    /// # Errors
    ///
    /// [`TextError::File`] if the file cannot be read or is no GGUF file.
    pub fn read(path: &Path) -> Result<Self, TextError> {
        let file = GgufFile::open(path).map_err(|error| match error {
            WeightError::File { file, message } | WeightError::Unreadable { file, message } => {
                TextError::File { file, message }
            }
            other => TextError::File {
                file: path.display().to_string(),
                message: other.to_string(),
            },
        })?;
        Ok(Self::from_header(&file.header))
    }

    /// Takes the tokenizer's keys from a parsed header.
    pub fn from_header(header: &GgufHeader) -> Self {
        let kept = header
            .metadata
            .iter()
            .filter(|(key, _)| key.starts_with(KEPT_PREFIX));
        let values = kept.filter_map(|(key, value)| Some((key.clone(), MetadataValue::of(value)?)));
        Self {
            values: values.collect(),
        }
    }

    pub fn insert(&mut self, key: &str, value: MetadataValue) {
        self.values.insert(key.to_owned(), value);
    }

    pub fn remove(&mut self, key: &str) {
        self.values.remove(key);
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>, TextError> {
        self.typed(key, "a string", |v| match v {
            MetadataValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, TextError> {
        self.typed(key, "a boolean", |v| match v {
            MetadataValue::Bool(flag) => Some(*flag),
            _ => None,
        })
    }

    /// A token id.
    pub(crate) fn id(&self, key: &str) -> Result<Option<u32>, TextError> {
        self.typed(key, "a 32-bit unsigned integer", |v| match v {
            MetadataValue::Integer(id) => u32::try_from(*id).ok(),
            _ => None,
        })
    }

    pub(crate) fn texts(&self, key: &str) -> Result<Option<&[String]>, TextError> {
        self.typed(key, "an array of strings", |v| match v {
            MetadataValue::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Option<&[f32]>, TextError> {
        self.typed(key, "an array of floats", |v| match v {
            MetadataValue::Floats(floats) => Some(floats.as_slice()),
            _ => None,
        })
    }

    pub(crate) fn integers(&self, key: &str) -> Result<Option<&[i64]>, TextError> {
        self.typed(key, "an array of integers", |v| match v {
            MetadataValue::Integers(integers) => Some(integers.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        pick: impl Fn(&'a MetadataValue) -> Option<T>,
    ) -> Result<Option<T>, TextError> {
        let Some(value) = self.values.get(key) else {
            return Ok(None);
        };
        pick(value).map(Some).ok_or_else(|| TextError::Metadata {
            key: key.to_owned(),
            message: format!("is not {expected}"),
        })
    }
}

impl MetadataValue {
    /// `None` for values that no tokenizer key has: nested or mixed arrays, arrays of booleans, and
    /// integers above `i64::MAX`.
    fn of(value: &Value) -> Option<Self> {
        Some(match value {
            Value::F32(float) => Self::Float((*float).into()),
            Value::F64(float) => Self::Float(*float),
            Value::Bool(flag) => Self::Bool(*flag),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => match items.first() {
                None | Some(Value::String(_)) => {
                    let texts = items.iter().map(|item| item.text().map(str::to_owned));
                    Self::Texts(texts.collect::<Option<_>>()?)
                }
                Some(Value::F32(_)) => {
                    Self::Floats(items.iter().map(Value::f32).collect::<Option<_>>()?)
                }
                Some(_) => Self::Integers(items.iter().map(integer).collect::<Option<_>>()?),
            },
            other => Self::Integer(integer(other)?),
        })
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::U8(n) => Some((*n).into()),
        Value::I8(n) => Some((*n).into()),
        Value::U16(n) => Some((*n).into()),
        Value::I16(n) => Some((*n).into()),
        Value::U32(n) => Some((*n).into()),
        Value::I32(n) => Some((*n).into()),
        Value::U64(n) => i64::try_from(*n).ok(),
        Value::I64(n) => Some(*n),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_tokenizers_keys_and_widens_integers() {
        let text = |text: &str| Value::String(text.to_owned());
        let header = GgufHeader {
            metadata: HashMap::from([
                ("general.name".to_owned(), text("x")),
                (
                    "tokenizer.ggml.tokens".to_owned(),
                    Value::Array(vec![text("a"), text("한")]),
                ),
                (
                    "tokenizer.ggml.token_type".to_owned(),
                    Value::Array(vec![Value::I32(1); 2]),
                ),
                (
                    "tokenizer.ggml.scores".to_owned(),
                    Value::Array(vec![Value::F32(-1.0); 2]),
                ),
                ("tokenizer.ggml.bos_token_id".to_owned(), Value::U32(1)),
                ("tokenizer.ggml.add_bos_token".to_owned(), Value::Bool(true)),
                (
                    "tokenizer.ggml.mixed".to_owned(),
                    Value::Array(vec![Value::I32(1), text("a")]),
                ),
            ]),
            tensors: HashMap::new(),
        };
        let metadata = GgufMetadata::from_header(&header);
        assert_eq!(metadata.values.len(), 5);
        assert_eq!(
            metadata.texts("tokenizer.ggml.tokens").unwrap().unwrap(),
            ["a", "한"]
        );
        assert_eq!(
            metadata
                .integers("tokenizer.ggml.token_type")
                .unwrap()
                .unwrap(),
            [1, 1]
        );
        assert_eq!(
            metadata.floats("tokenizer.ggml.scores").unwrap().unwrap(),
            [-1.0, -1.0]
        );
        assert_eq!(metadata.id("tokenizer.ggml.bos_token_id").unwrap(), Some(1));
        assert_eq!(
            metadata.bool("tokenizer.ggml.add_bos_token").unwrap(),
            Some(true)
        );
        assert_eq!(metadata.text("tokenizer.ggml.pre").unwrap(), None);
        let wrong_type = metadata.text("tokenizer.ggml.bos_token_id").unwrap_err();
        assert!(
            wrong_type.to_string().contains("is not a string"),
            "{wrong_type}"
        );
    }
}
