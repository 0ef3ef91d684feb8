//! `autoscale`: a simulated day of fixed fleets and of the one that the manifests' ScaledObject scales.
//!
//! Replicas are simulated engines in virtual time. Their metrics go into a real Prometheus with
//! virtual times, which answers the ScaledObject's own queries; the rule of KEDA and the autoscaler
//! then says how many replicas there are.

mod day;
mod fleet;
mod push;
mod record;
mod rule;
mod scaled_object;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use duct::cmd;
use serde_json::Value;

use self::day::{DAY_S, DayRequest};
use self::fleet::{Advance, Fleet, Load};
use self::push::Pusher;
use self::record::{Assumed, FleetFigures, Git, Record, SCHEMA_VERSION, Slo};
use self::rule::Autoscaler;
use self::scaled_object::ScaledObject;
use crate::monitoring::Prometheus;
use crate::{cargo, kubernetes};

const CARD: &str = "rtx-5090";
/// The manifests' model with made weights, in pieces that do not hold up the streams.
const FLAGS: [&str; 5] = [
    "--model-path=synthetic:qwen3-32b-awq",
    "--chunked-prefill-size=1152",
    "--max-prefill-tokens=1664",
    "--enable-mixed-chunk",
    "--max-queued-requests=256",
];
const SLO: Slo = Slo {
    ttft_s: 4.0,
    tpot_s: 0.15,
    share: 0.99,
};
/// Fixed fleets have 1 to this many replicas.
const MOST_FIXED: u32 = 5;
/// The virtual day's first second: 2026-01-05, 00:00 UTC.
const BEGAN_UNIX_S: f64 = 1_767_571_200.0;
/// The autoscaler's own interval, unless a cluster sets another.
const SYNC_S: u32 = 15;

#[derive(Args)]
pub struct AutoscaleArgs {
    /// An engine that has been built
    #[arg(long, value_name = "FILE")]
    engine_bin: Option<PathBuf>,
    /// Only the autoscaled fleet, and no record: for choosing the ScaledObject's numbers
    #[arg(long)]
    only_autoscaled: bool,
    /// Record although files differ from the commit
    #[arg(long)]
    allow_dirty: bool,
}

struct Simulation<'a> {
    engine: PathBuf,
    card: PathBuf,
    requests: &'a [DayRequest],
    series: Vec<String>,
    scratch: PathBuf,
}

