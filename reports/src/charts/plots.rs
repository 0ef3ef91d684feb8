//! Which charts a group of runs has, and what they show.

use std::collections::{BTreeMap, BTreeSet};

use super::Chart;
use super::draw::{self, Lines, Point, Row, Rows, Series};
use crate::ReportError;
use crate::lang::Lang;
use crate::load::Records;
use crate::load::gaps::Gaps;
use crate::load::requests::CaseSamples;
use crate::render::card::memory_bandwidth_gb_per_s;
use crate::render::context::PeerComparison;
use crate::render::flag_effects::FlagEffect;
use crate::render::format::{number, signed_percent};
use crate::render::history::History;
use crate::render::load_curve::achieved_per_s;
use crate::render::tables::{CaseRow, CaseStats, Spread};
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

fn point(x: f64, y: f64, interval: Option<(f64, f64)>) -> Point {
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
fn over_cases(
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

/// A time and its spread.
type OfStats = fn(&CaseStats) -> Option<(f64, Option<Spread>)>;

/// A time over the rate that was achieved: every configuration, and every other engine.
fn load_curve(
    (kind, what, of_stats): (&str, &str, OfStats),
    names: &[&str],
    tables: Tables<'_>,
    lang: Lang,
) -> Result<(String, Option<String>), ReportError> {
    let alt = lang.pick(
        format!("부하 곡선: 실제로 처리한 요청 수에 따른 {what} (p50과 신뢰구간, 기동이 적으면 기동별 범위)"),
        format!("load curve: {what} over the rate that was served (p50 with interval, or range of few starts)"),
    );
    let at = |row: &CaseRow| {
        let (y, spread) = of_stats(row.stats.as_ref()?)?;
        let x = achieved_per_s(row).filter(|_| row.rate_per_s.is_some())?;
        Some(point(x, y, spread.map(|s| (s.low, s.high))))
    };
    let peers: Vec<&str> = tables.peers.iter().map(|p| p.peer.as_str()).collect();
    let mut series = over_cases(names, tables.rate, at);
    for (i, peer) in tables.peers.iter().enumerate() {
        let of_peer = over_cases(&peers[i..=i], &peer.rate, at).into_iter();
        series.extend(of_peer.map(|s| Series {
            colour: names.len() + i,
            ..s
        }));
    }
    let plot = Lines {
        name: kind,
        alt: &alt,
        x_label: lang.pick("처리한 요청 (req/s)", "served (req/s)"),
        y_label: "ms",
        x_log: false,
        marks: true,
        y_fits: false,
    };
    let svg = draw::lines(plot, &series)?;
    Ok((alt, svg))
}

/// A figure over commits, in per cent of each configuration's first: their sizes differ.
fn history(
    (kind, key): (&str, &str),
    names: &[&str],
    histories: &[History],
    lang: Lang,
) -> Result<(String, Option<String>), ReportError> {
    let mine = || histories.iter().filter(|history| history.key == key);
    let what = mine().next().map_or("", |history| history.metric);
    let alt = lang.pick(
        format!("커밋에 따른 {what}: 첫 커밋을 100 %로 하고, 선분은 기동 하나의 변동 폭"),
        format!("{what} over commits: the first is 100 %, bars are what single starts spread by"),
    );
    let series: Vec<Series> = mine()
        .filter_map(|history| {
            let first = history.points.first()?.value;
            let percent = |value: f64| 100.0 * value / first;
            let points = history.points.iter().map(|p| {
                let band = p.band.map(|(low, high)| (percent(low), percent(high)));
                point(p.number as f64, percent(p.value), band)
            });
            Some(Series {
                name: history.experiment.clone(),
                colour: names
                    .iter()
                    .position(|name| *name == history.experiment)
                    .unwrap_or(names.len()),
                points: points.collect(),
            })
        })
        .collect();
    let plot = Lines {
        name: kind,
        alt: &alt,
        x_label: lang.pick("커밋 (오래된 것부터)", "commit (the oldest first)"),
        y_label: "%",
        x_log: false,
        marks: true,
        y_fits: true,
    };
    let svg = draw::lines(plot, &series)?;
    Ok((alt, svg))
}

/// What one user gets against what the card gives, over rising numbers of users: every configuration,
/// and every other engine.
fn pareto(
    names: &[&str],
    tables: Tables<'_>,
    lang: Lang,
) -> Result<(String, Option<String>), ReportError> {
    let alt = lang.pick(
        "한 사용자가 받는 속도(1 ÷ TPOT)와 장비 전체의 처리량: 오른쪽 위일수록 좋음. 숫자는 동시 사용자, 선분은 신뢰구간 또는 기동별 범위",
        "speed of one user (1 ÷ TPOT) against throughput of the whole card: up and right is better. Numbers are users, bars intervals or ranges of starts",
    );
    // Another workload is another question.
    let cases = |row: &&CaseRow| tables.baseline.is_some_and(|b| row.experiment == b);
    let cases: BTreeSet<&str> = tables
        .users
        .iter()
        .filter(cases)
        .map(|row| row.case.as_str())
        .collect();
    let at = |row: &CaseRow| {
        if !cases.is_empty() && !cases.contains(row.case.as_str()) {
            return None;
        }
        let stats = row.stats.as_ref()?;
        let per_user = |tpot_ms: f64| 1000.0 / tpot_ms;
        let ends = |spread: Spread| (spread.low, spread.high);
        Some(Point {
            x: per_user(stats.tpot_p50_ms?),
            y: stats.output_tok_per_s,
            interval: stats.output_spread_tok_per_s.map(ends),
            x_interval: stats
                .tpot_spread_ms
                .map(|spread| (per_user(spread.high), per_user(spread.low))),
            number: row.n_users,
        })
    };
    let peers: Vec<&str> = tables.peers.iter().map(|p| p.peer.as_str()).collect();
    let mut series = over_cases(names, tables.users, at);
    for (i, peer) in tables.peers.iter().enumerate() {
        let of_peer = over_cases(&peers[i..=i], &peer.users, at).into_iter();
        series.extend(of_peer.map(|s| Series {
            colour: names.len() + i,
            ..s
        }));
    }
    // The numbers of one line suffice.
    let labelled = series.iter().map(|s| s.points.len()).max();
    let mut is_labelled = false;
    for s in &mut series {
        let mine = !is_labelled && Some(s.points.len()) == labelled;
        is_labelled |= mine;
        if !mine {
            s.points.iter_mut().for_each(|p| p.number = None);
        }
    }
    let plot = Lines {
        name: "pareto",
        alt,
        x_label: lang.pick("tok/s (사용자 한 명)", "tok/s of one user"),
        y_label: lang.pick("tok/s (장비)", "tok/s of the card"),
        x_log: false,
        marks: true,
        y_fits: false,
    };
    Ok((alt.to_owned(), draw::lines(plot, &series)?))
}

/// Every configuration against the baseline: one user, and the most users that both served.
fn forest(
    names: &[&str],
    tables: Tables<'_>,
    lang: Lang,
) -> Result<(String, Option<String>), ReportError> {
    let alt = lang.pick(
        "기준 대비 개선율과 신뢰구간: 0의 오른쪽이 개선, ?는 판정되지 않은 값",
        "improvement on the baseline with its interval: right of 0 is better; ? marks what is not decided",
    );
    let mut rows = Vec::new();
    for (colour, name) in names.iter().enumerate() {
        let of_arm = |row: &&CaseRow| row.experiment == *name && !row.verdicts.is_empty();
        let one = tables.latency.iter().find(of_arm);
        let many = tables.users.iter().rfind(of_arm);
        for verdict in one.into_iter().chain(many).flat_map(|row| &row.verdicts) {
            let Some(value) = verdict.improvement_percent else {
                continue;
            };
            let mark = match verdict.verdict {
                "faster" | "slower" | "same" => "",
                _ => " ?",
            };
            let number = name.split('-').next().unwrap_or(name);
            rows.push(Row {
                name: format!("{number} · {} ({})", verdict.short, verdict.case),
                colour,
                value,
                interval: verdict.interval,
                text: format!("{}{mark}", signed_percent(value)),
            });
        }
    }
    let label = lang.pick("기준 대비 개선율 (%)", "improvement on the baseline (%)");
    let plot = Rows {
        name: "forest",
        alt,
        x_label: label,
        limit: None,
        bars: false,
    };
    Ok((alt.to_owned(), draw::rows(plot, &rows)?))
}

/// Improvement by each flag, one row a flag and metric.
fn flags(effects: &[FlagEffect], lang: Lang) -> Result<(String, Option<String>), ReportError> {
    let alt = lang.pick(
        "플래그 하나의 효과: 개선율과 신뢰구간",
        "effect of one flag: improvement with its interval",
    );
    let mut colours: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rows = Vec::new();
    for effect in effects {
        for verdict in &effect.verdicts {
            let Some(value) = verdict.improvement_percent else {
                continue;
            };
            let n_known = colours.len();
            let colour = *colours.entry(verdict.key).or_insert(n_known);
            let flag = effect.flag.trim_start_matches('-');
            rows.push(Row {
                name: format!("{flag} · {} ({})", verdict.short, verdict.case),
                colour,
                value,
                interval: verdict.interval,
                text: signed_percent(value),
            });
        }
    }
    let plot = Rows {
        name: "flags",
        alt,
        x_label: lang.pick("개선율 (%)", "improvement (%)"),
        limit: None,
        bars: false,
    };
    let svg = draw::rows(plot, &rows)?;
    Ok((alt.to_owned(), svg))
}
