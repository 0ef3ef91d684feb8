//! Which charts a group of runs has, and what they show.

use std::collections::{BTreeMap, BTreeSet};

use super::Chart;
use super::draw::{self, Lines, Point, Row, Rows, Series};
use super::of_tables::{OfStats, flags, forest, history, load_curve, pareto};
use crate::ReportError;
use crate::lang::Lang;
use crate::load::Records;
use crate::load::gaps::Gaps;
use crate::load::requests::CaseSamples;
use crate::render::card::memory_bandwidth_gb_per_s;
use crate::render::context::PeerComparison;
use crate::render::flag_effects::FlagEffect;
use crate::render::format::number;
use crate::render::history::History;
use crate::render::tables::CaseRow;
use crate::select::{Arm, Group};
use crate::stats::describe::Sorted;

/// Rows of the tables that charts draw again.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    pub latency: &'a [CaseRow],
    pub ladder: &'a [CaseRow],
    pub users: &'a [CaseRow],
    pub rate: &'a [CaseRow],
    pub history: &'a [History],
    pub effects: &'a [FlagEffect],
    pub peers: &'a [PeerComparison],
    pub baseline: Option<&'a str>,
}

const GB: f64 = 1e9;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// Steps of a distribution's line.
const N_QUANTILES: u32 = 50;

/// All charts that the data of a group suffice for.
///
/// # Errors
///
/// [`ReportError::Chart`] if a chart cannot be drawn.
pub fn charts_of(
    records: &Records,
    group: &Group<'_>,
    tables: Tables<'_>,
    lang: Lang,
) -> Result<Vec<Chart>, ReportError> {
    let mut charts = Vec::new();
    for (kind, of_run) in [
        ("latency", (|c| &c.e2el_ms) as fn(&CaseSamples) -> &Sorted),
        ("ttft", |c| &c.ttft_ms),
    ] {
        let what = match kind {
            "latency" => lang.pick("응답 지연", "latency"),
            _ => lang.pick("첫 토큰 시간", "time to first token"),
        };
        let Some(case) = heaviest_shared_case(records, group, |c| c.phase == "latency") else {
            continue;
        };
        let alt = lang.pick(
            format!("{what}의 누적 분포, 사용자 한 명 ({case})"),
            format!("cumulative distribution of {what}, one user ({case})"),
        );
        let series = series_of(group, |arm| pooled_times(records, arm, case, of_run));
        keep(
            &mut charts,
            kind,
            &alt,
            distribution(kind, &alt, &series, lang)?,
        );
    }
    if let Some(case) = heaviest_shared_case(records, group, |_| true) {
        let alt = lang.pick(
            format!("토큰 사이 간격(ITL)의 누적 분포, 함께 잰 것 중 사용자가 가장 많은 경우 ({case})"),
            format!("cumulative distribution of inter-token latency, most users of the shared cases ({case})"),
        );
        let series = series_of(group, |arm| pooled_gaps(records, arm, case));
        let svg = distribution("itl", &alt, &series, lang)?;
        keep(&mut charts, "itl", &alt, svg);
    }

    let names: Vec<&str> = group
        .arms
        .iter()
        .map(|arm| arm.experiment.as_str())
        .collect();
    charts.extend(charts_of_cases(&names, tables.ladder, tables.users, lang)?);
    let (alt, svg) = memory(records, group, lang)?;
    keep(&mut charts, "memory", &alt, svg);
    let (alt, svg) = roofline(group, tables, lang)?;
    keep(&mut charts, "roofline", &alt, svg);
    let (alt, svg) = flags(tables.effects, lang)?;
    keep(&mut charts, "flags", &alt, svg);
    for (kind, what, of_row) in [
        (
            "load-latency",
            lang.pick("응답 지연", "latency"),
            (|stats| Some((stats.p50_ms, stats.p50_spread_ms))) as OfStats,
        ),
        (
            "load-ttft",
            lang.pick("첫 토큰 시간", "time to first token"),
            |stats| Some((stats.ttft_p50_ms?, stats.ttft_p50_spread_ms)),
        ),
    ] {
        let (alt, svg) = load_curve((kind, what, of_row), &names, tables, lang)?;
        keep(&mut charts, kind, &alt, svg);
    }
    for (kind, key) in [
        ("history-latency", "latency"),
        ("history-throughput", "throughput"),
        ("history-ttft", "ttft"),
    ] {
        let (alt, svg) = history((kind, key), &names, tables.history, lang)?;
        keep(&mut charts, kind, &alt, svg);
    }
    let (alt, svg) = pareto(&names, tables, lang)?;
    keep(&mut charts, "pareto", &alt, svg);
    let (alt, svg) = forest(&names, tables, lang)?;
    keep(&mut charts, "forest", &alt, svg);
    Ok(charts)
}

