//! A thread with stack enough for whatever a template nests.
//!
//! minijinja's parser and compiler call themselves for each `not`, `elif`, bracket and operator,
//! and values that are lists of lists are printed, compared and dropped by functions that call
//! themselves for each level. A stack that is too small for that ends the process, and no error can
//! be made of it. What a template nests has a bound: its bytes while it is compiled, its
//! instructions while it is rendered, each of which adds a level at most. The stack is larger than
//! these bounds need, and the system gives out only what is touched.

use std::io;
use std::thread;

/// A level takes about 1.2 kB for an `elif`, which has eleven bytes, and half a kilobyte for
/// everything else, so this is more than twice what [`super::FUEL`] levels need, and far more than
/// [`super::compile::MAX_SOURCE_BYTES`] do.
const STACK_BYTES: usize = 1 << 30;

/// Does `work` there, and waits for it.
pub fn with_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("chat template".to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
