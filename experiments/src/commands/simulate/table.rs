//! `table.md`: what `compared.jsonl` says, for people.

use std::fmt::Write as _;

use super::compared::{
    ComparedCase, ComparedFigure, ENOUGH_REQUESTS, Figure, LIMIT, Standing, spread,
};

/// Renders all of it. The same cases give the same text.
pub fn render(cases: &[ComparedCase]) -> String {
    let mut text = String::from("# Simulated against measured\n\n");
    let devices = |of: fn(&ComparedCase) -> &String| {
        let mut names: Vec<&str> = cases.iter().map(|case| of(case).as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    };
    let percent = LIMIT * 100.0;
    let mut run_ids: Vec<(&str, bool)> = cases
        .iter()
        .map(|case| (case.run_id.as_str(), case.is_fitted_on))
        .collect();
    run_ids.sort_unstable();
    run_ids.dedup();
    let fitted: Vec<&str> = run_ids
        .iter()
        .filter(|run| run.1)
        .map(|run| run.0)
        .collect();
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "{} runs on {}, simulated on {}. A deviation is (simulated − measured) / measured; the limit \
         is {percent} %, and ✗ marks what is beyond it. Some figure of the simulated card is from \
         the {} runs marked *: {}.\n\n\
         Judged are rates, means and medians of at least {ENOUGH_REQUESTS} requests. Apart from them \
         stand 99th percentiles and maxima of as many, which the slowest request or two decide, and \
         all figures of fewer requests.\n",
        run_ids.len(),
        devices(|case| &case.device),
        devices(|case| &case.simulated_device),
        fitted.len(),
        fitted.join(", "),
    );
    summary(&mut text, cases);
    beyond(&mut text, cases);
    every_case(&mut text, cases);
    text
}

type Found<'a> = (&'a ComparedCase, &'a ComparedFigure);

fn of_standing(cases: &[ComparedCase], standing: Standing) -> impl Iterator<Item = Found<'_>> {
    cases
        .iter()
        .flat_map(|case| case.figures.iter().map(move |figure| (case, figure)))
        .filter(move |(case, found)| Standing::of(found.figure, case.n_requests) == standing)
}

fn summary(text: &mut String, cases: &[ComparedCase]) {
    text.push_str(
        "| figure | judged | within | largest | tails | within | largest | of few requests | within | largest |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut line = |name: &str, is_in: &dyn Fn(&Found<'_>) -> bool| {
        let _ = write!(text, "| {name} |");
        for standing in [Standing::Judged, Standing::Tail, Standing::FewRequests] {
            let deviations: Vec<f64> = of_standing(cases, standing)
                .filter(|found| is_in(found))
                .map(|(_, found)| found.deviation().abs())
                .collect();
            let within = deviations.iter().filter(|d| **d <= LIMIT).count();
            match deviations.iter().copied().reduce(f64::max) {
                Some(largest) => {
                    let _ = write!(
                        text,
                        " {} | {within} | {:.1} % |",
                        deviations.len(),
                        100.0 * largest
                    );
                }
                None => text.push_str(" – | – | – |"),
            }
        }
        text.push('\n');
    };
    for figure in Figure::ALL {
        line(figure.heading(), &|(_, found)| found.figure == figure);
    }
    line("all", &|_| true);
    line("all, of runs without *", &|(case, _)| !case.is_fitted_on);
}

/// Every figure beyond the limit, with how far measured runs lie apart.
fn beyond(text: &mut String, cases: &[ComparedCase]) {
    for (standing, heading) in [
        (Standing::Judged, "Judged, and beyond the limit"),
        (Standing::Tail, "Tails beyond the limit"),
        (Standing::FewRequests, "Of few requests, beyond the limit"),
    ] {
        let _ = writeln!(text, "\n## {heading}\n");
        let misses: Vec<Found<'_>> = of_standing(cases, standing)
            .filter(|(_, found)| !found.is_within())
            .collect();
        if misses.is_empty() {
            text.push_str("None.\n");
            continue;
        }
        text.push_str(
            "| run | case | requests | figure | measured | simulated | deviation | measured runs lie apart by |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
        for (case, found) in misses {
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {:.2} | {:.2} | {} | {} |",
                run_name(case),
                case.case,
                case.n_requests,
                found.figure.heading(),
                found.measured,
                found.simulated,
                percent(found.deviation()),
                apart(cases, case, found.figure),
            );
        }
    }
}

fn every_case(text: &mut String, cases: &[ComparedCase]) {
    let mut seen: Vec<&ComparedCase> = Vec::new();
    for of in cases {
        if seen
            .iter()
            .any(|other| other.configuration() == of.configuration())
        {
            continue;
        }
        seen.push(of);
        let group: Vec<&ComparedCase> = cases
            .iter()
            .filter(|case| case.configuration() == of.configuration())
            .collect();
        let flags = match of.extra_flags.as_slice() {
            [] => String::new(),
            flags => format!(" -- {}", flags.join(" ")),
        };
        let _ = writeln!(text, "\n## {}{flags}, {}\n", of.experiment, of.model);
        text.push_str("| case | run | requests |");
        for figure in Figure::ALL {
            let _ = write!(text, " {} |", figure.heading());
        }
        let _ = writeln!(text, "\n|---|---|---|{}", "---|".repeat(Figure::ALL.len()));
        let mut names: Vec<&str> = Vec::new();
        for case in &group {
            if names.contains(&case.case.as_str()) {
                continue;
            }
            names.push(&case.case);
            let of_case: Vec<&&ComparedCase> = group
                .iter()
                .filter(|other| other.case == case.case)
                .collect();
            for row in &of_case {
                case_line(text, row);
            }
            if of_case.len() > 1 {
                let _ = write!(text, "| | measured runs lie apart by | |");
                for figure in Figure::ALL {
                    let (_, apart) = spread(cases, case, figure);
                    let cell = apart.map_or_else(String::new, |s| format!("{:.1} %", 100.0 * s));
                    let _ = write!(text, " {cell} |");
                }
                text.push('\n');
            }
        }
    }
}

fn case_line(text: &mut String, case: &ComparedCase) {
    let _ = write!(
        text,
        "| {} | {} | {} |",
        case.case,
        run_name(case),
        case.n_requests
    );
    for figure in Figure::ALL {
        match case.get(figure) {
            Some(found) => {
                let mark = if found.is_within() { "" } else { " ✗" };
                let _ = write!(
                    text,
                    " {:.2} ({}){mark} |",
                    found.measured,
                    percent(found.deviation())
                );
            }
            None => text.push_str(" – |"),
        }
    }
    text.push('\n');
}

/// Time and hash, which tell runs of one configuration apart.
fn run_name(case: &ComparedCase) -> String {
    let mut parts = case.run_id.split('_');
    let time = parts.next().unwrap_or_default();
    let name = parts.next().unwrap_or_default();
    let mark = if case.is_fitted_on { " *" } else { "" };
    format!("{time} {name}{mark}")
}

fn apart(cases: &[ComparedCase], case: &ComparedCase, figure: Figure) -> String {
    match spread(cases, case, figure) {
        (n_runs, Some(spread)) => format!("{:.1} % ({n_runs} runs)", 100.0 * spread),
        _ => "– (1 run)".to_string(),
    }
}

fn percent(share: f64) -> String {
    format!("{:+.1} %", 100.0 * share)
}
