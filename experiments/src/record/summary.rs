//! Per-case figures of one run: `summary.json`, the block that `vllm bench serve` prints, and
//! one table over all cases.
//!
//! TTFT counts from the moment a request is sent; TPOT = (e2e − TTFT) / (output tokens − 1)
//! per request; ITL pools every gap between tokens; goodput counts the requests that meet
//! every stated limit. Warm-up rows and failed requests give no times. Definitions of mean,
//! median, std and percentiles: [`crate::record::statistics`]. p95 and p99 are told of cases that last
//! long enough and have enough requests ([`records::sufficiency`]).

use std::fmt::Write as _;

use records::rows::{CaseLoad, RequestRow};
use records::sufficiency::{least_measured_s, least_requests};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::record::statistics::Spread;
use crate::spec::workload::{Arrival, Case, Limits};

#[derive(Debug, Clone, PartialEq)]
pub struct CaseSummary {
    pub case: Case,
    pub completed: usize,
    pub failed: usize,
    pub total_input_tokens: u64,
    pub total_output_tokens: u64,
    /// From the first request scheduled to the last response's end.
    pub duration_s: f64,
    /// Requests a second that meet every limit; `None` where no limit is stated.
    pub request_goodput: Option<f64>,
    pub ttft_ms: Option<Spread>,
    pub tpot_ms: Option<Spread>,
    pub itl_ms: Option<Spread>,
    pub e2el_ms: Option<Spread>,
    /// Time in the client between a request's turn and its sending.
    pub queued_ms: Option<Spread>,
    /// Of the device that serves, over the whole case; `None` without a meter.
    pub energy: Option<Energy>,
}

/// What a case used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Energy {
    pub joules: f64,
    pub mean_w: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    pub run_id: String,
    pub cases: Vec<CaseSummary>,
}

/// Times of one request that came back whole.
#[expect(clippy::struct_field_names, reason = "the unit is in the name")]
pub(crate) struct RequestTimes {
    pub ttft_ms: f64,
    pub e2el_ms: f64,
    /// Undefined for a single token.
    pub tpot_ms: Option<f64>,
}

impl RequestTimes {
    /// None where the request failed.
    pub fn of(row: &RequestRow) -> Option<Self> {
        if row.error.is_some() {
            return None;
        }
        let (sent_s, first_token_s) = (row.sent_s?, row.first_token_s?);
        let ttft_ms = (first_token_s - sent_s) * 1e3;
        let e2el_ms = (row.end_s - sent_s) * 1e3;
        let n_further = row.output_tokens?.checked_sub(1).filter(|&n| n > 0);
        Some(Self {
            ttft_ms,
            e2el_ms,
            tpot_ms: n_further.map(|n| (e2el_ms - ttft_ms) / n as f64),
        })
    }

    pub fn meets(&self, limits: &Limits) -> bool {
        let within = |value: Option<f64>, limit: Option<f64>| match (value, limit) {
            (Some(value), Some(limit)) => value <= limit,
            _ => true,
        };
        within(Some(self.ttft_ms), limits.ttft_ms)
            && within(self.tpot_ms, limits.tpot_ms)
            && within(Some(self.e2el_ms), limits.e2el_ms)
    }
}

impl CaseSummary {
    pub fn of(case: &Case, rows: &[&RequestRow], limits: Option<&Limits>) -> Self {
        let ok: Vec<&&RequestRow> = rows.iter().filter(|row| row.error.is_none()).collect();
        let times: Vec<RequestTimes> = ok.iter().filter_map(|row| RequestTimes::of(row)).collect();
        let start_s = rows
            .iter()
            .map(|row| row.scheduled_s)
            .fold(f64::INFINITY, f64::min);
        let end_s = rows
            .iter()
            .map(|row| row.end_s)
            .fold(f64::NEG_INFINITY, f64::max);
        let duration_s = (end_s - start_s).max(0.0);
        let gaps_ms: Vec<f64> = ok
            .iter()
            .flat_map(|row| row.token_s.windows(2))
            .map(|pair| (pair[1] - pair[0]) * 1e3)
            .collect();
        let queued_ms: Vec<f64> = rows
            .iter()
            .filter_map(|row| Some((row.sent_s? - row.scheduled_s) * 1e3))
            .collect();
        let spread = |value: fn(&RequestTimes) -> Option<f64>| {
            Spread::of(&times.iter().filter_map(value).collect::<Vec<_>>())
        };
        let limits = limits.filter(|limits| **limits != Limits::default());
        Self {
            case: case.clone(),
            completed: ok.len(),
            failed: rows.len() - ok.len(),
            total_input_tokens: ok.iter().filter_map(|row| row.prompt_tokens).sum(),
            total_output_tokens: ok.iter().filter_map(|row| row.output_tokens).sum(),
            duration_s,
            request_goodput: limits.map(|limits| {
                per_second(
                    times.iter().filter(|times| times.meets(limits)).count() as f64,
                    duration_s,
                )
            }),
            ttft_ms: spread(|times| Some(times.ttft_ms)),
            tpot_ms: spread(|times| times.tpot_ms),
            itl_ms: Spread::of(&gaps_ms),
            e2el_ms: spread(|times| Some(times.e2el_ms)),
            queued_ms: Spread::of(&queued_ms),
            energy: None,
        }
    }

