//! `verdicts.json` beside the reports: what they say of each experiment, for `cargo xtask list`,
//! which shall not wait for statistics. Words of no language: keys, figures, names.

use std::collections::BTreeSet;

use records::verdicts::{FILE_NAME, Judged, JudgedMetric, LastVerdicts};

use crate::ReportError;
use crate::render::context::{GroupContext, ReportContext};

/// The file's text.
///
/// # Errors
///
/// [`ReportError::Template`] if the verdicts have no JSON form.
pub fn render(context: &ReportContext) -> Result<String, ReportError> {
    let last = LastVerdicts {
        newest_run: context.newest_run.clone(),
        experiments: context.groups.iter().flat_map(judged_in).collect(),
    };
    let text = serde_json::to_string_pretty(&last).map_err(|e| ReportError::Template {
        template: FILE_NAME.to_owned(),
        message: e.to_string(),
    })?;
    Ok(text + "\n")
}

fn judged_in(group: &GroupContext) -> impl Iterator<Item = Judged> + use<'_> {
    group.comparisons.iter().map(|comparison| Judged {
        experiment: comparison.after.clone(),
        group: group.title.clone(),
        against: comparison.before.clone(),
        campaigns: campaigns_of(group, [&comparison.before, &comparison.after]),
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
                metric: v.key.to_owned(),
                case: v.case.clone(),
                verdict: match v.verdict {
                    decided @ ("faster" | "slower" | "same") => decided.to_owned(),
                    _ => "undecided".to_owned(),
                },
                improvement_percent: v.improvement_percent,
                interval_percent: v.interval,
            })
            .collect(),
    })
}

fn campaigns_of(group: &GroupContext, compared: [&String; 2]) -> Vec<String> {
    let arms = group.arms.iter();
    let campaigns: BTreeSet<&String> = arms
        .filter(|arm| compared.contains(&&arm.experiment))
        .flat_map(|arm| &arm.campaigns)
        .collect();
    campaigns.into_iter().cloned().collect()
}
