//! The gates before the canary: the candidate's answers and its speed beside the deployed
//! configuration's, each judged by the program that judges experiments.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use duct::cmd;
use serde_json::Value;

use super::configuration::Configuration;
use super::journal::Verdict;
use crate::cargo;
use crate::served::Served;

/// Names of the two arms.
const ARMS: [&str; 2] = ["01-deployed", "02-candidate"];

pub struct Gates<'a> {
    pub engine: &'a Path,
    pub experiments: &'a Path,
    pub reports: &'a Path,
    pub deployed: &'a Configuration,
    pub candidate: &'a Configuration,
    pub cache: &'a Path,
    /// The run folder.
    pub folder: &'a Path,
}

impl Gates<'_> {
    /// Answers to a fixed text: those of the deployed configuration, or of a golden file.
    ///
    /// # Errors
    ///
    /// If a server does not start or does not answer.
    pub fn quality(&self, golden: Option<&Path>) -> Result<Verdict> {
        let candidate = self.serve(self.candidate, "quality-candidate.log")?;
        let url = format!("http://{}", candidate.address);
        let mut args = vec!["answers".to_owned(), url];
        let mut deployed = None;
        if let Some(file) = golden {
            args.extend(["--golden".into(), file.display().to_string()]);
        } else {
            let served = self.serve(self.deployed, "quality-deployed.log")?;
            args.extend(["--against".into(), format!("http://{}", served.address)]);
            deployed = Some(served);
        }
        let asked = cmd(self.experiments, &args)
            .dir(cargo::root()?)
            .stdout_capture()
            .unchecked()
            .run()
            .context("experiments cannot be started")?;
        candidate.stop()?;
        if let Some(deployed) = deployed {
            deployed.stop()?;
        }
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        fs::write(self.folder.join("quality.json"), &text)?;
        quality_of(&text)
    }

    fn serve(&self, configuration: &Configuration, log: &str) -> Result<Served> {
        let flags = configuration.serve_flags(self.cache);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        Served::start(self.engine, &flags, &self.folder.join(log))
    }

    /// Interleaved rounds of both, and the reports' verdicts on them.
    ///
    /// # Errors
    ///
    /// If a run fails, or nothing can be compared.
    pub fn performance(
        &self,
        workload: &str,
        replicates: u32,
        margin_percent: f64,
        quick: bool,
    ) -> Result<Verdict> {
        let experiments = self.folder.join("experiments");
        let runs = self.folder.join("runs");
        let source = workload_file(workload)?;
        let text = fs::read_to_string(&source).with_context(|| source.display().to_string())?;
        for (name, configuration) in ARMS.iter().zip([self.deployed, self.candidate]) {
            let folder = experiments.join(name);
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            fs::write(
                folder.join("experiment.toml"),
                configuration.experiment(name, &text)?,
            )?;
        }
        let mut args: Vec<String> = ["run", ARMS[0], ARMS[1], "--wait", "--allow-dirty"]
            .map(str::to_owned)
            .to_vec();
        if quick {
            args.push("--quick".into());
        }
        for (name, value) in [
            ("--replicates", replicates.to_string()),
            ("--experiments-dir", experiments.display().to_string()),
            ("--runs-dir", runs.display().to_string()),
            ("--engine-bin", self.engine.display().to_string()),
        ] {
            args.extend([name.to_owned(), value]);
        }
        let log = self.folder.join("performance.log");
        let measured = cmd(self.experiments, &args)
            .dir(cargo::root()?)
            .stderr_to_stdout()
            .stdout_path(&log)
            .unchecked()
            .run()
            .context("experiments cannot be started")?;
        ensure!(
            measured.status.success(),
            "the campaign failed ({}); {}",
            measured.status,
            log.display()
        );
        let margin = margin_percent.to_string();
        let runs = runs.display().to_string();
        let compare = |rest: &[&str]| {
            let fixed = ["compare", ARMS[0], ARMS[1], "--lang", "en"];
            let places = ["--margin", &margin, "--runs-dir", &runs];
            let args = fixed.iter().chain(&places).chain(rest);
            cmd(self.reports, args)
                .dir(cargo::root()?)
                .read()
                .context("reports compare")
        };
        fs::write(self.folder.join("performance.txt"), compare(&[])?)?;
        let judged = compare(&["--json"])?;
        fs::write(self.folder.join("performance.json"), &judged)?;
        performance_of(&judged)
    }
}

fn workload_file(name: &str) -> Result<PathBuf> {
    let file = cargo::root()?
        .join("experiments")
        .join(name)
        .join("experiment.toml");
    if !file.is_file() {
        bail!("--workload {name}: there is no {}", file.display());
    }
    Ok(file)
}

