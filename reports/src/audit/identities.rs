//! Figures that hang together: what one of them says, the others must bear out.
//!
//! - A mean speed lies between the slowest and the fastest row of the table that it is the mean of.
//! - Latency times speed is the number of tokens of a request, the same for all rows of a table.
//! - First token plus the time of the others is the latency.
//! - In a closed loop request throughput times latency is the number of users (Little's law).
//! - More users do not wait less, and half of all answers are not a few tokens long.
//! - Decoding cannot read its weights faster than the card's memory, nor is a tenth of that good.
//! - The same software has one version.
//!
//! The first four can be wrong; what the others show is doubtful at most. Printed figures are ranges
//! here, too ([`Quantity`]), so rounding explains none of what is said.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::quantity::{Names, Quantity, condition, decimals};
use crate::lang::Lang;
use crate::load::imported::Figure;
use crate::render::card::bandwidth_of_card_named;
use crate::render::format::number;
use crate::render::seed_figures::value_with_unit;

/// Users need not all be busy all the time, and a run begins and ends with fewer.
const LITTLE_TOLERANCE: f64 = 0.02;
/// Answers of fewer tokens are none.
const SHORT_ANSWER_TOKENS: f64 = 8.0;
const FEWEST_ROWS: usize = 3;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IdentityRow {
    pub rule: &'static str,
    /// Documents that print it.
    pub document: String,
    pub arithmetic: String,
    /// `fails`, `doubtful`, `holds`.
    pub verdict: &'static str,
    pub phrase: &'static str,
    pub meaning: String,
}

/// What is wrong first.
pub fn rows(figures: &[Figure], names: &Names, lang: Lang) -> Vec<IdentityRow> {
    let mut rows = Vec::new();
    let sources: BTreeSet<&str> = figures.iter().map(|f| f.source.as_str()).collect();
    for source in sources {
        let of_source: Vec<&Figure> = figures.iter().filter(|f| f.source == source).collect();
        rows.extend(mean_speeds(figures, &of_source, lang));
        rows.extend(tokens_a_request(&of_source, lang));
        rows.extend(little(&of_source, lang));
        rows.extend(more_users(&of_source, lang));
        rows.extend(short_answers(&of_source, lang));
    }
    rows.extend(first_tokens(figures, names, lang));
    rows.extend(roofline(figures, lang));
    rows.extend(versions(figures, lang));
    let mut seen = BTreeSet::new();
    rows.retain(|row| seen.insert((row.rule, row.arithmetic.clone())));
    let rank = |row: &IdentityRow| {
        ["fails", "doubtful", "holds"]
            .iter()
            .position(|v| *v == row.verdict)
    };
    rows.sort_by_key(rank);
    rows
}

fn row(
    rule: (&'static str, &'static str),
    document: &str,
    arithmetic: String,
    verdict: &'static str,
    meaning: String,
    lang: Lang,
) -> IdentityRow {
    IdentityRow {
        rule: lang.pick(rule.0, rule.1),
        document: document.to_owned(),
        arithmetic,
        verdict,
        phrase: match verdict {
            "fails" => lang.pick("모순", "contradiction"),
            "doubtful" => lang.pick("의심스러움", "doubtful"),
            _ => lang.pick("일치", "holds"),
        },
        meaning,
    }
}

/// One user's latency at rising numbers of output tokens, as one document prints it of one subject.
#[derive(Debug)]
pub struct Ladder {
    /// Tokens, and the latency in milliseconds.
    rows: Vec<(f64, Quantity)>,
}

impl Ladder {
    /// None with fewer than three rows.
    pub fn of(figures: &[Figure], source: &str, subject: &str) -> Option<Self> {
        let mut by_tokens: BTreeMap<u32, &Figure> = BTreeMap::new();
        let fits = |f: &&Figure| {
            f.source == source
                && f.subject == subject
                && f.metric == "latency_mean"
                && f.kind == "measured"
        };
        for figure in figures.iter().filter(fits) {
            let Some(tokens) = count_in(&figure.condition, " tokens") else {
                continue;
            };
            let known = by_tokens.entry(tokens).or_insert(figure);
            if decimals(figure) > decimals(known) {
                *known = figure;
            }
        }
        let rows: Vec<(f64, Quantity)> = by_tokens
            .into_iter()
            .filter_map(|(tokens, figure)| Some((f64::from(tokens), Quantity::of(figure)?)))
            .collect();
        (rows.len() >= FEWEST_ROWS).then_some(Self { rows })
    }

