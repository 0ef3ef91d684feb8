//! What the last rendered reports said of each experiment: `verdicts.json`.
//!
//! Judging takes every request row; a list shall not wait for that. So it repeats what was judged last,
//! and says when runs have come since.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use records::verdicts::{Judged, LastVerdicts};

/// Nothing was judged yet where the file is missing.
pub fn read(path: &Path) -> Result<LastVerdicts> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(LastVerdicts::default());
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    serde_json::from_str(&text)
        .with_context(|| format!("{} (`cargo xtask report` writes it anew)", path.display()))
}

/// One line a machine and model.
pub fn lines_of(last: &LastVerdicts, experiment: &str) -> Vec<String> {
    let judged = last.experiments.iter();
    judged
        .filter(|judged| judged.experiment == experiment)
        .map(line)
        .collect()
}

/// What the verdicts do not cover; `run_ids`: of all runs.
pub fn remark<'a>(
    last: &LastVerdicts,
    run_ids: impl ExactSizeIterator<Item = &'a str>,
) -> Option<String> {
    let Some(newest) = &last.newest_run else {
        return (run_ids.len() > 0).then(|| "no verdicts yet: cargo xtask report".to_owned());
    };
    match run_ids.filter(|run_id| *run_id > newest.as_str()).count() {
        0 => None,
        n => Some(format!(
            "{n} runs are newer than these verdicts: cargo xtask report"
        )),
    }
}

fn line(judged: &Judged) -> String {
    let changes: Vec<String> = judged
        .verdicts
        .iter()
        .map(|v| match (v.verdict.as_str(), v.improvement_percent) {
            ("faster" | "slower", Some(change)) => {
                let word = if change > 0.0 { "better" } else { "worse" };
                format!("{} {change:+.1} % {word}", v.metric)
            }
            (word, _) => format!("{} {word}", v.metric),
        })
        .collect();
    format!(
        "{}: {} (against {}, {} server start{})",
        judged.group.replace('`', ""),
        changes.join(", "),
        judged.against,
        judged.n_starts,
        if judged.n_starts == 1 { "" } else { "s" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"newest_run":"20260102T000000Z_02-b_h_1","experiments":[
        {"experiment":"02-b","group":"card · model","against":"01-a","n_starts":8,"verdicts":[
            {"metric":"latency","case":"latency-10","verdict":"faster","improvement_percent":7.38,"interval_percent":[5.0,9.0]},
            {"metric":"ttft","case":"latency-10","verdict":"undecided","improvement_percent":1.0,"interval_percent":null}]}]}"#;

    #[test]
    fn a_line_repeats_what_was_judged() {
        let last: LastVerdicts = serde_json::from_str(TEXT).expect("works");
        assert_eq!(
            lines_of(&last, "02-b"),
            ["card · model: latency +7.4 % better, ttft undecided (against 01-a, 8 server starts)"]
        );
        assert_eq!(lines_of(&last, "01-a"), Vec::<String>::new());
    }

    #[test]
    fn runs_since_the_last_report_are_counted() {
        let last: LastVerdicts = serde_json::from_str(TEXT).expect("works");
        let known = "20260102T000000Z_02-b_h_1";
        assert_eq!(remark(&last, [known].into_iter()), None);
        let newer = [known, "20260103T000000Z_02-b_h_2"];
        let text = remark(&last, newer.into_iter()).expect("works");
        assert!(text.starts_with("1 runs are newer"), "{text}");
        let none = LastVerdicts::default();
        assert!(remark(&none, [known].into_iter()).is_some());
        assert_eq!(remark(&none, [].into_iter()), None);
    }

    #[test]
    fn no_file_is_no_verdict() {
        let dir = tempfile::tempdir().expect("works");
        let missing = read(&dir.path().join("verdicts.json")).expect("works");
        assert!(missing.experiments.is_empty());
        let broken = dir.path().join("broken.json");
        std::fs::write(&broken, "{").expect("works");
        let error = read(&broken).expect_err("refused").to_string();
        assert!(error.contains("cargo xtask report"), "{error}");
    }
}
