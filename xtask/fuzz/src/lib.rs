//! Every parser of outside bytes as a function of those bytes, which must return, with an error
//! or without, quickly and with little memory, whatever they are.
//!
//! `cargo xtask fuzz` runs them under AFL++ (instrumented on the stable toolchain), with a limit
//! on memory and time; inputs that broke something are kept in `found/` and run by the tests.
//! Deliberately absent: what a parser makes of right bytes, which its own tests know.

mod seeds;
mod targets;

use std::path::Path;

pub use self::seeds::write_seeds;

/// A parser. The folder is its own, for those that read files.
pub type Target = fn(&Path, &[u8]);

pub const TARGETS: [(&str, Target); 9] = [
    ("gguf", targets::gguf),
    ("safetensors", targets::safetensors),
    ("config_json", targets::config_json),
    ("tokenizer_json", targets::tokenizer_json),
    ("request", targets::request),
    ("chat_template", targets::chat_template),
    ("sse", targets::sse),
    ("experiment_toml", targets::experiment_toml),
    ("imported", targets::imported),
];

pub fn target(name: &str) -> Option<Target> {
    TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, target)| *target)
}
