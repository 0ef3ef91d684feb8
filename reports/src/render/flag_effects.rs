//! What one flag does: pairs of configurations that differ in it alone.
//!
//! Both were measured on one machine with one model; the second may come from another campaign or
//! have flags typed after `--`, which is then noted next to the verdict. Nothing is pooled. All
//! effects of a group stand in one table and are judged together.

use serde::Serialize;

use crate::lang::Lang;
use crate::load::Records;
use crate::render::compare::{Question, VerdictRow, answer, judged_in};
use crate::render::configuration::flags_by_name;
use crate::render::tables::Side;
use crate::select::{Arm, Group, same_place};
use crate::stats::verdict::VerdictConfig;

/// One user alone, and many together.
const PHASES: [&str; 2] = ["latency", "users"];

#[derive(Debug, Clone, Serialize)]
pub struct FlagEffect {
    pub flag: String,
    /// The flag's values; none where it was not given.
    pub before: Option<String>,
    pub after: Option<String>,
    /// The configurations, with the flags typed after `--`.
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
    let mut effects: Vec<(FlagEffect, &Arm<'_>, &Arm<'_>)> = Vec::new();
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
                    let effect = FlagEffect {
                        flag,
                        before: from,
                        after: to,
                        before_arm: named(other, before),
                        after_arm: named(group, after),
                        same_campaign: before.campaigns.iter().any(|c| after.campaigns.contains(c)),
                        verdicts: Vec::new(),
                        run_ids: before
                            .runs
                            .iter()
                            .chain(&after.runs)
                            .map(|run| run.folder.run_id.clone())
                            .collect(),
                    };
                    effects.push((effect, before, after));
                }
            }
        }
    }
    effects.sort_by(|(a, ..), (b, ..)| {
        (&a.flag, &a.before_arm, &a.after_arm).cmp(&(&b.flag, &b.before_arm, &b.after_arm))
    });
    let arms: Vec<(&Arm<'_>, &Arm<'_>)> = effects.iter().map(|(_, b, a)| (*b, *a)).collect();
    let verdicts = verdicts(records, &arms, config, lang);
    effects
        .into_iter()
        .zip(verdicts)
        .map(|((effect, ..), verdicts)| FlagEffect { verdicts, ..effect })
        .collect()
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

/// Of each pair the latency case, and the case with the most users.
fn verdicts(
    records: &Records,
    pairs: &[(&Arm<'_>, &Arm<'_>)],
    config: VerdictConfig,
    lang: Lang,
) -> Vec<Vec<VerdictRow>> {
    let mut sides = Vec::new();
    for (i, (before, after)) in pairs.iter().enumerate() {
        for phase in PHASES {
            let sides_of = [before, after].map(|arm| Side::of(records, arm, phase));
            sides.push((i, judged_in(phase), sides_of));
        }
    }
    let mut questions = Vec::new();
    let mut asked_of = Vec::new();
    for (i, metrics, [before, after]) in &sides {
        if let Some(case) = after.cases_shared_with(before).pop() {
            let asked = after.questions_against(before, case, metrics, config, lang);
            // Groups may have arms of one name.
            questions.extend(asked.into_iter().map(|question| Question {
                pair: format!("{i}"),
                ..question
            }));
            asked_of.resize(questions.len(), *i);
        }
    }
    let mut verdicts = vec![Vec::new(); pairs.len()];
    for (i, row) in asked_of.into_iter().zip(answer(&questions, config, lang)) {
        verdicts[i].push(row);
    }
    verdicts
}
