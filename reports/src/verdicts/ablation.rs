//! Which flag of a configuration does what: the table of a campaign of `ablate`.
//!
//! Every row is one flag in one surrounding. `in full`: the full configuration against itself with
//! the flag as the baseline has it; `alone`: the baseline with this flag against the baseline. Both
//! say what the flag brings, so plus means that having it is better. Flags that help only together
//! show in the first row and not in the second. Figures are those of the case with most load.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;

use super::{Figure, Runs, judge, phrase, remark};
use crate::load::requests::CaseSamples;
use crate::load::run_folder::{Derived, Outcome, Record, RunFolder, flags_one_a_line};
use crate::stats::verdict::{Comparison, MetricSamples};

/// The runs of one arm.
type Arm<'a> = Vec<&'a RunFolder>;

/// Two arms that differ in one flag, or in all.
struct Effect<'a> {
    flag: String,
    surrounding: &'static str,
    without: &'a Arm<'a>,
    with: &'a Arm<'a>,
}

/// The table of the campaign, as Markdown.
pub fn table(dir: &Path, campaign: &str) -> anyhow::Result<String> {
    let runs = Runs::read(dir, |run| {
        derived(run).is_some() && campaign_of(run) == campaign
    })?;
    let mut arms: BTreeMap<(String, String), Arm<'_>> = BTreeMap::new();
    for run in &runs.folders {
        if let Some(derived) = derived(run) {
            let key = (
                derived.direction.clone().unwrap_or_default(),
                derived.flag.clone().unwrap_or_default(),
            );
            arms.entry(key).or_default().push(run);
        }
    }
    let reference = |direction: &str| arms.get(&(direction.to_owned(), String::new()));
    let (Some(full), Some(baseline)) = (reference("full"), reference("baseline")) else {
        bail!(
            "{}: campaign {campaign} has no start of a full configuration and of its baseline",
            dir.display()
        );
    };
    let Some(case) = heaviest_case(&runs.cases) else {
        bail!("campaign {campaign}: no start is complete");
    };

    let mut effects = vec![Effect {
        flag: "all of them".into(),
        surrounding: "",
        without: baseline,
        with: full,
    }];
    let mut idle = inactive_at_both_ends(full, baseline);
    for ((direction, flag), arm) in arms.iter().filter(|((_, flag), _)| !flag.is_empty()) {
        let (surrounding, without, with, beside) = match direction.as_str() {
            "off" => ("in full", arm, full, full),
            _ => ("alone", baseline, arm, baseline),
        };
        match same_server(flag, arm, beside) {
            Some(reason) => {
                idle.insert((flag.clone(), surrounding), reason);
            }
            None => effects.push(Effect {
                flag: flag_line(flag, full),
                surrounding,
                without,
                with,
            }),
        }
    }
    effects[1..].sort_by(|a, b| (&a.flag, b.surrounding).cmp(&(&b.flag, a.surrounding)));
    let answers = judge(&family(&runs, &effects, &case));
    Ok(print(
        campaign,
        &case,
        (full, baseline),
        &effects,
        &answers,
        &idle,
        &arms,
    ))
}

