//! Configurations against the baseline: samples for the verdicts, and the verdicts' words.
//!
//! The sample is one number a server start: the median of its requests' times, or its throughput.
//! Starts belong together where they are of one round: same campaign, same replicate, hence the
//! same prompts and, nearly, the same minute. Campaigns of one binary, configuration and workload are
//! pooled; each remains a block.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::lang::Lang;
use crate::load::requests::CaseSamples;
use crate::render::format;
use crate::select::Round;
use crate::stats::verdict::{
    self, Better, Comparison, Method, MetricSamples, Reason, Verdict, VerdictConfig,
};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    Latency,
    Ttft,
    Tpot,
    OutputThroughput,
    /// Requests a second that met the limits, where the workload has limits.
    Goodput,
    /// Joules per output token, where there was a meter.
    Energy,
}

/// What is judged in each phase of a workload. In a closed loop latency is users divided by request
/// throughput, so under load the first token and the time per token are judged in its place.
pub const JUDGED: [(&str, &[Metric]); 5] = [
    (
        "latency",
        &[
            Metric::Latency,
            Metric::OutputThroughput,
            Metric::Ttft,
            Metric::Energy,
        ],
    ),
    ("ladder", &[Metric::Latency]),
    (
        "users",
        &[
            Metric::OutputThroughput,
            Metric::Ttft,
            Metric::Tpot,
            Metric::Goodput,
            Metric::Energy,
        ],
    ),
    ("rate", &OPEN_LOOP),
    ("trace", &OPEN_LOOP),
];

const OPEN_LOOP: [Metric; 5] = [
    Metric::Latency,
    Metric::Ttft,
    Metric::Tpot,
    Metric::Goodput,
    Metric::Energy,
];

/// The metrics of one phase of [`JUDGED`].
pub fn judged_in(phase: &str) -> &'static [Metric] {
    let found = JUDGED.iter().find(|(name, _)| *name == phase);
    found.map_or(&[], |(_, metrics)| metrics)
}

impl Metric {
    pub fn better(self) -> Better {
        match self {
            Self::Latency | Self::Ttft | Self::Tpot | Self::Energy => Better::Lower,
            Self::OutputThroughput | Self::Goodput => Better::Higher,
        }
    }

    /// Not every workload and machine has it.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Goodput | Self::Energy)
    }

    pub fn label(self, lang: Lang) -> &'static str {
        match self {
            Self::Latency => lang.pick("응답 지연 (p50)", "latency (p50)"),
            Self::Ttft => lang.pick("첫 토큰 시간 (TTFT, p50)", "time to first token (p50)"),
            Self::Tpot => lang.pick("토큰당 시간 (TPOT, p50)", "time per output token (p50)"),
            Self::OutputThroughput => lang.pick("처리량", "throughput"),
            Self::Goodput => lang.pick("목표 시간을 지킨 처리량 (goodput)", "goodput"),
            Self::Energy => lang.pick("출력 토큰당 에너지", "energy per output token"),
        }
    }

    pub fn short(self, lang: Lang) -> &'static str {
        match self {
            Self::Latency => lang.pick("지연", "latency"),
            Self::Ttft => "TTFT",
            Self::Tpot => "TPOT",
            Self::OutputThroughput => lang.pick("처리량", "throughput"),
            Self::Goodput => "goodput",
            Self::Energy => lang.pick("에너지", "energy"),
        }
    }

    pub fn key(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Ttft => "ttft",
            Self::Tpot => "tpot",
            Self::OutputThroughput => "throughput",
            Self::Goodput => "goodput",
            Self::Energy => "energy",
        }
    }

    pub fn of_run(self, case: &CaseSamples) -> Option<f64> {
        match self {
            Self::Latency => case.e2el_ms.median(),
            Self::Ttft => case.ttft_ms.median(),
            Self::Tpot => case.tpot_ms.median(),
            Self::OutputThroughput => case.output_tok_per_s(),
            Self::Goodput => case.goodput_per_s(),
            Self::Energy => case.joules_per_output_token(),
        }
    }

    pub fn print(self, value: f64, lang: Lang) -> String {
        match self {
            Self::Latency | Self::Ttft | Self::Tpot => format::milliseconds(value, lang),
            Self::OutputThroughput => format!("{} tok/s", format::number(value, 2)),
            Self::Goodput => format!("{} req/s", format::number(value, 2)),
            Self::Energy => format!("{} J", format::number(value, 3)),
        }
    }
}

