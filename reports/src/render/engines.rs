//! Engines as arms: one table of every engine and preset of a group, with ratios to ours. The verdicts
//! are those of the comparisons with each of them, so that a page never judges a pair twice.

use std::collections::{BTreeMap, BTreeSet};

use records::manifest::{AnswerOutcome, Answers, EngineUsed, Manifest};

use crate::lang::Lang;
use crate::load::run_folder::Outcome;
use crate::render::compare::Metric;
use crate::render::context::{
    EngineAnswer, EngineConclusion, EngineContext, EngineFigure, EngineRow, EngineTable,
    PeerComparison,
};
use crate::render::reasons::translated;
use crate::render::recommend::Next;
use crate::render::tables::CaseRow;
use crate::select::{Arm, Group, Run};
use crate::stats::describe::median;

/// Of a digest, enough to tell installations apart.
const DIGITS: usize = 12;

/// `compared`: every peer of the group.
pub fn table_of(group: &Group<'_>, compared: &[PeerComparison], lang: Lang) -> Option<EngineTable> {
    let started: Vec<&Arm<'_>> = group.peers.iter().filter(|arm| is_started(arm)).collect();
    if started.is_empty() {
        return None;
    }
    let mut ours: Vec<&Arm<'_>> = Vec::new();
    let mut by_case: BTreeMap<Order, Vec<EngineRow>> = BTreeMap::new();
    for comparison in compared {
        let Some(arm) = started.iter().find(|arm| arm.experiment == comparison.peer) else {
            continue;
        };
        let of_name = |arm: &&Arm<'_>| comparison.ours.as_ref() == Some(&arm.experiment);
        if let Some(own) = group.arms.iter().find(of_name)
            && !ours.iter().any(|known| known.experiment == own.experiment)
        {
            ours.push(own);
        }
        let engine = shown(arm);
        for row in comparison.latency.iter().chain(&comparison.users) {
            let is_ours = comparison.ours.as_ref() == Some(&row.experiment);
            let rows = by_case.entry(Order::of(row)).or_default();
            if is_ours {
                if !rows
                    .iter()
                    .any(|known| known.is_ours && known.engine == row.experiment)
                {
                    let own = engine_row(row, row.experiment.clone(), None);
                    rows.extend(own.map(|own| EngineRow { is_ours, ..own }));
                }
                continue;
            }
            let same_case = |other: &&CaseRow| {
                other.case == row.case && comparison.ours.as_ref() == Some(&other.experiment)
            };
            let mut both = comparison.latency.iter().chain(&comparison.users);
            rows.extend(engine_row(row, engine.clone(), both.find(same_case)));
        }
    }
    let mut answers: Vec<EngineAnswer> = started
        .iter()
        .filter_map(|arm| answer_of(arm, compared, lang))
        .collect();
    // What is decided comes first.
    answers.sort_by_key(|answer| answer.figures.iter().any(|figure| figure.n_more > 0));
    let next = next_of(group, &ours, &started, &answers, lang);
    let arms = ours.into_iter().chain(started);
    Some(EngineTable {
        conclusion: conclusion_of(&answers),
        answers,
        next,
        engines: arms.filter_map(|arm| context_of(arm, lang)).collect(),
        rows: by_case
            .into_values()
            .flat_map(|mut rows| {
                rows.sort_by_key(|row| !row.is_ours);
                rows
            })
            .collect(),
    })
}

/// Cases in the order in which they load a server.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order(Option<u32>, Option<u32>, String);

impl Order {
    fn of(row: &CaseRow) -> Self {
        Self(row.n_users, row.max_tokens, row.case.clone())
    }
}

fn is_started(arm: &Arm<'_>) -> bool {
    let manifest = arm.representative().map(|run| &run.record.manifest);
    manifest.is_some_and(|manifest| manifest.other_engine().is_some())
}

fn used<'a>(arm: &'a Arm<'_>) -> Option<&'a EngineUsed> {
    arm.representative()?.record.manifest.engine.as_ref()
}

/// `vllm@best`; of ours the experiment's name.
fn shown(arm: &Arm<'_>) -> String {
    let manifest = arm.representative().map(|run| &run.record.manifest);
    let other = manifest.and_then(Manifest::other_engine);
    other.unwrap_or_else(|| arm.experiment.clone())
}