/// Latency and throughput over users, and latency over output tokens, of these configurations.
///
/// # Errors
///
/// [`ReportError::Chart`] if a chart cannot be drawn.
pub fn charts_of_cases(
    names: &[&str],
    ladder: &[CaseRow],
    users: &[CaseRow],
    lang: Lang,
) -> Result<Vec<Chart>, ReportError> {
    let mut charts = Vec::new();
    let n_users = lang.pick("동시 사용자", "users");
    let alt = lang.pick(
        "동시 사용자에 따른 출력 처리량",
        "output throughput over users",
    );
    let series = over_cases(names, users, |row| {
        Some(point(
            f64::from(row.n_users?),
            row.stats.as_ref()?.output_tok_per_s,
            None,
        ))
    });
    let plot = Lines {
        name: "users-throughput",
        alt,
        x_label: n_users,
        y_label: "tok/s",
        x_log: true,
        marks: true,
        y_fits: false,
    };
    keep(
        &mut charts,
        "users-throughput",
        alt,
        draw::lines(plot, &series)?,
    );

    let alt = lang.pick(
        "동시 사용자에 따른 응답 지연 (p50과 신뢰구간, 기동이 적으면 기동별 범위)",
        "latency over users (p50 with interval, or range of few starts)",
    );
    let series = over_cases(names, users, |row| {
        let stats = row.stats.as_ref()?;
        Some(point(
            f64::from(row.n_users?),
            stats.p50_ms,
            stats.p50_spread_ms.map(|spread| (spread.low, spread.high)),
        ))
    });
    let plot = Lines {
        name: "users-latency",
        alt,
        x_label: n_users,
        y_label: "ms",
        x_log: true,
        marks: true,
        y_fits: false,
    };
    keep(
        &mut charts,
        "users-latency",
        alt,
        draw::lines(plot, &series)?,
    );

    let alt = lang.pick(
        "출력 토큰 수에 따른 응답 지연 (p50과 신뢰구간, 기동이 적으면 기동별 범위)",
        "latency over output tokens (p50 with interval, or range of few starts)",
    );
    let series = over_cases(names, ladder, |row| {
        let stats = row.stats.as_ref()?;
        Some(point(
            f64::from(row.max_tokens?),
            stats.p50_ms,
            stats.p50_spread_ms.map(|spread| (spread.low, spread.high)),
        ))
    });
    let tokens = lang.pick("출력 토큰", "output tokens");
    let plot = Lines {
        name: "ladder",
        alt,
        x_label: tokens,
        y_label: "ms",
        x_log: false,
        marks: true,
        y_fits: false,
    };
    keep(&mut charts, "ladder", alt, draw::lines(plot, &series)?);
    Ok(charts)
}

fn keep(charts: &mut Vec<Chart>, kind: &'static str, alt: &str, svg: Option<String>) {
    charts.extend(svg.map(|svg| Chart {
        kind,
        alt: alt.to_owned(),
        svg,
    }));
}

pub(super) fn point(x: f64, y: f64, interval: Option<(f64, f64)>) -> Point {
    Point {
        x,
        y,
        interval,
        x_interval: None,
        number: None,
    }
}

fn series_of(group: &Group<'_>, points: impl Fn(&Arm<'_>) -> Vec<Point>) -> Vec<Series> {
    let arms = group.arms.iter().enumerate();
    arms.map(|(colour, arm)| Series {
        name: arm.experiment.clone(),
        colour,
        points: points(arm),
    })
    .filter(|s| !s.points.is_empty())
    .collect()
}

/// One point a row of each configuration, in the rows' order.
pub(super) fn over_cases(
    names: &[&str],
    rows: &[CaseRow],
    point: impl Fn(&CaseRow) -> Option<Point>,
) -> Vec<Series> {
    let series = names.iter().enumerate().map(|(colour, name)| Series {
        name: (*name).to_owned(),
        colour,
        points: rows
            .iter()
            .filter(|row| row.experiment == *name)
            .filter_map(&point)
            .collect(),
    });
    series.filter(|s| !s.points.is_empty()).collect()
}

fn distribution(
    name: &str,
    alt: &str,
    series: &[Series],
    lang: Lang,
) -> Result<Option<String>, ReportError> {
    let plot = Lines {
        name,
        alt,
        x_label: "ms",
        y_label: lang.pick("누적 %", "cumulative %"),
        x_log: true,
        marks: false,
        y_fits: false,
    };
    draw::lines(plot, series)
}

fn quantiles(at: impl Fn(f64) -> Option<f64>) -> Vec<Point> {
    (0..=N_QUANTILES)
        .filter_map(|i| {
            let q = f64::from(i) / f64::from(N_QUANTILES);
            Some(point(at(q)?, 100.0 * q, None))
        })
        .collect()
}

fn is_of(arm: &Arm<'_>, run_id: &str) -> bool {
    arm.runs.iter().any(|run| run.folder.run_id == run_id)
}

/// The heaviest case that two configurations or more measured, or the only one did: distributions
/// of different cases say nothing of the configurations.
fn heaviest_shared_case<'a>(
    records: &'a Records,
    group: &Group<'_>,
    keep: impl Fn(&CaseSamples) -> bool,
) -> Option<&'a str> {
    let of_arm = |arm: &Arm<'_>| -> BTreeSet<(Option<u32>, Option<u32>, &'a str)> {
        let mine = |c: &&CaseSamples| c.n_requests > 0 && keep(c) && is_of(arm, &c.run_id);
        let cases = records.cases.iter().filter(mine);
        cases
            .map(|c| (c.n_users, c.max_tokens, c.case.as_str()))
            .collect()
    };
    let mut n_arms: BTreeMap<_, usize> = BTreeMap::new();
    for case in group.arms.iter().flat_map(of_arm) {
        *n_arms.entry(case).or_default() += 1;
    }
    let wanted = n_arms.values().copied().max()?.min(2);
    let (heaviest, _) = n_arms.into_iter().rfind(|(_, n)| *n >= wanted)?;
    Some(heaviest.2)
}

