//! `reports`: renders the reports from `data/` and prints what it wrote.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use records::store::{Store, StoredRun};
use records::verdicts;

use reports::compare::{compare, judge};
use reports::lang::Lang;
use reports::load;
use reports::render::assemble::build;
use reports::render::context::ReportLink;
use reports::render::context::{GroupContext, ReportContext};
use reports::render::{
    REPORTS, Report, TRUST, autoscaling, format, last_verdicts, outside, page, trust,
};
use reports::requests_parquet::{self, ParquetArgs};
use reports::select::Selection;
use reports::stats::verdict::VerdictConfig;
use reports::verdicts::{VerdictCommand, ablation, reproduction};

/// Aggregates run records and renders the reports.
#[derive(Debug, Parser)]
#[command(name = "reports", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    report: Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Verdict(VerdictCommand),
    /// Write the request rows of one run as a Parquet file
    Parquet(ParquetArgs),
    /// Lay two runs or experiments side by side
    Compare(CompareArgs),
}

#[derive(Debug, clap::Args)]
struct CompareArgs {
    /// A run (its id, or a part that no other run has) or an experiment (its pooled starts).
    a: String,
    /// The one that is judged against the first.
    b: String,
    /// Folders of runs and campaigns [default: data/runs and data/campaigns of the repository]
    #[arg(long, value_name = "DIR")]
    runs_dir: Vec<PathBuf>,
    /// Only machines whose host, processor or GPU name contains this.
    #[arg(long, value_name = "PART")]
    machine: Option<String>,
    /// Changes within ± this many per cent count as no difference.
    #[arg(long, value_name = "PERCENT", default_value_t = VerdictConfig::default().margin_percent)]
    margin: f64,
    /// Language: ko or en.
    #[arg(long, value_name = "LANG", default_value = "ko")]
    lang: String,
    /// Print the verdicts as JSON, for programs.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Args {
    /// Folders of runs and campaigns [default: data/runs and data/campaigns of the repository]
    #[arg(long, value_name = "DIR")]
    runs_dir: Vec<PathBuf>,
    /// Folder of imported figures [default: data/imported of the repository]
    #[arg(long, value_name = "DIR")]
    imported_dir: Option<PathBuf>,
    /// Where the rendered reports go [default: reports/rendered of the repository]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only runs whose id, campaign or experiment contains one of these.
    #[arg(long, value_name = "PART", num_args = 1..)]
    runs: Vec<String>,
    /// Only machines whose host, processor or GPU name contains this.
    #[arg(long, value_name = "PART")]
    machine: Option<String>,
    /// Of the runs against other engines' servers, only those whose address or experiment contains
    /// this.
    #[arg(long, value_name = "PART")]
    peer: Option<String>,
    /// Only these reports, by number or name.
    #[arg(long, value_name = "REPORT", num_args = 1..)]
    only: Vec<String>,
    /// Changes within ± this many per cent count as no difference.
    #[arg(long, value_name = "PERCENT", default_value_t = VerdictConfig::default().margin_percent)]
    margin: f64,
    /// What a kilowatt-hour costs, in any currency: tables of energy then tell what the electricity of
    /// a million output tokens costs.
    #[arg(long, value_name = "PRICE")]
    price_per_kwh: Option<f64>,
    /// Simulate campaigns with the noise of the runs and render how far verdicts can be trusted,
    /// and only that.
    #[arg(long, conflicts_with = "only")]
    trust: bool,
    /// Language of the reports: ko or en.
    #[arg(long, value_name = "LANG", default_value = "ko")]
    lang: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Some(Command::Verdict(command)) => print_verdict(command),
        Some(Command::Parquet(args)) => write_parquet(args),
        Some(Command::Compare(args)) => print_comparison(args),
        None => run(&cli.report),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", outside::lines(&format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn print_verdict(command: &VerdictCommand) -> anyhow::Result<()> {
    match command {
        VerdictCommand::Ablation { campaign, runs_dir } => {
            let table = ablation::table(store_of(runs_dir)?, campaign)?;
            print!("{}", outside::lines(&table));
        }
        VerdictCommand::Reproduction { campaign, runs_dir } => {
            let table = reproduction::table(store_of(runs_dir)?, campaign)?;
            print!("{}", outside::lines(&table));
        }
    }
    Ok(())
}

