//! Request rows, with polars.
//!
//! Rows are read into columns of what the reports need, turned into times by expressions, and
//! aggregated into one sorted list a run and case. Means are taken from those sorted lists, not inside
//! polars, because the order of a parallel sum would change their last digits from one rendering to the
//! next.
//!
//! serde reads the lines. polars' own reader would bring a streaming engine, Parquet and clients of
//! cloud stores: as many crates again.
//!
//! Rows flagged `warmup` and rows with an `error` give no times; they are counted.

use std::borrow::Cow;
use std::collections::BTreeSet;

use polars::prelude::*;
use records::sufficiency::least_measured_s;
use records::workload::{Limits, Phase};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::run_folder::{RunFolder, for_each_line, read_side_by_side};
use crate::ReportError;
use crate::stats::describe::Sorted;

/// The measured rows of one case of one run.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Of the successful rows, as are the next two.
    pub output_tokens: u64,
    pub prompt_tokens: Sorted,
    /// None where the server does not tell.
    pub cached_tokens: Option<u64>,
    /// Requests that met every limit of the workload; none where it has no limits.
    pub n_within: Option<u32>,
    /// Of an open loop: when responses ended, and when the first and the last request were sent.
    pub ends_s: Sorted,
    pub first_sent_s: Option<f64>,
    pub last_sent_s: Option<f64>,
    /// Energy of the device that served, and over how many seconds; none without a meter, or beside
    /// other cases.
    pub energy: Option<MeteredEnergy>,
    pub e2el_ms: Sorted,
    pub ttft_ms: Sorted,
    pub tpot_ms: Sorted,
    /// Output tokens a second of each request, from its sending to its end.
    pub tok_per_s: Sorted,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MeteredEnergy {
    pub joules: f64,
    pub seconds: f64,
    /// By power samples, not by a counter.
    pub is_estimate: bool,
}

impl CaseSamples {
    /// What a case of its kind must last.
    pub fn least_measured_s(&self) -> f64 {
        phase_of(&self.phase).map_or(0.0, least_measured_s)
    }

    pub fn is_short(&self) -> bool {
        let least = self.least_measured_s();
        self.duration_s.is_none_or(|seconds| seconds < least)
    }

    pub fn joules_per_output_token(&self) -> Option<f64> {
        let joules = self.energy?.joules;
        (self.output_tokens > 0).then(|| joules / self.output_tokens as f64)
    }

    /// Requests a second that met every limit.
    pub fn goodput_per_s(&self) -> Option<f64> {
        let n_within = f64::from(self.n_within?);
        self.duration_s.filter(|d| *d > 0.0).map(|d| n_within / d)
    }

    /// Responses a second between the first one and the last request: while requests arrive, a server
    /// that keeps up ends as many as begin, however long each takes.
    pub fn steady_per_s(&self) -> Option<f64> {
        let (first, last) = (self.ends_s.min()?, self.last_sent_s?);
        let n = self
            .ends_s
            .values()
            .iter()
            .filter(|end| **end <= last)
            .count();
        (n > 1 && last > first).then(|| (n - 1) as f64 / (last - first))
    }

    /// Requests a second that in fact arrived: a draw of few is not its rate.
    pub fn arrived_per_s(&self) -> Option<f64> {
        let (first, last) = (self.first_sent_s?, self.last_sent_s?);
        let n = self.n_requests;
        (n > 1 && last > first).then(|| f64::from(n - 1) / (last - first))
    }

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

pub fn phase_of(name: &str) -> Option<Phase> {
    serde_json::from_value(name.into()).ok()
}

/// All cases of these runs, sorted by run id and case.
///
/// # Errors
///
/// If a run's `requests.jsonl` cannot be read or one of its lines is no request row;
/// [`ReportError::Table`] if polars cannot aggregate the rows.
pub fn read_cases(runs: &[&RunFolder]) -> Result<Vec<CaseSamples>, ReportError> {
    let table_error = |source| ReportError::Table {
        what: "request rows".into(),
        source,
    };
    let mut frames = Vec::new();
    for (run, columns) in runs.iter().zip(read_side_by_side(runs, read_columns)?) {
        if columns.case.is_empty() {
            continue;
        }
        let rows = columns.into_frame().map_err(table_error)?.lazy();
        frames.push(rows.with_column(lit(run.run_id.clone()).alias("run_id")));
    }
    if frames.is_empty() {
        return Ok(Vec::new());
    }
    let rows = concat(frames, UnionArgs::default()).map_err(table_error)?;
    let table = aggregate(rows).collect().map_err(table_error)?;
    let mut cases = cases_of(&table).map_err(table_error)?;
    let limited: BTreeSet<&str> = runs
        .iter()
        .filter(|run| limits_of(run).is_some())
        .map(|run| run.run_id.as_str())
        .collect();
    for case in &mut cases {
        if !limited.contains(case.run_id.as_str()) {
            case.n_within = None;
        }
    }
    Ok(cases)
}

fn limits_of(run: &RunFolder) -> Option<&Limits> {
    run.record.as_ref()?.config.limits.as_ref()
}

/// A line of `requests.jsonl`, as far as reports need it.
#[derive(Deserialize)]
struct Row<'a> {
    #[serde(borrow)]
    case: Cow<'a, str>,
    #[serde(borrow, default)]
    phase: Cow<'a, str>,
    model: Option<String>,
    warmup: bool,
    error: Option<IgnoredAny>,
    #[serde(borrow)]
    n_users: Number<'a>,
    #[serde(borrow)]
    rate_per_s: Number<'a>,
    #[serde(borrow)]
    max_tokens: Number<'a>,
    #[serde(borrow)]
    sent_s: Number<'a>,
    #[serde(borrow)]
    first_token_s: Number<'a>,
    #[serde(borrow)]
    end_s: Number<'a>,
    #[serde(borrow)]
    output_tokens: Number<'a>,
    #[serde(borrow, default)]
    prompt_tokens: Number<'a>,
    #[serde(borrow, default)]
    cached_tokens: Number<'a>,
}

