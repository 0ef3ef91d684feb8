//! `readme`: the README's table and chart of measured figures, rendered from the records that
//! `SIDES` names. `ci` checks that both are what the records render.

mod chart;
mod figures;
mod table;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use self::figures::{Form, Side};
use crate::cargo;

const README: &str = "README.md";
const CHART: &str = "docs/decode.svg";
const BEGIN: &str = "<!-- figures: rendered by `cargo xtask readme` -->\n";
const END: &str = "<!-- figures: end -->";
/// Where the records say how they were taken.
const RECORDS: &str = "data/bench/20261129_h200_peers";

/// Whose figures are shown, the engine's first. All were taken in one hour on one GPU.
const SIDES: [Side; 3] = [
    Side {
        name: "this engine",
        file: "engine_bench.jsonl",
        form: Form::EngineBench,
    },
    Side {
        name: "vLLM 0.26.0",
        file: "vllm.jsonl",
        form: Form::OfflinePeer,
    },
    Side {
        name: "SGLang 0.5.15",
        file: "sglang.jsonl",
        form: Form::OfflinePeer,
    },
];

#[derive(Debug, clap::Args)]
pub struct ReadmeArgs {
    /// Write nothing; fail if the README or the chart is not what the records render
    #[arg(long)]
    check: bool,
}

/// # Errors
/// If a record cannot be read, the README has no place for the figures, or, with `--check`, a
/// file differs from what the records render.
pub fn run(args: &ReadmeArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    if args.check {
        check(&root)?;
    } else {
        let rendered = Rendered::of(&root)?;
        fs::write(root.join(README), rendered.readme).context(README)?;
        fs::write(root.join(CHART), rendered.chart).context(CHART)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// # Errors
/// As `run` with `--check`.
pub fn check(root: &Path) -> Result<()> {
    let rendered = Rendered::of(root)?;
    for (file, wanted) in [(README, rendered.readme), (CHART, rendered.chart)] {
        let found = fs::read_to_string(root.join(file)).context(file)?;
        if found != wanted {
            bail!("{file} is not what the records render: run `cargo xtask readme`");
        }
    }
    Ok(())
}

/// Both files as they should be.
struct Rendered {
    readme: String,
    chart: String,
}

impl Rendered {
    fn of(root: &Path) -> Result<Self> {
        let folder = root.join(RECORDS);
        let sides = SIDES
            .iter()
            .map(|side| Ok((side.name, side.read(&folder)?)))
            .collect::<Result<Vec<_>>>()?;
        let block = format!(
            "![Decode speed of one sequence by batch size]({CHART})\n\n{}\n\
             One NVIDIA H200 on 29 November 2026, random weights of Qwen3-32B-AWQ's shapes, without \
             HTTP. The engine is timed without its scheduler, the others with theirs. SGLang has no \
             prefill graphs here. [How this was measured]({RECORDS}/README.md).\n",
            table::render(&sides)?
        );
        let readme = fs::read_to_string(root.join(README)).context(README)?;
        Ok(Self {
            readme: replace_block(&readme, &block)?,
            chart: chart::render(&sides)?,
        })
    }
}

/// `text` with `block` between the markers.
fn replace_block(text: &str, block: &str) -> Result<String> {
    let (head, rest) = text
        .split_once(BEGIN)
        .with_context(|| format!("{README}: the line {BEGIN:?} is missing"))?;
    let (_, tail) = rest
        .split_once(END)
        .with_context(|| format!("{README}: no {END:?} after the begin of the figures"))?;
    Ok(format!("{head}{BEGIN}{block}{END}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_is_replaced_and_the_rest_stays() {
        let text = format!("a\n{BEGIN}old\n{END}\nb\n");
        let once = replace_block(&text, "new\n").unwrap();
        assert_eq!(once, format!("a\n{BEGIN}new\n{END}\nb\n"));
        assert_eq!(replace_block(&once, "new\n").unwrap(), once);
        assert!(replace_block("no markers", "new\n").is_err());
        assert!(replace_block(BEGIN, "new\n").is_err());
    }

    #[test]
    fn the_readme_is_what_the_records_render() {
        check(&cargo::root().unwrap()).unwrap();
    }

    #[test]
    fn a_changed_figure_is_found() {
        let root = cargo::root().unwrap();
        let scratch = cargo::target_dir()
            .unwrap()
            .join(format!("readme-test-{}", std::process::id()));
        let copied = SIDES
            .map(|side| format!("{RECORDS}/{}", side.file))
            .into_iter()
            .chain([README.to_owned(), CHART.to_owned()]);
        for file in copied {
            let to = scratch.join(&file);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(root.join(&file), to).unwrap();
        }
        assert!(check(&scratch).is_ok());

        let readme = scratch.join(README);
        let text = fs::read_to_string(&readme).unwrap();
        let row = "| decode, batch 1, tokens/s | 1";
        assert!(text.contains(row));
        fs::write(
            &readme,
            text.replace(row, "| decode, batch 1, tokens/s | 2"),
        )
        .unwrap();
        let message = check(&scratch).unwrap_err().to_string();
        assert!(message.contains("README.md"), "{message}");
        fs::remove_dir_all(&scratch).unwrap();
    }
}
