//! What the load of a case was, in words that stand under every table: loop, prompts, output,
//! duration, cached share.

use records::workload::Phase;

use crate::lang::Lang;
use crate::load::requests::{CaseSamples, phase_of};
use crate::render::format::number;
use crate::stats::describe::Sorted;

/// Of all starts of one case; the share of cached prompt tokens is that of the starts with least and
/// most of it. `short` is a case that lasts less than its kind must.
pub fn words(case: &str, starts: &[&CaseSamples], lang: Lang) -> String {
    let Some(first) = starts.first() else {
        return String::new();
    };
    let mut parts = vec![arrivals(first, lang)];
    let prompts = starts.iter().flat_map(|c| c.prompt_tokens.values());
    let prompts = Sorted::new(prompts.copied().collect()).unwrap_or_default();
    parts.extend(prompt_words(&prompts, lang));
    let is_trace = phase_of(&first.phase) == Some(Phase::Trace);
    parts.extend(first.max_tokens.map(|n| {
        let n = number(f64::from(n), 0);
        if is_trace {
            let most = format!("up to {n} output tokens");
            lang.pick(format!("출력 {n}토큰 이하"), most)
        } else {
            lang.pick(format!("출력 {n}토큰"), format!("{n} output tokens"))
        }
    }));
    let seconds: Vec<f64> = starts.iter().filter_map(|c| c.duration_s).collect();
    let seconds = Sorted::new(seconds).unwrap_or_default();
    parts.extend(duration_words(starts, &seconds, lang));
    parts.push(cached_words(starts, lang));
    format!("{case}: {}", parts.join(", "))
}

fn arrivals(case: &CaseSamples, lang: Lang) -> String {
    match (case.n_users, case.rate_per_s) {
        (Some(n), _) => lang.pick(
            format!("닫힌 루프(사용자 {n}명)"),
            format!("closed loop ({n} user{})", if n == 1 { "" } else { "s" }),
        ),
        (None, Some(rate)) if phase_of(&case.phase) == Some(Phase::Trace) => {
            let rate = number(rate, 2);
            lang.pick(
                format!("열린 루프(트레이스의 도착 시각, 평균 {rate}/s)"),
                format!("open loop (a trace's arrivals, {rate}/s on average)"),
            )
        }
        (None, Some(rate)) => lang.pick(
            format!("열린 루프(포아송 도착 {rate}/s)"),
            format!("open loop (Poisson arrivals, {rate}/s)"),
        ),
        (None, None) => lang.pick("루프 기록 없음", "loop not recorded").to_owned(),
    }
}

fn prompt_words(prompts: &Sorted, lang: Lang) -> Option<String> {
    let (mean, min, max) = (prompts.mean()?, prompts.min()?, prompts.max()?);
    let [mean, min, max] = [mean, min, max].map(|v| number(v, 0));
    Some(if min == max {
        lang.pick(
            format!("프롬프트 {mean}토큰"),
            format!("prompts of {mean} tokens"),
        )
    } else {
        lang.pick(
            format!("프롬프트 평균 {mean}토큰({min}~{max})"),
            format!("prompts of {mean} tokens on average ({min} to {max})"),
        )
    })
}

/// The median start's, or all starts' where they last so differently that one number would mislead.
fn duration_words(starts: &[&CaseSamples], seconds: &Sorted, lang: Lang) -> Option<String> {
    let (median, min, max) = (seconds.median()?, seconds.min()?, seconds.max()?);
    let is_alike = max <= 1.1 * min;
    let [median, min, max] = [median, min, max].map(|s| number(s, 1));
    let shown = lang.pick(format!("{min}~{max}"), format!("{min} to {max}"));
    let shown = if is_alike { median } else { shown };
    let words = lang.pick(format!("기동마다 {shown}초"), format!("{shown} s a start"));
    let Some(short) = starts.iter().find(|case| case.is_short()) else {
        return Some(words);
    };
    let least = number(short.least_measured_s(), 0);
    Some(lang.pick(
        format!("{words} ⚠️ 짧음({least}초 이상이어야 함)"),
        format!("{words} ⚠️ short (it takes {least} s)"),
    ))
}

fn cached_words(starts: &[&CaseSamples], lang: Lang) -> String {
    let share = |c: &&&CaseSamples| {
        let prompts: f64 = c.prompt_tokens.values().iter().sum();
        (prompts > 0.0).then(|| 100.0 * c.cached_tokens.unwrap_or_default() as f64 / prompts)
    };
    let told = starts.iter().filter(|c| c.cached_tokens.is_some());
    let shares = Sorted::new(told.filter_map(|c| share(&c)).collect()).unwrap_or_default();
    let Some((min, max)) = shares.min().zip(shares.max()) else {
        return lang
            .pick("캐시 적중 기록 없음", "cached share not told")
            .to_owned();
    };
    let [min, max] = [min, max].map(|v| number(v, 0));
    let shown = if min == max {
        min
    } else {
        format!("{min}~{max}")
    };
    lang.pick(
        format!("캐시 적중 {shown} %"),
        format!("{} % cached", shown.replace('~', " to ")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(seconds: f64, cached: Option<u64>) -> CaseSamples {
        CaseSamples {
            case: "users-20".into(),
            phase: "users".into(),
            n_users: Some(20),
            max_tokens: Some(50),
            duration_s: Some(seconds),
            prompt_tokens: Sorted::new(vec![7.0, 20.0, 93.0]).unwrap(),
            cached_tokens: cached,
            ..CaseSamples::default()
        }
    }

    #[test]
    fn a_load_is_told_whole() {
        let long = [start(31.0, Some(0)), start(33.0, Some(0))];
        let long: Vec<&CaseSamples> = long.iter().collect();
        assert_eq!(
            words("users-20", &long, Lang::En),
            "users-20: closed loop (20 users), prompts of 40 tokens on average (7 to 93), 50 output tokens, 32.0 s a start, 0 % cached"
        );
        assert_eq!(
            words("users-20", &long, Lang::Ko),
            "users-20: 닫힌 루프(사용자 20명), 프롬프트 평균 40토큰(7~93), 출력 50토큰, 기동마다 32.0초, 캐시 적중 0 %"
        );
        let short = [start(1.7, Some(60)), start(1.8, Some(0))];
        let short: Vec<&CaseSamples> = short.iter().collect();
        let told = words("users-20", &short, Lang::En);
        assert!(
            told.contains("1.8 s a start ⚠️ short (it takes 10 s), 0 to 50 % cached"),
            "{told}"
        );
        let mixed = [start(1.7, Some(0)), start(10.2, Some(0))];
        let mixed: Vec<&CaseSamples> = mixed.iter().collect();
        assert!(
            words("users-20", &mixed, Lang::Ko)
                .contains("기동마다 1.7~10.2초 ⚠️ 짧음(10초 이상이어야 함)")
        );
    }

    #[test]
    fn what_is_not_known_is_said() {
        let open = CaseSamples {
            n_users: None,
            rate_per_s: Some(2.5),
            phase: "rate".into(),
            ..start(40.0, None)
        };
        let told = words("rate-2.5", &[&open], Lang::En);
        assert!(
            told.contains("open loop (Poisson arrivals, 2.5/s)"),
            "{told}"
        );
        assert!(told.ends_with("cached share not told"), "{told}");
        let trace = CaseSamples {
            rate_per_s: Some(2.156),
            phase: "trace".into(),
            ..open
        };
        let told = words("trace-1x", &[&trace], Lang::En);
        assert!(
            told.contains("open loop (a trace's arrivals, 2.16/s on average)")
                && told.contains("up to 50 output tokens"),
            "{told}"
        );
    }
}