/// `ours`: our row of the same case, whose verdicts are against this engine.
fn engine_row(row: &CaseRow, engine: String, ours: Option<&CaseRow>) -> Option<EngineRow> {
    let stats = row.stats.as_ref()?;
    let our_stats = ours.and_then(|ours| ours.stats.as_ref());
    let times_faster = |theirs: Option<f64>, own: Option<f64>| {
        let (theirs, own) = (theirs?, own?);
        (own > 0.0).then(|| theirs / own)
    };
    let ratios = match our_stats {
        None => [None; 3],
        Some(own) => [
            times_faster(Some(own.output_tok_per_s), Some(stats.output_tok_per_s)),
            times_faster(stats.ttft_p50_ms, own.ttft_p50_ms),
            times_faster(stats.tpot_p50_ms, own.tpot_p50_ms),
        ],
    };
    Some(EngineRow {
        case: row.case.clone(),
        load: row.load.clone(),
        n_users: row.n_users,
        engine,
        is_ours: false,
        output_tok_per_s: stats.output_tok_per_s,
        ttft_p50_ms: stats.ttft_p50_ms,
        tpot_p50_ms: stats.tpot_p50_ms,
        joules_per_token: stats.energy.map(|energy| energy.joules_per_token),
        ratios,
        n_runs: row.n_runs,
        verdicts: ours.map(|ours| ours.verdicts.clone()).unwrap_or_default(),
    })
}

/// Throughput and first token, with the fewest users of a closed loop and with the most.
fn answer_of(arm: &Arm<'_>, compared: &[PeerComparison], lang: Lang) -> Option<EngineAnswer> {
    let comparison = compared.iter().find(|c| c.peer == arm.experiment)?;
    let ours = comparison.ours.clone()?;
    let both = |row: &'_ CaseRow| {
        let is_ours = |other: &&CaseRow| other.case == row.case && other.experiment == ours;
        let own = comparison.users.iter().find(is_ours);
        engine_row(row, shown(arm), own).filter(|found| found.ratios[0].is_some())
    };
    let theirs = comparison.users.iter().filter(|row| row.experiment != ours);
    let mut cases: Vec<EngineRow> = theirs.filter_map(both).collect();
    cases.sort_by_key(|row| row.n_users);
    cases.dedup_by_key(|row| row.n_users);
    let ends = match cases.as_slice() {
        [] => return None,
        [only] => vec![only],
        [least, .., most] => vec![least, most],
    };
    let figure = |row: &EngineRow, metric: Metric, ratio: Option<f64>| {
        let verdict = row.verdicts.iter().find(|v| v.key == metric.key());
        Some(EngineFigure {
            metric: metric.short(lang),
            n_users: row.n_users?,
            ratio: ratio?,
            verdict: verdict.map_or("not judged", |v| v.verdict),
            n_more: verdict.map_or(0, |v| v.n_more),
        })
    };
    let of_metric = |metric: Metric, at: usize| {
        let rows = ends.iter();
        rows.filter_map(move |row| figure(row, metric, row.ratios[at]))
    };
    let figures = of_metric(Metric::OutputThroughput, 0).chain(of_metric(Metric::Ttft, 1));
    let manifest = &arm.representative()?.record.manifest;
    Some(EngineAnswer {
        engine: shown(arm),
        version: used(arm).and_then(|engine| engine.version.clone()),
        ours,
        arm: arm.experiment.clone(),
        not_comparable: manifest.not_comparable().map(str::to_owned),
        figures: figures.collect(),
    })
}

/// Of our configuration that was compared with most engines, among those of which every figure is
/// decided.
fn conclusion_of(answers: &[EngineAnswer]) -> Option<EngineConclusion> {
    let mut by_ours: BTreeMap<&str, Vec<&EngineAnswer>> = BTreeMap::new();
    for answer in answers.iter().filter(|a| a.not_comparable.is_none()) {
        by_ours.entry(&answer.ours).or_default().push(answer);
    }
    by_ours.retain(|_, answers| {
        let mut figures = answers.iter().flat_map(|answer| &answer.figures);
        figures.all(|figure| matches!(figure.verdict, "faster" | "slower" | "same" | "not seen"))
    });
    let (ours, answers) = by_ours.into_iter().max_by_key(|(_, a)| a.len())?;
    let figures = || answers.iter().flat_map(|answer| &answer.figures);
    let n_of = |verdict: &str| figures().filter(|f| f.verdict == verdict).count();
    let engines: BTreeSet<&str> = answers.iter().map(|a| a.engine.as_str()).collect();
    let engines: Vec<&str> = engines.into_iter().collect();
    (figures().count() > 0).then(|| EngineConclusion {
        ours: ours.to_owned(),
        engines: engines.join(", "),
        n_figures: figures().count(),
        n_faster: n_of("faster"),
        n_slower: n_of("slower"),
    })
}

