//! What the templates see. Every figure and every judging word of a report is made here.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::load::Records;
use crate::load::run_folder::Outcome;
use crate::render::compare::{Metric, VerdictRow};
use crate::render::seed_figures::{self, SeedRow};
use crate::render::tables::{self, CaseRow};
use crate::select::{self, Arm, Group, Run};
use crate::stats::verdict::VerdictConfig;

#[derive(Debug, Serialize)]
pub struct ReportContext {
    pub groups: Vec<GroupContext>,
    /// Figures of other documents by source name.
    pub seeds: BTreeMap<String, Vec<SeedRow>>,
    /// Runs whose record could not be read: nothing of them is used.
    pub unreadable: Vec<FailedRun>,
    pub margin_percent: f64,
    pub confidence_percent: f64,
}

#[derive(Debug, Serialize)]
pub struct GroupContext {
    /// The GPU's name, or the processor's.
    pub device: String,
    pub host: String,
    pub cpu: String,
    pub n_cores: u32,
    pub memory_bytes: u64,
    pub os: String,
    pub gpu: Option<GpuContext>,
    pub model: String,
    pub model_format: Option<String>,
    /// Requested model and why another was used, for every fallback.
    pub fallbacks: Vec<(String, String)>,
    pub executors: Vec<String>,
    pub commits: Vec<String>,
    pub first_started_utc: String,
    pub last_started_utc: String,
    pub quick: bool,
    pub baseline: Option<String>,
    /// The configuration that the final report is about.
    pub focus: Option<String>,
    pub arms: Vec<ArmContext>,
    pub peers: Vec<ArmContext>,
    pub latency: Vec<CaseRow>,
    pub ladder: Vec<CaseRow>,
    pub users: Vec<CaseRow>,
    pub rate: Vec<CaseRow>,
    pub peer_rows: Vec<CaseRow>,
    pub comparisons: Vec<ComparisonContext>,
    pub findings: Findings,
    pub failed: Vec<FailedRun>,
    /// What makes configurations less comparable than they look.
    pub cautions: Vec<String>,
    pub n_superseded: usize,
}

#[derive(Debug, Serialize)]
pub struct GpuContext {
    pub name: String,
    pub driver: Option<String>,
    pub memory_bytes: Option<u64>,
}

/// One configuration: what it is, what it used, how it held up.
#[derive(Debug, Serialize)]
pub struct ArmContext {
    pub experiment: String,
    pub campaign: String,
    pub base_url: Option<String>,
    pub flags: Vec<String>,
    /// Compared with the baseline's flags.
    pub added_flags: Vec<String>,
    pub removed_flags: Vec<String>,
    pub inactive_flags: Vec<(String, String)>,
    pub kernels: Vec<(String, String)>,
    pub n_runs: usize,
    pub n_failed_runs: usize,
    pub n_requests: u32,
    pub n_failed_requests: u32,
    pub n_warmup: u32,
    /// `안정`, `불안정`, `실패`.
    pub stability: &'static str,
    pub peak_rss_bytes: Option<u64>,
    pub peak_gpu_bytes: Option<u64>,
    pub kv_pages: Option<(u64, u64)>,
    pub run_ids: Vec<String>,
    /// The ids' last parts where those are unambiguous.
    pub short_ids: Vec<String>,
}

/// One configuration against the baseline, in the latency case.
#[derive(Debug, Serialize)]
pub struct ComparisonContext {
    pub before: String,
    pub after: String,
    pub case: String,
    pub verdicts: Vec<VerdictRow>,
    pub spread_before_ms: f64,
    pub spread_after_ms: f64,
}

/// Configurations by what their verdicts say together.
#[derive(Debug, Default, Serialize)]
pub struct Findings {
    pub faster: Vec<Finding>,
    pub slower: Vec<Finding>,
    pub mixed: Vec<Finding>,
    pub same: Vec<Finding>,
    pub undecided: Vec<Finding>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub experiment: String,
    pub statements: Vec<VerdictRow>,
}

