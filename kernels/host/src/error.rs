//! What the operating system refused, or a task did.

use crate::pool::MAX_THREADS;

#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot allocate {bytes} bytes")]
    Memory { bytes: usize },
    #[error("worker pool: n_threads is {found}, must be 1 to {MAX_THREADS}")]
    Threads { found: usize },
    #[error("cannot start worker thread {index}: {source}")]
    Spawn {
        index: usize,
        source: std::io::Error,
    },
    #[error("a worker thread panicked: {0}")]
    WorkerPanic(String),
}
