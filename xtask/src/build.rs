//! `build [--arch sm_90,sm_120]`: engine and runner in the release profile, and the CUDA kernels
//! for the architectures asked for, embedded into the engine.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{cargo, kernels};

#[derive(Args)]
pub struct BuildArgs {
    /// GPU architectures to compile the CUDA kernels for: sm_90, sm_120. Later builds keep them;
    /// `none` leaves them out again
    #[arg(long, value_name = "ARCH", num_args = 1.., value_delimiter = ',')]
    arch: Vec<String>,
    /// Cargo's profile: `dist` is release without symbols, for another machine
    #[arg(long, value_name = "PROFILE", default_value = "release", value_parser = ["release", "dist"])]
    profile: String,
}

pub fn run(args: &BuildArgs) -> Result<ExitCode> {
    if !args.arch.is_empty() {
        kernels::remember(&args.arch)?;
    }
    cargo::build(&args.profile, &cargo::MEASURED)?;
    let binary = cargo::target_dir()?.join(&args.profile).join("engine");
    println!("{}", binary.display());
    Ok(ExitCode::SUCCESS)
}