#[derive(Debug, Serialize)]
pub struct FailedRun {
    pub run_id: String,
    pub experiment: String,
    /// `실패` or `중단`.
    pub state: &'static str,
    pub reason: String,
}

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
    let runs: Vec<Run<'_>> = group
        .all_runs()
        .chain(group.peers.iter().flat_map(|a| a.runs.iter().copied()))
        .collect();
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
    let peer_rows = ["latency", "ladder", "users", "rate"]
        .into_iter()
        .flat_map(|phase| tables::rows(records, &group.peers, None, phase, &[], config))
        .collect();
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
        peer_rows,
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

fn flags_of(arm: &Arm<'_>) -> Vec<String> {
    arm.representative()
        .map(|run| run.record.config.flags.clone())
        .unwrap_or_default()
}

fn arm_context(
    records: &Records,
    group: &Group<'_>,
    arm: &Arm<'_>,
    baseline: Option<&Vec<String>>,
) -> ArmContext {
    let flags = flags_of(arm);
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = flags.iter().map(|f| name(f)).collect();
    let (added, removed) = match baseline {
        Some(base) => (
            flags
                .iter()
                .filter(|f| !base.contains(f))
                .cloned()
                .collect(),
            base.iter()
                .filter(|f| !names.contains(&name(f)))
                .cloned()
                .collect(),
        ),
        None => (flags.clone(), Vec::new()),
    };
    let of_arm = |run_id: &String| arm.runs.iter().any(|run| run.folder.run_id == *run_id);
    let cases: Vec<_> = records.cases.iter().filter(|c| of_arm(&c.run_id)).collect();
    let peaks: Vec<_> = records
        .peaks
        .iter()
        .filter(|(id, _)| of_arm(id))
        .map(|(_, peak)| peak)
        .collect();
    let n_failed_requests = cases.iter().map(|c| c.n_failed).sum();
    let server = arm
        .representative()
        .map(|run| run.record.server.clone())
        .unwrap_or_default();
    let run_ids: Vec<String> = arm
        .runs
        .iter()
        .map(|run| run.folder.run_id.clone())
        .collect();
    ArmContext {
        experiment: arm.experiment.clone(),
        campaign: arm.campaign.clone(),
        base_url: arm
            .representative()
            .and_then(|run| run.record.manifest.base_url.clone()),
        added_flags: added,
        removed_flags: removed,
        flags,
        inactive_flags: server.inactive_flags,
        kernels: server.kernels,
        n_runs: arm.runs.len(),
        n_failed_runs: arm.failed.len(),
        n_requests: cases.iter().map(|c| c.n_requests).sum(),
        n_failed_requests,
        n_warmup: cases.iter().map(|c| c.n_warmup).sum(),
        stability: match (
            arm.runs.is_empty(),
            arm.failed.is_empty() && n_failed_requests == 0,
        ) {
            (true, _) => "실패",
            (false, true) => "안정",
            (false, false) => "불안정",
        },
        peak_rss_bytes: peaks.iter().filter_map(|p| p.rss_bytes).max(),
        peak_gpu_bytes: peaks.iter().filter_map(|p| p.gpu_memory_bytes).max(),
        kv_pages: peaks
            .iter()
            .filter_map(|p| p.kv_pages_used.zip(p.kv_pages_total))
            .max(),
        short_ids: short_ids(group, &run_ids),
        run_ids,
    }
}

/// The hash at the end of each id, if no two runs of the group share one; else the ids themselves.
fn short_ids(group: &Group<'_>, run_ids: &[String]) -> Vec<String> {
    let tail = |id: &str| id.rsplit('_').next().unwrap_or(id).to_owned();
    let all: Vec<String> = group
        .all_runs()
        .map(|run| tail(&run.folder.run_id))
        .collect();
    let unique: BTreeSet<&String> = all.iter().collect();
    if unique.len() == all.len() {
        run_ids.iter().map(|id| tail(id)).collect()
    } else {
        run_ids.to_vec()
    }
}

fn commit_of(run: &Run<'_>) -> String {
    let git = &run.record.manifest.git;
    let commit = git
        .commit
        .as_deref()
        .map_or("커밋 기록 없음", |c| c.get(..10).unwrap_or(c));
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
