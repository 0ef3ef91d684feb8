//! `experiments answers URL`: what a running server says of the fixed text, beside what another one
//! said, now or when it was kept.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;

use crate::load::BaseUrl;
use crate::run::answers::{Kept, compare_with, keep, told, wrong};
use crate::run::served_model::model_name;
use crate::terminal::note;

#[derive(Debug, Args)]
pub struct AnswersArgs {
    /// The server that is asked
    #[arg(value_name = "URL")]
    url: String,
    /// A server that it is compared with
    #[arg(long, value_name = "URL", conflicts_with = "golden")]
    against: Option<String>,
    /// A file of `--keep` that it is compared with
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// Write what it says into a file
    #[arg(long, value_name = "FILE")]
    keep: Option<PathBuf>,
}

/// Prints the comparison as JSON. Exit code 1: the answers are wrong.
///
/// # Errors
///
/// If a server does not answer, or a file cannot be read or written.
pub async fn answers(args: &AnswersArgs) -> Result<ExitCode> {
    let server = BaseUrl::parse(&args.url, None)?;
    let model = model_name(&server, None).await?;
    if let Some(file) = &args.keep {
        let kept = serde_json::to_string(&keep(&server, &model).await?)?;
        fs::write(file, kept).with_context(|| file.display().to_string())?;
    }
    let kept: Kept = match (&args.against, &args.golden) {
        (Some(url), _) => {
            let other = BaseUrl::parse(url, None)?;
            let model = model_name(&other, None).await?;
            keep(&other, &model).await?
        }
        (None, Some(file)) => {
            let text = fs::read(file).with_context(|| file.display().to_string())?;
            serde_json::from_slice(&text).with_context(|| file.display().to_string())?
        }
        (None, None) => return Ok(ExitCode::SUCCESS),
    };
    let found = compare_with(&kept, &server, &model).await?;
    note!("{}", told(&found));
    println!("{}", serde_json::to_string_pretty(&found)?);
    Ok(ExitCode::from(u8::from(wrong(&found).is_some())))
}