pub fn run(args: &AutoscaleArgs) -> Result<ExitCode> {
    let root = cargo::root()?;
    let git = git(&root)?;
    if git.dirty && !args.allow_dirty && !args.only_autoscaled {
        bail!(
            "files differ from the commit, which a record names; --allow-dirty records all the same"
        );
    }
    let engine = if let Some(engine) = &args.engine_bin {
        engine.clone()
    } else {
        cargo::build_release(&cargo::MEASURED)?;
        cargo::release_binary("engine")?
    };
    let objects = kubernetes::rendered(&root, "autoscaled")?;
    let object = ScaledObject::of(&objects)?;
    let assumed = assumed(&objects)?;
    let requests = day::requests();
    let scratch = cargo::target_dir()?.join(format!("autoscale-{}", std::process::id()));
    let simulation = Simulation {
        engine,
        card: root.join("data/cards").join(format!("{CARD}.toml")),
        requests: &requests,
        series: series(&object),
        scratch: scratch.clone(),
    };
    fs::create_dir(&scratch).with_context(|| scratch.display().to_string())?;
    let outcome = all(&simulation, args, &object, assumed);
    fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let fleets = outcome?;
    if args.only_autoscaled {
        return Ok(ExitCode::SUCCESS);
    }
    let record = Record {
        schema_version: SCHEMA_VERSION,
        card: CARD.to_owned(),
        flags: FLAGS.map(String::from).to_vec(),
        prometheus: version()?,
        scaled_object: object,
        assumed,
        n_requests: requests.len(),
        slo: SLO,
        fleets,
        git,
    };
    let folder = root.join("data/autoscaling");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let path = folder.join(format!("{}.json", &record.git.commit[..12]));
    fs::write(&path, serde_json::to_string_pretty(&record)? + "\n")
        .with_context(|| path.display().to_string())?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Fixed fleets, then the autoscaled one: as it is, never below one replica, and so with starts that
/// take three times as long.
fn all(
    simulation: &Simulation,
    args: &AutoscaleArgs,
    object: &ScaledObject,
    assumed: Assumed,
) -> Result<Vec<FleetFigures>> {
    let never_none = ScaledObject {
        min_replicas: object.min_replicas.max(1),
        ..object.clone()
    };
    let slow = Assumed {
        start_s: 3.0 * assumed.start_s,
        ..assumed
    };
    let n_fixed = if args.only_autoscaled { 0 } else { MOST_FIXED };
    let scaled = [
        (object, assumed, simulation.prometheus("from-none")?),
        (&never_none, assumed, simulation.prometheus("never-none")?),
        (&never_none, slow, simulation.prometheus("slow")?),
    ];
    // Their time is virtual: that they run beside each other changes nothing.
    let fleets: Vec<FleetFigures> = thread::scope(|scope| {
        let fixed = (1..=n_fixed).map(|n| scope.spawn(move || simulation.fixed(n, assumed)));
        let fixed: Vec<_> = fixed.collect();
        let scaled = scaled.each_ref().map(|(object, assumed, prometheus)| {
            scope.spawn(move || simulation.autoscaled(object, *assumed, prometheus))
        });
        fixed
            .into_iter()
            .chain(scaled)
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect::<Result<_>>()
    })?;
    println!("| fleet | card hours | within SLO | TTFT p50 | p99 | between tokens p99 | lost |");
    println!("|---|---|---|---|---|---|---|");
    fleets.iter().for_each(show);
    Ok(fleets)
}

fn show(f: &FleetFigures) {
    let name = match f.fixed {
        Some(n) => format!("{n} fixed"),
        None => format!(
            "{} to {}, {} s to start ({} changes, most {})",
            f.min_replicas, f.max_replicas, f.start_s, f.n_changes, f.most_replicas
        ),
    };
    println!(
        "| {name} | {:.1} | {:.2} % | {:.2} s | {:.2} s | {:.0} ms | {} |",
        f.card_hours,
        f.share_in_slo * 100.0,
        f.ttft_p50_s,
        f.ttft_p99_s,
        f.tpot_p99_s * 1e3,
        f.n_lost
    );
}

impl Simulation<'_> {
    fn fleet(&self, assumed: Assumed) -> Result<Fleet> {
        let load = Load {
            start_s: assumed.start_s,
            hold_s: assumed.hold_s,
            grace_s: assumed.grace_s,
            requests: self.requests,
        };
        Fleet::start(&self.engine, &self.card, &FLAGS, &load)
    }

    fn fixed(&self, n_replicas: u32, assumed: Assumed) -> Result<FleetFigures> {
        let mut fleet = self.fleet(assumed)?;
        fleet.advance(&Advance {
            until_s: DAY_S,
            n_replicas,
        })?;
        Ok(FleetFigures {
            fixed: Some(n_replicas),
            min_replicas: n_replicas,
            max_replicas: n_replicas,
            most_replicas: n_replicas,
            start_s: assumed.start_s,
            ..FleetFigures::of(&fleet.outcome()?, SLO)
        })
    }

    /// An empty one that takes samples.
    fn prometheus(&self, name: &str) -> Result<Prometheus> {
        let config = self.scratch.join(format!("{name}.yml"));
        fs::write(&config, "global: {}\n").with_context(|| config.display().to_string())?;
        let flags = ["--web.enable-remote-write-receiver"];
        Prometheus::start(&config, &self.scratch.join(name), &flags)
    }

    fn autoscaled(
        &self,
        object: &ScaledObject,
        assumed: Assumed,
        prometheus: &Prometheus,
    ) -> Result<FleetFigures> {
        let mut pusher = Pusher::new(&prometheus.address, &self.series);
        let mut fleet = self.fleet(assumed)?;
        let mut n_replicas = object.min_replicas;
        let mut rule = Autoscaler::new(object.clone(), n_replicas);
        let mut most_replicas = n_replicas;
        let scrape_s = assumed.scrape_s as u32;
        for now_s in 1..=DAY_S as u32 {
            let (scrapes, decides) = (
                now_s.is_multiple_of(scrape_s),
                // From none KEDA decides at its own interval.
                now_s.is_multiple_of(if n_replicas == 0 {
                    object.polling_s
                } else {
                    SYNC_S
                }),
            );
            if !(scrapes || decides) {
                continue;
            }
            let until_s = f64::from(now_s);
            let state = fleet.advance(&Advance {
                until_s,
                n_replicas,
            })?;
            if scrapes {
                pusher.scrape(BEGAN_UNIX_S + until_s, &state.pages, state.n_held)?;
            }
            if decides {
                let values = answers(prometheus, object, BEGAN_UNIX_S + until_s)?;
                n_replicas = rule.decide(until_s, &values, state.n_ready);
                most_replicas = most_replicas.max(n_replicas);
            }
        }
        let figures = FleetFigures::of(&fleet.outcome()?, SLO);
        Ok(FleetFigures {
            min_replicas: object.min_replicas,
            max_replicas: object.max_replicas,
            start_s: assumed.start_s,
            most_replicas,
            n_changes: rule.n_changes(),
            ..figures
        })
    }
}

