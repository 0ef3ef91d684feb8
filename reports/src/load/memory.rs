//! Samples of `server_metrics.jsonl`: the highest of each kind, and their course over time.

use std::collections::BTreeMap;

use polars::prelude::*;

use super::requests::scan;
use super::run_folder::RunFolder;
use crate::ReportError;

/// What one server start used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Memory {
    pub peak_rss_bytes: Option<u64>,
    pub peak_gpu_bytes: Option<u64>,
    pub peak_kv_pages: Option<u64>,
    pub kv_pages_total: Option<u64>,
    /// At most [`MAX_POINTS`], each the highest of its stretch of time.
    pub course: Vec<MemoryPoint>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MemoryPoint {
    pub t_s: f64,
    pub rss_bytes: Option<f64>,
    pub gpu_bytes: Option<f64>,
}

/// More would not show in a chart.
const MAX_POINTS: usize = 120;

const COLUMNS: [&str; 5] = [
    "t_s",
    "rss_bytes",
    "gpu_memory_bytes",
    "kv_pages_used",
    "kv_pages_total",
];

/// By run id; a run without samples has no entry.
pub fn read_all(runs: &[&RunFolder]) -> Result<BTreeMap<String, Memory>, ReportError> {
    let schema = COLUMNS
        .iter()
        .map(|n| Field::new((*n).into(), DataType::Float64))
        .collect();
    let mut memory = BTreeMap::new();
    for run in runs {
        let Some(rows) = scan(&run.files, records::SERVER_METRICS, &schema)? else {
            continue;
        };
        let table_error = |source| ReportError::Table {
            what: format!("{} of {}", records::SERVER_METRICS, run.run_id),
            source,
        };
        let table = rows
            .select(COLUMNS.map(col))
            .collect()
            .map_err(table_error)?;
        memory.insert(run.run_id.clone(), of_table(&table).map_err(table_error)?);
    }
    Ok(memory)
}

fn of_table(table: &DataFrame) -> PolarsResult<Memory> {
    let column = |name: &str| -> PolarsResult<Vec<Option<f64>>> {
        Ok(table.column(name)?.f64()?.iter().collect())
    };
    let highest = |values: &[Option<f64>]| -> Option<f64> {
        values.iter().flatten().copied().max_by(f64::total_cmp)
    };
    let (times, rss, gpu) = (
        column("t_s")?,
        column("rss_bytes")?,
        column("gpu_memory_bytes")?,
    );
    let stretch = times.len().div_ceil(MAX_POINTS).max(1);
    let course = (0..times.len()).step_by(stretch).filter_map(|start| {
        let end = (start + stretch).min(times.len());
        Some(MemoryPoint {
            t_s: times[start]?,
            rss_bytes: highest(&rss[start..end]),
            gpu_bytes: highest(&gpu[start..end]),
        })
    });
    let whole = |value: Option<f64>| value.map(|v| v as u64);
    Ok(Memory {
        course: course.collect(),
        peak_rss_bytes: whole(highest(&rss)),
        peak_gpu_bytes: whole(highest(&gpu)),
        peak_kv_pages: whole(highest(&column("kv_pages_used")?)),
        kv_pages_total: whole(highest(&column("kv_pages_total")?)),
    })
}
