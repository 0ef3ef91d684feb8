//! What is asked of a server ([`records::workload`]), and the limits of its values.

pub use records::workload::*;

use crate::spec::FieldError;

/// The measured case with the most load: most users, else the highest rate, else the last one.
pub fn heaviest_case(workload: &Workload) -> Option<Case> {
    let load = |arrival: Arrival| match arrival {
        Arrival::ClosedLoop { n_users: 1 } => (0, 0.0),
        Arrival::OpenLoop { rate_per_s } => (1, rate_per_s),
        Arrival::Trace { speed } => (1, speed),
        Arrival::ClosedLoop { n_users } => (2, f64::from(n_users)),
    };
    let measured = workload.cases().into_iter().filter(|case| !case.warmup);
    measured.max_by(|a, b| {
        let (a, b) = (load(a.arrival), load(b.arrival));
        a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))
    })
}

/// Before anything runs: an impossible value is named with its limit.
///
/// # Errors
///
/// The first field with an impossible value, and its limit.
pub fn validate(workload: &Workload) -> Result<(), FieldError> {
    if workload.prompts.is_empty() {
        return Err(FieldError::new(
            "workload.prompts",
            "[]",
            "at least one file of data/prompts",
        ));
    }
    prompt_sources(workload)?;
    in_range("workload.temperature", workload.temperature, 0.0, 2.0)?;
    in_range(
        "workload.request_timeout_s",
        workload.request_timeout_s,
        0.1,
        86_400.0,
    )?;
    if let Some(seconds) = workload.measured_s {
        in_range("workload.measured_s", seconds, 1.0, 3_600.0)?;
    }
    count(
        "workload.warmup.n_requests",
        workload.warmup.n_requests,
        0,
        1_000,
    )?;
    tokens(
        "workload.warmup.output_tokens",
        workload.warmup.output_tokens,
    )?;
    if let Some(latency) = &workload.latency {
        count(
            "workload.latency.n_requests",
            latency.n_requests,
            1,
            100_000,
        )?;
        tokens("workload.latency.output_tokens", latency.output_tokens)?;
    }
    if let Some(ladder) = &workload.ladder {
        count("workload.ladder.n_requests", ladder.n_requests, 1, 100_000)?;
        distinct("workload.ladder.output_tokens", &ladder.output_tokens)?;
        ladder
            .output_tokens
            .iter()
            .try_for_each(|&n| tokens("workload.ladder.output_tokens", n))?;
    }
    if let Some(users) = &workload.users {
        count(
            "workload.users.n_requests_per_user",
            users.n_requests_per_user,
            1,
            10_000,
        )?;
        tokens("workload.users.output_tokens", users.output_tokens)?;
        distinct("workload.users.n_users", &users.n_users)?;
        users
            .n_users
            .iter()
            .try_for_each(|&n| count("workload.users.n_users", n, 1, 4_096))?;
    }
    if let Some(rate) = &workload.rate {
        match (rate.n_requests, rate.measured_s) {
            (Some(n), None) => count("workload.rate.n_requests", n, 1, 100_000)?,
            (None, Some(s)) => in_range("workload.rate.measured_s", s, 1.0, 86_400.0)?,
            (n, s) => {
                return Err(FieldError::new(
                    "workload.rate",
                    format!("n_requests {n:?}, measured_s {s:?}"),
                    "given one of n_requests and measured_s",
                ));
            }
        }
        tokens("workload.rate.output_tokens", rate.output_tokens)?;
        distinct("workload.rate.rates_per_s", &rate.rates_per_s)?;
        rate.rates_per_s
            .iter()
            .try_for_each(|&r| in_range("workload.rate.rates_per_s", r, 0.001, 10_000.0))?;
    }
    for &rate_per_s in workload.rate.iter().flat_map(|rate| &rate.rates_per_s) {
        let n = workload
            .rate
            .as_ref()
            .map_or(0, |r| r.n_requests_at(rate_per_s));
        count("requests of workload.rate", n, 1, 100_000)?;
    }
    if let Some(trace) = &workload.trace {
        count("workload.trace.n_requests", trace.n_requests, 2, 100_000)?;
        distinct("workload.trace.speeds", &trace.speeds)?;
        trace
            .speeds
            .iter()
            .try_for_each(|&speed| in_range("workload.trace.speeds", speed, 0.01, 1_000.0))?;
    }
    if let Some(slo) = &workload.slo {
        slo_search(slo)?;
    }
    if let Some(models) = &workload.models {
        count("workload.models.n_requests", models.n_requests, 1, 100_000)?;
        distinct("workload.models.names", &models.names)?;
        distinct("workload.models.output_tokens", &models.output_tokens)?;
        models
            .output_tokens
            .iter()
            .try_for_each(|&n| tokens("workload.models.output_tokens", n))?;
    }
    if workload.slo.is_none() && workload.cases().iter().all(|case| case.warmup) {
        return Err(FieldError::new(
            "workload",
            "no case",
            "given at least one of latency, ladder, users, rate, trace, slo, models",
        ));
    }
    Ok(())
}

