//! From run records to Korean reports.
//!
//! ```text
//! data/campaigns/* ─ load ─┐
//! data/runs/*  ─────────┤
//!                      ├─ select ─ render::context ─ minijinja ─ reports/rendered/*.ko.md
//! data/imported/* ─────┘              │
//!                                   stats
//! ```
//!
//! - [`load`] reads the runs that `data/SCHEMA.md` describes (request rows with polars) and
//!   the figures imported from other documents, which stay a source of their own.
//! - [`select`] picks what a report is about: per machine and model the starts of every experiment,
//!   pooled over campaigns, full runs before quick ones.
//! - [`stats`] describes and compares; the sample of a comparison is a server start.
//! - [`compare`] lays two runs or experiments side by side on the terminal.
//! - [`render`] turns the outcome into text. Templates hold words, never figures; the words that
//!   judge ("개선", "차이 없음", "표본 부족") come from [`stats::verdict`].
//! - [`requests_parquet`] writes the rows of one run for programs that read tables.
//! - [`verdicts`] prints what a campaign of `ablate` or `reproduce` found.
//!
//! The same input gives the same bytes: everything is sorted, resampling is seeded, and no clock
//! is read. Absent on purpose: anything that writes to `data/`.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::float_cmp,
        reason = "tests fail loudly, on exact values"
    )
)]

pub mod audit;
pub mod charts;
pub mod compare;
pub mod lang;
pub mod load;
pub mod render;
pub mod requests_parquet;
pub mod select;
pub mod stats;
pub mod verdicts;

use std::path::PathBuf;

/// Why a report could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: not the record that data/SCHEMA.md describes: {message}", path.display())]
    Record { path: PathBuf, message: String },
    #[error(transparent)]
    Stored(#[from] records::RecordError),
    #[error("{what}: {source}")]
    Table {
        what: String,
        source: polars::prelude::PolarsError,
    },
    #[error("imported figures, {}, row {row}: {message}", path.display())]
    Imported {
        path: PathBuf,
        row: usize,
        message: String,
    },
    #[error("{}: {message}", path.display())]
    Parquet { path: PathBuf, message: String },
    #[error("{run_id} has no case {case}; there are: {cases}")]
    UnknownCase {
        run_id: String,
        case: String,
        cases: String,
    },
    #[error("no report is called `{name}`; there are: {known}")]
    UnknownReport { name: String, known: String },
    #[error(
        "no run or experiment is called `{name}`: there are {n_runs} runs (`cargo xtask list`), of {experiments}"
    )]
    UnknownRun {
        name: String,
        n_runs: usize,
        experiments: String,
    },
    #[error("`{name}` fits several runs: {fits}")]
    AmbiguousRun { name: String, fits: String },
    #[error("run {run_id} has no readable record: {problem}")]
    UnreadableRun { run_id: String, problem: String },
    #[error("chart {name}: {message}")]
    Chart { name: String, message: String },
    #[error("--lang {code}: there are ko and en")]
    UnknownLanguage { code: String },
    #[error("template {template}: {message}")]
    Template { template: String, message: String },
}

impl ReportError {
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.into(),
            source,
        }
    }
}
