//! Derived figures about several others: sums, products, extremes and means.

use super::claims::Outcome;
use super::quantity::{Quantity, base_and_suffix, decimals};
use crate::lang::Lang;
use crate::load::imported::Figure;
use crate::render::format::number;

/// None if the claim is not about several figures.
pub fn recompute(claim: &Figure, all: &[Figure], lang: Lang) -> Option<Outcome> {
    if claim.note.starts_with("sum of") {
        return Some(sum(claim, all, lang));
    }
    match claim.metric.as_str() {
        "gpu_memory_left" => return Some(rest(claim, all, lang)),
        "n_samples" => return Some(product(claim, all, lang)),
        _ => {}
    }
    if claim.condition.starts_with("mean of all") {
        return Some(mean_of_all(claim, all, lang));
    }
    let (which, extreme) = claim.condition.split_once(", ")?;
    let largest = match extreme {
        "smallest" => false,
        "largest" => true,
        _ => return None,
    };
    Some(extreme_of(claim, all, which, largest, lang))
}

fn judged(claim: &Figure, terms: &[Quantity], value: f64, text: String, lang: Lang) -> Outcome {
    let slack: f64 = terms.iter().map(|q| (q.high - q.low) / 2.0).sum();
    let computed = Quantity {
        value,
        low: value - slack,
        high: value + slack,
    };
    Outcome::judged(claim, text, computed, lang)
}

fn missing(lang: Lang) -> Outcome {
    let reason = lang.pick(
        "계산에 쓴 값이 기재되지 않음",
        "what it was computed from is not printed",
    );
    Outcome::unknown("", reason)
}

/// The same metric of every other subject of the same engine ("vLLM: …"), in the same section.
fn sum(claim: &Figure, all: &[Figure], lang: Lang) -> Outcome {
    let Some((engine, _)) = claim.subject.split_once(": ") else {
        return missing(lang);
    };
    let prefix = format!("{engine}: ");
    let of_engine: Vec<&Figure> = all
        .iter()
        .filter(|f| f.source == claim.source && f.section == claim.section)
        .filter(|f| f.metric == claim.metric && f.kind != "derived")
        .filter(|f| f.subject.starts_with(&prefix))
        .collect();
    let terms: Vec<Quantity> = of_engine.iter().filter_map(|f| Quantity::of(f)).collect();
    if terms.is_empty() {
        return missing(lang);
    }
    let total: f64 = terms.iter().map(|q| q.value).sum();
    let printed: Vec<&str> = of_engine.iter().map(|f| f.value.as_str()).collect();
    let text = format!("{} = {} %", printed.join(" + "), number(total, 1));
    judged(claim, &terms, total, text, lang)
}

/// What a share of the same subject leaves of the whole.
fn rest(claim: &Figure, all: &[Figure], lang: Lang) -> Outcome {
    let share = all.iter().find(|f| {
        f.source == claim.source
            && f.section == claim.section
            && f.subject == claim.subject
            && f.metric == "gpu_memory_utilization"
    });
    let Some(share) = share.and_then(Quantity::of) else {
        return missing(lang);
    };
    let left = 100.0 - share.value;
    let text = format!("100 − {} = {} %", number(share.value, 1), number(left, 1));
    judged(claim, &[share], left, text, lang)
}

/// Prompts times output lengths, as the same document states them.
fn product(claim: &Figure, all: &[Figure], lang: Lang) -> Outcome {
    let stated = |metric: &str| {
        all.iter()
            .find(|f| f.source == claim.source && f.metric == metric)
            .and_then(Quantity::of)
    };
    let (Some(prompts), Some(lengths)) = (stated("n_prompts"), stated("n_output_lengths")) else {
        return missing(lang);
    };
    let total = prompts.value * lengths.value;
    let text = format!(
        "{} × {} = {}",
        number(prompts.value, 0),
        number(lengths.value, 0),
        number(total, 0)
    );
    judged(claim, &[], total, text, lang)
}

/// The document's changes of one metric, one a condition, without signs.
fn changes<'a>(claim: &Figure, all: &'a [Figure]) -> Vec<&'a Figure> {
    let mut found: Vec<&Figure> = all
        .iter()
        .filter(|f| f.source == claim.source && f.kind == "derived" && f.unit == "percent")
        .filter(|f| f.subject == claim.subject && f.section != claim.section)
        .collect();
    // A value that is printed again with fewer digits is the same value.
    let key = |f: &Figure| (base_and_suffix(&f.metric).0.to_owned(), f.condition.clone());
    let mut kept: Vec<&Figure> = Vec::new();
    found.sort_by_key(|f| std::cmp::Reverse(decimals(f)));
    for figure in found {
        if !kept.iter().any(|f| key(f) == key(figure)) {
            kept.push(figure);
        }
    }
    kept
}

