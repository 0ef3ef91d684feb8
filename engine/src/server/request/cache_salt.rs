//! `cache_salt`, as in vLLM: cached KV is shared only between requests with the same salt, so that
//! neither `cached_tokens` nor the time to first token reveals what other clients asked. The result
//! cache (`--result-cache`) treats it like every other field of the body.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::server::error::ApiError;
use crate::server::request::fields::Fields;

const NAME: &str = "cache_salt";
const MAX_BYTES: usize = 1024;

/// The root of the prompt's prefixes in the radix tree; 0 without a salt.
pub fn take(fields: &mut Fields) -> Result<u64, ApiError> {
    const WANTED: &str = "a string that is not empty, of at most 1024 bytes";
    fields.shape(
        NAME,
        || json!({"type": "string", "minLength": 1, "maxLength": MAX_BYTES}),
    );
    match fields.value(NAME) {
        None => Ok(0),
        Some(Value::String(salt)) if (1..=MAX_BYTES).contains(&salt.len()) => Ok(root_of(&salt)),
        Some(Value::String(salt)) => {
            let message = format!("cache_salt has {} bytes, but must be {WANTED}", salt.len());
            Err(ApiError::invalid(NAME, message))
        }
        Some(other) => Err(fields.wrong_type(NAME, &other, WANTED)),
    }
}

/// Never 0, which is the root for requests without a salt.
fn root_of(salt: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(salt).into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first).max(1)
}
