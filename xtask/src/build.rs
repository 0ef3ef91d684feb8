//! `build [--arch sm_90 …]`: engine and runner in the release profile, and the CUDA kernels for the
//! architectures asked for.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{cargo, kernels};

#[derive(Args)]
pub struct BuildArgs {
    /// GPU architectures to compile the CUDA kernels for: sm_90, sm_120
    #[arg(long, value_name = "ARCH", num_args = 1.., value_delimiter = ',')]
    arch: Vec<String>,
}

pub fn run(args: &BuildArgs) -> Result<ExitCode> {
    if !args.arch.is_empty() {
        kernels::compile(&args.arch)?;
    }
    cargo::build_release(&cargo::MEASURED)?;
    println!("{}", cargo::release_binary("engine")?.display());
    Ok(ExitCode::SUCCESS)
}
