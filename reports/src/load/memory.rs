//! Samples of `server_metrics.jsonl`: the highest of each kind, and their course over time.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::run_folder::{RunFolder, for_each_line};
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

/// A line of `server_metrics.jsonl`.
#[derive(Debug, Deserialize)]
struct Sample {
    t_s: Option<f64>,
    rss_bytes: Option<f64>,
    gpu_memory_bytes: Option<f64>,
    kv_pages_used: Option<f64>,
    kv_pages_total: Option<f64>,
}

/// By run id; a run without samples has no entry.
///
/// # Errors
///
/// If a run's `server_metrics.jsonl` cannot be read or one of its lines is no sample.
pub fn read_all(runs: &[&RunFolder]) -> Result<BTreeMap<String, Memory>, ReportError> {
    let mut memory = BTreeMap::new();
    for run in runs {
        let mut samples = Vec::new();
        for_each_line(run, records::SERVER_METRICS, |line| {
            let sample = serde_json::from_str(line).map_err(|error| error.to_string())?;
            samples.push(sample);
            Ok(())
        })?;
        if !samples.is_empty() {
            memory.insert(run.run_id.clone(), of_samples(&samples));
        }
    }
    Ok(memory)
}

fn of_samples(samples: &[Sample]) -> Memory {
    type Field = fn(&Sample) -> Option<f64>;
    let highest =
        |samples: &[Sample], field: Field| samples.iter().filter_map(field).max_by(f64::total_cmp);
    let (rss, gpu): (Field, Field) = (|s| s.rss_bytes, |s| s.gpu_memory_bytes);
    let stretch = samples.len().div_ceil(MAX_POINTS).max(1);
    let course = samples.chunks(stretch).filter_map(|samples| {
        Some(MemoryPoint {
            t_s: samples[0].t_s?,
            rss_bytes: highest(samples, rss),
            gpu_bytes: highest(samples, gpu),
        })
    });
    let whole = |field| highest(samples, field).map(|value| value as u64);
    Memory {
        course: course.collect(),
        peak_rss_bytes: whole(rss),
        peak_gpu_bytes: whole(gpu),
        peak_kv_pages: whole(|s| s.kv_pages_used),
        kv_pages_total: whole(|s| s.kv_pages_total),
    }
}
