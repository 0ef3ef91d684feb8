//! What one flag does: pairs of configurations that differ in it alone.
//!
//! Both were measured on one machine with one model; the second may come from another campaign or
//! carry flags typed behind `--`, which is then said beside the verdict. Nothing is pooled.

use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::render::compare::{Metric, VerdictRow};
use crate::render::configuration::flags_by_name;
use crate::render::tables;
use crate::select::{Arm, Group, same_place};
use crate::stats::verdict::VerdictConfig;

#[derive(Debug, Clone, Serialize)]
pub struct FlagEffect {
    pub flag: String,
    /// The flag's values; none where it was not given.
    pub before: Option<String>,
    pub after: Option<String>,
    /// The configurations, with the flags typed behind `--`.
    pub before_arm: String,
    pub after_arm: String,
    pub same_campaign: bool,
    pub verdicts: Vec<VerdictRow>,
    pub run_ids: Vec<String>,
}

/// Effects whose second configuration belongs to `group`, sorted by flag and configuration.
pub fn effects_in(
    records: &Records,
    groups: &[Group<'_>],
    group: &Group<'_>,
    config: VerdictConfig,
    lang: Lang,
) -> Vec<FlagEffect> {
    let mut effects = Vec::new();
    for after in measured(group) {
        for other in groups {
            for before in measured(other) {
                let places = (before.representative(), after.representative());
                let comparable =
                    matches!(places, (Some(b), Some(a)) if same_place(b.record, a.record));
                let Some((flag, from, to)) = single_difference(before, after) else {
                    continue;
                };
                let forward = match (&from, &to) {
                    (None, _) => true,
                    (_, None) => false,
                    _ => named(other, before) < named(group, after),
                };
                if comparable && forward {
                    effects.push(FlagEffect {
                        flag,
                        before: from,
                        after: to,
                        before_arm: named(other, before),
                        after_arm: named(group, after),
                        same_campaign: before.campaign == after.campaign,
                        verdicts: verdicts(records, before, after, config, lang),
                        run_ids: before
                            .runs
                            .iter()
                            .chain(&after.runs)
                            .map(|run| run.folder.run_id.clone())
                            .collect(),
                    });
                }
            }
        }
    }
    effects.sort_by(|a, b| {
        (&a.flag, &a.before_arm, &a.after_arm).cmp(&(&b.flag, &b.before_arm, &b.after_arm))
    });
    effects
}

fn measured<'g, 'a>(group: &'g Group<'a>) -> impl Iterator<Item = &'g Arm<'a>> {
    group.arms.iter().filter(|arm| !arm.runs.is_empty())
}

fn named(group: &Group<'_>, arm: &Arm<'_>) -> String {
    std::iter::once(arm.experiment.as_str())
        .chain(group.extra_flags.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The one flag in which two configurations differ, and its values.
fn single_difference(
    before: &Arm<'_>,
    after: &Arm<'_>,
) -> Option<(String, Option<String>, Option<String>)> {
    let (b, a) = (flags_by_name(before), flags_by_name(after));
    let mut names: Vec<&String> = b.keys().chain(a.keys()).collect();
    names.sort();
    names.dedup();
    names.retain(|name| b.get(*name) != a.get(*name));
    match names[..] {
        [name] => Some((name.clone(), b.get(name).cloned(), a.get(name).cloned())),
        _ => None,
    }
}

/// The latency case, and the case with the most users.
fn verdicts(
    records: &Records,
    before: &Arm<'_>,
    after: &Arm<'_>,
    config: VerdictConfig,
    lang: Lang,
) -> Vec<VerdictRow> {
    let arms = [before.clone(), after.clone()];
    let rows = |phase: &str, metrics: &[Metric]| {
        tables::rows(records, &arms, Some(before), phase, metrics, config, lang)
    };
    let alone = [Metric::Latency, Metric::OutputThroughput, Metric::Ttft];
    let together = [Metric::RequestThroughput, Metric::Latency];
    let judged = |rows: Vec<tables::CaseRow>| {
        rows.into_iter()
            .rfind(|row| !row.verdicts.is_empty())
            .map(|row| row.verdicts)
    };
    [rows("latency", &alone), rows("users", &together)]
        .into_iter()
        .filter_map(judged)
        .flatten()
        .collect()
}