/// One verdict, ready to print.
#[derive(Debug, Clone, Serialize)]
pub struct VerdictRow {
    pub case: String,
    /// The metric's label, its name where there is little room, and that in no language.
    pub metric: &'static str,
    pub short: &'static str,
    pub key: &'static str,
    /// Medians over the server starts; none where one side has no value.
    pub before: Option<String>,
    pub after: Option<String>,
    /// Absolute change of those medians.
    pub change: Option<String>,
    pub improvement_percent: Option<f64>,
    /// 95 % interval of the improvement, per cent.
    pub interval: Option<(f64, f64)>,
    /// Corrected over the table.
    pub p_adjusted: Option<f64>,
    pub n_before: usize,
    pub n_after: usize,
    /// Which starts were compared with which: `7 rounds`, `6 against 6 starts`.
    pub compared: String,
    /// `faster`, `slower`, `same`, `too few`, `not seen`, `not judged`.
    pub verdict: &'static str,
    /// `+7.4 % 개선`, `차이 없음 (±1.0 % 이내)`, `표본 부족 (기동 3회 더 필요)`, `판정하지 않음`.
    pub phrase: String,
    /// Why nothing could be decided, or why it was not tried; none if something was.
    pub reason: Option<String>,
    /// Starts of both, in common rounds, that it takes to decide; 0 where more would not help.
    pub n_more: usize,
}

/// One case of one run, and the round that the run belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Measured<'a> {
    pub round: Round<'a>,
    /// Hash of the set that its prompts were drawn from.
    pub prompts: Option<&'a str>,
    pub samples: &'a CaseSamples,
}

/// One question of a family: the runs of one case, before and after.
pub struct Question<'a> {
    /// Names the two arms.
    pub pair: String,
    pub case: &'a str,
    pub metric: Metric,
    pub before: &'a [Measured<'a>],
    pub after: &'a [Measured<'a>],
    /// Why the answer would say nothing of the configurations; the figures then stand side by side.
    pub incomparable: Option<String>,
}

/// Answers all questions together, so that the correction covers them all; in their order.
pub fn answer(questions: &[Question<'_>], config: VerdictConfig, lang: Lang) -> Vec<VerdictRow> {
    let judged = questions.iter().filter(|q| q.incomparable.is_none());
    let family: Vec<MetricSamples> = judged.map(|q| samples_of(q, lang)).collect();
    let mut answers = verdict::compare_family(&family, config).into_iter();
    questions
        .iter()
        .filter_map(|q| match &q.incomparable {
            None => Some(row(q, &answers.next()?, config, lang)),
            Some(why) => not_judged(q, why, config, lang),
        })
        .collect()
}

/// The figures without what a test would say of them.
fn not_judged(
    question: &Question<'_>,
    why: &str,
    config: VerdictConfig,
    lang: Lang,
) -> Option<VerdictRow> {
    let alone = verdict::compare_family(&[samples_of(question, lang)], config).pop()?;
    let figures = Comparison {
        method: Method::Unpaired,
        improvement_percent: None,
        interval_percent: None,
        p: None,
        p_adjusted: None,
        verdict: Verdict::Undecided(Reason::NoData),
        ..alone
    };
    Some(VerdictRow {
        verdict: "not judged",
        phrase: lang.pick("판정하지 않음", "not judged").to_owned(),
        reason: Some(why.to_owned()),
        ..row(question, &figures, config, lang)
    })
}

/// If both arms have this number of starts in common campaigns, only those are compared.
const FEWEST_IN_COMMON_CAMPAIGNS: usize = 4;

fn samples_of(question: &Question<'_>, lang: Lang) -> MetricSamples {
    let metric = question.metric;
    let values = |runs: &[Measured<'_>]| -> BTreeMap<(String, u32), f64> {
        runs.iter()
            .filter_map(|run| {
                let round = (run.round.0.to_owned(), run.round.1);
                Some((round, metric.of_run(run.samples)?))
            })
            .collect()
    };
    let (mut before, mut after) = (values(question.before), values(question.after));
    let rounds = before
        .iter()
        .filter_map(|(round, value)| Some((*value, *after.get(round)?)))
        .collect();
    // A campaign is a block: what the machine was like in one says nothing of another.
    let campaigns = |values: &BTreeMap<(String, u32), f64>| -> BTreeSet<String> {
        values
            .keys()
            .map(|(campaign, _)| campaign.clone())
            .collect()
    };
    let (of_before, of_after) = (campaigns(&before), campaigns(&after));
    let common: BTreeSet<&String> = of_before.intersection(&of_after).collect();
    let n_common = |values: &BTreeMap<(String, u32), f64>| {
        values.keys().filter(|(c, _)| common.contains(c)).count()
    };
    if n_common(&before).min(n_common(&after)) >= FEWEST_IN_COMMON_CAMPAIGNS {
        before.retain(|(campaign, _), _| common.contains(campaign));
        after.retain(|(campaign, _), _| common.contains(campaign));
    }
    MetricSamples {
        metric: metric.label(lang).to_owned(),
        better: metric.better(),
        pair: question.pair.clone(),
        rounds,
        before: before.into_values().collect(),
        after: after.into_values().collect(),
    }
}

fn row(
    question: &Question<'_>,
    answer: &Comparison,
    config: VerdictConfig,
    lang: Lang,
) -> VerdictRow {
    let metric = question.metric;
    let change = answer
        .median_before
        .zip(answer.median_after)
        .map(|(before, after)| {
            let difference = after - before;
            let sign = if difference > 0.0 { "+" } else { "" };
            format!("{sign}{}", metric.print(difference, lang))
        });
    VerdictRow {
        case: question.case.to_owned(),
        metric: metric.label(lang),
        short: metric.short(lang),
        key: metric.key(),
        before: answer.median_before.map(|v| metric.print(v, lang)),
        after: answer.median_after.map(|v| metric.print(v, lang)),
        change,
        improvement_percent: answer.improvement_percent,
        interval: answer.interval_percent,
        p_adjusted: answer.p_adjusted,
        n_before: answer.n_before,
        n_after: answer.n_after,
        compared: compared(answer, lang),
        verdict: word(answer.verdict),
        phrase: phrase(answer, config, lang),
        reason: reason(answer, lang),
        n_more: match answer.verdict {
            Verdict::Undecided(Reason::TooFewRuns { n_more, .. }) => n_more,
            _ => 0,
        },
    }
}

fn compared(answer: &Comparison, lang: Lang) -> String {
    let (n, m) = (answer.n_before, answer.n_after);
    match answer.method {
        Method::ByRound { n_rounds } => {
            lang.pick(format!("라운드 {n_rounds}회"), format!("{n_rounds} rounds"))
        }
        Method::Unpaired => lang.pick(
            format!("기동 {n}회 vs {m}회"),
            format!("{n} against {m} starts"),
        ),
    }
}

pub fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Faster => "faster",
        Verdict::Slower => "slower",
        Verdict::Same => "same",
        Verdict::Undecided(Reason::TooFewRuns { .. }) => "too few",
        Verdict::Undecided(Reason::NotSeen { .. }) => "not seen",
        Verdict::Undecided(Reason::NoData | Reason::SourceUnknown) => "not judged",
    }
}