/// As it is written: `serde_json` may be off by a last digit where it parses numbers itself.
type Number<'a> = Option<&'a RawValue>;

fn parse(number: Number<'_>) -> Result<Option<f64>, String> {
    let Some(text) = number.map(RawValue::get) else {
        return Ok(None);
    };
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    Ok(Some(value))
}

/// The rows of one run.
#[derive(Default)]
struct Columns {
    case: Vec<String>,
    phase: Vec<String>,
    model: Vec<Option<String>>,
    warmup: Vec<bool>,
    failed: Vec<bool>,
    /// Whether the limits were met; also of failed rows, which do not count.
    within: Vec<bool>,
    numbers: [Vec<Option<f64>>; 9],
}

const NUMBERS: [&str; 9] = [
    "n_users",
    "rate_per_s",
    "max_tokens",
    "sent_s",
    "first_token_s",
    "end_s",
    "output_tokens",
    "prompt_tokens",
    "cached_tokens",
];

fn read_columns(run: &RunFolder) -> Result<Columns, ReportError> {
    let mut columns = Columns::default();
    let limits = limits_of(run);
    for_each_line(run, records::REQUESTS, |line| {
        let row: Row<'_> = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let numbers = [
            row.n_users,
            row.rate_per_s,
            row.max_tokens,
            row.sent_s,
            row.first_token_s,
            row.end_s,
            row.output_tokens,
            row.prompt_tokens,
            row.cached_tokens,
        ];
        let mut values = [None; 9];
        for (value, number) in values.iter_mut().zip(numbers) {
            *value = parse(number)?;
        }
        let [_, _, _, sent_s, first_s, end_s, n_output, ..] = values;
        columns
            .within
            .push(limits.is_none_or(|limits| meets(limits, sent_s, first_s, end_s, n_output)));
        for (column, value) in columns.numbers.iter_mut().zip(values) {
            column.push(value);
        }
        columns.case.push(row.case.into_owned());
        columns.phase.push(row.phase.into_owned());
        columns.model.push(row.model);
        columns.warmup.push(row.warmup);
        columns.failed.push(row.error.is_some());
        Ok(())
    })?;
    Ok(columns)
}

/// A time that a request does not have meets every limit, but the first token's.
fn meets(
    limits: &Limits,
    sent_s: Option<f64>,
    first_s: Option<f64>,
    end_s: Option<f64>,
    n_output: Option<f64>,
) -> bool {
    let (Some(sent_s), Some(first_s), Some(end_s)) = (sent_s, first_s, end_s) else {
        return false;
    };
    let n_further = n_output.unwrap_or_default() - 1.0;
    let tpot_ms = (n_further > 0.0).then(|| (end_s - first_s) * 1e3 / n_further);
    let within = |value: Option<f64>, limit: Option<f64>| match (value, limit) {
        (Some(value), Some(limit)) => value <= limit,
        _ => true,
    };
    within(Some((first_s - sent_s) * 1e3), limits.ttft_ms)
        && within(tpot_ms, limits.tpot_ms)
        && within(Some((end_s - sent_s) * 1e3), limits.e2el_ms)
}

impl Columns {
    fn into_frame(self) -> PolarsResult<DataFrame> {
        let mut columns = vec![
            Column::new("case".into(), self.case),
            Column::new("phase".into(), self.phase),
            Column::new("model".into(), self.model),
            Column::new("warmup".into(), self.warmup),
            Column::new("failed".into(), self.failed),
            Column::new("within".into(), self.within),
        ];
        let numbers = NUMBERS.iter().zip(self.numbers);
        columns.extend(numbers.map(|(name, values)| Column::new((*name).into(), values)));
        DataFrame::new_infer_height(columns)
    }
}

