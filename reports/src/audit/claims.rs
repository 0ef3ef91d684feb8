//! Derived figures, each computed again from the figures it must have come from.

use std::collections::BTreeMap;

use serde::Serialize;

use super::collective;
use super::identities::{Ladder, little_of_changes};
use super::quantity::{
    EPSILON, Names, Quantity, base_and_suffix, condition, decimals, lower_is_better,
    significant_digits,
};
use crate::lang::Lang;
use crate::load::imported::Figure;
use crate::render::format::number;
use crate::render::seed_figures::{metric_label, value_with_unit};

/// One derived figure and what became of it. The same figure in several sections is one row.
#[derive(Debug, Serialize)]
pub struct ClaimRow {
    pub document: String,
    pub sections: String,
    pub what: String,
    pub printed: String,
    pub arithmetic: String,
    /// `follows`, `fails`, `consistent`, `unknown`.
    pub verdict: &'static str,
    pub phrase: &'static str,
    /// Why nothing is known, or where operands were borrowed; empty if there is nothing to add.
    pub reason: String,
}

/// What recomputing came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub arithmetic: String,
    pub verdict: &'static str,
    pub reason: String,
}

impl Outcome {
    pub fn unknown(arithmetic: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            arithmetic: arithmetic.into(),
            verdict: "unknown",
            reason: reason.into(),
        }
    }

    /// Compares what was computed, and its range under rounding of the operands, with the claim.
    pub fn judged(claim: &Figure, arithmetic: String, computed: Quantity, lang: Lang) -> Self {
        let Some(printed) = Quantity::of(claim) else {
            return Self::unknown(arithmetic, String::new());
        };
        let at_least = claim.note.contains("more than");
        let half = (printed.high - printed.low) / 2.0;
        let near = (computed.value - printed.value).abs() <= half + EPSILON;
        if near || (at_least && computed.value >= printed.value) {
            return Self {
                arithmetic,
                verdict: "follows",
                reason: String::new(),
            };
        }
        if computed.overlaps(&printed) {
            let reason = lang.pick(
                "기재된 값 그대로는 맞지 않으나, 반올림 전의 값이었다면 가능함",
                "not from the figures as printed, but possible before they were rounded",
            );
            return Self::unknown(arithmetic, reason);
        }
        Self {
            arithmetic,
            verdict: "fails",
            reason: String::new(),
        }
    }
}

pub fn rows(figures: &[Figure], names: &Names, lang: Lang) -> Vec<ClaimRow> {
    let mut merged: BTreeMap<usize, (usize, Vec<&str>)> = BTreeMap::new();
    let same = |a: &Figure, b: &Figure| {
        (&a.source, &a.metric, &a.subject, &a.value, &a.unit)
            == (&b.source, &b.metric, &b.subject, &b.value, &b.unit)
            && a.condition == b.condition
    };
    for (i, figure) in figures.iter().enumerate() {
        if figure.kind != "derived" {
            continue;
        }
        let first = figures
            .iter()
            .position(|f| f.kind == "derived" && same(f, figure))
            .unwrap_or(i);
        merged
            .entry(first)
            .or_insert((first, Vec::new()))
            .1
            .push(&figure.section);
    }
    merged
        .into_values()
        .map(|(i, sections)| {
            let claim = &figures[i];
            let outcome = borne_out(claim, recompute(claim, figures, names, lang), figures, lang);
            ClaimRow {
                document: claim.document.clone(),
                sections: sections.join("; "),
                what: label(claim, lang),
                printed: value_with_unit(claim, lang),
                arithmetic: outcome.arithmetic,
                verdict: outcome.verdict,
                phrase: phrase(outcome.verdict, lang),
                reason: outcome.reason,
            }
        })
        .collect()
}

/// What cannot be recomputed may be borne out by another figure under the same load.
fn borne_out(claim: &Figure, outcome: Outcome, figures: &[Figure], lang: Lang) -> Outcome {
    if outcome.verdict != "unknown" || !outcome.arithmetic.is_empty() {
        return outcome;
    }
    match little_of_changes(claim, figures) {
        Some((arithmetic, holds)) => Outcome {
            arithmetic,
            verdict: if holds { "consistent" } else { "fails" },
            reason: lang
                .pick(
                    "처리량의 변화 × 지연의 변화 (Little의 법칙으로 1이어야 함)",
                    "change of throughput × change of latency (1 by Little's law)",
                )
                .to_owned(),
        },
        None => outcome,
    }
}

