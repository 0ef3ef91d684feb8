//! Which flag of a configuration does what: the table of a campaign of `ablate`.
//!
//! Every row is one flag in one surrounding. `in full`: the full configuration against itself with
//! the flag as the baseline has it; `alone`: the baseline with this flag against the baseline. Both
//! say what the flag brings, so plus means that having it is better. Flags that help only together
//! show in the first row and not in the second. Figures are those of the case with most load.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::bail;
use records::manifest::{Derived, Direction};
use records::store::Store;

use super::{Figure, Runs, phrase, remark, without_verdict};
use crate::load::requests::CaseSamples;
use crate::load::run_folder::{Outcome, Record, RunFolder, flags_one_a_line};
use crate::render::sources;
use crate::stats::verdict::{self, Comparison, MetricSamples, VerdictConfig};

/// The runs of one arm.
type Arm<'a> = Vec<&'a RunFolder>;

/// Where a flag stands in the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Surrounding {
    /// The full configuration against the baseline.
    AllFlags,
    InFull,
    Alone,
}

impl Surrounding {
    fn word(self) -> &'static str {
        match self {
            Self::AllFlags => "",
            Self::InFull => "in full",
            Self::Alone => "alone",
        }
    }
}

/// What one flag brings in one surrounding.
#[derive(Debug, Clone)]
pub struct FlagVerdicts {
    /// As it is typed; without it where the full configuration leaves it out.
    pub flag: String,
    pub surrounding: Surrounding,
    /// One for each of [`Figure::ALL`].
    pub answers: Vec<Comparison>,
    /// Complete starts without and with the flag; failed ones are named.
    pub starts: String,
}

/// A flag that does nothing on the machine.
#[derive(Debug, Clone)]
pub struct IdleFlag {
    pub flag: String,
    /// None: in any.
    pub surrounding: Option<Surrounding>,
    pub reason: String,
}

/// What a campaign of `ablate` found.
#[derive(Debug, Clone)]
pub struct Ablation {
    pub campaign: String,
    pub parent: String,
    /// None: the engine's defaults.
    pub baseline: Option<String>,
    /// The case that the figures are of.
    pub case: String,
    /// All flags together first, then by flag.
    pub rows: Vec<FlagVerdicts>,
    pub idle: Vec<IdleFlag>,
    /// No one can say what ran; there are figures and no verdict.
    pub source_unknown: bool,
    /// Complete starts of the full configuration and of the baseline.
    pub n_starts: (usize, usize),
    /// Name and run ids of each arm.
    pub arms: Vec<(String, Vec<String>)>,
}

/// Two arms that differ in one flag, or in all.
struct Effect<'a> {
    flag: String,
    surrounding: Surrounding,
    without: &'a Arm<'a>,
    with: &'a Arm<'a>,
}

/// The table of the campaign, as Markdown.
///
/// # Errors
///
/// If the campaign's runs cannot be read, and as [`Ablation::of`].
pub fn table(store: impl Into<Store>, campaign: &str) -> anyhow::Result<String> {
    let runs = Runs::read(&store.into(), |run| is_of(run, campaign))?;
    let found = Ablation::of(&runs, campaign, VerdictConfig::default())?;
    Ok(print(&found) + &runs.broken_lines())
}

/// Whether a run is an arm of this campaign.
pub fn is_of(run: &RunFolder, campaign: &str) -> bool {
    arm_of(run).is_some() && campaign_of(run) == campaign
}

impl Ablation {
    /// `runs`: those of the campaign.
    ///
    /// # Errors
    ///
    /// If the campaign has no start of the full configuration or of its baseline, or no complete
    /// start.
    pub fn of(runs: &Runs, campaign: &str, config: VerdictConfig) -> anyhow::Result<Self> {
        let mut arms: BTreeMap<(String, String), Arm<'_>> = BTreeMap::new();
        for run in &runs.folders {
            if let Some((direction, flag)) = arm_of(run) {
                let key = (
                    direction.word().to_owned(),
                    flag.unwrap_or_default().to_owned(),
                );
                arms.entry(key).or_default().push(run);
            }
        }
        let reference = |direction: &str| arms.get(&(direction.to_owned(), String::new()));
        let (Some(full), Some(baseline)) = (reference("full"), reference("baseline")) else {
            bail!("campaign {campaign} has no start of a full configuration and of its baseline");
        };
        let Some(case) = heaviest_case(&runs.cases) else {
            bail!("campaign {campaign}: no start is complete");
        };
        let mut effects = vec![Effect {
            flag: "all of them".into(),
            surrounding: Surrounding::AllFlags,
            without: baseline,
            with: full,
        }];
        let mut idle = inactive_at_both_ends(full, baseline);
        for ((direction, flag), arm) in arms.iter().filter(|((_, flag), _)| !flag.is_empty()) {
            let (surrounding, without, with, beside) = match direction.as_str() {
                "off" => (Surrounding::InFull, arm, full, full),
                _ => (Surrounding::Alone, baseline, arm, baseline),
            };
            match same_server(flag, arm, beside) {
                Some(reason) => {
                    idle.insert((flag.clone(), Some(surrounding)), reason);
                }
                None => effects.push(Effect {
                    flag: flag_line(flag, full),
                    surrounding,
                    without,
                    with,
                }),
            }
        }
        effects[1..].sort_by(|a, b| (&a.flag, a.surrounding).cmp(&(&b.flag, b.surrounding)));
        let mut answers = verdict::compare_family(&family(runs, &effects, &case), config);
        let source_unknown = runs.folders.iter().any(sources::is_unknown);
        if source_unknown {
            answers = without_verdict(answers);
        }
        let (parent, other) = full
            .first()
            .and_then(|run| ends_of(run))
            .unwrap_or_default();
        Ok(Self {
            campaign: campaign.to_owned(),
            parent: parent.to_owned(),
            baseline: other.map(str::to_owned),
            case,
            source_unknown,
            rows: effects
                .iter()
                .zip(answers.chunks(Figure::ALL.len()))
                .map(|(effect, answers)| FlagVerdicts {
                    flag: effect.flag.clone(),
                    surrounding: effect.surrounding,
                    answers: answers.to_vec(),
                    starts: starts(effect),
                })
                .collect(),
            idle: idle
                .into_iter()
                .map(|((flag, surrounding), reason)| IdleFlag {
                    flag: flag_line(&flag, full),
                    surrounding,
                    reason,
                })
                .collect(),
            n_starts: (n_complete(full), n_complete(baseline)),
            arms: arms
                .iter()
                .map(|((direction, flag), runs)| {
                    let ids = runs.iter().map(|run| run.run_id.clone()).collect();
                    (format!("{direction} {flag}").trim_end().to_owned(), ids)
                })
                .collect(),
        })
    }