/// What `experiments answers` printed.
fn quality_of(text: &str) -> Result<Verdict> {
    let found: Value = serde_json::from_str(text).context("experiments answers printed no JSON")?;
    let number = |name: &str| {
        let value = found[name].as_f64();
        value.with_context(|| format!("`{name}` is missing in {found}"))
    };
    let told = format!(
        "{} positions, argmax agreement {:.4} (limit {}), mean |Δ log-probability| {:.4} (limit {})",
        found["n_positions"],
        number("argmax_agreement")?,
        number("least_agreement")?,
        number("mean_abs_delta")?,
        number("most_mean_delta")?,
    );
    Ok(match found["outcome"].as_str() {
        Some("right") => Verdict::Passed(told),
        _ => Verdict::Refused(told),
    })
}

/// What `reports compare --json` printed. A figure that is worse refuses; one that is undecided does
/// not, and is counted. That nothing at all could be decided refuses, too.
fn performance_of(text: &str) -> Result<Verdict> {
    let found: Value = serde_json::from_str(text).context("reports compare printed no JSON")?;
    let warnings = found["warnings"].as_array().context("no warnings")?;
    let verdicts = found["verdicts"].as_array().context("no verdicts")?;
    if !warnings.is_empty() {
        return Ok(Verdict::Refused(format!(
            "the two are not comparable: {}",
            found["warnings"]
        )));
    }
    let of = |word: &str| verdicts.iter().filter(|v| v["verdict"] == word).count();
    let (faster, same, slower) = (of("faster"), of("same"), of("slower"));
    let told = format!(
        "{} figures: {faster} better, {same} the same, {slower} worse, {} undecided{}",
        verdicts.len(),
        verdicts.len() - faster - same - slower,
        resolution(verdicts)
    );
    let worse: Vec<String> = verdicts
        .iter()
        .filter(|verdict| verdict["verdict"] == "slower")
        .map(|verdict| {
            let text = |name: &str| verdict[name].as_str().unwrap_or("–").to_owned();
            format!(
                "{} {}: {} → {}",
                text("case"),
                text("short"),
                text("before"),
                text("after")
            )
        })
        .collect();
    if !worse.is_empty() {
        return Ok(Verdict::Refused(format!("{told}: {}", worse.join("; "))));
    }
    let too_few = verdicts
        .iter()
        .filter(|v| v["verdict"] == "too few")
        .count();
    if verdicts.is_empty() || too_few == verdicts.len() {
        return Ok(Verdict::Refused(format!(
            "{told}: too few starts to see a regression; more --replicates"
        )));
    }
    Ok(Verdict::Passed(told))
}

/// What the machine's noise lets this gate see: half of the intervals reach further down.
fn resolution(verdicts: &[Value]) -> String {
    let lows = verdicts.iter().filter_map(|v| v["interval"][0].as_f64());
    let mut lows: Vec<f64> = lows.collect();
    lows.sort_by(f64::total_cmp);
    lows.get(lows.len() / 2).map_or_else(String::new, |low| {
        format!("; half of the intervals reach below {low:.0} %")
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn answers_pass_or_are_refused_with_their_figures() {
        let found = |outcome: &str| {
            json!({"outcome": outcome, "n_positions": 64, "argmax_agreement": 0.5,
                "mean_abs_delta": 0.3, "least_agreement": 0.9, "most_mean_delta": 0.2})
            .to_string()
        };
        let passed = quality_of(&found("right")).expect("read");
        assert!(matches!(passed, Verdict::Passed(told) if told.contains("64 positions")));
        let refused = quality_of(&found("wrong")).expect("read");
        assert!(matches!(refused, Verdict::Refused(told) if told.contains("0.5000 (limit 0.9)")));
        assert!(quality_of("").is_err());
        assert!(
            quality_of("{\"outcome\": \"right\"}").is_err(),
            "no figures"
        );
    }

    fn judged(warnings: &[&str], verdicts: &[&str]) -> Verdict {
        let verdicts: Vec<Value> = verdicts
            .iter()
            .map(|v| json!({"verdict": v, "interval": [-7.2, 3.0], "case": "users 5", "short": "TTFT", "before": "1", "after": "2"}))
            .collect();
        let text = json!({"warnings": warnings, "verdicts": verdicts}).to_string();
        performance_of(&text).expect("read")
    }

    #[test]
    fn a_figure_that_is_worse_refuses_and_one_that_is_undecided_does_not() {
        let passed = judged(&[], &["same", "faster", "not seen"]);
        assert!(
            matches!(&passed, Verdict::Passed(told) if told.contains("1 better, 1 the same, 0 worse, 1 undecided; half of the intervals reach below -7 %")),
            "{passed:?}"
        );
        let refused = judged(&[], &["same", "slower"]);
        assert!(matches!(refused, Verdict::Refused(told) if told.contains("users 5 TTFT: 1 → 2")));
        for nothing in [judged(&[], &[]), judged(&[], &["too few"])] {
            assert!(matches!(nothing, Verdict::Refused(_)), "{nothing:?}");
        }
        let other = judged(&["other machines"], &["faster"]);
        assert!(matches!(other, Verdict::Refused(told) if told.contains("other machines")));
    }
}
