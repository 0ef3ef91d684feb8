//! Why a kernel refused to run.

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("{op}: {what} is {found}, must be {expected}")]
    Shape {
        op: &'static str,
        what: &'static str,
        found: usize,
        expected: String,
    },
    #[error("{op}: {message}")]
    Value { op: &'static str, message: String },
    #[error("a worker thread panicked: {0}")]
    WorkerPanic(String),
    #[error("cannot start worker thread {index}: {source}")]
    Spawn {
        index: usize,
        source: std::io::Error,
    },
    #[error("instruction set {asked} was asked for, this processor has {available}")]
    Isa {
        asked: &'static str,
        available: &'static str,
    },
    #[error("unknown instruction set `{0}`; known: portable, avx2, avx512")]
    UnknownIsa(String),
    #[error("cannot allocate {bytes} bytes")]
    Memory { bytes: usize },
}

/// Errors unless `found == expected`.
pub fn check_shape(
    op: &'static str,
    what: &'static str,
    found: usize,
    expected: usize,
) -> Result<(), KernelError> {
    if found == expected {
        return Ok(());
    }
    Err(KernelError::Shape {
        op,
        what,
        found,
        expected: expected.to_string(),
    })
}
