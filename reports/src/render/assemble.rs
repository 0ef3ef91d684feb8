//! Makes the context of a report from records: groups, comparisons, findings, cautions.

use std::collections::{BTreeMap, BTreeSet};

use records::manifest::Manifest;
use records::sufficiency::{least_measured_s, least_requests};
use records::workload::Phase;

use crate::ReportError;
use crate::audit::audit;
use crate::charts::{Chart, Tables, charts_of, charts_of_cases};
use crate::lang::Lang;
use crate::load::Records;
use crate::load::run_folder::{Outcome, RunFolder};
use crate::render::REPORTS;
use crate::render::ablation::ablation_of;
use crate::render::cautions::cautions_of;
use crate::render::compare::{VerdictRow, judged_in};
use crate::render::configuration::{arm_context, flags_of};
use crate::render::context::{
    ArmContext, CampaignRow, ChartLink, ComparisonContext, FailedRun, Finding, Findings,
    GpuContext, GroupContext, PeerComparison, ReportContext, ReportLink,
};
use crate::render::energy;
use crate::render::engines;
use crate::render::flag_effects::effects_in;
use crate::render::history;
use crate::render::load_curve;
use crate::render::multi_model::{MultiModelContext, groups_apart, servers_of};
use crate::render::recommend;
use crate::render::seed_figures;
use crate::render::side_by_side;
use crate::render::slo;
use crate::render::sources;
use crate::render::states::{failed_of, marked_state, one_line, reason_of, state_word};
use crate::render::tables::{self, CaseRow};
use crate::select::{Arm, Group, Run};
use crate::stats::describe::median;
use crate::stats::verdict::VerdictConfig;

/// Everything that the reports show of these records.
///
/// # Errors
///
/// [`ReportError::Chart`] if a chart cannot be drawn.
pub fn build(
    records: &Records,
    config: VerdictConfig,
    lang: Lang,
) -> Result<ReportContext, ReportError> {
    let (groups, multi_groups) = groups_apart(&records.runs);
    let sources: BTreeSet<&str> = records.imported.iter().map(|f| f.source.as_str()).collect();
    let mut slugs = BTreeMap::new();
    let mut charts = BTreeMap::new();
    let mut contexts = Vec::new();
    for group in &groups {
        let mut context = group_context(records, &groups, group, config, lang);
        let tables = Tables {
            latency: &context.latency,
            ladder: &context.ladder,
            users: &context.users,
            rate: &context.rate,
            history: &context.history,
            effects: &context.flag_effects,
            peers: &context.peer_comparisons,
            baseline: context.baseline.as_deref(),
        };
        let slug = file_part(&context.title, &mut slugs);
        let drawn = charts_of(records, group, tables, lang)?;
        context.charts = linked(drawn, &slug, lang, &mut charts);
        for (i, peer) in context.peer_comparisons.iter_mut().enumerate() {
            let names: Vec<&str> = std::iter::once(peer.peer.as_str())
                .chain(peer.ours.as_deref())
                .collect();
            let drawn = charts_of_cases(&names, &peer.ladder, &peer.users, lang)?;
            let slug = format!("{slug}-peer-{}", i + 1);
            peer.charts = linked(drawn, &slug, lang, &mut charts);
        }
        contexts.push(context);
    }
    let multi_models = multi_groups
        .iter()
        .map(|group| MultiModelContext {
            group: group_context(records, &multi_groups, group, config, lang),
            servers: servers_of(records, group),
        })
        .collect();
    let ablated: BTreeSet<&str> = contexts
        .iter()
        .filter_map(|group| group.ablation.as_ref())
        .flat_map(|ablation| ablation.arms.iter().flat_map(|(_, ids)| ids))
        .map(String::as_str)
        .collect();
    let used: BTreeSet<&str> = groups
        .iter()
        .chain(&multi_groups)
        .flat_map(|group| group.arms.iter().chain(&group.peers))
        .flat_map(|arm| &arm.runs)
        .map(|run| run.folder.run_id.as_str())
        .chain(ablated)
        .collect();
    let campaigns = campaign_rows(records, &used, lang);
    let mut groups = contexts;
    name_apart(&mut groups);
    Ok(ReportContext {
        lang,
        groups,
        multi_models,
        trust: None,
        autoscaling: None,
        audit: audit(&records.imported, lang),
        seeds: sources
            .into_iter()
            .map(|s| {
                (
                    s.to_owned(),
                    seed_figures::rows_of(&records.imported, s, lang),
                )
            })
            .collect(),
        unreadable: records
            .runs
            .iter()
            .filter(|run| run.record.is_none() || matches!(run.outcome, Outcome::Broken { .. }))
            .map(|run| FailedRun {
                run_id: run.run_id.clone(),
                experiment: run.record.as_ref().map_or_else(
                    || "–".to_owned(),
                    |record| record.manifest.experiment.clone(),
                ),
                state: state_word(&run.outcome, lang),
                reason: run
                    .record_problem
                    .clone()
                    .unwrap_or_else(|| reason_of(&run.outcome, lang)),
            })
            .collect(),
        margin_percent: config.margin_percent,
        confidence_percent: 100.0 * (1.0 - config.alpha),
        fewest_requests: [95, 99].map(least_requests),
        least_seconds: [Phase::Latency, Phase::Rate].map(least_measured_s),
        fewest_starts_of_interval: tables::FEWEST_STARTS_OF_INTERVAL,
        charts,
        reports: REPORTS
            .iter()
            .filter(|report| report.name != "index")
            .map(|report| ReportLink {
                title: report.title(lang),
                file: report.file_name(lang),
            })
            .collect(),
        campaigns,
        newest_run: records.runs.last().map(|run| run.run_id.clone()),
    })
}

