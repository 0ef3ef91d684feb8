//! `engine simulate`: reads a load from standard input and writes the simulated results to standard
//! output, both as JSON (see [`engine::simulate`]).

use std::io::{BufRead, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use engine::config::ServeArgs;
use engine::config::resolved::EngineConfig;
use engine::executor::simulated::Card;
use engine::launch::load_model;
use engine::simulate::fleet::{Advance, Fleet, FleetLoad};
use engine::simulate::{SimulatedLoad, simulate as play};

use super::progress::ShownProgress;

#[derive(Debug, Args)]
pub struct SimulateArgs {
    #[command(flatten)]
    serve: ServeArgs,

    /// Data of the GPU: a TOML file such as data/cards/h100.toml
    #[arg(long, value_name = "FILE")]
    card: PathBuf,

    /// Standard input has a fleet's load in its first line, and in each further one how many replicas
    /// there are until when; a line of the fleet's state answers each, and its outcome the end
    #[arg(long)]
    fleet: bool,
}

pub fn simulate(args: &SimulateArgs) -> Result<()> {
    let config = args.serve.engine.resolve()?;
    let card = Card::read(&args.card)?;
    if args.fleet {
        return play_fleet(config, card);
    }
    let load: SimulatedLoad =
        serde_json::from_reader(std::io::stdin().lock()).context("the load on standard input")?;
    let shown = ShownProgress::new();
    let model = load_model(&config, &|progress| shown.show(progress))?;
    let simulation = play(&config, &model, card, &load)?;
    serde_json::to_writer(std::io::stdout().lock(), &simulation)
        .context("writing to standard output")
}

fn play_fleet(config: EngineConfig, card: Card) -> Result<()> {
    let mut lines = std::io::stdin().lock().lines();
    let first = lines.next().context("standard input has no load")??;
    let load: FleetLoad = serde_json::from_str(&first).context("the load in the first line")?;
    let shown = ShownProgress::new();
    let model = load_model(&config, &|progress| shown.show(progress))?;
    let mut fleet = Fleet::new(config, model, card, load)?;
    let mut stdout = std::io::stdout().lock();
    let mut is_first = true;
    for line in lines {
        let line = line?;
        let advance: Advance = serde_json::from_str(&line).with_context(|| line.clone())?;
        if std::mem::take(&mut is_first) {
            fleet.begin_with(advance.n_replicas)?;
        }
        serde_json::to_writer(&mut stdout, &fleet.advance(advance)?)?;
        writeln!(stdout)?;
        stdout.flush()?;
    }
    serde_json::to_writer(stdout, &fleet.outcome()).context("writing to standard output")
}