    /// Whether it lasted too short for its kind.
    pub fn is_short(&self) -> bool {
        self.duration_s < least_measured_s(self.case.phase)
    }

    /// A percentile, where the case may tell it.
    fn tail(&self, percent: u32, value: Option<f64>) -> Option<f64> {
        let is_told = !self.is_short() && self.completed >= least_requests(percent);
        value.filter(|_| is_told)
    }

    pub fn joules_per_output_token(&self) -> Option<f64> {
        let joules = self.energy?.joules;
        (self.total_output_tokens > 0).then(|| joules / self.total_output_tokens as f64)
    }

    pub fn request_throughput(&self) -> f64 {
        per_second(self.completed as f64, self.duration_s)
    }

    pub fn output_throughput(&self) -> f64 {
        per_second(self.total_output_tokens as f64, self.duration_s)
    }

    pub fn total_token_throughput(&self) -> f64 {
        per_second(
            (self.total_input_tokens + self.total_output_tokens) as f64,
            self.duration_s,
        )
    }

    /// Keys as `vllm bench serve --save-result` writes them.
    pub fn to_json(&self) -> Value {
        let (max_concurrency, request_rate) = match self.case.arrival {
            Arrival::ClosedLoop { n_users } => (Some(n_users), Value::from("inf")),
            Arrival::OpenLoop { rate_per_s } => (None, Value::from(rate_per_s)),
            Arrival::Trace { .. } => (None, Value::from("trace")),
        };
        let mut keys = Map::new();
        let mut put = |key: &str, value: Value| keys.insert(key.to_string(), value);
        put("case", self.case.name.clone().into());
        put("phase", json!(self.case.phase));
        put("max_concurrency", json!(max_concurrency));
        put("request_rate", request_rate);
        put("num_prompts", (self.completed + self.failed).into());
        put("duration", self.duration_s.into());
        put("completed", self.completed.into());
        put("failed", self.failed.into());
        put("total_input_tokens", self.total_input_tokens.into());
        put("total_output_tokens", self.total_output_tokens.into());
        put("request_throughput", self.request_throughput().into());
        put("request_goodput", json!(self.request_goodput));
        put("output_throughput", self.output_throughput().into());
        put(
            "total_token_throughput",
            self.total_token_throughput().into(),
        );
        let metrics = [
            ("ttft_ms", self.ttft_ms),
            ("tpot_ms", self.tpot_ms),
            ("itl_ms", self.itl_ms),
            ("e2el_ms", self.e2el_ms),
            ("queued_ms", self.queued_ms),
        ];
        for (name, spread) in metrics {
            put(&format!("mean_{name}"), json!(spread.map(|s| s.mean)));
            put(&format!("median_{name}"), json!(spread.map(|s| s.median)));
            put(&format!("std_{name}"), json!(spread.map(|s| s.std)));
            let p95 = self.tail(95, spread.map(|s| s.p95));
            let p99 = self.tail(99, spread.map(|s| s.p99));
            put(&format!("p95_{name}"), json!(p95));
            put(&format!("p99_{name}"), json!(p99));
        }
        put("is_short", self.is_short().into());
        if let Some(energy) = self.energy {
            put(
                "joules_per_output_token",
                json!(self.joules_per_output_token()),
            );
            put("mean_power_w", energy.mean_w.into());
        }
        Value::Object(keys)
    }

