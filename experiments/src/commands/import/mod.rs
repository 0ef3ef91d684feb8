//! `experiments import`: another engine's own benchmark result, kept as a source of its own.
//!
//! The file goes, as it is, into `data/imported/<source>/`; beside it a table of its figures in the
//! columns of all imported figures, and a paragraph of provenance. No run folder is made: the
//! machine was not observed here, and without server starts of ours nothing can be tested against it.

pub mod figures;
pub mod result_file;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use records::utc;

use crate::commands::import::figures::table;
use crate::commands::import::result_file::ResultFile;
use crate::record::provenance;
use crate::spec::repository::Repository;

const PROVENANCE: &str = "PROVENANCE.md";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Source {
    /// `vllm bench serve --save-result`, JSON or JSON lines
    Vllm,
    /// `python -m sglang.bench_serving --output-file`, JSON lines
    Sglang,
}

impl Source {
    /// Also the folder's name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Vllm => "vllm",
            Self::Sglang => "sglang",
        }
    }

    fn tool(self) -> &'static str {
        match self {
            Self::Vllm => "`vllm bench serve`",
            Self::Sglang => "`sglang.bench_serving`",
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// Result file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The program that wrote it
    #[arg(long, value_enum)]
    pub source: Source,
    /// Where it was measured: machine, versions, launch line; goes into the provenance
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

/// Returns what was written, a line each.
pub(crate) fn import(args: &ImportArgs, repository: &Repository) -> Result<String> {
    let stem = stem_of(&args.file)?;
    let text = fs::read_to_string(&args.file).with_context(|| args.file.display().to_string())?;
    let results =
        ResultFile::parse(args.source, &text).with_context(|| args.file.display().to_string())?;
    let folder = repository.imported_dir().join(args.source.word());
    let kept = folder.join(file_name(&args.file)?);
    let csv = folder.join(format!("{stem}.csv"));
    if kept == csv || kept == folder.join(PROVENANCE) {
        bail!(
            "{}: the name is taken by what stands beside the file; give it another",
            args.file.display()
        );
    }
    for path in [&kept, &csv] {
        if path.exists() {
            bail!(
                "{} is there already; imported files are not overwritten",
                path.display()
            );
        }
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let document = file_name(&args.file)?;
    let figures = table(&document, &results)?;
    let paragraph = provenance_of(args, &document, &results)?;
    write(&kept, &text)?;
    write(&csv, &figures)?;
    // Last: it says what is there.
    append_provenance(&folder, args.source, &paragraph)?;
    let shown = |path: &Path| repository.relative(path).display().to_string();
    Ok([&kept, &csv, &folder.join(PROVENANCE)]
        .map(|path| shown(path))
        .join("\n")
        + "\n")
}

fn provenance_of(args: &ImportArgs, document: &str, results: &[ResultFile]) -> Result<String> {
    let hash =
        provenance::sha256_of_file(&args.file).with_context(|| args.file.display().to_string())?;
    let list = |of: fn(&ResultFile) -> Option<String>| {
        let mut values: Vec<String> = results.iter().filter_map(of).collect();
        values.dedup();
        if values.is_empty() {
            "not stated".to_string()
        } else {
            values.join(", ")
        }
    };
    Ok(format!(
        "\n## {document}\n\n- Results: {}; imported {}; sha256 {hash}.\n- Model: {}.\n- Backend: {}.\n- Date of the tests: {}.\n- Test bed: {}.\n",
        results.len(),
        utc::rfc3339(utc::now_unix_s()),
        list(ResultFile::model),
        list(ResultFile::backend),
        list(ResultFile::date),
        args.note.as_deref().unwrap_or(
            "not stated in the file; the figures compare with nothing measured elsewhere"
        ),
    ))
}

fn append_provenance(folder: &Path, source: Source, paragraph: &str) -> Result<()> {
    let path = folder.join(PROVENANCE);
    let before = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => format!(
            "# Result files of {}\n\nEach file lies here as it was written, beside a table of its figures. They were measured by that\nprogram, not by ours, and are never pooled with measured runs.\n",
            source.tool()
        ),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    write(&path, &(before + paragraph))
}

fn stem_of(path: &Path) -> Result<String> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    stem.map(String::from)
        .with_context(|| format!("{} has no readable name", path.display()))
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(String::from)
        .with_context(|| format!("{} has no readable name", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}