fn family(runs: &Runs, effects: &[Effect<'_>], case: &str) -> Vec<MetricSamples> {
    effects
        .iter()
        .flat_map(|effect| {
            Figure::ALL.map(|figure| runs.samples((effect.without, effect.with), case, figure))
        })
        .collect()
}

fn print(
    campaign: &str,
    case: &str,
    (full, baseline): (&Arm<'_>, &Arm<'_>),
    effects: &[Effect<'_>],
    answers: &[Comparison],
    idle: &BTreeMap<(String, &str), String>,
    arms: &BTreeMap<(String, String), Arm<'_>>,
) -> String {
    let parent = full.first().and_then(|run| derived(run));
    let names = parent.map(|d| {
        let baseline = d.baseline.as_deref().unwrap_or("the engine's defaults");
        format!("{} against {baseline}", d.parent)
    });
    let mut text = format!(
        "{}: campaign {campaign}, case {case}\n\n",
        names.unwrap_or_default()
    );
    let titles = Figure::ALL.map(Figure::title).join(" | ");
    // Writing into a String cannot fail.
    let _ = writeln!(text, "| flag | where | {titles} | starts |");
    let _ = writeln!(text, "|---|---|---|---|---|---|");
    for (effect, answers) in effects.iter().zip(answers.chunks(Figure::ALL.len())) {
        let cells: Vec<String> = answers.iter().map(phrase).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            effect.flag,
            effect.surrounding,
            cells.join(" | "),
            starts(effect)
        );
    }
    let _ = writeln!(
        text,
        "\nplus: better with the flag; interval 95 %; {} figures judged together, {} starts of the full configuration, {} of the baseline",
        answers.len(),
        n_complete(full),
        n_complete(baseline)
    );
    if let Some(remark) = remark(answers) {
        let _ = writeln!(text, "{remark}");
    }
    if !idle.is_empty() {
        let _ = writeln!(text, "\nwithout effect on this machine, not judged:");
        for ((flag, surrounding), reason) in idle {
            let place = if surrounding.is_empty() {
                String::new()
            } else {
                format!(" ({surrounding})")
            };
            let _ = writeln!(text, "- {}{place}: {reason}", flag_line(flag, full));
        }
    }
    let _ = writeln!(text, "\nruns:");
    for ((direction, flag), runs) in arms {
        let ids: Vec<&str> = runs.iter().map(|run| run.run_id.as_str()).collect();
        let name = format!("{direction} {flag}");
        let _ = writeln!(text, "- {}: {}", name.trim_end(), ids.join(", "));
    }
    text
}

/// Complete starts without and with the flag; failed ones are named.
fn starts(effect: &Effect<'_>) -> String {
    let (without, with) = (n_complete(effect.without), n_complete(effect.with));
    let n_failed = effect.without.len() + effect.with.len() - without - with;
    let failed = if n_failed > 0 {
        format!(", {n_failed} failed")
    } else {
        String::new()
    };
    format!("{without}/{with}{failed}")
}

fn n_complete(arm: &Arm<'_>) -> usize {
    arm.iter()
        .filter(|run| run.outcome == Outcome::Complete)
        .count()
}

fn derived(run: &RunFolder) -> Option<&Derived> {
    let derived = run.record.as_ref()?.manifest.derived.as_ref()?;
    (derived.by == "ablation").then_some(derived)
}

fn campaign_of(run: &RunFolder) -> &str {
    run.record
        .as_ref()
        .map_or("", |record| record.manifest.campaign.as_str())
}

/// Most users; without users the highest rate; else the longest outputs.
fn heaviest_case(cases: &[CaseSamples]) -> Option<String> {
    let load = |c: &&CaseSamples| {
        let rank = match c.phase.as_str() {
            "users" => 2,
            "rate" => 1,
            _ => 0,
        };
        let rate_per_1000_s = c.rate_per_s.map_or(0, |rate| (rate * 1e3) as u64);
        (rank, c.n_users, rate_per_1000_s, c.max_tokens)
    };
    cases
        .iter()
        .filter(|c| c.n_requests > 0)
        .max_by_key(load)
        .map(|c| c.case.clone())
}

/// `--flag value` as the full configuration has it, or the bare name where it has none.
fn flag_line(flag: &str, full: &Arm<'_>) -> String {
    let line = full.first().and_then(|run| line_of(flag, run));
    line.map_or_else(|| format!("no --{flag}"), |line| format!("`{line}`"))
}

fn line_of(flag: &str, run: &RunFolder) -> Option<String> {
    let record = run.record.as_ref()?;
    let names = |line: &&String| line.split(' ').next() == Some(&format!("--{flag}"));
    flags_one_a_line(&record.config.flags)
        .iter()
        .find(names)
        .cloned()
}

fn why_inactive<'a>(flag: &str, record: &'a Record) -> Option<&'a str> {
    let named = |(name, _): &&(String, String)| name.trim_start_matches('-') == flag;
    let found = record.server.inactive_flags.iter().find(named);
    found.map(|(_, reason)| reason.as_str())
}

/// Why two arms that differ in `flag` serve alike: at each end it is inactive or not set.
fn same_server(flag: &str, a: &Arm<'_>, b: &Arm<'_>) -> Option<String> {
    let idle = |arm: &Arm<'_>| {
        let run = arm.first()?;
        match line_of(flag, run) {
            None => Some(None),
            Some(_) => Some(Some(why_inactive(flag, run.record.as_ref()?)?.to_owned())),
        }
    };
    let (a, b) = (idle(a)?, idle(b)?);
    a.or(b)
}

/// Flags in which the references differ and which do nothing in either.
fn inactive_at_both_ends<'a>(
    full: &Arm<'_>,
    baseline: &Arm<'_>,
) -> BTreeMap<(String, &'a str), String> {
    let flags = [full, baseline]
        .into_iter()
        .filter_map(|arm| arm.first()?.record.as_ref())
        .flat_map(|record| record.config.flags.iter())
        .filter_map(|line| Some(line.split(' ').next()?.trim_start_matches('-').to_owned()));
    let differs = |flag: &String| {
        let line = |arm: &Arm<'_>| arm.first().and_then(|run| line_of(flag, run));
        line(full) != line(baseline)
    };
    flags
        .filter(differs)
        .filter_map(|flag| {
            let reason = same_server(&flag, full, baseline)?;
            Some(((flag, ""), reason))
        })
        .collect()
}
