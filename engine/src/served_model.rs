//! A model that was loaded: its engine, its text side, and what requests may ask of it.
//!
//! [`crate::launch`] makes it, the server and `engine generate` use it.

use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::EngineConfig;
use crate::engine_loop::EngineHandle;
use crate::model::config::ModelConfig;
use crate::request::sampling_defaults::SamplingDefaults;
use crate::structured::Grammars;
use crate::text::{ChatTemplate, Tokenizer, ToolCallFormat};
use crate::weights::format::CheckpointFormat;

/// A model and its limits, from the moment it is loaded until it is unloaded.
pub struct ServedModel {
    /// The names that clients may use; responses carry the first.
    pub names: Vec<String>,
    /// When it was loaded, in seconds since 1970.
    pub created_s: u64,
    pub tokenizer: Arc<Tokenizer>,
    pub chat_template: Arc<ChatTemplate>,
    pub engine: EngineHandle,
    pub limits: Limits,
    /// Compiles grammars for constrained output.
    pub grammars: Arc<Grammars>,
    pub parsers: OutputParsers,
    /// Ids that end a sequence unless `ignore_eos`.
    pub eos_token_ids: Vec<u32>,
    /// Body of `/server_info`.
    pub server_info: Value,
    pub fingerprint: Fingerprint,
    pub seeds: Seeds,
}

/// The parts of a [`ServedModel`].
pub struct ServedParts {
    pub names: Vec<String>,
    pub tokenizer: Tokenizer,
    pub chat_template: ChatTemplate,
    pub parsers: OutputParsers,
    pub engine: EngineHandle,
    pub limits: Limits,
    pub model_eos_ids: Vec<u32>,
    pub server_info: Value,
    pub fingerprint: Fingerprint,
    pub random_seed: Option<u64>,
}

/// SHA-256 of everything about a model, its executor and its flags that an answer depends on.
pub type Fingerprint = [u8; 32];

/// What a [`Fingerprint`] is made of. A field that is added here changes every fingerprint.
#[derive(Debug)]
pub struct ModelFingerprint<'a> {
    pub version: &'a str,
    /// The model as typed, and what it turned out to be.
    pub requested: &'a str,
    pub used: &'a str,
    /// Of its files.
    pub sha256: &'a str,
    pub format: CheckpointFormat,
    pub config: &'a ModelConfig,
    pub executor: &'a str,
    /// By role: kernels add up in different orders.
    pub kernels: &'a [(String, String)],
    pub engine: &'a EngineConfig,
    pub sampling_defaults: &'a SamplingDefaults,
}

impl ModelFingerprint<'_> {
    pub fn digest(&self) -> Fingerprint {
        // As text with every field's name, so that no value can pass for another field's.
        Sha256::digest(format!("{self:?}")).into()
    }
}

impl ServedModel {
    pub fn new(parts: ServedParts) -> Self {
        let mut eos_token_ids = parts.model_eos_ids;
        eos_token_ids.extend(parts.tokenizer.eos_ids());
        eos_token_ids.sort_unstable();
        eos_token_ids.dedup();
        let tokenizer = Arc::new(parts.tokenizer);
        let (vocab, max_bytes) = (parts.limits.vocab, parts.limits.max_schema_bytes);
        let grammars = Grammars::new(Arc::clone(&tokenizer), vocab, &eos_token_ids, max_bytes);
        Self {
            names: parts.names,
            created_s: seconds_since_1970(),
            tokenizer,
            grammars: Arc::new(grammars),
            parsers: parts.parsers,
            chat_template: Arc::new(parts.chat_template),
            engine: parts.engine,
            limits: parts.limits,
            eos_token_ids,
            server_info: parts.server_info,
            fingerprint: parts.fingerprint,
            seeds: Seeds::new(parts.random_seed),
        }
    }

    pub fn name(&self) -> &str {
        self.names.first().map_or("default", String::as_str)
    }
}

fn seconds_since_1970() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| since.as_secs())
}

/// How a chat's output is parsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutputParsers {
    /// The model's tool-call format; `None` leaves calls in the content.
    pub tool_calls: Option<ToolCallFormat>,
    /// Whether reasoning is returned in its own field.
    pub reasoning: bool,
}

/// Limits on what a request may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Limit on prompt and output together: the context length or the KV pool, whichever is
    /// smaller.
    pub max_sequence_tokens: usize,
    /// The origin of this limit, for error messages.
    pub sequence_limit_name: &'static str,
    pub allow_auto_truncate: bool,
    pub max_stop_strings: usize,
    /// `--max-prompt-tokens`; `None`: limited only by the sequence length.
    pub max_prompt_tokens: Option<usize>,
    /// `--max-output-tokens`, likewise.
    pub max_output_tokens: Option<usize>,
    pub vocab: usize,
    /// Limit on the size of a JSON schema, regular expression, grammar, or tool parameters.
    pub max_schema_bytes: usize,
    /// Sampling parameters of requests that do not set them.
    pub sampling_defaults: SamplingDefaults,
}

/// Seeds for requests without one.
pub struct Seeds {
    next: std::sync::Mutex<rand::rngs::StdRng>,
}

impl Seeds {
    /// Reproducible with `--random-seed`, otherwise from the system's entropy.
    pub fn new(random_seed: Option<u64>) -> Self {
        use rand::SeedableRng;
        let rng = match random_seed {
            Some(seed) => rand::rngs::StdRng::seed_from_u64(seed),
            None => rand::rngs::StdRng::from_os_rng(),
        };
        Self {
            next: std::sync::Mutex::new(rng),
        }
    }

    pub fn draw(&self) -> u64 {
        use rand::Rng;
        // A panic elsewhere cannot leave a random number generator half-written.
        self.next
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .random()
    }
}
