//! What the last rendered reports said of each experiment: `reports/rendered/verdicts.json`.
//!
//! Judging takes the reports' program and every request row; a list shall not wait for that. So it
//! repeats what was judged last, and says when runs have come since.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// As `reports` writes it.
#[derive(Debug, Default, Deserialize)]
pub struct LastVerdicts {
    /// The newest run folder that the reports have seen.
    newest_run: Option<String>,
    experiments: Vec<Judged>,
}

/// One experiment on one machine with one model.
#[derive(Debug, Deserialize)]
struct Judged {
    experiment: String,
    group: String,
    against: String,
    n_starts: usize,
    verdicts: Vec<JudgedMetric>,
}

#[derive(Debug, Deserialize)]
struct JudgedMetric {
    metric: String,
    verdict: String,
    improvement_percent: Option<f64>,
}

impl LastVerdicts {
    /// Nothing was judged yet where the file is missing.
    pub fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        serde_json::from_str(&text)
            .with_context(|| format!("{} (`cargo xtask report` writes it anew)", path.display()))
    }

    /// One line a machine and model.
    pub fn lines_of(&self, experiment: &str) -> Vec<String> {
        let judged = self
            .experiments
            .iter()
            .filter(|j| j.experiment == experiment);
        judged.map(Judged::line).collect()
    }

    /// What the verdicts do not cover; `runs`: all run folders, sorted.
    pub fn remark(&self, runs: &[impl AsRef<Path>]) -> Option<String> {
        let Some(newest) = &self.newest_run else {
            return (!runs.is_empty()).then(|| "no verdicts yet: cargo xtask report".to_owned());
        };
        let is_newer = |run: &&_| {
            let run: &Path = AsRef::<Path>::as_ref(*run);
            run.file_name()
                .is_some_and(|name| name.to_string_lossy().as_ref() > newest.as_str())
        };
        match runs.iter().filter(is_newer).count() {
            0 => None,
            n => Some(format!(
                "{n} runs are newer than these verdicts: cargo xtask report"
            )),
        }
    }
}

impl Judged {
    fn line(&self) -> String {
        let words: Vec<String> = self
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
            self.group.replace('`', ""),
            words.join(", "),
            self.against,
            self.n_starts,
            if self.n_starts == 1 { "" } else { "s" }
        )
    }
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
            last.lines_of("02-b"),
            ["card · model: latency +7.4 % better, ttft undecided (against 01-a, 8 server starts)"]
        );
        assert_eq!(last.lines_of("01-a"), Vec::<String>::new());
    }

    #[test]
    fn runs_since_the_last_report_are_counted() {
        let last: LastVerdicts = serde_json::from_str(TEXT).expect("works");
        let known = "20260102T000000Z_02-b_h_1";
        assert_eq!(last.remark(&[known]), None);
        let remark = last
            .remark(&[known, "20260103T000000Z_02-b_h_2"])
            .expect("works");
        assert!(remark.starts_with("1 runs are newer"), "{remark}");
        assert!(LastVerdicts::default().remark(&[known]).is_some());
        assert_eq!(LastVerdicts::default().remark(&[] as &[&str]), None);
    }

    #[test]
    fn no_file_is_no_verdict() {
        let dir = tempfile::tempdir().expect("works");
        let missing = LastVerdicts::read(&dir.path().join("verdicts.json")).expect("works");
        assert!(missing.experiments.is_empty());
        let broken = dir.path().join("broken.json");
        std::fs::write(&broken, "{").expect("works");
        let error = LastVerdicts::read(&broken)
            .expect_err("refused")
            .to_string();
        assert!(error.contains("cargo xtask report"), "{error}");
    }
}
