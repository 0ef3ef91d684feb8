//! `monitoring`: runs the queries of the dashboard and the alerts on a real Prometheus that scrapes
//! a running server. Every query must return at least one value; a table of them is printed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{fs, net};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::served::Served;
use crate::{cargo, http};

/// Grafana's values for its variables.
const VARIABLES: [(&str, &str); 2] = [("$__rate_interval", "30s"), ("$model", ".*")];
/// Number of scrapes, one second apart, for computing rates.
const N_SCRAPES: u64 = 8;
const TARGET: &str = "engine:30000";

#[derive(Args)]
pub struct MonitoringArgs {
    /// An engine that has been built
    #[arg(long, value_name = "FILE")]
    engine_bin: Option<PathBuf>,
}

/// A query and its origin.
struct Query {
    place: String,
    expression: String,
}

pub fn run(args: &MonitoringArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    let deploy = root.join("engine").join("deploy");
    let engine = if let Some(engine) = &args.engine_bin {
        engine.clone()
    } else {
        cargo::build("dev", &cargo::MEASURED)?;
        cargo::target_dir()?.join("debug").join("engine")
    };
    let mut queries = dashboard_queries(&deploy.join("grafana").join("engine.json"))?;
    queries.extend(alert_queries(
        &deploy.join("prometheus").join("alerts.yml"),
    )?);

    let flags = [
        "--device",
        "cpu",
        "--model-path",
        "synthetic:tiny-qwen3",
        "--result-cache",
        "memory",
    ];
    let log = cargo::target_dir()?.join("monitoring.log");
    let mut served = Served::start(&engine, &flags, &log)?;
    let scratch = cargo::target_dir()?.join(format!("monitoring-{}", std::process::id()));
    let outcome = watched(&deploy.join("prometheus"), &scratch, &served, &queries);
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    }
    // If the server died, that is why the rest failed.
    served.check()?;
    outcome
}

fn watched(
    settings: &Path,
    scratch: &Path,
    served: &Served,
    queries: &[Query],
) -> Result<ExitCode> {
    fs::create_dir(scratch).with_context(|| scratch.display().to_string())?;
    for name in ["prometheus.yml", "alerts.yml"] {
        let text = fs::read_to_string(settings.join(name))?;
        let text = text
            .replace(TARGET, &served.address)
            .replace("_interval: 5s", "_interval: 1s");
        fs::write(scratch.join(name), text)?;
    }
    let config = scratch.join("prometheus.yml");
    promtool(&["check", "config", &config.display().to_string()], "")?;
    promtool(
        &["check", "metrics"],
        &http::get(&served.address, "/metrics")?.body,
    )?;
    let prometheus = Prometheus::start(&config, &scratch.join("data"), &[])?;
    for i in 0..N_SCRAPES {
        load(served, i)?;
        std::thread::sleep(Duration::from_secs(1));
    }
    let mut n_unanswered = 0;
    println!("| from | query | series | first value |\n|---|---|---|---|");
    for query in queries {
        let (n_series, value) = prometheus.ask(&query.expression)?;
        if n_series == 0 {
            n_unanswered += 1;
        }
        println!(
            "| {} | `{}` | {n_series} | {value} |",
            query.place,
            query.expression.replace('|', "\\|")
        );
    }
    if n_unanswered > 0 {
        bail!("{n_unanswered} of {} queries have no answer", queries.len());
    }
    println!("{} queries answered by Prometheus", queries.len());
    Ok(ExitCode::SUCCESS)
}

/// Requests of every kind: whole and streamed, cached, invalid.
fn load(served: &Served, i: u64) -> Result<()> {
    for (body, status) in [
        (
            format!(
                r#"{{"prompt": [{}, 2, 3], "max_tokens": 8, "ignore_eos": true}}"#,
                i + 4
            ),
            200,
        ),
        (
            format!(
                r#"{{"prompt": [{}, 5], "max_tokens": 8, "stream": true, "ignore_eos": true}}"#,
                i + 4
            ),
            200,
        ),
        (
            r#"{"prompt": [7, 8], "max_tokens": 4, "temperature": 0, "ignore_eos": true}"#
                .to_owned(),
            200,
        ),
        ("{".to_owned(), 400),
    ] {
        let answer = http::post_json(&served.address, "/v1/completions", &body)?;
        if answer.status != status {
            bail!("{body}: {} {}", answer.status, answer.body);
        }
    }
    Ok(())
}

