//! `reports compare <a> <b>`: two runs or experiments side by side, on the terminal.
//!
//! Above, in what they differ: machine, model, flags, binary. Below, their figures with intervals
//! and verdicts, by the rules of the reports: one table, judged together. Where machine or model
//! differ, the figures are shown side by side with a warning and without a verdict: the cause of a
//! difference could not be determined.
//!
//! Absent on purpose: more than two at a time, and anything written to a file.

mod configuration;
mod resolve;

use std::fmt::Write as _;

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use records::store::Store;
use serde::Serialize;

use crate::ReportError;
use crate::lang::Lang;
use crate::load::Records;
use crate::load::requests::read_cases;
use crate::load::run_folder::{Outcome, RunFolder, read_all};
use crate::render::compare::{JUDGED, VerdictRow};
use crate::render::{format, tables};
use crate::select::{Arm, Selection};
use crate::stats::verdict::VerdictConfig;
use resolve::{Chosen, resolve};

/// Longer settings continue on the next line.
const VALUE_WIDTH: u16 = 48;

/// The text that `reports compare` prints. `names`: run ids, their last parts, or experiments.
///
/// # Errors
///
/// If the runs cannot be read, a name is that of no run or experiment
/// ([`ReportError::UnknownRun`]) or fits several runs ([`ReportError::AmbiguousRun`]), or the
/// only run that it fits is broken or has no readable record ([`ReportError::UnreadableRun`]).
pub fn compare(
    store: impl Into<Store>,
    names: [&str; 2],
    selection: &Selection,
    config: VerdictConfig,
    lang: Lang,
) -> Result<String, ReportError> {
    let found = found(&store.into(), names, selection, config, lang)?;
    let mut text = found.sides;
    for warning in &found.judged.warnings {
        let _ = writeln!(text, "{}: {warning}", lang.pick("주의", "warning"));
    }
    let _ = writeln!(text, "\n{}", found.configuration);
    let _ = writeln!(text, "\n{}", figures_table(&found.judged, lang));
    Ok(text)
}

/// The verdicts of that text, for programs. With warnings none of them counts.
#[derive(Debug, Serialize)]
pub struct Judged {
    pub warnings: Vec<String>,
    pub verdicts: Vec<VerdictRow>,
}

/// # Errors
///
/// As [`compare`].
pub fn judge(
    store: impl Into<Store>,
    names: [&str; 2],
    selection: &Selection,
    config: VerdictConfig,
    lang: Lang,
) -> Result<Judged, ReportError> {
    Ok(found(&store.into(), names, selection, config, lang)?.judged)
}

struct Found {
    /// Which runs stand on either side.
    sides: String,
    configuration: String,
    judged: Judged,
}

fn found(
    store: &Store,
    names: [&str; 2],
    selection: &Selection,
    config: VerdictConfig,
    lang: Lang,
) -> Result<Found, ReportError> {
    let mut folders = read_all(store)?;
    folders.retain(|run| selection.keeps(run));
    let cited = |name: &str| {
        Ok::<_, ReportError>(if name.contains('#') {
            store.find(name)?.run_id
        } else {
            name.to_owned()
        })
    };
    let names = [cited(names[0])?, cited(names[1])?];
    let [a, b] = resolve(&folders, [&names[0], &names[1]])?;
    let complete: Vec<&RunFolder> = [&a, &b]
        .iter()
        .flat_map(|chosen| &chosen.arm.runs)
        .map(|run| run.folder)
        .filter(|run| run.outcome == Outcome::Complete)
        .collect();
    let records = Records {
        cases: read_cases(&complete)?,
        ..Records::default()
    };
    let mut sides = String::new();
    for (letter, chosen) in [("A", &a), ("B", &b)] {
        // Writing into a String cannot fail.
        let _ = writeln!(sides, "{letter}  {}", described(chosen, lang));
    }
    let arms = [named(&a.arm, "A"), named(&b.arm, "B")];
    let rows = tables::rows(&records, &arms, Some(&arms[0]), &JUDGED, config, lang);
    Ok(Found {
        sides,
        configuration: configuration_table(&a.arm, &b.arm, lang),
        judged: Judged {
            warnings: configuration::warnings(&a.arm, &b.arm, lang),
            verdicts: rows.into_iter().flat_map(|row| row.verdicts).collect(),
        },
    })
}

