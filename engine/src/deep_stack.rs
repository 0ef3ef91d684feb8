//! A thread with stack enough for whatever an input nests.
//!
//! Some parsers and compilers call themselves for each level of their input: minijinja's for each
//! `not`, `elif`, bracket and operator of a template, llguidance's for each rule that a rule names
//! and each `$ref` of a schema. A stack that is too small for that ends the process, and no error
//! can be made of it. What an input nests is bounded before such code runs, and the stack is larger
//! than the bound needs; the system gives out only what is touched.

use std::io;
use std::thread;

/// Does `work` on a thread of that name with a stack of that size, and waits for it. Fails where
/// no such thread can be started.
pub fn with_deep_stack<T: Send>(
    name: &str,
    stack_bytes: usize,
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(stack_bytes)
            .spawn_scoped(scope, work)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