    /// The block of names that `vllm bench serve` prints, for reading them side by side.
    pub fn block(&self) -> String {
        const WIDTH: usize = 50;
        let mut text = format!("{:=^WIDTH$}\n", format!(" {} ", self.case.name));
        let mut line = |name: &str, value: String| {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{name:<40}{value:<10}");
        };
        let figure = |value: f64| format!("{value:.2}");
        line("Successful requests:", self.completed.to_string());
        line("Failed requests:", self.failed.to_string());
        match self.case.arrival {
            Arrival::ClosedLoop { n_users } => {
                line("Maximum request concurrency:", n_users.to_string());
            }
            Arrival::OpenLoop { rate_per_s } => {
                line("Request rate configured (RPS):", figure(rate_per_s));
            }
            Arrival::Trace { speed } => line("Speed of the trace:", figure(speed)),
        }
        line("Benchmark duration (s):", figure(self.duration_s));
        line("Total input tokens:", self.total_input_tokens.to_string());
        line(
            "Total generated tokens:",
            self.total_output_tokens.to_string(),
        );
        line(
            "Request throughput (req/s):",
            figure(self.request_throughput()),
        );
        if let Some(goodput) = self.request_goodput {
            line("Request goodput (req/s):", figure(goodput));
        }
        line(
            "Output token throughput (tok/s):",
            figure(self.output_throughput()),
        );
        line(
            "Total token throughput (tok/s):",
            figure(self.total_token_throughput()),
        );
        let metrics = [
            ("Time to First Token", "TTFT", self.ttft_ms),
            (
                "Time per Output Token (excl. 1st token)",
                "TPOT",
                self.tpot_ms,
            ),
            ("Inter-token Latency", "ITL", self.itl_ms),
            ("End-to-end Latency", "E2EL", self.e2el_ms),
        ];
        for (title, name, spread) in metrics {
            let _ = writeln!(text, "{title:-^WIDTH$}");
            for (statistic, value) in [
                ("Mean", spread.map(|s| s.mean)),
                ("Median", spread.map(|s| s.median)),
                ("P99", self.tail(99, spread.map(|s| s.p99))),
            ] {
                let _ = writeln!(
                    text,
                    "{:<40}{:<10}",
                    format!("{statistic} {name} (ms):"),
                    shown(value)
                );
            }
        }
        if let Some(energy) = self.energy {
            let _ = writeln!(text, "{:-^WIDTH$}", "Energy");
            let per_token = shown(self.joules_per_output_token());
            let _ = writeln!(
                text,
                "{:<40}{per_token:<10}",
                "Energy per output token (J):"
            );
            let _ = writeln!(text, "{:<40}{:<10.1}", "Mean power (W):", energy.mean_w);
        }
        let _ = writeln!(text, "{:=<WIDTH$}", "");
        text
    }
}

impl Summary {
    /// Summarises every case that is no warm-up, in the order of `cases`.
    pub fn of(run_id: &str, cases: &[Case], rows: &[RequestRow], limits: Option<&Limits>) -> Self {
        let cases = cases.iter().filter(|case| !case.warmup).map(|case| {
            let is_of = |row: &&RequestRow| row.case == case.name && !row.warmup;
            let rows: Vec<&RequestRow> = rows.iter().filter(is_of).collect();
            CaseSummary::of(case, &rows, limits)
        });
        Self {
            run_id: run_id.into(),
            cases: cases.collect(),
        }
    }

    /// Takes in what the meters counted of cases that had the machine to themselves.
    pub fn take_in_energy(&mut self, loads: &[CaseLoad], has_gpu: bool) {
        for case in &mut self.cases {
            let alone = |load: &&CaseLoad| load.cases == [case.case.name.clone()];
            let energy = loads.iter().find(alone).and_then(|load| load.energy);
            case.energy = energy.and_then(|energy| {
                let joules = energy.device_j(has_gpu)?;
                Some(Energy {
                    joules,
                    mean_w: joules / energy.seconds,
                })
            });
        }
    }

    /// Which cases are too short for their kind; `None` if none is.
    pub fn shortness(&self) -> Option<String> {
        let short: Vec<&CaseSummary> = self.cases.iter().filter(|c| c.is_short()).collect();
        let first = short.first()?;
        Some(format!(
            "{} of {} cases are short, so that no tail is told of them: {} measured {:.1} s, it takes {:.0} s",
            short.len(),
            self.cases.len(),
            first.case.name,
            first.duration_s,
            least_measured_s(first.case.phase)
        ))
    }

