//! `engine fetch` and `engine inspect`.

use std::io::Write;

use anyhow::{Context, Result};
use clap::Args;
use engine::launch::cache_dir;
use engine::printable::printable;
use engine::source::{self, ModelSource, ResolvedModel};
use engine::weights::ModelFiles;

use super::ModelArgs;
use super::progress::ShownProgress;

/// Prints the model's path, digest and name, one on each line.
pub fn fetch(args: &ModelArgs) -> Result<()> {
    let model = resolve(args)?;
    let place = match &model.files {
        ModelFiles::Folder(path) | ModelFiles::Gguf(path) => path.display().to_string(),
        ModelFiles::Synthetic(preset) => format!("(made on the fly: synthetic:{})", preset.name),
    };
    let text = format!(
        "path    {}\nsha256  {}\nname    {}\n",
        printable(&place),
        model.sha256,
        printable(&model.display_name)
    );
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to standard output")
}

#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Print the report as one line of JSON
    #[arg(long)]
    json: bool,
}

pub fn inspect(args: &InspectArgs) -> Result<()> {
    let model = resolve(&args.model)?;
    let report = engine::inspect::inspect(&model)?;
    let text = if args.json {
        serde_json::to_string(&report)? + "\n"
    } else {
        report.to_string()
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to standard output")
}

fn resolve(args: &ModelArgs) -> Result<ResolvedModel> {
    let cache_dir = cache_dir(args.cache_dir.as_ref())?;
    let shown = ShownProgress::new();
    let progress = |progress: source::Progress<'_>| shown.show(progress);
    // Here the default has no fallback: a user who fetches a model wants that one.
    let name = if args.model == "default" {
        source::DEFAULT_CPU_MODEL
    } else {
        &args.model
    };
    Ok(source::resolve(
        &ModelSource::parse(name)?,
        &cache_dir,
        &progress,
    )?)
}