fn print_comparison(args: &CompareArgs) -> anyhow::Result<()> {
    let selection = Selection {
        machine: args.machine.clone(),
        ..Selection::default()
    };
    let (store, names) = (store_of(&args.runs_dir)?, [&*args.a, &*args.b]);
    let config = verdict_config(args.margin)?;
    let lang = Lang::parse(&args.lang)?;
    if args.json {
        let judged = judge(store, names, &selection, config, lang)?;
        println!("{}", serde_json::to_string_pretty(&judged)?);
        return Ok(());
    }
    let text = compare(store, names, &selection, config, lang)?;
    print!("{}", outside::lines(&text));
    Ok(())
}

fn verdict_config(margin_percent: f64) -> anyhow::Result<VerdictConfig> {
    if !(0.0..=50.0).contains(&margin_percent) {
        bail!("--margin {margin_percent}: must lie between 0 and 50 per cent");
    }
    Ok(VerdictConfig {
        margin_percent,
        ..Default::default()
    })
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = verdict_config(args.margin)?;
    let lang = Lang::parse(&args.lang)?;
    if let Some(price) = args.price_per_kwh
        && !(price > 0.0 && price <= 1e6)
    {
        bail!("--price-per-kwh {price}: must be above 0 and at most 1000000");
    }
    let chosen = match args.only.as_slice() {
        _ if args.trust => vec![TRUST],
        [] => REPORTS.to_vec(),
        names => names
            .iter()
            .map(|name| Report::find(name))
            .collect::<Result<_, _>>()?,
    };
    let store = store_of(&args.runs_dir)?;
    let imported = input_folder(args.imported_dir.as_deref(), "data/imported")?;
    let out = match &args.out {
        Some(dir) => dir.clone(),
        None => repository_root()?.join(verdicts::FOLDER),
    };
    let selection = Selection {
        runs: args.runs.clone(),
        machine: args.machine.clone(),
        peer: args.peer.clone(),
    };
    let mut records = load::load(store.clone(), &imported, |run| selection.keeps(run))?;
    // Only of the repository's own records: typed folders hold other machines' runs.
    if args.runs_dir.is_empty() {
        let benches = repository_root()?.join("data/bench");
        records.side_by_side = load::side_by_side::read_all(&benches)?;
    }
    let limited = !selection.runs.is_empty() || selection.machine.is_some();
    if records.runs.is_empty() && limited {
        bail!("no run in {} matches --runs/--machine", places(&store));
    }
    let mut context = build(&records, config, lang)?;
    if args.runs_dir.is_empty() {
        let simulated = repository_root()?.join("data/autoscaling");
        context.autoscaling = autoscaling::read(&simulated)?;
    }
    if let Some(price) = args.price_per_kwh {
        context.take_price(price);
    }
    print_summary(&context, &store, lang);
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    if args.trust {
        let titles: Vec<&str> = context.groups.iter().map(|g| g.title.as_str()).collect();
        context.trust = Some(trust::build(&records, &titles, config, lang));
    } else {
        write_charts(&context, &out, lang)?;
        // What is said of some runs only is not the last word on an experiment.
        if !limited && selection.peer.is_none() {
            write(
                &out.join(verdicts::FILE_NAME),
                &last_verdicts::render(&context)?,
            )?;
        }
    }
    if out.join(TRUST.file_name(lang)).is_file() {
        context.reports.push(ReportLink {
            title: TRUST.title(lang),
            file: TRUST.file_name(lang),
        });
    }
    for report in chosen {
        let text = report.render(&context)?;
        let html = page::page(&text, &context.charts, lang)?;
        for (name, content) in [
            (report.file_name(lang), text),
            (report.page_name(lang), html),
        ] {
            let path = out.join(name);
            write(&path, &content)?;
            println!("wrote {}", path.display());
        }
    }
    Ok(())
}

