//! Runs cargo for the recipes: builds with a progress bar, and programs that replace this process.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, IsTerminal};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context, Result, bail, ensure};
use duct::cmd;
use indicatif::{ProgressBar, ProgressStyle};
use xshell::Shell;

use crate::kernels;

/// Where `kernels/gpu/build.rs` finds the compiled CUDA kernels; empty for none.
const KERNELS_DIR: &str = "ENGINE_KERNELS_DIR";
/// What the engine says that it was built from (`engine selftest`).
const COMMIT: &str = "ENGINE_COMMIT";

/// The working tree's root: the parent of this crate.
pub fn root() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies outside a workspace")?;
    if !root.join("Cargo.toml").is_file() {
        bail!(
            "{} has moved since xtask was built; run `touch xtask/src/main.rs`",
            root.display()
        );
    }
    Ok(root.to_path_buf())
}

/// The target folder: this program was built as `<target>/<profile>/xtask`.
pub fn target_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("the path of xtask")?;
    own.ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .context("xtask lies outside a target folder")
}

/// The packages of an experiment. Always built together: a package built alone gets other features
/// of shared crates, which would then be compiled twice.
pub const MEASURED: [&str; 2] = ["engine", "experiments"];

/// Where a release build puts `program`.
pub fn release_binary(program: &str) -> Result<PathBuf> {
    Ok(target_dir()?.join("release").join(program))
}

/// The engine that was named, or one that is built now in the release profile.
pub fn given_or_release_engine(given: Option<&Path>) -> Result<PathBuf> {
    let built = if let Some(program) = given {
        program.to_owned()
    } else {
        build_release(&MEASURED)?;
        release_binary("engine")?
    };
    built
        .canonicalize()
        .with_context(|| built.display().to_string())
}

/// A cargo subcommand of another project, built from its sources once for each version: no registry
/// has the program.
pub fn tool(name: &str, version: &str) -> Result<PathBuf> {
    let folder = target_dir()?.join(format!("{name}-{version}"));
    let program = folder.join("bin").join(name);
    if program.is_file() {
        return Ok(program);
    }
    eprintln!("{name} {version} into {}", folder.display());
    let built = cmd!(
        "cargo",
        "install",
        "--quiet",
        "--locked",
        // It runs for a second.
        "--debug",
        "--version",
        version,
        "--root",
        &folder,
        "--target-dir",
        folder.join("build"),
        name
    )
    .unchecked()
    .run()
    .context("cargo cannot be started")?;
    ensure!(
        built.status.success(),
        "{name} cannot be built ({})",
        built.status
    );
    Ok(program)
}

/// Builds packages in the release profile, all in one call so that they share features.
pub fn build_release(packages: &[&str]) -> Result<()> {
    build("release", packages)
}

/// As [`build_release`], in any profile. Includes the CUDA kernels that were last asked for,
/// compiled again if their sources have changed.
pub fn build(profile: &str, packages: &[&str]) -> Result<()> {
    let kernels = kernels::remembered()?.unwrap_or_default();
    let commit = commit(&root()?);
    let mut args = vec!["build", "--profile", profile, "--target-dir"];
    let target_dir = target_dir()?;
    let target_dir = target_dir
        .to_str()
        .context("the target folder's name is not UTF-8")?;
    args.push(target_dir);
    for package in packages {
        args.extend(["--package", package]);
    }
    let status = if std::io::stderr().is_terminal() {
        build_with_bar(&args, packages, &kernels, &commit)?
    } else {
        // Cargo's own plain lines.
        cmd("cargo", &args)
            .dir(root()?)
            .env(KERNELS_DIR, &kernels)
            .env(COMMIT, &commit)
            .unchecked()
            .run()
            .context("cargo cannot be started")?
            .status
    };
    if !status.success() {
        bail!("the build of {} failed ({status})", packages.join(", "));
    }
    Ok(())
}

/// The commit of the tree, with `+changes` if files differ from it; without git, or outside a
/// repository, it says so.
pub fn commit(root: &Path) -> String {
    let git = |args: &[&str]| {
        let output = cmd("git", args).dir(root).stderr_null().read();
        output.map(|text| text.trim().to_owned())
    };
    let unknown = || "unknown".to_owned();
    let Ok(commit) = git(&["rev-parse", "HEAD"]) else {
        return unknown();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Ok(changed) if changed.is_empty() => commit,
        Ok(_) => format!("{commit}+changes"),
        Err(_) => unknown(),
    }
}