/// One row a campaign: ids of runs are in its folder, and `cargo xtask list` prints them.
fn campaign_rows(records: &Records, used: &BTreeSet<&str>, lang: Lang) -> Vec<CampaignRow> {
    let mut by_campaign: BTreeMap<&str, Vec<&RunFolder>> = BTreeMap::new();
    for run in &records.runs {
        let campaign = run.record.as_ref().map(|r| r.manifest.campaign.as_str());
        by_campaign
            .entry(campaign.unwrap_or(&run.run_id))
            .or_default()
            .push(run);
    }
    by_campaign
        .into_iter()
        .map(|(campaign, runs)| campaign_row(records, campaign, &runs, used, lang))
        .collect()
}

fn campaign_row(
    records: &Records,
    campaign: &str,
    runs: &[&RunFolder],
    used: &BTreeSet<&str>,
    lang: Lang,
) -> CampaignRow {
    let known = || runs.iter().filter_map(|run| run.record.as_ref());
    let unknown = || "–".to_owned();
    let experiments: BTreeSet<String> = known()
        .map(|record| {
            let manifest = &record.manifest;
            match &manifest.derived {
                Some(derived) => format!("{} {}", derived.word(), derived.parent()),
                None => manifest.arm(),
            }
        })
        .collect();
    let mut states: BTreeMap<String, usize> = BTreeMap::new();
    for run in runs {
        *states.entry(marked_state(run, lang)).or_default() += 1;
    }
    let ids: BTreeSet<&str> = runs.iter().map(|run| run.run_id.as_str()).collect();
    let cases = || {
        records
            .cases
            .iter()
            .filter(|c| ids.contains(c.run_id.as_str()))
    };
    let first = known().next();
    CampaignRow {
        campaign: campaign.to_owned(),
        experiments: experiments.into_iter().collect(),
        device: first.map_or_else(unknown, |r| {
            let environment = &r.environment;
            let gpu = environment.gpu.as_ref();
            gpu.map_or_else(|| environment.cpu.model.clone(), |gpu| gpu.name.clone())
        }),
        model: first.map_or_else(unknown, |r| r.manifest.model.used.clone()),
        extra_flags: first.map_or_else(unknown, |r| r.manifest.extra_flags.join(" ")),
        started_utc: first.map_or_else(unknown, |r| r.manifest.started_utc.clone()),
        states: states.into_iter().collect(),
        quick: known().any(|r| r.manifest.quick),
        n_starts: runs.len(),
        n_used: ids.iter().filter(|id| used.contains(*id)).count(),
        n_requests: cases().map(|c| c.n_requests).sum(),
        n_failed: cases().map(|c| c.n_failed).sum(),
    }
}

/// Files the charts under their paths, and returns the links by what the charts show.
fn linked(
    drawn: Vec<Chart>,
    slug: &str,
    lang: Lang,
    files: &mut BTreeMap<String, String>,
) -> BTreeMap<&'static str, ChartLink> {
    drawn
        .into_iter()
        .map(|chart| {
            let path = format!("charts/{slug}-{}.{}.svg", chart.kind, lang.code());
            files.insert(path.clone(), chart.svg);
            let alt = chart.alt;
            (chart.kind, ChartLink { path, alt })
        })
        .collect()
}

/// A title as a part of a file name; a number tells apart what the letters do not.
fn file_part(title: &str, taken: &mut BTreeMap<String, usize>) -> String {
    const MAX_LENGTH: usize = 90;
    let words: Vec<String> = title
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let mut part = words.join("-");
    part.truncate(MAX_LENGTH);
    let n = taken.entry(part.clone()).or_default();
    *n += 1;
    if *n == 1 { part } else { format!("{part}-{n}") }
}

