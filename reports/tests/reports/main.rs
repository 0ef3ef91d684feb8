//! The reports from recorded and from made data. One program, because each of its own would link polars again.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod answers;
mod compare;
mod distrusted;
mod engines;
mod fixture;
mod judgement;
mod million_rows;
mod multi_model;
mod recomputed;
mod rendering;
mod sealed;
mod verdicts;
mod workloads;