/// Killed when the recipe ends.
pub struct Prometheus {
    child: Child,
    pub address: String,
}

impl Prometheus {
    pub fn start(config: &Path, data: &Path, flags: &[&str]) -> Result<Self> {
        let free = net::TcpListener::bind(("127.0.0.1", 0))?;
        let address = free.local_addr()?.to_string();
        drop(free);
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--log.level=warn")
            .args(flags)
            .stdout(Stdio::null())
            .spawn()
            .context("prometheus cannot be started; on Debian: apt-get install prometheus")?;
        let prometheus = Self { child, address };
        let begun = Instant::now();
        while http::get(&prometheus.address, "/-/ready").map_or(true, |ready| ready.status != 200) {
            if begun.elapsed() > Duration::from_secs(30) {
                bail!("prometheus is not ready after 30 s");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(prometheus)
    }

    /// Number of series in the result, and the first value.
    fn ask(&self, expression: &str) -> Result<(usize, String)> {
        self.ask_on("/api/v1/query", expression)
    }

    /// As [`Self::ask`], at another time than now.
    pub fn ask_at(&self, expression: &str, unix_s: f64) -> Result<(usize, String)> {
        self.ask_on(&format!("/api/v1/query?time={unix_s}"), expression)
    }

    fn ask_on(&self, path: &str, expression: &str) -> Result<(usize, String)> {
        let answer = http::post_form(&self.address, path, "query", expression)?;
        let body: Value = serde_json::from_str(&answer.body)
            .with_context(|| format!("{expression}: {}", answer.body))?;
        if body["status"] != "success" {
            bail!("{expression}: {}", answer.body);
        }
        let series = body["data"]["result"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let value = series.first().and_then(|first| first["value"][1].as_str());
        Ok((series.len(), value.unwrap_or("–").to_owned()))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails if promtool does; its other output is ignored.
fn promtool(args: &[&str], input: &str) -> Result<()> {
    const ONLY_STYLE: i32 = 3;
    let output = duct::cmd("promtool", args)
        .stdin_bytes(input.as_bytes().to_vec())
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .run()
        .context("promtool cannot be started; on Debian: apt-get install prometheus")?;
    let code = output.status.code();
    if code != Some(0) && code != Some(ONLY_STYLE) {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("promtool {}: {said}", args.join(" "));
    }
    Ok(())
}

fn dashboard_queries(path: &Path) -> Result<Vec<Query>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let dashboard: Value =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expression = target["expr"].as_str().context("a target has a query")?;
            let mut expression = expression.to_owned();
            for (name, value) in VARIABLES {
                expression = expression.replace(name, value);
            }
            queries.push(Query {
                place: panel["title"].as_str().unwrap_or("no title").to_owned(),
                expression,
            });
        }
    }
    if queries.is_empty() {
        bail!("{} has no queries", path.display());
    }
    Ok(queries)
}

/// The left side of an alert's comparison: the whole expression has no value while it is false.
fn without_threshold(expression: &str) -> &str {
    let cut = [" > ", " < ", " == "]
        .iter()
        .filter_map(|comparison| expression.rfind(comparison))
        .max();
    cut.map_or(expression, |at| &expression[..at])
}

/// The `expr:` lines, each after its `alert:`; promtool has validated the file.
fn alert_queries(path: &Path) -> Result<Vec<Query>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut queries = Vec::new();
    let mut place = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("- alert: ") {
            place = format!("alert {name}");
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            queries.push(Query {
                place: place.clone(),
                expression: without_threshold(expression).to_owned(),
            });
        }
    }
    Ok(queries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queries_of_dashboard_and_alerts_are_found() {
        let deploy = cargo::root().expect("a tree").join("engine").join("deploy");
        let panels = dashboard_queries(&deploy.join("grafana/engine.json")).expect("queries");
        assert!(panels.len() > 20, "{}", panels.len());
        assert!(panels.iter().all(|query| !query.expression.contains('$')));
        let alerts = alert_queries(&deploy.join("prometheus/alerts.yml")).expect("queries");
        assert!(
            alerts
                .iter()
                .any(|query| query.expression == "up{job=\"engine\"}")
        );
        assert!(alerts.len() >= 8 && alerts.iter().all(|query| query.place.len() > 6));
    }
}