    /// Figures that were judged together.
    pub fn n_figures(&self) -> usize {
        self.rows.len() * Figure::ALL.len()
    }
}

fn family(runs: &Runs, effects: &[Effect<'_>], case: &str) -> Vec<MetricSamples> {
    effects
        .iter()
        .flat_map(|effect| {
            let pair = format!("{} {}", effect.flag, effect.surrounding.word());
            let arms = (effect.without.as_slice(), effect.with.as_slice());
            Figure::ALL.map(|figure| runs.samples(arms, &pair, case, figure))
        })
        .collect()
}

fn print(found: &Ablation) -> String {
    let baseline = found.baseline.as_deref().unwrap_or("the engine's defaults");
    let mut text = format!(
        "{} against {baseline}: campaign {}, case {}\n\n",
        found.parent, found.campaign, found.case
    );
    let titles = Figure::ALL.map(Figure::title).join(" | ");
    // Writing into a String cannot fail.
    let _ = writeln!(text, "| flag | where | {titles} | starts |");
    let _ = writeln!(text, "|---|---|---|---|---|---|");
    for row in &found.rows {
        let cells: Vec<String> = row.answers.iter().map(phrase).collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            marked(&row.flag),
            row.surrounding.word(),
            cells.join(" | "),
            row.starts
        );
    }
    let (n_full, n_baseline) = found.n_starts;
    let _ = writeln!(
        text,
        "\nplus: better with the flag; interval 95 %; {} figures judged together, {n_full} starts of the full configuration, {n_baseline} of the baseline",
        found.n_figures(),
    );
    let answers: Vec<Comparison> = found.rows.iter().flat_map(|r| r.answers.clone()).collect();
    if let Some(remark) = remark(&answers) {
        let _ = writeln!(text, "{remark}");
    }
    if !found.idle.is_empty() {
        let _ = writeln!(text, "\nwithout effect on this machine, not judged:");
        for idle in &found.idle {
            let place = idle
                .surrounding
                .map(|place| format!(" ({})", place.word()))
                .unwrap_or_default();
            let _ = writeln!(text, "- {}{place}: {}", marked(&idle.flag), idle.reason);
        }
    }
    if found.source_unknown {
        let _ = writeln!(
            text,
            "\nnot judged: the sources of what ran are in no commit"
        );
    }
    let _ = writeln!(text, "\nruns:");
    for (name, ids) in &found.arms {
        let _ = writeln!(text, "- {name}: {}", ids.join(", "));
    }
    text
}

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

fn arm_of(run: &RunFolder) -> Option<(Direction, Option<&str>)> {
    match run.record.as_ref()?.manifest.derived.as_ref()? {
        Derived::Ablation {
            direction, flag, ..
        } => Some((*direction, flag.as_deref())),
        Derived::Tuning { .. }
        | Derived::Reproduction { .. }
        | Derived::AA { .. }
        | Derived::Slo { .. } => None,
    }
}

/// The experiment, and the one at the other end.
fn ends_of(run: &RunFolder) -> Option<(&str, Option<&str>)> {
    match run.record.as_ref()?.manifest.derived.as_ref()? {
        Derived::Ablation {
            parent, baseline, ..
        } => Some((parent, baseline.as_deref())),
        Derived::Tuning { .. }
        | Derived::Reproduction { .. }
        | Derived::AA { .. }
        | Derived::Slo { .. } => None,
    }
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
            "rate" | "trace" => 1,
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

/// `--flag value` as the full configuration has it, `no --flag` where it has none.
fn flag_line(flag: &str, full: &Arm<'_>) -> String {
    let line = full.first().and_then(|run| line_of(flag, run));
    line.unwrap_or_else(|| format!("no --{flag}"))
}

/// In Markdown: what can be typed is code.
fn marked(flag: &str) -> String {
    if flag.starts_with("--") {
        format!("`{flag}`")
    } else {
        flag.to_owned()
    }
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
fn inactive_at_both_ends(
    full: &Arm<'_>,
    baseline: &Arm<'_>,
) -> BTreeMap<(String, Option<Surrounding>), String> {
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
            Some(((flag, None), reason))
        })
        .collect()
}
