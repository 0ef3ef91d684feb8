//! Pictures of what the reports' tables hold: load curves, history, Pareto front, changes, flags.

use std::collections::{BTreeMap, BTreeSet};

use super::draw::{self, Lines, Point, Row, Rows, Series};
use super::plots::{Tables, over_cases, point};
use crate::ReportError;
use crate::lang::Lang;
use crate::render::flag_effects::FlagEffect;
use crate::render::format::signed_percent;
use crate::render::history::History;
use crate::render::load_curve::achieved_per_s;
use crate::render::tables::{CaseRow, CaseStats, Spread};

/// A time and its spread.
pub(super) type OfStats = fn(&CaseStats) -> Option<(f64, Option<Spread>)>;

/// A time over the rate that was achieved: every configuration, and every other engine.
pub(super) fn load_curve(
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
pub(super) fn history(
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
pub(super) fn pareto(
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
pub(super) fn forest(
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
pub(super) fn flags(
    effects: &[FlagEffect],
    lang: Lang,
) -> Result<(String, Option<String>), ReportError> {
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
