//! Causal grouped-query attention over a paged KV cache, f16 or FP8, with an online softmax.
//!
//! One kernel serves decoding and chunked prefill: a query is a (token, head) pair, and queries of
//! one KV head that read the same pages are processed together. A query's result depends only on
//! its own pages and position, bit for bit, however the batch was split.
//!
//! Deliberately absent: sliding windows, sinks, ALiBi.

mod cpu;
pub mod cuda;
mod pages;
pub mod reference;

use host::pool::{DisjointMut, WorkerPool};

use crate::KernelError;
use crate::error::check_shape;
use crate::isa::Isa;

pub use self::pages::{KvFormat, KvPages, Slot};

const OP: &str = "attention";
/// Tokens of a page: one vector of scores.
pub const PAGE_TOKENS: usize = 16;
/// Largest head the kernel has room for.
pub const MAX_HEAD_DIM: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    pub n_q_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
}

impl AttentionShape {
    /// `self`, if the kernels can compute it.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] unless the query heads are a multiple of the KV heads and
    /// `head_dim` is a multiple of 16 up to [`MAX_HEAD_DIM`].
    pub fn checked(self) -> Result<Self, KernelError> {
        let Self {
            n_q_heads,
            n_kv_heads,
            head_dim,
        } = self;
        let fail = |what, found, expected: String| {
            Err(KernelError::Shape {
                op: OP,
                what,
                found,
                expected,
            })
        };
        if n_kv_heads == 0 || n_q_heads == 0 || !n_q_heads.is_multiple_of(n_kv_heads) {
            return fail(
                "n_q_heads",
                n_q_heads,
                format!("a multiple of {n_kv_heads} KV heads"),
            );
        }
        if head_dim == 0 || !head_dim.is_multiple_of(16) || head_dim > MAX_HEAD_DIM {
            return fail(
                "head_dim",
                head_dim,
                format!("a multiple of 16 up to {MAX_HEAD_DIM}"),
            );
        }
        Ok(self)
    }

    fn page_elements(&self) -> usize {
        self.n_kv_heads * self.head_dim * PAGE_TOKENS
    }
}

fn check_below(what: &'static str, found: usize, limit: usize) -> Result<(), KernelError> {
    if found < limit {
        return Ok(());
    }
    Err(KernelError::Shape {
        op: OP,
        what,
        found,
        expected: format!("below {limit}"),
    })
}

/// One sequence's queries: tokens `first .. first + n_tokens` of the packed batch, at positions
/// `start ..`. The pages already contain their keys and values.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    pub first: usize,
    pub n_tokens: usize,
    pub start: usize,
    pub pages: &'a [u32],
}

/// A piece of work: some queries of one KV head of one sequence.
#[derive(Debug, Clone, Copy)]
struct Unit {
    sequence: usize,
    kv_head: usize,
    /// Queries are numbered `token * group + head_in_group`.
    first_query: usize,
    n_queries: usize,
}

/// Work lists that are reused between calls.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    units: Vec<Unit>,
    /// Range of units of each thread.
    bounds: Vec<usize>,
}

impl AttentionPlan {
    /// Splits the batch into units of about equal length. The same plan serves every layer.
    ///
    /// # Errors
    ///
    /// [`KernelError::Shape`] if a sequence has fewer pages than its tokens need.
    pub fn prepare(
        &mut self,
        shape: AttentionShape,
        sequences: &[Sequence<'_>],
        n_threads: usize,
    ) -> Result<(), KernelError> {
        let group = shape.n_q_heads / shape.n_kv_heads;
        let n_queries: usize = sequences.iter().map(|s| s.n_tokens * shape.n_q_heads).sum();
        // With few queries, small units balance the threads.
        let unit_len = if n_queries >= 8 * cpu::QUERIES * n_threads {
            cpu::QUERIES
        } else {
            1
        };
        self.units.clear();
        let mut costs = Vec::new();
        for (index, sequence) in sequences.iter().enumerate() {
            let n_pages = (sequence.start + sequence.n_tokens).div_ceil(PAGE_TOKENS);
            if sequence.pages.len() < n_pages {
                return Err(KernelError::Shape {
                    op: OP,
                    what: "number of pages",
                    found: sequence.pages.len(),
                    expected: format!("at least {n_pages}"),
                });
            }
            let n_queries = sequence.n_tokens * group;
            for kv_head in 0..shape.n_kv_heads {
                for first_query in (0..n_queries).step_by(unit_len) {
                    let n = unit_len.min(n_queries - first_query);
                    let last_token = (first_query + n - 1) / group;
                    costs.push(n * (sequence.start + last_token + 1));
                    self.units.push(Unit {
                        sequence: index,
                        kv_head,
                        first_query,
                        n_queries: n,
                    });
                }
            }
        }
        let total: usize = costs.iter().sum();
        self.bounds.clear();
        self.bounds.push(0);
        let (mut before, mut thread) = (0, 1);
        for (i, cost) in costs.iter().enumerate() {
            while thread < n_threads && before + cost / 2 >= total * thread / n_threads {
                self.bounds.push(i);
                thread += 1;
            }
            before += cost;
        }
        self.bounds.resize(n_threads, costs.len());
        self.bounds.push(costs.len());
        Ok(())
    }
}

/// `q, out: [n_tokens, n_q_heads, head_dim]`; `plan` was prepared for these sequences.
///
/// # Errors
///
/// If `q` and `out` differ in length or are too short for the sequences, a page is not one of
/// `kv`'s, or `plan` was prepared for other sequences or another number of threads.
pub fn forward(
    pool: &mut WorkerPool,
    isa: Isa,
    kv: &KvPages,
    plan: &AttentionPlan,
    sequences: &[Sequence<'_>],
    q: &[f32],
    out: &mut [f32],
) -> Result<(), KernelError> {
    let shape = kv.shape();
    let width = shape.n_q_heads * shape.head_dim;
    let n_tokens = sequences
        .iter()
        .map(|s| s.first + s.n_tokens)
        .max()
        .unwrap_or(0);
    check_shape(OP, "length of out", out.len(), q.len())?;
    check_below("tokens of the sequences", n_tokens, q.len() / width + 1)?;
    check_shape(
        OP,
        "threads of the plan",
        plan.bounds.len(),
        pool.n_threads() + 1,
    )?;
    for page in sequences.iter().flat_map(|s| s.pages) {
        check_below("page", *page as usize, kv.n_pages())?;
    }
    if plan
        .units
        .iter()
        .any(|unit| unit.sequence >= sequences.len())
    {
        return Err(KernelError::Value {
            op: OP,
            message: "the plan was made for other sequences".to_owned(),
        });
    }
    let out = DisjointMut::new(out);
    pool.run(&|thread| {
        for unit in &plan.units[plan.bounds[thread]..plan.bounds[thread + 1]] {
            // SAFETY: a (token, head) pair belongs to one unit, and a unit to one thread.
            unsafe { cpu::run_unit(isa, kv, sequences[unit.sequence], *unit, q, &out) }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests;