    /// Tokens a second of each row.
    fn speeds(&self) -> Vec<Quantity> {
        let speed = |(tokens, latency): &(f64, Quantity)| Quantity {
            value: 1000.0 * tokens / latency.value,
            low: 1000.0 * tokens / latency.high,
            high: 1000.0 * tokens / latency.low,
        };
        self.rows.iter().map(speed).collect()
    }

    pub fn mean_speed(&self) -> Quantity {
        let speeds = self.speeds();
        let mean =
            |of: fn(&Quantity) -> f64| speeds.iter().map(of).sum::<f64>() / speeds.len() as f64;
        Quantity {
            value: mean(|q| q.value),
            low: mean(|q| q.low),
            high: mean(|q| q.high),
        }
    }

    /// Whether a printed speed lies below the slowest row or above the fastest.
    pub fn excludes(&self, printed: &Quantity) -> bool {
        let speeds = self.speeds();
        let low = speeds.iter().map(|q| q.low).fold(f64::INFINITY, f64::min);
        let high = speeds.iter().map(|q| q.high).fold(0.0, f64::max);
        printed.high < low || printed.low > high
    }

    /// Time from one token to the next, from the first and the last row.
    fn ms_a_token(&self) -> f64 {
        let (first, last) = (&self.rows[0], &self.rows[self.rows.len() - 1]);
        (last.1.value - first.1.value) / (last.0 - first.0)
    }
}

fn count_in(condition: &str, unit: &str) -> Option<u32> {
    condition.strip_suffix(unit)?.parse().ok()
}

fn of_metric<'a>(figures: &[&'a Figure], metric: &str, subject: &str) -> Option<&'a Figure> {
    let fits = |f: &&&Figure| f.metric == metric && f.subject == subject && condition(f).is_empty();
    figures.iter().find(fits).copied()
}

fn mean_speeds(all: &[Figure], of_source: &[&Figure], lang: Lang) -> Vec<IdentityRow> {
    let rule = ("평균 속도와 그 표", "mean speed and its table");
    let means = of_source.iter().filter(|f| {
        f.metric == "output_throughput" && f.condition == "mean" && f.kind == "measured"
    });
    means
        .filter_map(|figure| {
            let ladder = Ladder::of(all, &figure.source, &figure.subject)?;
            let printed = Quantity::of(figure)?;
            let speeds: Vec<String> = ladder.speeds().iter().map(|q| number(q.value, 2)).collect();
            let mean = ladder.mean_speed();
            let arithmetic = format!(
                "{}: mean({}) = {} tok/s, {} {}",
                figure.subject,
                speeds.join(", "),
                number(mean.value, 2),
                lang.pick("기재된 값", "printed"),
                value_with_unit(figure, lang)
            );
            let (verdict, meaning) = if ladder.excludes(&printed) {
                (
                    "fails",
                    lang.pick(
                        "표의 어느 행보다도 느리거나 빠름",
                        "slower or faster than every row of the table",
                    ),
                )
            } else if mean.overlaps(&printed) {
                (
                    "holds",
                    lang.pick("표의 행들의 평균임", "the mean of the table's rows"),
                )
            } else {
                return None;
            };
            Some(row(
                rule,
                &figure.document,
                arithmetic,
                verdict,
                meaning.to_owned(),
                lang,
            ))
        })
        .collect()
}

