//! Figures printed with two values, and values printed under two names.

use std::collections::BTreeMap;

use serde::Serialize;

use super::claims::label;
use super::quantity::{
    EPSILON, Names, Quantity, base_and_suffix, condition, lower_is_better, significant_digits,
};
use crate::lang::Lang;
use crate::load::imported::Figure;
use crate::render::format::number;
use crate::render::seed_figures::{metric_label, value_with_unit};

/// One figure and the values that cannot be one number rounded differently.
#[derive(Debug, Serialize)]
pub struct ContradictionRow {
    pub what: String,
    /// Value and the documents that print it.
    pub values: Vec<(String, String)>,
    /// Largest above smallest, per cent; none around zero.
    pub gap: Option<String>,
}

/// One value under several names.
#[derive(Debug, Serialize)]
pub struct LookalikeRow {
    pub metric: String,
    pub value: String,
    /// Name and the documents that use it.
    pub names: Vec<(String, String)>,
}

/// Metric, subject and condition under one name each, and the value as a signed improvement.
type Key = (String, String, String);

fn keyed(figure: &Figure, names: &Names) -> Option<(Key, Quantity)> {
    let quantity = Quantity::of(figure)?;
    let (base, suffix) = base_and_suffix(&figure.metric);
    let (metric, quantity) = match (figure.unit.as_str(), suffix) {
        ("percent", "change") if lower_is_better(base) => {
            (format!("{base}_improvement"), quantity.mirrored())
        }
        ("percent", "change" | "gain" | "improvement" | "reduction") => {
            (format!("{base}_improvement"), quantity)
        }
        _ => (figure.metric.clone(), quantity),
    };
    let key = (
        metric,
        names.canonical(&figure.subject),
        condition(figure).to_owned(),
    );
    Some((key, quantity))
}

pub fn rows(figures: &[Figure], names: &Names, lang: Lang) -> Vec<ContradictionRow> {
    let mut by_key: BTreeMap<Key, Vec<(&Figure, Quantity)>> = BTreeMap::new();
    for figure in figures {
        if let Some((key, quantity)) = keyed(figure, names) {
            by_key.entry(key).or_default().push((figure, quantity));
        }
    }
    let contradicts = |group: &[(&Figure, Quantity)]| {
        group
            .iter()
            .any(|(_, a)| group.iter().any(|(_, b)| !a.overlaps(b)))
    };
    by_key
        .into_values()
        .filter(|group| contradicts(group))
        .map(|group| {
            let mut values: Vec<(String, String)> = Vec::new();
            for (figure, _) in &group {
                add_place(&mut values, value_with_unit(figure, lang), figure);
            }
            let sizes = group.iter().map(|(_, q)| q.value.abs());
            let (low, high) =
                sizes.fold((f64::INFINITY, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
            ContradictionRow {
                what: label(group[0].0, lang),
                values,
                gap: (low > EPSILON)
                    .then(|| format!("{} %", number(100.0 * (high / low - 1.0), 1))),
            }
        })
        .collect()
}

pub fn lookalikes(figures: &[Figure], names: &Names, lang: Lang) -> Vec<LookalikeRow> {
    let candidates: Vec<(&Figure, Key, Quantity)> = figures
        .iter()
        .filter(|f| match f.kind.as_str() {
            "measured" => significant_digits(f) > 2,
            "derived" => f.unit == "percent" && !f.condition.contains(", "),
            _ => false,
        })
        .filter_map(|f| keyed(f, names).map(|(key, quantity)| (f, key, quantity)))
        .collect();
    let mut used = vec![false; candidates.len()];
    let mut rows = Vec::new();
    for i in 0..candidates.len() {
        if used[i] {
            continue;
        }
        let (first, key, _) = &candidates[i];
        let mut named: Vec<(String, String)> = Vec::new();
        let mut prints: Vec<String> = Vec::new();
        let mut subjects: Vec<&str> = Vec::new();
        for (j, (other, other_key, _)) in candidates.iter().enumerate() {
            let comparable = key.0 == other_key.0 && key.2 == other_key.2;
            if comparable && same_print(&candidates[i], &candidates[j]) {
                used[j] = true;
                add_place(&mut named, other.subject.clone(), other);
                let print = value_with_unit(other, lang);
                if !prints.contains(&print) {
                    prints.push(print);
                }
                if !subjects.contains(&other_key.1.as_str()) {
                    subjects.push(&other_key.1);
                }
            }
        }
        if subjects.len() > 1 {
            rows.push(LookalikeRow {
                metric: metric_label(&first.metric, lang),
                value: prints.join(" / "),
                names: named,
            });
        }
    }
    rows
}

/// Equal to the digit, or one the other rounded to at least four digits.
fn same_print(a: &(&Figure, Key, Quantity), b: &(&Figure, Key, Quantity)) -> bool {
    let equal = (a.2.value - b.2.value).abs() <= EPSILON;
    let (coarse, fine) = if a.2.high - a.2.low >= b.2.high - b.2.low {
        (a, b)
    } else {
        (b, a)
    };
    let rounded = significant_digits(coarse.0) >= 4
        && coarse.2.low <= fine.2.value
        && fine.2.value < coarse.2.high;
    equal || rounded
}

/// Adds the figure's document to those that support `value`, each document once.
fn add_place(list: &mut Vec<(String, String)>, value: String, figure: &Figure) {
    match list.iter_mut().find(|(known, _)| *known == value) {
        Some((_, places)) if places.split(", ").any(|p| p == figure.document) => {}
        Some((_, places)) => {
            places.push_str(", ");
            places.push_str(&figure.document);
        }
        None => list.push((value, figure.document.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::quantity::tests::figure;
    use super::*;

    #[test]
    fn rounding_is_no_contradiction_and_another_value_is() {
        let figures = [
            figure("latency_mean|B||975.7|ms|measured"),
            figure("latency_mean|B||976|ms|measured"),
            figure("latency_mean|B||0.976|s|measured"),
        ];
        assert!(rows(&figures, &Names::default(), Lang::En).is_empty());
        let other = [&figures[..], &[figure("latency_mean|B||978|ms|measured")]].concat();
        let got = rows(&other, &Names::default(), Lang::En);
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].values.len(), 4);
        assert_eq!(got[0].gap.as_deref(), Some("0.2 %"));
    }

    #[test]
    fn one_change_in_two_signs_is_one_figure() {
        let figures = [
            figure("ttft_improvement|B vs A||13.9|percent|derived"),
            figure("ttft_change|B vs A||-13.9|percent|derived"),
            figure("ttft_change|B vs A||-31|percent|derived"),
        ];
        assert!(rows(&figures[..2], &Names::default(), Lang::En).is_empty());
        assert_eq!(rows(&figures, &Names::default(), Lang::En).len(), 1);
    }

    #[test]
    fn a_value_under_another_name_is_seen_through_rounding() {
        let figures = [
            figure("latency_mean|Baseline||1054.1|ms|measured"),
            figure("latency_mean|vLLM||1054|ms|measured"),
            figure("latency_mean|Ultra||1060|ms|measured"),
        ];
        let got = lookalikes(&figures, &Names::default(), Lang::En);
        assert_eq!(got.len(), 1);
        let subjects: Vec<&str> = got[0].names.iter().map(|(s, _)| s.as_str()).collect();
        assert_eq!(subjects, ["Baseline", "vLLM"]);
    }
}
