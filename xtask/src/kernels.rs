//! CUDA kernels for given architectures: compiled by nvcc into fatbins that the `kernels` crate
//! embeds, and audited against the limits of each chip. No GPU is needed. A source whose header
//! says `Elements: f16, bf16.` is compiled once for each of them.
//!
//! `<target>/kernels/<architectures>/` holds the fatbins and an index that `kernels/gpu/build.rs`
//! reads. `<target>/kernels/architectures` remembers what the last `build --arch` asked for, so
//! that every later release build (`exp` too) embeds kernels that match the sources.

mod audit;
mod compiler;
mod function_length;
mod instruction_mix;
mod nvcc;
mod occupancy;
pub mod of_op;
mod resource_usage;

use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use self::audit::Scope;
use self::compiler::Job;
use crate::cargo;

/// Every architecture that the sources are written for.
pub const ARCHITECTURES: [&str; 2] = ["sm_90", "sm_120"];
/// `--arch none` returns to a build without kernels.
const NONE: &str = "none";
/// If set to 1, kernels sleep at random where threads, copies or launches synchronise
/// (`cuda/device.cuh`), for tests that compare results bit by bit. Stored in a separate folder.
const JITTER_VARIABLE: &str = "ENGINE_KERNELS_JITTER";

/// Compiles every kernel for the architectures, prints the audit, and fails if the audit does.
/// Returns the folder for `ENGINE_KERNELS_DIR`.
pub fn compile(architectures: &[String]) -> Result<PathBuf> {
    let architectures = checked(architectures)?;
    let root = cargo::root()?;
    let toolchain = nvcc::find(&root, &architectures)?;
    eprintln!("kernels: {}", toolchain.describe());
    let with_jitter = env::var_os(JITTER_VARIABLE).is_some_and(|value| value == "1");
    let mut folder = folder(&architectures)?;
    if with_jitter {
        folder.as_mut_os_string().push("+jitter");
    }
    let job = Job {
        root: &root,
        toolchain: &toolchain,
        architectures: &architectures,
        with_profiles: true,
        with_jitter,
        folder: &folder,
    };
    let compiled = compiler::compile(&job, |_| true)?;
    compiler::write_index(&compiled, &architectures, &folder, &folder)?;
    if with_jitter {
        eprintln!("kernels: with jitter, for tests only; not audited");
        return Ok(folder);
    }
    audit::run(&root, &compiled, &architectures, Scope::All, &folder)?;
    audit::compare_chips(&root, &toolchain, &compiled, &architectures, &folder)?;
    Ok(folder)
}

/// Compiles and audits every kernel that a chip runs as itself, for nothing to embed: what
/// `--card-profile` runs elsewhere is the same source as sm_120's.
pub fn check() -> Result<()> {
    let root = cargo::root()?;
    let toolchain = nvcc::find(&root, &ARCHITECTURES)?;
    eprintln!("kernels: {}", toolchain.describe());
    let folder = folder(&ARCHITECTURES)?;
    let job = Job {
        root: &root,
        toolchain: &toolchain,
        architectures: &ARCHITECTURES,
        with_profiles: false,
        with_jitter: false,
        folder: &folder,
    };
    let compiled = compiler::compile(&job, |_| true)?;
    audit::run(&root, &compiled, &ARCHITECTURES, Scope::All, &folder)?;
    audit::compare_chips(&root, &toolchain, &compiled, &ARCHITECTURES, &folder)
}

fn folder(architectures: &[&str]) -> Result<PathBuf> {
    let folder = cargo::target_dir()?.join("kernels");
    Ok(folder.join(architectures.join("+")))
}

/// Remembers what `build --arch` asked for.
pub fn remember(architectures: &[String]) -> Result<()> {
    let path = memory()?;
    if architectures == [NONE] {
        return if path.exists() {
            fs::remove_file(&path).with_context(|| path.display().to_string())
        } else {
            Ok(())
        };
    }
    let architectures = checked(architectures)?;
    let folder = path.parent().context("the target folder")?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::write(&path, architectures.join("\n")).with_context(|| path.display().to_string())
}

/// The up-to-date folder of kernels to embed in a release build; `None` if none were ever
/// requested.
pub fn remembered() -> Result<Option<PathBuf>> {
    let path = memory()?;
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let architectures: Vec<_> = text.lines().map(str::to_string).collect();
    compile(&architectures).map(Some)
}

fn memory() -> Result<PathBuf> {
    Ok(cargo::target_dir()?.join("kernels").join("architectures"))
}

/// Ordered, without duplicates.
fn checked(architectures: &[String]) -> Result<Vec<&'static str>> {
    for name in architectures {
        if !ARCHITECTURES.contains(&name.as_str()) {
            bail!(
                "--arch {name}: known are {} and {NONE}",
                ARCHITECTURES.join(", ")
            );
        }
    }
    Ok(ARCHITECTURES
        .into_iter()
        .filter(|known| architectures.iter().any(|name| name == known))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn architectures_are_checked_and_ordered() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let ordered = checked(&names(&["sm_120", "sm_90", "sm_120"])).expect("known names");
        assert_eq!(ordered, ["sm_90", "sm_120"]);
        let error = checked(&names(&["sm_75"]))
            .expect_err("an unknown name")
            .to_string();
        assert_eq!(error, "--arch sm_75: known are sm_90, sm_120 and none");
    }
}