fn described(chosen: &Chosen<'_>, lang: Lang) -> String {
    let arm = &chosen.arm;
    let ids: Vec<&str> = arm.runs.iter().map(|r| r.folder.run_id.as_str()).collect();
    let n = ids.len();
    let starts = lang.pick(
        format!("서버 기동 {n}회"),
        format!("{n} server start{}", if n == 1 { "" } else { "s" }),
    );
    let campaigns = lang.pick("캠페인", "campaign");
    let shown = match ids[..] {
        [one] => one.to_owned(),
        _ => ids
            .iter()
            .map(|id| id.rsplit('_').next().unwrap_or(id))
            .collect::<Vec<_>>()
            .join(" "),
    };
    let experiment = &chosen.experiment;
    format!(
        "{experiment}: {campaigns} {}, {starts} ({shown})",
        arm.campaigns.join(" ")
    )
}

fn configuration_table(a: &Arm<'_>, b: &Arm<'_>, lang: Lang) -> String {
    let (different, n_same) = configuration::differences(a, b, lang);
    let mut table = plain([lang.pick("설정", "configuration"), "A", "B"]);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::MAX);
    for column in [1, 2] {
        if let Some(column) = table.column_mut(column) {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(VALUE_WIDTH)));
        }
    }
    let n_different = different.len();
    for row in different {
        table.add_row(row);
    }
    let same = lang.pick(
        format!("그 밖의 설정 {n_same}개는 같음"),
        format!("{n_same} other settings are the same"),
    );
    if n_different == 0 {
        return lang.pick(
            format!("설정 {n_same}개가 모두 같음"),
            format!("all {n_same} settings are the same"),
        );
    }
    format!("{table}\n{same}")
}

fn figures_table(judged: &Judged, lang: Lang) -> String {
    let incomparable = !judged.warnings.is_empty();
    let mut table = plain([
        lang.pick("조건", "case"),
        lang.pick("지표", "metric"),
        "A",
        "B",
        lang.pick("B의 개선율 [신뢰구간]", "B better by [interval]"),
        lang.pick("비교 대상", "compared"),
        lang.pick("판정", "verdict"),
    ]);
    for column in [2, 3] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut reasons: Vec<String> = Vec::new();
    for verdict in &judged.verdicts {
        table.add_row(figures_row(verdict, incomparable, lang));
        let reason = verdict.reason.iter().filter(|_| !incomparable);
        reasons.extend(reason.map(|reason| format!("{}: {reason}", verdict.phrase)));
    }
    if table.is_empty() {
        return lang
            .pick(
                "두 쪽 모두 완료된 실행에서 잰 같은 조건이 없음",
                "no case was measured by complete runs of both",
            )
            .to_owned();
    }
    // Most rows of a table are undecided for one reason.
    reasons.sort();
    reasons.dedup();
    std::iter::once(table.to_string())
        .chain(reasons)
        .collect::<Vec<_>>()
        .join("\n")
}

fn figures_row(verdict: &VerdictRow, incomparable: bool, lang: Lang) -> [String; 7] {
    let dash = || "–".to_owned();
    let improvement = verdict.improvement_percent.map_or_else(dash, |change| {
        let interval = verdict.interval.map(|(low, high)| {
            let (low, high) = (format::signed_percent(low), format::signed_percent(high));
            format!(" [{low}, {high}]")
        });
        format!(
            "{}{}",
            format::signed_percent(change),
            interval.unwrap_or_default()
        )
    });
    let judged = if incomparable {
        lang.pick("판정하지 않음", "not judged").to_owned()
    } else {
        verdict.phrase.clone()
    };
    [
        verdict.case.clone(),
        verdict.metric.to_owned(),
        verdict.before.clone().unwrap_or_else(dash),
        verdict.after.clone().unwrap_or_else(dash),
        improvement,
        verdict.compared.clone(),
        judged,
    ]
}

/// The tables tell arms apart by name, and both may be of one experiment.
fn named<'a>(arm: &Arm<'a>, name: &str) -> Arm<'a> {
    Arm {
        experiment: name.to_owned(),
        ..arm.clone()
    }
}

fn plain<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_BORDERS_ONLY_CONDENSED);
    table.set_header(header);
    table
}