fn cases_of<'a>(
    records: &'a Records,
    arm: &Arm<'_>,
    case: &str,
) -> impl Iterator<Item = &'a CaseSamples> {
    let mine = move |c: &&CaseSamples| c.case == case && is_of(arm, &c.run_id);
    records.cases.iter().filter(mine)
}

fn pooled_times(
    records: &Records,
    arm: &Arm<'_>,
    case: &str,
    times: fn(&CaseSamples) -> &Sorted,
) -> Vec<Point> {
    let values = cases_of(records, arm, case).flat_map(|c| times(c).values());
    Sorted::new(values.copied().collect())
        .map_or_else(Vec::new, |sorted| quantiles(|q| sorted.percentile(q)))
}

fn pooled_gaps(records: &Records, arm: &Arm<'_>, case: &str) -> Vec<Point> {
    let mut gaps = Gaps::default();
    for c in cases_of(records, arm, case) {
        if let Some(of_run) = records.gaps.get(&(c.run_id.clone(), c.case.clone())) {
            gaps.merge(of_run);
        }
    }
    quantiles(|q| gaps.percentile(q))
}

/// The first server start of every configuration.
fn memory(
    records: &Records,
    group: &Group<'_>,
    lang: Lang,
) -> Result<(String, Option<String>), ReportError> {
    let course = |arm: &Arm<'_>| {
        let run = arm.runs.first()?;
        Some(&records.memory.get(&run.folder.run_id)?.course)
    };
    let on_gpu = group
        .arms
        .iter()
        .filter_map(course)
        .any(|points| points.iter().any(|p| p.gpu_bytes.is_some()));
    let series = series_of(group, |arm| {
        let points = course(arm).map(Vec::as_slice).unwrap_or_default();
        points
            .iter()
            .filter_map(|p| {
                let bytes = if on_gpu { p.gpu_bytes } else { p.rss_bytes };
                Some(point(p.t_s, bytes? / GIB, None))
            })
            .collect()
    });
    let what = if on_gpu {
        lang.pick("GPU 메모리", "GPU memory")
    } else {
        lang.pick("메모리(RSS)", "memory (RSS)")
    };
    let alt = lang.pick(
        format!("시간에 따른 {what}, 구성마다 첫 서버 기동"),
        format!("{what} over time, the first server start of each configuration"),
    );
    let plot = Lines {
        name: "memory",
        alt: &alt,
        x_label: lang.pick("초", "s"),
        y_label: "GiB",
        x_log: false,
        marks: false,
        y_fits: false,
    };
    let svg = draw::lines(plot, &series)?;
    Ok((alt, svg))
}

/// Weights read a second by one user's decoding, against what the card's memory can deliver.
fn roofline(
    group: &Group<'_>,
    tables: Tables<'_>,
    lang: Lang,
) -> Result<(String, Option<String>), ReportError> {
    let alt = lang.pick(
        "디코드가 초당 읽는 가중치와 카드의 메모리 대역폭 (사용자 한 명)",
        "weights that decoding reads a second, and the card's memory bandwidth (one user)",
    );
    let limit = group
        .all_runs()
        .next()
        .and_then(|run| memory_bandwidth_gb_per_s(&run.record.environment.gpu.as_ref()?.name));
    let Some(limit) = limit else {
        return Ok((alt.to_owned(), None));
    };
    let bar = |(colour, arm): (usize, &Arm<'_>)| {
        let server = &arm.runs.first()?.record.server;
        let bytes = server.weight_bytes?.checked_sub(server.lookup_bytes?)? as f64;
        let longest = tables
            .ladder
            .iter()
            .chain(tables.latency)
            .filter(|row| row.experiment == arm.experiment)
            .max_by_key(|row| row.max_tokens)?;
        let tpot_ms = longest.stats.as_ref()?.tpot_p50_ms?;
        let value = bytes / GB / (tpot_ms / 1000.0);
        Some(Row {
            name: arm.experiment.clone(),
            colour,
            value,
            interval: None,
            text: format!("{} %", number(100.0 * value / limit, 0)),
        })
    };
    let rows: Vec<Row> = group.arms.iter().enumerate().filter_map(bar).collect();
    let limit_name = lang.pick(
        format!("사양 {} GB/s", number(limit, 0)),
        format!("data sheet {} GB/s", number(limit, 0)),
    );
    let plot = Rows {
        name: "roofline",
        alt,
        x_label: "GB/s",
        limit: Some((limit, &limit_name)),
        bars: true,
    };
    let svg = draw::rows(plot, &rows)?;
    Ok((alt.to_owned(), svg))
}
