//! Token ids to hidden states: rows of the embedding matrix, in whatever format it is stored.

pub mod cuda;

use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::error::check_shape;
use crate::linear::LinearWeights;
use std::sync::Mutex;

/// Below this many tokens a thread, reading rows is not worth a parallel region.
const MIN_TOKENS: usize = 4;

/// `table: [vocab, hidden]`, `out: [n_tokens, hidden]`.
///
/// # Errors
///
/// [`KernelError::Shape`] if `out` has another length or a token is not in the vocabulary;
/// [`KernelError::Host`] if a worker thread panicked.
pub fn forward(
    pool: &mut WorkerPool,
    table: &LinearWeights,
    tokens: &[u32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let hidden = table.n_in();
    check_shape(
        "embedding",
        "length of out",
        out.len(),
        tokens.len() * hidden,
    )?;
    if let Some(token) = tokens
        .iter()
        .find(|token| **token as usize >= table.n_out())
    {
        return Err(KernelError::Shape {
            op: "embedding",
            what: "token id",
            found: *token as usize,
            expected: format!("below {}", table.n_out()),
        });
    }
    let out = DisjointMut::new(out);
    let failure = Mutex::new(None);
    pool.for_ranges(tokens.len(), MIN_TOKENS, &|range| {
        for i in range {
            // SAFETY: each token's row is written by the one thread whose range it is in.
            let row = unsafe { out.slice(i * hidden, hidden) };
            if let Err(error) = table.dequantize_row(tokens[i] as usize, row)
                && let Ok(mut failure) = failure.lock()
            {
                *failure = Some(error);
            }
        }
    })?;
    failure.into_inner().ok().flatten().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests;
