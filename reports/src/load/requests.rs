//! Request rows, with polars.
//!
//! A million rows never become a million structs: rows are scanned lazily with the columns the
//! reports need, turned into times by expressions, and aggregated into one sorted list a run and
//! case. Means are taken from those sorted lists, not inside polars, because the order of a
//! parallel sum would change their last digits from one rendering to the next.
//!
//! Rows flagged `warmup` and rows with an `error` give no times; they are counted.

use std::sync::Arc;

use polars::prelude::*;
use records::store::StoredRun;

use super::run_folder::RunFolder;
use crate::ReportError;
use crate::stats::describe::Sorted;

/// The measured rows of one case of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct CaseSamples {
    pub run_id: String,
    pub case: String,
    pub phase: String,
    /// Whom it asked, where the server has several models.
    pub model: Option<String>,
    pub max_tokens: Option<u32>,
    /// Users of a closed loop.
    pub n_users: Option<u32>,
    pub rate_per_s: Option<f64>,
    /// Rows without warm-up, failed ones included.
    pub n_requests: u32,
    pub n_failed: u32,
    pub n_warmup: u32,
    /// From the first request sent to the last response's end, failed rows included.
    pub duration_s: Option<f64>,
    /// Of the successful rows.
    pub output_tokens: u64,
    pub e2el_ms: Sorted,
    pub ttft_ms: Sorted,
    pub tpot_ms: Sorted,
    /// Output tokens a second of each request, from its sending to its end.
    pub tok_per_s: Sorted,
}

impl CaseSamples {
    pub fn n_ok(&self) -> u32 {
        self.n_requests - self.n_failed
    }

    pub fn output_tok_per_s(&self) -> Option<f64> {
        self.duration_s
            .filter(|d| *d > 0.0)
            .map(|d| self.output_tokens as f64 / d)
    }

    pub fn requests_per_s(&self) -> Option<f64> {
        self.duration_s
            .filter(|d| *d > 0.0)
            .map(|d| f64::from(self.n_ok()) / d)
    }
}

/// All cases of these runs, sorted by run id and case.
pub fn read_cases(runs: &[&RunFolder]) -> Result<Vec<CaseSamples>, ReportError> {
    let mut frames = Vec::new();
    for run in runs {
        if let Some(rows) = scan(&run.files, records::REQUESTS, &request_schema())? {
            frames.push(rows.with_column(lit(run.run_id.clone()).alias("run_id")));
        }
    }
    if frames.is_empty() {
        return Ok(Vec::new());
    }
    let table_error = |source| ReportError::Table {
        what: "request rows".into(),
        source,
    };
    let rows = concat(frames, UnionArgs::default()).map_err(table_error)?;
    let table = aggregate(rows).collect().map_err(table_error)?;
    cases_of(&table).map_err(table_error)
}

fn request_schema() -> Schema {
    [
        ("case", DataType::String),
        ("phase", DataType::String),
        ("model", DataType::String),
        ("warmup", DataType::Boolean),
        ("n_users", DataType::Float64),
        ("rate_per_s", DataType::Float64),
        ("max_tokens", DataType::Float64),
        ("sent_s", DataType::Float64),
        ("first_token_s", DataType::Float64),
        ("end_s", DataType::Float64),
        ("output_tokens", DataType::Float64),
        ("error", DataType::String),
    ]
    .into_iter()
    .map(|(name, dtype)| Field::new(name.into(), dtype))
    .collect()
}

/// `None` where there is no row.
pub(super) fn scan(
    run: &StoredRun,
    file: &str,
    schema: &Schema,
) -> Result<Option<LazyFrame>, ReportError> {
    let what = || run.place().join(file);
    let reader = if let Some(folder) = run.folder() {
        // By path: rows may be many.
        let path = folder.join(file);
        if std::fs::metadata(&path).map_or(0, |metadata| metadata.len()) == 0 {
            return Ok(None);
        }
        let text = path.to_str().ok_or_else(|| ReportError::Record {
            path: path.clone(),
            message: "path is not UTF-8".into(),
        })?;
        LazyJsonLineReader::new(PlRefPath::new(without_patterns(text)))
    } else {
        let bytes = run.read(file)?.unwrap_or_default();
        if bytes.is_empty() {
            return Ok(None);
        }
        let buffers = Arc::from([bytes.into_owned().into()]);
        LazyJsonLineReader::new_with_sources(ScanSources::Buffers(buffers))
    };
    reader
        .with_schema(Some(Arc::new(schema.clone())))
        .finish()
        .map(Some)
        .map_err(|source| ReportError::Table {
            what: what().display().to_string(),
            source,
        })
}

