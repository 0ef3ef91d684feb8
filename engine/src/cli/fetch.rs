//! `engine fetch` and `engine inspect`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use engine::launch::cache_dir;
use engine::printable::printable;
use engine::source::{self, ModelSource, ResolvedModel};
use engine::weights::{self, LoadFormat, ModelFiles};

use super::ModelArgs;
use super::progress::{ShownProgress, say};

#[derive(Debug, Args)]
pub struct FetchArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Write a synthetic model as a checkpoint that other engines read, too: safetensors, and
    /// AutoAWQ's tensors where it has 4 bits
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

/// Prints the model's path, digest, name and source, one on each line.
pub fn fetch(args: &FetchArgs) -> Result<()> {
    let mut model = resolve(&args.model)?;
    if let Some(folder) = &args.write {
        write(&model, folder)?;
        let place = folder
            .to_str()
            .context("--write: the folder's name is not UTF-8")?;
        model = resolve(&ModelArgs {
            // A bare name would be taken for a hub's.
            model: std::path::absolute(place)?.display().to_string(),
            cache_dir: args.model.cache_dir.clone(),
        })?;
    }
    let place = match &model.files {
        ModelFiles::Folder(path) | ModelFiles::Gguf(path) => path.display().to_string(),
        ModelFiles::Synthetic(preset) => format!("(made on the fly: synthetic:{})", preset.name),
    };
    let text = format!(
        "path    {}\nsha256  {}\nname    {}\nsource  {}\n",
        printable(&place),
        model.sha256,
        printable(&model.display_name),
        printable(&model.requested)
    );
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("writing to standard output")
}

/// The weights that the model is served with where no seed is typed.
fn write(model: &ResolvedModel, folder: &Path) -> Result<()> {
    let ModelFiles::Synthetic(_) = &model.files else {
        bail!(
            "--write: {} has files already; only a synthetic model is written",
            printable(&model.requested)
        );
    };
    let checkpoint = weights::open(&model.files, LoadFormat::Auto, 0)?;
    let mut others = Vec::new();
    if let Some(dir) = &model.tokenizer_dir {
        let names = ["tokenizer.json", "tokenizer_config.json"];
        let files = names.map(|name| dir.join(name));
        others.extend(files.into_iter().filter(|file| file.is_file()));
    }
    let shown = |writing: weights::folder::Writing<'_>| {
        let (index, n_files) = (writing.index, writing.n_files);
        say(&format!("writing {} ({index} of {n_files})", writing.file));
    };
    Ok(weights::folder::write(
        &*checkpoint,
        folder,
        &others,
        &shown,
    )?)
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
