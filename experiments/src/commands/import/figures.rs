//! Results as rows of imported figures ([`records::imported`]).

use anyhow::{Result, bail};
use records::imported::COLUMNS;

use crate::commands::import::result_file::ResultFile;

/// Key of the result, metric, unit, kind.
const COUNTS: [(&str, &str, &str, &str); 11] = [
    ("num_prompts", "n_prompts", "count", "stated"),
    ("duration", "duration", "s", "measured"),
    ("completed", "n_completed", "count", "measured"),
    ("failed", "n_failed", "count", "measured"),
    ("total_input_tokens", "input_tokens", "tokens", "measured"),
    ("total_output_tokens", "output_tokens", "tokens", "measured"),
    (
        "request_throughput",
        "request_throughput",
        "req/s",
        "measured",
    ),
    ("request_goodput", "request_goodput", "req/s", "measured"),
    ("input_throughput", "input_throughput", "tok/s", "measured"),
    (
        "output_throughput",
        "output_throughput",
        "tok/s",
        "measured",
    ),
    (
        "total_token_throughput",
        "total_throughput",
        "tok/s",
        "measured",
    ),
];

const STATISTICS: [(&str, &str); 7] = [
    ("mean", "mean"),
    ("median", "p50"),
    ("std", "std"),
    ("p90", "p90"),
    ("p95", "p95"),
    ("p99", "p99"),
    ("max", "max"),
];

/// The CSV of a file's results. A result without a name of its own is called after its place.
///
/// # Errors
///
/// If a result has none of the figures that are known; the error names its place.
pub fn table(document: &str, results: &[ResultFile]) -> Result<String> {
    let mut lines = vec![COLUMNS.join(",")];
    for (index, result) in results.iter().enumerate() {
        let section = format!("result {}", index + 1);
        let subject = [result.backend(), result.model()];
        let subject: Vec<String> = subject.into_iter().flatten().collect();
        let subject = if subject.is_empty() {
            "unnamed".to_string()
        } else {
            subject.join(" ")
        };
        let condition = result.condition();
        let mut row = |metric: &str, value: f64, unit: &str, kind: &str| {
            let value = value.to_string();
            let cells = [
                document, &section, metric, &subject, &condition, &value, unit, kind, "",
            ];
            lines.push(cells.map(quoted).join(","));
        };
        let before = COUNTS.len();
        let mut n_rows = 0;
        for (key, metric, unit, kind) in COUNTS {
            if let Some(value) = result.number(key) {
                row(metric, value, unit, kind);
                n_rows += 1;
            }
        }
        let latency = result.latency_key();
        for (key, metric) in [
            ("ttft", "ttft"),
            ("tpot", "tpot"),
            ("itl", "itl"),
            (latency, "latency"),
        ] {
            for (statistic, suffix) in STATISTICS {
                if let Some(value) = result.number(&format!("{statistic}_{key}_ms")) {
                    row(&format!("{metric}_{suffix}"), value, "ms", "measured");
                    n_rows += 1;
                }
            }
        }
        if n_rows == 0 {
            bail!("{section}: none of the {before} figures is there");
        }
    }
    Ok(lines.join("\n") + "\n")
}

fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_cell_or_a_row_is_quoted() {
        for (text, written) in [
            ("plain", "plain"),
            ("a,b", "\"a,b\""),
            ("a\rb", "\"a\rb\""),
            ("a\nb", "\"a\nb\""),
            ("say \"a\"", "\"say \"\"a\"\"\""),
        ] {
            assert_eq!(quoted(text), written);
        }
    }
}