/// A path for a reader that takes `*`, `?` and `[` for patterns: a folder's name may hold them.
fn without_patterns(path: &str) -> String {
    let mut escaped = String::with_capacity(path.len());
    for character in path.chars() {
        if matches!(character, '*' | '?' | '[') {
            escaped.extend(['[', character, ']']);
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// One row a run and case, with sorted lists of times in milliseconds.
fn aggregate(rows: LazyFrame) -> LazyFrame {
    let measured = col("warmup").not();
    let ok = measured.clone().and(col("error").is_null());
    let ms = |later: &str| (col(later) - col("sent_s")) * lit(1000.0);
    let decode_ms = (col("end_s") - col("first_token_s")) * lit(1000.0);
    let tpot = decode_ms / (col("output_tokens") - lit(1.0));
    let tok_per_s = col("output_tokens") / (col("end_s") - col("sent_s"));
    let list = |times: Expr, keep: Expr| times.filter(keep).sort(SortOptions::default());
    rows.group_by([col("run_id"), col("case")])
        .agg([
            col("phase").first(),
            col("model").first(),
            col("max_tokens").max(),
            col("n_users").max(),
            col("rate_per_s").max(),
            measured
                .clone()
                .cast(DataType::UInt32)
                .sum()
                .alias("n_requests"),
            measured
                .clone()
                .and(col("error").is_not_null())
                .cast(DataType::UInt32)
                .sum()
                .alias("n_failed"),
            col("warmup").cast(DataType::UInt32).sum().alias("n_warmup"),
            (col("end_s").filter(measured.clone()).max() - col("sent_s").filter(measured).min())
                .alias("duration_s"),
            col("output_tokens")
                .filter(ok.clone())
                .sum()
                .alias("output_tokens"),
            list(ms("end_s"), ok.clone().and(col("end_s").is_not_null())).alias("e2el_ms"),
            list(
                ms("first_token_s"),
                ok.clone().and(col("first_token_s").is_not_null()),
            )
            .alias("ttft_ms"),
            list(tok_per_s, ok.clone().and(col("end_s").gt(col("sent_s")))).alias("tok_per_s"),
            list(
                tpot,
                ok.and(col("first_token_s").is_not_null())
                    .and(col("output_tokens").gt(lit(1.0))),
            )
            .alias("tpot_ms"),
        ])
        .sort(["run_id", "case"], SortMultipleOptions::default())
}

fn cases_of(table: &DataFrame) -> PolarsResult<Vec<CaseSamples>> {
    let text = |name: &str, i: usize| -> PolarsResult<String> {
        Ok(table
            .column(name)?
            .str()?
            .get(i)
            .unwrap_or_default()
            .to_owned())
    };
    let float = |name: &str, i: usize| -> PolarsResult<Option<f64>> {
        Ok(table.column(name)?.f64()?.get(i))
    };
    let count = |name: &str, i: usize| -> PolarsResult<u32> {
        Ok(table.column(name)?.u32()?.get(i).unwrap_or(0))
    };
    let times = |name: &str, i: usize| -> PolarsResult<Sorted> {
        let list = table.column(name)?.list()?.get_as_series(i);
        let values = match list {
            Some(series) => series.f64()?.into_no_null_iter().collect(),
            None => Vec::new(),
        };
        Sorted::new(values).ok_or_else(|| polars_err!(ComputeError: "{name} holds a NaN"))
    };
    (0..table.height())
        .map(|i| {
            Ok(CaseSamples {
                run_id: text("run_id", i)?,
                case: text("case", i)?,
                phase: text("phase", i)?,
                model: table.column("model")?.str()?.get(i).map(str::to_owned),
                max_tokens: float("max_tokens", i)?.map(|v| v as u32),
                n_users: float("n_users", i)?.map(|v| v as u32),
                rate_per_s: float("rate_per_s", i)?,
                n_requests: count("n_requests", i)?,
                n_failed: count("n_failed", i)?,
                n_warmup: count("n_warmup", i)?,
                duration_s: float("duration_s", i)?,
                output_tokens: float("output_tokens", i)?.unwrap_or(0.0) as u64,
                e2el_ms: times("e2el_ms", i)?,
                ttft_ms: times("ttft_ms", i)?,
                tpot_ms: times("tpot_ms", i)?,
                tok_per_s: times("tok_per_s", i)?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::run_folder::Outcome;

    fn run_with(requests: &str) -> (tempfile::TempDir, RunFolder) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("requests.jsonl"), requests).unwrap();
        let run = RunFolder {
            files: StoredRun::in_folder(dir.path()),
            run_id: "r".into(),
            outcome: Outcome::Complete,
            remark: None,
            finished_utc: None,
            record: None,
            record_problem: None,
        };
        (dir, run)
    }

    const ROWS: &str = r#"{"case":"latency-10","phase":"latency","warmup":true,"index":0,"user":0,"n_users":1,"rate_per_s":null,"prompt_id":0,"max_tokens":10,"scheduled_s":0.0,"sent_s":0.0,"first_token_s":5.0,"token_s":[5.0],"end_s":9.0,"prompt_tokens":4,"output_tokens":10,"cached_tokens":0,"finish_reason":"length","error":null}
{"case":"latency-10","phase":"latency","warmup":false,"index":1,"user":0,"n_users":1,"rate_per_s":null,"prompt_id":0,"max_tokens":10,"scheduled_s":10.0,"sent_s":10.0,"first_token_s":10.25,"token_s":[10.25,11.0],"end_s":11.0,"prompt_tokens":4,"output_tokens":10,"cached_tokens":0,"finish_reason":"length","error":null}
{"case":"latency-10","phase":"latency","warmup":false,"index":2,"user":0,"n_users":1,"rate_per_s":null,"prompt_id":0,"max_tokens":10,"scheduled_s":11.0,"sent_s":11.0,"first_token_s":11.125,"token_s":[11.125],"end_s":11.5,"prompt_tokens":4,"output_tokens":1,"cached_tokens":0,"finish_reason":"stop","error":null}
{"case":"latency-10","phase":"latency","warmup":false,"index":3,"user":0,"n_users":1,"rate_per_s":null,"prompt_id":0,"max_tokens":10,"scheduled_s":12.0,"sent_s":12.0,"first_token_s":null,"token_s":[],"end_s":14.0,"prompt_tokens":0,"output_tokens":0,"cached_tokens":0,"finish_reason":null,"error":"connection reset"}
"#;

    #[test]
    fn times_follow_the_schema_and_warmup_and_errors_give_none() {
        let (_dir, run) = run_with(ROWS);
        let cases = read_cases(&[&run]).unwrap();
        assert_eq!(cases.len(), 1);
        let case = &cases[0];
        assert_eq!((case.n_requests, case.n_failed, case.n_warmup), (3, 1, 1));
        assert_eq!(case.e2el_ms.values(), [500.0, 1000.0]);
        assert_eq!(case.ttft_ms.values(), [125.0, 250.0]);
        assert_eq!(case.tpot_ms.values(), [750.0 / 9.0]);
        assert_eq!(case.tok_per_s.values(), [2.0, 10.0]);
        assert_eq!(case.model, None);
        assert_eq!(case.duration_s, Some(4.0));
        assert_eq!(
            (case.output_tokens, case.output_tok_per_s()),
            (11, Some(2.75))
        );
        assert_eq!(
            (case.max_tokens, case.n_users, case.rate_per_s),
            (Some(10), Some(1), None)
        );
    }

    #[test]
    fn a_torn_row_is_an_error_and_no_rows_are_no_cases() {
        let (_dir, run) = run_with("{\"case\":\"latency-10\",\"warm");
        assert!(read_cases(&[&run]).is_err());
        let (_dir, run) = run_with("");
        assert_eq!(read_cases(&[&run]).unwrap(), Vec::new());
    }
}
