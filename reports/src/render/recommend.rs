//! Which configuration to take, for what one wants: the one answer that every report prints.
//!
//! It rests on verdicts alone. A configuration is recommended where it was judged better than the
//! baseline in the figure that the objective is about; the baseline where every other one was judged
//! and none is better. Where starts are missing, the answer says so, and what to measure next.
//!
//! What is recommended are flags. Those that do nothing on the machine are left out of the command,
//! and so is a model with random weights, or one that stood in for another.

use serde::Serialize;

use crate::lang::Lang;
use crate::render::compare::{Metric, VerdictRow};
use crate::render::context::ArmContext;
use crate::render::format;
use crate::render::tables::CaseRow;

/// What a reader may want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objective {
    OneUser,
    Throughput,
    Ttft,
    Goodput,
    Energy,
}

impl Objective {
    pub const ALL: [Self; 5] = [
        Self::OneUser,
        Self::Throughput,
        Self::Ttft,
        Self::Goodput,
        Self::Energy,
    ];

    fn key(self) -> &'static str {
        match self {
            Self::OneUser => "one user",
            Self::Throughput => "throughput",
            Self::Ttft => "ttft",
            Self::Goodput => "goodput",
            Self::Energy => "energy",
        }
    }

    fn metric(self) -> Metric {
        match self {
            Self::OneUser => Metric::Latency,
            Self::Throughput => Metric::OutputThroughput,
            Self::Ttft => Metric::Ttft,
            Self::Goodput => Metric::Goodput,
            Self::Energy => Metric::Energy,
        }
    }

    fn title(self, n_users: Option<u32>, lang: Lang) -> String {
        let users = n_users.unwrap_or(0);
        match self {
            Self::OneUser => lang
                .pick("사용자 1명의 응답 지연", "one user's latency")
                .into(),
            Self::Throughput => lang.pick(
                format!("사용자 {users}명의 처리량"),
                format!("throughput with {users} users"),
            ),
            Self::Ttft => lang.pick(
                format!("사용자 {users}명의 첫 토큰 시간"),
                format!("time to first token with {users} users"),
            ),
            Self::Goodput if n_users.is_some() => lang.pick(
                format!("사용자 {users}명의 goodput"),
                format!("goodput with {users} users"),
            ),
            Self::Energy if n_users.is_some() => lang.pick(
                format!("사용자 {users}명의 토큰당 에너지"),
                format!("energy per token with {users} users"),
            ),
            Self::Goodput => lang
                .pick("목표 시간을 지킨 처리량 (goodput)", "goodput")
                .into(),
            Self::Energy => lang.pick("토큰당 에너지", "energy per token").into(),
        }
    }
}

/// The answer for one objective.
#[derive(Debug, Clone, Serialize)]
pub struct Recommendation {
    /// `one user`, `throughput`, `ttft`, `goodput`, `energy`.
    pub objective: &'static str,
    pub title: String,
    /// `better`: than the baseline; `baseline`: nothing is; `undecided`; `not measured`.
    pub state: &'static str,
    /// The configuration to take; none where nothing is decided.
    pub configuration: Option<String>,
    pub words: String,
    /// What it costs under the same load.
    pub costs: Vec<String>,
}

/// What a group's answers rest on.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub arms: &'a [ArmContext],
    pub baseline: Option<&'a str>,
    pub latency: &'a [CaseRow],
    pub users: &'a [CaseRow],
    pub quick: bool,
    pub model: &'a str,
    pub extra_flags: &'a [String],
    /// Of one server start with its whole workload.
    pub start_s: Option<f64>,
}

/// What decides what is open.
#[derive(Debug, Clone, Serialize)]
pub struct Next {
    pub words: String,
    pub command: String,
    /// None where runs do not tell how long a start takes.
    pub duration_s: Option<f64>,
}

/// What a group is answered.
#[derive(Debug, Clone, Serialize)]
pub struct Answers {
    pub recommendations: Vec<Recommendation>,
    /// To serve with; none: its weights were random or stood in for others, so a model of the reader's
    /// own has to take its place.
    pub model: Option<String>,
    /// One for every configuration that is recommended.
    pub commands: Vec<Serve>,
    /// None where nothing is open that more starts decide.
    pub next: Option<Next>,
}

