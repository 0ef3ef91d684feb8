//! What is asked of a server ([`records::workload`]), and the limits of its values.

pub use records::workload::*;

use crate::spec::FieldError;

/// The measured case with the most load: most users, else the highest rate, else the last one.
pub fn heaviest_case(workload: &Workload) -> Option<Case> {
    let load = |arrival: Arrival| match arrival {
        Arrival::ClosedLoop { n_users: 1 } => (0, 0.0),
        Arrival::OpenLoop { rate_per_s } => (1, rate_per_s),
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
    for name in &workload.prompts {
        let is_file_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(is_file_name) {
            return Err(FieldError::new(
                "workload.prompts",
                name,
                "names of files in data/prompts, without .jsonl: letters, digits, `-`, `_`, `.`",
            ));
        }
    }
    in_range("workload.temperature", workload.temperature, 0.0, 2.0)?;
    in_range(
        "workload.request_timeout_s",
        workload.request_timeout_s,
        0.1,
        86_400.0,
    )?;
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
        count("workload.rate.n_requests", rate.n_requests, 1, 100_000)?;
        tokens("workload.rate.output_tokens", rate.output_tokens)?;
        distinct("workload.rate.rates_per_s", &rate.rates_per_s)?;
        rate.rates_per_s
            .iter()
            .try_for_each(|&r| in_range("workload.rate.rates_per_s", r, 0.001, 10_000.0))?;
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
    if workload.cases().iter().all(|case| case.warmup) {
        return Err(FieldError::new(
            "workload",
            "no case",
            "given at least one of latency, ladder, users, rate, models",
        ));
    }
    Ok(())
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