    /// One line a case.
    pub fn table(&self) -> String {
        let mut text = format!(
            "{:<14}{:>5}{:>7}{:>9}{:>9}{:>10}{:>10}{:>10}{:>10}{:>11}\n",
            "case",
            "ok",
            "failed",
            "req/s",
            "tok/s",
            "ttft p50",
            "ttft p99",
            "tpot p50",
            "itl p99",
            "e2el p50"
        );
        for case in &self.cases {
            let of = |spread: Option<Spread>, value: fn(Spread) -> f64| shown(spread.map(value));
            let _ = writeln!(
                text,
                "{:<14}{:>5}{:>7}{:>9.2}{:>9.1}{:>10}{:>10}{:>10}{:>10}{:>11}",
                case.case.name,
                case.completed,
                case.failed,
                case.request_throughput(),
                case.output_throughput(),
                of(case.ttft_ms, |s| s.median),
                shown(case.tail(99, case.ttft_ms.map(|s| s.p99))),
                of(case.tpot_ms, |s| s.median),
                shown(case.tail(99, case.itl_ms.map(|s| s.p99))),
                of(case.e2el_ms, |s| s.median),
            );
        }
        text.push_str("times in ms; ok and failed count requests; no p99 of fewer than 2000 requests or of a short case\n");
        text
    }
}

impl Serialize for Summary {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let cases: Vec<Value> = self.cases.iter().map(CaseSummary::to_json).collect();
        json!({ "run_id": self.run_id, "cases": cases }).serialize(to)
    }
}

fn per_second(amount: f64, duration_s: f64) -> f64 {
    if duration_s > 0.0 {
        amount / duration_s
    } else {
        0.0
    }
}

fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |value| format!("{value:.2}"))
}

#[cfg(test)]
mod tests {
    use records::rows::CaseEnergy;

    use super::*;
    use crate::spec::workload::Phase;

    fn row(
        index: u32,
        scheduled_s: f64,
        sent_s: f64,
        token_s: &[f64],
        end_s: f64,
        error: Option<&str>,
    ) -> RequestRow {
        RequestRow {
            case: "users-2".into(),
            phase: Phase::Users,
            warmup: false,
            model: None,
            index,
            user: Some(index % 2),
            n_users: Some(2),
            rate_per_s: None,
            prompt_id: "p".into(),
            max_tokens: 3,
            scheduled_s,
            sent_s: Some(sent_s),
            first_token_s: token_s.first().copied(),
            token_s: token_s.to_vec(),
            end_s,
            prompt_tokens: error.is_none().then_some(10),
            output_tokens: error.is_none().then_some(3),
            cached_tokens: None,
            finish_reason: None,
            error: error.map(String::from),
        }
    }

    fn case() -> Case {
        Case {
            name: "users-2".into(),
            phase: Phase::Users,
            warmup: false,
            arrival: Arrival::ClosedLoop { n_users: 2 },
            n_requests: 3,
            least_s: None,
            output_tokens: 3,
            model: None,
            round: None,
        }
    }

    /// Worked by hand: ttft 100 and 300 ms, e2e 500 and 900 ms, tpot 200 and 300 ms,
    /// gaps 100, 300, 200, 400 ms, 6 tokens of two good requests in 4 s.
    fn rows() -> Vec<RequestRow> {
        vec![
            row(0, 1.0, 1.0, &[1.1, 1.2, 1.5], 1.5, None),
            row(1, 1.0, 1.1, &[1.4, 1.6, 2.0], 2.0, None),
            row(2, 2.0, 2.0, &[2.1], 5.0, Some("the connection broke")),
        ]
    }

    fn close(actual: f64, expected: f64) -> bool {
        (actual - expected).abs() < 1e-6
    }