/// One row a run and case, with sorted lists of times in milliseconds.
fn aggregate(rows: LazyFrame) -> LazyFrame {
    let measured = col("warmup").not();
    let ok = measured.clone().and(col("failed").not());
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
                .and(col("failed"))
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
            list(
                col("prompt_tokens"),
                ok.clone().and(col("prompt_tokens").is_not_null()),
            )
            .alias("prompt_tokens"),
            col("cached_tokens")
                .filter(ok.clone())
                .sum()
                .alias("cached_tokens"),
            ok.clone()
                .and(col("cached_tokens").is_not_null())
                .cast(DataType::UInt32)
                .sum()
                .alias("n_cached_told"),
            ok.clone()
                .and(col("within"))
                .cast(DataType::UInt32)
                .sum()
                .alias("n_within"),
            list(
                col("end_s"),
                ok.clone().and(col("rate_per_s").is_not_null()),
            )
            .alias("ends_s"),
            col("sent_s")
                .filter(col("warmup").not().and(col("rate_per_s").is_not_null()))
                .min()
                .alias("first_sent_s"),
            col("sent_s")
                .filter(col("warmup").not().and(col("rate_per_s").is_not_null()))
                .max()
                .alias("last_sent_s"),
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
                prompt_tokens: times("prompt_tokens", i)?,
                cached_tokens: match count("n_cached_told", i)? {
                    0 => None,
                    _ => float("cached_tokens", i)?.map(|v| v as u64),
                },
                n_within: Some(count("n_within", i)?),
                ends_s: times("ends_s", i)?,
                first_sent_s: float("first_sent_s", i)?,
                last_sent_s: float("last_sent_s", i)?,
                energy: None,
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
    use records::store::StoredRun;

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
        assert_eq!(case.prompt_tokens.values(), [4.0, 4.0]);
        assert_eq!((case.cached_tokens, case.n_within), (Some(0), None));
        assert_eq!((case.ends_s.n(), case.last_sent_s), (0, None));
        assert!(case.is_short(), "4 s of the 10 that one user takes");
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

    /// Ten requests, one a second, of two seconds each: the server keeps up, although its last response
    /// comes two seconds after the last request.
    #[test]
    fn a_server_that_keeps_up_ends_as_many_as_begin() {
        let rows = |took: fn(f64) -> f64| -> String {
            let row = |i: u32| {
                let sent = f64::from(i);
                let (first, end) = (sent + 0.5, sent + took(sent));
                format!(
                    r#"{{"case":"rate-1","phase":"rate","warmup":false,"n_users":null,"rate_per_s":1.0,"max_tokens":10,"sent_s":{sent},"first_token_s":{first},"end_s":{end},"output_tokens":10,"error":null}}"#
                ) + "\n"
            };
            (0..10).map(row).collect()
        };
        let steady = |took| {
            let (_dir, run) = run_with(&rows(took));
            read_cases(&[&run]).unwrap()[0].steady_per_s()
        };
        assert_eq!(steady(|_| 2.0), Some(1.0));
        let (_dir, run) = run_with(&rows(|_| 2.0));
        assert_eq!(read_cases(&[&run]).unwrap()[0].arrived_per_s(), Some(1.0));
        // Each request waits for those before it: ends at 2, 4, 6 and 8 s, and three in the seven seconds
        // from the first to the last request.
        assert_eq!(steady(|sent| sent + 2.0), Some(3.0 / 7.0));
        assert_eq!(steady(|_| 20.0), None);
    }

    #[test]
    fn limits_are_met_or_not() {
        let limits = Limits {
            ttft_ms: Some(500.0),
            tpot_ms: Some(100.0),
            e2el_ms: None,
        };
        let met = |first: Option<f64>, end: f64, n: f64| {
            meets(&limits, Some(1.0), first, Some(end), Some(n))
        };
        assert!(met(Some(1.5), 2.5, 11.0));
        assert!(!met(Some(1.501), 2.5, 11.0), "the first token is late");
        assert!(!met(Some(1.5), 2.6, 11.0), "the others are");
        assert!(met(Some(1.5), 9.0, 1.0), "there are no others");
        assert!(!met(None, 2.0, 11.0));
    }

    #[test]
    fn a_torn_row_is_an_error_and_no_rows_are_no_cases() {
        let (_dir, run) = run_with("{\"case\":\"latency-10\",\"warm");
        assert!(read_cases(&[&run]).is_err());
        let (_dir, run) = run_with("");
        assert_eq!(read_cases(&[&run]).unwrap(), Vec::new());
    }
}