/// How to serve a recommended configuration.
#[derive(Debug, Clone, Serialize)]
pub struct Serve {
    pub configuration: String,
    /// Titles of the objectives that it is recommended for.
    pub objectives: Vec<String>,
    /// Those that have an effect, as typed after `engine serve`.
    pub flags: Vec<String>,
}

/// Whether a model's weights are random.
pub fn is_random(model: &str) -> bool {
    model.starts_with("synthetic:")
}

pub fn answers(facts: Facts<'_>, stands_in: bool, lang: Lang) -> Answers {
    let mut open = Vec::new();
    let recommendations: Vec<Recommendation> = Objective::ALL
        .into_iter()
        .map(|objective| recommend(facts, objective, &mut open, lang))
        .collect();
    let mut commands: Vec<Serve> = Vec::new();
    for answer in &recommendations {
        let Some(configuration) = &answer.configuration else {
            continue;
        };
        match commands
            .iter_mut()
            .find(|c| c.configuration == *configuration)
        {
            Some(known) => known.objectives.push(answer.title.clone()),
            None => commands.push(Serve {
                configuration: configuration.clone(),
                objectives: vec![answer.title.clone()],
                flags: active_flags(facts.arms, configuration),
            }),
        }
    }
    Answers {
        recommendations,
        commands,
        model: (!is_random(facts.model) && !stands_in).then(|| facts.model.to_owned()),
        next: next(facts, &open, lang),
    }
}

/// One configuration in the case that an objective is about.
struct Candidate<'a> {
    row: &'a CaseRow,
    verdict: Option<&'a VerdictRow>,
}

/// `open`: gets the configurations that more starts would decide, and how many.
fn recommend(
    facts: Facts<'_>,
    objective: Objective,
    open: &mut Vec<(String, usize)>,
    lang: Lang,
) -> Recommendation {
    let rows = match objective {
        Objective::OneUser => facts.latency,
        _ => facts.users,
    };
    let metric = objective.metric();
    let measured: Vec<&CaseRow> = rows
        .iter()
        .filter(|row| value_of(row, metric, lang).is_some())
        .collect();
    let case = heaviest_shared(&measured, facts.baseline);
    let n_users = case.and_then(|case| rows.iter().find(|r| r.case == case)?.n_users);
    let unanswered = |state: &'static str, words: String| Recommendation {
        objective: objective.key(),
        title: objective.title(n_users, lang),
        state,
        configuration: None,
        words,
        costs: Vec::new(),
    };
    let Some(case) = case else {
        return unanswered("not measured", not_measured(objective, lang));
    };
    let candidates: Vec<Candidate<'_>> = rows
        .iter()
        .filter(|row| row.case == case && row.stats.is_some())
        .map(|row| Candidate {
            row,
            verdict: row.verdicts.iter().find(|v| v.key == metric.key()),
        })
        .collect();
    let with = |word: &str| -> Vec<&Candidate<'_>> {
        let is_it = |c: &&Candidate<'_>| c.verdict.is_some_and(|v| v.verdict == word);
        candidates.iter().filter(is_it).collect()
    };
    let too_few = with("too few");
    open.extend(too_few.iter().filter_map(|c| {
        let n_more = c.verdict?.n_more;
        Some((c.row.experiment.clone(), n_more))
    }));
    let gain = |c: &&&Candidate<'_>| c.verdict.and_then(|v| v.improvement_percent).unwrap_or(0.0);
    let faster = with("faster");
    let best = faster
        .iter()
        .max_by(|a, b| gain(a).total_cmp(&gain(b)))
        .copied();
    let base = candidates
        .iter()
        .find(|c| Some(c.row.experiment.as_str()) == facts.baseline);
    let (state, chosen, words) = match (best, base) {
        _ if facts.quick => {
            let words = lang.pick(
                "짧은 실행(--quick)뿐이라 권장하지 않음",
                "quick runs only: nothing is recommended",
            );
            ("undecided", None, words.to_owned())
        }
        (Some(best), _) => ("better", Some(best), better_words(best, &faster, lang)),
        (None, None) => {
            let words = lang.pick("기준 구성의 측정값이 없음", "the baseline was not measured");
            ("undecided", None, words.to_owned())
        }
        (None, Some(_)) if candidates.len() == 1 => {
            let words = lang.pick(
                "비교할 다른 구성이 없음",
                "there is nothing to compare it with",
            );
            ("undecided", None, words.to_owned())
        }
        (None, Some(base)) => {
            let judged = candidates.len() - 1 - with("not judged").len();
            if too_few.is_empty() && judged > 0 {
                let words = baseline_words(&with("not seen"), judged, lang);
                ("baseline", Some(base), words)
            } else {
                let words = lang.pick("아직 판정할 수 없음", "nothing is decided yet");
                let decided = decided_words(&[with("slower"), with("same")].concat());
                ("undecided", None, format!("{words}{decided}"))
            }
        }
    };
    let Some(chosen) = chosen else {
        return unanswered(state, format!("{words}{}", waiting(&too_few, lang)));
    };
    let value = value_of(chosen.row, metric, lang).unwrap_or_else(|| "–".to_owned());
    let words = [value, words].join(", ");
    Recommendation {
        objective: objective.key(),
        title: objective.title(n_users, lang),
        state,
        configuration: Some(chosen.row.experiment.clone()),
        words: format!("{words}{}", waiting(&too_few, lang)),
        costs: costs_of(chosen.row),
    }
}