fn answers(prometheus: &Prometheus, object: &ScaledObject, unix_s: f64) -> Result<Vec<f64>> {
    let ask = |query: &str| {
        let (n_series, value) = prometheus.ask_at(query, unix_s)?;
        // KEDA reports an error otherwise.
        if n_series != 1 {
            bail!("{query}: {n_series} series at {unix_s}");
        }
        value.parse().with_context(|| format!("{query}: {value}"))
    };
    object
        .triggers
        .iter()
        .map(|trigger| ask(&trigger.query))
        .collect()
}

/// The engine's names in the queries, which the replicas' pages are cut down to.
fn series(object: &ScaledObject) -> Vec<String> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = object
        .triggers
        .iter()
        .flat_map(|t| t.query.split(move |c| !is_of_name(c)));
    let names: BTreeSet<&str> = words.filter(|word| word.starts_with("vllm:")).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Times of the manifests, and that of a start: 9 to 12 s for the engine in the records, and in none
/// what the cluster adds (a node, the image, a volume).
fn assumed(objects: &[Value]) -> Result<Assumed> {
    let found = |kind: &str, name: &str| {
        let mut all = objects.iter();
        let is_it = |o: &&Value| o["kind"] == kind && o["metadata"]["name"] == name;
        all.find(is_it).with_context(|| format!("no {kind} {name}"))
    };
    let pod = &found("Deployment", "engine")?["spec"]["template"]["spec"];
    let interval = found("ServiceMonitor", "engine")?["spec"]["endpoints"][0]["interval"].as_str();
    let scrape_s = interval
        .and_then(|s| s.strip_suffix('s'))
        .and_then(|s| s.parse().ok());
    let config = found("ConfigMap", "engine-picker")?["data"]["picker.yaml"].as_str();
    let held = config.and_then(|text| text.split("defaultRequestTTL: ").nth(1));
    let held = held
        .and_then(|rest| rest.split('s').next())
        .and_then(|s| s.parse().ok());
    Ok(Assumed {
        // 19 GB from a cache in the network at 0.4 GB/s, and 40 s for node, container and pool.
        start_s: 90.0,
        hold_s: held.context("the picker has no defaultRequestTTL in seconds")?,
        grace_s: pod["terminationGracePeriodSeconds"]
            .as_f64()
            .context("no grace period")?,
        scrape_s: scrape_s.context("the ServiceMonitor has no interval in seconds")?,
    })
}

fn version() -> Result<String> {
    let said = cmd!("prometheus", "--version").stderr_to_stdout().read();
    let said =
        said.context("prometheus cannot be started; on Debian: apt-get install prometheus")?;
    Ok(said.split(" (").next().unwrap_or_default().to_owned())
}

fn git(root: &Path) -> Result<Git> {
    let ask = |args: &[&str]| {
        let answer = cmd("git", args).dir(root).read();
        answer
            .map(|text| text.trim().to_owned())
            .with_context(|| format!("git {}", args.join(" ")))
    };
    Ok(Git {
        commit: ask(&["rev-parse", "HEAD"])?,
        tree: ask(&["rev-parse", "HEAD^{tree}"])?,
        dirty: !ask(&["status", "--porcelain", "--untracked-files=no"])?.is_empty(),
    })
}
