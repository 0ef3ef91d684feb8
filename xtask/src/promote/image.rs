//! The release folder: the engine, its configuration, a bill of materials and the digests of all; and a
//! container image where Docker or Podman can build one.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use duct::cmd;
use sha2::{Digest, Sha256};

use super::configuration::Configuration;
use super::journal::Verdict;
use crate::cargo;

/// Writes CycloneDX from cargo's own list of what is linked.
const CYCLONEDX: &str = "0.5.9";
const SBOM: &str = "engine.cdx.json";
const DIGESTS: &str = "SHA256SUMS";
const DOCKERFILE: &str = "engine/deploy/Dockerfile";

/// # Errors
///
/// If a file cannot be written, or cargo-cyclonedx cannot be built.
pub fn build(engine: &Path, configuration: &Configuration, folder: &Path) -> Result<Verdict> {
    let release = folder.join("release");
    fs::create_dir_all(&release).with_context(|| release.display().to_string())?;
    copy(engine, &release.join("engine"))?;
    copy(&configuration.file, &release.join("serve.toml"))?;
    let n_components = write_sbom(&release.join(SBOM))?;
    let container = container(&release)?;
    let sums = digests(&release)?;
    fs::write(release.join(DIGESTS), &sums)?;
    let told = format!(
        "{}: {} files, {SBOM} with {n_components} components",
        release.display(),
        sums.lines().count()
    );
    Ok(match container {
        Container::Built(id) => Verdict::Passed(format!("{told}, image {id}")),
        Container::NotBuilt(why) => Verdict::NotDone(format!(
            "no container image was built: {why}; the release folder is there, {told}"
        )),
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Returns the number of components.
fn write_sbom(file: &Path) -> Result<usize> {
    let program = cargo::tool("cargo-cyclonedx", CYCLONEDX)?;
    // It writes next to each manifest of the workspace; only the engine's is kept.
    let name = format!("sbom-{}", std::process::id());
    let made = cmd!(
        &program,
        "cyclonedx",
        "--manifest-path",
        "engine/Cargo.toml",
        "--format",
        "json",
        "--spec-version",
        "1.5",
        "--override-filename",
        &name
    )
    .dir(cargo::root()?)
    .stdout_null()
    .stderr_capture()
    .unchecked()
    .run()
    .context("cargo-cyclonedx cannot be started")?;
    let members = [
        "",
        "xtask",
        "xtask/fuzz",
        "engine",
        "kernels",
        "kernels/gpu",
        "kernels/host",
    ];
    let others = ["records", "experiments", "reports"];
    let mut text = None;
    for member in members.iter().chain(&others) {
        let path = cargo::root()?.join(member).join(format!("{name}.json"));
        let Ok(found) = fs::read_to_string(&path) else {
            continue;
        };
        fs::remove_file(&path).with_context(|| path.display().to_string())?;
        if *member == "engine" {
            text = Some(found);
        }
    }
    let Some(text) = text else {
        let said = String::from_utf8_lossy(&made.stderr);
        bail!("cargo-cyclonedx wrote nothing ({}): {said}", made.status);
    };
    let bill: serde_json::Value = serde_json::from_str(&text).context("the bill of materials")?;
    ensure!(
        bill["bomFormat"] == "CycloneDX",
        "no CycloneDX: {text:.200}"
    );
    fs::write(file, &text).with_context(|| file.display().to_string())?;
    Ok(bill["components"].as_array().map_or(0, Vec::len))
}

enum Container {
    Built(String),
    NotBuilt(String),
}

/// With the first program that reaches its daemon, or needs none.
fn container(release: &Path) -> Result<Container> {
    let mut reasons = Vec::new();
    for program in ["docker", "podman"] {
        let asked = cmd!(program, "info")
            .stdout_null()
            .stderr_capture()
            .unchecked()
            .run();
        match asked {
            Err(_) => reasons.push(format!("no {program} here")),
            Ok(info) if !info.status.success() => {
                let said = String::from_utf8_lossy(&info.stderr);
                let last = said.lines().rfind(|line| !line.trim().is_empty());
                reasons.push(format!("{program}: {}", last.unwrap_or("no answer")));
            }
            Ok(_) => {
                let id = release.join("image-id");
                cmd!(
                    program,
                    "build",
                    "--iidfile",
                    &id,
                    "--file",
                    DOCKERFILE,
                    "."
                )
                .dir(cargo::root()?)
                .stdout_to_stderr()
                .run()
                .with_context(|| format!("{program} build"))?;
                return Ok(Container::Built(fs::read_to_string(&id)?));
            }
        }
    }
    Ok(Container::NotBuilt(reasons.join("; ")))
}

/// As `sha256sum` writes and checks them.
fn digests(folder: &Path) -> Result<String> {
    let mut names: Vec<PathBuf> = fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    names.sort();
    let mut text = String::new();
    for path in names {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == DIGESTS {
            continue;
        }
        let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{:x}  {name}", Sha256::digest(&bytes));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_that_sha256sum_checks() {
        let folder = std::env::temp_dir().join(format!("digests-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("b"), "two").expect("written");
        fs::write(folder.join("a"), "one").expect("written");
        fs::write(folder.join(DIGESTS), "old").expect("written");
        let sums = digests(&folder).expect("read");
        fs::write(folder.join(DIGESTS), &sums).expect("written");
        let checked = cmd!("sha256sum", "--check", "--strict", DIGESTS)
            .dir(&folder)
            .read();
        fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(checked.expect("sha256sum"), "a: OK\nb: OK");
    }
}