/// Of the cases that most configurations measured, the baseline among them, the heaviest.
fn heaviest_shared<'a>(rows: &[&'a CaseRow], baseline: Option<&str>) -> Option<&'a str> {
    let n_of = |case: &str| rows.iter().filter(|r| r.case == case).count();
    let of_baseline = |case: &str| {
        rows.iter()
            .any(|r| r.case == case && Some(&*r.experiment) == baseline)
    };
    rows.iter()
        .max_by_key(|r| (of_baseline(&r.case), n_of(&r.case), r.n_users, r.max_tokens))
        .map(|r| r.case.as_str())
}

fn not_measured(objective: Objective, lang: Lang) -> String {
    match objective {
        Objective::Energy => lang
            .pick(
                "기록에 전력이 없음(측정기가 없는 장비이거나 이전 버전의 기록)",
                "no record has power (a machine without a meter, or records of older versions)",
            )
            .into(),
        Objective::Goodput => lang
            .pick(
                "측정하지 않음: [workload.goodput]에 목표 시간을 적고 cargo xtask tune … --objective goodput",
                "not measured: state limits in [workload.goodput], then cargo xtask tune … --objective goodput",
            )
            .into(),
        _ => lang.pick("측정하지 않음", "not measured").into(),
    }
}

fn value_of(row: &CaseRow, metric: Metric, lang: Lang) -> Option<String> {
    let s = row.stats.as_ref()?;
    match metric {
        Metric::Latency => Some(format::milliseconds(s.p50_ms, lang)),
        Metric::Ttft => Some(format::milliseconds(s.ttft_p50_ms?, lang)),
        Metric::Tpot => Some(format::milliseconds(s.tpot_p50_ms?, lang)),
        Metric::OutputThroughput => {
            Some(format!("{} tok/s", format::number(s.output_tok_per_s, 1)))
        }
        Metric::Goodput => Some(metric.print(s.goodput_per_s?, lang)),
        Metric::Energy => Some(metric.print(s.energy?.joules_per_token, lang)),
    }
}

fn better_words(best: &Candidate<'_>, faster: &[&Candidate<'_>], lang: Lang) -> String {
    let Some(verdict) = best.verdict else {
        return String::new();
    };
    let change = verdict
        .improvement_percent
        .map(format::signed_percent)
        .unwrap_or_default();
    let interval = verdict.interval.map_or_else(String::new, |(low, high)| {
        let (low, high) = (format::signed_percent(low), format::signed_percent(high));
        format!(" [{low}, {high}]")
    });
    let p = verdict
        .p_adjusted
        .map_or_else(String::new, |p| format!(", p {}", format::number(p, 3)));
    let rest = &verdict.compared;
    let mut words = lang.pick(
        format!("기준보다 {change}{interval} 개선 ({rest}{p})"),
        format!("{change}{interval} better than the baseline ({rest}{p})"),
    );
    let others: Vec<&str> = faster
        .iter()
        .map(|c| c.row.experiment.as_str())
        .filter(|name| *name != best.row.experiment)
        .collect();
    if !others.is_empty() {
        let others = others.join(", ");
        words.push_str(&lang.pick(
            format!("; 이 밖에 기준보다 나은 구성: {others}"),
            format!("; also better than the baseline: {others}"),
        ));
    }
    words
}

