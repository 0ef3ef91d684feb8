//! `fuzz [--executions N] [targets]`: the parsers of untrusted bytes under AFL++, on the stable
//! toolchain. Each target runs `--executions` times, guided by coverage, within limits of memory
//! and time; inputs that crash or hang are copied to `xtask/fuzz/found/`, where the tests run them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use duct::{Handle, cmd};
use sha2::{Digest, Sha256};

use crate::cargo;

/// For each input; far above what a valid one takes.
const TIMEOUT_MS: u32 = 2000;
/// Bytes of an input, by target, where long ones take so long that a million of them would take hours: a
/// chain of 90 grammar rules takes half a second. Longer seeds are run by the tests, each once.
const MAX_INPUT_BYTES: [(&str, u64); 2] = [("grammar", 1024), ("chat_template", 1024)];
/// Address space of the program, which uses a few hundred MiB before it reads anything.
const MEMORY_MIB: u32 = 2048;
/// AFL++'s own limit.
const AFL_MAX_INPUT_BYTES: u64 = 1 << 20;

#[derive(Args)]
pub struct FuzzArgs {
    /// Executions of each target
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    executions: u64,
    /// Only these: gguf, safetensors, config_json, … [default: all]
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// AFL++'s final statistics.
struct Figures {
    n_executions: u64,
    n_crashes: u64,
    n_hangs: u64,
    edges: String,
    corpus: String,
}

pub fn run(args: &FuzzArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    let program = build(&root)?;
    let work = cargo::target_dir()?.join("fuzzing");
    let known = target_names(&root)?;
    let targets = if args.targets.is_empty() {
        known.clone()
    } else {
        args.targets.clone()
    };
    if let Some(wrong) = targets.iter().find(|target| !known.contains(target)) {
        bail!(
            "no target is called {wrong:?}; there are {}",
            known.join(", ")
        );
    }
    let scratch = Scratch::new(&work)?;
    println!("| target | executions | seconds | a second | edges | corpus | crashes | hangs |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut n_found = 0;
    for target in &targets {
        let begun = Instant::now();
        let own = work.join(target);
        let figures = fuzz(&program, &own, &scratch, target, args.executions)?;
        let (n, elapsed_s) = (figures.n_executions, begun.elapsed().as_secs_f64());
        let rate = n as f64 / elapsed_s;
        println!(
            "| {target} | {n} | {elapsed_s:.0} | {rate:.0} | {} | {} | {} | {} |",
            figures.edges, figures.corpus, figures.n_crashes, figures.n_hangs
        );
        let found = root.join("xtask/fuzz/found").join(target);
        n_found += keep(&program, target, &own, &scratch, &found)?;
    }
    if n_found > 0 {
        eprintln!("{n_found} inputs are in xtask/fuzz/found: `cargo test -p fuzz` runs them");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// Instrumented, in a separate target folder.
fn build(root: &Path) -> Result<PathBuf> {
    let is_there = cmd!("cargo", "afl", "--version")
        .stdout_null()
        .stderr_null()
        .unchecked()
        .run()
        .is_ok_and(|output| output.status.success());
    if !is_there {
        bail!(
            "cargo-afl is missing: `cargo install cargo-afl && cargo afl config --build` (it needs \
             make and a C compiler)"
        );
    }
    let target = cargo::target_dir()?.join("fuzz");
    let status = cmd!(
        "cargo",
        "afl",
        "build",
        "--release",
        "--package",
        "fuzz",
        "--features",
        "fuzz/afl",
        "--target-dir",
        &target
    )
    .dir(root)
    .unchecked()
    .run()?
    .status;
    if !status.success() {
        bail!("the instrumented build failed ({status})");
    }
    Ok(target.join("release").join("fuzz"))
}

fn fuzz(
    program: &Path,
    work: &Path,
    scratch: &Scratch,
    target: &str,
    executions: u64,
) -> Result<Figures> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| work.display().to_string())?;
    }
    let (seeds, out) = (work.join("seeds"), work.join("out"));
    cmd!(program, "seeds", target, &seeds)
        .run()
        .context("writing the seeds")?;
    let max_bytes = MAX_INPUT_BYTES
        .iter()
        .find(|(name, _)| *name == target)
        .map_or(AFL_MAX_INPUT_BYTES, |(_, max_bytes)| *max_bytes);
    remove_long_seeds(&seeds, max_bytes)?;
    let status = cmd!(
        "cargo",
        "afl",
        "fuzz",
        "-i",
        &seeds,
        "-o",
        &out,
        "-E",
        executions.to_string(),
        "-t",
        TIMEOUT_MS.to_string(),
        "-m",
        MEMORY_MIB.to_string(),
        "-G",
        max_bytes.to_string(),
        "--",
        program,
        "run",
        target,
        &scratch.0
    )
    .env("AFL_NO_UI", "1")
    // Otherwise each parser error would resolve its backtrace.
    .env("RUST_BACKTRACE", "0")
    .env("AFL_NO_AFFINITY", "1")
    .env("AFL_SKIP_CPUFREQ", "1")
    .env("AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES", "1")
    .stdout_null()
    .unchecked()
    .run()
    .context("cargo afl")?
    .status;
    if !status.success() {
        bail!("{target}: the fuzzer failed ({status})");
    }
    figures(&out.join("default").join("fuzzer_stats"))
}

fn remove_long_seeds(folder: &Path, max_bytes: u64) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.metadata()?.len() > max_bytes {
            fs::remove_file(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

/// The folder for files that a parser reads: in memory if the machine has such a folder, since it
/// is written thousands of times a second. Removed with the last target.
struct Scratch(PathBuf);

impl Scratch {
    fn new(work: &Path) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory } else { work };
        let folder = parent.join(format!("fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The remainder is small, and is cleared at the next boot.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn figures(path: &Path) -> Result<Figures> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let value = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        let value = line.and_then(|line| line.split(':').nth(1));
        value
            .map(str::trim)
            .with_context(|| format!("{} has no {name}", path.display()))
    };
    Ok(Figures {
        n_executions: value("execs_done")?.parse()?,
        n_crashes: value("saved_crashes")?.parse()?,
        n_hangs: value("saved_hangs")?.parse()?,
        edges: value("edges_found")?.to_owned(),
        corpus: value("corpus_count")?.to_owned(),
    })
}

/// Copies crashes and hangs; returns their number. A hang that cannot be reproduced was caused by
/// the machine.
fn keep(
    program: &Path,
    target: &str,
    work: &Path,
    scratch: &Scratch,
    found: &Path,
) -> Result<usize> {
    let mut n_found = 0;
    for kind in ["crashes", "hangs"] {
        let Ok(entries) = fs::read_dir(work.join("out").join("default").join(kind)) else {
            continue;
        };
        for entry in entries {
            let path = entry?.path();
            // There is a README next to the inputs.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("id:") {
                continue;
            }
            if kind == "hangs" && !hangs(program, target, scratch, &path)? {
                continue;
            }
            fs::create_dir_all(found)?;
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let kept = found.join(kept_name(kind, &bytes));
            fs::write(&kept, &bytes).with_context(|| kept.display().to_string())?;
            n_found += 1;
        }
    }
    Ok(n_found)
}

/// By content: the fuzzer numbers inputs from zero in every campaign, and earlier findings are
/// kept.
fn kept_name(kind: &str, bytes: &[u8]) -> String {
    let hash = format!("{:x}", Sha256::digest(bytes));
    format!("{kind}-{}", &hash[..12])
}

fn hangs(program: &Path, target: &str, scratch: &Scratch, input: &Path) -> Result<bool> {
    let run = cmd!(program, "run", target, &scratch.0)
        .stdin_path(input)
        .stdout_null()
        .stderr_null()
        .unchecked()
        .start()
        .context("running a hang again")?;
    outlasts(&run, Duration::from_millis(TIMEOUT_MS.into()))
}

/// Whether it still runs after that time; then it is killed.
fn outlasts(run: &Handle, limit: Duration) -> Result<bool> {
    if run.wait_timeout(limit)?.is_some() {
        return Ok(false);
    }
    run.kill()?;
    Ok(true)
}

/// The names in the table of `xtask/fuzz/src/lib.rs`.
fn target_names(root: &Path) -> Result<Vec<String>> {
    let path = root.join("xtask/fuzz/src/lib.rs");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let names = text.lines().filter_map(|line| {
        let rest = line.trim().strip_prefix("(\"")?;
        Some(rest.split('"').next()?.to_owned())
    });
    Ok(names.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_targets_are_found_by_name() {
        let names = target_names(&cargo::root().expect("a tree")).expect("names");
        assert!(
            names.len() >= 12 && names.contains(&"gguf".to_owned()),
            "{names:?}"
        );
    }

    #[test]
    fn the_fuzzers_figures_are_read() {
        let folder = std::env::temp_dir().join(format!("fuzz-figures-{}", std::process::id()));
        let stats = "execs_done        : 1000\nsaved_crashes     : 1\nsaved_hangs       : 0\nedges_found : 55\ncorpus_count      : 7\n";
        fs::write(&folder, stats).expect("written");
        let read = figures(&folder);
        fs::remove_file(&folder).expect("removed");
        let read = read.expect("figures");
        assert_eq!(
            (read.n_executions, read.n_crashes, read.n_hangs),
            (1000, 1, 0)
        );
        assert_eq!((read.edges.as_str(), read.corpus.as_str()), ("55", "7"));
    }

    #[test]
    fn kept_inputs_are_named_by_their_content() {
        let folder = cargo::root().expect("a tree").join("xtask/fuzz/found");
        let mut n_inputs = 0;
        for target in fs::read_dir(folder).expect("targets") {
            for input in fs::read_dir(target.expect("a target").path()).expect("inputs") {
                let path = input.expect("an input").path();
                let bytes = fs::read(&path).expect("bytes");
                let name = path.file_name().expect("a name").to_string_lossy();
                let kind = name.split('-').next().expect("a kind");
                assert_eq!(name, kept_name(kind, &bytes), "{}", path.display());
                n_inputs += 1;
            }
        }
        assert!(n_inputs >= 2, "{n_inputs}");
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let begun = Instant::now();
        let endless = cmd!("sleep", "60").unchecked().start().expect("started");
        assert!(outlasts(&endless, Duration::from_millis(50)).expect("ended"));
        let quick = cmd!("true").unchecked().start().expect("started");
        assert!(!outlasts(&quick, Duration::from_secs(30)).expect("ended"));
        assert!(begun.elapsed() < Duration::from_secs(30));
    }
}