/// Counts the packages that cargo reports as built or fresh against those in the dependency tree.
fn build_with_bar(
    args: &[&str],
    packages: &[&str],
    kernels: &Path,
    commit: &str,
) -> Result<ExitStatus> {
    let bar = ProgressBar::new(n_packages(packages)?);
    bar.set_style(ProgressStyle::with_template(
        "build [{bar:40}] {pos}/{len} {elapsed} {wide_msg}",
    )?);
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let mut args = args.to_vec();
    args.extend(["--quiet", "--message-format", "json-render-diagnostics"]);
    let reader = cmd("cargo", args)
        .dir(root()?)
        .env(KERNELS_DIR, kernels)
        .env(COMMIT, commit)
        .unchecked()
        .reader()
        .context("cargo cannot be started")?;
    let mut built = HashSet::new();
    for line in BufReader::new(&reader).lines() {
        let line = line.context("cargo's messages")?;
        if let Some(package) = package_of(&line) {
            bar.set_message(
                package
                    .rsplit(['/', '#'])
                    .next()
                    .unwrap_or_default()
                    .to_string(),
            );
            if built.insert(package.to_string()) {
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    let output = reader
        .try_wait()?
        .context("cargo closed its output but still runs")?;
    Ok(output.status)
}

/// The package id in one of cargo's `compiler-artifact` messages. Cargo writes them compactly
/// and without escapes in ids, so no JSON parser is needed for a progress bar.
fn package_of(message: &str) -> Option<&str> {
    let rest = message.strip_prefix("{\"reason\":\"compiler-artifact\",\"package_id\":\"")?;
    rest.split('"').next()
}

fn n_packages(packages: &[&str]) -> Result<u64> {
    let sh = Shell::new()?;
    sh.change_dir(root()?);
    let mut names = HashSet::new();
    for package in packages {
        let tree = xshell::cmd!(
            sh,
            "cargo tree --package {package} --edges normal,build --prefix none"
        )
        .quiet()
        .read()?;
        // `name version`, without the mark of a subtree shown before.
        let name = |line: &str| {
            line.split_whitespace()
                .take(2)
                .collect::<Vec<_>>()
                .join(" ")
        };
        names.extend(tree.lines().map(name));
    }
    Ok(names.len() as u64)
}

/// Replaces this process: signals reach the program itself, its exit code becomes ours, and there
/// is no process in between that could be killed separately.
pub fn exec_program(program: &Path, args: &[String]) -> Result<ExitCode> {
    let error = Command::new(program).args(args).current_dir(root()?).exec();
    Err(error).with_context(|| format!("{} cannot be started", program.display()))
}

/// Builds `experiments` for commands that need no engine; with the engine if there is one already,
/// so that the next experiment need not compile their shared crates again.
pub fn build_experiments() -> Result<()> {
    if release_binary("engine")?.is_file() {
        build_release(&MEASURED)
    } else {
        build_release(&["experiments"])
    }
}

/// `experiments <command> <arguments>`, which must have been built.
pub fn exec_experiments(command: &str, arguments: &[String]) -> Result<ExitCode> {
    let mut args = vec![command.to_string()];
    args.extend(arguments.iter().cloned());
    exec_program(&release_binary("experiments")?, &args)
}

/// Builds `reports` in the dev profile: polars in release takes minutes and the data are small.
pub fn build_reports() -> Result<()> {
    build("dev", &["reports"])
}

/// Where [`build_reports`] puts it.
pub fn reports_binary() -> Result<PathBuf> {
    Ok(target_dir()?.join("debug").join("reports"))
}

/// As [`exec_program`], for cargo itself.
pub fn exec_cargo(args: &[String]) -> Result<ExitCode> {
    exec_program(Path::new("cargo"), args)
}

/// As [`exec_cargo`], with the CUDA kernels of this folder in the build.
pub fn exec_cargo_with_kernels(args: &[String], kernels: Option<&Path>) -> Result<ExitCode> {
    let mut cargo = Command::new("cargo");
    if let Some(kernels) = kernels {
        cargo.env(KERNELS_DIR, kernels);
    }
    let error = cargo.args(args).current_dir(root()?).exec();
    Err(error).context("cargo cannot be started")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_package_ids_in_cargos_messages() {
        let message = r#"{"reason":"compiler-artifact","package_id":"registry+https://x#serde@1.0.1","manifest_path":"/x"}"#;
        assert_eq!(package_of(message), Some("registry+https://x#serde@1.0.1"));
        assert_eq!(
            package_of(r#"{"reason":"build-finished","success":true}"#),
            None
        );
    }
}