fn extreme_of(claim: &Figure, all: &[Figure], which: &str, largest: bool, lang: Lang) -> Outcome {
    let base = base_and_suffix(&claim.metric).0;
    let several_users = |f: &Figure| {
        let n_users = f
            .condition
            .strip_suffix(" users")
            .and_then(|n| n.parse::<u32>().ok());
        n_users.is_some_and(|n| n > 1)
    };
    let candidates: Vec<&Figure> = changes(claim, all)
        .into_iter()
        .filter(|f| base_and_suffix(&f.metric).0 == base)
        .filter(|f| which != "several users" || several_users(f))
        .collect();
    let size = |f: &Figure| f.number.map_or(f64::NAN, f64::abs);
    let chosen = if largest {
        candidates.iter().max_by(|a, b| size(a).total_cmp(&size(b)))
    } else {
        candidates.iter().min_by(|a, b| size(a).total_cmp(&size(b)))
    };
    let Some(chosen) = chosen else {
        return missing(lang);
    };
    let listed: Vec<String> = candidates
        .iter()
        .map(|f| f.value.trim_start_matches('-').to_owned())
        .collect();
    let text = format!(
        "{}({}) = {} % ({})",
        if largest { "max" } else { "min" },
        listed.join(", "),
        chosen.value.trim_start_matches('-'),
        chosen.condition
    );
    let half = Quantity::of(chosen).map_or(0.0, |q| (q.high - q.low) / 2.0);
    let value = size(chosen);
    let term = Quantity {
        value,
        low: value - half,
        high: value + half,
    };
    judged(claim, &[term], value, text, lang)
}

/// What was averaged is not stated, so every union of the document's tables is tried.
fn mean_of_all(claim: &Figure, all: &[Figure], lang: Lang) -> Outcome {
    let mut tables: Vec<(String, Vec<f64>)> = Vec::new();
    for figure in changes(claim, all) {
        let Some(value) = figure.number else { continue };
        let kind = figure.condition.rsplit(' ').next().unwrap_or_default();
        let table = format!("{}/{kind}", base_and_suffix(&figure.metric).0);
        match tables.iter_mut().find(|(name, _)| *name == table) {
            Some((_, values)) => values.push(value.abs()),
            None => tables.push((table, vec![value.abs()])),
        }
    }
    let unions = (1_usize..1 << tables.len()).filter_map(|mask| {
        let members: Vec<f64> = tables
            .iter()
            .enumerate()
            .filter(|(i, _)| mask >> i & 1 == 1)
            .flat_map(|(_, (_, values))| values.iter().copied())
            .collect();
        crate::stats::describe::mean(&members).map(|mean| (mean, members.len()))
    });
    let unions: Vec<(f64, usize)> = unions.collect();
    let target = claim.number.unwrap_or(f64::NAN);
    let nearest = unions
        .iter()
        .min_by(|a, b| (a.0 - target).abs().total_cmp(&(b.0 - target).abs()));
    let Some((mean, n)) = nearest else {
        return missing(lang);
    };
    let text = lang.pick(
        format!(
            "문서의 표 {}개를 모은 조합 {}가지의 평균 중 가장 가까운 것: {} % (값 {n}개)",
            tables.len(),
            unions.len(),
            number(*mean, 2)
        ),
        format!(
            "nearest mean of the {} unions of the document's {} tables: {} % ({n} values)",
            unions.len(),
            tables.len(),
            number(*mean, 2)
        ),
    );
    let reason = lang.pick(
        "무엇의 평균인지 적혀 있지 않음",
        "what was averaged is not stated",
    );
    Outcome::unknown(text, reason)
}

#[cfg(test)]
mod tests {
    use super::super::quantity::tests::figure;
    use super::*;

    fn in_section(section: &str, line: &str) -> Figure {
        Figure {
            section: section.into(),
            ..figure(line)
        }
    }

    #[test]
    fn extremes_look_at_every_case_of_the_document() {
        let all: Vec<Figure> = [
            ("1 users", "23.5"),
            ("2 users", "31.3"),
            ("10 users", "82.6"),
            ("20 users", "142.0"),
        ]
        .iter()
        .map(|(users, v)| {
            in_section(
                "table",
                &format!("request_throughput_improvement|B vs A|{users}|{v}|percent|derived"),
            )
        })
        .collect();
        let claim = |which: &str, v: &str| {
            let line = format!(
                "request_throughput_improvement|B vs A|several users, {which}|{v}|percent|derived"
            );
            recompute(&in_section("end", &line), &all, Lang::En).unwrap()
        };
        let got = claim("smallest", "82");
        assert_eq!(got.verdict, "fails");
        assert!(
            got.arithmetic
                .starts_with("min(31.3, 82.6, 142.0) = 31.3 %"),
            "{}",
            got.arithmetic
        );
        assert_eq!(claim("smallest", "31").verdict, "follows");
        assert_eq!(claim("largest", "142").verdict, "follows");
    }

    #[test]
    fn sums_rests_and_products() {
        let all = [
            figure("gpu_memory_utilization|vLLM: a||0.15|fraction|stated"),
            figure("gpu_memory_utilization|vLLM: b||0.70|fraction|stated"),
            figure("gpu_memory_utilization|vLLM: both||85|percent|derived|sum of the two"),
            figure("gpu_memory_left|vLLM: both||15|percent|derived"),
            figure("n_prompts|all||40|count|stated"),
            figure("n_output_lengths|all||4|count|stated"),
            figure("n_samples|all||160|count|derived"),
        ];
        for i in [2, 3, 6] {
            let got = recompute(&all[i], &all, Lang::En).unwrap();
            assert_eq!(got.verdict, "follows", "{got:?}");
        }
    }
}
