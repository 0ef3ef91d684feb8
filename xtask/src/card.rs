//! `card FILE`: a file of `engine selftest --json` becomes `data/cards/NAME.toml`, and a row of the
//! table of cards in `data/cards/README.md`.
//!
//! A file with failures is refused with their names, as is one of another schema, of a GPU under a
//! card profile, or with a figure that no such card can have.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;
use toml::Table;

use crate::cargo;

/// As `engine/src/selftest/report.rs` writes it.
const SCHEMA_VERSION: u32 = 1;
const TABLE_START: &str = "<!-- cards: written by `cargo xtask card` -->\n";
const TABLE_END: &str = "<!-- cards: end -->";

#[derive(Args)]
pub struct CardArgs {
    /// What `engine selftest --json` printed
    file: PathBuf,
    /// The card's file in data/cards, without its ending [default: from the GPU's name]
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Version {
    schema_version: u32,
}

#[derive(Debug, Deserialize)]
struct Selftest {
    engine: Engine,
    card_profile: Option<String>,
    gpu: Option<Gpu>,
    no_gpu: Option<String>,
    checks: Vec<serde_json::Value>,
    failures: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Engine {
    version: String,
    commit: Option<String>,
    kernels_sha256: String,
}

#[derive(Debug, Deserialize)]
struct Gpu {
    name: String,
    own_compute_capability: String,
    own_n_multiprocessors: u32,
    memory_bytes: u64,
    clock_mhz: f64,
    memory_peak_gb_per_s: f64,
    driver_cuda: String,
    rates: Option<Rates>,
}

#[derive(Debug, Deserialize)]
struct Rates {
    read_gb_per_s: f64,
    copy_gb_per_s: f64,
    to_device_gb_per_s: f64,
    to_host_gb_per_s: f64,
    products: Vec<Product>,
}

#[derive(Debug, Deserialize)]
struct Product {
    instruction: String,
    tera_ops_per_s: f64,
}

pub fn run(args: &CardArgs) -> Result<ExitCode> {
    let text = fs::read_to_string(&args.file).with_context(|| args.file.display().to_string())?;
    let folder = cargo::root()?.join("data").join("cards");
    let (name, card) =
        card_of(&text, args.name.as_deref()).with_context(|| args.file.display().to_string())?;
    let path = folder.join(format!("{name}.toml"));
    if path.exists() {
        bail!(
            "{} exists; remove it first, or choose another --name",
            path.display()
        );
    }
    fs::write(&path, card).with_context(|| path.display().to_string())?;
    let readme = folder.join("README.md");
    let text = fs::read_to_string(&readme).with_context(|| readme.display().to_string())?;
    let text = with_table(&text, &table(&folder)?)?;
    fs::write(&readme, text).with_context(|| readme.display().to_string())?;
    println!(
        "{}\ncargo xtask simulate baseline --gpu {name}",
        path.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// The card's name and its file.
fn card_of(text: &str, name: Option<&str>) -> Result<(String, String)> {
    let version: Version =
        serde_json::from_str(text).context("no file of `engine selftest --json`")?;
    if version.schema_version != SCHEMA_VERSION {
        bail!(
            "schema_version is {}, known is {SCHEMA_VERSION}",
            version.schema_version
        );
    }
    let selftest: Selftest = serde_json::from_str(text)?;
    if !selftest.failures.is_empty() {
        bail!(
            "{} of {} checks failed there:\n  {}",
            selftest.failures.len(),
            selftest.checks.len(),
            selftest.failures.join("\n  ")
        );
    }
    let Some(gpu) = &selftest.gpu else {
        let why = selftest.no_gpu.as_deref().unwrap_or("it does not say why");
        bail!("no GPU was tested there: {why}");
    };
    if let Some(profile) = &selftest.card_profile {
        bail!("the GPU was treated as {profile}; a card's own figures are needed");
    }
    let rates = gpu.rates.as_ref().context("no rates were measured there")?;
    let products = products_of(gpu, rates)?;
    check(gpu, rates, products)?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => file_name(&gpu.name),
    };
    if name.is_empty()
        || !name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    {
        bail!("--name {name}: must be of small letters, digits and hyphens");
    }
    Ok((name, written(&selftest.engine, gpu, rates, products)))
}

/// Dense fp16 products with fp32 sums, by the instruction that the engine's kernels use there.
fn products_of<'a>(gpu: &Gpu, rates: &'a Rates) -> Result<&'a Product> {
    let wanted = if gpu.own_compute_capability == "9.0" {
        "wgmma"
    } else {
        "mma.sync m16n8k16"
    };
    let found = rates
        .products
        .iter()
        .find(|product| product.instruction.starts_with(wanted));
    found.with_context(|| format!("no products by {wanted} were measured there"))
}

/// Refuses what no card of these years can be: another unit, a broken clock, a typing error.
fn check(gpu: &Gpu, rates: &Rates, products: &Product) -> Result<()> {
    let gib = gpu.memory_bytes as f64 / (1_u64 << 30) as f64;
    let flops_a_clock =
        products.tera_ops_per_s * 1e6 / (f64::from(gpu.own_n_multiprocessors) * gpu.clock_mhz);
    let peak = gpu.memory_peak_gb_per_s;
    let figures = [
        ("memory_bytes in GiB", gib, 4.0, 1024.0),
        (
            "own_n_multiprocessors",
            f64::from(gpu.own_n_multiprocessors),
            4.0,
            512.0,
        ),
        ("clock_mhz", gpu.clock_mhz, 300.0, 4500.0),
        ("memory_peak_gb_per_s", peak, 100.0, 20_000.0),
        (
            "read_gb_per_s over memory_peak_gb_per_s",
            rates.read_gb_per_s / peak,
            0.4,
            1.02,
        ),
        (
            "copy_gb_per_s over memory_peak_gb_per_s",
            rates.copy_gb_per_s / peak,
            0.3,
            1.02,
        ),
        ("to_device_gb_per_s", rates.to_device_gb_per_s, 0.5, 1000.0),
        ("to_host_gb_per_s", rates.to_host_gb_per_s, 0.5, 1000.0),
        (
            "fp16 operations a clock and multiprocessor",
            flops_a_clock,
            100.0,
            10_000.0,
        ),
    ];
    let faults: Vec<String> = figures
        .into_iter()
        .filter(|(_, value, least, most)| !(*least..=*most).contains(value))
        .map(|(name, value, least, most)| format!("{name} is {value}, must be {least} to {most}"))
        .collect();
    if faults.is_empty() {
        return Ok(());
    }
    bail!("implausible:\n  {}", faults.join("\n  "))
}

/// `NVIDIA GeForce RTX 5080` → rtx-5080
fn file_name(gpu: &str) -> String {
    let words = gpu.split_whitespace();
    let words = words.filter(|word| !["NVIDIA", "GeForce"].contains(word));
    let joined = words.collect::<Vec<_>>().join("-").to_lowercase();
    joined
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || *c == '-')
        .collect()
}

