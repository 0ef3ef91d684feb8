//! Why a kernel refused to run.

use gpu::CudaError;
use host::HostError;

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
    #[error("instruction set {asked} was asked for, this processor has {available}")]
    Isa {
        asked: &'static str,
        available: &'static str,
    },
    #[error("unknown instruction set `{0}`; known: portable, avx2, avx512")]
    UnknownIsa(String),
    /// Memory or threads that the system refused, or a panic in a worker thread.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl From<KernelError> for CudaError {
    fn from(error: KernelError) -> Self {
        Self::Arguments(Box::new(error))
    }
}

/// Errors unless `found == expected`.
///
/// # Errors
///
/// [`KernelError::Shape`] unless the two are equal.
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