fn write(path: &Path, content: &str) -> anyhow::Result<()> {
    std::fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes the pictures, and removes those of this language that nothing shows any more.
fn write_charts(context: &ReportContext, out: &Path, lang: Lang) -> anyhow::Result<()> {
    let folder = out.join("charts");
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let ending = format!(".{}.svg", lang.code());
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(&ending) {
            std::fs::remove_file(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    for (name, svg) in &context.charts {
        write(&out.join(name), svg)?;
    }
    println!(
        "wrote {} charts into {}",
        context.charts.len(),
        folder.display()
    );
    Ok(())
}

/// A folder that was typed must exist; the repository's own may be missing (no run yet).
fn input_folder(typed: Option<&Path>, default: &str) -> anyhow::Result<PathBuf> {
    match typed {
        Some(dir) if dir.is_dir() => Ok(dir.to_owned()),
        Some(dir) => bail!("{} is no folder", dir.display()),
        None => Ok(repository_root()?.join(default)),
    }
}

/// Where runs are looked for: the folders that were typed, or the repository's own.
fn store_of(typed: &[PathBuf]) -> anyhow::Result<Store> {
    if let Some(missing) = typed.iter().find(|dir| !dir.is_dir()) {
        bail!("{} is no folder", missing.display());
    }
    if !typed.is_empty() {
        return Ok(Store::new(typed));
    }
    let data = repository_root()?.join("data");
    Ok(Store::new([data.join("runs"), data.join("campaigns")]))
}

fn places(store: &Store) -> String {
    let places = store.places().iter();
    let places: Vec<String> = places.map(|place| place.display().to_string()).collect();
    places.join(" and ")
}

fn write_parquet(args: &ParquetArgs) -> anyhow::Result<()> {
    let run = if Path::new(&args.run).is_dir() {
        StoredRun::in_folder(Path::new(&args.run))
    } else {
        store_of(&args.runs_dir)?.find(&args.run)?
    };
    if let Some(remark) = records::export::remark(&run)? {
        eprintln!("WARNING: {}", outside::one_line(&remark));
    }
    let path = requests_parquet::write(&run, args)?;
    println!("{}", outside::one_line(&path.display().to_string()));
    Ok(())
}

/// The nearest folder upwards that holds `data/SCHEMA.md`.
fn repository_root() -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir().context("the current folder cannot be read")?;
    let root = here
        .ancestors()
        .find(|dir| dir.join("data/SCHEMA.md").is_file());
    root.map(Path::to_owned).with_context(|| {
        format!(
            "{} lies in no repository with data/SCHEMA.md; give --runs-dir, --imported-dir and --out",
            here.display()
        )
    })
}

fn print_summary(context: &ReportContext, store: &Store, lang: Lang) {
    if context.groups.is_empty() && context.multi_models.is_empty() {
        println!(
            "no readable run in {}; the reports name the commands that make some",
            places(store)
        );
    }
    for group in &context.groups {
        print_group(group, lang);
    }
    if !context.unreadable.is_empty() {
        println!(
            "{} run(s) cannot be used and are left out:",
            context.unreadable.len()
        );
        for run in &context.unreadable {
            println!(
                "  {}: {}",
                outside::one_line(&run.run_id),
                outside::one_line(&run.reason)
            );
        }
    }
}

fn print_group(group: &GroupContext, lang: Lang) {
    println!(
        "{}{}",
        outside::one_line(&group.title),
        if group.quick {
            " (quick runs only)"
        } else {
            ""
        }
    );
    println!(
        "  {:<18} {:>5} {:>12} {:>12} {:>14}  against the baseline",
        "experiment", "runs", "p50", "TTFT p50", "throughput"
    );
    for row in &group.latency {
        let (p50, ttft, rate) = row.stats.as_ref().map_or_else(Default::default, |s| {
            let ttft = s
                .ttft_p50_ms
                .map(|v| format::milliseconds(v, lang))
                .unwrap_or_default();
            (
                format::milliseconds(s.p50_ms, lang),
                ttft,
                format!("{} tok/s", format::number(s.output_tok_per_s, 2)),
            )
        });
        let words: Vec<&str> = row.verdicts.iter().map(|v| v.phrase.as_str()).collect();
        println!(
            "  {:<18} {:>5} {p50:>12} {ttft:>12} {rate:>14}  {}",
            outside::one_line(&row.experiment),
            row.n_runs,
            words.join(" / ")
        );
    }
    for arm in group.arms.iter().filter(|arm| arm.n_failed_runs > 0) {
        println!(
            "  {:<18} {} failed or killed run(s), left out",
            outside::one_line(&arm.experiment),
            arm.n_failed_runs
        );
    }
}
