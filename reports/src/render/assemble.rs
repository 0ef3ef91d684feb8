//! Makes the context of a report from records: groups, comparisons, findings, cautions.

use std::collections::BTreeSet;

use crate::load::Records;
use crate::load::run_folder::Outcome;
use crate::render::compare::Metric;
use crate::render::configuration::{arm_context, flags_of};
use crate::render::context::{
    ComparisonContext, FailedRun, Finding, Findings, GpuContext, GroupContext, PeerComparison,
    ReportContext,
};
use crate::render::seed_figures;
use crate::render::tables::{self, CaseRow};
use crate::select::{self, Arm, Group, Run};
use crate::stats::verdict::VerdictConfig;

/// Everything that the reports show of these records.
pub fn build(records: &Records, config: VerdictConfig) -> ReportContext {
    let groups = select::groups(&records.runs);
    let sources: BTreeSet<&str> = records.imported.iter().map(|f| f.source.as_str()).collect();
    ReportContext {
        groups: groups
            .iter()
            .map(|group| group_context(records, group, config))
            .collect(),
        seeds: sources
            .into_iter()
            .map(|s| (s.to_owned(), seed_figures::rows_of(&records.imported, s)))
            .collect(),
        unreadable: records
            .runs
            .iter()
            .filter(|run| run.record.is_none())
            .map(|run| FailedRun {
                run_id: run.run_id.clone(),
                experiment: "–".to_owned(),
                state: state_word(&run.outcome),
                reason: run
                    .record_problem
                    .clone()
                    .map_or_else(|| reason_of(&run.outcome), |p| one_line(&p)),
            })
            .collect(),
        margin_percent: config.margin_percent,
        confidence_percent: 100.0 * (1.0 - config.alpha),
    }
}

fn group_context(records: &Records, group: &Group<'_>, config: VerdictConfig) -> GroupContext {
    let find = |part: &str| group.arms.iter().find(|arm| arm.experiment.contains(part));
    let baseline = find("baseline");
    let focus = find("balanced-v2");
    let rows = |phase: &str, metrics: &[Metric]| {
        tables::rows(records, &group.arms, baseline, phase, metrics, config)
    };
    let latency = rows(
        "latency",
        &[Metric::Latency, Metric::OutputThroughput, Metric::Ttft],
    );
    let comparisons = comparisons_of(&latency, baseline);
    let flags_of_baseline = baseline.map(flags_of).unwrap_or_default();
    let arm_context = |arm: &Arm<'_>| {
        arm_context(
            records,
            group,
            arm,
            baseline.is_some().then_some(&flags_of_baseline),
        )
    };
    let runs: Vec<Run<'_>> = group.all_runs().collect();
    let environment = runs.first().map(|run| &run.record.environment);
    let gpu = environment.and_then(|e| e.gpu.as_ref());
    let unique = |values: Vec<String>| {
        values
            .into_iter()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
    };
    let starts = unique(
        runs.iter()
            .map(|r| r.record.manifest.started_utc.clone())
            .collect(),
    );
    GroupContext {
        device: gpu
            .map(|g| g.name.clone())
            .or_else(|| environment.map(|e| e.cpu.model.clone()))
            .unwrap_or_default(),
        host: environment.map(|e| e.host.clone()).unwrap_or_default(),
        cpu: environment.map(|e| e.cpu.model.clone()).unwrap_or_default(),
        n_cores: environment.map_or(0, |e| e.cpu.n_cores),
        memory_bytes: environment.map_or(0, |e| e.memory_bytes),
        os: environment.map(|e| e.os.clone()).unwrap_or_default(),
        gpu: gpu.map(|g| GpuContext {
            name: g.name.clone(),
            driver: g.driver.clone(),
            memory_bytes: g.memory_bytes,
        }),
        model: runs
            .first()
            .map(|r| r.record.manifest.model.used.clone())
            .unwrap_or_default(),
        model_format: runs
            .first()
            .and_then(|r| r.record.manifest.model.format.clone()),
        fallbacks: runs
            .iter()
            .filter_map(|r| {
                let model = &r.record.manifest.model;
                model
                    .fallback_reason
                    .as_ref()
                    .map(|why| (model.requested.clone(), one_line(why)))
            })
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        executors: unique(
            runs.iter()
                .filter_map(|r| r.record.server.executor.clone())
                .collect(),
        ),
        commits: unique(runs.iter().map(commit_of).collect()),
        first_started_utc: starts.first().cloned().unwrap_or_default(),
        last_started_utc: starts.last().cloned().unwrap_or_default(),
        quick: group.quick,
        baseline: baseline.map(|arm| arm.experiment.clone()),
        focus: focus.map(|arm| arm.experiment.clone()),
        arms: group.arms.iter().map(arm_context).collect(),
        peers: group.peers.iter().map(arm_context).collect(),
        findings: findings_of(&comparisons),
        latency,
        ladder: rows("ladder", &[Metric::Latency]),
        users: rows("users", &[Metric::RequestThroughput, Metric::Latency]),
        rate: rows("rate", &[Metric::Latency, Metric::Ttft]),
        peer_comparisons: peer_comparisons_of(records, group, focus, config),
        comparisons,
        failed: failed_of(group),
        cautions: cautions_of(group),
        n_superseded: group.n_superseded,
    }
}