fn group_context(
    records: &Records,
    groups: &[Group<'_>],
    group: &Group<'_>,
    config: VerdictConfig,
    lang: Lang,
) -> GroupContext {
    let find = |is_it: fn(&Manifest) -> bool| {
        let of_arm = |arm: &&Arm<'_>| {
            arm.representative()
                .is_some_and(|run| is_it(&run.record.manifest))
        };
        group.arms.iter().find(of_arm)
    };
    let baseline = find(Manifest::is_baseline);
    let focus = find(Manifest::is_focus);
    let rows = |phases: &[&'static str]| {
        let phases: Vec<_> = phases.iter().map(|p| (*p, judged_in(p))).collect();
        tables::rows(records, &group.arms, baseline, &phases, config, lang)
    };
    let [latency, ladder, users] = [["latency"], ["ladder"], ["users"]].map(|p| rows(&p));
    let rate = rows(&OPEN_LOOPS);
    let comparisons = comparisons_of(&latency, baseline);
    let flags_of_baseline = baseline.map(flags_of).unwrap_or_default();
    let arm_context = |arm: &Arm<'_>| {
        arm_context(
            records,
            group,
            arm,
            baseline.is_some().then_some(&flags_of_baseline),
            lang,
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
    let device = gpu
        .map(|g| g.name.clone())
        .or_else(|| environment.map(|e| e.cpu.model.clone()))
        .unwrap_or_default();
    let model = runs
        .first()
        .map(|r| r.record.manifest.model.used.clone())
        .unwrap_or_default();
    let fallbacks: Vec<(String, String)> = runs
        .iter()
        .filter_map(|r| {
            let model = &r.record.manifest.model;
            let why = model.fallback_reason.as_ref()?;
            Some((model.requested.clone(), one_line(why)))
        })
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let arms: Vec<ArmContext> = group.arms.iter().map(arm_context).collect();
    let facts = recommend::Facts {
        arms: &arms,
        baseline: baseline.map(|arm| arm.experiment.as_str()),
        latency: &latency,
        users: &users,
        quick: group.quick,
        model: &model,
        extra_flags: &group.extra_flags,
        start_s: start_duration_s(&group.arms),
    };
    let answers = recommend::answers(facts, !fallbacks.is_empty(), lang);
    let place = (
        environment.map_or("", |e| e.cpu.model.as_str()),
        environment.map_or(0, |e| e.cpu.n_cores),
        model.as_str(),
        gpu.is_some(),
    );
    let peer_comparisons = peer_comparisons_of(records, group, focus, config, lang);
    let side_by_side = side_by_side::of_group(&records.side_by_side, place, config, lang);
    let flags_in_title = group.extra_flags.iter().map(|flag| format!(" · {flag}"));
    GroupContext {
        title: format!("{device} · {model}{}", flags_in_title.collect::<String>()),
        extra_flags: group.extra_flags.clone(),
        device,
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
        model,
        model_format: runs
            .first()
            .and_then(|r| r.record.manifest.model.format.clone()),
        fallbacks,
        executors: unique(
            runs.iter()
                .filter_map(|r| r.record.server.executor.clone())
                .collect(),
        ),
        commits: unique(runs.iter().map(|run| commit_of(run, lang)).collect()),
        first_started_utc: starts.first().cloned().unwrap_or_default(),
        last_started_utc: starts.last().cloned().unwrap_or_default(),
        quick: group.quick,
        baseline: baseline.map(|arm| arm.experiment.clone()),
        focus: focus.map(|arm| arm.experiment.clone()),
        answers,
        arms,
        peers: group.peers.iter().map(arm_context).collect(),
        findings: findings_of(&group.arms, &latency, [&ladder, &users, &rate]),
        load_curves: load_curve::of_group(&rate, &peer_comparisons),
        slo: slo::tables_of(records, group, config, lang),
        history: history::of_group(records, group, lang),
        energy: energy::table_of([&latency, &users, &rate], &peer_comparisons, gpu.is_some()),
        latency,
        ladder,
        users,
        rate,
        engines: engines::table_of(group, &peer_comparisons, lang),
        peer_comparisons,
        side_by_side,
        comparisons,
        failed: failed_of(group, lang),
        flag_effects: effects_in(records, groups, group, config, lang),
        ablation: ablation_of(records, group, config, lang),
        charts: BTreeMap::new(),
        cautions: cautions_of(group, lang),
        n_superseded: group.n_superseded,
    }
}

/// Of one server start with its whole workload: the median.
fn start_duration_s(arms: &[Arm<'_>]) -> Option<f64> {
    let runs = arms.iter().flat_map(|arm| &arm.runs);
    let durations: Vec<f64> = runs.filter_map(|run| run.folder.duration_s()).collect();
    median(&durations)
}

/// Adds host and processor to titles that more than one group bears.
fn name_apart(groups: &mut [GroupContext]) {
    let mut n_by_title: BTreeMap<String, usize> = BTreeMap::new();
    for group in groups.iter() {
        *n_by_title.entry(group.title.clone()).or_default() += 1;
    }
    for group in groups {
        if n_by_title.get(&group.title).is_some_and(|n| *n > 1) {
            let place = format!(" · {} ({} × {})", group.host, group.n_cores, group.cpu);
            group.title.push_str(&place);
        }
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

/// Requests that arrive whatever became of earlier ones: Poisson arrivals, and traces.
const OPEN_LOOPS: [&str; 2] = ["rate", "trace"];

fn peer_comparisons_of(
    records: &Records,
    group: &Group<'_>,
    focus: Option<&Arm<'_>>,
    config: VerdictConfig,
    lang: Lang,
) -> Vec<PeerComparison> {
    let compared = |peer: &Arm<'_>| {
        let manifest = peer.representative().map(|run| &run.record.manifest);
        // The same experiment, if ours ran it; an engine may be an arm of any.
        let of_experiment = group.arms.iter().find(|arm| {
            let is_arm = manifest.is_some_and(|m| m.experiment == arm.experiment);
            is_arm && !arm.runs.is_empty()
        });
        let ours = of_experiment.or(focus);
        let arms: Vec<Arm<'_>> = std::iter::once(peer).chain(ours).cloned().collect();
        let rows = |phases: &[&'static str]| {
            let phases: Vec<_> = phases.iter().map(|p| (*p, judged_in(p))).collect();
            tables::rows(records, &arms, Some(peer), &phases, config, lang)
        };
        PeerComparison {
            peer: peer.experiment.clone(),
            base_url: manifest
                .and_then(|m| m.base_url.clone())
                .unwrap_or_default(),
            model: manifest.map(|m| m.model.used.clone()).unwrap_or_default(),
            ours: ours.map(|arm| arm.experiment.clone()),
            latency: rows(&["latency"]),
            ladder: rows(&["ladder"]),
            users: rows(&["users"]),
            rate: rows(&OPEN_LOOPS),
            charts: BTreeMap::new(),
        }
    };
    group.peers.iter().map(compared).collect()
}

const UNDECIDED: [&str; 3] = ["too few", "not seen", "not judged"];

fn is_undecided(row: &VerdictRow) -> bool {
    UNDECIDED.contains(&row.verdict)
}

/// Files every configuration under what the verdicts of all tables say of it together. Its
/// statements are those of one user's latency; of the other tables those that it was filed for.
fn findings_of(arms: &[Arm<'_>], latency: &[CaseRow], others: [&[CaseRow]; 3]) -> Findings {
    let mut findings = Findings::default();
    for arm in arms {
        let of_arm = |rows: &[CaseRow]| -> Vec<VerdictRow> {
            rows.iter()
                .filter(|row| row.experiment == arm.experiment)
                .flat_map(|row| row.verdicts.clone())
                .collect()
        };
        let mut statements = of_arm(latency);
        let elsewhere: Vec<VerdictRow> = others.into_iter().flat_map(of_arm).collect();
        if statements.is_empty() && elsewhere.is_empty() {
            continue;
        }
        let all = || statements.iter().chain(&elsewhere);
        let has = |verdict: &str| all().any(|v| v.verdict == verdict);
        let (list, telling): (_, &[&str]) = match (has("faster"), has("slower")) {
            (true, true) => (&mut findings.mixed, &["faster", "slower"]),
            (true, false) => (&mut findings.faster, &["faster"]),
            (false, true) => (&mut findings.slower, &["slower"]),
            (false, false) if statements.iter().any(is_undecided) => (&mut findings.undecided, &[]),
            (false, false) if all().any(is_undecided) => (&mut findings.undecided, &UNDECIDED),
            (false, false) => (&mut findings.same, &[]),
        };
        statements.extend(
            elsewhere
                .into_iter()
                .filter(|v| telling.contains(&v.verdict)),
        );
        list.push(Finding {
            experiment: arm.experiment.clone(),
            statements,
        });
    }
    findings
}

fn commit_of(run: &Run<'_>, lang: Lang) -> String {
    let git = &run.record.manifest.git;
    let commit = git
        .commit
        .as_deref()
        .map_or(lang.pick("기록 없음", "not recorded"), |c| {
            c.get(..10).unwrap_or(c)
        });
    match sources::mark(&run.record.source, lang) {
        Some(mark) => format!("{commit} ({mark})"),
        None => commit.to_owned(),
    }
}
