//! `engine fetch` and `engine inspect`.

use anyhow::Result;
use engine::launch::cache_dir;
use engine::source::{self, ModelFiles, ModelSource, ResolvedModel};

use super::ModelArgs;
use super::progress::ShownProgress;

/// Prints the model's place, digest and name, one a line.
pub fn fetch(args: &ModelArgs) -> Result<()> {
    let model = resolve(args)?;
    let place = match &model.files {
        ModelFiles::Folder(path) | ModelFiles::Gguf(path) => path.display().to_string(),
        ModelFiles::Synthetic(preset) => format!("(made on the fly: synthetic:{})", preset.name),
    };
    println!("path    {place}");
    println!("sha256  {}", model.sha256);
    println!("name    {}", model.display_name);
    Ok(())
}

pub fn inspect(args: &ModelArgs) -> Result<()> {
    let model = resolve(args)?;
    print!("{}", engine::inspect::inspect(&model)?);
    Ok(())
}

fn resolve(args: &ModelArgs) -> Result<ResolvedModel> {
    let cache_dir = cache_dir(args.cache_dir.as_ref())?;
    let shown = ShownProgress::new();
    let progress = |progress: source::Progress<'_>| shown.show(progress);
    // Here the default has no fallback: who fetches a model wants that one.
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