/// Files may stand together; what is made stands alone, and is of token ids.
fn prompt_sources(workload: &Workload) -> Result<(), FieldError> {
    let refused = |value: &str, limit: &str| Err(FieldError::new("workload.prompts", value, limit));
    for name in &workload.prompts {
        let source = match name.parse::<PromptSource>() {
            Ok(source) => source,
            Err(problem) => return refused(name, &problem),
        };
        let is_trace = matches!(source, PromptSource::Trace(_));
        if is_trace != workload.trace.is_some() {
            return refused(
                name,
                "trace:NAME where there is a [workload.trace], and only there",
            );
        }
        if matches!(source, PromptSource::File(_)) {
            continue;
        }
        if workload.prompts.len() > 1 {
            return refused(name, "the only source: prompts that are made stand alone");
        }
        if workload.endpoint != ApiEndpoint::Completions {
            return refused(
                name,
                "sent to endpoint = \"completions\": a chat takes no token ids",
            );
        }
        let others = [
            workload.latency.is_some(),
            workload.ladder.is_some(),
            workload.users.is_some(),
            workload.rate.is_some(),
            workload.slo.is_some(),
            workload.models.is_some(),
        ];
        if is_trace && others.contains(&true) {
            return refused(
                name,
                "the prompts of [workload.trace] alone, beside no other case",
            );
        }
        let is_open = workload.rate.is_some()
            || matches!(&workload.slo, Some(slo) if slo.load == LoadKind::Open);
        if matches!(source, PromptSource::Turns(_)) && is_open {
            return refused(
                name,
                "sent by users of a closed loop: a turn waits for the answer to the one before",
            );
        }
    }
    Ok(())
}

fn slo_search(slo: &SloSearch) -> Result<(), FieldError> {
    let field = |name: &str| format!("slo.{name}");
    let limits = [
        ("ttft_ms", slo.ttft_ms),
        ("tpot_ms", slo.tpot_ms),
        ("e2el_ms", slo.e2el_ms),
    ];
    if limits.iter().all(|(_, limit)| limit.is_none()) {
        let needed = "given at least one limit: ttft_ms, tpot_ms, e2el_ms";
        return Err(FieldError::new("slo", "no limit", needed));
    }
    for (name, limit) in limits {
        if let Some(ms) = limit {
            in_range(&field(name), ms, 0.001, 86_400_000.0)?;
        }
    }
    in_range(&field("share"), slo.share, 0.01, 1.0)?;
    in_range(&field("measured_s"), slo.measured_s, 1.0, 3_600.0)?;
    tokens(&field("output_tokens"), slo.output_tokens)?;
    let (least, most) = match slo.load {
        LoadKind::Open => (0.001, 10_000.0),
        LoadKind::Closed => (1.0, 4_096.0),
    };
    for (name, load) in [("start", slo.start), ("limit", slo.limit)] {
        in_range(&field(name), load, least, most)?;
        if slo.load == LoadKind::Closed && load.fract() != 0.0 {
            return Err(FieldError::new(
                field(name),
                load,
                "a whole number of users",
            ));
        }
    }
    if slo.start > slo.limit {
        let limit = format!("at most slo.limit, {}", slo.limit);
        return Err(FieldError::new(field("start"), slo.start, limit));
    }
    let most_requests = slo.limit * slo.measured_s;
    if slo.load == LoadKind::Open && most_requests > 100_000.0 {
        let limit = "such that limit × measured_s is at most 100000 requests";
        return Err(FieldError::new(field("limit"), slo.limit, limit));
    }
    Ok(())
}