fn comparisons_of(latency: &[CaseRow], baseline: Option<&Arm<'_>>) -> Vec<ComparisonContext> {
    let Some(baseline) = baseline else {
        return Vec::new();
    };
    let before_of = |case: &str| {
        latency
            .iter()
            .find(|r| r.experiment == baseline.experiment && r.case == case)
    };
    latency
        .iter()
        .filter(|row| !row.verdicts.is_empty())
        .filter_map(|row| {
            Some(ComparisonContext {
                before: baseline.experiment.clone(),
                after: row.experiment.clone(),
                case: row.case.clone(),
                verdicts: row.verdicts.clone(),
                spread_before_ms: before_of(&row.case)?.stats.as_ref()?.spread_ms,
                spread_after_ms: row.stats.as_ref()?.spread_ms,
            })
        })
        .collect()
}

fn peer_comparisons_of(
    records: &Records,
    group: &Group<'_>,
    focus: Option<&Arm<'_>>,
    config: VerdictConfig,
) -> Vec<PeerComparison> {
    let compared = |peer: &Arm<'_>| {
        let arms: Vec<Arm<'_>> = std::iter::once(peer).chain(focus).cloned().collect();
        let rows = |phase: &str, metrics: &[Metric]| {
            tables::rows(records, &arms, Some(peer), phase, metrics, config)
        };
        let manifest = peer.representative().map(|run| &run.record.manifest);
        PeerComparison {
            peer: peer.experiment.clone(),
            base_url: manifest
                .and_then(|m| m.base_url.clone())
                .unwrap_or_default(),
            model: manifest.map(|m| m.model.used.clone()).unwrap_or_default(),
            ours: focus.map(|arm| arm.experiment.clone()),
            latency: rows(
                "latency",
                &[Metric::Latency, Metric::OutputThroughput, Metric::Ttft],
            ),
            ladder: rows("ladder", &[Metric::Latency]),
            users: rows("users", &[Metric::RequestThroughput, Metric::Latency]),
        }
    };
    group.peers.iter().map(compared).collect()
}

fn findings_of(comparisons: &[ComparisonContext]) -> Findings {
    let mut findings = Findings::default();
    for comparison in comparisons {
        let has = |verdict: &str| comparison.verdicts.iter().any(|v| v.verdict == verdict);
        let list = match (has("faster"), has("slower")) {
            (true, true) => &mut findings.mixed,
            (true, false) => &mut findings.faster,
            (false, true) => &mut findings.slower,
            (false, false) if has("undecided") => &mut findings.undecided,
            (false, false) => &mut findings.same,
        };
        list.push(Finding {
            experiment: comparison.after.clone(),
            statements: comparison.verdicts.clone(),
        });
    }
    findings
}

fn commit_of(run: &Run<'_>) -> String {
    let git = &run.record.manifest.git;
    let commit = git
        .commit
        .as_deref()
        .map_or("기록 없음", |c| c.get(..10).unwrap_or(c));
    if git.dirty == Some(true) {
        format!("{commit} (커밋되지 않은 변경 있음)")
    } else {
        commit.to_owned()
    }
}

fn failed_of(group: &Group<'_>) -> Vec<FailedRun> {
    let arms = group.arms.iter().chain(&group.peers);
    arms.flat_map(|arm| &arm.failed)
        .map(|run| FailedRun {
            run_id: run.folder.run_id.clone(),
            experiment: run.record.manifest.experiment.clone(),
            state: state_word(&run.folder.outcome),
            reason: reason_of(&run.folder.outcome),
        })
        .collect()
}

fn state_word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Complete => "완료",
        Outcome::Failed { .. } => "실패",
        Outcome::Killed => "중단",
    }
}

fn reason_of(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Failed { reason } => one_line(reason),
        Outcome::Killed => "상태 기록 없이 끝남".to_owned(),
        Outcome::Complete => String::new(),
    }
}

/// Fits a table cell.
fn one_line(text: &str) -> String {
    text.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace('|', "/")
}

fn cautions_of(group: &Group<'_>) -> Vec<String> {
    let mut cautions = Vec::new();
    let runs: Vec<Run<'_>> = group
        .arms
        .iter()
        .flat_map(|arm| arm.runs.iter().copied())
        .collect();
    let differs = |value: &dyn Fn(&Run<'_>) -> Option<String>| {
        runs.iter().map(value).collect::<BTreeSet<_>>().len() > 1
    };
    let hash = |name: &'static str| {
        move |run: &Run<'_>| run.record.manifest.sha256.get(name).cloned().flatten()
    };
    if differs(&|run| Some(run.record.manifest.campaign.clone())) {
        cautions.push(
            "구성마다 다른 캠페인에서 측정됨: 시간에 따른 장비 상태의 차이가 섞일 수 있음"
                .to_owned(),
        );
    }
    if differs(&hash("engine_binary")) {
        cautions.push("서로 다른 엔진 바이너리로 측정됨: 구성만의 차이가 아닐 수 있음".to_owned());
    }
    if differs(&hash("prompts")) {
        cautions.push("서로 다른 프롬프트 묶음으로 측정됨".to_owned());
    }
    for arm in group
        .arms
        .iter()
        .filter(|arm| !arm.campaign_complete && !arm.runs.is_empty())
    {
        cautions.push(format!(
            "`{}`: 캠페인이 끝까지 완료되지 않음",
            arm.experiment
        ));
    }
    cautions
}