/// All engines of the experiments in which a figure is open, in one command.
fn next_of(
    group: &Group<'_>,
    ours: &[&Arm<'_>],
    started: &[&Arm<'_>],
    answers: &[EngineAnswer],
    lang: Lang,
) -> Option<Next> {
    let open = |answer: &&EngineAnswer| answer.figures.iter().any(|figure| figure.n_more > 0);
    let open: Vec<&EngineAnswer> = answers.iter().filter(open).collect();
    let figures = open.iter().flat_map(|answer| &answer.figures);
    let n_more = figures.map(|figure| figure.n_more).max()?;
    let experiments: BTreeSet<&str> = open.iter().map(|answer| answer.ours.as_str()).collect();
    let engines: BTreeSet<&str> = open.iter().map(|answer| answer.engine.as_str()).collect();
    let list = |names: BTreeSet<&str>, separator: &str| {
        let names: Vec<&str> = names.into_iter().collect();
        names.join(separator)
    };
    let is_needed = |arm: &&&Arm<'_>| {
        experiments.contains(arm.experiment.as_str())
            || open.iter().any(|answer| answer.arm == arm.experiment)
    };
    let round_s = ours
        .iter()
        .chain(started)
        .filter(is_needed)
        .map(|arm| {
            let durations: Vec<f64> = arm
                .runs
                .iter()
                .filter_map(|run| run.folder.duration_s())
                .collect();
            median(&durations)
        })
        .sum::<Option<f64>>();
    let model = &ours.first()?.representative()?.record.manifest.model.used;
    let flags = match group.extra_flags.join(" ") {
        flags if flags.is_empty() => flags,
        flags => format!(" -- {flags}"),
    };
    Some(Next {
        words: lang.pick(
            format!("다른 엔진과의 판정: 기동 {n_more}회 더"),
            format!("the verdicts between engines: {n_more} more starts"),
        ),
        command: format!(
            "cargo xtask exp {} --engine ours,{} --replicates {n_more} --model {model}{flags}",
            list(experiments, " "),
            list(engines, ",")
        ),
        duration_s: round_s.map(|s| s * n_more as f64),
    })
}

fn context_of(arm: &Arm<'_>, lang: Lang) -> Option<EngineContext> {
    let engine = used(arm)?;
    let all = || arm.runs.iter().chain(&arm.failed);
    let answers = || all().filter_map(answers_of);
    let least = answers().filter_map(|answers| answers.argmax_agreement);
    let most = answers().filter_map(|answers| answers.mean_abs_delta);
    let is_wrong = |run: &&Run<'_>| matches!(run.folder.outcome, Outcome::Wrong { .. });
    let manifest = &arm.representative()?.record.manifest;
    Some(EngineContext {
        arm: arm.experiment.clone(),
        engine: shown(arm),
        version: engine.version.clone(),
        digest: engine
            .sha256
            .as_ref()
            .map(|digest| digest.chars().take(DIGITS).collect()),
        n_starts: arm.runs.len(),
        n_wrong: arm.failed.iter().filter(is_wrong).count(),
        agreement_percent: least.min_by(f64::total_cmp).map(|share| 100.0 * share),
        mean_abs_delta: most.max_by(f64::total_cmp),
        n_positions: answers()
            .map(|answers| answers.n_positions)
            .max()
            .unwrap_or(0),
        is_reference: answers().any(|answers| answers.outcome == AnswerOutcome::Reference),
        not_comparable: manifest.not_comparable().map(str::to_owned),
        flags_left_out: engine
            .flags_left_out
            .iter()
            .map(|(flag, why)| (format!("--{flag}"), translated(why, lang)))
            .collect(),
        command: manifest.command.join(" "),
    })
}

fn answers_of<'a>(run: &'a Run<'_>) -> Option<&'a Answers> {
    run.record.manifest.engine.as_ref()?.answers.as_ref()
}
