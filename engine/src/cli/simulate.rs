//! `engine simulate`: reads a load from standard input and writes the simulated results to standard
//! output, both as JSON (see [`engine::simulate`]).

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use engine::config::ServeArgs;
use engine::executor::simulated::Card;
use engine::launch::load_model;
use engine::simulate::{SimulatedLoad, simulate as play};

use super::progress::ShownProgress;

#[derive(Debug, Args)]
pub struct SimulateArgs {
    #[command(flatten)]
    serve: ServeArgs,

    /// Data of the GPU: a TOML file such as data/cards/h100.toml
    #[arg(long, value_name = "FILE")]
    card: PathBuf,
}

pub fn simulate(args: &SimulateArgs) -> Result<()> {
    let config = args.serve.engine.resolve()?;
    let card = Card::read(&args.card)?;
    let load: SimulatedLoad =
        serde_json::from_reader(std::io::stdin().lock()).context("the load on standard input")?;
    let shown = ShownProgress::new();
    let model = load_model(&config, &|progress| shown.show(progress))?;
    let simulation = play(&config, &model, card, &load)?;
    serde_json::to_writer(std::io::stdout().lock(), &simulation)
        .context("writing to standard output")
}