fn phrase(verdict: &str, lang: Lang) -> &'static str {
    match verdict {
        "follows" => lang.pick("계산과 일치", "follows"),
        "fails" => lang.pick("계산과 불일치", "does not follow"),
        "consistent" => lang.pick("앞뒤가 맞음", "consistent"),
        _ => lang.pick("알 수 없음", "cannot be known"),
    }
}

pub fn label(figure: &Figure, lang: Lang) -> String {
    let mut text = format!("{}: {}", metric_label(&figure.metric, lang), figure.subject);
    if !figure.condition.is_empty() {
        text.push_str(", ");
        text.push_str(&figure.condition);
    }
    text
}

/// Finds the operands and computes.
pub fn recompute(claim: &Figure, all: &[Figure], names: &Names, lang: Lang) -> Outcome {
    if let Some(outcome) = collective::recompute(claim, all, lang) {
        return outcome;
    }
    if claim.metric == "latency_spread" {
        return of_two(
            claim,
            ("latency_max", &claim.subject),
            ("latency_min", &claim.subject),
            Formula::Less,
            &Search { all, names, lang },
        );
    }
    let Some((after, before)) = claim.subject.split_once(" vs ") else {
        return ascribed(claim, all, names, lang);
    };
    let (base, suffix) = base_and_suffix(&claim.metric);
    // "vLLM vs SGLang: model" compares "vLLM: model" with "SGLang: model".
    let (after, before) = match before.split_once(": ") {
        Some((_, model)) => (format!("{after}: {model}"), before.to_owned()),
        None => (after.to_owned(), before.to_owned()),
    };
    let Some(formula) = Formula::of(suffix, &claim.unit, lower_is_better(base)) else {
        let reason = lang.pick(
            "무엇을 어떻게 계산한 값인지 적혀 있지 않음",
            "how it was computed is not stated",
        );
        return Outcome::unknown("", reason);
    };
    of_two(
        claim,
        (base, &before),
        (base, &after),
        formula,
        &Search { all, names, lang },
    )
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Formula {
    PercentLess,
    PercentMore,
    Less,
    More,
    Ratio,
}

impl Formula {
    fn of(suffix: &str, unit: &str, lower_is_better: bool) -> Option<Self> {
        Some(match (suffix, unit) {
            ("improvement", "percent") if lower_is_better => Self::PercentLess,
            ("improvement" | "change" | "gain", "percent") => Self::PercentMore,
            ("reduction", "percent") => Self::PercentLess,
            ("reduction", _) => Self::Less,
            ("gain", _) => Self::More,
            ("ratio", _) => Self::Ratio,
            _ => return None,
        })
    }

    fn compute(self, before: f64, after: f64) -> f64 {
        match self {
            Self::PercentLess => 100.0 * (before - after) / before,
            Self::PercentMore => 100.0 * (after - before) / before,
            Self::Less => before - after,
            Self::More => after - before,
            Self::Ratio => after / before,
        }
    }

    fn write(self, before: &str, after: &str) -> String {
        match self {
            Self::PercentLess => format!("({before} − {after}) ÷ {before}"),
            Self::PercentMore => format!("({after} − {before}) ÷ {before}"),
            Self::Less => format!("{before} − {after}"),
            Self::More => format!("{after} − {before}"),
            Self::Ratio => format!("{after} ÷ {before}"),
        }
    }
}

/// Where operands may come from.
struct Search<'a> {
    all: &'a [Figure],
    names: &'a Names,
    lang: Lang,
}

impl<'a> Search<'a> {
    /// Printed values of a metric or of its mean, each once, from the nearest place that has any: the claim's
    /// section, its document, another document; under the claim's own name before a synonym.
    fn operands(&self, claim: &Figure, metric: &str, subject: &str) -> Vec<&'a Figure> {
        let fits = |f: &&'a Figure, synonym: bool| {
            (f.metric == metric || f.metric.strip_suffix("_mean") == Some(metric))
                && condition(f) == condition(claim)
                && (f.subject == subject
                    || synonym && self.names.canonical(&f.subject) == self.names.canonical(subject))
        };
        let near = |f: &&'a Figure, level: usize| match level {
            0 => f.source == claim.source && f.section == claim.section,
            1 => f.source == claim.source,
            _ => true,
        };
        for level in 0..3 {
            for synonym in [false, true] {
                let mut found: Vec<&Figure> = self
                    .all
                    .iter()
                    .filter(|f| near(f, level) && fits(f, synonym))
                    .collect();
                let mut seen = Vec::new();
                found.retain(|f| {
                    let key = Quantity::of(f).map(|q| q.value);
                    let new = !seen.contains(&key);
                    seen.push(key);
                    new
                });
                if !found.is_empty() {
                    return found;
                }
            }
        }
        Vec::new()
    }
}

