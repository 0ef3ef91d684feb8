//! `ci`: everything that must hold before a change is merged, fastest checks first, and the CUDA
//! kernels beside all that follows.
//!
//! Two build profiles only, check and dev: the smoke experiment measures nothing, so it uses
//! the programs that the tests have built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use duct::cmd;

use crate::test::{TestCounts, run_and_count};
use crate::{
    cargo, clients, crates_apart, deny, docs, feature_union, kernels, kubernetes, layers, machete,
    page, readme, source_index, tracked_size, words, workflows,
};

/// A model that needs no download.
const SMOKE_MODEL: &str = "synthetic:tiny-qwen3";

pub fn run() -> Result<ExitCode> {
    let root = cargo::root()?;
    let mut counts = TestCounts::default();
    step("format", || run_cargo(&root, &["fmt", "--all", "--check"]))?;
    step("texts", || {
        docs::check(&root)?;
        readme::check(&root)
    })?;
    step("size", || tracked_size::check(&root))?;
    step("indexes", || {
        source_index::check_kernels(&root)?;
        source_index::check_flags(&root)?;
        crates_apart::check(&root)
    })?;
    step("words", || words::check(&root))?;
    step("manifests", || kubernetes::check(&root))?;
    step("workflows", || workflows::check(&root))?;
    step("layers", || layers::check(&root))?;
    step("dependencies", || {
        deny::check(&root)?;
        machete::check(&root)
    })?;
    step("shared features", || feature_union::check(&root))?;
    // At a low priority, on the cores that lints and tests leave idle.
    let compiled = thread::spawn(|| step("CUDA kernels", kernels::check));
    step("lints", || {
        run_cargo(
            &root,
            &[
                "clippy",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
        )
    })?;
    step("documentation", || document(&root))?;
    step("tests", || {
        counts = run_and_count(&[])?;
        if counts.succeeded {
            Ok(())
        } else {
            bail!("{}", counts.line())
        }
    })?;
    step("page", || page::check(&dev_programs(&root, ["engine"])?[0]))?;
    step("smoke experiment", || smoke(&root))?;
    step("the document of the API", || contract(&root))?;
    compiled
        .join()
        .map_err(|_| anyhow!("ci: CUDA kernels: the thread panicked"))??;
    println!("{}", counts.line());
    Ok(ExitCode::SUCCESS)
}

fn step(name: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    eprintln!("ci: {name}");
    let started = Instant::now();
    run().with_context(|| format!("ci: {name}"))?;
    eprintln!("ci: {name} ok ({:.0} s)", started.elapsed().as_secs_f64());
    Ok(())
}

fn run_cargo(root: &Path, args: &[&str]) -> Result<()> {
    let status = cmd("cargo", args)
        .dir(root)
        .unchecked()
        .run()
        .context("cargo cannot be started")?
        .status;
    if status.success() {
        Ok(())
    } else {
        bail!("cargo {} failed ({status})", args.join(" "))
    }
}

/// Doc comments have no broken link; their examples run with the tests.
fn document(root: &Path) -> Result<()> {
    let status = cmd!("cargo", "doc", "--workspace", "--no-deps")
        .dir(root)
        .env("RUSTDOCFLAGS", "-D warnings")
        .unchecked()
        .run()
        .context("cargo cannot be started")?
        .status;
    if !status.success() {
        bail!("cargo doc failed ({status})");
    }
    Ok(())
}

/// schemathesis with a fixed number of examples against the engine that the tests have built.
fn contract(root: &Path) -> Result<()> {
    let [engine] = dev_programs(root, ["engine"])?;
    let code = clients::run_one("schemathesis", &engine)?;
    if code != ExitCode::SUCCESS {
        bail!("the server and its document differ; the requests that show it are above");
    }
    Ok(())
}

/// Built by the tests; otherwise built here.
fn dev_programs<const N: usize>(root: &Path, names: [&str; N]) -> Result<[PathBuf; N]> {
    let folder = cargo::target_dir()?.join("debug");
    let programs = names.map(|name| folder.join(name));
    if !programs.iter().all(|path| path.is_file()) {
        run_cargo(root, &["build", "--workspace", "--bins"])?;
    }
    Ok(programs)
}

/// Serve, load, record, report: into a scratch folder, so that the tree stays clean.
fn smoke(root: &Path) -> Result<()> {
    let [engine, experiments, reports] = dev_programs(root, ["engine", "experiments", "reports"])?;
    let scratch = cargo::target_dir()?.join(format!("smoke-{}", std::process::id()));
    fs::create_dir(&scratch).with_context(|| scratch.display().to_string())?;
    let runs = scratch.join("runs");
    let rendered = scratch.join("rendered");
    let outcome = cmd!(
        &experiments,
        "run",
        "balanced-v2",
        "--quick",
        "--wait",
        // For a change that is not committed yet; the record is not kept.
        "--allow-dirty",
        "--model",
        SMOKE_MODEL,
        "--engine-bin",
        &engine,
        "--runs-dir",
        &runs
    )
    .dir(root)
    .run()
    .context("the smoke experiment")
    .and_then(|_| {
        cmd!(&reports, "--runs-dir", &runs, "--out", &rendered)
            .dir(root)
            .run()
            .context("the report on the smoke experiment")
    })
    .and_then(|_| {
        let n_reports = fs::read_dir(&rendered)
            .with_context(|| rendered.display().to_string())?
            .count();
        if n_reports == 0 {
            bail!("no report was rendered into {}", rendered.display());
        }
        Ok(())
    });
    fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    outcome
}
