//! The fields that exclude tokens: `allowed_token_ids`, `bad_words`, `min_tokens`.

use std::sync::{Arc, OnceLock};

use serde_json::json;

use crate::served_model::Limits;
use crate::server::error::ApiError;
use crate::server::request::fields::Fields;
use crate::server::request::sampling_fields::{id_list, take_same, token_ids};
use crate::text::Tokenizer;

const MAX_BAD_WORDS: usize = 1024;
const MAX_BAD_WORD_CHARS: usize = 1024;

/// Words that the output must not contain. They are tokenized once per request.
#[derive(Debug, Clone, Default)]
pub struct BadWords {
    words: Vec<String>,
    ids: Arc<OnceLock<Arc<[Vec<u32>]>>>,
}

impl BadWords {
    /// `bad_words`: strings, none of them empty.
    ///
    /// # Errors
    ///
    /// If it is no array of strings, has too many of them, or one of them is blank or too long.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        const NAME: &str = "bad_words";
        fields.shape(NAME, || {
            let word = json!({
                "type": "string", "minLength": 1, "maxLength": MAX_BAD_WORD_CHARS, "pattern": "\\S",
            });
            json!({"type": "array", "items": word, "maxItems": MAX_BAD_WORDS})
        });
        let items = fields.array(NAME)?.unwrap_or_default();
        if items.len() > MAX_BAD_WORDS {
            let n = items.len();
            let message = format!("{NAME} has {n} words, the limit is {MAX_BAD_WORDS}");
            return Err(ApiError::invalid(NAME, message));
        }
        let mut words = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let path = format!("{NAME}[{i}]");
            let Some(word) = item.as_str() else {
                return Err(fields.wrong_type(&path, item, "a string"));
            };
            let n_chars = word.chars().count();
            if word.trim().is_empty() || n_chars > MAX_BAD_WORD_CHARS {
                let message = format!(
                    "{path} has {n_chars} characters, but must have from 1 to \
                     {MAX_BAD_WORD_CHARS}, not all of them spaces"
                );
                return Err(ApiError::invalid(path, message));
            }
            words.push(word.to_owned());
        }
        Ok(Self {
            words,
            ids: Arc::default(),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The tokens of each word, at the start of a text and after a space.
    pub(crate) fn ids(&self, tokenizer: &Tokenizer) -> Result<Arc<[Vec<u32>]>, ApiError> {
        if let Some(ids) = self.ids.get() {
            return Ok(Arc::clone(ids));
        }
        let mut all = Vec::with_capacity(2 * self.words.len());
        for (i, word) in self.words.iter().enumerate() {
            for space in ["", " "] {
                let text = format!("{space}{}", word.trim_start());
                let ids = tokenizer.encode(&text, false);
                let path = || format!("bad_words[{i}]");
                let ids = ids.map_err(|error| ApiError::invalid(path(), error.to_string()))?;
                if ids.is_empty() {
                    let message = format!("{} has no tokens; at least one is needed", path());
                    return Err(ApiError::invalid(path(), message));
                }
                if !all.contains(&ids) {
                    all.push(ids);
                }
            }
        }
        Ok(Arc::clone(self.ids.get_or_init(|| all.into())))
    }
}

/// `allowed_token_ids`: the only tokens that may be generated.
pub(crate) fn take_allowed(
    fields: &mut Fields,
    limits: &Limits,
) -> Result<Option<Arc<[u32]>>, ApiError> {
    const NAME: &str = "allowed_token_ids";
    fields.shape(NAME, || id_list(limits, 1, limits.vocab));
    let Some(items) = fields.array(NAME)? else {
        return Ok(None);
    };
    if items.is_empty() {
        let message =
            format!("{NAME} is empty: no token could be generated; leave it out to allow all");
        return Err(ApiError::invalid(NAME, message));
    }
    if items.len() > limits.vocab {
        let (n, vocab) = (items.len(), limits.vocab);
        let message = format!("{NAME} has {n} ids, the model has {vocab} tokens");
        return Err(ApiError::invalid(NAME, message));
    }
    Ok(Some(token_ids(NAME, &items, limits)?.into()))
}

/// `min_tokens`, which SGLang calls `min_new_tokens`.
pub(crate) fn take_min_tokens(fields: &mut Fields) -> Result<usize, ApiError> {
    let range = 0..=i64::from(i32::MAX);
    let min_tokens = take_same(fields, "min_tokens", "min_new_tokens", range)?;
    Ok(min_tokens.unwrap_or(0) as usize)
}