pub fn phrase(answer: &Comparison, config: VerdictConfig, lang: Lang) -> String {
    let change = answer
        .improvement_percent
        .map(format::signed_percent)
        .unwrap_or_default();
    match answer.verdict {
        Verdict::Faster => format!("{change} {}", lang.pick("개선", "better")),
        Verdict::Slower => format!("{change} {}", lang.pick("저하", "worse")),
        Verdict::Same => {
            let margin = format::number(config.margin_percent, 1);
            lang.pick(
                format!("차이 없음 (±{margin} % 이내)"),
                format!("no difference (within ±{margin} %)"),
            )
        }
        Verdict::Undecided(Reason::NoData | Reason::SourceUnknown) => {
            lang.pick("판정하지 않음", "not judged").to_owned()
        }
        Verdict::Undecided(Reason::TooFewRuns { n_more, .. }) => lang.pick(
            format!("표본 부족 (기동 {n_more}회 더 필요)"),
            format!("too few starts ({n_more} more needed)"),
        ),
        Verdict::Undecided(Reason::NotSeen { below_percent }) => {
            let below = format::number(below_percent, 1);
            lang.pick(
                format!("차이가 보이지 않음 (있어도 {below} % 미만)"),
                format!("no difference to be seen (below {below} %)"),
            )
        }
    }
}

fn reason(answer: &Comparison, lang: Lang) -> Option<String> {
    let (n, m) = (answer.n_before, answer.n_after);
    match answer.verdict {
        Verdict::Undecided(Reason::NoData) => Some(
            lang.pick("한쪽에 측정값이 없음", "one side was not measured")
                .to_owned(),
        ),
        Verdict::Undecided(Reason::SourceUnknown) => {
            Some(lang.pick("소스를 알 수 없음", "source unknown").to_owned())
        }
        Verdict::Undecided(Reason::TooFewRuns { n_needed, n_more }) => {
            let n_have = n_needed - n_more;
            Some(match answer.method {
                Method::ByRound { .. } => lang.pick(
                    format!("공통 라운드 {n_have}회, {n_needed}회 필요"),
                    format!("{n_have} common rounds, it takes {n_needed}"),
                ),
                Method::Unpaired => lang.pick(
                    format!("기동 {n}회 vs {m}회, 구성마다 {n_needed}회 필요"),
                    format!("{n} against {m} server starts, it takes {n_needed} of each"),
                ),
            })
        }
        _ => None,
    }
}