fn baseline_words(not_seen: &[&Candidate<'_>], n_judged: usize, lang: Lang) -> String {
    let below = not_seen
        .iter()
        .filter_map(|c| c.verdict?.interval)
        .map(|(low, high)| low.abs().max(high.abs()))
        .fold(0.0_f64, f64::max);
    let words = lang.pick(
        format!("판정한 구성 {n_judged}개 중 기준보다 나은 것이 없음"),
        format!("none of {n_judged} judged configuration(s) is better than the baseline"),
    );
    if not_seen.is_empty() {
        return words;
    }
    let below = format::number(below, 1);
    lang.pick(
        format!("{words} (차이가 있어도 {below} % 미만)"),
        format!("{words} (if there is a difference, it is below {below} %)"),
    )
}

fn waiting(too_few: &[&Candidate<'_>], lang: Lang) -> String {
    if too_few.is_empty() {
        return String::new();
    }
    let of_each = |c: &&Candidate<'_>| {
        let n_more = c.verdict.map_or(0, |v| v.n_more);
        let name = &c.row.experiment;
        let change = c.verdict.and_then(|v| v.improvement_percent);
        let change = change.map(format::signed_percent).unwrap_or_default();
        lang.pick(
            format!("{name} {n_more}회(지금 {change})"),
            format!("{name} {n_more} start(s) (now {change})"),
        )
    };
    let list: Vec<String> = too_few.iter().map(of_each).collect();
    let list = list.join(", ");
    lang.pick(
        format!("; 판정에 더 필요한 기동: {list}"),
        format!("; to be decided it takes more of: {list}"),
    )
}

/// Of what is already known while something else is open.
fn decided_words(candidates: &[&Candidate<'_>]) -> String {
    let phrase = |c: &&Candidate<'_>| {
        let phrase = &c.verdict?.phrase;
        Some(format!("; {}: {phrase}", c.row.experiment))
    };
    candidates.iter().filter_map(phrase).collect()
}

/// What is worse than the baseline under the same load.
fn costs_of(row: &CaseRow) -> Vec<String> {
    let slower = row.verdicts.iter().filter(|v| v.verdict == "slower");
    slower
        .map(|v| format!("{} {}", v.short, v.phrase))
        .collect()
}

/// A flag that does nothing on the machine is none that one recommends.
fn active_flags(arms: &[ArmContext], experiment: &str) -> Vec<String> {
    let Some(arm) = arms.iter().find(|arm| arm.experiment == experiment) else {
        return Vec::new();
    };
    let name = |line: &str| {
        let first = line.split(' ').next().unwrap_or_default();
        first.trim_start_matches('-').to_owned()
    };
    let is_active = |line: &&String| {
        let idle = |(flag, _): &(String, String)| {
            name(flag) == name(line) && !arm.limited_flags.contains(flag)
        };
        !arm.inactive_flags.iter().any(idle)
    };
    arm.flags.iter().filter(is_active).cloned().collect()
}

fn next(facts: Facts<'_>, open: &[(String, usize)], lang: Lang) -> Option<Next> {
    let baseline = facts.baseline?;
    let n_more = open.iter().map(|(_, n)| *n).max()?;
    let mut names: Vec<&str> = open.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let model = format!(" --model {}", facts.model);
    let flags = match facts.extra_flags.join(" ") {
        flags if flags.is_empty() => flags,
        flags => format!(" -- {flags}"),
    };
    let list = names.join(", ");
    Some(Next {
        words: lang.pick(
            format!("{list}: 기준과 함께 기동 {n_more}회 더"),
            format!("{list}: {n_more} more starts together with the baseline"),
        ),
        command: format!(
            "cargo xtask exp {baseline} {} --replicates {n_more}{model}{flags}",
            names.join(" ")
        ),
        duration_s: facts
            .start_s
            .map(|s| s * n_more as f64 * (names.len() + 1) as f64),
    })
}