fn written(engine: &Engine, gpu: &Gpu, rates: &Rates, products: &Product) -> String {
    let steps_of = if gpu.own_compute_capability == "9.0" {
        "h100.toml"
    } else {
        "h200-as-sm-120.toml"
    };
    let source = format!(
        "engine selftest {} ({}, kernels {}), driver for CUDA {}; read {:.0} GB/s; products by {}",
        engine.version,
        engine.commit.as_deref().unwrap_or("unknown commit"),
        engine.kernels_sha256.get(..12).unwrap_or("unknown"),
        gpu.driver_cuda,
        rates.read_gb_per_s,
        products.instruction
    );
    let mut rates_table = Table::new();
    rates_table.insert("name".into(), gpu.name.clone().into());
    rates_table.insert("source".into(), source.into());
    rates_table.insert("memory_bytes".into(), (gpu.memory_bytes as i64).into());
    let mut figure = |key: &str, value: f64| {
        rates_table.insert(key.into(), ((value * 1e3).round() / 1e3).into());
    };
    figure("bandwidth_gb_per_s", gpu.memory_peak_gb_per_s);
    figure("fp16_tflops", products.tera_ops_per_s);
    figure("clock_ghz", gpu.clock_mhz / 1e3);
    figure(
        "host_link_gb_per_s",
        rates.to_device_gb_per_s.min(rates.to_host_gb_per_s),
    );
    rates_table.insert("n_sms".into(), i64::from(gpu.own_n_multiprocessors).into());
    format!(
        "# A projection: its kernels were tested and its rates measured, but no model was.\n\
         steps_of = \"{steps_of}\"\n\n[rates]\n{rates_table}"
    )
}

/// The table of all cards.
fn table(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    let mut text = String::from(
        "| `--gpu` | card | memory | bandwidth | fp16 products | multiprocessors | steps |\n\
         |---|---|---:|---:|---:|---:|---|\n",
    );
    for file in files {
        let name = || file.display().to_string();
        let card: Table = fs::read_to_string(&file)
            .with_context(name)?
            .parse()
            .with_context(name)?;
        let rates = card
            .get("rates")
            .and_then(toml::Value::as_table)
            .with_context(name)?;
        let number = |key: &str| {
            let value = rates.get(key);
            let value = value.and_then(|v| v.as_float().or_else(|| Some(v.as_integer()? as f64)));
            value.with_context(|| format!("{}: no {key}", file.display()))
        };
        let is_never_run = card.get("never_run").and_then(toml::Value::as_bool) == Some(true);
        let steps = match card.get("steps_of").and_then(toml::Value::as_str) {
            None => "measured".to_owned(),
            Some(of) if is_never_run => {
                format!("of `{of}`: projected; no kernel of this engine has run on this card")
            }
            Some(of) => format!("of `{of}`: projected"),
        };
        let _ = writeln!(
            text,
            "| `{}` | {} | {:.1} GiB | {:.0} GB/s | {:.0} TFLOP/s | {:.0} | {steps} |",
            file.file_stem()
                .and_then(|stem| stem.to_str())
                .unwrap_or_default(),
            rates
                .get("name")
                .and_then(toml::Value::as_str)
                .unwrap_or_default(),
            number("memory_bytes")? / (1_u64 << 30) as f64,
            number("bandwidth_gb_per_s")?,
            number("fp16_tflops")?,
            number("n_sms")?,
        );
    }
    Ok(text)
}

