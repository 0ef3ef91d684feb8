//! `cache_salt`, as vLLM has it: KV of prompts is shared with requests of the same salt alone, so that
//! neither `cached_tokens` nor the time to the first token tells what others have asked. Kept
//! answers (`--result-cache`) are told apart by it as by every field of a body.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::server::error::ApiError;
use crate::server::request::fields::Fields;

const NAME: &str = "cache_salt";
const MAX_BYTES: usize = 1024;

/// The root of the prompt's prefixes; 0 where no salt is sent.
pub fn take(fields: &mut Fields) -> Result<u64, ApiError> {
    const WANTED: &str = "a string that is not empty, of at most 1024 bytes";
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

/// Never 0, which is the root of all without a salt.
fn root_of(salt: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(salt).into();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first).max(1)
}