fn tokens_a_request(of_source: &[&Figure], lang: Lang) -> Option<IdentityRow> {
    let rule = ("지연 × 속도 = 토큰 수", "latency × speed = tokens");
    let latencies = of_source
        .iter()
        .filter(|f| f.metric == "latency_mean" && f.kind == "measured" && condition(f).is_empty());
    let mut products: Vec<(String, Quantity)> = Vec::new();
    let mut seen = BTreeSet::new();
    for latency in latencies {
        let speed = of_source.iter().find(|f| {
            f.metric == "output_throughput"
                && f.subject == latency.subject
                && f.section == latency.section
                && f.condition.is_empty()
        });
        let (Some(l), Some(s)) = (Quantity::of(latency), speed.and_then(|f| Quantity::of(f)))
        else {
            continue;
        };
        if !seen.insert(&latency.subject) {
            continue;
        }
        let tokens = Quantity {
            value: l.value * s.value / 1000.0,
            low: l.low * s.low / 1000.0,
            high: l.high * s.high / 1000.0,
        };
        let text = format!(
            "{}: {} × {} = {}",
            latency.subject,
            value_with_unit(latency, lang),
            number(s.value, 2),
            number(tokens.value, 2)
        );
        products.push((text, tokens));
    }
    let apart = products
        .iter()
        .any(|(_, a)| products.iter().any(|(_, b)| !a.overlaps(b)));
    let texts: Vec<String> = products.iter().map(|(text, _)| text.clone()).collect();
    apart.then(|| {
        let meaning = lang.pick(
            "구성마다 다른 요청이거나 다른 실행의 값: 지연의 개선율과 처리량의 개선율이 한 측정에서 나올 수 없음",
            "other requests or other runs a configuration: the improvements of latency and of speed cannot be of one measurement",
        );
        row(rule, &of_source[0].document, texts.join("; "), "fails", meaning.to_owned(), lang)
    })
}

/// Both of one subject, from whatever document: names are joined by the documents' notes.
fn first_tokens(figures: &[Figure], names: &Names, lang: Lang) -> Vec<IdentityRow> {
    let rule = (
        "첫 토큰 + 나머지 = 지연",
        "first token + the others = latency",
    );
    let mut rows = Vec::new();
    let subjects: BTreeSet<(&str, &str)> = figures
        .iter()
        .filter(|f| f.metric == "latency_mean" && f.condition.ends_with(" tokens"))
        .map(|f| (f.source.as_str(), f.subject.as_str()))
        .collect();
    for (source, subject) in subjects {
        let Some(ladder) = Ladder::of(figures, source, subject) else {
            continue;
        };
        let (tokens, latency) = &ladder.rows[0];
        let first_token_ms = latency.value - (tokens - 1.0) * ladder.ms_a_token();
        let slack_ms = latency.high - latency.value;
        let document = figures.iter().find(|f| f.source == source);
        let document = document.map_or("", |f| f.document.as_str());
        let ttfts = figures.iter().filter(|f| {
            f.metric == "ttft"
                && f.kind == "measured"
                && names.canonical(&f.subject) == names.canonical(subject)
        });
        for ttft in ttfts {
            let Some(printed) = Quantity::of(ttft) else {
                continue;
            };
            if printed.low <= first_token_ms + slack_ms {
                continue;
            }
            let left_ms = (latency.value - printed.value) / (tokens - 1.0);
            let arithmetic = format!(
                "{subject}: {} ms − {} × {} ms = {} ms, TTFT {}",
                number(latency.value, 0),
                number(tokens - 1.0, 0),
                number(ladder.ms_a_token(), 1),
                number(first_token_ms, 0),
                value_with_unit(ttft, lang)
            );
            let meaning = lang.pick(
                format!("이 TTFT라면 나머지 토큰이 {} ms씩이어야 하나 표의 기울기는 {} ms: 다른 프롬프트나 다른 실행의 값", number(left_ms, 1), number(ladder.ms_a_token(), 1)),
                format!("with this TTFT the others would take {} ms each, and the table's slope is {} ms: other prompts or another run", number(left_ms, 1), number(ladder.ms_a_token(), 1)),
            );
            let documents = format!("{document}, {}", ttft.document);
            rows.push(row(rule, &documents, arithmetic, "fails", meaning, lang));
        }
    }
    rows
}