    #[test]
    fn figures_worked_by_hand() {
        let limits = Limits {
            ttft_ms: Some(200.0),
            tpot_ms: Some(250.0),
            e2el_ms: None,
        };
        let rows = rows();
        let summary = CaseSummary::of(&case(), &rows.iter().collect::<Vec<_>>(), Some(&limits));
        assert_eq!((summary.completed, summary.failed), (2, 1));
        assert_eq!(
            (summary.total_input_tokens, summary.total_output_tokens),
            (20, 6)
        );
        assert!(close(summary.duration_s, 4.0));
        assert!(close(summary.request_throughput(), 0.5));
        assert!(close(summary.output_throughput(), 1.5));
        assert!(close(summary.total_token_throughput(), 6.5));
        assert!(
            summary
                .request_goodput
                .is_some_and(|goodput| close(goodput, 0.25))
        );
        let spreads = [
            (summary.ttft_ms, 200.0, 200.0, 100.0, 298.0),
            (summary.e2el_ms, 700.0, 700.0, 200.0, 896.0),
            (summary.tpot_ms, 250.0, 250.0, 50.0, 299.0),
            (summary.itl_ms, 250.0, 250.0, 111.803_398_87, 397.0),
            (summary.queued_ms, 100.0 / 3.0, 0.0, 47.140_452_08, 98.0),
        ];
        for (index, (spread, mean, median, std, p99)) in spreads.into_iter().enumerate() {
            let spread = spread.expect("a sample");
            let all = [
                (spread.mean, mean),
                (spread.median, median),
                (spread.std, std),
                (spread.p99, p99),
            ];
            assert!(
                all.iter()
                    .all(|(actual, expected)| close(*actual, *expected)),
                "{index}: {spread:?}"
            );
        }
    }

    #[test]
    fn the_block_and_the_table_read_as_expected() {
        let summary = Summary::of("r1", &[case()], &rows(), None);
        insta::assert_snapshot!(format!("{}\n{}", summary.cases[0].block(), summary.table()));
    }

    #[test]
    fn tails_take_time_and_requests() {
        let rows = |n: u32, seconds: f64| -> Vec<RequestRow> {
            let at = |i: u32| seconds * f64::from(i) / f64::from(n - 1);
            (0..n)
                .map(|i| row(i, at(i), at(i), &[at(i)], at(i), None))
                .collect()
        };
        let tails = |n, seconds| {
            let rows = rows(n, seconds);
            let summary = CaseSummary::of(&case(), &rows.iter().collect::<Vec<_>>(), None);
            let json = summary.to_json();
            assert_eq!(json["is_short"], summary.is_short());
            ["p95_ttft_ms", "p99_ttft_ms"].map(|key| !json[key].is_null())
        };
        assert_eq!(tails(2_000, 31.0), [true, true]);
        assert_eq!(tails(1_999, 31.0), [true, false]);
        assert_eq!(tails(399, 31.0), [false, false]);
        assert_eq!(tails(2_000, 9.0), [false, false]);
    }

    #[test]
    fn energy_is_that_of_cases_alone() {
        let mut summary = Summary::of("r1", &[case()], &rows(), None);
        let load = |cases: &[&str], gpu_j, cpu_j| CaseLoad {
            cases: cases.iter().map(ToString::to_string).collect(),
            start_s: 1.0,
            end_s: 5.0,
            load_average_1m: None,
            others_share: None,
            steal_share: None,
            energy: Some(CaseEnergy {
                seconds: 4.0,
                gpu_j,
                gpu_source: None,
                cpu_j,
            }),
        };
        summary.take_in_energy(&[load(&["users-2", "other"], Some(12.0), None)], true);
        assert_eq!(summary.cases[0].energy, None);
        assert!(summary.cases[0].to_json().get("mean_power_w").is_none());
        let loads = [load(&["users-2"], Some(1200.0), Some(60.0))];
        summary.take_in_energy(&loads, true);
        let json = summary.cases[0].to_json();
        assert_eq!(json["joules_per_output_token"], 200.0);
        assert_eq!(json["mean_power_w"], 300.0);
        // The processor serves where there is no GPU.
        summary.take_in_energy(&loads, false);
        assert_eq!(summary.cases[0].joules_per_output_token(), Some(10.0));
    }

    #[test]
    fn a_case_without_a_good_request_has_no_times() {
        let rows = [row(0, 1.0, 1.0, &[], 2.0, Some("refused"))];
        let summary = CaseSummary::of(&case(), &rows.iter().collect::<Vec<_>>(), None);
        assert_eq!(
            (
                summary.completed,
                summary.failed,
                summary.ttft_ms,
                summary.request_goodput
            ),
            (0, 1, None, None)
        );
        let json = summary.to_json();
        assert!(json["mean_ttft_ms"].is_null() && json["output_throughput"] == 0.0);
    }
}
