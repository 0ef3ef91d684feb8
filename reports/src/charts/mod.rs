//! Charts as SVG: what is drawn ([`plots`], [`of_tables`]), how ([`draw`]), and how the file is made small and
//! fit for light and dark pages ([`finish`]).
//!
//! The same data give the same bytes: coordinates are whole pixels and series are sorted.

mod draw;
mod finish;
mod of_tables;
mod plots;

pub use finish::inline;
pub use plots::{Tables, charts_of, charts_of_cases};

/// One picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chart {
    /// What it shows: `latency`, `ttft`, `itl`, …
    pub kind: &'static str,
    /// For readers who do not see it.
    pub alt: String,
    /// A whole SVG document.
    pub svg: String,
}