fn little(of_source: &[&Figure], lang: Lang) -> Vec<IdentityRow> {
    let rule = ("처리량 × 지연 = 사용자 수", "throughput × latency = users");
    let rates = of_source
        .iter()
        .filter(|f| f.metric == "request_throughput" && f.kind == "measured");
    rates
        .filter_map(|rate| {
            let users = f64::from(count_in(&rate.condition, " users")?);
            let latency = of_source.iter().find(|f| {
                f.metric == "latency_mean"
                    && f.subject == rate.subject
                    && f.condition == rate.condition
            })?;
            let product = Quantity::of(rate)?.value * Quantity::of(latency)?.value / 1000.0;
            let holds = (product / users - 1.0).abs() <= LITTLE_TOLERANCE;
            let arithmetic = format!(
                "{}, {}: {} × {} = {}",
                rate.subject,
                rate.condition,
                value_with_unit(rate, lang),
                value_with_unit(latency, lang),
                number(product, 2)
            );
            let meaning = if holds {
                lang.pick(
                    "닫힌 루프의 측정으로 앞뒤가 맞음",
                    "consistent with a closed loop",
                )
            } else {
                lang.pick(
                    "닫힌 루프에서는 나올 수 없음",
                    "not possible in a closed loop",
                )
            };
            let verdict = if holds { "holds" } else { "fails" };
            Some(row(
                rule,
                &rate.document,
                arithmetic,
                verdict,
                meaning.to_owned(),
                lang,
            ))
        })
        .collect()
}

/// The changes of throughput and of latency under the same load: their product says whether one
/// closed loop can have had both. None where the document does not print the other one.
pub fn little_of_changes(claim: &Figure, figures: &[Figure]) -> Option<(String, bool)> {
    count_in(&claim.condition, " users")?;
    let of = |metric: &str| {
        figures.iter().find(|f| {
            f.metric == metric
                && f.source == claim.source
                && f.subject == claim.subject
                && f.condition == claim.condition
                && f.unit == "percent"
        })
    };
    if !["request_throughput_improvement", "latency_mean_change"].contains(&claim.metric.as_str()) {
        return None;
    }
    let rate = of("request_throughput_improvement")?.number?;
    let latency = of("latency_mean_change")?.number?;
    let product = (1.0 + rate / 100.0) * (1.0 + latency / 100.0);
    let arithmetic = format!(
        "{} × {} = {}",
        number(1.0 + rate / 100.0, 3),
        number(1.0 + latency / 100.0, 3),
        number(product, 3)
    );
    Some((arithmetic, (product - 1.0).abs() <= LITTLE_TOLERANCE))
}

fn more_users(of_source: &[&Figure], lang: Lang) -> Vec<IdentityRow> {
    let rule = ("사용자가 많으면 더 기다림", "more users wait longer");
    let mut rows = Vec::new();
    let mut by_subject: BTreeMap<&str, BTreeMap<u32, &Figure>> = BTreeMap::new();
    let latencies = of_source
        .iter()
        .filter(|f| f.metric == "latency_mean" && f.kind == "measured");
    for figure in latencies {
        if let Some(users) = count_in(&figure.condition, " users") {
            by_subject
                .entry(&figure.subject)
                .or_default()
                .insert(users, figure);
        }
    }
    for (subject, by_users) in by_subject {
        let pairs = by_users.iter().zip(by_users.iter().skip(1));
        for ((few, a), (many, b)) in pairs {
            let (Some(first), Some(second)) = (Quantity::of(a), Quantity::of(b)) else {
                continue;
            };
            if second.value > first.value {
                continue;
            }
            let arithmetic = format!(
                "{subject}: {few} → {many} {}, {} → {}",
                lang.pick("명", "users"),
                value_with_unit(a, lang),
                value_with_unit(b, lang)
            );
            let meaning = lang.pick(
                "처리량이 사용자 수에 정확히 비례해야 함: 응답 길이가 달랐거나 부하가 걸리지 않음",
                "throughput would have to grow in exact proportion: shorter answers, or no load",
            );
            rows.push(row(
                rule,
                &a.document,
                arithmetic,
                "doubtful",
                meaning.to_owned(),
                lang,
            ));
        }
    }
    rows
}

