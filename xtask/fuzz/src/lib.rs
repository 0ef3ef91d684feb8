//! Every parser of untrusted bytes as a function of those bytes. It must return, with or without an
//! error, quickly and with little memory, for any input.
//!
//! `cargo xtask fuzz` runs them under AFL++ (instrumented on the stable toolchain), with limits on
//! memory and time; inputs that caused a failure are kept in `found/` and run by the tests.
//! Deliberately absent: what a parser makes of valid bytes; its own tests cover that.

mod seeds;
mod targets;

use std::io;
use std::path::Path;
use std::thread;

pub use self::seeds::write_seeds;

/// A parser. The folder is exclusive to it, for parsers that read files.
pub type Target = fn(&Path, &[u8]);

pub const TARGETS: [(&str, Target); 13] = [
    ("gguf", targets::gguf),
    ("safetensors", targets::safetensors),
    ("config_json", targets::config_json),
    ("tokenizer_json", targets::tokenizer_json),
    ("request", targets::request),
    ("grammar", targets::grammar),
    ("chat_template", targets::chat_template),
    ("tool_calls", targets::tool_calls),
    ("sse", targets::sse),
    ("experiment_toml", targets::experiment_toml),
    ("imported", targets::imported),
    ("imported_csv", targets::imported_csv),
    ("rows_tar", targets::rows_tar),
];

/// Stack size of the threads that parse requests in a server, and of most others: the main thread
/// has more, so an input that crashes a server might be harmless there.
const STACK_BYTES: usize = 2 << 20;

/// Runs `work` on a thread like a server's; `None` if it panicked.
///
/// # Errors
///
/// If the system cannot start a thread with this stack.
pub fn on_a_servers_stack<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let thread = thread::Builder::new().stack_size(STACK_BYTES).spawn(work)?;
    Ok(thread.join().ok())
}

pub fn target(name: &str) -> Option<Target> {
    TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, target)| *target)
}
