//! A printed figure as the range of numbers that round to it, in one unit a dimension.

use crate::load::imported::Figure;

/// Slack for sums of decimal fractions in binary.
pub const EPSILON: f64 = 1e-9;

/// Milliseconds, per cents, or the printed unit where there is only one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantity {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Quantity {
    /// None for dates and versions.
    pub fn of(figure: &Figure) -> Option<Self> {
        let scale = match figure.unit.as_str() {
            "s" => 1000.0,
            "fraction" => 100.0,
            _ => 1.0,
        };
        let value = figure.number? * scale;
        // Settings and counts are exact; what was measured or computed was rounded to be printed.
        let half = if figure.kind == "stated" {
            0.0
        } else {
            0.5 * 10_f64.powi(-decimals(figure)) * scale
        };
        Some(Self {
            value,
            low: value - half,
            high: value + half,
        })
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.low <= other.high + EPSILON && other.low <= self.high + EPSILON
    }

    pub fn mirrored(self) -> Self {
        Self {
            value: -self.value,
            low: -self.high,
            high: -self.low,
        }
    }
}

/// Digits printed after the decimal point.
pub fn decimals(figure: &Figure) -> i32 {
    figure
        .value
        .split_once('.')
        .map_or(0, |(_, fraction)| fraction.len() as i32)
}

/// Digits that carry information: all but leading zeros.
pub fn significant_digits(figure: &Figure) -> usize {
    let digits: String = figure.value.chars().filter(char::is_ascii_digit).collect();
    digits.trim_start_matches('0').len()
}

/// Which names mean the same configuration, as the figures' notes say: a note "SGLang Balanced-v2"
/// beside the subject "SGLang" makes the two one.
#[derive(Debug, Default)]
pub struct Names(Vec<(String, String)>);

impl Names {
    pub fn of(figures: &[Figure]) -> Self {
        let mut pairs: Vec<(String, String)> = figures
            .iter()
            .filter_map(|f| {
                let other = f.note.strip_prefix(&f.subject)?.strip_prefix(' ')?;
                figures
                    .iter()
                    .any(|g| g.subject == other)
                    .then(|| (f.subject.clone(), other.to_owned()))
            })
            .collect();
        pairs.sort();
        pairs.dedup();
        Self(pairs)
    }

    /// The name that stands for all of its synonyms, on both sides of a "vs".
    pub fn canonical(&self, subject: &str) -> String {
        let one = |name: &str| {
            self.0
                .iter()
                .find(|(from, _)| from == name)
                .map_or_else(|| name.to_owned(), |(_, to)| to.clone())
        };
        subject
            .split(" vs ")
            .map(one)
            .collect::<Vec<_>>()
            .join(" vs ")
    }
}

/// "mean" says how a figure was made, not under which condition.
pub fn condition(figure: &Figure) -> &str {
    if figure.condition == "mean" {
        ""
    } else {
        &figure.condition
    }
}

/// A metric's name without what was done to it, and that.
pub fn base_and_suffix(metric: &str) -> (&str, &str) {
    ["improvement", "reduction", "change", "ratio", "gain"]
        .into_iter()
        .find_map(|suffix| {
            let base = metric.strip_suffix(suffix)?.strip_suffix('_')?;
            Some((base, suffix))
        })
        .unwrap_or((metric, ""))
}

pub fn lower_is_better(metric: &str) -> bool {
    ["latency", "ttft", "gpu_memory", "memory"]
        .iter()
        .any(|start| metric.starts_with(start))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// `metric|subject|condition|value|unit|kind|note` of one document and section.
    pub fn figure(line: &str) -> Figure {
        let part: Vec<&str> = line.split('|').collect();
        Figure {
            source: "d".into(),
            document: "d.md".into(),
            section: "s".into(),
            metric: part[0].into(),
            subject: part[1].into(),
            condition: part[2].into(),
            value: part[3].into(),
            number: part[3].parse().ok(),
            unit: part[4].into(),
            kind: part[5].into(),
            note: part.get(6).copied().unwrap_or_default().into(),
        }
    }

    #[test]
    fn a_printed_figure_is_a_range_and_a_setting_is_not() {
        let q = Quantity::of(&figure("latency_mean|A||1.29|s|measured")).unwrap();
        assert!((q.low - 1285.0).abs() < 1e-9 && (q.high - 1295.0).abs() < 1e-9);
        let q = Quantity::of(&figure("mem_fraction_static|A||0.87|fraction|stated")).unwrap();
        assert!((q.low - 87.0).abs() < 1e-9 && q.low == q.high);
        assert_eq!(
            Quantity::of(&figure("test_date|A||2025-09-16|date|stated")),
            None
        );
        assert_eq!(significant_digits(&figure("ttft|A||0.025|s|measured")), 2);
    }

    #[test]
    fn names_are_joined_by_notes_on_both_sides() {
        let figures = [
            figure("ttft|SGLang||195|ms|measured|SGLang Balanced-v2"),
            figure("ttft|Balanced-v2||195|ms|measured"),
            figure("ttft|vLLM||269|ms|measured|vLLM with CPU offload"),
        ];
        let names = Names::of(&figures);
        assert_eq!(names.canonical("SGLang vs vLLM"), "Balanced-v2 vs vLLM");
        assert_eq!(names.canonical("SGLang initial"), "SGLang initial");
    }
}