/// `ttft_ms=200,tpot_ms=20,share=0.95`, with `load=open|closed`, `start`, `limit`, `measured_s` and
/// `output_tokens` where the defaults do not fit.
///
/// # Errors
///
/// If a key is unknown, given twice, or no number. Whether the values fit is [`validate`]'s business.
pub fn parse_slo(typed: &str, output_tokens: u32) -> Result<SloSearch, FieldError> {
    const KEYS: &str =
        "ttft_ms, tpot_ms, e2el_ms, share, load, start, limit, measured_s, output_tokens";
    let mut slo = SloSearch {
        load: LoadKind::Open,
        start: 1.0,
        limit: 1_024.0,
        measured_s: 30.0,
        output_tokens,
        ttft_ms: None,
        tpot_ms: None,
        e2el_ms: None,
        share: 0.95,
    };
    let mut seen: Vec<&str> = Vec::new();
    for part in typed.split(',').map(str::trim) {
        let Some((key, value)) = part.split_once('=') else {
            let limit = "KEY=VALUE, for instance ttft_ms=200,tpot_ms=20,share=0.95";
            return Err(FieldError::new("--slo", part, limit));
        };
        let (key, value) = (key.trim(), value.trim());
        if seen.contains(&key) {
            return Err(FieldError::new("--slo", part, format!("the only {key}")));
        }
        seen.push(key);
        let number = || {
            let parsed = value.parse::<f64>().ok().filter(|v| v.is_finite());
            parsed.ok_or_else(|| FieldError::new(format!("--slo {key}"), value, "a number"))
        };
        match key {
            "ttft_ms" => slo.ttft_ms = Some(number()?),
            "tpot_ms" => slo.tpot_ms = Some(number()?),
            "e2el_ms" => slo.e2el_ms = Some(number()?),
            "share" => slo.share = number()?,
            "start" => slo.start = number()?,
            "limit" => slo.limit = number()?,
            "measured_s" => slo.measured_s = number()?,
            "output_tokens" => {
                slo.output_tokens = value.parse().map_err(|_| {
                    FieldError::new("--slo output_tokens", value, "a whole number of tokens")
                })?;
            }
            "load" => {
                slo.load = match value {
                    "open" => LoadKind::Open,
                    "closed" => LoadKind::Closed,
                    _ => return Err(FieldError::new("--slo load", value, "open or closed")),
                }
            }
            _ => {
                return Err(FieldError::new("--slo", part, format!("one of {KEYS}")));
            }
        }
    }
    Ok(slo)
}

fn count(field: &str, value: u32, min: u32, max: u32) -> Result<(), FieldError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(FieldError::new(field, value, format!("{min} to {max}")))
    }
}

fn tokens(field: &str, value: u32) -> Result<(), FieldError> {
    count(field, value, 1, 131_072)
}

fn in_range(field: &str, value: f64, min: f64, max: f64) -> Result<(), FieldError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(FieldError::new(field, value, format!("{min} to {max}")))
    }
}

/// Case names are made of these values, so a repeated one would be two cases of one name.
fn distinct<T: PartialEq + std::fmt::Debug>(field: &str, values: &[T]) -> Result<(), FieldError> {
    let repeated = values
        .iter()
        .enumerate()
        .any(|(i, value)| values[..i].contains(value));
    if values.is_empty() || repeated {
        return Err(FieldError::new(
            field,
            format!("{values:?}"),
            "a list of one or more distinct values",
        ));
    }
    Ok(())
}