/// Tries every printed pair; a claim that follows from one follows.
fn of_two(
    claim: &Figure,
    before: (&str, &str),
    after: (&str, &str),
    formula: Formula,
    search: &Search<'_>,
) -> Outcome {
    let lang = search.lang;
    let befores = search.operands(claim, before.0, before.1);
    let afters = search.operands(claim, after.0, after.1);
    let mut best: Option<Outcome> = None;
    for b in &befores {
        for a in &afters {
            let Some(outcome) = of_pair(claim, b, a, formula, search) else {
                continue;
            };
            let rank = |o: &Outcome| {
                ["follows", "unknown", "fails"]
                    .iter()
                    .position(|v| *v == o.verdict)
            };
            if best
                .as_ref()
                .is_none_or(|known| rank(&outcome) < rank(known))
            {
                best = Some(outcome);
            }
        }
    }
    best.unwrap_or_else(|| {
        let missing: Vec<String> = [(before, &befores), (after, &afters)]
            .iter()
            .filter(|(_, found)| found.is_empty())
            .map(|((metric, subject), _)| format!("{}({subject})", metric_label(metric, lang)))
            .collect();
        let missing = missing.join(", ");
        let reason = lang.pick(
            format!("계산에 쓴 값이 어느 문서에도 기재되지 않음: {missing}"),
            format!("what it was computed from is printed in no document: {missing}"),
        );
        Outcome::unknown("", reason)
    })
}

fn of_pair(
    claim: &Figure,
    before: &Figure,
    after: &Figure,
    formula: Formula,
    search: &Search<'_>,
) -> Option<Outcome> {
    let lang = search.lang;
    let (b, a) = (Quantity::of(before)?, Quantity::of(after)?);
    let corners = [
        (b.low, a.low),
        (b.low, a.high),
        (b.high, a.low),
        (b.high, a.high),
    ];
    let at = |pair: (f64, f64)| formula.compute(pair.0, pair.1);
    let computed = Quantity {
        value: at((b.value, a.value)),
        low: corners.map(at).into_iter().fold(f64::INFINITY, f64::min),
        high: corners
            .map(at)
            .into_iter()
            .fold(f64::NEG_INFINITY, f64::max),
    };
    if !computed.value.is_finite() {
        return None;
    }
    // Values are compared in milliseconds, and shown in the unit that they are printed in.
    let (text_b, text_a, unit, scale) = if before.unit == after.unit {
        let scale = if before.unit == "s" { 1000.0 } else { 1.0 };
        (
            before.value.clone(),
            after.value.clone(),
            before.unit.as_str(),
            scale,
        )
    } else {
        (number(b.value, 1), number(a.value, 1), "ms", 1.0)
    };
    let (shown, unit) = match formula {
        Formula::PercentLess | Formula::PercentMore => (computed.value, " %".to_owned()),
        Formula::Ratio => (computed.value, String::new()),
        Formula::Less | Formula::More => (computed.value / scale, format!(" {unit}")),
    };
    let digits = (decimals(claim) + 1).max(2) as usize;
    let arithmetic = format!(
        "{} = {}{unit}",
        formula.write(&text_b, &text_a),
        number(shown, digits)
    );
    let mut outcome = Outcome::judged(claim, arithmetic, computed, lang);
    if outcome.verdict != "fails"
        && let Some(why) = operands_at_fault([before, after], formula, search)
    {
        outcome.verdict = "fails";
        outcome.reason = why;
    }
    let borrowed: Vec<&str> = [before, after]
        .iter()
        .filter(|f| f.source != claim.source)
        .map(|f| f.document.as_str())
        .collect();
    if let Some(document) = borrowed.first() {
        let note = lang.pick(
            format!("계산에 쓴 값의 출처: {document}"),
            format!("operands from {document}"),
        );
        outcome.reason = [outcome.reason, note]
            .iter()
            .filter(|r| !r.is_empty())
            .cloned()
            .collect::<Vec<_>>()
            .join("; ");
    }
    Some(outcome)
}

