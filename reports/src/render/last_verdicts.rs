//! `verdicts.json` beside the reports: what they say of each experiment, for `cargo xtask list`,
//! which shall not wait for statistics. Words of no language: keys, figures, names.

use serde::Serialize;

use crate::ReportError;
use crate::render::context::{GroupContext, ReportContext};

/// The file's name.
pub const FILE_NAME: &str = "verdicts.json";

#[derive(Debug, Serialize)]
struct LastVerdicts<'a> {
    newest_run: Option<&'a str>,
    experiments: Vec<Judged<'a>>,
}

#[derive(Debug, Serialize)]
struct Judged<'a> {
    experiment: &'a str,
    group: &'a str,
    against: &'a str,
    n_starts: usize,
    verdicts: Vec<JudgedMetric<'a>>,
}

#[derive(Debug, Serialize)]
struct JudgedMetric<'a> {
    metric: &'static str,
    case: &'a str,
    verdict: &'static str,
    improvement_percent: Option<f64>,
    interval_percent: Option<(f64, f64)>,
}

/// The file's text.
pub fn render(context: &ReportContext) -> Result<String, ReportError> {
    let last = LastVerdicts {
        newest_run: context.runs.last().map(|run| run.run_id.as_str()),
        experiments: context.groups.iter().flat_map(judged_in).collect(),
    };
    let text = serde_json::to_string_pretty(&last).map_err(|e| ReportError::Template {
        template: FILE_NAME.to_owned(),
        message: e.to_string(),
    })?;
    Ok(text + "\n")
}

fn judged_in(group: &GroupContext) -> impl Iterator<Item = Judged<'_>> {
    group.comparisons.iter().map(|comparison| Judged {
        experiment: &comparison.after,
        group: &group.title,
        against: &comparison.before,
        n_starts: comparison
            .verdicts
            .iter()
            .map(|v| v.n_after)
            .max()
            .unwrap_or(0),
        verdicts: comparison
            .verdicts
            .iter()
            .map(|v| JudgedMetric {
                metric: v.key,
                case: &v.case,
                verdict: v.verdict,
                improvement_percent: v.improvement_percent,
                interval_percent: v.interval,
            })
            .collect(),
    })
}