fn short_answers(of_source: &[&Figure], lang: Lang) -> Vec<IdentityRow> {
    let rule = ("중앙값의 응답 길이", "length of the median answer");
    let medians = of_source
        .iter()
        .filter(|f| f.metric == "latency_p50" && f.kind == "measured");
    medians
        .filter_map(|median| {
            let fastest = of_metric(of_source, "output_throughput_max", &median.subject)?;
            let tokens = Quantity::of(median)?.value / 1000.0 * Quantity::of(fastest)?.value;
            let arithmetic = format!(
                "{}: {} × {} = {}",
                median.subject,
                value_with_unit(median, lang),
                value_with_unit(fastest, lang),
                number(tokens, 1)
            );
            let meaning = lang.pick(
                "가장 빠른 속도로도 응답의 절반은 이보다 짧음: 빈 응답이 많아 처리량을 비교할 수 없음",
                "even at the highest speed half of the answers were shorter: many were empty, and throughputs do not compare",
            );
            (tokens < SHORT_ANSWER_TOKENS)
                .then(|| row(rule, &median.document, arithmetic, "doubtful", meaning.to_owned(), lang))
        })
        .collect()
}

/// Of all documents the highest speed of one user, against the memory of the card that they name.
fn roofline(figures: &[Figure], lang: Lang) -> Option<IdentityRow> {
    let rule = ("카드의 메모리 대역폭", "the card's memory");
    let bandwidth = figures
        .iter()
        .filter(|f| f.metric == "gpu_memory_capacity")
        .find_map(|f| Some((f.subject.as_str(), bandwidth_of_card_named(&f.subject)?)));
    let (card, limit) = bandwidth?;
    let weights = figures.iter().find(|f| f.metric == "weight_bits")?;
    let gb = billions_of_parameters(&weights.subject)? * weights.number? / 8.0;
    let documents: BTreeSet<&str> = figures
        .iter()
        .filter(|f| f.metric == "weight_bits" && f.subject == weights.subject)
        .map(|f| f.source.as_str())
        .collect();
    let fastest = figures
        .iter()
        .filter(|f| f.metric == "output_throughput" && f.kind == "measured")
        .filter(|f| condition(f).is_empty() && documents.contains(f.source.as_str()))
        .max_by(|a, b| a.number.unwrap_or(0.0).total_cmp(&b.number.unwrap_or(0.0)))?;
    let speed = fastest.number?;
    let share = 100.0 * speed * gb / limit;
    let arithmetic = format!(
        "{speed} tok/s × {} GB = {} GB/s, {card} {} GB/s",
        number(gb, 0),
        number(speed * gb, 0),
        number(limit, 0)
    );
    let share = number(share, 0);
    let meaning = lang.pick(
        format!("가장 빠른 값도 카드의 {share} %: 비교한 구성 모두가 카드와는 다른 것에 막혀 있음"),
        format!(
            "the fastest figure is {share} % of the card: something else held all of them back"
        ),
    );
    let verdict = if speed * gb > limit {
        "fails"
    } else {
        "doubtful"
    };
    (speed * gb > limit || speed * gb < limit / 2.0)
        .then(|| row(rule, &fastest.document, arithmetic, verdict, meaning, lang))
}

/// `Qwen3-32B-AWQ`: 32.
fn billions_of_parameters(model: &str) -> Option<f64> {
    model
        .split(['-', '_', ' '])
        .find_map(|part| part.strip_suffix(['B', 'b'])?.parse().ok())
}

fn versions(figures: &[Figure], lang: Lang) -> Vec<IdentityRow> {
    let rule = ("같은 소프트웨어의 버전", "versions of one software");
    let mut by_metric: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for figure in figures.iter().filter(|f| f.unit == "version") {
        let documents = by_metric.entry(&figure.metric).or_default();
        documents
            .entry(&figure.value)
            .or_default()
            .insert(&figure.document);
    }
    let differing = by_metric.into_iter().filter(|(_, values)| values.len() > 1);
    differing
        .map(|(metric, values)| {
            let name = metric.trim_end_matches("_version").to_uppercase();
            let texts: Vec<String> = values.keys().map(|value| (*value).to_owned()).collect();
            let documents: BTreeSet<&str> = values.into_values().flatten().collect();
            let documents: Vec<&str> = documents.into_iter().collect();
            let meaning = lang.pick(
                "문서마다 다른 환경일 수 있음",
                "the documents may be of other environments",
            );
            row(
                rule,
                &documents.join(", "),
                format!("{name}: {}", texts.join(" / ")),
                "doubtful",
                meaning.to_owned(),
                lang,
            )
        })
        .collect()
}

#[cfg(test)]
mod tests;