/// `text` with `table` between the marks.
fn with_table(text: &str, table: &str) -> Result<String> {
    let parts = text.split_once(TABLE_START).zip(text.split_once(TABLE_END));
    let ((before, _), (_, after)) =
        parts.context("data/cards/README.md has no marks of the table")?;
    Ok(format!("{before}{TABLE_START}{table}{TABLE_END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("card/example.json");

    fn refused(from: &str, to: &str) -> String {
        assert!(EXAMPLE.contains(from), "{from}");
        let error = card_of(&EXAMPLE.replacen(from, to, 1), None).expect_err("refused");
        format!("{error:#}")
    }

    #[test]
    fn a_selftest_becomes_a_card_with_its_own_figures() {
        let (name, text) = card_of(EXAMPLE, None).expect("a card");
        assert_eq!(name, "rtx-example");
        let card: Table = text.parse().expect("TOML");
        assert_eq!(card["steps_of"].as_str(), Some("h200-as-sm-120.toml"));
        let rates = card["rates"].as_table().expect("rates");
        assert_eq!(rates["bandwidth_gb_per_s"].as_float(), Some(960.0));
        assert_eq!(rates["fp16_tflops"].as_float(), Some(110.25));
        assert_eq!(rates["n_sms"].as_integer(), Some(84));
        assert_eq!(rates["clock_ghz"].as_float(), Some(2.617));
        assert_eq!(rates["host_link_gb_per_s"].as_float(), Some(51.5));
        assert!(
            rates["source"]
                .as_str()
                .is_some_and(|source| source.contains("0123abcd"))
        );
        let (name, _) = card_of(EXAMPLE, Some("mine")).expect("a card");
        assert_eq!(name, "mine");
    }

    #[test]
    fn failures_are_named_and_other_schemas_refused() {
        let text = refused(
            "\"failures\": []",
            "\"failures\": [\"mma.cu, small: off by 1\"]",
        );
        assert_eq!(
            text,
            "1 of 2 checks failed there:\n  mma.cu, small: off by 1"
        );
        let text = refused("\"schema_version\": 1", "\"schema_version\": 2");
        assert_eq!(text, "schema_version is 2, known is 1");
        let text = refused("\"card_profile\": null", "\"card_profile\": \"sm_120\"");
        assert!(text.contains("treated as sm_120"), "{text}");
        let error = card_of("{}", None).expect_err("refused").to_string();
        assert!(
            error.contains("no file of `engine selftest --json`"),
            "{error}"
        );
    }

    #[test]
    fn implausible_figures_are_named_with_their_limits() {
        let text = refused("\"read_gb_per_s\": 890.0", "\"read_gb_per_s\": 8900.0");
        assert!(
            text.contains("read_gb_per_s over memory_peak_gb_per_s is 9.2"),
            "{text}"
        );
        assert!(text.contains("must be 0.4 to 1.02"), "{text}");
        let text = refused("\"clock_mhz\": 2617.0", "\"clock_mhz\": 2.617");
        assert!(
            text.contains("clock_mhz is 2.617, must be 300 to 4500"),
            "{text}"
        );
        let text = refused(
            "\"tera_ops_per_s\": 110.25",
            "\"tera_ops_per_s\": 1102500.0",
        );
        assert!(text.contains("fp16 operations a clock"), "{text}");
    }

    #[test]
    fn names_of_files_are_short() {
        assert_eq!(file_name("NVIDIA GeForce RTX 5080"), "rtx-5080");
        assert_eq!(
            file_name("NVIDIA RTX PRO 6000 Blackwell"),
            "rtx-pro-6000-blackwell"
        );
    }

    /// `cargo xtask card` writes it; a card that was edited by hand shows here.
    #[test]
    fn the_table_lists_every_card_as_its_file_says() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/cards");
        let text = fs::read_to_string(folder.join("README.md")).expect("the page");
        let expected = with_table(&text, &table(&folder).expect("cards")).expect("marks");
        assert_eq!(text, expected);
        assert!(text.contains("no kernel of this engine has run on this card"));
    }
}