/// Arithmetic that follows from figures which are wrong themselves: they are another subject's, or lie
/// outside of the table that they are the mean of.
fn operands_at_fault(
    operands: [&Figure; 2],
    formula: Formula,
    search: &Search<'_>,
) -> Option<String> {
    let lang = search.lang;
    if let Some((operand, owner)) = operands
        .iter()
        .find_map(|operand| Some((operand, owner_of(operand, search)?)))
    {
        let (value, subject) = (value_with_unit(operand, lang), &operand.subject);
        let (other, document) = (&owner.subject, &owner.document);
        return Some(lang.pick(
            format!("{value}: {subject}의 값이 아니라 {other}의 값({document})"),
            format!("{value} is not {subject}'s but {other}'s ({document})"),
        ));
    }
    let ladders = operands.map(|operand| {
        let is_mean = operand.metric == "output_throughput" && operand.condition == "mean";
        is_mean
            .then(|| Ladder::of(search.all, &operand.source, &operand.subject))
            .flatten()
    });
    let excluded = operands.iter().zip(&ladders).find(|(operand, ladder)| {
        let printed = Quantity::of(operand);
        ladder
            .as_ref()
            .zip(printed)
            .is_some_and(|(ladder, q)| ladder.excludes(&q))
    });
    let (operand, _) = excluded?;
    let value = value_with_unit(operand, lang);
    let subject = &operand.subject;
    let computed = match &ladders {
        [Some(before), Some(after)] => {
            let (b, a) = (before.mean_speed().value, after.mean_speed().value);
            let percent = number(formula.compute(b, a), 1);
            let (b, a) = (number(b, 2), number(a, 2));
            lang.pick(
                format!("; 표의 행들로 계산하면 {b}와 {a} tok/s, {percent} %"),
                format!("; from the table's rows {b} and {a} tok/s, {percent} %"),
            )
        }
        _ => String::new(),
    };
    Some(lang.pick(
        format!("{subject}의 {value}: 같은 문서의 표에 있는 모든 행의 밖에 있음{computed}"),
        format!(
            "{subject}'s {value} lies outside of every row of the document's own table{computed}"
        ),
    ))
}

/// Whose value it is where another document prints it, with more digits, of another subject, and none
/// prints it of this one.
fn owner_of<'a>(operand: &Figure, search: &Search<'a>) -> Option<&'a Figure> {
    let printed = Quantity::of(operand)?;
    if significant_digits(operand) < 3 {
        return None;
    }
    let same_value = |f: &&Figure| {
        f.source != operand.source
            && f.kind == "measured"
            && f.metric == operand.metric
            && condition(f) == condition(operand)
            && Quantity::of(f).is_some_and(|q| q.overlaps(&printed))
    };
    let is_mine =
        |f: &Figure| search.names.canonical(&f.subject) == search.names.canonical(&operand.subject);
    let others: Vec<&Figure> = search.all.iter().filter(same_value).collect();
    if others.iter().any(|f| is_mine(f)) {
        return None;
    }
    others.into_iter().find(|f| decimals(f) > decimals(operand))
}

/// A change ascribed to one setting: only a pair of measurements that differ in it could show it.
fn ascribed(claim: &Figure, all: &[Figure], names: &Names, lang: Lang) -> Outcome {
    let (base, _) = base_and_suffix(&claim.metric);
    let whole = all.iter().find(|f| {
        f.kind == "derived"
            && f.unit == claim.unit
            && f.value == claim.value
            && base_and_suffix(&f.metric).0 == base
            && f.subject.contains(" vs ")
    });
    let nothing = lang.pick(
        format!("‘{}’만 다른 두 측정이 어느 문서에도 없음", claim.subject),
        format!(
            "no document has two measurements that differ in ‘{}’ alone",
            claim.subject
        ),
    );
    let reason = match whole {
        Some(f) => {
            let pair = names.canonical(&f.subject);
            lang.pick(
                format!("{nothing}; 같은 값이 구성 전체의 변화({pair})로 기재되어 있음"),
                format!(
                    "{nothing}; the same value is printed for the whole configuration ({pair})"
                ),
            )
        }
        None => nothing,
    };
    Outcome::unknown("", reason)
}

#[cfg(test)]
mod tests;
